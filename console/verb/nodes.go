package verb

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/crypto/ssh"

	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
)

// NodeValue is a node in --json. Fingerprint is the one of its SSH host key, as ssh shows it on the first connection.
type NodeValue struct {
	Name        string       `json:"name"`
	ID          string       `json:"id"`
	Self        bool         `json:"self"`
	Fingerprint string       `json:"fingerprint"`
	AuditKey    string       `json:"auditKey"`  // SHA-256 of the public key that signs its audit, hex
	TLSSHA1     string       `json:"tlsSha1"`   // thumbprints of the HTTPS certificate
	TLSSHA256   string       `json:"tlsSha256"` //
	Added       policy.Stamp `json:"added"`
}

func nodeValue(n policy.Node, self string) NodeValue {
	v := NodeValue{Name: n.Name, ID: n.ID, Self: n.ID == self, AuditKey: auditFingerprint(n.AuditKey), Added: n.Added}
	v.Fingerprint, _ = policy.KeyFingerprint(strings.TrimSpace(n.SSHHostKey))
	if len(n.Certificate) > 0 {
		v.TLSSHA1, v.TLSSHA256 = thumbprints(n.Certificate)
	}
	return v
}

func nodeList(_ context.Context, s *Session, _ Args, _ []byte) (Output, error) {
	snap, _ := s.Node.Snapshot()
	nodes := []NodeValue{}
	for _, n := range snap.State.Nodes {
		nodes = append(nodes, nodeValue(n, snap.NodeID))
	}
	slices.SortFunc(nodes, func(a, b NodeValue) int { return cmp.Compare(a.Name, b.Name) })
	p := new(Page)
	for _, v := range nodes {
		p.Blank().Line("%s%s", v.Name, map[bool]string{true: " (this node)"}[v.Self]).Field("  id", "%s", v.ID).
			Field("  SSH host key", "%s", v.Fingerprint).Field("  audit key", "%s", v.AuditKey).
			Field("  TLS SHA-1", "%s", v.TLSSHA1).Field("  TLS SHA-256", "%s", v.TLSSHA256)
	}
	return Output{Text: p, Value: struct {
		Nodes []NodeValue `json:"nodes"`
	}{nodes}}, nil
}

func nodeMeasure(ctx context.Context, s *Session, _ Args, _ []byte) (Output, error) {
	m, err := rpc.LedgerMeasure.Call(ctx, s.Node.Ledger, rpc.Empty{})
	if err != nil {
		return Output{}, err
	}
	p := new(Page).Field("TPM", "%s", m.TPM)
	numbers := make([]int, 0, len(m.PCRs))
	for n := range m.PCRs {
		numbers = append(numbers, n)
	}
	slices.Sort(numbers)
	for _, n := range numbers {
		p.Field(fmt.Sprintf("PCR %d", n), "%s", m.PCRs[n])
	}
	p.Line("Compare PCR 4 and 11 with `mkimage measure` of the image on your workstation.")
	return Output{Text: p, Value: m}, nil
}

func power(action string) func(context.Context, *Session, Args, []byte) (Output, error) {
	words := map[string]string{"reboot": "the machine restarts", "off": "the machine switches off"}
	return func(ctx context.Context, s *Session, _ Args, _ []byte) (Output, error) {
		p := new(Page).Line("%s", words[action])
		// A node whose ledger is broken must still be able to restart: that is often the cure.
		if err := s.audit(ctx, policy.AuditCommand, "power."+action, "ok", ""); err != nil {
			p.Line("this could not be written to the audit: %s", Explain(err).Error())
		}
		if _, err := rpc.InitPower.Call(ctx, s.Node.Init, rpc.PowerRequest{Action: action, Actor: s.Actor}); err != nil {
			return Output{}, err
		}
		return Output{Text: p, Value: Done{Message: words[action]}, End: true}, nil
	}
}

func runLogout(context.Context, *Session, Args, []byte) (Output, error) {
	return Output{Text: new(Page).Line("logged out"), Value: Done{Message: "logged out"}, End: true}, nil
}

// AdminValue is an administrator in --json.
type AdminValue struct {
	Name        string           `json:"name"`
	Role        policy.AdminRole `json:"role"`
	Fingerprint string           `json:"fingerprint"`
	Key         string           `json:"key"`
	Added       policy.Stamp     `json:"added"`
}

func adminList(_ context.Context, s *Session, _ Args, _ []byte) (Output, error) {
	snap, _ := s.Node.Snapshot()
	admins := []AdminValue{}
	for _, a := range snap.State.Admins {
		fp, _ := policy.KeyFingerprint(a.Key)
		admins = append(admins, AdminValue{a.Name, a.Role, fp, a.Key, a.Added})
	}
	slices.SortFunc(admins, func(a, b AdminValue) int { return cmp.Compare(a.Name, b.Name) })
	var rows [][]string
	for _, a := range admins {
		rows = append(rows, []string{a.Name, string(a.Role), a.Fingerprint})
	}
	return Output{Text: new(Page).Table([]string{"NAME", "ROLE", "KEY"}, rows), Value: struct {
		Admins []AdminValue `json:"admins"`
	}{admins}}, nil
}

func adminAdd(ctx context.Context, s *Session, a Args, stdin []byte) (Output, error) {
	key, _, _, rest, err := ssh.ParseAuthorizedKey(fromUTF16(stdin))
	if len(stdin) > maxInput || err != nil || len(strings.TrimSpace(string(rest))) > 0 {
		return Output{}, failed("standard input is not one SSH public key", "give the content of the .pub file, one line: admin add NAME ROLE < id_ed25519.pub")
	}
	line := strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key))) // type and base64 only: options and comments are not kept
	out, _, err := propose(ctx, s, policy.CmdAdminAdd, policy.AdminAdd{Name: a.Get("name"), Role: policy.AdminRole(a.Get("role")), Key: line})
	if err != nil {
		return Output{}, err
	}
	out.Text.Field("key", "%s", ssh.FingerprintSHA256(key))
	return out, nil
}

func adminRemove(ctx context.Context, s *Session, a Args, _ []byte) (Output, error) {
	return byName(ctx, s, policy.CmdAdminRemove, a)
}

func passphraseDialogue(ctx context.Context, s *Session, _ Args, ask Asker) (Output, error) {
	first, err := ask.Secret("new passphrase: ")
	if err != nil {
		return Output{}, err
	}
	defer clear(first)
	second, err := ask.Secret("the same again: ")
	if err != nil {
		return Output{}, err
	}
	defer clear(second)
	if string(first) != string(second) {
		return Output{}, failed("the two are not the same", "type them again")
	}
	actor := s.Actor
	if _, err := rpc.LedgerSetPassphrase.Call(ctx, s.Node.Ledger, rpc.PassphraseRequest{Admin: s.Actor.Name, Passphrase: first, Actor: &actor}); err != nil {
		return Output{}, err
	}
	return Output{Text: new(Page).Line("passphrase set"), Value: Done{Message: "passphrase set"}}, nil
}
