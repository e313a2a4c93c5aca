package main

import (
	"crypto/rand"
	"crypto/x509"
	"flag"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"guardhouse/appliance/health"
	"guardhouse/appliance/hgsa"
	"guardhouse/appliance/policy"
)

var update = flag.Bool("update", false, "rewrite README's table of statuses and policies")

// showNow is what a host shows after hostsim status, which attests.
func showNow(t *testing.T, o *options) (state, sub string, todo []string) {
	t.Helper()
	o.facts = map[string]any{}
	if err := status(o); err != nil {
		t.Fatal(err)
	}
	todo, _ = o.facts["Remedies"].([]string)
	return fmt.Sprint(o.facts["AttestationStatus"]), fmt.Sprint(o.facts["AttestationSubstatus"]), todo
}

// TestEveryStatusIsReachedByARealExchange drives a TPM against two nodes of the attestation service over HTTP; nothing but the host's own
// states (no address, nothing tried, service or TPM gone) is reached without an answer of theirs.
func TestEveryStatusIsReachedByARealExchange(t *testing.T) {
	s := startService(t)
	tpm, second := startTPM(t), startTPM(t)
	o := s.host(t, tpm, true)
	mode := func(m policy.Mode) {
		s.edit(func(st *policy.State) { v := *st.Service; v.Mode = m; st.Service = &v })
	}
	revoke := func(id string, revoked bool) {
		s.edit(func(st *policy.State) { h := st.Hosts[id]; h.Revoked = revoked; st.Hosts[id] = h })
	}
	gone, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody := "http://" + gone.Addr().String() + "/Attestation"
	gone.Close()
	// An older attestation signer, for a service whose clock is nine hours behind.
	now := time.Now()
	old, err := health.NewSignerCertificate(rand.Reader, health.Between(now.Add(-20*time.Hour), now.Add(-20*time.Hour+time.Second), true), "", health.DefaultSignerLife, s.signer)
	if err != nil {
		t.Fatal(err)
	}
	var id string
	reached := map[clientStatus]bool{}
	for _, c := range []struct {
		name    string
		prepare func()
		undo    func()
		want    clientStatus
		says    string // among the remedies
	}{
		{"no address", func() { o.url = "" }, func() { o.url = s.url }, notConfigured, "Set-HgsClientConfiguration"},
		{"never tried", func() { o.stored = true }, func() { o.stored = false }, statusUnknown, "Install-WindowsFeature HostGuardian -Restart"},
		{"nothing to attest with", func() { mode(policy.ModeHostKey) }, func() { mode(policy.ModeTPM) }, statusUnknown, "Set-HgsClientHostKey"},
		{"not registered", func() {}, func() { id = s.register(t, o, policy.Version2) }, unauthorizedHost, "host pending"},
		{"registered", func() {}, nil, passed, "nothing"},
		{"the last outcome", func() { o.stored = true }, func() { o.stored = false }, passed, "nothing"},
		{"revoked", func() { revoke(id, true) }, func() { revoke(id, false) }, unauthorizedHost, "revoked"},
		{"its clock is ahead", func() {
			s.edit(func(st *policy.State) {
				k := st.Keys["signer"]
				k.Certificate = old
				st.Keys["signer"] = k
				s.offset = -9 * time.Hour
			})
		}, func() { s.edit(func(*policy.State) { s.offset = 0 }) }, expired, "w32tm"},
		{"service gone", func() { o.url = nobody }, func() { o.url = s.url }, transientError, "Test-NetConnection"},
		{"service without a signer", func() { s.edit(func(st *policy.State) { st.Keys = map[policy.KeyRef]policy.Key{} }) }, nil, transientError, "on the node `status`"},
		{"another TPM", func() { o.tpm, o.misbehave = second, "other-ek" }, func() { o.tpm, o.misbehave = tpm, "" }, tpmError, "Get-Tpm"},
		{"TPM gone", func() { o.tpm = "swtpm:" + gone.Addr().String() }, func() { o.tpm = tpm }, tpmError, "Get-Tpm"},
		{"Secure Boot off", func() { o.misbehave = "secure-boot" }, func() { o.misbehave = "" }, insecureHost, "switch Secure Boot on"},
	} {
		c.prepare()
		state, sub, todo := showNow(t, o)
		if state != c.want.String() || (sub == noInformation) != (c.want != insecureHost) || !strings.Contains(strings.Join(todo, "\n"), c.says) {
			t.Errorf("%s: %s %s %q, want %s and %q (%v)", c.name, state, sub, todo, c.want, c.says, o.facts["Error"])
		}
		reached[c.want] = true
		if c.undo != nil {
			c.undo()
		}
	}
	for _, st := range statuses {
		if !reached[st.code] {
			t.Errorf("%s (%d) is reached by nothing", st.name, st.code)
		}
	}
}

// TestEverySubStatusIsReachedByARealExchange: the host boots so that one policy fails, attests over HTTP, and shows the sub-status with
// the command that cures it.
func TestEverySubStatusIsReachedByARealExchange(t *testing.T) {
	s := startService(t)
	o := s.host(t, startTPM(t), true)
	s.register(t, o, policy.Version2)
	reached := map[string]bool{}
	for _, c := range []struct{ misbehave, want, says string }{
		{"", noInformation, "nothing"},
		{"secure-boot", "SecureBoot", "Microsoft's template"},
		{"secure-boot-settings", "SecureBootSettings", "baseline add NAME --host HOST"},
		{"debug", "DebugMode", "bcdedit /debug off"},
		{"ci-policy", "CodeIntegrityPolicy", "ci-policy add NAME --host HOST"},
		{"hvci", "HypervisorEnforcedCodeIntegrityPolicy", "memory integrity"},
		{"resumed", "FullBoot", "shutdown /r /t 0"},
		{"vsm", "VirtualSecureMode", "Install-WindowsFeature HostGuardian -Restart"},
		{"no-idk", "VirtualSecureMode", "Install-WindowsFeature HostGuardian -Restart"},
		{"iommu", "Iommu", "RequirePlatformSecurityFeatures"},
		{"pagefile", "PagefileEncryption", "fsutil behavior set encryptpagingfile 1"},
		{"bitlocker", "BitLocker", "Enable-BitLocker"},
		{"hibernation", "HibernationEnabled", "powercfg /h off"},
		{"dumps", "DumpsEnabled", "CrashDumpEnabled"},
		{"dump-encryption", "DumpEncryption", "DumpEncryptionEnabled"},
		{"dump-key", "DumpEncryptionKey", "dump-key add NAME --host HOST"},
		{"log-edited", "TcgLogVerification", "PXE boot program"},
		{"no-dump-events", "DumpsEnabled, DumpEncryption", "update it first"},
	} {
		s.edit(func(st *policy.State) {
			s.uptime += time.Minute
			st.PolicySets = map[string]policy.PolicySet{policy.FabricWide: {Enabled: map[string]bool{policy.HgsBitLockerEnabled: c.misbehave == "bitlocker",
				policy.HgsNoDumps: c.misbehave != "dump-encryption" && c.misbehave != "dump-key"}}}
		})
		o.misbehave = c.misbehave
		state, sub, todo := showNow(t, o)
		want := insecureHost
		if c.want == noInformation {
			want = passed
		}
		if state != want.String() || sub != c.want || !strings.Contains(strings.Join(todo, "\n"), c.says) || len(todo) != 1+strings.Count(c.want, ",") {
			t.Errorf("%s: %s %s %q, want %s %s and %q", c.misbehave, state, sub, todo, want, c.want, c.says)
		}
		reached[c.want] = true
		if o.misbehave != "" { // the boot that failed is looked at again as it was
			o.misbehave, o.stored = "", true
			if _, again, _ := showNow(t, o); again != c.want {
				t.Errorf("%s: the last outcome is shown as %s", c.misbehave, again)
			}
			o.stored = false
		}
	}
	for _, a := range subStatuses {
		if !reached[a.name] {
			t.Errorf("%s is reached by nothing", a.name)
		}
	}
	for _, b := range policy.Builtins {
		if !slices.ContainsFunc(subStatuses, func(a advice) bool { return a.name == b.SubStatus }) {
			t.Errorf("%s: the sub-status %s has no remedy", b.Name, b.SubStatus)
		}
	}
}

func TestHostKeyStatusIsThatOfAnExchangeToo(t *testing.T) {
	s := startService(t)
	s.edit(func(st *policy.State) { v := *st.Service; v.Mode = policy.ModeHostKey; st.Service = &v })
	o := &options{facts: map[string]any{}, json: true, dir: t.TempDir(), url: s.url, name: "host1", result: 1}
	if err := hostKeyNew(o); err != nil {
		t.Fatal(err)
	}
	if state, _, todo := showNow(t, o); state != "UnauthorizedHost" || !strings.Contains(todo[0], "host add") {
		t.Error(state, todo)
	}
	key, err := o.readKey(fileHostKey)
	if err != nil {
		t.Fatal(err)
	}
	id, err := hgsa.HostID(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	spki, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	s.edit(func(st *policy.State) {
		st.Hosts[id] = policy.Host{ID: id, Name: "host1", Class: "default", HostKey: spki}
	})
	if state, sub, _ := showNow(t, o); state != "Passed" || sub != noInformation {
		t.Error(state, sub, o.facts["Error"])
	}
}

const tableBegin, tableEnd = "<!-- statuses: written by go test ./cmd/hostsim -run README -update -->\n", "<!-- end of statuses -->\n"

// readmeTable is README's table, made of what the programs themselves use.
func readmeTable() string {
	var b strings.Builder
	b.WriteString("| AttestationStatus | Means | What to do |\n|---|---|---|\n")
	for _, st := range statuses {
		fmt.Fprintf(&b, "| %d %s | %s | %s |\n", st.code, st.name, st.means, st.remedy)
	}
	b.WriteString("\n| Policy of TPM mode | Default | Sub-status on the host | Event | What to do on the host |\n|---|---|---|---|---|\n")
	told := map[string]bool{}
	for _, p := range policy.Builtins {
		is := map[bool]string{true: "on", false: "off"}[p.Default]
		if p.Locked {
			is = "locked"
		}
		events := make([]string, len(p.Events))
		for i, e := range p.Events {
			events[i] = fmt.Sprint(e)
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s |\n", p.Name, is, p.SubStatus, strings.Join(events, ", "), subRemedy(p.SubStatus, told))
	}
	for _, a := range subStatuses {
		if !told[a.name] {
			fmt.Fprintf(&b, "| (%s) | always | %s | | %s |\n", a.means, a.name, a.remedy)
		}
	}
	return b.String()
}

func subRemedy(name string, told map[string]bool) string {
	if told[name] {
		return "the same"
	}
	told[name] = true
	for _, a := range subStatuses {
		if a.name == name {
			return a.remedy
		}
	}
	return ""
}

func TestREADMEsTableOfStatusesAndPoliciesIsTrue(t *testing.T) {
	const path = "../../README.md"
	readme, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	head, rest, found := strings.Cut(string(readme), tableBegin)
	table, tail, ended := strings.Cut(rest, tableEnd)
	if !found || !ended {
		t.Fatalf("README.md lacks %q or %q", tableBegin, tableEnd)
	}
	want := readmeTable()
	if *update {
		if err := os.WriteFile(path, []byte(head+tableBegin+want+tableEnd+tail), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if table != want {
		t.Errorf("README.md differs from the programs: go test ./cmd/hostsim -run README -update. It should say\n%s", want)
	}
}
