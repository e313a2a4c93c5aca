package attest

import (
	"bytes"
	"crypto/hmac"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"maps"
	"math/rand"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"

	"guardhouse/appliance/appraise"
	"guardhouse/appliance/evidence"
	"guardhouse/appliance/hgsa"
	"guardhouse/appliance/policy"
)

// softTPM answers the commands of a conversation from nothing but a key and PCR
// values: what TCG Part 1 says, written a second time, without the code under
// test.
type softTPM struct {
	key                        *rsa.PrivateKey
	pcrs                       evidence.PCRs
	sessionKey, nonce          []byte
	counter                    uint32
	log                        []byte
	bank                       evidence.Bank // the one that is on; 0: SHA-256
	extended, seen, forgedHMAC bool
}

func be16(n int) []byte { return binary.BigEndian.AppendUint16(nil, uint16(n)) }

func be32(n uint32) []byte { return binary.BigEndian.AppendUint32(nil, n) }

func with2B(b []byte) []byte { return append(be16(len(b)), b...) }

func join(parts ...[]byte) []byte { return bytes.Join(parts, nil) }

func respond(tag int, body []byte) []byte {
	return join(be16(tag), be32(uint32(10+len(body))), be32(0), body)
}

// public is the key as the default template's TPM2B_PUBLIC.
func (s *softTPM) public() []byte {
	policy := bytes.Repeat([]byte{7}, 32)
	return with2B(join(be16(1), be16(0x0b), be32(0x000300b2), with2B(policy), be16(6), be16(128), be16(0x43), be16(0x10), be16(2048), be32(0), with2B(s.key.N.Bytes())))
}

func (s *softTPM) run(cmd []byte) []byte {
	be := binary.BigEndian
	switch be.Uint32(cmd[6:]) {
	case 0x173: // ReadPublic
		return respond(0x8001, join(s.public(), with2B(nil), with2B(nil)))
	case 0x176: // StartAuthSession
		n := int(be.Uint16(cmd[18:]))
		caller := cmd[20 : 20+n]
		secret := cmd[22+n:][:be.Uint16(cmd[20+n:])]
		salt, err := rsa.DecryptOAEP(sha256.New(), nil, s.key, secret, []byte("SECRET\x00"))
		if err != nil {
			return join(be16(0x8001), be32(10), be32(0x84))
		}
		s.nonce = bytes.Repeat([]byte{0x55}, 32)
		kdf := hmac.New(sha256.New, salt)
		kdf.Write(join(be32(1), []byte("ATH\x00"), s.nonce, caller, be32(256)))
		s.sessionKey = kdf.Sum(nil)
		return respond(0x8001, join(be32(0x02000000), with2B(s.nonce)))
	case 0x17e: // PCR_Read under the session
		return s.read(cmd)
	}
	return join(be16(0x8001), be32(10), be32(0x143))
}

func (s *softTPM) read(cmd []byte) []byte {
	auth := cmd[14:][:binary.BigEndian.Uint32(cmd[10:])]
	n := int(binary.BigEndian.Uint16(auth[4:]))
	caller, attributes := auth[6:6+n], auth[6+n]
	selection := cmd[14+len(auth):]
	if s.extended && !s.seen { // somebody extends a PCR between two readings
		s.counter, s.seen = s.counter+1, selection[8] != 0
	}
	bank := evidence.Bank(binary.BigEndian.Uint16(selection[4:]))
	if s.bank != bank && (s.bank != 0 || bank != evidence.SHA256) {
		return s.authentic(join(be32(s.counter), selection[:7], []byte{0, 0, 0}, be32(0)), caller, attributes)
	}
	params := join(be32(s.counter), selection, be32(8))
	for i := range 24 {
		if selection[7+i/8]&(1<<(i%8)) != 0 {
			params = append(params, with2B(s.pcrs[i])...)
		}
	}
	return s.authentic(params, caller, attributes)
}

// authentic is a response to PCR_Read under the session.
func (s *softTPM) authentic(params, caller []byte, attributes byte) []byte {
	s.nonce = bytes.Repeat([]byte{byte(rand.Int())}, 32)
	rp := sha256.Sum256(join(be32(0), be32(0x17e), params))
	mac := hmac.New(sha256.New, s.sessionKey)
	mac.Write(join(rp[:], s.nonce, caller, []byte{attributes}))
	sum := mac.Sum(nil)
	if s.forgedHMAC {
		for i := range sum {
			sum[i] ^= 0xff // far from the right one, whatever single bit is flipped
		}
	}
	return respond(0x8002, join(be32(uint32(len(params))), params, with2B(s.nonce), []byte{attributes}, with2B(sum)))
}

// answer is a host's answer to a context.
func (s *softTPM) answer(t testing.TB, w *httptest.ResponseRecorder) ([]byte, error) {
	t.Helper()
	reply, err := hgsa.ParseReply(w.Code, w.Body.Bytes())
	if err != nil {
		return nil, err
	}
	r, ok := reply.(*hgsa.TpmReplyContinue)
	if !ok {
		return nil, errDone
	}
	order, err := evidence.PrivateCodec.DecodeOrder(r.RtpmActiveContext)
	if err != nil {
		t.Fatal(err)
	}
	a := &evidence.Answer{State: order.State}
	if order.WantLog {
		a.Device, a.Log = &evidence.DeviceInfo{Version: 2, Interface: 3}, s.log
	}
	for _, cmd := range order.Commands {
		a.Responses = append(a.Responses, s.run(cmd))
	}
	b, err := evidence.PrivateCodec.EncodeAnswer(a)
	if err != nil {
		t.Fatal(err)
	}
	return b, nil
}

var errDone = errors.New("the host has its certificates")

// converse runs a conversation by v1.0 to its end; last is the last request.
func (n *node) converse(t testing.TB, s *softTPM, types ...hgsa.AttestationResultType) (w *httptest.ResponseRecorder, last []byte, rounds int) {
	t.Helper()
	ek := spki(t, s.key)
	last = initial(ek, types...)
	for ; rounds < 20; rounds++ {
		w = n.do("POST", tpmV1, last)
		answer, err := s.answer(t, w)
		if err != nil {
			return w, last, rounds
		}
		last = hgsa.EncodeRequest(&hgsa.TpmRequestContinue{TpmRequest: hgsa.TpmRequest{RequestedContent: types, RtpmPublicEndorsementKey: ek}, RtpmNewContext: answer}, hgsa.Style{})
	}
	t.Fatal("the conversation does not end")
	return nil, nil, 0
}

// windowsBoot is a boot that passes; more events of no meaning make its log as
// long as a real one.
func windowsBoot(t testing.TB, n *node, more int) *evidence.Writer {
	return windowsBootIn(t, n, more, evidence.SHA256)
}

func windowsBootIn(t testing.TB, n *node, more int, banks ...evidence.Bank) *evidence.Writer {
	t.Helper()
	return windowsBootWith(t, n, more, 1, banks...)
}

// windowsBootWith has a value of the variable SecureBoot, which is measured once and which nothing else contradicts.
func windowsBootWith(t testing.TB, n *node, more int, secureBoot byte, banks ...evidence.Bank) *evidence.Writer {
	t.Helper()
	w := evidence.NewWriter(banks...)
	w.Event(7, evidence.EventVariable, evidence.UEFIVariable("SecureBoot", []byte{secureBoot}))
	for _, v := range []string{"PK", "KEK", "db", "dbx"} {
		w.Event(7, evidence.EventVariable, evidence.UEFIVariable(v, bytes.Repeat([]byte(v), 40)))
	}
	for pcr := range 8 {
		w.Separator(pcr)
	}
	w.Event(7, evidence.EventVariableAuthz, evidence.UEFIVariable("db", []byte("authority")))
	idk, err := hgsa.EncodePublicKey(&n.vsmKey.PublicKey, hgsa.KeySIPA)
	if err != nil {
		t.Fatal(err)
	}
	digest := sha256.Sum256([]byte("policy"))
	system := [][]byte{evidence.TaggedIDK(idk, false), evidence.TaggedIDK(idk, true), evidence.TransferControl.Tagged(1, 4), evidence.VSMLaunch.Tagged(1, 8),
		evidence.HVCI.Tagged(1, 8), evidence.TaggedPolicy("policy", [4]uint16{1, 0, 0, 0}, evidence.SHA256, digest[:])}
	for _, id := range []evidence.SettingID{evidence.CodeIntegrity, evidence.PageFileEncryption, evidence.HibernationDisabled, evidence.DumpsDisabled, evidence.VBSIOMMU} {
		system = append(system, id.Tagged(1, 1))
	}
	for _, id := range []evidence.SettingID{evidence.BootDebug, evidence.KernelDebug, evidence.HypervisorDebug, evidence.TestSigning} {
		system = append(system, id.Tagged(0, 1))
	}
	w.Event(12, evidence.EventTag, evidence.TrustBoundary(system...))
	w.Event(13, evidence.EventTag, evidence.TrustBoundary(system...))
	real := realLog(t)
	for i := range more { // what real events hold: text, digests, certificates
		part := real[i*200%40000:][:200]
		w.Event(14, evidence.EventTag, evidence.TrustBoundary(evidence.Tagged(0x00060002, part...)))
	}
	for pcr := 12; pcr <= 14; pcr++ {
		w.Separator(pcr)
	}
	return w
}

// realLog is the boot log of a real machine with Windows, 43 KB.
func realLog(t testing.TB) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("..", "evidence", "testdata", "windows_gcp_shielded_vm.json"))
	var file struct{ Log struct{ Raw []byte } }
	if err == nil {
		err = json.Unmarshal(b, &file)
	}
	if err != nil || len(file.Log.Raw) < 43000 {
		t.Fatalf("%d bytes, %v", len(file.Log.Raw), err)
	}
	return file.Log.Raw
}

// withBoot gives a node that knows the boot's baseline and policy, and its TPM.
func withBoot(t testing.TB, more int) (*node, *softTPM) {
	n := inTPMMode(t)
	w := windowsBoot(t, n, more)
	s := &softTPM{key: n.hostKey, pcrs: w.PCRs(evidence.SHA256), log: w.Log()}
	facts, failure := evidence.ParseBaseline(w.Log())
	if failure != nil {
		t.Fatal(failure)
	}
	n.edit(func(st *policy.State) {
		base := policy.Baseline{Name: "base", Version: policy.Version1}
		base.Variables, base.Authorities, base.NoDMA = appraise.Baseline(facts)
		digest := sha256.Sum256([]byte("policy"))
		st.Baselines = map[string]policy.Baseline{"base": base}
		st.CIPolicies = map[string]policy.CIPolicy{"ci": {Name: "ci", Version: policy.Version1, Digests: []policy.HashValue{{Alg: 0x000b, Digest: digest[:]}}}}
	})
	return n, s
}

func TestWholeConversationWithASecondImplementation(t *testing.T) {
	n, s := withBoot(t, 0)
	w, last, rounds := n.converse(t, s, 1, 2)
	if err := n.takes(w, 1, 2); err != nil || rounds != 5 {
		t.Fatalf("%v after %d rounds: %+v", err, rounds, n.audit)
	}
	e := n.audit[0]
	if len(n.audit) != 1 || e.Kind != policy.AuditGrant || e.Facts["baseline"] != "base" || e.Facts["ciPolicy"] != "ci" || e.Facts["vsmKey2"] == "" || len(e.Facts) > policy.MaxAuditFacts {
		t.Errorf("%+v", n.audit)
	}
	// The copy of the last request is refused here.
	if _, err := hgsa.ParseReply(200, n.do("POST", tpmV1, last).Body.Bytes()); err == nil {
		t.Error("a repeated context was answered")
	}
	// A PCR that is extended between two readings has everything read again.
	s.extended = true
	if w, _, rounds = n.converse(t, s, 2); n.takes(w, 2) != nil || rounds <= 5 {
		t.Errorf("%d rounds: %s", rounds, w.Body)
	}
	// No durable audit entry, no certificate.
	n.auditErr = errors.New("disk full")
	if w, _, _ = n.converse(t, s, 1); w.Code != 503 || n.takes(w, 1) == nil {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	n.auditErr = nil
	s.forgedHMAC = true
	if w, _, _ = n.converse(t, s, 1); n.takes(w, 1) == nil || n.audit[len(n.audit)-1].Outcome != outcomeForged {
		t.Errorf("%s %+v", w.Body, n.audit)
	}
}

func TestGoodBootIsToldWhenItIsNews(t *testing.T) {
	n, s := withBoot(t, 0)
	told := func() (good, bad int) {
		for _, o := range n.observed {
			switch o.Kind {
			case policy.ObservedGood:
				good++
			case policy.ObservedFindings:
				bad++
			}
		}
		n.observed = nil
		return good, bad
	}
	step := func(what string, good, bad int) {
		t.Helper()
		n.converse(t, s, 1)
		if g, b := told(); g != good || b != bad {
			t.Errorf("%s: %d good and %d bad boots told, want %d and %d", what, g, b, good, bad)
		}
	}
	step("first", 1, 0)
	step("again", 0, 0)
	n.boot += goodBootNews
	step("later", 1, 0)
	honest := s.log
	s.log = honest[:len(honest)/2]
	step("failed", 0, 1)
	s.log = honest
	step("after a failure", 1, 0)
	n.edit(func(st *policy.State) {
		st.Baselines = map[string]policy.Baseline{"renamed": st.Baselines["base"]}
	})
	step("matched otherwise", 1, 0)
}

func TestHostRevokedWhileTheTokenSignsGetsNothing(t *testing.T) {
	n, s := withBoot(t, 0)
	n.onSign = func() {
		n.edit(func(st *policy.State) {
			h := st.Hosts[n.hostID]
			h.Revoked = true
			st.Hosts = maps.Clone(st.Hosts)
			st.Hosts[n.hostID] = h
		})
	}
	if w, _, _ := n.converse(t, s, 1); n.takes(w, 1) == nil || len(n.audit) != 1 || n.audit[0].Kind != policy.AuditRefusal {
		t.Errorf("%s %+v", w.Body, n.audit)
	}
}
