package attest

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"runtime"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"guardhouse/appliance/appraise"
	"guardhouse/appliance/evidence"
	"guardhouse/appliance/health"
	"guardhouse/appliance/hgsa"
	"guardhouse/appliance/policy"
)

// BenchmarkTPM is the service's part of TPM attestations, all rounds of the
// conversation, with a boot log as long as a real one, on all processors. Beside
// it, in the same run and by turns, the signatures that these attestations need
// are made by the same key alone: ratio is the rate of attestations by the rate
// that the signatures alone allow, reckoned in processor time, garbage collection
// included. A host of Windows asks for two certificates (hgsa.md 14.1).
//
// What the ledger, the HSM's process and the network cost is not in it. "again"
// is a host that attests with the log of its last attestation, "first" one that
// the node has not seen since the policies changed.
func BenchmarkTPM(b *testing.B) {
	for _, hosts := range []int{10, 10000} {
		for _, certificates := range []int{1, 2} {
			for _, first := range []bool{false, true} {
				name := map[bool]string{false: "again", true: "first"}[first]
				b.Run(fmt.Sprintf("hosts=%d/certificates=%d/%s", hosts, certificates, name), func(b *testing.B) {
					benchmarkTPM(b, hosts, certificates, first)
				})
			}
		}
	}
}

func benchmarkTPM(b *testing.B, hosts, certificates int, first bool) {
	n, s := withBoot(b, 170)
	n.d.GrantsPerMinute = 1 << 30
	n.d.Observe = func(context.Context, []policy.Observation) {}
	n.d.Audit = func(context.Context, policy.AuditEntry) (policy.AuditReceipt, error) {
		return policy.AuditReceipt{}, nil
	}
	n.addHosts(hosts)
	types := []hgsa.AttestationResultType{1, 2}[:certificates]
	conversations := make([][][]byte, runtime.GOMAXPROCS(0)) // each goroutine its own, with its own nonces
	for i := range conversations {
		conversations[i] = n.record(b, s, types...)
	}
	n.remember(b, s)
	const turn = 8 // attestations of each goroutine before the signatures have their turn
	goroutines := len(conversations)
	var serve, sign, served, signed time.Duration // processor time and time of all
	attestations := 0
	for b.Loop() {
		cpu, begin := processorTime(b), time.Now()
		inParallel(goroutines, func(i int) {
			for range turn {
				n.replay(b, conversations[i], first)
			}
		})
		middle, halfway := processorTime(b), time.Now()
		inParallel(goroutines, func(int) {
			for range turn * certificates {
				signOnce(b, n.signerKey)
			}
		})
		serve, sign = serve+middle-cpu, sign+processorTime(b)-middle
		served, signed = served+halfway.Sub(begin), signed+time.Since(halfway)
		attestations += turn * goroutines
	}
	b.ReportMetric(float64(sign)/float64(serve), "ratio")
	b.ReportMetric(float64(signed)/float64(served), "ratio-by-the-clock")
	b.ReportMetric(float64(serve)/float64(attestations), "cpu-ns/attestation")
	b.ReportMetric(float64(sign)/float64(attestations), "cpu-ns/signatures")
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	b.ReportMetric(float64(m.HeapInuse+m.StackInuse)/(1<<20), "MiB-after-GC")
	runtime.KeepAlive(n)
}

func inParallel(n int, f func(i int)) {
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() { f(i) })
	}
	all.Wait()
}

// processorTime is what this process has used of all processors. Other processes
// are not in it, so that a busy machine gives nearly the same ratio.
func processorTime(b *testing.B) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func signOnce(b *testing.B, key *rsa.PrivateKey) {
	digest := sha256.Sum256(nil)
	if _, err := rsa.SignPKCS1v15(rand.Reader, key, crypto.SHA256, digest[:]); err != nil {
		b.Error(err)
	}
}

// addHosts registers hosts beside the one that attests. They share a key's bytes,
// which nobody here reads.
func (n *node) addHosts(total int) {
	n.edit(func(st *policy.State) {
		st.Hosts = maps.Clone(st.Hosts)
		one := st.Hosts[n.hostID]
		for i := len(st.Hosts); i < total; i++ {
			h, tpm := one, *one.TPM
			sum := sha256.Sum256(fmt.Appendf(nil, "host %d", i))
			h.ID, h.Name, h.TPM = policy.HostID(sum[:]), fmt.Sprintf("host%d", i), &tpm
			tpm.EK = append([]byte(nil), one.TPM.EK...)
			st.Hosts[h.ID] = h
		}
	})
}

// remember fills what the service keeps of hosts that attested, with all that are
// registered.
func (n *node) remember(b *testing.B, s *softTPM) {
	facts, failure := evidence.Prove(s.log, s.pcrs, evidence.SHA256)
	if failure != nil {
		b.Fatal(failure)
	}
	snap := n.d.Snapshot()
	own, ok := n.verdicts.passed[n.hostID]
	if !ok {
		b.Fatal("the attestation was not remembered")
	}
	for id, h := range snap.State.Hosts {
		if id == n.hostID {
			continue
		}
		sum := sha256.Sum256([]byte(id))
		own.evidence, own.idk, own.idks = sum, bytes.Clone(own.idk), bytes.Clone(own.idks)
		n.verdicts.put(&snap, id, own)
		n.good.news(&proved{host: h, log: hex.EncodeToString(sum[:]), facts: facts, verdict: appraise.Verdict{Passed: true, Matched: own.matched}}, n.boot)
		ek, err := evidence.ParseEK(h.TPM.EK)
		if err != nil {
			b.Fatal(err)
		}
		n.eks.put(sum[:], ek)
		n.eks.put([]byte(id), ek)
	}
}

// record is the requests of one conversation. As all state travels in them, they
// can be sent again to a node that forgot them.
func (n *node) record(b *testing.B, s *softTPM, types ...hgsa.AttestationResultType) (requests [][]byte) {
	ek := spki(b, s.key)
	next := initial(ek, types...)
	for {
		requests = append(requests, next)
		w := n.do("POST", tpmV1, next)
		answer, err := s.answer(b, w)
		if err != nil {
			wanted := make([]health.Purpose, len(types))
			for i, t := range types {
				wanted[i] = health.Purpose(t)
			}
			if err := n.takes(w, wanted...); err != nil {
				b.Fatal(err)
			}
			return requests
		}
		next = hgsa.EncodeRequest(&hgsa.TpmRequestContinue{TpmRequest: hgsa.TpmRequest{RequestedContent: types, RtpmPublicEndorsementKey: ek}, RtpmNewContext: answer}, hgsa.Style{})
	}
}

// replay has a recorded conversation answered again.
func (n *node) replay(b *testing.B, requests [][]byte, first bool) {
	var w answerTo
	for i, r := range requests {
		for _, seen := range []*nonces{&n.answered, &n.finished} {
			seen.mu.Lock()
			seen.current, seen.former = nil, nil
			seen.mu.Unlock()
		}
		if first && i == len(requests)-1 {
			n.forgetVerdicts()
		}
		w.begin()
		n.ServeHTTP(&w, &http.Request{Method: "POST", URL: &url.URL{Path: tpmV1}, Body: io.NopCloser(bytes.NewReader(r)),
			ContentLength: int64(len(r)), RemoteAddr: "192.0.2.7:4711"})
	}
	if w.code != 200 || len(w.body) < 2000 {
		b.Errorf("%d %s", w.code, w.body)
	}
}

// answerTo takes an answer without the costs of a recorder, which are no part of
// the service.
type answerTo struct {
	header http.Header
	code   int
	body   []byte
}

func (a *answerTo) begin() {
	if a.header == nil {
		a.header = http.Header{}
	}
	clear(a.header)
	a.code, a.body = 0, a.body[:0]
}

func (a *answerTo) Header() http.Header  { return a.header }
func (a *answerTo) WriteHeader(code int) { a.code = code }
func (a *answerTo) Write(b []byte) (int, error) {
	a.body = append(a.body, b...)
	return len(b), nil
}

// forgetVerdicts makes the node one that has seen no host.
func (n *node) forgetVerdicts() {
	n.verdicts.mu.Lock()
	defer n.verdicts.mu.Unlock()
	n.verdicts.passed = nil
}
