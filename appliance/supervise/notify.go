package supervise

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"unicode"

	"golang.org/x/sys/unix"
)

// maxNotify bounds one sd_notify message, in bytes; a longer one is cut by the kernel and ignored.
const maxNotify = 4096

// note is one parsed sd_notify message (sd_notify(3)); fields that we have no use for are dropped.
type note struct {
	ready, watchdog, stopping bool
	status                    *string
}

func parseNote(b []byte) note {
	var n note
	for line := range strings.SplitSeq(string(b), "\n") {
		key, value, ok := strings.Cut(line, "=")
		if !ok {
			continue
		}
		switch {
		case key == "READY" && value == "1":
			n.ready = true
		case key == "WATCHDOG" && value == "1":
			n.watchdog = true
		case key == "STOPPING" && value == "1":
			n.stopping = true
		case key == "STATUS":
			s := Clean(value)
			n.status = &s
		}
	}
	return n
}

// Clean makes a line safe to show on a terminal and bounds it to MaxLine bytes: control characters, invalid UTF-8 and characters that
// change the direction of writing become U+FFFD, a tab becomes a blank.
func Clean(s string) string {
	cut := len(s) > MaxLine
	if cut {
		s = s[:MaxLine]
	}
	s = strings.Map(func(r rune) rune {
		switch {
		case r == '\t':
			return ' '
		case unicode.IsControl(r), unicode.Is(unicode.Bidi_Control, r), r == '\u2028', r == '\u2029':
			return unicode.ReplacementChar
		}
		return r // an invalid byte arrives here as U+FFFD
	}, s)
	if cut {
		s += "..."
	}
	return s
}

// notifier is the sd_notify socket. handle is told who sent what, as the kernel reports the sender's pid.
type notifier struct {
	conn *net.UnixConn
	path string
}

func listenNotify(path string) (*notifier, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("remove stale notify socket: %w", err)
	}
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return nil, fmt.Errorf("make the notify socket: %w", err)
	}
	raw, err := conn.SyscallConn()
	if err == nil {
		var serr error
		err = raw.Control(func(fd uintptr) { serr = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PASSCRED, 1) })
		err = errors.Join(err, serr, os.Chmod(path, 0o666))
	}
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("make the notify socket: %w", err)
	}
	return &notifier{conn, path}, nil
}

// serve runs until the socket is closed.
func (n *notifier) serve(handle func(pid int, n note)) {
	buf := make([]byte, maxNotify)
	oob := make([]byte, unix.CmsgSpace(unix.SizeofUcred)+unix.CmsgSpace(4*16))
	for {
		size, oobn, flags, _, err := n.conn.ReadMsgUnix(buf, oob)
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			continue
		}
		pid := sender(oob[:oobn])
		if pid == 0 || flags&unix.MSG_TRUNC != 0 {
			continue
		}
		handle(pid, parseNote(buf[:size]))
	}
}

// sender is the pid the kernel put beside a message, 0 where there is none. Descriptors somebody sent along are closed: a service must
// not be able to fill our table.
func sender(oob []byte) (pid int) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return 0
	}
	for i := range messages {
		if cred, err := unix.ParseUnixCredentials(&messages[i]); err == nil {
			pid = int(cred.Pid)
		}
		if fds, err := unix.ParseUnixRights(&messages[i]); err == nil {
			for _, fd := range fds {
				unix.Close(fd)
			}
		}
	}
	return pid
}
