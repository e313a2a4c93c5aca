package lab

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"guardhouse/images/keys"
)

// Layout of OVMF's variable store (EDK II, MdeModulePkg/Include/Guid/VariableFormat.h): a firmware volume header, a store header, and
// authenticated variables one after the other, each aligned to 4 bytes, then 0xff.
const (
	storeStart = 0x48
	firstVar   = storeStart + 28
	varHeader  = 60
	varMagic   = 0x55aa
	varAdded   = 0x3f
	varDeleted = 0x3c
)

// Attributes of variables: NV, BS, RT and time-based authentication; SecureBootEnable is the firmware's own.
const (
	attrAuthenticated = 0x27
	attrBoot          = 0x07
	attrOwn           = 0x03
)

var secureBootEnable = [16]byte{0xc7, 0x0b, 0xa3, 0xf0, 0x08, 0xaf, 0x56, 0x45, 0x99, 0xc4, 0x00, 0x10, 0x09, 0xc9, 0x3a, 0x44}

// setVariables writes variables with these attributes into a store's bytes, replacing those of the same name.
func setVariables(store []byte, vars []keys.Variable, attr uint32) error {
	if len(store) < firstVar+varHeader || !bytes.Equal(store[40:44], []byte("_FVH")) {
		return errors.New("not a firmware volume with variables")
	}
	size := int(binary.LittleEndian.Uint32(store[storeStart+16:]))
	if size > len(store)-storeStart {
		return errors.New("the variable store is cut off")
	}
	for _, v := range vars {
		if err := setVariable(store[:storeStart+size], v, attr); err != nil {
			return err
		}
	}
	return nil
}

// enrol writes the keys of Secure Boot, and whether it is on.
func enrol(store []byte, vars []keys.Variable, on bool) error {
	enable := keys.Variable{Name: "SecureBootEnable", GUID: secureBootEnable, Data: []byte{0}}
	if on {
		enable.Data[0] = 1
	}
	if err := setVariables(store, vars, attrAuthenticated); err != nil {
		return err
	}
	return setVariables(store, []keys.Variable{enable}, attrOwn)
}

func setVariable(store []byte, v keys.Variable, attr uint32) error {
	name := append(keys.UTF16(v.Name), 0, 0)
	at := firstVar
	for at+varHeader <= len(store) && binary.LittleEndian.Uint16(store[at:]) == varMagic {
		h := store[at:]
		n, d := int(binary.LittleEndian.Uint32(h[36:])), int(binary.LittleEndian.Uint32(h[40:]))
		end := at + varHeader + n + d
		if n < 0 || d < 0 || end > len(store) {
			return errors.New("the variable store is damaged")
		}
		if bytes.Equal(h[44:60], v.GUID[:]) && bytes.Equal(h[varHeader:varHeader+n], name) {
			h[2] &= varDeleted
		}
		at = (end + 3) &^ 3
	}
	if len(v.Data) == 0 {
		return nil // a variable without data does not exist
	}
	if at+varHeader+len(name)+len(v.Data) > len(store) {
		return fmt.Errorf("no room for %s", v.Name)
	}
	h := store[at:]
	clear(h[:varHeader])
	binary.LittleEndian.PutUint16(h, varMagic)
	h[2] = varAdded
	binary.LittleEndian.PutUint32(h[4:], attr)
	if attr == attrAuthenticated {
		copy(h[16:32], []byte{0xea, 0x07, 1, 1}) // 2026-01-01: later updates must be newer
	}
	binary.LittleEndian.PutUint32(h[36:], uint32(len(name)))
	binary.LittleEndian.PutUint32(h[40:], uint32(len(v.Data)))
	copy(h[44:], v.GUID[:])
	copy(h[varHeader:], name)
	copy(h[varHeader+len(name):], v.Data)
	return nil
}

// EnrollFirmware puts Secure Boot keys into a machine that is off, as a person would in the firmware's setup, and switches Secure Boot
// on or off. Boot entries stay. The machine need not have run before.
func (l *Lab) EnrollFirmware(node string, vars []keys.Variable, on bool) error {
	return l.changeFirmware(node, func(store []byte) error { return enrol(store, vars, on) })
}

// BootVariables sets variables of a machine that is off which nobody has to sign: boot and driver entries, as a person would in the
// firmware's setup. Of one without data there is none afterwards.
func (l *Lab) BootVariables(node string, vars ...keys.Variable) error {
	return l.changeFirmware(node, func(store []byte) error { return setVariables(store, vars, attrBoot) })
}

func (l *Lab) changeFirmware(node string, change func(store []byte) error) error {
	dir := filepath.Join(l.Dir, "nodes", node)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	file := filepath.Join(dir, "vars.fd")
	if err := copyOnce(ovmfVars, file); err != nil {
		return fmt.Errorf("firmware variables: %w: install the package ovmf", err)
	}
	store, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	if err := change(store); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	return os.WriteFile(file, store, 0o600)
}
