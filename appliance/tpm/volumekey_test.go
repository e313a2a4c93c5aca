package tpm

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"sync"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
)

// authorities are two policy signing keys, made once: RSA keys are slow to make.
var authorities = sync.OnceValue(func() (keys [2]*rsa.PrivateKey) {
	for i := range keys {
		keys[i], _ = rsa.GenerateKey(rand.Reader, 2048)
	}
	return keys
})

func pemOf(t testing.TB, key *rsa.PublicKey) []byte {
	t.Helper()
	spki, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: spki})
}

// sign makes a policy for a boot with these registers.
func sign(t testing.TB, key *rsa.PrivateKey, release uint64, pcrs map[uint][]byte) SignedPolicy {
	t.Helper()
	p := SignedPolicy{Name: "test", Release: release, PCRs: map[uint]string{}, Key: AuthorityID(&key.PublicKey)}
	for pcr, v := range pcrs {
		p.PCRs[pcr] = hex.EncodeToString(v)
	}
	message, err := p.ToSign()
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(message)
	if p.Signature, err = rsa.SignPKCS1v15(nil, key, crypto.SHA256, sum[:]); err != nil {
		t.Fatal(err)
	}
	return p
}

func present(t testing.TB, tpm *TPM) map[uint][]byte {
	t.Helper()
	v, err := tpm.ReadPCRs(PolicyPCRs...)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

var (
	volumeKey = bytes.Repeat([]byte{7}, 32)
	ownerAuth = bytes.Repeat([]byte{9}, OwnerAuthSize)
)

// sealedTPM is a TPM that was taken into ownership at floor, with a slot for authority 0.
func sealedTPM(t *testing.T, dir string, floor uint64) (*TPM, func(), VolumeSlot) {
	t.Helper()
	tpm, stop := startTPM(t, dir)
	own(t, tpm, ownerAuth, floor)
	key := &authorities()[0].PublicKey
	slot, err := tpm.SealVolume(key, pemOf(t, key), volumeKey)
	if err != nil {
		t.Fatal(err)
	}
	return tpm, stop, slot
}

func own(t *testing.T, tpm *TPM, auth []byte, floor uint64) {
	t.Helper()
	// Twice each: a power cut between any two steps means that they are begun again.
	for range 2 {
		if err := tpm.Prepare(floor, 0); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		if err := tpm.Own(auth); err != nil {
			t.Fatal(err)
		}
	}
}

func mustUnseal(t *testing.T, tpm *TPM, slot VolumeSlot, policies ...SignedPolicy) {
	t.Helper()
	key, _, err := tpm.UnsealVolume(slot, policies)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(key, volumeKey) {
		t.Fatal("another key came out")
	}
}

func mustRefuse(t *testing.T, tpm *TPM, slot VolumeSlot, kind string, words []string, policies ...SignedPolicy) {
	t.Helper()
	key, _, err := tpm.UnsealVolume(slot, policies)
	if key != nil {
		t.Fatal("the key came out")
	}
	wantKind(t, err, kind, words...)
}

func TestVolumeOpensForEveryImageThatTheAuthoritySigned(t *testing.T) {
	dir := t.TempDir()
	tpm, stop, slot := sealedTPM(t, dir, 1)
	a := authorities()[0]
	first := sign(t, a, 1, present(t, tpm))
	mustUnseal(t, tpm, slot, first)
	// An updated image is one with other registers and a policy of its own; the slot stays as it is.
	extend(t, tpm, 11)
	mustRefuse(t, tpm, slot, KindNoPolicy, []string{"PCR 11", "image"}, first)
	mustUnseal(t, tpm, slot, first, sign(t, a, 2, present(t, tpm)))
	stop()
	again, _ := startTPM(t, dir) // a reboot: registers are zero, the TPM's objects stay
	mustUnseal(t, again, slot, first)
}

func TestRefusesABootThatNobodySigned(t *testing.T) {
	for _, pcr := range PolicyPCRs {
		tpm, _, slot := sealedTPM(t, t.TempDir(), 1)
		p := sign(t, authorities()[0], 1, present(t, tpm))
		extend(t, tpm, uint32(pcr))
		mustRefuse(t, tpm, slot, KindNoPolicy, []string{pcrMeaning[pcr]}, p)
		// Our own comparison is only an explanation: the TPM itself refuses.
		lying := p
		lying.PCRs = map[uint]string{}
		for n, v := range present(t, tpm) {
			lying.PCRs[n] = hex.EncodeToString(v)
		}
		mustRefuse(t, tpm, slot, KindNoPolicy, []string{"does not verify"}, lying)
	}
}

func TestRefusesAPolicyOfAnotherAuthority(t *testing.T) {
	tpm, _, slot := sealedTPM(t, t.TempDir(), 1)
	foreign := sign(t, authorities()[1], 1, present(t, tpm))
	mustRefuse(t, tpm, slot, KindNoPolicy, []string{"another key"}, foreign)
	foreign.Key = AuthorityID(&authorities()[0].PublicKey)
	mustRefuse(t, tpm, slot, KindNoPolicy, []string{"does not verify"}, foreign)
	mustRefuse(t, tpm, slot, KindNoPolicy, []string{"no signed policy"})
	// A slot that names the other authority is not the object that was sealed.
	moved := slot
	moved.Authority = pemOf(t, &authorities()[1].PublicKey)
	mustRefuse(t, tpm, moved, KindNoPolicy, nil, sign(t, authorities()[1], 1, present(t, tpm)))
}

func TestOlderImageCannotUnsealAfterTheFloorRose(t *testing.T) {
	dir := t.TempDir()
	tpm, stop, slot := sealedTPM(t, dir, 3)
	a := authorities()[0]
	three, four := sign(t, a, 3, present(t, tpm)), sign(t, a, 4, present(t, tpm))
	mustUnseal(t, tpm, slot, three)
	if err := tpm.RaiseFloor(ownerAuth, 4); err != nil {
		t.Fatal(err)
	}
	mustRefuse(t, tpm, slot, KindBelowFloor, []string{"release 3", "floor is 4"}, three)
	mustUnseal(t, tpm, slot, four)
	if err := tpm.RaiseFloor(ownerAuth, 2); err != nil { // lower: changes nothing
		t.Fatal(err)
	}
	stop()
	again, _ := startTPM(t, dir)
	mustRefuse(t, again, slot, KindBelowFloor, nil, three)
}

// Whoever boots this machine with another system may use its TPM, but does not know the owner's authorisation.
func TestForeignSystemCannotLowerTheFloor(t *testing.T) {
	dir := t.TempDir()
	tpm, _, slot := sealedTPM(t, dir, 5)
	old := sign(t, authorities()[0], 4, present(t, tpm))
	for name, try := range map[string]func() error{
		"write": func() error { return tpm.RaiseFloor(bytes.Repeat([]byte{1}, OwnerAuthSize), 9) },
		"empty": func() error { return tpm.RaiseFloor(nil, 9) },
		"remove": func() error {
			return tpm.removeIndexes(mustRoot(t, tpm), nil)
		},
		"by its own (empty) authorisation": func() error {
			name, _ := tpm2.NVName(floorPublic(true))
			_, err := tpm2.NVWrite{AuthHandle: tpm2.AuthHandle{Handle: FloorIndex, Name: *name, Auth: tpm2.PasswordAuth(nil)},
				NVIndex: tpm2.NamedHandle{Handle: FloorIndex, Name: *name}, Data: tpm2.TPM2BMaxNVBuffer{Buffer: make([]byte, 8)}}.Execute(tpm.t)
			return err
		},
		"own again": func() error { return tpm.Prepare(1, 0) },
		"clear": func() error {
			_, err := tpm2.Clear{AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHLockout, Auth: tpm2.PasswordAuth(nil)}}.Execute(tpm.t)
			return err
		},
	} {
		if try() == nil {
			t.Errorf("%s: worked without the owner's authorisation", name)
		}
	}
	if floor, err := tpm.Floor(); err != nil || floor != 5 {
		t.Fatalf("floor is %d, %v", floor, err)
	}
	mustRefuse(t, tpm, slot, KindBelowFloor, nil, old)
}

func TestSetsUpTwiceOnOneTPM(t *testing.T) {
	tpm, _, first := sealedTPM(t, t.TempDir(), 7)
	for range 2 { // again after a power cut
		if err := tpm.GiveBack(ownerAuth); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := tpm.Floor(); !errors.Is(err, ErrNoFloor) {
		t.Fatalf("the floor is still there: %v", err)
	}
	p := sign(t, authorities()[0], 2, present(t, tpm))
	mustRefuse(t, tpm, first, KindOtherTPM, nil, p)
	own(t, tpm, bytes.Repeat([]byte{3}, OwnerAuthSize), 2)
	if floor, err := tpm.Floor(); err != nil || floor != 2 {
		t.Fatalf("floor is %d, %v: a counter would have gone on from 7", floor, err)
	}
	key := &authorities()[0].PublicKey
	slot, err := tpm.SealVolume(key, pemOf(t, key), volumeKey)
	if err != nil {
		t.Fatal(err)
	}
	mustUnseal(t, tpm, slot, p)
}

func TestAnotherOrClearedTPMSaysSo(t *testing.T) {
	tpm, _, slot := sealedTPM(t, t.TempDir(), 1)
	p := sign(t, authorities()[0], 1, present(t, tpm))
	other, _ := startTPM(t, t.TempDir())
	mustRefuse(t, other, slot, KindOtherTPM, []string{"recovery"}, p)
	own(t, other, ownerAuth, 1)
	mustRefuse(t, other, slot, KindOtherTPM, []string{"recovery"}, p)
	_, err := tpm2.Clear{AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHPlatform, Auth: tpm2.PasswordAuth(nil)}}.Execute(tpm.t)
	if err != nil {
		t.Fatal(err)
	}
	mustRefuse(t, tpm, slot, KindOtherTPM, []string{"cleared"}, p)
}

func TestKeyIsOutOfReachOnceTheRegistersAreCapped(t *testing.T) {
	tpm, _, slot := sealedTPM(t, t.TempDir(), 1)
	p := sign(t, authorities()[0], 1, present(t, tpm))
	mustUnseal(t, tpm, slot, p)
	// The proof itself can fail: before the registers are capped it does.
	wantKind(t, tpm.ProveCapped(slot, p), KindStillOpen)
	if err := tpm.Cap(slot, p); err != nil {
		t.Fatal(err)
	}
	mustRefuse(t, tpm, slot, KindNoPolicy, []string{"PCR 11"}, p)
	if want := Capped([32]byte{}); !bytes.Equal(present(t, tpm)[11], want[:]) {
		t.Error("the register holds something else than what is predicted for an open volume")
	}
}

func mustRoot(t *testing.T, tpm *TPM) *root {
	t.Helper()
	r, err := tpm.storageRoot()
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestGenerationIsTheOwnersAlone(t *testing.T) {
	tpm, _, _ := sealedTPM(t, t.TempDir(), 1)
	if g, err := tpm.Generation(); err != nil || g != 0 {
		t.Fatal(g, err)
	}
	if err := tpm.SetGeneration(ownerAuth, 5); err != nil {
		t.Fatal(err)
	}
	if tpm.SetGeneration(nil, 4) == nil {
		t.Error("set back without the owner's authorisation")
	}
	if g, err := tpm.Generation(); err != nil || g != 5 {
		t.Error(g, err)
	}
}

func TestTimeFloorIsTheOwnersAlone(t *testing.T) {
	tpm, _, _ := sealedTPM(t, t.TempDir(), 1)
	if at, err := tpm.TimeFloor(); err != nil || !at.IsZero() {
		t.Fatal(at, err)
	}
	first := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	for _, at := range []time.Time{first, first.Add(24 * time.Hour), first.Add(time.Hour)} { // lowered by administrators
		if err := tpm.SetTimeFloor(ownerAuth, at); err != nil {
			t.Fatal(err)
		}
		if got, err := tpm.TimeFloor(); err != nil || !got.Equal(at) {
			t.Errorf("%s instead of %s, %v", got, at, err)
		}
	}
	if tpm.SetTimeFloor(nil, first) == nil {
		t.Error("written without the owner's authorisation")
	}
}

// counting counts the commands that reach the TPM.
type counting struct {
	transport.TPMCloser
	n     int
	codes []tpm2.TPMCC
}

func (c *counting) Send(b []byte) ([]byte, error) {
	c.n++
	c.codes = append(c.codes, tpm2.TPMCC(binary.BigEndian.Uint32(b[6:])))
	return c.TPMCloser.Send(b)
}

func TestUnsealsInTwelveCommandsAndNeverShowsTheKeyOnTheBus(t *testing.T) {
	tpm, _, slot := sealedTPM(t, t.TempDir(), 1)
	p := sign(t, authorities()[0], 1, present(t, tpm))
	c := &counting{TPMCloser: tpm.t}
	probe := &probing{TPMCloser: c}
	tpm.t = probe
	mustUnseal(t, tpm, slot, p)
	if c.n > 12 {
		t.Errorf("%d commands, we promise 12: %x", c.n, c.codes)
	}
	if bytes.Contains(probe.seen, volumeKey) {
		t.Error("a probe on the bus sees the volume key")
	}
	if err := tpm.RaiseFloor(ownerAuth, 2); err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(probe.seen, ownerAuth) {
		t.Error("a probe on the bus sees the owner's authorisation")
	}
}

// measuring extends PCR 10 between the policy's last command and the unsealing, as the kernel does while it loads modules.
type measuring struct {
	transport.TPMCloser
	left int
}

func (m *measuring) Send(b []byte) ([]byte, error) {
	r, err := m.TPMCloser.Send(b)
	if tpm2.TPMCC(binary.BigEndian.Uint32(b[6:])) == tpm2.TPMCCPolicyAuthorize && m.left > 0 {
		m.left--
		_, xerr := tpm2.PCRExtend{PCRHandle: tpm2.AuthHandle{Handle: 10, Auth: tpm2.PasswordAuth(nil)},
			Digests: tpm2.TPMLDigestValues{Digests: []tpm2.TPMTHA{{HashAlg: tpm2.TPMAlgSHA256, Digest: make([]byte, 32)}}}}.Execute(m.TPMCloser)
		err = errors.Join(err, xerr)
	}
	return r, err
}

func TestOpensWhileTheKernelMeasuresSomethingElse(t *testing.T) {
	tpm, _, slot := sealedTPM(t, t.TempDir(), 1)
	p := sign(t, authorities()[0], 1, present(t, tpm))
	m := &measuring{TPMCloser: tpm.t, left: 7}
	tpm.t = m
	mustUnseal(t, tpm, slot, p)
	if m.left != 0 {
		t.Error("nothing was measured meanwhile: this test shows nothing")
	}
	// Nor is such a refusal taken for the proof that the key is out of reach.
	m.left = 3
	wantKind(t, tpm.ProveCapped(slot, p), KindStillOpen)
}

// probing keeps every byte between us and the TPM.
type probing struct {
	transport.TPMCloser
	seen []byte
}

func (p *probing) Send(b []byte) ([]byte, error) {
	r, err := p.TPMCloser.Send(b)
	p.seen = append(append(p.seen, b...), r...)
	return r, err
}

func zeroBoot() map[uint][]byte {
	v := map[uint][]byte{}
	for _, pcr := range PolicyPCRs {
		v[pcr] = make([]byte, 32)
	}
	return v
}

func policyFile(t testing.TB) PolicyFile {
	a := authorities()[0]
	return PolicyFile{Version: 1, Keys: []string{string(pemOf(t, &a.PublicKey))}, Policies: []SignedPolicy{sign(t, a, 1, zeroBoot())}}
}

func TestRefusesAPolicyFileThatIsNotWhatItsKeysSigned(t *testing.T) {
	good := policyFile(t)
	encode := func(f PolicyFile) []byte {
		b, err := json.Marshal(f)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	if _, err := ParsePolicyFile(encode(good)); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(f *PolicyFile, p *SignedPolicy){
		"other version":     func(f *PolicyFile, _ *SignedPolicy) { f.Version = 2 },
		"release raised":    func(_ *PolicyFile, p *SignedPolicy) { p.Release++ },
		"register changed":  func(_ *PolicyFile, p *SignedPolicy) { p.PCRs[7] = p.PCRs[7][:62] + "01" },
		"register missing":  func(_ *PolicyFile, p *SignedPolicy) { delete(p.PCRs, 12) },
		"register added":    func(_ *PolicyFile, p *SignedPolicy) { p.PCRs[0] = p.PCRs[7] },
		"register too long": func(_ *PolicyFile, p *SignedPolicy) { p.PCRs[7] += "00" },
		"key unknown":       func(f *PolicyFile, _ *SignedPolicy) { f.Keys = nil },
		"key twice in PEM":  func(f *PolicyFile, _ *SignedPolicy) { f.Keys[0] += f.Keys[0] },
	} {
		f := policyFile(t)
		change(&f, &f.Policies[0])
		if _, err := ParsePolicyFile(encode(f)); !errors.Is(err, ErrPolicyFile) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := ParsePolicyFile(append(encode(good), "{}"...)); !errors.Is(err, ErrPolicyFile) {
		t.Errorf("something after its end: %v", err)
	}
	if _, err := ParsePolicyFile(bytes.Repeat([]byte{' '}, MaxPolicyFile+1)); !errors.Is(err, ErrPolicyFile) {
		t.Errorf("too large: %v", err)
	}
}

func FuzzParsePolicyFile(f *testing.F) {
	b, _ := json.Marshal(policyFile(f))
	f.Add(b)
	f.Add([]byte(`{"version":1}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		file, err := ParsePolicyFile(b)
		if err != nil {
			return
		}
		for _, p := range file.Policies {
			if _, err := p.ToSign(); err != nil {
				t.Errorf("accepted a policy that has no digest: %v", err)
			}
		}
	})
}

func FuzzParseVolumeSlot(f *testing.F) {
	b, _ := VolumeSlot{Version: 1, Root: []byte{1}, Public: []byte{2}, Private: []byte{3}}.Encode()
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		if s, err := ParseVolumeSlot(b); err == nil && s.Version != 1 {
			t.Error("accepted an unknown version")
		}
	})
}

func TestRefusedKeysLeaveNoSessionInTheTPM(t *testing.T) {
	tpm, _, slot := sealedTPM(t, t.TempDir(), 1)
	p := sign(t, authorities()[0], 1, present(t, tpm))
	extend(t, tpm, 11)
	for i := range 10 { // a TPM without a resource manager has room for three
		if err := tpm.ProveCapped(slot, p); err != nil {
			t.Fatalf("after %d refusals: %v", i, err)
		}
	}
	mustUnseal(t, tpm, slot, sign(t, authorities()[0], 1, present(t, tpm)))
}

// One in nine random values holds a zero byte, which go-tpm's sessions can't prove.
func TestEveryOwnersAuthorisationIsAcceptedAgain(t *testing.T) {
	tpm, _ := startTPM(t, t.TempDir())
	zeros := bytes.NewReader(append(make([]byte, 100), bytes.Repeat([]byte{0, 7}, OwnerAuthSize)...))
	for i := range 40 {
		random := io.Reader(rand.Reader)
		if i == 0 {
			random = zeros
		}
		auth, err := NewOwnerAuth(random)
		if err != nil {
			t.Fatal(err)
		}
		for _, err := range []error{tpm.Prepare(1, 3), tpm.Own(auth), tpm.SetGeneration(auth, 4), tpm.GiveBack(auth)} {
			if err != nil {
				t.Fatalf("value %d: %v", i, err)
			}
		}
	}
	if err := tpm.Prepare(1, 0); err != nil {
		t.Fatal(err)
	}
	if tpm.Own(append(bytes.Repeat([]byte{9}, OwnerAuthSize-1), 0)) == nil {
		t.Error("took one that it would never accept again")
	}
}
