package evidence

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"slices"
	"testing"
	"time"
)

func dialogue() *Dialogue {
	return &Dialogue{Keys: ContextKeys{Epoch: 1000, Current: bytes.Repeat([]byte{1}, 32), Previous: bytes.Repeat([]byte{2}, 32)}, Codec: PrivateCodec, Random: rand.Reader}
}

// converse runs a whole conversation. Each round is answered by another node: only the keys are shared.
func converse(t testing.TB, h Host, c *client) (*Reading, int, error) {
	t.Helper()
	defer c.cleanup()
	context, err := dialogue().Begin(h, noon)
	if err != nil {
		t.Fatal(err)
	}
	for round := 1; round <= 20; round++ {
		turn, err := dialogue().Next(h, c.answer(round, context), noon.Add(time.Duration(round)*time.Second))
		if err != nil {
			return nil, round, err
		}
		if turn.Reading != nil {
			return turn.Reading, round, nil
		}
		context = turn.Context
	}
	t.Fatal("the conversation does not end")
	return nil, 0, nil
}

func TestDialogueReadsARealTPM(t *testing.T) {
	d := startTPM(t)
	boot := goodBoot(SHA256)
	for _, x := range boot.Extends {
		d.extend(x, []Bank{SHA256})
	}
	for _, c := range []struct {
		name         string
		ecc, persist bool
		rounds       int
	}{{"ECC key made from the template", true, false, 6}, {"RSA key made from the template", false, false, 6}, {"RSA key at its persistent handle", false, true, 5}} {
		ek := d.ek(c.ecc, c.persist)
		h := Host{EK: ek, Session: [16]byte{1}, Bank: SHA256}
		reading, rounds, err := converse(t, h, &client{device: d, log: boot.Log()})
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if rounds != c.rounds || reading.Device.Version != 2 || !reading.Started.Equal(noon) {
			t.Errorf("%s: %d rounds, %+v", c.name, rounds, reading.Device)
		}
		facts := mustProve(t, reading.Log, reading.PCRs, SHA256)
		if facts.IDK == nil || !facts.Settings[VSMLaunch].Only(1) {
			t.Errorf("%s: the log proves nothing", c.name)
		}
	}

	// A PCR extended after the log was taken.
	d.extend(Extend{PCR: 12, Digests: [][]byte{SHA256.sum(nil, []byte("later"))}}, []Bank{SHA256})
	reading, _, err := converse(t, Host{EK: d.ek(true, false), Bank: SHA256}, &client{device: d, log: boot.Log()})
	if err != nil {
		t.Fatal(err)
	}
	if _, f := Prove(reading.Log, reading.PCRs, SHA256); f == nil || f.Kind != KindPCR || f.PCR != 12 {
		t.Errorf("extended later: %v", f)
	}
}

// TestTheSessionEndsWithTheLastReading, so that nothing is left in the host's TPM but the key that CreatePrimary made.
func TestTheSessionEndsWithTheLastReading(t *testing.T) {
	d := startTPM(t)
	orders, answers := rounds(t, d, Host{EK: d.ek(true, true), Bank: SHA256}, goodBoot(SHA256).Log())
	var handle uint32
	for i, order := range orders {
		o, err := PrivateCodec.DecodeOrder(order)
		if err != nil {
			t.Fatal(err)
		}
		cmd := o.Commands[0]
		switch binary.BigEndian.Uint32(cmd[6:]) {
		case ccStartAuthSession:
			a, err := PrivateCodec.DecodeAnswer(answers[i])
			if err != nil {
				t.Fatal(err)
			}
			handle = binary.BigEndian.Uint32(a.Responses[0][10:])
		case ccPCRRead:
			attributes := cmd[14+4+2+32]
			if attributes&attrAudit == 0 || (attributes&attrContinue == 0) != (i == len(orders)-1) {
				t.Errorf("round %d: session attributes 0x%x", i, attributes)
			}
		}
	}
	if r := d.run(command(tagNoSessions, 0x165, words(handle))); handle == 0 || binary.BigEndian.Uint32(r[6:]) == 0 {
		t.Errorf("session 0x%x is still there", handle)
	}
}

func TestDialogueRestartsWhenAPCRChangesMeanwhile(t *testing.T) {
	d := startTPM(t)
	h := Host{EK: d.ek(true, false), Bank: SHA256}
	boot := goodBoot(SHA256)
	later := Extend{PCR: 10, Digests: [][]byte{make([]byte, 32)}}
	once := &client{device: d, log: boot.Log(), spoil: func(round int, _ *Answer) {
		if round == 5 { // between the second and the third reading
			d.extend(later, []Bank{SHA256})
		}
	}}
	if _, rounds, err := converse(t, h, once); err != nil || rounds != 10 {
		t.Errorf("once: %d rounds, %v", rounds, err)
	}
	always := &client{device: d, log: boot.Log(), spoil: func(int, *Answer) { d.extend(later, []Bank{SHA256}) }}
	if _, _, err := converse(t, h, always); !errors.Is(err, ErrTPM) {
		t.Errorf("always: %v", err)
	}
}

func TestDialogueRefuses(t *testing.T) {
	d := startTPM(t)
	other := startTPM(t)
	ek := d.ek(true, false)
	h := Host{EK: ek, Bank: SHA256}
	log := goodBoot(SHA256).Log()
	flip := func(in, at int) func(int, *Answer) {
		return func(round int, a *Answer) {
			if round == in {
				r := a.Responses[0]
				if at < 0 {
					at += len(r)
				}
				r[at] ^= 1
			}
		}
	}
	for _, c := range []struct {
		name  string
		on    *device
		spoil func(int, *Answer)
		want  error
	}{
		{"another TPM", other, nil, ErrOtherEK},
		{"PCR value altered", d, flip(4, 60), ErrForged},
		{"counter altered", d, flip(5, 17), ErrForged},
		{"response HMAC altered", d, flip(6, -1), ErrForged},
		{"nonce altered", d, flip(4, -40), ErrForged},
		{"nonce of the session altered", d, flip(3, -1), ErrTPM},
		{"log missing", d, func(_ int, a *Answer) { a.Device = nil }, ErrContext},
		{"two answers to one command", d, func(_ int, a *Answer) { a.Responses = append(a.Responses, a.Responses[0]) }, ErrContext},
		{"no answer", d, func(_ int, a *Answer) { a.Responses = nil }, ErrContext},
		{"state altered", d, func(round int, a *Answer) {
			if round == 3 {
				a.State = bytes.Clone(a.State)
				a.State[40] ^= 1
			}
		}, ErrContext},
		{"error instead of values", d, func(round int, a *Answer) {
			if round == 4 {
				a.Responses[0] = []byte{0x80, 1, 0, 0, 0, 10, 0, 0, 1, 1}
			}
		}, ErrTPM},
	} {
		if _, _, err := converse(t, h, &client{device: c.on, log: log, spoil: c.spoil}); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
	}

	// A client that has its TPM start a session on a key of its own, and claims it were the registered one.
	liar := &client{device: other, log: log, spoil: func(round int, a *Answer) {
		if round == 2 {
			r := a.Responses[0]
			a.Responses[0] = append(append(bytes.Clone(r[:18]), sized2B(tpmt(t, ek.Public, 0x300b2))...), 0)
			binary.BigEndian.PutUint32(a.Responses[0][2:], uint32(len(a.Responses[0])))
		}
	}}
	if _, _, err := converse(t, h, liar); err == nil {
		t.Error("another TPM under the registered key's name is accepted")
	}
}

func TestContextBelongsToOneConversation(t *testing.T) {
	d := startTPM(t)
	h := Host{EK: d.ek(true, false), Session: [16]byte{1}, Bank: SHA256}
	c := &client{device: d}
	context, err := dialogue().Begin(h, noon)
	if err != nil {
		t.Fatal(err)
	}
	answer := c.answer(1, context)
	next := func(h Host, d *Dialogue, answer []byte, after time.Duration) error {
		_, err := d.Next(h, answer, noon.Add(after))
		return err
	}
	if err := next(h, dialogue(), answer, time.Minute); err != nil {
		t.Fatal(err)
	}
	othersKey, othersSession, othersBank := h, h, h
	othersKey.EK = mustEK(t)
	othersSession.Session[3] = 9
	othersBank.Bank = SHA1
	later, tooLate, strange := dialogue(), dialogue(), dialogue()
	later.Keys = ContextKeys{Epoch: 1001, Current: later.Keys.Previous, Previous: later.Keys.Current}
	tooLate.Keys.Epoch = 1002
	strange.Keys.Current = strange.Keys.Previous
	for name, c := range map[string]struct {
		err  error
		want error
	}{
		"another host":                   {next(othersKey, dialogue(), answer, 0), ErrContext},
		"another session":                {next(othersSession, dialogue(), answer, 0), ErrContext},
		"another bank":                   {next(othersBank, dialogue(), answer, 0), ErrContext},
		"too late":                       {next(h, dialogue(), answer, SessionLifetime+time.Second), ErrExpired},
		"from the future":                {next(h, dialogue(), answer, -time.Minute), ErrExpired},
		"key of the hour before":         {next(h, later, answer, time.Minute), nil},
		"key that is gone":               {next(h, tooLate, answer, time.Minute), ErrContext},
		"another cluster":                {next(h, strange, answer, 0), ErrContext},
		"the order instead of an answer": {next(h, dialogue(), context, 0), ErrContext},
	} {
		if !errors.Is(c.err, c.want) {
			t.Errorf("%s: %v, want %v", name, c.err, c.want)
		}
	}
	for i := range answer {
		if next(h, dialogue(), answer[:i], 0) == nil {
			t.Errorf("cut to %d bytes and accepted", i)
		}
	}
	for bit := range 8 * (len(answer) - 10) { // what follows is the TPM's response, authentic or not by itself
		b := bytes.Clone(answer)
		b[bit/8] ^= 1 << (bit % 8)
		if bit >= 8*12 && bit < 8*16 {
			continue // Reserved is ignored
		}
		if next(h, dialogue(), b, 0) == nil {
			t.Errorf("bit %d flipped and accepted", bit)
		}
	}
}

func mustEK(t testing.TB) *EK {
	t.Helper()
	ek, err := newEK(&rsaKeys()[0].PublicKey, EKSPKI)
	if err != nil {
		t.Fatal(err)
	}
	return ek
}

func TestClientRunsFiveCommandsOnly(t *testing.T) {
	for _, cmd := range [][]byte{createEK(true), createEK(false), command(tagNoSessions, ccReadPublic, words(persistentEK)), command(tagSessions, ccPCRRead), command(tagNoSessions, ccStartAuthSession)} {
		if err := CheckCommand(cmd); err != nil {
			t.Error(err)
		}
	}
	owner := bytes.Clone(createEK(true))
	binary.BigEndian.PutUint32(owner[10:], 0x40000001)
	for _, cmd := range [][]byte{nil, command(tagNoSessions, 0x126), command(tagSessions, 0x182, words(0)), owner, createEK(true)[:20], append(createEK(true), 0)} {
		if err := CheckCommand(cmd); !errors.Is(err, ErrCommand) {
			t.Errorf("%x: %v", cmd[:min(len(cmd), 14)], err)
		}
	}
}

func FuzzDecodeContext(f *testing.F) {
	h := Host{EK: mustEK(f), Bank: SHA256}
	order, err := dialogue().Begin(h, noon)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(order)
	o, _ := PrivateCodec.DecodeOrder(order)
	answer, _ := PrivateCodec.EncodeAnswer(&Answer{State: o.State, Device: &DeviceInfo{Version: 2}, Log: []byte("log"), Responses: [][]byte{command(tagNoSessions, 0)}})
	f.Add(answer)
	f.Fuzz(func(t *testing.T, b []byte) {
		if o, err := PrivateCodec.DecodeOrder(b); err == nil {
			if back, err := PrivateCodec.EncodeOrder(o); err != nil || len(back) != len(b) {
				t.Fatal("an order changes its size")
			}
		}
		_, _ = dialogue().Next(h, b, noon)
	})
}

// FuzzResponses hands the state machine responses of a TPM in every stage.
func FuzzResponses(f *testing.F) {
	h := Host{EK: mustEK(f), Bank: SHA256, Fallback: SHA384}
	zero := &session{key: make([]byte, 32), nonceCaller: make([]byte, 32)}
	empty := slices.Concat(words(7, 1), []byte{0, 0x0b, 3, 0, 0, 0}, words(0)) // authentic: the bank is off
	mac := zero.hmac(SHA256.sum(nil, append(words(0, ccPCRRead), empty...)), make([]byte, 32), zero.nonceCaller, attrContinue|attrAudit)
	f.Add(byte(3), command(tagSessions, 0, words(uint32(len(empty))), empty, sized2B(make([]byte, 32)), []byte{attrContinue | attrAudit}, sized2B(mac)))
	f.Add(byte(1), []byte{0x80, 1, 0, 0, 0, 10, 0, 0, 1, 1})
	f.Add(byte(2), command(tagSessions, 0, words(1, 2), sized2B(make([]byte, 40))))
	f.Add(byte(3), command(tagNoSessions, 0, words(1), sized2B(make([]byte, 32))))
	f.Add(byte(4), command(tagSessions, 0, words(4, 0), sized2B(make([]byte, 32)), []byte{0x81}, sized2B(make([]byte, 32))))
	f.Fuzz(func(t *testing.T, stage byte, raw []byte) {
		r, err := parseResponse(raw)
		if err != nil {
			return
		}
		s := &session{stage: stageReadPublic + stage%6, bank: SHA256, key: make([]byte, 32), nonceTPM: make([]byte, 32), nonceCaller: make([]byte, 32)}
		turn, err := dialogue().turn(h, s, r, &Answer{})
		if err == nil && turn.Reading != nil {
			t.Fatal("a reading from nothing")
		}
		if s.bank != SHA256 && s.bank != SHA384 {
			t.Fatal("another bank than one of the two")
		}
	})
}
