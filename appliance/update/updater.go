package update

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"guardhouse/appliance/disk"
	"guardhouse/appliance/policy"
)

// Phase is how far an update is.
type Phase string

// Phases, in their order.
const (
	Idle    Phase = ""        // no update is under way; both slots hold the running release
	Writing Phase = "writing" // the other slot is being written
	Written Phase = "written" // it holds a verified release, which was not booted yet
	Trial   Phase = "trial"   // the next boot is that release's, once
	Good    Phase = "good"    // it passed its checks: it is copied over the old one, then the floor rises
	Failed  Phase = "failed"  // it did not come up, or did not pass, or was taken back; see Why
)

// State is what a node remembers of an update, on its data volume.
type State struct {
	Version int    `json:"version"` // 1
	Phase   Phase  `json:"phase"`
	Slot    int    `json:"slot"`              // where the release was written
	Release uint64 `json:"release,omitempty"` // its number, version and the SHA-256 of its image
	Name    string `json:"name,omitempty"`
	SHA256  string `json:"sha256,omitempty"`
	From    uint64 `json:"from,omitempty"`  // the release that ran when it was written
	Reads   int    `json:"reads,omitempty"` // newest form of stored data that From reads; 0 is not known
	Why     string `json:"why,omitempty"`
	Broken  bool   `json:"broken,omitempty"` // the other slot did not start, and was not healed since
	Done    uint64 `json:"done,omitempty"`   // the last release that got as far as raising the floor
	Owed    []Owed `json:"owed,omitempty"`   // what the audit has not taken yet; releases that do not know the field forget it
}

// Store keeps the State; a power cut leaves the old one or the new one.
type Store interface {
	Load() (State, error) // a node that never had one: State{}
	Save(State) error
}

// FileStore is a Store in one file.
type FileStore struct{ Path string }

const maxState = 64 << 10

// Load reads the file.
func (f FileStore) Load() (State, error) {
	st, err := os.Stat(f.Path)
	if errors.Is(err, fs.ErrNotExist) {
		return State{}, nil
	}
	if err != nil || st.Size() > maxState {
		return State{}, fmt.Errorf("state of updates: %d bytes, %v", maxState, err)
	}
	b, err := os.ReadFile(f.Path)
	if err != nil {
		return State{}, fmt.Errorf("state of updates: %w", err)
	}
	var s State
	if err := json.Unmarshal(b, &s); err != nil || s.Version > 1 || s.Slot < 0 || s.Slot > 1 {
		return State{}, fmt.Errorf("state of updates: version %d, %v", s.Version, err)
	}
	return s, nil
}

// Save replaces the file.
func (f FileStore) Save(s State) error {
	b, err := json.Marshal(s)
	if err != nil {
		return err
	}
	return disk.ReplaceFile(f.Path, b)
}

// Updater takes one node from release to release. Its methods are for one goroutine at a time. Each step of it may be the last before
// the power fails: at every moment one slot holds a whole release that the version floor allows, and firmware comes to it.
//
// The order that this rests on: the running slot is never written. The other one is written only while the boot order begins with the
// running one. A new release comes first in the order only after it has passed its checks, the old one is overwritten only after
// that, and the floor rises only when both slots hold the new one.
type Updater struct {
	Entries *Entries
	Own     int // the slot that runs
	Release uint64
	Size    int64                                              // of a slot, bytes
	Format  int                                                // of the stored data
	Open    func(slot int) (Device, error)                     // for reading, and the other slot for writing; closed with it where it is an io.Closer
	Raise   func(floor uint64) error                           // the version floor
	Note    func(s State, action, outcome, detail string) Owed // makes an entry of what is decided here; nil = none
	Store   Store
	Log     func(format string, args ...any)

	state State
}

// Problems of updates: the kinds of policy.Problem that Resume gives.
const (
	KindFailed = "update-failed"
	KindState  = "update-state"
)

// State is the present state.
func (u *Updater) State() State { return u.state }

// Other is the slot that doesn't run.
func (u *Updater) Other() int { return 1 - u.Own }

// OnTrial reports whether this boot is a release's first, to be ended by MarkGood or Reject.
func (u *Updater) OnTrial() bool {
	return (u.state.Phase == Trial || u.state.Phase == Written) && u.state.Slot == u.Own && u.state.Release == u.Release
}

func (u *Updater) save(s State) error {
	s.Version = 1
	if err := u.Store.Save(s); err != nil {
		return fmt.Errorf("remember the update: %w", err)
	}
	u.state = s
	return nil
}

// Resume goes on after a boot with the data volume open: it reads the state, sets the boot order and gives what people should know. A
// boot on trial is left for MarkGood, an unfinished copy for Finish.
func (u *Updater) Resume() (policy.Problem, error) {
	s, err := u.Store.Load()
	if err != nil {
		s = State{Phase: Failed, Slot: u.Other(), Why: err.Error()} // worth nothing more than a new install
	}
	u.state = s
	why := ""
	switch {
	case u.OnTrial():
		return policy.Problem{}, u.Entries.Prefer(u.Other())
	case s.Phase == Writing:
		why = fmt.Sprintf("the writing of release %d was interrupted", s.Release)
	case s.Phase == Trial:
		next, pending, err := u.Entries.Next()
		if err != nil {
			return policy.Problem{}, err
		}
		if !pending || next != s.Slot {
			why = fmt.Sprintf("release %d was started and did not come up, or firmware did not start it", s.Release)
		}
	case s.Phase == Good && s.Slot != u.Own:
		why = fmt.Sprintf("release %d was good, but its slot does not start any more", s.Release)
	}
	if why != "" {
		s.Phase, s.Why = Failed, why
		u.owe(&s, "update.failed", "failed", why)
		if err := u.save(s); err != nil {
			return policy.Problem{}, err
		}
	}
	if err := u.Entries.Prefer(u.Own); err != nil {
		return policy.Problem{}, err
	}
	if u.state.Phase != Failed {
		return policy.Problem{}, nil
	}
	return policy.Problem{Kind: KindFailed, What: fmt.Sprintf("the update failed: %s; release %d goes on", u.state.Why, u.Release), Remedy: "see log show init, then install the update again"}, nil
}

// Begin prepares the other slot for writing: from now on it counts for nothing until Wrote.
func (u *Updater) Begin(m Manifest) error {
	switch {
	case u.OnTrial():
		return fmt.Errorf("release %d is still on trial; wait until it is marked good", u.Release)
	case u.state.Phase == Good:
		return fmt.Errorf("release %d is still being copied to the other slot; try again in a minute", u.Release)
	}
	if err := errors.Join(u.Entries.NotOnce(), u.Entries.Prefer(u.Own)); err != nil {
		return err
	}
	return u.save(State{Phase: Writing, Slot: u.Other(), Release: m.Number, Name: m.Version, SHA256: m.UKI.SHA256, From: u.Release, Reads: StoredFormat, Done: u.state.Done, Owed: u.state.Owed})
}

// Wrote ends the writing that Begin began: failed says why it did not succeed.
func (u *Updater) Wrote(failed error) error {
	s := u.state
	if s.Phase != Writing {
		return fmt.Errorf("nothing was being written (%s)", s.Phase)
	}
	s.Phase = Written
	if failed != nil {
		s.Phase, s.Why = Failed, failed.Error()
	}
	return u.save(s)
}

// Try has the next boot start the release that was written, once.
func (u *Updater) Try() error {
	if u.state.Phase != Written || u.state.Slot != u.Other() {
		return errors.New("no release is waiting for its first boot; install one")
	}
	// The entry first: if the power fails in between, the boot is on trial all the same.
	if err := u.Entries.Once(u.Other()); err != nil {
		return err
	}
	s := u.state
	s.Phase = Trial
	return u.save(s)
}

// MarkGood ends a trial: the release has passed its checks. Finish follows.
func (u *Updater) MarkGood() error {
	if !u.OnTrial() {
		return errors.New("this boot is not on trial")
	}
	if err := u.Entries.Prefer(u.Own); err != nil {
		return err
	}
	s := u.state
	s.Phase = Good
	u.owe(&s, "update.good", "ok", "services ready, HSM keys used, time trusted")
	return u.save(s)
}

// Finish copies the good release over the old one, verifies the copy and raises the floor. It does nothing where that is done.
func (u *Updater) Finish() error {
	if u.state.Phase != Good || u.state.Slot != u.Own {
		return nil
	}
	if err := u.Heal(); err != nil {
		return err
	}
	if err := u.Raise(u.Release); err != nil {
		return fmt.Errorf("raise the version floor: %w", err)
	}
	u.Log("update: release %d is in both slots, and the version floor is %d", u.Release, u.Release)
	s := State{Phase: Idle, Slot: u.Own, Release: u.state.Release, Name: u.state.Name, SHA256: u.state.SHA256, From: u.state.From, Done: u.Release, Owed: u.state.Owed}
	u.owe(&s, "update.floor", "ok", "both slots hold the release, and older ones do not get the data any more")
	return u.save(s)
}

// Heal copies the running slot to the other one. It may be called when no other release is there on purpose: in Good, Idle and Failed.
func (u *Updater) Heal() error {
	if u.OnTrial() || u.state.Phase == Writing || u.state.Phase == Written || u.state.Phase == Trial {
		return fmt.Errorf("the other slot holds release %d", u.state.Release)
	}
	own, other, done, err := u.both()
	if err != nil {
		return err
	}
	defer done()
	changed, err := CopySlot(other, own, u.Size)
	if changed && err == nil {
		u.Log("update: the running release was copied to slot %s", EntryNames[u.Other()])
	}
	if s := u.state; err == nil && s.Broken {
		s.Broken = false
		return u.save(s)
	}
	return err
}

// NoteBroken remembers that the other slot did not start, until Heal.
func (u *Updater) NoteBroken() error {
	s := u.state
	s.Broken = true
	return u.save(s)
}

func (u *Updater) both() (own, other Device, done func(), err error) {
	own, err = u.Open(u.Own)
	if err != nil {
		return nil, nil, nil, err
	}
	other, err = u.Open(u.Other())
	if err != nil {
		closeDevice(own)
		return nil, nil, nil, err
	}
	return own, other, func() { closeDevice(own); closeDevice(other) }, nil
}

func closeDevice(d Device) {
	if c, ok := d.(interface{ Close() error }); ok {
		c.Close()
	}
}

// Reject ends a trial that did not pass: the next boot is the old release's. why is for people.
func (u *Updater) Reject(why string) error {
	if !u.OnTrial() {
		return errors.New("this boot is not on trial")
	}
	if err := errors.Join(u.Entries.NotOnce(), u.Entries.Prefer(u.Other())); err != nil {
		return err
	}
	s := u.state
	s.Phase, s.Why = Failed, why
	u.owe(&s, "update.reject", "failed", why)
	return u.save(s)
}

// Back prepares the next boot, once, to be the other slot's, and tells what that means. A trial ends with it. Where no trial is under
// way, the other slot must hold the running release whole: after an update it does.
func (u *Updater) Back(who string) (string, error) {
	if u.OnTrial() {
		from := u.state.From
		if reads := u.state.Reads; reads != 0 && u.Format > reads {
			return "", fmt.Errorf("release %d reads stored data up to format %d, and this node's is %d by now: only release %d can go on with it", from, reads, u.Format, u.Release)
		}
		return fmt.Sprintf("release %d is given up; release %d starts again", u.Release, from), u.Reject("taken back by " + who)
	}
	if u.state.Phase != Idle {
		return "", fmt.Errorf("the other slot holds nothing that was good (%s)", u.state.Phase)
	}
	own, other, done, err := u.both()
	if err != nil {
		return "", err
	}
	defer done()
	same, err := SameSlots(own, other, u.Size)
	if err != nil {
		return "", err
	}
	if !same {
		return "", errors.New("the other slot does not hold the running release whole, and an older one is below the version floor")
	}
	return fmt.Sprintf("the next boot is the other slot's, once; it holds the same release %d", u.Release), u.Entries.Once(u.Other())
}
