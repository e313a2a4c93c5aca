package images

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"

	"guardhouse/appliance/hsm/pack"
	"guardhouse/images/debian"
	"guardhouse/images/hsmpack"
	"guardhouse/initramfs"
)

// HSM says which HSM pack an image carries (package hsmpack).
type HSM struct {
	// Variant is "attached" (p11-kit's client: the token is outside and
	// speaks over a virtio-serial port), "embedded" (SoftHSM2 inside: for
	// trying out only), a pack file of `mkimage hsm-pack`, or the path of a
	// vendor's module, of which a pack is made on the fly.
	Variant string
	// Config are "SOURCE:PATH-IN-IMAGE" pairs for a vendor's module.
	Config []string
	// Licence is the file with a vendor module's licence text.
	Licence string
}

// Where Debian's packages p11-kit-modules and libsofthsm2 keep their modules.
const (
	p11Client = "/usr/lib/x86_64-linux-gnu/pkcs11/p11-kit-client.so"
	softHSM   = "/usr/lib/softhsm/libsofthsm2.so"
)

// softHSMConfig is read from SoftHSM's compiled-in path. The token is on the
// data disk: it survives a reboot and is as safe as that disk, no safer.
const softHSMConfig = "directories.tokendir = /data/hsm/tokens\nobjectstore.backend = file\nlog.level = ERROR\nslots.removable = false\n"

// packs are the packs that we make ourselves, all from Debian's packages.
var packs = map[string]hsmpack.Options{
	"attached": {Module: p11Client},
	"embedded": {Module: softHSM, MakesToken: true, Config: []hsmpack.File{{At: "/etc/softhsm/softhsm2.conf", Data: []byte(softHSMConfig)}}},
}

// elfMagic tells a module from a pack.
const elfMagic = "\x7fELF"

// pack opens or makes the pack.
func (h HSM) pack(ctx context.Context) (*hsmpack.Pack, error) {
	o, ours := packs[h.Variant]
	if !ours {
		head := make([]byte, len(elfMagic))
		f, err := os.Open(h.Variant)
		if err != nil {
			return nil, fmt.Errorf("hsm %q: want attached, embedded, a pack file or the path of a PKCS#11 module: %w", h.Variant, err)
		}
		f.Read(head) // what is shorter is no module
		f.Close()
		if string(head) == elfMagic {
			return h.fromModule(ctx)
		}
	}
	if len(h.Config) > 0 || h.Licence != "" {
		return nil, fmt.Errorf("hsm %s: configuration and licence files go with a vendor's module only; a pack has its own", h.Variant)
	}
	if ours {
		return hsmpack.Make(ctx, o)
	}
	return hsmpack.Open(h.Variant)
}

func (h HSM) fromModule(ctx context.Context) (*hsmpack.Pack, error) {
	if h.Licence == "" {
		return nil, errors.New("a vendor's module needs its licence text for the notice: give --hsm-licence FILE")
	}
	o := hsmpack.Options{Module: h.Variant, Licence: h.Licence}
	for _, c := range h.Config {
		f, err := hsmpack.ParseFile(c)
		if err != nil {
			return nil, fmt.Errorf("hsm: %w", err)
		}
		o.Config = append(o.Config, f)
	}
	return hsmpack.Make(ctx, o)
}

// addHSM puts the pack's files and its manifest, which init and hsm read, into
// the image.
func (b *build) addHSM(ctx context.Context) (err error) {
	if b.hsm, err = b.HSM.pack(ctx); err != nil {
		return err
	}
	for _, f := range b.hsm.Files {
		e := initramfs.Entry{Path: f.Path, Kind: initramfs.File, Perm: f.Mode, Data: b.hsm.Data[f.Path], Origin: "HSM pack " + b.hsm.Title()}
		if f.From != "" {
			e.Origin = "file " + f.From
		}
		if err := b.list.Add(e); errors.Is(err, initramfs.ErrConflict) {
			return fmt.Errorf("HSM pack: %w: the pack was made with other packages than this image, or the vendor's library has the name of a system one; make it again here", err)
		} else if err != nil {
			return fmt.Errorf("HSM pack: %w", err)
		}
	}
	text, err := b.hsm.Text()
	if err != nil {
		return err
	}
	return b.list.Add(initramfs.Entry{Path: pack.ManifestPath, Kind: initramfs.File, Perm: 0o644, Data: text, Origin: "made"})
}

// packDebian are the Debian packages of the pack's files, with their terms.
func (b *build) packDebian() (list []debian.Package) {
	for _, p := range b.hsm.Packages {
		list = append(list, debian.Package{Name: p.Name, Version: p.Version, Source: p.Source, SourceVersion: p.SourceVersion, Copyright: b.hsm.Terms[p.Name]})
	}
	return list
}

// packNotice is the section of the vendor's own terms.
func (b *build) packNotice(out *bytes.Buffer) {
	if len(b.hsm.Licence) > 0 {
		section(out, "HSM pack "+b.hsm.Title(), string(b.hsm.Licence))
	}
}
