// Init is PID 1 of a node. It mounts the file systems, loads the drivers, opens the data disk, applies the network, opens the listening
// sockets and keeps the services of sandbox.Table running, each with its own uid and next to no rights. It feeds the hardware watchdog
// while they all do their work, keeps their logs, and is the one way to reboot or power off. It has no shell to fall back to and
// nothing to configure: everything it does follows from the image's tables and from /data/init/network.json.
//
// It parses nothing that comes from outside: DHCP is spoken, name servers are asked, and update bundles are read, by processes of their own
// (init again, under another name and uid).
package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime/debug"
	"time"

	"guardhouse/appliance/disk"
	"guardhouse/appliance/network"
	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
	"guardhouse/appliance/sandbox"
	"guardhouse/appliance/supervise"
)

const (
	watchdogTimeout = 60 * time.Second
	watchdogFeed    = 5 * time.Second
)

func main() {
	sandbox.Shim()
	if os.Args[0] == dhcpName && len(os.Args) == 2 {
		if err := dhcpMain(os.Args[1]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	if os.Args[0] == updateName && len(os.Args) == 2 {
		if err := updateMain(os.Args[1]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	if os.Args[0] == resolveName && len(os.Args) == 2 {
		if err := resolveMain(os.Args[1]); err != nil {
			fmt.Println(err) // read as the reason
			os.Exit(1)
		}
		return
	}
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "init: the kernel starts this program as PID 1; to run services elsewhere use the systemd units")
		os.Exit(2)
	}
	debug.SetMemoryLimit(48 << 20)
	n, err := newNode()
	if err != nil {
		// Without these nothing can be kept running; a pause, so that the line can be read, then the kernel starts over.
		fmt.Printf("\r\n%s can't start  [init-failed]\r\n  what: %v\r\n  do:   start another image; the data disk is untouched\r\n", title(sandbox.Release()), err)
		time.Sleep(20 * time.Second)
		os.Exit(1)
	}
	n.shutdown(n.run(context.Background()))
}

// newNode makes the machine ready for its disk.
func newNode() (*node, error) {
	n := &node{started: rpc.BootTime(), log: supervise.NewLog(rpc.BootTime), reaper: supervise.NewReaper(), power: make(chan powerRequest, 1),
		settled: make(chan struct{}), cards: make(chan struct{}), drivers: make(chan struct{}), unsealed: make(chan struct{}), fenced: make(chan struct{}), damage: newDamage(), problems: map[string]policy.Problem{}, sockets: map[string]*socketSet{}, disk: "not opened yet"}
	ctx := context.Background()
	n.prepare()
	n.release = sandbox.Release()
	n.finder = &disk.Finder{Sys: "/sys", Dev: "/dev", Run: n.reaper.Output}
	go n.reaper.Run(ctx)
	var err error
	n.net, err = network.New(network.Options{Acquire: n.acquireDHCP, Resolv: resolvConf, Sysctl: "/proc/sys", Kinds: []string{"device"}, Logf: n.logf})
	if err != nil {
		return nil, err
	}
	n.super, err = supervise.New(supervise.Options{NotifyPath: notifySocket, Reaper: n.reaper, Log: n.log, Timing: supervise.DefaultTiming, Changed: n.changed})
	return n, err
}

// run starts everything and returns when the node is to be powered off or rebooted.
func (n *node) run(ctx context.Context) powerRequest {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go n.watchSignals(ctx)
	n.findDisk(ctx, func() { n.diskOpened(ctx) })
	n.askedTPM()                                                           // without a disk there was nothing to ask, and nobody waits for it
	go n.log.Kernel(context.WithoutCancel(ctx), "/dev/kmsg", n.kernelSays) // hundreds of lines by now, which the disk need not wait for
	n.startNetwork(ctx)
	go func() {
		if err := n.serve(ctx); err != nil {
			n.problem("init-rpc", err.Error(), "restart the node")
		}
	}()
	h := &herald{n: n}
	h.look() // before the console takes the line
	<-n.settled
	n.startServices(ctx)
	go func() {
		<-n.drivers
		n.startWatchdog()
		n.watchPowerButton()
	}()
	go h.run(ctx)
	go n.auditStart(ctx)
	go n.watchDamage(ctx)
	n.damage.scrub.Go(func() { n.scrubs(ctx) })
	go n.startUpdates(ctx)
	return <-n.power
}

// changed notes how long the boot took to the point where every service is ready.
func (n *node) changed(name, state string) {
	if state != supervise.StateReady {
		return
	}
	now := rpc.BootTime()
	n.logf("%s ready %s after init began", name, (now - n.started).Round(time.Millisecond))
	var memory int64
	for _, s := range n.super.Status() {
		if s.State != supervise.StateReady {
			return
		}
		memory += s.RSS
	}
	n.logf("all services ready %s after init began, %s after the kernel; %d MiB resident", (now - n.started).Round(time.Millisecond), now.Round(time.Millisecond), memory>>20)
}

// startWatchdog ties the hardware watchdog, if there is one, to the services' health for the rest of this boot.
func (n *node) startWatchdog() {
	w, took, err := supervise.OpenWatchdog("/dev/watchdog", watchdogTimeout)
	if w == nil {
		if errors.Is(err, fs.ErrNotExist) {
			n.problem("watchdog-none", "this machine has no hardware watchdog that the image has a driver for", "none needed; a hang of the kernel then lasts until somebody restarts the node")
		} else {
			n.problem("watchdog-failed", err.Error(), "restart the node")
		}
		return
	}
	if err != nil {
		n.problem("watchdog-failed", err.Error(), "none needed; its own timeout holds")
	}
	n.logf("hardware watchdog resets the node after %s", took)
	go supervise.Chain(context.Background(), watchdogFeed, w.Feed, n.super.Healthy, func(err error) {
		n.logf("hardware watchdog is not fed: %v", err)
	})
}
