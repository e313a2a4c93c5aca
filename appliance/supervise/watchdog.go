package supervise

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Watchdog is a hardware watchdog: unless it is fed, the machine is reset.
type Watchdog struct{ f *os.File }

// wdiocSetTimeout is WDIOC_SETTIMEOUT of linux/watchdog.h: an int of seconds, in and out.
const wdiocSetTimeout = 0xc0045706

// OpenWatchdog starts the watchdog with a timeout (whole seconds) and reports the one the hardware took. The error is os.ErrNotExist
// where the machine has none.
func OpenWatchdog(path string, timeout time.Duration) (*Watchdog, time.Duration, error) {
	f, err := os.OpenFile(path, os.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, 0, fmt.Errorf("open the hardware watchdog: %w", err)
	}
	seconds := int32(timeout / time.Second)
	raw, err := f.SyscallConn()
	if err == nil {
		cerr := raw.Control(func(fd uintptr) {
			if _, _, e := unix.Syscall(unix.SYS_IOCTL, fd, wdiocSetTimeout, uintptr(unsafe.Pointer(&seconds))); e != 0 {
				err = e
			}
		})
		err = errors.Join(err, cerr)
	}
	w := &Watchdog{f}
	if err != nil {
		// It runs with its default now, so it must be fed all the same.
		return w, 0, fmt.Errorf("set the hardware watchdog's timeout: %w", err)
	}
	return w, time.Duration(seconds) * time.Second, nil
}

// Feed resets the countdown.
func (w *Watchdog) Feed() error {
	_, err := w.f.Write([]byte{0})
	return err
}

// Chain feeds every so often for as long as healthy says nil, until ctx ends. unhealthy is told once each time health is lost; the
// machine then has as long as the hardware's timeout to recover. It does not stop the watchdog at the end: whatever hangs after that is
// cut off, too.
func Chain(ctx context.Context, every time.Duration, feed func() error, healthy func() error, unhealthy func(error)) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	well := true
	for {
		err := healthy()
		if err == nil {
			err = feed()
		}
		if err != nil && well {
			unhealthy(err)
		}
		well = err == nil
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}
