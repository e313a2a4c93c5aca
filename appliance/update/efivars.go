package update

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// EFIVars are the variables as Linux shows them in a mounted efivarfs.
type EFIVars struct{ Dir string }

// variableFlags: non-volatile, boot service and run time access (UEFI specification, 8.2.1).
const variableFlags = 1 | 2 | 4

const immutable = 0x10 // FS_IMMUTABLE_FL of linux/fs.h

// Names lists all variables.
func (e EFIVars) Names() ([]string, error) {
	entries, err := os.ReadDir(e.Dir)
	var names []string
	for _, f := range entries {
		names = append(names, f.Name())
	}
	return names, err
}

// Read gives the contents without the attributes.
func (e EFIVars) Read(name string) ([]byte, error) {
	f, err := os.Open(filepath.Join(e.Dir, name))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxVariable+1))
	if err != nil {
		return nil, err
	}
	if len(b) < 4 || len(b) > maxVariable {
		return nil, fmt.Errorf("variable of %d bytes", len(b))
	}
	return b[4:], nil
}

// Write sets the variable by one system call, as efivarfs wants it.
func (e EFIVars) Write(name string, data []byte) error {
	path := filepath.Join(e.Dir, name)
	if err := mutable(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(append(binary.LittleEndian.AppendUint32(nil, variableFlags), data...))
	return errors.Join(err, f.Close())
}

// Remove deletes the variable.
func (e EFIVars) Remove(name string) error {
	path := filepath.Join(e.Dir, name)
	err := mutable(path)
	if err == nil {
		err = os.Remove(path)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// mutable takes the flag off with which efivarfs protects every variable that it does not know from rm -r.
func mutable(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	flags, err := unix.IoctlGetInt(int(f.Fd()), unix.FS_IOC_GETFLAGS)
	if errors.Is(err, unix.ENOTTY) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EINVAL) {
		return nil // a file system without flags, in tests
	}
	if err != nil || flags&immutable == 0 {
		return err
	}
	return unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, flags&^immutable)
}
