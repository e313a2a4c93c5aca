// Clock asks time servers and is the only source of trusted time on a node: it makes policy.TrustedTime and streams it to the other
// processes. It alone has CAP_SYS_TIME, and disciplines the system clock. When it dies the others keep the last value until that expires.
// It needs nobody to start: servers, keys, floor and drift lie in its own folder on the data disk (see appliance/clock).
//
// Flags: --run-dir, --uids (see appliance/supervise), --data (its folder; default /data/clock; read as soon as it exists), --rtc (the
// hardware clock, written but never read; default /dev/rtc0, empty for none), --build-epoch (unix seconds; times before it are refused;
// default from /etc/os-release's BUILD_EPOCH).
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"guardhouse/appliance/clock"
	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
	"guardhouse/appliance/sandbox"
	"guardhouse/appliance/supervise"
)

func main() {
	child := supervise.Flags(flag.CommandLine, rpc.Clock, sandbox.UIDs())
	epoch := flag.Int64("build-epoch", sandbox.Release().BuildEpoch, "unix seconds; no time before it is believed")
	data := flag.String("data", "/data/clock", "folder of the clock's files")
	rtc := flag.String("rtc", "/dev/rtc0", "hardware clock to write; empty = none")
	flag.Parse()
	if err := run(child, time.Unix(*epoch, 0), *data, *rtc); err != nil {
		fmt.Fprintln(os.Stderr, "clock:", err)
		os.Exit(1)
	}
}

func run(child *supervise.Child, build time.Time, data, rtc string) error {
	ctx, cancel := supervise.Context()
	defer cancel()
	boot, err := clock.BootID()
	if err != nil {
		return err
	}
	kernel, err := clock.OpenKernel()
	if err != nil {
		return err
	}
	ring := &keyring{dir: data}
	k := clock.New()
	k.Boot, k.Build, k.Log = boot, build, child.Logf
	if _, err := os.Stat(rtc); err == nil {
		k.SetRTC = clock.SetRTC(rtc)
	}
	ledger := child.Client(rpc.Ledger)
	k.Clock, k.Query = kernel, query(kernel, clock.QueryNTP(kernel, ring.find), ledger)
	tell := newTeller(k, ledger)
	k.Event = tell.event

	k.Resume(data)
	var admins administered
	var work sync.WaitGroup
	work.Go(func() { k.Persist(ctx, data) })
	work.Go(func() { k.Run(ctx) })
	work.Go(func() { tell.run(ctx) })
	work.Go(func() { ring.renew(ctx, k, ledger, child.Logf) })
	work.Go(func() {
		rpc.LedgerWatch.Follow(ctx, ledger, rpc.Empty{}, func(snap policy.Snapshot) error {
			admins.saw(snap)
			if configure(k, snap) {
				ring.fetch(ctx, k, ledger, child.Logf)
			}
			return nil
		}, admins.lost)
	})
	go supervise.Ready(ctx, "asking time servers", k.Check)
	err = child.Serve(ctx, server(child.UIDs, k, &admins))
	cancel()
	work.Wait()
	k.Stop()
	return err
}

// configure takes the settings of this node; false before setup.
func configure(k *clock.Keeper, snap policy.Snapshot) bool {
	if snap.State.Service == nil {
		return false
	}
	node := snap.State.Nodes[snap.NodeID]
	var servers []clock.Server
	for _, a := range node.TimeServers {
		servers = append(servers, clock.Server{Address: a, Key: node.TimeKeys[a]})
	}
	for _, name := range slices.Sorted(maps.Keys(snap.State.Peers)) {
		servers = append(servers, clock.Server{Address: name, Peer: true, Pin: snap.State.Peers[name].Fingerprint()})
	}
	k.Configure(servers, snap.State.Service.TimeBound)
	return true
}

// asker asks one source.
type asker func(context.Context, clock.Server) (clock.Sample, error)

// query asks a time server itself, and a peer through the ledger, which has the link to it.
func query(c clock.Clock, ntp asker, ledger *rpc.Client) asker {
	return func(ctx context.Context, s clock.Server) (clock.Sample, error) {
		if !s.Peer {
			return ntp(ctx, s)
		}
		r, err := rpc.LedgerPeerTime.Call(ctx, ledger, rpc.PeerTimeRequest{Name: s.Address})
		var said *rpc.Error
		switch {
		case errors.As(err, &said) && errors.Is(err, rpc.ErrUnavailable):
			return clock.Sample{}, errors.New(said.Message)
		case err != nil:
			return clock.Sample{}, fmt.Errorf("ask the ledger: %w", err)
		}
		sample, err := clock.Heard(c.Read(), clock.Sample{Raw: r.Raw, UTC: r.UTC, Distance: r.Distance})
		if err != nil {
			return clock.Sample{}, fmt.Errorf("the peer's answer is not used: %w", err)
		}
		return sample, nil
	}
}

// administered knows whether the ledger decides about approvals: its records said once that this node was set up, so that there are
// administrators, and it answers now.
type administered struct{ setUp, silent atomic.Bool }

func (a *administered) saw(snap policy.Snapshot) {
	if snap.State.Service != nil {
		a.setUp.Store(true)
	}
	a.silent.Store(false)
}

// lost is told when the ledger ceases to answer.
func (a *administered) lost(error) { a.silent.Store(true) }

func (a *administered) decide() bool { return a.setUp.Load() && !a.silent.Load() }

// keyring holds the symmetric keys: as kept on the disk, until the ledger has sent newer ones.
type keyring struct {
	dir  string
	mu   sync.Mutex
	keys map[uint16]clock.Key
}

func (r *keyring) set(keys []clock.Key) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, k := range r.keys {
		clear(k.Secret)
	}
	r.keys = map[uint16]clock.Key{}
	for _, k := range keys {
		r.keys[k.ID] = k
	}
}

// find returns a copy; without keys it looks on the disk, which may have come since.
func (r *keyring) find(id uint16) (clock.Key, bool) {
	r.mu.Lock()
	empty := r.keys == nil
	r.mu.Unlock()
	if empty { // nobody has said yet
		if keys, err := clock.ReadKeys(r.dir); err == nil && len(keys) > 0 {
			r.set(keys)
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	k, ok := r.keys[id]
	k.Secret = append([]byte(nil), k.Secret...)
	return k, ok
}

// renew fetches the keys again while a server that has one does not prove itself: a key may have been changed, which no record shows.
func (r *keyring) renew(ctx context.Context, k *clock.Keeper, ledger *rpc.Client, logf func(string, ...any)) {
	tick := time.NewTicker(time.Minute)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if slices.ContainsFunc(k.Status().Sources, func(s clock.Source) bool { return s.Key != 0 && s.Err != nil }) {
			r.fetch(ctx, k, ledger, logf)
		}
	}
}

// fetch asks the ledger for the keys and keeps them. It is called at each change of the records. With other keys the servers are asked
// again at once.
func (r *keyring) fetch(ctx context.Context, k *clock.Keeper, ledger *rpc.Client, logf func(string, ...any)) {
	sent, err := rpc.LedgerTimeKeys.Call(ctx, ledger, rpc.Empty{})
	if err != nil {
		if !errors.Is(err, rpc.ErrUnavailable) && !errors.Is(err, rpc.ErrUnknownMethod) && ctx.Err() == nil {
			logf("time keys not fetched: %v", err)
		}
		return
	}
	var keys []clock.Key
	for _, k := range sent {
		keys = append(keys, clock.Key{ID: k.ID, Algorithm: k.Algorithm, Secret: k.Secret})
	}
	old, _ := clock.ReadKeys(r.dir)
	changed := !clock.SameKeys(old, keys)
	if changed {
		if err := clock.WriteKeys(r.dir, keys); err != nil && !errors.Is(err, fs.ErrNotExist) {
			logf("time keys not kept: %v", err)
		}
	}
	for _, k := range old {
		clear(k.Secret)
	}
	r.set(keys)
	if changed {
		k.Retry()
	}
}
