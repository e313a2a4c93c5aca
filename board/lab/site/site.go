// Package site is one evaluation site on a workstation: a built image, one node in the lab with its TPM and data disk, a token outside
// it, three time servers, and an administrator with a key. The demo, `make run` and the tests that need a whole node stand on it.
//
// Promise: it does only what a person with a serial cable and an SSH client could do; it has no other way into the node. Secrets reach
// the node as in a real setup: encrypted to the key that the node shows on its serial line.
//
// Limits: Linux on x86-64 with the packages of board/lab/deps.sh. Everything is kept below the two folders in Options.
package site

import (
	"bytes"
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"guardhouse/appliance/tpm"
	"guardhouse/board/lab"
	"guardhouse/images/keys"
	"guardhouse/images/measure"
)

// Options of a site. Build is the folder of image and caches (.build), Name the node's name and the folder of its state.
type Options struct {
	Build string
	Name  string
	HSM   string // as mkimage's --hsm; empty = attached. A pack or module of somebody else's serves p11-kit's client, for all that Answers knows
	Fresh bool   // throw away what an earlier run of this name left
	// OwnDisk gives the node a boot disk of its own, which updates write to; without it all nodes read the image's.
	OwnDisk bool
	Logf    func(format string, args ...any)
}

// Site is a running site. Close ends everything it started.
type Site struct {
	Options
	Lab   *lab.Lab
	Token *lab.Token
	Times []*lab.TimeServer
	Node  *lab.Node
	Image Image
	Admin *Admin
}

// Image is what mkimage built, with the PCRs that it must show: computed here from the file, by code that talks to no machine.
type Image struct {
	EFI, Disk string
	Size      int64
	PCRs      map[int]string // lower-case hex, SHA-256 bank, as the running node shows them: PCR 11 is capped
	Keys      *keys.Set      // public half: what the machine's firmware trusts
}

// Attached is the HSM variant whose token is outside the machine; Embedded has it on the node's disk, for trying out only.
const (
	Attached = "attached"
	Embedded = "embedded"
)

// imageFolder is where the image of an HSM variant is built, below the build folder.
func imageFolder(hsm string) string {
	switch hsm {
	case "", Attached:
		return "image"
	case Embedded:
		return "image-embedded"
	}
	return "image-vendor"
}

// ImageLog is the file with mkimage's output.
func ImageLog(build, hsm string) string { return filepath.Join(build, imageFolder(hsm)+".log") }

// BuildImage runs mkimage. Its output goes to ImageLog, which an error names.
func BuildImage(ctx context.Context, build, hsm string) (Image, error) {
	return buildImage(ctx, build, imageFolder(hsm), "--hsm", cmp.Or(hsm, Attached))
}

func buildImage(ctx context.Context, build, folder string, args ...string) (Image, error) {
	dir := filepath.Join(build, folder)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return Image{}, err
	}
	log := filepath.Join(build, folder+".log")
	cmd := exec.CommandContext(ctx, "go", append([]string{"run", "guardhouse/cmd/mkimage", "build", "-o", dir, "--cache", filepath.Join(build, "cache")}, args...)...)
	root, err := moduleRoot(ctx)
	if err != nil {
		return Image{}, err
	}
	cmd.Dir = root
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 5 * time.Second
	err = cmd.Run()
	if werr := os.WriteFile(log, out.Bytes(), 0o644); werr != nil {
		return Image{}, werr
	}
	if err != nil {
		lines := strings.Split(strings.TrimSpace(out.String()), "\n")
		return Image{}, fmt.Errorf("build the image: %s (%w); the whole output is in %s", lines[len(lines)-1], err, log)
	}
	return OpenImage(dir)
}

// moduleRoot is the project's folder, which holds the sources of the image.
func moduleRoot(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, "go", "env", "GOMOD").Output()
	file := strings.TrimSpace(string(out))
	if err != nil || file == "" || file == os.DevNull {
		return "", errors.New("not inside the project's folder: run this from a checkout")
	}
	return filepath.Dir(file), nil
}

// OpenImage reads a built image and predicts its PCRs.
func OpenImage(dir string) (Image, error) {
	img := Image{EFI: filepath.Join(dir, "guardhouse.efi"), Disk: filepath.Join(dir, "guardhouse.img"), PCRs: map[int]string{}}
	raw, err := os.ReadFile(img.EFI)
	if err != nil {
		return Image{}, err
	}
	img.Size = int64(len(raw))
	if img.Keys, err = keys.Load(filepath.Join(dir, "keys")); err != nil {
		return Image{}, err
	}
	p, err := measure.Predict(raw, measure.Options{SecureBoot: true, Firmware: measure.FirmwareOf(img.Keys, nil)})
	if err != nil {
		return Image{}, fmt.Errorf("predict the PCRs of %s: %w", img.EFI, err)
	}
	for pcr, v := range map[int][32]byte{measure.BootPCR: p.PCR4, measure.SecureBootPCR: p.PCR7, measure.ImagePCR: tpm.Capped(p.PCR11)} {
		img.PCRs[pcr] = hex.EncodeToString(v[:])
	}
	return img, nil
}

// Kept is the image with which the site of this name was made; ok is false where there is none. A site that is opened again boots that
// one, whatever was built since: its disk opens for it.
func Kept(build, name string) (img Image, ok bool) {
	img, err := OpenImage(filepath.Join(build, "lab", name, "image"))
	return img, err == nil
}

// keep links the image into the site's folder: mkimage replaces its files, it never writes into them.
func (s *Site) keep() error {
	dir := filepath.Join(s.Lab.Dir, "image")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for _, f := range []*string{&s.Image.EFI, &s.Image.Disk} {
		to := filepath.Join(dir, filepath.Base(*f))
		if err := os.Link(*f, to); err != nil && !errors.Is(err, os.ErrExist) {
			return fmt.Errorf("keep the image for this node: %w", err)
		}
		*f = to
	}
	return s.Image.Keys.WritePublic(filepath.Join(dir, "keys"))
}

// Open starts the parts around the node: token, time servers, network. The node itself is off until Boot.
func Open(ctx context.Context, o Options, img Image) (*Site, error) {
	if o.Logf == nil {
		o.Logf = func(string, ...any) {}
	}
	dir := filepath.Join(o.Build, "lab", o.Name)
	l, err := lab.New(ctx, lab.Options{Dir: dir, Fresh: o.Fresh, Cache: filepath.Join(o.Build, "cache", "debian"), Logf: o.Logf})
	if err != nil {
		return nil, err
	}
	s := &Site{Options: o, Lab: l, Image: img}
	if err := s.open(ctx); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return s, nil
}

func (s *Site) open(ctx context.Context) (err error) {
	if kept, ok := Kept(s.Build, s.Name); ok && !s.Fresh {
		s.Image = kept
	} else if err := s.keep(); err != nil {
		return err
	}
	if s.Token, err = s.Lab.NewToken(ctx, TokenLabel); err != nil {
		return err
	}
	if s.Times, err = s.Lab.TimeServers(ctx, 3); err != nil {
		return err
	}
	s.Admin, err = OpenAdmin(s.Lab.Dir)
	return err
}

// TokenLabel is the label of the site's token.
const TokenLabel = "guardhouse"

// Boot powers the node on.
func (s *Site) Boot(ctx context.Context) error { return s.BootWith(ctx, nil) }

// BootWith is Boot of a machine that adjust has changed.
func (s *Site) BootWith(ctx context.Context, adjust func(*lab.NodeOptions)) error {
	o := lab.NodeOptions{Name: s.Name, Image: s.Image.Disk, Token: s.Token, SecureBoot: true}
	if s.HSM != "" && s.HSM != Attached {
		o.Token = nil
	}
	if s.OwnDisk {
		if err := s.ownDisk(ctx); err != nil {
			return err
		}
		o.Image, o.ImageWritable = s.bootDisk(), true
	}
	if adjust != nil {
		adjust(&o)
	}
	if _, err := os.Stat(filepath.Join(s.Lab.Dir, "nodes", o.Name, "vars.fd")); errors.Is(err, os.ErrNotExist) { // a machine out of its box
		if err := s.Lab.EnrollFirmware(o.Name, s.Image.Keys.Variables(nil), true); err != nil {
			return err
		}
	}
	n, err := s.Lab.StartNode(ctx, o)
	if err != nil {
		return err
	}
	s.Node = n
	return nil
}

// Close ends everything.
func (s *Site) Close() error { return s.Lab.Close() }

// URL is the base URL of a service of the node, seen from the workstation: path is "/Attestation" or "/KeyProtection".
func (s *Site) URL(path string) string { return "http://" + s.Node.Addr(80) + path }

// Describe writes what a person at this site needs to know: where the state lies, how to reach the node, and an answer file to try.
func (s *Site) Describe(w io.Writer) error {
	text, err := s.Answers()
	if err != nil {
		return err
	}
	file := filepath.Join(s.Lab.Dir, "answers.toml")
	if err := os.WriteFile(file, text, 0o644); err != nil {
		return err
	}
	host, port, _ := strings.Cut(s.Node.Addr(22), ":")
	_, err = fmt.Fprintf(w, `State:        %s
Answer file:  %s (an example that fits this machine)
Secrets:      make secrets NODE=%s KEY=age1...   in another terminal, with the setup key that the node shows
SSH:          ssh -i %s -p %s %s@%s help   (after setup)
Serial login: %s, passphrase in %s (after setup)
HTTP:         %s
`, s.Lab.Dir, file, s.Name, s.Admin.KeyFile, port, AdminName, host, AdminName, filepath.Join(s.Lab.Dir, "serial-passphrase"), s.URL("/Attestation/Getinfo"))
	return err
}
