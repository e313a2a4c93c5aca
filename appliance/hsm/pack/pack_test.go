package pack

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func sample() Manifest {
	sum := strings.Repeat("ab", 32)
	return Manifest{Format: Format, Name: "vendor", Version: "1.2", Module: "/usr/lib/pkcs11/v.so", Daemon: []string{"/usr/lib/pkcs11/helper", "-f"},
		Env: []string{"VENDOR_CONF=/etc/v.conf"}, Connect: []string{"192.0.2.7:1792", "[2001:db8::7]:1792"}, Site: []string{"client.pem", "world"},
		Files: []File{{Path: "/usr/lib/pkcs11/helper", Mode: 0o755, SHA256: sum}, {Path: "/usr/lib/pkcs11/v.so", Mode: 0o755, SHA256: sum}}}
}

func TestManifestSurvivesItsText(t *testing.T) {
	text, err := sample().Text()
	if err != nil {
		t.Fatal(err)
	}
	m, err := Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	again, _ := m.Text()
	if !bytes.Equal(text, again) || m.Title() != "vendor 1.2" {
		t.Errorf("got %s", again)
	}
	if m, err := Read(filepath.Join(t.TempDir(), "absent")); err != nil || m.Module != "" {
		t.Errorf("outside an image: %+v %v", m, err)
	}
}

func TestRefusesManifestsThatWouldGiveMore(t *testing.T) {
	for name, change := range map[string]func(*Manifest){
		"format":            func(m *Manifest) { m.Format = 2 },
		"name":              func(m *Manifest) { m.Name = "../x" },
		"version":           func(m *Manifest) { m.Version = "1\n2" },
		"no files":          func(m *Manifest) { m.Files = nil },
		"relative file":     func(m *Manifest) { m.Files[0].Path = "usr/lib/x" },
		"file above":        func(m *Manifest) { m.Files[0].Path = "/usr/../etc/x" },
		"our program":       func(m *Manifest) { m.Files[0].Path, m.Daemon = "/bin/hsm", nil },
		"preload by file":   func(m *Manifest) { m.Files[0].Path, m.Daemon = "/etc/ld.so.preload", nil },
		"kernel modules":    func(m *Manifest) { m.Files[0].Path, m.Daemon = "/lib/modules/x.ko", nil },
		"set-uid":           func(m *Manifest) { m.Files[0].Mode = 0o4755 },
		"no hash":           func(m *Manifest) { m.Files[0].SHA256 = "" },
		"file twice":        func(m *Manifest) { m.Files[1] = m.Files[0] },
		"absent module":     func(m *Manifest) { m.Module = "/bin/hsm" },
		"absent daemon":     func(m *Manifest) { m.Daemon[0] = "/bin/init" },
		"preload":           func(m *Manifest) { m.Env = []string{"LD_PRELOAD=/x"} },
		"the node's socket": func(m *Manifest) { m.Env = []string{"NOTIFY_SOCKET=/x"} },
		"host by name":      func(m *Manifest) { m.Connect = []string{"hsm.example.test:1792"} },
		"any address":       func(m *Manifest) { m.Connect = []string{"0.0.0.0:1792"} },
		"no port":           func(m *Manifest) { m.Connect = []string{"192.0.2.7:0"} },
		"site path":         func(m *Manifest) { m.Site = []string{"../../etc/x"} },
		"hidden site file":  func(m *Manifest) { m.Site = []string{".client.pem.new"} },
		"site name twice":   func(m *Manifest) { m.Site = []string{"a", "a"} },
		"too many names":    func(m *Manifest) { m.Site = make([]string, 33) },
	} {
		m := sample()
		change(&m)
		if err := m.Validate(); !errors.Is(err, ErrManifest) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Parse([]byte(`{"format":1,"root":true}`)); !errors.Is(err, ErrManifest) {
		t.Errorf("unknown field: %v", err)
	}
}

func FuzzManifest(f *testing.F) {
	text, _ := sample().Text()
	f.Add(text)
	f.Add([]byte(`{"format":1}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		m, err := Parse(text)
		if err != nil {
			return
		}
		again, err := m.Text()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Parse(again); err != nil {
			t.Fatalf("accepted, but not its own text: %v", err)
		}
	})
}

func kept(Item) error { return nil }

func TestSiteDataIsWholeAndPrivate(t *testing.T) {
	s := Store{Dir: t.TempDir(), Declared: []string{"client.pem", "world"}}
	before := s.Digest()
	for _, data := range []string{"one", "another"} {
		it, err := s.Put("client.pem", []byte(data), kept)
		if err != nil || it.Size != int64(len(data)) || len(it.Hash) != 64 {
			t.Fatalf("%+v %v", it, err)
		}
		if b, _ := os.ReadFile(filepath.Join(s.Dir, "client.pem")); string(b) != data {
			t.Errorf("holds %q", b)
		}
	}
	if st, _ := os.Stat(filepath.Join(s.Dir, "client.pem")); st.Mode().Perm() != 0o640 {
		t.Errorf("mode %v", st.Mode())
	}
	list, err := s.List()
	if err != nil || len(list) != 2 || list[0].Hash == "" || list[1].Hash != "" || !list[1].Declared {
		t.Errorf("%+v %v", list, err)
	}
	if s.Digest() == before {
		t.Error("the digest does not tell that something changed")
	}
	if left := (Store{Dir: s.Dir}); len(first(left.List())) != 1 {
		t.Error("what an earlier pack left is not shown")
	}
	if _, err := s.Remove("client.pem", kept); err != nil {
		t.Error(err)
	}
	if s.Digest() != before {
		t.Error("something stays")
	}
}

func first(list []Item, _ error) []Item { return list }

func TestRefusesSiteDataNobodyDeclaredOrTooMuchOfIt(t *testing.T) {
	s := Store{Dir: t.TempDir()}
	for i := range 10 {
		s.Declared = append(s.Declared, "f"+string(rune('0'+i)))
	}
	for _, name := range []string{"other", "", "../x", "a/b", ".f1.new"} {
		if _, err := s.Put(name, []byte("x"), kept); !errors.Is(err, ErrUndeclared) {
			t.Errorf("%q: %v", name, err)
		}
		if _, err := s.Remove(name, kept); err == nil {
			t.Errorf("%q removed", name)
		}
	}
	if _, err := s.Put("f0", nil, kept); !errors.Is(err, ErrEmpty) {
		t.Errorf("empty: %v", err)
	}
	if _, err := s.Put("f0", make([]byte, MaxSiteFile+1), kept); !errors.Is(err, ErrTooLarge) {
		t.Errorf("one: %v", err)
	}
	full := make([]byte, MaxSiteFile)
	for i := range MaxSiteBytes / MaxSiteFile {
		if _, err := s.Put(s.Declared[i], full, kept); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.Put("f9", []byte("x"), kept); !errors.Is(err, ErrTooLarge) {
		t.Errorf("all: %v", err)
	}
	if _, err := s.Put("f0", full[1:], kept); err != nil {
		t.Errorf("replacing is no more: %v", err)
	}
}

func TestNothingChangesWithoutARecord(t *testing.T) {
	s := Store{Dir: t.TempDir(), Declared: []string{"world"}}
	no := errors.New("the audit is full")
	if _, err := s.Put("world", []byte("new"), func(Item) error { return no }); !errors.Is(err, no) {
		t.Errorf("put: %v", err)
	}
	if entries, _ := os.ReadDir(s.Dir); len(entries) != 0 {
		t.Errorf("left %v", entries)
	}
	if _, err := s.Put("world", []byte("old"), kept); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Remove("world", func(Item) error { return no }); !errors.Is(err, no) {
		t.Errorf("remove: %v", err)
	}
	if b, _ := os.ReadFile(filepath.Join(s.Dir, "world")); string(b) != "old" {
		t.Errorf("holds %q", b)
	}
}
