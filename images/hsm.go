package images

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"guardhouse/initramfs"
)

// HSM says which PKCS#11 module an image carries.
type HSM struct {
	// Variant is "attached" (p11-kit's client: the token is outside and
	// speaks over a virtio-serial port), "embedded" (SoftHSM2 inside: for
	// trying out only) or the path of a vendor's module.
	Variant string
	// Config are "SOURCE:PATH-IN-IMAGE" pairs for a vendor's module.
	Config []string
	// Licence is the file with a vendor module's licence text.
	Licence string
}

// ModuleDir is where every variant puts its module in the image.
const ModuleDir = "/usr/lib/pkcs11"

// Where Debian's packages p11-kit-modules and libsofthsm2 keep theirs.
const (
	p11Client = "/usr/lib/x86_64-linux-gnu/pkcs11/p11-kit-client.so"
	softHSM   = "/usr/lib/softhsm/libsofthsm2.so"
)

// softHSMConfig is read from SoftHSM's compiled-in path. The token is on the
// data disk: it survives a reboot and is as safe as that disk, no safer.
const softHSMConfig = "directories.tokendir = /data/hsm/tokens\nobjectstore.backend = file\nlog.level = ERROR\nslots.removable = false\n"

// IsVendor is true when Variant is a path.
func (h HSM) IsVendor() bool { return strings.ContainsRune(h.Variant, '/') }

// Module returns the module's path in the image.
func (h HSM) Module() string {
	switch h.Variant {
	case "attached":
		return ModuleDir + "/" + filepath.Base(p11Client)
	case "embedded":
		return ModuleDir + "/" + filepath.Base(softHSM)
	}
	return ModuleDir + "/" + filepath.Base(h.Variant)
}

// Validate refuses an unknown variant and options that do not fit it.
func (h HSM) Validate() error {
	if !h.IsVendor() {
		if h.Variant != "attached" && h.Variant != "embedded" {
			return fmt.Errorf("hsm %q: want attached, embedded or the path of a PKCS#11 module", h.Variant)
		}
		if len(h.Config) > 0 || h.Licence != "" {
			return fmt.Errorf("hsm %s: configuration and licence files go with a vendor's module only", h.Variant)
		}
		return nil
	}
	if h.Licence == "" {
		return errors.New("a vendor's module needs its licence text for the notice: give --hsm-licence FILE")
	}
	for _, c := range h.Config {
		if from, at, ok := strings.Cut(c, ":"); !ok || from == "" || !filepath.IsAbs(at) {
			return fmt.Errorf("hsm configuration %q: want SOURCE:/PATH/IN/IMAGE", c)
		}
	}
	return nil
}

func (b *build) addHSM() error {
	from := map[string]string{"attached": p11Client, "embedded": softHSM}[b.HSM.Variant]
	if from == "" {
		from = b.HSM.Variant
	} else {
		b.hostFiles = append(b.hostFiles, from)
	}
	if err := b.list.AddFile(b.HSM.Module(), from, 0o755); err != nil {
		return fmt.Errorf("PKCS#11 module: %w; run `make deps`", err)
	}
	if err := b.closure(from); err != nil {
		return err
	}
	if b.HSM.Variant == "embedded" {
		return b.list.Add(initramfs.Entry{Path: "/etc/softhsm/softhsm2.conf", Kind: initramfs.File, Perm: 0o644, Data: []byte(softHSMConfig), Origin: "made"})
	}
	for _, c := range b.HSM.Config {
		src, at, _ := strings.Cut(c, ":")
		info, err := os.Stat(src)
		if err != nil {
			return fmt.Errorf("hsm configuration: %w", err)
		}
		if !info.Mode().IsRegular() {
			return fmt.Errorf("hsm configuration %s: not a plain file", src)
		}
		if err := b.list.AddFile(at, src, 0o644); err != nil {
			return err
		}
	}
	return nil
}
