package evidence

import (
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"os/exec"
	"testing"
	"time"
)

// device is a software TPM, spoken to in raw commands.
type device struct {
	t    testing.TB
	conn net.Conn
}

func startTPM(t testing.TB) *device {
	t.Helper()
	return startTPMIn(t, t.TempDir())
}

// startTPMIn runs a TPM with the state in a directory.
func startTPMIn(t testing.TB, dir string) *device {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0") // finds a free port
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	_, port, _ := net.SplitHostPort(addr)
	cmd := exec.Command("swtpm", "socket", "--tpm2", "--tpmstate", "dir="+dir, "--server", "type=tcp,bindaddr=127.0.0.1,port="+port,
		"--flags", "not-need-init,startup-clear")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatalf("swtpm (Debian package swtpm): %v", err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	for range 250 {
		if conn, err := net.Dial("tcp", addr); err == nil {
			t.Cleanup(func() { conn.Close() })
			return &device{t, conn}
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Fatalf("swtpm does not listen: %s", out.String())
	return nil
}

// run sends one command and gives the raw response.
func (d *device) run(cmd []byte) []byte {
	d.t.Helper()
	_ = d.conn.SetDeadline(time.Now().Add(30 * time.Second))
	if _, err := d.conn.Write(cmd); err != nil {
		d.t.Fatal(err)
	}
	head := make([]byte, 10)
	if _, err := io.ReadFull(d.conn, head); err != nil {
		d.t.Fatal(err)
	}
	rest := make([]byte, int(binary.BigEndian.Uint32(head[2:]))-10)
	if _, err := io.ReadFull(d.conn, rest); err != nil {
		d.t.Fatal(err)
	}
	return append(head, rest...)
}

func (d *device) must(cmd []byte) []byte {
	d.t.Helper()
	r := d.run(cmd)
	if code := binary.BigEndian.Uint32(r[6:]); code != 0 {
		d.t.Fatalf("TPM answered 0x%x", code)
	}
	return r
}

var emptyPassword = append(words(9, rsPassword), 0, 0, 0, 0, 0)

func (d *device) flush(handle uint32) { d.must(command(tagNoSessions, 0x165, words(handle))) }

func (d *device) extend(x Extend, banks []Bank) {
	b := words(uint32(len(banks)))
	for i, bank := range banks {
		b = append(binary.BigEndian.AppendUint16(b, uint16(bank)), x.Digests[i]...)
	}
	d.must(command(tagSessions, 0x182, words(uint32(x.PCR)), emptyPassword, b))
}

// createEK is CreatePrimary with template L-2 (P-256) or L-1 (RSA 2048).
func createEK(ecc bool) []byte {
	if ecc {
		return ekTemplates[1].create()
	}
	return ekTemplates[0].create()
}

// ek makes the endorsement key and gives its public area; persist puts it where Windows does.
func (d *device) ek(ecc, persist bool) *EK {
	d.t.Helper()
	r := d.must(createEK(ecc))
	handle := binary.BigEndian.Uint32(r[10:])
	public, _, _ := take2B(r[18:])
	ek, err := ParseEK(public)
	if err != nil {
		d.t.Fatal(err)
	}
	if persist {
		d.must(command(tagSessions, 0x120, words(0x40000001, handle), emptyPassword, words(persistentEK)))
	}
	d.flush(handle)
	return ek
}

// client answers orders as hostsim does; spoil may change an answer or act before it is sent.
type client struct {
	*device
	log     []byte
	spoil   func(round int, a *Answer)
	handles []uint32
}

func (c *client) answer(round int, context []byte) []byte {
	c.t.Helper()
	o, err := PrivateCodec.DecodeOrder(context)
	if err != nil {
		c.t.Fatal(err)
	}
	a := &Answer{State: o.State}
	if o.WantLog {
		a.Device, a.Log = &DeviceInfo{Version: 2, Interface: 4, ImplementedBy: 138}, c.log
	}
	for _, cmd := range o.Commands {
		if err := CheckCommand(cmd); err != nil {
			c.t.Fatal(err)
		}
		r := c.run(cmd)
		if code := binary.BigEndian.Uint32(cmd[6:]); binary.BigEndian.Uint32(r[6:]) == 0 && (code == ccCreatePrimary || code == ccStartAuthSession) {
			c.handles = append(c.handles, binary.BigEndian.Uint32(r[10:]))
		}
		a.Responses = append(a.Responses, r)
	}
	if c.spoil != nil {
		c.spoil(round, a)
	}
	out, err := PrivateCodec.EncodeAnswer(a)
	if err != nil {
		c.t.Fatal(err)
	}
	return out
}

func (c *client) cleanup() {
	for _, h := range c.handles {
		c.run(command(tagNoSessions, 0x165, words(h)))
	}
	c.handles = nil
}
