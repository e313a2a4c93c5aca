package evidence

import (
	"bytes"
	"encoding/binary"
	"fmt"
)

// Windows' tagged events (wbcl.h, "SIPA"): type u32, length u32, payload, all little-endian; a type with sipaContainer set holds further
// events. Types with sipaUnmeasured set appear outside measured events only.
const (
	sipaContainer  = 0x40000000
	sipaUnmeasured = 0x80000000

	sipaTrustBoundary = 0x40010001 // what one boot program measured
	sipaSoftReboot    = 0x40010005 // kernel soft reboot
	sipaSoftSigned    = 0x40010006

	sipaSIPolicy = 0x0005000f
	sipaIDK      = 0x00050020
	sipaIDKS     = 0x00050023
	sipaDumpKey  = 0x00050027

	maxNodes = 1 << 16
	maxDepth = 5
)

// Levels of nesting. Settings stand at the top or directly in a trust boundary; inside of other containers (one per loaded module, ...)
// they have no business.
const (
	levelTop = iota
	levelBoundary
	levelInside
)

var settingOf = func() map[uint32]SettingID {
	m := make(map[uint32]SettingID, settingCount)
	for id, s := range settings {
		if s.sipa != 0 {
			m[s.sipa] = SettingID(id)
		}
	}
	return m
}()

// sipa walks the events in data.
func (p *prover) sipa(data []byte, level int) *Failure {
	if level > maxDepth {
		return p.fail(KindContent, "containers nested deeper than %d", maxDepth)
	}
	for len(data) > 0 {
		if p.nodes++; p.nodes > maxNodes || len(data) < 8 {
			return p.fail(KindContent, "tagged events cut short or too many")
		}
		id, n := binary.LittleEndian.Uint32(data), binary.LittleEndian.Uint32(data[4:])
		if uint64(n) > uint64(len(data)-8) {
			return p.fail(KindContent, "tagged event 0x%08x of %d bytes in %d", id, n, len(data)-8)
		}
		payload := data[8 : 8+n]
		data = data[8+n:]
		var f *Failure
		switch {
		case id&sipaUnmeasured != 0:
		case id&sipaContainer != 0:
			f = p.container(id, payload, level)
		default:
			f = p.tagged1(id, payload, level)
		}
		if f != nil {
			return f
		}
	}
	return nil
}

func (p *prover) container(id uint32, payload []byte, level int) *Failure {
	switch id {
	case sipaTrustBoundary:
		if level != levelTop {
			return p.fail(KindContent, "a trust boundary inside of another container")
		}
		return p.sipa(payload, levelBoundary)
	case sipaSoftReboot, sipaSoftSigned:
		if !p.facts.Settings[KernelSoftReboot].add(uint64(id), p.pcr, p.index) {
			return p.fail(KindConflict, "too many soft reboots")
		}
	}
	return p.sipa(payload, max(level+1, levelInside))
}

// tagged1 takes one event that is no container. Events that are not listed give no fact.
func (p *prover) tagged1(id uint32, payload []byte, level int) *Failure {
	setting, ok := settingOf[id]
	if !ok && id != sipaSIPolicy && id != sipaIDK && id != sipaIDKS && id != sipaDumpKey {
		return nil
	}
	if level > levelBoundary || p.pcr == 14 {
		return p.fail(KindType, "tagged event 0x%08x has no business here", id)
	}
	switch id {
	case sipaSIPolicy:
		return p.policy(payload)
	case sipaIDK:
		return p.once(id, &p.facts.IDK, payload, identityKey(payload))
	case sipaIDKS:
		return p.once(id, &p.facts.IDKS, payload, identityKey(payload))
	case sipaDumpKey:
		return p.once(id, (*[]byte)(&p.facts.DumpKey), payload, len(payload) == 32)
	}
	v, ok := number(payload)
	if !ok {
		return p.fail(KindContent, "%s has %d bytes", setting, len(payload))
	}
	if !p.facts.Settings[setting].add(v, p.pcr, p.index) {
		return p.fail(KindConflict, "more than %d values of %s", maxValues, setting)
	}
	return nil
}

// number reads a payload of 1, 4 or 8 bytes.
func number(b []byte) (uint64, bool) {
	switch len(b) {
	case 1:
		return uint64(b[0]), true
	case 4:
		return uint64(binary.LittleEndian.Uint32(b)), true
	case 8:
		return binary.LittleEndian.Uint64(b), true
	}
	return 0, false
}

// once keeps a payload of which there can be only one; a repetition must be equal.
func (p *prover) once(id uint32, have *[]byte, payload []byte, ok bool) *Failure {
	if !ok {
		return p.fail(KindContent, "tagged event 0x%08x has no valid payload (%d bytes)", id, len(payload))
	}
	if *have == nil {
		*have = bytes.Clone(payload)
		return nil
	}
	if !bytes.Equal(*have, payload) {
		return p.fail(KindConflict, "tagged event 0x%08x measured with two values", id)
	}
	return nil
}

// identityKey checks the form of SIPAEVENT_VSM_IDK_INFO_PAYLOAD (hgsa.md 9.3) for an RSA key of 2048 to 16384 bits.
func identityKey(b []byte) bool {
	if len(b) < 16 {
		return false
	}
	le := binary.LittleEndian
	bits, e, n := le.Uint32(b[4:]), le.Uint32(b[8:]), le.Uint32(b[12:])
	return le.Uint32(b) == 1 && e >= 1 && e <= 4 && n >= 256 && n <= 2048 && bits == 8*n && len(b) == 16+int(e)+int(n)
}

// policy reads SIPAEVENT_SI_POLICY_PAYLOAD: version u64, length of the name u16, hash algorithm u16, length of the digest u32, name, digest.
// PCR 12 and 13 both tell of each policy; it is kept once.
func (p *prover) policy(b []byte) *Failure {
	le := binary.LittleEndian
	if len(b) < 16 {
		return p.fail(KindContent, "code integrity policy event of %d bytes", len(b))
	}
	name, hash, digest := int(le.Uint16(b[8:])), Bank(le.Uint16(b[10:])), le.Uint32(b[12:])
	if hash.Size() == 0 || int(digest) != hash.Size() || len(b) != 16+name+int(digest) || name > 1024 {
		return p.fail(KindContent, "code integrity policy event with %s digest of %d bytes, name of %d, in %d", hash, digest, name, len(b))
	}
	s := SIPolicy{
		Name:    utf16String(b[16 : 16+name]),
		Version: fmt.Sprintf("%d.%d.%d.%d", le.Uint16(b[6:]), le.Uint16(b[4:]), le.Uint16(b[2:]), le.Uint16(b)),
		Hash:    hash, Digest: bytes.Clone(b[16+name:]), PCR: p.pcr, Event: p.index,
	}
	for i := range p.facts.Policies {
		have := &p.facts.Policies[i]
		if have.Name == s.Name && have.Version == s.Version && have.Hash == s.Hash && bytes.Equal(have.Digest, s.Digest) {
			return nil
		}
	}
	if len(p.facts.Policies) == 32 {
		return p.fail(KindContent, "more than 32 code integrity policies")
	}
	p.facts.Policies = append(p.facts.Policies, s)
	return nil
}
