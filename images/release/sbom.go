package release

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"net/url"
	"strings"
	"time"

	cdx "github.com/CycloneDX/cyclonedx-go"

	"guardhouse/images"
)

// SBOM is the bill of materials of an image as CycloneDX 1.6 JSON: Go's toolchain and modules, Debian's packages, the HSM pack and each of
// its files. The same manifest gives the same bytes: identifier and time come from it. Licences are in NOTICE, in full.
func SBOM(m images.Manifest) ([]byte, error) {
	root := cdx.Component{BOMRef: "guardhouse", Type: cdx.ComponentTypeFirmware, Name: m.Name, Version: m.Version}
	for _, f := range m.Outputs {
		if f.Path == images.UKIFile {
			root.Hashes = sha256Of(f.SHA256)
		}
	}
	if m.Commit != "" {
		root.Properties = properties("guardhouse:source_commit", m.Commit)
	}
	parts := components(m)
	refs := []string{}
	for _, c := range parts {
		refs = append(refs, c.BOMRef)
	}
	bom := cdx.NewBOM()
	bom.SerialNumber = serial(m)
	bom.Metadata = &cdx.Metadata{Timestamp: time.Unix(m.BuildEpoch, 0).UTC().Format(time.RFC3339), Component: &root}
	bom.Components = &parts
	bom.Dependencies = &[]cdx.Dependency{{Ref: root.BOMRef, Dependencies: &refs}}
	var out bytes.Buffer
	err := cdx.NewBOMEncoder(&out, cdx.BOMFileFormatJSON).SetPretty(true).SetEscapeHTML(false).EncodeVersion(bom, cdx.SpecVersion1_6)
	return out.Bytes(), err
}

func components(m images.Manifest) (list []cdx.Component) {
	goVersion := strings.TrimPrefix(m.Go, "go")
	list = append(list, cdx.Component{BOMRef: "go", Type: cdx.ComponentTypeLibrary, Name: "stdlib", Version: m.Go, PackageURL: "pkg:golang/stdlib@" + url.QueryEscape(goVersion)})
	for _, g := range m.GoModules {
		c := cdx.Component{BOMRef: "go " + g.Path, Type: cdx.ComponentTypeLibrary, Name: g.Path, Version: g.Version,
			PackageURL: "pkg:golang/" + strings.ToLower(g.Path) + "@" + url.QueryEscape(g.Version)}
		if g.Sum != "" {
			c.Properties = properties("go.sum", g.Sum)
		}
		list = append(list, c)
	}
	for _, p := range m.Debian {
		list = append(list, cdx.Component{BOMRef: "debian " + p.Name, Type: cdx.ComponentTypeLibrary, Name: p.Name, Version: p.Version, Hashes: sha256Of(p.SHA256),
			PackageURL: "pkg:deb/debian/" + p.Name + "@" + url.QueryEscape(p.Version) + "?arch=amd64",
			Properties: properties("debian:source", p.Source, "debian:source_version", p.SourceVersion)})
	}
	if m.HSM.Name == "" {
		return list
	}
	files := []cdx.Component{}
	for _, f := range m.HSM.Files {
		c := cdx.Component{BOMRef: "hsm-pack " + f.Path, Type: cdx.ComponentTypeFile, Name: f.Path, Hashes: sha256Of(f.SHA256)}
		if f.From != "" {
			c.Properties = properties("debian:file", f.From)
		}
		files = append(files, c)
	}
	return append(list, cdx.Component{BOMRef: "hsm-pack", Type: cdx.ComponentTypeLibrary, Name: m.HSM.Name, Version: m.HSM.Version, Hashes: sha256Of(m.HSM.SHA256), Components: &files})
}

func sha256Of(sum string) *[]cdx.Hash {
	if sum == "" {
		return nil
	}
	return &[]cdx.Hash{{Algorithm: cdx.HashAlgoSHA256, Value: sum}}
}

func properties(pairs ...string) *[]cdx.Property {
	var list []cdx.Property
	for i := 0; i+1 < len(pairs); i += 2 {
		list = append(list, cdx.Property{Name: pairs[i], Value: pairs[i+1]})
	}
	return &list
}

// serial derives a version 8 UUID (RFC 9562, custom) from what was built.
func serial(m images.Manifest) string {
	h := sha256.New()
	fmt.Fprintf(h, "guardhouse sbom\n%s\n%d\n", m.Version, m.Release)
	for _, f := range m.Outputs {
		fmt.Fprintf(h, "%s %s\n", f.Path, f.SHA256)
	}
	b := h.Sum(nil)[:16]
	b[6], b[8] = b[6]&0x0f|0x80, b[8]&0x3f|0x80
	return fmt.Sprintf("urn:uuid:%x-%x-%x-%x-%x", b[0:4], b[4:6], b[6:8], b[8:10], b[10:16])
}
