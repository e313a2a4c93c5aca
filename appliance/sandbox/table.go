package sandbox

import (
	"io/fs"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"guardhouse/appliance/hsm/pack"
	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
)

// Process is one row of Table: everything a process may hold that others may not.
type Process struct {
	Name    string
	UID     uint32
	GID     uint32
	Program string   // absolute path in the image
	Args    []string // without argv[0]

	Sockets      []Socket     // listening sockets that init opens once and keeps over restarts
	Devices      []Device     // device files that become the process's own
	Paths        []Path       // folders made (or handed over) for the process before it starts
	Capabilities []Capability // kept over the change of uid; everything else is dropped for good
	Limits       Limits
	OOMScore     int // oom_score_adj: -1000 never killed .. 1000 killed first

	Watchdog  time.Duration // longest silence of the process after it is ready; 0 = none
	NeedsDisk bool          // is started only once the data disk is mounted
	Fenced    bool          // is started only behind the network fence: hsm reaches nothing but the HSM pack's addresses, forward nothing but the collector
	View      View          // mounts of its own
	Umask     int           // 0 = init's
	Confine   *Confinement  // files and system calls that are left to it; every row has one
}

// Socket is a TCP listening socket. Role says on which interfaces it listens where the network separates its roles. Moves: the open socket
// follows a change of the network while the process goes on, as long as their number stays; else the process is started anew.
type Socket struct {
	Name  string // LISTEN_FDNAMES
	Port  uint16
	Role  string // a policy.NetworkRole
	Moves bool
}

// Device is one device file, or for Port the virtio serial port of that name (its number depends on the other devices). A device that
// the machine does not have is not an error here: who needs it reports it.
type Device struct {
	Path string
	Port string
	Mode fs.FileMode
}

// Path is a folder of the process. Those on the data disk are made after it is mounted.
type Path struct {
	Path   string
	Mode   fs.FileMode
	OnDisk bool
	Group  uint32 // 0 = the process's
}

// Capability is a bit of capabilities(7).
type Capability uint8

// Capabilities in use.
const (
	CapNetBindService Capability = unix.CAP_NET_BIND_SERVICE
	CapNetRaw         Capability = unix.CAP_NET_RAW
	CapSysTime        Capability = unix.CAP_SYS_TIME
)

// Limits are resource limits. Core dumps are off for everybody. Sizes are bytes.
type Limits struct {
	Files  uint64 // RLIMIT_NOFILE
	Data   uint64 // RLIMIT_DATA: heap and private writable memory, the stacks of C threads included
	Locked uint64 // RLIMIT_MEMLOCK
	Tasks  uint64 // RLIMIT_NPROC: processes and threads of the uid; no process of a node needs a tenth of it
	Heap   int64  // GOMEMLIMIT, the garbage collector's target; below Data so that it is felt before the wall
}

const mib = 1 << 20

// goFiles are what each Go program reads of the system: both only say how large something is, and both it can do without.
var goFiles = []Reach{{Path: "/sys/kernel/mm/transparent_hugepage/hpage_pmd_size"}, {Path: "/proc/sys/net/core/somaxconn"}}

// withFiles is goFiles and more.
func withFiles(more ...Reach) []Reach { return slices.Concat(goFiles, more) }

// foreignFilter is for processes in which a vendor's code runs. What a module or helper may do to itself stays allowed: programs and
// threads of its own, memory that becomes code (libffi makes such for callbacks), shared memory.
var foreignFilter = &Filter{Foreign: true,
	Needs: []Need{{GroupPrograms, "the keeper starts its workers, a vendor's helper its own"}, {GroupCode, "modules make code for callbacks and share memory with their helper"}},
	Sockets: []Kind{{"unix", "rpc; a module and its helper"}, {"tcp", "an HSM on the network"}, {"udp", "asking for its address"},
		{"route", "the C library asks which addresses the machine has before it looks up a name"}}}

// DHCP is the process that speaks DHCP on one interface: init itself under another name, without init's rights. It has no rpc socket.
const DHCP = "dhcp"

// Table lists every process but init, in the order in which they start; they stop in the opposite order.
var Table = []Process{
	{
		Name: rpc.HSM, UID: 902, GID: 902, Program: "/bin/hsm",
		Devices: []Device{{Port: "org.guardhouse.hsm", Mode: 0o600}},
		Paths: []Path{{Path: "/run/hsm", Mode: 0o700}, {Path: "/data/hsm", Mode: 0o700, OnDisk: true},
			{Path: "/data/hsm/tokens", Mode: 0o700, OnDisk: true}, // tokens of a module inside the image
			// Site data of the HSM pack: what hsm writes gets the helper's group, which may read it.
			{Path: pack.SiteDir, Mode: 0o750 | fs.ModeSetgid, OnDisk: true, Group: 907}},
		Limits:   Limits{Files: 384, Tasks: 512, Data: 512 * mib, Locked: 1 * mib, Heap: 64 * mib},
		OOMScore: -500, Watchdog: 30 * time.Second, Fenced: true,
		// The keeper, and what it starts: workers with the vendor's module.
		Confine: &Confinement{AnyFile: true, AnyProgram: true, Filter: foreignFilter},
	},
	{
		Name: rpc.Ledger, UID: 901, GID: 901, Program: "/bin/ledger", Args: []string{"--data", "/data/ledger", "--sealed-volume"},
		// The fence holds it to its peers' port on the machines that it names to init, and to answers from its own.
		Sockets:  []Socket{{Name: "peer", Port: policy.PeerPort, Role: string(policy.NetCluster), Moves: true}}, // it answers for changes of the network
		Devices:  []Device{{Path: "/dev/tpmrm0", Mode: 0o600}},
		Paths:    []Path{{Path: "/data/ledger", Mode: 0o700, OnDisk: true}},
		Limits:   Limits{Files: 1024, Tasks: 512, Data: 512 * mib, Locked: 1 * mib, Heap: 160 * mib},
		OOMScore: -800, Watchdog: 30 * time.Second, NeedsDisk: true,
		Confine: &Confinement{AnyFile: true, Filter: &Filter{
			Needs:   []Need{{GroupPrograms, "reads its files the first time in a process of its own, which a damaged one may kill"}},
			Sockets: []Kind{{"unix", "its own door, the others' and init's"}, {"tcp", "the other nodes of its cluster; a TPM in software in tests"}}}},
	},
	{
		Name: rpc.Clock, UID: 904, GID: 904, Program: "/bin/clock",
		Paths:        []Path{{Path: "/data/clock", Mode: 0o700, OnDisk: true}},
		Devices:      []Device{{Path: "/dev/rtc0", Mode: 0o600}},
		Capabilities: []Capability{CapSysTime},
		Limits:       Limits{Files: 128, Tasks: 512, Data: 256 * mib, Heap: 32 * mib},
		OOMScore:     -500, Watchdog: 30 * time.Second,
		Confine: &Confinement{AnyFile: true, Filter: &Filter{
			Needs:   []Need{{GroupTime, "it is the clock"}},
			Sockets: []Kind{{"unix", "its own door, the ledger's and init's"}, {"udp", "time servers, and asking for their addresses"}}}},
	},
	{
		Name: rpc.HGS, UID: 903, GID: 903, Program: "/bin/hgs",
		Sockets:  []Socket{{Name: "http", Port: 80, Role: "service"}, {Name: "https", Port: 443, Role: "service"}},
		Limits:   Limits{Files: 8192, Tasks: 512, Data: 512 * mib, Locked: 1 * mib, Heap: 160 * mib},
		OOMScore: 300, Watchdog: 30 * time.Second,
		// It answers on the sockets that init gave it and calls nobody outside: not even a connection out can be made.
		Confine: &Confinement{Files: goFiles, Filter: &Filter{Sockets: []Kind{{"unix", "the doors of ledger, hsm, clock and init"}}}},
	},
	{
		Name: rpc.Console, UID: 905, GID: 905, Program: "/bin/console", Args: []string{"--tty", "/dev/ttyS0"},
		Sockets:  []Socket{{Name: "ssh", Port: 22, Role: "management"}},
		Devices:  []Device{{Path: "/dev/ttyS0", Mode: 0o600}},
		Limits:   Limits{Files: 512, Tasks: 512, Data: 512 * mib, Heap: 64 * mib},
		OOMScore: 0, Watchdog: 30 * time.Second,
		Confine: &Confinement{Files: withFiles(Reach{"/dev/ttyS0", true}, Reach{ReleaseFile, false}),
			Filter: &Filter{Sockets: []Kind{{"unix", "everybody's doors; SSH comes on a socket of init's"}}}},
	},
	{
		// A process of its own: nothing else of a node opens a connection to a machine that an administrator names and reads its answers.
		Name: rpc.Forward, UID: 908, GID: 908, Program: "/bin/forward",
		Limits:   Limits{Files: 64, Tasks: 512, Data: 256 * mib, Heap: 24 * mib},
		OOMScore: 500, Watchdog: 30 * time.Second, Fenced: true,
		// /run holds resolv.conf, which is replaced as a whole; /etc leads there.
		Confine: &Confinement{Files: withFiles(Reach{"/run", false}, Reach{"/etc", false}, Reach{filepath.Dir(rpc.SocketPath(rpc.SocketDir, rpc.Forward)), true}),
			Filter: &Filter{Sockets: []Kind{{"unix", "its own door, the ledger's and init's"},
				{"tcp", "the collector"}, {"udp", "asking for the collector's address"}}}},
	},
}

// DHCPProcess is the row for DHCP. It is not in Table because it lives only as long as an interface wants a lease.
var DHCPProcess = Process{
	Name: DHCP, UID: 906, GID: 906, Program: "/proc/self/exe",
	Capabilities: []Capability{CapNetRaw, CapNetBindService},
	Limits:       Limits{Files: 64, Tasks: 512, Data: 256 * mib, Heap: 16 * mib},
	OOMScore:     500,
	Confine:      &Confinement{Files: goFiles, Filter: &Filter{Sockets: []Kind{{"packet", "has no address yet"}, {"route", "finds its interface"}}}},
}

// Update is the process that reads an update bundle: init itself under another name, without init's rights. It has no rpc socket, and of
// the node's folders it sees none.
const Update = "update"

// UpdateProcess is the row for Update. It is not in Table because it lives only as long as a bundle comes in.
var UpdateProcess = Process{
	Name: Update, UID: 909, GID: 909, Program: "/proc/self/exe",
	Limits:   Limits{Files: 64, Tasks: 512, Data: 256 * mib, Heap: 32 * mib},
	OOMScore: 600,
	View:     View{Tmp: "/tmp", Hide: []string{"/data", "/run"}},
	// The release keys are all that it opens; the slot comes over its socket.
	Confine: &Confinement{Files: []Reach{{Path: "/etc/guardhouse/release.pub"}}, Calls: withCalls("recvmsg", "fsync", "fadvise64")},
}

// Resolve is the process that asks the name servers for one name: init itself under another name, without init's rights. It has no rpc
// socket, and of the data disk it sees nothing.
const Resolve = "resolve"

// ResolveProcess is the row for Resolve. It is not in Table because it lives only for one question.
var ResolveProcess = Process{
	Name: Resolve, UID: 910, GID: 910, Program: "/proc/self/exe",
	Limits:   Limits{Files: 64, Tasks: 512, Data: 256 * mib, Heap: 16 * mib},
	OOMScore: 600,
	View:     View{Hide: []string{"/data"}}, // /run holds resolv.conf
	Confine: &Confinement{Files: withFiles(Reach{"/etc", false}, Reach{"/run", false}),
		Filter: &Filter{Sockets: []Kind{{"udp", "name servers"}, {"tcp", "name servers, where an answer is long"}}}},
}

// HSMDaemon is the helper process of an HSM pack, a vendor's program. It speaks neither rpc nor sd_notify.
const HSMDaemon = "hsm-daemon"

// HSMDaemonProcess is the row for HSMDaemon; Program and Args are the pack's. It is not in Table because most packs have none. It has no
// rpc socket and its uid is not among UIDs: every rpc server refuses it. Sockets that it makes in its folder have the group of hsm, which
// may connect (the set-group-ID bit, and the umask).
var HSMDaemonProcess = Process{
	Name: HSMDaemon, UID: 907, GID: 907,
	Paths:    []Path{{Path: pack.SocketDir, Mode: 0o750 | fs.ModeSetgid, Group: 902}},
	Limits:   Limits{Files: 1024, Tasks: 512, Data: 512 * mib},
	OOMScore: -400, NeedsDisk: true, Fenced: true,
	View:    View{Tmp: "/tmp", Hide: []string{"/data", "/run"}, Keep: []Kept{{Path: pack.SiteDir}, {Path: pack.SocketDir, Write: true}}},
	Umask:   0o007,
	Confine: &Confinement{AnyFile: true, AnyProgram: true, Filter: foreignFilter},
}

// UIDs is who is who on an rpc socket: init and every process of Table.
func UIDs() rpc.UIDs {
	u := rpc.UIDs{rpc.Init: 0}
	for _, p := range Table {
		u[p.Name] = p.UID
	}
	return u
}

// Find is the row of the process.
func Find(name string) (Process, bool) {
	i := slices.IndexFunc(Table, func(p Process) bool { return p.Name == name })
	if i < 0 {
		return Process{}, false
	}
	return Table[i], true
}
