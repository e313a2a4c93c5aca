package rpc

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
)

// The wire, see the package's comment:
//
//	uint32 length of what follows | uint8 length of the method | method | JSON   a request
//	uint32 length of what follows | kind                       | JSON            a reply
//
// The JSON stands for itself. Inside of other JSON it would be read twice on either side.
const (
	kindBody  = 'b' // a method's reply; empty where a stream ends
	kindMore  = 'm' // a stream's element
	kindError = 'e' // an Error
)

type request struct {
	Method string
	Body   []byte
}

type reply struct {
	Body []byte
	Err  *Error
	More bool // a stream's element; the last frame has none
	// shared is a Body that others send too, and that holds no secrets: it is neither copied nor wiped.
	shared bool
}

var errMalformed = errors.New("a frame does not parse")

// shortFrame is what a reader makes room for on the word of the peer alone, and what a wire keeps of its memory between frames.
const shortFrame = 16 << 10

// wire is one side of a connection. One goroutine may write while another reads.
type wire struct {
	w   io.Writer
	r   *inbox
	out []byte // wiped after each frame
}

func newWire(conn io.ReadWriter) *wire { return &wire{w: conn, r: &inbox{r: conn}} }

// inbox saves a system call a frame, as bufio.Reader would, but keeps nothing of what was read: it may have been a PIN.
type inbox struct {
	r        io.Reader
	buf      [4096]byte
	from, to int
}

// wait returns when something is there to be read, or never will be.
func (b *inbox) wait() error {
	if b.buffered() > 0 {
		return nil
	}
	n, err := b.r.Read(b.buf[:])
	if b.from, b.to = 0, n; n > 0 {
		return nil
	}
	return err
}

func (b *inbox) buffered() int { return b.to - b.from }

func (b *inbox) Read(p []byte) (int, error) {
	if b.buffered() == 0 && len(p) >= len(b.buf) {
		return b.r.Read(p)
	}
	if err := b.wait(); err != nil {
		return 0, err
	}
	n := copy(p, b.buf[b.from:b.to])
	clear(b.buf[b.from : b.from+n])
	b.from += n
	return n, nil
}

// start begins a frame with room for n bytes, which must not be more than most.
func (w *wire) start(n, most int) ([]byte, error) {
	if n > most {
		return nil, fmt.Errorf("%w: %d bytes, %d are allowed", errTooLarge, n, most)
	}
	if cap(w.out) < 4+n {
		w.out = make([]byte, 0, 4+n)
	}
	return binary.BigEndian.AppendUint32(w.out[:0], uint32(n)), nil
}

// flush sends a frame in one write and wipes it.
func (w *wire) flush(frame []byte) error {
	_, err := w.w.Write(frame)
	clear(frame)
	if w.out = frame[:0]; cap(frame) > shortFrame {
		w.out = nil
	}
	return err
}

func (w *wire) request(q request) error {
	if len(q.Method) > 255 {
		return errMalformed
	}
	b, err := w.start(1+len(q.Method)+len(q.Body), MaxRequest)
	if err != nil {
		return err
	}
	b = append(append(b, byte(len(q.Method))), q.Method...)
	return w.flush(append(b, q.Body...))
}

// reply sends rep. A body may be of many MB, so it is copied once only, and a shared one never; one that is not shared is wiped.
func (w *wire) reply(rep reply) error {
	kind, body, most := byte(kindBody), rep.Body, MaxFrame
	switch {
	case rep.Err != nil:
		b, err := json.Marshal(rep.Err)
		if err != nil {
			return err
		}
		kind, body = kindError, b
	case rep.More:
		kind, most = kindMore, MaxElement
	}
	if rep.shared && 1+len(body) <= most {
		head := append(binary.BigEndian.AppendUint32(make([]byte, 0, 5), uint32(1+len(body))), kind)
		parts := net.Buffers{head, body}
		_, err := parts.WriteTo(w.w)
		return err
	}
	b, err := w.start(1+len(body), most)
	if err != nil {
		return err
	}
	defer clear(body)
	return w.flush(append(append(b, kind), body...))
}

// readRequest waits for a request. The caller wipes its body.
func (w *wire) readRequest() (request, error) {
	b, err := readBytes(w.r, MaxRequest)
	if err != nil {
		return request{}, err
	}
	if len(b) == 0 || len(b) < 1+int(b[0]) {
		clear(b)
		return request{}, errMalformed
	}
	n := 1 + int(b[0])
	return request{Method: string(b[1:n]), Body: b[n:]}, nil
}

// readReply waits for a reply of at most most bytes. The caller wipes its body.
func (w *wire) readReply(most uint32) (reply, error) {
	b, err := readBytes(w.r, most)
	if err != nil {
		return reply{}, err
	}
	if len(b) == 0 {
		return reply{}, errMalformed
	}
	switch body := b[1:]; b[0] {
	case kindBody:
		return reply{Body: body}, nil
	case kindMore:
		return reply{Body: body, More: true}, nil
	case kindError:
		var e Error
		if json.Unmarshal(body, &e) == nil && e.Kind != "" {
			return reply{Err: &e}, nil
		}
	}
	clear(b)
	return reply{}, errMalformed
}

// readBytes reads what follows a frame's length.
func readBytes(r io.Reader, most uint32) ([]byte, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n > most {
		return nil, fmt.Errorf("%w: %d bytes, %d are allowed", errTooLarge, n, most)
	}
	var b []byte
	var err error
	if n <= shortFrame {
		b = make([]byte, n)
		_, err = io.ReadFull(r, b)
	} else { // the length is the peer's word: grow with what really arrives
		b, err = io.ReadAll(io.LimitReader(r, int64(n)))
	}
	if err != nil {
		return nil, err
	}
	if len(b) != int(n) {
		return nil, io.ErrUnexpectedEOF
	}
	return b, nil
}
