package evidence

import (
	"bytes"
	"encoding/binary"
	"slices"
)

// Prove checks a boot log against the PCR values of a bank, which must come from an authenticated reading, and gives the facts it proves.
// Exactly one result is nil.
func Prove(raw []byte, pcrs PCRs, bank Bank) (*Facts, *Failure) {
	l, f := ParseLog(raw)
	if f != nil {
		return nil, f
	}
	return l.Prove(pcrs, bank)
}

// Prove is [Prove] of a parsed log.
func (l *Log) Prove(pcrs PCRs, bank Bank) (*Facts, *Failure) {
	r, f := l.replay(bank)
	if f != nil {
		return nil, f
	}
	quirks, f := l.compare(&r, &pcrs, bank)
	if f != nil {
		return nil, f
	}
	return l.facts(bank, quirks)
}

// ParseBaseline reads a .tcglog baseline, which comes without PCR values: it takes the log's strongest bank and the values that the log
// itself leads to. The facts are as true as the file's source.
func ParseBaseline(raw []byte) (*Facts, *Failure) {
	l, f := ParseLog(raw)
	if f != nil {
		return nil, f
	}
	for _, bank := range []Bank{SHA512, SHA384, SHA256, SHA1} {
		if l.bank(bank) >= 0 {
			if _, f := l.replay(bank); f != nil {
				return nil, f
			}
			return l.facts(bank, nil)
		}
	}
	return nil, fail(KindBank, -1, -1, "the log has no digests of a known bank")
}

// prover gathers facts event by event; the PCRs already replayed.
type prover struct {
	facts  *Facts
	bank   Bank
	capped [PCRCount]bool // the separator was seen
	tagged [PCRCount]bool // Windows measured something
	nodes  int            // SIPA events visited
	shim   bool           // the event at hand has QuirkShimByte
	index  int            // of the event at hand
	pcr    int
}

func (l *Log) facts(bank Bank, quirks []Quirk) (*Facts, *Failure) {
	p := &prover{bank: bank, facts: &Facts{Bank: bank, Events: len(l.Events), Quirks: quirks}}
	if l.Padding > 0 {
		p.quirk(QuirkPadding)
	}
	for i := range l.Events {
		e := &l.Events[i]
		if e.Type == EventNoAction {
			if e.PCR == trustPoint {
				p.quirk(QuirkTrustPoint)
			}
			continue
		}
		p.index, p.pcr = i, int(e.PCR)
		if !allowed(p.pcr, e.Type) {
			return nil, p.fail(KindType, "event type 0x%08x has no business here", uint32(e.Type))
		}
		if f := p.event(e, l.Digest(i, bank)); f != nil {
			return nil, f
		}
	}
	if f := p.variablesComplete(); f != nil {
		return nil, f
	}
	for pcr := 12; pcr <= 14; pcr++ {
		if p.tagged[pcr] && !p.capped[pcr] {
			return nil, fail(KindUncapped, pcr, -1, "the boot loader's closing separator is missing")
		}
	}
	return p.facts, nil
}

func (p *prover) fail(kind Kind, format string, args ...any) *Failure {
	return fail(kind, p.pcr, p.index, format, args...)
}

func (p *prover) quirk(q Quirk) {
	if !slices.Contains(p.facts.Quirks, q) {
		p.facts.Quirks = append(p.facts.Quirks, q)
	}
}

// event looks into the PCRs that give facts; in the others only a firmware error counts.
func (p *prover) event(e *Event, digest []byte) *Failure {
	if p.pcr < 7 {
		if e.Type == EventSeparator {
			if _, failed := separator(e); failed {
				return p.fail(KindFirmware, "firmware reports that a measurement failed")
			}
		}
		return nil
	}
	if p.pcr >= 8 && p.pcr <= 10 || p.pcr == 15 {
		if !slices.Contains(p.facts.Foreign, p.pcr) {
			p.facts.Foreign = append(p.facts.Foreign, p.pcr)
		}
		return nil
	}
	if p.pcr > 15 {
		return nil
	}
	if !p.covers(digest, e.Data) {
		if p.pcr != 7 || e.Type != EventVariableAuthz || len(e.Data) == 0 || !p.covers(digest, e.Data[:len(e.Data)-1]) {
			return p.fail(KindDigest, "the data does not hash to the digest")
		}
		p.quirk(QuirkShimByte)
		p.shim = true
		defer func() { p.shim = false }()
		short := *e
		short.Data = e.Data[:len(e.Data)-1]
		e = &short
	}
	switch p.pcr {
	case 7:
		return p.secureBoot(e)
	case 11:
		return p.accessControl(e)
	}
	return p.windows(e)
}

func (p *prover) covers(digest, data []byte) bool {
	var scratch [64]byte
	return bytes.Equal(p.bank.sum(scratch[:0], data), digest)
}

// accessControl reads PCR 11: the boot manager measures four bytes when it unlocks a volume and when it closes the door behind it.
func (p *prover) accessControl(e *Event) *Failure {
	if len(e.Data) != 4 {
		return p.fail(KindContent, "%d bytes where the boot manager measures 4", len(e.Data))
	}
	v := binary.LittleEndian.Uint32(e.Data)
	if s, _ := separator(e); e.Type == EventSeparator || s || v == wbclSeparator {
		if e.Type != EventSeparator || !s && v != wbclSeparator {
			return p.fail(KindType, "a separator by type or by value, not both")
		}
		return nil
	}
	if !p.facts.Settings[AccessControl].add(uint64(v), p.pcr, p.index) {
		return p.fail(KindConflict, "too many values of %s", AccessControl)
	}
	return nil
}

// wbclSeparator is "WBCL", which the Windows boot loader measures to end its part.
const wbclSeparator = 0x4c434257

// windows reads PCR 12 to 14: tagged events until the closing separator, nothing after it.
func (p *prover) windows(e *Event) *Failure {
	if p.capped[p.pcr] {
		return p.fail(KindAfterCap, "measured after the boot loader's closing separator")
	}
	if e.Type == EventSeparator {
		switch s, failed := separator(e); {
		case failed:
			return p.fail(KindFirmware, "the boot loader reports that a measurement failed")
		case len(e.Data) == 4 && binary.LittleEndian.Uint32(e.Data) == wbclSeparator:
			p.capped[p.pcr] = true
		case !s || p.tagged[p.pcr]:
			return p.fail(KindContent, "not a separator of firmware or boot loader")
		}
		return nil
	}
	p.tagged[p.pcr] = true
	return p.sipa(e.Data, levelTop)
}
