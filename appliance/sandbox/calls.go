package sandbox

import (
	"fmt"
	"slices"

	"golang.org/x/sys/unix"
)

// This file is the one list of system calls that services of a node are refused, by what the calls are for. It names what is refused
// instead of what is allowed: a list of the allowed ones has to be right for every version of Go, of the C library and of a vendor's
// PKCS#11 module, and the day it is not, it stops a node in the field. What makes up for it: calls newer than the image's own kernel
// (see newestCall) do not exist for a service, whatever kernel it runs on, so that nothing new comes in without a line here.
//
// The process that reads update bundles runs nothing but our own Go code on hostile bytes; it has a list of the allowed ones (GoCalls).

// Group names calls that are for the same thing.
type Group string

// The groups.
const (
	GroupKernel     Group = "kernel"     // code and memory of the kernel
	GroupMachine    Group = "machine"    // the whole machine: restart, swap, its name, its log
	GroupMounts     Group = "mounts"     // the tree of files
	GroupNamespaces Group = "namespaces" // views of the system, in which a process has rights that it has nowhere else
	GroupProcesses  Group = "processes"  // memory and descriptors of other processes
	GroupRings      Group = "rings"      // work that the kernel does past this filter, and faults that a process answers itself
	GroupKeyrings   Group = "keyrings"   // the kernel's key store
	GroupHandles    Group = "handles"    // files by number, past the folders that lead to them; watches over whole mounts
	GroupTime       Group = "time"       // the system's clock
	GroupPrograms   Group = "programs"   // processes of its own; which programs they may run is up to Confinement
	GroupCode       Group = "code"       // memory that is data first and code then, for all that is readable even; programs without a file; memory shared by a number
)

// Refused is one group of calls. Deadly: nothing that we or the Go libraries wrote makes them, so a process of our own code that does
// is not ours any more, and ends (SIGSYS, which the log and status show). Where foreign code runs they fail with EPERM like all others:
// that is what a process without capabilities gets from the kernel for nearly all of them, so a module that probes for one goes on.
type Refused struct {
	Group  Group
	Why    string
	Calls  []string
	Deadly bool
}

// RefusedCalls are all groups. Calls with conditions are in refusedArguments, sockets in socketKinds.
var RefusedCalls = []Refused{
	{GroupKernel, "only init loads modules, at boot; nobody replaces the running kernel or programs it", []string{"init_module", "finit_module",
		"delete_module", "create_module", "query_module", "get_kernel_syms", "kexec_load", "kexec_file_load", "bpf", "iopl", "ioperm", "_sysctl",
		"nfsservctl", "lookup_dcookie", "modify_ldt", "uselib", "remap_file_pages"}, true},
	{GroupMachine, "only init restarts the machine; nobody swaps, counts or renames it", []string{"reboot", "swapon", "swapoff", "acct", "quotactl",
		"quotactl_fd", "sethostname", "setdomainname", "vhangup", "syslog"}, true},
	{GroupMounts, "only init mounts, and the shim before a service starts", []string{"mount", "umount2", "pivot_root", "chroot", "open_tree",
		"move_mount", "fsopen", "fsconfig", "fsmount", "fspick", "mount_setattr"}, true},
	{GroupNamespaces, "a namespace opens code of the kernel to users without rights", []string{"unshare", "setns"}, true},
	{GroupProcesses, "processes of a node talk over sockets; secrets of others lie in their memory", []string{"ptrace", "process_vm_readv",
		"process_vm_writev", "process_madvise", "process_mrelease", "pidfd_getfd", "kcmp", "move_pages", "migrate_pages", "perf_event_open"}, true},
	{GroupRings, "what a ring does no filter sees; answering page faults is a tool of attacks on the kernel", []string{"io_uring_setup",
		"io_uring_enter", "io_uring_register", "userfaultfd"}, true},
	{GroupKeyrings, "only init puts a key there, the data volume's", []string{"add_key", "request_key", "keyctl"}, true},
	{GroupHandles, "files are reached by their folders, or not", []string{"name_to_handle_at", "open_by_handle_at", "fanotify_init", "fanotify_mark"}, true},
	{GroupTime, "only the clock sets it", []string{"settimeofday", "clock_settime", "adjtimex", "clock_adjtime"}, true},
	{GroupPrograms, "it starts none", []string{"fork", "vfork", "execveat"}, false},
	{GroupCode, "our programs are compiled before they run, and share memory with nobody", []string{"memfd_create", "memfd_secret", "shmget", "shmat",
		"shmctl", "shmdt", "personality"}, false},
}

// namespaceFlags are the bits of clone that make a namespace.
const namespaceFlags = unix.CLONE_NEWNS | unix.CLONE_NEWCGROUP | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWUSER | unix.CLONE_NEWPID |
	unix.CLONE_NEWNET

// refusedArgument refuses a call when the test holds.
type refusedArgument struct {
	group Group
	call  string
	test  test
}

var refusedArguments = func() (list []refusedArgument) {
	for bit := uint32(1); bit != 0; bit <<= 1 {
		if namespaceFlags&bit != 0 {
			list = append(list, refusedArgument{GroupNamespaces, "clone", test{arg: 0, mask: bit, want: bit}})
		}
	}
	list = append(list, refusedArgument{GroupPrograms, "clone", test{arg: 0, mask: unix.CLONE_THREAD, want: 0}}) // a thread is no process
	for _, call := range []string{"mmap", "mprotect", "pkey_mprotect"} {
		list = append(list, refusedArgument{GroupCode, call, test{arg: 2, mask: unix.PROT_EXEC, want: unix.PROT_EXEC}})
	}
	return list
}()

// socketKinds are the sockets that a process may be allowed to make, by name. What it is given by init it may use without.
var socketKinds = map[string][]socketKind{
	"unix":   {{unix.AF_UNIX, anySocket, []uint32{0, unix.AF_UNIX}}},
	"tcp":    {{unix.AF_INET, unix.SOCK_STREAM, tcpProtocols}, {unix.AF_INET6, unix.SOCK_STREAM, tcpProtocols}},
	"udp":    {{unix.AF_INET, unix.SOCK_DGRAM, udpProtocols}, {unix.AF_INET6, unix.SOCK_DGRAM, udpProtocols}},
	"route":  {{unix.AF_NETLINK, anySocket, []uint32{unix.NETLINK_ROUTE}}},
	"packet": {{unix.AF_PACKET, anySocket, nil}},
}

type socketKind struct {
	domain, kind uint32   // kind = SOCK_STREAM or the like, without the flags
	protocols    []uint32 // nil = any
}

const anySocket = ^uint32(0)

var (
	tcpProtocols = []uint32{0, unix.IPPROTO_TCP}
	udpProtocols = []uint32{0, unix.IPPROTO_UDP}
)

// newestCall is the highest number that the kernel of the images has (set_mempolicy_home_node, Linux 5.17 to 6.2). Higher ones answer
// ENOSYS, as they do there.
const newestCall = unix.SYS_SET_MEMPOLICY_HOME_NODE

// Filter is what a process is refused: all of RefusedCalls but for Needs, and all sockets but for Sockets.
type Filter struct {
	Foreign bool     `json:"foreign,omitempty"` // code that is not ours runs in it: no refused call is deadly
	Needs   []Need   `json:"needs,omitempty"`   // groups that it may call after all
	Sockets []Kind   `json:"sockets,omitempty"` // sockets that it may make
	Also    []string `json:"also,omitempty"`    // calls that it is refused besides
}

// Need is a group that a process makes use of.
type Need struct {
	Group Group  `json:"group"`
	Why   string `json:"-"`
}

// Kind is a kind of socket, a name in socketKinds, that a process makes use of.
type Kind struct {
	Name string `json:"name"`
	Why  string `json:"-"`
}

// Narrow puts the filter on all threads of the running process, beside those it has: for a program that needs less from here on than
// when it started. It can't be undone. The process must have no_new_privs, as all that the shim starts have; Narrow sets it where not.
func (f *Filter) Narrow() error {
	p, err := f.policy()
	if err == nil {
		err = unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
	}
	if err == nil {
		err = p.load(unix.SECCOMP_FILTER_FLAG_TSYNC)
	}
	if err != nil {
		return fmt.Errorf("limit system calls: %w", err)
	}
	return nil
}

// SoftwareKeysFilter is for the worker that holds software keys, once it has its connection: from then on it computes. The program it is
// part of can't have it from the start, because hsm also starts the workers of modules, and because it is loaded by the C library.
var SoftwareKeysFilter = &Filter{Also: []string{"execve", "open", "openat", "openat2", "creat", "connect", "bind", "listen", "accept", "accept4",
	"unlink", "unlinkat", "rename", "renameat", "renameat2", "link", "linkat", "symlink", "symlinkat", "mkdir", "mkdirat", "mknod", "mknodat", "kill"}}

func (f *Filter) needs(g Group) bool {
	return slices.ContainsFunc(f.Needs, func(n Need) bool { return n.Group == g })
}

// policy makes the filter's program. It is an error to name a call, group or socket that does not exist.
func (f *Filter) policy() (callPolicy, error) {
	p := callPolicy{otherwise: allow, newest: newestCall, calls: map[string]verdict{}}
	for _, n := range f.Needs {
		if !slices.ContainsFunc(RefusedCalls, func(r Refused) bool { return r.Group == n.Group }) {
			return p, fmt.Errorf("there is no group %q of system calls", n.Group)
		}
	}
	for _, r := range RefusedCalls {
		if f.needs(r.Group) {
			continue
		}
		then := refuse
		if r.Deadly && !f.Foreign {
			then = kill
		}
		for _, call := range r.Calls {
			p.calls[call] = verdict{otherwise: then}
		}
		for _, a := range refusedArguments {
			if a.group == r.Group {
				v := p.calls[a.call]
				v.otherwise = allow
				v.branches = append(v.branches, branch{[]test{a.test}, then})
				p.calls[a.call] = v
			}
		}
	}
	// The flags of clone3 lie in memory, where no filter sees them. Who finds it missing falls back to clone.
	p.calls["clone3"] = verdict{otherwise: missing}
	socket := verdict{otherwise: refuse}
	pair := verdict{otherwise: refuse}
	for _, k := range f.Sockets {
		kinds, ok := socketKinds[k.Name]
		if !ok {
			return p, fmt.Errorf("there is no kind %q of sockets", k.Name)
		}
		for _, kind := range kinds {
			socket.branches = append(socket.branches, kind.branches()...)
			if kind.domain == unix.AF_UNIX {
				pair.branches = append(pair.branches, kind.branches()...)
			}
		}
	}
	p.calls["socket"], p.calls["socketpair"] = socket, pair
	for _, call := range f.Also {
		p.calls[call] = verdict{otherwise: refuse}
	}
	return p, nil
}

// socketFlags may be or-ed to the kind.
const socketFlags = unix.SOCK_NONBLOCK | unix.SOCK_CLOEXEC

func (k socketKind) branches() (list []branch) {
	tests := []test{{arg: 0, mask: wholeHalf, want: k.domain}}
	if k.kind != anySocket {
		tests = append(tests, test{arg: 1, mask: wholeHalf &^ socketFlags, want: k.kind})
	}
	if k.protocols == nil {
		return []branch{{tests, allow}}
	}
	for _, proto := range k.protocols {
		list = append(list, branch{append(slices.Clip(tests), test{arg: 2, mask: wholeHalf, want: proto}), allow})
	}
	return list
}
