package forward

import (
	"context"
	"crypto/sha1"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// conn is a TLS connection that knows how many bytes the other side's TCP has confirmed.
type conn struct {
	*tls.Conn
	raw *counted
}

// counted counts the bytes below TLS.
type counted struct {
	net.Conn
	n atomic.Int64
}

func (c *counted) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	c.n.Add(int64(n))
	return n, err
}

func (c *conn) written() int64 { return c.raw.n.Load() }

// confirmed is how many of the written bytes the other side's TCP has (SIOCOUTQ: sent or not, what was not confirmed is still in the
// queue). 0 where the kernel does not say.
func (c *conn) confirmed() int64 {
	sc, ok := c.raw.Conn.(syscall.Conn)
	if !ok {
		return 0
	}
	rc, err := sc.SyscallConn()
	if err != nil {
		return 0
	}
	written, queued := c.written(), 0
	if cerr := rc.Control(func(fd uintptr) { queued, err = unix.IoctlGetInt(int(fd), unix.SIOCOUTQ) }); cerr != nil || err != nil {
		return 0
	}
	return written - int64(queued)
}

// watch reads what a collector has no reason to send, and ends the session when the connection is over.
func (c *conn) watch(end context.CancelCauseFunc) {
	b := make([]byte, 512)
	for {
		_, err := c.Read(b)
		if errors.Is(err, io.EOF) {
			err = errors.New("the collector closed the connection")
		}
		if err != nil {
			end(fmt.Errorf("the connection is lost: %w", plain(err)))
			return
		}
	}
}

// close says goodbye (RFC 5425 section 4.4) without waiting for an answer.
func (c *conn) close() {
	c.SetWriteDeadline(time.Now().Add(time.Second))
	c.Conn.Close()
}

// window is what was sent on this connection and may still be lost.
type window struct {
	settle time.Duration
	last   uint64 // newest record that counts as delivered
	sent   []page
	bytes  int64     // confirmed so far
	moved  time.Time // when that last grew, or nothing was waiting
}

type page struct {
	seq uint64    // its last record
	end int64     // bytes written after it
	at  time.Time // when its last byte was confirmed; zero = not yet
}

func (w *window) add(seq uint64, end int64) { w.sent = append(w.sent, page{seq: seq, end: end}) }

// stuck tells whether bytes wait and none was confirmed for limit: a machine that is gone says nothing at all. A slow one that goes on is
// not stuck.
func (w *window) stuck(now time.Time, limit time.Duration) bool {
	return len(w.sent) > 0 && w.sent[len(w.sent)-1].at.IsZero() && now.Sub(w.moved) > limit
}

func (w *window) waits() bool { return len(w.sent) > 0 }

func (w *window) confirmed(bytes int64, now time.Time) {
	if bytes > w.bytes || len(w.sent) == 0 || !w.sent[len(w.sent)-1].at.IsZero() {
		w.bytes, w.moved = max(bytes, w.bytes), now
	}
	for i := range w.sent {
		if p := &w.sent[i]; p.at.IsZero() && p.end <= bytes {
			p.at = now
		}
	}
}

// settled is the newest record that counts as delivered at now.
func (w *window) settled(now time.Time) uint64 {
	for len(w.sent) > 0 && !w.sent[0].at.IsZero() && now.Sub(w.sent[0].at) >= w.settle {
		w.last, w.sent = w.sent[0].seq, w.sent[1:]
	}
	return w.last
}

func thumbprint1(der []byte) string {
	sum := sha1.Sum(der)
	return hex.EncodeToString(sum[:])
}
