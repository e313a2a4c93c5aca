// Package clock turns answers of time servers into policy.TrustedTime, and is its only maker. It promises that a value it makes
// contains true UTC as long as a majority of the configured servers tell the truth within their own error bounds, that it never lies
// before the floor, that it grows less certain by itself until it expires, and that it is taken back when the servers contradict it.
//
// Selection: every server gives an interval, its time +- root distance; the clock looks for the point that lies in most intervals and wants
// more than half of all configured servers to contain it (RFC 5905 section 11.2.1 in its simplest strict form). Servers outside are
// falsetickers and named. The value made is the intersection of those inside. It depends on nothing but the newest answer of each server
// and the rate of the oscillator, so that an earlier lie can't outlast the liar by more than the minute in which later votes refute a wrong
// rate.
//
// Peers: other nodes have a voice where the servers alone are undecided, and nowhere else; they never lead. Where two or more servers make a
// strict majority, peers are not asked: the vote is the same to the bit, whatever they say; who contradicts it is named. Half of an even
// number of servers is a tie, which peers that agree with it break, if more than half of the servers and the answering peers together are
// for it. A single server is undecided while more peers contradict it than agree with it: it is not followed, and what was foretold before
// is made wide enough for what it says. A peer that does not answer, has no trusted time, or one that administrators approved, has no
// voice and does not count; nor does one that the link between nodes has not accepted (package cluster), which it does only where both
// trust a time: before the first majority servers are alone. An interval is made of what servers say alone; with less than half of them peers count for nothing, be they
// many: who took over all peers and one server and cuts off the others gains nothing. So whatever peers say, the promise above holds; what
// those that were taken over can do is to choose between halves that contradict each other and to stop a node that has a single server.
// (The ledger relays what peers say: taken over, it is all of them.) Peers don't touch the rate, the wall clock, the leap second, the floor,
// or how often servers are asked, and end no suspicion. Nodes that agree with each other don't make each other more certain: where no
// server answers, each stops at its own bound.
//
// Time scales: everything here is measured in Raw, the oscillator that nobody disciplines (CLOCK_MONOTONIC_RAW). The wall clock, and with
// it CLOCK_BOOTTIME, by which others read a TrustedTime, run faster or slower by the rate that Discipline set; a TrustedTime says so in
// RatePPM. A clock that dies while it slews leaves that rate in the kernel and the same rate in the value.
//
// Discipline: the wall clock is stepped before the first majority and on an administrator's word, never otherwise; after that it is slewed
// by at most 500 ppm, the oscillator's own error included.
//
// Suspicion: after the first majority one that says another time than this clock foretold (by more than the bounds of both explain, or
// by more than 400 ms and what the oscillator may have drifted, at once or in steps within minutes), or any that says a time before the
// floor, is not followed. The value is withheld until an administrator decides (Approve), or until the servers have come back for a minute
// to what this clock has said all along: then the contradiction itself was taken back.
//
// Approvals: this package does not know administrators. The ledger decides whether enough of them approved and is believed by its uid; it
// needs no time for that and works before the first majority. Where there is nothing the ledger could decide by (before setup, or while it
// does not answer) init's word counts for a manual time: it has checked the volume's recovery secret, typed at the serial line, which gives
// whoever has it the whole volume anyway. An approval is bound to this boot and dies
// after 15 minutes of CLOCK_BOOTTIME. No approval brings the floor below the build date of the image, and a manual time is refused while
// a majority is in reach: a taken-over ledger could otherwise choose the time of a healthy node.
//
// Start: servers, limit, keys, drift, floor and a suspicion are kept on the sealed disk (Store), so that the clock needs the ledger for
// nothing but changes. The RTC is never believed; it is repaired.
//
// Rate: machines calibrate their oscillator anew at each boot, virtual ones badly. What an earlier boot measured is where to begin and no
// promise. Until this boot has measured, the oscillator is taken to be within 1 % of its nominal rate, the servers are asked often, the
// bound says what is not known, and what one constant rate explains is no suspicion but a property of this machine, which Status names
// when it is bad. Any two votes limit the rate (rateLimits); a vote that fits no rate between the limits refutes what was measured, and one
// that leaves the forecast by more than the limits explain is suspect. Servers that agree only without what was
// measured refute it, too, and an answer so old that the rate may have carried it off by a second is none. An oscillator that is off by more than the 500 ppm by which the wall
// clock may be slewed carries CLOCK_REALTIME away, which is not stepped: a TrustedTime says the rate and is not affected, log times are.
//
// Limits: an oscillator is taken to be within 1 % of its nominal rate until it was measured, and within 20 ppm of what was measured
// afterwards (temperature). One that stops for seconds with its virtual machine, or changes its rate with a migration, is wrong until the
// next vote; nothing here can tell a pause from servers that jumped, so beyond jumpSlack it is a suspicion, and administrators decide: one
// that ended by itself because the servers insist would be none. The bound of a manual time grows by 1 %, too, on a machine that had no
// majority in this boot: by 14 minutes in its 24 hours. A majority that lies together from the first answer on is believed, its honest
// minority is named, and only the floor contradicts it; one that lies by less than its bounds, or drags slowly, is not seen. With one or
// two servers there is no majority worth its name: it works, says so and doubles the bound. A leap second is expected only where a majority
// announces it.
package clock

import (
	"time"
)

// Limits and rates. Durations; rates in parts per million.
const (
	MaxSources = 8
	// UnmeasuredPPM is how far an oscillator may be off before this boot has measured it: 1 % (10,101 ppm seen from a clock that is slow by
	// it). Kernels calibrate the TSC within milliseconds of a PIT or HPET; on a busy virtual machine that has been wrong by thousands of ppm,
	// differently at each boot. A later calibration of its own that differs by more than 1 % the kernel drops.
	UnmeasuredPPM = 10_200.0
	FreshPPM      = 100.0                  // what a crystal may be off: the least uncertainty until the rate was measured for rateSpan
	WanderPPM     = 20.0                   // what it may leave its measured rate by, with temperature and age
	MaxSlewPPM    = 500.0                  // of the wall clock against the oscillator, the kernel's own limit
	MaxOffset     = 400 * time.Millisecond // a larger one after the first majority is suspect
	ManualBound   = 5 * time.Minute
	ManualLife    = 24 * time.Hour
	ApprovalLife  = 15 * time.Minute

	minDistance = time.Millisecond // nobody is believed to be better
	// Beyond the bounds of both: for servers that think too well of themselves, and for virtual machines, whose clock loses up to 200 ms when
	// they are not scheduled. A lie of this size hurts nobody: certificates are judged by the second.
	jumpSlack    = 250 * time.Millisecond
	leapMargin   = 2 * time.Second // around a leap second, in which nobody's answer is used
	queryTimeout = 4 * time.Second
	lost         = 3 // failed questions in a row after which the last answer is forgotten
	// An answer is forgotten when the oscillator may have drifted by this since: made wide enough it agrees with anything, and the point where
	// its edge meets another server's answer would be taken for the time and, worse, for the rate. It is more than pollSlow brings at 1 %.
	stale = time.Second
)

// Reading is one look at the node's clocks. Raw is the undisciplined oscillator, Boot CLOCK_BOOTTIME, Wall the system clock.
type Reading struct {
	Raw, Boot time.Duration
	Wall      time.Time
}

// Clock is what is disciplined: the kernel's clock (Kernel), or one made of software in a test. Boot and Wall run at the same rate.
type Clock interface {
	// Read looks at all three clocks at once.
	Read() Reading
	// Step sets Wall; it does not touch Raw and Boot.
	Step(utc time.Time) error
	// Rate has Boot and Wall run faster than Raw by ppm, at most MaxSlewPPM either way.
	Rate(ppm float64) error
	// Applied is the rate in force, which may be from before a restart of the process.
	Applied() (ppm float64)
}

// Sample is one server's answer: at the reading Raw its time was UTC, give or take Distance.
type Sample struct {
	Raw      time.Duration
	UTC      time.Time
	Distance time.Duration
	Stratum  int
	Leap     int  // announced for the end of the month: +1 inserted, -1 deleted, 0 none
	Verified bool // made with the symmetric key that is configured for the server
}

// at carries the sample to the reading raw, by an oscillator that is slow by rate ppm and may be off by drift ppm.
func (s Sample) at(raw time.Duration, rate, drift float64) (lo, hi time.Time) {
	passed := raw - s.Raw
	mid := s.UTC.Add(passed + ppm(passed, rate))
	d := max(s.Distance, minDistance) + ppm(passed, drift)
	return mid.Add(-d), mid.Add(d)
}

// ppm is the part of d.
func ppm(d time.Duration, rate float64) time.Duration { return time.Duration(float64(d) * rate / 1e6) }

// Server names a time server. Key is the number of the symmetric key its answers must be made with, 0 = none. A Peer is another node, and
// Address the name by which the ledger knows it; see the package's word on peers.
type Server struct {
	Address string `json:"address"` // host or host:port
	Key     uint16 `json:"key,omitempty"`
	Peer    bool   `json:"peer,omitempty"`
	Pin     string `json:"pin,omitempty"` // of a peer: its key, so that what another of the same name said is not kept
}

// Source is a configured server and what it said.
type Source struct {
	Server
	Sample *Sample // newest answer; nil: none, or too many questions since then had none
	Err    error   // of the newest question
	State  string  // selected, falseticker, undecided (there is no majority), unreachable, waiting
	Jitter time.Duration
	Poll   time.Duration // until the next question

	answered bool          // ever
	failed   int           // questions in a row without an answer
	due      time.Duration // Raw of the next question
	asked    bool          // a question is out
	backoff  time.Duration // what it asked for by kiss of death
}
