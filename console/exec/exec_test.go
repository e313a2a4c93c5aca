package exec_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"strings"
	"testing"

	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
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

// TestAKeyThatFailsItsTestShowsInTheExitCode: whoever makes keys by a script must not go on with keys that can't be used. The answer comes
// whole all the same.
func TestAKeyThatFailsItsTestShowsInTheExitCode(t *testing.T) {
	for _, healthy := range []bool{true, false} {
		f := verbtest.Start(t, true)
		s := f.Session(policy.DoorSSH)
		var out, errs bytes.Buffer
		if code := exec.Run(t.Context(), s, "key new --roles signing", strings.NewReader(""), &out, &errs); code != verb.ExitOK {
			t.Fatalf("code %d: %s", code, errs.String())
		}
		key, err := rsa.GenerateKey(rand.Reader, 2048)
		if err != nil {
			t.Fatal(err)
		}
		born := string(f.Born(key, "vendor"))[:8]
		want := verb.ExitOK
		if !healthy {
			want = verb.ExitFailed
			f.Sick("", policy.Problem{Kind: rpc.KeyUseFailed, What: "the token's answer is wrong", Remedy: "see the HSM's log"})
		}
		snap, _ := f.Node.Snapshot()
		k, _ := snap.State.PrimaryKey(policy.RoleSigning)
		for _, line := range []string{"key new --roles encryption", "attestation-signer renew", "key test", "key primary " + string(k.Ref[:8]) + " --dry-run", "key add " + born + " --role signing"} {
			for _, args := range []string{"", " --json"} {
				if args != "" && strings.HasPrefix(line, "key add") { // recorded already
					continue
				}
				out.Reset()
				code := exec.Run(t.Context(), s, line+args, strings.NewReader(""), &out, &errs)
				if code != want || healthy == strings.Contains(out.String(), "see the HSM's log") {
					t.Errorf("%s, healthy %v: code %d, want %d: %s%s", line+args, healthy, code, want, out.String(), errs.String())
				}
				if args != "" && !json.Valid(out.Bytes()) {
					t.Errorf("%s: not one JSON value: %s", line, out.String())
				}
			}
		}
	}
}
