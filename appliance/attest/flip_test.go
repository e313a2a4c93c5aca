package attest

import (
	"bytes"
	"crypto/rand"
	"maps"
	"net/http/httptest"
	"slices"
	"testing"
	"time"

	"guardhouse/appliance/evidence"
	"guardhouse/appliance/hgsa"
	"guardhouse/appliance/policy"
)

// refusedRequest is a request that is refused for one reason, with its node.
type refusedRequest struct {
	name string
	n    *node
	path string
	body []byte
}

// ask sends a body as if it were the first that this node sees.
func (r *refusedRequest) ask(body []byte) (passed bool, w *httptest.ResponseRecorder) {
	r.n.boot += time.Minute
	r.n.finished.current, r.n.finished.former = nil, nil
	r.n.answered.current, r.n.answered.former = nil, nil
	r.n.audit, r.n.refusals, r.n.observed = nil, nil, nil
	w = r.n.do("POST", r.path, body)
	_, err := hgsa.ParseReply(w.Code, w.Body.Bytes())
	return err == nil && bytes.Contains(w.Body.Bytes(), []byte("HealthCertificateReply")), w
}

// oneBitAway is a host whose log differs in one bit from that of a host that
// passes: only its digests and the PCRs keep that bit from being flipped.
const oneBitAway = "TPM: Secure Boot is off"

// refusedRequests are requests in both modes that are refused, each for another
// reason; what proves them is far from being right.
func refusedRequests(t testing.TB) []refusedRequest {
	t.Helper()
	var all []refusedRequest
	hostKey := func(name string, edit func(*node) []byte) {
		n := newNode(t)
		all = append(all, refusedRequest{name, n, attestPath, edit(n)})
	}
	revoke := func(n *node) {
		n.edit(func(s *policy.State) {
			h := s.Hosts[n.hostID]
			h.Revoked = true
			s.Hosts = maps.Clone(s.Hosts)
			s.Hosts[n.hostID] = h
		})
	}
	hostKey("host key: signed with another key", func(n *node) []byte {
		r, _, err := hgsa.DecodeHostKeyAttest(n.request(t, hgsa.HostKeyRequest{}))
		if err != nil {
			t.Fatal(err)
		}
		other, _, err := hgsa.DecodeHostKeyAttest(mustRequest(t, n))
		if err != nil {
			t.Fatal(err)
		}
		r.ProvidedContent[2] = other.ProvidedContent[2]
		return hgsa.EncodeRequest(r, hgsa.Style{})
	})
	hostKey("host key: another host", func(n *node) []byte { return mustRequest(t, n) })
	hostKey("host key: revoked", func(n *node) []byte { revoke(n); return n.request(t, hgsa.HostKeyRequest{}) })

	tpm := func(name string, prepare func(*node, *softTPM), after func(*node)) {
		n, s := withBoot(t, 0)
		if prepare != nil {
			prepare(n, s)
		}
		_, last, _ := n.converse(t, s, 1)
		if after != nil {
			after(n)
		}
		all = append(all, refusedRequest{name, n, tpmV1, last})
	}
	tpm("TPM: a policy fails", func(n *node, _ *softTPM) {
		n.edit(func(st *policy.State) {
			st.PolicySets = map[string]policy.PolicySet{policy.FabricWide: {Enabled: map[string]bool{policy.HgsBitLockerEnabled: true}}}
		})
	}, nil)
	tpm("TPM: another code integrity policy", func(n *node, _ *softTPM) {
		n.edit(func(st *policy.State) {
			st.CIPolicies = map[string]policy.CIPolicy{"ci": {Name: "ci", Version: policy.Version1, Digests: []policy.HashValue{{Alg: 0x000b, Digest: make([]byte, 32)}}}}
		})
	}, nil)
	tpm("TPM: the answer is forged", func(_ *node, s *softTPM) { s.forgedHMAC = true }, nil)
	tpm("TPM: revoked", nil, revoke)
	tpm("TPM: the context's key is gone", nil, func(n *node) {
		n.d.ContextKeys = func() (evidence.ContextKeys, bool) {
			return evidence.ContextKeys{Epoch: 77, Current: make([]byte, 32), Previous: make([]byte, 32)}, true
		}
	})
	tpm("TPM: log and PCRs do not fit", func(n *node, s *softTPM) {
		s.pcrs[12] = bytes.Repeat([]byte{0x5a}, 32)
	}, nil)
	tpm(oneBitAway, func(n *node, s *softTPM) {
		w := windowsBootWith(t, n, 0, 0, evidence.SHA256)
		s.log, s.pcrs = w.Log(), w.PCRs(evidence.SHA256)
	}, nil)
	for i := range all {
		all[i].n.d.GrantsPerMinute = 1 << 30
		if passed, w := all[i].ask(all[i].body); passed {
			t.Fatalf("%s: %s", all[i].name, w.Body)
		}
	}
	return all
}

// mustRequest is a request of a host with another key.
func mustRequest(t testing.TB, n *node) []byte {
	t.Helper()
	body, err := hgsa.NewHostKeyRequest(rand.Reader, testKeys()[3], hgsa.HostKeyRequest{VSMKey: &n.vsmKey.PublicKey, Requested: []hgsa.AttestationResultType{1, 2}})
	if err != nil {
		t.Fatal(err)
	}
	return body
}

// TestNoFlippedBitOfARequestTurnsARefusalIntoAPass changes bytes of requests as
// they are on the wire, one bit in every seventh byte; FuzzFlippedRequests goes
// on with every byte and more than one.
func TestNoFlippedBitOfARequestTurnsARefusalIntoAPass(t *testing.T) {
	for _, r := range refusedRequests(t) {
		body := bytes.Clone(r.body)
		tried := 0
		for i := 0; i < len(body); i += 7 {
			body[i] ^= 1 << (i % 8)
			if passed, _ := r.ask(body); passed {
				t.Fatalf("%s: passes with a flipped bit in byte %d of %d", r.name, i, len(body))
			}
			body[i] ^= 1 << (i % 8)
			tried++
		}
		t.Logf("%s: %d of %d bytes", r.name, tried, len(body))
	}
}

// TestNoFlippedBitOfALogOrContextTurnsARefusalIntoAPass changes the context
// inside of the request: every byte of the log, state and answer of a host that
// fails one policy, behind an honest TPM. Each byte's lowest bit is among those
// flipped, because that is what the host lacks.
func TestNoFlippedBitOfALogOrContextTurnsARefusalIntoAPass(t *testing.T) {
	all := refusedRequests(t)
	r := all[slices.IndexFunc(all, func(r refusedRequest) bool { return r.name == oneBitAway })]
	request, _, err := hgsa.DecodeAttest(r.body)
	if err != nil {
		t.Fatal(err)
	}
	m := request.(*hgsa.TpmRequestContinue)
	for i := range m.RtpmNewContext {
		for _, bit := range []byte{1, 1 << (1 + i%7)} {
			m.RtpmNewContext[i] ^= bit
			if passed, _ := r.ask(hgsa.EncodeRequest(m, hgsa.Style{Base64: true})); passed {
				t.Fatalf("passes with bit %#x flipped in byte %d of its context", bit, i)
			}
			m.RtpmNewContext[i] ^= bit
		}
	}
}

// FuzzFlippedRequests changes bytes of the same requests at three places.
func FuzzFlippedRequests(f *testing.F) {
	all := refusedRequests(f)
	for i, r := range all {
		for at := 0; at < len(r.body); at += len(r.body) / 5 {
			f.Add(byte(i), uint32(at), uint32(at+1), uint32(at+9), uint32(0x00010203)<<(at%5))
		}
	}
	f.Fuzz(func(t *testing.T, which byte, a, b, c, masks uint32) {
		r := &all[int(which)%len(all)]
		body := bytes.Clone(r.body)
		for i, at := range []uint32{a, b, c} {
			body[int(at)%len(body)] ^= byte(masks >> (8 * i))
		}
		if passed, w := r.ask(body); passed || w.Code == 500 {
			t.Fatalf("%s: %x at %d, %d, %d: %d %s", r.name, masks, a, b, c, w.Code, w.Body)
		}
	})
}
