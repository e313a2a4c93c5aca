package update

import (
	"bytes"
	"crypto/rsa"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"guardhouse/appliance/tpm"
)

// child runs a child over the bundle and gives its answers.
func child(t *testing.T, k *rsa.PrivateKey, order Order, in []byte, slot func() (Device, error)) (first, last Answer, err error) {
	t.Helper()
	pem, err := tpm.AuthorityPEM(&k.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	keys := filepath.Join(t.TempDir(), "release.pub")
	if err := os.WriteFile(keys, pem, 0o600); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	Child(order, keys, bytes.NewReader(in), &out, slot)
	last, err = Answers(&out, func(a Answer) error { first = a; return nil })
	return first, last, err
}

func TestTheSlotIsAskedForOnlyWhenNothingSpeaksAgainstTheRelease(t *testing.T) {
	k := key(t)
	seven := strings.Repeat("7", 64)
	pem, err := tpm.AuthorityPEM(&k.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	target := Target{Release: 6, Floor: 6, Format: 1, Reads: 2, Authority: pem, PCRs: map[uint]string{7: seven}, SlotSize: slotSize}
	p := parts
	p.Policy = boots(t, k, 7, seven)
	var b bytes.Buffer
	if err := Write(&b, facts, p, k); err != nil {
		t.Fatal(err)
	}
	d := slot{make([]byte, slotSize)}
	asked := 0
	give := func() (Device, error) { asked++; return d, nil }
	tooOld := target
	tooOld.Floor, tooOld.Release = 9, 9
	for name, c := range map[string]struct {
		order    Order
		in       []byte
		problems int
		asked    int
		failed   bool
	}{
		"check":       {order: Order{Target: target}, in: b.Bytes()},
		"install":     {order: Order{Target: target, Install: true}, in: b.Bytes(), asked: 1},
		"below floor": {order: Order{Target: tooOld, Install: true}, in: b.Bytes(), problems: 1},
		"of a liar":   {order: Order{Target: target, Install: true}, in: made(t, facts, key(t)), failed: true},
		"cut off":     {order: Order{Target: target}, in: b.Bytes()[:b.Len()-1], failed: true},
		"nothing":     {order: Order{Target: target, Install: true}, failed: true},
	} {
		asked = 0
		first, last, err := child(t, k, c.order, c.in, give)
		if err != nil || len(first.Problems) != c.problems || (last.Failed != "") != c.failed || asked != c.asked || c.failed && last.Remedy == "" {
			t.Errorf("%s: %v, %d problems, failed %q, asked %d times", name, err, len(first.Problems), last.Failed, asked)
		}
	}
}

func TestAChildThatDiesOrTalksWithoutEndIsNoAnswer(t *testing.T) {
	each := func(Answer) error { return nil }
	for _, in := range []string{"", "{", `{"manifest":{}}`, strings.Repeat(`{"manifest":{}}`+"\n", 5), "x", strings.Repeat(" ", maxAnswers+1) + `{"done":true}`} {
		if a, err := Answers(strings.NewReader(in), each); err == nil {
			t.Errorf("%.20q: %+v", in, a)
		}
	}
	stop := errors.New("enough")
	if _, err := Answers(strings.NewReader(`{"manifest":{}}{"done":true}`), func(Answer) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("%v", err)
	}
}

func TestTheSlotCrossesTheSocket(t *testing.T) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "a"), os.NewFile(uintptr(pair[1]), "b")
	defer theirs.Close()
	name := filepath.Join(t.TempDir(), "slot")
	if err := os.WriteFile(name, make([]byte, 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	p, err := OpenPartition(name, true)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(SendSlot(ours, p), p.Close()); err != nil {
		t.Fatal(err)
	}
	d, err := ReceiveSlot(theirs)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.WriteAt([]byte("release"), 512); err != nil || d.Sync() != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(name); err != nil || string(b[512:519]) != "release" {
		t.Errorf("%q %v", b[512:519], err)
	}
	ours.Close()
	if _, err := ReceiveSlot(theirs); err == nil {
		t.Error("a slot came from nobody")
	}
	d.(io.Closer).Close()
}
