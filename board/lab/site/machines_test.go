//go:build qemu

package site

import (
	"bytes"
	"context"
	"debug/pe"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
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

// TestMachineWithoutTPMOrCable boots a machine that lacks both: it says on its serial line why its disk stays shut, reaches the console and
// names the dead link.
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
	said, err := s.Node.Serial.Expect(within(t, 90*time.Second), regexp.MustCompile(`can't be set up yet +\[tpm-unusable\]\s+what: ([^\r\n]*)\s+do: ([^\r\n]*)[\r\n]`))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(said[1], "no TPM 2.0") || !strings.Contains(said[2], "enable the TPM") {
		t.Errorf("%q", said[1:])
	}
	s.expect(t, `waiting> $`)
	status := func() string { return squeeze(s.typed(t, "status", `(?s)status\r\n(.*?)waiting> `)[1]) }
	st := status()
	for _, want := range []string{"TPM", "eth0", s.Node.MAC(lab.ServiceNIC), "no link"} {
		if !strings.Contains(st, want) {
			t.Errorf("status does not name %q: %s", want, st)
		}
	}
	if a := squeeze(s.typed(t, "setup", `(?s)setup\r\n(.*?)waiting> `)[1]); strings.Contains(a, "paste") {
		t.Errorf("setup without a disk: %s", a)
	}
	if err := s.Node.SetLink(t.Context(), lab.ServiceNIC, true); err != nil {
		t.Fatal(err)
	}
	eventually(t, 20*time.Second, func(context.Context) error {
		if st := status(); strings.Contains(st, "no link") {
			return fmt.Errorf("the cable is in: %s", st)
		}
		return nil
	})
}

// TestEmbeddedTokenServes sets up a node whose token lies on its own disk.
func TestEmbeddedTokenServes(t *testing.T) {
	t.Parallel()
	s := openStage(t, "test-embedded", Embedded)
	if err := s.Boot(t.Context()); err != nil {
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
