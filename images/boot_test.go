//go:build qemu

package images

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"guardhouse/board/kernel"
	"guardhouse/board/lab"
	"guardhouse/images/esp"
	"guardhouse/images/keys"
	"guardhouse/images/measure"
	"guardhouse/images/uki"
	"guardhouse/initramfs"
)

// The promise behind everything sealed: what firmware and stub measure is
// what measure.Predict says, for the very stub, kernel, command line and
// firmware we ship. Only PID 1 is another, one that prints the registers.
func TestARealBootMeasuresWhatWasPredicted(t *testing.T) {
	t.Setenv("SOURCE_DATE_EPOCH", "1795000000")
	set, err := keys.Make(filepath.Join(t.TempDir(), "keys"), "", true, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	b := throwAway(t, "readpcr", Options{Keys: set})
	l, err := lab.New(t.Context(), lab.Options{Dir: t.TempDir(), Cache: testCache(t), Logf: t.Logf})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	image, err := os.ReadFile(filepath.Join(b.Out, UKIFile))
	if err != nil {
		t.Fatal(err)
	}
	dbx := keys.HashList(set.Owner, [32]byte{1})
	t.Run("secure boot off", func(t *testing.T) {
		bootAndCompare(t, l, lab.NodeOptions{Name: "off", Image: filepath.Join(b.Out, DiskFile)}, image, measure.Options{})
	})
	for name, content := range map[string][]byte{"on": nil, "dbx": dbx} {
		t.Run("secure boot "+name, func(t *testing.T) {
			if err := l.EnrollFirmware(name, set.Variables(content), true); err != nil {
				t.Fatal(err)
			}
			o := lab.NodeOptions{Name: name, Image: filepath.Join(b.Out, DiskFile), SecureBoot: true}
			bootAndCompare(t, l, o, image, measure.Options{SecureBoot: true, Firmware: measure.FirmwareOf(set, content)})
		})
	}
	t.Run("refused", func(t *testing.T) { refusesToBoot(t, l, set, image) })
}

// throwAway builds an image whose PID 1 is a program of testdata, with more in it.
func throwAway(t *testing.T, program string, o Options, more ...initramfs.Entry) *build {
	t.Helper()
	o.Source, o.Out, o.Cache, o.Logf = "..", t.TempDir(), testCache(t), t.Logf
	o.Release = initramfs.Release{Version: "test", Epoch: 1795000000, Number: 1}
	b := &build{Options: o}
	if err := os.MkdirAll(b.Cache, 0o755); err != nil {
		t.Fatal(err)
	}
	unlock, err := lock(b.Cache)
	if err != nil {
		t.Fatal(err)
	}
	defer unlock() // others may build while we boot
	if err := b.fetchKernel(t.Context()); err != nil {
		t.Fatal(err)
	}
	pid1 := filepath.Join(b.Out, "init")
	c := exec.Command("go", "build", "-ldflags", ldflags, "-o", pid1, "./testdata/"+program)
	c.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	b.programs = map[string]string{"init": pid1}
	if err := b.list.AddSkeleton(b.Release); err != nil {
		t.Fatal(err)
	}
	for _, e := range more {
		if err := b.list.Add(e); err != nil {
			t.Fatal(err)
		}
	}
	if len(more) > 0 { // what the updates of firmware variables go through
		modules, err := b.tree.Resolve([]kernel.Module{{Name: "efivarfs", Reason: "test"}})
		if err := errors.Join(err, b.list.AddModules(modules)); err != nil {
			t.Fatal(err)
		}
	}
	for _, step := range []func(context.Context) error{func(context.Context) error { return b.addProgram("init", pid1) }, b.pack, b.assemble} {
		if err := step(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	return b
}

// bootAndCompare boots and compares each register that was predicted.
func bootAndCompare(t *testing.T, l *lab.Lab, o lab.NodeOptions, image []byte, opt measure.Options) {
	want, err := measure.Predict(image, opt)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	o.DataMB = 16
	n, err := l.StartNode(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	defer n.Kill()
	zero := strings.Repeat("0", 64)
	for _, c := range []struct{ pcr, want string }{{"4", hex.EncodeToString(want.PCR4[:])}, {"7", hex.EncodeToString(want.PCR7[:])},
		{"11", hex.EncodeToString(want.PCR11[:])}, {"12", zero}, {"13", zero}} {
		got, err := n.Serial.Expect(ctx, regexp.MustCompile(`PCR `+c.pcr+` = (.*)\.`))
		if err != nil {
			t.Fatal(err)
		}
		if c.pcr == "7" && opt.Firmware == nil {
			continue // without Secure Boot nothing is predicted for it
		}
		if got[1] != c.want {
			t.Errorf("PCR %s: the TPM holds %s, predicted %s", c.pcr, got[1], c.want)
		}
	}
	t.Logf("PID 1 spoke %.1fs after QEMU started", time.Since(n.Started).Seconds())
}

// refusesToBoot: firmware with our keys alone starts nothing that differs from what was signed in a single bit, nor what others signed.
func refusesToBoot(t *testing.T, l *lab.Lab, set *keys.Set, image []byte) {
	other, err := keys.Make(filepath.Join(t.TempDir(), "keys"), "Somebody else", false, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	unsigned, err := unsign(image)
	if err != nil {
		t.Fatal(err)
	}
	flip := func(section string) []byte {
		list, err := uki.Parse(image)
		if err != nil {
			t.Fatal(err)
		}
		data, ok := uki.Find(list, section)
		if !ok {
			t.Fatalf("no section %s", section)
		}
		changed := bytes.Clone(image)
		changed[bytes.Index(image, data[:min(len(data), 4096)])+len(data)/2] ^= 1
		return changed
	}
	signer, err := other.Signer(keys.DB)
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := uki.Sign(unsigned, other.Certs[keys.DB], signer)
	if err != nil {
		t.Fatal(err)
	}
	broken := bytes.Clone(image)
	broken[len(broken)-100] ^= 1 // in the signature's value
	forbidden, err := uki.AuthenticodeSHA256(image)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name  string
		image []byte
		dbx   []byte
	}{
		{"initramfs", flip(uki.Initrd), nil}, {"cmdline", flip(uki.Cmdline), nil}, {"signature", broken, nil},
		{"foreign", foreign, nil}, {"unsigned", unsigned, nil}, {"forbidden", image, keys.HashList(set.Owner, forbidden)},
	} {
		t.Run(c.name, func(t *testing.T) {
			disk := filepath.Join(t.TempDir(), "disk.img")
			if err := esp.Write(disk, []esp.File{{Path: esp.BootPath, Data: c.image}}); err != nil {
				t.Fatal(err)
			}
			if err := l.EnrollFirmware("no-"+c.name, set.Variables(c.dbx), true); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
			defer cancel()
			n, err := l.StartNode(ctx, lab.NodeOptions{Name: "no-" + c.name, Image: disk, SecureBoot: true, DataMB: 16})
			if err != nil {
				t.Fatal(err)
			}
			defer n.Kill()
			got, err := n.Serial.Expect(ctx, regexp.MustCompile(`Access Denied|PCR 4 =`))
			if err != nil {
				t.Fatal(err)
			}
			if got[0] != "Access Denied" {
				t.Error("it booted")
			}
		})
	}
}

// unsign takes the signature off again.
func unsign(image []byte) ([]byte, error) {
	sections, err := uki.Parse(image)
	if err != nil {
		return nil, err
	}
	stub, err := os.ReadFile(StubPath)
	if err != nil {
		return nil, err
	}
	var added []uki.Section
	for _, name := range []string{uki.OSRel, uki.Cmdline, uki.Uname, uki.PCRPKey, uki.Linux, uki.Initrd} {
		data, _ := uki.Find(sections, name)
		added = append(added, uki.Section{Name: name, Data: data})
	}
	return uki.Build(stub, added)
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
