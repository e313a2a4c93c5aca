package policy

import (
	"fmt"
	"strings"

	"golang.org/x/crypto/ssh"
)

// KeyFingerprint is the "SHA256:..." fingerprint of an authorized_keys line, as ssh-keygen -l prints it. A key that is too weak or of a
// type that nobody may log in with is an error.
func KeyFingerprint(line string) (string, error) {
	key, err := parseSSHKey(line)
	if err != nil {
		return "", err
	}
	return ssh.FingerprintSHA256(key), nil
}

func applySetup(s *State, c Command) (Result, error) {
	b, err := decode[Setup](c)
	if err != nil {
		return Result{}, err
	}
	if err := checkService(b.Service); err != nil {
		return Result{}, &Refused{c.Kind, err.Error(), "correct the answer file"}
	}
	if b.Service.DenyIssuedBefore != 0 {
		return Result{}, &Refused{c.Kind, "a new service has no deny date", ""}
	}
	if b.Service.Syslog != nil || len(b.Node.FormerAuditKeys) > 0 {
		return Result{}, &Refused{c.Kind, "a new service sends its audit nowhere, and a new node has had no other audit key", ""}
	}
	if b.Service.Switched != nil {
		return Result{}, &Refused{c.Kind, "a new service has had no other mode", ""}
	}
	if err := checkNode(b.Node); err != nil {
		return Result{}, &Refused{c.Kind, err.Error(), "correct the answer file"}
	}
	if !ValidName(b.Node.ID) || !ValidName(b.Node.Name) || len(b.Node.AuditKey) == 0 {
		return Result{}, &Refused{c.Kind, "the node has no valid name, id or audit key", "give node.name in letters, digits, dots and dashes"}
	}
	s.Service = &b.Service
	b.Node.Added = c.At
	s.Nodes[b.Node.ID] = b.Node
	for _, a := range b.Admins {
		a.Added = c.At
		if err := addAdmin(s, c, a); err != nil {
			return Result{}, err
		}
	}
	if owners(*s) == 0 {
		return Result{}, &Refused{c.Kind, "there is no administrator with the role owner", "give at least one [[admin]] with role = \"owner\""}
	}
	return Result{Message: fmt.Sprintf("node %s set up for %s", b.Node.Name, b.Service.Name), Subject: b.Node.ID}, nil
}

func checkService(v Service) error {
	if v.Name == "" || !validText(v.Name, 253) || strings.ContainsAny(v.Name, " /:\\\"'") {
		return fmt.Errorf("service.name is not a host name")
	}
	if v.Mode < ModeTPM || v.Mode > ModeHostKey {
		return fmt.Errorf("service.mode is not 1 (TPM), 2 (AD) or 3 (HostKey)")
	}
	if !v.HTTP && !v.HTTPS {
		return fmt.Errorf("both HTTP and HTTPS are off, no host could reach the service")
	}
	if v.HealthLife < MinHealthLife || v.HealthLife > MaxHealthLife {
		return fmt.Errorf("the life of health certificates is %s; %s to %s are accepted", v.HealthLife, MinHealthLife, MaxHealthLife)
	}
	return CheckTimeBound(v.TimeBound)
}

func applyServiceSet(s *State, c Command) (Result, error) {
	b, err := decode[ServiceSet](c)
	if err != nil {
		return Result{}, err
	}
	v := *s.Service
	if b.Mode != nil && *b.Mode != v.Mode {
		v.Switched = &ModeSwitch{From: v.Mode, At: c.At}
		v.Mode = *b.Mode
	}
	if b.HTTP != nil {
		v.HTTP = *b.HTTP
	}
	if b.HTTPS != nil {
		v.HTTPS = *b.HTTPS
	}
	if b.HealthLife != nil {
		v.HealthLife = *b.HealthLife
	}
	if b.TimeBound != nil {
		v.TimeBound = *b.TimeBound
	}
	if b.OtherSigning != nil {
		v.OtherSigning = *b.OtherSigning
	}
	if b.ForeignForms != nil {
		v.ForeignForms = *b.ForeignForms
	}
	if b.DenyIssuedBefore != nil {
		if err := checkDenyDate(c, v.DenyIssuedBefore, *b.DenyIssuedBefore); err != nil {
			return Result{}, err
		}
		v.DenyIssuedBefore = *b.DenyIssuedBefore
	}
	if err := checkService(v); err != nil {
		return Result{}, &Refused{c.Kind, err.Error(), ""}
	}
	s.Service = &v
	return Result{Message: "service settings changed"}, nil
}

func applyNodeSet(s *State, c Command) (Result, error) {
	b, err := decode[NodeSet](c)
	if err != nil {
		return Result{}, err
	}
	n, ok := s.Nodes[b.Node]
	if !ok {
		return Result{}, &Refused{c.Kind, fmt.Sprintf("there is no node %.64q", b.Node), "see node list"}
	}
	if b.Network != nil {
		n.Network = *b.Network
	}
	if b.TimeServers != nil {
		n.TimeServers, n.TimeKeys = b.TimeServers, b.TimeKeys
	}
	if b.HSM != nil {
		n.HSM = *b.HSM
	}
	if err := checkNode(n); err != nil {
		return Result{}, &Refused{c.Kind, err.Error(), ""}
	}
	s.Nodes[b.Node] = n
	return Result{Message: "settings of node " + n.Name + " changed", Subject: n.ID}, nil
}

func owners(s State) (n int) {
	for _, a := range s.Admins {
		if a.Role == AdminOwner {
			n++
		}
	}
	return n
}

func addAdmin(s *State, c Command, a Admin) error {
	if !ValidName(a.Name) || !a.Role.Valid() {
		return &Refused{c.Kind, fmt.Sprintf("administrator %.64q needs a valid name and a role of owner, operator or reviewer", a.Name), ""}
	}
	key, err := parseSSHKey(a.Key)
	if err != nil {
		return &Refused{c.Kind, err.Error(), "paste the content of the .pub file"}
	}
	fp := ssh.FingerprintSHA256(key)
	a.Key = strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key))) // without the comment, which is anybody's text
	for _, other := range s.Admins {
		if other.Name == a.Name {
			return &Refused{c.Kind, fmt.Sprintf("administrator %q exists", a.Name), "remove it first, or choose another name"}
		}
		if ofp, _ := KeyFingerprint(other.Key); ofp == fp {
			return &Refused{c.Kind, fmt.Sprintf("this key is already enrolled for %q", other.Name), "each administrator has a key of their own"}
		}
	}
	if len(s.Admins) >= MaxAdmins {
		return &Refused{c.Kind, fmt.Sprintf("there are %d administrators already", MaxAdmins), "remove one first"}
	}
	s.Admins[a.Name] = a
	return nil
}

func applyAdminAdd(s *State, c Command) (Result, error) {
	b, err := decode[AdminAdd](c)
	if err != nil {
		return Result{}, err
	}
	if err := addAdmin(s, c, Admin{Name: b.Name, Role: b.Role, Key: b.Key, Added: c.At}); err != nil {
		return Result{}, err
	}
	return Result{Message: fmt.Sprintf("administrator %s (%s) enrolled", b.Name, b.Role), Subject: b.Name}, nil
}

func applyAdminRemove(s *State, c Command) (Result, error) {
	b, err := decode[ByName](c)
	if err != nil {
		return Result{}, err
	}
	if _, ok := s.Admins[b.Name]; !ok {
		return Result{}, &Refused{c.Kind, fmt.Sprintf("there is no administrator %.64q", b.Name), "see admin list"}
	}
	delete(s.Admins, b.Name)
	if owners(*s) == 0 {
		return Result{}, &Refused{c.Kind, "nobody with the role owner would be left", "enrol another owner first"}
	}
	return Result{Message: "administrator " + b.Name + " removed", Subject: b.Name}, nil
}

func applySignerTrust(s *State, c Command) (Result, error) {
	b, err := decode[SignerTrust](c)
	if err != nil {
		return Result{}, err
	}
	if !ValidName(b.Name) {
		return Result{}, &Refused{c.Kind, fmt.Sprintf("%.64q is not a valid name", b.Name), ""}
	}
	if _, err := parseCertificate(c, b.Certificate); err != nil {
		return Result{}, err
	}
	tp := Thumbprint(b.Certificate)
	if _, ok := s.Signers[tp]; ok {
		return Result{}, &Refused{c.Kind, "this attestation signer is trusted already", ""}
	}
	if len(s.Signers) >= MaxSigners {
		return Result{}, &Refused{c.Kind, fmt.Sprintf("%d attestation signers are trusted, the limit", MaxSigners), "remove one first"}
	}
	s.Signers[tp] = TrustedSigner{Thumbprint: tp, Name: b.Name, Certificate: b.Certificate, Added: c.At}
	return Result{Message: "attestation signer " + b.Name + " trusted: its health certificates open key protectors here", Subject: tp}, nil
}

func applySignerDistrust(s *State, c Command) (Result, error) {
	b, err := decode[ByName](c)
	if err != nil {
		return Result{}, err
	}
	for tp, signer := range s.Signers {
		if tp == b.Name || signer.Name == b.Name {
			delete(s.Signers, tp)
			return Result{Message: "attestation signer " + signer.Name + " is no longer trusted", Subject: tp}, nil
		}
	}
	return Result{}, &Refused{c.Kind, fmt.Sprintf("there is no trusted attestation signer %.64q", b.Name), "see attestation-signer list"}
}
