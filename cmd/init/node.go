package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"guardhouse/appliance/disk"
	"guardhouse/appliance/hsm/pack"
	"guardhouse/appliance/network"
	"guardhouse/appliance/policy"
	"guardhouse/appliance/quote"
	"guardhouse/appliance/rpc"
	"guardhouse/appliance/sandbox"
	"guardhouse/appliance/supervise"
	"guardhouse/appliance/tpm"
	"guardhouse/appliance/update"
	"guardhouse/appliance/volume"
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
	unsealWait   = 3 * time.Second  // for which other drivers wait while the disk is opened
)

// node is the machine as PID 1 knows it.
type node struct {
	boot      string
	release   sandbox.ReleaseInfo
	log       *supervise.Log
	reaper    *supervise.Reaper
	super     *supervise.Supervisor
	net       *network.Manager
	networkUp atomic.Int64 // CLOCK_BOOTTIME in ns at which the first settings were in force, 0 = none
	finder    *disk.Finder
	power     chan powerRequest
	started   time.Duration // CLOCK_BOOTTIME when PID 1 began
	settled   chan struct{} // closed when the kernel's settings are made
	cards     chan struct{} // closed when the drivers of network cards are loaded
	drivers   chan struct{} // closed when all are loaded
	unsealed  chan struct{} // closed when the TPM has been asked for the volume key once
	unsealing sync.Once     // closes it
	fenced    chan struct{} // closed when the network fence of hsm and forward stands
	pack      pack.Manifest // the image's HSM pack; zero where there is none

	updates updates
	damage  damage
	opening sync.Mutex // guards custody; the disk is opened by one at a time
	custody

	fencing   sync.Mutex       // one change of the fence at a time
	collector []netip.AddrPort // which forward may reach; guarded by fencing
	peers     []netip.AddrPort // which the ledger may reach; guarded by fencing

	storing   sync.Mutex // one change of the stored network at a time
	listening sync.Mutex // one change of sockets at a time

	mu         sync.Mutex
	disk       string                    // one line for people
	mounted    bool                      //
	format     int                       // of the stored data; set once, before anything reads them
	signedBoot *rpc.OpenedPolicy         // what the volume opened by; nil where no signed policy did
	problems   map[string]policy.Problem // by kind
	sockets    map[string]*socketSet     // by process
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
func (n *node) prepare() {
	note := func(kind string, err error, remedy string) {
		if err != nil {
			n.problem(kind, err.Error(), remedy)
		}
	}
	note("init-mounts", mountAll(mounts), "the image does not fit this kernel; build it again")
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
	need, err := modulesNeeded()
	var failed []string
	if err != nil {
		failed = append(failed, err.Error())
	}
	again, bad := loadModules(need.early)
	failed = append(failed, bad...)
	n.logf("%d modules loaded %s after init began, %d to follow", len(need.early)-len(again), (rpc.BootTime() - n.started).Round(time.Millisecond),
		len(need.cards)+len(need.fence)+len(need.later)+len(again))
	settings := make(chan []string, 1)
	go func() { // while the TPM and the disk are waited for; no service starts before
		settings <- setSysctls("/proc/sys", sysctls)
		close(n.settled)
	}()
	go func() {
		defer close(n.drivers)
		// With Secure Boot the kernel measures each module that it loads, and a TPM that is told something new meanwhile checks its policy
		// from the beginning.
		select {
		case <-n.unsealed:
		case <-time.After(unsealWait):
		}
		missing, bad := loadModules(need.cards)
		failed = append(failed, bad...)
		again = append(again, missing...)
		close(n.cards)
		_, bad = loadModules(need.fence)
		failed = append(failed, bad...)
		n.raiseFence()
		missing, bad = loadModules(append(need.later, again...))
		failed = append(append(failed, bad...), <-settings...)
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

// askedTPM lets the drivers go on that wait for the data disk.
func (n *node) askedTPM() { n.unsealing.Do(func() { close(n.unsealed) }) }

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

// Where the boot's own files are: the policy key that the boot stub hands over with the image, and the policies beside the images.
const (
	authorityFile = "/.extra/tpm2-pcr-public-key.pem"
	policyFile    = "guardhouse/policy.json" // images.PolicyPath
	bootDir       = "/run/boot"
	tpmDevice     = "/dev/tpmrm0"
)

// errOpen: the data volume is open already.
var errOpen = errors.New("the data volume is open")

// openDisk finds the data disk, prepares it where it is blank, opens its volume and mounts it; errOpen where somebody typed the recovery
// secret meanwhile.
func (n *node) openDisk(ctx context.Context) error {
	n.opening.Lock()
	defer n.opening.Unlock()
	if n.volume != nil {
		return errOpen
	}
	list, err := n.finder.List()
	if err != nil {
		return err
	}
	d, err := disk.Choose(list)
	if err != nil {
		return err
	}
	v, err := n.openVolume(ctx, d)
	if err != nil {
		return err
	}
	return n.adopt(v)
}

// adopt takes an open volume into use. Its key is kept only where a recovery secret is still to be made or the volume to be resealed.
func (n *node) adopt(v *volume.Volume) error {
	returned := rpc.BootTime() // Open has capped the registers and proved it
	known, err := v.Recovery()
	if err != nil {
		return errors.Join(err, v.Close())
	}
	if known.ID == "" {
		n.problem("recovery-none", "no recovery secret opens the data volume: if TPM or board fail, its data are lost", "make one on the serial line: setup does, later recovery new")
	} else if v.Changed == nil {
		v.Forget()
	}
	if err := makeFolders(true); err != nil {
		return errors.Join(&disk.Error{Kind: disk.KindFailed, What: err.Error(), Remedy: "restart the node; if it stays, replace the disk"}, v.Close())
	}
	size, _, err := disk.Size(dataDir)
	if err != nil {
		return errors.Join(err, v.Close())
	}
	format, err := update.ClaimFormat(formatFile, n.release.Number)
	if err != nil {
		return errors.Join(err, v.Close())
	}
	n.mu.Lock()
	n.format = format
	n.mu.Unlock()
	n.volume = v
	if v.Did == volume.Formatted {
		n.forgetDamage()
	}
	if err := n.log.OpenDisk(logDir, n.boot, min(supervise.MaxLog, size/8)); err != nil {
		n.problem("log-disk", err.Error(), "free or replace the data disk; the log is kept in memory meanwhile")
	}
	by := fmt.Sprintf("policy %q of release %d with %d TPM commands", v.Used.Name, v.Used.Release, v.Commands)
	if v.Changed != nil {
		by = "its recovery secret"
	}
	d := v.Disk
	n.mu.Lock()
	n.mounted = true
	n.signedBoot = openedBy(v.Used)
	n.disk = fmt.Sprintf("%s, %d MiB, %s", d.Name, d.Size>>20, v.Did)
	if d.Serial != "" {
		n.disk += ", serial " + d.Serial
	}
	line := n.disk
	n.mu.Unlock()
	n.logf("data disk %s, open %s after init began by %s; out of reach %s after", line, (v.Mounted - n.started).Round(time.Millisecond), by, (returned - n.started).Round(time.Millisecond))
	return nil
}

func openedBy(p tpm.SignedPolicy) *rpc.OpenedPolicy {
	if len(p.PCRs) == 0 {
		return nil
	}
	o := &rpc.OpenedPolicy{Policy: p.Name, Release: p.Release, PCRs: map[int]string{}}
	for pcr, v := range p.PCRs {
		o.PCRs[int(pcr)] = v
	}
	return o
}

// machine is what volumes are opened with, but for the TPM.
func (n *node) machine() *volume.Machine {
	return &volume.Machine{Now: rpc.BootTime, Finder: n.finder, Target: dataDir, OwnerDir: initDir, Log: n.logf, Progress: n.progress()}
}

// openVolume has the TPM decide by what lies beside the image.
func (n *node) openVolume(ctx context.Context, d disk.Disk) (*volume.Volume, error) {
	t, err := tpm.Open(tpmDevice)
	if err != nil {
		return nil, &tpm.Error{Kind: tpm.KindNoTPM, What: err.Error(), Remedy: "enable the TPM 2.0 in the firmware's settings and reboot"}
	}
	defer t.Close()
	m := n.machine()
	m.TPM = t
	boot, err := n.bootOf()
	if err != nil {
		return nil, err
	}
	defer n.askedTPM()
	if d.Content == disk.Blank {
		n.askedTPM() // preparing takes long, and is done once
		return m.Make(ctx, d, boot)
	}
	return m.Open(ctx, d, boot)
}

// bootOf reads what the builder of the image signed. Files that are not ours or damaged are told and left out: the TPM alone decides.
func (n *node) bootOf() (volume.Boot, error) {
	authority, err := os.ReadFile(authorityFile)
	if err != nil {
		return volume.Boot{}, &tpm.Error{Kind: tpm.KindNoPolicy, What: "the image came without the key of its policies: " + err.Error(), Remedy: "boot the image as it was delivered, by UEFI firmware"}
	}
	boot := volume.Boot{Authority: authority}
	if boot.Log, err = readBounded(bootLogFile, quote.MaxLog); err != nil {
		n.logf("boot log: %v", err)
	}
	files, notes := n.finder.BootFiles(bootDir, policyFile, tpm.MaxPolicyFile)
	for _, b := range files {
		f, err := tpm.ParsePolicyFile(b)
		if err != nil {
			notes = append(notes, err.Error())
			continue
		}
		boot.Policies = append(boot.Policies, f.Policies...)
	}
	for _, note := range notes {
		n.logf("boot disk: %s", note)
	}
	return boot, nil
}

// progress tells on the serial line how far a new volume is, in steps that a person can watch.
func (n *node) progress() disk.Progress {
	next := int64(0)
	return func(done, total int64) {
		if percent := done * 100 / total; percent >= next {
			n.say(fmt.Sprintf("preparing the data disk: %d %% of %d MiB", percent, total>>20))
			next = percent + 10
		}
	}
}

// findDisk opens the data disk; where it can't, it goes on trying in the background and starts what waits for it.
func (n *node) findDisk(ctx context.Context, opened func()) {
	n.opening.Lock()
	n.opened = opened
	n.opening.Unlock()
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
	if errors.As(err, &de) && de.Kind == update.KindUnreadable {
		return // trying again changes nothing
	}
	go func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-time.After(diskRetry):
			}
			err := n.openDisk(ctx)
			if errors.Is(err, errOpen) {
				return // unlock has started everything
			}
			if err == nil {
				n.diskFailed(nil)
				opened()
				return
			}
			n.diskFailed(err)
		}
	}()
}

// diskKinds are the beginnings of the kinds of problems that keep the data disk shut.
var diskKinds = []string{"disk-", "volume-", "seal-", "tpm-"}

func keepsDiskShut(kind string) bool {
	return slices.ContainsFunc(diskKinds, func(p string) bool { return strings.HasPrefix(kind, p) })
}

// diskFailed replaces what was known about the disk by err; nil: it is open.
func (n *node) diskFailed(err error) {
	n.mu.Lock()
	maps.DeleteFunc(n.problems, func(kind string, p policy.Problem) bool {
		return keepsDiskShut(kind) && (err == nil || p.What != err.Error())
	})
	n.mu.Unlock()
	if err == nil {
		return
	}
	p, ok := problemOf(err)
	if !ok {
		p = policy.Problem{Kind: disk.KindFailed, What: err.Error(), Remedy: "restart the node; if it stays, replace the disk"}
	}
	n.problem(p.Kind, p.What, p.Remedy)
	n.mu.Lock()
	n.disk = p.What
	n.mu.Unlock()
}

// problemOf is the finding in an error of disk, TPM or volume; ok is false where it is none of theirs.
func problemOf(err error) (p policy.Problem, ok bool) {
	var de *disk.Error
	var te *tpm.Error
	switch {
	case errors.As(err, &de):
		return policy.Problem{Kind: de.Kind, What: de.What, Remedy: de.Remedy}, true
	case errors.As(err, &te):
		return policy.Problem{Kind: te.Kind, What: te.What, Remedy: te.Remedy}, true
	}
	return policy.Problem{}, false
}

// startNetwork applies the stored network. A node that has none yet only feels which of its cables are in.
func (n *node) startNetwork(ctx context.Context) {
	<-n.cards
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
	if err := n.net.Apply(ctx, v); err != nil {
		return err
	}
	n.networkUp.CompareAndSwap(0, int64(rpc.BootTime()))
	return nil
}

// storeNetwork replaces the stored network; after a power cut there is the old one or the new one.
func storeNetwork(file string, v policy.Network) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return disk.ReplaceFile(file, b)
}
