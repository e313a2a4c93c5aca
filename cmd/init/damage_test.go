package main

import (
	"strings"
	"testing"
	"time"

	"guardhouse/appliance/disk"
)

func TestTellsOfPlacesThatGiveNoData(t *testing.T) {
	n := testNode(t)
	problems := func() string {
		var list []string
		for _, p := range n.status().Problems {
			if p.Remedy == "" {
				t.Errorf("%s has no remedy", p.Kind)
			}
			list = append(list, p.Kind+": "+p.What)
		}
		return strings.Join(list, "\n")
	}
	n.kernelSays("device-mapper: crypt: dm-1: INTEGRITY AEAD ERROR, sector 2056")
	n.kernelSays("device-mapper: crypt: dm-1: INTEGRITY AEAD ERROR, sector 2056")
	n.kernelSays("random: crng init done")
	if len(n.damage.queue) != 2 {
		t.Fatalf("%d of two lines heard", len(n.damage.queue))
	}
	for range 2 {
		n.nameDamage(<-n.damage.queue)
	}
	n.tellDamage()
	if got := problems(); !strings.HasPrefix(got, "data-corrupt: ") || !strings.Contains(got, "at sector 2056 (no file") || strings.Contains(got, "places") {
		t.Error(got)
	}
	n.nameDamage(disk.Damage{Sector: 8})
	n.tellDamage()
	if got := problems(); !strings.Contains(got, "data-unreadable: the data disk reports errors at sector 8 ") {
		t.Error(got)
	}
	n.kernelSays("EXT4-fs (dm-1): Remounting filesystem read-only")
	if got := problems(); !strings.Contains(got, "data-filesystem: the file system of the data volume is damaged: Remounting") {
		t.Error(got)
	}
	n.forgetDamage()
	if got := problems(); strings.Contains(got, "sector") {
		t.Error(got)
	}
}

func TestNamesFilesFirstAndNotAllPlaces(t *testing.T) {
	places := map[int64]place{8: {changed: true}, 16: {changed: true}, 24: {changed: true, file: "/data/ledger/\x1b[2Jx"}, 32: {changed: true}, 40: {}}
	got := describeDamage(places, true)
	if !strings.HasPrefix(got, "4 places: sector 24 (/data/ledger/") || !strings.HasSuffix(got, "sector 16 (no file: free, or the file system's own), ..") || strings.Contains(got, "\x1b") {
		t.Error(got)
	}
	if got := describeDamage(nil, true); got != "" {
		t.Error(got)
	}
}

// A shut volume has its reason in what it lost rather than in the program that could not read it.
func TestTellsOfDamageWhereTheDiskStaysShut(t *testing.T) {
	n := testNode(t)
	n.diskFailed(&disk.Error{Kind: disk.KindFailed, What: "can't mount", Remedy: "restart"})
	n.nameDamage(disk.Damage{Sector: 8, Changed: true})
	n.tellDamage()
	if s := n.fiveLines(n.obstacle(time.Second)); !strings.Contains(s, "["+kindChanged+"]") || strings.Count(s, "\n") > 4 {
		t.Error(s)
	}
}

// More than anybody could read is not kept: the kernel's lines must never fill init's memory, nor make it wait.
func TestHearsEndlessDamageInBoundedMemory(t *testing.T) {
	n := testNode(t)
	for i := range 3 * damageQueue {
		n.damaged(disk.Damage{Sector: int64(i) * 8, Changed: true})
	}
	for i := range 2 * damageMost {
		n.damage.places[int64(i)] = place{}
	}
	before := len(n.damage.places)
	n.nameDamage(disk.Damage{Sector: -8})
	if len(n.damage.places) != before {
		t.Error("it keeps on growing")
	}
}
