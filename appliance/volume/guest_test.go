package volume

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport/linuxtpm"

	"guardhouse/appliance/disk"
	"guardhouse/appliance/tpm"
	"guardhouse/board/lab/pid1"
)

// TestMain makes the test binary able to be PID 1 of a guest with the image's device mapper.
func TestMain(m *testing.M) { pid1.Main(m, "-test.run=Volume") }

const tpmDevice = "/dev/tpmrm0"

// authorities sign the boots of these tests.
var authorities = sync.OnceValue(func() (keys [2]*rsa.PrivateKey) {
	for i := range keys {
		keys[i], _ = rsa.GenerateKey(rand.Reader, 2048)
	}
	return keys
})

// guest is a machine with a TPM and one small disk. A boot of it is what these tests sign: the registers as they are, which the cap of
// each opening changes for the next.
type guest struct {
	*testing.T
	m *Machine
}

func newGuest(t *testing.T) *guest {
	t.Helper()
	if os.Getpid() != 1 {
		t.Skip("needs a TPM and the device mapper of the image's kernel: TestSealedVolumeOnTheImagesKernel of cmd/init runs this there")
	}
	chip, err := tpm.Open(tpmDevice)
	if err != nil {
		t.Fatal(err)
	}
	run := func(ctx context.Context, program string, args ...string) ([]byte, error) {
		return exec.CommandContext(ctx, program, args...).CombinedOutput()
	}
	g := &guest{t, &Machine{TPM: chip, Finder: &disk.Finder{Sys: "/sys", Dev: "/dev", Run: run}, Target: "/tmp/data", OwnerDir: "/tmp/data/init", Log: t.Logf}}
	g.wipe()
	t.Cleanup(func() {
		disk.Unmount(g.m.Target)
		disk.Close()
		chip.Close()
	})
	return g
}

// wipe makes disk and TPM new.
func (g *guest) wipe() {
	g.Helper()
	g.clearTPM()
	if d := g.disk(); d.Content != disk.Blank {
		if err := disk.Zeroise(d); err != nil {
			g.Fatal(err)
		}
	}
}

// clearTPM is what the firmware's setup does: all that was sealed is lost, and the TPM is another one from then on.
func (g *guest) clearTPM() {
	g.Helper()
	raw, err := linuxtpm.Open(tpmDevice)
	if err != nil {
		g.Fatal(err)
	}
	defer raw.Close()
	r, err := tpm2.GetCapability{Capability: tpm2.TPMCapTPMProperties, Property: uint32(tpm2.TPMPTPermanent), PropertyCount: 1}.Execute(raw)
	if err != nil {
		g.Fatal(err)
	}
	properties, err := r.CapabilityData.Data.TPMProperties()
	if err != nil || len(properties.TPMProperty) == 0 {
		g.Fatal(err)
	}
	var auth []byte
	if properties.TPMProperty[0].Value&(1<<2) != 0 { // a wrong try would lock this hierarchy
		auth = lastOwner
	}
	if _, err := (tpm2.Clear{AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHLockout, Auth: tpm2.PasswordAuth(auth)}}).Execute(raw); err != nil {
		g.Fatalf("clear the TPM: %v", err)
	}
}

// lastOwner is the authorisation of the volume that was open last: what the platform's own authorisation is for firmware.
var lastOwner []byte

func (g *guest) disk() disk.Disk {
	g.Helper()
	list, err := g.m.Finder.List()
	if err != nil || len(list) != 1 {
		g.Fatalf("%+v %v", list, err)
	}
	return list[0]
}

// signed is a boot of the present registers; the first key is the image's own.
func (g *guest) signed(release uint64, keys ...*rsa.PrivateKey) Boot {
	g.Helper()
	now, err := g.m.TPM.ReadPCRs(tpm.PolicyPCRs...)
	if err != nil {
		g.Fatal(err)
	}
	var boot Boot
	for i, key := range keys {
		p := tpm.SignedPolicy{Name: fmt.Sprintf("guest %d", i), Release: release, PCRs: map[uint]string{}, Key: tpm.AuthorityID(&key.PublicKey)}
		for pcr, v := range now {
			p.PCRs[pcr] = hex.EncodeToString(v)
		}
		message, err := p.ToSign()
		if err != nil {
			g.Fatal(err)
		}
		sum := sha256.Sum256(message)
		if p.Signature, err = rsa.SignPKCS1v15(nil, key, crypto.SHA256, sum[:]); err != nil {
			g.Fatal(err)
		}
		boot.Policies = append(boot.Policies, p)
	}
	if boot.Authority, err = tpm.AuthorityPEM(&keys[0].PublicKey); err != nil {
		g.Fatal(err)
	}
	return boot
}

func (g *guest) boot() Boot { g.Helper(); return g.signed(1, authorities()[0]) }

// made is a new volume that holds a note, closed.
func (g *guest) made() {
	g.Helper()
	v, err := g.m.Make(g.Context(), g.disk(), g.boot())
	if err != nil {
		g.Fatal(err)
	}
	g.put(v)
}

// put leaves a note and closes.
func (g *guest) put(v *Volume) {
	g.Helper()
	var err error
	if lastOwner, err = v.Owner(); err != nil {
		g.Fatal(err)
	}
	if err := disk.ReplaceFile(g.m.Target+"/note", []byte("kept")); err != nil {
		g.Fatal(err)
	}
	g.shut(v)
}

func (g *guest) shut(v *Volume) {
	g.Helper()
	if err := v.Close(); err != nil {
		g.Fatal(err)
	}
}

// opens opens with the TPM, looks for the note and closes.
func (g *guest) opens(boot Boot) {
	g.Helper()
	v, err := g.m.Open(g.Context(), g.disk(), boot)
	if err != nil {
		g.Fatal(err)
	}
	g.noted(v)
}

func (g *guest) noted(v *Volume) {
	g.Helper()
	if b, err := os.ReadFile(g.m.Target + "/note"); err != nil || string(b) != "kept" {
		g.Fatalf("what was kept is %q, %v", b, err)
	}
	g.shut(v)
}

// refuses wants Open to fail with a kind.
func (g *guest) refuses(boot Boot, kind string) {
	g.Helper()
	v, err := g.m.Open(g.Context(), g.disk(), boot)
	if err == nil {
		g.shut(v)
		g.Fatalf("opened; want %s", kind)
	}
	g.kind(err, kind)
}

func (g *guest) kind(err error, kind string) {
	g.Helper()
	var de *disk.Error
	var te *tpm.Error
	switch {
	case errors.As(err, &te) && te.Kind == kind, errors.As(err, &de) && de.Kind == kind:
	default:
		g.Errorf("want %s, got %v", kind, err)
	}
}

var errCut = errors.New("the power fails here")

// cutting has the power fail before a step, and tells whether it was reached.
func (g *guest) cutting(step string, do func() error) (reached bool) {
	g.Helper()
	g.m.cut = func(s string) error {
		if s != step {
			return nil
		}
		reached = true
		return errCut
	}
	defer func() { g.m.cut = nil }()
	if err := do(); reached != errors.Is(err, errCut) || !reached && err != nil {
		g.Fatalf("cut before %s (reached: %v): %v", step, reached, err)
	}
	return reached
}

// head is what lies before the encrypted part.
func (g *guest) head(put []byte) []byte {
	g.Helper()
	f, err := os.OpenFile(g.disk().Path, os.O_RDWR, 0)
	if err != nil {
		g.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 1<<20)
	if put != nil {
		_, err = f.WriteAt(put, 0)
		err = errors.Join(err, f.Sync())
	} else {
		_, err = f.ReadAt(b, 0)
	}
	if err != nil {
		g.Fatal(err)
	}
	return b
}

func TestVolumeOpensForSignedBootsAlone(t *testing.T) {
	g := newGuest(t)
	g.made()
	boot := g.boot()
	start := time.Now()
	v, err := g.m.Open(t.Context(), g.disk(), boot)
	if err != nil {
		t.Fatal(err)
	}
	fresh, err := tpm.Open(tpmDevice)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("opened and capped in %v", time.Since(start).Round(time.Millisecond))
	g.noted(v)
	g.refuses(boot, tpm.KindNoPolicy) // capped
	old := g.m.TPM
	g.m.TPM = fresh
	if v, err = g.m.Open(t.Context(), g.disk(), g.boot()); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d TPM commands to the open disk, of them 1 by the test; %d in all", v.Commands, fresh.Commands())
	if v.Commands-1 > 15 {
		t.Errorf("%d TPM commands to the open disk, we promise 15", v.Commands-1)
	}
	g.shut(v)
	g.m.TPM = old
	fresh.Close()
	g.refuses(Boot{Authority: boot.Authority}, tpm.KindNoPolicy)
	g.refuses(g.signed(1, authorities()[1]), tpm.KindNoPolicy)
	g.opens(g.boot())
}

func TestVolumeOfAnotherHeaderIsRefusedBeforeItIsMounted(t *testing.T) {
	g := newGuest(t)
	g.made()
	good := g.head(nil)
	f, err := os.OpenFile(g.disk().Path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h, _, err := disk.ReadHeader(f)
	if err != nil {
		t.Fatal(err)
	}
	h.Generation++
	if err := disk.WriteHeader(f, h, bytes.Repeat([]byte{1}, disk.KeySize)); err != nil {
		t.Fatal(err)
	}
	g.refuses(g.boot(), disk.KindUnproved)
	g.head(good)
	g.opens(g.boot())
}

func TestVolumeThatIsAnOlderCopyIsRefused(t *testing.T) {
	g := newGuest(t)
	g.made()
	older := g.head(nil)
	g.opens(g.boot())
	last := g.head(nil)
	g.opens(g.boot())
	newest := g.head(nil)
	g.head(older)
	g.refuses(g.boot(), KindRolledBack)
	g.head(newest)
	g.opens(g.boot())
	// A copy of the boot before is told; only what was copied in this one is not.
	g.head(last)
	g.refuses(g.boot(), KindRolledBack)
}

func TestVolumeOpensAfterAPowerCutAtAnyStepOfMaking(t *testing.T) {
	g := newGuest(t)
	for _, step := range []string{"format", "create", "seal", "header", "own", "cap"} {
		if !g.cutting(step, func() error { _, err := g.m.Make(t.Context(), g.disk(), g.boot()); return err }) {
			t.Fatalf("no step %s", step)
		}
		switch d := g.disk(); d.Content {
		case disk.Blank:
			t.Logf("cut before %s: blank", step)
			g.made()
		case disk.Ours:
			t.Logf("cut before %s: the volume", step)
			v, err := g.m.Open(t.Context(), d, g.boot())
			if err != nil {
				t.Fatalf("cut before %s: %v", step, err)
			}
			g.put(v)
		default:
			t.Fatalf("cut before %s: the disk holds %s", step, d.Holds)
		}
		g.opens(g.boot())
		g.wipe()
	}
}

func TestVolumeOpensAfterAPowerCutAtAnyStepOfOpening(t *testing.T) {
	g := newGuest(t)
	g.made()
	for _, step := range []string{"header", "own", "generation", "generation", "follow"} {
		boot := g.boot()
		if step == "follow" {
			boot = g.signed(1, authorities()[1], authorities()[0])
		}
		if !g.cutting(step, func() error { _, err := g.m.Open(t.Context(), g.disk(), boot); return err }) {
			t.Fatalf("no step %s", step)
		}
		g.opens(g.boot())
	}
}

func TestVolumeFollowsItsBuilderToANewKey(t *testing.T) {
	g := newGuest(t)
	g.made()
	old, new := authorities()[0], authorities()[1]
	g.opens(g.signed(2, new, old)) // on trial: the release before, signed by the old key alone, still opens
	g.opens(g.signed(1, old))
	v, err := g.m.Open(t.Context(), g.disk(), g.signed(2, new, old))
	if err != nil {
		t.Fatal(err)
	}
	if err := g.m.RaiseFloor(2); err != nil { // marked good
		t.Fatal(err)
	}
	g.noted(v)
	g.opens(g.signed(2, new, old)) // signed by both: the volume is handed over
	g.refuses(g.signed(2, old), tpm.KindNoPolicy)
	g.opens(g.signed(2, new))
	g.refuses(g.signed(2, old, old), tpm.KindNoPolicy)
}
