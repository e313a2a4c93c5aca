package hsm

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
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

// Descriptors of a worker. From descriptorLane on it has as many lanes as its
// first frame asks for sessions.
const (
	descriptorKeeper = 3
	descriptorPIN    = 4
	descriptorLane   = 5
)

// Serve is the worker: it takes the PIN from descriptor 4 (one byte of length,
// then the PIN) and closes it, opens the token as the first frame on descriptor 3
// says and answers calls on the lanes until descriptor 3 ends. It returns nil when
// the keeper hung up or was told why the token did not open.
// Each lane has a goroutine of its own, which waits in the kernel and not in Go's
// scheduler, so as many calls run at the same time as there are lanes.
func Serve(open Opener) error {
	for fd := descriptorKeeper; fd < descriptorLane; fd++ {
		unix.CloseOnExec(fd)
	}
	return serve(os.NewFile(descriptorKeeper, "keeper"), os.NewFile(descriptorPIN, "pin"), func(i int) io.ReadWriter {
		unix.CloseOnExec(descriptorLane + i)
		return os.NewFile(uintptr(descriptorLane+i), "lane")
	}, open)
}

func serve(conn io.ReadWriteCloser, pin io.ReadCloser, number func(i int) io.ReadWriter, open Opener) error {
	defer conn.Close()
	secret, err := readPIN(pin)
	pin.Close()
	if err != nil {
		return err
	}
	defer secret.Wipe()
	keeper := &lane{conn: conn}
	var hello call
	if _, _, err := keeper.receive(&hello); err != nil {
		return err
	}
	if hello.Op != opHello || hello.Module == nil || hello.Module.Sessions < 1 || hello.Module.Valid() != nil {
		return badRequest("the first frame must be %q", opHello)
	}
	lanes := make([]*lane, hello.Module.Sessions)
	for i := range lanes { // before foreign code can start anything that would inherit them
		lanes[i] = &lane{conn: number(i)}
	}
	// A keeper that is gone ends the reading below too, so nobody looks at errors of writing.
	_ = keeper.write(0, answer{Phase: phaseLoad}, nil)
	token, err := open(*hello.Module, secret.Bytes(), func() { _ = keeper.write(0, answer{Phase: phaseLogin}, nil) })
	secret.Wipe()
	if err != nil {
		_ = keeper.write(0, answer{Error: AsError(err)}, nil)
		return nil
	}
	ended := make(chan error, len(lanes)+1)
	for _, l := range lanes {
		go func() { ended <- (&worker{token: token, lane: l}).run() }()
	}
	info := token.Info()
	_ = keeper.write(0, answer{Phase: phaseReady, Info: &info}, nil)
	go func() {
		_, _, err := keeper.receive(&call{}) // nothing more comes
		if err == nil {
			err = badRequest("a call must come on a lane")
		}
		ended <- err
	}()
	if err := <-ended; !errors.Is(err, io.EOF) {
		return err
	}
	return nil
}

// worker answers the calls of one lane.
type worker struct {
	token Token
	lane  *lane
	calls map[string]call // by their headers, see known
}

// run answers calls until the lane ends.
func (w *worker) run() error {
	for {
		id, header, body, err := w.lane.read()
		if err != nil {
			return err
		}
		c, err := w.known(header)
		if err != nil {
			clear(body)
			return err
		}
		if err := w.answer(id, c, body); err != nil {
			return err
		}
	}
}

// maxKnown bounds the headers that a lane remembers.
const maxKnown = 64

// known decodes the header of a call. The same few come again and again: a node
// has few keys and does few things with each.
func (w *worker) known(header []byte) (call, error) {
	if c, ok := w.calls[string(header)]; ok {
		return c, nil
	}
	var c call
	if err := decode(header, &c); err != nil {
		return c, err
	}
	if w.calls == nil || len(w.calls) == maxKnown {
		w.calls = map[string]call{}
	}
	w.calls[string(header)] = c
	return c, nil
}

func (w *worker) answer(id uint64, c call, body []byte) error {
	var a answer
	out, err := w.do(c, body, &a)
	if err != nil {
		a.Error = AsError(err)
	}
	var header any // nil where there is nothing to tell but the body
	if a.Error != nil || a.Keys != nil || a.Info != nil {
		header = a
	}
	err = w.lane.write(id, header, out)
	clear(out)
	clear(body)
	return err
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
