package lab

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"
)

// cableTo plugs a cable into the switch and returns its other end.
func cableTo(t *testing.T, s *Switch, name string) net.Conn {
	t.Helper()
	ours, theirs := net.Pipe()
	s.plug(name, theirs)
	t.Cleanup(func() { ours.Close() })
	return ours
}

func frame(dst, src byte, text string) []byte {
	b := binary.BigEndian.AppendUint32(nil, uint32(14+len(text)))
	b = append(b, dst, 0, 0, 0, 0, dst, 2, 0, 0, 0, 0, src, 8, 0)
	return append(b, text...)
}

func send(t *testing.T, c net.Conn, f []byte) {
	t.Helper()
	if _, err := c.Write(f); err != nil {
		t.Fatal(err)
	}
}

// heard returns the text of the next frame, "" when none comes.
func heard(t *testing.T, c net.Conn) string {
	t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	var head [4]byte
	if _, err := io.ReadFull(c, head[:]); err != nil {
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal(err)
		}
		return ""
	}
	b := make([]byte, binary.BigEndian.Uint32(head[:]))
	if _, err := io.ReadFull(c, b); err != nil {
		t.Fatal(err)
	}
	return string(b[14:])
}

func TestSwitchLearnsAndPartitions(t *testing.T) {
	s := newSwitch()
	defer s.close()
	a, b, c := cableTo(t, s, "a"), cableTo(t, s, "b"), cableTo(t, s, "c")
	const all = 0xff
	send(t, a, frame(all, 1, "hello"))
	if heard(t, b) != "hello" || heard(t, c) != "hello" {
		t.Fatal("a broadcast did not reach everybody")
	}
	send(t, b, frame(2, 2, "to nobody known"))
	heard(t, a)
	heard(t, c)
	// Unicast addresses in these frames begin with 2: learn a's and answer it.
	learned := frame(0, 9, "x")
	copy(learned[4:10], []byte{2, 0, 0, 0, 0, 1})
	send(t, b, learned)
	if heard(t, a) != "x" || heard(t, c) != "" {
		t.Error("a unicast frame went astray")
	}
	s.Partition([]string{"a", "b"}, []string{"c"})
	send(t, a, frame(all, 1, "island"))
	if heard(t, b) != "island" || heard(t, c) != "" {
		t.Error("the partition leaks or cuts too much")
	}
	s.Heal()
	send(t, a, frame(all, 1, "again"))
	if heard(t, b) != "again" || heard(t, c) != "again" {
		t.Error("not healed")
	}
}

func TestSwitchUnplugsCablesOutOfStep(t *testing.T) {
	s := newSwitch()
	defer s.close()
	a := cableTo(t, s, "a")
	send(t, a, []byte{0xff, 0xff, 0xff, 0xff})
	_ = a.SetReadDeadline(time.Now().Add(2 * time.Second))
	if _, err := a.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("got %v", err)
	}
}
