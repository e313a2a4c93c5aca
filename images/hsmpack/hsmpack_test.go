package hsmpack

import (
	"archive/tar"
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"guardhouse/initramfs"
)

const softHSM = "/usr/lib/softhsm/libsofthsm2.so"

func write(t *testing.T, name, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return file
}

// vendor is a pack with everything a pack can have.
func vendor(t *testing.T) Options {
	t.Helper()
	return Options{Name: "vendor", Version: "1.0", Module: softHSM, Licence: write(t, "EULA", "terms"), Extra: []string{"/usr/lib/x86_64-linux-gnu/libgcc_s.so.1"},
		Config: []File{{From: write(t, "v.conf", "ServerName00 = 192.0.2.7;\nClientPrivKeyFile = /data/hsm-site/client.key;\nslots.removable = false\n"), At: "/etc/v.conf"}},
		Daemon: []string{"/bin/true", "-f"}, Env: []string{"V=/etc/v.conf"}, Connect: []string{"192.0.2.7:1792"}, Site: []string{"client.key"}}
}

func archive(t *testing.T, o Options) (*Pack, []byte) {
	t.Helper()
	p, err := Make(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := p.Write(&b); err != nil {
		t.Fatal(err)
	}
	return p, b.Bytes()
}

func TestSameInputsGiveTheSamePack(t *testing.T) {
	p, first := archive(t, vendor(t))
	o := vendor(t) // other folders, other times
	os.Chtimes(o.Config[0].From, time.Unix(1, 0), time.Unix(1, 0))
	if _, second := archive(t, o); !bytes.Equal(first, second) {
		t.Error("two archives differ")
	}
	if bytes.Contains(first[:20000], []byte(filepath.Dir(o.Licence))) {
		t.Error("a folder of the workstation is in the archive")
	}
	for _, at := range []string{"/usr/lib/pkcs11/libsofthsm2.so", "/usr/lib/pkcs11/true", "/etc/v.conf", "/lib/x86_64-linux-gnu/libgcc_s.so.1", "/lib/x86_64-linux-gnu/libstdc++.so.6", "/lib64/ld-linux-x86-64.so.2"} {
		if p.Data[at] == nil {
			t.Errorf("%s is not in the pack", at)
		}
	}
	again, err := Read(bytes.NewReader(first))
	if err != nil {
		t.Fatal(err)
	}
	sum, _ := p.SHA256()
	if got, _ := again.SHA256(); got != sum || len(again.Terms["libc6"]) == 0 || string(again.Licence) != "terms" {
		t.Errorf("read back: %s, want %s", got, sum)
	}
}

// TestRefusesSecretsWithFileAndLine looks into every kind of input.
func TestRefusesSecretsWithFileAndLine(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	sec1, _ := x509.MarshalECPrivateKey(key)
	text := string(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: sec1}))
	encrypted := string(pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Headers: map[string]string{"Proc-Type": "4,ENCRYPTED"}, Bytes: sec1}))
	for name, c := range map[string]struct{ text, line string }{
		"PEM key":           {"# ours\n\n" + text, "line 3: a private key"},
		"PEM key with head": {"#\n" + encrypted, "line 2: a private key"},
		"PKCS#8":            {string(der), "line 1: a private key (PKCS#8)"},
		"SEC 1":             {string(sec1), "line 1: a private key (SEC 1)"},
		"PKCS#12":           {"0\x22\x02\x01\x030\x1d\x06\x092\x86H\x86\xf7\x0d\x01\x07\x01" + strings.Repeat("\x04\x00", 9), "line 1: a PKCS#12 store"},
		"age key":           {"x\nAGE-SECRET-KEY-1QQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQ\n", "line 2: a private key"},
		"PIN":               {"slot = 1\npin = 1234\n", "line 2: a PIN or password"},
		"user PIN":          {"[hsm]\n  UserPIN: \"s3cret\"\n", "line 2: a PIN or password"},
		"password in YAML":  {"user: x\npassword: hunter2\n", "line 2: a PIN or password"},
		"password in JSON":  {"{\n \"hsm_password\": \"hunter2\"\n}\n", "line 2: a PIN or password"},
		"pin in a URI":      {"a\nb\nmodule = pkcs11:token=x?pin-value=1234\n", "line 3: a PIN in a PKCS#11 URI"},
	} {
		o := vendor(t)
		o.Config[0].From = write(t, "v.conf", c.text)
		_, err := Make(t.Context(), o)
		if !errors.Is(err, ErrSecret) || !strings.Contains(err.Error(), o.Config[0].From+", "+c.line) {
			t.Errorf("%s: %v", name, err)
		}
		if err != nil && (strings.Contains(err.Error(), "hunter2") || strings.Contains(err.Error(), "s3cret")) {
			t.Errorf("%s: the error shows the secret: %v", name, err)
		}
	}
	for _, o := range []func(*Options){
		func(o *Options) { o.Env = []string{"HSM_PIN=1234"} },
		func(o *Options) { o.Daemon = []string{"/bin/true", "--password=1234"} },
	} {
		opt := vendor(t)
		o(&opt)
		if _, err := Make(t.Context(), opt); !errors.Is(err, ErrSecret) || strings.Contains(err.Error(), "1234") {
			t.Errorf("in the words: %v", err)
		}
	}
}

func TestSettingsThatOnlyNameASecretAreFine(t *testing.T) {
	for _, text := range []string{"password: env:HSM_PASSWORD\n", "pin = /data/hsm-site/pin\n", "PasswordFile = x\n", "pinpad = true\npin: null\n", "# mapping = 4\n", "-----BEGIN PRIVATE KEY-----\n",
		"UseSecret = \n", "spin = fast\n"} {
		if found := scan([]byte(text)); len(found) > 0 {
			t.Errorf("%q: %+v", text, found)
		}
	}
}

func TestRefusesWhatHasNoTerms(t *testing.T) {
	module := filepath.Join(t.TempDir(), "v.so")
	data, err := os.ReadFile(softHSM)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(module, data, 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := Make(t.Context(), Options{Module: module}); !errors.Is(err, ErrLicence) || !strings.Contains(err.Error(), "--licence") {
		t.Errorf("no terms: %v", err)
	}
	if _, err := Make(t.Context(), Options{Module: module, Licence: write(t, "EULA", " \n")}); !errors.Is(err, ErrLicence) {
		t.Errorf("empty terms: %v", err)
	}
	p, err := Make(t.Context(), Options{Module: module, Licence: write(t, "EULA", "terms")})
	if err != nil || p.Name != "v" || !strings.HasPrefix(p.Version, "sha256-") {
		t.Errorf("%v", err)
	}
}

func TestRefusesInputsThatAreNoPrograms(t *testing.T) {
	for name, change := range map[string]func(*Options){
		"no module":           func(o *Options) { o.Module = "" },
		"absent":              func(o *Options) { o.Module = "/nowhere.so" },
		"folder":              func(o *Options) { o.Module = "/usr/lib" },
		"script":              func(o *Options) { o.Daemon = []string{write(t, "run", "#!/bin/sh\n")} },
		"interpreter":         func(o *Options) { o.Daemon = []string{"/bin/bash"} },
		"host by name":        func(o *Options) { o.Connect = []string{"hsm.example.test:1792"} },
		"config over a file":  func(o *Options) { o.Config[0].At = "/etc/os-release" },
		"config over program": func(o *Options) { o.Config[0].At = "/bin/init" },
	} {
		o := vendor(t)
		change(&o)
		if _, err := Make(t.Context(), o); err == nil {
			t.Errorf("%s: made", name)
		}
	}
}

// rewrite changes the members of an archive one by one; nil leaves a member out.
func rewrite(t *testing.T, raw []byte, change func(h *tar.Header, data []byte) []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for r := tar.NewReader(bytes.NewReader(raw)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		data, _ := io.ReadAll(r)
		if data = change(h, data); data == nil {
			continue
		}
		h.Size = int64(len(data))
		if err := errors.Join(w.WriteHeader(h), second(w.Write(data))); err != nil {
			t.Fatal(err)
		}
	}
	w.Close()
	return out.Bytes()
}

func second(_ int, err error) error { return err }

func TestRefusesAPackThatWasChanged(t *testing.T) {
	_, raw := archive(t, vendor(t))
	only := func(name string, do func(*tar.Header, []byte) []byte) func(*tar.Header, []byte) []byte {
		return func(h *tar.Header, data []byte) []byte {
			if h.Name == name {
				return do(h, data)
			}
			return data
		}
	}
	drop := func(*tar.Header, []byte) []byte { return nil }
	for name, c := range map[string]struct {
		change func(*tar.Header, []byte) []byte
		want   error
	}{
		"nothing":        {func(_ *tar.Header, d []byte) []byte { return d }, nil},
		"a byte":         {only("files/etc/v.conf", func(_ *tar.Header, d []byte) []byte { d[0] ^= 1; return d }), ErrPack},
		"a file less":    {only("files/etc/v.conf", drop), ErrPack},
		"another name":   {only("files/etc/v.conf", func(h *tar.Header, d []byte) []byte { h.Name = "files/etc/w.conf"; return d }), ErrPack},
		"no terms":       {only("licences/libc6", drop), ErrLicence},
		"no licence":     {only("LICENCE", drop), ErrLicence},
		"no manifest":    {only("manifest.json", drop), ErrPack},
		"manifest twice": {only("LICENCE", func(h *tar.Header, d []byte) []byte { h.Name = "manifest.json"; return d }), ErrPack},
		"another format": {only("manifest.json", func(_ *tar.Header, d []byte) []byte {
			return bytes.Replace(d, []byte(`"format": 1`), []byte(`"format": 9`), 1)
		}), ErrPack},
	} {
		if _, err := Read(bytes.NewReader(rewrite(t, raw, c.change))); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// small is a pack of one file, for the fuzzer.
func small(f *testing.F) []byte {
	var l initramfs.List
	l.Add(initramfs.Entry{Path: "/usr/lib/pkcs11/v.so", Kind: initramfs.File, Perm: 0o755, Data: []byte("\x7fELF")})
	p, err := (&maker{Options: Options{Name: "v", Version: "1", Module: "/v.so"}, list: l}).describe(f.Context())
	if err != nil {
		f.Fatal(err)
	}
	p.Licence = []byte("terms")
	var b bytes.Buffer
	if err := p.Write(&b); err != nil {
		f.Fatal(err)
	}
	return b.Bytes()
}

func FuzzRead(f *testing.F) {
	raw := small(f)
	f.Add(raw)
	f.Add(raw[:700])
	f.Add([]byte("manifest.json"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		p, err := Read(bytes.NewReader(raw))
		if err != nil {
			return
		}
		if err := p.Validate(); err != nil {
			t.Fatal(err)
		}
		for _, file := range p.Files {
			if int64(len(p.Data[file.Path])) != file.Size {
				t.Fatalf("%s has another size than its manifest says", file.Path)
			}
		}
		var b bytes.Buffer
		if err := p.Write(&b); err != nil {
			t.Fatal(err)
		}
		if again, err := Read(&b); err != nil || !slices.Equal(again.Files, p.Files) {
			t.Fatalf("its own archive is refused: %v", err)
		}
	})
}
