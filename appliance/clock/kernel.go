package clock

import (
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Bits of adjtimex(2) that golang.org/x/sys/unix does not name.
const (
	adjFrequency = 0x0002
	adjStatus    = 0x0010
	adjTick      = 0x4000
	staUnsync    = 0x0040
	normalTick   = 10000 // microseconds
)

// Kernel is the machine's clock. Raw is CLOCK_MONOTONIC_RAW, Boot CLOCK_BOOTTIME, Wall CLOCK_REALTIME. Step and Rate need CAP_SYS_TIME; the
// kernel's own loop is not used, only its frequency. A machine that is suspended loses the time between Raw and Boot: nodes are not.
type Kernel struct {
	mu      sync.Mutex
	applied float64
}

// OpenKernel reads the rate in force.
func OpenKernel() (*Kernel, error) {
	var t unix.Timex
	if _, err := unix.Adjtimex(&t); err != nil {
		return nil, fmt.Errorf("read the kernel's clock rate: %w", err)
	}
	return &Kernel{applied: float64(t.Freq)/65536 + float64(t.Tick-normalTick)*100}, nil
}

// Read implements Clock. The three clocks are read within microseconds of each other.
func (k *Kernel) Read() Reading {
	var raw, boot, wall unix.Timespec
	unix.ClockGettime(unix.CLOCK_MONOTONIC_RAW, &raw) // the kernel has had these since 2.6.39; they don't fail
	unix.ClockGettime(unix.CLOCK_BOOTTIME, &boot)
	unix.ClockGettime(unix.CLOCK_REALTIME, &wall)
	return Reading{time.Duration(raw.Nano()), time.Duration(boot.Nano()), time.Unix(wall.Sec, wall.Nsec)}
}

// Step implements Clock.
func (k *Kernel) Step(utc time.Time) error {
	ts := unix.NsecToTimespec(utc.UnixNano())
	if err := unix.ClockSettime(unix.CLOCK_REALTIME, &ts); err != nil {
		return fmt.Errorf("set the system clock: %w", err)
	}
	return nil
}

// Rate implements Clock.
func (k *Kernel) Rate(ppm float64) error {
	ppm = min(max(ppm, -MaxSlewPPM), MaxSlewPPM)
	k.mu.Lock()
	defer k.mu.Unlock()
	t := unix.Timex{Modes: adjFrequency | adjTick | adjStatus, Freq: int64(ppm * 65536), Tick: normalTick, Status: staUnsync}
	if _, err := unix.Adjtimex(&t); err != nil {
		return fmt.Errorf("set the rate of the system clock: %w", err)
	}
	k.applied = float64(t.Freq) / 65536
	return nil
}

// Applied implements Clock.
func (k *Kernel) Applied() float64 {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.applied
}

// SetRTC writes the hardware clock at path (/dev/rtc0), which has whole seconds.
func SetRTC(path string) func(utc time.Time) error {
	return func(utc time.Time) error {
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		utc = utc.UTC().Round(time.Second)
		rt := unix.RTCTime{Sec: int32(utc.Second()), Min: int32(utc.Minute()), Hour: int32(utc.Hour()), Mday: int32(utc.Day()),
			Mon: int32(utc.Month()) - 1, Year: int32(utc.Year()) - 1900}
		return unix.IoctlSetRTCTime(int(f.Fd()), &rt)
	}
}
