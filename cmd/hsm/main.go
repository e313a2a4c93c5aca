// Command hsm is the only process that touches the PKCS#11 token.
//
//	hsm [--run-dir DIR] [--uids name=uid,...] [--attach-dir DIR] [--pack FILE] [--site-data DIR]
//	hsm worker
//	hsm software
//
// Started plain it is the keeper: it asks the ledger for the PIN and the
// module's name (the PIN of an attended node comes from the console instead, and
// the ledger never sees it), holds the PIN in locked memory, serves the hsm.* methods on its
// rpc socket and runs itself as `hsm worker`, which loads the module. Only the
// worker is ever killed. The worker takes the PIN from a pipe on descriptor 4,
// what to open from descriptor 3 and calls from further ones; it is of no use by
// hand.
//
// Software keys (imported from a PFX, never in the token) are held by a third
// process, `hsm software`, which loads no module and nothing foreign. The keeper
// hands them over from where the ledger seals them and keeps none.
//
// Where the settings attach the module to a virtio-serial port, the keeper
// carries the module's socket (DIR/p11.sock) over that port.
//
// Configuration reaches it in three ways and no other: the flags above, what
// ledger.PIN answers, and the environment of the module (SOFTHSM2_CONF and the
// like), which the worker inherits or the manifest of the image's HSM pack names.
// The site's own data for the module (package pack) is stored by the keeper.
package main

import (
	"crypto/rand"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"

	"guardhouse/appliance/hsm"
	"guardhouse/appliance/hsm/pack"
	"guardhouse/appliance/hsm/token"
	"guardhouse/appliance/rpc"
	"guardhouse/appliance/sandbox"
	"guardhouse/appliance/supervise"
)

func main() {
	// No core dump and no ptrace by other processes of this uid.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		fail(err)
	}
	if len(os.Args) == 2 && os.Args[1] == "worker" {
		fail(worker())
		return
	}
	if len(os.Args) == 2 && os.Args[1] == "software" {
		fail(softwareWorker())
		return
	}
	child := supervise.Flags(flag.CommandLine, rpc.HSM, sandbox.UIDs())
	attachDir := flag.String("attach-dir", "/run/hsm", "folder of the module's socket when the token is attached by a port")
	manifest := flag.String("pack", pack.ManifestPath, "manifest of the image's HSM pack; missing outside an image")
	siteDir := flag.String("site-data", pack.SiteDir, "folder of the site's own data for the module")
	flag.Parse()
	m, err := pack.Read(*manifest)
	fail(err)
	fail(keeper(child, *attachDir, newSite(m, *siteDir)))
}

func fail(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// worker loads the module and answers calls until the keeper hangs up.
func worker() error {
	// A call into the module blocks one of these for as long as the token
	// thinks; answers must get through meanwhile.
	runtime.GOMAXPROCS(max(8, runtime.NumCPU()))
	return hsm.Serve(func(c hsm.ModuleConfig, pin []byte, login func()) (hsm.Token, error) {
		t, err := token.Open(c, pin, login, rand.Reader)
		if err != nil {
			return nil, err // not t: a nil *Token is no nil hsm.Token
		}
		return t, nil
	})
}

// keeper serves until SIGTERM.
func keeper(child *supervise.Child, attachDir string, st *site) error {
	ledgerUID, ok := child.UIDs[rpc.Ledger]
	if !ok {
		return errors.New("hsm: --uids: the ledger is missing")
	}
	ctx, stop := supervise.Context()
	defer stop()
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("hsm: own program: %w", err)
	}
	k := hsm.NewKeeper(func() *exec.Cmd { return workerCommand(self, "worker") }, hsm.Timing{}, child.Logf)
	c := &cable{dir: attachDir, log: child.Logf}
	// The PIN and software keys come from there, so the ledger's uid is proved.
	ledger := rpc.NewProvedClient(child.Socket(rpc.Ledger), ledgerUID)
	st.record = siteRecord(ctx, child, ledger)
	from := &source{ledger: ledger, k: k, c: c, site: st}
	soft := hsm.NewSoftware(func() *exec.Cmd { return workerCommand(self, "software") }, softwareKeys(ledger), child.Logf)
	server := rpc.NewServer(child.UIDs)
	register(server, hsm.Keyring{Token: k, Software: soft}, from)
	listener, err := rpc.Listen(child.Socket(rpc.HSM))
	if err != nil {
		return err
	}
	ran := make(chan error, 1)
	go func() { ran <- k.Run(ctx) }()
	softly := make(chan struct{})
	go func() { defer close(softly); soft.Run(ctx) }()
	go from.run(ctx)
	go report(ctx, k, from.attended, chronicle(ctx, child, ledger))
	go supervise.Ready(ctx, statusLine(k.Status(), false), k.Alive)
	err = server.Serve(ctx, listener)
	stop()
	<-ran // the worker is dead and the PIN wiped
	<-softly
	return err
}

// workerCommand starts this program as a worker of this kind, without the descriptors and
// variables that belong to the keeper as a service.
func workerCommand(self, kind string) *exec.Cmd {
	cmd := exec.Command(self, kind)
	for _, v := range os.Environ() {
		name, _, _ := strings.Cut(v, "=")
		switch name {
		case "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES":
		default:
			cmd.Env = append(cmd.Env, v)
		}
	}
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	return cmd
}
