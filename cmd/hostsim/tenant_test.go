package main

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"guardhouse/appliance/kps"
)

// sim runs one command line and gives its facts.
func sim(t *testing.T, args ...string) (map[string]any, error) {
	t.Helper()
	verbs = table()
	o := &options{facts: map[string]any{}}
	err := o.main(append(args, "--json"))
	return o.facts, err
}

func mustSim(t *testing.T, args ...string) map[string]any {
	t.Helper()
	facts, err := sim(t, args...)
	if err != nil {
		t.Fatalf("%s: %v", strings.Join(args, " "), err)
	}
	return facts
}

// guardianFile writes a guardian's metadata, with certificates valid for life from now, and gives what opens protectors for it.
func guardianFile(t *testing.T, path, name string, from, to time.Time) kps.Decrypter {
	t.Helper()
	var keys [2]*rsa.PrivateKey
	var certs [2]*x509.Certificate
	for i, part := range []string{" signing", " encryption"} {
		k, err := newKey()
		if err != nil {
			t.Fatal(err)
		}
		tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name + part}, NotBefore: from, NotAfter: to}
		der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, k.Public(), k)
		if err != nil {
			t.Fatal(err)
		}
		if certs[i], err = x509.ParseCertificate(der); err != nil {
			t.Fatal(err)
		}
		keys[i] = k
	}
	raw, err := kps.MakeMetadata(kps.MetadataSpec{SigningCertificate: certs[0], EncryptionCertificate: certs[1], Signer: keys[0],
		CommunicationsCertificate: certs[0], CommunicationsSigner: keys[0], Random: rand.Reader})
	if err != nil {
		t.Fatal(err)
	}
	pems := append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certs[0].Raw}), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certs[1].Raw})...)
	if err := errors.Join(os.WriteFile(path, raw, 0o600), os.WriteFile(path+".pem", pems, 0o600), os.WriteFile(path+".cer", certs[0].Raw, 0o600)); err != nil {
		t.Fatal(err)
	}
	return kps.MemoryKey{Key: keys[1]}
}

func TestGuardianIsImportedOnlyWithTrustAndValidityUnlessAllowed(t *testing.T) {
	dir := t.TempDir()
	good, old := filepath.Join(dir, "good.xml"), filepath.Join(dir, "old.xml")
	now := time.Now()
	guardianFile(t, good, "good", now.Add(-time.Hour), now.Add(time.Hour))
	guardianFile(t, old, "old", now.Add(-2*time.Hour), now.Add(-time.Hour))
	for name, c := range map[string]struct {
		args []string
		ok   bool
	}{
		"untrusted":               {[]string{"--metadata", good}, false},
		"untrusted, allowed":      {[]string{"--metadata", good, "--allow-untrusted-root"}, true},
		"trusted":                 {[]string{"--metadata", good, "--roots", good + ".pem"}, true},
		"trusted by others":       {[]string{"--metadata", good, "--roots", old + ".pem"}, false},
		"signed as named":         {[]string{"--metadata", good, "--roots", good + ".pem", "--communications", good + ".cer"}, true},
		"signed by somebody else": {[]string{"--metadata", good, "--roots", good + ".pem", "--communications", old + ".cer"}, false},
		"expired":                 {[]string{"--metadata", old, "--allow-untrusted-root"}, false},
		"expired, allowed":        {[]string{"--metadata", old, "--allow-untrusted-root", "--allow-expired"}, true},
		"expired, only that":      {[]string{"--metadata", old, "--allow-expired"}, false},
		"a bad name":              {[]string{"--metadata", good, "--allow-untrusted-root", "--name", "../x"}, false},
	} {
		out := t.TempDir()
		_, err := sim(t, append([]string{"guardian", "import", "--dir", out}, c.args...)...)
		if (err == nil) != c.ok {
			t.Errorf("%s: %v", name, err)
		}
		if _, serr := os.Stat(filepath.Join(out, "guardian-lab.xml")); (serr == nil) != c.ok {
			t.Errorf("%s: kept or not: %v", name, serr)
		}
	}
}

// TestTenantGrantsAndRevokesOverTheCommandLine goes through owner, guardians and a key protector as an owner would.
func TestTenantGrantsAndRevokesOverTheCommandLine(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	now := time.Now()
	keys := map[string]kps.Decrypter{}
	mustSim(t, "guardian", "new", "--dir", dir, "--name", "contoso")
	for _, name := range []string{"hgs1", "hgs2"} {
		keys[name] = guardianFile(t, at(name+".xml"), name, now.Add(-time.Hour), now.Add(time.Hour))
		mustSim(t, "guardian", "import", "--dir", dir, "--name", name, "--metadata", at(name+".xml"), "--allow-untrusted-root")
	}
	if _, err := sim(t, "protector", "new", "--dir", dir, "--out", at("p0")); !errors.Is(err, errUsage) {
		t.Errorf("without a guardian: %v", err)
	}
	made := mustSim(t, "protector", "new", "--dir", dir, "--guardian", "hgs1", "--out", at("p1"))
	opens := func(file, who string) bool {
		raw, err := os.ReadFile(at(file))
		if err != nil {
			t.Fatal(err)
		}
		p, err := kps.ParseProtector(raw)
		if err != nil || p.Verify() != nil {
			t.Fatalf("%s: %v, %v", file, err, p.Verify())
		}
		for i := range p.Wrappings {
			w := &p.Wrappings[i]
			if tk, err := p.OpenTransportKey(context.Background(), w, keys[who], rand.Reader); err == nil {
				return sha256hex(tk.Key) == made["transportKey"]
			}
		}
		return false
	}
	mustSim(t, "protector", "grant", "--dir", dir, "--guardian", "hgs2", "--in", at("p1"), "--out", at("p2"))
	mustSim(t, "protector", "revoke", "--dir", dir, "--guardian", "hgs1", "--in", at("p2"), "--out", at("p3"))
	mustSim(t, "protector", "revoke", "--dir", dir, "--id", "3", "--in", at("p3"), "--out", at("p4"))
	for file, want := range map[string][2]bool{"p1": {true, false}, "p2": {true, true}, "p3": {false, true}, "p4": {false, false}} {
		if got := [2]bool{opens(file, "hgs1"), opens(file, "hgs2")}; got != want {
			t.Errorf("%s: opened by hgs1 and hgs2: %v, want %v", file, got, want)
		}
	}
	if facts := mustSim(t, "protector", "open", "--dir", dir, "--in", at("p4")); facts["transportKey"] != made["transportKey"] {
		t.Error("the owner lost its key")
	}
	for name, args := range map[string][]string{
		"granted twice": {"protector", "grant", "--guardian", "hgs1", "--in", at("p1")}, "nobody": {"protector", "grant", "--in", at("p1")},
		"not in it": {"protector", "revoke", "--guardian", "hgs2", "--in", at("p1")}, "the owner": {"protector", "revoke", "--id", "1", "--in", at("p1")},
		"unknown": {"protector", "grant", "--guardian", "nobody", "--in", at("p1")}, "no such wrapping": {"protector", "revoke", "--id", "9", "--in", at("p1")},
	} {
		if _, err := sim(t, append(args, "--dir", dir, "--out", at("bad"))...); err == nil {
			t.Errorf("%s: done", name)
		}
	}
	// An owner exports itself as a guardian, and another owner grants to it.
	mustSim(t, "guardian", "export", "--dir", dir, "--out", at("contoso.xml"))
	other := t.TempDir()
	mustSim(t, "guardian", "new", "--dir", other)
	facts := mustSim(t, "guardian", "import", "--dir", other, "--name", "contoso", "--metadata", at("contoso.xml"), "--allow-untrusted-root")
	if facts["documentSignature"] != "absent" {
		t.Errorf("%v", facts)
	}
	mustSim(t, "protector", "new", "--dir", other, "--guardian", "contoso", "--out", filepath.Join(other, "p"))
	if _, err := sim(t, "protector", "grant", "--dir", other, "--guardian", "contoso", "--in", at("p1"), "--out", at("bad")); err == nil {
		t.Error("a stranger edited the key protector")
	}
}

func TestInspectPageIsStable(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout := os.Stdout
	os.Stdout = w
	verbs = table()
	runErr := (&options{facts: map[string]any{}}).main([]string{"protector", "inspect", "--in", "testdata/protector.xml"})
	os.Stdout = stdout
	w.Close()
	got, err := io.ReadAll(r)
	if err != nil || runErr != nil {
		t.Fatal(err, runErr)
	}
	if *update {
		if err := os.WriteFile("testdata/inspect.txt", got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile("testdata/inspect.txt")
	if err != nil || string(want) != string(got) {
		t.Errorf("%v: got\n%s", err, got)
	}
}

// TestP14_22_AnUnansweredRollIsRepeatedOnEachAddressAtOnceThenNoMore (C33).
func TestP14_22_AnUnansweredRollIsRepeatedOnEachAddressAtOnceThenNoMore(t *testing.T) {
	var asked atomic.Int64
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { asked.Add(1); _, _ = w.Write([]byte("answer")) })}
	l, err := net.Listen("tcp", "127.0.0.3:0") // another address of this machine than the name's first
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = s.Serve(l) }()
	defer s.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	dead := 0
	o := &options{lookup: func(context.Context, string) ([]string, error) {
		dead++
		return []string{"127.0.0.2", "127.0.0.3", "127.0.0.2"}, nil
	}}
	c, err := o.httpClient()
	if err != nil {
		t.Fatal(err)
	}
	status, body, err := o.persist(t.Context(), c, http.MethodPost, "http://127.0.0.2:"+port+"/", contentTypeXML, []byte("x"))
	if err != nil || status != 200 || string(body) != "answer" || asked.Load() != 1 {
		t.Errorf("%d %q %v, asked %d times", status, body, err, asked.Load())
	}
	s.Close()
	if _, _, err := o.persist(t.Context(), c, http.MethodPost, "http://127.0.0.2:"+port+"/", contentTypeXML, nil); err == nil || dead != 2 {
		t.Errorf("nobody is there: %v", err)
	}
	// An answer, whatever it says, is not asked for again.
	refuse := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { asked.Add(1); w.WriteHeader(503) })}
	l, err = net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = refuse.Serve(l) }()
	defer refuse.Close()
	asked.Store(0)
	if status, _, err := o.persist(t.Context(), c, http.MethodPost, "http://"+l.Addr().String()+"/", contentTypeXML, nil); err != nil || status != 503 || asked.Load() != 1 {
		t.Errorf("%d %v, asked %d times", status, err, asked.Load())
	}
}
