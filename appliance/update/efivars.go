package update

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/google/uuid"
	"github.com/u-root/u-root/pkg/efivarfs"
)

// EFIVars are the variables as Linux shows them in an efivarfs that is mounted at Dir. Names are NAME-GUID.
type EFIVars struct{ Dir string }

// variableFlags: UEFI specification, 8.2.1.
const variableFlags = efivarfs.AttributeNonVolatile | efivarfs.AttributeBootserviceAccess | efivarfs.AttributeRuntimeAccess

// open finds the file system and takes a name apart.
func (e EFIVars) open(name string) (*efivarfs.EFIVarFS, efivarfs.VariableDescriptor, error) {
	var d efivarfs.VariableDescriptor
	v, err := efivarfs.NewPath(e.Dir)
	if err != nil {
		return nil, d, err
	}
	short, guid, ok := strings.Cut(name, "-")
	if d.Name = short; !ok {
		return nil, d, fmt.Errorf("%.64q is not NAME-GUID", name)
	}
	d.GUID, err = uuid.Parse(guid)
	return v, d, err
}

// Names lists all variables.
func (e EFIVars) Names() ([]string, error) {
	v, err := efivarfs.NewPath(e.Dir)
	if err != nil {
		return nil, err
	}
	return efivarfs.SimpleListVariables(v)
}

// Read gives the contents without the attributes; fs.ErrNotExist where there is no such variable.
func (e EFIVars) Read(name string) ([]byte, error) {
	v, d, err := e.open(name)
	if err != nil {
		return nil, err
	}
	_, b, err := v.Get(d)
	if errors.Is(err, efivarfs.ErrVarNotExist) {
		return nil, fmt.Errorf("%s: %w", name, fs.ErrNotExist)
	}
	if err == nil && len(b) > maxVariable {
		return nil, fmt.Errorf("variable of %d bytes", len(b))
	}
	return b, err
}

// Write sets the variable by one system call, as efivarfs wants it.
func (e EFIVars) Write(name string, data []byte) error {
	v, d, err := e.open(name)
	if err != nil {
		return err
	}
	return v.Set(d, variableFlags, data)
}

// Remove deletes the variable; none is no error.
func (e EFIVars) Remove(name string) error {
	v, d, err := e.open(name)
	if err != nil {
		return err
	}
	if err = v.Remove(d); errors.Is(err, efivarfs.ErrVarNotExist) {
		return nil
	}
	return err
}
