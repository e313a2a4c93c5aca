package evidence

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"

	"golang.org/x/crypto/cryptobyte"
)

// Why a conversation with a TPM ends without PCR values. All of them are answered by RtpmErrorReply.
var (
	ErrContext = errors.New("the context is not valid")
	ErrExpired = errors.New("the context has expired")
	ErrTPM     = errors.New("the TPM did not do what was asked")
	ErrOtherEK = errors.New("the TPM has another endorsement key than the registered one")
	ErrForged  = errors.New("the TPM's answer is not authentic")
	ErrBank    = errors.New("the TPM has no PCR bank that can attest")
)

// SessionLifetime is how long a conversation may take, from its first context to its last answer.
const SessionLifetime = 2 * time.Minute

// maxSkew is how far the nodes of a cluster may disagree about the time.
const maxSkew = 10 * time.Second

// maxRestarts bounds how often a conversation starts over because a PCR was extended while it was read.
const maxRestarts = 2

// Dialogue is the server's side of the conversation that reads a TPM's PCRs so that nobody but the TPM with the registered endorsement key
// could have answered (hgsa.md 8.2, 13.7): an HMAC session whose secret is encrypted to that key, and three PCR_Read commands under it. It
// needs no attestation key and keeps nothing: all state travels sealed in the context, so any node with the same keys can go on.
//
// A context can be answered again as long as it is valid, which leads to the same values; whoever wants to refuse that remembers the nonce
// of each [Turn]. Restarts are bounded. A Dialogue is safe for concurrent use if Random is.
type Dialogue struct {
	Keys   ContextKeys
	Codec  Codec
	Random io.Reader // cryptographic
}

// Host says whose conversation it is. All rounds of one must be given the same.
type Host struct {
	EK      *EK      // as registered; never what the client sends
	Session [16]byte // the protocol's SessionId
	Bank    Bank     // to be read
	// Fallback is read instead where the TPM itself says, under the session, that Bank is switched off; 0: none. It must be no weaker than
	// Bank, because who configures the host's firmware chooses.
	Fallback Bank
}

// Turn is the outcome of one answer: another context to send, or at the end the reading.
type Turn struct {
	Context []byte
	Reading *Reading
	Nonce   [12]byte // of the context that was answered
}

// Reading is what an authentic TPM said, and what the host sent along: Device and Log are not authentic by themselves. [Prove] checks the
// log against PCRs. Log aliases the answer.
type Reading struct {
	Bank    Bank
	PCRs    PCRs
	Device  DeviceInfo
	Log     []byte
	Started time.Time // of the conversation: the evidence is no older than this
}

// The stages of a conversation, each named by the answer it waits for.
const (
	stageReadPublic = iota + 1
	stageCreate
	stageSession
	stageRead // and two more
)

// session is the sealed state.
type session struct {
	stage                 byte
	bank                  Bank
	started               time.Time
	restarts              byte
	parent, handle        uint32 // of the endorsement key and of the session
	counter               uint32
	salt, key             []byte // key is empty until the TPM has answered with its nonce
	nonceCaller, nonceTPM []byte
	values                []byte // of the PCRs read so far
}

// Begin makes the first context of a conversation.
func (d *Dialogue) Begin(h Host, now time.Time) ([]byte, error) {
	template, err := templateFor(h.EK)
	if err != nil {
		return nil, err
	}
	if h.Bank.Size() == 0 {
		return nil, fmt.Errorf("there is no bank %s", h.Bank)
	}
	s := &session{stage: stageReadPublic, bank: h.Bank, started: now}
	return d.send(h, s, command(tagNoSessions, ccReadPublic, words(template.persistent)))
}

// Next takes the answer to a context.
func (d *Dialogue) Next(h Host, context []byte, now time.Time) (*Turn, error) {
	a, err := d.Codec.DecodeAnswer(context)
	if err != nil {
		return nil, err
	}
	sealed, nonce, err := d.Keys.open(a.State, h.bound())
	if err != nil {
		return nil, err
	}
	defer clear(sealed)
	s, err := unmarshalSession(sealed)
	if err != nil {
		return nil, err
	}
	defer s.wipe()
	if age := now.Sub(s.started); age > SessionLifetime || age < -maxSkew {
		return nil, fmt.Errorf("%w: it is %s old", ErrExpired, age.Round(time.Second))
	}
	if len(a.Responses) != 1 {
		return nil, fmt.Errorf("%w: %d answers to one command", ErrContext, len(a.Responses))
	}
	r, err := parseResponse(a.Responses[0])
	if err != nil {
		return nil, err
	}
	turn, err := d.turn(h, s, r, a)
	if err != nil {
		return nil, err
	}
	turn.Nonce = nonce
	return turn, nil
}

func (d *Dialogue) turn(h Host, s *session, r response, a *Answer) (*Turn, error) {
	switch {
	case s.stage == stageReadPublic:
		template, err := templateFor(h.EK)
		if err != nil {
			return nil, err
		}
		public, _, ok := take2B(r.body)
		if ek, err := parseTPMT(public, EKTPM2B); r.code == 0 && ok && err == nil && ek.Same(h.EK) {
			return d.start(h, s, template.persistent)
		}
		s.stage = stageCreate
		return d.turnTo(h, s, template.create())
	case s.stage == stageCreate:
		return d.created(h, s, r)
	case s.stage == stageSession:
		return d.sessionStarted(h, s, r)
	}
	return d.read(h, s, r, a)
}

// created takes the key that the TPM made from the default template.
func (d *Dialogue) created(h Host, s *session, r response) (*Turn, error) {
	if r.code != 0 {
		return nil, fmt.Errorf("%w: CreatePrimary of the endorsement key answered 0x%x", ErrTPM, r.code)
	}
	if len(r.body) < 8 {
		return nil, fmt.Errorf("%w: malformed response to CreatePrimary", ErrContext)
	}
	public, _, ok := take2B(r.body[8:]) // after handle and size of the parameters
	ek, err := parseTPMT(public, EKTPM2B)
	if !ok || err != nil {
		return nil, fmt.Errorf("%w: malformed response to CreatePrimary", ErrContext)
	}
	if !ek.Same(h.EK) {
		return nil, ErrOtherEK
	}
	return d.start(h, s, binary.BigEndian.Uint32(r.body))
}

// start has the TPM start the session; the salt is encrypted to the registered key, whatever key the handle stands for.
func (d *Dialogue) start(h Host, s *session, parent uint32) (*Turn, error) {
	salt, encrypted, err := saltFor(d.Random, h.EK)
	if err != nil {
		return nil, err
	}
	s.nonceCaller = make([]byte, 32)
	if _, err := io.ReadFull(d.Random, s.nonceCaller); err != nil {
		return nil, fmt.Errorf("nonce: %w", err)
	}
	s.stage, s.parent, s.salt, s.key, s.values = stageSession, parent, salt, nil, nil
	be := binary.BigEndian
	tail := be.AppendUint16(be.AppendUint16([]byte{0}, tpmAlgNull), uint16(SHA256)) // HMAC session, no parameter encryption, hash
	return d.turnTo(h, s, command(tagNoSessions, ccStartAuthSession, words(parent, rhNull), sized2B(s.nonceCaller), sized2B(encrypted), tail))
}

func (d *Dialogue) sessionStarted(h Host, s *session, r response) (*Turn, error) {
	if r.code != 0 {
		return nil, fmt.Errorf("%w: StartAuthSession answered 0x%x", ErrTPM, r.code)
	}
	if len(r.body) < 4 {
		return nil, fmt.Errorf("%w: malformed response to StartAuthSession", ErrContext)
	}
	nonce, rest, ok := take2B(r.body[4:])
	if !ok || len(rest) != 0 || len(nonce) != 32 {
		return nil, fmt.Errorf("%w: malformed response to StartAuthSession", ErrContext)
	}
	s.handle, s.nonceTPM = binary.BigEndian.Uint32(r.body), bytes.Clone(nonce)
	s.key = kdfa(SHA256, s.salt, "ATH", nonce, s.nonceCaller, 256)
	clear(s.salt)
	s.salt, s.stage = nil, stageRead
	return d.ask(h, s)
}

// ask has the next eight PCRs read.
func (d *Dialogue) ask(h Host, s *session) (*Turn, error) {
	nonce := make([]byte, 32)
	if _, err := io.ReadFull(d.Random, nonce); err != nil {
		return nil, fmt.Errorf("nonce: %w", err)
	}
	from := 8 * int(s.stage-stageRead)
	cmd := s.readPCRs(from, nonce, from == 16)
	s.nonceCaller = nonce
	return d.turnTo(h, s, cmd)
}

// read takes eight values. If a PCR was extended since the first reading everything is read again in a new session.
func (d *Dialogue) read(h Host, s *session, r response, a *Answer) (*Turn, error) {
	from := 8 * int(s.stage-stageRead)
	counter, values, err := s.pcrValues(r, from, from == 16)
	if errors.Is(err, errEmptyBank) && from == 0 && s.bank == h.Bank && h.Fallback.Size() > 0 {
		s.bank = h.Fallback
		return d.ask(h, s) // the session goes on
	}
	if err != nil {
		return nil, err
	}
	if from > 0 && counter != s.counter {
		if s.restarts++; s.restarts > maxRestarts {
			return nil, fmt.Errorf("%w: PCRs are extended faster than they can be read", ErrTPM)
		}
		return d.start(h, s, s.parent)
	}
	s.counter, s.values = counter, append(s.values, values...)
	if from < 16 {
		s.stage++
		return d.ask(h, s)
	}
	if a.Device == nil || len(a.Log) == 0 {
		return nil, fmt.Errorf("%w: the boot log is missing", ErrContext)
	}
	reading := &Reading{Bank: s.bank, Device: *a.Device, Log: a.Log, Started: s.started}
	all, size := bytes.Clone(s.values), s.bank.Size()
	for i := range reading.PCRs {
		reading.PCRs[i] = all[i*size : (i+1)*size]
	}
	return &Turn{Reading: reading}, nil
}

func (d *Dialogue) turnTo(h Host, s *session, cmd []byte) (*Turn, error) {
	context, err := d.send(h, s, cmd)
	if err != nil {
		return nil, err
	}
	return &Turn{Context: context}, nil
}

func (d *Dialogue) send(h Host, s *session, cmd []byte) ([]byte, error) {
	plain, err := s.marshal()
	if err != nil {
		return nil, err
	}
	defer clear(plain)
	state, err := d.Keys.seal(d.Random, plain, h.bound())
	if err != nil {
		return nil, err
	}
	return d.Codec.EncodeOrder(&Order{State: state, Commands: [][]byte{cmd}, WantLog: s.stage == stageRead+2})
}

// bound ties sealed state to one host, session and choice of banks.
func (h *Host) bound() []byte {
	sum := sha256.Sum256([]byte(h.EK.ID()))
	b := append(append([]byte("rtpm 1\x00"), sum[:]...), h.Session[:]...)
	return binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(b, uint16(h.Bank)), uint16(h.Fallback))
}

func (s *session) wipe() {
	clear(s.salt)
	clear(s.key)
}

func (s *session) marshal() ([]byte, error) {
	room := 32 + 2*5 + len(s.salt) + len(s.key) + len(s.nonceCaller) + len(s.nonceTPM) + len(s.values)
	if room > maxState-stateHead-16 {
		return nil, errors.New("session state: it is too large")
	}
	b := cryptobyte.NewFixedBuilder(make([]byte, 0, room))
	b.AddUint8(s.stage)
	b.AddUint8(s.restarts)
	b.AddUint16(uint16(s.bank))
	b.AddUint64(uint64(s.started.UnixMilli()))
	b.AddUint32(s.parent)
	b.AddUint32(s.handle)
	b.AddUint32(s.counter)
	for _, v := range [][]byte{s.salt, s.key, s.nonceCaller, s.nonceTPM, s.values} {
		b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes(v) })
	}
	out, err := b.Bytes()
	if err != nil {
		return nil, fmt.Errorf("session state: %w", err)
	}
	return out, nil
}

func unmarshalSession(b []byte) (*session, error) {
	s, r := &session{}, cryptobyte.String(b)
	var bank uint16
	var started uint64
	ok := r.ReadUint8(&s.stage) && r.ReadUint8(&s.restarts) && r.ReadUint16(&bank) && r.ReadUint64(&started) &&
		r.ReadUint32(&s.parent) && r.ReadUint32(&s.handle) && r.ReadUint32(&s.counter)
	for _, v := range []*[]byte{&s.salt, &s.key, &s.nonceCaller, &s.nonceTPM, &s.values} {
		var x cryptobyte.String
		ok = ok && r.ReadUint16LengthPrefixed(&x)
		*v = bytes.Clone(x)
	}
	s.bank, s.started = Bank(bank), time.UnixMilli(int64(started))
	if !ok || !r.Empty() || s.stage < stageReadPublic || s.stage > stageRead+2 || s.bank.Size() == 0 {
		return nil, fmt.Errorf("%w: of another version of this software", ErrContext)
	}
	return s, nil
}
