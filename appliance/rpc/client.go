package rpc

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"
)

// Client calls one process. It is safe for concurrent use; each call in flight has a connection of its own, and beyond maxCalls a call
// waits until another ends: a flood of requests from the network must not become a flood of connections.
type Client struct {
	path      string
	serverUID int64         // -1: not checked
	calls     chan struct{} // one element for each call in flight

	mu   sync.Mutex
	idle []*clientConn
}

type clientConn struct {
	*net.UnixConn
	wire *wire
}

// Bounds of a Client. maxCalls stays below MaxConnections, so that streams and a second client of the same process have room. maxIdle is
// how many calls at once are made without dialling, which costs more than the call.
const (
	maxIdle  = 32
	maxCalls = 128
)

// NewClient calls the process that listens on the socket path. Nothing is dialled until the first call.
func NewClient(path string) *Client {
	return &Client{path: path, serverUID: -1, calls: make(chan struct{}, maxCalls)}
}

// NewProvedClient is NewClient that talks only to a server whose uid is uid, as the kernel reports the listening process.
func NewProvedClient(path string, uid uint32) *Client {
	c := NewClient(path)
	c.serverUID = int64(uid)
	return c
}

func (c *Client) get(ctx context.Context) (conn *clientConn, reused bool, err error) {
	c.mu.Lock()
	if n := len(c.idle); n > 0 {
		conn := c.idle[n-1]
		c.idle = c.idle[:n-1]
		c.mu.Unlock()
		return conn, true, nil
	}
	c.mu.Unlock()
	conn, err = c.dial(ctx)
	return conn, false, err
}

func (c *Client) dial(ctx context.Context) (*clientConn, error) {
	var d net.Dialer
	nc, err := d.DialContext(ctx, "unix", c.path)
	if err != nil {
		return nil, ErrLost.With("can't reach %s: %v", c.path, err)
	}
	conn := nc.(*net.UnixConn)
	if c.serverUID >= 0 {
		cred, err := peer(conn)
		if err != nil || int64(cred.Uid) != c.serverUID {
			conn.Close()
			return nil, ErrNotAllowed.With("%s is served by another uid than expected", c.path)
		}
	}
	return &clientConn{conn, newWire(conn)}, nil
}

func (c *Client) put(conn *clientConn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.idle) >= maxIdle {
		conn.Close()
		return
	}
	c.idle = append(c.idle, conn)
}

// Close drops idle connections; calls in flight end by themselves.
func (c *Client) Close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, conn := range c.idle {
		conn.Close()
	}
	c.idle = nil
}

// Call makes the call. Errors of the other side are *Error. A connection that had died while idle is replaced, which is safe because
// the request had then not been read; every other transport failure is ErrLost and the outcome unknown.
func (m Method[Req, Resp]) Call(ctx context.Context, c *Client, req Req) (Resp, error) {
	var resp Resp
	body, err := json.Marshal(req)
	if err != nil {
		return resp, fmt.Errorf("%s: encode request: %w", m.Name, err)
	}
	defer clear(body)
	select {
	case c.calls <- struct{}{}:
		defer func() { <-c.calls }()
	case <-ctx.Done():
		return resp, fmt.Errorf("%s: waiting for an earlier call: %w", m.Name, ctx.Err())
	}
	for {
		conn, reused, err := c.get(ctx)
		if err != nil {
			return resp, err
		}
		var rep reply
		stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
		werr := conn.wire.request(request{m.Name, body})
		var rerr error
		if werr == nil {
			rep, rerr = conn.wire.readReply(MaxFrame)
		}
		ours := stop()
		if werr != nil || rerr != nil || !ours {
			clear(rep.Body)
			conn.Close()
			if ctx.Err() != nil {
				return resp, fmt.Errorf("%s: %w", m.Name, ctx.Err())
			}
			if errors.Is(werr, errTooLarge) {
				return resp, ErrRefused.With("%s: %v", m.Name, werr)
			}
			if werr != nil && reused {
				continue
			}
			return resp, ErrLost.With("%s: connection lost: %v", m.Name, errors.Join(werr, rerr))
		}
		if rep.Err != nil {
			if rep.Err.Kind == ErrNotAllowed.Kind {
				conn.Close()
			} else {
				c.put(conn)
			}
			return resp, rep.Err
		}
		c.put(conn)
		defer clear(rep.Body)
		if err := json.Unmarshal(rep.Body, &resp); err != nil {
			return resp, fmt.Errorf("%s: decode reply: %w", m.Name, err)
		}
		return resp, nil
	}
}

// Open runs the stream and calls each with every element until the stream ends (nil), each returns an error (that error), the
// connection is lost (ErrLost) or ctx ends.
func (m Stream[Req, Elem]) Open(ctx context.Context, c *Client, req Req, each func(Elem) error) error {
	body, err := json.Marshal(req)
	if err != nil {
		return fmt.Errorf("%s: encode request: %w", m.Name, err)
	}
	conn, err := c.dial(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	if err := conn.wire.request(request{m.Name, body}); err != nil {
		return ErrLost.With("%s: %v", m.Name, err)
	}
	for {
		rep, err := conn.wire.readReply(MaxElement)
		if err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return ErrLost.With("%s: stream lost: %v", m.Name, err)
		}
		if rep.Err != nil {
			return rep.Err
		}
		if !rep.More {
			return nil
		}
		var e Elem
		err = json.Unmarshal(rep.Body, &e)
		clear(rep.Body)
		if err != nil {
			return fmt.Errorf("%s: decode element: %w", m.Name, err)
		}
		if err := each(e); err != nil {
			return err
		}
	}
}

// Follow opens the stream again and again, with a pause of 50 ms growing to 400 ms, until ctx ends or each fails. lost is
// told each time the stream breaks; it may be nil.
func (m Stream[Req, Elem]) Follow(ctx context.Context, c *Client, req Req, each func(Elem) error, lost func(error)) error {
	const first, most = 50 * time.Millisecond, 400 * time.Millisecond // a local socket: trying costs little, and at boot everybody waits for the ledger
	pause := first
	for {
		var eachErr error
		err := m.Open(ctx, c, req, func(e Elem) error {
			pause = first
			eachErr = each(e)
			return eachErr
		})
		if eachErr != nil {
			return eachErr
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if lost != nil {
			lost(err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
		pause = min(2*pause, most)
	}
}
