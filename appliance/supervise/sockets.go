package supervise

import (
	"context"
	"fmt"
	"net"
	"os"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// ListenTCP opens a listening socket on every address of the device, or of the machine where device is "", and gives its descriptor for
// a service. It stays open, and keeps queueing connections, for as long as the file is.
func ListenTCP(ctx context.Context, port uint16, device string) (*os.File, error) {
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		if device == "" {
			return nil
		}
		var serr error
		err := c.Control(func(fd uintptr) { serr = unix.BindToDevice(int(fd), device) })
		if err != nil {
			return err
		}
		return serr
	}}
	l, err := lc.Listen(ctx, "tcp", ":"+strconv.Itoa(int(port)))
	if err != nil {
		return nil, fmt.Errorf("listen on port %d: %w", port, err)
	}
	defer l.Close()
	f, err := l.(*net.TCPListener).File() // a duplicate: the socket itself stays open
	if err != nil {
		return nil, fmt.Errorf("hand over port %d: %w", port, err)
	}
	return f, nil
}

// MoveTCP binds a listening socket of ListenTCP to another device, or to every address of the machine where device is "". It is the same
// socket for whoever else holds it.
func MoveTCP(f *os.File, device string) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var serr error
	if err := raw.Control(func(fd uintptr) { serr = unix.BindToDevice(int(fd), device) }); err != nil {
		return err
	}
	if serr != nil {
		return fmt.Errorf("bind a listening socket to %q: %w", device, serr)
	}
	return nil
}
