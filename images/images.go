// Package images makes a boot image from inputs: our programs, Debian's
// kernel and a few of its programs and libraries become one Unified Kernel
// Image, a disk that boots it, a manifest of every byte and a licence notice.
//
// Promise: the same source, tools and packages give the same image, byte for
// byte, in any folder; nothing is installed on the workstation and nothing is
// written outside the output and cache folders; a component without a licence
// text stops the build.
//
// Limits: runs on Debian 12 for amd64, needs the packages that `make deps`
// names, and the network only when apt offers a kernel the cache lacks. One
// build at a time per cache folder (others wait).
package images

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"guardhouse/appliance/update"
	"guardhouse/board/generic"
	"guardhouse/board/kernel"
	"guardhouse/board/q35"
	"guardhouse/images/debian"
	"guardhouse/images/esp"
	"guardhouse/images/hsmpack"
	"guardhouse/images/keys"
	"guardhouse/images/uki"
	"guardhouse/initramfs"
)

// StubPath is where Debian's systemd-boot-efi keeps the boot stub.
const StubPath = "/usr/lib/systemd/boot/efi/linuxx64.efi.stub"

// KernelPackage is the Debian package whose dependency is the kernel. Not the
// cloud flavour: it lacks AHCI, server network cards and watchdogs.
const KernelPackage = "linux-image-amd64"

// Names of the files in the output folder.
const (
	UKIFile      = "guardhouse.efi"
	DiskFile     = "guardhouse.img"
	ManifestFile = "manifest.json"
	NoticeFile   = "NOTICE"
	PolicyFile   = "policy.json"
	KeysDir      = "keys" // public half of the key set: what a machine's firmware must trust
)

// PolicyPath is where the signed policies lie beside the image.
const PolicyPath = "/guardhouse/policy.json"

// Options of a build.
type Options struct {
	Source   string            // folder with go.mod
	Out      string            // output folder, made if missing
	Cache    string            // cache folder, made if missing
	Release  initramfs.Release // version and build time
	Commands []string          // programs to include; empty means all of Programs
	Commit   string            // of the source, for people; "" when it is not known
	HSM      HSM               // which HSM pack is inside
	Keys     *keys.Set         // signs the image and its boots
	Also     []*keys.Set       // sets that machines still trust while Keys follows them: they sign as well
	DBX      [][]byte          // each content of dbx that machines may have; an empty one is always among them
	Logf     func(format string, args ...any)
}

// Result says what was built.
type Result struct {
	UKISize, InitrdSize, ArchiveSize int64
	UKISHA256, DiskSHA256            string
	Modules                          int
	KernelVersion                    string
	Reused                           bool // the compressed archive came from the cache
	Took                             time.Duration
}

// Build makes the image. On an error the output folder may hold files of an
// earlier build, never half written ones.
func Build(ctx context.Context, opt Options) (*Result, error) {
	start := time.Now()
	if err := opt.Release.Validate(); err != nil {
		return nil, err
	}
	if opt.Keys == nil {
		return nil, errors.New("no key set; make one with mkimage keys")
	}
	if err := keys.Unmixed(opt.Keys, opt.Also...); err != nil {
		return nil, err
	}
	opt.Release.Evaluation = opt.Keys.Evaluation
	for _, dir := range []string{opt.Out, opt.Cache} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, err
		}
	}
	unlock, err := lock(opt.Cache)
	if err != nil {
		return nil, err
	}
	defer unlock()
	b := &build{Options: opt}
	steps := []struct {
		what string
		run  func(context.Context) error
	}{
		{"kernel", b.fetchKernel}, {"programs", b.compile}, {"contents", b.contents}, {"archive", b.pack},
		{"licences", b.notice}, {"image", b.assemble}, {"manifest", b.manifest},
	}
	for _, s := range steps {
		t := time.Now()
		if err := s.run(ctx); err != nil {
			return nil, fmt.Errorf("%s: %w", s.what, err)
		}
		opt.Logf("%-9s %5.1fs", s.what, time.Since(t).Seconds())
	}
	b.result.Took = time.Since(start)
	return &b.result, nil
}

// build carries what the steps hand to each other.
type build struct {
	Options
	kernelPkg *debian.Package
	kernelDir string
	modules   []initramfs.Module
	tree      *initramfs.ModuleTree
	programs  map[string]string // name -> built binary
	list      initramfs.List
	hostFiles []string // Debian files used, for the notice
	pkgs      []debian.Package
	goModules []GoModule
	hsm       *hsmpack.Pack
	initrd    []byte
	result    Result
}

// BoardModules is the table of modules of every board in one image: virtio
// first, so that the lab's disks exist early.
func BoardModules() []kernel.Module {
	return slices.Concat(q35.Modules, kernel.Modules, generic.Modules)
}

// uselessDirs are parts of the kernel package that no board will ever name;
// they are not kept in the cache (150 of 400 MB).
var uselessDirs = []string{"/sound/", "/drivers/gpu/", "/drivers/media/", "/drivers/staging/", "/drivers/net/wireless/", "/drivers/infiniband/", "/drivers/iio/", "/drivers/isdn/"}

func (b *build) fetchKernel(ctx context.Context) (err error) {
	if b.kernelPkg, err = debian.Candidate(ctx, KernelPackage, b.Cache); err != nil {
		return err
	}
	keep := func(p string) bool {
		return !slices.ContainsFunc(uselessDirs, func(d string) bool { return strings.Contains(p, "/kernel"+d) })
	}
	if b.kernelDir, err = debian.Unpacked(ctx, b.kernelPkg, b.Cache, keep); err != nil {
		return err
	}
	if b.tree, err = initramfs.OpenModules(filepath.Join(b.kernelDir, "lib/modules")); err != nil {
		return err
	}
	b.modules, err = b.tree.Resolve(BoardModules())
	b.result.KernelVersion, b.result.Modules = b.tree.Version, len(b.modules)
	return err
}

func (b *build) contents(ctx context.Context) error {
	if err := b.list.AddSkeleton(b.Release); err != nil {
		return err
	}
	trusted := initramfs.Entry{Path: update.KeysFile, Kind: initramfs.File, Perm: 0o644, Data: b.Keys.Public(keys.Release), Origin: "key set"}
	if err := b.list.Add(trusted); err != nil {
		return err
	}
	for name, file := range b.programs {
		if err := b.addProgram(name, file); err != nil {
			return err
		}
	}
	if err := b.list.AddModules(b.modules); err != nil {
		return err
	}
	for at, from := range diskTools {
		if err := b.list.AddFile(at, from, 0o755); err != nil {
			return fmt.Errorf("%w; run `make deps`", err)
		}
		if err := b.closure(from); err != nil {
			return err
		}
		b.hostFiles = append(b.hostFiles, from)
	}
	return b.addHSM(ctx)
}

// diskTools make and repair the data disk's file system.
var diskTools = map[string]string{"/sbin/mkfs.ext4": "/sbin/mkfs.ext4", "/sbin/e2fsck": "/sbin/e2fsck"}

func (b *build) addProgram(name, file string) error {
	data, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	e := initramfs.Entry{Path: "/bin/" + name, Kind: initramfs.File, Perm: 0o755, Data: data, Origin: "go ./cmd/" + name}
	if name == "init" {
		if err := b.list.Add(initramfs.Entry{Path: "/init", Kind: initramfs.Link, Perm: 0o777, Target: "/bin/init", Origin: "made"}); err != nil {
			return err
		}
	}
	if err := b.list.Add(e); err != nil {
		return err
	}
	if name == "hsm" {
		return b.closure(file)
	}
	return nil
}

// closure adds a file's shared libraries and remembers them for the notice.
func (b *build) closure(files ...string) error {
	libs, err := b.list.AddClosure(nil, files...)
	b.hostFiles = append(b.hostFiles, libs...)
	return err
}

// pack makes the compressed archive; the result is kept under the hash of the
// uncompressed one, since compressing is the slowest step.
func (b *build) pack(context.Context) error {
	var raw bytes.Buffer
	if err := b.list.WriteCPIO(&raw); err != nil {
		return err
	}
	b.result.ArchiveSize = int64(raw.Len())
	key := sha256.Sum256(append([]byte(initramfs.CompressorID+"\n"), raw.Bytes()...))
	name := filepath.Join(b.Cache, "initrd-"+hex.EncodeToString(key[:])+".zst")
	var err error
	if b.initrd, err = os.ReadFile(name); err == nil {
		b.result.Reused = true
	} else {
		var z bytes.Buffer
		if err := initramfs.Compress(&z, &raw); err != nil {
			return err
		}
		b.initrd = z.Bytes()
		if err := replace(name, b.initrd); err != nil {
			return err
		}
		if err := b.keepNewest("initrd-*.zst", 4); err != nil {
			return err
		}
	}
	b.result.InitrdSize = int64(len(b.initrd))
	return nil
}

func (b *build) assemble(context.Context) error {
	stub, err := os.ReadFile(StubPath)
	if err != nil {
		return fmt.Errorf("boot stub: %w; run `make deps` (package systemd-boot-efi)", err)
	}
	linux, err := os.ReadFile(filepath.Join(b.kernelDir, "boot/vmlinuz-"+b.tree.Version))
	if err != nil {
		return err
	}
	if err := checkSigner(linux); err != nil {
		return err
	}
	sections := []uki.Section{
		{Name: uki.OSRel, Data: []byte(b.Release.Text())},
		{Name: uki.Cmdline, Data: []byte(kernel.Text(kernel.CommandLine))},
		{Name: uki.Uname, Data: []byte(b.tree.Version)},
		{Name: uki.PCRPKey, Data: b.Keys.Public(keys.Policy)},
		{Name: uki.Linux, Data: linux}, {Name: uki.Initrd, Data: b.initrd},
	}
	img, err := uki.Build(stub, sections)
	if err != nil {
		return err
	}
	for _, set := range b.signers() {
		signer, err := set.Signer(keys.DB)
		if err != nil {
			return err
		}
		if img, err = uki.Sign(img, set.Certs[keys.DB], signer); err != nil {
			return err
		}
	}
	b.result.UKISize = int64(len(img))
	if err := replace(filepath.Join(b.Out, UKIFile), img); err != nil {
		return err
	}
	if err := b.Keys.WritePublic(filepath.Join(b.Out, KeysDir)); err != nil {
		return err
	}
	policies, err := b.policies(img)
	if err != nil {
		return err
	}
	if err := replace(filepath.Join(b.Out, PolicyFile), policies); err != nil {
		return err
	}
	return esp.Write(filepath.Join(b.Out, DiskFile), []esp.File{{Path: esp.BootPath, Data: img}, {Path: PolicyPath, Data: policies}})
}

// checkSigner compares our hash of the kernel with the one its signer put
// into the signature. Firmware measures that hash into PCR 4, so this proves
// a part of the prediction anew for each kernel that Debian releases. It
// verifies no signature: apt has checked the package. An unsigned kernel
// passes.
func checkSigner(linux []byte) error {
	certs, err := uki.Certificates(linux)
	if err != nil || len(certs) == 0 {
		return err
	}
	sum, err := uki.AuthenticodeSHA256(linux)
	if err != nil {
		return err
	}
	if !bytes.Contains(certs, sum[:]) {
		return fmt.Errorf("the kernel's signature does not hold the image hash %x: PCR 4 could not be predicted", sum)
	}
	return nil
}

// replace writes a file under a temporary name and renames it.
func replace(name string, data []byte) error {
	tmp := name + ".new"
	if err := os.WriteFile(tmp, data, 0o644); err != nil {
		return err
	}
	return os.Rename(tmp, name)
}

// keepNewest removes all but the n newest cache files that match.
func (b *build) keepNewest(pattern string, n int) error {
	files, err := filepath.Glob(filepath.Join(b.Cache, pattern))
	if err != nil {
		return err
	}
	age := map[string]time.Time{}
	for _, f := range files {
		if info, err := os.Stat(f); err == nil {
			age[f] = info.ModTime()
		}
	}
	slices.SortFunc(files, func(x, y string) int { return age[y].Compare(age[x]) })
	var failed error
	for _, f := range files[min(n, len(files)):] {
		failed = errors.Join(failed, os.RemoveAll(f))
	}
	return failed
}

// lock holds the cache folder until the returned function is called.
func lock(cache string) (func(), error) {
	f, err := os.OpenFile(filepath.Join(cache, ".lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	return func() { f.Close() }, nil // closing releases; doing it twice does no harm
}
