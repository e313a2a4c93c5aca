package update

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Forms of a node's stored data: the newest and the oldest that this source tree reads, and the one it writes. A change of form takes two
// releases, the first of which only reads the new one: so one step forward and one step back are always possible, and Judge refuses
// every other. The number stands for all stores of a node; ledger's records have it as policy.Version.
const (
	StoredFormat    = 1
	MinStoredFormat = 1
	WritesFormat    = 1
)

// maxNotes bounds what people wrote about a release, in bytes.
const maxNotes = 16 << 10

// Manifest is what the release key signs. Later versions may add fields; a reader takes no notice of those it doesn't know.
type Manifest struct {
	Version         string `json:"version"`       // as os-release has it
	Number          uint64 `json:"number"`        // the release number, which the version floor compares
	BuildEpoch      int64  `json:"build_epoch"`   // unix seconds
	Kernel          string `json:"kernel"`        // uname -r
	Go              string `json:"go"`            // toolchain
	HSM             string `json:"hsm,omitempty"` // name and version of the PKCS#11 pack inside
	SourceCommit    string `json:"source_commit,omitempty"`
	KeySet          string `json:"key_set"`                 // for people: whose keys
	Evaluation      bool   `json:"evaluation,omitempty"`    // signed with keys for trying out
	StoredFormat    int    `json:"stored_format"`           // newest form of stored data that it reads
	MinStoredFormat int    `json:"min_stored_format"`       // oldest one
	WritesFormat    int    `json:"writes_format,omitempty"` // the form that it writes; 0: StoredFormat
	Notes           string `json:"notes,omitempty"`         // what changed: plain text, several lines
	Policy          Part   `json:"policy"`
	SBOM            Part   `json:"sbom"`
	UKI             Part   `json:"uki"`
}

// Part is the size in bytes and lower-case hex SHA-256 of one part of the bundle.
type Part struct {
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256"`
}

// PartOf describes b.
func PartOf(b []byte) Part {
	sum := sha256.Sum256(b)
	return Part{int64(len(b)), hex.EncodeToString(sum[:])}
}

// Reads says whether the release can work with data of this stored form.
func (m Manifest) Reads(format int) bool {
	return format >= m.MinStoredFormat && format <= m.StoredFormat
}

// Writes is the form of stored data that the release leaves behind, as soon as it has started once.
func (m Manifest) Writes() int { return cmp.Or(m.WritesFormat, m.StoredFormat) }

func parseManifest(text []byte) (Manifest, error) {
	var m Manifest
	d := json.NewDecoder(bytes.NewReader(text))
	if err := d.Decode(&m); err != nil {
		return Manifest{}, fmt.Errorf("%w: manifest: %v", ErrBundle, err)
	}
	if _, err := d.Token(); err != io.EOF {
		return Manifest{}, fmt.Errorf("%w: manifest: more follows its end", ErrBundle)
	}
	if err := m.check(); err != nil {
		return Manifest{}, fmt.Errorf("%w: manifest: %v", ErrBundle, err)
	}
	return m, nil
}

func (m Manifest) encode() ([]byte, error) {
	if err := m.check(); err != nil {
		return nil, fmt.Errorf("manifest: %w", err)
	}
	text, err := json.MarshalIndent(m, "", " ")
	if err == nil && len(text) > MaxManifest {
		err = fmt.Errorf("manifest of %d bytes, at most %d", len(text), MaxManifest)
	}
	return append(text, '\n'), err
}

// check bounds every field: people will see the words on a terminal, and the sizes decide how far is read.
func (m Manifest) check() error {
	for _, w := range []struct {
		what, text string
		needed     bool
	}{{"version", m.Version, true}, {"kernel", m.Kernel, true}, {"go", m.Go, true}, {"hsm", m.HSM, false}, {"source_commit", m.SourceCommit, false}, {"key_set", m.KeySet, true}} {
		if (w.needed && w.text == "") || len(w.text) > 100 || strings.ContainsFunc(w.text, func(r rune) bool { return r < ' ' || r > '~' }) {
			return fmt.Errorf("%s is not one line of at most 100 printable characters", w.what)
		}
	}
	if len(m.Notes) > maxNotes || !utf8.ValidString(m.Notes) || strings.ContainsFunc(m.Notes, func(r rune) bool { return r != '\n' && !unicode.IsPrint(r) }) {
		return fmt.Errorf("notes are not plain text of at most %d bytes", maxNotes)
	}
	if m.Number == 0 || m.BuildEpoch <= 0 {
		return fmt.Errorf("release number %d built at %d", m.Number, m.BuildEpoch)
	}
	if m.MinStoredFormat < 1 || m.StoredFormat < m.MinStoredFormat {
		return fmt.Errorf("stored format %d, oldest %d", m.StoredFormat, m.MinStoredFormat)
	}
	if !m.Reads(m.Writes()) {
		return fmt.Errorf("it writes stored format %d and reads %d to %d", m.WritesFormat, m.MinStoredFormat, m.StoredFormat)
	}
	for _, p := range []struct {
		what string
		part Part
		max  int64
	}{{"policy", m.Policy, MaxPolicy}, {"sbom", m.SBOM, MaxSBOM}, {"uki", m.UKI, MaxUKI}} {
		if p.part.Size <= 0 || p.part.Size > p.max {
			return fmt.Errorf("%s has %d bytes, at most %d are taken", p.what, p.part.Size, p.max)
		}
		if sum, err := hex.DecodeString(p.part.SHA256); err != nil || len(sum) != sha256.Size || p.part.SHA256 != strings.ToLower(p.part.SHA256) {
			return fmt.Errorf("%s has no SHA-256 in lower-case hex", p.what)
		}
	}
	return nil
}
