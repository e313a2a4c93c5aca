package evidence

import (
	"bytes"
	"crypto/x509/pkix"
	"encoding/binary"
	"encoding/hex"
	"slices"
	"testing"
)

func hexOf(b []byte) string { return hex.EncodeToString(b) }

func FuzzParseLog(f *testing.F) {
	for _, name := range []string{"crypto_agile_eventlog", "short_no_action_eventlog", "debian-10.bin"} {
		f.Add(read(f, name))
	}
	f.Add(read(f, "hostsim.tcglog"))
	windows, _ := vm(f)
	f.Add(windows)
	f.Add(read(f, "option_rom_eventlog"))
	f.Add(goodBoot(SHA1, SHA256).Log())
	f.Fuzz(func(t *testing.T, raw []byte) {
		for _, bank := range []Bank{SHA1, SHA256} {
			pcrs, failure := Replay(raw, bank)
			if failure != nil {
				continue
			}
			facts, failure := Prove(raw, pcrs, bank)
			if (facts == nil) == (failure == nil) {
				t.Fatal("facts and failure, or neither")
			}
		}
		_, _ = ParseBaseline(raw)
		if l, failure := ParseLog(raw); failure == nil {
			for i := range l.Events {
				if len(l.Describe(i)) > 4096 {
					t.Fatal("a long description")
				}
			}
		}
	})
}

// FuzzTagged fuzzes the Windows events behind digests that fit them.
func FuzzTagged(f *testing.F) {
	for _, e := range (&boot{}).system() {
		f.Add(e)
		f.Add(TrustBoundary(e))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		b := &boot{NewWriter(SHA1)}
		b.firmware()
		b.Event(12, EventTag, data)
		b.Event(7, EventVariableAuthz, data)
		b.seal()
		facts, failure := Prove(b.Log(), b.PCRs(SHA1), SHA1)
		if (facts == nil) == (failure == nil) {
			t.Fatal("facts and failure, or neither")
		}
	})
}

// FuzzCheckCommand: whatever a server sends, only the five commands are run, and CreatePrimary in the endorsement hierarchy only.
func FuzzCheckCommand(f *testing.F) {
	for _, cmd := range [][]byte{createEK(true), createEK(false), command(tagNoSessions, ccReadPublic, words(persistentEK)),
		command(tagNoSessions, ccStartAuthSession, words(rhNull, rhNull)), command(tagSessions, ccPCRRead), command(tagSessions, 0x126)} {
		f.Add(cmd)
	}
	five := []uint32{0x131, 0x153, 0x173, 0x176, 0x17e} // as in hgsa.md 8.1
	f.Fuzz(func(t *testing.T, cmd []byte) {
		if CheckCommand(cmd) != nil {
			return
		}
		code := binary.BigEndian.Uint32(cmd[6:])
		if !slices.Contains(five, code) || int(binary.BigEndian.Uint32(cmd[2:])) != len(cmd) || code == 0x131 && binary.BigEndian.Uint32(cmd[10:]) != 0x4000000b {
			t.Fatalf("%x would be run", cmd)
		}
	})
}

// FuzzParseCertificate: what is forgiven never changes what was signed.
func FuzzParseCertificate(f *testing.F) {
	_, middle := hierarchy(f)
	key := &rsaKeys()[2].PublicKey
	plain := middle.issue(f, issue{name: "ek", key: key})
	for _, der := range [][]byte{plain, append(bytes.Clone(plain), bytes.Repeat([]byte{0xff}, 40)...), middle.issue(f, issue{name: "ek", key: key, sha1: true}),
		slices.Concat([]byte(nvHeader), binary.BigEndian.AppendUint16(nil, uint16(len(plain)+2)), []byte{0x10, 2}, plain),
		middle.issue(f, issue{name: "ek", key: key, serial: []byte{0, 0, 1}}), middle.issue(f, issue{name: "ek", key: key, extra: []pkix.Extension{sanTPM(f)}})} {
		f.Add(der)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		c, err := ParseCertificate(raw)
		if err != nil {
			return
		}
		again, err := ParseCertificate(c.Original)
		if err != nil || !bytes.Equal(again.Original, c.Original) || !bytes.Contains(raw, c.Original) || !bytes.Contains(c.Original, c.tbs) {
			t.Fatalf("the certificate changes when it is read again: %v", err)
		}
		if _, _, version := c.TPM(); len(version) > len(raw) {
			t.Fatal("a name from nowhere")
		}
	})
}
