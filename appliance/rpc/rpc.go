// Package rpc carries typed calls between our own processes over unix sockets. It promises that a handler runs only for a caller whose
// uid, as the kernel reports it (SO_PEERCRED), is one of those the handler allows; that a caller can prove the server's uid the same
// way; that every message is bounded; and that a peer that dies or stalls ends the call with an error instead of blocking for ever.
//
// Wire: each side sends frames of a 4-byte big-endian length, the method's name or a kind of reply, and JSON. A connection carries one call
// at a time: one request frame, then one reply frame, or for a stream any number of them. Clients keep a few idle connections.
//
// Limits: a reply is at most MaxFrame bytes, an element of a stream MaxElement, a request MaxRequest; one process has at most MaxConnections connections to another, and a
// client at most maxCalls calls in flight: more wait for their turn. Nothing here encrypts: the sockets live in a folder only our processes can enter. JSON
// copies bytes, so a secret that crosses is in memory a few times until the garbage collector reuses it; that is why only the PIN,
// the hourly context keys and unwrapped transport keys ever cross.
package rpc

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"guardhouse/appliance/policy"
)

// MaxFrame is the size of the largest reply, in bytes.
const MaxFrame = 64 << 20

// MaxElement is the size of the largest element of a stream, in bytes: the largest possible State fits, which a test of policy counts. It
// may be more than MaxFrame because a Shared element is encoded once for all its receivers, and a receiver decodes it without a copy.
const MaxElement = 96 << 20

// MaxRequest is the size of the largest request, in bytes: the largest command fits, however its JSON is escaped. Requests come from
// processes that may have been taken over, replies only from those that were called.
const MaxRequest = 8 << 20

// MaxConnections is how many connections one process may have open to a server; further ones are closed at once.
const MaxConnections = 192

// acceptPause is the wait after a failed accept: usually there is no descriptor left, which passes when calls end.
const acceptPause = 20 * time.Millisecond

// errTooLarge is a message that was not sent because of its size; the connection is as it was.
var errTooLarge = errors.New("the message is too large")

// Empty is the request or reply of a method that needs none.
type Empty struct{}

// Error is what a handler's error becomes on the caller's side. Kind is stable, for errors.Is against the Err values below.
type Error struct {
	Kind    string `json:"kind"`
	Message string `json:"message"`
	Remedy  string `json:"remedy,omitempty"` // what to do, where that is known apart from the message
}

func (e *Error) Error() string {
	if e.Remedy == "" {
		return e.Message
	}
	return e.Message + "; " + e.Remedy
}

// Is lets errors.Is match by kind.
func (e *Error) Is(target error) bool {
	t, ok := target.(*Error)
	return ok && t.Kind == e.Kind
}

// Kinds of errors that callers distinguish. A handler returns one of these (wrapped or With) or any error, which becomes KindFailed.
var (
	ErrRefused        = &Error{Kind: "refused", Message: "refused"}                                       // the request may not be done; repeating is useless
	ErrNotAllowed     = &Error{Kind: "not-allowed", Message: "the caller's uid may not call this"}        // wrong process
	ErrUnavailable    = &Error{Kind: "unavailable", Message: "the process is not ready"}                  // try again
	ErrNoQuorum       = &Error{Kind: "no-quorum", Message: "the cluster has no quorum"}                   // try again later
	ErrNotLeader      = &Error{Kind: "not-leader", Message: "another node leads"}                         // ask that node
	ErrUnknownOutcome = &Error{Kind: "unknown-outcome", Message: "it is not known whether this was done"} // ask again with the same request id
	ErrLost           = &Error{Kind: "lost", Message: "the connection to the other process was lost"}     // transport
	ErrUnknownMethod  = &Error{Kind: "unknown-method", Message: "the other process has no such method"}   // versions differ
)

// With gives the kind of e with another message.
func (e *Error) With(format string, args ...any) *Error {
	return &Error{Kind: e.Kind, Message: fmt.Sprintf(format, args...)}
}

func toWire(err error) *Error {
	var e *Error
	if errors.As(err, &e) {
		if err == error(e) {
			return e
		}
		return &Error{Kind: e.Kind, Message: err.Error()}
	}
	var refused *policy.Refused
	if errors.As(err, &refused) {
		return &Error{Kind: ErrRefused.Kind, Message: fmt.Sprintf("%s refused: %s", refused.Kind, refused.Reason), Remedy: refused.Remedy}
	}
	return &Error{Kind: "failed", Message: err.Error()}
}

// UIDs maps process names to their uids. It is a parameter, so that tests and a run under systemd can use other ones.
type UIDs map[string]uint32

// Name is the process with this uid, or "" where there is none.
func (u UIDs) Name(uid uint32) string {
	for name, id := range u {
		if id == uid {
			return name
		}
	}
	return ""
}

// Caller is the proved peer of a call.
type Caller struct {
	Process string // name in UIDs, "" if unknown
	UID     uint32
	PID     int32
}

// Method is a call with one reply. Declare them as package variables in methods.go.
type Method[Req, Resp any] struct{ Name string }

// Stream is a call whose replies keep coming until either side ends it.
type Stream[Req, Elem any] struct{ Name string }

type handler struct {
	allow []string
	serve func(ctx context.Context, c Caller, body []byte, send func(reply) error) error
}

// Server answers calls. Register all handlers before Serve.
type Server struct {
	uids     UIDs
	handlers map[string]handler
	stall    time.Duration // longest wait for a caller to take part of a reply

	mu   sync.Mutex
	open map[string]int // connections by process
}

// NewServer makes a server that names its callers by uids.
func NewServer(uids UIDs) *Server {
	return &Server{uids: uids, handlers: map[string]handler{}, stall: 30 * time.Second, open: map[string]int{}}
}

// Handle registers a method for the processes in allow. The handler's ctx ends when the caller goes away.
func Handle[Req, Resp any](s *Server, m Method[Req, Resp], fn func(ctx context.Context, c Caller, req Req) (Resp, error), allow ...string) {
	s.handlers[m.Name] = handler{allow, func(ctx context.Context, c Caller, body []byte, send func(reply) error) error {
		var req Req
		if err := json.Unmarshal(body, &req); err != nil {
			return ErrRefused.With("%s: request does not parse", m.Name)
		}
		resp, err := fn(ctx, c, req)
		if err != nil {
			return err
		}
		b, err := json.Marshal(resp)
		if err != nil {
			return fmt.Errorf("%s: encode reply: %w", m.Name, err)
		}
		return send(reply{Body: b})
	}}
}

// HandleStream registers a stream. fn sends elements until it returns or send fails; returning nil ends the stream.
func HandleStream[Req, Elem any](s *Server, m Stream[Req, Elem], fn func(ctx context.Context, c Caller, req Req, send func(Elem) error) error, allow ...string) {
	serveStream(s, m, func(ctx context.Context, c Caller, req Req, send func(reply) error) error {
		return fn(ctx, c, req, func(e Elem) error {
			b, err := json.Marshal(e)
			if err != nil {
				return fmt.Errorf("%s: encode element: %w", m.Name, err)
			}
			return send(reply{Body: b, More: true})
		})
	}, allow)
}

func serveStream[Req, Elem any](s *Server, m Stream[Req, Elem], fn func(ctx context.Context, c Caller, req Req, send func(reply) error) error, allow []string) {
	s.handlers[m.Name] = handler{allow, func(ctx context.Context, c Caller, body []byte, send func(reply) error) error {
		var req Req
		if err := json.Unmarshal(body, &req); err != nil {
			return ErrRefused.With("%s: request does not parse", m.Name)
		}
		if err := fn(ctx, c, req, send); err != nil {
			return err
		}
		return send(reply{})
	}}
}

// Shared is an element that a stream sends to many receivers. It is encoded when the first of them needs it, and once, for as long as
// somebody holds it. It must not hold secrets: its bytes are not wiped. Safe for concurrent use.
type Shared[Elem any] struct {
	elem Elem
	once sync.Once
	body []byte
	err  error
}

// Share makes an element for HandleSharedStream. Nobody may change what it points to.
func Share[Elem any](e Elem) *Shared[Elem] { return &Shared[Elem]{elem: e} }

// Elem is what Share was given.
func (e *Shared[Elem]) Elem() Elem { return e.elem }

func (e *Shared[Elem]) encode() ([]byte, error) {
	e.once.Do(func() { e.body, e.err = json.Marshal(e.elem) })
	return e.body, e.err
}

// HandleSharedStream is HandleStream for elements that are the same for all receivers.
func HandleSharedStream[Req, Elem any](s *Server, m Stream[Req, Elem], fn func(ctx context.Context, c Caller, req Req, send func(*Shared[Elem]) error) error, allow ...string) {
	serveStream(s, m, func(ctx context.Context, c Caller, req Req, send func(reply) error) error {
		return fn(ctx, c, req, func(e *Shared[Elem]) error {
			b, err := e.encode()
			if err != nil {
				return fmt.Errorf("%s: encode element: %w", m.Name, err)
			}
			return send(reply{Body: b, More: true, shared: true})
		})
	}, allow)
}

// Serve accepts connections until ctx ends or l is closed. It closes l and waits for the handlers it started. Any other failure to
// accept passes: a burst of calls that uses up the descriptors must not end the process.
func (s *Server) Serve(ctx context.Context, l *net.UnixListener) error {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	for {
		conn, err := l.AcceptUnix()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			if errors.Is(err, net.ErrClosed) {
				return fmt.Errorf("accept: %w", err)
			}
			select {
			case <-ctx.Done():
			case <-time.After(acceptPause):
			}
			continue
		}
		wg.Add(1)
		go func() {
			defer wg.Done()
			defer conn.Close()
			s.serveConn(ctx, conn)
		}()
	}
}

func (s *Server) serveConn(ctx context.Context, conn *net.UnixConn) {
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	cred, err := peer(conn)
	if err != nil {
		return
	}
	caller := Caller{Process: s.uids.Name(cred.Uid), UID: cred.Uid, PID: cred.Pid}
	c := &serverConn{Server: s, conn: conn, wire: newWire(conn), caller: caller}
	if caller.Process == "" {
		_ = c.wire.reply(reply{Err: ErrNotAllowed})
		return
	}
	if !s.enter(caller.Process) {
		return
	}
	defer s.leave(caller.Process)
	for {
		req, err := c.wire.readRequest()
		if err != nil || !c.call(ctx, req) {
			return
		}
	}
}

func (s *Server) enter(process string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open[process] >= MaxConnections {
		return false
	}
	s.open[process]++
	return true
}

func (s *Server) leave(process string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open[process]--
}

// serverConn is one connection of a caller.
type serverConn struct {
	*Server
	conn   *net.UnixConn
	wire   *wire
	caller Caller
}

// watchAfter is how long a handler runs before anybody looks whether its caller is still there. Most are done by then, and looking costs
// more than they do: a read that finds nothing, a goroutine that waits for more, and a deadline to end it.
const watchAfter = 5 * time.Millisecond

// call runs one request; false means the connection can't be used any more. While the handler runs, from watchAfter on, a read watches for
// the caller hanging up; a caller that sends another request early breaks the protocol, and is cut off if it is seen then.
func (c *serverConn) call(ctx context.Context, req request) bool {
	defer clear(req.Body)
	h, ok := c.handlers[req.Method]
	if !ok {
		return c.wire.reply(reply{Err: ErrUnknownMethod.With("no method %q", req.Method)}) == nil
	}
	if !slices.Contains(h.allow, c.caller.Process) {
		_ = c.wire.reply(reply{Err: ErrNotAllowed.With("%s may not call %s", c.caller.Process, req.Method)})
		return false
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	watched := make(chan bool, 1)
	watch := time.AfterFunc(watchAfter, func() {
		err := c.wire.r.wait()
		timeout := errors.Is(err, os.ErrDeadlineExceeded)
		if !timeout {
			cancel()
		}
		watched <- timeout
	})
	broken := false // part of a frame may be out: whatever followed would be read as the rest of it
	send := func(rep reply) error {
		c.conn.SetWriteDeadline(time.Now().Add(c.stall))
		err := c.wire.reply(rep)
		broken = broken || err != nil && !errors.Is(err, errTooLarge)
		return err
	}
	err := h.serve(ctx, c.caller, req.Body, send)
	usable := !broken && (err == nil || send(reply{Err: toWire(err)}) == nil)
	if watch.Stop() {
		return usable
	}
	if !usable {
		c.conn.Close() // ends the watching read
		<-watched
		return false
	}
	c.conn.SetReadDeadline(time.Now()) // likewise
	clean := <-watched
	c.conn.SetReadDeadline(time.Time{})
	return clean || c.wire.r.buffered() > 0
}

func peer(conn *net.UnixConn) (*unix.Ucred, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, err
	}
	var cred *unix.Ucred
	var cerr error
	if err := raw.Control(func(fd uintptr) { cred, cerr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil {
		return nil, err
	}
	return cred, cerr
}

// Listen makes the socket path, open to every process: the uid check decides. A stale socket of a previous run is removed.
func Listen(path string) (*net.UnixListener, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("remove stale socket: %w", err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	if err := os.Chmod(path, 0o666); err != nil {
		l.Close()
		return nil, fmt.Errorf("open the socket to its callers: %w", err)
	}
	return l, nil
}
