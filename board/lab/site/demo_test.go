//go:build qemu

package site

import (
	"bufio"
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"guardhouse/board/lab"
)

// mostLines is how many lines one chapter of the demo may have.
const mostLines = 15

// TestDemo runs what `make demo CHAPTER=all` runs, and sees that building and showing leaves no daemon behind.
func TestDemo(t *testing.T) {
	before, err := lab.ListeningSockets()
	if err != nil {
		t.Fatal(err)
	}
	build := buildDir(t)
	demo := filepath.Join(build, "bin", "demo")
	compile(t, demo, "guardhouse/board/lab/demo")
	ctx, cancel := context.WithTimeout(t.Context(), 25*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, demo, "-build", build, "-chapter", "all")
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	out, err := cmd.CombinedOutput()
	t.Logf("\n%s", out)
	if err != nil {
		t.Fatal(err)
	}
	// The image is the first line of all; each chapter begins with its node's power-on.
	chapters := strings.Split(string(out), "ok  node up")
	if len(chapters) < 2 {
		t.Fatal("no node came up")
	}
	for i, text := range chapters[1:] {
		n := 1 + strings.Count(text, "] ok  ")
		if i == 0 {
			n += strings.Count(chapters[0], "] ok  ")
		}
		if n > mostLines {
			t.Errorf("chapter %d has %d lines, %d are allowed", i+1, n, mostLines)
		}
	}
	noNewSockets(t, before)
	for _, daemon := range []string{"chrony", "samba"} { // opencryptoki is the exception that deps.sh explains
		if out, _ := exec.Command("dpkg-query", "-W", "-f=${db:Status-Status}", daemon).Output(); string(out) == "installed" {
			t.Errorf("the package %s is installed; the lab must only unpack it", daemon)
		}
	}
}

// noNewSockets compares what listens with what listened before. Other tests of this machine may run beside this one: only sockets that
// stay count.
func noNewSockets(t *testing.T, before []lab.Socket) {
	t.Helper()
	eventually(t, 20*time.Second, func(context.Context) error {
		after, err := lab.ListeningSockets()
		if err != nil {
			return err
		}
		if left := ours(lab.NewSockets(before, after)); len(left) > 0 {
			return errLeft{left}
		}
		return nil
	})
}

type errLeft struct{ left []lab.Socket }

func (e errLeft) Error() string {
	var b bytes.Buffer
	for _, s := range e.left {
		b.WriteString(s.String() + "; ")
	}
	return "still listening: " + b.String()
}

// ours drops what other tests, which listen on ports that the kernel chose, may have opened meanwhile: a daemon has a low port or
// listens beyond loopback.
func ours(list []lab.Socket) (out []lab.Socket) {
	for _, s := range list {
		if !s.Addr.Addr().IsLoopback() || s.Addr.Port() < 32768 {
			out = append(out, s)
		}
	}
	return out
}

// TestInterruptLeavesNoProcess presses Ctrl-C while the node boots.
func TestInterruptLeavesNoProcess(t *testing.T) {
	build := buildDir(t)
	image(t, Attached)
	run := filepath.Join(build, "bin", "run")
	compile(t, run, "guardhouse/board/lab/run")
	cmd := exec.Command(run, "-build", build, "-node", "test-interrupt")
	typing, err := cmd.StdinPipe() // kept open: nobody types
	if err != nil {
		t.Fatal(err)
	}
	defer typing.Close()
	text, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Process.Kill()
	started := make(chan struct{})
	go func() {
		lines := bufio.NewScanner(text)
		for lines.Scan() {
			if strings.Contains(lines.Text(), "BdsDxe: starting") {
				close(started)
				break
			}
		}
		for lines.Scan() {
		}
	}()
	select {
	case <-started:
	case <-time.After(90 * time.Second):
		t.Fatal("the machine did not start")
	}
	children := descendants(t, cmd.Process.Pid)
	names := map[string]bool{}
	for _, name := range children {
		names[name] = true
	}
	for _, want := range []string{"qemu-system-x86_64", "swtpm", "chronyd"} {
		if !names[want] {
			t.Errorf("%s does not run: %v", want, children)
		}
	}
	if err := syscall.Kill(-cmd.Process.Pid, syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("after an interrupt: %v", err)
	}
	for pid, name := range children {
		if now := processName(pid); now == name {
			t.Errorf("%s (%d) outlives its lab", name, pid)
		}
	}
}

// descendants are the processes below root, by process id.
func descendants(t *testing.T, root int) map[int]string {
	t.Helper()
	all, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	parent := map[int]int{}
	stat := regexp.MustCompile(`(?s)^(\d+) \(.*\) \S (\d+) `)
	for _, name := range all {
		b, err := os.ReadFile(name)
		if err != nil {
			continue
		}
		if m := stat.FindSubmatch(b); m != nil {
			pid, _ := strconv.Atoi(string(m[1]))
			parent[pid], _ = strconv.Atoi(string(m[2]))
		}
	}
	out := map[int]string{}
	for pid := range parent {
		for up := parent[pid]; up > 1; up = parent[up] {
			if up == root {
				out[pid] = processName(pid)
				break
			}
		}
	}
	return out
}

// processName is the name of the process's program, "" where there is no such process.
func processName(pid int) string {
	exe, err := os.Readlink("/proc/" + strconv.Itoa(pid) + "/exe")
	if err != nil {
		return ""
	}
	return filepath.Base(exe)
}
