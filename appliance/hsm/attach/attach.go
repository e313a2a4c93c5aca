// Package attach connects a PKCS#11 module inside a machine with a token
// outside it, over one byte channel such as a virtio-serial port.
//
// Promise. Inside, Bridge listens on a unix socket (where p11-kit-client.so
// connects) and carries each connection as one yamux stream of raw bytes; the
// inside is the yamux client. Outside, Serve accepts the streams and joins each
// to whatever spawn gives, usually a `p11-kit remote` process. When the channel
// ends, every connection on it ends at once, so that a caller sees a lost device
// and not a silence, and Bridge opens the channel again until it works.
//
// Limits. The channel is trusted as a cable is: nothing here encrypts or
// authenticates. A peer that restarts on a channel that stays open is noticed by
// a protocol error or, at the latest, by the keepalive after 10 seconds.
package attach

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/yamux"
)

// Prefix marks an attachment by virtio-serial port in a configuration:
// "virtio:" and the port's name.
const Prefix = "virtio:"

// muxConfig is the same on both sides.
func muxConfig() *yamux.Config {
	c := yamux.DefaultConfig()
	c.KeepAliveInterval = 5 * time.Second
	c.ConnectionWriteTimeout = 5 * time.Second
	c.StreamOpenTimeout = 5 * time.Second
	c.StreamCloseTimeout = 5 * time.Second
	c.LogOutput = io.Discard
	return c
}

// FindPort gives the device of the virtio-serial port called name: the number
// in its path depends on the machine's other devices. sys is /sys and dev is
// /dev, elsewhere in tests.
func FindPort(sys, dev, name string) (string, error) {
	paths, err := filepath.Glob(filepath.Join(sys, "class/virtio-ports/*/name"))
	if err != nil {
		return "", fmt.Errorf("attach: list virtio ports: %w", err)
	}
	for _, p := range paths {
		b, err := os.ReadFile(p)
		if err == nil && strings.TrimSpace(string(b)) == name {
			return filepath.Join(dev, filepath.Base(filepath.Dir(p))), nil
		}
	}
	return "", fmt.Errorf("attach: no virtio-serial port named %q; check that the machine has this device", name)
}

// Opener opens the channel. What it gives must end reads when it is closed.
type Opener func() (io.ReadWriteCloser, error)

// Port opens the virtio-serial port called name.
func Port(name string) Opener {
	return func() (io.ReadWriteCloser, error) {
		path, err := FindPort("/sys", "/dev", name)
		if err != nil {
			return nil, err
		}
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			return nil, fmt.Errorf("attach: open port: %w", err)
		}
		return f, nil
	}
}

// Bridge is the inner side.
type Bridge struct {
	open Opener
	log  func(format string, args ...any)

	mu      sync.Mutex
	session *yamux.Session // nil while the channel is down
	problem error          // why it is down
}

// NewBridge makes a bridge over the channel that open opens. log gets a line when
// the channel comes up or goes down.
func NewBridge(open Opener, log func(format string, args ...any)) *Bridge {
	return &Bridge{open: open, log: log, problem: errors.New("attach: not started")}
}

// Problem tells why the channel is down; nil while it is up.
func (b *Bridge) Problem() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.problem
}

// Run keeps the channel up and serves l until ctx ends; it closes l.
func (b *Bridge) Run(ctx context.Context, l net.Listener) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { b.keep(ctx) })
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	for {
		conn, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("attach: accept: %w", err)
		}
		wg.Go(func() { b.carry(conn) })
	}
}

// keep opens the channel again and again, with a pause that grows to a second.
func (b *Bridge) keep(ctx context.Context) {
	const first, most = 50 * time.Millisecond, time.Second
	pause := first
	for ctx.Err() == nil {
		began := time.Now()
		err := b.once(ctx)
		b.set(nil, err)
		if time.Since(began) > 5*time.Second {
			pause = first
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
		pause = min(2*pause, most)
	}
}

// once runs one session over the channel until it ends.
func (b *Bridge) once(ctx context.Context) error {
	ch, err := b.open()
	if err != nil {
		return err
	}
	s, err := yamux.Client(ch, muxConfig())
	if err != nil {
		ch.Close()
		return fmt.Errorf("attach: %w", err)
	}
	defer s.Close()
	stop := context.AfterFunc(ctx, func() { s.Close() })
	defer stop()
	// A port can be opened with nobody behind it: only an answer counts.
	if _, err := s.Ping(); err != nil {
		return errors.New("attach: nobody answers at the other end of the HSM's channel")
	}
	b.set(s, nil)
	<-s.CloseChan()
	return errors.New("attach: the HSM's channel was lost")
}

func (b *Bridge) set(s *yamux.Session, problem error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	was := b.problem
	b.session, b.problem = s, problem
	switch {
	case problem == nil:
		b.log("HSM channel is up")
	case was == nil || was.Error() != problem.Error():
		b.log("HSM channel is down: %v", problem)
	}
}

// carry joins one connection to a stream of its own.
func (b *Bridge) carry(conn net.Conn) {
	b.mu.Lock()
	s := b.session
	b.mu.Unlock()
	if s == nil {
		conn.Close()
		return
	}
	stream, err := s.OpenStream()
	if err != nil {
		conn.Close()
		return
	}
	join(conn, stream)
}

// Spawn makes the outer end of one connection. It should not outlive ctx.
type Spawn func(ctx context.Context) (io.ReadWriteCloser, error)

// Serve is the outer side: it joins each stream on conn to one end made by
// spawn, until conn or ctx ends. It closes conn and every end it made.
func Serve(ctx context.Context, conn io.ReadWriteCloser, spawn Spawn) error {
	s, err := yamux.Server(conn, muxConfig())
	if err != nil {
		conn.Close()
		return fmt.Errorf("attach: %w", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	defer s.Close()
	stop := context.AfterFunc(ctx, func() { s.Close() })
	defer stop()
	for {
		stream, err := s.AcceptStream()
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, io.EOF) || errors.Is(err, yamux.ErrSessionShutdown) {
				return nil
			}
			return fmt.Errorf("attach: %w", err)
		}
		wg.Go(func() {
			end, err := spawn(ctx)
			if err != nil {
				stream.Close()
				return
			}
			join(stream, end)
		})
	}
}

// join copies both ways until either side ends, then closes both: a PKCS#11
// connection has no use for half of it.
func join(a, b io.ReadWriteCloser) {
	done := make(chan struct{}, 2)
	pass := func(dst, src io.ReadWriteCloser) {
		_, _ = io.Copy(dst, src)
		done <- struct{}{}
	}
	go pass(a, b)
	go pass(b, a)
	<-done
	a.Close()
	b.Close()
	<-done
}

// Command makes a Spawn that runs a program with the connection on its standard
// input and output, such as `p11-kit remote MODULE`. Closing its end kills and
// reaps the program. started, if not nil, learns each process id.
func Command(started func(pid int), env []string, name string, args ...string) Spawn {
	return func(ctx context.Context) (io.ReadWriteCloser, error) {
		cmd := exec.CommandContext(ctx, name, args...)
		cmd.Env = env
		in, err := cmd.StdinPipe()
		if err != nil {
			return nil, fmt.Errorf("attach: %w", err)
		}
		out, err := cmd.StdoutPipe()
		if err != nil {
			return nil, fmt.Errorf("attach: %w", err)
		}
		if err := cmd.Start(); err != nil {
			return nil, fmt.Errorf("attach: start %s: %w", name, err)
		}
		if started != nil {
			started(cmd.Process.Pid)
		}
		return &child{cmd: cmd, WriteCloser: in, Reader: out}, nil
	}
}

type child struct {
	cmd *exec.Cmd
	io.WriteCloser
	io.Reader
	once sync.Once
}

// Close kills the program and waits for it.
func (c *child) Close() error {
	c.once.Do(func() {
		_ = c.cmd.Process.Kill()
		_ = c.WriteCloser.Close()
		_ = c.cmd.Wait()
	})
	return nil
}
