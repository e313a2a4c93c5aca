package quote_test

import (
	"encoding/binary"
	"encoding/hex"
	"strings"
	"testing"
	"unicode/utf16"

	"guardhouse/appliance/evidence"
	"guardhouse/appliance/quote"
)

// settings is what firmware measures into PCR 7.
func settings(w *evidence.Writer, on byte, dbx []byte) {
	w.Event(7, evidence.EventVariable, evidence.UEFIVariable("SecureBoot", []byte{on}))
	for _, name := range []string{"PK", "KEK", "db"} {
		w.Event(7, evidence.EventVariable, evidence.UEFIVariable(name, []byte("keys")))
	}
	w.Event(7, evidence.EventVariable, evidence.UEFIVariable("dbx", dbx))
	w.Separator(7)
}

// loaded is a UEFI_IMAGE_LOAD_EVENT with a file's path, or an option ROM's for an empty one.
func loaded(file string) []byte {
	var name []byte
	for _, c := range utf16.Encode([]rune(file + "\x00")) {
		name = binary.LittleEndian.AppendUint16(name, c)
	}
	node := append([]byte{4, 4, byte(4 + len(name)), 0}, name...)
	if file == "" {
		node = []byte{4, 8, 20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
	}
	node = append(node, 0x7f, 0xff, 4, 0)
	return append(binary.LittleEndian.AppendUint64(make([]byte, 24), uint64(len(node))), node...)
}

func TestSaysWhyABootIsNotASignedOne(t *testing.T) {
	signed := evidence.NewWriter(evidence.SHA256)
	settings(signed, 1, nil)
	want := hex.EncodeToString(signed.PCRs(evidence.SHA256)[7])
	const driver = evidence.EventType(0x80000004)
	for name, c := range map[string]struct {
		boot func(w *evidence.Writer)
		says []string // in this order; nil: nothing
	}{
		"a signed boot":          {func(w *evidence.Writer) { settings(w, 1, nil) }, nil},
		"Secure Boot off":        {func(w *evidence.Writer) { settings(w, 0, nil) }, []string{"Secure Boot is off"}},
		"another dbx":            {func(w *evidence.Writer) { settings(w, 1, []byte("revoked")) }, []string{"dbx was changed (7 bytes, SHA-256 "}},
		"dbx and something else": {func(w *evidence.Writer) { settings(w, 1, []byte("revoked")); w.Separator(7) }, nil},
		"a driver of a card":     {func(w *evidence.Writer) { settings(w, 1, nil); w.Measure(2, driver, []byte("code"), loaded("")) }, nil},
		"a driver of a disk":     {func(w *evidence.Writer) { settings(w, 0, nil); w.Measure(2, driver, []byte("code"), loaded(`\d.efi`)) }, []string{"Secure Boot is off", `firmware loaded the driver \d.efi (PCR 2)`}},
		"another command line": {func(w *evidence.Writer) {
			settings(w, 1, nil)
			w.Event(12, evidence.EventIPL, []byte("init=/bin/sh\x00"))
		}, []string{`another command line or a credential (PCR 12): "init=/bin/sh"`}},
		"a command line of a page": {func(w *evidence.Writer) {
			settings(w, 1, nil)
			w.Event(12, evidence.EventIPL, []byte(strings.Repeat("long ", 900)))
		}, []string{`"long long`}},
	} {
		w := evidence.NewWriter(evidence.SHA256)
		c.boot(w)
		got := quote.Unsigned(w.Log(), registers(w), []string{want})
		if len(got) != len(c.says) {
			t.Errorf("%s: %q", name, got)
			continue
		}
		for i := range got {
			if !strings.Contains(got[i], c.says[i]) || len(got[i]) > 140 {
				t.Errorf("%s: %q, want %q", name, got[i], c.says[i])
			}
		}
	}
}

// What the log says without the registers' word is not a reason.
func TestBelievesNoLogThatDoesNotLeadToTheRegisters(t *testing.T) {
	w := evidence.NewWriter(evidence.SHA256)
	settings(w, 0, nil)
	w.Event(12, evidence.EventIPL, []byte("init=/bin/sh\x00"))
	pcrs := registers(w)
	for _, pcr := range []int{7, 12} {
		pcrs[pcr] = strings.Repeat("ab", 32)
	}
	if got := quote.Unsigned(w.Log(), pcrs, nil); got != nil {
		t.Errorf("%q", got)
	}
	for _, log := range [][]byte{nil, []byte("no log")} {
		if got := quote.Unsigned(log, registers(w), nil); got != nil {
			t.Errorf("%q", got)
		}
	}
}

func FuzzUnsigned(f *testing.F) {
	w := evidence.NewWriter(evidence.SHA256)
	settings(w, 1, []byte("revoked"))
	w.Measure(2, 0x80000004, []byte("code"), loaded(`\d.efi`))
	w.Event(12, evidence.EventIPL, []byte("init=/bin/sh\x00"))
	f.Add(w.Log())
	pcrs := registers(w)
	f.Fuzz(func(t *testing.T, log []byte) {
		for _, why := range quote.Unsigned(log, pcrs, nil) {
			if len(why) > 400 {
				t.Errorf("%d bytes", len(why))
			}
		}
	})
}
