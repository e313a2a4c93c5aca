package attest

import (
	"bytes"
	"maps"
	"reflect"
	"testing"

	"pgregory.net/rapid"

	"guardhouse/appliance/evidence"
	"guardhouse/appliance/hgsa"
	"guardhouse/appliance/policy"
)

// judgeAs judges a reading in the node's present snapshot.
func (n *node) judgeAs(s *Service, hostID string, reading *evidence.Reading) proved {
	q := &request{Service: s, snap: n.d.Snapshot()}
	host := q.snap.State.Hosts[hostID]
	ek, err := evidence.ParseEK(host.TPM.EK)
	if err != nil {
		panic(err)
	}
	e := q.judge(host, ek, reading)
	if e.verdict.Passed {
		q.good.news(&proved{host: host, log: e.log, facts: orFacts(e.facts), verdict: e.verdict}, q.d.BootTime())
	}
	return e
}

func orFacts(f *evidence.Facts) *evidence.Facts {
	if f == nil {
		return &evidence.Facts{}
	}
	return f
}

// TestUnchangedEvidenceIsJudgedOnce: the second time there are no facts, because
// nothing was proved; after any change of the records everything is.
func TestUnchangedEvidenceIsJudgedOnce(t *testing.T) {
	n, s := withBoot(t, 0)
	reading := &evidence.Reading{Bank: evidence.SHA256, PCRs: s.pcrs, Log: s.log}
	remembered := func(what string, want bool) {
		t.Helper()
		e := n.judgeAs(n.Service, n.hostID, reading)
		if !e.verdict.Passed || (e.facts == nil) != want {
			t.Fatalf("%s: remembered %t, passed %t, want %t", what, e.facts == nil, e.verdict.Passed, want)
		}
		key, err := e.identityKey(hgsa.VSMIdentityEncryptionKeyCertificate)
		if err != nil || !key.Equal(&n.vsmKey.PublicKey) {
			t.Fatalf("%s: %v", what, err)
		}
	}
	remembered("first", false)
	remembered("second", true)
	n.edit(func(*policy.State) {})
	remembered("after a change of the records", false)
	remembered("again", true)
	service := *n.snap.State.Service
	n.snap.State.Service = &service // other records that happen to have the same index, from a ledger that began anew
	remembered("under other records of the same index", false)
	remembered("again", true)
	n.boot += goodBootNews
	remembered("when the ledger must be told", false)
}

// TestNoStaleVerdict: whatever changes in the evidence, the host or the policies,
// a node that remembers says exactly what a node without memory says.
func TestNoStaleVerdict(t *testing.T) {
	n, s := withBoot(t, 0)
	good := *n.snap.State.Service
	start := n.snap.State
	rapid.Check(t, func(t *rapid.T) {
		n.snap.Index++
		n.snap.State = start
		service := good
		n.snap.State.Service = &service
		base := &evidence.Reading{Bank: evidence.SHA256, PCRs: s.pcrs, Log: s.log}
		warm := New(n.d)
		n.judgeAs(warm, n.hostID, base)
		if e := n.judgeAs(warm, n.hostID, base); e.facts != nil || !e.verdict.Passed {
			t.Fatal("nothing was remembered")
		}
		changed := *base
		host := n.hostID
		switch rapid.SampledFrom([]string{"log", "shorter log", "longer log", "PCR", "bank", "policy", "baseline", "revoked host", "other host"}).Draw(t, "what") {
		case "log":
			changed.Log = bytes.Clone(base.Log)
			changed.Log[rapid.IntRange(0, len(base.Log)-1).Draw(t, "byte")] ^= 1 << rapid.IntRange(0, 7).Draw(t, "bit")
		case "shorter log":
			changed.Log = base.Log[:rapid.IntRange(0, len(base.Log)-1).Draw(t, "length")]
		case "longer log":
			changed.Log = append(bytes.Clone(base.Log), rapid.SliceOfN(rapid.Byte(), 1, 64).Draw(t, "more")...)
		case "PCR":
			pcr := rapid.IntRange(0, 23).Draw(t, "pcr")
			changed.PCRs[pcr] = bytes.Clone(base.PCRs[pcr])
			changed.PCRs[pcr][rapid.IntRange(0, 31).Draw(t, "byte")] ^= 1 << rapid.IntRange(0, 7).Draw(t, "bit")
		case "bank":
			changed.Bank = rapid.SampledFrom([]evidence.Bank{evidence.SHA1, evidence.SHA384, evidence.SHA512}).Draw(t, "bank")
		case "policy":
			on := rapid.Bool().Draw(t, "on")
			b := rapid.SampledFrom(policy.Builtins[:]).Draw(t, "policy")
			n.edit(func(st *policy.State) {
				st.PolicySets = map[string]policy.PolicySet{policy.FabricWide: {Enabled: map[string]bool{b.Name: on}}}
			})
		case "baseline":
			n.edit(func(st *policy.State) { st.Baselines = map[string]policy.Baseline{} })
		case "revoked host":
			n.edit(func(st *policy.State) {
				h := st.Hosts[n.hostID]
				h.Revoked = true
				st.Hosts = maps.Clone(st.Hosts)
				st.Hosts[n.hostID] = h
			})
		case "other host": // of another class, with the same evidence
			n.edit(func(st *policy.State) {
				h := st.Hosts[n.hostID]
				h.ID, h.Class = policy.HostID([]byte("other")), "strict"
				st.Hosts = maps.Clone(st.Hosts)
				st.Hosts[h.ID] = h
				host = h.ID
			})
		}
		got, want := n.judgeAs(warm, host, &changed), n.judgeAs(New(n.d), host, &changed)
		if got.facts == nil && want.facts != nil {
			t.Fatal("changed evidence was taken for known")
		}
		for _, e := range []*proved{&got, &want} {
			for i := range e.verdict.Findings {
				e.verdict.Findings[i].Changed = "" // the other node knows of no last good boot
			}
		}
		if !reflect.DeepEqual(got.verdict, want.verdict) || got.log != want.log {
			t.Fatalf("%+v\nwithout memory %+v", got.verdict, want.verdict)
		}
	})
}
