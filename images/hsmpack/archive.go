package hsmpack

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"guardhouse/appliance/hsm/pack"
)

// Members of the archive, a tar with the manifest first. Files lie below filesDir with their path in the image.
const (
	manifestName = "manifest.json"
	licenceName  = "LICENCE"
	termsDir     = "licences/"
	filesDir     = "files"
)

// maxPack bounds what is read: the contents of all members, in bytes.
const maxPack = 256 << 20

// ErrPack reports an archive that is no pack, or was changed.
var ErrPack = errors.New("not an HSM pack, or it was changed")

// Write writes the archive; the same pack gives the same bytes.
func (p *Pack) Write(w io.Writer) error {
	text, err := p.Text()
	if err != nil {
		return err
	}
	t := tar.NewWriter(w)
	put := func(name string, data []byte) {
		h := &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(data)), ModTime: time.Unix(0, 0), Format: tar.FormatPAX}
		if err == nil {
			err = t.WriteHeader(h)
		}
		if err == nil {
			_, err = t.Write(data)
		}
	}
	put(manifestName, text)
	if len(p.Licence) > 0 {
		put(licenceName, p.Licence)
	}
	for _, name := range slices.Sorted(maps.Keys(p.Terms)) {
		put(termsDir+name, p.Terms[name])
	}
	for _, f := range p.Files {
		put(filesDir+f.Path, p.Data[f.Path])
	}
	return errors.Join(err, t.Close())
}

// SHA256 is the hash of the archive, lower-case hex.
func (p *Pack) SHA256() (string, error) {
	h := sha256.New()
	err := p.Write(h)
	return hex.EncodeToString(h.Sum(nil)), err
}

// Open reads a pack file.
func Open(file string) (*Pack, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, fmt.Errorf("HSM pack: %w", err)
	}
	defer f.Close()
	p, err := Read(f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return p, nil
}

// Read reads an archive and checks every file against the manifest, and all of it for secrets.
func Read(r io.Reader) (*Pack, error) {
	p := &Pack{Terms: map[string][]byte{}, Data: map[string][]byte{}}
	t := tar.NewReader(io.LimitReader(r, maxPack+(maxPack>>4)))
	left := int64(maxPack)
	for first := true; ; first = false {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrPack, err)
		}
		if left -= h.Size; h.Typeflag != tar.TypeReg || h.Size < 0 || left < 0 || first != (h.Name == manifestName) {
			return nil, fmt.Errorf("%w: member %.128q is too large, out of place or no file", ErrPack, h.Name)
		}
		data, err := io.ReadAll(t)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrPack, err)
		}
		if err := p.take(h.Name, data); err != nil {
			return nil, err
		}
	}
	return p, p.check()
}

func (p *Pack) take(name string, data []byte) (err error) {
	if name == manifestName {
		if p.Manifest, err = pack.Parse(data); err != nil {
			return fmt.Errorf("%w: %w", ErrPack, err)
		}
		return nil
	}
	if name == licenceName && p.Licence == nil {
		p.Licence = data
		return nil
	}
	if n, ok := strings.CutPrefix(name, termsDir); ok && p.Terms[n] == nil && slices.ContainsFunc(p.Packages, func(d pack.Package) bool { return d.Name == n }) {
		p.Terms[n] = data
		return nil
	}
	at, ok := strings.CutPrefix(name, filesDir)
	i := slices.IndexFunc(p.Files, func(f pack.File) bool { return f.Path == at })
	if !ok || i < 0 || p.Data[at] != nil {
		return fmt.Errorf("%w: member %.128q is not in the manifest, or is there twice", ErrPack, name)
	}
	sum := sha256.Sum256(data)
	if f := p.Files[i]; hex.EncodeToString(sum[:]) != f.SHA256 || int64(len(data)) != f.Size {
		return fmt.Errorf("%w: %s has SHA-256 %x, the manifest says %s", ErrPack, at, sum, f.SHA256)
	}
	if found := scan(data); len(found) > 0 {
		return fmt.Errorf("%w: %s, line %d: %s", ErrSecret, at, found[0].line, found[0].what)
	}
	p.Data[at] = data
	return nil
}

// check looks for what the manifest promises and the archive lacks.
func (p *Pack) check() error {
	if p.Format == 0 {
		return fmt.Errorf("%w: no manifest", ErrPack)
	}
	licensed := len(bytes.TrimSpace(p.Licence)) > 0
	for _, f := range p.Files {
		if _, ok := p.Data[f.Path]; !ok {
			return fmt.Errorf("%w: %s is missing", ErrPack, f.Path)
		}
		if f.From == "" && !licensed && f.Mode == 0o755 { // configuration that we wrote ourselves needs none
			return fmt.Errorf("%w: of %s", ErrLicence, f.Path)
		}
	}
	for _, d := range p.Packages {
		if len(p.Terms[d.Name]) == 0 {
			return fmt.Errorf("%w: of the Debian package %s", ErrLicence, d.Name)
		}
	}
	return nil
}
