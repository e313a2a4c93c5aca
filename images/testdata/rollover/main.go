// Rollover is PID 1 of a throw-away image: each boot prints PCR 7, tries the
// update /updates/refused, which firmware must not take, makes the next one of
// /updates (0, 1, ...) and reboots. It counts in a firmware variable of its own.
package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	vars    = "/sys/firmware/efi/efivars/"
	counter = vars + "GuardhouseStep-5f3a1d5e-64b1-4f0e-9a0e-0d6b1c7f9e21"
)

func main() {
	if err := setUp(); err != nil {
		fmt.Println("setup:", err)
	}
	pcr, err := os.ReadFile("/sys/class/tpm/tpm0/pcr-sha256/7")
	step := 0
	if b, err := os.ReadFile(counter); err == nil && len(b) == 5 {
		step = int(b[4])
	}
	fmt.Printf("STEP %d PCR 7 = %s %v.\n", step, strings.ToLower(string(bytes.TrimSpace(pcr))), err)
	fmt.Printf("STEP %d refused: %v.\n", step, update("refused"))
	fmt.Printf("STEP %d update: %v.\n", step, update(fmt.Sprint(step)))
	if err := write(counter, []byte{7, 0, 0, 0, byte(step + 1)}); err != nil {
		fmt.Println("counter:", err)
	}
	syscall.Sync()
	syscall.Reboot(syscall.LINUX_REBOOT_CMD_RESTART)
	select {}
}

func setUp() error {
	if err := os.MkdirAll("/sys", 0o755); err != nil {
		return err
	}
	if err := syscall.Mount("sysfs", "/sys", "sysfs", 0, ""); err != nil {
		return err
	}
	found, err := filepath.Glob("/lib/modules/*/kernel/fs/efivarfs/efivarfs.ko*")
	if err != nil || len(found) != 1 {
		return fmt.Errorf("efivarfs: %q %v", found, err)
	}
	f, err := os.Open(found[0])
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil {
		return err
	}
	return syscall.Mount("efivarfs", vars, "efivarfs", 0, "")
}

// update writes /updates/NAME: the variable's file name in a line, then attributes and data as efivarfs wants them.
func update(name string) error {
	b, err := os.ReadFile("/updates/" + name)
	if err != nil {
		return err
	}
	variable, content, _ := bytes.Cut(b, []byte("\n"))
	return write(vars+string(variable), content)
}

// write makes a firmware variable, or changes it: efivarfs keeps those that exist from careless hands with the immutable flag.
func write(name string, content []byte) error {
	if f, err := os.Open(name); err == nil {
		err := unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, 0)
		f.Close()
		if err != nil {
			return err
		}
	}
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.Write(content)
	return err
}
