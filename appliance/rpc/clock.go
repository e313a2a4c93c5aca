package rpc

import (
	"time"

	"guardhouse/appliance/policy"
)

// States of the clock, in ClockStatusReply.State.
const (
	ClockWaiting  = "waiting"  // no majority since the start; nothing is issued
	ClockLocked   = "locked"   // a majority of the servers agrees
	ClockHoldover = "holdover" // no majority any more; the last value holds until its bound has grown to the limit
	ClockSuspect  = "suspect"  // the servers contradict what was trusted, or the floor; nothing is issued until administrators decide
	ClockManual   = "manual"   // a time that administrators approved, until the first majority
	ClockStopped  = "stopped"  // there was a time, and it has grown too uncertain; nothing is issued
)

// ClockSource is one time server as the clock sees it, or a peer: another node, which votes and does not lead.
type ClockSource struct {
	Address       string        `json:"address"`
	State         string        `json:"state"`  // selected, falseticker, undecided (no majority), unreachable, waiting
	Offset        time.Duration `json:"offset"` // of the server's clock from this node's system clock
	Bound         time.Duration `json:"bound"`  // root distance
	Age           time.Duration `json:"age"`
	Error         string        `json:"error,omitempty"`
	Authenticated bool          `json:"authenticated,omitempty"` // its answers carry a code made with Key
	Key           uint16        `json:"key,omitempty"`
	Jitter        time.Duration `json:"jitter,omitempty"` // mean difference of successive offsets
	Poll          time.Duration `json:"poll,omitempty"`
	Peer          bool          `json:"peer,omitempty"` // Address is its name in the records
	Stratum       int           `json:"stratum,omitempty"`
	// Says is the server's own time now, Bound around it, for people who must compare. Zero: it never answered.
	Says time.Time `json:"says,omitzero"`
}

// ClockView is trusted time for people. It is another type than policy.TrustedTime on purpose: nothing can be signed with it.
type ClockView struct {
	OK        bool          `json:"ok"`
	Earliest  time.Time     `json:"earliest"`
	Latest    time.Time     `json:"latest"`
	Sources   []string      `json:"sources"`
	ExpiresIn time.Duration `json:"expiresIn"`
	Manual    bool          `json:"manual,omitempty"`
}

// ClockStatusReply is the clock's own view.
type ClockStatusReply struct {
	Trusted  ClockView        `json:"trusted"`
	Sources  []ClockSource    `json:"sources"`
	Problems []policy.Problem `json:"problems,omitempty"`

	State  string `json:"state"`            // one of the Clock constants
	Reason string `json:"reason,omitempty"` // why nothing is issued, or why the state is not locked
	// Why says in three sentences what the clock believes, why, and what comes next.
	Why []string `json:"why,omitempty"`
	// Decide says in the state suspect what administrators may do, a line for each thing that they may find.
	Decide []string `json:"decide,omitempty"`
	// Bound is half the width of the trusted interval now, Limit the bound at which issuing stops, StopsAt when that will be if no server
	// answers until then (zero where nothing is issued already).
	Bound   time.Duration `json:"bound,omitempty"`
	Limit   time.Duration `json:"limit,omitempty"`
	StopsAt time.Time     `json:"stopsAt,omitzero"`
	// RatePPM is by how much the oscillator was measured to be slow, DriftPPM how well that is known, SlewPPM what is being added to bring
	// the system clock to the time. Error is by how much the system clock is behind the servers' best estimate.
	RatePPM  float64       `json:"ratePPM,omitempty"`
	DriftPPM float64       `json:"driftPPM,omitempty"`
	SlewPPM  float64       `json:"slewPPM,omitempty"`
	Error    time.Duration `json:"error,omitempty"`
	// Floor is the moment before which no time is believed, FloorFrom what says so: image, clock, ledger, audit, tpm or approval.
	Floor     time.Time `json:"floor,omitzero"`
	FloorFrom string    `json:"floorFrom,omitempty"`
	// Boot and BootTime are this boot's id and the CLOCK_BOOTTIME reading of the reply: what an approval must be bound to.
	Boot     string        `json:"boot,omitempty"`
	BootTime time.Duration `json:"bootTime,omitempty"`
	// SinceLock is how long after the clock's first question the first majority of this boot came, LockedAt the CLOCK_BOOTTIME reading at
	// which it did; 0 = not yet.
	SinceLock time.Duration `json:"sinceLock,omitempty"`
	LockedAt  time.Duration `json:"lockedAt,omitempty"`
}

// Kinds of ClockApproveRequest.
const (
	ApproveManual  = "manual"  // UTC is the time now; only while no majority is in reach
	ApproveRelease = "release" // end a suspicion: believe what a majority of the servers says now
	ApproveFloor   = "floor"   // lower the floor to UTC, never below the build date of the image
)

// ApprovalLife is how long after Asked an approval is obeyed, by CLOCK_BOOTTIME.
const ApprovalLife = 15 * time.Minute

// ClockApproveRequest is what administrators decided about the time of this node. Whoever calls has checked the approvals: the ledger
// against its records; where nobody can be asked, because the node was not set up or the ledger does not answer, init against
// the recovery secret (InitTimeRecover, for ApproveManual alone). The clock checks that the decision was made for this boot, within ApprovalLife, and that it is one for its state.
type ClockApproveRequest struct {
	Kind     string        `json:"kind"`
	UTC      time.Time     `json:"utc,omitzero"` // manual: UTC when CLOCK_BOOTTIME was BootTime; floor: the new one
	Boot     string        `json:"boot"`         // boot id that the approvers saw
	BootTime time.Duration `json:"bootTime"`
	Asked    time.Duration `json:"asked"` // CLOCK_BOOTTIME at which it was first asked for
	By       []string      `json:"by"`    // who approved, for people and audit entries
}

// ClockFloorRequest tells the clock a moment that certainly lies in the past: the newest earliest bound of a trusted time in From (ledger,
// audit, tpm). What was recorded without trusted time must not be sent. The zero time only asks.
type ClockFloorRequest struct {
	Floor time.Time `json:"floor,omitzero"`
	From  string    `json:"from,omitempty"`
}

// ClockFloorReply is the floor in force. A later one is for the TPM to keep (at most daily and at shutdown).
type ClockFloorReply struct {
	Floor time.Time `json:"floor"`
	From  string    `json:"from"`
}

// TimeKey is a symmetric key shared with time servers. Algorithm is sha1, sha256, sha512, aes128 or aes256.
type TimeKey struct {
	ID        uint16 `json:"id"`
	Algorithm string `json:"algorithm"`
	Secret    []byte `json:"secret"`
}
