package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"guardhouse/appliance/disk"
	"guardhouse/appliance/rpc"
	"guardhouse/appliance/supervise"
)

// Kinds of problems of an open volume. They do not begin as those do that keep it shut.
const (
	kindChanged    = "data-corrupt"    // sectors fail their integrity check
	kindUnreadable = "data-unreadable" // the disk reports errors
	kindTrouble    = "data-filesystem" // the kernel found the file system wrong
)

const (
	damageQueue   = 256 // places that wait to be named; the next check finds what did not fit
	damageMost    = 4096
	damageNamed   = 3 // places that a problem names
	scrubPatience = time.Minute
	scrubEvery    = 7 * 24 * time.Hour
	scrubIdle     = 4 // a fifth of one processor and of the disk
)

// damage is what is known of places of the data volume that give no data: the kernel tells of those that somebody wanted to read, and
// the check of the whole volume after each start, then weekly, finds the others.
type damage struct {
	queue chan disk.Damage
	scrub sync.WaitGroup // the check that runs has the device open

	mu     sync.Mutex
	places map[int64]place
	told   bool // on the serial line, once
}

type place struct {
	changed bool
	file    string // "" where it is no file's
}

func newDamage() damage {
	return damage{queue: make(chan disk.Damage, damageQueue), places: map[int64]place{}}
}

// next is one place that waits to be named; ok is false where none does.
func (d *damage) next() (next disk.Damage, ok bool) {
	select {
	case next = <-d.queue:
		return next, true
	default:
		return next, false
	}
}

// kernelSays looks at each line of the kernel's log. It must not wait.
func (n *node) kernelSays(line string) {
	if d, ok := disk.KernelDamage(line); ok {
		n.damaged(d)
	}
	if what := disk.KernelTrouble(line); what != "" {
		n.problem(kindTrouble, "the file system of the data volume is damaged: "+supervise.Clean(what),
			"restart the node, which repairs what can be repaired by itself; if it stays, replace the disk by a blank one and restore the node from a backup or from its cluster")
	}
}

func (n *node) damaged(d disk.Damage) {
	select {
	case n.damage.queue <- d:
	default:
	}
}

// watchDamage names places and tells of them until ctx ends, once a second: a dead disk has many.
func (n *node) watchDamage(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case d := <-n.damage.queue:
			for ok := true; ok; d, ok = n.damage.next() {
				n.nameDamage(d)
			}
			n.tellDamage()
		}
		if !pause(ctx, time.Second) {
			return
		}
	}
}

// nameDamage finds out whose place it is, which may read the disk.
func (n *node) nameDamage(d disk.Damage) {
	n.damage.mu.Lock()
	_, known := n.damage.places[d.Sector]
	known = known || len(n.damage.places) >= damageMost
	n.damage.mu.Unlock()
	if known {
		return
	}
	p := place{changed: d.Changed}
	if n.hasDisk() {
		p.file = disk.FileAt(dataDir, d.Sector)
	}
	n.damage.mu.Lock()
	n.damage.places[d.Sector] = p
	n.damage.mu.Unlock()
}

// tellDamage makes problems of what is known.
func (n *node) tellDamage() {
	n.damage.mu.Lock()
	changed, unreadable := describeDamage(n.damage.places, true), describeDamage(n.damage.places, false)
	tell := changed != "" && !n.damage.told
	n.damage.told = n.damage.told || tell
	n.damage.mu.Unlock()
	if tell {
		n.say("the data volume fails its integrity check at " + changed + "; status says what to do")
	}
	if changed != "" {
		changed = "the data volume fails its integrity check at " + changed + ": changed by somebody who had the disk, or decayed; what was there is lost, and nothing else is read in its place"
	}
	if unreadable != "" {
		unreadable = "the data disk reports errors at " + unreadable
	}
	const remedy = "find out who had the disk; replace it by a blank one and restore the node from a backup or from its cluster"
	n.problem(kindChanged, changed, remedy)
	n.problem(kindUnreadable, unreadable, remedy)
}

// damageStops is true where the node does not come up and what it lost may be the reason: the volume is shut, or the ledger keeps ending.
func (n *node) damageStops() bool {
	return !n.hasDisk() || slices.ContainsFunc(n.super.Status(), func(s rpc.ServiceStatus) bool {
		return s.Name == rpc.Ledger && s.State != supervise.StateReady && s.Restarts > 0
	})
}

// describeDamage is "sector 8 (/data/x)" or "12 places: sector 8 (/data/x), sector 24 (no file), .."; "" for none. Those in files come
// first.
func describeDamage(places map[int64]place, changed bool) string {
	var sectors []int64
	for _, s := range slices.Sorted(maps.Keys(places)) {
		if places[s].changed == changed {
			sectors = append(sectors, s)
		}
	}
	slices.SortStableFunc(sectors, func(a, b int64) int {
		return strings.Compare(map[bool]string{true: "1"}[places[a].file == ""], map[bool]string{true: "1"}[places[b].file == ""])
	})
	var list []string
	for _, s := range sectors[:min(damageNamed, len(sectors))] {
		file := places[s].file
		if file == "" {
			file = "no file: free, or the file system's own"
		}
		list = append(list, fmt.Sprintf("sector %d (%s)", s, supervise.Clean(file)))
	}
	text := strings.Join(list, ", ")
	if len(sectors) > 1 {
		text = fmt.Sprintf("%d places: %s", len(sectors), text)
	}
	if len(sectors) > damageNamed {
		text += ", .."
	}
	return text
}

// forgetDamage is for a volume that was just made: before every sector was written, reading one was refused.
func (n *node) forgetDamage() {
	for ok := true; ok; _, ok = n.damage.next() {
	}
	n.damage.mu.Lock()
	clear(n.damage.places)
	n.damage.mu.Unlock()
	n.tellDamage()
}

// scrubs checks the whole volume once the services had their start, and again and again.
func (n *node) scrubs(ctx context.Context) {
	for up := time.Duration(0); !n.hasDisk() || up < scrubPatience && !n.allReady(); up += time.Second {
		if !pause(ctx, time.Second) {
			return
		}
	}
	for {
		n.scrubOnce(ctx)
		if !pause(ctx, scrubEvery) {
			return
		}
	}
}

// pause is false where ctx ended first.
func pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

func (n *node) allReady() bool {
	return !slices.ContainsFunc(n.super.Status(), func(s rpc.ServiceStatus) bool { return s.State != supervise.StateReady })
}

// scrubOnce forgets places that give data again: they were written anew.
func (n *node) scrubOnce(ctx context.Context) {
	n.opening.Lock()
	v := n.volume
	n.opening.Unlock()
	if v == nil {
		return
	}
	n.damage.mu.Lock()
	before := slices.Collect(maps.Keys(n.damage.places))
	n.damage.mu.Unlock()
	start, seen := rpc.BootTime(), map[int64]bool{}
	err := v.Scrub(ctx, scrubIdle, func(d disk.Damage) {
		seen[d.Sector] = true
		n.damaged(d)
	})
	if err != nil {
		if ctx.Err() == nil {
			n.logf("check of the data volume: %v", err)
		}
		return
	}
	n.damage.mu.Lock()
	for _, s := range before {
		if !seen[s] {
			delete(n.damage.places, s)
		}
	}
	n.damage.mu.Unlock()
	n.tellDamage()
	n.logf("the whole data volume was checked in %s: %d places give no data", (rpc.BootTime() - start).Round(time.Millisecond), len(seen))
}
