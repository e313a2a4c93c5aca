package policy

import (
	"crypto/x509"
	"fmt"
)

func applyHostAdd(s *State, c Command) (Result, error) {
	b, err := decode[HostAdd](c)
	if err != nil {
		return Result{}, err
	}
	if !ValidName(b.Name) {
		return Result{}, &Refused{c.Kind, fmt.Sprintf("%.64q is not a valid host name", b.Name), "use letters, digits, dots, dashes; at most 64"}
	}
	if b.Class != "" && !ValidName(b.Class) || !validText(b.Note, MaxNote) {
		return Result{}, &Refused{c.Kind, fmt.Sprintf("the host class is not a valid name, or the note is no printable text of at most %d bytes", MaxNote), ""}
	}
	pub, err := x509.ParsePKIXPublicKey(b.HostKey)
	if err == nil {
		err = usableRSA(pub)
	}
	if err != nil {
		return Result{}, &Refused{c.Kind, "the host key can't be used: " + err.Error(), "export it on the host with Get-HgsClientHostKey"}
	}
	// One key has one name, however its owner's tool wrote it: the id is taken over Go's own encoding.
	spki, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return Result{}, &Refused{c.Kind, "the host key can't be used: " + err.Error(), ""}
	}
	id := HostID(spki)
	if h, ok := s.Hosts[id]; ok {
		return Result{}, &Refused{c.Kind, fmt.Sprintf("this host key is registered as %q", h.Name), "nothing to do, or remove that host first"}
	}
	return registerHost(s, c, Host{ID: id, Name: b.Name, HostKey: spki, Class: b.Class, Note: b.Note})
}

// registerHost records a host whose fields were checked. A machine that is known in the other mode lends it its class.
func registerHost(s *State, c Command, h Host) (Result, error) {
	h.Added = c.At
	for _, other := range s.HostsByName(h.Name) {
		switch {
		case other.Mode() == h.Mode():
			return Result{}, &Refused{c.Kind, fmt.Sprintf("a host %.64q is registered with another key", h.Name), "remove it first, or choose another name"}
		case other.Revoked:
			return Result{}, &Refused{c.Kind, fmt.Sprintf("host %.64q is revoked", h.Name), "restore it first, or choose another name if it is another machine"}
		case h.Class == "":
			h.Class = other.Class
		case h.Class != other.Class:
			return Result{}, &Refused{c.Kind, fmt.Sprintf("host %.64q belongs to the host class %s", h.Name, other.Class), "name that class, or none"}
		}
	}
	if h.Class == "" {
		h.Class = "default"
	}
	if len(s.Hosts) >= MaxHosts {
		return Result{}, &Refused{c.Kind, fmt.Sprintf("%d hosts are registered, the limit", MaxHosts), "remove hosts that are gone"}
	}
	if h.room()+s.hostRoom() > maxHostBytes {
		return Result{}, &Refused{c.Kind, fmt.Sprintf("%d hosts are registered, and their keys and certificates fill the room for them", len(s.Hosts)), "remove hosts that are gone"}
	}
	if c.At.Earliest > 0 {
		// The same key may have been registered before, revoked and removed: what it got then stays refused. Unlike in a restore the earliest
		// moment counts, less a second for a clock whose bound grows, so that a host may attest right after it was added.
		h.DenyIssuedBefore = max(0, c.At.Earliest/1000-1)
	}
	s.Hosts[h.ID] = h
	return Result{Message: "host " + h.Name + " registered", Subject: h.ID}, nil
}

// changeHost finds a machine by name and replaces each of its records by what edit returns; it gives the one for its host key, if any.
func changeHost(s *State, c Command, name string, edit func(Host) Host) (Host, error) {
	hosts := s.HostsByName(name)
	if len(hosts) == 0 {
		return Host{}, &Refused{c.Kind, fmt.Sprintf("there is no host %.64q", name), "see host list"}
	}
	for i := range hosts {
		hosts[i] = edit(hosts[i])
		s.Hosts[hosts[i].ID] = hosts[i]
	}
	return hosts[0], nil
}

func applyHostRevoke(s *State, c Command) (Result, error) {
	b, err := decode[HostRevoke](c)
	if err != nil {
		return Result{}, err
	}
	if !validText(b.Reason, MaxNote) {
		return Result{}, &Refused{c.Kind, fmt.Sprintf("the reason is no printable text of at most %d bytes", MaxNote), ""}
	}
	if err := checkRevokedKeys(c, b.Keys); err != nil {
		return Result{}, err
	}
	h, err := changeHost(s, c, b.Name, func(h Host) Host {
		h.Revoked, h.CertifiedKeys = true, addKeys(h.CertifiedKeys, b.Keys)
		if b.Reason != "" {
			h.Note = b.Reason
		}
		return h
	})
	if err != nil {
		return Result{}, err
	}
	return Result{Message: "host " + h.Name + " revoked: it gets no health certificate, and those it has are refused, whoever issued them", Subject: h.ID}, nil
}

func applyHostRestore(s *State, c Command) (Result, error) {
	b, err := decode[ByName](c)
	if err != nil {
		return Result{}, err
	}
	if c.At.Latest == 0 {
		return Result{}, &Refused{c.Kind, "without a trusted time the certificates from before the revocation can't be told from later ones", "wait until time status says trusted"}
	}
	h, err := changeHost(s, c, b.Name, func(h Host) Host {
		// Not NextSecond: a revoked host gets no certificates, so none can stem from this very second, and it may attest at once.
		h.Revoked, h.CertifiedKeys = false, nil
		h.DenyIssuedBefore = max(h.DenyIssuedBefore, c.At.Latest/1000)
		h.DenyForeignBefore = max(h.DenyForeignBefore, c.At.Latest/1000)
		return h
	})
	if err != nil {
		return Result{}, err
	}
	return Result{Message: "host " + h.Name + " restored: it must attest again", Subject: h.ID}, nil
}

func applyHostRemove(s *State, c Command) (Result, error) {
	b, err := decode[HostRemove](c)
	if err != nil {
		return Result{}, err
	}
	hosts := b.records(s)
	if len(hosts) == 0 {
		what := fmt.Sprintf("there is no host %.64q", b.Name)
		if b.Mode != ModeUnknown {
			what += " in " + b.Mode.String() + " mode"
		}
		return Result{}, &Refused{c.Kind, what, "see host list"}
	}
	what, note := "removed", ""
	if !b.leaves(s) {
		what = "removed from " + b.Mode.String() + " mode"
	}
	for _, h := range hosts {
		said, err := s.keepOld(c, h.Mode(), b.Phrase)
		if err != nil {
			return Result{}, err
		}
		note += said
	}
	for _, h := range hosts {
		delete(s.Hosts, h.ID)
	}
	h := hosts[0]
	return Result{Message: "host " + h.Name + " " + what + ": the health certificates it has of this service are refused" + note, Subject: h.ID}, nil
}

// HostSet changes the fields that are not nil, in each record of the machine.
type HostSet struct {
	Name  string  `json:"name"`
	Class *string `json:"class,omitempty"`
	Note  *string `json:"note,omitempty"`
}

func applyHostSet(s *State, c Command) (Result, error) {
	b, err := decode[HostSet](c)
	if err != nil {
		return Result{}, err
	}
	if b.Class != nil && !ValidName(*b.Class) || b.Note != nil && !validText(*b.Note, MaxNote) {
		return Result{}, &Refused{c.Kind, fmt.Sprintf("the host class is not a valid name, or the note is no printable text of at most %d bytes", MaxNote), ""}
	}
	h, err := changeHost(s, c, b.Name, func(h Host) Host {
		if b.Class != nil {
			h.Class = *b.Class
		}
		if b.Note != nil {
			h.Note = *b.Note
		}
		return h
	})
	if err != nil {
		return Result{}, err
	}
	if total := s.hostRoom(); total > maxHostBytes {
		return Result{}, &Refused{c.Kind, "the records of all hosts fill the room for them", "use a shorter note, or remove hosts that are gone"}
	}
	return Result{Message: "host " + h.Name + " changed: class " + h.Class, Subject: h.ID}, nil
}

// hostRoom is what all hosts take.
func (s *State) hostRoom() (total int) {
	for _, h := range s.Hosts {
		total += h.room()
	}
	return total
}
