package policy

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
)

// crossing is a service on its way from host keys to TPMs: hv1 and hv2 are registered in both modes, old by its host key only.
type crossing struct {
	t    *testing.T
	s    State
	op   Actor
	ids  map[string]string // of "hv1 TPM", "hv1 HostKey" and so on
	seen map[string]Observation
	now  int64 // unix milliseconds of the next command
}

func newCrossing(t *testing.T) *crossing {
	x := &crossing{t: t, ids: map[string]string{}, seen: map[string]Observation{}, now: 1_800_000_000_000}
	s, op, _, _, _ := vendors(t)
	x.s, x.op = s, op
	for _, name := range []string{"hv1", "hv2", "old"} {
		x.ids[name+" HostKey"] = x.do(CmdHostAdd, HostAdd{Name: name, HostKey: spki(t, rsaKey(t, 2048))}).Subject
		if name != "old" {
			x.ids[name+" TPM"] = x.do(CmdHostAddTPM, TPMHostAdd{Name: name, EK: spki(t, rsaKey(t, 2048)), NameAlg: 0x000b, Symmetric: 128,
				Version: Version1, Force: true, Reason: "lab"}).Subject
		}
	}
	x.do(CmdDumpKeyAdd, DumpKeyAdd{Name: "ops", SHA256: make([]byte, 32)})
	return x
}

// command is one at the next second, with what a ledger would add.
func (x *crossing) command(kind Kind, body any) Command {
	c := command(x.t, kind, x.op, body)
	c.At = Stamp{Earliest: x.now, Latest: x.now + 20}
	x.now += 1000
	c.Stragglers = x.s.Stragglers(c, func(id string) (Observation, bool) { o, ok := x.seen[id]; return o, ok })
	return c
}

func (x *crossing) do(kind Kind, body any) (r Result) {
	x.t.Helper()
	x.s, r = must(x.t, x.s, x.command(kind, body))
	return r
}

func (x *crossing) mode(m Mode) { x.t.Helper(); x.do(CmdServiceSet, ServiceSet{Mode: &m}) }

// saw notes a host's last attestation, now.
func (x *crossing) saw(host, verdict string) {
	at := Stamp{Earliest: x.now, Latest: x.now + 20}
	x.now += 1000
	x.seen[x.ids[host]] = Observation{Kind: ObservedHost, Subject: x.ids[host], First: at, Last: at, Count: 1, Facts: map[string]string{"verdict": verdict}}
}

func (x *crossing) refused(kind Kind, body any) *Refused {
	x.t.Helper()
	return refusal(x.t, x.s, x.command(kind, body))
}

func TestRefusesToBurnTheWayBackWhileAHostHasNotPassed(t *testing.T) {
	x := newCrossing(t)
	x.saw("hv1 TPM", "ok") // before the switch: a trial that says nothing
	x.do(CmdHostRemove, HostRemove{Name: "hv2", Mode: ModeTPM})
	x.ids["hv2 TPM"] = x.do(CmdHostAddTPM, TPMHostAdd{Name: "hv2", EK: spki(t, rsaKey(t, 2048)), NameAlg: 0x000b, Symmetric: 128, Version: Version1, Force: true, Reason: "lab"}).Subject
	x.mode(ModeTPM)
	if x.s.Service.Switched == nil || x.s.Service.Switched.From != ModeHostKey {
		t.Fatalf("%+v", x.s.Service)
	}
	oldMode := HostRemove{Name: "hv1", Mode: ModeHostKey}
	r := x.refused(CmdHostRemove, oldMode)
	for _, want := range []string{"3 of 3 hosts have not passed in TPM mode", "hv1 not seen (last seen 20", "hv2 not seen", "old not registered"} {
		if !strings.Contains(r.Reason, want) {
			t.Errorf("%q is not in: %s", want, r.Reason)
		}
	}
	x.saw("hv1 TPM", "ok")
	x.saw("hv2 TPM", "dumps-on")
	if r := x.refused(CmdHostRemove, oldMode); !strings.Contains(r.Reason, "2 of 3 hosts") || !strings.Contains(r.Reason, "hv2 failed (last seen 20") || !strings.Contains(r.Reason, "dumps-on") || strings.Contains(r.Reason, "hv1") {
		t.Errorf("%s", r)
	}
	// The mode in force is not guarded, and neither is what can be taken back.
	x.do(CmdDumpKeyRemove, Removal{Name: "ops"})
	x.do(CmdHostRevoke, HostRevoke{Name: "old"})
	// A host that passed and then fails has failed.
	x.saw("hv2 TPM", "ok")
	x.saw("hv1 TPM", "hvci-off")
	if r := x.refused(CmdHostRemove, oldMode); !strings.Contains(r.Reason, "1 of 2 hosts") || !strings.Contains(r.Reason, "hvci-off") {
		t.Errorf("%s", r)
	}
	x.saw("hv1 TPM", "ok")
	x.do(CmdHostRemove, oldMode)
	if hosts := x.s.HostsByName("hv1"); len(hosts) != 1 || hosts[0].TPM == nil {
		t.Errorf("%+v", hosts)
	}
}

func TestUndoneSwitchAsksAgainInTheModeItReturnsTo(t *testing.T) {
	x := newCrossing(t)
	for _, h := range []string{"hv1 HostKey", "hv2 HostKey", "old HostKey"} {
		x.saw(h, "ok")
	}
	x.do(CmdDumpKeyRemove, Removal{Name: "ops"}) // before any switch TPM mode is only being prepared
	x.do(CmdDumpKeyAdd, DumpKeyAdd{Name: "ops", SHA256: make([]byte, 32)})
	x.mode(ModeTPM)
	x.saw("hv1 TPM", "ok")
	x.mode(ModeHostKey)
	for _, body := range []Kind{CmdDumpKeyRemove} {
		if r := x.refused(body, Removal{Name: "ops"}); !strings.Contains(r.Reason, "3 of 3 hosts have not passed in HostKey mode") {
			t.Errorf("%s", r)
		}
	}
	x.refused(CmdHostRemove, HostRemove{Name: "hv1", Mode: ModeTPM})
	for _, h := range []string{"hv1 HostKey", "hv2 HostKey"} {
		x.saw(h, "ok")
	}
	// A machine that leaves altogether is not waited for.
	x.refused(CmdDumpKeyRemove, Removal{Name: "ops"})
	x.do(CmdHostRemove, HostRemove{Name: "old"})
	x.do(CmdDumpKeyRemove, Removal{Name: "ops"})
	x.do(CmdHostRemove, HostRemove{Name: "hv1", Mode: ModeTPM})
	// Setting the mode that is in force anyway is no switch.
	at := *x.s.Service.Switched
	x.mode(ModeHostKey)
	if *x.s.Service.Switched != at {
		t.Error("a switch to the same mode was counted")
	}
}

func TestOnlyTheTypedPhraseOverridesAndTheRecordSaysSo(t *testing.T) {
	x := newCrossing(t)
	x.mode(ModeTPM)
	x.mode(ModeHostKey)
	for kind, name := range map[Kind]string{CmdDumpKeyRemove: "ops", CmdTrustRemove: "infineon"} {
		r := x.refused(kind, Removal{Name: name})
		_, phrase, found := strings.Cut(r.Remedy, "--phrase ")
		if !found || phrase != "remove-TPM-although-3-of-3-hosts-have-not-passed-in-HostKey" {
			t.Fatalf("%q", r.Remedy)
		}
		for _, wrong := range []string{"yes", phrase + " ", strings.ToUpper(phrase), strings.Replace(phrase, "3", "2", 1)} {
			x.refused(kind, Removal{Name: name, Phrase: wrong})
		}
		if r := x.do(kind, Removal{Name: name, Phrase: phrase}); !strings.Contains(r.Message, "by typed phrase, while 3 of 3 hosts have not passed in HostKey mode") {
			t.Errorf("the record says %q", r.Message)
		}
	}
}

// TestStragglersOfAnotherMomentDecideNothing: a command in which nobody looked, or looked before the last switch, is refused.
func TestStragglersOfAnotherMomentDecideNothing(t *testing.T) {
	x := newCrossing(t)
	x.mode(ModeTPM)
	x.mode(ModeHostKey)
	for _, h := range []string{"hv1 HostKey", "hv2 HostKey", "old HostKey"} {
		x.saw(h, "ok")
	}
	c := x.command(CmdDumpKeyRemove, Removal{Name: "ops"})
	if c.Stragglers == nil || c.Stragglers.Count != 0 {
		t.Fatalf("%+v", c.Stragglers)
	}
	bare := c
	bare.Stragglers = nil
	refused(t, x.s, bare)
	x.mode(ModeTPM)
	x.mode(ModeHostKey)
	if r := refusal(t, x.s, c); !strings.Contains(r.Remedy, "ask again") {
		t.Error(r)
	}
	// Without a trusted time at the switch no pass can be told to be later.
	x.now = 0
	m := ModeTPM
	late := command(t, CmdServiceSet, x.op, ServiceSet{Mode: &m})
	late.At = Stamp{}
	x.s, _ = must(t, x.s, late)
	x.saw("hv1 TPM", "ok")
	if got := ProgressOf(x.s.Hosts[x.ids["hv1 TPM"]], x.seen[x.ids["hv1 TPM"]], true, x.s.Service.Switched); got != MachineNotSeen {
		t.Error(got)
	}
}

// TestRefusalNamesEightHostsOfThousands keeps the refusal and the command small.
func TestRefusalNamesEightHostsOfThousands(t *testing.T) {
	x := newCrossing(t)
	for i := range 5000 {
		id := fmt.Sprintf("%064X", i)
		x.s.Hosts[id] = Host{ID: id, Name: fmt.Sprintf("n%04d", i), HostKey: []byte{1}}
		x.seen[id] = Observation{Facts: map[string]string{"verdict": strings.Repeat("x", 300) + "\x1b[31m"}}
	}
	x.mode(ModeTPM)
	x.mode(ModeHostKey)
	c := x.command(CmdDumpKeyRemove, Removal{Name: "ops"})
	r := refusal(t, x.s, c)
	if !strings.Contains(r.Reason, "5003 of 5003 hosts") || !strings.Contains(r.Reason, "and 4995 more") || len(r.Reason) > 4096 || strings.Contains(r.Reason, "\x1b") {
		t.Errorf("%s", r.Reason)
	}
	if b, err := json.Marshal(c); err != nil || len(b) > 8<<10 {
		t.Errorf("the command has %d bytes: %v", len(b), err)
	}
}

func TestSetupCantClaimAnEarlierMode(t *testing.T) {
	b, _ := goodSetup(t)
	b.Service.Switched = &ModeSwitch{From: ModeAD}
	refused(t, NewState(), command(t, CmdSetup, Actor{Door: DoorSetup}, b))
}
