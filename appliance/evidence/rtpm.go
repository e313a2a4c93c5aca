package evidence

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/hmac"
	"crypto/rsa"
	"encoding/binary"
	"errors"
	"fmt"
)

// The five commands that a server may have a host's TPM run (hgsa.md 8.1).
const (
	ccCreatePrimary    = 0x00000131
	ccCreate           = 0x00000153
	ccReadPublic       = 0x00000173
	ccStartAuthSession = 0x00000176
	ccPCRRead          = 0x0000017e
)

// TPM constants (TCG Part 2).
const (
	tagNoSessions  = 0x8001
	tagSessions    = 0x8002
	rhEndorsement  = 0x4000000b
	rhNull         = 0x40000007
	rsPassword     = 0x40000009
	persistentEK   = 0x81010001 // TCG Provisioning Guidance: RSA 2048; Windows puts its endorsement key there
	attrContinue   = 0x01
	attrAudit      = 0x80
	maxResponse    = 4096
	maxCommandSize = 4096

	rcHash      = 0x083 // TPM_RC_HASH: the TPM has no such algorithm
	rcParameter = 0xf40 // which parameter the response code is about
)

// errEmptyBank is the TPM's authentic word that a bank it knows is switched off.
var errEmptyBank = fmt.Errorf("%w: switched off", ErrBank)

// ErrCommand is why a client must not run a command.
var ErrCommand = errors.New("not one of the five commands a health attestation may run")

// CheckCommand says whether a TPM command from a server may be run: well formed, one of the five, and for CreatePrimary in the
// endorsement hierarchy with an empty password, so that nothing of the owner's is touched. For clients.
func CheckCommand(cmd []byte) error {
	be := binary.BigEndian
	if len(cmd) < 10 || len(cmd) > maxCommandSize || int(be.Uint32(cmd[2:])) != len(cmd) {
		return fmt.Errorf("%w: malformed", ErrCommand)
	}
	switch code := be.Uint32(cmd[6:]); code {
	case ccCreate, ccReadPublic, ccStartAuthSession, ccPCRRead:
		return nil
	case ccCreatePrimary:
		password := append(be.AppendUint32(be.AppendUint32(nil, 9), rsPassword), 0, 0, 0, 0, 0)
		if len(cmd) < 14+len(password) || be.Uint32(cmd[10:]) != rhEndorsement || !bytes.Equal(cmd[14:14+len(password)], password) {
			return fmt.Errorf("%w: CreatePrimary elsewhere than in the endorsement hierarchy", ErrCommand)
		}
		return nil
	default:
		return fmt.Errorf("%w: code 0x%x", ErrCommand, code)
	}
}

func command(tag uint16, code uint32, body ...[]byte) []byte {
	b := binary.BigEndian.AppendUint16(nil, tag)
	b = binary.BigEndian.AppendUint32(b, 0)
	b = binary.BigEndian.AppendUint32(b, code)
	for _, part := range body {
		b = append(b, part...)
	}
	binary.BigEndian.PutUint32(b[2:], uint32(len(b)))
	return b
}

func sized2B(b []byte) []byte {
	return append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...)
}

func words(vs ...uint32) []byte {
	var b []byte
	for _, v := range vs {
		b = binary.BigEndian.AppendUint32(b, v)
	}
	return b
}

// ekTemplate is a default template of the TCG EK Credential Profile for TPM 2.0 (annex B), from which a TPM makes the same key each time.
type ekTemplate struct {
	ecc        bool
	bits       int  // of the modulus or the curve
	nameAlg    Bank // also of the salt
	aes        uint16
	attributes uint32
	policy     string
	unique     int    // zero bytes of the modulus, or of each coordinate
	persistent uint32 // where swtpm_setup and manufacturers keep the key, if they do
}

// policyA is PolicySecret(endorsement hierarchy) under SHA-256, of the low range; policyB is the SHA-384 policy of the high range. A wrong
// one would make another key than the registered one: the tests compare with the keys that swtpm_setup makes.
const (
	policyA = "\x83\x71\x97\x67\x44\x84\xb3\xf8\x1a\x90\xcc\x8d\x46\xa5\xd7\x24\xfd\x52\xd7\x6e\x06\x52\x0b\x64\xf2\xa1\xda\x1b\x33\x14\x69\xaa"
	policyB = "\xb2\x6e\x7d\x28\xd1\x1a\x50\xbc\x53\xd8\x82\xbc\xf5\xfd\x3a\x1a\x07\x41\x48\xbb\x35\xd3\xb4\xe4" +
		"\xcb\x1c\x0a\xd9\xbd\xe4\x19\xca\xcb\x47\xba\x09\x69\x96\x46\x15\x0f\x9f\xc0\x00\xf3\xf8\x0e\x12"
)

// The templates from which TPM attestation can have a key made. Windows uses L-1.
var ekTemplates = [...]ekTemplate{
	{false, 2048, SHA256, 128, 0x000300b2, policyA, 256, persistentEK}, // L-1
	{true, 256, SHA256, 128, 0x000300b2, policyA, 32, persistentEK},    // L-2
	{true, 384, SHA384, 256, 0x000300f2, policyB, 0, 0x81010016},       // H-3
	{false, 3072, SHA384, 256, 0x000300f2, policyB, 0, 0x8101001c},     // H-6
}

// templateFor is the template that an endorsement key was made from, as far as the key tells.
func templateFor(ek *EK) (*ekTemplate, error) {
	ecc, bits := false, 0
	switch key := ek.Public.(type) {
	case *rsa.PublicKey:
		bits = key.N.BitLen()
	case *ecdsa.PublicKey:
		ecc, bits = true, key.Params().BitSize
	}
	for i := range ekTemplates {
		if t := &ekTemplates[i]; t.ecc == ecc && t.bits == bits && t.nameAlg == ek.NameAlg {
			return t, nil
		}
	}
	kind := fmt.Sprintf("RSA of %d bits", bits)
	if ecc {
		kind = fmt.Sprintf("P-%d", bits)
	}
	return nil, fmt.Errorf("%w: TPM attestation takes RSA 2048 and P-256 with SHA-256, RSA 3072 and P-384 with SHA-384, and this one is %s with %s",
		ErrEKKind, kind, ek.NameAlg)
}

// CanAttest is why no TPM with this endorsement key can attest here, or nil. Keys of other sizes or name algorithms are read, and
// registered by older versions, but no conversation can be held with their TPMs.
func (k *EK) CanAttest() error {
	_, err := templateFor(k)
	return err
}

// create is CreatePrimary with the template.
func (e *ekTemplate) create() []byte {
	be := binary.BigEndian
	typ, size := uint16(tpmAlgRSA), uint16(e.bits)
	switch {
	case e.ecc && e.bits == 256:
		typ, size = tpmAlgECC, tpmP256
	case e.ecc:
		typ, size = tpmAlgECC, tpmP384
	}
	t := be.AppendUint32(be.AppendUint16(be.AppendUint16(nil, typ), uint16(e.nameAlg)), e.attributes)
	t = append(t, sized2B([]byte(e.policy))...)
	for _, v := range []uint16{tpmAlgAES, e.aes, tpmAlgCFB, tpmAlgNull, size} {
		t = be.AppendUint16(t, v)
	}
	unique := sized2B(make([]byte, e.unique))
	if e.ecc {
		t = append(append(be.AppendUint16(t, tpmAlgNull), unique...), unique...)
	} else {
		t = append(be.AppendUint32(t, 0), unique...)
	}
	return command(tagSessions, ccCreatePrimary,
		words(rhEndorsement, 9, rsPassword), []byte{0, 0, 0, 0, 0}, // empty password
		[]byte{0, 4, 0, 0, 0, 0}, sized2B(t), []byte{0, 0}, words(0)) // nothing sensitive, no outside information, no PCRs
}

// response is a TPM response without its header.
type response struct {
	code uint32
	body []byte // after the code
	tag  uint16
}

func parseResponse(b []byte) (response, error) {
	be := binary.BigEndian
	if len(b) < 10 || len(b) > maxResponse || int(be.Uint32(b[2:])) != len(b) {
		return response{}, fmt.Errorf("%w: malformed TPM response", ErrContext)
	}
	r := response{tag: be.Uint16(b), code: be.Uint32(b[6:]), body: b[10:]}
	if r.code != 0 && len(r.body) != 0 || r.tag != tagNoSessions && r.tag != tagSessions {
		return response{}, fmt.Errorf("%w: malformed TPM response", ErrContext)
	}
	return r, nil
}

// take2B cuts a TPM2B off b, nil rest if there is none.
func take2B(b []byte) (value, rest []byte, ok bool) {
	if len(b) < 2 || int(binary.BigEndian.Uint16(b)) > len(b)-2 {
		return nil, nil, false
	}
	n := 2 + int(binary.BigEndian.Uint16(b))
	return b[2:n], b[n:], true
}

// readPCRs is PCR_Read of eight PCRs of a bank, under the audit session.
func (s *session) readPCRs(from int, nonceCaller []byte, last bool) []byte {
	params := append(binary.BigEndian.AppendUint16(words(1), uint16(s.bank)), 3, 0, 0, 0)
	params[7+from/8] = 0xff
	attributes := byte(attrContinue | attrAudit)
	if last {
		attributes = attrAudit
	}
	cp := SHA256.sum(nil, append(words(ccPCRRead), params...))
	mac := s.hmac(cp, nonceCaller, s.nonceTPM, attributes)
	auth := append(words(s.handle), sized2B(nonceCaller)...)
	auth = append(append(auth, attributes), sized2B(mac)...)
	return command(tagSessions, ccPCRRead, words(uint32(len(auth))), auth, params)
}

func (s *session) hmac(parametersHash, newer, older []byte, attributes byte) []byte {
	h := hmac.New(SHA256.Hash().New, s.key)
	h.Write(parametersHash)
	h.Write(newer)
	h.Write(older)
	h.Write([]byte{attributes})
	return h.Sum(nil)
}

// pcrValues verifies the response to readPCRs and gives the update counter and the eight values. It rolls the TPM's nonce.
func (s *session) pcrValues(r response, from int, last bool) (counter uint32, values []byte, err error) {
	if r.code&^rcParameter == rcHash {
		return 0, nil, fmt.Errorf("%w: it does not know %s", ErrBank, s.bank)
	}
	if r.code != 0 {
		return 0, nil, fmt.Errorf("%w: PCR_Read answered 0x%x", ErrTPM, r.code)
	}
	be := binary.BigEndian
	bad := fmt.Errorf("%w: malformed response to PCR_Read", ErrContext)
	if r.tag != tagSessions || len(r.body) < 4 || uint64(be.Uint32(r.body)) > uint64(len(r.body)-4) {
		return 0, nil, bad
	}
	n := 4 + be.Uint32(r.body)
	params, auth := r.body[4:n], r.body[n:]
	nonce, auth, ok := take2B(auth)
	if !ok || len(auth) < 1 || len(nonce) != 32 {
		return 0, nil, bad
	}
	attributes := auth[0]
	mac, auth, ok := take2B(auth[1:])
	if !ok || len(auth) != 0 {
		return 0, nil, bad
	}
	if (attributes&attrContinue == 0) != last || attributes&attrAudit == 0 {
		return 0, nil, fmt.Errorf("%w: the response is of another session", ErrForged)
	}
	rp := SHA256.sum(nil, append(words(0, ccPCRRead), params...))
	if !hmac.Equal(mac, s.hmac(rp, nonce, s.nonceCaller, attributes)) {
		return 0, nil, fmt.Errorf("%w: the values do not come from the registered TPM", ErrForged)
	}
	s.nonceTPM = bytes.Clone(nonce)
	return s.selected(params, from)
}

// selected reads the parameters of an authentic response: counter, selection, digests. The TPM must have given all eight.
func (s *session) selected(params []byte, from int) (counter uint32, values []byte, err error) {
	be := binary.BigEndian
	want := append(be.AppendUint16(words(1), uint16(s.bank)), 3, 0, 0, 0)
	if none := append(bytes.Clone(want), 0, 0, 0, 0); len(params) >= 4 && bytes.Equal(params[4:], none) {
		return 0, nil, fmt.Errorf("%w: %s", errEmptyBank, s.bank)
	}
	want[7+from/8] = 0xff
	if len(params) < 4+len(want)+4 || !bytes.Equal(params[4:4+len(want)], want) || be.Uint32(params[4+len(want):]) != 8 {
		return 0, nil, fmt.Errorf("%w: the TPM has no %s bank with PCR %d to %d", ErrTPM, s.bank, from, from+7)
	}
	counter = be.Uint32(params)
	rest := params[4+len(want)+4:]
	for range 8 {
		var v []byte
		var ok bool
		if v, rest, ok = take2B(rest); !ok || len(v) != s.bank.Size() {
			return 0, nil, fmt.Errorf("%w: PCR value of the wrong size", ErrTPM)
		}
		values = append(values, v...)
	}
	if len(rest) != 0 {
		return 0, nil, fmt.Errorf("%w: bytes after the PCR values", ErrTPM)
	}
	return counter, values, nil
}
