package supervise

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"guardhouse/appliance/rpc"
	"guardhouse/appliance/sandbox"
)

// NativeService is one program to run outside an image. One that has the name of a row of sandbox.Table is confined as that row says.
type NativeService struct {
	Name    string
	Program string
	Args    []string // --run-dir and --uids are added by RunNative
	Env     []string
	Sockets []string // names of listening sockets, each on a free loopback port
	// UID runs it as that user (the caller must be root); nil = as the caller.
	UID      *uint32
	Watchdog time.Duration
	Plain    bool // add no flags: the program is not one of ours
}

// Native is services that run under supervision on a workstation, in a folder of their own: the same supervisor, shim, sockets and log
// as in the image. The calling program must call sandbox.Shim first thing in its main or TestMain.
type Native struct {
	*Supervisor
	Dir    string // holds the socket folders (--run-dir) and the notify socket
	UIDs   rpc.UIDs
	Addr   map[string]string // socket name -> host:port
	cancel context.CancelFunc
}

// RunNative starts the services below dir, which must be reachable for their uids and short (a unix socket's path has at most 107 bytes).
// uids is what the programs take for each other's uids. End it with Close.
func RunNative(dir string, uids rpc.UIDs, timing Timing, services ...NativeService) (*Native, error) {
	ctx, cancel := context.WithCancel(context.Background())
	n := &Native{Dir: dir, UIDs: uids, Addr: map[string]string{}, cancel: cancel}
	log := NewLog(rpc.BootTime)
	var err error
	n.Supervisor, err = New(Options{NotifyPath: filepath.Join(dir, "notify"), Reaper: NewReaper(), Log: log, Timing: timing})
	if err != nil {
		cancel()
		return nil, err
	}
	for _, svc := range services {
		if err := n.add(ctx, svc); err != nil {
			n.Close()
			return nil, err
		}
	}
	return n, nil
}

func (n *Native) add(ctx context.Context, svc NativeService) error {
	folder := filepath.Dir(rpc.SocketPath(n.Dir, svc.Name))
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return err
	}
	if svc.UID != nil {
		if err := os.Chown(folder, int(*svc.UID), int(*svc.UID)); err != nil {
			return err
		}
	}
	var files []*os.File
	for _, name := range svc.Sockets {
		var lc net.ListenConfig
		l, err := lc.Listen(ctx, "tcp", "127.0.0.1:0")
		if err != nil {
			return err
		}
		n.Addr[name] = l.Addr().String()
		f, err := l.(*net.TCPListener).File()
		l.Close()
		if err != nil {
			return err
		}
		files = append(files, f)
	}
	args := svc.Args
	if !svc.Plain {
		args = append([]string{"--run-dir", n.Dir, "--uids", FormatUIDs(n.UIDs)}, args...)
	}
	row, _ := sandbox.Find(svc.Name)
	return n.Supervisor.Add(Service{Name: svc.Name, Watchdog: svc.Watchdog, Sockets: files, Command: func(env []string) (*exec.Cmd, error) {
		return sandbox.Command(sandbox.Launch{Program: svc.Program, Args: args, Env: append(append([]string{"PATH=/nowhere"}, svc.Env...), env...),
			UID: svc.UID, GID: svc.UID, Sockets: svc.Sockets, NewSession: true, Confine: row.Confine.At(n.Dir)}, files)
	}})
}

// FormatUIDs is the opposite of ParseUIDs, sorted by nothing in particular.
func FormatUIDs(u rpc.UIDs) string {
	var parts []string
	for name, uid := range u {
		parts = append(parts, fmt.Sprintf("%s=%d", name, uid))
	}
	return strings.Join(parts, ",")
}

// WaitReady waits until all the named services are ready, or ctx ends.
func (n *Native) WaitReady(ctx context.Context, names ...string) error {
	for _, name := range names {
		for !n.Ready(name) {
			select {
			case <-ctx.Done():
				return fmt.Errorf("%s is not ready: %+v", name, n.Status())
			case <-time.After(10 * time.Millisecond):
			}
		}
	}
	return nil
}

// Close stops everything.
func (n *Native) Close() {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	n.Stop(ctx)
	n.cancel()
}
