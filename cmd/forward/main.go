// Forward sends the node's audit to a syslog collector over TLS. It is a process of its own because it alone opens connections out of the
// node to a machine that an administrator names, and reads what that machine answers: it has no disk, no keys, no listening socket, and
// gets nothing from the other processes but pages of the audit and signatures of handshakes, through two methods of the ledger. The
// network fence lets it reach the collector on record and nothing else.
//
// Flags: --run-dir, --uids (see appliance/supervise).
package main

import (
	"context"
	"crypto"
	"crypto/x509"
	"flag"
	"fmt"
	"net"
	"os"
	"time"

	"guardhouse/appliance/forward"
	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
	"guardhouse/appliance/sandbox"
	"guardhouse/appliance/supervise"
)

func main() {
	child := supervise.Flags(flag.CommandLine, rpc.Forward, sandbox.UIDs())
	flag.Parse()
	if err := run(child); err != nil {
		fmt.Fprintln(os.Stderr, "forward:", err)
		os.Exit(1)
	}
}

func run(child *supervise.Child) error {
	ctx, cancel := supervise.Context()
	defer cancel()
	ledger := child.Client(rpc.Ledger)
	f := forward.New(forward.Deps{
		Fetch: func(ctx context.Context, req rpc.ForwardRequest) (rpc.ForwardReply, error) {
			return rpc.LedgerForward.Call(ctx, ledger, req)
		},
		Dial: new(net.Dialer).DialContext,
		Now:  time.Now, // the kernel's clock, which only the clock process sets
		Log:  child.Logf,
		Key: func(cert *x509.Certificate) crypto.Signer {
			return &rpc.NodeSigner{Ledger: ledger, Name: "syslog", Ref: policy.RefOf(cert.RawSubjectPublicKeyInfo), Pub: cert.PublicKey}
		},
	})
	s := rpc.NewServer(child.UIDs)
	rpc.Handle(s, rpc.ForwardTest, func(ctx context.Context, _ rpc.Caller, _ rpc.Empty) (rpc.ForwardTestReply, error) {
		return f.Test(ctx)
	}, rpc.Console)
	go f.Run(ctx)
	go supervise.Ready(ctx, "sending the audit where it is to go", func() error { return nil })
	return child.Serve(ctx, s)
}
