package cluster

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
)

// dialAs opens a connection to n with a key and whatever else the test changes.
func dialAs(t *testing.T, n *testNode, id *identity, change func(*tls.Config)) (*tls.Conn, error) {
	t.Helper()
	raw, err := net.Dial("tcp", n.address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { raw.Close() })
	raw.SetDeadline(time.Now().Add(5 * time.Second))
	c := id.config(func([]byte) bool { return true })
	if change != nil {
		change(c)
	}
	conn := tls.Client(raw, c)
	return conn, conn.Handshake()
}

func identityOf(t *testing.T, n *testNode) *identity {
	t.Helper()
	id, err := newIdentity(n.key, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// refusedHandshake wants n to end the connection before it answers anything.
func refusedHandshake(t *testing.T, n *testNode, c *tls.Conn, err error) {
	t.Helper()
	if err == nil {
		writeFrame(c, request{callHello, Clock{Boot: "x", State: rpc.PeerClockNone}, json.RawMessage(`{"version":1}`)})
		_, err = c.Read(make([]byte, 1))
	}
	if err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("it was not refused: %v", err)
	}
}

func TestUnknownKeysDoNotGetPastTheHandshake(t *testing.T) {
	a, b := newNode(t, "a", time.Second, quick), newNode(t, "b", time.Second, quick)
	knows(a, b.record())
	stranger := newNode(t, "x", time.Second, quick)
	none := func(c *tls.Config) { c.Certificates = nil }
	for name, c := range map[string]struct {
		id     *identity
		change func(*tls.Config)
	}{
		"unknown key":      {identityOf(t, stranger), nil},
		"no certificate":   {identityOf(t, b), none},
		"TLS 1.2":          {identityOf(t, b), func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS12, tls.VersionTLS12 }},
		"another protocol": {identityOf(t, b), func(c *tls.Config) { c.NextProtos = []string{"h2"} }},
		"no protocol":      {identityOf(t, b), func(c *tls.Config) { c.NextProtos = nil }},
		// b's certificate with another private key: the signature in the handshake does not verify
		"certificate without its key": {identityOf(t, b), func(c *tls.Config) {
			c.Certificates[0].PrivateKey = stranger.key
		}},
	} {
		t.Run(name, func(t *testing.T) {
			_, _, before := a.Status()
			conn, err := dialAs(t, a, c.id, func(cfg *tls.Config) {
				// The check of this side would hide that of the other.
				cfg.VerifyConnection = nil
				if c.change != nil {
					c.change(cfg)
				}
			})
			refusedHandshake(t, a, conn, err)
			for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
				if _, _, now := a.Status(); now == before+1 {
					break
				} else if time.Now().After(deadline) {
					t.Fatalf("%d counted before, %d now", before, now)
				}
			}
		})
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	lines := 0
	for _, l := range a.logged {
		if strings.Contains(l, "failed to prove a key") {
			lines++
		}
	}
	if lines != 1 {
		t.Errorf("%d lines about strangers in one minute", lines)
	}
}

func TestWithoutPeersNothingIsRead(t *testing.T) {
	a := newNode(t, "a", time.Second, quick)
	c, err := net.Dial("tcp", a.address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(5 * time.Second))
	if n, err := c.Read(make([]byte, 1)); n != 0 || err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("%d, %v", n, err)
	}
	if _, _, refused := a.Status(); refused != 0 {
		t.Errorf("%d", refused)
	}
}

// TestStrangersCanNotKeepPeersOut takes every place for those who have proved nothing, from other addresses than the peer's.
func TestStrangersCanNotKeepPeersOut(t *testing.T) {
	slow := quick
	slow.handshake = time.Minute
	a, b := newNode(t, "a", time.Second, slow), newNode(t, "b", time.Second, quick)
	elsewhere := b.record()
	elsewhere.Address = "127.0.0.1:1" // a can't dial b: only b's connection counts
	knows(a, elsewhere)
	var open []net.Conn
	for i := range maxStrangers + 8 {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 1, byte(1+i/2))}}
		c, err := d.Dial("tcp", a.address)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		open = append(open, c)
	}
	closed := closedOf(open)
	if closed != 8 {
		t.Errorf("%d of %d were closed, want 8", closed, len(open))
	}
	knows(b, a.record())
	until(t, b, "a", in(rpc.PeerConnected))
	// One address alone takes no more than its share.
	open = nil
	for range maxFromOne + 3 {
		c, err := net.Dial("tcp", a.address)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		open = append(open, c)
	}
	many := closedOf(open)
	if many != 3 {
		t.Errorf("%d of %d from one address were closed, want 3", many, maxFromOne+3)
	}
}

// closedOf counts the connections that the other side closes by itself.
func closedOf(open []net.Conn) int {
	var closed atomic.Int32
	var all sync.WaitGroup
	for _, c := range open {
		all.Go(func() {
			c.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
			if _, err := c.Read(make([]byte, 1)); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
				closed.Add(1)
			}
		})
	}
	all.Wait()
	return int(closed.Load())
}

// good is a hello that a would accept.
func good(n *testNode) request {
	return request{callHello, n.own(context.Background()), json.RawMessage(`{"version":1,"node":"b"}`)}
}

// TestAPeerWithItsKeyIsBoundedTooWhenItCalls lets somebody who holds a peer's key misbehave after the handshake.
func TestAPeerWithItsKeyIsBoundedTooWhenItCalls(t *testing.T) {
	lim := quick
	lim.handshake, lim.idle = 300*time.Millisecond, 300*time.Millisecond
	a, b := newNode(t, "a", time.Second, lim), newNode(t, "b", time.Second, quick)
	deaf := b.record()
	deaf.Address = "127.0.0.1:1"
	knows(a, deaf)
	id := identityOf(t, b)
	frame := func(v any) []byte {
		var buf bytes.Buffer
		if err := writeFrame(&buf, v); err != nil {
			t.Fatal(err)
		}
		return buf.Bytes()
	}
	with := func(change func(*request)) []byte {
		q := good(b)
		change(&q)
		return frame(q)
	}
	length := func(n uint32, b string) []byte { return append(binary.BigEndian.AppendUint32(nil, n), b...) }
	for name, c := range map[string]struct {
		send []byte
		says string // of the refusal; "" = it is cut without one
	}{
		"silence":             {nil, ""},
		"half a length":       {[]byte{0, 0}, ""},
		"length 0":            {length(0, ""), ""},
		"huge":                {length(maxFrame+1, strings.Repeat("x", 100)), ""},
		"4 GiB":               {length(1<<32-1, "{"), ""},
		"longer than it is":   {length(1000, "{}"), ""},
		"shorter than it is":  {length(1, "{}"), ""},
		"not JSON":            {length(4, "\x00\x01\x02\x03"), ""},
		"deep JSON":           {length(60000, strings.Repeat("[", 60000)), ""},
		"no hello":            {with(func(q *request) { q.Call = callTime }), "its first call is not hello"},
		"body of nonsense":    {with(func(q *request) { q.Body = json.RawMessage(`[1]`) }), "its first call is not hello"},
		"another version":     {with(func(q *request) { q.Body = json.RawMessage(`{"version":7}`) }), "it speaks version 7 of the link, this node version 1"},
		"no clock":            {with(func(q *request) { q.Clock = Clock{} }), ""},
		"infinite clock":      {with(func(q *request) { q.Clock.Earliest = 1 }), ""},
		"clock backwards":     {with(func(q *request) { q.Clock.Earliest, q.Clock.Latest = q.Clock.Latest, q.Clock.Earliest-1 }), ""},
		"clock in 2262":       {with(func(q *request) { q.Clock.Latest = 1<<63 - 1; q.Clock.Earliest = q.Clock.Latest }), ""},
		"clock state":         {with(func(q *request) { q.Clock.State = "excellent" }), ""},
		"time and none":       {with(func(q *request) { q.Clock.State = rpc.PeerClockNone }), ""},
		"boot id":             {with(func(q *request) { q.Clock.Boot = "\x1b[2J" }), ""},
		"hello, then silence": {frame(good(b)), "-"},
	} {
		t.Run(name, func(t *testing.T) {
			conn, err := dialAs(t, a, id, nil)
			if err != nil {
				t.Fatal(err)
			}
			start := time.Now()
			conn.Write(c.send)
			r, err := readReply(conn)
			switch {
			case c.says == "-":
				if err != nil || r.Error != nil {
					t.Fatalf("%v, %v", err, r.Error)
				}
				_, err = readReply(conn)
				if err == nil {
					t.Fatal("an answer to nothing")
				}
			case c.says == "":
				if err == nil {
					t.Fatalf("an answer: %+v", r)
				}
			case err != nil || r.Error == nil || r.Error.Text != c.says || r.Clock.Earliest == 0:
				t.Fatalf("%v, %+v", err, r)
			}
			if c.says != "-" && c.says != "" {
				_, err = conn.Read(make([]byte, 1))
			}
			if errors.Is(err, os.ErrDeadlineExceeded) || time.Since(start) > 3*time.Second {
				t.Errorf("it was not cut: %v after %s", err, time.Since(start))
			}
		})
	}
	// Control characters of a name are shown harmless, and all this has not hurt.
	conn, err := dialAs(t, a, id, nil)
	if err != nil {
		t.Fatal(err)
	}
	q := good(b)
	q.Body, _ = json.Marshal(hello{version, "\x1b[2Jb" + strings.Repeat("b", 1000)})
	writeFrame(conn, q)
	if r, err := readReply(conn); err != nil || r.Error != nil {
		t.Fatalf("%v, %v", err, r.Error)
	}
	if s := until(t, a, "b", func(s rpc.PeerStatus) bool { return strings.HasSuffix(s.Node, "bbb") }); len(s.Node) > maxText || strings.Contains(s.Node, "\x1b") {
		t.Errorf("%q", s.Node)
	}
	// A flood is slowed down.
	start := time.Now()
	q.Call, q.Body = callTime, nil
	for range 2 * defaults.calls {
		if err := writeFrame(conn, q); err != nil {
			t.Fatal(err)
		}
		if r, err := readReply(conn); err != nil || r.Error != nil {
			t.Fatalf("%v, %v", err, r.Error)
		}
	}
	if took := time.Since(start); took < 900*time.Millisecond {
		t.Errorf("%d calls were answered in %s", 2*defaults.calls, took)
	}
	q.Call = "records"
	writeFrame(conn, q)
	if r, err := readReply(conn); err != nil || r.Error == nil {
		t.Errorf("an unknown call: %v, %+v", err, r)
	}
}

// TestAPeerDoesNotPileUpConnections: the newest ones count, because a node that lost its power has forgotten the others.
func TestAPeerDoesNotPileUpConnections(t *testing.T) {
	a, b := newNode(t, "a", time.Second, quick), newNode(t, "b", time.Second, quick)
	deaf := b.record()
	deaf.Address = "127.0.0.1:1"
	knows(a, deaf)
	var all []*tls.Conn
	for range 5 {
		c, err := dialAs(t, a, identityOf(t, b), nil)
		if err != nil {
			t.Fatal(err)
		}
		writeFrame(c, good(b))
		if r, err := readReply(c); err != nil || r.Error != nil {
			t.Fatalf("%v, %v", err, r.Error)
		}
		all = append(all, c)
	}
	for i, c := range all {
		c.SetDeadline(time.Now().Add(200 * time.Millisecond))
		_, err := c.Read(make([]byte, 1))
		if alive := errors.Is(err, os.ErrDeadlineExceeded); alive != (i >= len(all)-maxOfPeer) {
			t.Errorf("connection %d: %v", i, err)
		}
	}
}

// TestAPeerWithItsKeyIsBoundedTooWhenItAnswers is the other direction: this node dials, and who answers misbehaves.
func TestAPeerWithItsKeyIsBoundedTooWhenItAnswers(t *testing.T) {
	lim := quick
	lim.handshake, lim.call = 300*time.Millisecond, 300*time.Millisecond
	b := &testNode{name: "b", key: newKey(t), bound: time.Second}
	link, err := New(b.config(quick))
	if err != nil {
		t.Fatal(err)
	}
	b.Link = link
	id := identityOf(t, b)
	now := func() Clock { return b.own(t.Context()) }
	for name, c := range map[string]struct {
		plain  bool // without TLS
		answer func(w io.Writer)
		state  string
		says   string
	}{
		"no handshake": {true, func(io.Writer) { time.Sleep(time.Second) }, rpc.PeerUnreachable, "did not answer within"},
		"garbage":      {true, func(w io.Writer) { w.Write(bytes.Repeat([]byte("HTTP/1.1 200 OK\r\n"), 1000)) }, rpc.PeerUnreachable, "tls: "},
		"silence":      {false, func(io.Writer) { time.Sleep(time.Second) }, rpc.PeerUnreachable, "did not answer within"},
		"huge":         {false, func(w io.Writer) { w.Write([]byte{0, 1, 0, 1}) }, rpc.PeerUnreachable, "it announced a message of 65537 bytes"},
		"cut":          {false, func(w io.Writer) { w.Write([]byte{0, 0, 1, 0, '{'}) }, rpc.PeerUnreachable, "closed the connection"},
		"lying clock": {false, func(w io.Writer) {
			writeFrame(w, reply{Clock: Clock{Boot: "b", State: "trusted", Earliest: 1, Latest: 2e18}})
		}, rpc.PeerUnreachable, "its clock is uncertain by 1000000000.000 s, more than any node's may be"},
		"refusal in red": {false, func(w io.Writer) {
			writeFrame(w, reply{Clock: now(), Error: &refusal{"x", "\x1b[31mno\n" + strings.Repeat("o", 60000)}})
		}, rpc.PeerRefused, "the other node refuses this one: .[31mno.oo"},
		"another version": {false, func(w io.Writer) {
			writeFrame(w, reply{Clock: now(), Body: json.RawMessage(`{"version":2,"node":"b"}`)})
		}, rpc.PeerRefused, "it speaks version 2 of the link"},
		"no hello": {false, func(w io.Writer) { writeFrame(w, reply{Clock: now(), Body: json.RawMessage(`3`)}) }, rpc.PeerRefused, "its hello does not parse"},
		"another second": {false, func(w io.Writer) {
			c := now()
			c.Earliest += 1e10
			c.Latest += 1e10
			writeFrame(w, reply{Clock: c, Body: json.RawMessage(`{"version":1}`)})
		}, rpc.PeerRefused, "its clock is 10."},
	} {
		t.Run(name, func(t *testing.T) {
			listener, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer listener.Close()
			go func() {
				for {
					raw, err := listener.Accept()
					if err != nil {
						return
					}
					go func() {
						defer raw.Close()
						raw.SetDeadline(time.Now().Add(5 * time.Second))
						if c.plain {
							c.answer(raw)
							return
						}
						conn := tls.Server(raw, id.config(func([]byte) bool { return true }))
						if _, err := readRequest(conn); err == nil {
							c.answer(conn)
						}
					}()
				}
			}()
			a := newNode(t, "a", time.Second, lim)
			knows(a, policy.Peer{Name: "b", Address: listener.Addr().String(), Key: id.pin[:]})
			s := until(t, a, "b", says(c.state, c.says))
			if len(s.Error) > 2*maxText || strings.ContainsAny(s.Error, "\x1b\n") {
				t.Errorf("%q", s.Error)
			}
		})
	}
}

func TestTheKeyIsComparedWhole(t *testing.T) {
	a := sha256.Sum256([]byte("a"))
	for i := range a {
		b := a
		b[i] ^= 1
		if samePin(a[:], b[:]) {
			t.Errorf("byte %d does not count", i)
		}
	}
	if samePin(a[:], a[:31]) || samePin(nil, a[:]) || !samePin(a[:], a[:]) {
		t.Error("a part of a key is taken for the key")
	}
}

func FuzzFrames(f *testing.F) {
	var buf bytes.Buffer
	ok := Clock{Boot: "b", State: rpc.PeerClockTrusted, Earliest: truth.UnixNano(), Latest: truth.UnixNano() + 1e9}
	writeFrame(&buf, request{callHello, ok, json.RawMessage(`{"version":1,"node":"n"}`)})
	f.Add(bytes.Clone(buf.Bytes()))
	buf.Reset()
	writeFrame(&buf, reply{Clock: ok, Error: &refusal{"clock", "no"}})
	f.Add(bytes.Clone(buf.Bytes()))
	f.Add([]byte{0, 0, 0, 0})
	f.Add([]byte{0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		if q, err := readRequest(bytes.NewReader(b)); err == nil {
			checked(t, q.Clock)
			parseHello(q.Body)
		}
		if a, err := readReply(bytes.NewReader(b)); err == nil {
			checked(t, a.Clock)
			if a.Error != nil && (len(a.Error.Text) > maxText || strings.ContainsAny(a.Error.Text, "\x1b\n\x00")) {
				t.Errorf("%q", a.Error.Text)
			}
		}
	})
}

// checked wants of a clock that was accepted that one can reckon with it.
func checked(t *testing.T, c Clock) {
	t.Helper()
	if len(c.Why) > maxText || len(c.Boot) > policy.MaxNameLength {
		t.Errorf("%+v", c)
	}
	s := compare(Clock{Earliest: truth.UnixNano(), Latest: truth.UnixNano()}, reading{clock: c}, 0)
	if c.State != rpc.PeerClockNone && (s.uncertainty <= 0 || s.uncertainty > maxWidth || s.ahead == 1<<63-1 || s.ahead == -1<<63) {
		t.Errorf("%+v gives %+v", c, s)
	}
}
