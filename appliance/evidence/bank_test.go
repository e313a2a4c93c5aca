package evidence

import (
	"errors"
	"fmt"
	"os/exec"
	"testing"
)

// provisioned is the state of a TPM whose firmware has switched only some banks on.
func provisioned(t testing.TB, banks string) string {
	t.Helper()
	dir := t.TempDir()
	if out, err := exec.Command("swtpm_setup", "--tpm2", "--tpmstate", "dir://"+dir, "--pcr-banks", banks, "--overwrite").CombinedOutput(); err != nil {
		t.Fatalf("swtpm_setup (Debian package swtpm-tools): %v: %s", err, out)
	}
	return dir
}

// TestWhichBankIsRead: SHA-256 where the TPM has it, else SHA-384; never SHA-1, and a host with nothing else is told so.
func TestWhichBankIsRead(t *testing.T) {
	for _, c := range []struct {
		banks  string
		logged []Bank
		read   Bank // 0: refused
		rounds int
	}{
		{"sha1,sha256", []Bank{SHA1, SHA256}, SHA256, 6},
		{"sha256,sha384", []Bank{SHA256, SHA384}, SHA256, 6},
		{"sha384", []Bank{SHA384}, SHA384, 7},
		{"sha1,sha384", []Bank{SHA1, SHA384}, SHA384, 7},
		{"sha1", []Bank{SHA1}, 0, 5},
	} {
		d := startTPMIn(t, provisioned(t, c.banks))
		boot := goodBoot(c.logged...)
		for _, x := range boot.Extends {
			d.extend(x, c.logged)
		}
		h := Host{EK: d.ek(true, false), Bank: SHA256, Fallback: SHA384}
		reading, rounds, err := converse(t, h, &client{device: d, log: boot.Log()})
		if rounds != c.rounds {
			t.Errorf("%s: %d rounds, want %d", c.banks, rounds, c.rounds)
		}
		if c.read == 0 {
			if !errors.Is(err, ErrBank) {
				t.Errorf("%s: %v, want %v", c.banks, err, ErrBank)
			}
			continue
		}
		if err != nil || reading.Bank != c.read {
			t.Errorf("%s: %+v %v", c.banks, reading, err)
			continue
		}
		if facts := mustProve(t, reading.Log, reading.PCRs, reading.Bank); facts.Bank != c.read || facts.IDK == nil {
			t.Errorf("%s: the log proves nothing", c.banks)
		}
		// Without a fallback nothing but the one bank is read.
		h.Fallback = 0
		if _, _, err := converse(t, h, &client{device: d, log: boot.Log()}); (c.read == SHA256) != (err == nil) || err != nil && !errors.Is(err, ErrBank) {
			t.Errorf("%s without a fallback: %v", c.banks, err)
		}
	}
}

// TestEndorsementKeysOfEveryTemplate: the keys that a manufacturer's tool makes are found where it keeps them, made anew from the template
// where they are not kept, and attest.
func TestEndorsementKeysOfEveryTemplate(t *testing.T) {
	for bits, keys := range map[string][]int{"2048": {0, 2}, "3072": {3, 2}} {
		dir := t.TempDir()
		if out, err := exec.Command("swtpm_setup", "--tpm2", "--tpmstate", "dir://"+dir, "--createek", "--rsa-keysize", bits, "--overwrite").CombinedOutput(); err != nil {
			t.Fatalf("swtpm_setup (Debian package swtpm-tools): %v: %s", err, out)
		}
		d := startTPMIn(t, dir)
		boot := goodBoot(SHA256)
		for _, x := range boot.Extends {
			d.extend(x, []Bank{SHA256})
		}
		for _, i := range keys {
			template := ekTemplates[i]
			name := fmt.Sprintf("ecc %t, %d bits", template.ecc, template.bits)
			public, _, _ := take2B(d.must(command(tagNoSessions, ccReadPublic, words(template.persistent)))[10:])
			ek, err := ParseEK(public)
			if err != nil || ek.NameAlg != template.nameAlg || ek.Symmetric != int(template.aes) {
				t.Fatalf("%s: %+v %v", name, ek, err)
			}
			if found, err := templateFor(ek); err != nil || *found != template {
				t.Errorf("%s: template %+v %v", name, found, err)
			}
			h := Host{EK: ek, Bank: SHA256, Fallback: SHA384}
			for _, kept := range []bool{true, false} {
				want := 5
				if !kept {
					want = 6
					d.must(command(tagSessions, 0x120, words(0x40000001, template.persistent), emptyPassword, words(template.persistent)))
				}
				reading, rounds, err := converse(t, h, &client{device: d, log: boot.Log()})
				if err != nil || rounds != want {
					t.Fatalf("%s, kept %t: %d rounds, want %d: %v", name, kept, rounds, want, err)
				}
				mustProve(t, reading.Log, reading.PCRs, SHA256)
			}
		}
	}
}

// TestNobodyButTheTPMChoosesTheBank: an answer that only says that a bank is missing, without the TPM's HMAC, ends the conversation.
func TestNobodyButTheTPMChoosesTheBank(t *testing.T) {
	d := startTPM(t)
	log := goodBoot(SHA256).Log()
	h := Host{EK: d.ek(true, false), Bank: SHA256, Fallback: SHA384}
	for name, c := range map[string]struct {
		spoil func(int, *Answer)
		want  error
	}{
		"error code instead of values": {func(round int, a *Answer) {
			if round == 4 {
				a.Responses[0] = []byte{0x80, 1, 0, 0, 0, 10, 0, 0, 1, 0xc3} // TPM_RC_HASH, parameter 1
			}
		}, ErrBank},
		"values cut out": {func(round int, a *Answer) {
			if round == 4 {
				a.Responses[0] = withoutValues(a.Responses[0])
			}
		}, ErrForged},
	} {
		if _, rounds, err := converse(t, h, &client{device: d, log: log, spoil: c.spoil}); !errors.Is(err, c.want) || rounds != 4 {
			t.Errorf("%s: %v in round %d, want %v in 4", name, err, rounds, c.want)
		}
	}
}

// withoutValues turns a response to PCR_Read into one of a TPM without the bank, but for the HMAC.
func withoutValues(r []byte) []byte {
	n := int(r[10])<<24 | int(r[11])<<16 | int(r[12])<<8 | int(r[13])
	params := append([]byte{}, r[14:14+4+4+2+1]...)
	params = append(params, 0, 0, 0, 0, 0, 0, 0)
	return command(tagSessions, 0, words(uint32(len(params))), params, r[14+n:])
}
