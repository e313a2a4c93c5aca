package protect

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"guardhouse/appliance/kps"
	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
)

// TestOnlyABadCiphertextIsBlamedOnTheProtector runs over the real socket: what
// the HSM process says of a ciphertext and what it says of a key must not mix.
func TestOnlyABadCiphertextIsBlamedOnTheProtector(t *testing.T) {
	var answer error
	path := filepath.Join(t.TempDir(), "s")
	l, err := rpc.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	key := testKeys()[encryption]
	s := rpc.NewServer(rpc.UIDs{rpc.HGS: uint32(os.Getuid())})
	rpc.Handle(s, rpc.HSMDecrypt, func(_ context.Context, _ rpc.Caller, r rpc.HSMDecryptRequest) (rpc.HSMDecryptReply, error) {
		if answer != nil {
			return rpc.HSMDecryptReply{}, answer
		}
		plain, err := key.Decrypt(nil, r.Ciphertext, &rsa.OAEPOptions{Hash: crypto.Hash(r.Hash), MGFHash: crypto.Hash(r.MGF)})
		return rpc.HSMDecryptReply{Plaintext: plain}, err
	}, rpc.HGS)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Serve(ctx, l) }()
	t.Cleanup(func() { cancel(); <-done })

	d := NewHSMDecrypter(rpc.NewClient(path), policy.Key{Ref: "r"})
	sealed, err := rsa.EncryptOAEP(sha256.New(), rand.Reader, &key.PublicKey, []byte("secret"), nil)
	if err != nil {
		t.Fatal(err)
	}
	padding := kps.OAEP{Hash: crypto.SHA256, MGF: crypto.SHA256}
	if got, err := d.Decrypt(t.Context(), sealed, padding); err != nil || string(got) != "secret" {
		t.Fatalf("%q, %v", got, err)
	}
	for _, c := range []struct {
		answer error
		bad    bool
	}{
		{rpc.ErrRefused.With(rpc.DecryptRefused), true},
		{rpc.ErrRefused.With("no such key"), false},
		{rpc.ErrUnavailable, false},
		{errors.New("broken"), false},
	} {
		answer = c.answer
		if _, err := d.Decrypt(t.Context(), sealed, padding); err == nil || errors.Is(err, kps.ErrDecryption) != c.bad {
			t.Errorf("%v became %v", c.answer, err)
		}
	}
}
