package main

import (
	"context"
	"errors"
	"strings"
	"testing"

	"guardhouse/appliance/hsm/pack"
	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
)

func TestSiteDataChangesOnlyWithAnAuditEntry(t *testing.T) {
	m := pack.Manifest{Module: "/m.so", MakesToken: true, Env: []string{"CONF=/etc/c"}, Site: []string{"client.pem"}}
	s := newSite(m, t.TempDir())
	var told []string
	var broken error
	s.record = func(_ context.Context, a policy.Actor, action, outcome string, it pack.Item) error {
		told = append(told, strings.Join([]string{a.Name, action, outcome, it.Name, it.Hash[:4]}, " "))
		return broken
	}
	req := rpc.HSMSiteRequest{Actor: policy.Actor{Name: "ada"}, Name: "client.pem", Data: []byte("secret")}
	put := func(r rpc.HSMSiteRequest) error {
		_, err := s.change(t.Context(), r, "put", func(record func(pack.Item) error) (pack.Item, error) { return s.store.Put(r.Name, r.Data, record) })
		return err
	}
	before := s.env()
	broken = errors.New("full")
	if err := put(req); !errors.Is(err, rpc.ErrUnavailable) || len(s.changed) != 0 {
		t.Errorf("without audit: %v", err)
	}
	broken = nil
	if err := put(req); err != nil || len(s.changed) != 1 {
		t.Errorf("put: %v, %d", err, len(s.changed))
	}
	if want := "ada put ok client.pem 2bb8"; told[len(told)-1] != want || strings.Contains(strings.Join(told, " "), "secret") {
		t.Errorf("told %q, want %q", told, want)
	}
	after := s.env()
	if after[0] != "CONF=/etc/c" || before[0] != after[0] || before[1] == after[1] {
		t.Errorf("environment %q, then %q: a new worker needs a change", before, after)
	}
	req.Name = "other"
	if err := put(req); !errors.Is(err, rpc.ErrRefused) {
		t.Errorf("undeclared: %v", err)
	}
	if !s.makesToken("/m.so") || s.makesToken("/other.so") || newSite(pack.Manifest{}, "").makesToken("") {
		t.Error("a token may be made for the pack's own module only")
	}
}
