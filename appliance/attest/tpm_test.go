package attest

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"math/big"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"guardhouse/appliance/evidence"
	"guardhouse/appliance/hgsa"
	"guardhouse/appliance/policy"
)

// These tests hold the conversation's edges: what is refused before a TPM is
// asked, and what is forgotten when. Whole conversations with a real TPM are in
// cmd/hostsim, which stands on the other side.

const tpmV1, tpmV2 = "/Attestation/v1.0/attest", "/Attestation/v2.0/attest"

// inTPMMode registers the host key as an endorsement key: the first round only
// encrypts to it.
func inTPMMode(t testing.TB) *node {
	n := newNode(t)
	n.d.ContextKeys = func() (evidence.ContextKeys, bool) {
		return evidence.ContextKeys{Epoch: 5, Current: make([]byte, 32), Previous: make([]byte, 32)}, true
	}
	n.edit(func(s *policy.State) {
		v := *s.Service
		v.Mode = policy.ModeTPM
		s.Service = &v
		s.Hosts = map[string]policy.Host{n.hostID: {ID: n.hostID, Name: "host1", Class: "default",
			TPM: &policy.TPMIdentity{EK: spki(t, n.hostKey), NameAlg: uint16(evidence.SHA256), Symmetric: 128, Version: policy.Version1}}}
	})
	return n
}

func ekCertificate(t testing.TB, n *node) []byte {
	t.Helper()
	c := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: noon, Subject: pkix.Name{CommonName: "TPM"}}
	der, err := x509.CreateCertificate(rand.Reader, c, c, &n.hostKey.PublicKey, n.hostKey)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func initial(ek []byte, types ...hgsa.AttestationResultType) []byte {
	return hgsa.EncodeRequest(&hgsa.TpmRequestInitial{TpmRequest: hgsa.TpmRequest{RequestedContent: types, RtpmPublicEndorsementKey: ek}}, hgsa.Style{})
}

func goOn(ek, context []byte) []byte {
	return hgsa.EncodeRequest(&hgsa.TpmRequestContinue{TpmRequest: hgsa.TpmRequest{RequestedContent: []hgsa.AttestationResultType{1}, RtpmPublicEndorsementKey: ek},
		RtpmNewContext: context}, hgsa.Style{})
}

func version2(items ...any) []byte {
	r := &hgsa.AttestationRequest{RequestedContent: []hgsa.AttestationResultType{1, 2}}
	for i := 0; i < len(items); i += 2 {
		r.ProvidedContent = append(r.ProvidedContent, hgsa.TupleOfAttestationProvidedContentTypebase64Binary{
			Item1: hgsa.AttestationProvidedContentType(items[i].(int)), Item2: items[i+1].([]byte)})
	}
	return hgsa.EncodeRequest(r, hgsa.Style{})
}

func TestEndorsementKeyIsKnownInEveryForm(t *testing.T) {
	n := inTPMMode(t)
	certificate := ekCertificate(t, n)
	bodies := map[string][]byte{
		"certificate, no context":    version2(4, certificate),
		"certificate, empty context": version2(4, certificate, 2, []byte{}),
		"certificate, NV padding":    version2(4, append(bytes.Clone(certificate), 0xff, 0xff, 0xff)),
	}
	for _, form := range []hgsa.KeyEncoding{hgsa.KeySPKI, hgsa.KeyPKCS1, hgsa.KeyBcrypt, hgsa.KeyTPM2B, hgsa.KeyTPMT} {
		ek, err := hgsa.EncodePublicKey(&n.hostKey.PublicKey, form)
		if err != nil {
			t.Fatal(err)
		}
		if form == hgsa.KeySPKI {
			object, err := json.Marshal(map[string][]byte{"Key": ek})
			if err != nil {
				t.Fatal(err)
			}
			bodies["EndorsementKey object"] = initial(object, 1, 2)
			bodies["empty context"] = goOn(ek, nil)
		}
		bodies[string(form)] = initial(ek, 1, 2)
	}
	for name, body := range bodies {
		path := tpmV1
		if bytes.Contains(body, []byte("ProvidedContent")) {
			path = tpmV2
		}
		w := n.do("POST", path, body)
		reply, err := hgsa.ParseReply(w.Code, w.Body.Bytes())
		r, ok := reply.(*hgsa.TpmReplyContinue)
		if err != nil || !ok {
			// A public area that no TPM calls an endorsement key is no endorsement key.
			if strings.HasPrefix(name, "TPM") && strings.Contains(fmt.Sprint(n.refusals), "fixed, restricted decryption key") {
				continue
			}
			t.Errorf("%s: %v %v", name, err, n.refusals)
			continue
		}
		if o, err := evidence.PrivateCodec.DecodeOrder(r.RtpmActiveContext); err != nil || len(o.Commands) != 1 || evidence.CheckCommand(o.Commands[0]) != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestEveryRefusalOfTPMModeHasItsReply(t *testing.T) {
	n := inTPMMode(t)
	ek, certificate := spki(t, n.hostKey), ekCertificate(t, n)
	stranger := spki(t, testKeys()[3])
	edit := func(f func(*policy.Host)) func(*node) {
		return func(n *node) {
			n.edit(func(s *policy.State) {
				s.Hosts = maps.Clone(s.Hosts)
				h := s.Hosts[n.hostID]
				f(&h)
				s.Hosts[n.hostID] = h
			})
		}
	}
	head := []byte{16, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
	for name, c := range map[string]struct {
		prepare func(*node)
		path    string
		body    []byte
		status  int
		reply   string
		outcome string
	}{
		"host key endpoint": {nil, attestPath, initial(ek, 1), 200, "OperationModeErrorReply:true", "wrong-mode"},
		"no trusted time":   {func(n *node) { n.timeKnown = false }, tpmV1, initial(ek, 1), 503, "UnavailableErrorReply:true", "no-trusted-time"},
		"no context keys": {func(n *node) {
			n.d.ContextKeys = func() (evidence.ContextKeys, bool) { return evidence.ContextKeys{}, false }
		}, tpmV1, initial(ek, 1), 503, "UnavailableErrorReply:true", "no-context-keys"},
		"not JSON":               {nil, tpmV1, []byte("<x/>"), 400, "PayloadErrorReply:false", "body-not-json"},
		"too large":              {nil, tpmV1, make([]byte, hgsa.MaxAttestBody+1), 413, "PayloadErrorReply:false", "body-too-large"},
		"an ADRequest":           {nil, tpmV1, []byte(`{"__type":"ADRequest:#Microsoft.Windows.RemoteAttestation.Core"}`), 200, "PayloadErrorReply:false", "payload"},
		"v1.0 message on v2.0":   {nil, tpmV2, initial(ek, 1), 200, "PayloadErrorReply:false", "payload"},
		"v2.0 message on v1.0":   {nil, tpmV1, version2(4, certificate), 200, "PayloadErrorReply:false", "payload"},
		"nothing requested":      {nil, tpmV1, initial(ek), 200, "PayloadErrorReply:false", "payload"},
		"a CA requested":         {nil, tpmV1, initial(ek, 3), 200, "PayloadErrorReply:false", "payload"},
		"three requested":        {nil, tpmV1, initial(ek, 1, 2, 1), 200, "PayloadErrorReply:false", "payload"},
		"no certificate":         {nil, tpmV2, version2(2, head), 200, "PayloadErrorReply:false", "payload"},
		"two certificates":       {nil, tpmV2, version2(4, certificate, 4, certificate), 200, "PayloadErrorReply:false", "payload"},
		"two contexts":           {nil, tpmV2, version2(4, certificate, 2, head, 2, head), 200, "PayloadErrorReply:false", "payload"},
		"CA trustlet report":     {nil, tpmV2, version2(4, certificate, 6, head), 200, "PayloadErrorReply:false", "payload"},
		"no key at all":          {nil, tpmV1, initial([]byte("nonsense"), 1), 200, "UnauthorizedErrorReply:false", "endorsement-key-unreadable"},
		"a key as certificate":   {nil, tpmV2, version2(4, ek), 200, "UnauthorizedErrorReply:false", "endorsement-key-unreadable"},
		"stranger":               {nil, tpmV1, initial(stranger, 1), 200, "UnauthorizedErrorReply:false", "tpm-unknown"},
		"stranger goes on":       {nil, tpmV1, goOn(stranger, head), 200, "UnauthorizedErrorReply:false", "tpm-unknown"},
		"host of host key mode":  {edit(func(h *policy.Host) { h.TPM, h.HostKey = nil, ek }), tpmV1, initial(ek, 1), 200, "UnauthorizedErrorReply:false", "tpm-unknown"},
		"removed between rounds": {func(n *node) { n.edit(func(s *policy.State) { s.Hosts = nil }) }, tpmV1, goOn(ek, head), 200, "UnauthorizedErrorReply:false", "tpm-unknown"},
		"revoked":                {edit(func(h *policy.Host) { h.Revoked = true }), tpmV1, initial(ek, 1), 200, "UnauthorizedErrorReply:false", "host-revoked"},
		"revoked between rounds": {edit(func(h *policy.Host) { h.Revoked = true }), tpmV1, goOn(ek, head), 200, "UnauthorizedErrorReply:false", "host-revoked"},
		"head of a context":      {nil, tpmV1, goOn(ek, head), 200, "RtpmErrorReply:true", "tpm-context"},
		"garbage as context":     {nil, tpmV2, version2(4, certificate, 2, bytes.Repeat([]byte{7}, 400)), 200, "RtpmErrorReply:true", "tpm-context"},
	} {
		n := inTPMMode(t)
		if c.prepare != nil {
			c.prepare(n)
		}
		w := n.do("POST", c.path, c.body)
		reply, _, err := hgsa.DecodeReply(w.Body.Bytes())
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		got := reply.Type()
		if f, ok := reply.(hgsa.Failure); ok {
			got += fmt.Sprintf(":%t", f.CanRetry())
		}
		outcome := ""
		if len(n.refusals) == 1 {
			outcome = n.refusals[0].Outcome
		} else if len(n.audit) == 1 {
			outcome = n.audit[0].Outcome
		}
		if w.Code != c.status || got != c.reply || outcome != c.outcome {
			t.Errorf("%s: %d %s %q, want %d %s %q", name, w.Code, got, outcome, c.status, c.reply, c.outcome)
		}
		if len(n.refusals)+len(n.audit) != 1 {
			t.Errorf("%s: %d refusals and %d entries", name, len(n.refusals), len(n.audit))
		}
	}
}

func TestEndorsementKeyIsNoHostKey(t *testing.T) {
	n := inTPMMode(t)
	n.edit(func(s *policy.State) { v := *s.Service; v.Mode = policy.ModeHostKey; s.Service = &v })
	w := n.do("POST", attestPath, n.request(t, hgsa.HostKeyRequest{}))
	if _, err := hgsa.ParseReply(w.Code, w.Body.Bytes()); err == nil || len(n.refusals) != 1 || n.refusals[0].Outcome != outcomeUnknownHost {
		t.Error(err, n.refusals)
	}
}

func TestStrangersFillTheListSlowly(t *testing.T) {
	n := inTPMMode(t)
	body := initial(spki(t, testKeys()[3]), 1)
	for range 3 * pendingPerMinute {
		n.do("POST", tpmV1, body)
	}
	if len(n.observed) != pendingPerMinute || n.observed[0].Kind != policy.ObservedPending || n.observed[0].Facts["source"] != "192.0.2.7" {
		t.Errorf("%d observations, first %+v", len(n.observed), n.observed[0])
	}
	if len(n.refusals) != 3*pendingPerMinute {
		t.Errorf("%d refusals counted", len(n.refusals))
	}
}

func TestPendingTPMKeepsItsCertificate(t *testing.T) {
	n := inTPMMode(t)
	certificate, ek := ekCertificate(t, n), spki(t, n.hostKey)
	n.edit(func(s *policy.State) { s.Hosts = nil })
	n.do("POST", tpmV2, version2(4, certificate))
	n.do("POST", tpmV1, initial(ek, 1)) // what a host does next
	if len(n.observed) != 1 || n.observed[0].Facts["certificate"] == "" {
		t.Errorf("%+v", n.observed)
	}
	n.boot += 2 * time.Minute
	n.do("POST", tpmV1, initial(ek, 1))
	if len(n.observed) != 2 {
		t.Error("a host without a certificate is not noted")
	}
}

// TestAPendingTPMFitsTheListWhateverItsCertificate: what does not fit is dropped (newNode looks at each observation), and then nobody could
// accept the host from the list; and a certificate that had to be mended is kept as its issuer signed it.
func TestAPendingTPMFitsTheListWhateverItsCertificate(t *testing.T) {
	key, err := rsa.GenerateKey(rand.Reader, 4096)
	if err != nil {
		t.Fatal(err)
	}
	made := func(n *node, padding int, serial []byte) []byte {
		c := &x509.Certificate{SerialNumber: big.NewInt(0x7f5a), NotAfter: noon, Subject: pkix.Name{CommonName: strings.Repeat("\u00e9", 300)},
			ExtraExtensions: []pkix.Extension{{Id: []int{2, 5, 29, 99}, Value: make([]byte, padding)}}}
		der, err := x509.CreateCertificate(rand.Reader, c, c, &key.PublicKey, key)
		if err != nil {
			t.Fatal(err)
		}
		return bytes.Replace(der, []byte{2, 2, 0x7f, 0x5a}, serial, 1)
	}
	asMade := []byte{2, 2, 0x7f, 0x5a}
	for name, c := range map[string]struct {
		padding int
		serial  []byte
		kept    bool
	}{
		"as large as TPMs have room for": {0, asMade, true},
		"the largest that is kept":       {maxPendingCertificate/4*3 - 2450, asMade, true},
		"larger than any":                {8 << 10, asMade, false},
		"negative serial number":         {0, []byte{2, 2, 0x80, 0x5a}, true},
	} {
		n := inTPMMode(t)
		certificate := made(n, c.padding, c.serial)
		n.do("POST", tpmV2, version2(4, certificate))
		if len(n.observed) != 1 {
			t.Fatalf("%s: %+v, %v", name, n.observed, n.refusals)
		}
		facts := n.observed[0].Facts
		for k, v := range facts {
			if !utf8.ValidString(v) {
				t.Errorf("%s: %s is no text", name, k)
			}
		}
		got, err := base64.StdEncoding.DecodeString(facts["certificate"])
		if err != nil || c.kept != bytes.Equal(got, certificate) {
			t.Errorf("%s: a certificate of %d bytes is kept as one of %d", name, len(certificate), len(got))
		}
	}
}

func TestAnsweredContextsAreRememberedAsLongAsTheyAreValid(t *testing.T) {
	var n nonces
	at := func(i int) (v [12]byte) {
		v[0], v[1], v[2] = byte(i), byte(i>>8), byte(i>>16)
		return v
	}
	now := time.Hour
	if !n.first(at(1), now) || n.first(at(1), now) || n.first(at(1), now+evidence.SessionLifetime) || n.first(at(1), now+nonceLife) {
		t.Error("a context was forgotten while it is valid")
	}
	n = nonces{}
	n.first(at(1), now)
	n.first(at(2), now+nonceLife-time.Second)
	if n.first(at(2), now+2*nonceLife-2*time.Second) {
		t.Error("a late one was forgotten with the early ones")
	}
	if !n.first(at(1), now+5*nonceLife) || len(n.former) != 0 {
		t.Error("old ones take room for ever")
	}
	n = nonces{}
	for i := range 3 * maxNonces {
		n.first(at(i), now)
	}
	if len(n.current)+len(n.former) > 2*maxNonces {
		t.Error("a flood takes memory without bound")
	}
}

func TestOldAnchorsAreReadOnce(t *testing.T) {
	n := inTPMMode(t)
	first := n.trust.of(n.snap)
	n.edit(func(s *policy.State) { s.Hosts = nil })
	if n.trust.of(n.snap) != first {
		t.Error("anchors were read again because of a change of something else")
	}
	n.edit(func(s *policy.State) { s.VendorsOff = map[string]bool{"x": true} })
	if n.trust.of(n.snap) == first {
		t.Error("a vendor that was switched off is still trusted")
	}
}

// FuzzTPMAttest: no body without a TPM behind it gets a certificate, and none
// brings the service down.
func FuzzTPMAttest(f *testing.F) {
	n := inTPMMode(f)
	ek, certificate := spki(f, n.hostKey), ekCertificate(f, n)
	f.Add(initial(ek, 1, 2), false)
	f.Add(version2(4, certificate), true)
	w := n.do("POST", tpmV1, initial(ek, 1))
	reply, err := hgsa.ParseReply(w.Code, w.Body.Bytes())
	if err != nil {
		f.Fatal(err)
	}
	order, err := evidence.PrivateCodec.DecodeOrder(reply.(*hgsa.TpmReplyContinue).RtpmActiveContext)
	if err != nil {
		f.Fatal(err)
	}
	answer, err := evidence.PrivateCodec.EncodeAnswer(&evidence.Answer{State: order.State, Responses: [][]byte{{0x80, 1, 0, 0, 0, 10, 0, 0, 1, 0x8b}}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(goOn(ek, answer), false)
	f.Add(version2(4, certificate, 2, answer), true)
	f.Fuzz(func(t *testing.T, body []byte, second bool) {
		path := tpmV1
		if second {
			path = tpmV2
		}
		w := n.do("POST", path, body)
		reply, _, err := hgsa.DecodeReply(w.Body.Bytes())
		if _, passed := reply.(*hgsa.HealthCertificateReply); err != nil || passed || w.Code >= 500 && w.Code != 503 {
			t.Fatalf("%d %s: %v", w.Code, w.Body, err)
		}
		n.audit, n.refusals, n.observed = nil, nil, nil
	})
}
