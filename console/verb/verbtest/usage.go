package verbtest

import (
	"slices"

	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
)

// Use notes that a key protector was last seen on these keys.
func (f *Fake) Use(list ...policy.ProtectorUse) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.uses = append(f.uses, list...)
}

// usage counts each use as a key protector of its own, all of them recent.
func (f *Fake) usage(req rpc.UsageRequest) (rpc.UsageReply, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	r := rpc.UsageReply{Days: req.Days, Keys: []rpc.KeyUsage{}}
	if r.Days == 0 {
		r.Days = rpc.DefaultUsageDays
	}
	for _, u := range f.uses {
		for _, ref := range []policy.KeyRef{u.Encryption, u.Signing} {
			i := slices.IndexFunc(r.Keys, func(k rpc.KeyUsage) bool { return k.Ref == ref })
			if i < 0 {
				i, r.Keys = len(r.Keys), append(r.Keys, rpc.KeyUsage{Ref: ref, First: u.At})
			}
			k := &r.Keys[i]
			k.Rolls, k.Protectors, k.Recent, k.Last = k.Rolls+1, k.Protectors+1, k.Recent+1, u.At
		}
		if slices.Contains(req.Keys, u.Encryption) || slices.Contains(req.Keys, u.Signing) {
			r.Protectors = append([]rpc.ProtectorUsage{{ProtectorUse: u, First: u.At, Rolls: 1}}, r.Protectors...)
			r.Total, r.Recent, r.Newest = r.Total+1, r.Recent+1, u.At
		}
	}
	if req.Limit > 0 {
		r.Protectors = r.Protectors[:min(req.Limit, len(r.Protectors))]
	}
	return r, nil
}
