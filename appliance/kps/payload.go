package kps

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// PayloadVersion is the version of the transport key BLOB, which is also the
// API version of the URL [MS-KPS 2.2.3.10].
type PayloadVersion uint32

// The two versions: V2 adds policies.
const (
	PayloadV1 PayloadVersion = 1
	PayloadV2 PayloadVersion = 2
)

// Limits of the BLOB [kps.md 7].
const (
	maxPayloadKeys   = 16
	maxPayloadKey    = 1024
	maxPayloadPolicy = 1024
)

// Policy is one Policy Data entry. Id is always 1, Type always 6; the content
// is not documented, 4 bytes little-endian by assumption.
type Policy struct {
	ID, Type uint32
	Data     []byte
}

// OfflinePolicy is the entry that permits n offline unwraps [kps.md 14.11].
func OfflinePolicy(n uint32) Policy {
	return Policy{ID: 1, Type: 6, Data: binary.LittleEndian.AppendUint32(nil, n)}
}

// Payload is the transport key BLOB: keys of one length, then policies in V2.
// In a reply the keys are the ingress and the egress transport key.
type Payload struct {
	Version  PayloadVersion
	Keys     [][]byte
	Policies []Policy
}

// Marshal writes the BLOB; the caller wipes it.
func (p *Payload) Marshal() ([]byte, error) {
	if p.Version != PayloadV1 && p.Version != PayloadV2 {
		return nil, fmt.Errorf("payload version %d is not known", p.Version)
	}
	if len(p.Keys) == 0 || len(p.Keys) > maxPayloadKeys || (p.Version == PayloadV1 && len(p.Policies) > 0) || len(p.Policies) > maxPayloadKeys {
		return nil, errors.New("payload has a wrong number of keys or policies")
	}
	size := 16 + len(p.Keys)*len(p.Keys[0])
	if p.Version == PayloadV2 {
		size += 4
	}
	for _, policy := range p.Policies {
		if len(policy.Data) > maxPayloadPolicy {
			return nil, errors.New("payload policy is too long")
		}
		size += 12 + len(policy.Data)
	}
	le := binary.LittleEndian
	out := make([]byte, 0, size)
	out = le.AppendUint32(out, uint32(size))
	out = le.AppendUint32(out, uint32(p.Version))
	out = le.AppendUint32(out, uint32(len(p.Keys)))
	out = le.AppendUint32(out, uint32(len(p.Keys[0])))
	for _, k := range p.Keys {
		if len(k) != len(p.Keys[0]) || len(k) == 0 || len(k) > maxPayloadKey {
			wipe(out)
			return nil, errors.New("payload keys must have one length")
		}
		out = append(out, k...)
	}
	if p.Version == PayloadV2 {
		out = le.AppendUint32(out, uint32(len(p.Policies)))
		for _, policy := range p.Policies {
			out = le.AppendUint32(out, policy.ID)
			out = le.AppendUint32(out, policy.Type)
			out = le.AppendUint32(out, uint32(len(policy.Data)))
			out = append(out, policy.Data...)
		}
	}
	return out, nil
}

var errPayload = errors.New("the transport key BLOB is malformed")

// ParsePayload reads a BLOB that must be consumed exactly. The keys are parts
// of blob. The error never tells which check failed.
func ParsePayload(blob []byte) (*Payload, error) {
	le := binary.LittleEndian
	if len(blob) < 16 || uint64(le.Uint32(blob)) != uint64(len(blob)) {
		return nil, errPayload
	}
	p := &Payload{Version: PayloadVersion(le.Uint32(blob[4:]))}
	count, size := le.Uint32(blob[8:]), le.Uint32(blob[12:])
	rest := blob[16:]
	if (p.Version != PayloadV1 && p.Version != PayloadV2) || count == 0 || count > maxPayloadKeys ||
		size == 0 || size > maxPayloadKey || uint64(count)*uint64(size) > uint64(len(rest)) {
		return nil, errPayload
	}
	for ; count > 0; count-- {
		p.Keys = append(p.Keys, rest[:size:size])
		rest = rest[size:]
	}
	if p.Version == PayloadV2 {
		var err error
		if rest, err = p.parsePolicies(rest); err != nil {
			return nil, err
		}
	}
	if len(rest) != 0 {
		return nil, errPayload
	}
	return p, nil
}

func (p *Payload) parsePolicies(rest []byte) ([]byte, error) {
	le := binary.LittleEndian
	if len(rest) < 4 {
		return nil, errPayload
	}
	count := le.Uint32(rest)
	rest = rest[4:]
	if count > maxPayloadKeys {
		return nil, errPayload
	}
	for ; count > 0; count-- {
		if len(rest) < 12 {
			return nil, errPayload
		}
		policy := Policy{ID: le.Uint32(rest), Type: le.Uint32(rest[4:])}
		size := le.Uint32(rest[8:])
		rest = rest[12:]
		if policy.ID != 1 || policy.Type != 6 || size > maxPayloadPolicy || uint64(size) > uint64(len(rest)) {
			return nil, errPayload
		}
		policy.Data = rest[:size:size]
		rest = rest[size:]
		p.Policies = append(p.Policies, policy)
	}
	return rest, nil
}

// TransportKeyForm tells how a transport key lies inside a wrapping: bare, or
// as the only key of a BLOB [kps.md 14.8]. A roll keeps the form.
type TransportKeyForm uint32

// FormRaw is the bare key; the other two are BLOBs of that version.
const (
	FormRaw TransportKeyForm = 0
	FormV1  TransportKeyForm = TransportKeyForm(PayloadV1)
	FormV2  TransportKeyForm = TransportKeyForm(PayloadV2)
)

// unpackTransportKey reads the plaintext of a wrapping.
func unpackTransportKey(plain []byte) (tk []byte, form TransportKeyForm, err error) {
	tk = plain
	if p, err := ParsePayload(plain); err == nil {
		if len(p.Keys) != 1 || len(p.Policies) != 0 {
			return nil, 0, errPayload
		}
		tk, form = p.Keys[0], TransportKeyForm(p.Version)
	}
	if len(tk) < MinTransportKey || len(tk) > MaxTransportKey {
		return nil, 0, errPayload
	}
	return tk, form, nil
}

// packTransportKey writes the plaintext of a wrapping; the caller wipes it.
func packTransportKey(tk []byte, form TransportKeyForm) ([]byte, error) {
	if form == FormRaw {
		return append([]byte(nil), tk...), nil
	}
	p := Payload{Version: PayloadVersion(form), Keys: [][]byte{tk}}
	return p.Marshal()
}
