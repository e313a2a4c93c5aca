package verb_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"

	"guardhouse/appliance/appraise"
	"guardhouse/appliance/evidence"
	"guardhouse/appliance/policy"
	"guardhouse/console/verb"
	"guardhouse/console/verb/verbtest"
)

// tpmNode is a node in TPM mode that trusts one vendor, with one host registered.
func tpmNode(t *testing.T, host string) (*verbtest.Fake, *verb.Session, *vendor) {
	t.Helper()
	f := verbtest.Start(t, true)
	s := f.Session(policy.DoorSSH)
	maker := newVendor(t)
	spki, cert := maker.tpm(t)
	mustCall(t, s, "service set --mode TPM", "")
	mustCall(t, s, "tpm-trust import lab", armor("CERTIFICATE", maker.cert.Raw))
	waitFor(t, f, func(st policy.State) bool { return len(st.Anchors) == 1 })
	mustCall(t, s, "host add-tpm "+host, platform(t, spki, cert))
	return f, s, maker
}

// adopted is a node with one host that passes, and its log.
func adopted(t *testing.T) (*verbtest.Fake, *verb.Session, []byte) {
	t.Helper()
	f, s, _ := tpmNode(t, "hv7")
	waitFor(t, f, func(st policy.State) bool { return len(st.Hosts) == 1 })
	log := bootLog("revoked", ciFile(false), nil)
	attest(t, f, "hv7", log)
	return f, s, log
}

// record is what the service notes of a boot that proved these facts.
func record(t *testing.T, log []byte, facts *evidence.Facts, edit func(map[string]string)) map[string]string {
	t.Helper()
	pcrs, failure := evidence.Replay(log, facts.Bank)
	if failure != nil {
		t.Fatal(failure)
	}
	m, err := appraise.Record(&appraise.Verdict{Findings: []appraise.Finding{{Kind: appraise.NoBaseline}}}, facts,
		map[string]string{"log": fmt.Sprintf("%x", sha256.Sum256(log)), "pcrs": appraise.RecordPCRs(facts.Bank, &pcrs)})
	if err != nil {
		t.Fatal(err)
	}
	if edit != nil {
		edit(m)
	}
	return m
}

// TestAdoptsOnlyWhatTheLogStillProves: facts that were changed on the disk, a log that was, and one that is gone are findings, and nothing
// can be registered of them.
func TestAdoptsOnlyWhatTheLogStillProves(t *testing.T) {
	f, s, log := adopted(t)
	snap, _ := f.Node.Snapshot()
	id := snap.State.HostsByName("hv7")[0].ID
	verify := func(line string) (v verb.EvidenceValue) {
		t.Helper()
		out, err := call(s, line, "")
		if err != nil {
			t.Fatal(err)
		}
		return out.Value.(verb.EvidenceValue)
	}
	if v := verify("evidence verify"); v.Boots != 1 || v.Proved != 1 || len(v.Findings) != 0 {
		t.Fatalf("%+v", v)
	}
	mustCall(t, s, "baseline add honest --host hv7 --dry-run", "")
	facts, failure := evidence.ParseBaseline(log)
	if failure != nil {
		t.Fatal(failure)
	}
	digest := fmt.Sprintf("%x", sha256.Sum256(log))
	lie := *facts
	lie.DumpKey = bytes.Repeat([]byte{7}, 32)
	otherPCR := func(m map[string]string) {
		bank, pcrs, err := appraise.RecordedPCRs(m["pcrs"])
		if err != nil {
			t.Fatal(err)
		}
		pcrs[7] = bytes.Repeat([]byte{1}, 32)
		m["pcrs"] = appraise.RecordPCRs(bank, &pcrs)
	}
	for name, c := range map[string]struct {
		record map[string]string
		log    []byte
		kind   string
	}{
		"facts changed":    {record(t, log, &lie, nil), log, "differs"},
		"another reading":  {record(t, log, facts, otherPCR), log, "differs"},
		"no reading":       {record(t, log, facts, func(m map[string]string) { delete(m, "pcrs") }), log, "damaged"},
		"half a reading":   {record(t, log, facts, func(m map[string]string) { m["pcrs"] = m["pcrs"][:len(m["pcrs"])-8] }), log, "damaged"},
		"another log":      {record(t, log, facts, nil), log[:len(log)-1], "damaged"},
		"the log is gone":  {record(t, log, facts, nil), nil, "missing"},
		"no fact recorded": {record(t, log, facts, func(m map[string]string) { delete(m, "facts0"); delete(m, "facts1") }), log, "differs"},
	} {
		f.KeepLog(digest, c.log)
		f.Observe(policy.ObservedFindings, id, c.record)
		v := verify("evidence verify --host hv7")
		if v.Proved != 0 || len(v.Findings) != 1 || v.Findings[0].Kind != c.kind || v.Findings[0].Host != "hv7" || v.Findings[0].Remedy == "" {
			t.Errorf("%s: %+v", name, v)
		}
		if name == "no fact recorded" {
			continue // there is nothing to register
		}
		for _, line := range []string{"baseline add b --host hv7", "ci-policy add c --host hv7", "dump-key add d --host hv7"} {
			if _, err := call(s, line, ""); err == nil || !strings.Contains(err.Error(), "proved again") {
				t.Errorf("%s: %s: %v", name, line, err)
			}
		}
	}
	f.KeepLog(digest, log)
	f.Observe(policy.ObservedFindings, id, record(t, log, facts, nil))
	mustCall(t, s, "baseline add honest --host hv7", "")
}

// BenchmarkDryRun tries a policy on the evidence of 10,000 hosts, all that an administrator waits for: s/10000-hosts is the bound's number.
func BenchmarkDryRun(b *testing.B) {
	const hosts = 10000
	f := verbtest.Start(b, true)
	log := bootLog("revoked", ciFile(false), nil)
	facts, failure := evidence.ParseBaseline(log)
	if failure != nil {
		b.Fatal(failure)
	}
	pcrs, failure := evidence.Replay(log, facts.Bank)
	if failure != nil {
		b.Fatal(failure)
	}
	size := 0
	f.EditState(func(st *policy.State) {
		base := policy.Baseline{Name: "base", Version: policy.Version2}
		base.Variables, base.Authorities, base.NoDMA = appraise.Baseline(facts)
		st.Baselines = map[string]policy.Baseline{"base": base}
		for i := range hosts {
			sum := sha256.Sum256(fmt.Appendf(nil, "host %d", i))
			h := policy.Host{ID: policy.HostID(sum[:]), Name: fmt.Sprint("hv", i), Class: "default", TPM: &policy.TPMIdentity{Version: policy.Version2}}
			st.Hosts[h.ID] = h
			m, err := appraise.Record(&appraise.Verdict{Passed: true}, facts, map[string]string{"log": fmt.Sprintf("%x", sum), "pcrs": appraise.RecordPCRs(facts.Bank, &pcrs)})
			if err != nil {
				b.Fatal(err)
			}
			if i == 0 {
				one, _ := json.Marshal(m)
				size = len(one)
			}
			f.Observe(policy.ObservedGood, h.ID, m)
		}
	})
	for limit := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		if snap, _ := f.Node.Snapshot(); len(snap.State.Hosts) == hosts {
			break
		}
		if time.Now().After(limit) {
			b.Fatal("the hosts did not arrive")
		}
	}
	s := f.Session(policy.DoorSSH)
	runtime.GC()
	var before, m runtime.MemStats
	runtime.ReadMemStats(&before)
	most := uint64(0)
	for b.Loop() {
		out, err := call(s, "policy enable Hgs_BitLockerEnabled --dry-run", "")
		if err != nil {
			b.Fatal(err)
		}
		if e := out.Value.(verb.Changed).Effect; e.Hosts != hosts || e.Judged != hosts || e.Failing+len(e.Fail)+len(e.Pass) != hosts {
			b.Fatalf("%d hosts, %d judged, %d fail as before, %d new", e.Hosts, e.Judged, e.Failing, len(e.Fail))
		}
		runtime.ReadMemStats(&m)
		most = max(most, m.HeapAlloc-min(m.HeapAlloc, before.HeapAlloc))
	}
	b.ReportMetric(b.Elapsed().Seconds()/float64(b.N), "s/10000-hosts")
	b.ReportMetric(float64(most)/(1<<20), "MiB-more-than-at-rest")
	b.ReportMetric(float64(size), "bytes/host")
}
