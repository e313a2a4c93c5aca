package serial

import (
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// OpenTTY opens a serial line raw, 8 bits, 115200 baud. A BREAK is read as a NUL byte. Where the line has a carrier now, losing it ends
// reads; a cable without that wire works too.
func OpenTTY(path string) (io.ReadWriteCloser, error) {
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	raw, err := f.SyscallConn()
	if err == nil {
		var inner error
		if err = raw.Control(func(fd uintptr) { inner = rawMode(int(fd)) }); err == nil {
			err = inner
		}
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("set %s to raw mode: %w", path, err)
	}
	return f, nil
}

func rawMode(fd int) error {
	tio, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return err
	}
	tio.Iflag &^= unix.IGNBRK | unix.BRKINT | unix.PARMRK | unix.ISTRIP | unix.INLCR | unix.IGNCR | unix.ICRNL | unix.IXON | unix.INPCK
	tio.Oflag &^= unix.OPOST
	tio.Lflag &^= unix.ECHO | unix.ECHONL | unix.ICANON | unix.ISIG | unix.IEXTEN
	tio.Cflag &^= unix.CSIZE | unix.PARENB | unix.CBAUD
	tio.Cflag |= unix.CS8 | unix.CREAD | unix.CLOCAL | unix.B115200
	tio.Ispeed, tio.Ospeed = unix.B115200, unix.B115200
	tio.Cc[unix.VMIN], tio.Cc[unix.VTIME] = 1, 0
	// Lines without modem wires (a pseudo terminal, a three-wire cable) fail here or have no carrier: then only BREAK and time end a session.
	if wires, err := unix.IoctlGetInt(fd, unix.TIOCMGET); err == nil && wires&unix.TIOCM_CAR != 0 {
		tio.Cflag &^= unix.CLOCAL
	}
	return unix.IoctlSetTermios(fd, unix.TCSETS, tio)
}
