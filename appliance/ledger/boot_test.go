package ledger

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"guardhouse/appliance/audit"
	"guardhouse/appliance/evidence"
	"guardhouse/appliance/policy"
	"guardhouse/appliance/quote"
	"guardhouse/appliance/rpc"
)

var stranger = policy.Actor{Name: "eve", Door: policy.DoorSSH}

func identityOf(t *testing.T, b *bench) quote.Identity {
	t.Helper()
	r, err := b.l.Identity()
	if err != nil {
		t.Fatal(err)
	}
	id, err := quote.Parse[quote.Identity](r.File)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func TestQuoteOfTheNodeStaysGenuineAcrossARestart(t *testing.T) {
	b := newBench(t)
	admin := b.setUp()
	boot := evidence.NewWriter(evidence.SHA256)
	b.cfg.BootLog = func(context.Context) (rpc.InitBootReply, error) { return rpc.InitBootReply{Log: boot.Log()}, nil }
	b.restart()
	ctx := t.Context()
	challenge, pending, err := quote.Begin(identityOf(t, b), nil, time.Now(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := json.Marshal(challenge)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.l.Activate(ctx, rpc.ActivateRequest{Actor: stranger, Challenge: raw}); !errors.Is(err, rpc.ErrRefused) {
		t.Errorf("an actor that is nobody's: %v", err)
	}
	if _, err := b.l.Activate(ctx, rpc.ActivateRequest{Actor: admin, Challenge: []byte(`{"version":1,"credential":"AAAA"}`)}); err == nil {
		t.Error("a challenge of four bytes is answered")
	}
	r, err := b.l.Activate(ctx, rpc.ActivateRequest{Actor: admin, Challenge: raw})
	if err != nil {
		t.Fatal(err)
	}
	answer, err := quote.Parse[quote.Answer](r.File)
	if err != nil {
		t.Fatal(err)
	}
	enrolment, err := quote.Finish(pending, answer)
	if err != nil {
		t.Fatal(err)
	}
	b.restart()
	nonce := []byte("0123456789abcdef")
	if r, err = b.l.Quote(ctx, nonce); err != nil {
		t.Fatal(err)
	}
	f, err := quote.Parse[quote.File](r.File)
	if err != nil {
		t.Fatal(err)
	}
	s, _ := b.l.Snapshot()
	if v := quote.Verify(f, nonce, &enrolment, nil); !v.Genuine() || f.Node == "" || !slices.ContainsFunc(v.Findings, func(g quote.Finding) bool {
		return strings.HasSuffix(g.What, audit.PublicKey(s.State.Nodes[s.NodeID].AuditKey).Fingerprint())
	}) {
		t.Errorf("node %q: %+v", f.Node, v.Findings)
	}
	if _, err := b.l.Quote(ctx, nonce[:4]); !errors.Is(err, rpc.ErrRefused) {
		t.Errorf("a short nonce: %v", err)
	}
	// A file that is of no use here must not silence the node: a new key is made, which its quotes show.
	if err := os.WriteFile(filepath.Join(b.cfg.Dir, attestationFile), []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	if r, err = b.l.Quote(ctx, nonce); err != nil {
		t.Fatal(err)
	}
	if f, err = quote.Parse[quote.File](r.File); err != nil || quote.Verify(f, nonce, &enrolment, nil).Genuine() {
		t.Errorf("a new key passes for the old one: %v", err)
	}
}

func TestBootThatIsNotAsLoggedIsAProblemOfTheStatus(t *testing.T) {
	b := newBench(t)
	for name, c := range map[string]struct {
		reply rpc.InitBootReply
		kind  string
	}{
		"no log":       {rpc.InitBootReply{Problem: "no such file"}, quote.KindLogMissing},
		"another log":  {rpc.InitBootReply{Log: func() []byte { w := evidence.NewWriter(evidence.SHA256); w.Separator(4); return w.Log() }()}, quote.KindLogMismatch},
		"not a policy": {rpc.InitBootReply{Log: evidence.NewWriter(evidence.SHA256).Log(), Opened: &rpc.OpenedPolicy{Policy: "p", PCRs: map[int]string{7: strings.Repeat("1", 64)}}}, quote.KindUnpredicted},
	} {
		b.l.problems = nil
		b.l.cfg.BootLog = func(context.Context) (rpc.InitBootReply, error) { return c.reply, nil }
		b.l.checkBoot(t.Context())
		if p := b.l.Status().Problems; !slices.ContainsFunc(p, func(p policy.Problem) bool { return p.Kind == c.kind && p.Remedy != "" }) {
			t.Errorf("%s: %+v", name, p)
		}
	}
}
