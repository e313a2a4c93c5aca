package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"time"

	"github.com/beevik/ntp"
)

// TimeServer is a chronyd that serves the workstation's clock, shifted by Offset, as stratum 1 on a loopback port.
// It never touches the clock and runs without privileges.
type TimeServer struct {
	// Port is its UDP port on 127.0.0.1; a guest asks HostAddress:Port.
	Port int
	// Offset is how much its clock is ahead of the workstation's.
	Offset time.Duration

	proc *process
	log  string
	keys string
}

// GuestAddr is the server's address as a guest writes it.
func (s *TimeServer) GuestAddr() string { return net.JoinHostPort(HostAddress, strconv.Itoa(s.Port)) }

// Addr is the server's address on the workstation.
func (s *TimeServer) Addr() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(s.Port)) }

// Kill ends the server: it answers no more.
func (s *TimeServer) Kill() { s.proc.kill() }

// Stop makes the server silent until Continue.
func (s *TimeServer) Stop() { s.proc.signal(syscall.SIGSTOP) }

// Continue undoes [TimeServer.Stop].
func (s *TimeServer) Continue() { s.proc.signal(syscall.SIGCONT) }

// TimeServers starts n servers without an offset and returns when each has answered.
func (l *Lab) TimeServers(ctx context.Context, n int) ([]*TimeServer, error) {
	out := make([]*TimeServer, 0, n)
	// A node remembers its time servers by port: a lab that is opened again serves on the same ones where they are still free.
	earlier := l.earlierPorts()
	for i := range n {
		if i < len(earlier) {
			if s, err := l.timeServerOn(ctx, earlier[i]); err == nil {
				out = append(out, s)
				continue
			}
		}
		s, err := l.TimeServer(ctx, 0)
		if err != nil {
			return nil, err
		}
		out = append(out, s)
	}
	return out, nil
}

// earlierPorts are the ports of the time servers of an earlier run in the same folder, in ascending order.
func (l *Lab) earlierPorts() (ports []int) {
	entries, err := os.ReadDir(filepath.Join(l.Dir, "time"))
	if err != nil {
		return nil
	}
	for _, e := range entries {
		if p, err := strconv.Atoi(e.Name()); err == nil && p > 1024 && p < 65536 {
			ports = append(ports, p)
		}
	}
	slices.Sort(ports)
	return ports
}

func (l *Lab) timeServerOn(ctx context.Context, port int) (*TimeServer, error) {
	root, err := l.unpack(ctx, "chrony")
	if err != nil {
		return nil, err
	}
	return l.startChrony(ctx, root, "", &TimeServer{Port: port})
}

// Restart kills the server and starts it again on the same port with another offset, which must not lie between 0 and 2 s.
func (l *Lab) Restart(ctx context.Context, s *TimeServer, offset time.Duration) error {
	s.Kill()
	root, fake, err := l.chrony(ctx, offset)
	if err != nil {
		return fmt.Errorf("lab: time server: %w", err)
	}
	var last error
	for range 5 { // the killed one's port may take a moment
		n, err := l.startChrony(ctx, root, fake, &TimeServer{Port: s.Port, Offset: offset, keys: s.keys})
		if err == nil {
			*s = *n
			return nil
		}
		if last = err; ctx.Err() != nil {
			break
		}
	}
	return fmt.Errorf("lab: time server: %w", last)
}

// chrony unpacks what a server with the offset needs.
func (l *Lab) chrony(ctx context.Context, offset time.Duration) (root, fake string, err error) {
	if offset != 0 && offset.Abs() < 2*time.Second {
		// chronyd takes the kernel's true receive times when they are near the faked clock.
		return "", "", fmt.Errorf("offset %v is under 2 s, where libfaketime does not work: use a Liar", offset)
	}
	if root, err = l.unpack(ctx, "chrony"); err == nil && offset != 0 {
		fake, err = l.unpack(ctx, "libfaketime")
	}
	return root, fake, err
}

// TimeServer starts one server whose clock is ahead by offset (libfaketime is loaded into it when that is not zero;
// offsets under 2 s need a [Liar]) and returns when it has answered. chrony is fetched and unpacked into the cache at the first use, not installed.
func (l *Lab) TimeServer(ctx context.Context, offset time.Duration) (*TimeServer, error) {
	return l.TimeServerWithKeys(ctx, offset, "")
}

// TimeServerWithKeys is TimeServer with symmetric keys, as lines of chrony's key file: "7 SHA256 HEX:...".
func (l *Lab) TimeServerWithKeys(ctx context.Context, offset time.Duration, keys string) (*TimeServer, error) {
	root, fake, err := l.chrony(ctx, offset)
	if err != nil {
		return nil, fmt.Errorf("lab: time server: %w", err)
	}
	var last error
	for range 5 { // the free port may be gone before chronyd takes it
		port, err := freeUDPPort()
		if err != nil {
			return nil, fmt.Errorf("lab: time server: %w", err)
		}
		s, err := l.startChrony(ctx, root, fake, &TimeServer{Port: port, Offset: offset, keys: keys})
		if err == nil {
			l.logf("time server on %s, offset %v", s.Addr(), offset)
			return s, nil
		}
		if last = err; ctx.Err() != nil {
			break
		}
	}
	return nil, fmt.Errorf("lab: time server: %w", last)
}

func (l *Lab) startChrony(ctx context.Context, root, fake string, s *TimeServer) (*TimeServer, error) {
	dir := filepath.Join(l.Dir, "time", strconv.Itoa(s.Port))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	s.log = filepath.Join(dir, "log")
	log, err := os.OpenFile(s.log, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd, release, err := chronyCommand(dir, root, fake, s)
	if err != nil {
		return nil, err
	}
	defer release()
	cmd.Stdout, cmd.Stderr = log, log
	if s.proc, err = l.procs.start("chronyd", cmd); err != nil {
		return nil, err
	}
	if err := s.answers(ctx); err != nil {
		s.proc.kill()
		return nil, fmt.Errorf("%w\nchronyd says: %s\nlog: %s", err, tail(s.log), s.log)
	}
	return s, nil
}

// chronyCommand is chronyd without privileges: nobody when this process is root. The program, its
// folder and libfaketime are handed over as descriptors 3, 4 and 5, since nobody cannot reach a cache below root's home; for the same reason the
// configuration is on the command line. The user is set here and not by chronyd: a change of user inside the child
// would clear its death signal.
func chronyCommand(dir, root, fake string, s *TimeServer) (*exec.Cmd, func(), error) {
	var files []*os.File
	release := func() {
		for _, f := range files {
			f.Close()
		}
	}
	paths := []string{filepath.Join(root, "usr/sbin/chronyd"), dir}
	if fake != "" {
		paths = append(paths, filepath.Join(fake, "usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1"))
	}
	for _, p := range paths {
		f, err := os.Open(p)
		if err != nil {
			release()
			return nil, nil, err
		}
		files = append(files, f)
	}
	who, err := user.Current()
	if err != nil {
		release()
		return nil, nil, err
	}
	if s.keys != "" {
		if err := os.WriteFile(filepath.Join(dir, "keys"), []byte(s.keys), 0o600); err != nil {
			release()
			return nil, nil, err
		}
	}
	name, attr := who.Username, &syscall.SysProcAttr{}
	if os.Geteuid() == 0 {
		err := os.Chown(dir, 65534, 65534)
		if err == nil && s.keys != "" {
			err = os.Chown(filepath.Join(dir, "keys"), 65534, 65534)
		}
		if err != nil {
			release()
			return nil, nil, err
		}
		name, attr.Credential = "nobody", &syscall.Credential{Uid: 65534, Gid: 65534}
	}
	// "local" serves without a source of its own; -x: no clock is ever disciplined.
	cmd := exec.Command("/proc/self/fd/3", "-4", "-x", "-U", "-d", "-u", name,
		fmt.Sprintf("port %d", s.Port), "bindaddress 127.0.0.1", "allow 127.0.0.1", "cmdport 0", "bindcmdaddress /",
		"pidfile /proc/self/fd/4/pid", "local stratum 1", "manual")
	if s.keys != "" {
		cmd.Args = append(cmd.Args, "keyfile /proc/self/fd/4/keys")
	}
	cmd.ExtraFiles, cmd.SysProcAttr, cmd.Dir = files, attr, "/"
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"}
	if fake != "" {
		cmd.Env = append(cmd.Env, "LD_PRELOAD=/proc/self/fd/5", fmt.Sprintf("FAKETIME=%+f", s.Offset.Seconds()))
	}
	return cmd, release, nil
}

// answers waits until the server gives a valid answer with its offset, 5 s at most.
func (s *TimeServer) answers(ctx context.Context) error {
	end := time.NewTimer(5 * time.Second)
	defer end.Stop()
	for {
		r, err := ntp.QueryWithOptions(s.Addr(), ntp.QueryOptions{Timeout: 300 * time.Millisecond})
		if err == nil {
			err = r.Validate()
		}
		if err == nil {
			if off := (r.ClockOffset - s.Offset).Abs(); off > 50*time.Millisecond {
				err = fmt.Errorf("answers with offset %v, wanted %v", r.ClockOffset, s.Offset)
			} else {
				return nil
			}
		}
		select {
		case <-s.proc.done:
			return fmt.Errorf("ended: %v", s.proc.err)
		case <-ctx.Done():
			return errors.Join(ctx.Err(), err)
		case <-end.C:
			return err
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func freeUDPPort() (int, error) {
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		return 0, err
	}
	defer c.Close()
	return c.LocalAddr().(*net.UDPAddr).Port, nil
}
