package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"guardhouse/board/lab/fault"
)

// Firmware is how a node starts.
type Firmware int

// The firmwares a node can have.
const (
	// UEFI is OVMF from the ESP image: what the product uses; the TPM's PCR 4 and 11 are those of a real boot.
	UEFI Firmware = iota
	// Direct is QEMU's own loading of Kernel and Initrd (SeaBIOS underneath): 10 s faster, PCRs say nothing.
	Direct
)

// NodeOptions describes one machine. Name is needed, and Image (UEFI) or Kernel (Direct).
type NodeOptions struct {
	// Name is the machine's name in the lab: letters, digits and '-'. Its state is kept in Lab.Dir/nodes/Name.
	Name string
	// Firmware chooses the way of starting.
	Firmware Firmware
	// Image is the path of the ESP disk image, opened read-only unless ImageWritable. Empty: no boot disk.
	Image string
	// SecureBoot starts the firmware that verifies images. Which keys it trusts is [Lab.EnrollFirmware]'s; with none it verifies nothing.
	SecureBoot bool
	// ImageWritable gives the node a writable ESP (updates write a new UKI there). Give it a copy.
	ImageWritable bool
	// Kernel, Initrd and Cmdline are used with Direct.
	Kernel, Initrd, Cmdline string
	// MemoryMB is the guest's memory; 0 means 512.
	MemoryMB int
	// CPUs is the number of virtual processors; 0 means 1.
	CPUs int
	// DataMB is the size of the data disk (serial "gh-data"), made empty at the first start; 0 means 96, negative
	// no data disk. The disk is a [fault.Disk]: what the guest has not flushed is lost at [Node.PowerCut].
	DataMB int
	// Token, when set, is plugged in: a virtio-serial port named [TokenPort].
	Token *Token
	// Cluster gives the node a second interface, on [Lab.Switch].
	Cluster bool
	// Forwards are the guest's TCP ports to reach from outside; nil means 22, 80 and 443. See [Node.Addr].
	Forwards []int
	// Offline leaves the guest without a way out of the user network (no route beyond 10.0.2.2).
	Offline bool
	// RTC is the start of the machine's clock; the zero time means the workstation's clock.
	RTC time.Time
	// NoTPM leaves the TPM out, to test a box without one.
	NoTPM bool
	// EndorsedTPM gives a new machine's TPM an endorsement key certificate of the lab's vendor; it takes about 2 s more.
	EndorsedTPM bool
	// ExtraArgs are passed to QEMU last.
	ExtraArgs []string
}

// Node is one running (or stopped) machine.
type Node struct {
	// Name is the machine's name.
	Name string
	// Dir keeps the machine's state and the logs of its last boot.
	Dir string
	// Serial is the machine's serial line.
	Serial *Line
	// Disk is the data disk; nil when it has none.
	Disk *fault.Disk
	// Started is when QEMU was started, for measuring.
	Started time.Time

	lab   *Lab
	opts  NodeOptions
	qemu  *process
	swtpm *process
	qmp   *qmp
	plug  *plug // the token's cable; nil without one

	mu      sync.Mutex
	forward map[int]string
	events  map[string]int
	release []func() // what a stop must undo, run once after QEMU is gone
	done    chan struct{}
}

const qemuBinary = "qemu-system-x86_64"

var (
	nodeName = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,30}$`)
	// ErrRunning says that a node of this name has not been stopped.
	ErrRunning = errors.New("a node of this name is running")
)

// StartNode powers a machine on and returns at once, while its firmware starts; wait on [Node.Serial] for what it
// says. A machine of the same name that ran before keeps its disk, TPM and firmware variables.
func (l *Lab) StartNode(ctx context.Context, o NodeOptions) (*Node, error) {
	n, err := l.startNode(ctx, o)
	if err != nil {
		return nil, fmt.Errorf("lab: node %q: %w", o.Name, err)
	}
	l.logf("node %s: started under %s, log %s", n.Name, l.accel, n.Serial.LogPath())
	return n, nil
}

func (l *Lab) startNode(ctx context.Context, o NodeOptions) (*Node, error) {
	if !nodeName.MatchString(o.Name) {
		return nil, errors.New("bad name: want small letters, digits and '-', at most 31")
	}
	setDefaults(&o)
	n := &Node{
		Name: o.Name, Dir: filepath.Join(l.Dir, "nodes", o.Name), lab: l, opts: o,
		forward: map[int]string{}, events: map[string]int{}, done: make(chan struct{}),
	}
	if err := l.claim(ctx, n); err != nil {
		return nil, err
	}
	err := n.powerOn(ctx)
	if err != nil {
		n.powerOff()
		close(n.done)
		return nil, err
	}
	go func() {
		<-n.qemu.done
		n.powerOff()
		close(n.done)
	}()
	return n, nil
}

func setDefaults(o *NodeOptions) {
	if o.MemoryMB == 0 {
		o.MemoryMB = 512
	}
	if o.CPUs == 0 {
		o.CPUs = 1
	}
	if o.DataMB == 0 {
		o.DataMB = 96
	}
	if o.Forwards == nil {
		o.Forwards = []int{22, 80, 443}
	}
}

// claim takes the name and makes sure the accelerator is known.
func (l *Lab) claim(ctx context.Context, n *Node) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ctx.Err() != nil {
		return ErrClosed
	}
	if old := l.nodes[n.Name]; old != nil {
		select {
		case <-old.done:
		default:
			return ErrRunning
		}
	}
	if l.accel == "" {
		l.accel = ProbeAccel(ctx, l.Dir)
	}
	l.nodes[n.Name] = n
	return os.MkdirAll(n.Dir, 0o700)
}

// powerOn starts swtpm and QEMU. What it acquired is in n.release when it fails.
func (n *Node) powerOn(ctx context.Context) error {
	a := &qemuArgs{n: n}
	defer a.closeGuestEnds()
	if err := n.buildArgs(a); err != nil {
		return err
	}
	cmd, err := a.command(filepath.Join(n.Dir, "qemu.log"))
	if err != nil {
		return err
	}
	n.Started = time.Now()
	if n.qemu, err = n.lab.procs.start("qemu", cmd); err != nil {
		return err
	}
	a.closeGuestEnds()
	start, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	if err := n.ready(start); err != nil {
		return fmt.Errorf("%w\nqemu says: %s\nlog: %s", err, tail(filepath.Join(n.Dir, "qemu.log")), filepath.Join(n.Dir, "qemu.log"))
	}
	return nil
}

// ready shakes hands over QMP and learns the forwarded ports.
func (n *Node) ready(ctx context.Context) error {
	if err := n.qmp.call(ctx, "qmp_capabilities", nil, nil); err != nil {
		return err
	}
	var table string
	args := map[string]string{"command-line": "info usernet"}
	if err := n.qmp.call(ctx, "human-monitor-command", args, &table); err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	for guest, addr := range parseForwards(table) {
		n.forward[guest] = addr
	}
	for _, p := range n.opts.Forwards {
		if n.forward[p] == "" {
			return fmt.Errorf("qemu did not forward port %d", p)
		}
	}
	return nil
}

// parseForwards reads QEMU's "info usernet": guest port -> address on the workstation.
func parseForwards(table string) map[int]string {
	out := map[int]string{}
	for _, line := range strings.Split(table, "\n") {
		f := strings.Fields(line)
		// TCP[HOST_FORWARD]  13  127.0.0.1 40001  10.0.2.15 80  0 0
		if len(f) < 6 || f[0] != "TCP[HOST_FORWARD]" {
			continue
		}
		if guest, err := strconv.Atoi(f[5]); err == nil {
			out[guest] = net.JoinHostPort(f[2], f[3])
		}
	}
	return out
}

// Addr is where the guest's TCP port is reached on the workstation, as "127.0.0.1:port"; empty when the port is not
// in NodeOptions.Forwards. It changes when the node is started again.
func (n *Node) Addr(guestPort int) string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.forward[guestPort]
}

// PID is QEMU's process id.
func (n *Node) PID() int { return n.qemu.cmd.Process.Pid }

// Done is closed when the machine is off and everything that belonged to it is gone.
func (n *Node) Done() <-chan struct{} { return n.done }

// Events says how often QEMU reported an event, such as "RESET", "WATCHDOG" or "SHUTDOWN".
func (n *Node) Events(name string) int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.events[name]
}

func (n *Node) event(name string, data json.RawMessage) {
	n.mu.Lock()
	n.events[name]++
	cable := n.plug
	n.mu.Unlock()
	if name == "VSERPORT_CHANGE" && cable != nil {
		var d struct {
			ID   string `json:"id"`
			Open bool   `json:"open"`
		}
		if json.Unmarshal(data, &d) == nil && d.ID == tokenDevice && !d.Open {
			// The guest's end was closed or reset: the next opener must find a fresh stream.
			cable.drop()
		}
	}
}

// PowerButton presses the power button (ACPI); the guest decides what it means.
func (n *Node) PowerButton(ctx context.Context) error {
	return n.qmp.call(ctx, "system_powerdown", nil, nil)
}

// Reset presses the reset button: memory is lost, what the disk holds in its cache is not.
func (n *Node) Reset(ctx context.Context) error { return n.qmp.call(ctx, "system_reset", nil, nil) }

// NIC names an interface of a node for [Node.SetLink].
type NIC string

// The interfaces of a node.
const (
	ServiceNIC NIC = "svc"     // the first: user network, forwarded ports
	ClusterNIC NIC = "cluster" // the second: the lab's switch
)

// SetLink pulls (false) or plugs (true) a network cable.
func (n *Node) SetLink(ctx context.Context, nic NIC, up bool) error {
	return n.qmp.call(ctx, "set_link", map[string]any{"name": "nic-" + string(nic), "up": up}, nil)
}

// ClockChip is what the machine's hardware clock says, to the second: not the clock of the system that runs on it.
func (n *Node) ClockChip(ctx context.Context) (time.Time, error) {
	var c struct {
		Year  int `json:"tm_year"` // since 1900
		Month int `json:"tm_mon"`  // 0 to 11
		Day   int `json:"tm_mday"`
		Hour  int `json:"tm_hour"`
		Min   int `json:"tm_min"`
		Sec   int `json:"tm_sec"`
	}
	err := n.qmp.call(ctx, "qom-get", map[string]any{"path": "/machine", "property": "rtc-time"}, &c)
	return time.Date(c.Year+1900, time.Month(c.Month+1), c.Day, c.Hour, c.Min, c.Sec, 0, time.UTC), err
}

// Freeze stops the guest's processors, Thaw lets them go on: a machine that hangs.
func (n *Node) Freeze(ctx context.Context) error { return n.qmp.call(ctx, "stop", nil, nil) }

// Thaw undoes [Node.Freeze].
func (n *Node) Thaw(ctx context.Context) error { return n.qmp.call(ctx, "cont", nil, nil) }

// Stop presses the power button and waits until the machine is off. When ctx ends first the machine is killed and
// the error says so.
func (n *Node) Stop(ctx context.Context) error {
	err := n.PowerButton(ctx)
	if err == nil {
		select {
		case <-n.done:
			return nil
		case <-ctx.Done():
			err = ctx.Err()
		}
	}
	select {
	case <-n.done: // it was off already
		return nil
	default:
	}
	n.Kill()
	return fmt.Errorf("lab: node %q did not shut down and was killed: %w\nlog: %s", n.Name, err, n.Serial.LogPath())
}

// Kill switches the machine off with an orderly disk: everything it wrote stays. It waits until all is gone.
func (n *Node) Kill() {
	if n.Disk != nil {
		_ = n.Disk.Flush() // a cut disk has nothing to keep
	}
	n.qemu.signal(syscall.SIGKILL)
	<-n.done
}

// PowerCut pulls the plug: the disk loses a subset of what was not flushed, chosen by seed (see [fault.Disk.Cut]),
// and the machine is gone. Start it again with StartNode.
func (n *Node) PowerCut(seed uint64) fault.Report {
	var r fault.Report
	if n.Disk != nil {
		r = n.Disk.Cut(seed)
	}
	n.qemu.signal(syscall.SIGKILL)
	<-n.done
	return r
}

// Unplug pulls a node's token, Plug puts it back; without a token both do nothing.
func (n *Node) Unplug() {
	if n.plug != nil {
		n.plug.setOut(true)
	}
}

// Plug undoes [Node.Unplug].
func (n *Node) Plug() {
	if n.plug != nil {
		n.plug.setOut(false)
	}
}

// powerOff ends what belongs to the machine. It runs once, after QEMU is gone or never started.
func (n *Node) powerOff() {
	if n.qemu != nil {
		n.qemu.kill()
	}
	if n.swtpm != nil {
		// It ends by itself when QEMU's end of the socket closes; it writes its state at once, so killing is safe.
		select {
		case <-n.swtpm.done:
		case <-time.After(time.Second):
			n.swtpm.kill()
		}
	}
	for i := len(n.release) - 1; i >= 0; i-- {
		n.release[i]()
	}
	n.lab.logf("node %s: off", n.Name)
}
