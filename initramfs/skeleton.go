package initramfs

import (
	"fmt"
	"strings"
)

// Release is what /etc/os-release says about an image.
type Release struct {
	Version string // shown to people and compared by nobody
	Epoch   int64  // build time, unix seconds: no honest clock is before it
	Number  uint64 // rises with each release; the version floor compares it
	// Evaluation marks an image that is signed with keys for trying out. Every screen says so.
	Evaluation bool
}

// Text returns the os-release file, os-release(5). It is also the .osrel
// section of the boot image, so the two can be compared.
func (r Release) Text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "NAME=guardhouse\nID=guardhouse\nPRETTY_NAME=\"guardhouse %s\"\n", r.Version)
	fmt.Fprintf(&b, "VERSION_ID=%s\nBUILD_EPOCH=%d\nRELEASE_NUMBER=%d\n", r.Version, r.Epoch, r.Number)
	if r.Evaluation {
		b.WriteString("EVALUATION=yes\n")
	}
	return b.String()
}

// Validate refuses a version that would need quoting, or a build time that
// cannot be one.
func (r Release) Validate() error {
	if r.Version == "" || len(r.Version) > 64 || strings.Trim(r.Version, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.+~-_") != "" {
		return fmt.Errorf("version %q: use 1 to 64 letters, digits and . + ~ - _", r.Version)
	}
	if r.Epoch < 1_700_000_000 || r.Epoch > 1<<36 {
		return fmt.Errorf("build time %d: want unix seconds after November 2023", r.Epoch)
	}
	return nil
}

// skeleton is what exists before anything is mounted. Devices are here so
// that PID 1 has a console before devtmpfs.
var skeleton = []Entry{
	{Path: "/", Kind: Dir, Perm: 0o755},
	{Path: "/bin", Kind: Dir, Perm: 0o755},
	{Path: "/sbin", Kind: Dir, Perm: 0o755},
	{Path: "/dev", Kind: Dir, Perm: 0o755},
	{Path: "/dev/console", Kind: CharDevice, Perm: 0o600, Major: 5, Minor: 1},
	{Path: "/dev/null", Kind: CharDevice, Perm: 0o666, Major: 1, Minor: 3},
	{Path: "/proc", Kind: Dir, Perm: 0o755},
	{Path: "/sys", Kind: Dir, Perm: 0o755},
	{Path: "/run", Kind: Dir, Perm: 0o755},
	{Path: "/tmp", Kind: Dir, Perm: 0o755},
	{Path: "/data", Kind: Dir, Perm: 0o755},
	{Path: "/etc", Kind: Dir, Perm: 0o755},
}

// AddSkeleton adds the folders, the two device nodes and os-release.
func (l *List) AddSkeleton(r Release) error {
	if err := r.Validate(); err != nil {
		return err
	}
	for _, e := range skeleton {
		e.Origin = "made"
		if err := l.Add(e); err != nil {
			return err
		}
	}
	return l.Add(Entry{Path: "/etc/os-release", Kind: File, Perm: 0o644, Data: []byte(r.Text()), Origin: "made"})
}
