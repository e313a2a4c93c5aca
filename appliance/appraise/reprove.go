package appraise

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"

	"guardhouse/appliance/evidence"
)

// What Reprove finds wrong, each with its reason.
var (
	ErrOtherLog   = errors.New("the stored log is not the one that the record names")
	ErrNoPCRs     = errors.New("the record lacks the PCR values")
	ErrOtherFacts = errors.New("the stored log proves something else than what is on record")
)

// PCRs of a record are those that the log must lead to; the others give no facts.
const recordedPCRs = 16

// RecordPCRs is the reading under which evidence was proved, for the extra facts "pcrs" of Record: without it a log proves nothing again.
// It takes about 600 bytes, at most 1.4 KB. Undo it with RecordedPCRs.
func RecordPCRs(bank evidence.Bank, pcrs *evidence.PCRs) string {
	b := binary.BigEndian.AppendUint16(nil, uint16(bank))
	for _, v := range pcrs[:recordedPCRs] {
		switch {
		case len(v) == bank.Size() && len(bytes.Trim(v, "\x00")) == 0:
			b = append(b, 0)
		default:
			b = append(append(b, byte(len(v))), v...)
		}
	}
	return base64.StdEncoding.EncodeToString(b)
}

// RecordedPCRs reads what RecordPCRs wrote. PCR 16 to 23, which prove nothing, are zeros.
func RecordedPCRs(s string) (bank evidence.Bank, pcrs evidence.PCRs, err error) {
	b, err := base64.StdEncoding.DecodeString(s)
	if err != nil || len(b) < 2 {
		return 0, pcrs, ErrNoPCRs
	}
	bank, b = evidence.Bank(binary.BigEndian.Uint16(b)), b[2:]
	for i := range pcrs {
		pcrs[i] = make([]byte, bank.Size())
		if i >= recordedPCRs {
			continue
		}
		if len(b) == 0 || b[0] != 0 && int(b[0]) != bank.Size() || int(b[0]) > len(b)-1 {
			return 0, evidence.PCRs{}, ErrNoPCRs
		}
		copy(pcrs[i], b[1:1+b[0]])
		b = b[1+b[0]:]
	}
	if len(b) != 0 {
		return 0, evidence.PCRs{}, ErrNoPCRs
	}
	return bank, pcrs, nil
}

// Reprove proves a stored log again, as if the host had shown it now, and compares: facts is what it proves (nil if the record holds no
// facts and the log proves nothing now either). The error wraps ErrOtherLog, ErrNoPCRs, ErrOtherFacts or ErrRecord. record is what Record
// made, with the extra facts "log" (SHA-256 in hexadecimal) and "pcrs". Before anything is registered of a host's evidence, and from time
// to time, this shows that what was judged is what the log says.
func Reprove(record map[string]string, log []byte) (*evidence.Facts, error) {
	sum := sha256.Sum256(log)
	if record["log"] != hex.EncodeToString(sum[:]) {
		return nil, ErrOtherLog
	}
	_, was, err := Recorded(record)
	if err != nil {
		return nil, err
	}
	bank, pcrs, err := RecordedPCRs(record["pcrs"])
	if err != nil {
		return nil, err
	}
	facts, failure := evidence.Prove(log, pcrs, bank)
	switch {
	case failure != nil && was == nil:
		return nil, nil
	case failure != nil:
		return nil, fmt.Errorf("%w: now it proves nothing: %w", ErrOtherFacts, failure)
	case was == nil:
		return nil, fmt.Errorf("%w: nothing is on record", ErrOtherFacts)
	}
	before, err := json.Marshal(was)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrRecord, err)
	}
	now, err := json.Marshal(facts)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrRecord, err)
	}
	if !bytes.Equal(before, now) {
		return nil, fmt.Errorf("%w: %s", ErrOtherFacts, firstDifference(before, now))
	}
	return facts, nil
}

// firstDifference shows where two texts part, for people.
func firstDifference(before, now []byte) string {
	i := 0
	for i < min(len(before), len(now)) && before[i] == now[i] {
		i++
	}
	part := func(b []byte) string { return fmt.Sprintf("%q", b[max(0, i-30):min(len(b), i+30)]) }
	return "on record " + part(before) + ", the log says " + part(now)
}
