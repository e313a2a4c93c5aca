package ledger

import (
	"context"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"time"

	"guardhouse/appliance/rpc"
)

const contextKeySize = 32

// epochHour numbers the hour since 1970, by the middle of the trusted interval; before there is one, by the time since boot, so that a
// node whose time servers are unreachable still holds a conversation. Nodes that differ by one at the turn of an hour share a key,
// because each has the previous one.
func (l *Ledger) epochHour() uint64 {
	now := l.cfg.BootTime()
	earliest, latest, ok := l.cfg.Time().At(now)
	if !ok {
		return uint64(now / time.Hour)
	}
	return uint64(earliest.Add(latest.Sub(earliest)/2).Unix()) / 3600
}

// contextKeys derives the keys of an hour and the hour before it: HKDF-SHA256 of the cluster secret, so every node of the cluster has
// the same. The caller wipes them.
func (l *Ledger) contextKeys(epoch uint64) (rpc.ContextKeys, error) {
	secret, err := l.secret(secretCluster)
	if err != nil {
		return rpc.ContextKeys{}, err
	}
	defer clear(secret)
	k := rpc.ContextKeys{Epoch: epoch}
	if k.Current, err = contextKey(secret, epoch); err != nil {
		return k, err
	}
	k.Previous, err = contextKey(secret, epoch-1)
	return k, err
}

func contextKey(secret []byte, epoch uint64) ([]byte, error) {
	info := binary.BigEndian.AppendUint64([]byte("guardhouse context key 1\x00"), epoch)
	k, err := hkdf.Key(sha256.New, secret, nil, string(info), contextKeySize)
	if err != nil {
		return nil, fmt.Errorf("derive context key: %w", err)
	}
	return k, nil
}

// WatchContextKeys sends the keys now and whenever the hour changes, also backwards when the first trusted time arrives.
func (l *Ledger) WatchContextKeys(ctx context.Context, send func(rpc.ContextKeys) error) error {
	s, _ := l.Snapshot()
	if !s.State.SetUp() {
		return rpc.ErrUnavailable.With("the node is not set up")
	}
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	last, sent := uint64(0), false
	for {
		event := l.timeEvent()
		if epoch := l.epochHour(); !sent || epoch != last {
			k, err := l.contextKeys(epoch)
			if err == nil {
				err = send(k)
			}
			clear(k.Current)
			clear(k.Previous)
			if err != nil {
				return err
			}
			last, sent = epoch, true
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-event:
		case <-tick.C:
		}
	}
}
