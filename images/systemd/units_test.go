package systemd

import (
	"fmt"
	"io/fs"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"guardhouse/appliance/sandbox"
)

// unit reads a unit file: "Key" -> values in order.
func unit(t *testing.T, name string) map[string][]string {
	t.Helper()
	b, err := fs.ReadFile(Files, name)
	if err != nil {
		t.Fatal(err)
	}
	m := map[string][]string{}
	for line := range strings.Lines(string(b)) {
		if k, v, ok := strings.Cut(strings.TrimSpace(line), "="); ok && !strings.HasPrefix(k, "#") {
			m[k] = append(m[k], v)
		}
	}
	return m
}

var capNames = map[sandbox.Capability]string{sandbox.CapSysTime: "CAP_SYS_TIME"}

func TestUnitsGiveNoMoreThanTheTable(t *testing.T) {
	users, _ := fs.ReadFile(Files, "guardhouse.sysusers")
	folders, _ := fs.ReadFile(Files, "guardhouse.tmpfiles")
	for _, p := range sandbox.Table {
		u := unit(t, "guardhouse-"+p.Name+".service")
		var caps []string
		for _, c := range p.Capabilities {
			caps = append(caps, capNames[c])
		}
		user := "guardhouse-" + p.Name
		for key, want := range map[string]string{
			"User": user, "Group": user, "CapabilityBoundingSet": strings.Join(caps, " "), "AmbientCapabilities": strings.Join(caps, " "),
			"NoNewPrivileges": "yes", "LimitCORE": "0", "LimitNOFILE": fmt.Sprint(p.Limits.Files), "LimitNPROC": fmt.Sprint(p.Limits.Tasks), "MemoryMax": fmt.Sprintf("%dM", p.Limits.Data>>20),
			"WatchdogSec": fmt.Sprint(int(p.Watchdog.Seconds())), "Type": "notify", "Restart": "always", "TimeoutStopSec": "3",
		} {
			if !slices.Equal(u[key], []string{want}) {
				t.Errorf("%s: %s=%q, want %q", p.Name, key, u[key], want)
			}
		}
		for key, want := range callLimits(p) {
			if !slices.Equal(u[key], want) {
				t.Errorf("%s: %s=%q, want %q", p.Name, key, u[key], want)
			}
		}
		if !strings.HasPrefix(u["ExecStart"][0]+" ", "/usr/lib/guardhouse/"+p.Name+" ") {
			t.Errorf("%s: ExecStart=%q", p.Name, u["ExecStart"])
		}
		if !strings.Contains(string(users), fmt.Sprintf("u %s %d ", user, p.UID)) {
			t.Errorf("%s has another uid than %d", user, p.UID)
		}
		if !strings.Contains(string(folders), fmt.Sprintf("d /run/guardhouse/%s.d 0755 %s %s", p.Name, user, user)) {
			t.Errorf("%s has no socket folder", p.Name)
		}
	}
}

// families are the address families of sandbox's kinds of sockets.
var families = map[string]string{"unix": "AF_UNIX", "tcp": "AF_INET AF_INET6", "udp": "AF_INET AF_INET6", "route": "AF_NETLINK"}

// callLimits is how systemd says what the row's Confinement says: the same groups of calls, with the same outcome. It has no words for a
// kind of socket below its family, for processes that are no threads of a known program, and for calls newer than a kernel.
func callLimits(p sandbox.Process) map[string][]string {
	f := p.Confine.Filter
	needs := func(g sandbox.Group) bool {
		return slices.ContainsFunc(f.Needs, func(n sandbox.Need) bool { return n.Group == g })
	}
	var refused, may []string
	for _, r := range sandbox.RefusedCalls {
		if needs(r.Group) {
			continue
		}
		list := strings.Join(r.Calls, " ")
		if r.Deadly && !f.Foreign {
			list = strings.Join(r.Calls, ":kill ") + ":kill"
		}
		refused = append(refused, "~"+list)
	}
	for _, k := range f.Sockets {
		for family := range strings.FieldsSeq(families[k.Name]) {
			if !slices.Contains(may, family) {
				may = append(may, family)
			}
		}
	}
	limits := map[string][]string{"SystemCallArchitectures": {"native"}, "SystemCallErrorNumber": {"EPERM"}, "RestrictNamespaces": {"yes"},
		"SystemCallFilter": append(refused, "~clone3:ENOSYS"), "RestrictAddressFamilies": {strings.Join(may, " ")},
		"MemoryDenyWriteExecute": {"yes"}, "NoExecPaths": {"/"}, "ExecPaths": {"/usr/lib/guardhouse/" + p.Name}}
	if needs(sandbox.GroupCode) {
		limits["MemoryDenyWriteExecute"] = nil
	}
	if p.Confine.AnyProgram {
		limits["NoExecPaths"], limits["ExecPaths"] = nil, nil
	}
	return limits
}

func TestUnitsListenWhereTheTableDoes(t *testing.T) {
	names, err := fs.Glob(Files, "*.socket")
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]bool{}
	for _, name := range names {
		u := unit(t, name)
		got[u["Service"][0]+" "+u["FileDescriptorName"][0]+" "+u["ListenStream"][0]] = true
	}
	want := 0
	for _, p := range sandbox.Table {
		for _, s := range p.Sockets {
			want++
			if key := fmt.Sprintf("guardhouse-%s.service %s %d", p.Name, s.Name, s.Port); !got[key] {
				t.Errorf("no socket unit for %s", key)
			}
		}
	}
	if len(got) != want {
		t.Errorf("socket units %v", got)
	}
}

func TestSystemdAcceptsTheUnits(t *testing.T) {
	if _, err := exec.LookPath("systemd-analyze"); err != nil {
		t.Skip("systemd-analyze is not installed")
	}
	names, _ := fs.Glob(Files, "*.service")
	out, err := exec.Command("systemd-analyze", append([]string{"verify", "--man=no", "--generators=no"}, names...)...).CombinedOutput()
	for line := range strings.Lines(string(out)) {
		if strings.Contains(line, "guardhouse") && !strings.Contains(line, "is not executable") {
			t.Error(strings.TrimSpace(line))
		}
	}
	if err != nil && t.Failed() {
		t.Error(err)
	}
}
