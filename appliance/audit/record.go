package audit

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"unicode/utf8"

	"guardhouse/appliance/policy"
)

// A record is one line:
//
//	{"hash":"H","seq":N,"sync":S,"prev":"P","entry":{...}}
//
// H is the hex SHA-256 of the exact bytes from `"seq"` to the closing brace of the line. P is the H of record N-1 (64 zeros before
// record 1). S is the newest record that was on the disk when this one was written; recovery needs it to tell a power cut from damage.
const (
	hashHead  = `{"hash":"`
	hashLen   = 2 * sha256.Size
	bodyAt    = len(hashHead) + hashLen + len(`",`)
	maxRecord = 256 << 10 // bytes of one line; policy's limits on fields keep entries far below
)

var zeroHash = hex.EncodeToString(make([]byte, sha256.Size))

// line is a parsed record whose own hash is right; whether it fits its place is the chain's question.
type line struct {
	seq, sync  uint64
	prev, hash string
	entry      []byte // JSON, aliases the input
}

func encodeEntry(e policy.AuditEntry) ([]byte, error) {
	bound(&e)
	b, err := json.Marshal(e)
	if err != nil {
		return nil, fmt.Errorf("encode audit entry: %w", err)
	}
	if len(b) > maxRecord-512 {
		return nil, fmt.Errorf("audit entry of %d bytes is too large", len(b))
	}
	return b, nil
}

// bound cuts every string of e to policy.MaxAuditField bytes and the facts to policy.MaxAuditFacts.
func bound(e *policy.AuditEntry) {
	for _, s := range []*string{(*string)(&e.Kind), &e.At.Boot, &e.Source, &e.Subject, &e.Action, &e.Outcome, &e.Detail, &e.Remedy} {
		*s = cut(*s)
	}
	if e.Actor != nil {
		a := policy.Actor{Name: cut(e.Actor.Name), Key: cut(e.Actor.Key), Door: policy.Door(cut(string(e.Actor.Door))), Session: cut(e.Actor.Session)}
		e.Actor = &a
	}
	facts := make(map[string]string, min(len(e.Facts), policy.MaxAuditFacts))
	for _, k := range sortedKeys(e.Facts) {
		if len(facts) == policy.MaxAuditFacts {
			break
		}
		facts[cut(k)] = cut(e.Facts[k])
	}
	if len(facts) == 0 {
		facts = nil
	}
	e.Facts = facts
}

func cut(s string) string {
	const dots = "…"
	if len(s) <= policy.MaxAuditField {
		return s
	}
	end := policy.MaxAuditField - len(dots)
	for end > 0 && !utf8.RuneStart(s[end]) {
		end--
	}
	return s[:end] + dots
}

// appendRecord adds the line of an entry to b and gives its hash.
func appendRecord(b []byte, seq, sync uint64, prev string, entry []byte) ([]byte, string) {
	start := len(b)
	b = append(b, hashHead...)
	b = append(b, zeroHash...)
	b = append(b, `",`...)
	body := len(b)
	b = append(b, `"seq":`...)
	b = strconv.AppendUint(b, seq, 10)
	b = append(b, `,"sync":`...)
	b = strconv.AppendUint(b, sync, 10)
	b = append(b, `,"prev":"`...)
	b = append(b, prev...)
	b = append(b, `","entry":`...)
	b = append(b, entry...)
	b = append(b, '}')
	sum := sha256.Sum256(b[body:])
	hash := hex.EncodeToString(sum[:])
	copy(b[start+len(hashHead):], hash)
	return append(b, '\n'), hash
}

var errForm = errors.New("it is not a record")

// parseLine reads one line without its newline.
func parseLine(b []byte) (line, error) {
	if len(b) < bodyAt+2 || len(b) > maxRecord || string(b[:len(hashHead)]) != hashHead || string(b[bodyAt-2:bodyAt]) != `",` {
		return line{}, errForm
	}
	l := line{hash: string(b[len(hashHead) : bodyAt-2])}
	body := b[bodyAt:]
	sum := sha256.Sum256(body)
	if hex.EncodeToString(sum[:]) != l.hash {
		return line{}, errors.New("its bytes do not have its hash")
	}
	rest := body
	var ok [5]bool
	rest, ok[0] = bytes.CutPrefix(rest, []byte(`"seq":`))
	l.seq, rest, ok[1] = number(rest)
	rest, ok[2] = bytes.CutPrefix(rest, []byte(`,"sync":`))
	l.sync, rest, ok[3] = number(rest)
	rest, ok[4] = bytes.CutPrefix(rest, []byte(`,"prev":"`))
	if ok != [5]bool{true, true, true, true, true} || len(rest) < hashLen {
		return line{}, errForm
	}
	l.prev, rest = string(rest[:hashLen]), rest[hashLen:]
	rest, found := bytes.CutPrefix(rest, []byte(`","entry":`))
	if !found || len(rest) < 3 || rest[len(rest)-1] != '}' {
		return line{}, errForm
	}
	l.entry = rest[:len(rest)-1]
	return l, nil
}

// number reads digits in their only form: no sign, no leading zero.
func number(b []byte) (uint64, []byte, bool) {
	n := 0
	for n < len(b) && b[n] >= '0' && b[n] <= '9' {
		n++
	}
	v, err := strconv.ParseUint(string(b[:n]), 10, 64)
	return v, b[n:], err == nil && (n == 1 || b[0] != '0')
}

func (l line) record() (Record, error) {
	r := Record{Seq: l.seq, Prev: l.prev, Hash: l.hash}
	if err := json.Unmarshal(l.entry, &r.Entry); err != nil {
		return r, fmt.Errorf("record %d holds no audit entry: %w", l.seq, err)
	}
	return r, nil
}

// chain is a place between two records.
type chain struct {
	seq  uint64 // of the record before
	hash string
}

// next moves over one line, or says what does not fit.
func (c *chain) next(b []byte) (line, error) {
	l, err := parseLine(b)
	switch {
	case err != nil:
		return l, fmt.Errorf("record %d was changed or cut: %w", c.seq+1, err)
	case l.seq > c.seq+1:
		return l, fmt.Errorf("record %d is missing: record %d follows record %d", c.seq+1, l.seq, c.seq)
	case l.seq < c.seq+1:
		return l, fmt.Errorf("record %d is out of order: it follows record %d", l.seq, c.seq)
	case l.prev != c.hash:
		return l, fmt.Errorf("record %d does not follow from the record before it", l.seq)
	case l.sync > l.seq:
		return l, fmt.Errorf("record %d claims a later record was written before it", l.seq)
	}
	c.seq, c.hash = l.seq, l.hash
	return l, nil
}
