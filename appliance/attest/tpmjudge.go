package attest

import (
	"crypto/rsa"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"

	"guardhouse/appliance/evidence"
	"guardhouse/appliance/hgsa"
	"guardhouse/appliance/policy"
)

// finding is one reason why a host fails.
type finding struct {
	policy hgsa.GUID
	text   string // kind, what was found, where
	remedy string
}

// judge says what is wrong with a host whose facts are proved; nothing = it passes.
func judge(policy.State, policy.Host, *evidence.Facts) []finding { return nil }

// appraise decides over an authentic reading: log, policies, keys, in this order.
func (q *request) appraise(host policy.Host, c claim, reading *evidence.Reading) {
	digest := sha256.Sum256(reading.Log)
	seen := map[string]string{"log": hex.EncodeToString(digest[:]), "mode": "TPM"}
	facts, failure := evidence.Prove(reading.Log, reading.PCRs, reading.Bank)
	if failure != nil {
		q.failed(host, hgsa.TcgLogValidationError(), outcomeLog, seen, []finding{{text: failure.Error(), remedy: logRemedy(failure.Kind)}})
		return
	}
	if findings := judge(q.snap.State, host, facts); len(findings) > 0 {
		var reasons []hgsa.GUID
		for _, f := range findings {
			if !slices.Contains(reasons, f.policy) {
				reasons = append(reasons, f.policy)
			}
		}
		q.failed(host, hgsa.PolicyEvaluationError(reasons...), outcomePolicy, seen, findings)
		return
	}
	o := order{session: c.session, begun: reading.Started, seen: seen, facts: map[string]string{"log": seen["log"],
		"device": fmt.Sprintf("version %d interface %d", reading.Device.Version, reading.Device.Interface)}}
	for _, t := range c.requested {
		key, err := identityKey(facts, t)
		if err != nil {
			q.failed(host, hgsa.VirtualSecureModeError(), outcomeVSMKeyInLog, seen, []finding{{text: err.Error(),
				remedy: "see that virtualization-based security runs on the host, with a version of Windows that measures both keys"}})
			return
		}
		o.wanted = append(o.wanted, wanted{t, key})
		o.facts[fmt.Sprintf("vsmKey%d", t)] = keyHash(key)
	}
	q.grant(host, o)
}

// identityKey is the key that the boot log shows for a type of certificate.
func identityKey(facts *evidence.Facts, t hgsa.AttestationResultType) (*rsa.PublicKey, error) {
	payload := facts.IDK
	if t == hgsa.VSMIdentitySigningKeyCertificate {
		payload = facts.IDKS
	}
	if payload == nil {
		return nil, fmt.Errorf("the boot log holds no VSM identity key for %s", t)
	}
	key, err := hgsa.ParsePublicKey(payload)
	if err != nil {
		return nil, fmt.Errorf("the boot log's VSM identity key for %s: %w", t, err)
	}
	return key.RSA, nil
}

const maxFindingsNoted = 10

// failed refuses a host that proved itself and does not pass: the reply says
// what the protocol has words for, the audit and the console get everything.
// Each different set of findings gets an entry of its own.
func (q *request) failed(host policy.Host, reply hgsa.Reply, outcome string, seen map[string]string, findings []finding) {
	facts := map[string]string{"host": host.Name, "log": seen["log"]}
	h := sha256.New()
	var lines []string
	for i, f := range findings {
		line := clip(f.text + "; " + f.remedy)
		fmt.Fprintln(h, line)
		lines = append(lines, line)
		if i < maxFindingsNoted {
			facts[fmt.Sprintf("finding%02d", i+1)] = line
		}
	}
	seen["verdict"] = outcome
	for i, line := range lines[:min(len(lines), maxFindingsNoted)] {
		seen[fmt.Sprintf("finding%02d", i+1)] = line
	}
	q.observeFacts(policy.ObservedHost, host.ID, seen)
	if !q.told.allow(host.ID+" "+outcome+" "+string(h.Sum(nil)), 1, q.d.BootTime()) {
		q.refuse(200, reply, refusal{outcome: outcome, subject: host.ID, detail: strings.Join(lines, " | "), remedy: findings[0].remedy})
		return
	}
	ctx, cancel := q.context(noteTimeout)
	defer cancel()
	entry := q.entry(policy.AuditRefusal, host.ID, outcome)
	entry.Detail, entry.Remedy, entry.Facts = findings[0].text, findings[0].remedy, facts
	if _, err := q.d.Audit(ctx, entry); err != nil {
		q.d.Log("attestation: refusal %s of host %s not noted: %v", outcome, host.Name, err)
	}
	q.reply(200, reply)
}

// logRemedy is what to do about a log that proves nothing.
func logRemedy(kind evidence.Kind) string {
	switch kind {
	case evidence.KindPCR, evidence.KindUnlogged, evidence.KindAfterCap:
		return "restart the host from power off; if it comes again, something between firmware and Windows measures without writing it down (an old PXE boot program, a boot kit)"
	case evidence.KindBank:
		return "switch the SHA-256 bank of the TPM on in the firmware's setup"
	case evidence.KindFirmware, evidence.KindVariables, evidence.KindUncapped:
		return "update the host's firmware"
	}
	return "restart the host; if it comes again, update its firmware and Windows, and see who can write to its boot log"
}
