package serial

import (
	"strings"
	"testing"
	"time"

	"guardhouse/appliance/rpc"
	"guardhouse/console/verb"
	"guardhouse/console/verb/verbtest"
)

// deaf is the fake's node before the ledger has sent anything.
func deaf(f *verbtest.Fake) *verb.Node {
	return &verb.Node{Ledger: f.Node.Ledger, HSM: f.Node.HSM, Clock: f.Node.Clock, Init: f.Node.Init, Stamp: f.Node.Stamp, Boottime: f.Node.Boottime, Random: f.Node.Random}
}

func TestShutVolumeIsOpenedFromTheWaitingLine(t *testing.T) {
	f := verbtest.Start(t, true)
	f.SetVolume(rpc.VolumeReply{State: rpc.VolumeShut, Secret: "0badcafe", Form: "passphrase"})
	f.Node = deaf(f)
	p := sit(t, f)
	if text := p.expect(WaitingPrompt); !strings.Contains(text, "recover opens it with recovery secret 0badcafe") {
		t.Errorf("the line says %q", text)
	}
	for _, v := range []string{"host list", "reseal", "recovery new", "setup"} {
		p.types(v + "\r")
		if text := p.expect(WaitingPrompt); !strings.Contains(text, "not-allowed") && !strings.Contains(text, "unavailable") {
			t.Errorf("%s: %s", v, text)
		}
	}
	p.types("recover\r")
	p.expect("recovery secret 0badcafe: ")
	p.types("ZZZZ\r")
	p.expect("this is not recovery secret 0badcafe")
	p.expect(WaitingPrompt)
	p.types("recover\r")
	p.expect("recovery secret 0badcafe: ")
	p.types(verbtest.RecoveryText + "\r")
	text := p.expect(WaitingPrompt)
	for _, want := range []string{"the services start", "TPM: another one", "boot: signed", "generation"} {
		if !strings.Contains(text, want) {
			t.Errorf("it does not say %q: %s", want, text)
		}
	}
	if strings.Contains(p.seen.String(), verbtest.RecoveryText) {
		t.Error("the secret was shown")
	}
	p.types("recover\r")
	p.expect("the data volume is open")
}

func TestTheWaitingLineTakesATimeForTheRecoverySecret(t *testing.T) {
	f := verbtest.Start(t, true)
	f.SetVolume(rpc.VolumeReply{State: rpc.VolumeTPM, Secret: "0badcafe", Form: "passphrase"})
	f.Clocked(rpc.ClockStatusReply{State: rpc.ClockWaiting, Boot: "boot"})
	f.Node = deaf(f) // the ledger does not come up, so nobody can log in
	p := sit(t, f)
	p.expect(WaitingPrompt)
	p.types("time recover 2026-11-22T15:04:05Z\r")
	p.expect("type yes to go on: ")
	p.types("yes\r")
	p.expect("recovery secret 0badcafe: ")
	p.types(verbtest.RecoveryText + "\r")
	p.expect("counts now, as manual")
	if strings.Contains(p.seen.String(), verbtest.RecoveryText) || len(f.Recovered()) != 1 {
		t.Errorf("%d times, or the secret was shown", len(f.Recovered()))
	}
}

// TestAtTheLoginATimeIsTakenOnlyWhileTheLedgerIsSilent: nothing else is done without a login.
func TestAtTheLoginATimeIsTakenOnlyWhileTheLedgerIsSilent(t *testing.T) {
	f := verbtest.Start(t, true)
	f.SetVolume(rpc.VolumeReply{State: rpc.VolumeTPM, Secret: "0badcafe", Form: "passphrase"})
	f.Clocked(rpc.ClockStatusReply{State: rpc.ClockWaiting, Boot: "boot"})
	p := sit(t, f)
	p.expect("login: ")
	p.types("time recover 2026-11-22T15:04:05Z\r") // a name like any other
	p.expect("passphrase: ")
	p.types("x\r")
	p.expect("login: ")
	f.KillLedger()
	for !f.Node.Silent() {
		time.Sleep(time.Millisecond)
	}
	for _, line := range []string{"time set 10.0.2.9", "time status"} {
		p.types(line + "\r")
		if text := p.expect("login: "); !strings.Contains(text, "log in") && !strings.Contains(text, "not-allowed") {
			t.Errorf("%s: %s", line, text)
		}
	}
	p.types("time recover 2026-11-22T15:04:05Z\r")
	p.expect("type yes to go on: ")
	p.types("yes\r")
	p.expect("recovery secret 0badcafe: ")
	p.types(verbtest.RecoveryText + "\r")
	p.expect("counts now, as manual")
	if strings.Contains(p.seen.String(), verbtest.RecoveryText) || len(f.Recovered()) != 1 {
		t.Errorf("%d times, or the secret was shown", len(f.Recovered()))
	}
}

func TestFactoryResetWithoutLoginOnlyWhereTheVolumeIsShut(t *testing.T) {
	f := verbtest.Start(t, true)
	f.Node = deaf(f) // a ledger that does not come up, on an open volume
	p := sit(t, f)
	p.expect(WaitingPrompt)
	p.types("factory-reset\r")
	p.expect("type yes to go on: ")
	p.types("yes\r")
	p.expect("needs an owner's login")
	p.expect(WaitingPrompt)
	f.SetVolume(rpc.VolumeReply{State: rpc.VolumeShut})
	for phrase, ended := range map[string]bool{"yes": false, "end this node": true} {
		before := len(f.Power())
		p.types("factory-reset\r")
		p.expect("type yes to go on: ")
		p.types("yes\r")
		p.expect("type end this node: ")
		p.types(phrase + "\r")
		if ended {
			p.expect("the node stops")
		} else {
			p.expect("nothing was changed")
		}
		if got := len(f.Power()) > before; got != ended {
			t.Errorf("%q: reset is %v", phrase, got)
		}
	}
}
