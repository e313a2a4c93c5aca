//go:build qemu

package main

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"guardhouse/board/kernel"
	"guardhouse/board/lab"
	"guardhouse/images"
	"guardhouse/images/debian"
	"guardhouse/images/keys"
	"guardhouse/initramfs"
)

// cache is shared by all tests, so that a kernel is fetched once.
func cache(t *testing.T) string {
	t.Helper()
	if d := os.Getenv("GUARDHOUSE_CACHE"); d != "" {
		return d
	}
	d, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(d, "guardhouse")
}

func startLab(t *testing.T) *lab.Lab {
	t.Helper()
	l, err := lab.New(t.Context(), lab.Options{Dir: t.TempDir(), Cache: cache(t), Logf: t.Logf})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

var release = initramfs.Release{Version: "test", Epoch: 1795000000}

// guest boots the image's kernel with the test binary of a package as PID 1 and nothing else, without a TPM.
func guest(t *testing.T, ctx context.Context, pkg string, dataMB int) *lab.Node {
	t.Helper()
	return guestWith(t, ctx, pkg, lab.NodeOptions{DataMB: dataMB, NoTPM: true})
}

// guestWith is guest on another machine, with tools of the workstation and their libraries at the same places.
func guestWith(t *testing.T, ctx context.Context, pkg string, o lab.NodeOptions, tools ...string) *lab.Node {
	t.Helper()
	dir := t.TempDir()
	c := exec.Command("go", "test", "-c", "-o", dir+"/init", pkg)
	c.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	k, err := debian.Candidate(ctx, images.KernelPackage, cache(t))
	if err != nil {
		t.Fatal(err)
	}
	root, err := debian.Unpacked(ctx, k, cache(t), func(string) bool { return true })
	if err != nil {
		t.Fatal(err)
	}
	tree, err := initramfs.OpenModules(root + "/lib/modules")
	if err != nil {
		t.Fatal(err)
	}
	modules, err := tree.Resolve(append(images.BoardModules(), kernel.Module{Name: "veth", Reason: "the cables of the tests"}))
	if err != nil {
		t.Fatal(err)
	}
	var list initramfs.List
	var archive bytes.Buffer
	for _, tool := range tools {
		if err := list.AddFile(tool, tool, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if len(tools) > 0 {
		if _, err := list.AddClosure([]string{"/"}, tools...); err != nil {
			t.Fatal(err)
		}
	}
	for _, err := range []error{list.AddSkeleton(release), list.AddModules(modules), list.AddFile("/init", dir+"/init", 0o755), list.WriteCPIO(&archive),
		os.WriteFile(dir+"/initrd", archive.Bytes(), 0o600)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	o.Name, o.Firmware, o.Kernel, o.Initrd, o.Cmdline = "guest", lab.Direct, root+"/boot/vmlinuz-"+tree.Version, dir+"/initrd", "console=ttyS0 quiet panic=1"
	n, err := startLab(t).StartNode(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestNetworkOnTheImagesKernel runs the tests of appliance/network as PID 1 under the image's kernel, which has the VLAN and bonding
// drivers that a workstation may lack.
func TestNetworkOnTheImagesKernel(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	n := guest(t, ctx, "guardhouse/appliance/network", -1)
	got, err := n.Serial.Expect(ctx, regexp.MustCompile(`guest tests ended with (\d+)`))
	text := n.Serial.Transcript()
	if err != nil || got[1] != "0" || strings.Contains(text, "--- SKIP") || !strings.Contains(text, "--- PASS: TestBond") || !strings.Contains(text, "--- PASS: TestVLAN") ||
		!strings.Contains(text, "--- PASS: TestFenced") {
		t.Errorf("%v\n%s", err, text)
	}
}

// TestVolumeOnTheImagesKernel runs the tests of appliance/disk that need dm-integrity and dm-crypt as PID 1 under the image's kernel.
func TestVolumeOnTheImagesKernel(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	n := guest(t, ctx, "guardhouse/appliance/disk", 48)
	got, err := n.Serial.Expect(ctx, regexp.MustCompile(`guest tests ended with (\d+)`))
	text := n.Serial.Transcript()
	if err != nil || got[1] != "0" || strings.Contains(text, "--- SKIP") || !strings.Contains(text, "--- PASS: TestVolume") {
		t.Errorf("%v\n%s", err, text)
	}
	for _, line := range regexp.MustCompile(`(?m)^.*guest_test.go.*$`).FindAllString(text, -1) {
		t.Log(strings.TrimSpace(line))
	}
}

// TestSealedVolumeOnTheImagesKernel runs the tests of appliance/volume with a TPM and a disk, as PID 1 under the image's kernel.
func TestSealedVolumeOnTheImagesKernel(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	n := guestWith(t, ctx, "guardhouse/appliance/volume", lab.NodeOptions{DataMB: 16}, "/sbin/mkfs.ext4", "/sbin/e2fsck")
	got, err := n.Serial.Expect(ctx, regexp.MustCompile(`guest tests ended with (\d+)`))
	text := n.Serial.Transcript()
	if err != nil || got[1] != "0" || strings.Contains(text, "--- SKIP") || strings.Count(text, "--- PASS: TestVolume") < 10 {
		t.Errorf("%v\n%s", err, text)
	}
	for _, line := range regexp.MustCompile(`(?m)^.*guest_(recovery_)?test.go.*$`).FindAllString(text, -1) {
		t.Log(strings.TrimSpace(line))
	}
}

// TestHardwareWatchdogResetsAMachineThatIsNotWell has PID 1 tie the watchdog to a health that ends.
func TestHardwareWatchdogResetsAMachineThatIsNotWell(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	n := guest(t, ctx, "guardhouse/appliance/supervise", -1)
	got, err := n.Serial.Expect(ctx, regexp.MustCompile(`watchdog (.*), not fed: (.*)!`))
	if err != nil || got[1] != "4s <nil>" || got[2] != "ledger has been silent" {
		t.Fatalf("%v %q", err, got)
	}
	if n.Events("WATCHDOG") != 0 {
		t.Error("it bit while it was fed")
	}
	for n.Events("WATCHDOG") == 0 {
		select {
		case <-ctx.Done():
			t.Fatal("it does not bite")
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// TestBoxSaysWhatKeepsItFromItsDisk boots the complete image without a disk and with somebody else's, and switches it off by its button.
func TestBoxSaysWhatKeepsItFromItsDisk(t *testing.T) {
	out := t.TempDir()
	t.Setenv("SOURCE_DATE_EPOCH", "1795000000") // the build asks for it
	set, err := keys.Make(filepath.Join(t.TempDir(), "keys"), "", true, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := images.Build(t.Context(), images.Options{Source: "../..", Out: out, Cache: cache(t), Release: release, Keys: set, HSM: images.HSM{Variant: "attached"}, Logf: t.Logf}); err != nil {
		t.Fatal(err)
	}
	l := startLab(t)
	foreign := bytes.Repeat([]byte("somebody else's data "), 1<<20)[:16<<20]
	for name, c := range map[string]struct {
		mb   int
		kind string
	}{"none": {-1, "disk-none"}, "foreign": {16, "disk-foreign"}, "blank": {32, "seal-no-policy"}} { // the firmware of these machines verifies nothing
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
			defer cancel()
			file := filepath.Join(l.Dir, "nodes", name, "data.img")
			if c.kind == "disk-foreign" {
				os.MkdirAll(filepath.Dir(file), 0o700)
				if err := os.WriteFile(file, foreign, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			n, err := l.StartNode(ctx, lab.NodeOptions{Name: name, Image: filepath.Join(out, images.DiskFile), DataMB: c.mb, CPUs: 2})
			if err != nil {
				t.Fatal(err)
			}
			said, err := n.Serial.Expect(ctx, regexp.MustCompile(`can't be set up yet +\[`+c.kind+`\]\s+what: (.*)\s+do: (.*)`))
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%.1fs after QEMU started: %q", time.Since(n.Started).Seconds(), said[1:])
			if _, err := n.Serial.Expect(ctx, regexp.MustCompile(`> $`)); err != nil { // the console is up all the same
				t.Fatal(err)
			}
			for pressed := false; !pressed; { // the button's driver may still be on its way
				if err := n.PowerButton(ctx); err != nil {
					t.Fatal(err)
				}
				select {
				case <-n.Done():
					pressed = true
				case <-ctx.Done():
					t.Fatalf("the button does nothing:\n%s", n.Serial.Transcript())
				case <-time.After(3 * time.Second):
				}
			}
			if c.kind == "disk-foreign" {
				if b, err := os.ReadFile(file); err != nil || !bytes.Equal(b, foreign) {
					t.Errorf("somebody else's data were changed (%v)", err)
				}
			}
		})
	}
}
