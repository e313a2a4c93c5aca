package ledger

import (
	"context"
	"sync"
	"time"

	"guardhouse/appliance/audit"
	"guardhouse/appliance/policy"
)

// refusalTable sums refusals and keeps the few that are to be written until the writer takes them.
type refusalTable struct {
	mu   *sync.Mutex
	sums *audit.Refusals
	out  chan policy.AuditEntry
}

func newRefusalTable() refusalTable {
	return refusalTable{new(sync.Mutex), audit.NewRefusals(), make(chan policy.AuditEntry, 512)}
}

// Refuse counts a refused request of an unknown caller; it never waits for the disk.
func (l *Ledger) Refuse(r policy.Refusal) {
	l.refusals.mu.Lock()
	e, ok := l.refusals.sums.Note(l.cfg.BootTime(), r)
	l.refusals.mu.Unlock()
	if !ok {
		return
	}
	select {
	case l.refusals.out <- l.stamped(e):
	default: // the disk is slower than the bounded rate; status shows that
	}
}

// stamp is the time now for a record, with the boot id in any case, and CLOCK_BOOTTIME.
func (l *Ledger) stamp() (policy.Stamp, time.Duration) {
	now := l.cfg.BootTime()
	at := l.cfg.Time().Stamp(now)
	if at.Boot == "" {
		at.Boot = l.cfg.Boot
	}
	return at, now
}

// stamped fills in the time where the caller gave none.
func (l *Ledger) stamped(e policy.AuditEntry) policy.AuditEntry {
	now := l.cfg.BootTime()
	if e.BootTime == 0 {
		e.BootTime = now.Milliseconds()
	}
	if e.At.Latest == 0 {
		e.At, _ = l.stamp()
	}
	l.mu.Lock()
	if e.Policy == 0 {
		e.Policy = l.index
	}
	l.mu.Unlock()
	return e
}

func (l *Ledger) writeRefusals(ctx context.Context) {
	tick := time.NewTicker(2 * time.Second)
	defer tick.Stop()
	write := func(e policy.AuditEntry) {
		// What is refused here is space or a broken chain, which Status shows; the flood must not fill the log with it.
		_, _ = l.audit.Append(context.WithoutCancel(ctx), e)
	}
	for {
		select {
		case e := <-l.refusals.out:
			write(e)
		case <-tick.C:
			l.refusals.mu.Lock()
			due := l.refusals.sums.Due(l.cfg.BootTime())
			l.refusals.mu.Unlock()
			for _, e := range due {
				write(l.stamped(e))
			}
		case <-ctx.Done():
			l.refusals.mu.Lock()
			rest := l.refusals.sums.Rest(l.cfg.BootTime())
			l.refusals.mu.Unlock()
			for len(l.refusals.out) > 0 {
				write(<-l.refusals.out)
			}
			for _, e := range rest {
				write(l.stamped(e))
			}
			return
		}
	}
}
