package main

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
)

// TestFullDiskRefusesInPlainWordsAndIsCuredByExportAndTrim fills a small real file system, first with the audit, then to the last byte.
func TestFullDiskRefusesInPlainWordsAndIsCuredByExportAndTrim(t *testing.T) {
	n := newNode(t)
	n.kill()
	data := filepath.Join(n.dir, "data")
	if err := unix.Mount("tmpfs", data, "tmpfs", 0, "size=12m,mode=0777"); err != nil {
		t.Skipf("needs a small file system to fill: mount: %v", err)
	}
	t.Cleanup(func() { n.kill(); unix.Unmount(data, unix.MNT_DETACH) })
	n.start()
	ada := n.setUp()
	ctx := context.Background()
	var refusedErr error
	as(uids[rpc.HGS], func() {
		c := n.client()
		defer c.Close()
		e := policy.AuditEntry{Kind: policy.AuditGrant, Action: "test", Outcome: "ok", Detail: strings.Repeat("d", 500), Remedy: strings.Repeat("r", 500), Subject: strings.Repeat("s", 500)}
		for range 10000 {
			if _, refusedErr = rpc.LedgerAudit.Call(ctx, c, e); refusedErr != nil {
				return
			}
		}
	})
	if !errors.Is(refusedErr, rpc.ErrUnavailable) || !strings.Contains(refusedErr.Error(), "audit export") {
		t.Fatalf("full quota: %v", refusedErr)
	}
	filler, err := os.Create(filepath.Join(data, "filler"))
	if err != nil {
		t.Fatal(err)
	}
	defer filler.Close()
	for size := 1 << 20; size > 0; size /= 2 {
		for {
			if _, err := filler.Write(make([]byte, size)); err != nil {
				break
			}
		}
	}

	as(uids[rpc.Console], func() {
		c := n.client()
		defer c.Close()
		if _, err := rpc.LedgerAudit.Call(ctx, c, policy.AuditEntry{Kind: policy.AuditLogin, Action: "login", Outcome: "ok"}); err != nil {
			t.Errorf("login on a full disk: %v", err)
		}
		body, _ := json.Marshal(policy.HostAdd{Name: "host1", HostKey: hostKey()})
		command := policy.Command{ID: newID(), Kind: policy.CmdHostAdd, Actor: ada, Body: body}
		if _, err := rpc.LedgerPropose.Call(ctx, c, command); err != nil && !strings.Contains(err.Error(), "same request id") && !errors.Is(err, rpc.ErrUnavailable) {
			t.Errorf("a change on a full disk: %v", err)
		}
		size := 0
		if err := rpc.LedgerAuditExport.Open(ctx, c, rpc.AuditRange{}, func(p rpc.AuditChunk) error { size += len(p.Data); return nil }); err != nil {
			t.Errorf("export on a full disk: %v", err)
			return
		}
		trimmed, err := rpc.LedgerAuditTrim.Call(ctx, c, rpc.AuditTrimRequest{Actor: ada, Below: 1 << 40})
		if err != nil || trimmed.Bytes == 0 {
			t.Errorf("trim on a full disk: %+v %v", trimmed, err)
			return
		}
		if _, err := rpc.LedgerPropose.Call(ctx, c, command); err != nil {
			t.Errorf("the change afterwards: %v", err)
		}
	})
	as(uids[rpc.HGS], func() {
		c := n.client()
		defer c.Close()
		if _, err := rpc.LedgerAudit.Call(ctx, c, policy.AuditEntry{Kind: policy.AuditGrant, Action: "test", Outcome: "ok"}); err != nil {
			t.Errorf("a grant afterwards: %v", err)
		}
	})
	n.kill()
	n.start()
	if st, err := n.status(); err != nil || len(st.Problems) > 1 || len(st.Problems) == 1 && st.Problems[0].Kind != "network" {
		t.Errorf("%+v %v", st.Problems, err)
	}
}
