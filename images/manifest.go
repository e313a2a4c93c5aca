package images

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"guardhouse/appliance/hsm/pack"
	"guardhouse/board/kernel"
	"guardhouse/images/debian"
	"guardhouse/initramfs"
)

// Manifest is manifest.json: everything that went into an image. Hashes are
// SHA-256 in hexadecimal.
type Manifest struct {
	Name       string           `json:"name"`
	Version    string           `json:"version"`
	BuildEpoch int64            `json:"build_epoch"`
	Release    uint64           `json:"release"`
	Commit     string           `json:"source_commit,omitempty"`
	KeySet     string           `json:"key_set"`  // its name; "EVALUATION ONLY" is never for production
	Complete   bool             `json:"complete"` // false when programs were left out
	HSM        HSMRecord        `json:"hsm"`
	Outputs    []FileRecord     `json:"outputs"`
	Kernel     string           `json:"kernel"` // uname -r
	Cmdline    []ManifestReason `json:"cmdline"`
	Modules    []ManifestReason `json:"modules"`
	Go         string           `json:"go"`
	GoModules  []GoModule       `json:"go_modules"`
	Debian     []debian.Package `json:"debian"`
	Files      []FileRecord     `json:"files"`
}

// HSMRecord is the HSM pack of an image: its description, and the hash of its
// archive. Its files are among the image's.
type HSMRecord struct {
	pack.Manifest
	SHA256 string `json:"sha256"`
}

// FileRecord is one file of the output folder or of the image.
type FileRecord struct {
	Path   string `json:"path"`
	Kind   string `json:"kind,omitempty"`
	Mode   string `json:"mode,omitempty"`
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256,omitempty"`
	Target string `json:"target,omitempty"`
	Origin string `json:"origin,omitempty"`
}

// ManifestReason is a word or module with its reason.
type ManifestReason struct {
	Text   string `json:"text"`
	Reason string `json:"reason"`
}

func (b *build) manifest(ctx context.Context) error {
	version, err := b.goTool(ctx, "0", "env", "GOVERSION")
	if err != nil {
		return err
	}
	m := Manifest{
		Name: "guardhouse", Version: b.Release.Version, BuildEpoch: b.Release.Epoch, Release: b.Release.Number, Commit: b.Commit, KeySet: b.Keys.Name, Complete: len(b.programs) == len(Programs),
		HSM: HSMRecord{Manifest: b.hsm.Manifest}, Kernel: b.tree.Version, Go: string(version[:max(0, len(version)-1)]),
		GoModules: b.goModules, Debian: b.pkgs,
	}
	if m.HSM.SHA256, err = b.hsm.SHA256(); err != nil {
		return err
	}
	for _, w := range kernel.CommandLine {
		m.Cmdline = append(m.Cmdline, ManifestReason{w.Text, w.Reason})
	}
	for _, k := range b.modules {
		m.Modules = append(m.Modules, ManifestReason{k.Name, k.Wanted})
	}
	for _, e := range b.list.Entries() {
		m.Files = append(m.Files, describe(e))
	}
	for _, name := range []string{UKIFile, DiskFile, NoticeFile, PolicyFile} {
		f, err := hashFile(filepath.Join(b.Out, name))
		if err != nil {
			return err
		}
		m.Outputs = append(m.Outputs, f)
	}
	b.result.UKISHA256, b.result.DiskSHA256 = m.Outputs[0].SHA256, m.Outputs[1].SHA256
	text, err := json.MarshalIndent(m, "", " ")
	if err != nil {
		return err
	}
	return replace(filepath.Join(b.Out, ManifestFile), append(text, '\n'))
}

func describe(e initramfs.Entry) FileRecord {
	f := FileRecord{Path: e.Path, Mode: fmt.Sprintf("%04o", e.Perm), Origin: e.Origin, Target: e.Target}
	switch e.Kind {
	case initramfs.File:
		sum := sha256.Sum256(e.Data)
		f.Kind, f.Size, f.SHA256 = "file", int64(len(e.Data)), hex.EncodeToString(sum[:])
	case initramfs.Dir:
		f.Kind = "folder"
	case initramfs.Link:
		f.Kind = "link"
	case initramfs.CharDevice:
		f.Kind = "device"
	}
	return f
}

func hashFile(name string) (FileRecord, error) {
	f, err := os.Open(name)
	if err != nil {
		return FileRecord{}, err
	}
	defer f.Close()
	h := sha256.New()
	n, err := io.Copy(h, f)
	if err != nil {
		return FileRecord{}, err
	}
	return FileRecord{Path: filepath.Base(name), Size: n, SHA256: hex.EncodeToString(h.Sum(nil))}, nil
}
