// Package pid1 lets the test binary of a package be PID 1 of a virtual machine, where its tests meet the image's own kernel with drivers
// and devices that a workstation lacks. The guest tests of cmd/init start such machines and read what comes over the serial line.
//
// Limits. The machine has nothing but the initramfs that it came with; the file systems of Main are mounted, no others.
package pid1

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// moduleList is where the initramfs names its kernel modules, in their order, each with its parameters.
const moduleList = "/etc/modules.list"

// Main is a TestMain. As PID 1 it mounts what tests need, loads the kernel modules, runs the tests that args select, says with which code
// they ended, and powers off; anywhere else it runs the tests as usual. It does not return.
func Main(m *testing.M, args ...string) {
	if os.Getpid() != 1 {
		os.Exit(m.Run())
	}
	for _, at := range [][2]string{{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}, {"tmpfs", "/tmp"}} {
		if err := unix.Mount(at[0], at[1], at[0], 0, ""); err != nil && err != unix.EBUSY { // the kernel may have mounted /dev
			fmt.Printf("%s: %v\n", at[1], err)
		}
	}
	list, err := os.ReadFile(moduleList)
	if err != nil {
		fmt.Println(err)
	}
	for line := range strings.Lines(string(list)) {
		path, params, _ := strings.Cut(strings.TrimSpace(line), " ")
		if f, err := os.Open(path); err == nil {
			unix.FinitModule(int(f.Fd()), params, 0) // one for hardware that is not here fails
			f.Close()
		}
	}
	os.Args = append(os.Args[:1], append([]string{"-test.v"}, args...)...)
	fmt.Printf("\nguest tests ended with %d\n", m.Run())
	unix.Sync()
	unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	select {} // PID 1 must not end before the kernel has stopped it
}
