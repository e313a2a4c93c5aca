//go:build qemu

package site

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"guardhouse/appliance/sandbox"
	"guardhouse/images"
)

// allowed says what each file of a release image may be. A file that fits none fails the test.
var allowed = []struct {
	what   string
	path   *regexp.Regexp
	origin *regexp.Regexp
}{
	{"our programs", regexp.MustCompile(`^/bin/(init|ledger|hsm|hgs|clock|console|forward)$`), regexp.MustCompile(`^go \./cmd/`)},
	{"kernel modules", regexp.MustCompile(`^/lib/modules/.*\.ko$|^/lib/modules/[^/]+/modules\.`), regexp.MustCompile(`.`)},
	{"our list of modules", regexp.MustCompile(`^/etc/modules`), regexp.MustCompile(`^made`)},
	{"the PKCS#11 module", regexp.MustCompile(`^/usr/lib/pkcs11/[^/]+\.so$`), regexp.MustCompile(`^file /usr/lib/`)},
	{"shared libraries", regexp.MustCompile(`^(/usr)?/lib(64)?/.*\.so(\.[0-9.]+)?$`), regexp.MustCompile(`^file (/usr)?/lib`)},
	{"disk tools", regexp.MustCompile(`^/sbin/(mkfs\.ext4|e2fsck)$`), regexp.MustCompile(`^file /sbin/`)},
	{"text", regexp.MustCompile(`^/etc/`), regexp.MustCompile(`^made`)},
	{"the release key", regexp.MustCompile(`^/etc/guardhouse/release\.pub$`), regexp.MustCompile(`^key set$`)},
}

// testPackages are what no program of a release may be linked with.
var testPackages = regexp.MustCompile(`^(testing|testing/.*|guardhouse/board/lab(/.*)?|guardhouse/.*/verbtest|net/http/pprof|expvar|plugin)$`)

// testHook is the beginning of the variables with which tests of this project steer their programs.
var testHook = regexp.MustCompile(`(GUARDHOUSE|LAB)_[A-Z]+_?[A-Z]*`)

// TestReleaseImageHasNoShellAndNoTestHook reads the manifest and the programs of a release image: nothing in it can be talked into
// running text, and no program holds code of the tests or listens to their variables.
func TestReleaseImageHasNoShellAndNoTestHook(t *testing.T) {
	build := buildDir(t)
	image(t, Attached)
	raw, err := os.ReadFile(filepath.Join(build, imageFolder(""), images.ManifestFile))
	if err != nil {
		t.Fatal(err)
	}
	var m images.Manifest
	if err := json.Unmarshal(raw, &m); err != nil {
		t.Fatal(err)
	}
	if !m.Complete {
		t.Error("programs were left out")
	}
	programs := map[string]string{} // by SHA-256
	for _, f := range m.Files {
		switch {
		case f.Kind == "file" && !hasBusiness(f):
			t.Errorf("%s (%s) has no business in the image", f.Path, f.Origin)
		case f.Kind == "file" && strings.HasPrefix(f.Path, "/bin/"):
			programs[f.SHA256] = path.Base(f.Path)
		case f.Kind == "device" && f.Path != "/dev/console" && f.Path != "/dev/null", f.Kind == "link" && f.Path != "/init":
			t.Errorf("%s %s", f.Kind, f.Path)
		}
	}
	if len(programs) != 1+len(sandbox.Table) {
		t.Errorf("programs of ours: %v; want init and the %d of sandbox.Table", programs, len(sandbox.Table))
	}
	for _, w := range m.Cmdline {
		if strings.Contains(w.Text, "init=") || w.Text == "debug" || w.Text == "single" {
			t.Errorf("the kernel's command line holds %q", w.Text)
		}
	}
	noTestCode(t, build, programs)
}

func hasBusiness(f images.FileRecord) bool {
	for _, a := range allowed {
		if a.path.MatchString(f.Path) && a.origin.MatchString(f.Origin) {
			return f.Mode == "0755" || f.Mode == "0644"
		}
	}
	return false
}

// noTestCode looks at what the programs are linked with, and at their bytes.
func noTestCode(t *testing.T, build string, programs map[string]string) {
	var packages []string
	for _, name := range programs {
		packages = append(packages, "guardhouse/cmd/"+name)
	}
	out, err := exec.CommandContext(t.Context(), "go", append([]string{"list", "-deps"}, packages...)...).Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, pkg := range strings.Fields(string(out)) {
		if testPackages.MatchString(pkg) {
			t.Errorf("the image's programs are linked with %s", pkg)
		}
	}
	files, err := filepath.Glob(filepath.Join(build, "cache", "go-*", "*"))
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			continue // another build drops its oldest files
		}
		sum := sha256.Sum256(b)
		name, ok := programs[hex.EncodeToString(sum[:])]
		if !ok {
			continue
		}
		seen++
		for _, hook := range testHook.FindAllString(string(b), -1) {
			if hook != "GUARDHOUSE_VERSION" { // init tells the services which image this is
				t.Errorf("%s listens to %s", name, hook)
			}
		}
	}
	if seen < len(programs) {
		t.Errorf("%d of %d programs were found in the cache", seen, len(programs))
	}
}
