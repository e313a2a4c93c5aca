package attach

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// cord is a channel that can be pulled and plugged again, as a machine's port.
type cord struct {
	mu    sync.Mutex
	out   chan io.ReadWriteCloser // outer ends
	ends  []io.Closer
	in    bool
	opens int
	dirt  int // openings whose other end speaks another language
}

func newCord() *cord { return &cord{out: make(chan io.ReadWriteCloser, 16), in: true} }

func (c *cord) open() (io.ReadWriteCloser, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.opens++
	if !c.in {
		return nil, errors.New("unplugged")
	}
	a, b := net.Pipe()
	c.ends = append(c.ends, a, b)
	if c.opens <= c.dirt { // what an earlier session left in the port
		go func() {
			fmt.Fprint(b, "HTTP/1.1 400 Bad Request\r\n\r\n")
			_, _ = io.Copy(io.Discard, b)
		}()
		return a, nil
	}
	c.out <- b
	return a, nil
}

func (c *cord) plug(in bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.in = in
	if !in {
		for _, e := range c.ends {
			e.Close()
		}
		c.ends = nil
	}
}

// echo is an outer end that answers what it hears.
func echo(context.Context) (io.ReadWriteCloser, error) {
	a, b := net.Pipe()
	go func() { _, _ = io.Copy(b, b); b.Close() }()
	return a, nil
}

func start(t *testing.T, c *cord, spawn Spawn) (b *Bridge, socket string) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	t.Cleanup(func() { cancel(); wg.Wait() })
	wg.Go(func() {
		for {
			select {
			case <-ctx.Done():
				return
			case conn := <-c.out:
				wg.Go(func() { _ = Serve(ctx, conn, spawn) })
			}
		}
	})
	socket = filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	b = NewBridge(c.open, func(string, ...any) {})
	wg.Go(func() { _ = b.Run(ctx, l) })
	return b, socket
}

func up(t *testing.T, b *Bridge) {
	t.Helper()
	for range 1000 {
		if b.Problem() == nil {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Fatalf("the channel stays down: %v", b.Problem())
}

func talk(t *testing.T, conn net.Conn, msg []byte) error {
	t.Helper()
	_ = conn.SetDeadline(time.Now().Add(3 * time.Second))
	go func() { _, _ = conn.Write(msg) }()
	got := make([]byte, len(msg))
	if _, err := io.ReadFull(conn, got); err != nil {
		return err
	}
	if !bytes.Equal(got, msg) {
		return errors.New("other bytes came back")
	}
	return nil
}

func dial(t *testing.T, socket string) net.Conn {
	t.Helper()
	conn, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func TestCarriesManyConnections(t *testing.T) {
	b, socket := start(t, newCord(), echo)
	up(t, b)
	var wg sync.WaitGroup
	for n := range 5 {
		conn := dial(t, socket)
		wg.Go(func() {
			if err := talk(t, conn, bytes.Repeat([]byte{byte(n)}, 600_000)); err != nil {
				t.Errorf("connection %d: %v", n, err)
			}
		})
	}
	wg.Wait()
}

func TestPulledCordEndsConnectionsAtOnceAndComesBack(t *testing.T) {
	c := newCord()
	b, socket := start(t, c, echo)
	up(t, b)
	conn := dial(t, socket)
	if err := talk(t, conn, []byte("before")); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	c.plug(false)
	_ = conn.SetReadDeadline(time.Now().Add(3 * time.Second))
	if _, err := conn.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) || time.Since(began) > time.Second {
		t.Errorf("the connection ended after %v: %v", time.Since(began), err)
	}
	other := dial(t, socket)
	_ = other.SetReadDeadline(time.Now().Add(3 * time.Second))
	if _, err := other.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("a connection without channel: %v, want an end", err)
	}
	if b.Problem() == nil {
		t.Error("no problem reported")
	}
	c.plug(true)
	up(t, b)
	if err := talk(t, dial(t, socket), []byte("after")); err != nil {
		t.Errorf("after plugging in: %v", err)
	}
}

func TestSilentOtherEndIsAProblem(t *testing.T) {
	c := newCord()
	go func() {
		for conn := range c.out { // takes bytes, never answers
			go func() { _, _ = io.Copy(io.Discard, conn) }()
		}
	}()
	b := NewBridge(c.open, func(string, ...any) {})
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	done := make(chan struct{})
	go func() { b.keep(ctx); close(done) }()
	<-ctx.Done()
	if b.Problem() == nil {
		t.Error("a channel where nobody answers counts as up")
	}
	c.plug(false)
	<-done
}

func TestSurvivesGarbage(t *testing.T) {
	c := newCord()
	c.dirt = 2
	b, socket := start(t, c, echo)
	up(t, b)
	if err := talk(t, dial(t, socket), []byte("x")); err != nil || c.opens != 3 {
		t.Errorf("garbage in the channel was not overcome: %v after %d tries", err, c.opens)
	}
}

func TestFindsPortByName(t *testing.T) {
	sys := t.TempDir()
	for port, name := range map[string]string{"vport1p1": "org.example.other\n", "vport3p2": "org.guardhouse.hsm\n"} {
		dir := filepath.Join(sys, "class/virtio-ports", port)
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "name"), []byte(name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := FindPort(sys, "/dev", "org.guardhouse.hsm"); err != nil || got != "/dev/vport3p2" {
		t.Errorf("%q, %v", got, err)
	}
	if got, err := FindPort(sys, "/dev", "org.guardhouse"); err == nil {
		t.Errorf("found %q", got)
	}
}

// port is a channel that does not notice when its inner side restarts, as a
// virtio-serial port does not: only the outer side's end breaks it.
type port struct {
	mu  sync.Mutex
	end net.Conn
}

func (p *port) serve(ctx context.Context, spawn Spawn) {
	for ctx.Err() == nil {
		a, b := net.Pipe()
		p.mu.Lock()
		p.end = a
		p.mu.Unlock()
		_ = Serve(ctx, b, spawn)
		a.Close()
	}
}

func (p *port) open() (io.ReadWriteCloser, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.end == nil {
		return nil, errors.New("nobody there")
	}
	_ = p.end.SetDeadline(time.Time{})
	return opened{p.end}, nil
}

type opened struct{ net.Conn }

func (o opened) Close() error { return o.SetDeadline(time.Unix(1, 0)) }

func TestRestartInsideIsOvercome(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	t.Cleanup(func() { cancel(); wg.Wait() })
	p := &port{}
	wg.Go(func() { p.serve(ctx, echo) })
	for round := range 3 {
		inside, restart := context.WithCancel(ctx)
		socket := filepath.Join(t.TempDir(), "s")
		l, err := net.Listen("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		b := NewBridge(p.open, func(string, ...any) {})
		done := make(chan struct{})
		go func() { _ = b.Run(inside, l); close(done) }()
		began := time.Now()
		for {
			conn := dial(t, socket)
			if err := talk(t, conn, []byte("hello")); err == nil {
				go func() { // traffic that the restart cuts
					for {
						if _, err := conn.Write(make([]byte, 1000)); err != nil {
							return
						}
					}
				}()
				break
			}
			if time.Since(began) > 11*time.Second {
				t.Fatalf("round %d: not usable after %v: %v", round, time.Since(began), b.Problem())
			}
			time.Sleep(20 * time.Millisecond)
		}
		t.Logf("round %d: usable after %v", round, time.Since(began).Round(time.Millisecond))
		restart()
		<-done
	}
}
