package hsm

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"guardhouse/appliance/policy"
)

// SoftwareKey is a private key on its way into the software worker: PKCS#8 DER, wiped by Software once it was handed over.
type SoftwareKey struct {
	Ref   policy.KeyRef
	Role  policy.KeyRole
	PKCS8 []byte
}

// softCall bounds one call to the software worker. It does arithmetic only: a worker that is later than this is stopped or starved.
const softCall = 10 * time.Second

// Software keeps the worker of software keys alive (ServeSoftware). It holds no key itself: it knows which references are software keys
// and hands the keys from where they are sealed to the worker, again whenever that was replaced. Calls are served one after the other.
// Make one with NewSoftware and run Run; all other methods may be called from any goroutine.
type Software struct {
	command func() *exec.Cmd
	fetch   func(context.Context) ([]SoftwareKey, error)
	log     func(format string, args ...any)
	wake    chan chan error // a caller of Reload that waits for the outcome

	mu      sync.Mutex
	known   bool // keys were fetched once: a reference that is not in roles is no software key
	roles   map[policy.KeyRef]policy.KeyRole
	current *softProcess // nil while there is no key or no worker
}

// NewSoftware makes the supervisor. command gives a fresh command that ends up in ServeSoftware with its socket on descriptor 3; fetch
// gets the keys from the ledger. log gets no secret.
func NewSoftware(command func() *exec.Cmd, fetch func(context.Context) ([]SoftwareKey, error), log func(format string, args ...any)) *Software {
	return &Software{command: command, fetch: fetch, log: log, wake: make(chan chan error)}
}

// Run keeps the worker until ctx ends. Run it once.
func (s *Software) Run(ctx context.Context) {
	pause, said := 250*time.Millisecond, ""
	var told chan error
	for {
		err := s.renew(ctx)
		if told != nil {
			told <- err
			told = nil
		}
		var dead <-chan struct{}
		var again <-chan time.Time
		if err != nil {
			if err.Error() != said && ctx.Err() == nil {
				said = err.Error()
				s.log("software keys: %v; tried again", err)
			}
			again, pause = time.After(pause), min(2*pause, 5*time.Second)
		} else {
			pause, said = 250*time.Millisecond, ""
			s.mu.Lock()
			if s.current != nil {
				dead = s.current.dead
			}
			s.mu.Unlock()
		}
		select {
		case <-ctx.Done():
			s.swap(nil, nil)
			return
		case told = <-s.wake:
		case <-dead:
			s.log("software keys: the worker ended; a new one is started")
			again = time.After(pause)
			select {
			case <-again:
			case <-ctx.Done():
			}
		case <-again:
		}
	}
}

// renew fetches the keys and puts a worker that holds exactly them in the place of the old one, whose memory goes with it.
func (s *Software) renew(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, softCall)
	defer cancel()
	keys, err := s.fetch(ctx)
	defer func() {
		for _, k := range keys {
			clear(k.PKCS8)
		}
	}()
	if err != nil {
		return fmt.Errorf("fetch: %w", err)
	}
	if len(keys) == 0 {
		s.swap(nil, nil)
		return nil
	}
	p, err := startSoftware(s.command())
	if err != nil {
		return err
	}
	roles := map[policy.KeyRef]policy.KeyRole{}
	for _, k := range keys {
		if _, _, err := p.call(ctx, call{Op: opLoad, Ref: k.Ref, Role: k.Role}, k.PKCS8); err != nil {
			if e := AsError(err); e.Kind != KindRequest {
				p.kill()
				return fmt.Errorf("hand over: %w", err)
			}
			s.log("software key %.16s: %v", k.Ref, err) // the others serve all the same; a test of keys finds this one
		}
		roles[k.Ref] = k.Role
	}
	s.swap(p, roles)
	s.log("software keys: %d loaded", len(keys))
	return nil
}

func (s *Software) swap(p *softProcess, roles map[policy.KeyRef]policy.KeyRole) {
	s.mu.Lock()
	old := s.current
	s.current, s.roles, s.known = p, roles, true
	s.mu.Unlock()
	if old != nil {
		old.drain()
	}
}

// Reload has the keys fetched again and returns once the new ones serve, or with the reason why not.
func (s *Software) Reload(ctx context.Context) error {
	told := make(chan error, 1)
	select {
	case s.wake <- told:
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case err := <-told:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// holds tells whether ref is a software key; known is false as long as the keys were never fetched.
func (s *Software) holds(ref policy.KeyRef) (held, known bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, held = s.roles[ref]
	return held, s.known
}

// call asks the worker. Its death is retryable, as a token's is.
func (s *Software) call(ctx context.Context, c call, body []byte) (answer, []byte, error) {
	s.mu.Lock()
	p := s.current
	s.mu.Unlock()
	if p == nil {
		return answer{}, nil, &Error{Kind: KindUnavailable, Detail: "the worker of software keys is starting", Remedy: "try again"}
	}
	return p.call(ctx, c, body)
}

// keys lists the software keys; none is no error.
func (s *Software) keys(ctx context.Context) ([]Key, error) {
	s.mu.Lock()
	none := s.known && len(s.roles) == 0
	s.mu.Unlock()
	if none {
		return nil, nil
	}
	a, _, err := s.call(ctx, call{Op: opList}, nil)
	return a.Keys, err
}

// softProcess is one software worker. Its calls go one after the other.
type softProcess struct {
	cmd  *exec.Cmd
	conn net.Conn
	lane lane          // on conn
	turn chan struct{} // holds one token while nobody calls
	dead chan struct{} // closed when the process is gone
	next uint64
}

func startSoftware(cmd *exec.Cmd) (*softProcess, error) {
	conn, theirs, err := socketPair()
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		conn.Close()
		return nil, fmt.Errorf("start the worker of software keys: %w", err)
	}
	p := &softProcess{cmd: cmd, conn: conn, lane: lane{conn: conn}, turn: make(chan struct{}, 1), dead: make(chan struct{})}
	p.turn <- struct{}{}
	go func() {
		_ = cmd.Wait()
		_ = conn.Close()
		close(p.dead)
	}()
	return p, nil
}

func (p *softProcess) kill() { _ = p.cmd.Process.Kill() }

// drain ends the worker after the call that it has.
func (p *softProcess) drain() {
	go func() {
		select {
		case <-p.turn:
		case <-p.dead:
		}
		p.kill()
	}()
}

func (p *softProcess) call(ctx context.Context, c call, body []byte) (answer, []byte, error) {
	gone := &Error{Kind: KindUnavailable, Detail: "the worker of software keys ended", Remedy: "try again"}
	select {
	case <-p.turn:
	case <-p.dead:
		return answer{}, nil, gone
	case <-ctx.Done():
		return answer{}, nil, ctx.Err()
	}
	p.next++
	var a answer
	var id uint64
	var out []byte
	err := errors.Join(p.conn.SetDeadline(time.Now().Add(softCall)), p.lane.write(p.next, c, body))
	if err == nil {
		id, out, err = p.lane.receive(&a)
	}
	if err != nil || id != p.next {
		p.kill() // before its turn is given back: nobody may take the answer for theirs
		clear(out)
		return answer{}, nil, gone
	}
	p.turn <- struct{}{}
	if a.Error != nil {
		clear(out)
		return answer{}, nil, a.Error
	}
	return a, out, nil
}
