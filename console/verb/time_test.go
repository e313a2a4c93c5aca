package verb_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
	"guardhouse/console/verb"
	"guardhouse/console/verb/verbtest"
)

func TestTimeStatusShowsServersSideBySideWhenSuspect(t *testing.T) {
	f := verbtest.Start(t, true)
	s := f.Session(policy.DoorSSH)
	truth := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	f.Clocked(rpc.ClockStatusReply{State: rpc.ClockSuspect, Reason: "three of four servers contradict what was trusted", Why: []string{"One.", "Two.", "Three."},
		Sources: []rpc.ClockSource{{Address: "10.0.2.2", State: "falseticker", Says: truth, Bound: 4 * time.Millisecond},
			{Address: "10.0.2.3", State: "selected", Says: truth.Add(time.Hour), Bound: 4 * time.Millisecond}, {Address: "10.0.2.4", State: "unreachable", Error: "timeout"}}})
	text := mustCall(t, s, "time status", "")
	for _, want := range []string{"SUSPECT: three of four servers", "2026-11-22 12:00:00", "2026-11-22 13:00:00", "nothing", "IT SAYS"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	if text := mustCall(t, s, "time why", ""); text != "One.\nTwo.\nThree.\n" {
		t.Errorf("%s", text)
	}
	if text := mustCall(t, s, "time sources", ""); !strings.Contains(text, "none: anybody on the way can answer for it") {
		t.Errorf("%s", text)
	}
}

// TestPeersStandBesideTheServersAndAreNoServers: marked in every view, the one that lies by name.
func TestPeersStandBesideTheServersAndAreNoServers(t *testing.T) {
	f := verbtest.Start(t, true)
	s := f.Session(policy.DoorSSH)
	now := time.UnixMilli(verbtest.At.Earliest)
	source := func(address, state string, off time.Duration, peer bool) rpc.ClockSource {
		return rpc.ClockSource{Address: address, State: state, Offset: off, Bound: 10 * time.Millisecond, Age: 4 * time.Second, Poll: time.Minute, Says: now.Add(off), Peer: peer}
	}
	silent := rpc.ClockSource{Address: "node4", State: "unreachable", Error: "it is refused: it has no trusted time: no time server answers", Peer: true}
	f.Clocked(rpc.ClockStatusReply{State: rpc.ClockLocked, Limit: time.Minute, StopsAt: now.Add(26 * time.Hour), SinceLock: 84 * time.Millisecond,
		Why:      []string{"The time is trusted to within 12ms.", "2 of 2 time servers agree: 10.0.2.2, 10.0.2.4, with peer node2, and peer node3 does not.", "If no server answered any more, issuing would stop."},
		Trusted:  rpc.ClockView{OK: true, Earliest: now, Latest: now.Add(20 * time.Millisecond), Sources: []string{"10.0.2.2", "10.0.2.4"}, ExpiresIn: 26 * time.Hour},
		Sources:  []rpc.ClockSource{source("10.0.2.2", "selected", time.Millisecond, false), source("10.0.2.4", "selected", -time.Millisecond, false), source("node2", "selected", 2*time.Millisecond, true), source("node3", "falseticker", 3214*time.Millisecond, true), silent},
		Problems: []policy.Problem{{Kind: "time-falseticker", What: "peer node3 says another time than this node's servers", Remedy: "compare time status on both nodes"}}})
	var b strings.Builder
	for _, line := range []string{"time status", "time sources", "time why", "status"} {
		fmt.Fprintf(&b, "$ %s\n%s\n", line, mustCall(t, s, line, ""))
	}
	golden(t, "time-peers.txt", b.String())
	out, err := call(s, "time sources", "")
	if err != nil {
		t.Fatal(err)
	}
	j, err := json.Marshal(out.Value)
	if err != nil || strings.Count(string(j), `"peer":true`) != 3 {
		t.Errorf("%s, %v", j, err)
	}
}

func TestTimeStatusTellsTheHourAtWhichIssuingStops(t *testing.T) {
	f := verbtest.Start(t, true)
	s := f.Session(policy.DoorSSH)
	now := time.UnixMilli(verbtest.At.Earliest)
	st := rpc.ClockStatusReply{State: rpc.ClockHoldover, Limit: time.Minute, StopsAt: time.Date(2026, 11, 25, 3, 0, 0, 0, time.UTC),
		Trusted: rpc.ClockView{OK: true, Earliest: now, Latest: now.Add(2 * time.Second), Sources: []string{"10.0.2.2"}, ExpiresIn: 63 * time.Hour}}
	f.Clocked(st)
	if text := flat(t, s, "time status", ""); !strings.Contains(text, "HOLDOVER") || !strings.Contains(text, "Issuing stops at 2026-11-25 03:00 UTC") {
		t.Errorf("%s", text)
	}
	st.State, st.Trusted.Manual, st.Trusted.Sources = rpc.ClockManual, true, []string{"manual", "ada", "grace"}
	f.Clocked(st)
	if text := flat(t, s, "time status", ""); !strings.Contains(text, "MANUAL, by the word of ada and grace") {
		t.Errorf("%s", text)
	}
}

func TestTimeIsApprovedByTwo(t *testing.T) {
	f := verbtest.Start(t, true)
	s := f.Session(policy.DoorSSH)
	mustCall(t, s, "time approve 2026-11-22T15:04:05Z", "")
	mustCall(t, s, "time release", "")
	mustCall(t, s, "time floor lower 2026-11-01T00:00:00+01:00", "")
	asked := f.Asked()
	if len(asked) != 3 || asked[0].Kind != rpc.ApproveManual || asked[0].Boot != "boot" || asked[0].BootTime != 90*time.Second || asked[0].Actor.Name != "ada" ||
		asked[1].Kind != rpc.ApproveRelease || asked[2].UTC.Hour() != 23 {
		t.Errorf("%+v", asked)
	}
	if text := flat(t, s, "time status", ""); !strings.Contains(text, "ada asks: it is now 2026-11-22 15:05:05 UTC; another administrator: time confirm 5f3ac91e") {
		t.Errorf("%s", text)
	}
	if text := mustCall(t, s, "time confirm 5f3ac91e", ""); !strings.Contains(text, "done") {
		t.Errorf("%s", text)
	}
	if _, err := call(s, "time approve noon", ""); err == nil {
		t.Error("noon was taken for a time")
	}
}

// TestATimeBeforeAnybodyCanLogInNeedsTheRecoverySecret: and the serial line, a node without administrators, and a time that can be.
func TestATimeBeforeAnybodyCanLogInNeedsTheRecoverySecret(t *testing.T) {
	f := verbtest.Start(t, false)
	s := &verb.Session{Node: f.Node, Actor: policy.Actor{Door: policy.DoorSetup}}
	f.SetVolume(rpc.VolumeReply{State: rpc.VolumeTPM, Secret: "0badcafe", Form: "passphrase"})
	waiting := rpc.ClockStatusReply{State: rpc.ClockWaiting, Boot: "this boot", Floor: time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC), FloorFrom: "image"}
	const line = "time recover 2026-11-22T15:04:05Z"
	for name, tt := range map[string]struct {
		line    string
		clock   rpc.ClockStatusReply
		volume  rpc.VolumeReply
		answers []string
		want    string
	}{
		"a wrong secret":     {line, waiting, f.Volume(), []string{"ZZZZ"}, "this is not recovery secret 0badcafe"},
		"no time":            {"time recover noon", waiting, f.Volume(), nil, "this is not a time"},
		"before the floor":   {"time recover 2026-10-31T23:59:59Z", waiting, f.Volume(), nil, "it was later (image)"},
		"trusted already":    {line, rpc.ClockStatusReply{State: rpc.ClockLocked, Boot: "this boot"}, f.Volume(), nil, "by the word of time servers"},
		"a shut volume":      {line, waiting, rpc.VolumeReply{State: rpc.VolumeShut, Secret: "0badcafe"}, nil, "the data volume is shut"},
		"no secret was made": {line, waiting, rpc.VolumeReply{State: rpc.VolumeTPM}, nil, "no recovery secret"},
	} {
		f.Clocked(tt.clock)
		good := f.Volume()
		f.SetVolume(tt.volume)
		a, err := hold(t, s, tt.line, tt.answers...)
		f.SetVolume(good)
		if err == nil || !strings.Contains(err.Error(), tt.want) || len(f.Recovered()) != 0 {
			t.Errorf("%s: %v, %q", name, err, a.said.String())
		}
	}
	f.Clocked(waiting)
	a, err := hold(t, s, line, verbtest.RecoveryText)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"2026-11-22 15:04:05 UTC", "5 minutes", "24 hours", "this boot", "manual", "recovery secret 0badcafe: "} {
		if !strings.Contains(strings.Join(strings.Fields(a.said.String()), " ")+" ", want) {
			t.Errorf("no %q in %q", want, a.said.String())
		}
	}
	got := f.Recovered()
	if len(got) != 1 || !got[0].UTC.Equal(time.Date(2026, 11, 22, 15, 4, 5, 0, time.UTC)) || got[0].Boot != "this boot" || got[0].BootTime != 90*time.Second {
		t.Errorf("%+v", got)
	}
	set := verbtest.Start(t, true)
	for _, door := range []policy.Door{policy.DoorSetup, policy.DoorSerial, policy.DoorSSH} {
		s := set.Session(door)
		if _, err := hold(t, s, line, verbtest.RecoveryText); verb.Explain(err).Code != verb.ExitNotAllowed {
			t.Errorf("with administrators, at the door %s: %v", door, err)
		}
	}
}

func TestASuspicionSaysOnOnePageWhatToDo(t *testing.T) {
	f := verbtest.Start(t, true)
	s := f.Session(policy.DoorSSH)
	st := rpc.ClockStatusReply{State: rpc.ClockSuspect, Reason: "all time servers jumped together: they differ from this clock by 3s, which is certain to 10ms; it looks the same if this machine stood still as long (paused or moved by its host)",
		Decide:   []string{"if the servers are right, release it: time release", "if they are wrong, repair them or name others (time set): it ends by itself a minute after they come back to what this clock said", "administrators decide by two, the other one with time confirm, or alone where only one exists"},
		Problems: []policy.Problem{{Kind: "time-suspect", What: "the time is suspect: all time servers jumped together", Remedy: "compare the servers with a clock that you trust (time status), which names the verb to decide with; nothing is issued until then"}}}
	for i := range 4 {
		st.Sources = append(st.Sources, rpc.ClockSource{Address: fmt.Sprintf("10.0.2.%d", i+2), State: "selected", Says: time.Date(2026, 11, 22, 12, 0, 3, 0, time.UTC), Bound: time.Millisecond})
	}
	f.Clocked(st)
	text := mustCall(t, s, "time status", "")
	if n := strings.Count(text, "\n"); n > 24 {
		t.Errorf("%d lines are more than a screen:\n%s", n, text)
	}
	for _, want := range []string{"time release", "time set", "time confirm", "if this machine stood still"} {
		if strings.Count(strings.Join(strings.Fields(text), " "), want) != 1 {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
}

func TestTimeServersWithKeys(t *testing.T) {
	f := verbtest.Start(t, true)
	s := f.Session(policy.DoorSSH)
	text := flat(t, s, "time set ntp1.example.test#7 10.0.2.3:11123", "")
	if !strings.Contains(text, "must not be a shielded virtual machine of this fabric") {
		t.Errorf("%s", text)
	}
	self, _ := f.Node.Self()
	if len(self.TimeServers) != 2 || self.TimeKeys["ntp1.example.test"] != 7 || len(self.TimeKeys) != 1 {
		t.Errorf("%+v", self)
	}
	for _, line := range []string{"time set a#0", "time set a#x", "time set a a", "time set a b c d e f g h i", "time key set 0", "time key set 70000"} {
		if _, err := call(s, line, "x"); err == nil {
			t.Errorf("%s: taken", line)
		}
	}
	mustCall(t, s, "time key set 7", "sealed")
	mustCall(t, s, "time key remove 7", "")
	if k := f.TimeKeys(); len(k) != 2 || k[0].ID != 7 || string(k[0].Sealed) != "sealed" || k[1].Sealed != nil {
		t.Errorf("%+v", k)
	}
	mustCall(t, s, "service set --time-limit 1s", "")
	if text := mustCall(t, s, "service show", ""); !strings.Contains(text, "wrong by more than 1 s") {
		t.Errorf("%s", text)
	}
	if _, err := call(s, "service set --time-limit 6m", ""); err == nil {
		t.Error("a limit of six minutes was taken")
	}
}

// TestAuditTailTellsHowWellTheTimeWasKnown: the bound, and whether people said it, stand beside the time of each entry.
func TestAuditTailTellsHowWellTheTimeWasKnown(t *testing.T) {
	f := verbtest.Start(t, true)
	s := f.Session(policy.DoorSSH)
	noon := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC).UnixMilli()
	for action, at := range map[string]policy.Stamp{
		"agreed": {Earliest: noon - 15, Latest: noon + 15, Boot: "b"},
		"said":   {Earliest: noon - 300000, Latest: noon + 300000, Boot: "b", Manual: true},
		"before": {Boot: "b"},
	} {
		if _, err := rpc.LedgerAudit.Call(t.Context(), f.Node.Ledger, policy.AuditEntry{Kind: policy.AuditSystem, At: at, BootTime: 1, Action: action, Outcome: "ok"}); err != nil {
			t.Fatal(err)
		}
	}
	text := flat(t, s, "audit tail", "")
	for _, want := range []string{"2026-11-22 12:00:00 UTC +-15ms system agreed: ok", "2026-11-22 12:00:00 UTC (manual) +-5m0s system said: ok", "time not known system before: ok"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
}
