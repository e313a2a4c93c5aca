package hsm

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"slices"
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
	heard chan struct{} // closed when the worker's phases have ended

	mu       sync.Mutex
	next     uint64
	lanes    []*keeperLane // all of them
	free     []*keeperLane // those without a call; the last one is taken first, its thread's caches are warm
	generate int           // generations under way
	at       string
	why      *Error // set once, before dead is closed
}

// keeperLane is a lane with what its reader needs to be called away.
type keeperLane struct {
	lane
	conn net.Conn
}

// pending is a call without an answer yet. It keeps its slot and its lane until
// the answer comes or the worker dies, even if the caller went away: a call that
// hangs must be found by its deadline. Its fields below are guarded by process.mu.
type pending struct {
	op    string
	id    uint64
	lane  *keeperLane
	timer *time.Timer

	over bool  // answered, or its worker is dead
	read bool  // the caller reads no more
	left error // why the caller is to stop reading before the answer came
}

// startProcess starts cmd with sockets on descriptors 3 and 5 and above and hands
// it the PIN through a pipe on descriptor 4 (see Serve). It copies the PIN nowhere
// but into the kernel.
func startProcess(cmd *exec.Cmd, cfg ModuleConfig, env []string, pin []byte, q *queue) (*process, error) {
	p := &process{cmd: cmd, queue: q, dead: make(chan struct{}), ready: make(chan *answer, 1), heard: make(chan struct{}), at: phaseLoad}
	pinR, pinW, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("pipe: %w", err)
	}
	defer pinR.Close()
	defer pinW.Close()
	files, err := p.connect(pinR, cfg.Sessions)
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	if err == nil {
		cmd.Env = append(cmd.Env, env...)
		cmd.ExtraFiles = files
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		err = cmd.Start()
	}
	if err != nil {
		p.hangUp()
		return nil, fmt.Errorf("start worker: %w", err)
	}
	go func() {
		_ = cmd.Wait()
		select { // why a token did not open may still be in the socket
		case <-p.heard:
		case <-time.After(200 * time.Millisecond):
		}
		p.kill(&Error{Kind: KindUnavailable, Class: ClassModule, Detail: "the worker ended: " + cmd.ProcessState.String(), Remedy: "see the log of hsm"})
	}()
	keeper := &lane{conn: p.conn}
	go p.listen(keeper)
	// A pipe takes this much without blocking.
	if _, err = pinW.Write([]byte{byte(len(pin))}); err == nil {
		_, err = pinW.Write(pin)
	}
	if err == nil {
		err = keeper.write(0, call{Op: opHello, Module: &cfg}, nil)
	}
	if err != nil {
		e := &Error{Kind: KindUnavailable, Class: ClassModule, Detail: "hand over to the worker: " + err.Error()}
		p.kill(e)
		return nil, e
	}
	return p, nil
}

// connect makes the sockets to a worker and gives the worker's descriptors from
// 3 on. The worker's sides block, so that its threads wait in the kernel.
func (p *process) connect(pin *os.File, lanes int) (files []*os.File, err error) {
	for i := range 1 + lanes {
		ours, theirs, err := socketPair()
		if err != nil {
			return files, err
		}
		files = append(files, theirs)
		if i == 0 {
			p.conn = ours
			files = append(files, pin)
		} else {
			p.lanes = append(p.lanes, &keeperLane{lane{conn: ours}, ours})
		}
	}
	p.free = slices.Clone(p.lanes)
	return files, nil
}

// socketPair makes a connection to a process to be.
func socketPair() (ours net.Conn, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socket pair: %w", err)
	}
	f := os.NewFile(uintptr(fds[0]), "worker")
	defer f.Close()
	if ours, err = net.FileConn(f); err != nil {
		_ = unix.Close(fds[1])
		return nil, nil, fmt.Errorf("socket pair: %w", err)
	}
	return ours, os.NewFile(uintptr(fds[1]), "keeper"), nil
}

// hangUp closes our side of all sockets.
func (p *process) hangUp() {
	if p.conn != nil {
		_ = p.conn.Close()
	}
	for _, l := range p.lanes {
		_ = l.conn.Close()
	}
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
	close(p.dead)
	p.mu.Unlock()
	p.queue.lose(p) // before its calls end: who comes again must not get it once more
	// The group too: some modules start helpers. SIGKILL ends a stopped process.
	_ = unix.Kill(-p.cmd.Process.Pid, unix.SIGKILL)
	_ = p.cmd.Process.Kill()
	p.hangUp()
}

// broken is kill for a worker whose socket ended. Its exit status, which Wait
// brings, says more.
func (p *process) broken(err error) {
	wait := time.NewTimer(20 * time.Millisecond)
	defer wait.Stop()
	select {
	case <-p.dead:
	case <-wait.C:
		p.kill(&Error{Kind: KindUnavailable, Class: ClassModule, Detail: "the worker hung up: " + err.Error(), Remedy: "see the log of hsm"})
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

// listen takes the worker's phases until it ends.
func (p *process) listen(keeper *lane) {
	for {
		var a answer
		_, _, err := keeper.receive(&a)
		if err != nil {
			close(p.heard)
			p.broken(err)
			return
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

// errGone is what roundTrip gives when the worker had died before it got the call.
var errGone = &Error{Kind: KindUnavailable, Class: ClassModule, Detail: "the worker is gone", Remedy: "try again"}

// begin takes a lane for a call and starts its deadline.
func (p *process) begin(op string, limit time.Duration) (*pending, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.why != nil {
		return nil, errGone
	}
	if len(p.free) == 0 { // who holds a slot finds one
		return nil, &Error{Kind: KindBusy, Detail: "the token is busy", Remedy: "try again"}
	}
	p.next++
	e := &pending{op: op, id: p.next, lane: p.free[len(p.free)-1]}
	p.free = p.free[:len(p.free)-1]
	if op == opGenerate {
		p.generate++
	}
	e.timer = time.AfterFunc(limit, func() { p.overdue(e, limit) })
	return e, nil
}

// roundTrip sends one call, for which the caller holds a slot, and waits for its
// answer. limit is the deadline after which the worker is killed. A caller whose
// ctx ends does not wait any longer.
func (p *process) roundTrip(ctx context.Context, c call, body []byte, limit time.Duration) (answer, []byte, error) {
	e, err := p.begin(c.Op, limit)
	if err != nil {
		return answer{}, nil, err
	}
	if err := e.lane.write(e.id, c, body); err != nil { // it can't block: there is room for a call in an empty socket
		e.timer.Stop()
		p.broken(fmt.Errorf("it takes no calls: %w", err))
		return answer{}, nil, errGone // it has no call that is not complete
	}
	stop := context.AfterFunc(ctx, func() { p.callAway(e, ctx.Err()) })
	a, out, err := p.collect(e)
	stop()
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		return a, out, err
	}
	go func() {
		_, out, _ := p.collect(e)
		clear(out)
	}()
	return answer{}, nil, e.left
}

// callAway has the caller of e stop reading, for reason why.
func (p *process) callAway(e *pending, why error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !e.read {
		e.left = why
		_ = e.lane.conn.SetReadDeadline(time.Unix(1, 0))
	}
}

// collect reads the answer of e and frees its lane and slot. An answer that shows
// a sick token ends the worker. os.ErrDeadlineExceeded means that the caller was
// called away, and that somebody else has to collect.
func (p *process) collect(e *pending) (answer, []byte, error) {
	var a answer
	id, out, err := e.lane.receive(&a)
	p.mu.Lock()
	e.read = true // from here on nobody sets the deadline
	left := e.left != nil
	p.mu.Unlock()
	if left {
		_ = e.lane.conn.SetReadDeadline(time.Time{})
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return answer{}, nil, os.ErrDeadlineExceeded
		}
	}
	if err == nil && id != e.id {
		err = errors.New("it answered another call")
	}
	p.mu.Lock()
	e.over = true
	e.timer.Stop()
	if e.op == opGenerate {
		p.generate--
	}
	if err == nil {
		p.free = append(p.free, e.lane)
	}
	p.mu.Unlock()
	switch {
	case err != nil:
		clear(out)
		p.broken(err)
		return answer{}, nil, lost(p.reason())
	case a.Error == nil:
		p.queue.give(p)
		return a, out, nil
	case a.Error.Class != ClassNone:
		p.kill(a.Error)
	default:
		p.queue.give(p)
	}
	clear(out)
	if a.Error.Kind == KindUnavailable || a.Error.Kind == KindFailed {
		return answer{}, nil, lost(a.Error)
	}
	return answer{}, nil, a.Error
}

// overdue is called when the deadline of e has passed. Many modules serve one
// call after the other, so a call may be late because a key is being made; then
// the caller is told to come back and the worker lives on, until the generation's
// own deadline.
func (p *process) overdue(e *pending, limit time.Duration) {
	p.mu.Lock()
	if e.over {
		p.mu.Unlock()
		return
	}
	if p.generate > 0 && e.op != opGenerate {
		e.timer.Reset(limit)
		p.mu.Unlock()
		p.callAway(e, &Error{Kind: KindBusy, Detail: "the token is making a key", Remedy: "try again"})
		return
	}
	p.mu.Unlock()
	p.kill(&Error{Kind: KindUnavailable, Class: ClassModule, Detail: fmt.Sprintf("%s got no answer within %v", e.op, limit), Remedy: remedyLink})
}
