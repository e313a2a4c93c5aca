package keys

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

// signTimeout is how long a command may take: somebody may have to touch a token.
const signTimeout = 2 * time.Minute

// Signer is a role's private key: the file's, or the command that set.json names for it. Only SHA-256 digests are signed, with
// RSASSA-PKCS1-v1_5.
func (s *Set) Signer(role string) (crypto.Signer, error) {
	cert := s.Certs[role]
	if cert == nil {
		return nil, fmt.Errorf("no role %q in a key set", role)
	}
	f, err := readFile(s.Dir)
	if err != nil {
		return nil, err
	}
	if args := f.Commands[role]; len(args) > 0 {
		return &command{args, cert.PublicKey.(*rsa.PublicKey)}, nil
	}
	text, err := os.ReadFile(filepath.Join(s.Dir, role+".key"))
	if err != nil {
		return nil, fmt.Errorf("%s key: %w; where it is in a token name a command in set.json", role, err)
	}
	defer clear(text)
	block, _ := pem.Decode(text)
	if block == nil || block.Type != "PRIVATE KEY" {
		return nil, fmt.Errorf("%s.key is not a PEM private key (PKCS #8)", role)
	}
	defer clear(block.Bytes)
	any, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s.key: %w", role, err)
	}
	key, ok := any.(*rsa.PrivateKey)
	if !ok || !key.PublicKey.Equal(cert.PublicKey) {
		return nil, fmt.Errorf("%s.key is not the key of %s.crt", role, role)
	}
	return key, nil
}

// command signs by running a program: the digest on its standard input, the signature on its standard output.
type command struct {
	args []string
	pub  *rsa.PublicKey
}

func (c *command) Public() crypto.PublicKey { return c.pub }

func (c *command) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if opts.HashFunc() != crypto.SHA256 || len(digest) != 32 {
		return nil, errors.New("only SHA-256 digests are signed")
	}
	ctx, cancel := context.WithTimeout(context.Background(), signTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, c.args[0], c.args[1:]...)
	cmd.Stdin = bytes.NewReader(digest)
	cmd.Stderr = os.Stderr // a token's driver may have to ask for a touch or a PIN
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", c.args[0], err)
	}
	if err := rsa.VerifyPKCS1v15(c.pub, crypto.SHA256, digest, out); err != nil {
		return nil, fmt.Errorf("%s answered %d bytes that are no signature by this key", c.args[0], len(out))
	}
	return out, nil
}
