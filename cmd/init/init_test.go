package main

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"guardhouse/appliance/disk"
	"guardhouse/appliance/network"
	"guardhouse/appliance/policy"
	"guardhouse/appliance/quote"
	"guardhouse/appliance/rpc"
	"guardhouse/appliance/sandbox"
	"guardhouse/appliance/supervise"
)

func TestMain(m *testing.M) {
	sandbox.Shim()
	os.Exit(m.Run())
}

// testNode is a node whose services are listed but never start.
func testNode(t *testing.T) *node {
	t.Helper()
	dir, err := os.MkdirTemp("", "gh")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	n := &node{log: supervise.NewLog(rpc.BootTime), reaper: supervise.NewReaper(), power: make(chan powerRequest, 1), drivers: make(chan struct{}), unsealed: make(chan struct{}),
		problems: map[string]policy.Problem{}, sockets: map[string]*socketSet{}, damage: newDamage(), boot: "boot", release: sandbox.ReleaseInfo{Version: "1"}}
	n.super, err = supervise.New(supervise.Options{NotifyPath: dir + "/n", Reaper: n.reaper, Log: n.log, Timing: supervise.DefaultTiming})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.super.Stop(t.Context()) })
	n.net, err = network.New(network.Options{Resolv: dir + "/resolv.conf", Sysctl: dir, Kinds: []string{"none"}, Logf: t.Logf})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.net.Close)
	for _, p := range sandbox.Table {
		if err := n.super.Add(supervise.Service{Name: p.Name, Hold: "held"}); err != nil {
			t.Fatal(err)
		}
	}
	return n
}

func TestSaysInFiveLinesWhatKeepsANodeFromSetup(t *testing.T) {
	n := testNode(t)
	if p := n.obstacle(time.Second); p.Kind != "" {
		t.Errorf("speaks too early: %+v", p)
	}
	if s := n.fiveLines(n.obstacle(2 * heraldPatience)); !strings.Contains(s, "[service-ledger]") || !strings.Contains(s, "do:") {
		t.Errorf("%q", s)
	}
	n.diskFailed(&disk.Error{Kind: disk.KindForeign, What: "holds \x1b[2J\nsomething " + strings.Repeat("long ", 200), Remedy: "attach another"})
	s := n.fiveLines(n.obstacle(time.Second))
	if !strings.Contains(s, "["+disk.KindForeign+"]") || strings.Count(s, "\n") > 4 || strings.Contains(s, "\x1b") || !strings.HasSuffix(s, "attach another") {
		t.Errorf("%q", s)
	}
	for line := range strings.Lines(s) {
		if len([]rune(line)) > heraldWidth+20 {
			t.Errorf("a line of %d characters", len(line))
		}
	}
}

func TestEvaluationImageSaysSoInEveryLineOfInit(t *testing.T) {
	n := testNode(t)
	for evaluation, want := range map[bool]string{true: "guardhouse EVALUATION can't", false: "guardhouse can't"} {
		n.release.Evaluation = evaluation
		if s := n.fiveLines(n.obstacle(2 * heraldPatience)); !strings.HasPrefix(s, want) {
			t.Errorf("evaluation %v: %q", evaluation, s)
		}
		if s := title(n.release); strings.Contains(s, "EVALUATION") != evaluation {
			t.Errorf("evaluation %v: %q", evaluation, s)
		}
	}
}

func TestDiskProblemReplacesTheOneBefore(t *testing.T) {
	n := testNode(t)
	n.diskFailed(&disk.Error{Kind: disk.KindNone, What: "none", Remedy: "attach"})
	n.diskFailed(&disk.Error{Kind: disk.KindAmbiguous, What: "two", Remedy: "leave one"})
	r := n.status()
	if len(r.Problems) != 1 || r.Problems[0].Kind != disk.KindAmbiguous || r.Disk != "two" {
		t.Errorf("%+v", r)
	}
	if len(r.Services) != len(sandbox.Table) || r.Version != "1" || r.Boot != "boot" {
		t.Errorf("%+v", r)
	}
}

func TestNetworkIsStoredWholeAndPrivate(t *testing.T) {
	file := filepath.Join(t.TempDir(), "network.json")
	for _, name := range []string{"front", "other"} {
		v := policy.Network{Interfaces: []policy.Interface{{Name: name, MAC: []string{"any"}, DHCP: true, Roles: []policy.NetworkRole{policy.NetService}}}}
		if err := storeNetwork(file, v); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(file)
		var got policy.Network
		if err != nil || json.Unmarshal(b, &got) != nil || !reflect.DeepEqual(got, v) {
			t.Errorf("%v: %s", err, b)
		}
	}
	if st, _ := os.Stat(file); st.Mode().Perm() != 0o600 {
		t.Errorf("mode %v", st.Mode())
	}
	if _, err := os.Stat(file + ".new"); err == nil {
		t.Error("a temporary file stays")
	}
}

func TestNetworkIsRefusedWithItsField(t *testing.T) {
	n := testNode(t)
	err := n.setNetwork(t.Context(), policy.Network{Resolvers: []string{"x"}})
	if err == nil || !strings.Contains(err.Error(), "network.resolvers[0]") {
		t.Error(err)
	}
	if err := n.setNetwork(t.Context(), policy.Network{}); err == nil || !strings.Contains(err.Error(), "data disk is not open") {
		t.Error(err)
	}
}

func TestPowerButtonIsAPressOfTheRightKey(t *testing.T) {
	event := func(kind, code uint16, value uint32) []byte {
		b := make([]byte, eventSize)
		binary.NativeEndian.PutUint16(b[16:], kind)
		binary.NativeEndian.PutUint16(b[18:], code)
		binary.NativeEndian.PutUint32(b[20:], value)
		return b
	}
	for name, c := range map[string]struct {
		events []byte
		want   bool
	}{
		"press":        {event(evKey, keyPower, 1), true},
		"after others": {append(event(0, 0, 0), event(evKey, keyPower, 1)...), true},
		"release":      {event(evKey, keyPower, 0), false},
		"other key":    {event(evKey, 30, 1), false},
		"cut off":      {event(evKey, keyPower, 1)[:20], false},
		"nothing":      {nil, false},
	} {
		if got := powerPressed(c.events); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func TestUnknownSysctlIsSkippedAndARefusedOneReported(t *testing.T) {
	root := t.TempDir()
	os.MkdirAll(root+"/kernel/dir", 0o755)
	os.WriteFile(root+"/kernel/ok", []byte("1"), 0o644)
	failed := setSysctls(root, []sysctl{{"kernel.ok", "2", "y"}, {"kernel.absent", "1", "y"}, {"kernel.dir", "1", "y"}})
	if b, _ := os.ReadFile(root + "/kernel/ok"); len(failed) != 1 || !strings.HasPrefix(failed[0], "kernel.dir = 1") || string(b) != "2" {
		t.Errorf("%v, %q", failed, b)
	}
}

func TestEverySettingHasAReason(t *testing.T) {
	seen := map[string]bool{}
	for _, s := range append(sysctls, sealModules) {
		if s.why == "" || s.value == "" || seen[s.key] {
			t.Errorf("%+v", s)
		}
		seen[s.key] = true
	}
}

func TestOnlyTheFirstPowerRequestCounts(t *testing.T) {
	n := testNode(t)
	n.ask(powerRequest{powerOff, "first"})
	n.ask(powerRequest{powerReboot, "second"})
	if r := <-n.power; r.why != "first" {
		t.Errorf("%+v", r)
	}
}

func TestBootFactsAreBoundedAndTheirAbsenceIsTold(t *testing.T) {
	n := testNode(t)
	dir := t.TempDir()
	small, large := filepath.Join(dir, "small"), filepath.Join(dir, "large")
	if err := errors.Join(os.WriteFile(small, []byte("log"), 0o600), os.WriteFile(large, make([]byte, quote.MaxLog+1), 0o600)); err != nil {
		t.Fatal(err)
	}
	if r := n.bootFacts(small, small); string(r.Log) != "log" || string(r.Kernel) != "log" || r.Problem != "" || r.Opened != nil {
		t.Errorf("%+v", r)
	}
	for _, bad := range []string{large, filepath.Join(dir, "none")} {
		if r := n.bootFacts(bad, bad); len(r.Log)+len(r.Kernel) > 0 || r.Problem == "" {
			t.Errorf("%s: %d bytes, %q", bad, len(r.Log), r.Problem)
		}
	}
}
