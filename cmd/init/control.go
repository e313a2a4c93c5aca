package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"guardhouse/appliance/network"
	"guardhouse/appliance/policy"
	"guardhouse/appliance/quote"
	"guardhouse/appliance/rpc"
	"guardhouse/appliance/sandbox"
	"guardhouse/appliance/supervise"
	"guardhouse/appliance/tpm"
	"guardhouse/appliance/volume"
)

// serve answers the other processes.
func (n *node) serve(ctx context.Context) error {
	l, err := rpc.Listen(rpc.SocketPath(rpc.SocketDir, rpc.Init))
	if err != nil {
		return err
	}
	return n.answer(ctx, l)
}

// answer goes on after ctx has ended, while the services are stopped: the ledger has the TPM keep the time's floor then.
func (n *node) answer(ctx context.Context, l *net.UnixListener) error {
	return n.calls(ctx).Serve(context.WithoutCancel(ctx), l)
}

// calls are what the other processes may ask of init. ctx ends when the node begins to stop.
func (n *node) calls(ctx context.Context) *rpc.Server {
	s := rpc.NewServer(sandbox.UIDs())
	rpc.Handle(s, rpc.InitStatus, func(context.Context, rpc.Caller, rpc.Empty) (rpc.InitStatusReply, error) { return n.status(), nil }, rpc.Console, rpc.Ledger)
	rpc.Handle(s, rpc.InitNetwork, func(_ context.Context, _ rpc.Caller, v policy.Network) (rpc.Empty, error) {
		return rpc.Empty{}, n.setNetwork(ctx, v)
	}, rpc.Ledger)
	rpc.Handle(s, rpc.InitReach, func(ctx context.Context, _ rpc.Caller, address string) ([]string, error) {
		return n.reach(ctx, address)
	}, rpc.Ledger)
	rpc.Handle(s, rpc.InitPeers, func(ctx context.Context, _ rpc.Caller, addresses []string) (rpc.Empty, error) {
		return rpc.Empty{}, n.reachPeers(ctx, addresses)
	}, rpc.Ledger)
	rpc.Handle(s, rpc.InitBoot, func(context.Context, rpc.Caller, rpc.Empty) (rpc.InitBootReply, error) {
		return n.bootFacts(bootLogFile, kernelLogFile), nil
	}, rpc.Ledger)
	rpc.Handle(s, rpc.InitTimeFloor, func(_ context.Context, _ rpc.Caller, at time.Time) (rpc.Empty, error) {
		return rpc.Empty{}, n.setTimeFloor(at)
	}, rpc.Ledger)
	rpc.HandleStream(s, rpc.InitLog, func(ctx context.Context, _ rpc.Caller, req rpc.LogRequest, send func(rpc.LogLine) error) error {
		return n.log.Read(ctx, req, send)
	}, rpc.Console)
	rpc.Handle(s, rpc.InitPower, func(_ context.Context, _ rpc.Caller, req rpc.PowerRequest) (rpc.Empty, error) {
		if req.Action != powerOff && req.Action != powerReboot {
			return rpc.Empty{}, rpc.ErrRefused.With("%q is neither %s nor %s", req.Action, powerReboot, powerOff)
		}
		n.ask(powerRequest{req.Action, "asked for by " + req.Actor.Name})
		return rpc.Empty{}, nil
	}, rpc.Console)
	n.registerUpdates(s)
	n.serveVolume(ctx, s)
	return s
}

// setTimeFloor is here because only root may read the TPM owner's authorisation. The ledger owns the TPM otherwise; the kernel keeps the two
// apart.
func (n *node) setTimeFloor(at time.Time) error {
	if !n.hasDisk() {
		return rpc.ErrUnavailable.With("the data disk is not open, and the TPM owner's authorisation lies there")
	}
	t, err := tpm.Open(tpmDevice)
	if err != nil {
		return rpc.ErrUnavailable.With("%v", err)
	}
	defer t.Close()
	err = (&volume.Machine{TPM: t, OwnerDir: initDir}).SetTimeFloor(at)
	if err == nil {
		n.logf("the TPM keeps the time's floor at %s", at.UTC().Format(time.RFC3339))
	}
	return err
}

func (n *node) status() rpc.InitStatusReply {
	r := rpc.InitStatusReply{Version: n.release.Version, Boot: n.boot, Up: rpc.BootTime(), Services: n.super.Status(),
		NetworkUp: time.Duration(n.networkUp.Load())}
	for _, v := range r.Services {
		if v.State != supervise.StateReady && v.State != supervise.StateWaiting && v.Restarts >= 3 {
			r.Problems = append(r.Problems, policy.Problem{Kind: "service-" + v.Name, What: fmt.Sprintf("the process %s has ended %d times, the last time with %s", v.Name, v.Restarts, v.LastExit),
				Remedy: "see log show " + v.Name + "; restart the node if it stays"})
		}
	}
	for _, v := range r.Services {
		if v.State == supervise.StateReady && v.Up > time.Second && !v.Confined { // the shim starts none without; this asks the kernel
			r.Problems = append(r.Problems, policy.Problem{Kind: "service-unconfined", What: "the process " + v.Name + " runs without its filter of system calls",
				Remedy: "restart the node; if it stays, start another image and report it"})
		}
	}
	for _, l := range n.net.Links() {
		r.Links = append(r.Links, rpc.LinkStatus(l))
		if l.Problem != "" {
			r.Problems = append(r.Problems, policy.Problem{Kind: "network-link", What: l.Problem, Remedy: l.Remedy})
		}
	}
	if p := n.log.DiskProblem(); p != "" {
		r.Problems = append(r.Problems, policy.Problem{Kind: "log-disk", What: p, Remedy: "trim the audit or replace the data disk"})
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	r.Disk = n.disk
	for _, kind := range slices.Sorted(maps.Keys(n.problems)) {
		r.Problems = append(r.Problems, n.problems[kind])
	}
	return r
}

// The logs of the boot, which the kernel shows to root alone: the firmware's, and its own of PCR 10.
const (
	bootLogFile   = "/sys/kernel/security/tpm0/binary_bios_measurements"
	kernelLogFile = "/sys/kernel/security/ima/binary_runtime_measurements"
)

// bootFacts is what the ledger needs to check this boot.
func (n *node) bootFacts(logFile, kernelFile string) rpc.InitBootReply {
	n.mu.Lock()
	r := rpc.InitBootReply{Opened: n.signedBoot}
	n.mu.Unlock()
	var err error
	if r.Log, err = readBounded(logFile, quote.MaxLog); err != nil {
		r.Log, r.Problem = nil, err.Error()
	}
	if r.Kernel, err = readBounded(kernelFile, quote.MaxKernelLog); err != nil {
		r.Kernel = nil // many kernels have none; without it PCR 10 must be untouched
	}
	return r
}

func readBounded(name string, limit int64) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = fmt.Errorf("%s is larger than %d bytes", name, limit)
	}
	return b, err
}

// setNetwork checks, stores and applies. ctx lives as long as init: leases are renewed in it.
func (n *node) setNetwork(ctx context.Context, v policy.Network) error {
	if err := network.Validate(v); err != nil {
		var fe *network.FieldError
		if errors.As(err, &fe) {
			return rpc.ErrRefused.With("%s: %s", fe.Field, fe.Reason)
		}
		return err
	}
	if !n.hasDisk() {
		return rpc.ErrUnavailable.With("the data disk is not open, so network settings can't be stored")
	}
	// The ledger may send the same network twice at once: at setup, and because the records changed.
	n.storing.Lock()
	defer n.storing.Unlock()
	if err := storeNetwork(networkFile, v); err != nil {
		return err
	}
	n.problem("network-failed", "", "")
	if err := n.applyNetwork(ctx, v); err != nil {
		return err
	}
	go n.reopenSockets(ctx) // may end the process that this answer is for
	return nil
}

func kernelRelease() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return "unknown"
	}
	b, _, _ := bytes.Cut(u.Release[:], []byte{0})
	return string(b)
}
