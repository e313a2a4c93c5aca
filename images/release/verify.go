package release

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	cdx "github.com/CycloneDX/cyclonedx-go"

	"guardhouse/appliance/tpm"
	"guardhouse/appliance/update"
	"guardhouse/images"
	"guardhouse/images/keys"
	"guardhouse/images/measure"
	"guardhouse/images/uki"
	"guardhouse/initramfs"
)

// Expect is what a bundle is checked against; public halves of key sets suffice.
type Expect struct {
	Keys *keys.Set   // must have signed everything
	Also []*keys.Set // sets that machines may still hold
	DBX  [][]byte    // contents of dbx that machines may have; the empty one is always among them
}

// Report is what a checked bundle says, and where it will open the disk.
type Report struct {
	Manifest   update.Manifest
	SignedBy   string            // id of the release key
	Components map[string]string // of the SBOM: name -> version
	Boots      []Unseal          // one for each signed boot
}

// Unseal is one signed boot: a machine on which the release opens the disk.
type Unseal struct {
	Name  string // as the builder calls it
	Key   string // id of the policy key
	Known bool   // PCR 7 was recomputed too: a machine of the expected sets and dbx
}

// Verify reads a whole bundle and checks it: signatures and hashes, that image, manifest, bill of materials and keys speak of the same
// release, and that the signed boots are what firmware and stub will measure.
func Verify(r io.Reader, want Expect) (*Report, error) {
	b, err := update.Open(r, want.Keys.RSA(keys.Release))
	if err != nil {
		return nil, err
	}
	var sbom, image bytes.Buffer
	if err := b.SBOM(&sbom); err != nil {
		return nil, err
	}
	if err := b.UKI(&image); err != nil {
		return nil, err
	}
	report := &Report{Manifest: b.Manifest, SignedBy: b.SignedBy}
	if b.Manifest.KeySet != want.Keys.Name || b.Manifest.Evaluation != want.Keys.Evaluation {
		return nil, fmt.Errorf("%w: the manifest speaks of key set %q", ErrRelease, b.Manifest.KeySet)
	}
	if err := checkImage(image.Bytes(), b.Manifest, want.Keys); err != nil {
		return nil, fmt.Errorf("%w: image: %v", ErrRelease, err)
	}
	if report.Components, err = checkSBOM(sbom.Bytes(), b.Manifest); err != nil {
		return nil, fmt.Errorf("%w: SBOM: %v", ErrRelease, err)
	}
	if report.Boots, err = checkBoots(b.Policy, image.Bytes(), b.Manifest, want); err != nil {
		return nil, fmt.Errorf("%w: signed boots: %v", ErrRelease, err)
	}
	return report, nil
}

// checkImage proves that the image is signed for firmware and carries what the manifest and the key set say.
func checkImage(image []byte, m update.Manifest, set *keys.Set) error {
	if err := uki.Verify(image, set.Certs[keys.DB]); err != nil {
		return err
	}
	sections, err := uki.Parse(image)
	if err != nil {
		return err
	}
	osRelease := initramfs.Release{Version: m.Version, Epoch: m.BuildEpoch, Number: m.Number, Evaluation: m.Evaluation}.Text()
	for _, s := range []struct{ name, want, what string }{
		{uki.OSRel, osRelease, "version, number or build time"}, {uki.Uname, m.Kernel, "kernel"}, {uki.PCRPKey, string(set.Public(keys.Policy)), "policy key"},
	} {
		if data, _ := uki.Find(sections, s.name); string(data) != s.want {
			return fmt.Errorf("%s: its %s is not the release's", s.name, s.what)
		}
	}
	archive, _ := uki.Find(sections, uki.Initrd)
	for name, content := range map[string]string{update.KeysFile: string(set.Public(keys.Release)), "/etc/os-release": osRelease} {
		data, err := initramfs.ReadFile(archive, name)
		if err != nil {
			return err
		}
		if string(data) != content {
			return fmt.Errorf("%s in it is not the release's", name)
		}
	}
	return nil
}

func checkSBOM(text []byte, m update.Manifest) (map[string]string, error) {
	bom, err := parseSBOM(text)
	if err != nil {
		return nil, err
	}
	c := bom.Metadata.Component
	if c.Version != m.Version || c.Hashes == nil || len(*c.Hashes) != 1 || (*c.Hashes)[0].Value != m.UKI.SHA256 {
		return nil, errors.New("it is of another image")
	}
	return inventory(bom), nil
}

// parseSBOM reads a bill of materials that describes something.
func parseSBOM(text []byte) (*cdx.BOM, error) {
	var bom cdx.BOM
	if err := cdx.NewBOMDecoder(bytes.NewReader(text), cdx.BOMFileFormatJSON).Decode(&bom); err != nil {
		return nil, err
	}
	if bom.Metadata == nil || bom.Metadata.Component == nil || bom.Components == nil {
		return nil, errors.New("it describes nothing")
	}
	return &bom, nil
}

// checkBoots recomputes the registers of every signed boot.
func checkBoots(text, image []byte, m update.Manifest, want Expect) ([]Unseal, error) {
	f, err := tpm.ParsePolicyFile(text)
	if err != nil {
		return nil, err
	}
	known, p, err := registers(image, want)
	if err != nil {
		return nil, err
	}
	zero := strings.Repeat("0", 64)
	fixed := map[uint]string{4: hex.EncodeToString(p.PCR4[:]), 11: hex.EncodeToString(p.PCR11[:]), 12: zero, 13: zero}
	ours := update.KeyID(want.Keys.RSA(keys.Policy))
	missing := map[string]bool{}
	for pcr7 := range known {
		missing[pcr7] = true
	}
	var list []Unseal
	for _, s := range f.Policies {
		if s.Release != m.Number {
			return nil, fmt.Errorf("%q is of release %d", s.Name, s.Release)
		}
		for pcr, value := range fixed {
			if s.PCRs[pcr] != value {
				return nil, fmt.Errorf("%q: PCR %d will be %s, not %s", s.Name, pcr, value, s.PCRs[pcr])
			}
		}
		if s.Key == ours {
			delete(missing, s.PCRs[7])
		}
		list = append(list, Unseal{s.Name, s.Key, known[s.PCRs[7]] != ""})
	}
	for pcr7 := range missing {
		return nil, fmt.Errorf("none for %s (PCR 7 %s) by the set's policy key: such a machine would ask for its recovery secret", known[pcr7], pcr7)
	}
	return list, nil
}

// registers predicts PCR 7 of every expected machine, with its name, and the registers that are the same on all of them.
func registers(image []byte, want Expect) (map[string]string, *measure.Prediction, error) {
	boots, err := images.Boots(want.Keys, want.Also, want.DBX)
	if err != nil {
		return nil, nil, err
	}
	known := map[string]string{}
	var last *measure.Prediction
	for _, b := range boots {
		p, err := measure.Predict(image, measure.Options{SecureBoot: true, Firmware: b.Firmware})
		if err != nil {
			return nil, nil, err
		}
		known[hex.EncodeToString(p.PCR7[:])], last = b.Name, p
	}
	return known, last, nil
}

// Print tells people what they are about to install.
func (r *Report) Print(w io.Writer) {
	m := r.Manifest
	fmt.Fprintf(w, "guardhouse %s, release %d, built %s\n", m.Version, m.Number, time.Unix(m.BuildEpoch, 0).UTC().Format("2006-01-02 15:04 UTC"))
	if m.Evaluation {
		fmt.Fprintln(w, "EVALUATION ONLY: signed with keys for trying out; a production node refuses it")
	}
	for _, line := range [][2]string{{"key set", m.KeySet}, {"release key", r.SignedBy}, {"kernel", m.Kernel}, {"toolchain", m.Go}, {"HSM pack", m.HSM}, {"source", m.SourceCommit},
		{"stored data", fmt.Sprintf("reads format %d to %d, writes %d", m.MinStoredFormat, m.StoredFormat, m.Writes())}, {"components", fmt.Sprintf("%d in the SBOM", len(r.Components))},
		{"image", fmt.Sprintf("%.1f MiB, SHA-256 %s", float64(m.UKI.Size)/(1<<20), m.UKI.SHA256)}} {
		if line[1] != "" {
			fmt.Fprintf(w, "  %-12s %s\n", line[0], line[1])
		}
	}
	if m.Notes != "" {
		fmt.Fprintf(w, "changes:\n  %s\n", strings.ReplaceAll(strings.TrimSpace(m.Notes), "\n", "\n  "))
	}
	fmt.Fprintln(w, "opens the disk by itself on a machine with:")
	for _, b := range r.Boots {
		proof := "PCR 4, 7 and 11 recomputed"
		if !b.Known {
			proof = "PCR 4 and 11 recomputed; PCR 7 not, since these keys or this dbx were not given"
		}
		fmt.Fprintf(w, "  %s, policy key %.16s: %s\n", b.Name, b.Key, proof)
	}
}
