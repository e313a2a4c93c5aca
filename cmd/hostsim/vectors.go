package main

import (
	"bytes"
	"crypto/md5"
	"crypto/rsa"
	_ "embed"
	"encoding/hex"
	"fmt"

	"guardhouse/appliance/hgsa"
	"guardhouse/appliance/kps"
)

// Vectors that our encoders did not make: a certificate issued by a genuine service (hgsa.md 14.2), a canonical form computed by two
// other canonicalisers (kps.md 17.2), byte layouts (17.3), messages written by hand after the specification (hgsa.md 12).
var (
	//go:embed vectors/genuine-health-certificate.pem
	genuineCertificate []byte
	//go:embed vectors/wrappings.xml
	wrappingsDocument []byte
)

const (
	genuineSHA256    = "afa3d309e5644ebb0de0e7caad8ce97af20c56178bc2f5d893a32c785b3a226a"
	genuineSKI       = "316e6961168e559d15e0c4932ac5420b"
	canonicalSHA256  = "17a82b54c8c269eb2ebb92cff51701a387c142d8f83cf6d158b9606102098da6"
	payloadV2NoKeys  = "54000000020000000200000020000000"
	getInfoByHand    = `{"__type":"ServiceInfoReply:#Microsoft.Windows.RemoteAttestation.Core","FunctionalLevel":2,"OperationMode":3,"SupportedFunctionalLevels":[1,2]}`
	modeErrorByHand  = `{"__type":"OperationModeErrorReply:#Microsoft.Windows.RemoteAttestation.Core","Retryable":true,"ExpectedOperationMode":3}`
	signingByHand    = `[48,130,4,18,6,9,42,134,72,134,247,13,1,7,2]`
	signingWithBlank = `[48, 130]`
)

func vectors(o *options) error {
	cert, err := certificateOf(genuineCertificate)
	if err != nil {
		return err
	}
	ski := md5.Sum(cert.RawSubjectPublicKeyInfo)
	canon, err := kps.CanonicalWrappings(wrappingsDocument)
	if err != nil {
		return err
	}
	blob, _ := hex.DecodeString(payloadV2NoKeys)
	for i := range 64 {
		blob = append(blob, byte(i))
	}
	blob = append(blob, 0, 0, 0, 0)
	payload, perr := kps.ParsePayload(blob)
	info, ierr := hgsa.ParseReply(200, []byte(getInfoByHand))
	_, merr := hgsa.ParseReply(200, []byte(modeErrorByHand))
	next, switched := hgsa.NextMode(hgsa.ModeTPM, merr)
	pub, _ := cert.PublicKey.(*rsa.PublicKey)
	sipa, serr := hgsa.EncodePublicKey(pub, hgsa.KeySIPA)
	back, berr := hgsa.ParsePublicKey(sipa)

	checks := []struct {
		what string
		ok   bool
	}{
		{"genuine health certificate: the whole", sha256hex(cert.Raw) == genuineSHA256},
		{"genuine health certificate: key identifier is MD5 of the key", hex.EncodeToString(ski[:]) == genuineSKI && bytes.Equal(cert.SubjectKeyId, ski[:])},
		{"genuine key in the boot log's form and back", serr == nil && berr == nil && hgsa.SameKey(back.RSA, pub) && bytes.HasPrefix(sipa, []byte{1, 0, 0, 0, 0, 8, 0, 0, 3, 0, 0, 0, 0, 1, 0, 0, 1, 0, 1})},
		{"canonical form of Wrappings", len(canon) == 640 && sha256hex(canon) == canonicalSHA256},
		{"transport key payload, version 2", perr == nil && len(payload.Keys) == 2 && payload.Keys[0][0] == 0 && payload.Keys[1][0] == 32},
		{"Getinfo reply written by hand", ierr == nil && info.(*hgsa.ServiceInfoReply).OperationMode == hgsa.ModeHostKey},
		{"mode error written by hand switches the mode", switched && next == hgsa.ModeHostKey},
		{"signingCertificates as the JDBC driver reads it", hgsa.CheckSigningBody([]byte(signingByHand)) == nil && hgsa.CheckSigningBody([]byte(signingWithBlank)) != nil},
	}
	bad := 0
	for _, c := range checks {
		word := "ok"
		if !c.ok {
			word = "WRONG"
			bad++
		}
		o.say(c.what, c.ok, "%-6s %s", word, c.what)
	}
	if bad > 0 {
		return fmt.Errorf("%d of %d vectors do not hold", bad, len(checks))
	}
	return nil
}
