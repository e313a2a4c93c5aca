package attest

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"sync"

	"guardhouse/appliance/appraise"
	"guardhouse/appliance/evidence"
	"guardhouse/appliance/policy"
)

// verdicts remembers hosts that passed, so that unchanged evidence under
// unchanged policies is not proved and judged again. An entry is good for one
// host, one log, one reading of all PCRs of one bank, and one snapshot of the
// records: a host's class and version, the trusted TPM vendors and the policies
// are all in those, and Judge reads nothing else. A refusal is never remembered:
// it has more to say (what changed since the last good boot) than a pass.
//
// It holds one boot of each host, and forgets everything when the snapshot
// changes, or when there are too many.
type verdicts struct {
	mu      sync.Mutex
	index   uint64
	service *policy.Service // the same for as long as the snapshot is the same
	passed  map[string]passedBoot
}

// passedBoot is all that is needed of a boot that passed to certify its keys.
type passedBoot struct {
	evidence  [sha256.Size]byte // digestOf
	matched   appraise.Matched
	version   policy.PolicyVersion
	idk, idks []byte // as in evidence.Facts
}

const maxVerdicts = 16 << 10 // of about 1.5 KB

// digestOf stands for everything that a host showed. Each part but the first has
// a length that the ones before it fix.
func digestOf(host string, log [sha256.Size]byte, reading *evidence.Reading) (sum [sha256.Size]byte) {
	h := sha256.New()
	h.Write(binary.BigEndian.AppendUint16(nil, uint16(len(host))))
	h.Write([]byte(host))
	h.Write(binary.BigEndian.AppendUint16(nil, uint16(reading.Bank)))
	h.Write(log[:])
	for _, v := range reading.PCRs {
		h.Write(binary.BigEndian.AppendUint16(nil, uint16(len(v))))
		h.Write(v)
	}
	h.Sum(sum[:0])
	return sum
}

// get gives what is remembered of this evidence under this snapshot.
func (v *verdicts) get(snap *policy.Snapshot, host string, evidence [sha256.Size]byte) (passedBoot, bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.index != snap.Index || v.service != snap.State.Service {
		return passedBoot{}, false
	}
	b, ok := v.passed[host]
	return b, ok && b.evidence == evidence
}

func (v *verdicts) put(snap *policy.Snapshot, host string, b passedBoot) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if _, ok := v.passed[host]; v.passed == nil || v.index != snap.Index || v.service != snap.State.Service || !ok && len(v.passed) >= maxVerdicts {
		v.index, v.service, v.passed = snap.Index, snap.State.Service, map[string]passedBoot{}
	}
	v.passed[host] = b
}

// judge proves and judges what a host showed, or remembers how that went.
func (q *request) judge(host policy.Host, ek *evidence.EK, reading *evidence.Reading) proved {
	log := sha256.Sum256(reading.Log)
	e := proved{host: host, reading: reading, log: hex.EncodeToString(log[:])}
	digest := digestOf(host.ID, log, reading)
	if b, ok := q.verdicts.get(&q.snap, host.ID, digest); ok && !q.good.due(host.ID, e.log, b.matched, q.d.BootTime()) {
		e.verdict = appraise.Verdict{Passed: true, Version: b.version, Matched: b.matched}
		e.idk, e.idks = b.idk, b.idks
		return e
	}
	var failure *evidence.Failure
	e.facts, failure = evidence.Prove(reading.Log, reading.PCRs, reading.Bank)
	in := appraise.Input{State: q.snap.State, Trust: q.trust.of(q.snap), Host: host, EK: ek, Facts: e.facts, Failure: failure}
	if e.verdict = appraise.Judge(in); !e.verdict.Passed {
		in.LastGood = q.good.get(host.ID) // only shown
		e.verdict = appraise.Judge(in)
		return e
	}
	e.idk, e.idks = e.facts.IDK, e.facts.IDKS
	q.verdicts.put(&q.snap, host.ID, passedBoot{digest, e.verdict.Matched, e.verdict.Version, e.idk, e.idks})
	return e
}
