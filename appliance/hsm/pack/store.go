package pack

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
)

// Bounds of site data, in bytes. A declared list has at most 32 names, so the whole is bounded as well.
const (
	MaxSiteFile  = 256 << 10
	MaxSiteBytes = 2 << 20
)

// Errors of a Store.
var (
	ErrUndeclared = errors.New("the HSM pack of this image declares no site data of this name")
	ErrTooLarge   = errors.New("site data is too large")
	ErrEmpty      = errors.New("the file is empty")
	ErrAbsent     = errors.New("there is no such site data")
)

// Item is one file of site data: what may be shown of it. Hash is lower-case hex SHA-256 and empty where the file is not there yet.
type Item struct {
	Name     string
	Declared bool
	Size     int64
	Hash     string
}

// Store keeps site data as files in a folder that its owner's process alone writes. The folder has the set-group-ID bit, so that files get
// the group of the helper process without any right to change groups. Not for concurrent use.
type Store struct {
	Dir      string
	Declared []string
}

// List has every declared name, in the pack's order, then what an earlier image's pack left.
func (s Store) List() ([]Item, error) {
	var out []Item
	for _, name := range s.Declared {
		it, err := s.look(name)
		if err != nil && !errors.Is(err, ErrAbsent) {
			return nil, err
		}
		it.Name, it.Declared = name, true
		out = append(out, it)
	}
	entries, err := os.ReadDir(s.Dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("site data: %w", err)
	}
	for _, e := range entries {
		if !siteForm.MatchString(e.Name()) || slices.Contains(s.Declared, e.Name()) {
			continue
		}
		if it, err := s.look(e.Name()); err == nil {
			out = append(out, it)
		}
	}
	return out, nil
}

func (s Store) look(name string) (Item, error) {
	info, err := os.Lstat(filepath.Join(s.Dir, name))
	if errors.Is(err, fs.ErrNotExist) {
		return Item{}, ErrAbsent
	}
	if err != nil {
		return Item{}, fmt.Errorf("site data: %w", err)
	}
	if !info.Mode().IsRegular() || info.Size() > MaxSiteFile {
		return Item{}, fmt.Errorf("site data: %s is not a file of ours", name)
	}
	data, err := os.ReadFile(filepath.Join(s.Dir, name))
	if err != nil {
		return Item{}, fmt.Errorf("site data: %w", err)
	}
	defer clear(data)
	return item(name, data), nil
}

func item(name string, data []byte) Item {
	sum := sha256.Sum256(data)
	return Item{Name: name, Size: int64(len(data)), Hash: hex.EncodeToString(sum[:])}
}

// Put stores data under a declared name, instead of what was there. record is called when the data is safely beside its place and before
// it takes it; where it fails nothing has changed.
func (s Store) Put(name string, data []byte, record func(Item) error) (Item, error) {
	if !slices.Contains(s.Declared, name) {
		return Item{}, ErrUndeclared
	}
	if len(data) == 0 {
		return Item{}, ErrEmpty
	}
	list, err := s.List()
	if err != nil {
		return Item{}, err
	}
	total := int64(len(data))
	for _, it := range list {
		if it.Name != name {
			total += it.Size
		}
	}
	if len(data) > MaxSiteFile || total > MaxSiteBytes {
		return Item{}, fmt.Errorf("%w: %d bytes, %d are allowed for one file and %d for all", ErrTooLarge, len(data), MaxSiteFile, MaxSiteBytes)
	}
	it := item(name, data)
	it.Declared = true
	place := filepath.Join(s.Dir, name)
	beside := filepath.Join(s.Dir, "."+name+".new") // a name that siteForm refuses
	if err := write(beside, data); err != nil {
		os.Remove(beside)
		return Item{}, fmt.Errorf("site data: %w", err)
	}
	if err := record(it); err != nil {
		os.Remove(beside)
		return Item{}, err
	}
	if err := os.Rename(beside, place); err != nil {
		os.Remove(beside)
		return Item{}, fmt.Errorf("site data: %w", err)
	}
	return it, s.sync()
}

// Remove deletes one file, declared or left over. record as in Put.
func (s Store) Remove(name string, record func(Item) error) (Item, error) {
	if !siteForm.MatchString(name) {
		return Item{}, ErrUndeclared
	}
	it, err := s.look(name)
	if err != nil {
		return Item{}, err
	}
	if err := record(it); err != nil {
		return Item{}, err
	}
	if err := os.Remove(filepath.Join(s.Dir, name)); err != nil {
		return Item{}, fmt.Errorf("site data: %w", err)
	}
	return it, s.sync()
}

// Digest changes whenever any site data does.
func (s Store) Digest() string {
	list, err := s.List()
	h := sha256.New()
	fmt.Fprintf(h, "%+v %v", list, err != nil)
	return hex.EncodeToString(h.Sum(nil)[:8])
}

func (s Store) sync() error {
	d, err := os.Open(s.Dir)
	if err != nil {
		return fmt.Errorf("site data: %w", err)
	}
	return errors.Join(d.Sync(), d.Close())
}

// write makes a file of mode 0640: its owner's and its group's to read, whatever the umask.
func write(name string, data []byte) error {
	if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Chmod(0o640)
	}
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}
