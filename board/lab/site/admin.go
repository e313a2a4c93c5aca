package site

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"
)

// AdminName is the site's administrator.
const AdminName = "ada"

// Admin is a person with an SSH key, kept as ssh-keygen would keep it, and the fingerprint of the node that was read off its serial line.
type Admin struct {
	KeyFile    string
	Public     string // authorized_keys form without comment
	HostKey    string // "SHA256:..."
	Passphrase string // for the serial line

	signer ssh.Signer
}

// OpenAdmin reads the administrator kept in dir, or makes one.
func OpenAdmin(dir string) (*Admin, error) {
	a := &Admin{KeyFile: filepath.Join(dir, "admin_ed25519")}
	b, err := os.ReadFile(a.KeyFile)
	if errors.Is(err, os.ErrNotExist) {
		_, priv, kerr := ed25519.GenerateKey(rand.Reader)
		if kerr != nil {
			return nil, kerr
		}
		block, kerr := ssh.MarshalPrivateKey(priv, AdminName)
		if kerr != nil {
			return nil, kerr
		}
		b = pem.EncodeToMemory(block)
		err = os.WriteFile(a.KeyFile, b, 0o600)
	}
	if err != nil {
		return nil, err
	}
	if a.signer, err = ssh.ParsePrivateKey(b); err != nil {
		return nil, fmt.Errorf("%s: %w", a.KeyFile, err)
	}
	a.Public = strings.TrimSpace(string(ssh.MarshalAuthorizedKey(a.signer.PublicKey())))
	if b, err := os.ReadFile(filepath.Join(dir, "host-key")); err == nil {
		a.HostKey = strings.TrimSpace(string(b))
	}
	if b, err := os.ReadFile(filepath.Join(dir, "serial-passphrase")); err == nil {
		a.Passphrase = strings.TrimSpace(string(b))
	}
	return a, nil
}

// ExitError is a verb that ended with a code other than 0; Stderr is what it said.
type ExitError struct {
	Code   int
	Stderr string
}

func (e *ExitError) Error() string {
	return fmt.Sprintf("exit code %d: %s", e.Code, strings.TrimSpace(e.Stderr))
}

// Verb runs `ssh ada@node args...` with stdin and gives its stdout. The node's host key must be the one from its serial line.
func (s *Site) Verb(ctx context.Context, stdin []byte, args ...string) ([]byte, error) {
	var out bytes.Buffer
	err := s.stream(ctx, stdin, &out, args...)
	return out.Bytes(), err
}

// Follow runs a verb until a line of its output has text in it.
func (s *Site) Follow(ctx context.Context, text string, args ...string) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	r, w := io.Pipe()
	go func() { w.CloseWithError(s.stream(ctx, nil, w, args...)) }()
	defer r.Close()
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		if strings.Contains(lines.Text(), text) {
			return nil
		}
	}
	return fmt.Errorf("%s ended before it said %q: %w", strings.Join(args, " "), text, cmp.Or(lines.Err(), io.EOF))
}

// stream is Verb with its stdout as it comes.
func (s *Site) stream(ctx context.Context, stdin []byte, stdout io.Writer, args ...string) error {
	conf := &ssh.ClientConfig{User: AdminName, Auth: []ssh.AuthMethod{ssh.PublicKeys(s.Admin.signer)}, Timeout: 20 * time.Second,
		HostKeyCallback: func(_ string, _ net.Addr, key ssh.PublicKey) error {
			if fp := ssh.FingerprintSHA256(key); fp != s.Admin.HostKey {
				return fmt.Errorf("the node's host key is %s, its serial line said %s", fp, s.Admin.HostKey)
			}
			return nil
		}}
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", s.Node.Addr(22))
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	conn.SetDeadline(time.Now().Add(90*time.Second + time.Duration(len(stdin)>>20)*3*time.Second)) // an update is long
	c, chans, reqs, err := ssh.NewClientConn(conn, s.Node.Addr(22), conf)
	if err != nil {
		conn.Close()
		return fmt.Errorf("ssh: %w", err)
	}
	client := ssh.NewClient(c, chans, reqs)
	defer client.Close()
	sess, err := client.NewSession()
	if err != nil {
		return fmt.Errorf("ssh: %w", err)
	}
	defer sess.Close()
	var errOut bytes.Buffer
	sess.Stdin, sess.Stdout, sess.Stderr = bytes.NewReader(stdin), stdout, io.Writer(&errOut)
	err = sess.Run(strings.Join(args, " "))
	var exit *ssh.ExitError
	if errors.As(err, &exit) {
		return &ExitError{exit.ExitStatus(), errOut.String()}
	}
	if err != nil {
		return fmt.Errorf("ssh %s: %w: %s", strings.Join(args, " "), err, errOut.String())
	}
	return nil
}

// JSON runs a verb with --json and decodes its answer into v.
func (s *Site) JSON(ctx context.Context, stdin []byte, v any, args ...string) error {
	out, err := s.Verb(ctx, stdin, append(args, "--json")...)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(out, v); err != nil {
		return fmt.Errorf("%s --json: %w", strings.Join(args, " "), err)
	}
	return nil
}
