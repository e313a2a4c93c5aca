//go:build qemu

package site

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"guardhouse/appliance/disk"
	"guardhouse/appliance/rpc"
	"guardhouse/board/lab"
)

// releases builds two releases of the tree with the evaluation keys, and the bundle of the second.
func releases(t *testing.T) (first Image, bundle []byte) {
	t.Helper()
	build := buildDir(t)
	for n := 101; n <= 102; n++ {
		folder := fmt.Sprint("image-release-", n)
		img, err := buildImage(t.Context(), build, folder, "--hsm", Attached, "--release", fmt.Sprint(n), "--version", fmt.Sprintf("test-%d", n))
		if err != nil {
			t.Fatal(err)
		}
		if n == 101 {
			first = img
			continue
		}
		file := filepath.Join(build, folder, "guardhouse-update")
		cmd := exec.CommandContext(t.Context(), "go", "run", "guardhouse/cmd/mkimage", "release", "--image", filepath.Join(build, folder), "--keys", filepath.Join(build, "cache", "keys-evaluation"), "-o", file)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		if bundle, err = os.ReadFile(file); err != nil {
			t.Fatal(err)
		}
	}
	return first, bundle
}

// TestUpdate installs a release, which marks itself good, destroys the slot that it runs from, and tries the old release again.
func TestUpdate(t *testing.T) {
	t.Parallel()
	first, bundle := releases(t)
	site, err := Open(t.Context(), Options{Build: buildDir(t), Name: "test-update", Fresh: true, Logf: t.Logf}, first)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { site.Close() })
	s := &stage{Site: site, hostsim: filepath.Join(buildDir(t), "bin", "hostsim"), people: filepath.Join(site.Lab.Dir, "people")}
	compile(t, s.hostsim, "guardhouse/cmd/hostsim")
	boot := filepath.Join(site.Lab.Dir, "boot.img")
	copyFile(t, boot, site.Image.Disk)
	own := func(o *lab.NodeOptions) { o.Image, o.ImageWritable = boot, true }
	if err := s.BootWith(t.Context(), own); err != nil {
		t.Fatal(err)
	}
	s.ready(t, false)
	setUpRightly(t, s)
	s.updateIs(t, "before", func(u rpc.UpdateStatus) bool {
		return u.Running.Number == 101 && u.Running.Slot == "A" && u.Phase == "idle"
	})

	var r rpc.UpdateReport
	start := time.Now()
	if err := s.JSON(within(t, 5*time.Minute), bundle, &r, "update", "check"); err != nil || !r.Verified || len(r.Problems) != 0 || r.Release.Number != 102 {
		t.Fatalf("check: %v %+v", err, r)
	}
	t.Logf("update check: %s for %d MiB", time.Since(start).Round(time.Second), len(bundle)>>20)
	bad := bytes.Clone(bundle)
	bad[len(bad)-1] ^= 1
	if _, err := s.Verb(within(t, 5*time.Minute), bad, "update", "check"); err == nil || !strings.Contains(squeeze(err.Error()), "not what the release key signed") {
		t.Errorf("a changed bundle: %v", err)
	}
	start = time.Now()
	if err := s.JSON(within(t, 5*time.Minute), bundle, &r, "update", "install"); err != nil || !r.Written {
		t.Fatalf("install: %v %+v", err, r)
	}
	t.Logf("update install, until it restarts: %s", time.Since(start).Round(time.Second))
	s.line(t, "BdsDxe: starting")
	s.ready(t, true)
	s.updateIs(t, "after", func(u rpc.UpdateStatus) bool {
		return u.Running.Number == 102 && u.Running.Floor == 102 && u.Running.Slot == "B" && u.Phase == "idle" && !u.Trial
	})
	t.Logf("update, until older releases are shut out: %s", time.Since(start).Round(time.Second))
	if v := s.verb(t, "audit", "tail", "--lines", "100"); !strings.Contains(v, "update.install") || !strings.Contains(v, "update.good") || !strings.Contains(v, "update.floor") {
		t.Errorf("the audit:\n%s", v)
	}

	s.Node.Kill()
	destroy(t, boot, 1)
	if err := s.BootWith(t.Context(), own); err != nil {
		t.Fatal(err)
	}
	s.line(t, "starting once more without it")
	s.ready(t, true)
	s.updateIs(t, "from the other slot", func(u rpc.UpdateStatus) bool { return u.Running.Number == 102 && u.Running.Slot == "A" })
	eventually(t, 3*time.Minute, func(ctx context.Context) error {
		s.Verb(ctx, nil, "time", "release")
		if v := s.verb(t, "log", "show", "init"); !strings.Contains(v, "was copied to slot guardhouse B") {
			return fmt.Errorf("the destroyed slot is not made whole")
		}
		return nil
	})

	s.Node.Kill()
	if err := s.Boot(t.Context()); err != nil { // release 101 as it was delivered, on the same machine
		t.Fatal(err)
	}
	if said := s.line(t, `can't be set up yet +\[seal-old-image\]\s+what: ([^\r\n]+)[\r\n]`); !strings.Contains(said[1], "release 101") {
		t.Errorf("%q", said)
	}
}

// line waits for what the serial line says in the course of a boot or two.
func (s *stage) line(t *testing.T, want string) []string {
	t.Helper()
	m, err := s.Node.Serial.Expect(within(t, 3*time.Minute), regexp.MustCompile(want))
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// updateIs waits until update status is as it should be.
func (s *stage) updateIs(t *testing.T, when string, want func(rpc.UpdateStatus) bool) {
	t.Helper()
	eventually(t, 2*time.Minute, func(ctx context.Context) error {
		var u rpc.UpdateStatus
		if err := s.JSON(ctx, nil, &u, "update", "status"); err != nil {
			return err
		}
		if !want(u) {
			s.Verb(ctx, nil, "time", "release") // on a busy workstation a reboot may seem to be a jump of all time servers
			return fmt.Errorf("%s: %+v", when, u)
		}
		return nil
	})
}

func copyFile(t *testing.T, to, from string) {
	t.Helper()
	if out, err := exec.CommandContext(t.Context(), "cp", "--sparse=always", from, to).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

// destroy overwrites a piece in the middle of the image in a slot.
func destroy(t *testing.T, name string, slot int) {
	t.Helper()
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	parts, err := disk.ReadGPT(f, st.Size())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(bytes.Repeat([]byte{0xff}, 4096), parts[slot].Start+(8<<20)); err != nil {
		t.Fatal(err)
	}
}
