package kps

import (
	"bytes"
	"crypto"
	"encoding/base64"
	"encoding/hex"
	"strings"
	"testing"
)

func vectorKeys() [][]byte {
	b := make([]byte, 64)
	for i := range b {
		b[i] = byte(i)
	}
	return [][]byte{b[:32], b[32:]}
}

// The vectors of the protocol reference, section 17.3.
func TestPayloadMatchesThePublishedVectors(t *testing.T) {
	keys := hex.EncodeToString(bytes.Join(vectorKeys(), nil))
	for name, c := range map[string]struct {
		payload Payload
		hex     string
	}{
		"V1":            {Payload{Version: PayloadV1, Keys: vectorKeys()}, "50000000010000000200000020000000" + keys},
		"V2":            {Payload{Version: PayloadV2, Keys: vectorKeys()}, "54000000020000000200000020000000" + keys + "00000000"},
		"V2 and policy": {Payload{Version: PayloadV2, Keys: vectorKeys(), Policies: []Policy{OfflinePolicy(1)}}, "64000000020000000200000020000000" + keys + "0100000001000000060000000400000001000000"},
	} {
		got, err := c.payload.Marshal()
		if err != nil || hex.EncodeToString(got) != c.hex {
			t.Errorf("%s: %v\ngot  %x\nwant %s", name, err, got, c.hex)
		}
		want, _ := hex.DecodeString(c.hex)
		back, err := ParsePayload(want)
		if err != nil || back.Version != c.payload.Version || len(back.Keys) != 2 || len(back.Policies) != len(c.payload.Policies) ||
			!bytes.Equal(back.Keys[0], c.payload.Keys[0]) || !bytes.Equal(back.Keys[1], c.payload.Keys[1]) {
			t.Errorf("%s: read back %v, %v", name, back, err)
		}
	}
}

func TestRefusesPayloadsOfWrongLength(t *testing.T) {
	good, err := (&Payload{Version: PayloadV2, Keys: vectorKeys(), Policies: []Policy{OfflinePolicy(1)}}).Marshal()
	if err != nil {
		t.Fatal(err)
	}
	change := func(at int, value byte) []byte {
		b := append([]byte(nil), good...)
		b[at] = value
		return b
	}
	sized := func(b []byte) []byte {
		b = append([]byte(nil), b...)
		b[0] = byte(len(b))
		return b
	}
	for name, blob := range map[string][]byte{
		"empty": nil, "header only": sized(good[:16]), "size too small": change(0, 0x63), "size too large": change(0, 0x65),
		"version 0": change(4, 0), "version 3": change(4, 3), "no keys": change(8, 0), "17 keys": change(8, 17), "3 keys": change(8, 3),
		"empty keys": change(12, 0), "longer keys": change(12, 0xff), "key of 4 GiB": change(15, 0xff), "many keys": change(11, 0xff),
		"two policies": change(80, 2), "no policy but bytes": change(80, 0), "policy id": change(84, 2), "policy type": change(88, 7),
		"policy too long": change(92, 5), "policy too short": change(92, 3),
		"cut policy": sized(good[:90]), "cut count": sized(good[:82]), "trailing": sized(append(good[:100:100], 0)),
	} {
		if _, err := ParsePayload(blob); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// The example of RFC 7518 appendix C, whose derivation is ConcatKDF.
func TestConcatKDFMatchesRFC7518(t *testing.T) {
	z := []byte{158, 86, 217, 29, 129, 113, 53, 211, 114, 131, 66, 131, 191, 132, 38, 156,
		251, 49, 110, 163, 218, 128, 106, 72, 246, 218, 167, 121, 140, 254, 144, 196}
	kd := KeyDerivation{Digest: crypto.SHA256, Info: [5][]byte{
		[]byte("\x00\x00\x00\x07A128GCM"), []byte("\x00\x00\x00\x05Alice"), []byte("\x00\x00\x00\x03Bob"), {0, 0, 0, 128}, nil}}
	if got := base64.RawURLEncoding.EncodeToString(kd.derive(z, 16)); got != "VqqN6vgjbSBcIijNcacQGg" {
		t.Errorf("got %s", got)
	}
}

// transportKeyVector was computed by another implementation of the same profile (Python's
// hashlib and hmac): key 00..1f, message "abc".
const transportKeyVector = "1f730cd66cad72e7a196618b4e7d76b29e31af6bc955ddb5b7ad8ca2731ff588"

func TestTransportKeySignatureMatchesAnotherImplementation(t *testing.T) {
	tag := macTransportKey(defaultKeyDerivation(HMACSHA256), vectorKeys()[0], []byte("abc"))
	if got := hex.EncodeToString(tag); got != transportKeyVector {
		t.Errorf("got %s", got)
	}
}

func TestRefusesWrongParametersOfDerivation(t *testing.T) {
	p, _ := testProtector(t)
	params := "<Parameters><xenc11:ConcatKDFParams" + between(t, p.Bytes(), "<Parameters><xenc11:ConcatKDFParams", "</KeyDerivationMethod>")
	for name, to := range map[string]string{
		"none":         "",
		"empty":        "<Parameters/>",
		"two":          strings.Replace(params, "</Parameters>", `<ConcatKDFParams/></Parameters>`, 1),
		"no digest":    `<Parameters><x:ConcatKDFParams xmlns:x="` + xenc11Namespace + `"/></Parameters>`,
		"SHA-1":        strings.Replace(params, digestSHA256, "http://www.w3.org/2000/09/xmldsig#sha1", 1),
		"odd hex":      strings.Replace(params, `PartyUInfo="00"`, `PartyUInfo="0"`, 1),
		"empty string": strings.Replace(params, `PartyUInfo="00"`, `PartyUInfo=""`, 1),
		"unknown":      strings.Replace(params, `PartyUInfo=`, `PartyXInfo=`, 1),
	} {
		if _, err := ParseProtector(edited(t, p.Bytes(), params, to)); CodeOf(err) != CodeInvalidProtector {
			t.Errorf("%s: %v", name, err)
		}
	}
}
