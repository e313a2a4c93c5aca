package exec_test

import (
	"bytes"
	"context"
	"strings"
	"testing"

	"guardhouse/appliance/policy"
	"guardhouse/console/exec"
	"guardhouse/console/verb"
	"guardhouse/console/verb/verbtest"
)

// endless is standard input that never ends; it counts what was read.
type endless int

func (e *endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = 'A'
	}
	*e += endless(len(p))
	return len(p), nil
}

func TestStandardInputIsBounded(t *testing.T) {
	f := verbtest.Start(t, true)
	var in endless
	var out, errs bytes.Buffer
	code := exec.Run(context.Background(), f.Session(policy.DoorSSH), "host add hv7", &in, &out, &errs)
	if code != verb.ExitUsage || !strings.Contains(errs.String(), "4 MiB") || in > verb.MaxStdin+1<<20 {
		t.Errorf("code %d after %d bytes: %s", code, in, errs.String())
	}
}

func TestReadsNothingForAVerbThatWantsNothing(t *testing.T) {
	f := verbtest.Start(t, true)
	var in endless
	var out, errs bytes.Buffer
	for line, want := range map[string]int{"host list": verb.ExitOK, "host add hv7 --pending 0123456789": verb.ExitFailed, "setup": verb.ExitNotAllowed} {
		if code := exec.Run(context.Background(), f.Session(policy.DoorSSH), line, &in, &out, &errs); code != want || in != 0 {
			t.Errorf("%s: code %d, read %d bytes: %s", line, code, in, errs.String())
		}
	}
}
