package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	"guardhouse/board/lab/fault"
)

// Files of Debian's ovmf package. The variable store is copied per node.
const (
	ovmfCode   = "/usr/share/OVMF/OVMF_CODE_4M.fd"
	ovmfSecure = "/usr/share/OVMF/OVMF_CODE_4M.secboot.fd"
	ovmfVars   = "/usr/share/OVMF/OVMF_VARS_4M.fd"
)

// Serial numbers of the disks: the image finds its disks by them, since names depend on probing order.
const (
	DataSerial = "gh-data"
	ESPSerial  = "gh-esp"
)

// TokenPort is the name of the virtio-serial port a token is plugged into.
const TokenPort = "org.guardhouse.hsm"

const tokenDevice = "hsmport"

// qemuArgs collects a command line and the guest's ends of its socket pairs, which become descriptors 3, 4, ...
type qemuArgs struct {
	n    *Node
	args []string
	ends []*os.File
}

func (a *qemuArgs) add(args ...string) { a.args = append(a.args, args...) }

// pair makes a nameless unix connection to QEMU and returns our end and the descriptor's number in QEMU.
func (a *qemuArgs) pair() (net.Conn, int, error) {
	ours, theirs, err := socketPair()
	if err != nil {
		return nil, 0, err
	}
	a.n.release = append(a.n.release, func() { ours.Close() })
	a.ends = append(a.ends, theirs)
	return ours, 2 + len(a.ends), nil
}

func (a *qemuArgs) closeGuestEnds() {
	for _, f := range a.ends {
		f.Close()
	}
	a.ends = nil
}

func (a *qemuArgs) command(log string) (*exec.Cmd, error) {
	f, err := os.OpenFile(log, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	a.ends = append(a.ends, f) // closed here once QEMU has its copy
	cmd := exec.Command(qemuBinary, a.args...)
	cmd.Dir = a.n.Dir // so that paths of unix sockets stay short
	cmd.Stdout, cmd.Stderr = f, f
	cmd.ExtraFiles = a.ends[:len(a.ends)-1]
	return cmd, nil
}

// socketPair returns a connected pair: one end for Go, one to hand to a child.
func socketPair() (net.Conn, *os.File, error) {
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	f := os.NewFile(uintptr(fds[0]), "lab")
	theirs := os.NewFile(uintptr(fds[1]), "lab")
	ours, err := net.FileConn(f)
	f.Close()
	if err != nil {
		theirs.Close()
		return nil, nil, err
	}
	return ours, theirs, nil
}

// buildArgs acquires all resources of a machine and writes QEMU's command line. PCI addresses are fixed, so that
// the firmware's boot order and the kernel's names do not depend on what else is plugged.
func (n *Node) buildArgs(a *qemuArgs) error {
	o := n.opts
	machine := "q35,sata=off,smbus=off"
	if o.SecureBoot {
		machine += ",smm=on" // the firmware keeps its variables where only it can write
		a.add("-global", "driver=cfi.pflash01,property=secure,value=on")
	}
	a.add("-name", "guardhouse-"+o.Name, "-machine", machine, "-cpu", "max", "-m", fmt.Sprint(o.MemoryMB),
		"-smp", fmt.Sprint(o.CPUs), "-nodefaults", "-no-user-config", "-display", "none")
	if n.lab.accel == "kvm" {
		a.add("-accel", "kvm")
	} else {
		a.add("-accel", "tcg,tb-size=128")
	}
	if !o.RTC.IsZero() {
		// Not clock=host, which counts the seconds from now in 32 bits and makes 1962 of 2099.
		a.add("-rtc", "clock=rt,base="+o.RTC.UTC().Format("2006-01-02T15:04:05"))
	}
	a.add("-device", "i6300esb,addr=0x7", "-action", "watchdog=reset",
		"-object", "rng-random,id=rng0,filename=/dev/urandom", "-device", "virtio-rng-pci,rng=rng0,addr=0x6")
	for _, part := range []func(*qemuArgs) error{n.addMonitor, n.addBoot, n.addTPM, n.addData, n.addNet, n.addToken} {
		if err := part(a); err != nil {
			return err
		}
	}
	a.add(o.ExtraArgs...)
	return nil
}

func (n *Node) addMonitor(a *qemuArgs) error {
	mon, fd, err := a.pair()
	if err != nil {
		return err
	}
	n.qmp = newQMP(mon, n.event)
	a.add("-chardev", fmt.Sprintf("socket,id=mon,fd=%d", fd), "-mon", "chardev=mon,mode=control")
	line, fd, err := a.pair()
	if err != nil {
		return err
	}
	if n.Serial, err = newLine(line, filepath.Join(n.Dir, "serial.log")); err != nil {
		return err
	}
	a.add("-chardev", fmt.Sprintf("socket,id=ser0,fd=%d", fd), "-serial", "chardev:ser0")
	return nil
}

func (n *Node) addBoot(a *qemuArgs) error {
	o := n.opts
	if o.Firmware == Direct {
		if o.Kernel == "" {
			return errors.New("direct boot needs NodeOptions.Kernel")
		}
		a.add("-kernel", absolute(o.Kernel))
		if o.Initrd != "" {
			a.add("-initrd", absolute(o.Initrd))
		}
		if o.Cmdline != "" {
			a.add("-append", o.Cmdline)
		}
	} else {
		if err := copyOnce(ovmfVars, filepath.Join(n.Dir, "vars.fd")); err != nil {
			return fmt.Errorf("firmware variables: %w: install the package ovmf", err)
		}
		code := ovmfCode
		if o.SecureBoot {
			code = ovmfSecure
		}
		a.add("-drive", "if=pflash,unit=0,format=raw,readonly=on,file="+code,
			"-drive", "if=pflash,unit=1,format=raw,file=vars.fd")
	}
	if o.Image != "" {
		if _, err := os.Stat(o.Image); err != nil {
			return err
		}
		mode := "on"
		if o.ImageWritable {
			mode = "off"
		}
		a.add("-blockdev", "driver=raw,node-name=esp,read-only="+mode+",file.driver=file,file.filename="+escape(absolute(o.Image)),
			"-device", "virtio-blk-pci,drive=esp,serial="+ESPSerial+",addr=0x12,bootindex=1")
	}
	return nil
}

// addTPM starts swtpm on one end of a socket pair and gives QEMU the other. State is kept between boots.
func (n *Node) addTPM(a *qemuArgs) error {
	if n.opts.NoTPM {
		return nil
	}
	state := filepath.Join(n.Dir, "tpm")
	if _, err := os.Stat(state); n.opts.EndorsedTPM && errors.Is(err, os.ErrNotExist) {
		if err := n.lab.manufacture(context.Background(), state); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(state, 0o700); err != nil {
		return err
	}
	log, err := os.OpenFile(filepath.Join(n.Dir, "swtpm.log"), os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socketpair", err)
	}
	tpmEnd := os.NewFile(uintptr(fds[0]), "swtpm")
	defer tpmEnd.Close()
	a.ends = append(a.ends, os.NewFile(uintptr(fds[1]), "qemu"))
	fd := 2 + len(a.ends)

	cmd := exec.Command("swtpm", "socket", "--tpm2", "--tpmstate", "dir="+state, "--ctrl", "type=unixio,clientfd=3", "--terminate")
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = []*os.File{tpmEnd}
	if n.swtpm, err = n.lab.procs.start("swtpm", cmd); err != nil {
		return err
	}
	a.add("-chardev", fmt.Sprintf("socket,id=chrtpm,fd=%d", fd), "-tpmdev", "emulator,id=tpm0,chardev=chrtpm",
		"-device", "tpm-crb,tpmdev=tpm0")
	return nil
}

// addData serves the data disk over NBD on a socket pair.
func (n *Node) addData(a *qemuArgs) error {
	if n.opts.DataMB < 0 {
		return nil
	}
	disk, err := fault.Open(filepath.Join(n.Dir, "data.img"), int64(n.opts.DataMB)<<20)
	if err != nil {
		return err
	}
	n.Disk = disk
	n.release = append(n.release, func() { disk.Close() })
	conn, fd, err := a.pair()
	if err != nil {
		return err
	}
	go func() {
		// The end of the connection is the end of QEMU; its error is of no use to anybody.
		_ = fault.ServeNBD(conn, disk)
		conn.Close()
	}()
	a.add("-blockdev", fmt.Sprintf("driver=raw,node-name=data,file.driver=nbd,file.server.type=fd,file.server.str=%d", fd),
		"-device", "virtio-blk-pci,id=disk-data,drive=data,serial="+DataSerial+",addr=0x10")
	return nil
}

// addNet adds the service interface (user network with forwards) and, when asked, the cluster's.
func (n *Node) addNet(a *qemuArgs) error {
	user := "user,id=svc,net=10.0.2.0/24,host=" + HostAddress + ",dhcpstart=" + GuestAddress
	if n.opts.Offline {
		user += ",restrict=on"
	}
	for _, p := range n.opts.Forwards {
		// Port 0: the kernel chooses, so there is no race for a free one; "info usernet" tells which.
		user += fmt.Sprintf(",hostfwd=tcp:127.0.0.1:0-%s:%d", GuestAddress, p)
	}
	mac := n.mac(0)
	a.add("-netdev", user, "-device", "virtio-net-pci,id=nic-svc,netdev=svc,addr=0x3,romfile=,mac="+mac)
	if !n.opts.Cluster {
		return nil
	}
	conn, fd, err := a.pair()
	if err != nil {
		return err
	}
	n.lab.sw.plug(n.Name, conn)
	a.add("-netdev", fmt.Sprintf("stream,id=cluster,server=off,addr.type=fd,addr.str=%d", fd),
		"-device", "virtio-net-pci,id=nic-cluster,netdev=cluster,addr=0x4,romfile=,mac="+n.mac(1))
	return nil
}

func (n *Node) addToken(a *qemuArgs) error {
	if n.opts.Token == nil {
		return nil
	}
	p, err := n.opts.Token.plugInto(filepath.Join(n.Dir, "hsm.sock"))
	if err != nil {
		return err
	}
	n.mu.Lock()
	n.plug = p
	n.mu.Unlock()
	n.release = append(n.release, p.close)
	a.add("-device", "virtio-serial-pci,id=vser,addr=0x5", "-chardev", "socket,id=hsm,path=hsm.sock,reconnect=1",
		"-device", "virtserialport,id="+tokenDevice+",chardev=hsm,name="+TokenPort)
	return nil
}

// mac derives a stable, locally administered address from the node's name, so that it is unique on the switch.
func (n *Node) mac(nic byte) string {
	h := uint32(2166136261) // FNV-1a
	for _, c := range []byte(n.Name) {
		h = (h ^ uint32(c)) * 16777619
	}
	return net.HardwareAddr{0x52, 0x54, nic, byte(h >> 16), byte(h >> 8), byte(h)}.String()
}

// MAC is the hardware address of an interface, stable for a name.
func (n *Node) MAC(nic NIC) string {
	if nic == ClusterNIC {
		return n.mac(1)
	}
	return n.mac(0)
}

// copyOnce copies a file unless the target exists.
func copyOnce(from, to string) error {
	if _, err := os.Stat(to); err == nil {
		return nil
	}
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to+".new", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	if cerr := out.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	return os.Rename(to+".new", to)
}

// absolute is needed because QEMU runs in the node's folder. It fails only without a working folder.
func absolute(path string) string {
	if abs, err := filepath.Abs(path); err == nil {
		return abs
	}
	return path
}

// escape doubles commas, as QEMU's option syntax wants.
func escape(path string) string {
	out := make([]byte, 0, len(path))
	for _, c := range []byte(path) {
		if c == ',' {
			out = append(out, ',')
		}
		out = append(out, c)
	}
	return string(out)
}
