package sandbox_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/elastic/go-seccomp-bpf/arch"
	"golang.org/x/sys/unix"

	"guardhouse/appliance/rpc"
	"guardhouse/appliance/sandbox"
)

// filtered are the rows with a filter.
func filtered() []sandbox.Process {
	return append([]sandbox.Process{sandbox.DHCPProcess, sandbox.ResolveProcess, sandbox.HSMDaemonProcess}, sandbox.Table...)
}

// try runs the witness as the row's process, with the row's rights and confinement, and gives what it told and what ended it.
func try(t *testing.T, witness string, p sandbox.Process, calls ...string) (told map[string]string, end error) {
	t.Helper()
	dir, err := os.MkdirTemp(filepath.Dir(witness), "w")
	if err != nil {
		t.Fatal(err)
	}
	l := sandbox.LaunchOf(p)
	l.Program, l.Argv0, l.Args, l.View, l.OOMScore = witness, "", append([]string{"calls", dir}, calls...), sandbox.View{}, nil
	confine := *p.Confine
	if !confine.AnyFile {
		confine.Files = []sandbox.Reach{{Path: dir, Write: true}}
	}
	l.Confine = &confine
	if os.Getuid() != 0 {
		l.UID, l.GID = nil, nil
	} else if err := os.Chown(dir, int(p.UID), int(p.GID)); err != nil {
		t.Fatal(err)
	}
	cmd, err := sandbox.Command(l, nil)
	if err != nil {
		t.Fatal(err)
	}
	var out, bad bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &bad
	if end = cmd.Run(); end != nil {
		end = fmt.Errorf("%w: %s", end, bad.String())
	}
	told = map[string]string{}
	for line := range strings.Lines(out.String()) {
		k, v, _ := strings.Cut(line, ":\t")
		told[k] = strings.TrimSpace(v)
	}
	return told, end
}

// endedBy is the signal that ended a process, or 0.
func endedBy(err error) unix.Signal {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		if ws := exit.Sys().(interface{ Signal() unix.Signal }); ws.Signal() > 0 {
			return ws.Signal()
		}
	}
	return 0
}

func numbered(call string) string { return fmt.Sprintf("%s=%d", call, arch.X86_64.SyscallNames[call]) }

func needs(f *sandbox.Filter, g sandbox.Group) bool {
	return slices.ContainsFunc(f.Needs, func(n sandbox.Need) bool { return n.Group == g })
}

// TestAProcessThatTriesEveryRefusedCallGoesOnWithItsWork asks the kernel, not the program of the filter: what is refused without being
// deadly fails, and the work of a service goes on after it.
func TestAProcessThatTriesEveryRefusedCallGoesOnWithItsWork(t *testing.T) {
	file := builtWitness(t)
	for _, p := range filtered() {
		t.Run(p.Name, func(t *testing.T) {
			f := p.Confine.Filter
			calls, want := []string{numbered("clone3")}, map[string]string{"clone3": "ENOSYS", "service": "ok", "start a program": "EACCES"}
			for _, r := range sandbox.RefusedCalls {
				if needs(f, r.Group) || r.Deadly && !f.Foreign {
					continue
				}
				for _, c := range r.Calls {
					calls, want[c] = append(calls, numbered(c)), "EPERM"
				}
				if r.Group == sandbox.GroupPrograms {
					calls, want["clone"] = append(calls, numbered("clone")), "EPERM"
				}
			}
			if want["passwd"] = "ok"; !p.Confine.AnyFile {
				want["passwd"] = "EACCES"
			}
			if p.Confine.AnyProgram {
				delete(want, "start a program") // it became one
			}
			for _, s := range []string{"unix", "tcp", "udp", "route", "audit", "vsock", "alg"} {
				want["socket "+s] = "EPERM"
				if slices.ContainsFunc(f.Sockets, func(k sandbox.Kind) bool { return k.Name == s }) {
					want["socket "+s] = "ok"
				}
			}
			if want["socket unix"] != "ok" {
				want["service"] = "listen" // has no door
			}
			got, end := try(t, file, p, calls...)
			if end != nil {
				t.Fatalf("%v after %v", end, got)
			}
			if want["service"] == "listen" && strings.Contains(got["service"], "operation not permitted") {
				got["service"] = "listen"
			}
			for what, result := range want {
				if got[what] != result {
					t.Errorf("%s: %q, want %q", what, got[what], result)
				}
			}
			if len(got) != len(want) {
				t.Errorf("it told %v", got)
			}
		})
	}
}

// TestADeadlyCallEndsTheProcess makes one call of each deadly group as hgs, and one call as each other process of our own code; for all
// calls as all processes see TestEveryRefusedCallIsRefusedToEveryProcess.
func TestADeadlyCallEndsTheProcess(t *testing.T) {
	file := builtWitness(t)
	for _, p := range filtered() {
		f := p.Confine.Filter
		if f.Foreign {
			continue
		}
		t.Run(p.Name, func(t *testing.T) {
			for _, r := range sandbox.RefusedCalls {
				if !r.Deadly || needs(f, r.Group) || p.Name != rpc.HGS && r.Group != sandbox.GroupRings {
					continue
				}
				if _, end := try(t, file, p, numbered(r.Calls[0])); endedBy(end) != unix.SIGSYS {
					t.Errorf("%s: %v", r.Calls[0], end)
				}
			}
		})
	}
}

func TestCallsByTheTablesOfOtherProcessorsEndTheProcess(t *testing.T) {
	file := builtWitness(t)
	for _, p := range []sandbox.Process{sandbox.HSMDaemonProcess, sandbox.Table[0], sandbox.Table[1]} {
		if _, end := try(t, file, p, fmt.Sprintf("x32=%d", 0x40000000|unix.SYS_GETPID)); endedBy(end) != unix.SIGSYS {
			t.Errorf("%s: x32: %v", p.Name, end)
		}
		// A kernel built without i386 has no such way in: then it is a fault.
		if _, end := try(t, file, p, "int80="); endedBy(end) != unix.SIGSYS && endedBy(end) != unix.SIGSEGV {
			t.Errorf("%s: i386: %v", p.Name, end)
		}
	}
}

// TestAProgramThatNarrowsItselfComputesAndNothingElse is the worker of software keys, which starts as what hsm is.
func TestAProgramThatNarrowsItselfComputesAndNothingElse(t *testing.T) {
	hsm, _ := sandbox.Find(rpc.HSM)
	l := sandbox.LaunchOf(hsm)
	l.Program, l.Argv0, l.Args, l.OOMScore, l.UID, l.GID = builtWitness(t), "", []string{"narrow"}, nil, nil, nil
	cmd, err := sandbox.Command(l, nil)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if end := cmd.Run(); endedBy(end) != unix.SIGSYS {
		t.Errorf("a deadly call: %v", end)
	}
	want := "narrow:\tok\n"
	for i := range 8 {
		want += fmt.Sprintf("open %d:\tEPERM\n", i)
	}
	want += "socket:\tEPERM\nconnect:\tEPERM\nstart a program:\tEPERM\nfork:\tEPERM\nsign:\tok\n"
	if out.String() != want {
		t.Errorf("it told %s", out.String())
	}
}
