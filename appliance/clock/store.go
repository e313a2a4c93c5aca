package clock

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"guardhouse/appliance/policy"
)

// Files of the clock's folder on the sealed disk, both 0600.
const (
	stateFile = "state.json"
	keysFile  = "keys.json"
	mostState = 256 << 10
)

// Intervals of Persist.
const (
	saveEvery = 10 * time.Minute // so much of the bound's growth and the drift may be lost with the power
	lookEvery = time.Second
)

// kept is what the clock knows without anybody: the sealed configuration, and what it had found out.
type kept struct {
	Version    int           `json:"version"`
	Configured bool          `json:"configured"`
	Servers    []Server      `json:"servers"`
	Limit      time.Duration `json:"limit"`
	DriftPPM   float64       `json:"driftPPM"`
	Floor      floors        `json:"floor"`
	State      State         `json:"state"`
	Reason     string        `json:"reason,omitempty"`
	Suspect    string        `json:"suspect,omitempty"`
	// The rest is worth something in the same boot only.
	Boot    string             `json:"boot"`
	Own     *known             `json:"own,omitempty"`
	Second  leap               `json:"second,omitzero"`
	Trusted policy.TrustedTime `json:"trusted,omitzero"`
	Locks   uint64             `json:"locks"`
	Locked  time.Duration      `json:"locked,omitempty"`
	At      time.Duration      `json:"lockedAt,omitempty"`
}

// Restore reads what an earlier process kept in dir. What was learnt since counts more: servers from the ledger, a time of this process.
// A folder without a file is fine; an unreadable file is put aside, and the error says so.
func (k *Keeper) Restore(dir string) error {
	path := filepath.Join(dir, stateFile)
	b, err := readSmall(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	var s kept
	if err == nil {
		err = json.Unmarshal(b, &s)
	}
	if err == nil && s.Version != 1 {
		err = fmt.Errorf("version %d is not known", s.Version)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("the clock's state was not readable and is put aside: %w", err), os.Rename(path, path+".bad"))
	}
	k.mu.Lock()
	told := k.told
	k.mu.Unlock()
	if !told && s.Configured {
		k.Configure(s.Servers, s.Limit)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	now := k.Clock.Read()
	k.restoreFloor(s.Floor)
	if len(k.dis.line) == 0 {
		k.dis.saved = min(max(s.DriftPPM, -UnmeasuredPPM), UnmeasuredPPM)
		k.dis.reset()
	}
	if k.state == Waiting && k.own == nil {
		k.restoreState(now, s)
	}
	return nil
}

func (k *Keeper) restoreFloor(f floors) {
	mine := k.floor
	k.floor = f
	k.floor.noted = f.Recorded
	if !mine.Recorded.IsZero() {
		k.floor.record(mine.Recorded, mine.From)
	}
}

// restoreState goes on where an earlier process of this boot ended. A suspicion outlives even the boot: who restarts a node has not
// decided anything.
func (k *Keeper) restoreState(now Reading, s kept) {
	if s.Boot == k.Boot && now.Raw >= 0 {
		k.locks, k.locked, k.lockedAt, k.second = s.Locks, s.Locked, s.At, s.Second
		if s.Own != nil && s.Own.Raw <= now.Raw {
			k.own = s.Own
		}
		switch {
		case (s.State == Locked || s.State == Holdover) && k.own != nil:
			k.state, k.reason = Holdover, "the clock was started anew and has heard no majority yet"
			k.inside = s.Trusted.Sources
			k.publish(now)
			k.inside = nil
		case s.State == Manual:
			k.state, k.reason = Manual, s.Reason
			k.set(s.Trusted)
		case s.State == Stopped:
			k.state, k.reason = Stopped, s.Reason
		}
		k.expire(now)
	}
	if s.State == Suspect {
		k.state, k.reason, k.suspect, k.worse = Suspect, s.Reason, s.Suspect, now.Raw
		k.withhold()
	}
}

// Keep writes what Restore reads.
func (k *Keeper) Keep(dir string) error {
	k.mu.Lock()
	s := kept{Version: 1, Configured: k.told, Limit: k.limit, DriftPPM: k.dis.saved, Floor: k.floor, State: k.state, Reason: k.reason, Suspect: k.suspect,
		Boot: k.Boot, Own: k.own, Second: k.second, Trusted: k.trusted, Locks: k.locks, Locked: k.locked, At: k.lockedAt}
	for _, src := range k.sources {
		s.Servers = append(s.Servers, src.Server)
	}
	k.dirty = false
	b, err := json.Marshal(s)
	k.mu.Unlock()
	if err != nil {
		return fmt.Errorf("encode the clock's state: %w", err)
	}
	return replace(filepath.Join(dir, stateFile), b)
}

// Resume restores from dir if it exists and was not restored from. Call it before anybody may ask: a process that starts anew must not take
// back for a moment what the one before it said.
func (k *Keeper) Resume(dir string) (resumed bool) {
	k.mu.Lock()
	resumed = k.resumed
	k.mu.Unlock()
	if resumed {
		return true
	}
	if _, err := os.Stat(dir); err != nil {
		return false
	}
	if err := k.Restore(dir); err != nil {
		k.Log("%v", err)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.resumed = true
	return true
}

// Persist resumes from dir as soon as it exists, which is when the data disk was opened, keeps the state there while ctx lasts, and once
// more at its end.
func (k *Keeper) Persist(ctx context.Context, dir string) {
	last, told := time.Time{}, ""
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		restored := k.Resume(dir)
		if restored {
			k.mu.Lock()
			due := k.dirty && k.told || time.Since(last) > saveEvery && k.state != Waiting
			k.mu.Unlock()
			if due || ctx.Err() != nil && !last.IsZero() {
				last = time.Now()
				if err := k.Keep(dir); err != nil && err.Error() != told {
					told = err.Error()
					k.Log("the clock's state was not kept: %v", err)
				}
			}
		}
		if ctx.Err() != nil {
			return
		}
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
}

// ReadKeys reads the symmetric keys from dir; there may be none.
func ReadKeys(dir string) ([]Key, error) {
	b, err := readSmall(filepath.Join(dir, keysFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	defer clear(b)
	var keys []Key
	if err == nil {
		err = json.Unmarshal(b, &keys)
	}
	if err != nil {
		return nil, fmt.Errorf("the time keys on the disk can't be read: %w", err)
	}
	return keys, nil
}

// WriteKeys replaces the symmetric keys in dir.
func WriteKeys(dir string, keys []Key) error {
	b, err := json.Marshal(keys)
	if err != nil {
		return fmt.Errorf("encode the time keys: %w", err)
	}
	defer clear(b)
	return replace(filepath.Join(dir, keysFile), b)
}

func readSmall(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, mostState+1))
	if err == nil && len(b) > mostState {
		err = fmt.Errorf("%s is longer than %d bytes", path, mostState)
	}
	return b, err
}

// replace writes a file so that after a power cut the old or the new one is there, whole.
func replace(path string, b []byte) error {
	f, err := os.OpenFile(path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := os.Rename(path+".new", path); err != nil {
		return err
	}
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
