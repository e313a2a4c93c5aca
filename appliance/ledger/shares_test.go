package ledger

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"guardhouse/appliance/audit"
	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
)

// TestOneHostCannotShutTheOthersOut: a host asks as often as it may until the audit would be full.
func TestOneHostCannotShutTheOthersOut(t *testing.T) {
	log, err := audit.Open(t.TempDir(), audit.Options{Quota: 8 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	now := time.Minute
	l := &Ledger{audit: log, cfg: Config{BootTime: func() time.Duration { return now }}}
	l.forward = openForward(filepath.Join(t.TempDir(), "forward.json"), log, l.cfg.BootTime)
	grant := func(host string) error {
		e := policy.AuditEntry{Kind: policy.AuditGrant, Subject: host, Action: "rolltransportkey", Outcome: "ok", Detail: strings.Repeat("x", 500)}
		if err := l.checkShare(e); err != nil {
			return err
		}
		e.Facts = map[string]string{"a": strings.Repeat("x", 500), "b": strings.Repeat("x", 500)}
		_, err := log.Append(t.Context(), e)
		return err
	}
	granted := 0
	for err = grant("greedy"); err == nil; err = grant("greedy") {
		if granted++; granted > 10*shareBurst {
			t.Fatal("nothing ever stopped it")
		}
	}
	if !errors.Is(err, rpc.ErrUnavailable) || !strings.Contains(err.Error(), "share") || !strings.Contains(err.Error(), "audit trim") {
		t.Errorf("after %d grants: %v", granted, err)
	}
	if s := log.Status(); s.Bytes < s.Quota/2 || s.Problem != nil && s.Problem.Kind == audit.KindFull {
		t.Errorf("%+v", s)
	}
	for i := range 100 {
		if err := grant(fmt.Sprint("host", i)); err != nil {
			t.Fatalf("another host: %v", err)
		}
	}
	now += shareRefill
	if err := grant("greedy"); err != nil {
		t.Errorf("after a while: %v", err)
	}
	if err := grant("greedy"); err == nil {
		t.Error("it got two")
	}
}

func TestTheTableOfSharesStaysSmall(t *testing.T) {
	var s shares
	for i := range shareHosts + 10 {
		if !s.take(fmt.Sprint(i), 0) {
			t.Fatal(i)
		}
	}
	if len(s.hosts) > shareHosts+1 {
		t.Errorf("%d hosts", len(s.hosts))
	}
	s.take("late", time.Hour)
	if len(s.hosts) != 1 {
		t.Errorf("%d hosts are remembered", len(s.hosts))
	}
}
