package fault

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"testing"
)

// session builds what a client sends: negotiation with GO, then the given requests.
func session(requests ...[]byte) []byte {
	b := binary.BigEndian.AppendUint32(nil, nbdFlagFixed|nbdFlagNoZeroes)
	b = append(b, option(nbdOptGo, []byte{0, 0, 0, 0, 0, 1, 0, nbdInfoBlockSize})...)
	return append(b, bytes.Join(requests, nil)...)
}

func option(kind uint32, data []byte) []byte {
	b := binary.BigEndian.AppendUint64(nil, nbdOptMagic)
	b = binary.BigEndian.AppendUint32(b, kind)
	b = binary.BigEndian.AppendUint32(b, uint32(len(data)))
	return append(b, data...)
}

func command(flags, kind uint16, offset uint64, length uint32, payload ...byte) []byte {
	b := binary.BigEndian.AppendUint32(nil, nbdRequestMagic)
	b = binary.BigEndian.AppendUint16(b, flags)
	b = binary.BigEndian.AppendUint16(b, kind)
	b = binary.BigEndian.AppendUint64(b, 77)
	b = binary.BigEndian.AppendUint64(b, offset)
	b = binary.BigEndian.AppendUint32(b, length)
	return append(b, payload...)
}

// played is a connection whose client said everything in advance.
type played struct {
	io.Reader
	io.Writer
}

// errorsOf plays a session and returns the error numbers of its replies (no reads: fixed size).
func errorsOf(t *testing.T, d *Disk, requests ...[]byte) ([]uint32, error) {
	t.Helper()
	var out bytes.Buffer
	err := ServeNBD(played{bytes.NewReader(session(requests...)), &out}, d)
	b := out.Bytes()
	head := 8 + 8 + 2 + (20 + 12) + (20 + 14) + 20
	if len(b) < head {
		t.Fatalf("answer of %d bytes", len(b))
	}
	var codes []uint32
	for b = b[head:]; len(b) >= 16; b = b[16:] {
		if binary.BigEndian.Uint32(b) != nbdReplyMagic || binary.BigEndian.Uint64(b[8:]) != 77 {
			t.Fatalf("bad reply %x", b[:16])
		}
		codes = append(codes, binary.BigEndian.Uint32(b[4:]))
	}
	return codes, err
}

func TestNBDAnswersBadRequestsWithErrors(t *testing.T) {
	d := testDisk(t, 1<<16)
	codes, err := errorsOf(t, d,
		command(nbdCmdFUA, nbdWrite, 0, 512, fill(9, 512)...),
		command(0, nbdWrite, 1<<16, 512, fill(9, 512)...),
		command(0, nbdRead, 1<<16, 512),
		command(0, nbdRead, 0, nbdMaxPayload+1),
		command(0, nbdRead, 1<<63, 1),
		command(0, 99, 0, 0),
		command(1<<7, nbdFlush, 0, 0),
		command(0, nbdFlush, 0, 0),
		command(0, nbdTrim, 0, 1<<16),
		command(0, nbdTrim, 512, 1<<16),
		command(0, nbdWriteZeroes, 1, 512),
		command(0, nbdWriteZeroes, 512, 512),
		command(0, nbdDisc, 0, 0),
	)
	if err != nil {
		t.Fatal(err)
	}
	want := []uint32{0, nbdENOSPC, nbdEINVAL, nbdEINVAL, nbdEINVAL, nbdEINVAL, nbdEINVAL, 0, 0, nbdEINVAL, nbdEINVAL, 0}
	if len(codes) != len(want) {
		t.Fatalf("%d replies, want %d: %v", len(codes), len(want), codes)
	}
	for i := range want {
		if codes[i] != want[i] {
			t.Errorf("request %d: error %d, want %d", i, codes[i], want[i])
		}
	}
	if s := d.Stats(); s.FUA != 1 || s.Flushes != 1 {
		t.Errorf("%+v", s)
	}
}

func TestNBDEndsConnectionsOutOfStep(t *testing.T) {
	d := testDisk(t, 1<<16)
	for name, c := range map[string][]byte{
		"magic":        append([]byte{1, 2, 3, 4}, make([]byte, 24)...),
		"huge write":   command(0, nbdWrite, 0, nbdMaxPayload+1),
		"cut payload":  command(0, nbdWrite, 0, 512, 1, 2, 3),
		"half request": command(0, nbdRead, 0, 512)[:20],
	} {
		if _, err := errorsOf(t, d, c); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestCutDiskAnswersEIO(t *testing.T) {
	d := testDisk(t, 1<<16)
	d.Cut(3)
	codes, err := errorsOf(t, d, command(0, nbdWrite, 0, 1, 5), command(0, nbdFlush, 0, 0))
	if err != nil || len(codes) != 2 || codes[0] != nbdEIO || codes[1] != nbdEIO {
		t.Errorf("%v %v", codes, err)
	}
}

func FuzzNBD(f *testing.F) {
	f.Add(session(command(0, nbdWrite, 512, 4, 1, 2, 3, 4), command(0, nbdRead, 0, 1024), command(0, nbdFlush, 0, 0)))
	f.Add(session(command(nbdCmdFUA, nbdWriteZeroes, 0, 4096), command(0, nbdTrim, 0, 4096), command(0, nbdDisc, 0, 0)))
	f.Add(append([]byte{0, 0, 0, 0}, option(nbdOptExportName, []byte("x"))...))
	f.Add(append([]byte{0, 0, 0, 1}, option(nbdOptAbort, nil)...))
	f.Add(append([]byte{0, 0, 0, 3}, option(nbdOptInfo, []byte{0, 0, 0, 9, 0, 0})...))
	f.Fuzz(func(t *testing.T, b []byte) {
		d := testDisk(t, 1<<14)
		// Any error is right; a panic, a write past the end or a hang is not.
		_ = ServeNBD(played{bytes.NewReader(b), io.Discard}, d)
		if st, err := d.file.Stat(); err != nil || st.Size() != 1<<14 {
			t.Fatalf("image size changed: %v %v", st, err)
		}
	})
}

func FuzzReadRequest(f *testing.F) {
	f.Add(command(0, nbdRead, 1<<63, 1))
	f.Fuzz(func(t *testing.T, b []byte) {
		q, err := readRequest(bytes.NewReader(b))
		if err != nil {
			return
		}
		if q.offset < 0 || q.length < 0 || q.kind == nbdWrite && q.length > nbdMaxPayload {
			t.Fatalf("%+v", q)
		}
		if len(b) < 28 || errors.Is(err, io.EOF) {
			t.Fatal("accepted a short request")
		}
	})
}
