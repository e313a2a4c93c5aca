package verb_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"

	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
	"guardhouse/console/verb"
	"guardhouse/console/verb/verbtest"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// golden compares text with testdata/name.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(want) != got {
		t.Errorf("%s differs (run with -update and review); got:\n%s", path, got)
	}
}

func checkWidth(t *testing.T, what, text string) {
	t.Helper()
	for _, line := range strings.Split(text, "\n") {
		if n := utf8.RuneCountInString(line); n > verb.Width {
			t.Errorf("%s: %d columns: %s", what, n, line)
		}
	}
}

// call runs one command line as a session would.
func call(s *verb.Session, line, stdin string) (verb.Output, error) {
	words, err := verb.Split(line)
	if err != nil {
		return verb.Output{}, err
	}
	v, args, err := verb.Parse(words)
	if err != nil {
		return verb.Output{}, err
	}
	return verb.Run(context.Background(), v, s, args, []byte(stdin), nil)
}

func mustCall(t *testing.T, s *verb.Session, line, stdin string) string {
	t.Helper()
	out, err := call(s, line, stdin)
	if err != nil {
		t.Fatalf("%s: %v", line, err)
	}
	checkWidth(t, line, out.Text.String())
	if _, err := verb.JSON(out.Value); err != nil {
		t.Errorf("%s: %v", line, err)
	}
	return out.Text.String()
}

func TestEveryVerbIsDescribed(t *testing.T) {
	f := verbtest.Start(t, true)
	s := f.Session(policy.DoorSSH)
	var all strings.Builder
	seen := map[string]bool{}
	for _, v := range verb.All() {
		if seen[v.Name] {
			t.Errorf("%s stands twice in the table", v.Name)
		}
		seen[v.Name] = true
		if v.Help == "" || v.Example == "" || len(v.Doors) == 0 && !v.Waiting || v.Risk == "" || v.Run == nil && v.Dialogue == nil ||
			v.Run != nil && v.Dialogue != nil && v.Stdin == "" {
			t.Errorf("%s: something is missing in the table", v.Name)
		}
		words, err := verb.Split(strings.Split(v.Example, " <")[0])
		if i := strings.Index(strings.Join(words, " "), " >"); err == nil && i > 0 {
			words = strings.Fields(strings.Join(words, " ")[:i])
		}
		if got, _, perr := verb.Parse(words); err != nil || perr != nil || got.Name != v.Name {
			t.Errorf("%s: the example %q does not parse: %v %v", v.Name, v.Example, err, perr)
		}
		all.WriteString(mustCall(t, s, "help "+v.Name, "") + "\n")
	}
	golden(t, "help-verbs.txt", all.String())
	golden(t, "help.txt", mustCall(t, s, "help", ""))
}

func TestEveryCmdletHasAnAnswer(t *testing.T) {
	file, err := os.Open("testdata/cmdlets.txt")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	f := verbtest.Start(t, true)
	visitor := &verb.Session{Node: f.Node, Actor: policy.Actor{Door: policy.DoorSerial}}
	n := 0
	for lines := bufio.NewScanner(file); lines.Scan(); {
		name := lines.Text()
		if name == "" || name[0] == '#' {
			continue
		}
		n++
		answer, ok := verb.Cmdlet(name)
		if !ok || (len(answer.Verbs) == 0) == (answer.Why == "") {
			t.Errorf("%s has no answer, or two", name)
			continue
		}
		lower, upper := mustCall(t, visitor, "help "+strings.ToLower(name), ""), mustCall(t, visitor, "HELP "+strings.ToUpper(name), "")
		if lower != upper || !strings.Contains(lower, name) {
			t.Errorf("%s: answered %q and %q", name, lower, upper)
		}
		for _, v := range answer.Verbs {
			if known, ok := verb.Lookup(v); !ok || !strings.Contains(lower, known.Example) {
				t.Errorf("%s: no example of %s in %q", name, v, lower)
			}
		}
	}
	if n < 80 {
		t.Errorf("the list has only %d cmdlets", n)
	}
}

func TestNothingButHelpAndStatusWithoutLogin(t *testing.T) {
	f := verbtest.Start(t, true)
	for _, door := range []policy.Door{policy.DoorSerial, policy.DoorSSH, policy.DoorSetup} {
		visitor := &verb.Session{Node: f.Node, Actor: policy.Actor{Door: door}}
		for _, v := range verb.All() {
			err := verb.Permitted(v, visitor)
			free := v.Name == "help" || v.Name == "status" || v.Name == "logout" && door != policy.DoorSetup
			if (err == nil) != free {
				t.Errorf("%s at the door %s: %v", v.Name, door, err)
			}
			if !free {
				if _, err := verb.Run(context.Background(), v, visitor, verb.Args{}, nil, nil); verb.Explain(err).Code != verb.ExitNotAllowed {
					t.Errorf("%s ran at the door %s: %v", v.Name, door, err)
				}
			}
		}
	}
}

// TestBeforeSetupOnlySetupStatusHelp and a time by the recovery secret, for a start without time servers.
func TestBeforeSetupOnlySetupStatusHelp(t *testing.T) {
	f := verbtest.Start(t, false)
	visitor := &verb.Session{Node: f.Node, Actor: policy.Actor{Door: policy.DoorSetup}}
	for _, v := range verb.All() {
		free := v.Name == "help" || v.Name == "status" || v.Name == "setup" || v.Name == "time recover"
		if err := verb.Permitted(v, visitor); (err == nil) != free {
			t.Errorf("%s before setup: %v", v.Name, err)
		}
	}
	if text := mustCall(t, visitor, "status", ""); !strings.Contains(text, verbtest.Recipient) || !strings.Contains(text, "run setup") {
		t.Errorf("status before setup: %s", text)
	}
}

func TestRolesAreThoseOfTheLedger(t *testing.T) {
	// A verb whose command needs a higher role than the table says would fail late, one with a lower one would be a lie in help.
	f := verbtest.Start(t, true)
	snap, _ := f.Node.Snapshot()
	for name, kind := range map[string]policy.Kind{
		"host add": policy.CmdHostAdd, "host revoke": policy.CmdHostRevoke, "host restore": policy.CmdHostRestore, "host remove": policy.CmdHostRemove,
		"key primary": policy.CmdKeyPrimary, "key enable": policy.CmdKeyEnable, "key disable": policy.CmdKeyDisable, "key remove": policy.CmdKeyRemove,
		"attestation-signer trust": policy.CmdSignerTrust, "attestation-signer distrust": policy.CmdSignerDistrust, "attestation-signer deny-before": policy.CmdSignerDeny,
		"service set": policy.CmdServiceSet, "network set": policy.CmdNodeSet, "time set": policy.CmdNodeSet,
		"host add-tpm": policy.CmdHostAddTPM, "host set": policy.CmdHostSet, "baseline add": policy.CmdBaselineAdd, "baseline remove": policy.CmdBaselineRemove,
		"ci-policy add": policy.CmdCIPolicyAdd, "ci-policy remove": policy.CmdCIPolicyRemove, "dump-key add": policy.CmdDumpKeyAdd,
		"dump-key remove": policy.CmdDumpKeyRemove, "policy enable": policy.CmdPolicySet, "policy disable": policy.CmdPolicySet,
		"policy inherit": policy.CmdPolicySet, "draft commit": policy.CmdDraftCommit, "draft undo": policy.CmdDraftUndo, "draft drop": policy.CmdDraftDrop, "tpm-trust import": policy.CmdTrustImport, "tpm-trust remove": policy.CmdTrustRemove,
		"tpm-trust vendor": policy.CmdTrustVendor, "host deny": policy.CmdHostDeny, "host allow": policy.CmdHostAllow, "class offline-caching": policy.CmdClassOffline,
		"audit syslog set": policy.CmdAuditSyslog, "audit syslog off": policy.CmdAuditSyslog, "audit syslog install": policy.CmdSyslogInstall,
		"audit syslog uninstall": policy.CmdSyslogInstall, "https install": policy.CmdHTTPSInstall, "admin add": policy.CmdAdminAdd, "admin remove": policy.CmdAdminRemove, "peer add": policy.CmdPeerAdd, "peer remove": policy.CmdPeerRemove, "key new": policy.CmdKeyAdd,
	} {
		v, ok := verb.Lookup(name)
		if !ok {
			t.Fatalf("no verb %s", name)
		}
		for _, role := range []policy.AdminRole{policy.AdminReviewer, policy.AdminOperator, policy.AdminOwner} {
			state := snap.State
			admin := state.Admins["ada"]
			admin.Role = role
			state.Admins = map[string]policy.Admin{"ada": admin}
			_, _, err := policy.Apply(state, policy.Command{Kind: kind, Actor: f.Session(policy.DoorSSH).Actor, Body: json.RawMessage(`{"x":1}`)})
			refusedForRole := err != nil && strings.Contains(err.Error(), "this needs")
			if refusedForRole == role.Includes(v.Role) {
				t.Errorf("%s as %s: the table says %s, the ledger %v", name, role, v.Role, err)
			}
		}
	}
}

func TestScreens(t *testing.T) {
	f := verbtest.Start(t, true)
	s := f.Session(policy.DoorSSH)
	var b strings.Builder
	for _, line := range []string{"status", "host list", "host pending", "service show", "network show", "network show --toml", "time status", "hsm status", "hsm site-data list",
		"node list", "node measure", "node explain", "admin list", "audit tail", "audit verify", "audit key", "audit trim 20", "metadata", "attestation-signer list", "key list",
		"mode status", "baseline list", "ci-policy list", "dump-key list", "policy list", "tpm-trust list", "logout"} {
		b.WriteString("guardhouse> " + line + "\n" + mustCall(t, s, line, "") + "\n")
	}
	golden(t, "screens.txt", b.String())
}

func TestStatusNamesSilentProcessesFirst(t *testing.T) {
	f := verbtest.Start(t, true)
	for _, method := range []string{"ledger.Status", "hsm.Status", "clock.Status", "init.Status"} {
		f.Fail(method, rpc.ErrUnavailable)
	}
	v := verb.GatherStatus(context.Background(), f.Node)
	if v.OK || len(v.Problems) != 5 || v.Problems[0].Kind != "ledger-silent" || v.Problems[4].Kind != "no-keys" {
		t.Fatalf("problems: %+v", v.Problems)
	}
	checkWidth(t, "status", v.Page().String())
}

func TestFailuresKeepReasonAndRemedy(t *testing.T) {
	f := verbtest.Start(t, true)
	s := f.Session(policy.DoorSSH)
	for _, c := range []struct {
		err            error
		code           int
		reason, remedy string
	}{
		{&policy.Refused{Kind: policy.CmdHostAdd, Reason: "too many", Remedy: "remove some"}, 1, "too many", "remove some"},
		{rpc.ErrRefused.With("host.add refused: too many; remove some"), 1, "too many", "remove some"},
		{rpc.ErrRefused.With("a disk is full"), 1, "a disk is full", ""},
		{rpc.ErrUnavailable, 4, "the process is not ready", "try again in a few seconds; status shows what is missing"},
		{rpc.ErrNoQuorum, 4, "the cluster has no quorum", "try again, or on another node"},
		{errors.New("odd"), 1, "odd", ""},
	} {
		f.Fail("ledger.Propose", c.err)
		_, err := call(s, "host revoke hv7", "")
		if got := verb.Explain(err); got.Code != c.code || got.Reason != c.reason || got.Remedy != c.remedy {
			t.Errorf("%v became %+v", c.err, got)
		}
	}
}

func TestUnknownOutcomeSaysToLookFirst(t *testing.T) {
	f := verbtest.Start(t, true)
	f.Do(t, policy.CmdHostAdd, policy.HostAdd{Name: "hv7", HostKey: spki(t, f.Certificate(t, "hv7"))})
	s := f.Session(policy.DoorSSH)
	f.Fail("ledger.Propose", rpc.ErrUnknownOutcome)
	_, err := call(s, "host revoke hv7", "")
	if got := verb.Explain(err); got.Code != verb.ExitUnavailable || !strings.Contains(got.Remedy, "before repeating") {
		t.Errorf("unknown outcome became %+v", got)
	}
}

func TestRebootIsAuditedAndWorksWithABrokenLedger(t *testing.T) {
	f := verbtest.Start(t, true)
	s := f.Session(policy.DoorSerial)
	mustCall(t, s, "reboot", "")
	if a := f.Audit(); a[len(a)-1].Action != "power.reboot" || a[len(a)-1].Actor.Name != "ada" {
		t.Errorf("audit: %+v", a)
	}
	f.Fail("ledger.Audit", rpc.ErrUnavailable)
	if text := mustCall(t, s, "poweroff", ""); !strings.Contains(text, "could not be written to the audit") {
		t.Errorf("poweroff said %q", text)
	}
	if got := strings.Join(f.Power(), " "); got != "reboot off" {
		t.Errorf("init was asked for %q", got)
	}
}

func TestSiteDataIsStoredByHashAndNeverShown(t *testing.T) {
	f := verbtest.Start(t, true)
	s := f.Session(policy.DoorSSH)
	const secret = "very private key bytes"
	text := mustCall(t, s, "hsm site-data put client.pem", secret)
	text += mustCall(t, s, "hsm site-data list", "")
	if strings.Contains(text, secret) || !strings.Contains(text, "22 bytes") || !strings.Contains(text, "world is missing") {
		t.Errorf("said %q", text)
	}
	_, err := call(s, "hsm site-data put other.pem", secret)
	if got := verb.Explain(err); got.Code != 1 || !strings.Contains(got.Remedy, "site-data list") || strings.Contains(got.Error(), secret) {
		t.Errorf("an undeclared name: %+v", got)
	}
	mustCall(t, s, "hsm site-data remove client.pem", "")
	if _, err := call(s, "hsm site-data remove client.pem", ""); err == nil {
		t.Error("removed twice")
	}
}
