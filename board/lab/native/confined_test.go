package native

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"testing"

	"guardhouse/appliance/rpc"
)

var uidLine = regexp.MustCompile(`\nUid:\t(\d+)\t`)

// allConfined holds every process of the stack, those that a service started too, against what the kernel says of it.
func allConfined(t *testing.T, s *Stack) {
	t.Helper()
	for _, st := range s.Status() {
		if !st.Confined {
			t.Errorf("%s runs without its filter of system calls", st.Name)
		}
	}
	files, err := filepath.Glob("/proc/[0-9]*/status")
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]int{}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			continue // ended meanwhile
		}
		m := uidLine.FindSubmatch(b)
		for name, uid := range uids {
			if m == nil || uid == 0 || string(m[1]) != fmt.Sprint(uid) {
				continue
			}
			seen[name]++
			for _, want := range []string{"\nNoNewPrivs:\t1\n", "\nSeccomp:\t2\n", "\nCapEff:\t0000000000000000\n"} {
				if !bytes.Contains(b, []byte(want)) {
					t.Errorf("%s, a process of %s, has no %q", file, name, want)
				}
			}
		}
	}
	if seen[rpc.HSM] < 2 || seen[rpc.HGS] == 0 || seen[rpc.Ledger] == 0 || seen[rpc.Clock] == 0 {
		t.Errorf("processes seen: %v; of hsm the keeper and its worker", seen)
	}
}
