package lab

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// probeExit is what the probe's guest writes to the exit device; QEMU then ends with 2*value+1.
const probeExit = 0x15

// ProbeAccel says which accelerator guests really run on: "kvm" or "tcg". That /dev/kvm opens proves nothing (nested
// machines offer it and then hang), so a guest of five instructions is run; it has 5 s. The answer is kept in dir
// for this boot of the workstation.
func ProbeAccel(ctx context.Context, dir string) string {
	boot, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	file := filepath.Join(dir, "accel")
	if b, err := os.ReadFile(file); err == nil && len(boot) > 0 {
		if kind, id, ok := strings.Cut(string(b), " "); ok && id == string(boot) && (kind == "kvm" || kind == "tcg") {
			return kind
		}
	}
	accel := "tcg"
	if f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0); err == nil {
		f.Close()
		if runsGuest(ctx, dir, "kvm") == nil {
			accel = "kvm"
		}
	}
	// Only a convenience: without the file the next lab probes again.
	_ = os.WriteFile(file, append([]byte(accel+" "), boot...), 0o600)
	return accel
}

// runsGuest runs the probe's guest: a 64 KiB firmware whose reset vector writes to the exit device.
func runsGuest(ctx context.Context, dir, accel string) error {
	rom := make([]byte, 64<<10)
	// At FFFF:0000, 16 bytes before the end: mov al,probeExit; out 0xf4,al; hlt; jmp to the hlt.
	copy(rom[len(rom)-16:], []byte{0xb0, probeExit, 0xe6, 0xf4, 0xf4, 0xeb, 0xfd})
	f, err := os.CreateTemp(dir, "probe-*.rom")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(rom)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}

	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, qemuBinary, "-machine", "q35", "-accel", accel, "-cpu", "max", "-m", "32",
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-bios", f.Name(),
		"-device", "isa-debug-exit,iobase=0xf4,iosize=0x04")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.WaitDelay = time.Second
	var said bytes.Buffer
	cmd.Stderr = &said
	// The death signal is bound to the forking thread: keep it for the run.
	runtime.LockOSThread()
	_ = cmd.Run() // the exit code tells all
	runtime.UnlockOSThread()
	if code := cmd.ProcessState.ExitCode(); code != 2*probeExit+1 {
		return fmt.Errorf("guest did not run under %s: exit code %d: %.300s", accel, code, said.String())
	}
	return nil
}
