package tpm

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/sha256"
	"errors"
	"testing"
)

func TestSigningKeyComesBackInItsTPMAndInNoOther(t *testing.T) {
	dir := t.TempDir()
	tpm, stop := startTPM(t, dir)
	key, err := tpm.NewSigningKey()
	if err != nil {
		t.Fatal(err)
	}
	blob, err := key.Encode()
	if err != nil || len(blob) > MaxSigningKey {
		t.Fatalf("%d bytes, %v", len(blob), err)
	}
	digest := sha256.Sum256([]byte("text"))
	for range 5 { // swtpm has three slots: nothing may stay loaded
		sig, err := key.Sign(nil, digest[:], crypto.SHA256)
		if err != nil || !ecdsa.VerifyASN1(key.Public().(*ecdsa.PublicKey), digest[:], sig) {
			t.Fatal(err)
		}
	}
	if _, err := key.Sign(nil, digest[:20], crypto.SHA1); err == nil {
		t.Error("SHA-1 was signed")
	}
	stop()

	tpm, _ = startTPM(t, dir)
	again, err := tpm.LoadSigningKey(blob)
	if err != nil || !again.pub.Equal(key.Public()) {
		t.Fatalf("after a restart: %v", err)
	}
	// A sealed volume makes the storage root key persistent and gives the owner an authorisation.
	if err := errors.Join(tpm.Prepare(1, 0), tpm.Own(ownerAuth)); err != nil {
		t.Fatal(err)
	}
	if sig, err := again.Sign(nil, digest[:], crypto.SHA256); err != nil || !ecdsa.VerifyASN1(again.pub, digest[:], sig) {
		t.Errorf("on an owned TPM: %v", err)
	}
	if _, err := tpm.NewSigningKey(); err != nil {
		t.Errorf("on an owned TPM: %v", err)
	}

	other, _ := startTPM(t, t.TempDir())
	_, err = other.LoadSigningKey(blob)
	wantKind(t, err, KindOtherTPM, "another TPM")
	for _, bad := range []string{"", "{}", string(blob[:len(blob)/2]), `{"version":2}`} {
		_, err := tpm.LoadSigningKey([]byte(bad))
		wantKind(t, err, KindDamaged)
	}
	k := *again
	k.blob.Private = append([]byte{}, k.blob.Private...)
	k.blob.Private[len(k.blob.Private)-1] ^= 1
	bad, _ := k.Encode()
	_, err = tpm.LoadSigningKey(bad)
	wantKind(t, err, KindDamaged, "does not take")
}
