package release

import (
	"bytes"
	"crypto/rsa"
	"fmt"
	"io"
	"maps"
	"slices"

	cdx "github.com/CycloneDX/cyclonedx-go"

	"guardhouse/appliance/update"
	"guardhouse/images/keys"
)

// Inventory is what a bundle holds: component -> version, from its SBOM. The bundle must be signed by the release key of one of the sets;
// its image and signed boots are not looked at.
func Inventory(r io.Reader, sets ...*keys.Set) (update.Manifest, map[string]string, error) {
	var trusted []*rsa.PublicKey
	for _, s := range sets {
		trusted = append(trusted, s.RSA(keys.Release))
	}
	b, err := update.Open(r, trusted...)
	if err != nil {
		return update.Manifest{}, nil, err
	}
	var sbom bytes.Buffer
	if err := b.SBOM(&sbom); err != nil {
		return update.Manifest{}, nil, err
	}
	bom, err := parseSBOM(sbom.Bytes())
	if err != nil {
		return update.Manifest{}, nil, fmt.Errorf("%w: SBOM: %v", ErrRelease, err)
	}
	return b.Manifest, inventory(bom), nil
}

func inventory(bom *cdx.BOM) map[string]string {
	list := map[string]string{}
	for _, c := range *bom.Components {
		list[c.BOMRef] = c.Version
	}
	return list
}

// Changes lists what differs between two inventories, in a line each, sorted by name.
func Changes(before, after map[string]string) (lines []string) {
	all := maps.Clone(before)
	maps.Copy(all, after)
	for _, name := range slices.Sorted(maps.Keys(all)) {
		was, had := before[name]
		is, has := after[name]
		switch {
		case !had:
			lines = append(lines, fmt.Sprintf("%s %s is new", name, is))
		case !has:
			lines = append(lines, fmt.Sprintf("%s %s is gone", name, was))
		case was != is:
			lines = append(lines, fmt.Sprintf("%s %s, was %s", name, is, was))
		}
	}
	return lines
}
