// Package appraise decides what a host's evidence is worth under the cluster's policies: a list of findings, empty for a host that passes.
//
// Promise: Judge reports every policy that fails at once, each with what was measured, what would be right, and what to do; it never
// passes a host for want of evidence: a setting that was not measured counts as the unsafe one, except where firmware measures it only
// when it is unsafe. The same input gives the same verdict, on every node.
//
// The rules (hgsa.md 13.20; D17, C20). A host passes if its endorsement key is registered and not revoked, if in version v2 that key's
// certificate leads to a trusted root, if its boot log proves what it says, if one baseline and one code integrity policy of the host's
// own version match, and if each built-in policy that holds for its class is met. A baseline matches if Secure Boot's variables (except
// SecureBoot itself, which has its own policy) and the whole list of launch authorities are the same, and firmware's DMA protection is no worse.
//
// Limits: pure; no files, sockets, clocks. Whether the facts are proved is package evidence's affair, whether they are fresh is the
// session's. A certificate's validity period refuses nobody, because a TPM is as genuine after it as before: [Trust.Dates] tells
// administrators of it when a host is registered or shown.
package appraise

import (
	"guardhouse/appliance/evidence"
	"guardhouse/appliance/policy"
)

// Input is one host's evidence and what it is judged by.
type Input struct {
	State policy.State
	// Trust is made from State by NewTrust and kept as long as the anchors are the same; nil makes one for this call only.
	Trust *Trust
	// Host is the record found by the endorsement key's id; the zero Host stands for none.
	Host policy.Host
	// EK is the key with which the reading of the PCRs was authenticated. It must be Host's.
	EK *evidence.EK
	// Facts is what the log proved; nil if it proved nothing, and then Failure says why.
	Facts   *evidence.Facts
	Failure *evidence.Failure
	// LastGood is what this host's last boot that passed proved, nil if none is known. It is only shown, never counts.
	LastGood *evidence.Facts
}

// Verdict is what came out. Findings is empty exactly if the host passes.
type Verdict struct {
	Passed   bool                 `json:"passed"`
	Version  policy.PolicyVersion `json:"version,omitempty"` // under which the host was judged
	Matched  Matched              `json:"matched"`
	Findings []Finding            `json:"findings,omitempty"` // in the order of policy.Builtins; those about the host itself first
}

// Matched names the registrations that the evidence matched (D17), empty where none did.
type Matched struct {
	Host     string `json:"host,omitempty"` // by its TPM
	Baseline string `json:"baseline,omitempty"`
	CIPolicy string `json:"ciPolicy,omitempty"`
	DumpKey  string `json:"dumpKey,omitempty"`
}

// judge is one call at work.
type judge struct {
	in  *Input
	v   Verdict
	set policySet
}

// policySet is which policies hold for the host at hand, in the order of policy.Builtins.
type policySet [16]bool

// Judge decides. It is safe for concurrent use and keeps nothing of its input.
func Judge(in Input) Verdict {
	j := judge{in: &in}
	if !j.host() {
		return j.v
	}
	j.evidence()
	return j.v
}

// Review judges evidence alone, as if it came from host: for dry runs over stored facts, and for what somebody wants to register. Who the
// host is, and whether its TPM is trusted, is not looked at. Of in it takes State, Host (name, class and version), Facts, Failure and LastGood.
func Review(in Input) Verdict {
	j := judge{in: &in}
	j.v.Version = policy.Version2
	if in.Host.TPM != nil {
		j.v.Version = in.Host.TPM.Version
	}
	j.evidence()
	return j.v
}

// evidence judges what the host booted.
func (j *judge) evidence() {
	if j.in.Facts == nil {
		j.add(logFinding(j.in.Failure))
		return
	}
	for i := range policy.Builtins {
		j.set[i], _ = j.in.State.Enabled(&policy.Builtins[i], j.in.Host.Class)
	}
	for i := range policy.Builtins {
		if j.set[i] {
			j.policy(&policy.Builtins[i])
		}
	}
	j.v.Passed = len(j.v.Findings) == 0
}

func (j *judge) add(f Finding) { j.v.Findings = append(j.v.Findings, f) }

// on reports whether a policy holds for the host.
func (j *judge) on(name string) bool {
	for i := range policy.Builtins {
		if policy.Builtins[i].Name == name {
			return j.set[i]
		}
	}
	return false
}

// host judges who it is; false means that nothing else about it may be looked at.
func (j *judge) host() bool {
	h, t := &j.in.Host, j.in.Host.TPM
	switch {
	case h.ID == "" || t == nil:
		j.add(about(UnknownHost, "no host is registered with this TPM", "look at host pending and accept it if it is yours", "host pending"))
		return false
	case j.in.EK == nil || j.in.EK.ID() != h.ID:
		j.add(about(WrongEK, "the PCRs were read under another endorsement key than the one registered", "capture the platform identifier again: was the mainboard or TPM replaced?", ""))
		return false
	case h.Revoked:
		j.add(about(Revoked, "the host is revoked", "restore it, if it may work again", "host restore "+h.Name))
		return false
	}
	j.v.Version, j.v.Matched.Host = t.Version, h.Name
	if t.Version != policy.Version2 {
		return true
	}
	trust := j.in.Trust
	if trust == nil {
		trust, _ = NewTrust(j.in.State)
	}
	if err := trust.Check(t.EKCert, j.in.EK); err != nil {
		j.add(untrustedFinding(err))
	}
	return true
}

// Reasons are the GUIDs of the failed policies, each once, in the order of hgsa.md's replies (13.12: failed ones only).
func (v *Verdict) Reasons() (guids []string) {
	for i := range policy.Builtins {
		for k := range v.Findings {
			if v.Findings[k].Policy == policy.Builtins[i].Name {
				guids = append(guids, policy.Builtins[i].GUID)
				break
			}
		}
	}
	return guids
}

// Has reports whether a finding of this kind is among them.
func (v *Verdict) Has(kind Kind) bool {
	for i := range v.Findings {
		if v.Findings[i].Kind == kind {
			return true
		}
	}
	return false
}

// Unauthorized reports whether the host itself is refused, whatever it booted: UnauthorizedErrorReply.
func (v *Verdict) Unauthorized() bool {
	return v.Has(UnknownHost) || v.Has(WrongEK) || v.Has(Revoked) || v.Has(UntrustedEK)
}

// LogRefused reports whether the log proved nothing: TcgLogValidationErrorReply.
func (v *Verdict) LogRefused() bool { return v.Has(BadLog) }

// Outcome is one word for audit and observations: "ok", or the kind of the first finding.
func (v *Verdict) Outcome() string {
	if v.Passed {
		return "ok"
	}
	if len(v.Findings) == 0 {
		return "unknown"
	}
	return string(v.Findings[0].Kind)
}
