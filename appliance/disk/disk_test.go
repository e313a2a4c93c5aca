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

// sealed is a disk with the header of an encrypted volume.
func sealed(preparing bool) map[int64]string {
	h := &Header{Volume: strings.Repeat("0a", 16), Preparing: preparing}
	b, err := h.encode()
	if err != nil {
		panic(err)
	}
	return map[int64]string{copyA: string(b), copyB: string(b), -4096: "encrypted"}
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
		"ours beside a blank":     {func(l *lab) { l.disk("vda", "", nil); l.disk("vdb", "", sealed(false)) }, "vdb", ""},
		"two of ours":             {func(l *lab) { l.disk("vda", "", sealed(false)); l.disk("vdb", "", sealed(false)) }, KindAmbiguous, "vda"},
		"two with our serial":     {func(l *lab) { l.disk("vda", Serial, nil); l.disk("vdb", Serial, nil) }, KindAmbiguous, "leave one"},
		"unfinished preparation":  {func(l *lab) { l.disk("vda", "", sealed(true)) }, "vda", ""},
		"one copy of the header":  {func(l *lab) { l.disk("vda", "", map[int64]string{copyB: sealed(false)[copyB]}) }, "vda", ""},
		"header cut off":          {func(l *lab) { l.disk("vda", "", map[int64]string{copyA: sealed(true)[copyA][:30]}) }, "vda", ""},
		"boot disk beside":        {func(l *lab) { l.disk("vda", "", mbr); l.disk("vdb", "", nil) }, "vdb", ""},
		"foreign by serial":       {func(l *lab) { l.disk("vda", Serial, mbr); l.disk("vdb", "", nil) }, KindForeign, "partition table or a boot sector"},
		"foreign file system":     {func(l *lab) { l.disk("vda", "", map[int64]string{superMagic: "\x53\xef"}) }, KindForeign, "unencrypted Linux file system"},
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

func TestUnfinishedPreparationIsBegunAgainAndAFinishedVolumeNever(t *testing.T) {
	for name, c := range map[string]struct {
		write map[int64]string
		want  Content
	}{"preparing": {sealed(true), Blank}, "finished": {sealed(false), Ours}, "damaged": {map[int64]string{copyA: string(headerMagic) + "junk"}, Ours}} {
		l := newLab(t)
		l.disk("vda", Serial, c.write)
		list, err := l.f.List()
		if err != nil || list[0].Content != c.want {
			t.Errorf("%s: %+v %v", name, list, err)
		}
	}
}

func TestChecksAFileSystemAfterAHardStopAlone(t *testing.T) {
	l := newLab(t)
	l.disk("vda", Serial, nil)
	path := l.dir + "/dev/vda"
	if err := l.f.MakeFS(t.Context(), path); err != nil {
		t.Fatal(err)
	}
	check := func(want string) {
		t.Helper()
		if did, err := l.f.CheckFS(t.Context(), path); err != nil || !strings.Contains(did, want) {
			t.Fatalf("%q %v, want %q", did, err, want)
		}
	}
	check("clean")
	l.debugfs("set_super_value state 0") // as a hard stop may leave it
	check("after a hard stop")
	check("clean")
	if got := strings.Join(l.ran, " "); got != "mkfs.ext4 e2fsck" {
		t.Errorf("ran %q", got)
	}
}

func TestDamageBeyondRepairIsLeftAlone(t *testing.T) {
	l := newLab(t)
	l.disk("vda", Serial, nil)
	path := l.dir + "/dev/vda"
	_, err := l.f.CheckFS(t.Context(), path)
	wantVolumeKind(t, err, KindDamaged) // no file system at all
	if err := l.f.MakeFS(t.Context(), path); err != nil {
		t.Fatal(err)
	}
	l.debugfs("set_super_value state 0")
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	f.WriteAt([]byte(strings.Repeat("junk", 256<<10)), 4096) // group descriptors, bitmaps, inodes
	f.Close()
	_, err = l.f.CheckFS(t.Context(), path)
	wantVolumeKind(t, err, KindDamaged)
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
	f.Add([]byte(sealed(true)[copyA][:300]), int64(copyA))
	f.Fuzz(func(t *testing.T, b []byte, at int64) {
		disk := make([]byte, 8*edge)
		if at < 0 || at > int64(len(disk)) {
			return
		}
		n := copy(disk[at:], b)
		d := Disk{Size: int64(len(disk))}
		inspect(&d, strings.NewReader(string(disk)))
		edges := at < edge || at+int64(n) > int64(len(disk))-edge
		if d.Content == Blank && d.Holds == "nothing" && edges && !zero(disk[:edge]) {
			t.Error("taken for blank")
		}
	})
}
