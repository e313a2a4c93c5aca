package kps

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"encoding/base64"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"strings"
	"testing"
)

func TestServiceOpensWhatATenantMade(t *testing.T) {
	p, tk := testProtector(t)
	q, err := ParseProtector(p.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	if err := q.Verify(); err != nil {
		t.Fatal(err)
	}
	key, _ := service()
	got, err := q.OpenTransportKey(t.Context(), q.Wrapping(2), key, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got.Key, tk) {
		t.Error("the service got another key than the tenant made")
	}
}

// whole runs every step of a roll up to the transport key.
func whole(t testing.TB, raw []byte) (*TransportKey, error) {
	p, err := ParseProtector(raw)
	if err != nil {
		return nil, err
	}
	if err := p.Verify(); err != nil {
		return nil, err
	}
	w := p.Wrapping(2)
	if w == nil {
		return nil, refuse(CodeInvalidProtector, "no wrapping for this service")
	}
	key, _ := service()
	return p.OpenTransportKey(t.Context(), w, key, rand.Reader)
}

func TestEveryFlippedByteIsRefusedOrChangesNothing(t *testing.T) {
	p, tk := testProtector(t)
	raw := append([]byte(nil), p.Bytes()...)
	accepted := 0
	const step = 4 // every run takes another quarter of the bytes
	for i := mathrand.IntN(step); i < len(raw); i += step {
		old := raw[i]
		raw[i] ^= byte(1 << (i % 7))
		got, err := whole(t, raw)
		if err == nil {
			accepted++
			if !bytes.Equal(got.Key, tk) {
				t.Errorf("byte %d: accepted with another key", i)
			}
		} else if c := CodeOf(err); c != CodeInvalidProtector && c != CodeInvalidWrapping {
			t.Errorf("byte %d: code %q", i, c)
		}
		raw[i] = old
	}
	// Only text outside every signature and without meaning may change: the
	// version of the XML declaration, the case of hex digits and the like.
	if accepted > len(raw)/step/100 {
		t.Errorf("%d of %d flips were accepted", accepted, len(raw)/step)
	}
}

func TestRefusesMalformedProtectors(t *testing.T) {
	p, _ := testProtector(t)
	raw := p.Bytes()
	signing := between(t, raw, "<SigningCertificate>", "</SigningCertificate>")
	sha1Sig := "http://www.w3.org/2000/09/xmldsig#rsa-sha1"
	weak, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	weakCert := base64.StdEncoding.EncodeToString(certify(t, "weak", weak).Raw)
	var crowd strings.Builder
	one := "<Wrapping>" + between(t, raw, "<Wrapping>", "</Wrapping>") + "</Wrapping>"
	for range MaxWrappings + 1 {
		crowd.WriteString(one)
	}
	body := between(t, raw, "<Wrappings>", "</Wrappings>")
	for name, c := range map[string]struct {
		old, to string
		code    Code
	}{
		"other namespace":             {Namespace, ServiceNamespace, CodeInvalidProtector},
		"other root":                  {`<Protector xmlns="` + Namespace + `">`, `<Metadata xmlns="` + Namespace + `">`, CodeInvalidProtector},
		"document type":               {"<Protector", "<!DOCTYPE Protector><Protector", CodeInvalidProtector},
		"entity":                      {"<Id>1</Id>", "<Id>&one;</Id>", CodeInvalidProtector},
		"unknown attribute":           {`<Protector `, `<Protector Extra="1" `, CodeInvalidProtector},
		"unknown child":               {"<Wrappings>", "<Extra/><Wrappings>", CodeInvalidProtector},
		"unknown child of a wrapping": {"<Id>1</Id>", "<Id>1</Id><Extra/>", CodeInvalidWrapping},
		"unknown child of signature":  {"<SignatureValue>", "<Extra/><SignatureValue>", CodeInvalidWrapping},
		"children out of order":       {"<Id>1</Id>", "", CodeInvalidWrapping},
		"text between elements":       {"<Wrapping>", "x<Wrapping>", CodeInvalidProtector},
		"no wrapping":                 {body, "", CodeInvalidProtector},
		"too many wrappings":          {body, crowd.String(), CodeInvalidProtector},
		"id not a number":             {"<Id>1</Id>", "<Id>one</Id>", CodeInvalidWrapping},
		"id over 32 bits":             {"<Id>1</Id>", "<Id>4294967296</Id>", CodeInvalidWrapping},
		"negative id":                 {"<Id>1</Id>", "<Id>-1</Id>", CodeInvalidWrapping},
		"duplicate id":                {"<Id>3</Id>", "<Id>2</Id>", CodeInvalidWrapping},
		"dangling parent":             {`ParentWrappingId="1"`, `ParentWrappingId="9"`, CodeInvalidWrapping},
		"missing parent":              {` ParentWrappingId="1"`, ``, CodeInvalidWrapping},
		"no owner":                    {`ParentWrappingId="1"`, `ParentWrappingId="2"`, CodeInvalidWrapping},
		"certificate is not base64":   {signing, "!" + signing[1:], CodeInvalidWrapping},
		"certificate is not X.509":    {signing, "AQID", CodeInvalidWrapping},
		"certificate of a weak key":   {signing, weakCert, CodeInvalidWrapping},
		"certificate signed by none":  {signing, base64.StdEncoding.EncodeToString(certify(t, "x", testKeys()[hostKey]).Raw), CodeInvalidProtector},
		"dangling guardian":           {`WrappingId="1"><Signature Algorithm="` + RSASHA256 + `"><SignatureValue>` + base64.StdEncoding.EncodeToString(p.GuardianSignature.Value), `WrappingId="7"><Signature Algorithm="` + RSASHA256 + `"><SignatureValue>` + base64.StdEncoding.EncodeToString(p.GuardianSignature.Value), CodeInvalidProtector},
		"other guardian":              {`<GuardianSignature WrappingId="1"`, `<GuardianSignature WrappingId="2"`, CodeInvalidProtector},
		"SHA-1 signature":             {`Algorithm="` + RSASHA256, `Algorithm="` + sha1Sig, CodeInvalidProtector},
		"unknown key encryption":      {`Algorithm="` + RSAOAEP, `Algorithm="http://www.w3.org/2001/04/xmlenc#rsa-1_5`, CodeInvalidProtector},
		"unknown OAEP digest":         {`Algorithm="` + digestSHA256, `Algorithm="urn:md5`, CodeInvalidProtector},
		"unknown OAEP parameter":      {"<xenc11:MGF", `<Salt xmlns="urn:x"/><xenc11:MGF`, CodeInvalidWrapping},
		"unknown derivation":          {`Algorithm="` + ConcatKDF, `Algorithm="urn:kdf`, CodeInvalidProtector},
		"derivation pad bits":         {`AlgorithmID="00`, `AlgorithmID="04`, CodeInvalidProtector},
		"unknown MAC":                 {`Algorithm="` + HMACSHA256, `Algorithm="urn:mac`, CodeInvalidProtector},
		"offline not a number":        {`<Protector `, `<Protector MaxOfflineUnwraps="many" `, CodeInvalidProtector},
		"empty signature value":       {base64.StdEncoding.EncodeToString(p.TransportKeyMAC.Value), "", CodeInvalidProtector},
		"truncated MAC":               {base64.StdEncoding.EncodeToString(p.TransportKeyMAC.Value), base64.StdEncoding.EncodeToString(p.TransportKeyMAC.Value[:16]), CodeInvalidProtector},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := whole(t, edited(t, raw, c.old, c.to))
			if err == nil {
				t.Fatal("accepted")
			}
			if got := CodeOf(err); got != c.code {
				t.Errorf("code %q, want %q (%v)", got, c.code, err)
			}
		})
	}
}

func TestRefusalNamesTheUnknownAlgorithmVerbatim(t *testing.T) {
	p, _ := testProtector(t)
	_, err := ParseProtector(edited(t, p.Bytes(), `Algorithm="`+RSAOAEP, `Algorithm="urn:windows:secret-sauce`))
	var r *Refusal
	if !errors.As(err, &r) || r.Algorithm != "urn:windows:secret-sauce" || r.Code != CodeInvalidProtector {
		t.Errorf("got %#v", err)
	}
}

func TestRefusesParentCycle(t *testing.T) {
	p, _ := testProtector(t)
	raw := string(p.Bytes())
	// 2 and 3 become each other's parents; 1 stays the owner.
	parts := strings.SplitN(raw, `ParentWrappingId="1"`, 4)
	raw = parts[0] + `ParentWrappingId="1"` + parts[1] + `ParentWrappingId="3"` + parts[2] + `ParentWrappingId="2"` + parts[3]
	q, err := ParseProtector([]byte(raw))
	if err != nil {
		t.Fatal(err)
	}
	err = q.Verify()
	if CodeOf(err) != CodeInvalidWrapping || !strings.Contains(err.Error(), "does not chain up") {
		t.Errorf("got %v", err)
	}
}

func TestRefusesTwoOwners(t *testing.T) {
	p, _ := testProtector(t)
	parts := strings.SplitN(string(p.Bytes()), `ParentWrappingId="1"`, 3)
	q, err := ParseProtector([]byte(parts[0] + `ParentWrappingId="1"` + parts[1] + `ParentWrappingId="2"` + parts[2]))
	if err != nil {
		t.Fatal(err)
	}
	if err = q.Verify(); CodeOf(err) != CodeInvalidWrapping || !strings.Contains(err.Error(), "2 owners") {
		t.Errorf("got %v", err)
	}
}

// resealed signs changed wrappings again with keys the attacker of the test has.
func resealed(t *testing.T, p *Protector, tk []byte, change func(w []Wrapping)) *Protector {
	t.Helper()
	w := append([]Wrapping(nil), p.Wrappings...)
	change(w)
	q, err := sealing{wrappings: w, transportKey: tk, derivation: p.KeyDerivation, guardianID: 1, signer: testKeys()[ownerSigning], random: rand.Reader}.protector()
	if err != nil {
		t.Fatal(err)
	}
	if q, err = ParseProtector(q.Bytes()); err != nil {
		t.Fatal(err)
	}
	return q
}

func TestRefusesWrappingsThatAreBadlySigned(t *testing.T) {
	p, tk := testProtector(t)
	forged := func(by int, message []byte) Signature {
		s, err := signRSA(testKeys()[by], rand.Reader, message)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	for name, change := range map[string]func(w []Wrapping){
		"grant by a stranger": func(w []Wrapping) { w[1].SigningCertificateSignature = forged(hostKey, w[1].SigningCertificate.Raw) },
		"grant by the guardian itself": func(w []Wrapping) {
			w[1].SigningCertificateSignature = forged(guardianSigning, w[1].SigningCertificate.Raw)
		},
		"grant of another certificate":  func(w []Wrapping) { w[1].SigningCertificateSignature = w[2].SigningCertificateSignature },
		"encryption key of an impostor": func(w []Wrapping) { w[1].EncryptionCertificate = certify(t, "impostor", testKeys()[hostKey]) },
		"encryption signature by owner": func(w []Wrapping) {
			w[1].EncryptionCertificateSignature = forged(ownerSigning, w[1].EncryptionCertificate.Raw)
		},
		"owner's own signature by another": func(w []Wrapping) {
			w[0].EncryptionCertificateSignature = forged(hostKey, w[0].EncryptionCertificate.Raw)
		},
		"parent that did not sign": func(w []Wrapping) { w[2].ParentID = 2 },
	} {
		t.Run(name, func(t *testing.T) {
			if err := resealed(t, p, tk, change).Verify(); CodeOf(err) != CodeInvalidWrapping {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestAcceptsAGuardianBelowAGuardian(t *testing.T) {
	p, tk := testProtector(t)
	q := resealed(t, p, tk, func(w []Wrapping) {
		s, err := signRSA(testKeys()[guardianSigning], rand.Reader, w[2].SigningCertificate.Raw)
		if err != nil {
			t.Fatal(err)
		}
		w[2].ParentID, w[2].SigningCertificateSignature = 2, s
	})
	if err := q.Verify(); err != nil {
		t.Error(err)
	}
}

func TestAcceptsEveryListedSignatureAlgorithmAndNoOther(t *testing.T) {
	key := testKeys()[ownerSigning]
	message := []byte("message")
	for uri, scheme := range rsaSignatures {
		h := scheme.hash.New()
		h.Write(message)
		var value []byte
		var err error
		if scheme.pss {
			value, err = rsa.SignPSS(rand.Reader, key, scheme.hash, h.Sum(nil), &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash})
		} else {
			value, err = rsa.SignPKCS1v15(rand.Reader, key, scheme.hash, h.Sum(nil))
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := verifyRSA(key.Public(), Signature{Algorithm: uri, Value: value}, message); err != nil {
			t.Errorf("%s: %v", uri, err)
		}
		if verifyRSA(key.Public(), Signature{Algorithm: uri, Value: value}, []byte("other")) == nil {
			t.Errorf("%s: accepts another message", uri)
		}
	}
	digest := sha1.Sum(message)
	value, err := rsa.SignPKCS1v15(rand.Reader, key, crypto.SHA1, digest[:])
	if err != nil {
		t.Fatal(err)
	}
	if verifyRSA(key.Public(), Signature{Algorithm: "http://www.w3.org/2000/09/xmldsig#rsa-sha1", Value: value}, message) == nil {
		t.Error("SHA-1 is accepted")
	}
	pss, err := rsa.SignPSS(rand.Reader, key, crypto.SHA256, make([]byte, 32), &rsa.PSSOptions{SaltLength: 20})
	if err != nil {
		t.Fatal(err)
	}
	if rsa.VerifyPSS(&key.PublicKey, crypto.SHA256, make([]byte, 32), pss, nil) == nil &&
		verifyRSA(key.Public(), Signature{Algorithm: "http://www.w3.org/2007/05/xmldsig-more#sha256-rsa-MGF1", Value: pss}, message) == nil {
		t.Error("a salt of another length is accepted")
	}
}

type failing struct{ err error }

func (f failing) Decrypt(context.Context, []byte, OAEP) ([]byte, error) { return nil, f.err }

type returning struct{ plain []byte }

func (r returning) Decrypt(context.Context, []byte, OAEP) ([]byte, error) {
	return append([]byte(nil), r.plain...), nil
}

// TestFailuresOfTheSecretLookTheSame covers padding, structure, length and MAC.
func TestFailuresOfTheSecretLookTheSame(t *testing.T) {
	p, tk := testProtector(t)
	twoKeys, _ := (&Payload{Version: PayloadV1, Keys: [][]byte{tk, tk}}).Marshal()
	withPolicy, _ := (&Payload{Version: PayloadV2, Keys: [][]byte{tk}, Policies: []Policy{OfflinePolicy(1)}}).Marshal()
	var want string
	for name, key := range map[string]Decrypter{
		"padding":        failing{fmt.Errorf("token: %w", ErrDecryption)},
		"empty":          returning{nil},
		"short":          returning{tk[:8]},
		"long":           returning{make([]byte, MaxTransportKey+1)},
		"two keys":       returning{twoKeys},
		"with policy":    returning{withPolicy},
		"another key":    returning{make([]byte, 32)},
		"one bit longer": returning{append(tk[:32:32], 0)},
	} {
		_, err := p.OpenTransportKey(t.Context(), p.Wrapping(2), key, rand.Reader)
		if CodeOf(err) != CodeInvalidProtector {
			t.Fatalf("%s: %v", name, err)
		}
		if want == "" {
			want = err.Error()
		}
		if err.Error() != want {
			t.Errorf("%s: %q differs from %q", name, err, want)
		}
	}
	_, err := p.OpenTransportKey(t.Context(), p.Wrapping(2), failing{errors.New("token is gone")}, rand.Reader)
	var r *Refusal
	if err == nil || errors.As(err, &r) {
		t.Errorf("a token that is gone is blamed on the protector: %v", err)
	}
}

func TestEgressHasANewKeyForTheSameWrappings(t *testing.T) {
	for name, form := range map[string]TransportKeyForm{"raw": FormRaw, "blob V1": FormV1, "blob V2": FormV2} {
		t.Run(name, func(t *testing.T) {
			first, tk := testProtector(t)
			p, err := (*Protector)(nil).rewrap(&TransportKey{Key: tk, Form: form},
				sealing{derivation: first.KeyDerivation, guardianID: 1, maxOffline: 5, signer: testKeys()[ownerSigning], random: rand.Reader}, first.Wrappings)
			if err != nil {
				t.Fatal(err)
			}
			key, signer := service()
			opened, err := p.OpenTransportKey(t.Context(), p.Wrapping(2), key, rand.Reader)
			if err != nil || opened.Form != form || !bytes.Equal(opened.Key, tk) {
				t.Fatalf("ingress: %v", err)
			}
			q, next, err := p.NextVersion(Egress{Ingress: opened, Guardian: p.Wrapping(2), Signer: signer, Random: rand.Reader})
			if err != nil {
				t.Fatal(err)
			}
			if q, err = ParseProtector(q.Bytes()); err != nil {
				t.Fatal(err)
			}
			if err := q.Verify(); err != nil {
				t.Error(err)
			}
			if err := p.SameKeys(q); err != nil {
				t.Error(err)
			}
			if q.GuardianID != 2 || q.MaxOfflineUnwraps != 0 {
				t.Errorf("signed by %d, offline %d", q.GuardianID, q.MaxOfflineUnwraps)
			}
			if bytes.Equal(next.Key, tk) || len(next.Key) != len(tk) {
				t.Error("the transport key is not a new one of the same length")
			}
			for i := range q.Wrappings {
				if bytes.Equal(q.Wrappings[i].TransportKey.Value, p.Wrappings[i].TransportKey.Value) {
					t.Errorf("wrapping %d keeps its ciphertext", q.Wrappings[i].ID)
				}
			}
			mine, err := q.Open(t.Context(), testOwnerOf(t, q), rand.Reader)
			if err != nil || !bytes.Equal(mine, next.Key) {
				t.Errorf("the owner cannot open the egress protector: %v", err)
			}
		})
	}
}

// testOwnerOf has the certificates of the protector, which are made anew by each test.
func testOwnerOf(t testing.TB, p *Protector) Owner {
	o := testOwner(t)
	o.SigningCertificate, o.EncryptionCertificate = p.Owner().SigningCertificate, p.Owner().EncryptionCertificate
	return o
}

func TestForeignWriterSurvivesARoll(t *testing.T) {
	p, tk := testProtector(t)
	// Another writer: prefixes, white space, carried parameters, SHA-1 OAEP.
	w := append([]Wrapping(nil), p.Wrappings...)
	w[0].SigningCertificateSignature.parameters = `<Parameters><x:Note xmlns:x="urn:x" a="1">hello<y xmlns="` + Namespace + `"></y></x:Note></Parameters>`
	w[1].EncryptionCertificateSignature.parameters = `<k:Parameters xmlns:k="` + Namespace + `"><k:Z></k:Z></k:Parameters>`
	w[2].TransportKey.Algorithm, w[2].TransportKey.Padding = RSAOAEPMGF1P, OAEP{Hash: crypto.SHA1, MGF: crypto.SHA1}
	odd, err := (*Protector)(nil).rewrap(&TransportKey{Key: tk}, sealing{derivation: p.KeyDerivation, guardianID: 1, signer: testKeys()[ownerSigning], random: rand.Reader}, w)
	if err != nil {
		t.Fatal(err)
	}
	if odd, err = ParseProtector(odd.Bytes()); err != nil {
		t.Fatal(err)
	}
	key, signer := service()
	opened, err := odd.OpenTransportKey(t.Context(), odd.Wrapping(2), key, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	next, _, err := odd.NextVersion(Egress{Ingress: opened, Guardian: odd.Wrapping(2), Signer: signer, Random: rand.Reader})
	if err != nil {
		t.Fatal(err)
	}
	if next, err = ParseProtector(next.Bytes()); err != nil {
		t.Fatal(err)
	}
	if err := next.Verify(); err != nil {
		t.Fatal(err)
	}
	if next.Wrappings[0].SigningCertificateSignature.parameters != odd.Wrappings[0].SigningCertificateSignature.parameters {
		t.Errorf("parameters changed to %q", next.Wrappings[0].SigningCertificateSignature.parameters)
	}
	if next.Wrappings[2].TransportKey.Algorithm != RSAOAEPMGF1P {
		t.Error("the wrapping's algorithm changed")
	}
}

func TestWhiteSpaceInsideBase64IsReadAndSigned(t *testing.T) {
	p, _ := testProtector(t)
	value := base64.StdEncoding.EncodeToString(p.GuardianSignature.Value)
	spaced := edited(t, p.Bytes(), value, value[:76]+"\r\n"+value[76:])
	if _, err := whole(t, spaced); err != nil {
		t.Errorf("white space outside Wrappings: %v", err)
	}
	cert := between(t, p.Bytes(), "<SigningCertificate>", "</SigningCertificate>")
	if _, err := whole(t, edited(t, p.Bytes(), cert, cert[:76]+"\n"+cert[76:])); CodeOf(err) != CodeInvalidProtector {
		t.Errorf("white space added inside Wrappings after signing: %v", err)
	}
}
