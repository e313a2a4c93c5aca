package evidence

import (
	"bytes"
	"encoding/binary"
)

// Quirk is a known deviation of real firmware that was seen and forgiven. Each is harmless: no fact depends on what it forgives.
type Quirk string

// The quirks. Each has a log in testdata.
const (
	// QuirkExitBootServices: PCR 5 holds the measurements of ExitBootServices and the log lacks them, because the log was taken before.
	QuirkExitBootServices Quirk = "exit-boot-services-unlogged"
	// QuirkLocality: PCR 0 started at locality 3 or 4 and the log lacks the StartupLocality event.
	QuirkLocality Quirk = "startup-locality-unlogged"
	// QuirkPadding: filler bytes after the last event.
	QuirkPadding Quirk = "padding-after-log"
	// QuirkTrustPoint: Windows appended its unmeasured trust point (PCR index 0xffffffff, EV_NO_ACTION).
	QuirkTrustPoint Quirk = "trust-point"
	// QuirkShimByte: an old shim measured its authority with some bytes too many, and logged one more than it measured. They are ignored.
	QuirkShimByte Quirk = "shim-authority-extra-byte"
)

// exitBootServices are the texts measured into PCR 5 when the operating system takes over (PFP 3.3.4.6), and the orders seen.
var exitBootServices = [][]string{
	{"Exit Boot Services Invocation", "Exit Boot Services Returned with Success"},
	{"Exit Boot Services Invocation", "Exit Boot Services Returned with Failure"},
	{"Exit Boot Services Invocation", "Exit Boot Services Returned with Failure",
		"Exit Boot Services Invocation", "Exit Boot Services Returned with Success"},
	{"Exit Boot Services Invocation", "Exit Boot Services Returned with Failure", "Exit Boot Services Returned with Success"},
}

const localitySignature = "StartupLocality\x00"

// Replay computes the PCR values that the log's digests lead to. PCRs without events have their value after reset: ones in 17 to 22, else
// zeros. Data is not looked at, except for the locality at which the TPM was started (PCR 0).
func Replay(raw []byte, bank Bank) (PCRs, *Failure) {
	l, f := ParseLog(raw)
	if f != nil {
		return PCRs{}, f
	}
	return l.Replay(bank)
}

// Replay is [Replay] of a parsed log.
func (l *Log) Replay(bank Bank) (PCRs, *Failure) {
	r, f := l.replay(bank)
	return r.pcrs, f
}

type replay struct {
	pcrs    PCRs
	touched [PCRCount]bool
	start   byte // the locality in PCR 0's first value
	located bool // by an event
}

func (l *Log) replay(bank Bank) (replay, *Failure) {
	var r replay
	size := bank.Size()
	if size == 0 || l.bank(bank) < 0 {
		return r, fail(KindBank, -1, -1, "the log has no %s digests", bank)
	}
	buf := make([]byte, PCRCount*size)
	for i := range r.pcrs {
		r.pcrs[i] = buf[i*size : (i+1)*size : (i+1)*size]
	}
	var scratch [2 * 64]byte
	for i := range l.Events {
		e := &l.Events[i]
		if e.Type == EventNoAction {
			if locality, ok := startupLocality(e); ok {
				if r.touched[0] || r.located {
					return r, fail(KindType, 0, i, "the startup locality follows a measurement")
				}
				r.located, r.start = true, locality
				r.pcrs[0][size-1] = locality
			}
			continue
		}
		d := l.Digest(i, bank)
		if d == nil {
			return r, fail(KindBank, int(e.PCR), i, "no %s digest", bank)
		}
		r.touched[e.PCR] = true
		extend(bank, r.pcrs[e.PCR], d, scratch[:0])
	}
	for i := 17; i <= 22; i++ {
		if !r.touched[i] {
			for j := range r.pcrs[i] {
				r.pcrs[i][j] = 0xff
			}
		}
	}
	return r, nil
}

func startupLocality(e *Event) (byte, bool) {
	if e.PCR != 0 || len(e.Data) != len(localitySignature)+1 || !bytes.HasPrefix(e.Data, []byte(localitySignature)) {
		return 0, false
	}
	return e.Data[len(localitySignature)], true
}

// extend sets pcr to the hash of pcr and digest; scratch has room for both.
func extend(bank Bank, pcr, digest, scratch []byte) {
	copy(pcr, bank.sum(scratch[len(scratch):], append(append(scratch, pcr...), digest...)))
}

// compare checks every PCR up to 15 against what the TPM reported. A PCR that differs may be explained by a quirk.
func (l *Log) compare(r *replay, want *PCRs, bank Bank) ([]Quirk, *Failure) {
	var quirks []Quirk
	for i := range want {
		if len(want[i]) != bank.Size() {
			return nil, fail(KindBank, i, -1, "the PCR value has %d bytes, %s has %d", len(want[i]), bank, bank.Size())
		}
	}
	for i := range 16 {
		q, f := l.leadsTo(r, i, want[i], bank)
		if f != nil {
			return nil, f
		}
		if q != "" {
			quirks = append(quirks, q)
		}
	}
	return quirks, nil
}

// leadsTo checks one PCR.
func (l *Log) leadsTo(r *replay, pcr int, want []byte, bank Bank) (Quirk, *Failure) {
	switch {
	case bytes.Equal(r.pcrs[pcr], want):
		return "", nil
	case pcr == 0 && r.touched[0] && !r.located && l.startsAt(want, bank):
		return QuirkLocality, nil
	case pcr == 5 && leftBootServices(r.pcrs[5], want, bank):
		return QuirkExitBootServices, nil
	case !r.touched[pcr]:
		return "", fail(KindUnlogged, pcr, -1, "the TPM reports %x and the log has no event for it", want)
	}
	return "", fail(KindPCR, pcr, -1, "the log leads to %x, the TPM reports %x", r.pcrs[pcr], want)
}

// LeadsTo reports whether the log's digests lead to this value of one PCR (0 to 23), which a quirk may explain. It proves nothing of the
// events' data; Prove does, for logs of Windows.
func (l *Log) LeadsTo(pcr int, value []byte, bank Bank) (Quirk, *Failure) {
	if pcr < 0 || pcr >= PCRCount {
		return "", fail(KindPCR, pcr, -1, "there is no such PCR")
	}
	r, f := l.replay(bank)
	if f != nil {
		return "", f
	}
	return l.leadsTo(&r, pcr, value, bank)
}

// HashesTo reports whether the event's data hashes to its digest. Many events' digests are of something else, such as a program.
func (l *Log) HashesTo(event int, bank Bank) bool {
	return bank.Size() > 0 && bytes.Equal(bank.sum(nil, l.Events[event].Data), l.Digest(event, bank))
}

// startsAt replays PCR 0 from localities 3 and 4.
func (l *Log) startsAt(want []byte, bank Bank) bool {
	var scratch [2 * 64]byte
	for _, locality := range []byte{3, 4} {
		pcr := make([]byte, bank.Size())
		pcr[len(pcr)-1] = locality
		for i := range l.Events {
			if e := &l.Events[i]; e.PCR == 0 && e.Type != EventNoAction {
				extend(bank, pcr, l.Digest(i, bank), scratch[:0])
			}
		}
		if bytes.Equal(pcr, want) {
			return true
		}
	}
	return false
}

func leftBootServices(have, want []byte, bank Bank) bool {
	var scratch [2 * 64]byte
	for _, order := range exitBootServices {
		pcr := bytes.Clone(have)
		for _, text := range order {
			extend(bank, pcr, bank.sum(nil, []byte(text)), scratch[:0])
		}
		if bytes.Equal(pcr, want) {
			return true
		}
	}
	return false
}

// separator kinds, by the four bytes measured (PFP 10.4.1; "WBCL" is Windows').
func separator(e *Event) (ok, failed bool) {
	if len(e.Data) != 4 {
		return false, false
	}
	switch binary.LittleEndian.Uint32(e.Data) {
	case 0, 0xffffffff:
		return true, false
	case 1:
		return true, true
	}
	return false, false
}
