// Console lets people in: over the serial line and over SSH. It parses verbs, proves who asks and passes on what they want; it holds no
// key and no disk.
//
// Flags: --run-dir, --uids (see appliance/supervise), --tty (serial line, "" for none), --ssh-listen (an address instead of the
// inherited socket named "ssh", for runs outside an image).
package main

import (
	"context"
	"crypto/rand"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"github.com/coreos/go-systemd/v22/activation"

	"guardhouse/appliance/rpc"
	"guardhouse/appliance/sandbox"
	"guardhouse/appliance/supervise"
	"guardhouse/console/serial"
	"guardhouse/console/ssh"
	"guardhouse/console/verb"
)

func main() {
	child := supervise.Flags(flag.CommandLine, rpc.Console, sandbox.UIDs())
	tty := flag.String("tty", "", "serial line to serve")
	address := flag.String("ssh-listen", "", "address to serve SSH on, where no socket is inherited")
	flag.Parse()
	if err := run(child, *tty, *address); err != nil {
		fmt.Fprintln(os.Stderr, "console:", err)
		os.Exit(1)
	}
}

func run(child *supervise.Child, tty, address string) error {
	ctx, cancel := supervise.Context()
	defer cancel()
	listeners, err := listen(address)
	if err != nil {
		return err
	}
	if len(listeners) == 0 && tty == "" {
		return errors.New("there is no door: give --tty, --ssh-listen or a socket named ssh")
	}
	node := &verb.Node{
		Ledger: child.Client(rpc.Ledger), HSM: child.Client(rpc.HSM), Clock: child.Client(rpc.Clock), Init: child.Client(rpc.Init), Forward: child.Client(rpc.Forward),
		Stamp: rpc.WatchTime(ctx, child.RunDir, child.UIDs[rpc.Clock]).Stamp, Boottime: rpc.BootTime, Random: rand.Reader,
		Evaluation: sandbox.Release().Evaluation,
	}
	go node.Watch(ctx)
	var wg sync.WaitGroup
	doors := make([]*ssh.Server, len(listeners))
	for i, l := range listeners {
		doors[i] = &ssh.Server{Node: node}
		wg.Go(func() {
			if err := doors[i].Serve(ctx, l); err != nil {
				child.Logf("ssh: %v", err)
			}
		})
	}
	if tty != "" {
		c := &serial.Console{Node: node, Logf: child.Logf, Open: func() (io.ReadWriteCloser, error) { return serial.OpenTTY(tty) }}
		go c.Run(ctx) // a read of the line may outlast SIGTERM
	}
	supervise.Ready(ctx, fmt.Sprintf("%d ssh doors, serial line %q", len(listeners), tty), func() error { return alive(node, doors) })
	finished := make(chan struct{})
	go func() { wg.Wait(); close(finished) }()
	select {
	case <-finished:
	case <-time.After(2 * time.Second):
	}
	return nil
}

// alive is the self-check behind the watchdog.
func alive(node *verb.Node, doors []*ssh.Server) error {
	node.Snapshot()
	for _, d := range doors {
		if !d.Alive() {
			return errors.New("the ssh door is not served")
		}
	}
	return nil
}

func listen(address string) ([]net.Listener, error) {
	named, err := activation.ListenersWithNames()
	if err != nil {
		return nil, fmt.Errorf("inherited sockets: %w", err)
	}
	listeners := named["ssh"]
	if address != "" {
		l, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", address)
		if err != nil {
			return nil, err
		}
		fmt.Fprintf(os.Stderr, "ssh on %s\n", l.Addr())
		listeners = append(listeners, l)
	}
	return listeners, nil
}
