// Package release turns a built image into what is handed out: an update bundle (appliance/update) with a signed manifest, the signed
// boots, a bill of materials and the image; and checks such a bundle as a careful customer would before installing it.
//
// Promise: only an image that passed every check of Verify becomes a bundle, and only under the release key that the image itself trusts,
// so that a node never gets a release after which it could take no other. The same image and keys give the same bytes. Verify believes
// nothing that the builder wrote: it recomputes what firmware and stub will measure from the image's own bytes.
//
// Limits: PCR 7 can be checked for machines whose key sets and dbx are given; for the others Verify says that it can't. The SBOM lists what
// the build recorded (Go's modules as the linker named them, Debian's packages by the files taken); that a package is what it says is
// apt's and the Go checksum database's promise.
package release

import (
	"bytes"
	"crypto"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"guardhouse/appliance/update"
	"guardhouse/images"
	"guardhouse/images/keys"
)

// Names of the files that belong to a release.
const (
	BundleFile = "guardhouse-update"
	SBOMFile   = "sbom.cdx.json" // beside the image; the bundle has the same bytes
)

// ErrRelease reports an image or bundle that must not be released or installed.
var ErrRelease = errors.New("not releasable")

// Options of a release.
type Options struct {
	Image string      // output folder of images.Build
	Keys  *keys.Set   // the set that the image was built with; its release key signs
	Also  []*keys.Set // sets that nodes still trust while keys change; their release keys sign as well
	DBX   [][]byte    // the contents of dbx that the image was built for
	Notes string      // what changed, for people
}

// Make checks the image in opt.Image, writes SBOMFile beside it and the bundle to w.
func Make(w io.Writer, opt Options) (*Report, error) {
	m, err := readManifest(opt.Image)
	if err != nil {
		return nil, err
	}
	if err := sameKeys(opt); err != nil {
		return nil, err
	}
	var parts update.Parts
	for _, f := range []struct {
		name string
		to   *[]byte
	}{{images.UKIFile, &parts.UKI}, {images.PolicyFile, &parts.Policy}} {
		if *f.to, err = recorded(opt.Image, f.name, m); err != nil {
			return nil, err
		}
	}
	if parts.SBOM, err = SBOM(m); err != nil {
		return nil, fmt.Errorf("sbom: %w", err)
	}
	var signers []crypto.Signer
	for _, set := range append([]*keys.Set{opt.Keys}, opt.Also...) {
		s, err := set.Signer(keys.Release)
		if err != nil {
			return nil, err
		}
		signers = append(signers, s)
	}
	var bundle bytes.Buffer
	if err := update.Write(&bundle, manifestOf(m, opt), parts, signers...); err != nil {
		return nil, fmt.Errorf("bundle: %w", err)
	}
	report, err := Verify(bytes.NewReader(bundle.Bytes()), Expect{Keys: opt.Keys, Also: opt.Also, DBX: opt.DBX})
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(opt.Image, SBOMFile), parts.SBOM, 0o644); err != nil {
		return nil, err
	}
	_, err = w.Write(bundle.Bytes())
	return report, err
}

func manifestOf(m images.Manifest, opt Options) update.Manifest {
	out := update.Manifest{Version: m.Version, Number: m.Release, BuildEpoch: m.BuildEpoch, Kernel: m.Kernel, Go: m.Go, SourceCommit: m.Commit,
		KeySet: opt.Keys.Name, Evaluation: opt.Keys.Evaluation, StoredFormat: update.StoredFormat, MinStoredFormat: update.MinStoredFormat, WritesFormat: update.WritesFormat, Notes: opt.Notes}
	if m.HSM.Name != "" {
		out.HSM = m.HSM.Name + " " + m.HSM.Version
	}
	return out
}

func readManifest(dir string) (m images.Manifest, err error) {
	text, err := os.ReadFile(filepath.Join(dir, images.ManifestFile))
	if err != nil {
		return m, fmt.Errorf("no image to release: %w; make one with mkimage build", err)
	}
	if err := json.Unmarshal(text, &m); err != nil {
		return m, fmt.Errorf("%s: %w", images.ManifestFile, err)
	}
	if !m.Complete {
		return m, fmt.Errorf("%w: the image was built without some of its programs", ErrRelease)
	}
	return m, nil
}

// recorded reads an output of the build and compares it with what the build wrote down.
func recorded(dir, name string, m images.Manifest) ([]byte, error) {
	data, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		return nil, err
	}
	for _, f := range m.Outputs {
		if f.Path == name && f.SHA256 == update.PartOf(data).SHA256 {
			return data, nil
		}
	}
	return nil, fmt.Errorf("%w: %s is not the file that %s records; build again", ErrRelease, name, images.ManifestFile)
}

// sameKeys refuses a key set that the image was not built with, and the mixing of trying out with production.
func sameKeys(opt Options) error {
	built, err := keys.Load(filepath.Join(opt.Image, images.KeysDir))
	if err != nil {
		return fmt.Errorf("the image's own keys: %w", err)
	}
	for _, role := range keys.Roles {
		if built.Fingerprint(role) != opt.Keys.Fingerprint(role) {
			return fmt.Errorf("%w: the image was built with key set %q, and its %s key is not that of %q; nodes would take no further update", ErrRelease, built.Name, role, opt.Keys.Name)
		}
	}
	return keys.Unmixed(opt.Keys, opt.Also...)
}
