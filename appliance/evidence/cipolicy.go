package evidence

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"
)

// CIPolicy is a code integrity policy file: what a host measures of it, and what it says about itself.
type CIPolicy struct {
	Signed  bool   // it came wrapped in PKCS#7, which was taken off: the signature is not measured
	Content []byte // the policy itself; aliases the input
	Version string // a.b.c.d, as SIPAEVENT_SI_POLICY tells it too
	TypeID  string // GUID of the kind of policy; enterprise policies have enterprisePolicy
	Audit   bool   // violations are logged, not prevented
	// Name, PolicyID and BaseID come from the end of the file. They are empty if the policy has none or its format is newer than what is
	// known here (8). They are for people to read: only the digest identifies a policy.
	Name, PolicyID, BaseID string
}

// EnterprisePolicy is the TypeID of an organisation's own policy (SIPolicy.p7b).
const EnterprisePolicy = "a244370e-44c9-4c06-b551-f6016e563076"

// ErrCIPolicy is why a file is refused.
var ErrCIPolicy = errors.New("no binary code integrity policy (.bin, .cip or .p7b, as ConvertFrom-CIPolicy writes it)")

// Digest is the policy's hash as the boot loader measures it.
func (p *CIPolicy) Digest(bank Bank) []byte {
	if bank.Size() == 0 {
		return nil
	}
	return bank.sum(nil, p.Content)
}

// Matches says whether a measured policy is this one.
func (p *CIPolicy) Matches(s *SIPolicy) bool {
	return string(p.Digest(s.Hash)) == string(s.Digest) && len(s.Digest) > 0
}

// Options of a policy (schema of SiPolicy, OptionFlags).
const (
	ciValid = 1 << 31 // set in every binary policy
	ciAudit = 1 << 16
)

const ciHeader = 4 + 16 + 16 + 4 + 4*4 + 8 + 4

// ParseCIPolicy reads a binary policy, signed or not. The signature is taken off, not verified: registering a policy is what makes it
// trusted.
func ParseCIPolicy(raw []byte) (*CIPolicy, error) {
	if len(raw) > MaxPolicy {
		return nil, fmt.Errorf("%w: %d bytes, more than %d", ErrCIPolicy, len(raw), MaxPolicy)
	}
	p := &CIPolicy{Content: raw}
	if looksSigned(raw) {
		content, _, err := signedData(raw)
		if err != nil || len(content) == 0 {
			return nil, fmt.Errorf("%w: signed file without a policy in it", ErrCIPolicy)
		}
		p.Signed, p.Content = true, unwrapOctets(content)
	}
	b := p.Content
	if len(b) < ciHeader {
		return nil, fmt.Errorf("%w: %d bytes", ErrCIPolicy, len(b))
	}
	le := binary.LittleEndian
	format, options := le.Uint32(b), le.Uint32(b[36:])
	if format == 0 || format > 64 || options&ciValid == 0 || le.Uint32(b[64:]) != ciHeader-4 {
		return nil, ErrCIPolicy
	}
	p.TypeID = guidString(b[4:])
	p.Audit = options&ciAudit != 0
	p.Version = fmt.Sprintf("%d.%d.%d.%d", le.Uint16(b[62:]), le.Uint16(b[60:]), le.Uint16(b[58:]), le.Uint16(b[56:]))
	r := ciReader{b: b[ciHeader:]}
	r.body(p, format, [4]uint32{le.Uint32(b[40:]), le.Uint32(b[44:]), le.Uint32(b[48:]), le.Uint32(b[52:])})
	return p, nil
}

// unwrapOctets removes an OCTET STRING header that some signers leave inside of the content.
func unwrapOctets(content []byte) []byte {
	s := cryptobyte.String(content)
	var inner cryptobyte.String
	if s.ReadASN1(&inner, asn1.OCTET_STRING) && s.Empty() {
		return inner
	}
	return content
}

// ciReader walks the body of a policy to what stands behind the rules. Everything is aligned to 4 bytes. After the first thing that does
// not fit, bad is set and nothing more is read.
type ciReader struct {
	b   []byte
	bad bool
}

func (r *ciReader) u32() uint32 {
	b := r.take(4)
	if b == nil {
		return 0
	}
	return binary.LittleEndian.Uint32(b)
}

func (r *ciReader) take(n uint32) []byte {
	if r.bad || uint64(n) > uint64(len(r.b)) {
		r.bad = true
		return nil
	}
	b := r.b[:n]
	r.b = r.b[n:]
	return b
}

// blob reads a length and as many bytes, padded.
func (r *ciReader) blob() []byte {
	n := r.u32()
	b := r.take(n)
	r.take(-n & 3)
	return b
}

// times calls f n times, as long as everything fits: each entry has at least 4 bytes, so n is bounded by the input.
func (r *ciReader) times(n uint32, f func()) {
	if uint64(n)*4 > uint64(len(r.b)) {
		r.bad = true
	}
	for ; n > 0 && !r.bad; n-- {
		f()
	}
}

func (r *ciReader) numbers() { r.times(r.u32(), func() { r.u32() }) }

// body reads the sections in order; counts are those of EKUs, file rules, signers and signing scenarios.
func (r *ciReader) body(p *CIPolicy, format uint32, counts [4]uint32) {
	r.times(counts[0], func() { r.blob() })
	r.times(counts[1], func() { // type, file name, version, hash
		r.u32()
		r.blob()
		r.take(8)
		r.blob()
	})
	r.times(counts[2], func() { // root (hash, or a number of a well-known one), EKUs, issuer, publisher, OEM, file attributes
		if r.u32() == 0 {
			r.blob()
		} else {
			r.u32()
		}
		r.numbers()
		r.blob()
		r.blob()
		r.blob()
		r.numbers()
	})
	r.numbers()                 // update signers
	r.numbers()                 // CI signers
	r.times(counts[3], func() { // value, inherited, hash algorithm; for three kinds of signers: allowed, denied with exceptions, file rules
		r.u32()
		r.numbers()
		r.u32()
		for range 3 {
			r.exceptions()
			r.exceptions()
			r.numbers()
		}
	})
	r.u32() // hypervisor options
	var name string
	r.times(r.u32(), func() { r.setting(&name) })
	p.Name = name
	r.identifiers(p, format, counts[1], counts[2])
}

// exceptions reads signers with the rules that don't apply to them.
func (r *ciReader) exceptions() {
	r.times(r.u32(), func() {
		r.u32()
		r.numbers()
	})
}

// setting keeps the name: provider PolicyInfo, key Information, value name Name, a string.
func (r *ciReader) setting(name *string) {
	provider, key, value := utf16String(r.blob()), utf16String(r.blob()), utf16String(r.blob())
	switch r.u32() {
	case 0, 1:
		r.u32()
	case 2:
		r.blob()
	case 3:
		if s := r.blob(); provider == "PolicyInfo" && key == "Information" && value == "Name" && len(s) <= 1024 {
			*name = utf16String(s)
		}
	default:
		r.bad = true
	}
}

// identifiers skips the blocks of formats 3 to 5, each opened by its number, and reads the policy's identifiers in that of format 6.
func (r *ciReader) identifiers(p *CIPolicy, format, rules, signers uint32) {
	next := func(n uint32) bool { return format >= n && r.u32() == n && !r.bad }
	if !next(3) {
		return
	}
	r.times(rules, func() { // highest version, macros
		r.take(8)
		r.times(r.u32(), func() { r.blob() })
	})
	r.take(8 * min(signers, MaxPolicy/8)) // signing times
	if !next(4) {
		return
	}
	r.times(rules, func() { r.blob(); r.blob(); r.blob() })
	if !next(5) {
		return
	}
	r.times(rules, func() { r.blob(); r.take(8) })
	if !next(6) {
		return
	}
	id, base := r.take(16), r.take(16)
	if base != nil {
		p.PolicyID, p.BaseID = guidString(id), guidString(base)
	}
}
