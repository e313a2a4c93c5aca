package hsm

import (
	"crypto"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"

	"guardhouse/appliance/policy"
)

// The keeper and its worker exchange frames over a socket pair:
//
//	uint32 header length | uint32 body length | header (JSON) | body
//
// big endian. Whatever may be secret (a plaintext) travels in the body only,
// which both sides wipe. The keeper sends one hello, the worker answers with
// phases and at last "ready"; then calls and answers, matched by id, in any
// order.
const (
	maxHeader = 1 << 20 // a listing of some thousand keys
	maxBody   = 1 << 16
)

// The operations of a call.
const (
	opHello    = "hello"
	opList     = "list"
	opGenerate = "generate"
	opSign     = "sign"
	opDecrypt  = "decrypt"
	opCheck    = "check"
	opRequest  = "request"
	opDestroy  = "destroy"
	opLoad     = "load" // of a software worker only: the body is a private key, PKCS#8
)

// The phases a worker reports before it is ready. phaseLogin is sent before the
// PIN is shown to the token: a worker that dies after it may have used up a try.
const (
	phaseLoad  = "load"
	phaseLogin = "login"
	phaseReady = "ready"
)

// call is the header of a frame to the worker. The body is the digest of a
// sign, the ciphertext of a decrypt.
type call struct {
	ID     uint64         `json:"id"`
	Op     string         `json:"op"`
	Module *ModuleConfig  `json:"module,omitempty"`
	Ref    policy.KeyRef  `json:"ref,omitempty"`
	Role   policy.KeyRole `json:"role,omitempty"`
	Bits   int            `json:"bits,omitempty"`
	Hash   crypto.Hash    `json:"hash,omitempty"`
	Scheme Scheme         `json:"scheme,omitempty"`
	OAEP   *OAEP          `json:"oaep,omitempty"`

	Destroy *DestroyRequest `json:"destroy,omitempty"`
}

// answer is the header of a frame from the worker. The body is a signature or
// a plaintext.
type answer struct {
	ID    uint64     `json:"id"`
	Phase string     `json:"phase,omitempty"`
	Error *Error     `json:"error,omitempty"`
	Keys  []Key      `json:"keys,omitempty"`
	Info  *TokenInfo `json:"info,omitempty"`

	Objects int `json:"objects,omitempty"` // destroyed
}

// writeFrame sends one frame in a single write, and wipes its copy of body.
func writeFrame(w io.Writer, header any, body []byte) error {
	h, err := json.Marshal(header)
	if err != nil {
		return fmt.Errorf("hsm: encode frame: %w", err)
	}
	if len(h) > maxHeader || len(body) > maxBody {
		return badRequest("frame of %d+%d bytes is too large", len(h), len(body))
	}
	frame := make([]byte, 8, 8+len(h)+len(body))
	binary.BigEndian.PutUint32(frame, uint32(len(h)))
	binary.BigEndian.PutUint32(frame[4:], uint32(len(body)))
	frame = append(append(frame, h...), body...)
	defer clear(frame)
	if _, err := w.Write(frame); err != nil {
		return fmt.Errorf("hsm: write frame: %w", err)
	}
	return nil
}

// readFrame reads one frame into header and returns its body. io.EOF stands for
// a clean end between two frames.
func readFrame(r io.Reader, header any) ([]byte, error) {
	var lengths [8]byte
	if _, err := io.ReadFull(r, lengths[:]); err != nil {
		if err == io.EOF {
			return nil, io.EOF
		}
		return nil, fmt.Errorf("hsm: read frame: %w", err)
	}
	hLen, bLen := binary.BigEndian.Uint32(lengths[:]), binary.BigEndian.Uint32(lengths[4:])
	if hLen > maxHeader || bLen > maxBody {
		return nil, badRequest("frame of %d+%d bytes is too large", hLen, bLen)
	}
	buf := make([]byte, hLen+bLen)
	if _, err := io.ReadFull(r, buf); err != nil {
		return nil, fmt.Errorf("hsm: read frame: %w", io.ErrUnexpectedEOF)
	}
	if err := json.Unmarshal(buf[:hLen], header); err != nil {
		clear(buf)
		return nil, fmt.Errorf("hsm: decode frame: %w", err)
	}
	return buf[hLen:], nil
}
