//go:build qemu

package site

import (
	"bytes"
	"debug/pe"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"guardhouse/board/lab"
)

// directly takes kernel, initramfs and command line out of the image, so that QEMU loads them without UEFI: 10 s faster. The PCRs say
// nothing then.
func directly(t *testing.T, s *stage) func(*lab.NodeOptions) {
	t.Helper()
	f, err := pe.Open(s.Image.EFI)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	section := func(name string) []byte {
		sec := f.Section(name)
		if sec == nil {
			t.Fatalf("the image has no section %s", name)
		}
		b, err := sec.Data()
		if err != nil {
			t.Fatal(err)
		}
		return b[:min(len(b), int(sec.VirtualSize))]
	}
	file := func(name string) string {
		path := filepath.Join(s.Lab.Dir, name[1:])
		if err := os.WriteFile(path, section(name), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	kernel, initrd, words := file(".linux"), file(".initrd"), string(bytes.TrimRight(section(".cmdline"), "\x00\n"))
	return func(o *lab.NodeOptions) {
		o.Image, o.Firmware, o.Kernel, o.Initrd, o.Cmdline = "", lab.Direct, kernel, initrd, words
	}
}

// TestMachineWithoutTPMOrCable boots a machine that lacks both: it reaches the console, names the dead link and refuses setup with the
// reason.
func TestMachineWithoutTPMOrCable(t *testing.T) {
	t.Parallel()
	s := openStage(t, "test-bare", Attached)
	direct := directly(t, s)
	if err := s.BootWith(t.Context(), func(o *lab.NodeOptions) { direct(o); o.NoTPM = true }); err != nil {
		t.Fatal(err)
	}
	if err := s.Node.SetLink(t.Context(), lab.ServiceNIC, false); err != nil {
		t.Fatal(err)
	}
	s.ready(t, false)
	st := s.answered(t, "status")
	for _, want := range []string{"TPM", "eth0", s.Node.MAC(lab.ServiceNIC), "no link"} {
		if !strings.Contains(st, want) {
			t.Errorf("status does not name %q: %s", want, st)
		}
	}
	a := s.answered(t, "setup")
	if !strings.Contains(a, "TPM") || !strings.Contains(a, "->") || strings.Contains(a, "paste") {
		t.Errorf("setup without a TPM: %s", a)
	}
	t.Logf("setup says: %s", a)
	if err := s.Node.SetLink(t.Context(), lab.ServiceNIC, true); err != nil {
		t.Fatal(err)
	}
	if st := s.answered(t, "status"); strings.Contains(st, "no link") {
		t.Errorf("the cable is in: %s", st)
	}
}

// TestEmbeddedTokenServes sets up a node whose token lies on its own disk.
func TestEmbeddedTokenServes(t *testing.T) {
	t.Parallel()
	s := openStage(t, "test-embedded", Embedded)
	if err := s.BootWith(t.Context(), directly(t, s)); err != nil {
		t.Fatal(err)
	}
	s.ready(t, false)
	setUpRightly(t, s)
	st := s.verb(t, "hsm", "status")
	if !strings.Contains(st, "libsofthsm2.so") || !strings.Contains(st, "ready") || !strings.Contains(st, "libsofthsm2 2.") {
		t.Errorf("hsm status: %s", st)
	}
	s.guest(t)
	if err := s.roll(within(t, 30*time.Second)); err != nil {
		t.Error(err)
	}
}
