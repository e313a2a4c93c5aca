package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"guardhouse/appliance/disk"
	"guardhouse/appliance/hsm/pack"
	"guardhouse/appliance/network"
	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
	"guardhouse/appliance/sandbox"
	"guardhouse/appliance/supervise"
)

// Places of the image.
const (
	dataDir      = "/data"
	initDir      = "/data/init"
	networkFile  = "/data/init/network.json"
	logDir       = "/data/init/log"
	resolvConf   = "/run/resolv.conf"
	notifySocket = "/run/guardhouse/notify"
	diskWait     = 5 * time.Second  // for controllers that find their disks late
	diskRetry    = 15 * time.Second // between later searches
)

// node is the machine as PID 1 knows it.
type node struct {
	boot    string
	release sandbox.ReleaseInfo
	log     *supervise.Log
	reaper  *supervise.Reaper
	super   *supervise.Supervisor
	net     *network.Manager
	finder  *disk.Finder
	power   chan powerRequest
	started time.Duration // CLOCK_BOOTTIME when PID 1 began
	drivers chan struct{} // closed when all are loaded
	fenced  chan struct{} // closed when the network fence of hsm stands
	pack    pack.Manifest // the image's HSM pack; zero where there is none

	storing   sync.Mutex // one change of the stored network at a time
	listening sync.Mutex // one change of sockets at a time

	mu       sync.Mutex
	disk     string                    // one line for people
	mounted  bool                      //
	problems map[string]policy.Problem // by kind
	sockets  map[string]*socketSet     // by process
}

func (n *node) logf(format string, args ...any) {
	n.log.Add(supervise.LogInit, fmt.Sprintf(format, args...))
}

// problem notes something an administrator should know; an empty what takes it back.
func (n *node) problem(kind, what, remedy string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if what == "" {
		delete(n.problems, kind)
		return
	}
	if old := n.problems[kind]; old.What != what {
		n.log.Add(supervise.LogInit, kind+": "+what+"; "+remedy)
	}
	n.problems[kind] = policy.Problem{Kind: kind, What: what, Remedy: remedy}
}

// prepare makes the bare machine usable: file systems, drivers, kernel settings. Nothing in it stops the boot; what fails becomes a
// problem.
func (n *node) prepare(ctx context.Context) {
	note := func(kind string, err error, remedy string) {
		if err != nil {
			n.problem(kind, err.Error(), remedy)
		}
	}
	note("init-mounts", mountAll(mounts), "the image does not fit this kernel; build it again")
	go n.log.Kernel(ctx, "/dev/kmsg")
	n.boot = bootID()
	n.readPack()
	n.loadDrivers()
	note("init-root", sealRoot(), "the image does not fit this kernel; build it again")
	unix.Sethostname([]byte("guardhouse"))
	unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{})
	unix.Reboot(unix.LINUX_REBOOT_CMD_CAD_OFF) // ctrl-alt-del becomes SIGINT
	note("init-run", makeFolders(false), "restart the node")
}

// loadDrivers returns when the drivers are loaded that the boot waits for. The others follow in the background; then drivers closes and
// the kernel takes no more code.
func (n *node) loadDrivers() {
	early, first, later, err := modulesNeeded()
	var failed []string
	if err != nil {
		failed = append(failed, err.Error())
	}
	again, bad := loadModules(early)
	failed = append(failed, bad...)
	n.logf("%d modules loaded %s after init began, %d to follow", len(early)-len(again), (rpc.BootTime() - n.started).Round(time.Millisecond), len(first)+len(later)+len(again))
	failed = append(failed, setSysctls("/proc/sys", sysctls)...)
	go func() {
		defer close(n.drivers)
		_, bad := loadModules(first)
		failed = append(failed, bad...)
		n.raiseFence()
		missing, bad := loadModules(append(later, again...))
		failed = append(failed, bad...)
		for _, m := range missing {
			failed = append(failed, "module "+filepath.Base(m.Path)+" lacks another one")
		}
		failed = append(failed, setSysctls("/proc/sys", []sysctl{sealModules})...)
		n.logf("all modules loaded %s after init began", (rpc.BootTime() - n.started).Round(time.Millisecond))
		if len(failed) > 0 {
			n.problem("init-kernel", strings.Join(failed, "; "), "the image does not fit this kernel; build it again")
		}
	}()
}

func bootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(b))
}

// makeFolders makes the folders of every process: those in /run, or with onDisk those on the data disk.
func makeFolders(onDisk bool) error {
	var failed error
	if onDisk {
		failed = errors.Join(disk.Folder(dataDir, 0, 0, 0o755), disk.Folder(initDir, 0, 0, 0o700))
	} else {
		failed = errors.Join(disk.Folder(rpc.SocketDir, 0, 0, 0o755), disk.Folder(filepath.Dir(rpc.SocketPath(rpc.SocketDir, rpc.Init)), 0, 0, 0o755))
	}
	for _, p := range sandbox.Table {
		if !onDisk {
			failed = errors.Join(failed, disk.Folder(filepath.Dir(rpc.SocketPath(rpc.SocketDir, p.Name)), p.UID, p.GID, 0o755))
		}
		for _, path := range p.Paths {
			if path.OnDisk == onDisk {
				failed = errors.Join(failed, disk.Folder(path.Path, p.UID, cmp.Or(path.Group, p.GID), path.Mode))
			}
		}
	}
	return failed
}

// openDisk finds, prepares and mounts the data disk, once.
func (n *node) openDisk(ctx context.Context) error {
	list, err := n.finder.List()
	if err != nil {
		return err
	}
	d, err := disk.Choose(list)
	if err != nil {
		return err
	}
	did, err := n.finder.Prepare(ctx, d)
	if err != nil {
		return err
	}
	if err := disk.Mount(d, dataDir); err != nil {
		return err
	}
	if err := makeFolders(true); err != nil {
		return &disk.Error{Kind: disk.KindFailed, What: err.Error(), Remedy: "restart the node; if it stays, replace the disk"}
	}
	size, _, err := disk.Size(dataDir)
	if err != nil {
		return err
	}
	if err := n.log.OpenDisk(logDir, n.boot, min(supervise.MaxLog, size/8)); err != nil {
		n.problem("log-disk", err.Error(), "free or replace the data disk; the log is kept in memory meanwhile")
	}
	n.mu.Lock()
	n.mounted = true
	n.disk = fmt.Sprintf("%s, %d MiB, %s", d.Name, d.Size>>20, did)
	if d.Serial != "" {
		n.disk += ", serial " + d.Serial
	}
	line := n.disk
	n.mu.Unlock()
	n.logf("data disk %s", line)
	return nil
}

// findDisk opens the data disk; where it can't, it goes on trying in the background and starts what waits for it.
func (n *node) findDisk(ctx context.Context, opened func()) {
	deadline := time.Now().Add(diskWait)
	err := n.openDisk(ctx)
	var de *disk.Error
	for errors.As(err, &de) && de.Kind == disk.KindNone && time.Now().Before(deadline) {
		time.Sleep(100 * time.Millisecond)
		err = n.openDisk(ctx)
	}
	if err == nil {
		return
	}
	n.diskFailed(err)
	go func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-time.After(diskRetry):
			}
			err := n.openDisk(ctx)
			if err == nil {
				for _, kind := range diskKinds {
					n.problem(kind, "", "")
				}
				opened()
				return
			}
			n.diskFailed(err)
		}
	}()
}

var diskKinds = []string{disk.KindNone, disk.KindForeign, disk.KindAmbiguous, disk.KindDamaged, disk.KindFailed}

func (n *node) diskFailed(err error) {
	de := &disk.Error{Kind: disk.KindFailed, What: err.Error(), Remedy: "restart the node; if it stays, replace the disk"}
	errors.As(err, &de)
	for _, kind := range diskKinds {
		if kind != de.Kind {
			n.problem(kind, "", "")
		}
	}
	n.problem(de.Kind, de.What, de.Remedy)
	n.mu.Lock()
	n.disk = de.What
	n.mu.Unlock()
}

// startNetwork applies the stored network. A node that has none yet only feels which of its cables are in.
func (n *node) startNetwork(ctx context.Context) {
	if err := n.net.Loopback(); err != nil {
		n.problem("network-failed", err.Error(), "restart the node")
	}
	b, err := os.ReadFile(networkFile)
	if errors.Is(err, fs.ErrNotExist) {
		n.net.Sense()
		go func() {
			<-n.drivers // some NICs come late
			n.net.Sense()
		}()
		return
	}
	var stored policy.Network
	if err == nil {
		err = json.Unmarshal(b, &stored)
	}
	if err == nil {
		err = n.applyNetwork(ctx, stored)
	}
	if err != nil {
		n.problem("network-failed", "the stored network settings can't be used: "+err.Error(), "set them again (network set)")
	}
}

// applyNetwork waits for the drivers of bonds and VLANs where v has some.
func (n *node) applyNetwork(ctx context.Context, v policy.Network) error {
	if slices.ContainsFunc(v.Interfaces, func(f policy.Interface) bool { return f.Bond != "" || f.VLAN != 0 }) {
		<-n.drivers
	}
	return n.net.Apply(ctx, v)
}

// storeNetwork replaces the stored network; after a power cut there is the old one or the new one.
func storeNetwork(file string, v policy.Network) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return disk.ReplaceFile(file, b)
}
