package disk

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// lab is a machine made of files: /sys/block and /dev in a folder.
type lab struct {
	t   *testing.T
	dir string
	f   *Finder
	ran []string
}

func newLab(t *testing.T) *lab {
	l := &lab{t: t, dir: t.TempDir()}
	l.f = &Finder{Sys: l.dir + "/sys", Dev: l.dir + "/dev", Run: func(ctx context.Context, program string, args ...string) ([]byte, error) {
		l.ran = append(l.ran, filepath.Base(program))
		return exec.CommandContext(ctx, program, args...).CombinedOutput()
	}}
	for _, d := range []string{"/sys/block", "/dev"} {
		if err := os.MkdirAll(l.dir+d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return l
}

func (l *lab) put(path, text string) {
	l.t.Helper()
	p := filepath.Join(l.dir, path)
	if err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o755), os.WriteFile(p, []byte(text), 0o644)); err != nil {
		l.t.Fatal(err)
	}
}

// disk adds a disk of 32 MiB; write puts bytes at offsets.
func (l *lab) disk(name, serial string, write map[int64]string) {
	l.t.Helper()
	const size = 32 << 20
	l.put("sys/block/"+name+"/size", fmt.Sprint(size/512))
	l.put("sys/block/"+name+"/removable", "0\n")
	l.put("sys/block/"+name+"/ro", "0\n")
	if serial != "" {
		l.put("sys/block/"+name+"/serial", serial)
	}
	f, err := os.Create(l.dir + "/dev/" + name)
	if err != nil {
		l.t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		l.t.Fatal(err)
	}
	for at, text := range write {
		if at < 0 {
			at += size
		}
		if _, err := f.WriteAt([]byte(text), at); err != nil {
			l.t.Fatal(err)
		}
	}
}

func (l *lab) debugfs(command string) {
	l.t.Helper()
	if out, err := exec.Command("/sbin/debugfs", "-w", "-R", command, l.dir+"/dev/vda").CombinedOutput(); err != nil {
		l.t.Fatalf("%v: %s", err, out)
	}
}

func ext4(label string, state byte) map[int64]string {
	return map[int64]string{superMagic: "\x53\xef" + string(state), superLabel: label}
}

func TestChoosesTheOneDiskThatIsMeant(t *testing.T) {
	mbr := map[int64]string{510: "\x55\xaa"}
	end := map[int64]string{-512: "EFI PART"}
	for name, c := range map[string]struct {
		make func(l *lab)
		want string // name of the disk, or kind of the error
		says string
	}{
		"none":                    {func(l *lab) {}, KindNone, "attach a blank disk"},
		"only blank":              {func(l *lab) { l.disk("vda", "", nil) }, "vda", ""},
		"by serial among blanks":  {func(l *lab) { l.disk("vda", "", nil); l.disk("vdb", Serial, nil) }, "vdb", ""},
		"two blanks":              {func(l *lab) { l.disk("vda", "s1", nil); l.disk("sda", "", nil) }, KindAmbiguous, "sda (32 MiB, holds nothing), vda (32 MiB, holds nothing, serial \"s1\")"},
		"ours beside a blank":     {func(l *lab) { l.disk("vda", "", nil); l.disk("vdb", "", ext4(Label, 1)) }, "vdb", ""},
		"two of ours":             {func(l *lab) { l.disk("vda", "", ext4(Label, 1)); l.disk("vdb", "", ext4(Label, 1)) }, KindAmbiguous, "vda"},
		"two with our serial":     {func(l *lab) { l.disk("vda", Serial, nil); l.disk("vdb", Serial, nil) }, KindAmbiguous, "leave one"},
		"boot disk beside":        {func(l *lab) { l.disk("vda", "", mbr); l.disk("vdb", "", nil) }, "vdb", ""},
		"foreign by serial":       {func(l *lab) { l.disk("vda", Serial, mbr); l.disk("vdb", "", nil) }, KindForeign, "partition table or a boot sector"},
		"foreign file system":     {func(l *lab) { l.disk("vda", "", ext4("backup", 1)) }, KindForeign, `labelled "backup"`},
		"something at the end":    {func(l *lab) { l.disk("vda", "", end) }, KindForeign, "unknown kind"},
		"one byte in the first":   {func(l *lab) { l.disk("vda", "", map[int64]string{edge - 1: "x"}) }, KindForeign, "untouched"},
		"removable":               {func(l *lab) { l.disk("sda", "", nil); l.put("sys/block/sda/removable", "1") }, KindNone, ""},
		"read-only":               {func(l *lab) { l.disk("sda", "", nil); l.put("sys/block/sda/ro", "1") }, KindNone, ""},
		"loop, ram, optical":      {func(l *lab) { l.disk("loop0", "", nil); l.disk("ram0", "", nil); l.disk("sr0", "", nil) }, KindNone, ""},
		"partitions in the table": {func(l *lab) { l.disk("vda", "", nil); l.put("sys/block/vda/vda1/partition", "1") }, KindForeign, "1 partitions"},
		"NVMe serial": {func(l *lab) {
			l.disk("nvme0n1", "", nil)
			l.disk("nvme1n1", "", nil)
			l.put("sys/block/nvme1n1/device/serial", Serial+"  ")
		}, "nvme1n1", ""},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t)
			c.make(l)
			list, err := l.f.List()
			if err != nil {
				t.Fatal(err)
			}
			d, err := Choose(list)
			got, said := d.Name, ""
			var de *Error
			if errors.As(err, &de) {
				got, said = de.Kind, de.Error()
				if de.Remedy == "" {
					t.Error("no remedy")
				}
			}
			if got != c.want || !strings.Contains(said, c.says) {
				t.Errorf("got %s (%s), want %s", got, said, c.want)
			}
		})
	}
}

func TestFormatsABlankDiskOnceAndRecognisesIt(t *testing.T) {
	l := newLab(t)
	l.disk("vda", Serial, nil)
	prepare := func() (Disk, string) {
		list, _ := l.f.List()
		d, err := Choose(list)
		if err != nil {
			t.Fatal(err)
		}
		did, err := l.f.Prepare(t.Context(), d)
		if err != nil {
			t.Fatal(err)
		}
		return d, did
	}
	if _, did := prepare(); did != "formatted" {
		t.Fatal(did)
	}
	if d, did := prepare(); did != "clean" || d.Content != Ours {
		t.Fatalf("%s, %+v", did, d)
	}
	l.debugfs("set_super_value state 0") // as a hard stop may leave it
	if _, did := prepare(); !strings.Contains(did, "after a hard stop") {
		t.Fatal(did)
	}
	if d, did := prepare(); did != "clean" || d.Unclean {
		t.Fatalf("%s, %+v", did, d)
	}
	if got := strings.Join(l.ran, " "); got != "mkfs.ext4 e2fsck" {
		t.Errorf("ran %q", got)
	}
}

func TestDamageBeyondRepairIsLeftAlone(t *testing.T) {
	l := newLab(t)
	l.disk("vda", Serial, nil)
	list, _ := l.f.List()
	if _, err := l.f.Prepare(t.Context(), list[0]); err != nil {
		t.Fatal(err)
	}
	l.debugfs("set_super_value state 0")
	f, _ := os.OpenFile(l.dir+"/dev/vda", os.O_RDWR, 0)
	f.WriteAt([]byte(strings.Repeat("junk", 256<<10)), 4096) // group descriptors, bitmaps, inodes
	f.Close()
	list, _ = l.f.List()
	_, err := l.f.Prepare(t.Context(), list[0])
	var de *Error
	if !errors.As(err, &de) || de.Kind != KindDamaged || de.Remedy == "" {
		t.Errorf("%v", err)
	}
}

func TestRefusesToFormatWhatIsForeign(t *testing.T) {
	l := newLab(t)
	if _, err := l.f.Prepare(t.Context(), Disk{Name: "vda", Content: Foreign, Holds: "data"}); err == nil || len(l.ran) > 0 {
		t.Errorf("%v, ran %v", err, l.ran)
	}
}

func TestFolderTakesBackOwnerAndModeButRefusesALink(t *testing.T) {
	dir := t.TempDir()
	p := dir + "/a/b"
	if err := Folder(p, uint32(os.Getuid()), uint32(os.Getgid()), 0o700); err != nil {
		t.Fatal(err)
	}
	os.Chmod(p, 0o777)
	if err := Folder(p, uint32(os.Getuid()), uint32(os.Getgid()), 0o700); err != nil {
		t.Fatal(err)
	}
	if st, _ := os.Stat(p); st.Mode().Perm() != 0o700 {
		t.Errorf("mode %v", st.Mode())
	}
	os.Symlink(dir, dir+"/link")
	if err := Folder(dir+"/link", 0, 0, 0o700); err == nil {
		t.Error("a link was handed over")
	}
}

func FuzzInspect(f *testing.F) {
	f.Add([]byte("\x53\xef"), int64(superMagic))
	f.Fuzz(func(t *testing.T, b []byte, at int64) {
		disk := make([]byte, 8*edge)
		if at < 0 || at > int64(len(disk)) {
			return
		}
		n := copy(disk[at:], b)
		d := Disk{Size: int64(len(disk))}
		inspect(&d, strings.NewReader(string(disk)))
		edges := at < edge || at+int64(n) > int64(len(disk))-edge
		if d.Content == Blank && edges && !zero(disk[:edge]) {
			t.Error("taken for blank")
		}
	})
}
