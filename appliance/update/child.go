package update

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"guardhouse/appliance/policy"
)

// A bundle is bytes of somebody outside, so no process with rights reads it: init starts a child without any, whose whole world is the
// stream, the release keys of the image, and, once its first answer was seen, the partition that does not run. It answers in lines of
// JSON: first what the bundle is and what speaks against it, then how it ended. A child that lies can ruin that partition, no more: what
// starts from there is verified by the firmware and by the TPM, and the version floor rises by the number of the release that runs.

// Order is what the child is told, in its one argument.
type Order struct {
	Install bool   `json:"install"`
	Target  Target `json:"target"`
}

// Answer is a line of the child's.
type Answer struct {
	Manifest Manifest         `json:"manifest"`
	SignedBy string           `json:"signedBy"`
	Problems []policy.Problem `json:"problems,omitempty"` // none: it may be installed
	Done     bool             `json:"done"`               // the last line; else the first
	Failed   string           `json:"failed,omitempty"`   // last line: why it did not succeed
	Remedy   string           `json:"remedy,omitempty"`
}

// maxAnswers bounds what is read from a child, in bytes.
const maxAnswers = 256 << 10

// Child reads a bundle from in, judges it, and with an Install order writes it to the slot that it gets from slot after its first
// answer. It answers on out; the error is for the log.
func Child(order Order, keysFile string, in io.Reader, out io.Writer, slot func() (Device, error)) error {
	answer := func(a Answer) error { return json.NewEncoder(out).Encode(a) }
	fail := func(err error) error {
		remedy := "send the file again that mkimage release wrote"
		if errors.Is(err, ErrReadBack) {
			remedy = "replace the boot disk"
		}
		return errors.Join(err, answer(Answer{Done: true, Failed: err.Error(), Remedy: remedy}))
	}
	keys, err := Keys(keysFile)
	if err != nil {
		return fail(err)
	}
	b, err := Open(bufio.NewReaderSize(in, 64<<10), keys...)
	if err != nil {
		return fail(err)
	}
	first := Answer{Manifest: b.Manifest, SignedBy: b.SignedBy, Problems: Judge(b, order.Target)}
	if err := answer(first); err != nil {
		return err
	}
	if !order.Install || len(first.Problems) > 0 {
		if err := b.UKI(io.Discard); err != nil {
			return fail(err)
		}
		return answer(Answer{Done: true})
	}
	d, err := slot()
	if err != nil {
		return fail(fmt.Errorf("the other slot: %w", err))
	}
	if err := WriteSlot(d, order.Target.SlotSize, b); err != nil {
		return fail(err)
	}
	return answer(Answer{Done: true})
}

// Answers reads a child's lines: each gets the first, and decides whether it goes on; the last is returned.
func Answers(r io.Reader, each func(Answer) error) (Answer, error) {
	d := json.NewDecoder(io.LimitReader(r, maxAnswers))
	var a Answer
	for lines := 0; lines < 2; lines++ {
		a = Answer{}
		if err := d.Decode(&a); err != nil {
			return Answer{}, fmt.Errorf("the process that reads the update ended without an answer: %w", err)
		}
		if a.Done {
			return a, nil
		}
		if err := each(a); err != nil {
			return Answer{}, err
		}
	}
	return Answer{}, errors.New("the process that reads the update answers without end")
}

// Partition is a slot's partition as a Device.
type Partition struct{ *os.File }

// OpenPartition opens the device file.
func OpenPartition(name string, write bool) (Partition, error) {
	mode := os.O_RDONLY
	if write {
		mode = os.O_RDWR
	}
	f, err := os.OpenFile(name, mode, 0)
	if err != nil {
		return Partition{}, err
	}
	return Partition{f}, nil
}

// Sync makes what was written durable and drops it from memory, so that it is read from the disk.
func (p Partition) Sync() error {
	if err := p.File.Sync(); err != nil {
		return err
	}
	return unix.Fadvise(int(p.File.Fd()), 0, 0, unix.FADV_DONTNEED)
}

// SendSlot gives the partition to the child at the other end of a socket pair.
func SendSlot(socket *os.File, p Partition) error {
	return unix.Sendmsg(int(socket.Fd()), []byte{1}, unix.UnixRights(int(p.Fd())), nil, 0)
}

// ReceiveSlot is SendSlot's other end.
func ReceiveSlot(socket *os.File) (Device, error) {
	b, oob := make([]byte, 1), make([]byte, unix.CmsgSpace(4))
	n, oobn, _, _, err := unix.Recvmsg(int(socket.Fd()), b, oob, unix.MSG_CMSG_CLOEXEC)
	if err != nil || n != 1 {
		return nil, fmt.Errorf("not given: %d bytes, %v", n, err)
	}
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil || len(messages) != 1 {
		return nil, fmt.Errorf("not given: %d messages, %v", len(messages), err)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return nil, fmt.Errorf("not given: %d descriptors, %v", len(fds), err)
	}
	return Partition{os.NewFile(uintptr(fds[0]), "slot")}, nil
}
