package supervise

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Kernel copies the kernel's ring, from its beginning, into the log until ctx ends or the device fails. path is /dev/kmsg, or in tests a
// file of the same records. seen, which may be nil, is given each line.
func (l *Log) Kernel(ctx context.Context, path string, seen func(line string)) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("read the kernel log: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { f.Close() })
	defer stop()
	defer f.Close()
	buf := make([]byte, 8192+1) // one read gives one record; the kernel's are smaller
	for {
		n, err := f.Read(buf)
		switch {
		case errors.Is(err, unix.EPIPE):
			l.Add(LogKernel, "(lines lost: the kernel overwrote its ring before they were read)")
			continue
		case errors.Is(err, io.EOF), ctx.Err() != nil:
			return nil
		case err != nil:
			return fmt.Errorf("read the kernel log: %w", err)
		}
		for line := range strings.Lines(string(buf[:n])) {
			if at, text, ok := parseKmsg(line); ok {
				l.add(LogKernel, text, at)
				if seen != nil {
					seen(text)
				}
			}
		}
	}
}

// parseKmsg reads "priority,sequence,microseconds,flags;text" (the kernel's Documentation/ABI/testing/dev-kmsg). Lines that begin with
// a blank carry key=value pairs of the record before and are left out.
func parseKmsg(line string) (at time.Duration, text string, ok bool) {
	head, text, ok := strings.Cut(strings.TrimRight(line, "\n"), ";")
	if !ok || strings.HasPrefix(line, " ") {
		return 0, "", false
	}
	f := strings.Split(head, ",")
	if len(f) < 3 {
		return 0, "", false
	}
	us, err := strconv.ParseInt(f[2], 10, 64)
	if err != nil || us < 0 {
		return 0, "", false
	}
	return time.Duration(us) * time.Microsecond, text, true
}
