package sandbox_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"guardhouse/appliance/sandbox"
)

// builtWitness is testdata/witness as a static program, as those of an image are, in a folder of the test's own.
func builtWitness(t *testing.T) string {
	t.Helper()
	program, err := witnessOnce()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "witness") // t.TempDir is below folders that other uids can't enter
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	file := filepath.Join(dir, "witness")
	if err := errors.Join(os.Chmod(dir, 0o755), os.WriteFile(file, program, 0o755)); err != nil {
		t.Fatal(err)
	}
	return file
}

// witnessOnce builds it for all tests.
var witnessOnce = sync.OnceValues(func() ([]byte, error) {
	dir, err := os.MkdirTemp("", "witness")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	cmd := exec.Command("go", "build", "-o", filepath.Join(dir, "witness"), "./testdata/witness")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("%w: %s", err, out)
	}
	return os.ReadFile(filepath.Join(dir, "witness"))
})

// confined runs the witness with the row's confinement, but for the files, and gives what it told.
func confined(t *testing.T, p sandbox.Process) (told map[string]string, slot string) {
	t.Helper()
	file := builtWitness(t)
	dir := filepath.Dir(file)
	allowed, other := filepath.Join(dir, "allowed"), filepath.Join(dir, "other")
	slot = filepath.Join(dir, "slot")
	for _, name := range []string{allowed, other, slot} {
		if err := os.WriteFile(name, make([]byte, 4096), 0o666); err != nil {
			t.Fatal(err)
		}
	}
	l := sandbox.LaunchOf(p)
	l.Program, l.Argv0, l.Args, l.Sockets, l.View, l.OOMScore = file, "", []string{allowed, other, "fork"}, []string{"slot"}, sandbox.View{}, nil
	if os.Getuid() != 0 {
		l.UID, l.GID = nil, nil
	}
	if l.Confine != nil {
		if len(l.Confine.Calls) == 0 {
			l.Args[2] = "no fork"
		}
		only := *l.Confine
		only.Files = []sandbox.Reach{{Path: allowed}, {Path: "/no/such/file"}}
		l.Confine = &only
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "ours"), os.NewFile(uintptr(pair[1]), "theirs")
	defer ours.Close()
	defer theirs.Close()
	part, err := os.OpenFile(slot, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer part.Close()
	if err := unix.Sendmsg(int(ours.Fd()), []byte{1}, unix.UnixRights(int(part.Fd())), nil, 0); err != nil {
		t.Fatal(err)
	}
	cmd, err := sandbox.Command(l, []*os.File{theirs})
	if err != nil {
		t.Fatal(err)
	}
	var out, bad bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(make([]byte, 1<<20)), &out, &bad
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v: %s%s", err, out.String(), bad.String())
	}
	told = map[string]string{}
	for line := range strings.Lines(out.String()) {
		k, v, _ := strings.Cut(line, ":\t")
		told[k] = strings.TrimSpace(v)
	}
	return told, slot
}

func TestAConfinedProcessDoesItsWorkAndNothingElse(t *testing.T) {
	got, slot := confined(t, sandbox.UpdateProcess)
	want := map[string]string{"allowed file": "ok", "work": "ok"}
	for _, file := range []string{"write allowed file", "other file", "passwd", "root folder", "new file", "start a program"} {
		want[file] = "EACCES" // Landlock
	}
	for _, call := range []string{"socket inet", "socket inet6", "socket unix", "socket netlink", "socket packet", "connect", "program in memory", "code in memory", "fork", "vfork",
		"signal others", "trace", "mount", "key", "ring", "namespace", "unlink"} {
		want[call] = "EPERM" // seccomp
	}
	for what, result := range want {
		if got[what] != result {
			t.Errorf("%s: %q, want %q", what, got[what], result)
		}
	}
	if len(got) != len(want) {
		t.Errorf("it told %v", got)
	}
	if b, err := os.ReadFile(slot); err != nil || string(b[512:519]) != "release" {
		t.Errorf("the slot that it was given: %q, %v", b[512:519], err)
	}
}

// Without the system calls limited, files are still: the two don't rest on each other.
func TestFilesAreLimitedWhateverSystemCallsAreLeft(t *testing.T) {
	p := sandbox.UpdateProcess
	p.Confine = &sandbox.Confinement{Files: p.Confine.Files}
	got, _ := confined(t, p)
	for what, result := range map[string]string{"allowed file": "ok", "other file": "EACCES", "new file": "EACCES", "unlink": "EACCES", "socket unix": "ok", "code in memory": "ok"} {
		if got[what] != result {
			t.Errorf("%s: %q, want %q", what, got[what], result)
		}
	}
}

func TestAProcessWithAnUnknownSystemCallIsNotStarted(t *testing.T) {
	l := sandbox.LaunchOf(sandbox.UpdateProcess)
	l.Program, l.Argv0, l.Args, l.View, l.UID, l.GID, l.OOMScore = "/proc/self/exe", "witness", nil, sandbox.View{}, nil, nil, nil
	l.Confine = &sandbox.Confinement{Calls: append(sandbox.GoCalls[:len(sandbox.GoCalls):len(sandbox.GoCalls)], "no_such_call")}
	cmd, err := sandbox.Command(l, nil)
	if err != nil {
		t.Fatal(err)
	}
	if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), "no_such_call") {
		t.Errorf("%v: %s", err, out)
	}
}
