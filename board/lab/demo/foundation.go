package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"guardhouse/board/lab"
	"guardhouse/board/lab/site"
)

// foundation: a blank node becomes a service, a guarded host gets its key, everybody else gets a reason.
func foundation(ctx context.Context, t *teller, st *story) error {
	s, err := st.open(ctx, t, site.Options{Name: "demo"})
	if err != nil {
		return err
	}
	defer s.Close()
	c := &cast{story: st, site: s, dir: filepath.Join(s.Lab.Dir, "people")}
	return t.tell(ctx, s, []step{
		{"node up", "firmware, then the node's first prompt on its serial line", c.nodeUp},
		{"set up", "the answer file is typed at the speed of a serial line", c.setUp},
		{"measured", "the node reads its TPM", c.measured},
		{"time trusted", "three time servers to agree", c.timeTrusted},
		{"HSM keys made", "the token makes four RSA keys", c.keysMade},
		{"host known", "hostsim makes keys", c.hostRegistered},
		{"host attests", "the node checks and the token signs", c.hostAttests},
		{"key protector", "a tenant makes one for the guardian in metadata.xml", c.protectorMade},
		{"key released", "the token unwraps, the node rolls", c.keyReleased},
		{"unknown host", "", c.unknownHost},
		{"wire refusals", "six requests that must fail", c.wireRefusals},
		{"host revoked", "", c.hostRevoked},
		{"audit", "the export is verified without the node", c.auditVerified},
		{"vectors", "", c.vectors},
	})
}

// cast is the site and the people around it.
type cast struct {
	*story
	site      *site.Site
	dir       string
	hostCert  string // host1's health certificate file
	protector string
	secret    string // SHA-256 of the tenant's transport key
	ingress   string
}

func (c *cast) folder(who string) string { return filepath.Join(c.dir, who) }

func (c *cast) nodeUp(ctx context.Context) (string, error) {
	if err := c.site.Boot(ctx); err != nil {
		return "", err
	}
	setUp, err := c.site.WaitReady(ctx)
	if err != nil {
		return "", err
	}
	if setUp {
		return "", &failure{"a blank node that offers setup", "a login prompt", "make clean, then make demo"}
	}
	return fmt.Sprintf("%.1f s after power-on, blank, offers setup on its serial line", time.Since(c.site.Node.Started).Seconds()), nil
}

func (c *cast) setUp(ctx context.Context) (string, error) {
	r, err := c.site.SetUp(ctx)
	if err != nil {
		return "", err
	}
	if r.AnswerHash != r.LocalHash {
		return "", &failure{"the node to show the answer file's hash " + r.LocalHash, r.AnswerHash, "the serial line lost or changed bytes"}
	}
	return fmt.Sprintf("answer file %s, secrets encrypted to %s.., node key %s", short(r.LocalHash), r.SetupKey[:12], r.Fingerprint[:19]), nil
}

func (c *cast) measured(ctx context.Context) (string, error) {
	var m struct {
		PCRs map[int]string `json:"pcrs"`
	}
	err := c.retry(ctx, 15*time.Second, func() error { return c.site.JSON(ctx, nil, &m, "node", "measure") })
	if err != nil {
		return "", err
	}
	for _, n := range []int{4, 7, 11} {
		if m.PCRs[n] != c.image.PCRs[n] {
			return "", &failure{fmt.Sprintf("PCR %d = %s, predicted from the image file", n, c.image.PCRs[n]), m.PCRs[n],
				"firmware or boot order added something: mkimage measure shows the expected events"}
		}
	}
	return fmt.Sprintf("PCR 4 %s PCR 7 %s PCR 11 %s = predicted", short(m.PCRs[4]), short(m.PCRs[7]), short(m.PCRs[11])), nil
}

// retry repeats do until it works or limit is over: for what becomes ready by itself.
func (c *cast) retry(ctx context.Context, limit time.Duration, do func() error) error {
	deadline := time.Now().Add(limit)
	for {
		err := do()
		if err == nil || time.Now().After(deadline) || ctx.Err() != nil {
			return err
		}
		time.Sleep(300 * time.Millisecond)
	}
}

func (c *cast) timeTrusted(ctx context.Context) (string, error) {
	var v struct {
		Trusted struct {
			OK               bool
			Earliest, Latest time.Time
			Sources          []string
		} `json:"trusted"`
	}
	err := c.retry(ctx, 30*time.Second, func() error {
		if err := c.site.JSON(ctx, nil, &v, "time", "status"); err != nil {
			return err
		}
		if !v.Trusted.OK {
			return &failure{"a trusted time within 30 s", "none", "time status on the node names each server"}
		}
		return nil
	})
	if err != nil {
		return "", err
	}
	now := time.Now()
	if now.Before(v.Trusted.Earliest.Add(-5*time.Second)) || now.After(v.Trusted.Latest.Add(5*time.Second)) {
		return "", &failure{"a time that contains the workstation's " + now.UTC().Format(time.RFC3339), v.Trusted.Earliest.Format(time.RFC3339), ""}
	}
	return fmt.Sprintf("+-%d ms, %d of 3 servers agree", v.Trusted.Latest.Sub(v.Trusted.Earliest).Milliseconds()/2, len(v.Trusted.Sources)), nil
}

// exitFailed is the exit code of a verb that was refused or whose work did not succeed (package console/exec).
const exitFailed = 1

func (c *cast) keysMade(ctx context.Context) (string, error) {
	var made struct {
		Keys []struct {
			Role    string `json:"role"`
			SHA256  string `json:"sha256"`
			Primary bool
			Token   *struct {
				Sensitive, Extractable, NeverExtractable bool
			} `json:"token"`
		} `json:"keys"`
	}
	var failed *site.ExitError
	err := c.retry(ctx, 20*time.Second, func() error {
		err := c.site.JSON(ctx, nil, &made, "key", "new", "--roles", "all")
		if errors.As(err, &failed) && failed.Code == exitFailed { // made, but not good: once more would make more of them
			return nil
		}
		failed = nil
		return err
	})
	if err != nil {
		return "", err
	}
	if err := c.site.JSON(ctx, nil, &made, "key", "list"); err != nil {
		return "", err
	}
	if failed != nil && len(made.Keys) == 0 {
		return "", failed
	}
	for _, k := range made.Keys {
		if !k.Primary {
			return "", &failure{"key " + k.Role + " primary", "a spare: it failed its test right after it was made", "key test on the node tells why; then key primary"}
		}
		if k.Token == nil || !k.Token.Sensitive || k.Token.Extractable || !k.Token.NeverExtractable {
			return "", &failure{"key " + k.Role + " sensitive and never extractable", fmt.Sprintf("%+v", k.Token), "the token does not protect its keys"}
		}
	}
	if c.hsm == site.Embedded {
		if len(made.Keys) != 4 {
			return "", &failure{"4 keys", fmt.Sprint(len(made.Keys)), ""}
		}
		return "4 keys, never extractable, says the token inside the node (for trying out only)", nil
	}
	// Control from outside: the token's own tool, on this workstation, sees the same keys and refuses their private parts.
	outside, err := c.tokenView(ctx)
	if err != nil {
		return "", err
	}
	never := strings.Count(outside, "never extractable")
	if len(made.Keys) != 4 || never != 4 {
		return "", &failure{"4 keys, and the token's own tool to call 4 private keys never extractable", fmt.Sprintf("%d and %d", len(made.Keys), never), ""}
	}
	return "4 keys, never extractable, says the node and the token's own tool outside", nil
}

// tokenView is what pkcs11-tool on the workstation says of the private keys in the token.
func (c *cast) tokenView(ctx context.Context) (string, error) {
	cmd := exec.CommandContext(ctx, "pkcs11-tool", "--module", lab.SoftHSM, "--token-label", site.TokenLabel, "--login", "--pin", "env:TOKEN_PIN",
		"--list-objects", "--type", "privkey")
	cmd.Env = append(c.site.Token.Env(), "TOKEN_PIN="+c.site.Token.PIN())
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("pkcs11-tool: %w: %s", err, out)
	}
	return string(out), nil
}

func (c *cast) hostRegistered(ctx context.Context) (string, error) {
	for _, who := range []string{"host1", "host2", "stranger"} {
		if _, err := c.must(ctx, "host-key", "new", "--dir", c.folder(who), "--name", who); err != nil {
			return "", err
		}
	}
	var id string
	for _, who := range []string{"host1", "host2"} {
		cer, err := os.ReadFile(filepath.Join(c.folder(who), "host.cer"))
		if err != nil {
			return "", err
		}
		var added struct {
			ID string `json:"id"`
		}
		if err := c.site.JSON(ctx, cer, &added, "host", "add", who); err != nil {
			return "", err
		}
		if who == "host1" {
			id = added.ID
		}
	}
	return "host1 " + short(id) + " by its host key, and host2", nil
}

func (c *cast) hostAttests(ctx context.Context) (string, error) {
	var f facts
	var err error
	for _, who := range []string{"host2", "host1"} {
		if f, err = c.must(ctx, "host-key", "attest", "--dir", c.folder(who), "--url", c.site.URL("/Attestation")); err != nil {
			return "", err
		}
	}
	c.hostCert = filepath.Join(c.folder("host1"), "health.cer")
	return fmt.Sprintf("health certificate %s until %s", short(f.str("thumbprint")), f.str("notAfter")), nil
}

func (c *cast) protectorMade(ctx context.Context) (string, error) {
	if _, err := c.must(ctx, "guardian", "new", "--dir", c.folder("tenant"), "--name", "tenant"); err != nil {
		return "", err
	}
	c.protector = filepath.Join(c.folder("tenant"), "protector.xml")
	f, err := c.must(ctx, "protector", "new", "--dir", c.folder("tenant"), "--metadata", c.site.URL("/KeyProtection"), "--out", c.protector)
	if err != nil {
		return "", err
	}
	c.secret, c.ingress = f.str("transportKey"), f.str("protector")
	return fmt.Sprintf("%s for guardian %s, transport key %s", short(c.ingress), short(f.str("guardian")), short(c.secret)), nil
}

func (c *cast) rollArgs(who string, more ...string) []string {
	return append([]string{"protector", "roll", "--dir", c.folder(who), "--url", c.site.URL("/KeyProtection"), "--in", c.protector}, more...)
}

func (c *cast) keyReleased(ctx context.Context) (string, error) {
	egress := filepath.Join(c.folder("host1"), "egress.xml")
	f, err := c.must(ctx, c.rollArgs("host1", "--out", egress)...)
	if err != nil {
		return "", err
	}
	if f.str("ingressKey") != c.secret {
		return "", &failure{"the host to get the tenant's transport key " + c.secret, f.str("ingressKey"), ""}
	}
	if f.str("egress") == c.ingress || f.str("egressKey") == c.secret || f.str("egressKey") == "" {
		return "", &failure{"another key protector with a new transport key", f.str("egress") + " " + f.str("egressKey"), ""}
	}
	// Control: the owner, who was not asked, opens the new protector and finds the new key.
	o, err := c.must(ctx, "protector", "open", "--dir", c.folder("tenant"), "--in", egress)
	if err != nil {
		return "", err
	}
	if o.str("transportKey") != f.str("egressKey") {
		return "", &failure{"the owner to find the new transport key " + f.str("egressKey"), o.str("transportKey"), ""}
	}
	return fmt.Sprintf("tenant put in %s, host got %s; rolled to %s", short(c.secret), short(f.str("ingressKey")), short(f.str("egressKey"))), nil
}

func (c *cast) unknownHost(ctx context.Context) (string, error) {
	if _, err := c.mustRefuse(ctx, "an unregistered host", "UnauthorizedErrorReply", "host-key", "attest", "--dir", c.folder("stranger"), "--url", c.site.URL("/Attestation")); err != nil {
		return "", err
	}
	var p struct {
		Pending []struct {
			ID     string `json:"id"`
			Accept string `json:"accept"`
		} `json:"pending"`
	}
	err := c.retry(ctx, 5*time.Second, func() error {
		if err := c.site.JSON(ctx, nil, &p, "host", "pending"); err != nil {
			return err
		}
		if len(p.Pending) != 1 {
			return &failure{"one pending host on the console", fmt.Sprint(len(p.Pending)), ""}
		}
		return nil
	})
	if err != nil {
		return "", err
	}
	if !strings.HasPrefix(p.Pending[0].Accept, "host add") {
		return "", &failure{"a remedy on the console", fmt.Sprintf("%q", p.Pending[0].Accept), ""}
	}
	return fmt.Sprintf("refused on the wire; the console says why: %s unknown, remedy: %.40s", short(p.Pending[0].ID), p.Pending[0].Accept), nil
}

// wireRefusals sends what must not be answered. That an expired certificate is refused for its age is shown by registering the signer that
// made it: the same signer's fresh certificate is then answered.
func (c *cast) wireRefusals(ctx context.Context) (string, error) {
	h := c.folder("host1")
	file := func(name string) string { return filepath.Join(h, name) }
	make := func(kind, out string) error {
		_, err := c.must(ctx, "certificate", "new", "--dir", h, "--kind", kind, "--out", file(out))
		return err
	}
	for _, m := range [][2]string{{"self", "self.cer"}, {"signer", ""}, {"foreign", "foreign.cer"}, {"expired", "expired.cer"}} {
		if err := make(m[0], m[1]); err != nil {
			return "", err
		}
	}
	const health, protector = "HealthCertificateException", "InvalidProtectorException"
	refuse := func(what, code string, more ...string) error {
		_, err := c.mustRefuse(ctx, what, code, c.rollArgs("host1", more...)...)
		return err
	}
	signer, err := os.ReadFile(file("foreign-signer.cer"))
	if err != nil {
		return "", err
	}
	steps := []func() error{
		func() error { return refuse("a roll without a health certificate", health, "--health", "none") },
		func() error { return refuse("a self-signed health certificate", health, "--health", file("self.cer")) },
		func() error {
			return refuse("another fabric's health certificate", health, "--health", file("foreign.cer"))
		},
		func() error {
			_, err := c.site.Verb(ctx, signer, "attestation-signer", "trust", "other-fabric")
			return err
		},
		func() error {
			_, err := c.must(ctx, c.rollArgs("host1", "--health", file("foreign.cer"))...)
			return err
		},
		func() error { return refuse("an expired health certificate", health, "--health", file("expired.cer")) },
		func() error {
			_, err := c.site.Verb(ctx, nil, "attestation-signer", "distrust", "other-fabric")
			return err
		},
		func() error {
			raw, err := os.ReadFile(c.protector)
			if err != nil {
				return err
			}
			at := bytes.Index(raw, []byte("<CipherValue>")) + len("<CipherValue>")
			for !staysBase64(raw[at]) { // the control is about what the byte means, not about a letter that is no base64
				at++
			}
			return refuse("a key protector with one changed byte", protector, "--flip", fmt.Sprint(at))
		},
		// Nothing in a roll proves who sends it (kps.md 9.2): another registered host's certificate is answered, and the answer is
		// useless to whoever does not have that host's key.
		func() error {
			_, err := c.mustRefuse(ctx, "another host's health certificate", "decrypt", c.rollArgs("host1", "--health", filepath.Join(c.folder("host2"), "health.cer"))...)
			return err
		},
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return "", err
		}
	}
	return "no, self-signed, foreign, expired certificate, flipped byte; another host's opens nothing", nil
}

// staysBase64 reports whether b is a base64 digit and still one when its lowest bit is flipped.
func staysBase64(b byte) bool {
	const letters = "bcdefghijklmnopqrstuvwxyBCDEFGHIJKLMNOPQRSTUVWXY0123456789"
	return strings.IndexByte(letters, b) >= 0 && strings.IndexByte(letters, b^1) >= 0
}

func (c *cast) hostRevoked(ctx context.Context) (string, error) {
	// Control: right before, the certificate is good.
	if _, err := c.must(ctx, c.rollArgs("host1")...); err != nil {
		return "", err
	}
	if _, err := c.site.Verb(ctx, nil, "host", "revoke", "host1", "--reason", "demo"); err != nil {
		return "", err
	}
	at := time.Now()
	if _, err := c.mustRefuse(ctx, "the revoked host's valid health certificate", "HealthCertificateException", c.rollArgs("host1")...); err != nil {
		return "", err
	}
	took := time.Since(at)
	if _, err := c.mustRefuse(ctx, "the revoked host", "UnauthorizedErrorReply", "host-key", "attest", "--dir", c.folder("host1"), "--url", c.site.URL("/Attestation")); err != nil {
		return "", err
	}
	if _, err := c.must(ctx, c.rollArgs("host2")...); err != nil {
		return "", err
	}
	return fmt.Sprintf("its valid certificate refused %d ms later; host2 goes on", took.Milliseconds()), nil
}

func (c *cast) auditVerified(ctx context.Context) (string, error) {
	export, err := c.site.Verb(ctx, nil, "audit", "export")
	if err != nil {
		return "", err
	}
	var nodes struct {
		Nodes []struct {
			AuditKey string `json:"auditKey"`
		} `json:"nodes"`
	}
	if err := c.site.JSON(ctx, nil, &nodes, "node", "list"); err != nil {
		return "", err
	}
	if len(nodes.Nodes) != 1 {
		return "", &failure{"one node", fmt.Sprint(len(nodes.Nodes)), ""}
	}
	file := filepath.Join(c.dir, "audit.jsonl")
	if err := os.WriteFile(file, export, 0o644); err != nil {
		return "", err
	}
	f, err := c.must(ctx, "audit", "verify", "--in", file, "--key", nodes.Nodes[0].AuditKey)
	if err != nil {
		return "", err
	}
	// Control: the same export with one changed letter is refused, and so is one without its last record.
	changed := bytes.Replace(export, []byte("host.revoke"), []byte("host.rewoke"), 1)
	lines := bytes.SplitAfter(export, []byte("\n"))
	cut := bytes.Join(append(append([][]byte{}, lines[:len(lines)-3]...), lines[len(lines)-2:]...), nil)
	for name, bad := range map[string][]byte{"a changed letter": changed, "a missing record": cut} {
		if bytes.Equal(bad, export) {
			return "", &failure{"an entry of the revocation in the audit", "none", ""}
		}
		if err := os.WriteFile(file+".bad", bad, 0o644); err != nil {
			return "", err
		}
		if _, err := c.mustRefuse(ctx, "an audit export with "+name, "", "audit", "verify", "--in", file+".bad", "--key", nodes.Nodes[0].AuditKey); err != nil {
			return "", err
		}
	}
	return fmt.Sprintf("%v records verified offline; one changed letter or missing record is found", f["records"]), nil
}

func (c *cast) vectors(ctx context.Context) (string, error) {
	f, err := c.must(ctx, "vectors")
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%d of %d vectors not made by our encoders hold", len(f), len(f)), nil
}
