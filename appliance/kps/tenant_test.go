package kps

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"strings"
	"testing"
)

func TestGrantLetsANewGuardianOpen(t *testing.T) {
	owner := testOwner(t)
	p, tk, err := New(owner, nil, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p, err = p.Grant(t.Context(), owner, testGuardian(t, guardianSigning, guardianEncryption), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	got, err := whole(t, p.Bytes())
	if err != nil || !bytes.Equal(got.Key, tk) {
		t.Fatalf("%v", err)
	}
	if _, err := p.Grant(t.Context(), owner, testGuardian(t, guardianSigning, guardianEncryption), rand.Reader); err == nil {
		t.Error("the same guardian was granted twice")
	}
}

func TestRevokeRemovesAGuardianAndAllBelow(t *testing.T) {
	p, tk := testProtector(t)
	q := resealed(t, p, tk, func(w []Wrapping) {
		s, err := signRSA(testKeys()[guardianSigning], rand.Reader, w[2].SigningCertificate.Raw)
		if err != nil {
			t.Fatal(err)
		}
		w[2].ParentID, w[2].SigningCertificateSignature = 2, s
	})
	owner := testOwnerOf(t, q)
	left, err := q.Revoke(t.Context(), owner, 2, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if len(left.Wrappings) != 1 || left.Verify() != nil {
		t.Errorf("wrappings left: %d, %v", len(left.Wrappings), left.Verify())
	}
	if got, err := left.Open(t.Context(), owner, rand.Reader); err != nil || !bytes.Equal(got, tk) {
		t.Errorf("the owner lost its key: %v", err)
	}
	for _, id := range []uint32{1, 9} {
		if _, err := q.Revoke(t.Context(), owner, id, rand.Reader); err == nil {
			t.Errorf("wrapping %d was revoked", id)
		}
	}
}

func TestStrangersCannotEditAProtector(t *testing.T) {
	p, _ := testProtector(t)
	k := testKeys()
	thief := Owner{SigningCertificate: certify(t, "thief", k[otherSigning]), EncryptionCertificate: certify(t, "thief", k[otherEncryption]),
		Signer: k[otherSigning], Decrypter: MemoryKey{k[otherEncryption]}}
	if _, err := p.Open(t.Context(), thief, rand.Reader); err == nil {
		t.Error("opened")
	}
	if _, err := p.Grant(t.Context(), thief, testGuardian(t, otherSigning, otherEncryption), rand.Reader); err == nil {
		t.Error("granted")
	}
	half := testOwnerOf(t, p)
	half.Signer = k[otherSigning]
	if _, err := p.Revoke(t.Context(), half, 2, rand.Reader); err == nil {
		t.Error("revoked without the owner's signing key")
	}
}

func TestNewRefusesAGuardianWhoseKeysDoNotBelongTogether(t *testing.T) {
	g := testGuardian(t, guardianSigning, guardianEncryption)
	g.EncryptionCertificate = certify(t, "impostor", testKeys()[otherEncryption])
	if _, _, err := New(testOwner(t), []Guardian{g}, rand.Reader); err == nil {
		t.Error("accepted")
	}
	if _, _, err := New(testOwner(t), make([]Guardian, MaxWrappings), rand.Reader); err == nil {
		t.Error("too many guardians accepted")
	}
}

func TestSummaryNamesOwnerAndKeysAndNoSecret(t *testing.T) {
	p, tk := testProtector(t)
	s := p.Summary()
	out, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	if len(s.Wrappings) != 3 || !s.Wrappings[0].Owner || s.Problem != "" || s.SignedBy != 1 || s.Wrappings[1].EncryptionKey != KeyID(p.Wrappings[1].EncryptionCertificate) {
		t.Errorf("%s", out)
	}
	if bytes.Contains(out, tk) {
		t.Error("the summary holds the key")
	}
	p.GuardianID = 2
	if s := p.Summary(); !strings.Contains(s.Problem, "GuardianSignature") {
		t.Errorf("problem %q", s.Problem)
	}
}
