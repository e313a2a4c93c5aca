package disk

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The device mapper's control interface, version 4: include/uapi/linux/dm-ioctl.h. No maintained Go library formats dm-integrity with
// dm-crypt, and the five calls we need are shorter than a wrapper around a program would be.
const (
	dmControl    = "/dev/mapper/control"
	dmHeader     = 312
	dmTarget     = 40
	dmBuffer     = 16 << 10
	dmCreate     = 3
	dmRemove     = 4
	dmSuspend    = 6
	dmStatus     = 7
	dmTableLoad  = 9
	dmSecureData = 1 << 15 // the kernel wipes its copy of the parameters
	dmSuspended  = 1 << 1
)

// mapper speaks to the control device.
type mapper struct{ f *os.File }

func openMapper() (*mapper, error) {
	f, err := os.OpenFile(dmControl, os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("device mapper: %w", err)
	}
	return &mapper{f}, nil
}

func (m *mapper) Close() error { return m.f.Close() }

// call runs one command on the device of this name and gives the answer's header.
func (m *mapper) call(nr uintptr, name string, flags uint32, targets []byte, count uint32) ([]byte, error) {
	b := make([]byte, dmBuffer)
	defer clear(b)
	if len(name) >= 128 || dmHeader+len(targets) > len(b) {
		return nil, errors.New("device mapper: request too long")
	}
	binary.NativeEndian.PutUint32(b, 4) // version 4.0.0
	binary.NativeEndian.PutUint32(b[12:], uint32(len(b)))
	binary.NativeEndian.PutUint32(b[16:], dmHeader)
	binary.NativeEndian.PutUint32(b[20:], count)
	binary.NativeEndian.PutUint32(b[28:], flags)
	copy(b[48:], name)
	copy(b[dmHeader:], targets)
	// _IOWR(0xfd, nr, struct dm_ioctl)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, m.f.Fd(), 0xc0000000|dmHeader<<16|0xfd<<8|nr, uintptr(unsafe.Pointer(&b[0])))
	runtime.KeepAlive(m.f)
	if errno != 0 {
		return nil, fmt.Errorf("device mapper: command %d on %s: %w", nr, name, errno)
	}
	return bytes.Clone(b[:dmHeader]), nil
}

// create makes a device with one target over its whole length, in sectors of 512 bytes, and gives its path. An older device of the
// name is removed: nothing of ours outlives PID 1.
func (m *mapper) create(name, target, params string, sectors uint64) (string, error) {
	_ = m.remove(name)
	if _, err := m.call(dmCreate, name, 0, nil, 0); err != nil {
		return "", err
	}
	path, err := m.load(name, target, params, sectors)
	if err != nil {
		_ = m.remove(name)
	}
	return path, err
}

func (m *mapper) load(name, target, params string, sectors uint64) (string, error) {
	size := (dmTarget + len(params) + 1 + 7) &^ 7
	t := make([]byte, size)
	defer clear(t)
	binary.NativeEndian.PutUint64(t[8:], sectors)
	binary.NativeEndian.PutUint32(t[20:], uint32(size))
	copy(t[24:dmTarget], target)
	copy(t[dmTarget:], params)
	if _, err := m.call(dmTableLoad, name, dmSecureData, t, 1); err != nil {
		return "", err
	}
	answer, err := m.call(dmSuspend, name, 0, nil, 0) // without the flag: resume
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("/dev/dm-%d", unix.Minor(binary.NativeEndian.Uint64(answer[40:]))), nil
}

func (m *mapper) remove(name string) error {
	_, err := m.call(dmRemove, name, 0, nil, 0)
	return err
}

// exists is true where a device of the name is there.
func (m *mapper) exists(name string) bool {
	_, err := m.call(dmStatus, name, 0, nil, 0)
	return err == nil
}

// withKey puts a key where dm-crypt finds it by name, runs do, and takes it out again: dm-crypt keeps its own copy, and a table that
// somebody reads shows the name alone.
func withKey(name string, key []byte, do func() error) error {
	// A key in the thread's keyring belongs to the thread.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	id, err := unix.AddKey("logon", name, key, unix.KEY_SPEC_THREAD_KEYRING)
	if err != nil {
		return fmt.Errorf("kernel keyring: %w", err)
	}
	err = do()
	if _, uerr := unix.KeyctlInt(unix.KEYCTL_UNLINK, id, unix.KEY_SPEC_THREAD_KEYRING, 0, 0); uerr != nil {
		err = errors.Join(err, fmt.Errorf("kernel keyring: %w", uerr))
	}
	return err
}

// isCorrupt: the kernel found a sector whose check value is wrong (EILSEQ), or says EIO for it.
func isCorrupt(err error) bool {
	return errors.Is(err, unix.EILSEQ) || errors.Is(err, unix.EIO) || err != nil && strings.Contains(err.Error(), "integrity")
}
