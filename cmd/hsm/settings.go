package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"guardhouse/appliance/hsm"
	"guardhouse/appliance/hsm/attach"
	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
)

// source brings module and PIN to the keeper: the module's name from the ledger
// and, unless the node is attended, the PIN too; else the PIN comes from an
// administrator (unlock).
type source struct {
	ledger *rpc.Client
	k      *hsm.Keeper
	c      *cable
	site   *site // what the image's HSM pack says, and the site's own data for it

	mu   sync.Mutex
	have policy.HSM // as applied
}

// How often the ledger is asked: until the node is set up, then about the
// settings, and about the PIN while the token is not ready, because what is
// wrong may be mended there.
const (
	beforeSetup = 250 * time.Millisecond
	settingsAge = time.Second
	pinAge      = 5 * time.Second
)

// run follows the node's settings until ctx ends. Changed ones are taken up at
// once. A PIN that the token refused is not tried again: the keeper ignores the
// same one.
func (s *source) run(ctx context.Context) {
	pause, said, anew := beforeSetup, "", false
	var asked time.Time
	for {
		wanted, err := s.settings(ctx)
		if err == nil {
			pause = settingsAge
			s.mu.Lock()
			changed := wanted != s.have
			s.mu.Unlock()
			if changed || anew || s.k.Status().State != hsm.StateReady && time.Since(asked) >= pinAge {
				asked = time.Now()
				err = s.fetch(ctx)
				anew = anew && err != nil
			}
		}
		if err != nil && !errors.Is(err, rpc.ErrUnavailable) && err.Error() != said && ctx.Err() == nil {
			said = err.Error()
			s.c.log("settings: %v", err)
		}
		select {
		case <-ctx.Done():
			s.c.lay(ctx, "")
			return
		case <-s.site.changed: // the module must read the site's data anew
			anew = true
		case <-time.After(pause):
		}
	}
}

func (s *source) settings(ctx context.Context) (policy.HSM, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	return rpc.LedgerHSM.Call(ctx, s.ledger, rpc.Empty{})
}

// fetch takes PIN and settings, which belong together, from the ledger.
func (s *source) fetch(ctx context.Context) error {
	call, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	r, err := rpc.LedgerPIN.Call(call, s.ledger, rpc.Empty{})
	if err != nil {
		return err
	}
	defer clear(r.PIN)
	return s.apply(ctx, r)
}

// apply lays the cable first, so that the module finds its socket. The PIN of
// other settings is wiped before: it is another token's. A missing token is made
// only where the image's pack says that its module keeps it on this node's disk;
// no real HSM is ever initialised by us.
func (s *source) apply(ctx context.Context, r rpc.PINReply) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.have != (policy.HSM{}) && s.have != r.HSM {
		s.k.Lock()
	}
	if err := s.c.lay(ctx, r.HSM.Attach); err != nil {
		return err
	}
	cfg := hsm.ModuleConfig{Module: r.HSM.Module, TokenLabel: r.HSM.Token, Create: s.site.makesToken(r.HSM.Module)}
	if err := s.k.Configure(cfg, append(s.site.env(), s.c.env()...)); err != nil {
		return err
	}
	s.have = r.HSM
	if r.HSM.Attended {
		return nil
	}
	return s.k.SetPIN(r.PIN)
}

// attended tells whether the PIN has to be typed.
func (s *source) attended() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.have.Attended
}

// unlock takes the PIN that an administrator typed, and wipes it. The same PIN
// again changes nothing, unless it is the confirmed last try.
func (s *source) unlock(r rpc.HSMUnlockRequest) error {
	defer clear(r.PIN)
	if !s.attended() {
		return rpc.ErrRefused.With("this node keeps its PIN; only an attended node is unlocked by hand")
	}
	if len(r.PIN) == 0 || len(r.PIN) > hsm.MaxPIN {
		return rpc.ErrRefused.With("a PIN has 1 to %d bytes", hsm.MaxPIN)
	}
	return s.k.Unlock(r.PIN, r.LastTry)
}

// cable carries the module's socket to a token outside the machine.
type cable struct {
	dir string
	log func(format string, args ...any)

	mu     sync.Mutex
	name   string // as in the settings; empty: the module needs none
	bridge *attach.Bridge
	cut    context.CancelFunc
}

// lay connects the module's socket to the port that name names, instead of what
// was connected before. The same name again changes nothing.
func (c *cable) lay(ctx context.Context, name string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if name == c.name {
		return nil
	}
	if c.cut != nil {
		c.cut()
		c.name, c.bridge, c.cut = "", nil, nil
	}
	if name == "" {
		return nil
	}
	port, ok := strings.CutPrefix(name, attach.Prefix)
	if !ok || port == "" {
		return fmt.Errorf("hsm: %q is no attachment; use %sNAME of a virtio-serial port", name, attach.Prefix)
	}
	if err := os.Remove(c.socket()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("hsm: remove stale socket: %w", err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: c.socket(), Net: "unix"})
	if err != nil {
		return fmt.Errorf("hsm: socket of the module: %w", err)
	}
	l.SetUnlinkOnClose(false) // it may close after its successor was made at the same path
	if err := os.Chmod(c.socket(), 0o600); err != nil {
		l.Close()
		return fmt.Errorf("hsm: socket of the module: %w", err)
	}
	ctx, cut := context.WithCancel(ctx)
	c.name, c.cut, c.bridge = name, cut, attach.NewBridge(attach.Port(port), c.log)
	go func(b *attach.Bridge) {
		if err := b.Run(ctx, l); err != nil {
			c.log("%v", err)
		}
	}(c.bridge)
	return nil
}

func (c *cable) socket() string { return filepath.Join(c.dir, "p11.sock") }

// env is what the module needs to find the socket.
func (c *cable) env() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.name == "" {
		return nil
	}
	return []string{"P11_KIT_SERVER_ADDRESS=unix:path=" + c.socket()}
}

// problem tells why the cable is down; nil while it is up or not needed.
func (c *cable) problem() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.bridge == nil {
		return nil
	}
	return c.bridge.Problem()
}
