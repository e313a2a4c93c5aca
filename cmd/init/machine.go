package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"guardhouse/board/kernel"
)

// mount is one file system of the bare machine. Those marked optional may be missing in a kernel.
type mount struct {
	what, where, kind string
	flags             uintptr
	data              string
	optional          bool
}

const quiet = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC

// mounts, in order. A process sees only itself in /proc (hidepid).
var mounts = []mount{
	{"proc", "/proc", "proc", quiet, "hidepid=invisible", false},
	{"sysfs", "/sys", "sysfs", quiet | unix.MS_RDONLY, "", false},
	{"devtmpfs", "/dev", "devtmpfs", unix.MS_NOSUID | unix.MS_NOEXEC, "mode=0755", false},
	{"tmpfs", "/run", "tmpfs", quiet, "mode=0755,size=16m", false},
	{"tmpfs", "/tmp", "tmpfs", quiet, "mode=1777,size=16m", false},
	{"securityfs", "/sys/kernel/security", "securityfs", quiet, "", true},
}

func mountAll(list []mount) error {
	var failed error
	for _, m := range list {
		if !m.optional {
			if err := os.MkdirAll(m.where, 0o755); err != nil && !errors.Is(err, unix.EROFS) {
				failed = errors.Join(failed, err)
			}
		}
		err := unix.Mount(m.what, m.where, m.kind, m.flags, m.data)
		if err != nil && !errors.Is(err, unix.EBUSY) && !m.optional { // EBUSY: the kernel mounted devtmpfs itself
			failed = errors.Join(failed, fmt.Errorf("mount %s: %w", m.where, err))
		}
	}
	return failed
}

// sealRoot makes the initial file system read-only. resolv.conf, the one file that changes, lives in /run.
func sealRoot() error {
	os.Remove("/etc/resolv.conf")
	err := os.Symlink(resolvConf, "/etc/resolv.conf")
	if rerr := unix.Mount("", "/", "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); rerr != nil {
		err = errors.Join(err, fmt.Errorf("make the root read-only: %w", rerr))
	}
	return err
}

// late are modules that neither the data disk nor the network cards need. They are loaded while the services start, which
// saves a third of the time that drivers take.
var late = map[string]bool{
	"8021q": true, "garp": true, "mrp": true, "stp": true, "llc": true, "bonding": true, "tls": true, // for networks that use them
	"efivarfs": true, // boot entries
	"watchdog": true, "i6300esb": true, "iTCO_vendor_support": true, "iTCO_wdt": true, "sp5100_tco": true, "lpc_ich": true,
	"intel_pmc_bxt": true, "i2c-i801": true, "i2c-smbus": true, // watchdogs
	"button": true, "evdev": true,
	"usb-common": true, "usbcore": true, "xhci-hcd": true, "xhci-pci": true, "usb-storage": true, // sticks
}

// cards are modules that the way to the data disk does not need, but the network and the port of the HSM do. They are loaded as soon as
// the disk is open; what they need themselves may come with the disk's.
var cards = map[string]bool{"failover": true, "net_failover": true, "virtio_net": true, "virtio_console": true,
	"e1000e": true, "igb": true, "igc": true, "ixgbe": true, "tg3": true}

// drivers are modules in load order: those of the data disk, which the boot waits for, those that the network waits for, those that hsm
// waits for as well, and the others.
type drivers struct{ early, cards, fence, later []kernel.Load }

// modulesNeeded lists the modules that this machine needs.
func modulesNeeded() (d drivers, err error) {
	list, err := os.ReadFile(kernel.ListFile)
	if errors.Is(err, fs.ErrNotExist) {
		return d, nil // everything is built in
	}
	match, merr := os.ReadFile(kernel.MatchFile)
	if errors.Is(merr, fs.ErrNotExist) {
		merr = nil
	}
	needed, serr := kernel.Select(string(list), string(match), modaliases())
	for _, m := range needed {
		name := strings.TrimSuffix(filepath.Base(m.Path), ".ko")
		switch {
		case fencing[name]:
			d.fence = append(d.fence, m)
		case late[name]:
			d.later = append(d.later, m)
		case cards[name]:
			d.cards = append(d.cards, m)
		default:
			d.early = append(d.early, m)
		}
	}
	return d, errors.Join(err, merr, serr)
}

// loadModules loads modules in order. A module that is there already, or whose hardware is not (ENODEV), is no failure. again are those
// that need another module first (ENOENT): in a first pass one of the later ones, in a second pass they have failed.
func loadModules(list []kernel.Load) (again []kernel.Load, failed []string) {
	for _, m := range list {
		switch err := loadModule(m.Path, m.Params); {
		case err == nil, errors.Is(err, unix.EEXIST), errors.Is(err, unix.ENODEV):
		case errors.Is(err, unix.ENOENT):
			again = append(again, m)
		default:
			failed = append(failed, fmt.Sprintf("module %s: %v", filepath.Base(m.Path), err))
		}
	}
	return again, failed
}

// modaliases are the names by which drivers know this machine's devices.
func modaliases() (list []string) {
	files, _ := filepath.Glob(kernel.AliasGlob)
	for _, f := range files {
		if b, err := os.ReadFile(f); err == nil {
			list = append(list, strings.TrimSpace(string(b)))
		}
	}
	return list
}

func loadModule(path, params string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.FinitModule(int(f.Fd()), params, 0)
}

// sysctl is one kernel setting and why. Optional ones are unknown to some kernels.
type sysctl struct {
	key, value, why string
}

// sysctls hold for every node. A key that the kernel lacks is skipped.
var sysctls = []sysctl{
	{"kernel.printk", "1 4 1 7", "the serial line belongs to the console; `log show kernel` has it all"},
	{"kernel.core_pattern", "|/nowhere", "a crash writes memory nowhere"},
	{"fs.suid_dumpable", "0", "the same for processes that changed their uid"},
	{"kernel.kptr_restrict", "2", "kernel addresses help only an attacker"},
	{"kernel.dmesg_restrict", "1", "the kernel's log is for init"},
	{"kernel.yama.ptrace_scope", "3", "no process may look into another, init included"},
	{"kernel.perf_event_paranoid", "3", "nobody measures here"},
	{"kernel.unprivileged_bpf_disabled", "1", "no programs inside the kernel"},
	{"net.core.bpf_jit_harden", "2", "the same for those the kernel makes itself"},
	{"kernel.unprivileged_userns_clone", "0", "no user namespaces: their code is new and large"},
	{"user.max_user_namespaces", "0", "the same, in the kernel's own words"},
	{"kernel.io_uring_disabled", "2", "not used, often attacked"},
	{"vm.unprivileged_userfaultfd", "0", "makes kernel races easy"},
	{"dev.tty.ldisc_autoload", "0", "the serial line must not load drivers"},
	{"kernel.kexec_load_disabled", "1", "the only way to another kernel is the firmware"},
	{"kernel.sysrq", "0", "no keys past the console"},
	{"kernel.ctrl-alt-del", "0", "init gets a signal and stops in order"},
	{"kernel.panic", "10", "a dead node starts again"},
	{"kernel.panic_on_oops", "1", "a kernel that made a mistake is not trusted with keys"},
	{"kernel.randomize_va_space", "2", "addresses differ at each start"},
	{"vm.mmap_min_addr", "65536", "null pointers hit nothing"},
	{"fs.protected_symlinks", "1", "no tricks with links in shared folders"},
	{"fs.protected_hardlinks", "1", "the same"},
	{"fs.protected_fifos", "2", "the same"},
	{"fs.protected_regular", "2", "the same"},
	{"net.ipv4.ip_forward", "0", "a node is not a router"},
	{"net.ipv4.tcp_syncookies", "1", "a flood of half-open connections must not shut hosts out"},
	{"net.core.somaxconn", "4096", "hosts that all start at once wait in the queue"},
	{"net.ipv4.conf.all.rp_filter", "1", "answers leave by the interface the question came in by"},
	{"net.ipv4.conf.default.rp_filter", "1", "the same"},
	{"net.ipv4.conf.all.accept_redirects", "0", "nobody on the wire changes our routes"},
	{"net.ipv4.conf.default.accept_redirects", "0", "the same"},
	{"net.ipv6.conf.all.accept_redirects", "0", "the same"},
	{"net.ipv6.conf.default.accept_redirects", "0", "the same"},
	{"net.ipv4.conf.all.send_redirects", "0", "nor do we change others'"},
	{"net.ipv4.conf.default.send_redirects", "0", "the same"},
	{"net.ipv4.conf.all.accept_source_route", "0", "the sender does not choose the way"},
	{"net.ipv4.conf.default.accept_source_route", "0", "the same"},
	{"net.ipv6.conf.default.accept_ra", "0", "IPv6 from routers only where the network settings say so"},
	{"net.ipv6.conf.default.autoconf", "0", "the same"},
}

// sealModules ends module loading for this boot.
var sealModules = sysctl{"kernel.modules_disabled", "1", "all drivers are loaded; nobody adds code to the kernel now"}

// setSysctls returns what could not be set.
func setSysctls(root string, list []sysctl) (failed []string) {
	for _, s := range list {
		path := filepath.Join(root, strings.ReplaceAll(s.key, ".", "/"))
		err := os.WriteFile(path, []byte(s.value), 0)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			failed = append(failed, fmt.Sprintf("%s = %s: %v", s.key, s.value, err))
		}
	}
	return failed
}

// virtioPort is the device file of a virtio serial port by its name; the number depends on the other devices.
func virtioPort(name string) (string, bool) {
	list, _ := filepath.Glob("/sys/class/virtio-ports/*/name")
	for _, p := range list {
		if b, err := os.ReadFile(p); err == nil && strings.TrimSpace(string(b)) == name {
			return "/dev/" + filepath.Base(filepath.Dir(p)), true
		}
	}
	return "", false
}
