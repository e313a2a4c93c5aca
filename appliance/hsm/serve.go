package hsm

import (
	"errors"
	"fmt"
	"io"
	"sync"
)

// ModuleConfig names the module and the token in it. Nothing in it is secret.
type ModuleConfig struct {
	Module      string `json:"module"`                // path of the PKCS#11 library
	TokenLabel  string `json:"tokenLabel,omitempty"`  // CKA label of the token, or
	TokenSerial string `json:"tokenSerial,omitempty"` // its serial number; both given: both must match
	Sessions    int    `json:"sessions,omitempty"`    // calls at the same time, default 4
	// LastTry allows a login although the token says that one more wrong PIN
	// locks it. It is set when a person typed the PIN again knowing this.
	LastTry bool `json:"lastTry,omitempty"`
	// Create makes a missing token, for SoftHSM2 on the node's own disk.
	Create bool `json:"create,omitempty"`
	// SoftwareOAEP never asks the token for OAEP. For tests and for tokens whose
	// own decoding is not trusted.
	SoftwareOAEP bool `json:"softwareOAEP,omitempty"`
}

// Valid reports what is wrong with c, or nil.
func (c ModuleConfig) Valid() error {
	switch {
	case c.Module == "" || c.Module[0] != '/' || len(c.Module) > 4096:
		return badRequest("the PKCS#11 module needs an absolute path")
	case c.TokenLabel == "" && c.TokenSerial == "":
		return badRequest("name the token by label or by serial number")
	case len(c.TokenLabel) > 32 || len(c.TokenSerial) > 16:
		return badRequest("a token label has at most 32 bytes, a serial number 16")
	case c.Create && (c.TokenLabel == "" || c.TokenSerial != ""):
		return badRequest("a new token is named by its label alone")
	case c.Sessions < 0 || c.Sessions > 64:
		return badRequest("sessions must be 0 to 64")
	}
	return nil
}

// Opener loads the module and logs in. It calls login right before the PIN is
// shown to the token. The PIN is wiped by the caller when Opener returns.
type Opener func(c ModuleConfig, pin []byte, login func()) (Token, error)

// Serve is the worker: it takes the PIN from pin (one byte of length, then the
// PIN) and closes it, opens the token as the first frame of conn says and
// answers calls until conn ends. It returns nil when the keeper hung up or was
// told why the token did not open.
// Calls run at the same time, as many as the keeper sends.
func Serve(conn io.ReadWriteCloser, pin io.ReadCloser, open Opener) error {
	defer conn.Close()
	secret, err := readPIN(pin)
	pin.Close()
	if err != nil {
		return err
	}
	defer secret.Wipe()
	var hello call
	if _, err := readFrame(conn, &hello); err != nil {
		return err
	}
	if hello.Op != opHello || hello.Module == nil {
		return badRequest("the first frame must be %q", opHello)
	}
	w := &worker{conn: conn}
	w.send(answer{Phase: phaseLoad}, nil)
	token, err := open(*hello.Module, secret.Bytes(), func() { w.send(answer{Phase: phaseLogin}, nil) })
	secret.Wipe()
	if err != nil {
		w.send(answer{Error: AsError(err)}, nil)
		return nil
	}
	info := token.Info()
	w.token = token
	w.send(answer{Phase: phaseReady, Info: &info}, nil)
	for {
		var c call
		body, err := readFrame(conn, &c)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		go w.answer(c, body)
	}
}

// worker answers calls for one token.
type worker struct {
	token Token
	mu    sync.Mutex // one frame at a time
	conn  io.Writer
}

// send ignores errors: a keeper that is gone ends the reading loop too.
func (w *worker) send(a answer, body []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	_ = writeFrame(w.conn, a, body)
}

func (w *worker) answer(c call, body []byte) {
	a := answer{ID: c.ID}
	out, err := w.do(c, body, &a)
	if err != nil {
		a.Error = AsError(err)
	}
	w.send(a, out)
	clear(out)
	clear(body)
}

// do performs one call. A panic in a binding must not take the other calls'
// answers away; it is reported as a sick module.
func (w *worker) do(c call, body []byte, a *answer) (out []byte, err error) {
	defer func() {
		if r := recover(); r != nil {
			out, err = nil, &Error{Kind: KindUnavailable, Class: ClassModule, Detail: fmt.Sprintf("panic in %s", c.Op)}
		}
	}()
	switch c.Op {
	case opList:
		a.Keys, err = w.token.List()
	case opGenerate:
		var k Key
		k, err = w.token.Generate(c.Role, c.Bits)
		a.Keys = []Key{k}
	case opSign:
		out, err = w.token.Sign(SignRequest{c.Ref, c.Role, body, c.Hash, c.Scheme})
	case opDecrypt:
		if c.OAEP == nil {
			return nil, badRequest("a decryption needs OAEP parameters")
		}
		out, err = w.token.Decrypt(c.Ref, body, *c.OAEP)
	case opRequest:
		out, err = w.token.Request(c.Ref, body)
	case opDestroy:
		if c.Destroy == nil {
			return nil, badRequest("a destruction needs a key")
		}
		if err = c.Destroy.Valid(); err == nil {
			a.Objects, err = w.token.Destroy(*c.Destroy)
		}
	case opCheck:
		err = w.token.Check()
		info := w.token.Info()
		a.Info = &info
	default:
		err = badRequest("no operation %q", c.Op)
	}
	return out, err
}

// readPIN takes the PIN straight into locked memory.
func readPIN(r io.Reader) (*Secret, error) {
	var n [1]byte
	if _, err := io.ReadFull(r, n[:]); err != nil {
		return nil, fmt.Errorf("hsm: read the PIN: %w", err)
	}
	s, err := emptySecret()
	if err != nil {
		return nil, err
	}
	s.n = int(n[0])
	if _, err := io.ReadFull(r, s.page[:s.n]); err != nil || s.n == 0 {
		s.Wipe()
		return nil, errors.New("hsm: the PIN was cut short")
	}
	return s, nil
}
