package evidence

import (
	"encoding/binary"
	"fmt"
)

// Codec is the framing of the context in which state, commands and answers travel. The genuine Windows framing is not public; when it
// becomes known it takes the place of [PrivateCodec], and nothing else changes.
type Codec interface {
	EncodeOrder(*Order) ([]byte, error)
	DecodeOrder([]byte) (*Order, error)
	EncodeAnswer(*Answer) ([]byte, error)
	DecodeAnswer([]byte) (*Answer, error)
}

// Order is what a server sends: commands for the TPM, to be run in order, whatever each of them answers.
type Order struct {
	State    []byte   // EncStateObject, to be sent back as it is
	Commands [][]byte // raw TPM commands
	WantLog  bool     // the answer must carry Device and Log
}

// Answer is what a client sends back: one raw TPM response for each command, also those that say that a command failed.
type Answer struct {
	State     []byte
	Device    *DeviceInfo // with Log, if it was wanted
	Log       []byte
	Responses [][]byte
}

// DeviceInfo is TPM_DEVICE_INFO (hgsa.md 4.4, 4.5, 8.1).
type DeviceInfo struct {
	Version       uint32 // 2 for TPM 2.0
	Interface     uint32 // 3 hardware, 4 emulator, ...
	ImplementedBy uint32 // implementation revision
}

// PrivateCodec is our framing. It keeps to the published layout (hgsa.md 8.1, 13.7), little-endian: Size, Version 1, DataBlobCount,
// Reserved; EncStateObject; data blobs. Size and DataBlobCount count everything.
//
// From the server the blobs are the TPM commands, and Reserved is 1 if the log is wanted with the answer, else 0. From the client Reserved
// is 0; the blobs are, if the log was wanted, TPM_DEVICE_INFO and WBCL_INFO, then the TPM's responses in the order of the commands.
// Commands and responses tell their own length and begin with 0x80, TPM_DEVICE_INFO begins with 0x01.
//
// The log goes with the last answer, not with the first as hgsa.md 13.7 proposes: so it is sent once, is as fresh as the PCR values, and
// need not travel in the sealed state.
var PrivateCodec Codec = privateCodec{}

type privateCodec struct{}

const (
	contextHead = 16
	deviceSize  = 16
	maxBlobs    = 8
)

func encodeContext(state []byte, reserved uint32, blobs [][]byte) ([]byte, error) {
	if len(state) > maxState || len(blobs) > maxBlobs {
		return nil, fmt.Errorf("%w: %d bytes of state, %d blobs", ErrContext, len(state), len(blobs))
	}
	le := binary.LittleEndian
	b := le.AppendUint32(le.AppendUint32(make([]byte, 4, contextHead+len(state)), 1), uint32(len(blobs)))
	b = append(le.AppendUint32(b, reserved), state...)
	for _, blob := range blobs {
		b = append(b, blob...)
	}
	le.PutUint32(b, uint32(len(b)))
	return b, nil
}

// decodeContext gives the state, the number of blobs and their bytes.
func decodeContext(b []byte) (state []byte, reserved, count uint32, rest []byte, err error) {
	le := binary.LittleEndian
	if len(b) < contextHead+stateHead || len(b) > MaxLog+64<<10 || uint64(le.Uint32(b)) != uint64(len(b)) || le.Uint32(b[4:]) != 1 {
		return nil, 0, 0, nil, fmt.Errorf("%w: malformed", ErrContext)
	}
	count, reserved, rest = le.Uint32(b[8:]), le.Uint32(b[12:]), b[contextHead:]
	n := uint64(le.Uint32(rest[4:])) + stateHead
	if count > maxBlobs || n > maxState || n > uint64(len(rest)) {
		return nil, 0, 0, nil, fmt.Errorf("%w: malformed", ErrContext)
	}
	return rest[:n], reserved, count, rest[n:], nil
}

// tpmBlobs cuts count commands or responses, which must fill b.
func tpmBlobs(b []byte, count uint32) ([][]byte, error) {
	var out [][]byte
	for range count {
		if len(b) < 10 || b[0] != 0x80 || binary.BigEndian.Uint32(b[2:]) < 10 || uint64(binary.BigEndian.Uint32(b[2:])) > uint64(len(b)) {
			return nil, fmt.Errorf("%w: malformed TPM data", ErrContext)
		}
		n := binary.BigEndian.Uint32(b[2:])
		out, b = append(out, b[:n]), b[n:]
	}
	if len(b) != 0 {
		return nil, fmt.Errorf("%w: %d bytes too many", ErrContext, len(b))
	}
	return out, nil
}

func (privateCodec) EncodeOrder(o *Order) ([]byte, error) {
	var reserved uint32
	if o.WantLog {
		reserved = 1
	}
	return encodeContext(o.State, reserved, o.Commands)
}

func (privateCodec) DecodeOrder(b []byte) (*Order, error) {
	state, reserved, count, rest, err := decodeContext(b)
	if err != nil {
		return nil, err
	}
	commands, err := tpmBlobs(rest, count)
	if err != nil {
		return nil, err
	}
	return &Order{State: state, Commands: commands, WantLog: reserved&1 != 0}, nil
}

func (privateCodec) EncodeAnswer(a *Answer) ([]byte, error) {
	var blobs [][]byte
	if a.Device != nil {
		if len(a.Log) > MaxLog {
			return nil, fmt.Errorf("%w: log of %d bytes", ErrContext, len(a.Log))
		}
		le := binary.LittleEndian
		d := le.AppendUint32(le.AppendUint32(nil, 1), a.Device.Version)
		d = le.AppendUint32(le.AppendUint32(d, a.Device.Interface), a.Device.ImplementedBy)
		blobs = append(blobs, d, appendSized(nil, a.Log))
	}
	return encodeContext(a.State, 0, append(blobs, a.Responses...))
}

func (privateCodec) DecodeAnswer(b []byte) (*Answer, error) {
	state, _, count, rest, err := decodeContext(b)
	if err != nil {
		return nil, err
	}
	a := &Answer{State: state}
	if len(rest) > 0 && rest[0] == 1 {
		le := binary.LittleEndian
		if count < 2 || len(rest) < deviceSize+4 || le.Uint32(rest) != 1 || uint64(le.Uint32(rest[deviceSize:])) > uint64(len(rest)-deviceSize-4) {
			return nil, fmt.Errorf("%w: malformed device information or log", ErrContext)
		}
		a.Device = &DeviceInfo{Version: le.Uint32(rest[4:]), Interface: le.Uint32(rest[8:]), ImplementedBy: le.Uint32(rest[12:])}
		n := deviceSize + 4 + int(le.Uint32(rest[deviceSize:]))
		a.Log, rest, count = rest[deviceSize+4:n], rest[n:], count-2
	}
	a.Responses, err = tpmBlobs(rest, count)
	return a, err
}
