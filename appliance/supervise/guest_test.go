package supervise

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// guestMain is this test binary as PID 1 of a guest (see the guest tests of cmd/init): it feeds the hardware watchdog for three times
// its timeout, then loses its health.
func guestMain() {
	unix.Mount("devtmpfs", "/dev", "devtmpfs", 0, "")
	list, _ := os.ReadFile("/etc/modules.list")
	for line := range strings.Lines(string(list)) {
		path, params, _ := strings.Cut(strings.TrimSpace(line), " ")
		if f, err := os.Open(path); err == nil && (strings.Contains(path, "i6300esb") || strings.Contains(path, "/watchdog/watchdog")) {
			unix.FinitModule(int(f.Fd()), params, 0)
		}
	}
	w, took, err := OpenWatchdog("/dev/watchdog", 4*time.Second)
	if w == nil {
		fmt.Printf("\nno watchdog: %v!\n", err)
		return
	}
	well := time.Now().Add(3 * took)
	Chain(context.Background(), time.Second, w.Feed, func() error {
		if time.Now().Before(well) {
			return nil
		}
		return errors.New("ledger has been silent")
	}, func(sick error) { fmt.Printf("\nwatchdog %s %v, not fed: %v!\n", took, err, sick) })
}
