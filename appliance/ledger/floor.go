package ledger

import (
	"context"
	"strings"
	"time"

	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
)

// The floor of the time: the newest moment that certainly lies in the past, because a majority of time servers put the present behind it.
// It lies in the records and, for the case that those are lost or restored from a copy, in the audit and in the TPM. Only what was recorded under a
// trusted time counts: an entry from before that has a boot id and a boot time, and a clock chip that says 2099 reaches neither. A time that
// administrators approved does not count either: it is their word for a day.
const (
	floorStep    = time.Hour      // between two records of it
	floorAudited = 24 * time.Hour // between two entries, and two writes of the TPM's NV memory, which wears out
	floorAtEnd   = time.Second    // at a clean stop
	floorCheck   = time.Minute
	floorWrite   = 2 * time.Second // a clean stop has three
	floorAction  = "time.floor"
	floorTail    = maxTail // entries that are looked through at the start; on a busy node the floor is written again before it leaves them
)

// floor is guarded by Ledger.mu. Unix milliseconds.
type floor struct {
	at      int64 // 0 = none
	from    string
	audited int64
	seq     uint64 // of its newest entry
	nv      int64  // in the TPM
}

// openFloor takes the newer one of the records' and the audit's.
func (l *Ledger) openFloor() {
	l.floor.from = rpc.FloorLedger
	records, err := l.audit.Tail(floorTail)
	if err != nil {
		return // the audit's own problem tells
	}
	newest := int64(0)
	for _, r := range records {
		switch e := r.Entry; {
		case e.Outcome != "ok":
		case e.Action == floorAction && e.At.Latest != 0 && !e.At.Manual:
			newest, l.floor.seq = max(newest, e.At.Earliest), r.Seq
		case e.Action == actionFloorLower:
			if to, err := time.Parse(time.RFC3339Nano, e.Facts[factUTC]); err == nil {
				newest = min(newest, to.UnixMilli())
			}
		}
	}
	l.floor.audited = newest
	if newest > l.floor.at {
		l.floor.at, l.floor.from = newest, rpc.FloorAudit
	}
	if l.tpm == nil {
		return
	}
	if at, err := l.tpm.TimeFloor(); err != nil {
		l.cfg.Log("time floor in the TPM: %v", err)
	} else if !at.IsZero() {
		if l.floor.nv = at.UnixMilli(); l.floor.nv > l.floor.at {
			l.floor.at, l.floor.from = l.floor.nv, rpc.FloorTPM
		}
	}
}

// keepFloor records the floor while the time is trusted and tells the clock what is on record.
func (l *Ledger) keepFloor(ctx context.Context) {
	told := int64(-1)
	for {
		event := l.timeEvent()
		if err := l.recordFloor(floorStep); err != nil {
			l.cfg.Log("time floor: %v", err)
		}
		if s, _ := l.Snapshot(); s.Floor != told && l.tellFloor(ctx) == nil {
			told = s.Floor
		}
		pause := floorCheck
		if told < 0 {
			pause = time.Second
		}
		select {
		case <-ctx.Done():
			return
		case <-event:
		case <-time.After(pause):
		}
	}
}

// timeEvent is closed at the next event of the time; nil, which blocks for ever, where there are none.
func (l *Ledger) timeEvent() <-chan struct{} {
	if l.cfg.TimeEvent == nil {
		return nil
	}
	return l.cfg.TimeEvent()
}

func (l *Ledger) tellFloor(ctx context.Context) error {
	if l.cfg.Clock == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	l.mu.Lock()
	req := rpc.ClockFloorRequest{From: l.floor.from}
	if l.floor.at != 0 {
		req.Floor = time.UnixMilli(l.floor.at).UTC()
	}
	l.mu.Unlock()
	_, err := rpc.ClockFloor.Call(ctx, l.cfg.Clock, req)
	return err
}

// recordFloor raises the floor to the earliest that the present may be, if that is at least step later than what is on record.
func (l *Ledger) recordFloor(step time.Duration) error {
	t := l.cfg.Time()
	earliest, _, ok := t.At(l.cfg.BootTime())
	if !ok || t.Manual || l.store == nil {
		return nil
	}
	at, last := earliest.UnixMilli(), l.audit.Status().Last
	l.mu.Lock()
	crowded := at > l.floor.at && last-min(last, l.floor.seq) > floorTail/2
	due := crowded || at >= l.floor.at+step.Milliseconds()
	entry := crowded || at >= l.floor.audited+floorAudited.Milliseconds()
	l.mu.Unlock()
	if !due {
		return nil
	}
	if err := l.store.setFloor(at); err != nil {
		return err
	}
	l.mu.Lock()
	l.floor.at, l.floor.from = at, rpc.FloorLedger
	l.mu.Unlock()
	l.publish()
	l.keepInTPM(at, step == floorAtEnd)
	if !entry {
		return nil
	}
	// Without the entry the records alone know: no reason to do without the floor.
	if receipt, err := l.audit.Append(context.Background(), l.stamped(policy.AuditEntry{Kind: policy.AuditSystem, Action: floorAction, Outcome: "ok",
		Detail: "no time before this entry's is believed from now on", Facts: sourceFacts(t)})); err == nil {
		l.mu.Lock()
		l.floor.audited, l.floor.seq = at, receipt.Seq
		l.mu.Unlock()
	}
	return nil
}

// keepInTPM writes NV at most daily, and at a clean stop; a lower floor at once. Where it can't, records and audit hold the floor.
func (l *Ledger) keepInTPM(at int64, now bool) {
	l.mu.Lock()
	due := at < l.floor.nv || at >= l.floor.nv+floorAudited.Milliseconds() || now && at > l.floor.nv
	l.mu.Unlock()
	if !due || l.cfg.TimeFloor == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), floorWrite)
	defer cancel()
	if err := l.cfg.TimeFloor(ctx, time.UnixMilli(at).UTC()); err != nil {
		l.cfg.Log("time floor not kept in the TPM: %v", err)
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.floor.nv = at
}

// sourceFacts names who agreed to a time.
func sourceFacts(t policy.TrustedTime) map[string]string {
	return map[string]string{"sources": strings.Join(t.Sources, " "), "bound": t.Bound.String()}
}

// lowerFloor is what administrators approved; the audit knows it already.
func (l *Ledger) lowerFloor(to time.Time) error {
	if err := l.ready(); err != nil {
		return err
	}
	if err := l.store.setFloor(to.UnixMilli()); err != nil {
		return err
	}
	l.mu.Lock()
	l.floor.at, l.floor.from = to.UnixMilli(), rpc.FloorLedger
	l.mu.Unlock()
	l.publish()
	l.keepInTPM(to.UnixMilli(), false)
	return nil
}
