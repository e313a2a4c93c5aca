//go:build qemu

package site

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"guardhouse/appliance/hgsa"
	"guardhouse/appliance/policy"
	"guardhouse/board/lab"
	"guardhouse/images/keys"
)

func rebootKeepsSecrets(t *testing.T, s *stage) {
	before := s.wellNow(t)
	s.verb(t, "log", "show", "hgs") // a line of this boot exists
	s.verb(t, "reboot")
	s.expect(t, "BdsDxe: starting")
	s.ready(t, true)
	after := s.wellNow(t)
	if after.Init.Boot == before.Init.Boot || after.Init.Boot == "" {
		t.Errorf("boot %q after boot %q", after.Init.Boot, before.Init.Boot)
	}
	if err := s.roll(within(t, 30*time.Second)); err != nil {
		t.Errorf("a roll after the reboot: %v", err)
	}
	earlier, now := s.verb(t, "log", "show", "init", "--boot", "-1"), s.verb(t, "log", "show", "init")
	if !strings.Contains(earlier, "reboot: asked for by "+AdminName) || !strings.Contains(earlier, "all services ready") {
		t.Errorf("log of the boot before:\n%s", earlier)
	}
	if strings.Contains(now, "asked for by") || !strings.Contains(now, "all services ready") {
		t.Errorf("log of this boot:\n%s", now)
	}
	if v := s.verb(t, "audit", "tail", "--lines", "30"); !strings.Contains(v, "power.reboot") {
		t.Errorf("the audit does not tell of the reboot:\n%s", v)
	}
}

// promises is what the node acknowledged: it must hold after any cut.
type promises struct {
	mu     sync.Mutex
	hosts  []string // names
	grants []string // SHA-256 of health certificates, which their audit entries name
}

func (p *promises) count() (hosts, grants int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.hosts), len(p.grants)
}

// powerCuts pulls the plug three times in the middle of writes. The seed chooses what the disk's cache loses. At the last start the
// network cable is out, too: the serial line must say so, and all is well once it is in.
func powerCuts(t *testing.T, s *stage) {
	var p promises
	for i, seed := range []uint64{4, 8, 13} { // these lose most of the few writes that are held
		last := i == 2
		s.workUntilCut(t, &p, seed)
		if err := s.Boot(t.Context()); err != nil {
			t.Fatal(err)
		}
		if last {
			if err := s.Node.SetLink(t.Context(), lab.ServiceNIC, false); err != nil {
				t.Fatal(err)
			}
		}
		s.ready(t, true)
		if last {
			s.cableOut(t)
		}
		s.keptAll(t, &p)
	}
}

// workUntilCut registers hosts and issues certificates from several sides, then cuts.
func (s *stage) workUntilCut(t *testing.T, p *promises, seed uint64) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var work sync.WaitGroup
	for w := range 2 {
		work.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				name := fmt.Sprintf("h%d-%d-%d", seed, w, i)
				if _, err := s.Verb(ctx, randomHostKey(t), "host", "add", name); err == nil {
					p.mu.Lock()
					p.hosts = append(p.hosts, name)
					p.mu.Unlock()
				}
			}
		})
	}
	host, vsm := s.hostKeys(t)
	for range 2 {
		work.Go(func() {
			for ctx.Err() == nil {
				if sum, err := s.attest(ctx, host, vsm); err == nil {
					p.mu.Lock()
					p.grants = append(p.grants, sum)
					p.mu.Unlock()
				}
			}
		})
	}
	hosts, grants := p.count()
	for h, g := hosts, grants; h < hosts+3 || g < grants+10; h, g = p.count() {
		select {
		case <-ctx.Done():
			t.Fatal(ctx.Err())
		case <-time.After(time.Duration(seed*7) * time.Millisecond):
		}
	}
	// The cut must fall between a write and its flush; the cache is empty most of the time.
	for end := time.Now().Add(10 * time.Second); s.Node.Disk.Stats().HeldWrites < 2 && time.Now().Before(end); {
		runtime.Gosched()
	}
	r := s.Node.PowerCut(seed)
	if r.Held == 0 {
		t.Errorf("cut %d fell between writes", seed)
	}
	cancel()
	work.Wait()
	hosts, grants = p.count()
	t.Logf("cut %d: the disk held %d writes, lost %d, tore %d; %d hosts and %d grants acknowledged so far", seed, r.Held, r.Dropped, r.Torn, hosts, grants)
}

// randomHostKey is a public key that nobody has the private half of, as PEM.
func randomHostKey(t *testing.T) []byte {
	b := make([]byte, 256)
	rand.Read(b)
	b[0] |= 0x80
	b[255] |= 1
	der, err := x509.MarshalPKIXPublicKey(&rsa.PublicKey{N: new(big.Int).SetBytes(b), E: 65537})
	if err != nil {
		t.Error(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
}

func (s *stage) hostKeys(t *testing.T) (host, vsm *rsa.PrivateKey) {
	t.Helper()
	read := func(name string) *rsa.PrivateKey {
		b, err := os.ReadFile(filepath.Join(s.folder("host"), name))
		if err != nil {
			t.Fatal(err)
		}
		block, _ := pem.Decode(b)
		key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		return key.(*rsa.PrivateKey)
	}
	return read("host.key"), read("vsm.key")
}

// attest gives the SHA-256 of the health certificate that it got.
func (s *stage) attest(ctx context.Context, host, vsm *rsa.PrivateKey) (string, error) {
	body, err := hgsa.NewHostKeyRequest(rand.Reader, host, hgsa.HostKeyRequest{Requested: []hgsa.AttestationResultType{1}, VSMKey: &vsm.PublicKey})
	if err != nil {
		return "", err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.URL("/Attestation/v2.0/hostkeyattest"), bytes.NewReader(body))
	if err != nil {
		return "", err
	}
	resp, err := client().Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return "", err
	}
	reply, err := hgsa.ParseReply(resp.StatusCode, answer)
	if err != nil {
		return "", err
	}
	certs, ok := reply.(*hgsa.HealthCertificateReply)
	if !ok || len(certs.Content) != 1 {
		return "", fmt.Errorf("the service answered %s", reply.Type())
	}
	return policy.Thumbprint(certs.Content[0].Item2), nil
}

// keptAll compares the node with what it acknowledged.
func (s *stage) keptAll(t *testing.T, p *promises) {
	t.Helper()
	s.wellNow(t)
	if v := s.verb(t, "audit", "verify"); !strings.Contains(v, "holds") && !strings.Contains(v, "verif") {
		t.Errorf("audit verify: %s", v)
	}
	var list struct{ Hosts []struct{ Name string } }
	if err := s.JSON(within(t, 30*time.Second), nil, &list, "host", "list"); err != nil {
		t.Fatal(err)
	}
	have := map[string]bool{}
	for _, h := range list.Hosts {
		have[h.Name] = true
	}
	for _, name := range p.hosts {
		if !have[name] {
			t.Errorf("host %s was acknowledged and is gone", name)
		}
	}
	audit := s.verb(t, "audit", "export")
	for _, sum := range p.grants {
		if !strings.Contains(strings.ToLower(audit), strings.ToLower(sum)) {
			t.Errorf("the certificate %.12s.. was given out and the audit does not tell of it", sum)
		}
	}
	for _, name := range p.hosts {
		if !strings.Contains(audit, name) {
			t.Errorf("the audit does not tell of host %s", name)
		}
	}
}

// cableOut expects a serial line that names the dead link, then puts the cable in.
func (s *stage) cableOut(t *testing.T) {
	t.Helper()
	eventually(t, 20*time.Second, func(context.Context) error {
		text := squeeze(s.typed(t, "status", `(?s)status\r\n(.*?)login: `)[1])
		if !strings.Contains(text, "no link on front (eth0, "+s.Node.MAC(lab.ServiceNIC)+")") || !strings.Contains(text, "connect the cable") {
			return fmt.Errorf("the serial line does not name the cable: %s", text)
		}
		return nil
	})
	if err := s.Node.SetLink(t.Context(), lab.ServiceNIC, true); err != nil {
		t.Fatal(err)
	}
}

// anotherImage boots an image that somebody else built and signed, on a machine whose firmware was made to trust them: the disk stays
// shut, and the serial line says why and what to do in five lines. Nobody is served.
func anotherImage(t *testing.T, s *stage) {
	theirs := filepath.Join(t.TempDir(), "keys")
	if _, err := keys.Make(theirs, "Somebody else", false, time.Now()); err != nil {
		t.Fatal(err)
	}
	other, err := buildImage(t.Context(), s.Build, "image-other", "--hsm", Attached, "--version", "other-image", "--keys", theirs)
	if err != nil {
		t.Fatal(err)
	}
	s.Node.Kill()
	if err := s.Lab.EnrollFirmware(s.Name, other.Keys.Variables(nil), true); err != nil {
		t.Fatal(err)
	}
	if err := s.BootWith(t.Context(), func(o *lab.NodeOptions) { o.Image = other.Disk }); err != nil {
		t.Fatal(err)
	}
	got, err := s.Node.Serial.Expect(within(t, 90*time.Second), regexp.MustCompile(`(?s)can't be set up yet +\[seal-no-policy\](.*?)do: ([^\r\n]*)[\r\n]`))
	if err != nil {
		t.Fatal(err)
	}
	if lines := strings.Count(got[0], "\n") + 1; lines > 5 {
		t.Errorf("%d lines for one problem:\n%s", lines, got[0])
	}
	if !strings.Contains(got[1], "signed by another key") || !strings.Contains(got[2], "recovery secret") {
		t.Errorf("the serial line does not say why, or what to do: %s", got[0])
	}
	// Without its disk the node can prove nothing: no door opens and nobody is served.
	if sum := s.attestOnce(t); sum != "" {
		t.Error("another image issues health certificates")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second) // a node that serves needs 2
	defer cancel()
	if _, err := s.Verb(ctx, nil, "status"); err == nil {
		t.Error("SSH opened with a host key that another image must not have")
	}
	if pin := s.Token.PIN(); strings.Contains(s.Node.Serial.Transcript(), pin) || strings.Contains(s.Node.Serial.Transcript(), hex.EncodeToString([]byte(pin))) {
		t.Error("the PIN is on the serial line")
	}
}

func (s *stage) attestOnce(t *testing.T) string {
	host, vsm := s.hostKeys(t)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	sum, err := s.attest(ctx, host, vsm)
	t.Logf("an attestation at another image: %v", err)
	return sum
}
