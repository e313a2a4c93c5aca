package sandbox_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"guardhouse/appliance/sandbox"
)

// The test binary is its own service: as "witness" it prints what it is allowed.
func TestMain(m *testing.M) {
	sandbox.Shim()
	if os.Args[0] == "witness" {
		b, _ := os.ReadFile("/proc/self/status")
		os.Stdout.Write(b)
		fmt.Println("Environ:\t" + strings.Join(os.Environ(), " "))
		fmt.Println("Pid:\t", os.Getpid())
		for _, l := range []int{unix.RLIMIT_CORE, unix.RLIMIT_NOFILE, unix.RLIMIT_NPROC} {
			var lim unix.Rlimit
			unix.Getrlimit(l, &lim)
			fmt.Printf("Limit%d:\t%d %d\n", l, lim.Cur, lim.Max)
		}
		fds, _ := os.ReadDir("/proc/self/fd")
		for _, fd := range fds {
			to, _ := os.Readlink("/proc/self/fd/" + fd.Name())
			fmt.Printf("Fd%s:\t%s\n", fd.Name(), to)
		}
		if top := os.Getenv("LOOK"); top != "" {
			look(top)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// look tells what is in the folders of a view and whether they can be written.
func look(top string) {
	for _, dir := range []string{"/tmp", "/data", "/data/site", "/run/sockets"} {
		var names []string
		list, _ := os.ReadDir(top + dir)
		for _, e := range list {
			names = append(names, e.Name())
		}
		fmt.Println("See " + top + dir + ":\t" + strings.Join(names, " "))
		said := "ok"
		err := os.WriteFile(top+dir+"/new", nil, 0o666)
		var errno syscall.Errno
		if errors.As(err, &errno) {
			said = errno.Error()
		}
		fmt.Println("Write " + top + dir + ":\t" + said)
	}
	if st, err := os.Stat(top + "/tmp/new"); err == nil {
		fmt.Println("Mode:\t" + st.Mode().String())
	}
}

func run(t *testing.T, l sandbox.Launch, files ...*os.File) map[string]string {
	t.Helper()
	cmd, err := sandbox.Command(l, files)
	if err != nil {
		t.Fatal(err)
	}
	var out, bad bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &bad
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v: %s", err, bad.String())
	}
	seen := map[string]string{}
	for line := range strings.Lines(out.String()) {
		k, v, _ := strings.Cut(line, ":\t")
		seen[k] = strings.TrimSpace(v)
	}
	return seen
}

func witness(p sandbox.Process) sandbox.Launch {
	l := sandbox.LaunchOf(p, "MARK=1")
	l.Program, l.Argv0, l.Args = "/proc/self/exe", "witness", nil
	l.Limits.Data = 0 // the race detector wants more than a service
	l.Confine = nil   // a test binary is loaded by the C library's loader, which makes memory code: see confine_test.go for the real thing
	return l
}

func TestServiceHoldsNothingButItsRow(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("changing the uid needs root")
	}
	for _, p := range sandbox.Table {
		t.Run(p.Name, func(t *testing.T) {
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			defer w.Close()
			l := witness(p)
			l.Sockets = []string{"one"}
			os.Setenv("LEAK", "secret")
			defer os.Unsetenv("LEAK")
			got := run(t, l, r)
			caps := fmt.Sprintf("%016x", capMask(p))
			for k, want := range map[string]string{
				"Uid":    strings.Repeat(fmt.Sprintf("%d\t", p.UID), 3) + fmt.Sprint(p.UID),
				"Gid":    strings.Repeat(fmt.Sprintf("%d\t", p.GID), 3) + fmt.Sprint(p.GID),
				"Groups": "", "CapEff": caps, "CapPrm": caps, "CapBnd": caps, "CapAmb": caps, "CapInh": caps, "NoNewPrivs": "1",
				fmt.Sprintf("Limit%d", unix.RLIMIT_CORE):   "0 0",
				fmt.Sprintf("Limit%d", unix.RLIMIT_NOFILE): fmt.Sprintf("%d %d", p.Limits.Files, p.Limits.Files),
				fmt.Sprintf("Limit%d", unix.RLIMIT_NPROC):  "512 512",
			} {
				if got[k] != want {
					t.Errorf("%s is %q, want %q", k, got[k], want)
				}
			}
			env := got["Environ"]
			if strings.Contains(env, "LEAK") || !strings.Contains(env, "MARK=1") {
				t.Errorf("environment is %q", env)
			}
			if !strings.Contains(env, "LISTEN_PID="+got["Pid"]+" LISTEN_FDS=1 LISTEN_FDNAMES=one") {
				t.Errorf("no socket activation for pid %s in %q", got["Pid"], env)
			}
			if !strings.HasPrefix(got["Fd3"], "pipe:") {
				t.Errorf("descriptor 3 is %q", got["Fd3"])
			}
			for k, to := range got {
				if strings.HasPrefix(k, "Fd") && k != "Fd3" && strings.HasPrefix(to, "pipe:") && len(k) > 2 && k[2] > '2' {
					t.Errorf("inherited descriptor %s -> %s", k, to)
				}
			}
		})
	}
}

func capMask(p sandbox.Process) (m uint64) {
	for _, c := range p.Capabilities {
		m |= 1 << c
	}
	return m
}

func TestOnlyTheClockHasACapability(t *testing.T) {
	for _, p := range sandbox.Table {
		if len(p.Capabilities) > 0 && (p.Name != "clock" || len(p.Capabilities) > 1 || p.Capabilities[0] != sandbox.CapSysTime) {
			t.Errorf("%s has capabilities %v", p.Name, p.Capabilities)
		}
	}
}

func TestEveryProcessHasItsOwnUID(t *testing.T) {
	seen := map[uint32]string{0: "init"}
	for _, p := range append([]sandbox.Process{sandbox.DHCPProcess, sandbox.HSMDaemonProcess, sandbox.UpdateProcess, sandbox.ResolveProcess}, sandbox.Table...) {
		if other, ok := seen[p.UID]; ok || p.UID != p.GID {
			t.Errorf("%s has uid %d and gid %d, %s has them too", p.Name, p.UID, p.GID, other)
		}
		seen[p.UID] = p.Name
	}
}

func TestShimRefusesAProgramThatIsNotThere(t *testing.T) {
	cmd, err := sandbox.Command(sandbox.Launch{Program: "/nowhere/at/all"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.CombinedOutput()
	if err == nil || cmd.ProcessState.ExitCode() != 125 || !strings.Contains(string(out), "/nowhere/at/all") {
		t.Fatalf("exit %v, said %q", err, out)
	}
}

// TestViewHidesWhatIsNotKept starts a process that looks at folders which this one has.
func TestViewHidesWhatIsNotKept(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("own mounts need root")
	}
	top := t.TempDir()
	for _, dir := range []string{"tmp", "data/secret", "data/site", "run/sockets"} {
		if err := os.MkdirAll(top+"/"+dir, 0o777); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(top+"/"+dir+"/file", nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	p := sandbox.HSMDaemonProcess
	os.Chown(top+"/run/sockets", int(p.UID), int(p.GID))
	for dir := top; dir != "/tmp" && dir != "/"; dir = filepath.Dir(dir) {
		os.Chmod(dir, 0o755) // for its user, who has to come through
	}
	l := witness(p)
	l.View = sandbox.View{Tmp: top + "/tmp", Hide: []string{top + "/data", top + "/run"},
		Keep: []sandbox.Kept{{Path: top + "/data/site"}, {Path: top + "/run/sockets", Write: true}}}
	l.Env = append(l.Env, "LOOK="+top)
	got := run(t, l)
	for what, want := range map[string]string{
		"See " + top + "/tmp": "", "See " + top + "/data": "site", "See " + top + "/data/site": "file", "See " + top + "/run/sockets": "file",
		"Write " + top + "/tmp": "ok", "Write " + top + "/data": "read-only file system", "Write " + top + "/data/site": "read-only file system",
		"Write " + top + "/run/sockets": "ok",
	} {
		if got[what] != want {
			t.Errorf("%s: %q, want %q", what, got[what], want)
		}
	}
	if mode := got["Mode"]; mode != "-rw-rw----" {
		t.Errorf("the helper's files have mode %s", mode)
	}
	if _, err := os.Stat(top + "/tmp/new"); err == nil {
		t.Error("its files in /tmp are seen outside")
	}
	if _, err := os.Stat(top + "/data/secret/file"); err != nil {
		t.Errorf("the node's own view has changed: %v", err)
	}
}
