//go:build qemu

package images

import (
	"context"
	"encoding/hex"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"guardhouse/board/lab"
	"guardhouse/images/measure"
	"guardhouse/initramfs"
)

// The promise behind everything sealed: what firmware and stub measure is
// what measure.Predict says, for the very stub, kernel, command line and
// firmware we ship. Only PID 1 is another, one that prints the registers.
func TestARealBootMeasuresWhatWasPredicted(t *testing.T) {
	t.Setenv("SOURCE_DATE_EPOCH", "1795000000")
	b := &build{Options: Options{Source: "..", Out: t.TempDir(), Cache: testCache(t), Release: initramfs.Release{Version: "test", Epoch: 1795000000}, Logf: t.Logf}}
	if err := os.MkdirAll(b.Cache, 0o755); err != nil {
		t.Fatal(err)
	}
	unlock, err := lock(b.Cache)
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	if err := b.fetchKernel(t.Context()); err != nil {
		t.Fatal(err)
	}
	pid1 := filepath.Join(b.Out, "init")
	c := exec.Command("go", "build", "-ldflags", ldflags, "-o", pid1, "./testdata/readpcr")
	c.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	b.programs = map[string]string{"init": pid1}
	if err := b.list.AddSkeleton(b.Release); err != nil {
		t.Fatal(err)
	}
	for _, step := range []func(context.Context) error{func(context.Context) error { return b.addProgram("init", pid1) }, b.pack, b.assemble} {
		if err := step(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	unlock() // others may build while we boot
	bootAndCompare(t, b.Out)
}

func bootAndCompare(t *testing.T, out string) {
	image, err := os.ReadFile(filepath.Join(out, UKIFile))
	if err != nil {
		t.Fatal(err)
	}
	want, err := measure.Predict(image, measure.Options{})
	if err != nil {
		t.Fatal(err)
	}
	l, err := lab.New(t.Context(), lab.Options{Dir: t.TempDir(), Cache: testCache(t), Logf: t.Logf})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	n, err := l.StartNode(ctx, lab.NodeOptions{Name: "measured", Image: filepath.Join(out, DiskFile), DataMB: 16})
	if err != nil {
		t.Fatal(err)
	}
	zero := strings.Repeat("0", 64)
	for _, c := range []struct{ pcr, want string }{{"4", hex.EncodeToString(want.PCR4[:])}, {"11", hex.EncodeToString(want.PCR11[:])}, {"12", zero}, {"13", zero}} {
		got, err := n.Serial.Expect(ctx, regexp.MustCompile(`PCR `+c.pcr+` = (.*)\.`))
		if err != nil {
			t.Fatal(err)
		}
		if got[1] != c.want {
			t.Errorf("PCR %s: the TPM holds %s, predicted %s", c.pcr, got[1], c.want)
		}
	}
	t.Logf("PID 1 spoke %.1fs after QEMU started", time.Since(n.Started).Seconds())
}

// testCache is the cache that all tests share, so that a kernel is fetched
// once.
func testCache(t *testing.T) string {
	t.Helper()
	if d := os.Getenv("GUARDHOUSE_CACHE"); d != "" {
		return d
	}
	d, err := os.UserCacheDir()
	if err != nil {
		return t.TempDir()
	}
	return filepath.Join(d, "guardhouse")
}
