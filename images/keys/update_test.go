package keys

import (
	"bytes"
	"crypto/x509"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// openssl checks the signature as firmware does (EDK II verifies with the same library), over bytes that are put together here by hand from
// UEFI specification 8.2.2. That firmware itself takes such a file is shown by a boot, in package images.
func TestOthersVerifyAFirmwareUpdate(t *testing.T) {
	s, other := made(t, "Contoso", false), made(t, "Contoso", false)
	when := time.Date(2026, 11, 22, 20, 15, 30, 0, time.UTC)
	u := Update{"dbx", true, HashList(s.Owner, [32]byte{7}), when}
	file, err := s.SignUpdate(u)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := s.SignUpdate(u); err != nil || !bytes.Equal(file, again) {
		t.Errorf("signed twice, differs (%v)", err)
	}
	if !bytes.Equal(file[:16], []byte{0xea, 0x07, 11, 22, 20, 15, 30, 0, 0, 0, 0, 0, 0, 0, 0, 0}) {
		t.Errorf("time %x", file[:16])
	}
	n := int(binary.LittleEndian.Uint32(file[16:]))
	if !bytes.Equal(file[20:authHeader], []byte{0, 2, 0xf1, 0x0e, 0x9d, 0xd2, 0xaf, 0x4a, 0xdf, 0x68, 0xee, 0x49, 0x8a, 0xa9, 0x34, 0x7d, 0x37, 0x56, 0x65, 0xa7}) || !bytes.Equal(file[16+n:], u.Data) {
		t.Errorf("header %x", file[:authHeader])
	}
	p7 := file[authHeader : 16+n]
	if sha := []byte{0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, 1}; p7[1]&0x82 != 0x82 || !bytes.Equal(p7[13:22], sha) { // where EDK II looks for it
		t.Errorf("SHA-256 is not at offset 13: %x", p7[:24])
	}
	message := []byte("d\x00b\x00x\x00\xcb\xb2\x19\xd7\x3a\x3d\x96\x45\xa3\xbc\xda\xd0\x0e\x67\x65\x6f\x67\x00\x00\x00")
	message = append(append(message, file[:16]...), u.Data...)
	if err := opensslVerifies(t, p7, message, s.Certs[KEK]); err != nil {
		t.Error(err)
	}
	if opensslVerifies(t, p7, append(message, 0), s.Certs[KEK]) == nil || opensslVerifies(t, p7, message, other.Certs[KEK]) == nil {
		t.Error("openssl takes other data or another signer")
	}
	if _, err := s.SignUpdate(Update{Name: "Boot0000"}); !errors.Is(err, ErrUpdate) {
		t.Errorf("%v", err)
	}
}

// opensslVerifies wraps the bare SignedData, which openssl's command wants in a ContentInfo.
func opensslVerifies(t *testing.T, p7, message []byte, cert *x509.Certificate) error {
	t.Helper()
	dir := t.TempDir()
	oid := []byte{6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0xd, 1, 7, 2}
	wrap := func(tag byte, b []byte) []byte {
		return append([]byte{tag, 0x82, byte(len(b) >> 8), byte(len(b))}, b...)
	}
	in, data, ca := filepath.Join(dir, "p7"), filepath.Join(dir, "data"), filepath.Join(dir, "ca.pem")
	if err := errors.Join(os.WriteFile(in, wrap(0x30, append(oid, wrap(0xa0, p7)...)), 0o600), os.WriteFile(data, message, 0o600),
		os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw}), 0o600)); err != nil {
		t.Fatal(err)
	}
	c := exec.Command("openssl", "smime", "-verify", "-binary", "-inform", "DER", "-in", in, "-content", data, "-CAfile", ca, "-purpose", "any", "-no_check_time", "-out", os.DevNull)
	if out, err := c.CombinedOutput(); err != nil {
		return errors.New(string(out))
	}
	return nil
}

func TestEachStepIsSignedByWhoMayMakeIt(t *testing.T) {
	old, next := made(t, "Contoso", false), made(t, "Contoso", false)
	now := time.Unix(1795000000, 0)
	updates, files, err := RolloverSteps(old, next, now)
	if err != nil {
		t.Fatal(err)
	}
	states := Rollover(old, next)
	if len(updates) != len(states)-1 {
		t.Fatalf("%d steps for %d states", len(updates), len(states))
	}
	for i, u := range updates {
		before, after := states[i], states[i+1]
		by := before.KEK[len(before.KEK)-1].Certs[KEK]
		if i == 0 { // the only KEK there is
			by = old.Certs[KEK]
		}
		if u.Name == "PK" || u.Name == "KEK" {
			by = before.PK.Certs[PK]
		}
		message, err := u.signed()
		if err != nil {
			t.Fatal(err)
		}
		n := int(binary.LittleEndian.Uint32(files[i][16:]))
		if err := opensslVerifies(t, files[i][authHeader:16+n], message, by); err != nil {
			t.Errorf("step %d, %s: %v", i+1, u.Name, err)
		}
		for k, v := range before.Variables(nil) { // what firmware makes of it is the next state
			want := after.Variables(nil)[k].Data
			if v.Name == u.Name && u.Append {
				v.Data = append(bytes.Clone(v.Data), u.Data...)
			} else if v.Name == u.Name {
				v.Data = u.Data
			}
			if !bytes.Equal(v.Data, want) {
				t.Errorf("step %d: %s is not what was predicted", i+1, v.Name)
			}
		}
	}
}
