package ledger

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
)

// Names of secrets. Private keys are PKCS#8 DER.
const (
	secretCluster = "cluster-secret" // 32 random bytes, the same on all nodes
	secretAudit   = "audit-tpm-key"  // tpm.SigningKey, which is no secret by itself: without the box another system on this machine could use it
	secretOldKey  = "audit-key"      // Ed25519, of nodes set up by earlier images
	secretTLS     = "tls-key"        // ECDSA P-256, or what took its place
	secretSSH     = "ssh-host-key"   // Ed25519
	secretPIN     = "hsm-pin"
)

const clusterSecretSize = 32

func (l *Ledger) privateKey(name string) (any, error) {
	der, err := l.secret(name)
	if err != nil {
		return nil, err
	}
	defer clear(der)
	key, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, fmt.Errorf("%s does not parse", name)
	}
	return key, nil
}

// Sign makes a signature with one of the node's own keys: "tls", "syslog" or "ssh", see rpc.NodeSignRequest.
func (l *Ledger) Sign(req rpc.NodeSignRequest) ([]byte, error) {
	switch req.Key {
	case "tls", "syslog":
		return l.signTLS(req)
	case "ssh":
		// What a host key signs is the hash of a key exchange (RFC 4253 section 8). Nothing longer: neither a certificate nor an sshsig, with
		// which a console that was taken over could speak as the node elsewhere.
		if n := len(req.Digest); req.Hash != 0 || n < sha256.Size || n > sha512.Size {
			return nil, rpc.ErrRefused.With("ssh: the hash of a key exchange is signed, 32 to 64 bytes, nothing else")
		}
		key, err := l.privateKey(secretSSH)
		if err != nil {
			return nil, err
		}
		k, ok := key.(ed25519.PrivateKey)
		if !ok {
			return nil, errors.New("the SSH host key is not Ed25519")
		}
		defer clear(k)
		return ed25519.Sign(k, req.Digest), nil
	}
	return nil, rpc.ErrRefused.With("there is no key %.16q", req.Key)
}

// newKeys makes the node's own keys but for the TPM's and returns them with what goes into the node's record. The caller wipes them.
func newKeys(rand io.Reader, epoch time.Time, s *policy.Setup) (map[string][]byte, error) {
	keys := map[string][]byte{}
	put := func(name string, key any) (err error) {
		keys[name], err = x509.MarshalPKCS8PrivateKey(key)
		return err
	}
	sshPub, sshKey, err := ed25519.GenerateKey(rand)
	if err != nil {
		return keys, err
	}
	tlsKey, err := ecdsa.GenerateKey(elliptic.P256(), rand)
	if err != nil {
		return keys, err
	}
	if err := errors.Join(put(secretSSH, sshKey), put(secretTLS, tlsKey)); err != nil {
		return keys, err
	}
	pub, err := ssh.NewPublicKey(sshPub)
	if err != nil {
		return keys, err
	}
	s.Node.SSHHostKey = strings.TrimSpace(string(ssh.MarshalAuthorizedKey(pub)))
	s.Node.Certificate, err = selfSigned(rand, epoch, httpsNames(s.Service.Name, s.Node), tlsKey)
	return keys, err
}

// PIN is the HSM's user PIN with how to reach the token; the caller wipes it. In attended mode there is none.
func (l *Ledger) PIN(context.Context) (rpc.PINReply, error) {
	s, _ := l.Snapshot()
	if !s.State.SetUp() {
		return rpc.PINReply{}, rpc.ErrUnavailable.With("the node is not set up")
	}
	h := s.State.Nodes[s.NodeID].HSM
	if h.Attended {
		return rpc.PINReply{HSM: h}, nil
	}
	pin, err := l.secret(secretPIN)
	return rpc.PINReply{PIN: pin, HSM: h}, err
}

// HSM is how this node reaches its token.
func (l *Ledger) HSM(context.Context) (policy.HSM, error) {
	s, _ := l.Snapshot()
	if !s.State.SetUp() {
		return policy.HSM{}, rpc.ErrUnavailable.With("the node is not set up")
	}
	return s.State.Nodes[s.NodeID].HSM, nil
}
