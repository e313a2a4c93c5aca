// Ledger keeps the node's records, audit and secrets, and owns the TPM. It serves the ledger methods of appliance/rpc and calls the HSM
// process, the clock and init. It opens no listening socket: that on which other nodes are heard ("peer") comes from init.
//
// Flags: --run-dir, --uids (see appliance/supervise), --data (folder on the data disk; default /data/ledger), --tpm (a device, or
// swtpm:HOST:PORT and swtpm:/SOCKET outside an image; default /dev/tpmrm0), --sealed-volume (the folder lies on a volume that init
// opened; without it, outside an image, the secrets are sealed to the TPM's registers as they are), --build-epoch (unix seconds; the node's own certificates
// begin there), --check-store FILE (reads a database file, says what is wrong with it and exits with 1; the process does that to its own
// files in a child before it opens them, because a damaged one can kill whoever reads it).
package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"flag"
	"fmt"
	"os"
	"time"

	"github.com/coreos/go-systemd/v22/activation"

	"guardhouse/appliance/ledger"
	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
	"guardhouse/appliance/sandbox"
	"guardhouse/appliance/supervise"
	"guardhouse/appliance/tpm"
)

func main() {
	child := supervise.Flags(flag.CommandLine, rpc.Ledger, sandbox.UIDs())
	data := flag.String("data", "/data/ledger", "folder of the ledger's files")
	device := flag.String("tpm", "/dev/tpmrm0", "TPM device, or swtpm:ADDRESS")
	sealed := flag.Bool("sealed-volume", false, "the folder is on a sealed volume: secrets need no seal of their own")
	epoch := flag.Int64("build-epoch", sandbox.Release().BuildEpoch, "unix seconds; the node's own certificates begin there")
	check := flag.String("check-store", "", "check this database file and exit")
	flag.Parse()
	if *check != "" {
		if err := ledger.CheckStore(*check); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		return
	}
	if err := run(child, *data, *device, *sealed, time.Unix(*epoch, 0)); err != nil {
		fmt.Fprintln(os.Stderr, "ledger:", err)
		os.Exit(1)
	}
}

func run(child *supervise.Child, data, device string, sealed bool, epoch time.Time) error {
	ctx, cancel := supervise.Context()
	defer cancel()
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return err
	}
	var seal tpm.SealPolicy
	if !sealed {
		seal = tpm.ImagePCRs
	}
	sockets, err := activation.ListenersWithNames()
	if err != nil {
		return err
	}
	clock := rpc.WatchTime(ctx, child.RunDir, child.UIDs[rpc.Clock])
	init := child.Client(rpc.Init)
	config := ledger.Config{
		Dir: data, TPM: device, Policy: seal, Boot: string(bytes.TrimSpace(boot)), BootTime: rpc.BootTime, Time: clock.Get, TimeEvent: clock.Event,
		Clock: child.Client(rpc.Clock), TimeFloor: func(ctx context.Context, at time.Time) error {
			_, err := rpc.InitTimeFloor.Call(ctx, init, at)
			return err
		},
		Rand: rand.Reader, Epoch: epoch, HSM: child.Client(rpc.HSM), Log: child.Logf, CheckStore: ledger.CheckInChild("/proc/self/exe", "--check-store"),
		Image: sandbox.Release().Version, Peers: sockets["peer"],
		Network: func(ctx context.Context, n policy.Network) error {
			_, err := rpc.InitNetwork.Call(ctx, init, n)
			return err
		},
	}
	if sealed {
		config.Reach = func(ctx context.Context, address string) ([]string, error) {
			return rpc.InitReach.Call(ctx, init, address)
		}
		config.ReachPeers = func(ctx context.Context, addresses []string) error {
			_, err := rpc.InitPeers.Call(ctx, init, addresses)
			return err
		}
		config.BootLog = func(ctx context.Context) (rpc.InitBootReply, error) { return rpc.InitBoot.Call(ctx, init, rpc.Empty{}) }
	}
	l, err := ledger.Open(ctx, config)
	if err != nil {
		return err
	}
	s := rpc.NewServer(child.UIDs)
	l.Register(s)
	socket, err := rpc.Listen(child.Socket(child.Name))
	if err != nil {
		return errors.Join(err, l.Close())
	}
	worked := make(chan struct{})
	go func() { defer close(worked); l.Run(ctx) }()
	go supervise.Ready(ctx, status(l), l.Alive)
	err = s.Serve(ctx, socket)
	cancel()
	<-worked
	return errors.Join(err, l.Close())
}

func status(l *ledger.Ledger) string {
	s := l.Status()
	if len(s.Problems) > 0 {
		return s.Problems[0].What
	}
	if !s.SetUp {
		return "waiting for setup"
	}
	return fmt.Sprintf("at %d, %s", s.Index, s.Sealing)
}
