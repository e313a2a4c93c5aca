package hsm

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
)

// keptBuffer is how much memory a lane keeps between frames. Every frame of a
// signature or a decryption fits.
const keptBuffer = 8 << 10

// lane is one side of a socket on which one frame at a time travels in each
// direction. One goroutine may read while another writes; neither may be two at
// once. Its buffers are wiped after every frame.
//
// Slots have a lane each, rather than all of them one socket, because then
// nobody stands between a call and the thread that performs it: the kernel wakes
// that thread, and the answer wakes the caller. One reader for all would have to
// hand each frame on, which with goroutines costs more processor time than all the
// rest of the way to the token.
type lane struct {
	conn io.ReadWriter
	in   []byte // what was read of the frame under way: a read that a deadline ended can be continued
	out  []byte
}

// write sends one frame in a single write. A header of nil is the empty one.
func (l *lane) write(id uint64, header any, body []byte) error {
	var h []byte
	if header != nil {
		var err error
		if h, err = json.Marshal(header); err != nil {
			return fmt.Errorf("hsm: encode frame: %w", err)
		}
	}
	if len(h) > maxHeader || len(body) > maxBody {
		return badRequest("frame of %d+%d bytes is too large", len(h), len(body))
	}
	b := binary.BigEndian.AppendUint32(l.out[:0], uint32(len(h)))
	b = binary.BigEndian.AppendUint32(b, uint32(len(body)))
	b = binary.BigEndian.AppendUint64(b, id)
	b = append(append(b, h...), body...)
	defer func() {
		clear(b)
		if cap(b) <= keptBuffer {
			l.out = b
		}
	}()
	if _, err := l.conn.Write(b); err != nil {
		return fmt.Errorf("hsm: write frame: %w", err)
	}
	return nil
}

// read waits for one frame and gives its header, which is valid until the next
// read, and its body, which is the caller's to wipe. io.EOF stands for a clean
// end between two frames. After an error of the connection that passes, such as a
// deadline, read may be called again and goes on where it was.
func (l *lane) read() (id uint64, header, body []byte, err error) {
	if l.in == nil {
		l.in = make([]byte, 0, keptBuffer)
	}
	for {
		n, err := l.complete()
		if err != nil {
			return 0, nil, nil, err
		}
		if n > 0 {
			return l.take(n)
		}
		if len(l.in) == cap(l.in) { // doubled: the lengths are the other side's word
			grown := append(l.in, make([]byte, cap(l.in))...)[:len(l.in)]
			clear(l.in)
			l.in = grown
		}
		got, err := l.conn.Read(l.in[len(l.in):cap(l.in)])
		l.in = l.in[:len(l.in)+got]
		if err != nil && got == 0 {
			if err == io.EOF && len(l.in) == 0 {
				return 0, nil, nil, io.EOF
			}
			return 0, nil, nil, fmt.Errorf("hsm: read frame: %w", err)
		}
	}
}

// complete is the length of the frame in l.in, 0 while there is more to come.
func (l *lane) complete() (int, error) {
	if len(l.in) < frameHead {
		return 0, nil
	}
	h, b := binary.BigEndian.Uint32(l.in), binary.BigEndian.Uint32(l.in[4:])
	if h > maxHeader || b > maxBody {
		return 0, badRequest("frame of %d+%d bytes is too large", h, b)
	}
	if n := frameHead + int(h) + int(b); len(l.in) >= n {
		return n, nil
	}
	return 0, nil
}

// take gives the complete frame of n bytes that l.in begins with and removes it.
func (l *lane) take(n int) (id uint64, header, body []byte, err error) {
	h := int(binary.BigEndian.Uint32(l.in))
	id = binary.BigEndian.Uint64(l.in[8:])
	header = l.in[frameHead : frameHead+h]
	body = bytes.Clone(l.in[frameHead+h : n])
	clear(l.in[frameHead+h : n])
	switch rest := l.in[n:]; {
	case len(rest) > 0: // the worker's phases follow each other closely
		l.in = append(make([]byte, 0, max(keptBuffer, len(rest))), rest...)
		clear(rest)
	case cap(l.in) > keptBuffer:
		l.in = nil
	default:
		l.in = l.in[:0]
	}
	return id, header, body, nil
}

// decode reads the header of a frame into v.
func decode(header []byte, v any) error {
	if len(header) == 0 {
		return nil
	}
	if err := json.Unmarshal(header, v); err != nil {
		return fmt.Errorf("hsm: decode frame: %w", err)
	}
	return nil
}

// receive is read and decode for whoever has no deadline.
func (l *lane) receive(v any) (id uint64, body []byte, err error) {
	id, header, body, err := l.read()
	if err != nil {
		return 0, nil, err
	}
	if err := decode(header, v); err != nil {
		clear(body)
		return 0, nil, err
	}
	return id, body, nil
}
