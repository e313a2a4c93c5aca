//go:build qemu

package site

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"guardhouse/appliance/rpc"
	"guardhouse/board/lab"
)

// TestNodeKnowsAndProvesItsBoot boots a node with Secure Boot and a TPM of a known maker, reads what it says of its boot, enrols its
// attestation key and checks a quote on the workstation, offline.
func TestNodeKnowsAndProvesItsBoot(t *testing.T) {
	s := openStage(t, "quote", Attached)
	ctx := within(t, 6*time.Minute)
	if err := s.BootWith(ctx, func(o *lab.NodeOptions) { o.EndorsedTPM = true }); err != nil {
		t.Fatal(err)
	}
	if setUp, err := s.WaitReady(ctx); err != nil || setUp {
		t.Fatal(setUp, err)
	}
	if _, err := s.SetUp(ctx); err != nil {
		t.Fatal(err)
	}
	if text, err := os.ReadFile(s.Node.Serial.LogPath()); err != nil || !strings.Contains(string(text), "EVALUATION") {
		t.Errorf("the serial line of an evaluation image does not say so: %v", err)
	}
	var boot rpc.ExplainReply
	if err := s.JSON(ctx, nil, &boot, "node", "explain"); err != nil {
		t.Fatal(err)
	}
	text, err := s.Verb(ctx, nil, "node", "explain")
	if err != nil || !strings.HasPrefix(string(text), "EVALUATION") {
		t.Errorf("%v: %.100s", err, text)
	}
	t.Logf("%s", text)
	if len(boot.Problems) > 0 || boot.Opened == nil || len(boot.Registers) != 16 {
		t.Errorf("the node does not recognise its own boot: %+v", boot.Problems)
	}

	t.Run("sends its audit", func(t *testing.T) { sendsItsAudit(t, s) })
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	keep := func(name string, b []byte, err error) string {
		t.Helper()
		if err == nil {
			err = os.WriteFile(in(name), b, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
		return in(name)
	}
	mkimage := in("mkimage")
	compile(t, mkimage, "guardhouse/cmd/mkimage")
	run := func(good bool, args ...string) string {
		t.Helper()
		out, err := exec.CommandContext(ctx, mkimage, args...).CombinedOutput()
		if (err == nil) != good {
			t.Fatalf("mkimage %q: %v\n%s", args, err, out)
		}
		return string(out)
	}
	vendor, err := s.Lab.TPMVendor()
	roots := keep("vendor.pem", vendor, err)
	identity, err := s.Verb(ctx, nil, "node", "identity")
	run(true, "enroll", keep("identity.json", identity, err), "--roots", roots, "-o", in("node"))
	challenge, err := os.ReadFile(in("node.challenge.json"))
	if err != nil {
		t.Fatal(err)
	}
	answer, err := s.Verb(ctx, challenge, "node", "activate")
	t.Log(run(true, "enroll", in("node.pending.json"), "--answer", keep("answer.json", answer, err), "-o", in("node")))

	const nonce = "00112233445566778899aabbccddeeff"
	raw, err := s.Verb(ctx, nil, "node", "quote", nonce)
	q := keep("quote.json", raw, err)
	build := filepath.Join(buildDir(t), imageFolder(Attached))
	out := run(true, "verify-quote", q, "--nonce", nonce, "--ak", in("node.ak.json"), "--image", build, "--events")
	t.Log(out)
	for _, want := range []string{"PCR 4 is as predicted", "PCR 7 is as predicted", "PCR 11 is as predicted", "the audit's checkpoints are signed by a key in the same TPM", "genuine"} {
		if !strings.Contains(out, want) {
			t.Errorf("verify-quote does not say %q", want)
		}
	}
	if out := run(false, "verify-quote", q, "--nonce", nonce); !strings.Contains(out, "AK not bound to a known EK") {
		t.Errorf("without an enrolment: %s", out)
	}
	run(false, "verify-quote", q, "--nonce", "ff"+nonce[2:], "--ak", in("node.ak.json"))
}
