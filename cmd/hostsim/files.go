package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// maxBody bounds what hostsim reads from a service or a file, in bytes.
const maxBody = 4 << 20

func sha256hex(b []byte) string {
	s := sha256.Sum256(b)
	return hex.EncodeToString(s[:])
}

// thumbprints are Windows' SHA-1 beside SHA-256, as everywhere in the product.
func thumbprints(der []byte) string {
	s := sha1.Sum(der)
	return fmt.Sprintf("SHA-1 %X  SHA-256 %s", s, sha256hex(der))
}

// newKey makes an RSA key of the size that Windows uses for host and VSM keys.
func newKey() (*rsa.PrivateKey, error) { return rsa.GenerateKey(rand.Reader, 2048) }

func (o *options) path(name string) string { return filepath.Join(o.dir, name) }

func (o *options) writeKey(name string, k *rsa.PrivateKey) error {
	der, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		return err
	}
	return os.WriteFile(o.path(name), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600)
}

func (o *options) readKey(name string) (*rsa.PrivateKey, error) {
	b, err := os.ReadFile(o.path(name))
	if err != nil {
		return nil, fmt.Errorf("%w (make it first: see hostsim without arguments)", err)
	}
	block, _ := pem.Decode(b)
	if block == nil {
		return nil, fmt.Errorf("%s is not PEM", name)
	}
	k, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	r, ok := k.(*rsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("%s is not an RSA key", name)
	}
	return r, nil
}

// certificateOf reads a DER or PEM certificate.
func certificateOf(b []byte) (*x509.Certificate, error) {
	if block, _ := pem.Decode(b); block != nil {
		b = block.Bytes
	}
	return x509.ParseCertificate(b)
}

func (o *options) readCertificate(name string) (*x509.Certificate, error) {
	b, err := os.ReadFile(o.path(name))
	if err != nil {
		return nil, err
	}
	c, err := certificateOf(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return c, nil
}

// selfSigned makes a certificate as Windows' tools make for local owners and hosts: a container of a key, nothing more.
func selfSigned(cn string, k *rsa.PrivateKey, usage x509.KeyUsage, eku ...x509.ExtKeyUsage) ([]byte, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, err
	}
	now := time.Now() // a workstation's tool: nothing of the service trusts these dates
	t := &x509.Certificate{SerialNumber: serial, Subject: pkix.Name{CommonName: cn}, NotBefore: now.Add(-time.Hour), NotAfter: now.AddDate(10, 0, 0),
		KeyUsage: usage, ExtKeyUsage: eku}
	return x509.CreateCertificate(rand.Reader, t, t, k.Public(), k)
}

// httpClient does not follow redirects, has deadlines, and trusts --ca where given.
func (o *options) httpClient() (*http.Client, error) {
	tr := &http.Transport{MaxIdleConnsPerHost: 64, TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12}}
	if o.ca != "" {
		b, err := os.ReadFile(o.ca)
		if err != nil {
			return nil, err
		}
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(b) {
			return nil, fmt.Errorf("%s holds no PEM certificate", o.ca)
		}
		tr.TLSClientConfig.RootCAs = pool
	}
	return &http.Client{Transport: tr, Timeout: 30 * time.Second, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}, nil
}

// exchange sends one request and reads the bounded answer.
func exchange(ctx context.Context, c *http.Client, method, url, contentType string, body []byte) (int, []byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader(body))
	if err != nil {
		return 0, nil, err
	}
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
		req.Header.Set("Accept", strings.Split(contentType, ";")[0])
	}
	resp, err := c.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxBody+1))
	if err != nil {
		return 0, nil, err
	}
	if len(b) > maxBody {
		return 0, nil, fmt.Errorf("%s answers more than %d bytes", url, maxBody)
	}
	return resp.StatusCode, b, nil
}

// persist is exchange that repeats a request whose answer did not come, as hosts do (kps.md 10, C33): as many times as the service's name
// has addresses, each address once, at once. A roll may be repeated: the service keeps nothing of it.
func (o *options) persist(ctx context.Context, c *http.Client, method, target, contentType string, body []byte) (int, []byte, error) {
	status, answer, err := exchange(ctx, c, method, target, contentType, body)
	tr, ok := c.Transport.(*http.Transport)
	u, perr := url.Parse(target)
	if err == nil || ctx.Err() != nil || perr != nil || !ok {
		return status, answer, err
	}
	lookup := o.lookup
	if lookup == nil {
		lookup = net.DefaultResolver.LookupHost
	}
	addresses, lerr := lookup(ctx, u.Hostname())
	if lerr != nil {
		return status, answer, err
	}
	for _, address := range slices.Compact(slices.Sorted(slices.Values(addresses))) {
		pinned := tr.Clone()
		pinned.DialContext = func(ctx context.Context, network, hostport string) (net.Conn, error) {
			_, port, err := net.SplitHostPort(hostport)
			if err != nil {
				return nil, err
			}
			return new(net.Dialer).DialContext(ctx, network, net.JoinHostPort(address, port))
		}
		again := *c
		again.Transport = pinned
		status, answer, err = exchange(ctx, &again, method, target, contentType, body)
		pinned.CloseIdleConnections()
		if err == nil {
			break
		}
	}
	return status, answer, err
}
