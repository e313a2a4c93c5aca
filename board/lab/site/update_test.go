//go:build qemu

package site

import (
	"bytes"
	"context"
	"crypto"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"guardhouse/appliance/disk"
	"guardhouse/appliance/rpc"
	"guardhouse/appliance/update"
	"guardhouse/board/lab"
	"guardhouse/images/keys"
)

// TestUpdate takes a node from one release to the next through three power cuts, each at another step, with the second of four attempts
// from a USB stick; then it destroys the slot that runs, and tries the old release again. After every cut the node comes up by itself,
// its disk open, from the slot that is good.
func TestUpdate(t *testing.T) {
	t.Parallel()
	s := openStage(t, "test-update", Attached)
	s.OwnDisk = true
	stick := filepath.Join(s.Lab.Dir, "stick.img")
	if err := os.WriteFile(stick, nil, 0o600); err != nil || os.Truncate(stick, stickSize) != nil {
		t.Fatal(err)
	}
	boot := func() {
		t.Helper()
		err := s.BootWith(t.Context(), func(o *lab.NodeOptions) {
			o.ExtraArgs = append(o.ExtraArgs, "-device", "qemu-xhci,addr=0x14", "-drive", "if=none,id=stick,format=raw,file="+stick, "-device", "usb-storage,drive=stick")
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	boot()
	s.ready(t, false)
	setUpRightly(t, s)
	was, err := s.Update(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	old, next := was.Running.Number, was.Running.Number+1
	if was.Running.Slot != "A" || was.Phase != "idle" || was.Running.Floor != old {
		t.Fatalf("before: %+v", was)
	}
	bundle, err := s.NextRelease(t.Context(), old)
	if err != nil {
		t.Fatal(err)
	}

	s.refusesUpdates(t, bundle)

	s.cutWhileWriting(t, bundle)
	boot()
	s.oldGoesOn(t, old, fmt.Sprintf("the writing of release %d was interrupted", next))

	s.cutInTheFirstBoot(t, bundle, stick, next)
	boot()
	s.oldGoesOn(t, old, fmt.Sprintf("release %d was started and did not come up", next))

	s.cutWhileCopying(t, bundle, next)
	boot()
	s.ready(t, true)
	good := func(u rpc.UpdateStatus) bool {
		return u.Running.Number == next && u.Running.Floor == next && u.Running.Slot == "B" && u.Phase == "idle" && !u.Trial
	}
	s.updateIs(t, "after the last cut", good)
	if v := s.verb(t, "log", "show", "init", "--lines", "1000"); !strings.Contains(v, "update good") || !strings.Contains(v, "the running release was copied to slot guardhouse A") {
		t.Errorf("the power was not cut while the release was copied:\n%s", v)
	}
	if v := s.verb(t, "audit", "tail", "--lines", "100"); !strings.Contains(v, "update.install") || !strings.Contains(v, "update.good") || !strings.Contains(v, "update.floor") {
		t.Errorf("the audit:\n%s", v)
	}

	s.Node.Kill()
	destroy(t, s.bootDisk(), 1)
	boot()
	s.line(t, "starting once more without it")
	s.ready(t, true)
	s.updateIs(t, "from the other slot", func(u rpc.UpdateStatus) bool { return u.Running.Number == next && u.Running.Slot == "A" })
	s.healed(t, "B")

	s.Node.Kill()
	if err := s.BootDelivered(t.Context()); err != nil { // the old release on the same machine
		t.Fatal(err)
	}
	if said := s.line(t, `can't be set up yet +\[seal-old-image\]\s+what: ([^\r\n]+)[\r\n]`); !strings.Contains(said[1], fmt.Sprintf("release %d", old)) {
		t.Errorf("%q", said)
	}
}

// refusesUpdates sends updates that must not be installed, and one that may.
func (s *stage) refusesUpdates(t *testing.T, bundle []byte) {
	t.Helper()
	var r rpc.UpdateReport
	start := time.Now()
	if err := s.JSON(within(t, 5*time.Minute), bundle, &r, "update", "check"); err != nil || !r.Verified || len(r.Problems) != 0 || r.Running.Format != update.StoredFormat {
		t.Fatalf("check: %v %+v", err, r)
	}
	t.Logf("update check: %s for %d MiB", time.Since(start).Round(time.Second), len(bundle)>>20)
	bad := bytes.Clone(bundle)
	bad[len(bad)-1] ^= 1
	if _, err := s.Verb(within(t, 5*time.Minute), bad, "update", "check"); err == nil || !strings.Contains(squeeze(err.Error()), "not what the release key signed") {
		t.Errorf("a changed bundle: %v", err)
	}
	for want, claim := range map[string]func(*update.Manifest){
		"reads stored data of format 2 to 2, and this node's is 1":                 func(m *update.Manifest) { m.MinStoredFormat, m.StoredFormat, m.WritesFormat = 2, 2, 2 },
		"writes stored data of format 2, and the running one reads up to 1: there": func(m *update.Manifest) { m.StoredFormat, m.WritesFormat = 2, 2 },
	} {
		_, err := s.Verb(within(t, 5*time.Minute), s.claiming(t, bundle, claim), "update", "install")
		if err == nil || !strings.Contains(squeeze(err.Error()), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
	s.updateIs(t, "after what was refused", func(u rpc.UpdateStatus) bool { return u.Phase == "idle" })
}

// claiming is the bundle with another manifest, signed as well as ever, and next to no image: it must be refused for what it claims.
func (s *stage) claiming(t *testing.T, bundle []byte, claim func(*update.Manifest)) []byte {
	t.Helper()
	set, err := keys.Load(filepath.Join(s.Build, "cache", "keys-evaluation"))
	if err != nil {
		t.Fatal(err)
	}
	signer, err := set.Signer(keys.Release)
	if err != nil {
		t.Fatal(err)
	}
	b, err := update.Open(bytes.NewReader(bundle), set.RSA(keys.Release))
	if err != nil {
		t.Fatal(err)
	}
	claim(&b.Manifest)
	var out bytes.Buffer
	parts := update.Parts{Policy: b.Policy, SBOM: []byte("{}"), UKI: make([]byte, 4096)}
	if err := update.Write(&out, b.Manifest, parts, []crypto.Signer{signer}...); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// cutWhileWriting pulls the plug once the node says that it writes the other slot.
func (s *stage) cutWhileWriting(t *testing.T, bundle []byte) {
	t.Helper()
	ended := make(chan error, 1)
	go func() {
		_, err := s.Verb(within(t, 5*time.Minute), bundle, "update", "install", "--later")
		ended <- err
	}()
	s.updateIs(t, "an installation", func(u rpc.UpdateStatus) bool { return u.Phase == "writing" })
	s.Node.PowerCut(1)
	if err := <-ended; err == nil {
		t.Error("the installation ended before the power did")
	}
}

// cutInTheFirstBoot installs from the stick at the serial line, and pulls the plug when the new release has opened the data disk: its trial
// needs ten seconds more.
func (s *stage) cutInTheFirstBoot(t *testing.T, bundle []byte, stick string, next uint64) {
	t.Helper()
	if err := s.SerialLogin(within(t, time.Minute)); err != nil {
		t.Fatal(err)
	}
	if said := s.answered(t, "update check --stick"); !strings.Contains(said, "no attached disk has such a file") || !strings.Contains(said, "FAT") {
		t.Errorf("an empty stick: %s", said)
	}
	fillStick(t, stick, fmt.Sprintf("guardhouse-update-%d", next), bundle)
	s.typed(t, "update install --stick", "type yes to go on: ")
	if err := s.Node.Serial.Send("yes"); err != nil {
		t.Fatal(err)
	}
	s.line(t, "verified and read back")
	s.line(t, `BdsDxe: starting Boot[0-9A-F]{4} "guardhouse B"`)
	s.ready(t, true)
	s.Node.PowerCut(2)
}

// cutWhileCopying pulls the plug when the new release is good and is being copied over the old one.
func (s *stage) cutWhileCopying(t *testing.T, bundle []byte, next uint64) {
	t.Helper()
	var r rpc.UpdateReport
	start := time.Now()
	if err := s.JSON(within(t, 5*time.Minute), bundle, &r, "update", "install"); err != nil || !r.Written {
		t.Fatalf("install: %v %+v", err, r)
	}
	t.Logf("update install, until it restarts: %s", time.Since(start).Round(time.Second))
	s.line(t, `BdsDxe: starting Boot[0-9A-F]{4} "guardhouse B"`)
	s.ready(t, true)
	eventually(t, 3*time.Minute, func(ctx context.Context) error {
		s.Verb(ctx, nil, "time", "release")
		ctx, cancel := context.WithTimeout(ctx, 30*time.Second) // the time may need another release
		defer cancel()
		return s.Follow(ctx, fmt.Sprintf("release %d passed its trial; it is copied", next), "log", "follow", "init", "--lines", "1000")
	})
	s.Node.PowerCut(3)
	t.Logf("update, until the release was good: %s", time.Since(start).Round(time.Second))
}

// oldGoesOn sees the old release come up by itself from its slot, say why, and make the other slot whole.
func (s *stage) oldGoesOn(t *testing.T, number uint64, why string) {
	t.Helper()
	s.ready(t, true)
	s.updateIs(t, "after a cut", func(u rpc.UpdateStatus) bool {
		return u.Running.Number == number && u.Running.Slot == "A" && u.Phase == "failed" && strings.Contains(u.Why, why)
	})
	if _, by, _, err := s.Opened(within(t, time.Minute)); err != nil || !strings.Contains(by, "policy") {
		t.Errorf("the data disk was opened by %q, %v", by, err)
	}
	s.healed(t, "B")
}

// healed waits until the running release is in the other slot too.
func (s *stage) healed(t *testing.T, slot string) {
	t.Helper()
	eventually(t, 3*time.Minute, func(ctx context.Context) error {
		s.Verb(ctx, nil, "time", "release")
		if v := s.verb(t, "log", "show", "init"); !strings.Contains(v, "was copied to slot guardhouse "+slot) {
			return fmt.Errorf("slot %s is not made whole", slot)
		}
		return nil
	})
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
		u, err := s.Update(ctx)
		if err != nil {
			return err
		}
		if !want(u) {
			s.Verb(ctx, nil, "time", "release") // on a busy workstation a reboot may seem to be a jump of all time servers
			return fmt.Errorf("%s: %+v", when, u)
		}
		return nil
	})
}

const stickSize = 64 << 20

// fillStick makes the stick a FAT file system, without partitions, with one file.
func fillStick(t *testing.T, stick, name string, content []byte) {
	t.Helper()
	f, err := os.OpenFile(stick, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	plan, err := disk.PlanFAT(stickSize, []disk.FATFile{{Path: "/" + name, Size: int64(len(content))}}, time.Now().Unix())
	if err == nil {
		err = plan.Write(io.WriterAt(f), [][]byte{content})
	}
	if err != nil {
		t.Fatal(err)
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
	if _, err := f.WriteAt(bytes.Repeat([]byte{0xff}, 4096), slots(t, name)[slot].Start+(8<<20)); err != nil {
		t.Fatal(err)
	}
}
