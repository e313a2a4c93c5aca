package main

import (
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"guardhouse/appliance/disk"
	"guardhouse/appliance/policy"
	"guardhouse/appliance/quote"
	"guardhouse/appliance/rpc"
	"guardhouse/appliance/sandbox"
	"guardhouse/appliance/tpm"
	"guardhouse/appliance/update"
	"guardhouse/appliance/volume"
)

const (
	updateState = "/data/init/update.json"
	formatFile  = "/data/init/format.json"
	efivarsDir  = "/sys/firmware/efi/efivars"

	trialLimit = 15 * time.Minute // until a release on trial gives way to the old one; an attended HSM's PIN has to be typed in it
	trialWell  = 10 * time.Second // for which it must be well at a stretch
	shutLimit  = 3 * time.Minute  // until a release that can't open the data disk gives way
)

// updates is what init knows of slots and updates.
type updates struct {
	mu      sync.Mutex // one thing at a time
	u       *update.Updater
	disk    disk.BootDisk
	cannot  string // why there are no updates
	missing string // what a release on trial lacks
	stream  *updateStream
	last    atomic.Pointer[rpc.UpdateStatus] // what updateStatus says while mu is held for long
}

// bootPath tells from which slot this boot came, and what firmware tried before.
func (n *node) bootPath() (disk.BootDisk, update.BootPath, error) {
	d, err := n.finder.BootDisk()
	if err != nil {
		return d, update.BootPath{}, err
	}
	raw, err := readBounded(bootLogFile, quote.MaxLog)
	if err != nil {
		return d, update.BootPath{}, fmt.Errorf("the firmware left no boot log: %w", err)
	}
	p, err := update.ReadBootPath(raw, d)
	if err == nil && p.Slot < 0 {
		err = fmt.Errorf("the firmware's boot log names neither slot of disk %s", d.Name)
	}
	return d, p, err
}

// bootEntries mounts the firmware's variables where they are not, which may take seconds, and makes our boot entries right.
func (n *node) bootEntries(ctx context.Context, d disk.BootDisk) (*update.Entries, error) {
	select {
	case <-n.drivers: // the file system is a late module
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	err := unix.Mount("efivarfs", efivarsDir, "efivarfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")
	if err != nil && !errors.Is(err, unix.EBUSY) {
		return nil, fmt.Errorf("the firmware's variables can't be reached: %w", err)
	}
	return update.OwnEntries(update.EFIVars{Dir: efivarsDir}, d)
}

// startUpdates waits for the data disk and then goes on where an update was: it brings a release on trial to its end, and finishes a copy.
// Until the disk opens it sees to it that a broken boot entry or a release that can't open the disk does not keep the node down.
func (n *node) startUpdates(ctx context.Context) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	tried, gave := false, false
	for up := time.Duration(0); !n.hasDisk(); up += time.Second {
		if !tried && n.notSealedToThisBoot() {
			tried = true
			n.retryBoot(ctx)
		}
		if !gave && up > shutLimit {
			gave = true
			n.giveWay(ctx)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
	if err := n.resumeUpdate(ctx); err != nil {
		n.updates.mu.Lock()
		n.updates.cannot = err.Error()
		n.updates.mu.Unlock()
		n.logf("no updates on this machine: %v", err)
		return
	}
	earlier := make(chan struct{})
	go func() { defer close(earlier); n.tellUpdates(ctx) }() // what the power cut short in an earlier boot
	n.endTrial(ctx)
	<-earlier
	n.tellUpdates(ctx)
}

func (n *node) notSealedToThisBoot() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	_, shut := n.problems[tpm.KindNoPolicy]
	return shut
}

// retryBoot restarts once where firmware tried another boot entry before ours: that alone keeps the disk shut, since every try is
// measured.
func (n *node) retryBoot(ctx context.Context) {
	d, p, err := n.bootPath()
	if err != nil || p.Clean {
		return
	}
	e, err := n.bootEntries(ctx, d)
	if err != nil {
		n.logf("boot entries: %v", err)
		return
	}
	again, err := e.Retry(p.Slot)
	if err != nil {
		n.logf("boot entries: %v", err)
	}
	if !again {
		n.logf("firmware tried something before this image again: %s", p.Did)
		return
	}
	n.say("the firmware tried a broken boot entry before this image, so the data disk stays shut; starting once more without it")
	n.ask(powerRequest{powerReboot, "a broken boot entry came first: " + p.Did})
}

// giveWay restarts into the other slot where this boot was for once: a new release that can't open the disk.
func (n *node) giveWay(ctx context.Context) {
	d, p, err := n.bootPath()
	if err != nil {
		return
	}
	e, err := n.bootEntries(ctx, d)
	if err != nil {
		return
	}
	if once, err := e.OnlyOnce(p.Slot); err == nil && once {
		n.say("this release can't open the data disk; the other slot starts again")
		n.ask(powerRequest{powerReboot, "a release on trial can't open the data disk"})
	}
}

// resumeUpdate reads where updates stand. An error means that this machine takes none.
func (n *node) resumeUpdate(ctx context.Context) error {
	d, p, err := n.bootPath()
	if err != nil {
		return err
	}
	e, err := n.bootEntries(ctx, d)
	if err != nil {
		return err
	}
	u := &update.Updater{Entries: e, Own: p.Slot, Release: n.release.Number, Format: n.format, Size: min(d.Slots[0].Size, d.Slots[1].Size), Raise: raiseFloor, Note: n.noteUpdate(ctx),
		Store: update.FileStore{Path: updateState}, Log: n.logf,
		Open: func(slot int) (update.Device, error) {
			return update.OpenPartition(d.Slots[slot].Device, slot != p.Slot)
		}}
	problem, err := u.Resume()
	if err != nil {
		return err
	}
	n.updates.mu.Lock()
	n.updates.u, n.updates.disk = u, d
	n.updates.mu.Unlock()
	n.problem(update.KindFailed, problem.What, problem.Remedy)
	n.logf("started from slot %s of disk %s, update %s", update.EntryNames[p.Slot], d.Name, cmp.Or(u.State().Phase, "idle"))
	if e.Retried() {
		if err := errors.Join(u.NoteBroken(), e.Succeeded()); err != nil {
			n.logf("boot entries: %v", err)
		}
	}
	if s := u.State(); s.Broken || s.Phase == update.Failed {
		go n.healSlots(ctx)
	}
	return nil
}

func raiseFloor(to uint64) error {
	t, err := tpm.Open(tpmDevice)
	if err != nil {
		return err
	}
	defer t.Close()
	return (&volume.Machine{TPM: t, OwnerDir: initDir}).RaiseFloor(to)
}

// healSlots makes the other slot whole again once this boot has proved itself.
func (n *node) healSlots(ctx context.Context) {
	if !n.waitWell(ctx, trialLimit) {
		return
	}
	n.updates.mu.Lock()
	defer n.updates.mu.Unlock()
	if err := n.updates.u.Heal(); err != nil {
		n.logf("the other slot was not made whole: %v", err)
	}
}

// endTrial marks a release on trial good once the node is well, or gives way to the old one; then it finishes what a good one needs.
func (n *node) endTrial(ctx context.Context) {
	n.updates.mu.Lock()
	u := n.updates.u
	trial := u.OnTrial()
	n.updates.mu.Unlock()
	if trial {
		n.logf("release %d is on trial", n.release.Number)
		well := n.waitWell(ctx, trialLimit)
		if ctx.Err() != nil {
			return
		}
		n.updates.mu.Lock()
		missing := n.updates.missing
		err := errors.New("taken back meanwhile")
		if u.OnTrial() {
			if well {
				err = u.MarkGood()
			} else {
				err = u.Reject("after " + trialLimit.String() + " " + missing)
			}
		}
		n.updates.mu.Unlock()
		if err != nil {
			n.problem(update.KindState, err.Error(), "restart the node: the old release goes on")
			return
		}
		n.tellSoon(ctx)
		if !well {
			n.ask(powerRequest{powerReboot, "release " + strconv.FormatUint(n.release.Number, 10) + " did not pass its trial"})
			return
		}
		n.logf("release %d passed its trial; it is copied to the other slot now", n.release.Number)
	}
	n.updates.mu.Lock()
	now := rpc.UpdateStatus{Running: n.running()}
	n.describeUpdates(&now)
	err := u.Finish()
	n.updates.mu.Unlock()
	if err != nil {
		n.problem(update.KindState, err.Error(), "restart the node to try again; replace the boot disk if it stays")
	}
}

// waitWell waits until nothing has been missing for trialWell, at most for limit.
func (n *node) waitWell(ctx context.Context, limit time.Duration) bool {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	src := rpc.WatchTime(ctx, rpc.SocketDir, sandbox.UIDs()[rpc.Clock])
	deadline, since := rpc.BootTime()+limit, time.Duration(-1)
	for rpc.BootTime() < deadline {
		missing := n.notWell(ctx, src, since >= 0 && rpc.BootTime()-since >= trialWell)
		n.updates.mu.Lock()
		n.updates.missing = missing
		n.updates.mu.Unlock()
		switch {
		case missing != "":
			since = -1
		case since < 0:
			since = rpc.BootTime()
		case rpc.BootTime()-since >= trialWell:
			return true
		}
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
			return false
		}
	}
	return false
}

// notWell says what keeps this node from its work; "" for nothing. With canary each key on record is used once in the HSM.
func (n *node) notWell(ctx context.Context, src *rpc.TimeSource, canary bool) string {
	for _, p := range sandbox.Table {
		if !n.super.Ready(p.Name) {
			return "the process " + p.Name + " is not ready"
		}
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	ledger := rpc.NewProvedClient(rpc.SocketPath(rpc.SocketDir, rpc.Ledger), sandbox.UIDs()[rpc.Ledger])
	defer ledger.Close()
	st, err := rpc.LedgerStatus.Call(ctx, ledger, rpc.Empty{})
	if err != nil {
		return "the ledger does not answer: " + err.Error()
	}
	if !st.SetUp {
		return "" // nothing else works yet, and nothing is lost
	}
	if _, _, ok := src.Now(); !ok {
		return "the time is not trusted yet"
	}
	if !canary {
		return ""
	}
	r, err := rpc.LedgerKeyTest.Call(ctx, ledger, rpc.KeyTestRequest{})
	if err != nil {
		return "the HSM's keys could not be tried: " + err.Error()
	}
	for _, k := range r.Results {
		if !k.OK && k.Node == st.NodeID && len(k.Problems) > 0 {
			return k.Problems[0].What
		}
	}
	return ""
}

// noteUpdate makes the audit entries of what the box decides by itself. They name this boot in their facts, since the boot that gets
// them into the audit may be a later one.
func (n *node) noteUpdate(ctx context.Context) func(s update.State, action, outcome, detail string) update.Owed {
	return func(s update.State, action, outcome, detail string) update.Owed {
		ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		ledger := rpc.NewProvedClient(rpc.SocketPath(rpc.SocketDir, rpc.Ledger), sandbox.UIDs()[rpc.Ledger])
		defer ledger.Close()
		o := update.Owed{ID: n.boot + " " + action, Entry: policy.AuditEntry{Kind: policy.AuditSystem, Action: action, Outcome: outcome, Detail: detail,
			Facts: map[string]string{"release": strconv.FormatUint(n.release.Number, 10), "version": n.release.Version, "image": s.SHA256, "from": strconv.FormatUint(s.From, 10),
				"boot": n.boot, "bootTime": rpc.BootTime().Round(time.Millisecond).String()}}}
		if st, err := rpc.LedgerStatus.Call(ctx, ledger, rpc.Empty{}); err == nil {
			o.After = st.AuditSeq
		}
		return o
	}
}

// tellSoon gives the audit what it is owed, as far as it takes it within ten seconds: the rest follows in startUpdates, or at the next
// start.
func (n *node) tellSoon(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	n.tellUpdates(ctx)
}

// tellUpdates writes into the audit what updates owe it, and returns when nothing is left or ctx ends. It may run more than once at a time.
func (n *node) tellUpdates(ctx context.Context) {
	ledger := rpc.NewProvedClient(rpc.SocketPath(rpc.SocketDir, rpc.Ledger), sandbox.UIDs()[rpc.Ledger])
	defer ledger.Close()
	said, pause := false, time.Second
	for ctx.Err() == nil {
		n.updates.mu.Lock()
		owed := n.updates.u.State().Owed
		n.updates.mu.Unlock()
		if len(owed) == 0 {
			return
		}
		err := n.tellUpdate(ctx, ledger, owed[0])
		if err == nil {
			continue
		}
		if !said && n.super.Ready(rpc.Ledger) {
			said = true
			n.logf("%s could not be written to the audit yet: %v", owed[0].Entry.Action, err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
		pause = min(2*pause, 15*time.Second)
	}
}

func (n *node) tellUpdate(ctx context.Context, ledger *rpc.Client, o update.Owed) error {
	call, cancel := context.WithTimeout(ctx, 30*time.Second) // a ledger that looks through all of its audit
	defer cancel()
	if _, err := rpc.LedgerAuditOnce.Call(call, ledger, rpc.AuditOnce(o)); err != nil {
		return err
	}
	n.updates.mu.Lock()
	defer n.updates.mu.Unlock()
	return n.updates.u.Told(o.ID)
}

// updateTarget is this node as a release is judged against it.
func (n *node) updateTarget(ctx context.Context) (update.Target, error) {
	t, err := tpm.Open(tpmDevice)
	if err != nil {
		return update.Target{}, err
	}
	defer t.Close()
	floor, err := t.Floor()
	if err != nil {
		return update.Target{}, err
	}
	pcrs, err := t.ReadPCRs(7)
	if err != nil {
		return update.Target{}, err
	}
	authority, err := os.ReadFile(authorityFile)
	if err != nil {
		return update.Target{}, err
	}
	ledger := rpc.NewProvedClient(rpc.SocketPath(rpc.SocketDir, rpc.Ledger), sandbox.UIDs()[rpc.Ledger])
	defer ledger.Close()
	st, err := rpc.LedgerStatus.Call(ctx, ledger, rpc.Empty{})
	if err != nil {
		return update.Target{}, fmt.Errorf("the form of the stored data is not known: %w", err)
	}
	return update.Target{Release: n.release.Number, Floor: floor, Format: max(n.format, st.Format), Reads: update.StoredFormat, Evaluation: n.release.Evaluation, Authority: authority,
		PCRs: map[uint]string{7: hex.EncodeToString(pcrs[7])}, SlotSize: n.updates.u.Size}, nil
}
