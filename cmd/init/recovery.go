package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"guardhouse/appliance/disk"
	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
	"guardhouse/appliance/sandbox"
	"guardhouse/appliance/tpm"
	"guardhouse/appliance/volume"
)

// custody is the data volume in PID 1's hands. node.opening guards it.
type custody struct {
	volume *volume.Volume
	draft  *volume.Draft // shown and not yet typed back

	opened func()        // starts what waits for the disk
	wrong  int           // recovery secrets refused in a row
	wait   time.Duration // boot time before which none is looked at

	keysGone []string // what a factory reset destroyed in the HSM in this boot, a line each
	reset    *resetOrder
}

// resetOrder is what shutdown does on its way to a factory reset.
type resetOrder struct {
	disk  disk.Disk
	owner []byte // nil where the volume was shut
}

// Waits after wrong recovery secrets: 2 s, 4 s and so on. Nobody guesses 130 bits; they keep a broken terminal from trying for ever.
const (
	firstWait = 2 * time.Second
	mostWait  = 2 * time.Minute
)

// draftLife is how long a recovery secret that was shown may be typed back.
const draftLife = 15 * time.Minute

// serveVolume adds the calls about the data volume. ctx lives as long as init.
func (n *node) serveVolume(ctx context.Context, s *rpc.Server) {
	rpc.Handle(s, rpc.InitVolume, func(context.Context, rpc.Caller, rpc.Empty) (rpc.VolumeReply, error) {
		n.opening.Lock()
		defer n.opening.Unlock()
		return n.volumeState()
	}, rpc.Console)
	rpc.Handle(s, rpc.InitRecoveryDraft, func(_ context.Context, _ rpc.Caller, r rpc.RecoveryDraftRequest) (rpc.RecoveryDraft, error) {
		defer rpc.RecoveryTexts{Texts: r.Current}.Wipe()
		return n.draftRecovery(r)
	}, rpc.Console)
	rpc.Handle(s, rpc.InitRecoveryConfirm, func(_ context.Context, _ rpc.Caller, r rpc.RecoveryTexts) (rpc.VolumeReply, error) {
		defer r.Wipe()
		return n.confirmRecovery(r)
	}, rpc.Console)
	rpc.Handle(s, rpc.InitUnlock, func(_ context.Context, _ rpc.Caller, r rpc.RecoveryTexts) (rpc.VolumeReply, error) {
		defer r.Wipe()
		return n.unlock(ctx, r)
	}, rpc.Console)
	rpc.Handle(s, rpc.InitTimeRecover, func(ctx context.Context, _ rpc.Caller, r rpc.TimeRecoverRequest) (rpc.ClockStatusReply, error) {
		defer rpc.RecoveryTexts{Texts: r.Texts}.Wipe()
		return n.timeRecover(ctx, r)
	}, rpc.Console)
	rpc.Handle(s, rpc.InitReseal, func(context.Context, rpc.Caller, rpc.Empty) (rpc.VolumeReply, error) { return n.reseal() }, rpc.Console)
	ledger := rpc.NewProvedClient(rpc.SocketPath(rpc.SocketDir, rpc.Ledger), sandbox.UIDs()[rpc.Ledger])
	rpc.Handle(s, rpc.InitFactoryReset, func(ctx context.Context, _ rpc.Caller, r rpc.FactoryResetRequest) (rpc.FactoryResetReply, error) {
		return n.factoryReset(ctx, ledger, r)
	}, rpc.Console)
}

// refusal is an error of disk, TPM or volume as it crosses to the console.
func refusal(err error) error {
	if p, ok := problemOf(err); ok {
		return &rpc.Error{Kind: rpc.ErrRefused.Kind, Message: p.What, Remedy: p.Remedy}
	}
	return err
}

// volumeState is called with n.opening held.
func (n *node) volumeState() (rpc.VolumeReply, error) {
	var known volume.Recovery
	r := rpc.VolumeReply{State: rpc.VolumeTPM}
	if v := n.volume; v != nil {
		var err error
		if known, err = v.Recovery(); err != nil {
			return r, refusal(err)
		}
		if c := v.Changed; c != nil {
			r.State, r.Changed = rpc.VolumeTyped, c.Lines()
			if p, ok := problemOf(c.Refused); ok {
				r.Refused, r.Remedy = p.What, p.Remedy
			}
		}
	} else {
		r.State = rpc.VolumeNone
		if d, err := n.shutDisk(); err == nil {
			r.State = rpc.VolumeShut
			if known, err = volume.RecoveryOf(d); err != nil {
				return r, refusal(err)
			}
		}
	}
	r.Secret, r.Form = known.ID, known.Form
	return r, nil
}

// shutDisk is the data disk whose volume is not open.
func (n *node) shutDisk() (disk.Disk, error) {
	list, err := n.finder.List()
	if err != nil {
		return disk.Disk{}, err
	}
	d, err := disk.Choose(list)
	if err == nil && d.Content != disk.Ours {
		err = &disk.Error{Kind: disk.KindNone, What: "there is no volume to open", Remedy: "attach the data disk"}
	}
	return d, err
}

func (n *node) draftRecovery(r rpc.RecoveryDraftRequest) (rpc.RecoveryDraft, error) {
	n.opening.Lock()
	defer n.opening.Unlock()
	if n.volume == nil {
		return rpc.RecoveryDraft{}, rpc.ErrUnavailable.With("the data volume is not open")
	}
	if err := n.patience(); err != nil {
		return rpc.RecoveryDraft{}, err
	}
	d, err := n.volume.DraftRecovery(r.Form, r.Current)
	n.tried(err)
	if err != nil {
		return rpc.RecoveryDraft{}, refusal(err)
	}
	n.dropDraft()
	n.draft = d
	time.AfterFunc(draftLife, func() { // it holds the volume key
		n.opening.Lock()
		defer n.opening.Unlock()
		if n.draft == d {
			n.dropDraft()
		}
	})
	reply := rpc.RecoveryDraft{Secret: d.ID, Form: d.Form}
	for _, t := range d.Texts {
		reply.Texts = append(reply.Texts, append([]byte(nil), t...))
	}
	return reply, nil
}

func (n *node) dropDraft() {
	if n.draft != nil {
		n.draft.Wipe()
		n.draft = nil
	}
}

func (n *node) confirmRecovery(r rpc.RecoveryTexts) (rpc.VolumeReply, error) {
	n.opening.Lock()
	defer n.opening.Unlock()
	if n.volume == nil || n.draft == nil {
		return rpc.VolumeReply{}, rpc.ErrUnavailable.With("no recovery secret waits to be confirmed")
	}
	if err := n.volume.ConfirmRecovery(n.draft, r.Texts); err != nil {
		return rpc.VolumeReply{}, refusal(err)
	}
	n.logf("recovery secret %s opens the data volume from now on", n.draft.ID)
	n.dropDraft()
	n.problem("recovery-none", "", "")
	return n.volumeState()
}

// patience refuses to look at a recovery secret too soon after a wrong one.
func (n *node) patience() error {
	if left := n.wait - rpc.BootTime(); left > 0 {
		return rpc.ErrUnavailable.With("the last recovery secret was wrong; wait %d s", int(left.Seconds())+1)
	}
	return nil
}

// tried notes whether the secret was right. A slip of the fingers costs nothing.
func (n *node) tried(err error) {
	var e *disk.Error
	switch {
	case err == nil:
		n.wrong = 0
	case errors.As(err, &e) && e.Kind == volume.KindWrongSecret:
		n.wait = rpc.BootTime() + min(mostWait, firstWait<<min(n.wrong, 8))
		n.wrong++
		n.logf("a wrong recovery secret was typed, %d in a row", n.wrong)
	}
}

// unlock opens the shut volume and starts what waited for it.
func (n *node) unlock(ctx context.Context, r rpc.RecoveryTexts) (rpc.VolumeReply, error) {
	n.opening.Lock()
	defer n.opening.Unlock()
	if n.volume != nil {
		return rpc.VolumeReply{}, rpc.ErrRefused.With("the data volume is open")
	}
	if err := n.patience(); err != nil {
		return rpc.VolumeReply{}, err
	}
	d, err := n.shutDisk()
	if err != nil {
		return rpc.VolumeReply{}, refusal(err)
	}
	boot, err := n.bootOf()
	if err != nil {
		n.logf("recovery: %v", err)
	}
	m := n.machine()
	if t, err := tpm.Open(tpmDevice); err == nil {
		defer t.Close()
		m.TPM = t
	}
	v, err := m.OpenWithRecovery(ctx, d, boot, r.Texts)
	n.tried(err)
	if err != nil {
		return rpc.VolumeReply{}, refusal(err)
	}
	if err := n.adopt(v); err != nil {
		return rpc.VolumeReply{}, refusal(err)
	}
	n.diskFailed(nil)
	n.noteRecovered()
	n.opened()
	go n.auditLater(ctx, policy.AuditEntry{Kind: policy.AuditSystem, Action: "recover", Outcome: "ok", Detail: "the data volume was opened with its recovery secret"})
	return n.volumeState()
}

// noteRecovered tells in the status what the next boot will ask for.
func (n *node) noteRecovered() {
	n.problem("recovery-used", "the data volume was opened with its recovery secret, and the next boot will ask for it again", "look at recovery status, then reseal")
}

func (n *node) reseal() (rpc.VolumeReply, error) {
	n.opening.Lock()
	defer n.opening.Unlock()
	if n.volume == nil {
		return rpc.VolumeReply{}, rpc.ErrUnavailable.With("the data volume is not open")
	}
	t, err := tpm.Open(tpmDevice)
	if err != nil {
		return rpc.VolumeReply{}, refusal(err)
	}
	defer t.Close()
	if err := n.volume.Reseal(t); err != nil {
		return rpc.VolumeReply{}, refusal(err)
	}
	n.problem("recovery-used", "", "")
	n.logf("data volume resealed for %q of release %d", n.volume.Used.Name, n.volume.Used.Release)
	return n.volumeState()
}

// factoryReset has the keys in the HSM destroyed that r names, reads what the reset needs of the open volume and ends the boot; shutdown
// does the rest. The keys go first, while the ledger still knows them and their PIN: where one is left, nothing else is done.
func (n *node) factoryReset(ctx context.Context, ledger *rpc.Client, r rpc.FactoryResetRequest) (rpc.FactoryResetReply, error) {
	n.opening.Lock()
	defer n.opening.Unlock()
	if r.Shut != (n.volume == nil) {
		return rpc.FactoryResetReply{}, rpc.ErrRefused.With("the data volume is %s meanwhile; begin again", map[bool]string{true: "shut", false: "open"}[n.volume == nil])
	}
	var reply rpc.FactoryResetReply
	if len(r.Destroy) > 0 {
		keys, err := rpc.LedgerDestroyKeys.Call(ctx, ledger, rpc.DestroyKeysRequest{Actor: r.Actor, Refs: r.Destroy})
		if err != nil {
			return reply, err
		}
		n.keysGone = append(n.keysGone, goneLines(keys)...)
		if reply.Keys = &keys; len(keys.Left) > 0 {
			return reply, nil
		}
	}
	err := n.orderReset()
	reply.Ends = err == nil
	return reply, err
}

// goneLines are the report of what was destroyed in the HSM.
func goneLines(r rpc.DestroyKeysReply) (lines []string) {
	for _, k := range r.Gone {
		lines = append(lines, fmt.Sprintf("HSM: key %s, id %s, SPKI %.16s.. destroyed in token %s; searched again: none", k.Label, k.ID, k.Ref, r.Token))
	}
	return lines
}

// orderReset is called with n.opening held.
func (n *node) orderReset() error {
	order := &resetOrder{}
	var err error
	if n.volume != nil {
		order.disk = n.volume.Disk
		order.owner, err = n.volume.Owner()
	} else {
		order.disk, err = n.shutDisk()
	}
	if err != nil {
		return refusal(err)
	}
	n.reset = order
	n.ask(powerRequest{powerReboot, "factory reset"})
	return nil
}

// zeroise is the end of a factory reset, when nothing runs any more. It tells on the serial line what it did and proved.
func (n *node) zeroise() {
	order := n.reset
	if order == nil {
		return
	}
	m := n.machine()
	if t, err := tpm.Open(tpmDevice); err == nil {
		defer t.Close()
		m.TPM = t
	}
	keys := n.keysGone
	if len(keys) == 0 {
		keys = []string{"HSM: no key was destroyed"}
	}
	report, err := m.FactoryReset(order.disk, order.owner)
	report = append(keys, report...)
	clear(order.owner)
	for _, line := range report {
		n.say("factory reset: " + line)
	}
	if err != nil {
		n.say(fmt.Sprintf("factory reset failed: %v", err))
		time.Sleep(20 * time.Second) // so that the line can be read
		return
	}
	n.say("factory reset: done; the node starts as it came")
}
