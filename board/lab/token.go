package lab

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"

	"guardhouse/appliance/hsm/attach"
)

// Programs and libraries of the token, as Debian's softhsm2 and p11-kit packages place them.
const (
	SoftHSM = "/usr/lib/softhsm/libsofthsm2.so"
	p11kit  = "p11-kit"
)

// tokenClients bounds the PKCS#11 clients of one token at a time.
const tokenClients = 64

// Token is a PKCS#11 token that lives outside the nodes: a SoftHSM2 token folder, and for each client that connects
// one `p11-kit remote` process over it. It is plugged into nodes with NodeOptions.Token, into native programs with
// [Token.ServeUnix]; several of both may share it.
//
// Link (node side: package appliance/hsm/attach): the virtio-serial port [TokenPort] carries yamux, the guest is
// yamux's client. Each stream the guest opens is one PKCS#11 client speaking p11-kit's RPC, raw.
type Token struct {
	// Dir holds softhsm2.conf, the token's objects and the file "pin" (mode 0600).
	Dir string
	// Label is the token's label.
	Label string

	lab *Lab
	pin string

	mu      sync.Mutex
	procs   map[*process]struct{}
	stopped bool
	pulled  bool
	clients int // since the lab began
}

// NewToken makes (or finds again, in the lab's folder) the token with this label. Its PIN is random and is passed to
// softhsm2-util on the command line when the token is made, because that program takes it no other way.
func (l *Lab) NewToken(ctx context.Context, label string) (*Token, error) {
	t := &Token{Dir: filepath.Join(l.Dir, "tokens", label), Label: label, lab: l, procs: map[*process]struct{}{}}
	if !nodeName.MatchString(label) {
		return nil, fmt.Errorf("lab: token %q: bad label: want small letters, digits and '-'", label)
	}
	if err := t.prepare(ctx); err != nil {
		return nil, fmt.Errorf("lab: token %q: %w", label, err)
	}
	return t, nil
}

func (t *Token) prepare(ctx context.Context) error {
	pinFile := filepath.Join(t.Dir, "pin")
	if b, err := os.ReadFile(pinFile); err == nil {
		t.pin = string(b)
		return nil
	}
	if err := os.MkdirAll(filepath.Join(t.Dir, "objects"), 0o700); err != nil {
		return err
	}
	conf := "directories.tokendir = " + filepath.Join(t.Dir, "objects") +
		"\nobjectstore.backend = file\nlog.level = ERROR\nslots.removable = false\n"
	if err := os.WriteFile(t.conf(), []byte(conf), 0o600); err != nil {
		return err
	}
	var random [16]byte
	_, _ = rand.Read(random[:]) // never fails (crypto/rand)
	pin := hex.EncodeToString(random[:8])
	cmd := exec.CommandContext(ctx, "softhsm2-util", "--init-token", "--free", "--label", t.Label,
		"--so-pin", hex.EncodeToString(random[8:]), "--pin", pin)
	cmd.Env = t.Env()
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("softhsm2-util: %w: %.300s (Debian package softhsm2)", err, out)
	}
	t.pin = pin
	return os.WriteFile(pinFile, []byte(pin), 0o600) // last: its presence says that the token is complete
}

func (t *Token) conf() string { return filepath.Join(t.Dir, "softhsm2.conf") }

// PIN is the user PIN.
func (t *Token) PIN() string { return t.pin }

// Env is the environment for a program that loads [SoftHSM] itself, such as pkcs11-tool.
func (t *Token) Env() []string { return append(os.Environ(), "SOFTHSM2_CONF="+t.conf()) }

// Clients counts the PKCS#11 clients so far.
func (t *Token) Clients() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.clients
}

// Kill ends every process that works for a client now: their connections break, a new connection works again.
func (t *Token) Kill() { t.signalAll(syscall.SIGKILL) }

// Unplug pulls the token out: its clients' connections break and no new one works until Plug.
func (t *Token) Unplug() {
	t.mu.Lock()
	t.pulled = true
	t.mu.Unlock()
	t.Kill()
}

// Plug undoes [Token.Unplug].
func (t *Token) Plug() {
	t.mu.Lock()
	t.pulled = false
	t.mu.Unlock()
}

// Stop makes the token hang: clients stay connected and get no answer, new ones neither, until Continue.
func (t *Token) Stop() {
	t.mu.Lock()
	t.stopped = true
	t.mu.Unlock()
	t.signalAll(syscall.SIGSTOP)
}

// Continue undoes [Token.Stop].
func (t *Token) Continue() {
	t.mu.Lock()
	t.stopped = false
	t.mu.Unlock()
	t.signalAll(syscall.SIGCONT)
}

func (t *Token) signalAll(sig syscall.Signal) {
	t.mu.Lock()
	list := make([]*process, 0, len(t.procs))
	for p := range t.procs {
		list = append(list, p)
	}
	t.mu.Unlock()
	for _, p := range list {
		p.signal(sig)
		if sig == syscall.SIGKILL {
			<-p.done
		}
	}
}

// client is one `p11-kit remote` process; its standard input and output are a connection's other end.
type client struct {
	io.WriteCloser
	io.Reader
	token *Token
	proc  *process
}

// Close kills the process, a hanging one too, and waits for it.
func (c *client) Close() error {
	c.proc.kill()
	c.token.mu.Lock()
	delete(c.token.procs, c.proc)
	c.token.mu.Unlock()
	return nil
}

// spawn starts the process for one connection; see [attach.Spawn].
func (t *Token) spawn(context.Context) (io.ReadWriteCloser, error) {
	cmd := exec.Command(p11kit, "remote", SoftHSM)
	cmd.Env = t.Env()
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	// Not StdoutPipe: Wait would close it before its last bytes are read.
	out, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	cmd.Stdout = w
	defer w.Close()
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.pulled {
		out.Close()
		return nil, errors.New("the token is unplugged")
	}
	if len(t.procs) >= tokenClients {
		out.Close()
		return nil, errors.New("too many clients")
	}
	p, err := t.lab.procs.start("p11-kit remote", cmd)
	if err != nil {
		out.Close()
		t.lab.logf("token %s: %v", t.Label, err)
		return nil, err
	}
	t.procs[p] = struct{}{}
	t.clients++
	if t.stopped {
		p.signal(syscall.SIGSTOP)
	}
	return &client{WriteCloser: in, Reader: ending{out}, token: t, proc: p}, nil
}

// ending is a pipe that closes itself when it was read to the end, since a client's Close ends the writer only.
type ending struct{ *os.File }

func (e ending) Read(p []byte) (int, error) {
	n, err := e.File.Read(p)
	if err != nil {
		e.File.Close()
	}
	return n, err
}

// serve joins conn to a process of its own until either ends.
func (t *Token) serve(ctx context.Context, conn net.Conn) {
	defer conn.Close()
	c, err := t.spawn(ctx)
	if err != nil {
		return
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		_, _ = io.Copy(c, conn)
		c.Close()
	})
	_, _ = io.Copy(conn, c)
	conn.Close()
	wg.Wait()
}

// ServeUnix serves the token to native programs on a unix socket at path until the lab ends or stop is called. Load
// p11-kit-client.so with P11_KIT_SERVER_ADDRESS=unix:path=... there. Stop closes the socket and all connections.
func (t *Token) ServeUnix(path string) (stop func(), err error) {
	ln, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("lab: token %q: %w", t.Label, err)
	}
	return t.Serve(ln), nil
}

// Serve is [Token.ServeUnix] on a listener of the caller's, for instance a TCP one that a guest reaches at [HostAddress].
func (t *Token) Serve(ln net.Listener) (stop func()) {
	var mu sync.Mutex
	conns := map[net.Conn]struct{}{}
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			conns[c] = struct{}{}
			mu.Unlock()
			go func() {
				t.serve(t.lab.ctx, c)
				mu.Lock()
				delete(conns, c)
				mu.Unlock()
			}()
		}
	}()
	stop = func() {
		ln.Close()
		mu.Lock()
		defer mu.Unlock()
		for c := range conns {
			c.Close()
		}
	}
	t.lab.onClose(stop)
	return stop
}

// plug is the cable between a token and one node: a unix socket that QEMU connects to, again after each break.
type plug struct {
	token *Token
	ln    net.Listener
	dir   *os.File // kept open: the listener's path goes through its descriptor, so that it is short

	mu   sync.Mutex
	conn *cable
	out  bool // unplugged
}

// cable counts what came from the guest: an unused connection needs no renewal.
type cable struct {
	net.Conn
	mu   sync.Mutex
	used bool
}

func (c *cable) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if n > 0 {
		c.mu.Lock()
		c.used = true
		c.mu.Unlock()
	}
	return n, err
}

func (t *Token) plugInto(path string) (*plug, error) {
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		dir.Close()
		return nil, err
	}
	short := fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), filepath.Base(path))
	ln, err := net.Listen("unix", short)
	if err != nil {
		dir.Close()
		return nil, err
	}
	p := &plug{token: t, ln: ln, dir: dir}
	go p.accept()
	return p, nil
}

func (p *plug) accept() {
	for {
		c, err := p.ln.Accept()
		if err != nil {
			return
		}
		conn := &cable{Conn: c}
		p.mu.Lock()
		if p.out {
			p.mu.Unlock()
			c.Close()
			continue
		}
		old := p.conn
		p.conn = conn
		p.mu.Unlock()
		if old != nil {
			old.Close()
		}
		go p.session(conn)
	}
}

// session carries the guest's connections until the cable's ends. It begins with the guest's first byte, so that no
// keepalive runs out, and no byte is sent, while the guest still boots.
func (p *plug) session(conn *cable) {
	r := bufio.NewReader(conn)
	if _, err := r.Peek(1); err != nil {
		conn.Close()
		return
	}
	err := attach.Serve(p.token.lab.ctx, struct {
		io.Reader
		io.WriteCloser
	}{r, conn}, p.token.spawn)
	if err != nil {
		p.token.lab.logf("token %s: %v", p.token.Label, err)
	}
}

// drop renews a used connection: the next opener of the port must not read the rest of its predecessor's stream.
func (p *plug) drop() {
	p.mu.Lock()
	c := p.conn
	p.mu.Unlock()
	if c == nil {
		return
	}
	c.mu.Lock()
	used := c.used
	c.mu.Unlock()
	if used {
		c.Close()
	}
}

// setOut unplugs (true) or plugs.
func (p *plug) setOut(out bool) {
	p.mu.Lock()
	p.out = out
	c := p.conn
	p.mu.Unlock()
	if out && c != nil {
		c.Close()
	}
}

func (p *plug) close() {
	p.setOut(true)
	p.ln.Close()
	p.dir.Close()
}
