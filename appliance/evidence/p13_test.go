package evidence

import (
	"bytes"
	"encoding/binary"
	"errors"
	"reflect"
	"testing"
	"time"
)

// What we decided about the context of TPM mode (hgsa.md 13.7), where the public record is silent; see p13_test.go of package hgsa.

// rounds runs a whole conversation and gives every order and answer.
func rounds(t *testing.T, d *device, h Host, log []byte) (orders, answers [][]byte) {
	t.Helper()
	c := &client{device: d, log: log}
	defer c.cleanup()
	context, err := dialogue().Begin(h, noon)
	if err != nil {
		t.Fatal(err)
	}
	for i := 1; i <= 20; i++ {
		orders = append(orders, context)
		answers = append(answers, c.answer(i, context))
		turn, err := dialogue().Next(h, answers[i-1], noon)
		if err != nil {
			t.Fatal(err)
		}
		if turn.Reading != nil {
			return orders, answers
		}
		context = turn.Context
	}
	t.Fatal("the conversation does not end")
	return nil, nil
}

func TestP13_07_ContextsKeepToThePublishedLayout(t *testing.T) {
	d := startTPM(t)
	orders, answers := rounds(t, d, Host{EK: d.ek(true, false), Bank: SHA256}, goodBoot(SHA256).Log())
	le := binary.LittleEndian
	for i, all := range [][][]byte{orders, answers} {
		for n, b := range all {
			state := 32 + int(le.Uint32(b[20:])) // EncContext and EncryptedBuffer
			count := 1
			if i == 1 && n == len(all)-1 {
				count = 3 // TPM_DEVICE_INFO, WBCL_INFO, response
			}
			if int(le.Uint32(b)) != len(b) || le.Uint32(b[4:]) != 1 || int(le.Uint32(b[8:])) != count || le.Uint64(b[16+24:]) != 0 {
				t.Errorf("list %d, round %d: header %x", i, n, b[:48])
			}
			if i == 1 && le.Uint32(b[12:]) != 0 {
				t.Errorf("answer %d: Reserved is %x", n, b[12:16])
			}
			blobs := b[16+state:]
			if count == 3 {
				if le.Uint32(blobs) != 1 || le.Uint32(blobs[4:]) != 2 {
					t.Errorf("TPM_DEVICE_INFO %x", blobs[:16])
				}
				blobs = blobs[16+4+le.Uint32(blobs[16:]):]
			}
			if int(binary.BigEndian.Uint32(blobs[2:])) != len(blobs) {
				t.Errorf("list %d, round %d: the last blob is not one TPM command or response", i, n)
			}
		}
	}
}

// TestP13_07_LogTravelsWithLastAnswer: not with the first, as hgsa.md proposes: so it is as fresh as the PCR values, and sent once.
func TestP13_07_LogTravelsWithLastAnswer(t *testing.T) {
	d := startTPM(t)
	log := goodBoot(SHA256).Log()
	h := Host{EK: d.ek(true, false), Bank: SHA256}
	orders, answers := rounds(t, d, h, log)
	for i := range orders {
		last := i == len(orders)-1
		o, err := PrivateCodec.DecodeOrder(orders[i])
		if err != nil || o.WantLog != last {
			t.Errorf("order %d: wants the log %t, %v", i, o.WantLog, err)
		}
		a, err := PrivateCodec.DecodeAnswer(answers[i])
		if err != nil || (a.Device != nil) != last || bytes.Equal(a.Log, log) != last {
			t.Errorf("answer %d: %d bytes of log, %v", i, len(a.Log), err)
		}
	}
	// Sent with the first answer only, it is missing at the end.
	early := &client{device: d, log: log, spoil: func(round int, a *Answer) {
		if a.Device, a.Log = nil, nil; round == 1 {
			a.Device, a.Log = &DeviceInfo{Version: 2}, log
		}
	}}
	if _, _, err := converse(t, h, early); !errors.Is(err, ErrContext) {
		t.Errorf("log with the first answer: %v", err)
	}
}

// TestP13_07_TheServerAsksTheFiveCommandsOnly, whatever the TPM answers; one that answers something else ends the conversation.
func TestP13_07_TheServerAsksTheFiveCommandsOnly(t *testing.T) {
	d := startTPM(t)
	log := goodBoot(SHA256).Log()
	for _, ecc := range []bool{true, false} {
		h := Host{EK: d.ek(ecc, false), Bank: SHA256, Fallback: SHA384}
		orders, answers := rounds(t, d, h, log)
		for i, order := range orders {
			o, err := PrivateCodec.DecodeOrder(order)
			if err != nil || len(o.Commands) != 1 {
				t.Fatal(o, err)
			}
			if err := CheckCommand(o.Commands[0]); err != nil {
				t.Errorf("round %d: %v", i, err)
			}
			// The answer of every other round in place of this one's.
			for j, other := range answers {
				own, err := PrivateCodec.DecodeAnswer(answers[i])
				if err != nil {
					t.Fatal(err)
				}
				from, err := PrivateCodec.DecodeAnswer(other)
				if err != nil {
					t.Fatal(err)
				}
				own.Responses = from.Responses
				mixed, err := PrivateCodec.EncodeAnswer(own)
				if err != nil {
					t.Fatal(err)
				}
				turn, err := dialogue().Next(h, mixed, noon)
				// Only the first round goes on without an answer it understands: it asks for the key to be made.
				if i != j && i > 0 && err == nil || turn != nil && turn.Reading != nil && i != j {
					t.Errorf("round %d takes the answer of round %d", i, j)
				}
			}
		}
	}
}

func TestP13_07_TheStateIsBoundToSessionAndKeyAndLastsTwoMinutes(t *testing.T) {
	d := startTPM(t)
	h := Host{EK: d.ek(true, false), Session: [16]byte{1}, Bank: SHA256}
	_, answers := rounds(t, d, h, goodBoot(SHA256).Log())
	otherSession, otherKey := h, h
	otherSession.Session[0] = 2
	otherKey.EK = mustEK(t)
	for i, a := range answers {
		if _, err := dialogue().Next(h, a, noon.Add(2*time.Minute)); err != nil {
			t.Errorf("round %d after two minutes: %v", i, err)
		}
		for name, c := range map[string]struct {
			h     Host
			after time.Duration
			want  error
		}{
			"another session":      {otherSession, 0, ErrContext},
			"another key":          {otherKey, 0, ErrContext},
			"two minutes and more": {h, 2*time.Minute + time.Millisecond, ErrExpired},
		} {
			if _, err := dialogue().Next(c.h, a, noon.Add(c.after)); !errors.Is(err, c.want) {
				t.Errorf("round %d, %s: %v", i, name, err)
			}
		}
	}
}

// TestTheSaltIsForTheRegisteredKeyOnly: a client that shows another key's public area, or that of the registered one in another TPM, gets a
// secret that only the registered key opens.
func TestTheSaltIsForTheRegisteredKeyOnly(t *testing.T) {
	mine := rsaKeys()[0]
	h := Host{EK: mustEK(t), Bank: SHA256}
	show := func(public []byte) []byte { // an answer to ReadPublic
		context, err := dialogue().Begin(h, noon)
		if err != nil {
			t.Fatal(err)
		}
		o, err := PrivateCodec.DecodeOrder(context)
		if err != nil {
			t.Fatal(err)
		}
		a, err := PrivateCodec.EncodeAnswer(&Answer{State: o.State, Responses: [][]byte{command(tagNoSessions, 0, sized2B(public), sized2B(nil), sized2B(nil))}})
		if err != nil {
			t.Fatal(err)
		}
		turn, err := dialogue().Next(h, a, noon)
		if err != nil {
			t.Fatal(err)
		}
		if o, err = PrivateCodec.DecodeOrder(turn.Context); err != nil {
			t.Fatal(err)
		}
		return o.Commands[0]
	}
	// Another key is not encrypted to: the key is asked for anew.
	if cmd := show(tpmt(t, &rsaKeys()[1].PublicKey, 0x300b2)); binary.BigEndian.Uint32(cmd[6:]) != ccCreatePrimary {
		t.Errorf("another key's public area leads to command 0x%x", binary.BigEndian.Uint32(cmd[6:]))
	}
	cmd := show(tpmt(t, &mine.PublicKey, 0x300b2))
	_, rest, _ := take2B(cmd[18:])
	secret, _, ok := take2B(rest)
	if binary.BigEndian.Uint32(cmd[6:]) != ccStartAuthSession || !ok {
		t.Fatalf("%x", cmd[:20])
	}
	for i, want := range []bool{true, false} {
		salt, err := decryptSalt(rsaKeys()[i], secret)
		if (err == nil && len(salt) == 32) != want {
			t.Errorf("key %d opens the salt: %v", i, err)
		}
	}
}

// TestNoFlippedBitOfAnAnswerIsAuthentic: of the answer that ends a conversation with a real TPM, only the log and the device information,
// which are not authentic by themselves, can be changed by one bit; the reading of the PCRs is then the same.
func TestNoFlippedBitOfAnAnswerIsAuthentic(t *testing.T) {
	d := startTPM(t)
	log := goodBoot(SHA256).Log()
	h := Host{EK: d.ek(true, false), Bank: SHA256}
	_, answers := rounds(t, d, h, log)
	honest, err := dialogue().Next(h, answers[len(answers)-1], noon)
	if err != nil {
		t.Fatal(err)
	}
	firstRead := len(answers) - 3 // what the TPM says before is not authentic; a lie leads to a session that it does not share
	for n, answer := range answers {
		free := map[int]bool{12: true, 13: true, 14: true, 15: true} // Reserved is ignored
		if n == len(answers)-1 {
			at := bytes.Index(answer, log)
			for i := at - 4 - 12; i < at-4; i++ { // TPM_DEVICE_INFO but for its version
				free[i] = true
			}
			for i := range log {
				free[at+i] = true
			}
		}
		for bit := range 8 * len(answer) {
			b := bytes.Clone(answer)
			b[bit/8] ^= 1 << (bit % 8)
			turn, err := dialogue().Next(h, b, noon)
			if n >= firstRead && free[bit/8] != (err == nil) {
				t.Fatalf("round %d, byte %d of %d: %v", n, bit/8, len(answer), err)
			}
			if err != nil || turn.Reading == nil {
				continue
			}
			if n < len(answers)-1 {
				t.Fatalf("round %d, byte %d: a reading before all PCRs were read", n, bit/8)
			}
			if !reflect.DeepEqual(turn.Reading.PCRs, honest.Reading.PCRs) {
				t.Fatalf("byte %d changes a PCR value", bit/8)
			}
		}
	}
}
