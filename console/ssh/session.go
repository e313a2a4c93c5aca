package ssh

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	gliderlabs "github.com/gliderlabs/ssh"
	"golang.org/x/crypto/ssh"

	"guardhouse/appliance/policy"
	"guardhouse/console/exec"
	"guardhouse/console/plain"
	"guardhouse/console/verb"
)

// session serves one "session" channel: pty-req, then exec or shell. All else is refused, environment, agent and subsystems included.
func (s *Server) session(_ *gliderlabs.Server, conn *ssh.ServerConn, offered ssh.NewChannel, ctx gliderlabs.Context) {
	w, ok := ctx.Value(connKey).(*watched)
	if !ok {
		offered.Reject(ssh.ConnectionFailed, "unknown connection")
		return
	}
	defer w.sessions.Add(-1)
	if w.sessions.Add(1) > maxSessionsOnOne {
		offered.Reject(ssh.ResourceShortage, "too many sessions on this connection")
		return
	}
	channel, requests, err := offered.Accept()
	if err != nil {
		return
	}
	defer channel.Close()
	w.limit.Stop()
	sctx, cancel := context.WithCancel(ctx)
	defer cancel()
	command, terminal, ok := s.negotiate(sctx, requests)
	if !ok {
		return
	}
	go func() { // the client may still send signals and window sizes; its going away ends the session
		for r := range requests {
			r.Reply(r.Type == "window-change", nil)
		}
		cancel()
	}()
	code := s.run(sctx, conn, channel, command, terminal)
	channel.CloseWrite()
	channel.SendRequest("exit-status", false, ssh.Marshal(struct{ Code uint32 }{uint32(code)}))
}

// negotiate answers requests until the client says what it wants.
func (s *Server) negotiate(ctx context.Context, requests <-chan *ssh.Request) (command string, terminal, ok bool) {
	limit := time.NewTimer(HandshakeLimit)
	defer limit.Stop()
	for range 64 {
		select {
		case r, more := <-requests:
			if !more {
				return "", false, false
			}
			switch r.Type {
			case "pty-req":
				terminal = true
				r.Reply(true, nil)
			case "exec":
				var payload struct{ Command string }
				line, fits := "", false
				if ssh.Unmarshal(r.Payload, &payload) == nil {
					line, fits = cleanCommand(payload.Command)
				}
				r.Reply(fits, nil)
				if fits {
					return line, terminal, true
				}
			case "shell":
				// There is no shell. A terminal gets the dialogue; without one there is nothing to do.
				r.Reply(terminal, nil)
				if terminal {
					return "", true, true
				}
			case "window-change":
				r.Reply(terminal, nil)
			default:
				r.Reply(false, nil)
			}
		case <-limit.C:
			return "", false, false
		case <-ctx.Done():
			return "", false, false
		}
	}
	return "", false, false
}

func (s *Server) run(ctx context.Context, conn *ssh.ServerConn, channel ssh.Channel, command string, terminal bool) int {
	id, err := s.Node.ID()
	if err != nil {
		return verb.ExitUnavailable
	}
	session := &verb.Session{Node: s.Node, Actor: actorOf(conn, id[:16]), Source: sourceOf(conn.RemoteAddr())}
	snap, _ := s.Node.Snapshot()
	if err := policy.Allowed(snap.State, session.Actor, policy.AdminReviewer); err != nil {
		// The records changed since the handshake.
		fmt.Fprintf(channel.Stderr(), "%s\n", verb.Clean(err.Error()))
		return verb.ExitNotAllowed
	}
	if err := session.AuditLogin(ctx, "login", "ok", ""); err != nil {
		// Somebody has to be able to cure the audit; changes need a durable entry of their own anyway.
		fmt.Fprintf(channel.Stderr(), "this login could not be written to the audit: %s\n", verb.Clean(verb.Explain(err).Error()))
	}
	if command == "" {
		return s.dialogue(ctx, session, channel)
	}
	idle := s.Idle
	if idle <= 0 {
		idle = plain.Idle
	}
	active := newActivity(channel, idle)
	defer active.stop()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	active.onIdle(func() { cancel(plain.ErrIdle); channel.Close() })
	if terminal {
		return exec.Run(ctx, session, command, active, lineEnds{active}, lineEnds{channel.Stderr()})
	}
	return exec.Run(ctx, session, command, active, active, channel.Stderr())
}

// dialogue is the plain loop for a terminal without a command.
func (s *Server) dialogue(ctx context.Context, session *verb.Session, channel ssh.Channel) int {
	t := plain.NewTerminal(channel, s.Idle)
	defer t.Close()
	if self, ok := s.Node.Self(); ok {
		t.Say(s.Node.Banner() + "guardhouse node " + self.Name + ". You are " + session.Actor.Name + ". Type status, help or menu.\n")
	}
	err := plain.Loop(ctx, t, session)
	switch {
	case err == nil:
		session.AuditLogin(context.Background(), "logout", "ok", "")
	case errors.Is(err, plain.ErrIdle) || errors.Is(err, plain.ErrBreak):
		t.Say("\nlogged out: " + err.Error() + "\n")
		fallthrough
	default:
		session.AuditLogin(context.Background(), "logout", "ok", err.Error())
	}
	return verb.ExitOK
}

// activity passes bytes on and calls a function when none passed for a time.
type activity struct {
	channel io.ReadWriter
	idle    time.Duration
	timer   *time.Timer
}

func newActivity(channel io.ReadWriter, idle time.Duration) *activity {
	return &activity{channel: channel, idle: idle}
}

func (a *activity) onIdle(f func()) { a.timer = time.AfterFunc(a.idle, f) }
func (a *activity) stop()           { a.timer.Stop() }

func (a *activity) Read(p []byte) (int, error) {
	n, err := a.channel.Read(p)
	if n > 0 {
		a.timer.Reset(a.idle)
	}
	return n, err
}

func (a *activity) Write(p []byte) (int, error) {
	a.timer.Reset(a.idle)
	return a.channel.Write(p)
}

// lineEnds writes what a raw terminal needs: carriage return before line feed.
type lineEnds struct{ w io.Writer }

func (l lineEnds) Write(p []byte) (int, error) {
	out := make([]byte, 0, len(p)+len(p)/32)
	for _, b := range p {
		if b == '\n' {
			out = append(out, '\r')
		}
		out = append(out, b)
	}
	if _, err := l.w.Write(out); err != nil {
		return 0, err
	}
	return len(p), nil
}
