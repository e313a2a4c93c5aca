package ledger

import (
	"context"
	"reflect"
	"time"

	"guardhouse/appliance/policy"
)

// keepNetwork tells init this node's network at the start and after each change, again and again until init has taken it: the records
// decide, init only stores and applies.
func (l *Ledger) keepNetwork(ctx context.Context) {
	var sent *policy.Network
	for {
		s, changed := l.Snapshot()
		pause := time.Duration(0)
		if node, ok := s.State.Nodes[s.NodeID]; ok && (sent == nil || !reflect.DeepEqual(*sent, node.Network)) {
			if err := l.sendNetwork(ctx, node.Network); err != nil {
				pause = 5 * time.Second
			} else {
				sent = &node.Network
			}
		}
		var retry <-chan time.Time
		if pause > 0 {
			retry = time.After(pause)
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		case <-retry:
		}
	}
}

func (l *Ledger) sendNetwork(ctx context.Context, n policy.Network) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	err := l.cfg.Network(ctx, n)
	if err == nil {
		l.clearProblem("network")
		return nil
	}
	if ctx.Err() == nil {
		l.setProblem(policy.Problem{Kind: "network", What: "the network can't be applied as recorded: " + err.Error(), Remedy: "check cables and network show; change it with network set"})
	}
	return err
}
