package fault

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
)

// Numbers of the NBD protocol (the NetworkBlockDevice project's doc/proto.md): newstyle fixed negotiation, simple
// replies. Offered: FLUSH, FUA, WRITE_ZEROES, TRIM. TRIM is a hint and changes nothing here.
const (
	nbdMagic    = 0x4e42444d41474943 // "NBDMAGIC"
	nbdOptMagic = 0x49484156454f5054 // "IHAVEOPT"
	nbdRepMagic = 0x0003e889045565a9

	nbdFlagFixed    = 1 << 0
	nbdFlagNoZeroes = 1 << 1

	nbdOptExportName = 1
	nbdOptAbort      = 2
	nbdOptInfo       = 6
	nbdOptGo         = 7

	nbdRepAck      = 1
	nbdRepInfo     = 3
	nbdRepErrUnsup = 1<<31 + 1
	nbdRepErrBad   = 1<<31 + 3

	nbdInfoExport    = 0
	nbdInfoBlockSize = 3

	nbdHasFlags        = 1 << 0
	nbdSendFlush       = 1 << 2
	nbdSendFUA         = 1 << 3
	nbdSendTrim        = 1 << 5
	nbdSendWriteZeroes = 1 << 6

	nbdRequestMagic = 0x25609513
	nbdReplyMagic   = 0x67446698

	nbdRead        = 0
	nbdWrite       = 1
	nbdDisc        = 2
	nbdFlush       = 3
	nbdTrim        = 4
	nbdWriteZeroes = 6

	nbdCmdFUA    = 1 << 0
	nbdCmdNoHole = 1 << 1

	nbdEIO    = 5
	nbdEINVAL = 22
	nbdENOSPC = 28
)

// Bounds on what a client may ask for.
const (
	nbdMaxOption  = 4 << 10  // bytes of one option
	nbdMaxOptions = 64       // options before transmission
	nbdMaxPayload = 32 << 20 // bytes of one read or write
)

// ErrNBD is a client that broke the protocol; the connection must be closed.
var ErrNBD = errors.New("nbd: protocol violation")

// ServeNBD serves d to one client over conn until it disconnects. A clean end (NBD_CMD_DISC, NBD_OPT_ABORT or the
// end of the stream between requests) gives nil. Several clients may be served at once.
func ServeNBD(conn io.ReadWriter, d *Disk) error {
	s := &nbdServer{r: bufio.NewReaderSize(conn, 64<<10), w: bufio.NewWriterSize(conn, 64<<10), disk: d}
	err := s.negotiate()
	if err == nil {
		err = s.transmit()
	}
	if errors.Is(err, io.EOF) {
		return nil
	}
	if ferr := s.w.Flush(); err == nil {
		err = ferr
	}
	return err
}

type nbdServer struct {
	r    *bufio.Reader
	w    *bufio.Writer
	disk *Disk
	buf  []byte // payload, reused
}

// put queues big-endian fields; a failed write shows at the next Flush.
func (s *nbdServer) put(fields ...any) {
	for _, f := range fields {
		_ = binary.Write(s.w, binary.BigEndian, f)
	}
}

func (s *nbdServer) flags() uint16 {
	return nbdHasFlags | nbdSendFlush | nbdSendFUA | nbdSendTrim | nbdSendWriteZeroes
}

// negotiate ends with nil when transmission begins, with io.EOF when the client left.
func (s *nbdServer) negotiate() error {
	s.put(uint64(nbdMagic), uint64(nbdOptMagic), uint16(nbdFlagFixed|nbdFlagNoZeroes))
	if err := s.w.Flush(); err != nil {
		return err
	}
	var client uint32
	if err := binary.Read(s.r, binary.BigEndian, &client); err != nil {
		return err
	}
	if client&^uint32(nbdFlagFixed|nbdFlagNoZeroes) != 0 {
		return fmt.Errorf("%w: client flags %#x", ErrNBD, client)
	}
	for range nbdMaxOptions {
		begin, err := s.option(client)
		if err != nil || begin {
			return err
		}
		if err := s.w.Flush(); err != nil {
			return err
		}
	}
	return fmt.Errorf("%w: more than %d options", ErrNBD, nbdMaxOptions)
}

// option answers one option; begin is true when transmission follows.
func (s *nbdServer) option(client uint32) (begin bool, err error) {
	var h struct {
		Magic  uint64
		Option uint32
		Len    uint32
	}
	if err := binary.Read(s.r, binary.BigEndian, &h); err != nil {
		return false, err
	}
	if h.Magic != nbdOptMagic || h.Len > nbdMaxOption {
		return false, fmt.Errorf("%w: option magic %#x length %d", ErrNBD, h.Magic, h.Len)
	}
	data := make([]byte, h.Len)
	if _, err := io.ReadFull(s.r, data); err != nil {
		return false, unexpected(err)
	}
	switch h.Option {
	case nbdOptExportName: // any name is our one disk
		s.put(uint64(s.disk.Size()), s.flags())
		if client&nbdFlagNoZeroes == 0 {
			s.put(make([]byte, 124))
		}
		return true, s.w.Flush()
	case nbdOptInfo, nbdOptGo:
		if !validInfoRequest(data) {
			s.reply(h.Option, nbdRepErrBad, nil)
			return false, nil
		}
		info := binary.BigEndian.AppendUint16(nil, nbdInfoExport)
		info = binary.BigEndian.AppendUint64(info, uint64(s.disk.Size()))
		info = binary.BigEndian.AppendUint16(info, s.flags())
		s.reply(h.Option, nbdRepInfo, info)
		info = binary.BigEndian.AppendUint16(nil, nbdInfoBlockSize)
		for _, size := range []uint32{Sector, 4096, nbdMaxPayload} { // least, preferred, most
			info = binary.BigEndian.AppendUint32(info, size)
		}
		s.reply(h.Option, nbdRepInfo, info)
		s.reply(h.Option, nbdRepAck, nil)
		return h.Option == nbdOptGo, s.w.Flush()
	case nbdOptAbort:
		s.reply(h.Option, nbdRepAck, nil)
		_ = s.w.Flush()
		return false, io.EOF
	}
	s.reply(h.Option, nbdRepErrUnsup, nil)
	return false, nil
}

func (s *nbdServer) reply(option, kind uint32, data []byte) {
	s.put(uint64(nbdRepMagic), option, kind, uint32(len(data)), data)
}

// validInfoRequest checks the body of INFO and GO: name length, name, count, that many 16 bit requests.
func validInfoRequest(b []byte) bool {
	if len(b) < 6 {
		return false
	}
	name := binary.BigEndian.Uint32(b)
	if uint64(name)+6 > uint64(len(b)) {
		return false
	}
	rest := b[4+name:]
	return len(rest) == 2+2*int(binary.BigEndian.Uint16(rest))
}

// request is one command of the transmission phase.
type request struct {
	flags, kind uint16
	handle      uint64
	offset      int64
	length      int64
}

// readRequest reads and checks the fixed part of a command. io.EOF only between commands.
func readRequest(r io.Reader) (request, error) {
	var b [28]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return request{}, err
	}
	if m := binary.BigEndian.Uint32(b[:]); m != nbdRequestMagic {
		return request{}, fmt.Errorf("%w: request magic %#x", ErrNBD, m)
	}
	q := request{
		flags: binary.BigEndian.Uint16(b[4:]), kind: binary.BigEndian.Uint16(b[6:]),
		handle: binary.BigEndian.Uint64(b[8:]), length: int64(binary.BigEndian.Uint32(b[24:])),
	}
	offset := binary.BigEndian.Uint64(b[16:])
	if offset > math.MaxInt64 {
		offset = math.MaxInt64 // beyond any disk: answered as such
	}
	q.offset = int64(offset)
	if q.kind == nbdWrite && q.length > nbdMaxPayload {
		// Its payload would have to be read to stay in step.
		return request{}, fmt.Errorf("%w: write of %d bytes", ErrNBD, q.length)
	}
	return q, nil
}

func (s *nbdServer) transmit() error {
	for {
		// Answers are sent together while more requests wait.
		if s.r.Buffered() == 0 {
			if err := s.w.Flush(); err != nil {
				return err
			}
		}
		q, err := readRequest(s.r)
		if err != nil {
			return err
		}
		if q.kind == nbdDisc {
			return nil
		}
		if err := s.serve(q); err != nil {
			return err
		}
	}
}

func (s *nbdServer) serve(q request) error {
	var payload []byte
	if q.kind == nbdWrite || q.kind == nbdRead && q.length <= nbdMaxPayload {
		if int64(cap(s.buf)) < q.length {
			s.buf = make([]byte, q.length)
		}
		payload = s.buf[:q.length]
	}
	if q.kind == nbdWrite {
		if _, err := io.ReadFull(s.r, payload); err != nil {
			return unexpected(err)
		}
	}
	code := s.run(q, payload)
	s.put(uint32(nbdReplyMagic), code, q.handle)
	if q.kind == nbdRead && code == 0 {
		if _, err := s.w.Write(payload); err != nil {
			return err
		}
	}
	return nil
}

// run executes a command and returns NBD's error number.
func (s *nbdServer) run(q request, payload []byte) uint32 {
	if q.flags&^uint16(nbdCmdFUA|nbdCmdNoHole) != 0 {
		return nbdEINVAL
	}
	fua := q.flags&nbdCmdFUA != 0
	var err error
	switch q.kind {
	case nbdRead:
		if q.length > nbdMaxPayload {
			return nbdEINVAL
		}
		_, err = s.disk.ReadAt(payload, q.offset)
	case nbdWrite:
		err = s.disk.Write(payload, q.offset, fua)
	case nbdWriteZeroes:
		if q.offset%Sector != 0 || q.length%Sector != 0 {
			return nbdEINVAL
		}
		err = s.disk.WriteZeroes(q.offset, q.length, fua)
	case nbdFlush:
		err = s.disk.Flush()
	case nbdTrim:
		if q.offset > s.disk.Size() || q.length > s.disk.Size()-q.offset {
			err = ErrRange
		}
	default:
		return nbdEINVAL
	}
	switch {
	case err == nil:
		return 0
	case errors.Is(err, ErrRange) && q.kind == nbdWrite:
		return nbdENOSPC
	case errors.Is(err, ErrRange):
		return nbdEINVAL
	}
	return nbdEIO
}

// unexpected turns an end of the stream in the middle of something into an error.
func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
