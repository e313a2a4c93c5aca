package evidence

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// vendorCase is a certificate of a kind that TPM vendors have put into the field. leaf makes it for a key, under an intermediate.
type vendorCase struct {
	name string
	want []Workaround
	leaf func(t *testing.T, middle *authority, key crypto.PublicKey) []byte
}

// withHeader is TCG_PCCLIENT_STORED_CERT: 7 bytes before the certificate.
func withHeader(der []byte) []byte {
	header := append([]byte(nvHeader), binary.BigEndian.AppendUint16(nil, uint16(len(der)+2))...)
	return slices.Concat(header, []byte{0x10, 0x02}, der)
}

var vendorCases = []vendorCase{
	{"as it should be", nil, func(t *testing.T, m *authority, key crypto.PublicKey) []byte {
		return m.issue(t, issue{name: "ek", key: key})
	}},
	{"trailing 0xff, the rest of the NV index", []Workaround{WorkaroundPadding}, func(t *testing.T, m *authority, key crypto.PublicKey) []byte {
		return append(m.issue(t, issue{name: "ek", key: key}), bytes.Repeat([]byte{0xff}, 300)...)
	}},
	{"trailing zeros", []Workaround{WorkaroundPadding}, func(t *testing.T, m *authority, key crypto.PublicKey) []byte {
		return append(m.issue(t, issue{name: "ek", key: key}), make([]byte, 9)...)
	}},
	{"NV header of 7 bytes", []Workaround{WorkaroundNVHeader}, func(t *testing.T, m *authority, key crypto.PublicKey) []byte {
		return withHeader(m.issue(t, issue{name: "ek", key: key}))
	}},
	{"NV header and padding", []Workaround{WorkaroundNVHeader, WorkaroundPadding}, func(t *testing.T, m *authority, key crypto.PublicKey) []byte {
		return append(withHeader(m.issue(t, issue{name: "ek", key: key})), make([]byte, 5)...)
	}},
	{"critical subject alternative name", []Workaround{WorkaroundSAN}, func(t *testing.T, m *authority, key crypto.PublicKey) []byte {
		return m.issue(t, issue{name: "ek", key: key, extra: []pkix.Extension{sanTPM(t)}})
	}},
	{"signed with SHA-1", []Workaround{WorkaroundSHA1}, func(t *testing.T, m *authority, key crypto.PublicKey) []byte {
		return m.issue(t, issue{name: "ek", key: key, sha1: true})
	}},
	{"serial number longer than needed", []Workaround{WorkaroundSerial}, func(t *testing.T, m *authority, key crypto.PublicKey) []byte {
		return m.issue(t, issue{name: "ek", key: key, serial: []byte{0, 0, 1}})
	}},
	{"negative serial number", []Workaround{WorkaroundSerial}, func(t *testing.T, m *authority, key crypto.PublicKey) []byte {
		return m.issue(t, issue{name: "ek", key: key, serial: []byte{0x80, 1}})
	}},
	{"key for OAEP only", []Workaround{WorkaroundOAEP}, func(t *testing.T, m *authority, key crypto.PublicKey) []byte {
		spki, err := x509.MarshalPKIXPublicKey(key)
		if err != nil {
			t.Fatal(err)
		}
		oaep := bytes.Replace(spki, []byte("\x2a\x86\x48\x86\xf7\x0d\x01\x01\x01"), []byte("\x2a\x86\x48\x86\xf7\x0d\x01\x01\x07"), 1)
		return m.issue(t, issue{name: "ek", key: key, spki: oaep})
	}},
	{"all at once", []Workaround{WorkaroundNVHeader, WorkaroundPadding, WorkaroundSerial, WorkaroundSHA1, WorkaroundSAN}, func(t *testing.T, m *authority, key crypto.PublicKey) []byte {
		der := m.issue(t, issue{name: "ek", key: key, sha1: true, serial: []byte{0, 0, 0, 7}, extra: []pkix.Extension{sanTPM(t)}})
		return append(withHeader(der), 0xff, 0xff)
	}},
}

// TestForgivesWhatVendorsDo: each certificate leads to its root, for RSA and ECC keys, and says what was forgiven.
func TestForgivesWhatVendorsDo(t *testing.T) {
	root, middle := hierarchy(t)
	trust := NewTrust([]*Certificate{mustParse(t, root.cert.Raw)}, []*Certificate{mustParse(t, middle.cert.Raw)})
	p256, p384 := curveKey(t, elliptic.P256()), curveKey(t, elliptic.P384())
	covered := map[Workaround]bool{}
	for _, c := range vendorCases {
		for kind, key := range map[string]crypto.PublicKey{"RSA": &rsaKeys()[2].PublicKey, "P-256": &p256.PublicKey, "P-384": &p384.PublicKey} {
			if kind != "RSA" && slices.Contains(c.want, WorkaroundOAEP) {
				continue // there is no such ECC key
			}
			t.Run(c.name+"/"+kind, func(t *testing.T) {
				der := c.leaf(t, middle, key)
				cert, err := ParseCertificate(der)
				if err != nil {
					t.Fatal(err)
				}
				if !slices.Equal(cert.Forgiven, c.want) {
					t.Errorf("forgave %v, want %v", cert.Forgiven, c.want)
				}
				for _, w := range cert.Forgiven {
					covered[w] = true
				}
				if chain, err := trust.Chain(cert, noon); err != nil || len(chain) != 3 {
					t.Errorf("chain %d, %v", len(chain), err)
				}
				ek, err := cert.EK()
				if err != nil || !ek.Public.(interface{ Equal(crypto.PublicKey) bool }).Equal(key) {
					t.Errorf("key %v", err)
				}
				if m, model, v := cert.TPM(); slices.Contains(c.want, WorkaroundSAN) && (m != "id:494E5443" || model != "SLB 9670" || v != "id:0763") {
					t.Errorf("TPM is %q %q %q", m, model, v)
				}
				if _, err := ParseEK(der); err != nil {
					t.Error(err)
				}
				// A bit of what was signed is still covered, whatever was forgiven around it.
				for _, at := range []int{len(cert.Original) / 3, len(cert.Original) / 2} {
					bad := bytes.Clone(cert.Original)
					bad[at] ^= 1
					if spoiled, err := ParseCertificate(bad); err == nil {
						if _, err := trust.Chain(spoiled, noon); err == nil {
							t.Errorf("byte %d of the certificate can be changed", at)
						}
					}
				}
			})
		}
	}
	for _, w := range []Workaround{WorkaroundPadding, WorkaroundNVHeader, WorkaroundSAN, WorkaroundSHA1, WorkaroundSerial, WorkaroundOAEP} {
		if !covered[w] {
			t.Errorf("no certificate needs %q", w)
		}
	}
}

func curveKey(t *testing.T, c elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(c, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// TestForgivesIssuersToo: intermediates with serial numbers longer than needed, as six of STMicroelectronics have, and signed with SHA-1.
func TestForgivesIssuersToo(t *testing.T) {
	root, _ := hierarchy(t)
	keys := rsaKeys()
	for name, c := range map[string]struct {
		issue issue
		want  Workaround
	}{
		"serial number longer than needed": {issue{serial: []byte{0, 0, 0x40, 1}}, WorkaroundSerial},
		"signed with SHA-1":                {issue{sha1: true}, WorkaroundSHA1},
	} {
		c.issue.name, c.issue.key, c.issue.ca = "Vendor Intermediate", &keys[1].PublicKey, true
		middle := mustParse(t, root.issue(t, c.issue))
		if !slices.Equal(middle.Forgiven, []Workaround{c.want}) {
			t.Errorf("%s: forgave %v", name, middle.Forgiven)
		}
		issuer := &authority{cert: middle.Certificate, key: keys[1]}
		leaf := mustParse(t, issuer.issue(t, issue{name: "ek", key: &keys[2].PublicKey}))
		chain, err := NewTrust([]*Certificate{mustParse(t, root.cert.Raw)}, []*Certificate{middle}).Chain(leaf, noon)
		if err != nil || len(chain) != 3 || len(leaf.Forgiven) != 0 {
			t.Errorf("%s: %d, %v", name, len(chain), err)
		}
	}
}

func TestDoesNotForgive(t *testing.T) {
	_, middle := hierarchy(t)
	key := &rsaKeys()[2].PublicKey
	plain := middle.issue(t, issue{name: "ek", key: key})
	for name, der := range map[string][]byte{
		"something after the certificate": append(bytes.Clone(plain), 0xff, 0xff, 1),
		"unknown critical extension":      middle.issue(t, issue{name: "ek", key: key, extra: []pkix.Extension{{Id: oidNote, Critical: true, Value: []byte{5, 0}}}}),
		"serial number of zero":           middle.issue(t, issue{name: "ek", key: key, serial: []byte{0, 0}}),
		"header longer than the data":     slices.Concat([]byte(nvHeader), []byte{0xff, 0xff, 0x10, 0x02}, plain),
		"cut short":                       plain[:len(plain)-1],
	} {
		if _, err := ParseCertificate(der); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestChainErrorNamesTheMissingIssuer(t *testing.T) {
	root, middle := hierarchy(t)
	leaf := mustParse(t, middle.issue(t, issue{name: "ek", key: &rsaKeys()[2].PublicKey, url: "http://vendor.example/i.crt"}))
	r, m := mustParse(t, root.cert.Raw), mustParse(t, middle.cert.Raw)
	var missing *MissingIssuer
	_, err := NewTrust([]*Certificate{r}, nil).Chain(leaf, noon)
	if !errors.As(err, &missing) || missing.Issuer != "Vendor Intermediate" || missing.KeyID != upperHex(m.SubjectKeyId) || missing.URLs[0] != "http://vendor.example/i.crt" || missing.Root {
		t.Errorf("without intermediate: %v", err)
	}
	_, err = NewTrust(nil, []*Certificate{m}).Chain(leaf, noon)
	if !errors.As(err, &missing) || missing.Issuer != "Vendor Root" || missing.Certificate != "Vendor Intermediate" {
		t.Errorf("without root: %v", err)
	}
	_, err = NewTrust(nil, []*Certificate{m, r}).Chain(leaf, noon)
	if !errors.As(err, &missing) || !missing.Root || missing.Issuer != "Vendor Root" {
		t.Errorf("root among the intermediates: %v", err)
	}
}

func TestRefusesChains(t *testing.T) {
	root, middle := hierarchy(t)
	keys := rsaKeys()
	trust := NewTrust([]*Certificate{mustParse(t, root.cert.Raw)}, []*Certificate{mustParse(t, middle.cert.Raw)})
	forged := &authority{cert: middle.cert, key: keys[2]}
	der := middle.issue(t, issue{name: "ek", key: &keys[2].PublicKey, sha1: true})
	der = bytes.Clone(der)
	der[len(der)-1] ^= 1
	server := &authority{cert: mustParse(t, root.issue(t, issue{name: "Vendor Server", key: &keys[1].PublicKey})).Certificate, key: keys[1]}
	withServer := NewTrust([]*Certificate{mustParse(t, root.cert.Raw)}, []*Certificate{{Certificate: server.cert, Original: server.cert.Raw, tbs: server.cert.RawTBSCertificate}})
	notCA := &authority{cert: &x509.Certificate{Subject: server.cert.Subject, RawSubject: server.cert.RawSubject, SubjectKeyId: []byte{1}}, key: keys[1]}
	old := mustParse(t, middle.issue(t, issue{name: "ek", key: &keys[2].PublicKey, until: noon.AddDate(0, -1, 0)}))
	for _, c := range []struct {
		name   string
		trust  *Trust
		leaf   *Certificate
		reason string
	}{
		{"altered SHA-1 signature", trust, mustParse(t, der), "verif"},
		{"signed by somebody else under the same name", trust, mustParse(t, func() []byte {
			f := *forged.cert
			f.PublicKey = &keys[2].PublicKey
			return (&authority{cert: &f, key: keys[2]}).issue(t, issue{name: "ek", key: &keys[2].PublicKey})
		}()), "verif"},
		{"issued by a certificate that is no CA", withServer, mustParse(t, func() []byte {
			return notCA.issue(t, issue{name: "ek", key: &keys[2].PublicKey})
		}()), "certification authority"},
		{"expired", trust, old, "valid from"},
	} {
		_, err := c.trust.Chain(c.leaf, noon)
		var problem *ChainProblem
		if !errors.As(err, &problem) || !strings.Contains(problem.Reason, c.reason) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	if _, err := trust.Chain(old, time.Time{}); err != nil {
		t.Errorf("expired, but time was not asked for: %v", err)
	}
}

func TestReadsBundles(t *testing.T) {
	root, middle := hierarchy(t)
	a, b := root.cert.Raw, middle.cert.Raw
	p := func(der []byte) []byte { return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}) }
	var p7 cryptobyte.Builder
	zero := cbasn1.Tag(0).Constructed().ContextSpecific()
	p7.AddASN1(cbasn1.SEQUENCE, func(o *cryptobyte.Builder) {
		o.AddASN1ObjectIdentifier(asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 2})
		o.AddASN1(zero, func(o *cryptobyte.Builder) {
			o.AddASN1(cbasn1.SEQUENCE, func(o *cryptobyte.Builder) {
				o.AddASN1Int64(1)
				o.AddASN1(cbasn1.SET, func(*cryptobyte.Builder) {})
				o.AddASN1(cbasn1.SEQUENCE, func(o *cryptobyte.Builder) {
					o.AddASN1ObjectIdentifier(asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 1})
				})
				o.AddASN1(zero, func(o *cryptobyte.Builder) { o.AddBytes(a); o.AddBytes(b) })
				o.AddASN1(cbasn1.SET, func(*cryptobyte.Builder) {})
			})
		})
	})
	for name, raw := range map[string][]byte{
		"PEM": slices.Concat([]byte("vendor\n"), p(a), p(b)), "DER": slices.Concat(a, b), "PKCS#7": p7.BytesOrPanic(),
		"PKCS#7 in PEM": pem.EncodeToMemory(&pem.Block{Type: "PKCS7", Bytes: p7.BytesOrPanic()}),
	} {
		good, bad, err := ReadBundle(raw)
		if err != nil || len(bad) != 0 || len(good) != 2 || good[1].Name() != "Vendor Intermediate" {
			t.Errorf("%s: %d, %v, %v", name, len(good), bad, err)
		}
	}
	// A folder of files of all kinds, as cat gives it; nothing is lost between two kinds.
	folder := map[string][]byte{
		"DER then PEM": slices.Concat(a, p(b)), "PEM then DER": slices.Concat(p(a), b), "PKCS#7 then DER": slices.Concat(p7.BytesOrPanic(), a, b),
		"read from TPMs": slices.Concat(withHeader(a), bytes.Repeat([]byte{0xff}, 70), b, make([]byte, 9)), "text between": slices.Concat([]byte("root:\n"), p(a), []byte("\nissuer:\n"), p(b), []byte("\n")),
		"DER, text, PEM": slices.Concat(a, []byte("\r\nintermediate\r\n"), p(b)),
	}
	for name, raw := range folder {
		want := 2
		if name == "PKCS#7 then DER" {
			want = 4
		}
		if good, bad, err := ReadBundle(raw); err != nil || len(bad) != 0 || len(good) != want {
			t.Errorf("%s: %d, %v, %v", name, len(good), bad, err)
		}
	}
	for name, raw := range map[string][]byte{"junk at the end": slices.Concat(a, []byte("junk")), "junk between": slices.Concat(a, []byte{1, 0, 2}, p(b)), "cut short": slices.Concat(a, b[:40])} {
		if good, bad, err := ReadBundle(raw); err != nil || len(bad) != 1 || len(good) == 0 {
			t.Errorf("%s: %d, %v, %v", name, len(good), bad, err)
		}
	}
	if good, bad, err := ReadBundle(slices.Concat(p(a), p([]byte("junk")), p(b))); err != nil || len(good) != 2 || len(bad) != 1 {
		t.Errorf("one bad certificate spoils the bundle: %d, %v, %v", len(good), bad, err)
	}
	if _, _, err := ReadBundle([]byte("MSCF....")); !errors.Is(err, ErrCabinet) {
		t.Errorf("cabinet: %v", err)
	}
	if _, _, err := ReadBundle([]byte("hello")); err == nil {
		t.Error("text is a bundle")
	}
}
