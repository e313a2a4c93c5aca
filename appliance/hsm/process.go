package hsm

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// process is one worker as its keeper sees it.
type process struct {
	cmd   *exec.Cmd
	conn  net.Conn
	queue *queue        // gets slots back, and hears of the worker's death
	dead  chan struct{} // closed when the worker is done for
	ready chan *answer  // the last answer before calls: ready or a failure

	write sync.Mutex // one frame at a time

	mu       sync.Mutex
	next     uint64
	calls    map[uint64]*pending
	generate int // generations under way
	at       string
	why      *Error // set once, before dead is closed
}

// pending is a call without an answer yet. It keeps its slot until the answer
// comes or the worker dies, even if the caller went away: a call that hangs must
// be found by its deadline.
type pending struct {
	op     string
	done   chan result // buffered
	timer  *time.Timer
	missed bool // its deadline passed while a generation was under way
}

type result struct {
	a    answer
	body []byte
	err  *Error
}

// startProcess starts cmd with a socket on descriptor 3 and hands it the PIN
// through a pipe on descriptor 4. It copies the PIN nowhere but into the kernel.
func startProcess(cmd *exec.Cmd, cfg ModuleConfig, env []string, pin []byte, q *queue) (*process, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("socket pair: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "worker"), os.NewFile(uintptr(fds[1]), "keeper")
	defer theirs.Close()
	conn, err := net.FileConn(ours)
	ours.Close()
	if err != nil {
		return nil, fmt.Errorf("socket pair: %w", err)
	}
	pinR, pinW, err := os.Pipe()
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("pipe: %w", err)
	}
	defer pinR.Close()
	defer pinW.Close()
	cmd.Env = append(cmd.Env, env...)
	cmd.ExtraFiles = []*os.File{theirs, pinR}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		conn.Close()
		return nil, fmt.Errorf("start worker: %w", err)
	}
	p := &process{cmd: cmd, conn: conn, queue: q, dead: make(chan struct{}),
		ready: make(chan *answer, 1), calls: map[uint64]*pending{}, at: phaseLoad}
	go func() {
		_ = cmd.Wait()
		p.kill(&Error{Kind: KindUnavailable, Class: ClassModule, Detail: "the worker ended: " + cmd.ProcessState.String(), Remedy: "see the log of hsm"})
	}()
	// A pipe takes this much without blocking.
	if _, err = pinW.Write([]byte{byte(len(pin))}); err == nil {
		_, err = pinW.Write(pin)
	}
	if err == nil {
		err = writeFrame(conn, call{Op: opHello, Module: &cfg}, nil)
	}
	if err != nil {
		e := &Error{Kind: KindUnavailable, Class: ClassModule, Detail: "hand over to the worker: " + err.Error()}
		p.kill(e)
		return nil, e
	}
	go p.read()
	return p, nil
}

// kill ends the worker for reason why; only the first reason counts. Calls in
// flight get a retryable error.
func (p *process) kill(why *Error) {
	p.mu.Lock()
	if p.why != nil {
		p.mu.Unlock()
		return
	}
	p.why = why
	calls := p.calls
	p.calls = nil
	close(p.dead)
	p.mu.Unlock()
	p.queue.lose(p) // before its calls end: who comes again must not get it once more
	// The group too: some modules start helpers. SIGKILL ends a stopped process.
	_ = unix.Kill(-p.cmd.Process.Pid, unix.SIGKILL)
	_ = p.cmd.Process.Kill()
	_ = p.conn.Close()
	for _, c := range calls {
		c.timer.Stop()
		c.done <- result{err: lost(why)}
	}
}

// lost is what a call gets whose worker died for reason why.
func lost(why *Error) *Error {
	return &Error{Kind: KindUnavailable, Class: why.Class, Code: why.Code, Detail: why.Detail, Remedy: "try again"}
}

// reason tells why the worker ended; call it after dead is closed.
func (p *process) reason() *Error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.why
}

func (p *process) phase() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.at
}

// read takes the worker's answers until it ends.
func (p *process) read() {
	for {
		var a answer
		body, err := readFrame(p.conn, &a)
		if err != nil {
			time.Sleep(20 * time.Millisecond) // a dead worker's exit status, which Wait brings, says more
			p.kill(&Error{Kind: KindUnavailable, Class: ClassModule, Detail: "the worker hung up: " + err.Error(), Remedy: "see the log of hsm"})
			return
		}
		if a.ID != 0 {
			p.settle(a, body)
			continue
		}
		p.mu.Lock()
		if a.Phase != "" {
			p.at = a.Phase
		}
		p.mu.Unlock()
		if a.Error != nil || a.Phase == phaseReady {
			select {
			case p.ready <- &a:
			default:
			}
		}
	}
}

// waitReady waits for the worker to open the token.
func (p *process) waitReady(ctx context.Context, limit time.Duration) (*TokenInfo, *Error) {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	var a *answer
	select {
	case <-ctx.Done():
		return nil, &Error{Kind: KindUnavailable, Detail: "stopped"}
	case <-timer.C:
		return nil, &Error{Kind: KindUnavailable, Class: ClassModule, Detail: fmt.Sprintf("the token did not open within %v", limit), Remedy: remedyLink}
	case a = <-p.ready:
	case <-p.dead:
		select {
		case a = <-p.ready: // it told why before it died
		default:
			return nil, p.reason()
		}
	}
	if a.Error != nil {
		return nil, a.Error
	}
	if a.Info == nil {
		return nil, &Error{Kind: KindUnavailable, Class: ClassModule, Detail: "the worker broke the protocol"}
	}
	return a.Info, nil
}

// settle hands an answer to its caller and frees the slot. An answer that shows
// a sick token ends the worker.
func (p *process) settle(a answer, body []byte) {
	p.mu.Lock()
	c := p.calls[a.ID]
	delete(p.calls, a.ID)
	if c != nil && c.op == opGenerate {
		p.generate--
	}
	p.mu.Unlock()
	if c == nil {
		clear(body)
		return
	}
	c.timer.Stop()
	if c.missed {
		clear(body)
	}
	if a.Error != nil && a.Error.Class != ClassNone {
		p.kill(a.Error)
	} else {
		p.queue.give(p)
	}
	c.done <- result{a: a, body: body, err: a.Error}
}

// errGone is what roundTrip gives when the worker had died before the call.
var errGone = &Error{Kind: KindUnavailable, Class: ClassModule, Detail: "the worker is gone", Remedy: "try again"}

// roundTrip sends one call, for which the caller holds a slot, and waits for its
// answer. limit is the deadline after which the worker is killed. A caller whose
// ctx ends does not wait any longer.
func (p *process) roundTrip(ctx context.Context, c call, body []byte, limit time.Duration) (answer, []byte, error) {
	e := &pending{op: c.Op, done: make(chan result, 1)}
	p.mu.Lock()
	if p.why != nil {
		p.mu.Unlock()
		return answer{}, nil, errGone
	}
	p.next++
	c.ID = p.next
	id := c.ID
	p.calls[id] = e
	if c.Op == opGenerate {
		p.generate++
	}
	e.timer = time.AfterFunc(limit, func() { p.overdue(id, limit) })
	p.mu.Unlock()

	p.write.Lock()
	_ = p.conn.SetWriteDeadline(time.Now().Add(limit))
	err := writeFrame(p.conn, c, body)
	p.write.Unlock()
	if err != nil {
		p.kill(&Error{Kind: KindUnavailable, Class: ClassModule, Detail: "the worker takes no calls: " + err.Error()})
	}
	select {
	case r := <-e.done:
		if r.err != nil {
			clear(r.body)
			if r.err.Kind == KindUnavailable || r.err.Kind == KindFailed {
				return answer{}, nil, lost(r.err)
			}
			return answer{}, nil, r.err
		}
		return r.a, r.body, nil
	case <-ctx.Done():
		go func() { r := <-e.done; clear(r.body) }()
		return answer{}, nil, ctx.Err()
	}
}

// overdue is called when the deadline of call id has passed. Many modules serve
// one call after the other, so a call may be late because a key is being made;
// then the caller is told to come back and the worker lives on, until the
// generation's own deadline.
func (p *process) overdue(id uint64, limit time.Duration) {
	p.mu.Lock()
	c := p.calls[id]
	if c == nil {
		p.mu.Unlock()
		return
	}
	if p.generate > 0 && c.op != opGenerate {
		if !c.missed {
			c.missed = true
			go p.giveUp(id, c)
		}
		c.timer.Reset(limit)
		p.mu.Unlock()
		return
	}
	p.mu.Unlock()
	p.kill(&Error{Kind: KindUnavailable, Class: ClassModule, Detail: fmt.Sprintf("%s got no answer within %v", c.op, limit), Remedy: remedyLink})
}

// giveUp answers the caller of a late call; the call itself stays pending.
func (p *process) giveUp(id uint64, c *pending) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.calls[id] != c {
		return
	}
	stale := &pending{op: c.op, done: make(chan result, 1), timer: c.timer, missed: true}
	p.calls[id] = stale
	c.done <- result{err: &Error{Kind: KindBusy, Detail: "the token is making a key", Remedy: "try again"}}
}
