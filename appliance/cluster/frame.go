package cluster

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// maxFrame is the size of the largest message, in bytes.
const maxFrame = 64 << 10

// version of the protocol, told in hello.
const version = 1

// Calls.
const (
	callHello = "hello"
	callTime  = "time"
)

// request is one call. The first of a connection is hello.
type request struct {
	Call  string          `json:"call"`
	Clock Clock           `json:"clock"`
	Body  json.RawMessage `json:"body,omitempty"`
}

// reply answers a request: Error, or Body.
type reply struct {
	Clock Clock           `json:"clock"`
	Error *refusal        `json:"error,omitempty"`
	Body  json.RawMessage `json:"body,omitempty"`
}

// Kinds of refusals.
const (
	refusedClock   = "clock"   // the caller's clock disagrees, or it has none
	refusedNoTime  = "no-time" // who answers has no trusted time and can't judge anybody's
	refusedVersion = "version"
	refusedCall    = "call" // unknown, or before hello
)

// refusal is why a call was not done. Text is for people, from the side of who refuses.
type refusal struct {
	Kind string `json:"kind"`
	Text string `json:"text"`
}

func (r *refusal) Error() string { return r.Text }

// hello is body of the call and of its answer.
type hello struct {
	Version int    `json:"version"`
	Node    string `json:"node"`
}

// readFrame reads one message: 4 bytes of length, big-endian, and as much JSON. Nothing is kept ready for a length before it is known to be
// allowed.
func readFrame(r io.Reader, v any) error {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n == 0 || n > maxFrame {
		return fmt.Errorf("it announced a message of %d bytes, 1 to %d are accepted", n, maxFrame)
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(r, b); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return err
	}
	if err := json.Unmarshal(b, v); err != nil {
		return errors.New("its message does not parse")
	}
	return nil
}

func readRequest(r io.Reader) (q request, err error) {
	if err := readFrame(r, &q); err != nil {
		return q, err
	}
	return q, q.Clock.check()
}

func readReply(r io.Reader) (a reply, err error) {
	if err := readFrame(r, &a); err != nil {
		return a, err
	}
	if a.Error != nil {
		a.Error.Kind, a.Error.Text = clean(a.Error.Kind), clean(a.Error.Text)
	}
	return a, a.Clock.check()
}

// parseHello reads the body of hello; the name is only shown.
func parseHello(body json.RawMessage) (h hello, err error) {
	if json.Unmarshal(body, &h) != nil {
		return h, errors.New("its hello does not parse")
	}
	h.Node = clean(h.Node)
	return h, nil
}

// writeFrame sends one message in one write.
func writeFrame(w io.Writer, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if len(b) > maxFrame {
		return fmt.Errorf("a message of %d bytes is not sent, %d are the limit", len(b), maxFrame)
	}
	_, err = w.Write(append(binary.BigEndian.AppendUint32(make([]byte, 0, 4+len(b)), uint32(len(b))), b...))
	return err
}
