// Package lab starts and stops whole machines for tests and for the demo: nodes in QEMU with UEFI firmware and a
// software TPM, a PKCS#11 token outside them, time servers, and one virtual network between them. No root is needed
// for any of it.
//
// Promise: nothing outlives the lab. Every child is in a process group of its own and is killed when [Lab.Close] is
// called, when the context given to [New] ends, and by the kernel when this process dies in any way, SIGKILL
// included. All state is below one folder ([Lab.Dir]); a node started again under the same name finds its disk, its
// TPM and its firmware variables as it left them. Nothing listens on the network but the forwarded ports of nodes,
// on 127.0.0.1, which the kernel chose; control channels are socket pairs without a name.
//
// Limits: Linux on x86-64, QEMU 7.2 or later. A lab is safe for use by several goroutines; one node name can run
// once at a time. Time here is the workstation's: the lab waits and measures by it, and issues nothing.
//
// Guests reach the workstation's loopback as [HostAddress]; they have [GuestAddress] themselves.
package lab

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
)

// Addresses on the service network of every node (QEMU's user network; each node has one of its own).
const (
	// GuestAddress is the static address a node must use on its first interface.
	GuestAddress = "10.0.2.15"
	// GuestPrefix is the prefix length of that network.
	GuestPrefix = 24
	// HostAddress is the gateway, and how a guest reaches 127.0.0.1 of the workstation.
	HostAddress = "10.0.2.2"
)

// Options describes a lab. Only Dir is needed.
type Options struct {
	// Dir holds all state of the lab. It is made with mode 0700 when absent.
	Dir string
	// Fresh throws away what an earlier lab left in Dir, but for the cache.
	Fresh bool
	// Cache holds unpacked Debian packages (chrony), shared by labs. Empty: "cache" below Dir.
	Cache string
	// Accel is "tcg" or "kvm"; empty asks [ProbeAccel].
	Accel string
	// Logf, when set, is told of each start and stop, a line each. It is called from several goroutines.
	Logf func(format string, args ...any)
}

// Lab is a set of running machines. Make it with [New], end it with [Lab.Close].
type Lab struct {
	// Dir is the folder of all state, as an absolute path.
	Dir string

	opts   Options
	ctx    context.Context
	cancel context.CancelFunc
	procs  *launcher
	sw     *Switch

	mu    sync.Mutex
	nodes map[string]*Node
	accel string
	close []func() // run once by Close, last first
	done  chan struct{}
}

// ErrClosed is returned by every call on a lab that was closed or whose context ended.
var ErrClosed = errors.New("the lab is closed")

// ErrInUse says that another lab works in the folder.
var ErrInUse = errors.New("another lab is running in this folder: end it, or choose another folder")

// New makes the lab's folder and its virtual network. When ctx ends the lab is closed.
func New(ctx context.Context, o Options) (*Lab, error) {
	if o.Dir == "" {
		return nil, errors.New("lab: Options.Dir is empty: name a folder for the lab's state")
	}
	dir, err := filepath.Abs(o.Dir)
	if err != nil {
		return nil, fmt.Errorf("lab: %w", err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("lab: %w", err)
	}
	lock, err := lockDir(dir)
	if err != nil {
		return nil, fmt.Errorf("lab: %w", err)
	}
	if o.Cache == "" {
		o.Cache = filepath.Join(dir, "cache")
	}
	if o.Cache, err = filepath.Abs(o.Cache); err != nil {
		lock.Close()
		return nil, fmt.Errorf("lab: %w", err)
	}
	if o.Fresh {
		if err := emptyDir(dir, "lock", "cache"); err != nil {
			lock.Close()
			return nil, fmt.Errorf("lab: %w", err)
		}
	}
	lctx, cancel := context.WithCancel(ctx)
	l := &Lab{
		Dir: dir, opts: o, ctx: lctx, cancel: cancel, procs: newLauncher(), sw: newSwitch(),
		nodes: map[string]*Node{}, accel: o.Accel, done: make(chan struct{}),
	}
	go func() {
		<-lctx.Done()
		l.shutdown()
		lock.Close()
		close(l.done)
	}()
	return l, nil
}

// lockDir keeps a second lab out of the folder as long as the returned file is open: two machines on one disk image
// would destroy it. The lock goes with the process.
func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("%w: %s", ErrInUse, dir)
	}
	return f, nil
}

// emptyDir removes all of a folder but the names in keep.
func emptyDir(dir string, keep ...string) error {
	list, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range list {
		if slices.Contains(keep, e.Name()) {
			continue
		}
		if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// Close kills everything the lab started and waits until it is gone. It may be called more than once.
func (l *Lab) Close() error {
	l.cancel()
	<-l.done
	return nil
}

// Switch is the virtual network that joins the second interfaces of all nodes.
func (l *Lab) Switch() *Switch { return l.sw }

// shutdown runs once, when the lab's context has ended.
func (l *Lab) shutdown() {
	l.procs.killAll()
	l.mu.Lock()
	hooks := l.close
	l.close = nil
	nodes := slices.Collect(maps.Values(l.nodes))
	l.mu.Unlock()
	for _, n := range nodes {
		<-n.done // what belonged to it is gone, too
	}
	for i := len(hooks) - 1; i >= 0; i-- {
		hooks[i]()
	}
	l.sw.close()
}

// onClose registers f for the end of the lab; when the lab has ended already f runs at once.
func (l *Lab) onClose(f func()) {
	l.mu.Lock()
	if l.ctx.Err() == nil {
		l.close = append(l.close, f)
		l.mu.Unlock()
		return
	}
	l.mu.Unlock()
	f()
}

func (l *Lab) logf(format string, args ...any) {
	if l.opts.Logf != nil {
		l.opts.Logf(format, args...)
	}
}
