package audit

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"guardhouse/appliance/policy"
)

// Summary is what an export holds, once it has been proved.
type Summary struct {
	Node        string
	Key         PublicKey // compare its Fingerprint with the node's where Verify was not given one
	First, Last uint64
	Hash        string // of the last record
	Records     int
	Kinds       map[policy.AuditKind]int
}

// Verify proves an export file offline. The format is text, one JSON value a line:
//
//	{"guardhouseAudit":1,"node":ID,"key":BASE64,"first":N,"prev":HASH}     once
//	{"hash":H,"seq":N,"sync":S,"prev":P,"entry":{...}}                     each record exactly as it lies on the node's disk
//	{"checkpoint":{"node":ID,"first":N,"prev":HASH,"last":M,"hash":HASH,"signature":BASE64}}   once, at the end
//
// Every record's hash covers its exact bytes and the hash before it; the checkpoint is the node's signature over both ends. So
// a record that was changed, removed, added or moved, and a file cut at either end, is an error that names the place. want is the
// audit key that the node has in the cluster's records, or its SHA-256; nil takes the one in the file, and then the caller compares
// Summary.Key. After a change of the key (the TPM was cleared) everything the node still keeps is signed with the new one.
// Verify reads r to its end and needs memory for one line only.
func Verify(r io.Reader, want []byte) (Summary, error) {
	return VerifyEach(r, want, nil)
}

// VerifyEach is Verify that shows each record after its place was checked; only when VerifyEach returns nil are they proved.
func VerifyEach(r io.Reader, want []byte, each func(Record) error) (Summary, error) {
	br := bufio.NewReaderSize(r, maxRecord+1)
	b, err := readLine(br)
	if err != nil {
		return Summary{}, fmt.Errorf("no audit export: %w", err)
	}
	var h header
	if err := strict(b, &h); err != nil || h.Version != 1 {
		return Summary{}, fmt.Errorf("no audit export: the first line is not the header of version 1")
	}
	s := Summary{Node: h.Node, Key: h.Key, First: h.First, Kinds: map[policy.AuditKind]int{}}
	if !s.Key.valid() {
		return s, errors.New("the header holds no audit key")
	}
	if want != nil && !s.Key.is(want) {
		return s, fmt.Errorf("the export of node %s is signed with the audit key %s, not with the one given: it is of another node, or the node has had another key since", h.Node, s.Key.Fingerprint())
	}
	if h.First == 0 {
		return s, fmt.Errorf("the header names no first record")
	}
	at := chain{h.First - 1, h.Prev}
	for {
		b, err := readLine(br)
		if err != nil {
			return s, fmt.Errorf("the export ends after record %d without a checkpoint: it was cut: %w", at.seq, err)
		}
		if bytes.HasPrefix(b, []byte(`{"checkpoint":`)) {
			s.Last, s.Hash = at.seq, at.hash
			return s, verifyEnd(br, b, h, at)
		}
		if err := s.add(&at, b, each); err != nil {
			return s, err
		}
	}
}

func (s *Summary) add(at *chain, b []byte, each func(Record) error) error {
	l, err := at.next(b)
	if err != nil {
		return err
	}
	rec, err := l.record()
	if err != nil {
		return err
	}
	s.Records++
	if len(s.Kinds) < 64 || s.Kinds[rec.Entry.Kind] > 0 {
		s.Kinds[rec.Entry.Kind]++
	}
	if each != nil {
		return each(rec)
	}
	return nil
}

func verifyEnd(br *bufio.Reader, b []byte, h header, at chain) error {
	var f footer
	if err := strict(b, &f); err != nil {
		return fmt.Errorf("the checkpoint does not parse: %w", err)
	}
	c := f.Checkpoint
	switch {
	case !c.signedBy(h.Node, h.Key):
		return errors.New("the checkpoint is not signed by the node's audit key")
	case c.First != h.First || c.Prev != h.Prev:
		return fmt.Errorf("the export begins with record %d, the signed stretch with record %d: records are missing at its start", h.First, c.First)
	case c.Last != at.seq || c.Hash != at.hash:
		return fmt.Errorf("the export ends with record %d, the signed stretch with record %d: records are missing or were changed", at.seq, c.Last)
	}
	if _, err := br.ReadByte(); err != io.EOF {
		return errors.New("something follows the checkpoint")
	}
	return nil
}

// readLine gives one line without its newline; it is valid until the next call.
func readLine(br *bufio.Reader) ([]byte, error) {
	b, err := br.ReadSlice('\n')
	if errors.Is(err, bufio.ErrBufferFull) {
		return nil, errors.New("a line is too long")
	}
	if err != nil {
		return nil, io.ErrUnexpectedEOF
	}
	return b[:len(b)-1], nil
}

func strict(b []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return err
	}
	if d.InputOffset() != int64(len(b)) {
		return errors.New("something follows the value")
	}
	// One value has one form: base64, for example, has spare bits that a decoder does not look at.
	if again, err := json.Marshal(v); err != nil || !bytes.Equal(again, b) {
		return errors.New("it is not in the form in which it was written")
	}
	return nil
}

// readSegment gives the records of a segment that can be read.
func (l *Log) readSegment(s segment) ([]Record, error) {
	f, err := os.Open(l.path(segmentName(s.first)))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	br := bufio.NewReaderSize(io.LimitReader(f, s.size), maxRecord+1)
	var all []Record
	for {
		b, err := br.ReadSlice('\n')
		if errors.Is(err, bufio.ErrBufferFull) {
			continue
		}
		if err != nil {
			return all, nil
		}
		if l, err := parseLine(b[:len(b)-1]); err == nil {
			if r, err := l.record(); err == nil {
				all = append(all, r)
			}
		}
	}
}
