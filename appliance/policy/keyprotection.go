package policy

import (
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Limits of what the key protection service is told beside its keys. Counts are records.
const (
	MaxDenials        = 256
	MaxOfflineClasses = 64
	MaxOfflineUnwraps = 1000
	MaxOfflineLife    = 366 * 24 * time.Hour
	MaxSubject        = 256 // bytes of a certificate's subject
	maxRevokedKeys    = 4   // of one host
)

// Denial refuses health certificates whoever issued them: our own attestation signers or trusted foreign ones, which name their hosts as
// they like and know nothing of our revocations. At least one of Subject and Key is set, and either of them suffices.
type Denial struct {
	Name string `json:"name"`
	// Subject is a certificate's common name or whole subject ("CN=hv7,O=Contoso"), compared without regard to case. A host id is one.
	Subject string `json:"subject,omitempty"`
	// Key is the lower-case hex SHA-256 of the certified SubjectPublicKeyInfo.
	Key   string `json:"key,omitempty"`
	Note  string `json:"note,omitempty"`
	Added Stamp  `json:"added"`
}

// OfflineCaching lets the hosts of one class keep a transport key for starts without this service (G04). A host that has one keeps it
// without limit of time: Until ends only the giving.
type OfflineCaching struct {
	Class      string `json:"class"`
	MaxUnwraps uint32 `json:"maxUnwraps"` // what hosts are told as MaxOfflineUnwraps; 1 to MaxOfflineUnwraps
	Until      int64  `json:"until"`      // unix seconds
	Note       string `json:"note,omitempty"`
	Set        Stamp  `json:"set"`
}

// HostDeny is the body of CmdHostDeny: a new Denial, or another one under the same name.
type HostDeny struct {
	Name    string `json:"name"`
	Subject string `json:"subject,omitempty"`
	Key     string `json:"key,omitempty"`
	Note    string `json:"note,omitempty"`
}

// OfflineSet is the body of CmdClassOffline. MaxUnwraps 0 ends it for the class, and Until must then be 0.
type OfflineSet struct {
	Class      string `json:"class"`
	MaxUnwraps uint32 `json:"maxUnwraps"`
	Until      int64  `json:"until,omitempty"` // unix seconds, after the time of the command
	Note       string `json:"note,omitempty"`
}

// OfflineUnwraps is what hosts of a class are told at a moment, the latest that the present may be; 0 = offline caching is off for them.
func (s State) OfflineUnwraps(class string, latest time.Time) (o OfflineCaching, ok bool) {
	o, ok = s.Offline[class]
	if !ok || class == "" || latest.Unix() >= o.Until {
		return OfflineCaching{}, false
	}
	return o, true
}

func validKeyHash(s string) bool {
	_, err := hex.DecodeString(s)
	return err == nil && len(s) == 64 && strings.ToLower(s) == s
}

func applyHostDeny(s *State, c Command) (Result, error) {
	b, err := decode[HostDeny](c)
	if err != nil {
		return Result{}, err
	}
	b.Subject = strings.TrimSpace(b.Subject)
	switch {
	case !ValidName(b.Name):
		return Result{}, &Refused{c.Kind, fmt.Sprintf("%.64q is not a valid name", b.Name), "use letters, digits, dots, dashes; at most 64"}
	case b.Subject == "" && b.Key == "":
		return Result{}, &Refused{c.Kind, "neither a subject nor a key is given", "give the health certificate, its common name, or the SHA-256 of its public key"}
	case b.Subject != "" && !validText(b.Subject, MaxSubject):
		return Result{}, &Refused{c.Kind, fmt.Sprintf("the subject is no printable text of at most %d bytes", MaxSubject), ""}
	case b.Key != "" && !validKeyHash(b.Key):
		return Result{}, &Refused{c.Kind, "the key is not a SHA-256 of 64 lower-case hexadecimal digits", ""}
	case !validText(b.Note, MaxNote):
		return Result{}, &Refused{c.Kind, fmt.Sprintf("the note is no printable text of at most %d bytes", MaxNote), ""}
	}
	if _, ok := s.Denials[b.Name]; !ok && len(s.Denials) >= MaxDenials {
		return Result{}, &Refused{c.Kind, fmt.Sprintf("%d denials are recorded, the limit", MaxDenials), "take back those that no certificate can meet any more"}
	}
	if s.Denials == nil {
		s.Denials = map[string]Denial{}
	}
	s.Denials[b.Name] = Denial{Name: b.Name, Subject: b.Subject, Key: b.Key, Note: b.Note, Added: c.At}
	return Result{Message: "health certificates that " + b.Name + " describes are refused, whoever issued them", Subject: b.Name}, nil
}

func applyHostAllow(s *State, c Command) (Result, error) {
	b, err := decode[ByName](c)
	if err != nil {
		return Result{}, err
	}
	if _, ok := s.Denials[b.Name]; !ok {
		return Result{}, &Refused{c.Kind, fmt.Sprintf("nothing is denied under the name %.64q", b.Name), "see host denied; a revoked host needs host restore"}
	}
	delete(s.Denials, b.Name)
	return Result{Message: "denial " + b.Name + " taken back", Subject: b.Name}, nil
}

func applyClassOffline(s *State, c Command) (Result, error) {
	b, err := decode[OfflineSet](c)
	if err != nil {
		return Result{}, err
	}
	if !ValidName(b.Class) || !validText(b.Note, MaxNote) {
		return Result{}, &Refused{c.Kind, fmt.Sprintf("the host class is not a valid name, or the note is no printable text of at most %d bytes", MaxNote), ""}
	}
	if b.MaxUnwraps == 0 {
		if _, ok := s.Offline[b.Class]; !ok || b.Until != 0 {
			return Result{}, &Refused{c.Kind, fmt.Sprintf("offline caching is off for the host class %.64q", b.Class), "nothing to do"}
		}
		delete(s.Offline, b.Class)
		return Result{Message: "offline caching is off for the host class " + b.Class + ": what its hosts keep already, they keep", Subject: b.Class}, nil
	}
	until := time.Unix(b.Until, 0)
	switch {
	case b.MaxUnwraps > MaxOfflineUnwraps:
		return Result{}, &Refused{c.Kind, fmt.Sprintf("%d offline unwraps are asked for, %d are allowed", b.MaxUnwraps, MaxOfflineUnwraps), ""}
	case c.At.Latest == 0:
		return Result{}, &Refused{c.Kind, "without a trusted time its end can't be told", "wait until time status says trusted"}
	case !until.After(time.UnixMilli(c.At.Latest)) || until.After(time.UnixMilli(c.At.Latest).Add(MaxOfflineLife)):
		return Result{}, &Refused{c.Kind, "its end does not lie within the next 366 days", "give an end; it can be renewed"}
	}
	if _, ok := s.Offline[b.Class]; !ok && len(s.Offline) >= MaxOfflineClasses {
		return Result{}, &Refused{c.Kind, fmt.Sprintf("%d host classes have offline caching, the limit", MaxOfflineClasses), ""}
	}
	if s.Offline == nil {
		s.Offline = map[string]OfflineCaching{}
	}
	s.Offline[b.Class] = OfflineCaching{Class: b.Class, MaxUnwraps: b.MaxUnwraps, Until: b.Until, Note: b.Note, Set: c.At}
	return Result{Message: fmt.Sprintf("hosts of the class %s may keep keys for %d offline starts; given until %s", b.Class, b.MaxUnwraps,
		until.UTC().Format("2006-01-02 15:04:05 UTC")), Subject: b.Class}, nil
}

// checkRevokedKeys bounds the keys that a revocation names.
func checkRevokedKeys(c Command, keys []string) error {
	if len(keys) > maxRevokedKeys || slices.ContainsFunc(keys, func(k string) bool { return !validKeyHash(k) }) {
		return &Refused{c.Kind, fmt.Sprintf("the certified keys are not at most %d times SHA-256 in lower-case hexadecimal digits", maxRevokedKeys), ""}
	}
	return nil
}

// addKeys is a with those of b that it lacks; of more than maxRevokedKeys the newest stay.
func addKeys(a, b []string) []string {
	out := slices.Clone(a)
	for _, k := range b {
		if !slices.Contains(out, k) {
			out = append(out, k)
		}
	}
	return out[max(0, len(out)-maxRevokedKeys):]
}
