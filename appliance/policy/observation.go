package policy

// Observation is something a node saw that no decision may depend on: node-local, bounded, lost without harm. Merging two of the same
// (Kind, Subject) keeps the newer Last, the older First and the larger Count, in any order (commutative).
type Observation struct {
	Kind    ObservationKind   `json:"kind"`
	Subject string            `json:"subject"`
	First   Stamp             `json:"first"`
	Last    Stamp             `json:"last"`
	Count   uint64            `json:"count"`
	Facts   map[string]string `json:"facts,omitempty"` // of the newer one
}

// ObservationKind names a class of observations; each has its own bound.
type ObservationKind string

const (
	ObservedHost     ObservationKind = "host"     // subject: host id; last attestation and its verdict
	ObservedPending  ObservationKind = "pending"  // subject: host id of an unknown host; facts: source, spki and, of a TPM, certificate (base64)
	ObservedIdentity ObservationKind = "identity" // subject: host id; facts: vsmKey, the hash of the key its last health certificate certifies
	ObservedOldTLS   ObservationKind = "tls-old"  // subject: address of a caller that offers no TLS 1.2; facts: offered, name (which it asked for)
	ObservedQuota    ObservationKind = "quota"    // subject: tenant that asked for more than its quota; facts: perMinute, source of who asked last
	// TPM mode; facts as appraise.Record makes them.
	ObservedGood     ObservationKind = "tpm-good"     // subject: host id; what its last boot that passed proved
	ObservedFindings ObservationKind = "tpm-findings" // subject: host id; why it last failed, and what that boot proved
)

// Bounds of observations.
const (
	MaxPending         = 1000 // unknown hosts
	MaxObservedSubject = 256  // bytes
)

// ObservedBounds says how many observations of each kind a node keeps, beyond which those that were seen longest ago go, and how many bytes
// of names and values the facts of each may have. The service that notes one stays below, the ledger drops what does not fit
// (Observation.Fits): whatever the public face sends, all together stay below 150 MB of memory.
var ObservedBounds = map[ObservationKind]struct{ Count, Facts int }{
	ObservedHost:     {MaxHosts, 1 << 10},   // verdict, its finding in one line, source
	ObservedIdentity: {MaxHosts, 160},       // hash of a key, source
	ObservedPending:  {MaxPending, 8 << 10}, // public key and certificate in base64, what that says, source
	ObservedOldTLS:   {1000, 512},           // version, name
	ObservedQuota:    {MaxTenants, 160},     // a number, source
	ObservedGood:     {10000, 4096},         // verdict and proved facts, packed
	ObservedFindings: {2048, 16 << 10},      // and findings, of at most appraise.MaxRecord bytes
}

// Fits reports whether a node keeps the observation: its kind is known, and it is within the bounds.
func (o *Observation) Fits() bool {
	bounds, known := ObservedBounds[o.Kind]
	size := 0
	for k, v := range o.Facts {
		size += len(k) + len(v)
	}
	stamp := func(s Stamp) bool { return len(s.Boot) <= MaxNameLength }
	return known && o.Subject != "" && len(o.Subject) <= MaxObservedSubject && len(o.Facts) <= MaxAuditFacts &&
		size <= bounds.Facts && stamp(o.First) && stamp(o.Last)
}
