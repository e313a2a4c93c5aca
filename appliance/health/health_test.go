package health

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/md5"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/binary"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/cryptobyte"
	asn "golang.org/x/crypto/cryptobyte/asn1"
)

var keys = sync.OnceValue(func() [3]*rsa.PrivateKey {
	var k [3]*rsa.PrivateKey
	for i := range k {
		var err error
		if k[i], err = rsa.GenerateKey(rand.Reader, 2048); err != nil {
			panic(err)
		}
	}
	return k
})

var noon = time.Date(2026, 3, 4, 12, 0, 0, 0, time.UTC)

const hostID = "A19C18F32518B8A93F1949EB9E850D85BB55ACEA18C5671F77AE16368437DA58"

// at is a moment known to within two seconds on each side.
func at(t time.Time) Window { return Between(t.Add(-2*time.Second), t.Add(2*time.Second), true) }

func parse(t testing.TB, der []byte, err error) *x509.Certificate {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func newSigner(t testing.TB, key crypto.Signer) *x509.Certificate {
	t.Helper()
	der, err := NewSignerCertificate(rand.Reader, at(noon.Add(-time.Hour)), "", DefaultSignerLife, key)
	return parse(t, der, err)
}

func genuine(t testing.TB) *x509.Certificate {
	t.Helper()
	text, err := os.ReadFile("testdata/genuine-health-certificate.pem")
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(text)
	sum := sha256.Sum256(block.Bytes)
	if hex.EncodeToString(sum[:]) != "afa3d309e5644ebb0de0e7caad8ce97af20c56178bc2f5d893a32c785b3a226a" {
		t.Fatal("the sample is not the documented one")
	}
	return parse(t, block.Bytes, nil)
}

func TestReadsTheGenuineCertificate(t *testing.T) {
	c := genuine(t)
	ski := md5.Sum(c.RawSubjectPublicKeyInfo)
	if !bytes.Equal(c.SubjectKeyId, ski[:]) || hex.EncodeToString(ski[:]) != "316e6961168e559d15e0c4932ac5420b" {
		t.Errorf("subject key identifier %x", c.SubjectKeyId)
	}
	oids, ok := policies(c)
	if !ok || len(oids) != 1 || !oids[0].Equal(policyOIDs[Signing]) || !fits(oids, Signing) || fits(oids, Encryption) {
		t.Errorf("policies %v", oids)
	}
	v := Check(c.Raw, Signing, []Signer{{Certificate: newSigner(t, keys()[0])}}, at(c.NotBefore.Add(time.Hour)))
	if v.Reason != UnknownSigner || v.HostID != hostID {
		t.Errorf("%+v", v)
	}
}

// afterSerial is the to-be-signed part behind version and serial number.
func afterSerial(t *testing.T, c *x509.Certificate) []byte {
	t.Helper()
	s := cryptobyte.String(c.RawTBSCertificate)
	var tbs cryptobyte.String
	if !s.ReadASN1(&tbs, asn.SEQUENCE) || !tbs.SkipASN1(asn.Tag(0).Constructed().ContextSpecific()) || !tbs.SkipASN1(asn.INTEGER) {
		t.Fatal("not a certificate")
	}
	return tbs
}

// The to-be-signed part, byte for byte: with the genuine certificate's key and
// times and a signer of the genuine one's name, serial and key identifier, what
// we make differs in nothing but the serial number, which tells when.
func TestIssuesWhatTheGenuineServiceIssued(t *testing.T) {
	want := genuine(t)
	signerSerial, _ := new(big.Int).SetString("2571a7aab92ad4ad43e208e1610ed8f4", 16)
	signerKeyID, _ := hex.DecodeString("258ac557f869584fdc1481f8c8f761f669b093a3")
	tpl := &x509.Certificate{SerialNumber: signerSerial, RawSubject: want.RawIssuer, SubjectKeyId: signerKeyID,
		NotBefore: want.NotBefore.AddDate(0, -1, 0), NotAfter: want.NotAfter.AddDate(1, 0, 0)}
	der, err := x509.CreateCertificate(rand.Reader, tpl, tpl, keys()[0].Public(), keys()[0])
	signer := parse(t, der, err)
	earliest := want.NotBefore.Add(Backdate)
	got, err := Issue(rand.Reader, Between(earliest, earliest, true), Order{Purpose: Signing, Key: want.PublicKey.(*rsa.PublicKey),
		HostID: hostID, Life: want.NotAfter.Sub(earliest)}, signer, keys()[0])
	c := parse(t, got, err)
	if c.Version != want.Version || !bytes.Equal(afterSerial(t, c), afterSerial(t, want)) {
		t.Errorf("\ngot  %x\nwant %x", c.RawTBSCertificate, want.RawTBSCertificate)
	}
}

func TestP13_17_EncryptionProfile(t *testing.T) {
	k := keys()
	signer := newSigner(t, k[0])
	der, err := Issue(rand.Reader, at(noon), Order{Encryption, &k[1].PublicKey, hostID, DefaultLife}, signer, k[0])
	c := parse(t, der, err)
	var list []string
	for _, e := range c.Extensions {
		list = append(list, e.Id.String()+map[bool]string{true: "!", false: ""}[e.Critical])
	}
	if got := strings.Join(list, " "); got != "2.5.29.15! 1.3.6.1.4.1.311.21.10 2.5.29.14 2.5.29.35" {
		t.Error(got)
	}
	if c.KeyUsage != x509.KeyUsageKeyEncipherment|x509.KeyUsageDataEncipherment || c.BasicConstraintsValid {
		t.Errorf("key usage %b", c.KeyUsage)
	}
	oids, _ := policies(c)
	if oids[0].String() != "1.3.6.1.4.1.311.48.1.1" {
		t.Error(oids)
	}
	earliest := noon.Add(-2 * time.Second)
	if !c.NotBefore.Equal(earliest.Add(-5*time.Minute)) || !c.NotAfter.Equal(earliest.Add(8*time.Hour)) {
		t.Error(c.NotBefore, c.NotAfter)
	}
	serial := c.SerialNumber.FillBytes(make([]byte, 16))
	if !IssuedAt(c).Equal(earliest) || binary.BigEndian.Uint64(append(make([]byte, 3), serial[:5]...)) != uint64(earliest.Unix()) || c.Issuer.String() != "CN=Microsoft Remote Attestation Service" {
		t.Error(c.SerialNumber, c.Issuer)
	}
	if err := c.CheckSignatureFrom(signer); err != nil {
		t.Error(err)
	}
}

// TestADenyDateComparesTheSecondOfIssue: notBefore is back-dated and can't tell a certificate from before the deny date from one after it.
func TestADenyDateComparesTheSecondOfIssue(t *testing.T) {
	k := keys()
	signer := newSigner(t, k[0])
	issue := func(at time.Time) []byte {
		raw, err := Issue(rand.Reader, Between(at, at.Add(20*time.Millisecond), true), Order{Encryption, &k[1].PublicKey, hostID, DefaultLife}, signer, k[0])
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	deny := noon.Add(time.Second) // "re-attest now" at noon, see policy.NextSecond
	before, after := issue(noon.Add(900*time.Millisecond)), issue(noon.Add(time.Second))
	now := Between(noon.Add(time.Second), noon.Add(1020*time.Millisecond), true)
	for name, c := range map[string]struct {
		der    []byte
		signer Signer
		want   Reason
	}{
		"issued in the second before":        {before, Signer{Certificate: signer, Own: true, DenyIssuedBefore: deny}, IssuedBeforeDeny},
		"issued in the second of the date":   {after, Signer{Certificate: signer, Own: true, DenyIssuedBefore: deny}, Accepted},
		"foreign: notBefore counts":          {after, Signer{Certificate: signer, DenyIssuedBefore: deny}, IssuedBeforeDeny},
		"foreign: notBefore counts, old":     {after, Signer{Certificate: signer, DenyIssuedBefore: deny.Add(-Backdate)}, Accepted},
		"signer retired, may still be good":  {after, Signer{Certificate: signer, Own: true, AcceptedUntil: noon.Add(time.Minute)}, Accepted},
		"signer retired, nothing can be":     {after, Signer{Certificate: signer, Own: true, AcceptedUntil: noon.Add(time.Second)}, SignerNotValid},
		"serial number of another version":   {forge(t, signer, k[0], &k[1].PublicKey, nil), Signer{Certificate: signer, Own: true, DenyIssuedBefore: noon.Add(-time.Hour)}, Accepted},
		"serial number of another version 2": {forge(t, signer, k[0], &k[1].PublicKey, nil), Signer{Certificate: signer, Own: true, DenyIssuedBefore: noon.Add(-time.Minute)}, IssuedBeforeDeny},
	} {
		if v := Check(c.der, Encryption, []Signer{c.signer}, now); v.Reason != c.want {
			t.Errorf("%s: %q (%s), want %q", name, v.Reason, v.Detail, c.want)
		}
	}
	if !IssuedAt(genuine(t)).Equal(genuine(t).NotBefore) {
		t.Error("a genuine serial number is taken for a time")
	}
	if _, err := Issue(rand.Reader, at(time.Unix(-5, 0)), Order{Encryption, &k[1].PublicKey, hostID, DefaultLife}, signer, k[0]); err == nil {
		t.Error("issued before 1970")
	}
}

func TestSignerCertificateIsAnAuthority(t *testing.T) {
	c := newSigner(t, keys()[0])
	if !c.IsCA || c.KeyUsage != x509.KeyUsageCertSign|x509.KeyUsageDigitalSignature || len(c.SubjectKeyId) != 20 || !bytes.Equal(c.RawIssuer, c.RawSubject) {
		t.Errorf("%+v", c)
	}
	if err := c.CheckSignatureFrom(c); err != nil {
		t.Error(err)
	}
	if bytes.Count(c.RawSubject, []byte{0x0c, byte(len(DefaultSignerName))}) != 1 {
		t.Error("the name is not a UTF8String")
	}
}

func TestIssuesNothingWithoutTrustedTimeOrWithABadOrder(t *testing.T) {
	k := keys()
	signer := newSigner(t, k[0])
	small := &rsa.PublicKey{N: new(big.Int).Rsh(k[1].N, 8), E: 65537}
	good := Order{Encryption, &k[1].PublicKey, hostID, DefaultLife}
	with := func(f func(*Order)) Order { o := good; f(&o); return o }
	for name, c := range map[string]struct {
		now   Window
		order Order
		key   crypto.Signer
		want  error
	}{
		"no time":          {Window{}, good, k[0], ErrNoTime},
		"time not trusted": {Between(noon, noon, false), good, k[0], ErrNoTime},
		"window reversed":  {Between(noon, noon.Add(-1), true), good, k[0], ErrNoTime},
		"small key":        {at(noon), with(func(o *Order) { o.Key = small }), k[0], ErrOrder},
		"no key":           {at(noon), with(func(o *Order) { o.Key = nil }), k[0], ErrOrder},
		"purpose 3":        {at(noon), with(func(o *Order) { o.Purpose = 3 }), k[0], ErrOrder},
		"host id":          {at(noon), with(func(o *Order) { o.HostID = strings.ToLower(hostID) }), k[0], ErrOrder},
		"no life":          {at(noon), with(func(o *Order) { o.Life = 0 }), k[0], ErrOrder},
		"signer expired":   {at(noon.AddDate(2, 0, 0)), good, k[0], ErrSigner},
		"signer too young": {at(noon.AddDate(-1, 0, 0)), good, k[0], ErrSigner},
		"wrong key":        {at(noon), good, k[2], ErrSignature},
	} {
		if der, err := Issue(rand.Reader, c.now, c.order, signer, c.key); !errors.Is(err, c.want) || der != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := NewSignerCertificate(rand.Reader, Window{}, "", time.Hour, k[0]); !errors.Is(err, ErrNoTime) {
		t.Error(err)
	}
	late := at(signer.NotAfter.Add(-time.Hour))
	der, err := Issue(rand.Reader, late, good, signer, k[0])
	if c := parse(t, der, err); !c.NotAfter.Equal(signer.NotAfter) {
		t.Error("the certificate outlives its signer")
	}
}

// forge makes a certificate outside of Issue, to be refused.
func forge(t *testing.T, parent *x509.Certificate, key crypto.Signer, pub any, edit func(*x509.Certificate)) []byte {
	t.Helper()
	tpl := &x509.Certificate{SerialNumber: big.NewInt(99), Subject: pkix.Name{CommonName: hostID},
		NotBefore: noon.Add(-time.Hour), NotAfter: noon.Add(time.Hour), KeyUsage: x509.KeyUsageKeyEncipherment}
	if edit != nil {
		edit(tpl)
	}
	if parent == nil {
		parent = tpl
	}
	der, err := x509.CreateCertificate(rand.Reader, tpl, parent, pub, key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func TestCheckNamesTheReason(t *testing.T) {
	k := keys()
	signer, stranger := newSigner(t, k[0]), newSigner(t, k[2])
	good, err := Issue(rand.Reader, at(noon), Order{Encryption, &k[1].PublicKey, hostID, DefaultLife}, signer, k[0])
	if err != nil {
		t.Fatal(err)
	}
	signing, _ := Issue(rand.Reader, at(noon), Order{Signing, &k[1].PublicKey, hostID, DefaultLife}, signer, k[0])
	foreign, _ := Issue(rand.Reader, at(noon), Order{Encryption, &k[1].PublicKey, hostID, DefaultLife}, stranger, k[2])
	flipped := bytes.Clone(good)
	flipped[len(flipped)-1] ^= 1
	ec, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	weak := &rsa.PublicKey{N: new(big.Int).Add(new(big.Int).Lsh(big.NewInt(1), 1500), big.NewInt(1)), E: 65537}
	pub := &k[1].PublicKey
	set := func(f func(*x509.Certificate)) []byte { return forge(t, signer, k[0], pub, f) }
	policyExt := func(v []byte, critical bool, id asn1.ObjectIdentifier) func(*x509.Certificate) {
		return func(c *x509.Certificate) {
			c.ExtraExtensions = []pkix.Extension{{Id: id, Critical: critical, Value: v}}
		}
	}
	for name, c := range map[string]struct {
		der  []byte
		now  Window
		deny time.Time
		want Reason
	}{
		"good":                     {good, at(noon), time.Time{}, Accepted},
		"good to its last moment":  {good, Between(noon, noon.Add(8*time.Hour-2*time.Second), true), time.Time{}, Accepted},
		"foreign profile":          {set(nil), at(noon), time.Time{}, Accepted},
		"no key usage":             {set(func(c *x509.Certificate) { c.KeyUsage = 0 }), at(noon), time.Time{}, Accepted},
		"PSS":                      {set(func(c *x509.Certificate) { c.SignatureAlgorithm = x509.SHA256WithRSAPSS }), at(noon), time.Time{}, Accepted},
		"deny date before":         {good, at(noon), noon.Add(-6 * time.Minute), Accepted},
		"deny date after":          {good, at(noon), noon.Add(-time.Minute), IssuedBeforeDeny},
		"no time":                  {good, Window{}, time.Time{}, NoTrustedTime},
		"expired":                  {good, at(noon.Add(9 * time.Hour)), time.Time{}, Expired},
		"perhaps expired":          {good, at(noon.Add(8 * time.Hour)), time.Time{}, Expired},
		"not yet":                  {set(func(c *x509.Certificate) { c.NotBefore = noon.Add(time.Minute) }), at(noon), time.Time{}, NotYetValid},
		"perhaps not yet":          {set(func(c *x509.Certificate) { c.NotBefore = noon }), at(noon), time.Time{}, NotYetValid},
		"self-signed":              {forge(t, nil, k[1], pub, nil), at(noon), time.Time{}, UnknownSigner},
		"self-signed, same name":   {forge(t, nil, k[1], pub, func(c *x509.Certificate) { c.RawSubject = signer.RawSubject }), at(noon), time.Time{}, BadSignature},
		"another service's":        {foreign, at(noon), time.Time{}, UnknownSigner},
		"one bit flipped":          {flipped, at(noon), time.Time{}, BadSignature},
		"for signing":              {signing, at(noon), time.Time{}, WrongKeyUsage},
		"the signer's own":         {signer.Raw, at(noon), time.Time{}, CertificateOfCA},
		"an authority":             {set(func(c *x509.Certificate) { c.IsCA, c.BasicConstraintsValid = true, true }), at(noon), time.Time{}, CertificateOfCA},
		"elliptic curve":           {forge(t, signer, k[0], &ec.PublicKey, nil), at(noon), time.Time{}, WeakKey},
		"weak key":                 {forge(t, signer, k[0], weak, nil), at(noon), time.Time{}, WeakKey},
		"policy of another kind":   {set(policyExt(applicationPolicies(policyOIDs[Signing]), false, oidApplicationPolicies)), at(noon), time.Time{}, WrongPolicy},
		"policy that is broken":    {set(policyExt([]byte{0x30, 0x05}, false, oidApplicationPolicies)), at(noon), time.Time{}, Unparsable},
		"unknown demand":           {set(policyExt([]byte{5, 0}, true, asn1.ObjectIdentifier{1, 2, 3})), at(noon), time.Time{}, CriticalExtension},
		"empty":                    {nil, at(noon), time.Time{}, Unparsable},
		"bytes after the end":      {append(bytes.Clone(good), 0), at(noon), time.Time{}, Unparsable},
		"too long":                 {make([]byte, maxCertificate+1), at(noon), time.Time{}, Unparsable},
		"signer of another season": {good, at(noon.AddDate(3, 0, 0)), time.Time{}, SignerNotValid},
	} {
		v := Check(c.der, Encryption, []Signer{{}, {Certificate: signer, DenyIssuedBefore: c.deny}}, c.now)
		if v.Reason != c.want {
			t.Errorf("%s: %q (%s), want %q", name, v.Reason, v.Detail, c.want)
			continue
		}
		if v.OK() && (v.Err() != nil || !v.Key.Equal(pub) || v.HostID != hostID || v.Signer != signer) {
			t.Errorf("%s: %+v", name, v)
		}
		if !v.OK() && (v.Detail == "" || v.Err() == nil || v.Reason.Remedy() == "") {
			t.Errorf("%s: no detail or remedy: %+v", name, v)
		}
	}
}

func TestHostChecksWhatItReceives(t *testing.T) {
	k := keys()
	signer := newSigner(t, k[0])
	issue := func(p Purpose, key *rsa.PublicKey) Certificate {
		der, err := Issue(rand.Reader, at(noon), Order{p, key, hostID, DefaultLife}, signer, k[0])
		if err != nil {
			t.Fatal(err)
		}
		return Certificate{p, der}
	}
	mine := &k[1].PublicKey
	enc, sig, other := issue(Encryption, mine), issue(Signing, mine), issue(Encryption, &k[2].PublicKey)
	both, list := []Purpose{Encryption, Signing}, []*x509.Certificate{signer}
	for name, c := range map[string]struct {
		got     []Certificate
		wanted  []Purpose
		signers []*x509.Certificate
		now     Window
		ok      bool
	}{
		"good":             {[]Certificate{enc, sig}, both, list, at(noon), true},
		"one missing":      {[]Certificate{enc}, both, list, at(noon), false},
		"wrong order":      {[]Certificate{sig, enc}, both, list, at(noon), false},
		"relabelled":       {[]Certificate{enc, {Signing, enc.DER}}, both, list, at(noon), false},
		"another key":      {[]Certificate{other}, both[:1], list, at(noon), false},
		"another signer":   {[]Certificate{enc}, both[:1], []*x509.Certificate{newSigner(t, k[2])}, at(noon), false},
		"no signers":       {[]Certificate{enc}, both[:1], nil, at(noon), false},
		"long ago":         {[]Certificate{enc}, both[:1], list, at(noon.Add(24 * time.Hour)), false},
		"nothing, unasked": {nil, nil, list, at(noon), true},
	} {
		if err := CheckReply(c.got, c.wanted, mine, c.signers, c.now); (err == nil) != c.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzCheck(f *testing.F) {
	k := keys()
	signer := newSigner(f, k[0])
	good, err := Issue(rand.Reader, at(noon), Order{Encryption, &k[1].PublicKey, hostID, DefaultLife}, signer, k[0])
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(signer.Raw)
	f.Add(genuine(f).Raw)
	f.Fuzz(func(t *testing.T, der []byte) {
		v := Check(der, Encryption, []Signer{{Certificate: signer, Own: true}}, at(noon))
		if v.OK() && !bytes.Equal(v.Certificate.RawTBSCertificate, parse(t, good, nil).RawTBSCertificate) {
			t.Fatal("a certificate that nobody issued is accepted")
		}
	})
}

func BenchmarkCheck(b *testing.B) {
	k := keys()
	signer := newSigner(b, k[0])
	der, err := Issue(rand.Reader, at(noon), Order{Encryption, &k[1].PublicKey, hostID, DefaultLife}, signer, k[0])
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if v := Check(der, Encryption, []Signer{{Certificate: signer}}, at(noon)); !v.OK() {
			b.Fatal(v.Reason)
		}
	}
}

func BenchmarkIssue(b *testing.B) {
	k := keys()
	signer := newSigner(b, k[0])
	for b.Loop() {
		if _, err := Issue(rand.Reader, at(noon), Order{Encryption, &k[1].PublicKey, hostID, DefaultLife}, signer, k[0]); err != nil {
			b.Fatal(err)
		}
	}
}

// TestP13_18_SignersLastAYearAndSerialsHaveSixteenBytes; see p13_test.go of package hgsa. The second of issue in a health certificate's
// serial leaves 88 random bits.
func TestP13_18_SignersLastAYearAndSerialsHaveSixteenBytes(t *testing.T) {
	k := keys()
	year := 365 * 24 * time.Hour
	if DefaultSignerLife != year {
		t.Errorf("a signer lasts %s", DefaultSignerLife)
	}
	seen := map[string]bool{}
	for range 20 {
		signer, err := NewSignerCertificate(rand.Reader, at(noon), "", DefaultSignerLife, k[0])
		s := parse(t, signer, err)
		der, err := Issue(rand.Reader, at(noon), Order{Signing, &k[1].PublicKey, hostID, DefaultLife}, s, k[0])
		for _, c := range []*x509.Certificate{s, parse(t, der, err)} {
			raw := c.SerialNumber.FillBytes(make([]byte, 16))
			if random := string(raw[secondBytes:]); c.SerialNumber.Sign() <= 0 || raw[0]&0x80 != 0 || seen[random] {
				t.Errorf("serial %x", raw)
			} else {
				seen[random] = true
			}
			if der, err := asn1.Marshal(c.SerialNumber); err != nil || len(der) > 2+16 {
				t.Errorf("serial of %d bytes: %v", len(der)-2, err)
			}
		}
	}
}

// TestAHostsClockMayBeOffByFiveMinutes: row G01. Two hours behind are told as what they are; two hours ahead cost the host only the end of
// the certificate's life.
func TestAHostsClockMayBeOffByFiveMinutes(t *testing.T) {
	k := keys()
	old, err := NewSignerCertificate(rand.Reader, at(noon.AddDate(0, -1, 0)), "", DefaultSignerLife, k[0])
	signer := parse(t, old, err)
	der, err := Issue(rand.Reader, at(noon), Order{Encryption, &k[1].PublicKey, hostID, DefaultLife}, signer, k[0])
	if err != nil {
		t.Fatal(err)
	}
	for off, reason := range map[time.Duration]Reason{-5 * time.Minute: "", 5 * time.Minute: "", 2 * time.Hour: "", -2 * time.Hour: NotYetValid, 10 * time.Hour: Expired} {
		err := CheckReply([]Certificate{{Encryption, der}}, []Purpose{Encryption}, &k[1].PublicKey, []*x509.Certificate{signer}, at(noon.Add(off)))
		switch {
		case reason == "" && err != nil:
			t.Errorf("a host whose clock is off by %v: %v", off, err)
		case reason != "" && (err == nil || !strings.Contains(err.Error(), string(reason)) || !strings.Contains(reason.Remedy(), "clock")):
			t.Errorf("a host whose clock is off by %v: %v (%s)", off, err, reason.Remedy())
		}
	}
}
