package main

import (
	"context"
	"os"
	"os/exec"
	"slices"
	"time"

	"guardhouse/appliance/network"
	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
	"guardhouse/appliance/sandbox"
	"guardhouse/appliance/supervise"
)

// socketSet is the listening sockets of one process. names has one entry for each file; a name comes several times where the network
// separates its roles and several interfaces have the socket's.
type socketSet struct {
	devices []string // bound to, with the name: what tells whether it must be opened anew
	names   []string
	files   []*os.File
}

// startServices lists every process of the table with the supervisor, and starts those that may. The HSM pack's helper is listed first, so
// that it is stopped after hsm.
func (n *node) startServices(ctx context.Context) {
	if err := n.addHelper(); err != nil {
		n.problem("init-service", err.Error(), "restart the node")
	}
	for _, p := range sandbox.Table {
		n.openSockets(ctx, p)
		svc := supervise.Service{Name: p.Name, Watchdog: p.Watchdog, Command: func(env []string) (*exec.Cmd, error) { return n.command(p, env) }}
		if p.NeedsDisk && !n.hasDisk() {
			svc.Hold = "waits for the data disk"
		} else if p.Fenced {
			svc.Hold = "waits for the network fence"
		}
		if err := n.super.Add(svc); err != nil {
			n.problem("init-service", err.Error(), "restart the node")
		}
	}
	go n.startFenced(ctx)
}

// diskOpened starts what waited for the disk.
func (n *node) diskOpened(ctx context.Context) {
	n.startNetwork(ctx)
	n.reopenSockets(ctx)
	for _, p := range sandbox.Table {
		if p.NeedsDisk {
			n.super.Release(p.Name)
		}
	}
}

func (n *node) hasDisk() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.mounted
}

// command starts p through the shim. Its devices are handed over at each start: they may have come meanwhile.
func (n *node) command(p sandbox.Process, env []string) (*exec.Cmd, error) {
	for _, d := range p.Devices {
		path := d.Path
		if d.Port != "" {
			var ok bool
			if path, ok = virtioPort(d.Port); !ok {
				continue
			}
		}
		if err := os.Chown(path, int(p.UID), int(p.GID)); err == nil {
			err = os.Chmod(path, d.Mode)
			if err != nil {
				n.logf("hand %s to %s: %v", path, p.Name, err)
			}
		}
	}
	l := sandbox.LaunchOf(p, append(env, "GUARDHOUSE_VERSION="+n.release.Version)...)
	n.mu.Lock()
	set := n.sockets[p.Name]
	n.mu.Unlock()
	l.Sockets = set.names
	return sandbox.Command(l, set.files)
}

// openSockets opens the sockets of p where the network wants them and reports whether anything changed. Old ones stay open where they
// are still right, so that their queues survive.
func (n *node) openSockets(ctx context.Context, p sandbox.Process) bool {
	type place struct{ name, device string }
	var want []place
	var moved []string
	ports := map[string]uint16{}
	for _, s := range p.Sockets {
		ports[s.Name] = s.Port
		devices, everywhere := n.net.Devices(policy.NetworkRole(s.Role))
		if everywhere {
			devices = []string{""}
		} else if len(devices) == 0 && s.Moves {
			devices = []string{"lo"} // nobody outside reaches it there, and it can move again
		}
		for _, d := range devices {
			want, moved = append(want, place{s.Name, d}), append(moved, d)
		}
	}
	n.mu.Lock()
	old := n.sockets[p.Name]
	n.mu.Unlock()
	var have []place
	if old != nil {
		for i, name := range old.names {
			have = append(have, place{name, old.devices[i]})
		}
		if slices.Equal(have, want) {
			return false
		}
	}
	if old != nil && n.moveSockets(p, old, moved) {
		return false
	}
	if old != nil {
		for _, f := range old.files {
			f.Close() // before the new ones: a socket on every device and one on a single device exclude each other
		}
	}
	set := &socketSet{}
	for _, w := range want {
		f, err := supervise.ListenTCP(ctx, ports[w.name], w.device)
		if err != nil {
			n.problem("socket-"+w.name, err.Error(), "restart the node")
			continue
		}
		set.names, set.devices, set.files = append(set.names, w.name), append(set.devices, w.device), append(set.files, f)
	}
	n.mu.Lock()
	n.sockets[p.Name] = set
	n.mu.Unlock()
	return true
}

// answerPause is how long the ledger has to answer for a change of the network that starts it anew.
const answerPause = 3 * time.Second

// moves is true for a process whose sockets follow the network while it goes on.
func moves(p sandbox.Process) bool {
	return len(p.Sockets) > 0 && !slices.ContainsFunc(p.Sockets, func(s sandbox.Socket) bool { return !s.Moves })
}

// moveSockets binds the open sockets of p to other devices ("" = none), where p wants that and there are as many. What was accepted before
// stays; the process notices nothing.
func (n *node) moveSockets(p sandbox.Process, set *socketSet, devices []string) bool {
	if !moves(p) || len(devices) != len(set.files) {
		return false
	}
	for i, f := range set.files {
		if set.devices[i] == devices[i] {
			continue
		}
		if err := supervise.MoveTCP(f, devices[i]); err != nil {
			n.logf("%s stays where it listens until it is started anew: %v", p.Name, err)
			return false
		}
	}
	set.devices = devices
	n.logf("%s listens elsewhere now", p.Name)
	return true
}

// reopenSockets follows a change of the network. A process whose sockets changed is started anew with the new ones: first it ends, so
// that its own copies of the old ones are closed.
func (n *node) reopenSockets(ctx context.Context) {
	n.listening.Lock()
	defer n.listening.Unlock()
	for _, p := range sandbox.Table {
		if len(p.Sockets) > 0 && n.openSockets(ctx, p) {
			n.logf("%s listens elsewhere now, starting it anew", p.Name)
			if moves(p) && n.super.Ready(p.Name) {
				// It asked for this change and has to say what became of it, to setup for example, before it may end.
				select {
				case <-ctx.Done():
					return
				case <-time.After(answerPause):
				}
			}
			n.super.Restart(p.Name)
			// A socket that its old process still held may have failed to open above.
			if n.openSockets(ctx, p) {
				n.super.Restart(p.Name)
			}
		}
	}
}

// acquireDHCP runs the DHCP client as a process without rights and passes its leases on. It starts it again, with a pause, when it ends.
func (n *node) acquireDHCP(ctx context.Context, device string, lease func(network.Lease)) error {
	for {
		err := n.dhcpOnce(ctx, device, lease)
		if ctx.Err() != nil {
			return nil
		}
		n.logf("DHCP on %s ended: %v", device, err)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(5 * time.Second):
		}
	}
}

func (n *node) dhcpOnce(ctx context.Context, device string, lease func(network.Lease)) error {
	l := sandbox.LaunchOf(sandbox.DHCPProcess)
	l.Argv0, l.Args = dhcpName, []string{device}
	cmd, err := sandbox.Command(l, nil)
	if err != nil {
		return err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	er, ew, err := os.Pipe()
	if err != nil {
		w.Close()
		return err
	}
	cmd.Stdout, cmd.Stderr = w, ew
	err = n.reaper.Start(cmd)
	w.Close()
	ew.Close()
	if err != nil {
		er.Close()
		return err
	}
	go func() {
		defer er.Close()
		n.log.Capture(sandbox.DHCP, er)
	}()
	stop := context.AfterFunc(ctx, func() { cmd.Process.Kill() })
	defer stop()
	rerr := network.ReadLeases(r, lease)
	cmd.Process.Kill()
	if err := n.reaper.Wait(cmd); rerr == nil {
		return err
	}
	return rerr
}

// dhcpMain is the DHCP process.
func dhcpMain(device string) error {
	ctx, cancel := supervise.Context()
	defer cancel()
	return network.AcquireHere(ctx, device, network.WriteLeases(os.Stdout))
}

const dhcpName = "guardhouse-dhcp"

// auditStart records that the node started, as soon as the ledger takes it.
func (n *node) auditStart(ctx context.Context) {
	n.auditLater(ctx, policy.AuditEntry{Kind: policy.AuditSystem, BootTime: n.started.Milliseconds(), Action: "start", Outcome: "ok",
		Detail: "node started", Facts: map[string]string{"version": n.release.Version, "boot": n.boot, "kernel": kernelRelease()}})
}

// auditLater records e as soon as the ledger takes it, for as long as it takes: a node that is not set up audits nothing.
func (n *node) auditLater(ctx context.Context, e policy.AuditEntry) {
	ledger := rpc.NewProvedClient(rpc.SocketPath(rpc.SocketDir, rpc.Ledger), sandbox.UIDs()[rpc.Ledger])
	defer ledger.Close()
	e.At = policy.Stamp{Boot: n.boot}
	if e.BootTime == 0 {
		e.BootTime = rpc.BootTime().Milliseconds()
	}
	for pause := time.Second; ; pause = min(2*pause, 15*time.Second) {
		if n.super.Ready(rpc.Ledger) {
			if _, err := rpc.LedgerAudit.Call(ctx, ledger, e); err == nil {
				return
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
	}
}
