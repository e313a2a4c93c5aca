package main

import (
	"context"
	"encoding/binary"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"guardhouse/appliance/disk"
	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
	"guardhouse/appliance/sandbox"
)

// Actions of rpc.PowerRequest.
const (
	powerOff    = "off"
	powerReboot = "reboot"
)

type powerRequest struct{ action, why string }

// ask requests the end of this boot; only the first request counts.
func (n *node) ask(r powerRequest) {
	select {
	case n.power <- r:
	default:
	}
}

// watchSignals turns what a machine without a shell can still be told into power requests: ctrl-alt-del (SIGINT from the kernel), a
// failing power supply (SIGPWR), and SIGTERM, which nobody sends.
func (n *node) watchSignals(ctx context.Context) {
	c := make(chan os.Signal, 4)
	signal.Notify(c, unix.SIGINT, unix.SIGPWR, unix.SIGTERM)
	for {
		select {
		case <-ctx.Done():
			return
		case s := <-c:
			if s == unix.SIGINT {
				n.ask(powerRequest{powerReboot, "ctrl-alt-del"})
			} else {
				n.ask(powerRequest{powerOff, s.String()})
			}
		}
	}
}

// Of linux/input-event-codes.h: type EV_KEY, code KEY_POWER. An event is 24 bytes on 64-bit machines: two times, type, code, value.
const (
	evKey     = 1
	keyPower  = 116
	eventSize = 24
)

// watchPowerButton turns the power button into a clean power-off. It needs the modules button and evdev; without them there is no device
// and the button does nothing until it is held.
func (n *node) watchPowerButton() {
	names, _ := filepath.Glob("/sys/class/input/event*/device/name")
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err != nil || !strings.Contains(string(b), "Power Button") {
			continue
		}
		f, err := os.Open("/dev/input/" + filepath.Base(filepath.Dir(filepath.Dir(name))))
		if err != nil {
			continue
		}
		go func() {
			defer f.Close()
			buf := make([]byte, 64*eventSize)
			for {
				size, err := f.Read(buf)
				if err != nil {
					return
				}
				if powerPressed(buf[:size]) {
					n.ask(powerRequest{powerOff, "power button"})
				}
			}
		}()
	}
}

func powerPressed(events []byte) bool {
	for ; len(events) >= eventSize; events = events[eventSize:] {
		e := binary.NativeEndian
		if e.Uint16(events[16:]) == evKey && e.Uint16(events[18:]) == keyPower && e.Uint32(events[20:]) == 1 {
			return true
		}
	}
	return false
}

// shutdown is the one way out: services in reverse order, everything else, the log, the disk, the machine. It does not return. The
// hardware watchdog stays armed and cuts off whatever hangs here.
func (n *node) shutdown(r powerRequest) {
	n.logf("%s: %s", r.action, r.why)
	n.say(r.action + " (" + r.why + ")")
	n.auditStop(r)
	ctx, cancel := context.WithTimeout(context.Background(), 25*time.Second)
	defer cancel()
	n.super.Stop(ctx)
	n.net.Close()
	unix.Kill(-1, unix.SIGKILL) // everybody but PID 1
	n.logf("services stopped after %s", rpc.BootTime().Round(time.Millisecond))
	flush, cancel2 := context.WithTimeout(context.Background(), 3*time.Second)
	n.log.CloseDisk(flush)
	cancel2()
	n.damage.scrub.Wait()
	for range 20 { // killed processes take a moment to let go
		if disk.Unmount(dataDir) == nil && disk.Close() == nil {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	n.zeroise()
	unix.Sync()
	if r.action == powerReboot {
		unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
	}
	unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	select {} // the kernel has stopped us, or refused; then the watchdog ends it
}

// auditStop records why the node stops, as far as the ledger takes it within a second.
func (n *node) auditStop(r powerRequest) {
	if !n.super.Ready(rpc.Ledger) {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	c := rpc.NewProvedClient(rpc.SocketPath(rpc.SocketDir, rpc.Ledger), sandbox.UIDs()[rpc.Ledger])
	defer c.Close()
	rpc.LedgerAudit.Call(ctx, c, policy.AuditEntry{Kind: policy.AuditSystem, At: policy.Stamp{Boot: n.boot}, BootTime: rpc.BootTime().Milliseconds(),
		Action: "stop", Outcome: "ok", Detail: r.action + ", " + r.why})
}
