package attest

import (
	"bytes"
	"cmp"
	"crypto/rsa"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"

	"guardhouse/appliance/health"
	"guardhouse/appliance/hgsa"
	"guardhouse/appliance/policy"
)

// maxOneWrite is the size of head and body of the signingCertificates answer
// that reaches a driver in one TLS record.
const maxOneWrite = 16 << 10

const writeTimeout = 10 * time.Second

// signer is a recorded attestation signer with its parsed certificate.
type signer struct {
	key         policy.Key
	certificate *x509.Certificate
}

// signerCache keeps the enabled attestation signers of one snapshot in the order
// of policy.State.AttestationSigners.
type signerCache struct {
	now   func() (earliest, latest time.Time, ok bool)
	mu    sync.Mutex
	index uint64
	list  []signer
	fresh bool
}

func (c *signerCache) all(snap policy.Snapshot) []signer {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fresh && c.index == snap.Index {
		return c.list
	}
	var list []signer
	for _, k := range snap.State.AttestationSigners() {
		if !k.Enabled {
			continue
		}
		cert, err := x509.ParseCertificate(k.Certificate)
		if err != nil {
			continue
		}
		if _, ok := cert.PublicKey.(*rsa.PublicKey); ok {
			list = append(list, signer{k, cert})
		}
	}
	c.index, c.list, c.fresh = snap.Index, list, true
	return list
}

// primary is the attestation signer that signs now: the newest whose time of
// publication before its first use is over.
func (c *signerCache) primary(snap policy.Snapshot) (signer, bool) {
	earliest, _, ok := c.now()
	if !ok {
		return signer{}, false
	}
	for _, s := range c.all(snap) {
		if s.key.SignerStage(earliest) == policy.SignerInUse {
			return s, true
		}
	}
	return signer{}, false
}

// published are the attestation signers that drivers need: the one that signs,
// then the next one, then those retired less than a day ago, the last one first.
// What is not valid at every moment the present may be is left out: a driver
// that finds it gives up or asks for ever.
func (c *signerCache) published(snap policy.Snapshot, now health.Window, earliest time.Time) []*x509.Certificate {
	var list []signer
	for _, s := range c.all(snap) {
		if s.key.SignerStage(earliest).Published() && now.Within(s.certificate.NotBefore, s.certificate.NotAfter) {
			list = append(list, s)
		}
	}
	urgency := map[policy.SignerStage]int{policy.SignerInUse: 0, policy.SignerNext: 1, policy.SignerRetired: 2}
	slices.SortStableFunc(list, func(a, b signer) int {
		return cmp.Or(cmp.Compare(urgency[a.key.SignerStage(earliest)], urgency[b.key.SignerStage(earliest)]), cmp.Compare(b.key.RetiredAt, a.key.RetiredAt))
	})
	var certs []*x509.Certificate
	for _, s := range list[:min(len(list), hgsa.MaxSigningCertificates)] {
		certs = append(certs, s.certificate)
	}
	return certs
}

// lately is the newest moment that was trusted. It serves one purpose: what was published last stays published while the time is not known.
type lately struct {
	mu               sync.Mutex
	earliest, latest time.Time
}

// publishing is the interval that decides which attestation signers are shown: the present one or, without a trusted time, the last that
// this process knew or the ledger kept (Snapshot.Floor). Nothing is signed by it.
func (l *lately) publishing(now func() (earliest, latest time.Time, ok bool), floor int64) (earliest, latest time.Time, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if earliest, latest, ok := now(); ok {
		l.earliest, l.latest = earliest, latest
		return earliest, latest, true
	}
	if kept := time.UnixMilli(floor); floor > 0 && kept.After(l.latest) {
		l.earliest, l.latest = kept, kept
	}
	return l.earliest, l.latest, !l.latest.IsZero()
}

// signingCertificates is 6.7 of hgsa.md: the published attestation signers, as
// many as drivers can read at once. Of RSA 3072 four fit, of RSA 2048 five.
func (q *request) signingCertificates() {
	earliest, latest, ok := q.lately.publishing(q.d.Now, q.snap.Floor)
	if !ok {
		q.unavailable(outcomeNoTime, "the node does not know the time and never did", "see time why")
		return
	}
	certs := q.signers.published(q.snap, health.Between(earliest, latest, ok), earliest)
	for ; len(certs) > 0; certs = certs[:len(certs)-1] {
		body, err := hgsa.EncodeSigningCertificates(certs)
		if err != nil {
			q.d.Log("attestation: %v", err)
			break
		}
		head := oneWriteHead(q.w.Header(), len(body))
		if len(head)+len(body) <= maxOneWrite || len(certs) == 1 {
			q.oneWrite(head, body)
			return
		}
	}
	q.unavailable(outcomeNoSigner, "no attestation signer is valid now", "attestation-signer renew; see attestation-signer list")
}

// oneWriteHead keeps the headers that were set around this service, Date for one.
func oneWriteHead(h http.Header, length int) []byte {
	h = h.Clone()
	setHeaders(h, length)
	h.Set("Connection", "close")
	var b bytes.Buffer
	b.WriteString("HTTP/1.1 200 OK\r\n")
	_ = h.Write(&b) // to memory
	b.WriteString("\r\n")
	return b.Bytes()
}

// oneWrite sends head and body in one write, because the JDBC driver reads once
// and takes what has arrived. net/http would cut them into pieces of 4 KiB, so
// the connection is taken over and closed afterwards. Where that is not possible
// (HTTP/2, HEAD) the usual way serves: none of those clients is that driver.
func (q *request) oneWrite(head, body []byte) {
	q.replied = true
	hijacker, ok := q.w.(http.Hijacker)
	if ok && q.r.ProtoMajor == 1 && q.r.Method == http.MethodGet {
		conn, _, err := hijacker.Hijack()
		if err == nil {
			sendAndClose(conn, append(head, body...))
			return
		}
	}
	setHeaders(q.w.Header(), len(body))
	q.w.WriteHeader(http.StatusOK)
	if q.r.Method != http.MethodHead {
		_, _ = fmt.Fprintf(q.w, "%s", body)
	}
}

func sendAndClose(conn net.Conn, answer []byte) {
	defer conn.Close()
	// A deadline of the socket, not a time that anything is issued by.
	_ = conn.SetDeadline(time.Now().Add(writeTimeout))
	_, _ = conn.Write(answer)
}
