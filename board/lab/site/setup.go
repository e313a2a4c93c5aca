package site

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"text/template"
	"time"

	"filippo.io/age"
	"filippo.io/age/armor"
)

// answers is the answer file that the demo types; README shows the same.
var answers = template.Must(template.New("answers").Parse(`version = 1

[service]
name = "hgs.example.test"
mode = "HostKey"
http = true
https = true
health-life = "8h"

[node]
name = "{{.Name}}"
time-servers = [{{range $i, $t := .Times}}{{if $i}}, {{end}}"{{$t}}"{{end}}]

[node.network]
resolvers = ["10.0.2.3"]

[[node.network.interface]]
name = "front"
mac = ["any"]
addresses = ["10.0.2.15/24"]
gateways = ["10.0.2.2"]
roles = ["service", "cluster", "management"]

[node.hsm]
module = "{{.Module}}"
token = "{{.Token}}"
{{with .Attach}}attach = "{{.}}"
{{end}}
[[admin]]
name = "{{.AdminName}}"
role = "owner"
key = "{{.AdminKey}}"
`))

// AnswerValues fill the answer file.
type AnswerValues struct {
	Name, Module, Token, Attach, AdminName, AdminKey string
	Times                                            []string
}

// RenderAnswers is the text of an answer file.
func RenderAnswers(v AnswerValues) ([]byte, error) {
	var b bytes.Buffer
	err := answers.Execute(&b, v)
	return b.Bytes(), err
}

// Answers is the text of the site's answer file.
func (s *Site) Answers() ([]byte, error) {
	v := AnswerValues{Name: s.Name, Token: TokenLabel, Module: "/usr/lib/pkcs11/p11-kit-client.so", Attach: "virtio:org.guardhouse.hsm",
		AdminName: AdminName, AdminKey: s.Admin.Public}
	if s.HSM == Embedded {
		v.Module = "/usr/lib/pkcs11/libsofthsm2.so"
	}
	if s.HSM != "" && s.HSM != Attached {
		v.Attach = ""
	}
	for _, t := range s.Times {
		v.Times = append(v.Times, t.GuestAddr())
	}
	return RenderAnswers(v)
}

// EncryptSecrets makes the second file of a setup: PIN and serial passphrase, encrypted to the key that the node showed.
func EncryptSecrets(recipient, pin, passphrase string) ([]byte, error) {
	r, err := age.ParseX25519Recipient(recipient)
	if err != nil {
		return nil, fmt.Errorf("the node's setup key: %w", err)
	}
	var out bytes.Buffer
	a := armor.NewWriter(&out)
	w, err := age.Encrypt(a, r)
	if err != nil {
		return nil, err
	}
	fmt.Fprintf(w, "version = 1\nhsm-pin = %q\n\n[passphrase]\n%s = %q\n", pin, AdminName, passphrase)
	if err := w.Close(); err != nil {
		return nil, err
	}
	if err := a.Close(); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

// secrets is EncryptSecrets for this site.
func (s *Site) secrets(recipient string) ([]byte, error) {
	var err error
	if s.Admin.Passphrase, err = newPassphrase(s.Lab.Dir); err != nil {
		return nil, err
	}
	return EncryptSecrets(recipient, s.Token.PIN(), s.Admin.Passphrase)
}

// newPassphrase keeps the passphrase for whoever uses the node afterwards (make run NODE=demo).
func newPassphrase(dir string) (string, error) {
	random := make([]byte, 9)
	rand.Read(random)
	pass := hex.EncodeToString(random)
	return pass, os.WriteFile(filepath.Join(dir, "serial-passphrase"), []byte(pass+"\n"), 0o600)
}

// ExampleSecrets is EncryptSecrets for the site in dir, which another process may have open: for a setup by hand.
func ExampleSecrets(dir, recipient string) ([]byte, error) {
	pin, err := os.ReadFile(filepath.Join(dir, "tokens", TokenLabel, "pin"))
	if err != nil {
		return nil, fmt.Errorf("the PIN of the lab's token: %w; start the node first (make run)", err)
	}
	pass, err := newPassphrase(dir)
	if err != nil {
		return nil, err
	}
	return EncryptSecrets(recipient, string(pin), pass)
}

// What the serial line says; console/plain's golden files hold the whole dialogue.
var (
	rePrompt   = regexp.MustCompile(`guardhouse> `)
	reSetupKey = regexp.MustCompile(`(age1[0-9a-z]{58})`)
	reAnswers  = regexp.MustCompile(`(?i)answer file[^\n]*dot`)
	reHash     = regexp.MustCompile(`(?i)sha-?256[^0-9a-f]*([0-9a-f]{64})`)
	reSecrets  = regexp.MustCompile(`(?i)secrets[^\n]*dot`)
	reForm     = regexp.MustCompile(`(?i)type passphrase or shares: |was confirmed before and stays`)
	reRecovery = regexp.MustCompile(`(?m)^  ([0-9A-Z]{4}(?:-[0-9A-Z]{4}){6})\r?$`)
	reBack     = regexp.MustCompile(`(?i)type it back: `)
	reYes      = regexp.MustCompile(`(?i)type yes`)
	reDone     = regexp.MustCompile(`(?i)set up for|refused|failed|login: `)
	reNodeKey  = regexp.MustCompile(`(SHA256:[A-Za-z0-9+/]{43})`)
)

// SetupResult is what the serial line showed during setup.
type SetupResult struct {
	SetupKey    string
	AnswerHash  string // as the node shows it
	LocalHash   string // as computed here
	Fingerprint string // SSH host key of the node
	Recovery    string // recovery passphrase of its data volume
}

// WaitReady waits for the first prompt or login line.
func (s *Site) WaitReady(ctx context.Context) (setUp bool, err error) {
	m, err := s.Node.Serial.Expect(ctx, regexp.MustCompile(`guardhouse> |login: `))
	if err != nil {
		return false, err
	}
	return m[0] == "login: ", nil
}

// SetUp types the answer file and the secrets as a person would. WaitReady must have returned.
func (s *Site) SetUp(ctx context.Context) (SetupResult, error) {
	r, err := s.AskSetUp(ctx)
	if err != nil {
		return r, err
	}
	line := s.Node.Serial
	if err := line.Send("yes"); err != nil {
		return r, err
	}
	m, err := line.Expect(ctx, reDone)
	if err != nil {
		return r, err
	}
	if strings.Contains(strings.ToLower(m[0]), "refused") || strings.Contains(strings.ToLower(m[0]), "failed") {
		return r, fmt.Errorf("the node refused the setup; see %s", line.LogPath())
	}
	if m, err = line.Expect(ctx, reNodeKey); err != nil {
		return r, err
	}
	r.Fingerprint = m[1]
	s.Admin.HostKey = r.Fingerprint
	return r, os.WriteFile(filepath.Join(s.Lab.Dir, "host-key"), []byte(r.Fingerprint+"\n"), 0o644)
}

// AskSetUp is SetUp to the last question: the recovery secret counts already, nothing else does.
func (s *Site) AskSetUp(ctx context.Context) (SetupResult, error) {
	line := s.Node.Serial
	var r SetupResult
	if err := line.Send("status"); err != nil {
		return r, err
	}
	m, err := line.Expect(ctx, reSetupKey)
	if err != nil {
		return r, err
	}
	r.SetupKey = m[1]
	text, err := s.Answers()
	if err != nil {
		return r, err
	}
	sum := sha256.Sum256(text)
	r.LocalHash = hex.EncodeToString(sum[:])
	if err := os.WriteFile(filepath.Join(s.Lab.Dir, "answers.toml"), text, 0o644); err != nil {
		return r, err
	}
	if _, err := line.Expect(ctx, rePrompt); err != nil {
		return r, err
	}
	if err := line.Send("setup"); err != nil {
		return r, err
	}
	if _, err := line.Expect(ctx, reAnswers); err != nil {
		return r, err
	}
	if err := s.paste(text); err != nil {
		return r, err
	}
	if m, err = line.Expect(ctx, reHash); err != nil {
		return r, err
	}
	r.AnswerHash = m[1]
	if _, err := line.Expect(ctx, reSecrets); err != nil {
		return r, err
	}
	secret, err := s.secrets(r.SetupKey)
	if err != nil {
		return r, err
	}
	if err := s.paste(secret); err != nil {
		return r, err
	}
	if r.Recovery, err = s.recovery(ctx); err != nil {
		return r, err
	}
	_, err = line.Expect(ctx, reYes)
	return r, err
}

// recovery chooses a passphrase, types it back and keeps it in the site's folder, where a person would take a sheet of paper. One that was
// confirmed before stays.
func (s *Site) recovery(ctx context.Context) (string, error) {
	line := s.Node.Serial
	m, err := line.Expect(ctx, reForm)
	if err != nil {
		return "", err
	}
	if strings.Contains(m[0], "stays") {
		return s.RecoverySecret()
	}
	if err := line.Send("passphrase"); err != nil {
		return "", err
	}
	if m, err = line.Expect(ctx, reRecovery); err != nil {
		return "", err
	}
	secret := m[1]
	if _, err := line.Expect(ctx, reBack); err != nil {
		return "", err
	}
	if err := line.Send(secret); err != nil {
		return "", err
	}
	return secret, os.WriteFile(filepath.Join(s.Lab.Dir, "recovery-secret"), []byte(secret+"\n"), 0o600)
}

// paste types text line by line and ends it with a dot. A serial line has no flow control worth its name: short pauses keep its
// 16-byte FIFO and the tty's 4 KiB line buffer from overflowing.
func (s *Site) paste(text []byte) error {
	for l := range strings.Lines(string(text)) {
		if err := s.Node.Serial.Send(strings.TrimRight(l, "\n")); err != nil {
			return err
		}
		time.Sleep(2 * time.Millisecond)
	}
	return s.Node.Serial.Send(".")
}
