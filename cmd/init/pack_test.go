package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"guardhouse/appliance/hsm/pack"
	"guardhouse/appliance/sandbox"
	"guardhouse/appliance/supervise"
)

func TestOnlyWhoUsesTheHSMIsFenced(t *testing.T) {
	hsm, _ := sandbox.Find("hsm")
	if got := fencedUIDs(); !slices.Equal(got, []uint32{sandbox.HSMDaemonProcess.UID, hsm.UID}) {
		t.Errorf("fenced: %v", got)
	}
}

// TestNothingFencedStartsWithoutTheFence has a fence that can't be raised.
func TestNothingFencedStartsWithoutTheFence(t *testing.T) {
	n := testNode(t)
	n.fenced = make(chan struct{})
	n.pack = pack.Manifest{Connect: []string{"not an address"}, Daemon: []string{"/x"}}
	n.raiseFence()
	select {
	case <-n.fenced:
		t.Error("the fence counts as raised")
	default:
	}
	if r := n.status(); len(r.Problems) != 1 || r.Problems[0].Kind != "hsm-fence" {
		t.Errorf("%+v", r.Problems)
	}
}

func TestHelperWaitsForItsSiteDataAndFollowsIt(t *testing.T) {
	n := testNode(t)
	n.pack = pack.Manifest{Name: "vendor", Version: "1", Daemon: []string{"/helper"}, Site: []string{"client.pem", "world"}}
	if err := n.addHelper(); err != nil {
		t.Fatal(err)
	}
	find := func() string {
		for _, s := range n.super.Status() {
			if s.Name == sandbox.HSMDaemon {
				return s.State
			}
		}
		return "absent"
	}
	if find() != supervise.StateWaiting {
		t.Errorf("the helper is %s", find())
	}
	dir := t.TempDir()
	empty, missing := siteState(dir, n.pack.Site)
	if missing != "client.pem, world" {
		t.Errorf("missing: %q", missing)
	}
	n.siteProblem(missing)
	if r := n.status(); len(r.Problems) != 1 || !strings.Contains(r.Problems[0].What, "client.pem, world") || !strings.Contains(r.Problems[0].Remedy, "hsm site-data put") {
		t.Errorf("%+v", r.Problems)
	}
	seen := map[string]bool{empty: true}
	for i, name := range []string{"client.pem", "world", "world"} {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte{1}, 0o600); err != nil {
			t.Fatal(err)
		}
		at := time.Unix(1_800_000_000+int64(i), 0)
		os.Chtimes(file, at, at)
		state, _ := siteState(dir, n.pack.Site)
		if seen[state] {
			t.Errorf("step %d is not noticed", i)
		}
		seen[state] = true
	}
	_, missing = siteState(dir, n.pack.Site)
	if n.siteProblem(missing); missing != "" || len(n.status().Problems) != 0 {
		t.Errorf("still missing: %q", missing)
	}
}
