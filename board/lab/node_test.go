//go:build qemu

package lab

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

// noDisk is what OVMF says, after everything else failed, on a machine with nothing to boot.
var noDisk = regexp.MustCompile(`No bootable option|BdsDxe: failed`)

// diskIO makes QEMU itself use the data disk, as a guest would, and returns what it said (it says it in its log).
func diskIO(t *testing.T, n *Node, command string) string {
	t.Helper()
	var out string
	args := map[string]string{"command-line": fmt.Sprintf("qemu-io -d /machine/peripheral/disk-data/virtio-backend %q", command)}
	if err := n.qmp.call(timeout(t, 10*time.Second), "human-monitor-command", args, &out); err != nil {
		t.Fatal(err)
	}
	if strings.HasPrefix(out, "Error") {
		t.Fatalf("%s: %s", command, out)
	}
	return tail(filepath.Join(n.Dir, "qemu.log"))
}

func TestNodeKeepsItsStateAndLosesUnflushedWrites(t *testing.T) {
	l := testLab(t)
	tok, err := l.NewToken(t.Context(), "guardhouse")
	if err != nil {
		t.Fatal(err)
	}
	opts := NodeOptions{Name: "a", Cluster: true, Token: tok, DataMB: 16, RTC: time.Date(2030, 6, 1, 12, 0, 0, 0, time.UTC)}
	ctx := timeout(t, 60*time.Second)
	n, err := l.StartNode(ctx, opts)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.StartNode(ctx, opts); err == nil {
		t.Error("a running node was started again")
	}
	for _, p := range []int{22, 80, 443} {
		if !strings.HasPrefix(n.Addr(p), "127.0.0.1:") {
			t.Errorf("port %d is at %q", p, n.Addr(p))
		}
	}
	if _, err := n.Serial.Expect(ctx, noDisk); err != nil {
		t.Fatal(err)
	}
	t.Logf("firmware gave up after %v", time.Since(n.Started).Round(100*time.Millisecond))
	for _, up := range []bool{false, true} {
		for _, nic := range []NIC{ServiceNIC, ClusterNIC} {
			if err := n.SetLink(ctx, nic, up); err != nil {
				t.Error(err)
			}
		}
	}
	for _, c := range []string{"write -P 0x5a 4096 8192", "flush", "write -f -P 0x11 1M 512", "write -P 0x22 2M 64k", "read -P 0x22 2M 64k"} {
		if out := diskIO(t, n, c); strings.Contains(strings.ToLower(out), "fail") {
			t.Errorf("%s: %s", c, out)
		}
	}
	if s := n.Disk.Stats(); s.FUA != 1 || s.Flushes == 0 || s.HeldWrites == 0 {
		t.Errorf("disk: %+v", s)
	}
	r := n.PowerCut(1)
	if r.Held == 0 || r.Dropped+r.Torn == 0 {
		t.Errorf("cut: %+v", r)
	}
	select {
	case <-n.Done():
	default:
		t.Error("on after a power cut")
	}

	opts.Image = filepath.Join(n.Dir, "missing.img")
	if _, err := l.StartNode(ctx, opts); err == nil {
		t.Error("started from an image that is not there")
	}
	opts.Image = ""
	if n, err = l.StartNode(ctx, opts); err != nil {
		t.Fatal(err)
	}
	for _, c := range []string{"read -P 0x5a 4096 8192", "read -P 0x11 1M 512"} {
		if out := diskIO(t, n, c); strings.Contains(strings.ToLower(out), "fail") {
			t.Errorf("after the cut: %s: %s", c, out)
		}
	}
	if out := diskIO(t, n, "read -P 0x22 2M 64k"); !strings.Contains(out, "fail") {
		t.Errorf("an unflushed write is whole after a cut with losses: %s", out)
	}
	n.Kill()
	if _, err := os.Stat(n.Serial.LogPath() + ".1"); err != nil {
		t.Errorf("the first boot's log was not kept: %v", err)
	}
	if st, err := os.Stat(filepath.Join(n.Dir, "tpm", "tpm2-00.permall")); err != nil || st.Size() == 0 {
		t.Errorf("the TPM's state was not kept: %v", err)
	}
}

func TestFailureNamesTheLog(t *testing.T) {
	l := testLab(t)
	_, err := l.StartNode(t.Context(), NodeOptions{Name: "a", ExtraArgs: []string{"-device", "no-such-device"}})
	if err == nil || !strings.Contains(err.Error(), "no-such-device") || !strings.Contains(err.Error(), filepath.Join(l.Dir, "nodes/a/qemu.log")) {
		t.Errorf("got: %v", err)
	}
	if _, err := l.StartNode(t.Context(), NodeOptions{Name: "../a"}); err == nil {
		t.Error("accepted a path as a name")
	}
}

func TestProbeRunsARealGuest(t *testing.T) {
	dir := t.TempDir()
	if err := runsGuest(t.Context(), dir, "tcg"); err != nil {
		t.Error(err)
	}
	if runsGuest(t.Context(), dir, "no-such-accelerator") == nil {
		t.Error("a guest ran without an accelerator")
	}
	start := time.Now()
	first := ProbeAccel(t.Context(), dir)
	t.Logf("%s after %v", first, time.Since(start).Round(time.Millisecond))
	start = time.Now()
	if again := ProbeAccel(t.Context(), dir); again != first || time.Since(start) > time.Second {
		t.Errorf("second probe: %s after %v", again, time.Since(start))
	}
}

func TestNoProcessOutlivesItsLab(t *testing.T) {
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGKILL} {
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), holdEnv+"="+t.TempDir(), "LAB_TEST_CACHE="+cacheDir(t))
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		line, _ := bufio.NewReader(out).ReadString('\n')
		var pids []int
		for _, f := range strings.Fields(line) {
			var pid int
			if _, err := fmt.Sscan(f, &pid); err == nil {
				pids = append(pids, pid)
			}
		}
		for end := time.Now().Add(200 * time.Millisecond); time.Now().Before(end) && len(pids) > 0; {
			if _, err := os.Stat(fmt.Sprintf("/proc/%d", pids[0])); err != nil {
				t.Fatalf("%v: a child died before its lab", sig)
			}
			time.Sleep(20 * time.Millisecond)
		}
		_ = cmd.Process.Signal(sig)
		_ = cmd.Wait()
		if len(pids) != 4 {
			t.Fatalf("%v: want qemu, swtpm, chronyd and p11-kit, got %s", sig, line)
		}
		for end := time.Now().Add(3 * time.Second); ; time.Sleep(20 * time.Millisecond) {
			left := alive(pids)
			if len(left) == 0 {
				break
			}
			if time.Now().After(end) {
				for _, p := range left {
					_ = syscall.Kill(p, syscall.SIGKILL)
				}
				t.Fatalf("%v: still there after 3 s: %v", sig, left)
			}
		}
	}
}

// alive returns the processes that exist and are no zombies.
func alive(pids []int) []int {
	var out []int
	for _, pid := range pids {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err == nil && !bytes.Contains(b, []byte(") Z ")) && !bytes.Contains(b, []byte(") X ")) {
			out = append(out, pid)
		}
	}
	return out
}

func TestFreshForgetsAllButTheCache(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"nodes/a/data.img", "cache/x"} {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	l, err := New(t.Context(), Options{Dir: dir, Fresh: true})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if _, err := os.Stat(filepath.Join(dir, "nodes")); err == nil {
		t.Error("a node's state is still there")
	}
	if _, err := os.Stat(filepath.Join(dir, "cache/x")); err != nil {
		t.Error("the cache is gone")
	}
}

func TestEndOfContextKillsEverything(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	l, err := New(ctx, Options{Dir: t.TempDir(), Accel: "tcg"})
	if err != nil {
		t.Fatal(err)
	}
	n, err := l.StartNode(ctx, NodeOptions{Name: "a", DataMB: -1})
	if err != nil {
		t.Fatal(err)
	}
	pid := n.PID()
	if _, err := New(t.Context(), Options{Dir: l.Dir}); !errors.Is(err, ErrInUse) {
		t.Errorf("a second lab in the folder: %v", err)
	}
	cancel()
	<-l.done
	if len(alive([]int{pid})) != 0 {
		t.Error("QEMU lives on")
	}
	if _, err := l.StartNode(t.Context(), NodeOptions{Name: "b"}); err == nil {
		t.Error("a closed lab started a node")
	}
}

// (Here because chrony is fetched over the network, as the other tests of this file need more than Go.)
func TestTimeServersKeepTheirOffsets(t *testing.T) {
	before, err := ListeningSockets()
	if err != nil {
		t.Fatal(err)
	}
	l := testLab(t)
	if _, err := l.TimeServers(t.Context(), 2); err != nil {
		t.Fatal(err)
	}
	for _, off := range []time.Duration{30 * time.Second, -2 * time.Second} {
		if _, err := l.TimeServer(t.Context(), off); err != nil {
			t.Fatal(err)
		}
	}
	during, _ := ListeningSockets()
	ours := 0
	for _, s := range NewSockets(before, during) {
		if s.Proto != "udp" {
			continue
		}
		if !s.Addr.Addr().IsLoopback() {
			t.Errorf("listens beyond loopback: %v", s)
		}
		ours++
	}
	if ours < 4 {
		t.Errorf("%d sockets seen, want the 4 servers", ours)
	}
}
