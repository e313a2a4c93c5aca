package main

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"sync"
	"time"

	"guardhouse/appliance/hsm/pack"
	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
	"guardhouse/appliance/supervise"
)

// site is the HSM pack of the image and the site's own data for it.
type site struct {
	manifest pack.Manifest
	changed  chan struct{} // buffered: the module must be loaded anew
	// record writes to the audit chain and returns when that is durable.
	record func(ctx context.Context, actor policy.Actor, action, outcome string, it pack.Item) error

	mu    sync.Mutex // one change at a time
	store pack.Store
}

func newSite(m pack.Manifest, dir string) *site {
	return &site{manifest: m, changed: make(chan struct{}, 1), store: pack.Store{Dir: dir, Declared: m.Site}}
}

// makesToken is true for the pack's own module if it keeps its token here.
func (s *site) makesToken(module string) bool {
	return s.manifest.MakesToken && module == s.manifest.Module
}

// env is the module's environment from the pack. Its last word differs whenever
// the site's data does, so that the keeper takes a new worker, which reads it.
func (s *site) env() []string {
	if s.manifest.Module == "" {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return append(slices.Clone(s.manifest.Env), "HSM_SITE_DATA="+s.store.Digest())
}

func (s *site) register(server *rpc.Server) {
	rpc.Handle(server, rpc.HSMSiteList, func(context.Context, rpc.Caller, rpc.Empty) (rpc.HSMSiteReply, error) { return s.list() }, rpc.Console)
	rpc.Handle(server, rpc.HSMSitePut, func(ctx context.Context, _ rpc.Caller, r rpc.HSMSiteRequest) (rpc.HSMSiteFile, error) {
		defer clear(r.Data)
		return s.change(ctx, r, "hsm.site-data.put", func(record func(pack.Item) error) (pack.Item, error) { return s.store.Put(r.Name, r.Data, record) })
	}, rpc.Console)
	rpc.Handle(server, rpc.HSMSiteRemove, func(ctx context.Context, _ rpc.Caller, r rpc.HSMSiteRequest) (rpc.HSMSiteFile, error) {
		return s.change(ctx, r, "hsm.site-data.remove", func(record func(pack.Item) error) (pack.Item, error) { return s.store.Remove(r.Name, record) })
	}, rpc.Console)
}

func (s *site) list() (rpc.HSMSiteReply, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	list, err := s.store.List()
	r := rpc.HSMSiteReply{Pack: s.manifest.Title(), Files: []rpc.HSMSiteFile{}}
	for _, it := range list {
		r.Files = append(r.Files, wireItem(it))
	}
	return r, err
}

// change does one change: it is durable in the audit chain before it happens,
// and where it then fails that is recorded as well.
func (s *site) change(ctx context.Context, r rpc.HSMSiteRequest, action string, do func(func(pack.Item) error) (pack.Item, error)) (rpc.HSMSiteFile, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var told pack.Item
	it, err := do(func(it pack.Item) error {
		if err := s.record(ctx, r.Actor, action, "ok", it); err != nil {
			return rpc.ErrUnavailable.With("the audit takes no entry, so nothing was changed: %v", err)
		}
		told = it
		return nil
	})
	switch {
	case err == nil:
		select {
		case s.changed <- struct{}{}:
		default:
		}
		return wireItem(it), nil
	case told.Hash != "":
		s.record(ctx, r.Actor, action, "failed", told)
		return rpc.HSMSiteFile{}, rpc.ErrUnavailable.With("%v", err)
	case errors.Is(err, pack.ErrUndeclared), errors.Is(err, pack.ErrTooLarge), errors.Is(err, pack.ErrEmpty), errors.Is(err, pack.ErrAbsent):
		return rpc.HSMSiteFile{}, rpc.ErrRefused.With("%v", err)
	}
	return rpc.HSMSiteFile{}, err
}

func wireItem(it pack.Item) rpc.HSMSiteFile {
	return rpc.HSMSiteFile{Name: it.Name, Declared: it.Declared, Size: it.Size, SHA256: it.Hash}
}

// siteRecord writes who changed which file and its hash, never what is in it.
func siteRecord(ctx context.Context, child *supervise.Child, ledger *rpc.Client) func(context.Context, policy.Actor, string, string, pack.Item) error {
	clock := rpc.WatchTime(ctx, child.RunDir, child.UIDs[rpc.Clock])
	return func(ctx context.Context, actor policy.Actor, action, outcome string, it pack.Item) error {
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		_, err := rpc.LedgerAudit.Call(ctx, ledger, policy.AuditEntry{Kind: policy.AuditSystem, At: clock.Stamp(), BootTime: rpc.BootTime().Milliseconds(),
			Actor: &actor, Subject: it.Name, Action: action, Outcome: outcome, Detail: "site data of the HSM pack",
			Facts: map[string]string{"sha256": it.Hash, "bytes": strconv.FormatInt(it.Size, 10)}})
		return err
	}
}
