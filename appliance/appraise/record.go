package appraise

import (
	"bytes"
	"compress/flate"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"sync"

	"guardhouse/appliance/evidence"
	"guardhouse/appliance/policy"
)

// Bounds of a record, which is the facts of one policy.Observation: that many strings of that many bytes. What proved is more worth than
// the last of many findings: it is stored first.
const (
	// MaxRecord bounds the bytes of a record as JSON, beside what the caller adds: findings beyond it are left out.
	MaxRecord  = 12 << 10
	maxStrings = policy.MaxAuditFacts
	maxString  = 2048
	maxFacts   = 1 << 20 // of facts when unpacked
)

// ErrRecord is a record that was not made by Record.
var ErrRecord = errors.New("the record of the evidence is damaged")

// Record packs a verdict and what the evidence proved (nil: nothing) into the facts of an observation, policy.ObservedGood for a host that
// passed and policy.ObservedFindings for one that did not. extra goes in as it is, for example the digest of the log; it counts against the
// bound of policy.MaxAuditFacts and must have names other than "verdict", "facts0" and "finding0".
func Record(v *Verdict, facts *evidence.Facts, extra map[string]string) (map[string]string, error) {
	m := make(map[string]string, maxStrings)
	for k, s := range extra {
		m[k] = s
	}
	head := *v
	head.Findings = nil
	b, err := json.Marshal(head)
	if err != nil {
		return nil, fmt.Errorf("record of a verdict: %w", err)
	}
	m["verdict"] = string(b)
	if facts != nil {
		if b, err = Pack(facts); err != nil {
			return nil, fmt.Errorf("record of facts: %w", err)
		}
		for i := 0; len(b) > 0; i++ {
			n := min(maxString, len(b))
			m["facts"+strconv.Itoa(i)], b = string(b[:n]), b[n:]
		}
	}
	room := MaxRecord
	for _, s := range m {
		room -= len(s)
	}
	for i := range v.Findings {
		if len(m) >= maxStrings {
			break
		}
		if b, err = json.Marshal(v.Findings[i].shortened()); err != nil {
			return nil, fmt.Errorf("record of a finding: %w", err)
		}
		if room -= len(b) * 9 / 8; room < 0 && i > 0 { // quotes are escaped once more
			break
		}
		m["finding"+strconv.Itoa(i)] = string(b)
	}
	if len(m) > maxStrings {
		return nil, fmt.Errorf("record of evidence: it needs %d strings, there are %d", len(m), maxStrings)
	}
	return m, nil
}

// shortened cuts the parts of a finding that a log can make long, so that its JSON has at most maxString bytes.
func (f Finding) shortened() Finding {
	cut := func(s string, n int) string {
		if len(s) > n {
			return string(bytes.ToValidUTF8([]byte(s[:n]), nil)) + "..."
		}
		return s
	}
	for limit := 480; ; limit /= 2 {
		f.Measured, f.Changed = cut(f.Measured, limit), cut(f.Changed, limit)
		expected := f.Expected
		f.Expected = nil
		for _, e := range expected[:min(len(expected), max(1, limit/80))] {
			f.Expected = append(f.Expected, cut(e, 120))
		}
		if b, err := json.Marshal(f); err != nil || len(b) <= maxString || limit < 10 {
			return f
		}
	}
}

// deflaters are kept: each takes a megabyte.
var deflaters = sync.Pool{New: func() any {
	w, _ := flate.NewWriter(nil, flate.DefaultCompression) // an error only for a level that does not exist
	return w
}}

// Pack is facts as JSON, deflated, in base64: about 1.6 KB for a real host. Unpack reads it.
func Pack(facts *evidence.Facts) ([]byte, error) {
	b, err := json.Marshal(facts)
	if err != nil {
		return nil, err
	}
	var z bytes.Buffer
	w := deflaters.Get().(*flate.Writer)
	defer deflaters.Put(w)
	w.Reset(&z)
	if _, err := w.Write(b); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return base64.StdEncoding.AppendEncode(nil, z.Bytes()), nil
}

// Recorded reads what Record made; facts is nil if none were recorded.
func Recorded(m map[string]string) (v *Verdict, facts *evidence.Facts, err error) {
	v = &Verdict{}
	if err := json.Unmarshal([]byte(m["verdict"]), v); err != nil {
		return nil, nil, fmt.Errorf("%w: %w", ErrRecord, err)
	}
	for i := range maxStrings {
		s, ok := m["finding"+strconv.Itoa(i)]
		if !ok {
			break
		}
		var f Finding
		if err := json.Unmarshal([]byte(s), &f); err != nil {
			return nil, nil, fmt.Errorf("%w: %w", ErrRecord, err)
		}
		v.Findings = append(v.Findings, f)
	}
	var packed []byte
	for i := range maxStrings {
		packed = append(packed, m["facts"+strconv.Itoa(i)]...)
	}
	if len(packed) == 0 {
		return v, nil, nil
	}
	if facts, err = Unpack(packed); err != nil {
		return nil, nil, fmt.Errorf("%w: %w", ErrRecord, err)
	}
	return v, facts, nil
}

// Unpack reads what Pack wrote.
func Unpack(packed []byte) (*evidence.Facts, error) {
	z, err := base64.StdEncoding.AppendDecode(nil, packed)
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(io.LimitReader(flate.NewReader(bytes.NewReader(z)), maxFacts))
	if err != nil {
		return nil, err
	}
	facts := new(evidence.Facts)
	if err := json.Unmarshal(b, facts); err != nil {
		return nil, err
	}
	return facts, nil
}
