package network

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestMain makes the test binary able to be PID 1 of a guest, where the tests meet the image's own kernel with its VLAN and bonding
// drivers (see the guest test of cmd/init).
func TestMain(m *testing.M) {
	if os.Getpid() != 1 {
		os.Exit(m.Run())
	}
	unix.Mount("proc", "/proc", "proc", 0, "")
	unix.Mount("sysfs", "/sys", "sysfs", 0, "")
	unix.Mount("tmpfs", "/tmp", "tmpfs", 0, "")
	list, _ := os.ReadFile("/etc/modules.list")
	for line := range strings.Lines(string(list)) {
		path, params, _ := strings.Cut(strings.TrimSpace(line), " ")
		if f, err := os.Open(path); err == nil {
			unix.FinitModule(int(f.Fd()), params, 0)
			f.Close()
		}
	}
	os.Args = append(os.Args[:1], "-test.v")
	fmt.Printf("\nguest tests ended with %d\n", m.Run())
	unix.Sync()
	unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}
