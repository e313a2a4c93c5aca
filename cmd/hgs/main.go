// Hgs is the public face of a node: it answers MS-HGSA below /Attestation and MS-KPS below /KeyProtection on the sockets that init
// opened ("http", "https"). All its input is hostile. It has no long-lived key, no disk and no TPM: the HSM signs and decrypts by rpc, the
// ledger signs TLS handshakes and makes audit entries durable before a reply leaves.
//
// Flags: --run-dir, --uids (appliance/supervise); --http and --https listen by themselves where no sockets were passed (native tests);
// --grants-per-minute and --rolls-per-minute raise what one host gets, for load tests.
package main

import (
	"context"
	"crypto"
	"crypto/rand"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"sync/atomic"

	"github.com/coreos/go-systemd/v22/activation"

	"guardhouse/appliance/attest"
	"guardhouse/appliance/kps"
	"guardhouse/appliance/policy"
	"guardhouse/appliance/protect"
	"guardhouse/appliance/rpc"
	"guardhouse/appliance/sandbox"
	"guardhouse/appliance/supervise"
)

func main() {
	child := supervise.Flags(flag.CommandLine, rpc.HGS, sandbox.UIDs())
	plain := flag.String("http", "", "address to listen on without socket activation")
	secure := flag.String("https", "", "address to listen on without socket activation")
	grants := flag.Int("grants-per-minute", 0, "health certificates that one host gets in a minute; 0 = as the service has it")
	rolls := flag.Int("rolls-per-minute", 0, "transport keys that one host gets in a minute; 0 = as the service has it")
	flag.Parse()
	if err := run(child, *plain, *secure, *grants, *rolls); err != nil {
		fmt.Fprintln(os.Stderr, "hgs:", err)
		os.Exit(1)
	}
}

func run(child *supervise.Child, plain, secure string, grants, rolls int) error {
	ctx, cancel := supervise.Context()
	defer cancel()
	listeners, err := activation.ListenersWithNames()
	if err != nil {
		return fmt.Errorf("sockets from init: %w", err)
	}
	for name, addr := range map[string]string{"http": plain, "https": secure} {
		if len(listeners[name]) == 0 && addr != "" {
			l, err := net.Listen("tcp", addr)
			if err != nil {
				return err
			}
			listeners[name] = []net.Listener{l}
		}
	}
	n := &node{child: child, ledger: child.Client(rpc.Ledger), hsm: child.Client(rpc.HSM), clock: rpc.WatchTime(ctx, child.RunDir, child.UIDs[rpc.Clock]), grants: grants, rolls: rolls}
	n.snap.Store(&policy.Snapshot{State: policy.NewState()})
	go rpc.LedgerWatch.Follow(ctx, n.ledger, rpc.Empty{}, func(s policy.Snapshot) error { n.snap.Store(&s); return nil }, nil)
	defer n.keys.wipe()
	go rpc.LedgerContextKeys.Follow(ctx, n.ledger, rpc.Empty{}, n.keys.replace, nil)

	srv := newServer(n, n.mux())
	go supervise.Ready(ctx, "answering hosts", srv.check)
	return srv.serve(ctx, listeners)
}

// node is what both services need of the rest of the node.
type node struct {
	child       *supervise.Child
	ledger, hsm *rpc.Client
	clock       *rpc.TimeSource
	// grants and rolls bound what one host gets in a minute; 0 = the services' own bounds.
	grants, rolls int
	snap          atomic.Pointer[policy.Snapshot]
	keys          contextKeys
}

func (n *node) snapshot() policy.Snapshot { return *n.snap.Load() }

func (n *node) audit(ctx context.Context, e policy.AuditEntry) (policy.AuditReceipt, error) {
	return rpc.LedgerAudit.Call(ctx, n.ledger, e)
}

func (n *node) refuse(ctx context.Context, r policy.Refusal) error {
	_, err := rpc.LedgerRefusal.Call(ctx, n.ledger, r)
	return err
}

// observe may be lost: it waits for nobody.
func (n *node) observe(ctx context.Context, o []policy.Observation) {
	rpc.LedgerObserve.Call(ctx, n.ledger, o)
}

// used may be lost as well.
func (n *node) used(ctx context.Context, u policy.ProtectorUse) {
	rpc.LedgerUsed.Call(ctx, n.ledger, u)
}

// keepLog sends a boot log only if the ledger does not have it. It may be lost.
func (n *node) keepLog(ctx context.Context, host, digest string, log []byte) {
	r, err := rpc.LedgerKeepLog.Call(ctx, n.ledger, rpc.KeepLogRequest{Host: host, Digest: digest})
	if err == nil && !r.Have {
		_, err = rpc.LedgerKeepLog.Call(ctx, n.ledger, rpc.KeepLogRequest{Host: host, Digest: digest, Log: log})
	}
	if err != nil {
		n.child.Logf("attestation: the boot log of a host is not kept: %v", err)
	}
}

func (n *node) signer(k policy.Key) (crypto.Signer, error) { return rpc.NewHSMSigner(n.hsm, k) }

func (n *node) decrypter(k policy.Key) (kps.Decrypter, error) {
	return protect.NewHSMDecrypter(n.hsm, k), nil
}

// mux sends a request to its service by the first path segment, whatever its case: the original runs under IIS.
func (n *node) mux() http.Handler {
	a := attest.New(attest.Deps{Snapshot: n.snapshot, Now: n.clock.Now, Stamp: n.clock.Stamp, BootTime: rpc.BootTime, Signer: n.signer,
		Audit: n.audit, Refuse: n.refuse, Observe: n.observe, Random: rand.Reader, Log: n.child.Logf, GrantsPerMinute: n.grants,
		ContextKeys: n.keys.get, KeepLog: n.keepLog})
	p := protect.New(protect.Deps{Snapshot: n.snapshot, Now: n.clock.Now, Stamp: n.clock.Stamp, BootTime: rpc.BootTime, Signer: n.signer,
		Decrypter: n.decrypter, Audit: n.audit, Refuse: n.refuse, Observe: n.observe, Used: n.used, Random: rand.Reader, Log: n.child.Logf,
		RollsPerMinute: n.rolls})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		first, _, _ := strings.Cut(strings.TrimLeft(r.URL.Path, "/"), "/")
		switch strings.ToLower(first) {
		case "attestation":
			a.ServeHTTP(w, r)
		case "keyprotection":
			p.ServeHTTP(w, r)
		default:
			http.NotFound(w, r)
		}
	})
}
