package sandbox

import (
	"encoding/binary"
	"slices"
	"testing"

	"github.com/elastic/go-seccomp-bpf/arch"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// every is all rows, those that are not in Table too.
func every() []Process {
	return append([]Process{DHCPProcess, ResolveProcess, UpdateProcess, HSMDaemonProcess}, Table...)
}

func TestEveryProcessHasAFilterAndAReasonForEachException(t *testing.T) {
	for _, p := range every() {
		c := p.Confine
		if c == nil || (c.Filter == nil) == (len(c.Calls) == 0) {
			t.Errorf("%s: %+v", p.Name, c)
			continue
		}
		if c.AnyProgram && !c.Filter.Foreign {
			t.Errorf("%s may start any program", p.Name)
		}
		for _, d := range p.Devices {
			if d.Path != "" && !c.AnyFile && !slices.Contains(c.Files, Reach{d.Path, true}) {
				t.Errorf("%s can't open its own %s", p.Name, d.Path)
			}
		}
		if c.Filter == nil {
			continue
		}
		if _, err := c.Filter.policy(); err != nil {
			t.Errorf("%s: %v", p.Name, err)
		}
		for _, n := range c.Filter.Needs {
			if n.Why == "" {
				t.Errorf("%s: no reason why it needs %s", p.Name, n.Group)
			}
		}
		for _, k := range c.Filter.Sockets {
			if k.Why == "" {
				t.Errorf("%s: no reason why it needs %s sockets", p.Name, k.Name)
			}
		}
	}
	for _, r := range RefusedCalls {
		if r.Why == "" || len(r.Calls) == 0 {
			t.Errorf("group %s: %q %q", r.Group, r.Why, r.Calls)
		}
	}
}

// judge runs the filter's program as the kernel would, in the other byte order, which is the VM's.
type judge struct {
	t  *testing.T
	vm *bpf.VM
}

func newJudge(t *testing.T, p callPolicy) judge {
	t.Helper()
	prog, err := p.program()
	if err != nil {
		t.Fatal(err)
	}
	vm, err := bpf.NewVM(prog)
	if err != nil {
		t.Fatal(err)
	}
	return judge{t, vm}
}

func (j judge) raw(arch uint32, nr int, args ...uint64) uint32 {
	data := make([]byte, 64)
	binary.BigEndian.PutUint32(data, uint32(nr))
	binary.BigEndian.PutUint32(data[4:], arch)
	for i, a := range args { // low half first, each half in the VM's order
		binary.BigEndian.PutUint32(data[16+8*i:], uint32(a))
		binary.BigEndian.PutUint32(data[20+8*i:], uint32(a>>32))
	}
	n, err := j.vm.Run(data)
	if err != nil {
		j.t.Fatal(err)
	}
	return uint32(n)
}

func (j judge) call(name string, args ...uint64) uint32 {
	nr, ok := arch.X86_64.SyscallNames[name]
	if !ok {
		j.t.Fatalf("no call %s", name)
	}
	return j.raw(uint32(arch.X86_64.ID), nr, args...)
}

func row(t *testing.T, name string) judge {
	t.Helper()
	for _, p := range every() {
		if p.Name == name {
			pol, err := p.Confine.Filter.policy()
			if err != nil {
				t.Fatal(err)
			}
			return newJudge(t, pol)
		}
	}
	t.Fatalf("no row %s", name)
	return judge{}
}

// TestEveryRefusedCallIsRefusedToEveryProcess goes through all calls of the processor for all rows.
func TestEveryRefusedCallIsRefusedToEveryProcess(t *testing.T) {
	for _, p := range every() {
		f := p.Confine.Filter
		if f == nil {
			continue
		}
		j := row(t, p.Name)
		want := map[string]uint32{"clone3": missing, "socket": refuse, "socketpair": refuse}
		for _, r := range RefusedCalls {
			if f.needs(r.Group) {
				continue
			}
			for _, c := range r.Calls {
				if want[c] = refuse; r.Deadly && !f.Foreign {
					want[c] = kill
				}
			}
		}
		if !f.needs(GroupPrograms) {
			want["clone"] = refuse // with no flags: a process
		}
		for name, nr := range arch.X86_64.SyscallNames {
			w, listed := want[name]
			switch {
			case nr > newestCall:
				w = missing
			case !listed:
				w = allow
			}
			if got := j.call(name); got != w {
				t.Errorf("%s: %s gets %#x, want %#x", p.Name, name, got, w)
			}
		}
	}
}

// TestWhatAttacksNeedIsRefusedToAll holds the table against a list of its own: what a hole in a service is widened with.
func TestWhatAttacksNeedIsRefusedToAll(t *testing.T) {
	for call, but := range map[string][]string{"ptrace": nil, "process_vm_readv": nil, "process_vm_writev": nil, "pidfd_getfd": nil, "bpf": nil,
		"perf_event_open": nil, "userfaultfd": nil, "io_uring_setup": nil, "add_key": nil, "request_key": nil, "keyctl": nil, "init_module": nil,
		"finit_module": nil, "delete_module": nil, "kexec_load": nil, "kexec_file_load": nil, "mount": nil, "umount2": nil, "move_mount": nil, "fsopen": nil,
		"open_tree": nil, "mount_setattr": nil, "pivot_root": nil, "chroot": nil, "unshare": nil, "setns": nil, "clone3": nil, "reboot": nil, "swapon": nil,
		"swapoff": nil, "acct": nil, "quotactl": nil, "open_by_handle_at": nil, "name_to_handle_at": nil, "iopl": nil, "ioperm": nil, "modify_ldt": nil,
		"sethostname": nil, "setdomainname": nil, "syslog": nil, "settimeofday": {"clock"}, "clock_settime": {"clock"}, "adjtimex": {"clock"},
		"clock_adjtime": {"clock"}, "execveat": {"ledger", "hsm", "hsm-daemon"}, "fork": {"ledger", "hsm", "hsm-daemon"}, "memfd_create": {"hsm", "hsm-daemon"},
		"personality": {"hsm", "hsm-daemon"}} {
		for _, p := range every() {
			if p.Confine.Filter == nil {
				if slices.Contains(p.Confine.Calls, call) {
					t.Errorf("%s may call %s", p.Name, call)
				}
				continue
			}
			if got := row(t, p.Name).call(call); (got == allow) != slices.Contains(but, p.Name) {
				t.Errorf("%s: %s gets %#x", p.Name, call, got)
			}
		}
	}
}

func TestNoOtherWayIntoTheKernelIsLeft(t *testing.T) {
	for _, p := range every() {
		var pol callPolicy
		if p.Confine.Filter != nil {
			pol, _ = p.Confine.Filter.policy()
		} else {
			pol = only(p.Confine.Calls)
		}
		j := newJudge(t, pol)
		for nr := range 500 {
			if got := j.raw(uint32(arch.I386.ID), nr); got != kill {
				t.Fatalf("%s: i386 call %d gets %#x", p.Name, nr, got)
			}
			if got := j.raw(uint32(arch.X86_64.ID), nr|firstX32); got != kill {
				t.Fatalf("%s: x32 call %d gets %#x", p.Name, nr, got)
			}
		}
	}
}

func TestArgumentsDecide(t *testing.T) {
	const exec = unix.PROT_READ | unix.PROT_EXEC
	high := uint64(1) << 32
	for _, c := range []struct {
		process, call string
		args          []uint64
		want          uint32
	}{
		{"hgs", "clone", []uint64{unix.CLONE_VM | unix.CLONE_THREAD}, allow},
		{"hgs", "clone", []uint64{uint64(unix.SIGCHLD)}, refuse},
		{"hgs", "clone", []uint64{9 | high}, refuse}, // 9 is mmap's number
		{"hgs", "clone", []uint64{unix.CLONE_THREAD | unix.CLONE_NEWUSER}, kill},
		{"ledger", "clone", []uint64{uint64(unix.SIGCHLD)}, allow},
		{"ledger", "clone", []uint64{uint64(unix.SIGCHLD) | unix.CLONE_NEWNET}, kill},
		{"hsm", "clone", []uint64{unix.CLONE_NEWNS}, refuse},
		{"hsm", "clone", []uint64{uint64(unix.SIGCHLD)}, allow},
		{"hgs", "mmap", []uint64{0, 4096, exec}, refuse},
		{"hgs", "mmap", []uint64{0, 4096, unix.PROT_READ | unix.PROT_WRITE}, allow},
		{"hgs", "mprotect", []uint64{0, 4096, exec | high}, refuse},
		{"hgs", "pkey_mprotect", []uint64{0, 4096, exec}, refuse},
		{"hsm", "mprotect", []uint64{0, 4096, exec}, allow},
		{"hgs", "socket", []uint64{unix.AF_UNIX, unix.SOCK_STREAM | unix.SOCK_CLOEXEC | unix.SOCK_NONBLOCK}, allow},
		{"hgs", "socket", []uint64{unix.AF_INET, unix.SOCK_STREAM}, refuse},
		{"hgs", "socket", []uint64{unix.AF_UNIX + 1<<16, unix.SOCK_STREAM}, refuse},
		{"clock", "socket", []uint64{unix.AF_INET, unix.SOCK_DGRAM | unix.SOCK_NONBLOCK}, allow},
		{"clock", "socket", []uint64{unix.AF_INET6, unix.SOCK_DGRAM, unix.IPPROTO_UDP}, allow},
		{"clock", "socket", []uint64{unix.AF_INET, unix.SOCK_STREAM}, refuse},
		{"clock", "socket", []uint64{unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_ICMP}, refuse},
		{"clock", "clock_settime", nil, allow},
		{"ledger", "clock_settime", nil, kill},
		{"forward", "socket", []uint64{unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_MPTCP}, refuse},
		{"forward", "socket", []uint64{unix.AF_INET6, unix.SOCK_STREAM, unix.IPPROTO_TCP}, allow},
		{"forward", "socket", []uint64{unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_ROUTE}, refuse},
		{"hsm", "socket", []uint64{unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_ROUTE}, allow},
		{"hsm", "socket", []uint64{unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_NETFILTER}, refuse},
		{"hsm", "socket", []uint64{unix.AF_VSOCK, unix.SOCK_STREAM}, refuse},
		{"hsm", "socket", []uint64{unix.AF_ALG, unix.SOCK_SEQPACKET}, refuse},
		{"hsm", "socket", []uint64{unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_TCP}, refuse},
		{"dhcp", "socket", []uint64{unix.AF_PACKET, unix.SOCK_RAW, 0x0300}, allow},
		{"hgs", "socketpair", []uint64{unix.AF_UNIX, unix.SOCK_DGRAM}, allow},
		{"hgs", "socketpair", []uint64{unix.AF_TIPC, unix.SOCK_DGRAM}, refuse},
	} {
		if got := row(t, c.process).call(c.call, c.args...); got != c.want {
			t.Errorf("%s: %s%v gets %#x, want %#x", c.process, c.call, c.args, got, c.want)
		}
	}
}

func TestAFilterThatNamesWhatDoesNotExistIsAnError(t *testing.T) {
	for _, f := range []Filter{{Needs: []Need{{Group: "all"}}}, {Sockets: []Kind{{Name: "any"}}}} {
		if _, err := f.policy(); err == nil {
			t.Errorf("%+v makes a filter", f)
		}
	}
	if _, err := only([]string{"no_such_call"}).program(); err == nil {
		t.Error("a call that does not exist is in a filter")
	}
	if slices.ContainsFunc(RefusedCalls, func(r Refused) bool { return r.Group == "" }) {
		t.Error("a group without a name")
	}
}
