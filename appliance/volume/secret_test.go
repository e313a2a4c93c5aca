package volume

import (
	"bytes"
	"crypto/rand"
	"errors"
	"strings"
	"testing"

	"guardhouse/appliance/disk"
)

func wantKind(t *testing.T, err error, kind string) {
	t.Helper()
	var e *disk.Error
	if !errors.As(err, &e) || e.Kind != kind || e.What == "" || e.Remedy == "" {
		t.Errorf("want %s, got %v", kind, err)
	}
}

var (
	testVolume = strings.Repeat("ab", 16)
	testKey    = bytes.Repeat([]byte{5}, disk.KeySize)
)

// wrapped is a fresh secret and the slot that it opens.
func wrapped(t *testing.T, form string) (recoverySlot, [][]byte) {
	t.Helper()
	secret, texts, err := newSecret(form, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	s := recoverySlot{Version: 1, ID: "0badcafe", Form: form}
	if err := s.wrap(secret, testVolume, testKey); err != nil {
		t.Fatal(err)
	}
	return s, texts
}

func open(s recoverySlot, volume string, texts ...[]byte) ([]byte, error) {
	secret, err := readSecret(s.Form, texts)
	if err != nil {
		return nil, err
	}
	return s.unwrap(secret, volume)
}

func TestRecoverySecretOpensAsItIsTypedByPeople(t *testing.T) {
	s, texts := wrapped(t, FormPassphrase)
	shown := string(texts[0])
	for _, typed := range []string{shown, strings.ToLower(shown), strings.ReplaceAll(shown, "-", ""), strings.ReplaceAll(shown, "-", " "),
		strings.NewReplacer("0", "o", "1", "l").Replace(shown)} {
		if key, err := open(s, testVolume, []byte(typed)); err != nil || !bytes.Equal(key, testKey) {
			t.Errorf("%q: %v", typed, err)
		}
	}
	if len(shown) != 28+6 || strings.ContainsAny(shown, "ILOU") {
		t.Errorf("shown as %q", shown)
	}
}

func TestAnyTwoSharesOpenAndNoneAlone(t *testing.T) {
	s, texts := wrapped(t, FormShares)
	if len(texts) != 3 {
		t.Fatalf("%d shares", len(texts))
	}
	for i := range texts {
		for j := range texts {
			key, err := open(s, testVolume, texts[i], texts[j])
			if i == j {
				wantKind(t, err, KindMistyped)
			} else if err != nil || !bytes.Equal(key, testKey) {
				t.Errorf("shares %d and %d: %v", i, j, err)
			}
		}
		_, err := open(s, testVolume, texts[i])
		wantKind(t, err, KindMistyped)
	}
	if _, err := open(s, testVolume, texts...); err != nil {
		t.Errorf("all three: %v", err)
	}
	_, other := wrapped(t, FormShares)
	_, err := open(s, testVolume, texts[0], other[1])
	wantKind(t, err, KindWrongSecret)
}

func TestRefusesAWrongOrMistypedSecret(t *testing.T) {
	s, texts := wrapped(t, FormPassphrase)
	_, other := wrapped(t, FormPassphrase)
	_, shares := wrapped(t, FormShares)
	_, err := open(s, testVolume, other[0])
	wantKind(t, err, KindWrongSecret)
	_, err = open(s, strings.Repeat("cd", 16), texts[0]) // the slot of one volume in the header of another
	wantKind(t, err, KindWrongSecret)
	moved := s
	moved.ID = "0badcaff"
	_, err = open(moved, testVolume, texts[0])
	wantKind(t, err, KindWrongSecret)
	swapped := bytes.Clone(texts[0])
	slip := 0
	for i := range swapped { // one finger beside its key, anywhere
		if swapped[i] == '-' {
			continue
		}
		old := swapped[i]
		if swapped[i] = 'A'; old == 'A' {
			swapped[i] = 'B'
		}
		if _, err := open(s, testVolume, swapped); err == nil {
			t.Errorf("opened with a wrong character %d", i)
		}
		var e *disk.Error
		if _, err := canonical(swapped); errors.As(err, &e) && e.Kind == KindMistyped {
			slip++
		}
		swapped[i] = old
	}
	if slip < 25 { // 28 places, each missed once in 1024
		t.Errorf("only %d slips were told as such", slip)
	}
	for _, text := range [][]byte{nil, {}, shares[0], []byte("-"), bytes.Repeat([]byte("A"), MaxSecretText+1), []byte("UUUU-UUUU"), texts[0][:30]} {
		_, err := open(s, testVolume, text)
		wantKind(t, err, KindMistyped)
	}
	_, err = open(s, testVolume)
	wantKind(t, err, KindMistyped)
}

func TestRefusesARecoverySlotOfAnotherShape(t *testing.T) {
	for _, b := range []string{"", "{}", `{"version":2,"id":"0badcafe","form":"passphrase","box":""}`, `{"version":1,"id":"0badcafe","form":"guess","box":""}`,
		`{"version":1,"id":"0badcafe","form":"shares","box":"","more":1}`} {
		_, err := parseRecoverySlot([]byte(b))
		wantKind(t, err, disk.KindHeader)
	}
}

// Whatever is typed is answered, and what is taken is taken again as it would be shown.
func FuzzReadSecret(f *testing.F) {
	for _, form := range []string{FormPassphrase, FormShares} {
		_, texts, err := newSecret(form, rand.Reader)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(texts[0])
	}
	f.Add([]byte("0000-0000"))
	f.Fuzz(func(t *testing.T, text []byte) {
		body, err := canonical(text)
		if err != nil {
			return
		}
		n := passCheck
		if len(body) > passSymbols {
			n = shareCheck
			readShare(body)
		}
		again, err := canonical(grouped(body, n))
		if err != nil || !bytes.Equal(again, body) {
			t.Errorf("%q is read as %q and then as %q (%v)", text, body, again, err)
		}
	})
}
