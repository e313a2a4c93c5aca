// Package ssh is the network door of the console: verbs for enrolled public keys. It promises that nobody gets past the handshake but
// the holder of a key that is in the records at that moment; that a connection offers nothing but verbs (no shell, no forwarding of any
// kind, no agent, no environment, no subsystem); that it is closed until the node is set up; and that strangers can use only a bounded
// part of it.
//
// Limits: the host key never is here: each handshake asks the ledger for one Ed25519 signature. Without the ledger nobody can log in by
// SSH; the serial line still shows status then.
package ssh

import (
	"context"
	"crypto"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	gliderlabs "github.com/gliderlabs/ssh"
	"golang.org/x/crypto/ssh"

	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
	"guardhouse/console/plain"
	"guardhouse/console/verb"
)

// Limits of the door.
const (
	HandshakeLimit   = 20 * time.Second // to log in and open a session
	MaxConnections   = 64               // logged in or not
	MaxPerSource     = 16               // of them from one address
	maxSessionsOnOne = 8                // sessions that one connection may have open
	maxAuthTries     = 6                // keys that one connection may offer
)

// Server is the door. Fill in Node, then Serve.
type Server struct {
	Node      *verb.Node
	Idle      time.Duration // 0 = plain.Idle
	Handshake time.Duration // 0 = HandshakeLimit

	guard guard
	alive atomic.Bool
	inner gliderlabs.Server
}

// Alive reports whether the door is being served: the self-check behind the watchdog.
func (s *Server) Alive() bool { return s.alive.Load() }

// Serve accepts connections from l until ctx ends, then gives sessions a moment to finish. It closes l.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	idle := s.Idle
	if idle <= 0 {
		idle = plain.Idle
	}
	s.inner = gliderlabs.Server{
		Version:     "guardhouse",
		IdleTimeout: idle + time.Minute, // the session's own clock is first; this one ends connections without a session
		// PublicKeyHandler only pre-selects: a client may ask about keys it does not hold. The proof is VerifiedPublicKeyCallback.
		PublicKeyHandler:         s.enrolled,
		ServerConfigCallback:     s.config,
		ConnCallback:             remember,
		ConnectionFailedCallback: s.refusedConnection,
		ChannelHandlers:          map[string]gliderlabs.ChannelHandler{"session": s.session},
		RequestHandlers:          map[string]gliderlabs.RequestHandler{},
		SubsystemHandlers:        map[string]gliderlabs.SubsystemHandler{},
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	s.alive.Store(true)
	defer s.alive.Store(false)
	for {
		conn, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			var ne net.Error
			if errors.As(err, &ne) && ne.Timeout() || errors.Is(err, net.ErrClosed) {
				return fmt.Errorf("accept: %w", err)
			}
			select { // out of descriptors, for example: it may pass
			case <-time.After(100 * time.Millisecond):
			case <-ctx.Done():
			}
			continue
		}
		wg.Go(func() { s.serve(ctx, conn) })
	}
}

func (s *Server) serve(ctx context.Context, conn net.Conn) {
	defer conn.Close()
	snap, known := s.Node.Snapshot()
	if !known || !snap.State.SetUp() || len(snap.State.Admins) == 0 {
		return // the door does not exist yet
	}
	source := sourceOf(conn.RemoteAddr())
	if s.guard.barred(source, s.Node.Boottime()) || !s.guard.enter(source) {
		return
	}
	defer s.guard.leave(source)
	stop := context.AfterFunc(ctx, func() { // sessions may finish for a moment
		time.AfterFunc(time.Second, func() { conn.Close() })
	})
	defer stop()
	limit := s.Handshake
	if limit <= 0 {
		limit = HandshakeLimit
	}
	w := &watched{Conn: conn, limit: time.AfterFunc(limit, func() { conn.Close() })}
	defer w.limit.Stop()
	s.inner.HandleConn(w)
}

// watched is a connection that is cut after HandshakeLimit unless a session opened.
type watched struct {
	net.Conn
	limit    *time.Timer
	sessions atomic.Int32 // open now
}

func sourceOf(a net.Addr) string {
	host, _, err := net.SplitHostPort(a.String())
	if err != nil {
		return a.String()
	}
	return host
}

// remember makes the connection known to its sessions.
func remember(ctx gliderlabs.Context, conn net.Conn) net.Conn {
	ctx.SetValue(connKey, conn)
	return conn
}

// contextKey is for values on a connection's context.
type contextKey int

const connKey contextKey = iota

// config is made anew for each connection, because the host key and the administrators are records.
func (s *Server) config(ctx gliderlabs.Context) *ssh.ServerConfig {
	c := &ssh.ServerConfig{
		Config: ssh.Config{
			KeyExchanges: []string{ssh.KeyExchangeMLKEM768X25519, ssh.KeyExchangeCurve25519},
			Ciphers:      []string{ssh.CipherChaCha20Poly1305, ssh.CipherAES256GCM, ssh.CipherAES128GCM},
			MACs:         []string{ssh.HMACSHA256ETM, ssh.HMACSHA512ETM},
		},
		PublicKeyAuthAlgorithms: []string{ssh.KeyAlgoED25519, ssh.KeyAlgoSKED25519, ssh.KeyAlgoECDSA256, ssh.KeyAlgoECDSA384, ssh.KeyAlgoECDSA521,
			ssh.KeyAlgoSKECDSA256, ssh.KeyAlgoRSASHA512, ssh.KeyAlgoRSASHA256},
		MaxAuthTries:              maxAuthTries,
		VerifiedPublicKeyCallback: s.proved,
	}
	if s.Node.Evaluation {
		c.BannerCallback = func(ssh.ConnMetadata) string { return s.Node.Banner() }
	}
	if signer, err := s.hostKey(ctx); err == nil {
		c.AddHostKey(signer)
	}
	return c
}

// hostSigner signs with the node's SSH host key, which lives in the ledger's secrets.
type hostSigner struct {
	ctx    context.Context
	ledger *rpc.Client
	public ed25519.PublicKey
}

func (h hostSigner) Public() crypto.PublicKey { return h.public }

// Sign signs the whole message, as Ed25519 does.
func (h hostSigner) Sign(_ io.Reader, message []byte, _ crypto.SignerOpts) ([]byte, error) {
	ctx, cancel := context.WithTimeout(h.ctx, HandshakeLimit/2)
	defer cancel()
	r, err := rpc.LedgerSign.Call(ctx, h.ledger, rpc.NodeSignRequest{Key: "ssh", Digest: message})
	if err != nil {
		return nil, err
	}
	if !ed25519.Verify(h.public, message, r.Signature) {
		return nil, errors.New("the ledger's signature does not fit the host key on record")
	}
	return r.Signature, nil
}

func (s *Server) hostKey(ctx context.Context) (ssh.Signer, error) {
	self, ok := s.Node.Self()
	if !ok {
		return nil, errors.New("this node has no record")
	}
	key, _, _, _, err := ssh.ParseAuthorizedKey([]byte(self.SSHHostKey))
	if err != nil {
		return nil, fmt.Errorf("host key on record: %w", err)
	}
	holder, ok := key.(ssh.CryptoPublicKey)
	if !ok {
		return nil, errors.New("the host key on record has an unknown type")
	}
	public, ok := holder.CryptoPublicKey().(ed25519.PublicKey)
	if !ok {
		return nil, errors.New("the host key on record is not Ed25519")
	}
	return ssh.NewSignerFromSigner(hostSigner{ctx, s.Node.Ledger, public})
}

// lookup is the administrator with this name, if the key is theirs.
func (s *Server) lookup(user string, key ssh.PublicKey) (policy.Admin, bool) {
	snap, _ := s.Node.Snapshot()
	admin, ok := snap.State.Admins[user]
	if !ok {
		return policy.Admin{}, false
	}
	fp, err := policy.KeyFingerprint(admin.Key)
	return admin, err == nil && fp == ssh.FingerprintSHA256(key)
}

func (s *Server) enrolled(ctx gliderlabs.Context, key gliderlabs.PublicKey) bool {
	_, ok := s.lookup(ctx.User(), key)
	return ok
}

const extFingerprint = "guardhouse-key"

// proved runs once the client has shown that it holds the key. The permissions it returns are the only ones that count, so the key of
// the session is the key that signed, not one that was merely asked about.
func (s *Server) proved(conn ssh.ConnMetadata, key ssh.PublicKey, _ *ssh.Permissions, _ string) (*ssh.Permissions, error) {
	if _, ok := s.lookup(conn.User(), key); !ok {
		return nil, errors.New("permission denied")
	}
	return &ssh.Permissions{Extensions: map[string]string{extFingerprint: ssh.FingerprintSHA256(key)}}, nil
}

// refusedConnection records who could not log in, at a bounded rate.
func (s *Server) refusedConnection(conn net.Conn, err error) {
	var auth *ssh.ServerAuthError
	if !errors.As(err, &auth) {
		return // a port scan, a client without a common algorithm: not a login
	}
	source := sourceOf(conn.RemoteAddr())
	times, write := s.guard.failed(source, s.Node.Boottime())
	if !write {
		return
	}
	session := &verb.Session{Node: s.Node, Actor: policy.Actor{Door: policy.DoorSSH}, Source: source}
	detail := fmt.Sprintf("no enrolled key was proved; %d such connections since the last entry", times)
	session.AuditLogin(context.Background(), "login", "unknown-key", detail)
}

// actorOf is who proved what on this connection.
func actorOf(conn *ssh.ServerConn, id string) policy.Actor {
	a := policy.Actor{Door: policy.DoorSSH, Session: id}
	if conn.Permissions != nil {
		a.Name, a.Key = conn.User(), conn.Permissions.Extensions[extFingerprint]
	}
	return a
}

// cleanCommand bounds a command line from the wire.
func cleanCommand(raw string) (string, bool) {
	return strings.TrimSpace(raw), len(raw) <= verb.MaxLine
}
