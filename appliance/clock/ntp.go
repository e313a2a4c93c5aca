package clock

import (
	"context"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"github.com/beevik/ntp"
	"golang.org/x/sys/unix"
)

// QueryNTP asks one server ("host" or "host:port") by NTP version 4. Every answer is validated as the library's Validate does (RFC 5905
// sanity, kiss of death, stratum, leap status); the response's own Time is never used.
func QueryNTP(bootTime func() time.Duration) func(ctx context.Context, address string) (Sample, error) {
	return func(ctx context.Context, address string) (Sample, error) {
		timeout := queryTimeout
		if d, ok := ctx.Deadline(); ok {
			timeout = time.Until(d)
		}
		host, port := address, 0
		if h, p, err := net.SplitHostPort(address); err == nil {
			host = h
			if _, err := fmt.Sscanf(p, "%d", &port); err != nil || port < 1 || port > 65535 {
				return Sample{}, fmt.Errorf("%q has no valid port", address)
			}
		}
		r, err := ntp.QueryWithOptions(host, ntp.QueryOptions{Timeout: timeout, Port: port})
		if err != nil {
			return Sample{}, fmt.Errorf("ask %s: %w", address, err)
		}
		// Wall and boot are read after the answer, together: the offset is to the wall clock, whose distance to the boot clock
		// changes only when somebody steps it, and nobody but this process may.
		wall, boot := time.Now().Round(0), bootTime()
		if err := r.Validate(); err != nil {
			return Sample{}, fmt.Errorf("%s gave an unusable answer: %w", address, err)
		}
		return Sample{Wall: wall, Boot: boot, Offset: r.ClockOffset, Distance: r.RootDistance}, nil
	}
}

// StepRealtime sets CLOCK_REALTIME; it needs CAP_SYS_TIME.
func StepRealtime(t time.Time) error {
	ts := unix.NsecToTimespec(t.UnixNano())
	if err := unix.ClockSettime(unix.CLOCK_REALTIME, &ts); err != nil {
		return fmt.Errorf("set the system clock: %w", err)
	}
	return nil
}

// BootID is the kernel's random name for this boot.
func BootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("read boot id: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}
