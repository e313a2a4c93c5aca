package cluster

import (
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/big"
	"time"
)

// protocol is told in the handshake (ALPN), so that no other service's connection is taken for one of ours.
const protocol = "guardhouse-peer/1"

// Pin is the SHA-256 of a public key's SubjectPublicKeyInfo, which is all that is known of a peer.
func Pin(pub crypto.PublicKey) ([]byte, error) {
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return nil, fmt.Errorf("peer key: %w", err)
	}
	sum := sha256.Sum256(der)
	return sum[:], nil
}

func samePin(a, b []byte) bool { return subtle.ConstantTimeCompare(a, b) == 1 }

// identity is this node's key with a certificate around it. The certificate says nothing: TLS wants one.
type identity struct {
	certificate tls.Certificate
	pin         [sha256.Size]byte
}

func newIdentity(key crypto.Signer, random io.Reader) (*identity, error) {
	serial := make([]byte, 16)
	if _, err := io.ReadFull(random, serial); err != nil {
		return nil, fmt.Errorf("randomness: %w", err)
	}
	serial[0] = serial[0]&0x7f | 0x40
	t := &x509.Certificate{SerialNumber: new(big.Int).SetBytes(serial), Subject: pkix.Name{CommonName: "guardhouse peer"}, BasicConstraintsValid: true,
		NotBefore: time.Unix(0, 0), NotAfter: time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC)} // RFC 5280 4.1.2.5: no end
	der, err := x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("the certificate of the peer key: %w", err)
	}
	id := &identity{certificate: tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}}
	pin, err := Pin(key.Public())
	if err != nil {
		return nil, err
	}
	copy(id.pin[:], pin)
	return id, nil
}

// strangerError is a key that is not the one that must be there.
type strangerError struct{ pin []byte }

func (e *strangerError) Error() string {
	if e.pin == nil {
		return "it showed no key"
	}
	return "its key is " + hex.EncodeToString(e.pin)
}

// shown is the pin of what the other side proved to hold.
func shown(s tls.ConnectionState) ([]byte, error) {
	if len(s.PeerCertificates) == 0 {
		return nil, &strangerError{}
	}
	sum := sha256.Sum256(s.PeerCertificates[0].RawSubjectPublicKeyInfo)
	return sum[:], nil
}

// config is what both sides have in common. known decides by the pin alone; it is asked on resumed connections too, of which there are none.
func (id *identity) config(known func(pin []byte) bool) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{protocol}, Certificates: []tls.Certificate{id.certificate}, SessionTicketsDisabled: true,
		DynamicRecordSizingDisabled: true,
		// There is nothing to check a name or a date against; VerifyConnection is the whole check.
		InsecureSkipVerify: true, ClientAuth: tls.RequireAnyClientCert,
		VerifyConnection: func(s tls.ConnectionState) error {
			if s.Version != tls.VersionTLS13 || s.NegotiatedProtocol != protocol {
				return errors.New("it does not speak the protocol of nodes")
			}
			pin, err := shown(s)
			if err != nil {
				return err
			}
			if !known(pin) {
				return &strangerError{pin}
			}
			return nil
		},
	}
}
