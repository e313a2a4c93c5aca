package tpm

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"
)

// child is a key below the storage root key. It is loaded for the time of a command only.
type child struct {
	t    *TPM
	what string // for people
	blob childBlob
}

// childBlob is the key as it may be kept: usable by this TPM alone.
type childBlob struct {
	Version int    `json:"version"` // 1
	Root    []byte `json:"root"`    // name of the storage root key: which TPM this is
	Public  []byte `json:"public"`  // TPM2B_PUBLIC
	Private []byte `json:"private"` // TPM2B_PRIVATE
}

const maxChild = 4 << 10 // bytes of an encoded key

// newChild has the TPM make a key without authorisation.
func (t *TPM) newChild(what string, template tpm2.TPMTPublic) (child, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	srk, done, err := t.anyRoot()
	if err != nil {
		return child{}, err
	}
	defer done()
	r, err := tpm2.Create{ParentHandle: tpm2.AuthHandle{Handle: srk.handle, Name: srk.name, Auth: tpm2.PasswordAuth(nil)}, InPublic: tpm2.New2B(template)}.Execute(t.t)
	if err != nil {
		return child{}, fmt.Errorf("make %s: %w", what, err)
	}
	return child{t, what, childBlob{Version: 1, Root: srk.name.Buffer, Public: tpm2.Marshal(r.OutPublic), Private: tpm2.Marshal(r.OutPrivate)}}, nil
}

// loadChild takes what Encode gave and proves that this TPM can use it.
func (t *TPM) loadChild(what string, b []byte) (child, error) {
	c := child{t: t, what: what}
	if len(b) > maxChild || json.Unmarshal(b, &c.blob) != nil || c.blob.Version != 1 {
		return child{}, c.damaged("it does not parse")
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return c, c.use(func(tpm2.NamedHandle) error { return nil })
}

func (c child) damaged(format string, args ...any) error {
	return &Error{KindDamaged, "the " + c.what + " of the TPM can't be read: " + fmt.Sprintf(format, args...), "a new one must be made"}
}

// Encode is the key for a file; it holds nothing that helps without this TPM.
func (c child) Encode() ([]byte, error) { return json.Marshal(c.blob) }

// use loads the key for one command; c.t.mu is held.
func (c child) use(fn func(tpm2.NamedHandle) error) error {
	srk, done, err := c.t.anyRoot()
	if err != nil {
		return err
	}
	loaded := false
	defer func() {
		if !loaded {
			done()
		}
	}()
	if !bytes.Equal(srk.name.Buffer, c.blob.Root) {
		return &Error{KindOtherTPM, "the " + c.what + " belongs to another TPM, or this TPM was cleared", "a new one must be made"}
	}
	pub, err := tpm2.Unmarshal[tpm2.TPM2BPublic](c.blob.Public)
	if err != nil {
		return c.damaged("its public half does not parse")
	}
	priv, err := tpm2.Unmarshal[tpm2.TPM2BPrivate](c.blob.Private)
	if err != nil {
		return c.damaged("its private half does not parse")
	}
	r, err := tpm2.Load{ParentHandle: tpm2.AuthHandle{Handle: srk.handle, Name: srk.name, Auth: tpm2.PasswordAuth(nil)}, InPrivate: *priv, InPublic: *pub}.Execute(c.t.t)
	if errors.Is(err, tpm2.TPMRCIntegrity) || errors.Is(err, tpm2.TPMRCSize) || errors.Is(err, tpm2.TPMRCBinding) {
		return c.damaged("the TPM does not take it (%v)", err)
	}
	if err != nil {
		return fmt.Errorf("load %s: %w", c.what, err)
	}
	defer flush(c.t.t, r.ObjectHandle)
	done() // a TPM may have three places, and fn may need them
	loaded = true
	return fn(tpm2.NamedHandle{Handle: r.ObjectHandle, Name: r.Name})
}

// anyRoot is the storage root key: the persistent one, or where there is none (no sealed volume) one made for this moment. t.mu is held.
func (t *TPM) anyRoot() (*root, func(), error) {
	if r, err := t.storageRoot(); err == nil {
		return r, func() {}, nil
	}
	srk, err := storageRoot(t.t)
	if err != nil {
		return nil, nil, err
	}
	pub, err := srk.OutPublic.Contents()
	if err != nil {
		flush(t.t, srk.ObjectHandle)
		return nil, nil, err
	}
	return &root{srk.ObjectHandle, srk.Name, *pub}, func() { flush(t.t, srk.ObjectHandle) }, nil
}
