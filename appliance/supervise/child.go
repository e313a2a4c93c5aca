package supervise

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"

	"guardhouse/appliance/rpc"
)

// This file is the service's half of the contract with whatever supervises it, our init or systemd: sd_notify readiness and watchdog,
// SIGTERM, and the flags that every service has.

// Child is what every service process needs to start: where the sockets lie, who has which uid, and a context that ends at SIGTERM.
type Child struct {
	Name   string
	RunDir string
	UIDs   rpc.UIDs
}

// Flags registers --run-dir and --uids on fs; call Child's methods after fs was parsed. uids is the default map.
func Flags(fs *flag.FlagSet, name string, uids rpc.UIDs) *Child {
	c := &Child{Name: name, UIDs: uids}
	fs.StringVar(&c.RunDir, "run-dir", rpc.SocketDir, "folder of the processes' socket folders")
	fs.Func("uids", "other uids than the image's, as name=uid,... (for runs outside an image)", func(s string) error {
		m, err := ParseUIDs(s)
		if err == nil {
			c.UIDs = m
		}
		return err
	})
	return c
}

// ParseUIDs reads "name=uid,name=uid".
func ParseUIDs(s string) (rpc.UIDs, error) {
	m := rpc.UIDs{}
	for part := range strings.SplitSeq(s, ",") {
		name, value, ok := strings.Cut(part, "=")
		n, err := strconv.ParseUint(value, 10, 32)
		if !ok || err != nil || name == "" {
			return nil, fmt.Errorf("%q is not name=uid", part)
		}
		m[name] = uint32(n)
	}
	return m, nil
}

// Socket is the path of a process's rpc socket.
func (c *Child) Socket(process string) string { return rpc.SocketPath(c.RunDir, process) }

// Client calls another process; the server must have that process's uid, as the kernel reports it.
func (c *Child) Client(process string) *rpc.Client {
	return rpc.NewProvedClient(c.Socket(process), c.UIDs[process])
}

// Logf writes one line to the captured log.
func (c *Child) Logf(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }

// Serve listens on the process's own socket and answers until ctx ends.
func (c *Child) Serve(ctx context.Context, s *rpc.Server) error {
	l, err := rpc.Listen(c.Socket(c.Name))
	if err != nil {
		return err
	}
	return s.Serve(ctx, l)
}

// Context ends at SIGTERM or SIGINT. It also asks the kernel for no core files: a crash must not write memory anywhere.
func Context() (context.Context, context.CancelFunc) {
	unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0)
	return signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
}

// Ready tells the supervisor that the service serves, then keeps its watchdog quiet for as long as check succeeds, until ctx ends.
// Without a supervisor (no NOTIFY_SOCKET) it only waits. check must not block longer than a second.
func Ready(ctx context.Context, status string, check func() error) {
	daemon.SdNotify(false, daemon.SdNotifyReady+"\nSTATUS="+status)
	defer daemon.SdNotify(false, daemon.SdNotifyStopping)
	period, err := daemon.SdWatchdogEnabled(false)
	if err != nil || period == 0 {
		<-ctx.Done()
		return
	}
	tick := time.NewTicker(period / 3)
	defer tick.Stop()
	for {
		if err := check(); err != nil {
			daemon.SdNotify(false, "STATUS=self-check failed: "+err.Error())
		} else {
			daemon.SdNotify(false, daemon.SdNotifyWatchdog)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// Status replaces the line that init and the console show for this service.
func Status(format string, args ...any) {
	daemon.SdNotify(false, "STATUS="+fmt.Sprintf(format, args...))
}
