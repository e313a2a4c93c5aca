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
	"guardhouse/appliance/rpc"
)

// settings asks the ledger for PIN and module: often until the node is set up,
// then only while the token is not ready, because what is wrong may be mended
// there, or the site's data changed. A PIN that the token refused is not tried
// again: the keeper ignores the same one.
func settings(ctx context.Context, ledger *rpc.Client, k *hsm.Keeper, c *cable, st *site) {
	pause, said, anew := 250*time.Millisecond, "", false
	for {
		if anew || k.Status().State != hsm.StateReady {
			call, cancel := context.WithTimeout(ctx, 5*time.Second)
			r, err := rpc.LedgerPIN.Call(call, ledger, rpc.Empty{})
			cancel()
			if err == nil {
				pause = 5 * time.Second
				err = apply(ctx, r, k, c, st)
				anew = anew && err != nil
			}
			clear(r.PIN)
			if err != nil && !errors.Is(err, rpc.ErrUnavailable) && err.Error() != said && ctx.Err() == nil {
				said = err.Error()
				c.log("settings: %v", err)
			}
		}
		select {
		case <-ctx.Done():
			c.lay(ctx, "")
			return
		case <-st.changed:
			anew = true
		case <-time.After(pause):
		}
	}
}

// apply lays the cable first, so that the module finds its socket. A missing
// token is made only where the image's pack says that its module keeps it on
// this node's disk; no real HSM is ever initialised by us.
func apply(ctx context.Context, r rpc.PINReply, k *hsm.Keeper, c *cable, st *site) error {
	if err := c.lay(ctx, r.HSM.Attach); err != nil {
		return err
	}
	cfg := hsm.ModuleConfig{Module: r.HSM.Module, TokenLabel: r.HSM.Token, Create: st.makesToken(r.HSM.Module)}
	if err := k.Configure(cfg, append(st.env(), c.env()...)); err != nil {
		return err
	}
	return k.SetPIN(r.PIN)
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
