package ledger

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	bolt "go.etcd.io/bbolt"

	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
)

// actionKeyDestroy is the audit's word for a key that goes at a factory reset: "begun" before the token is asked, then what came of it.
const actionKeyDestroy = "key.destroy"

// Limits of one question to the token.
const (
	destroyLimit  = time.Minute
	tokenKeysWait = 20 * time.Second
)

// madeHere is a key that this node had its HSM make, as the token described it then.
type madeHere struct {
	SPKI  []byte         `json:"spki"`
	Role  policy.KeyRole `json:"role"`
	Label string         `json:"label"`
	ID    string         `json:"id"`
}

// noteMade remembers that this node made a key: what a factory reset may destroy.
func (s *store) noteMade(k rpc.HSMKey) error {
	b, err := json.Marshal(madeHere{k.SPKI, k.Role, k.Label, k.ID})
	if err != nil {
		return err
	}
	return guard(func() error {
		return s.db.Update(func(tx *bolt.Tx) error { return tx.Bucket(bucketMade).Put([]byte(k.Ref), b) })
	})
}

// made gives all keys that this node made, whatever became of them.
func (s *store) made() (map[policy.KeyRef]madeHere, error) {
	all := map[policy.KeyRef]madeHere{}
	err := guard(func() error {
		return s.db.View(func(tx *bolt.Tx) error {
			return tx.Bucket(bucketMade).ForEach(func(ref, b []byte) error {
				var k madeHere
				if err := json.Unmarshal(b, &k); err != nil {
					return err
				}
				all[policy.KeyRef(ref)] = k
				return nil
			})
		})
	})
	return all, err
}

// ResetKeys lists the keys of the token by what a factory reset may do with them. Destroyed are only keys that this node made, as it
// noted when it made them, and that lie in the token now. A tenant's key, a key that somebody brought or another node made, and one that
// other nodes of the cluster have on record too, stay.
//
// Limits. Keys that were made before the node kept such notes count as not made here.
func (l *Ledger) ResetKeys(ctx context.Context) (rpc.ResetKeysReply, error) {
	var reply rpc.ResetKeysReply
	if err := l.ready(); err != nil {
		return reply, err
	}
	made, err := l.store.made()
	if err != nil {
		return reply, err
	}
	s, _ := l.Snapshot()
	reply.Token = s.State.Nodes[s.NodeID].HSM.Token
	ctx, cancel := context.WithTimeout(ctx, tokenKeysWait)
	defer cancel()
	held, err := rpc.HSMKeys.Call(ctx, l.cfg.HSM, rpc.Empty{})
	if err != nil {
		reply.Away = err.Error()
		for ref, k := range made {
			reply.Keys = append(reply.Keys, rpc.ResetKey{Ref: ref, Role: k.Role, Label: k.Label, ID: k.ID, Stays: "the token does not answer"})
		}
	}
	for _, k := range held {
		if k.Store != policy.StoreToken {
			continue
		}
		ours, known := made[k.Ref]
		reply.Keys = append(reply.Keys, rpc.ResetKey{Ref: k.Ref, Role: k.Role, Label: label(k.Label), ID: k.ID,
			Stays: whyStays(s.State, k, known && ours.Label == k.Label && ours.ID == k.ID)})
	}
	slices.SortFunc(reply.Keys, func(a, b rpc.ResetKey) int {
		return strings.Compare(a.Stays+"\x00"+a.Label+string(a.Ref), b.Stays+"\x00"+b.Label+string(b.Ref))
	})
	return reply, nil
}

// whyStays is "" for a key that may be destroyed.
func whyStays(s policy.State, k rpc.HSMKey, madeHere bool) string {
	recorded, known := s.Keys[k.Ref]
	switch {
	case known && recorded.Tenant != "":
		return "it is the tenant " + recorded.Tenant + "'s"
	case madeHere && len(s.Nodes) > 1:
		return "other nodes of the cluster use it"
	case madeHere:
		return ""
	case known:
		return "it was brought, not made by this node"
	case k.Role != "":
		return "another node made it, or this one before it was set up"
	}
	return "this service does not know it"
}

// DestroyKeys destroys keys that ResetKeys lists as such, for an owner on the serial line who ends this node. The audit has an entry of
// each before the token is asked, and one of the outcome. It stops at the first key that the token does not give up; that one and those
// after it are Left. The records keep the keys: the node is about to end.
func (l *Ledger) DestroyKeys(ctx context.Context, req rpc.DestroyKeysRequest) (rpc.DestroyKeysReply, error) {
	l.keysMu.Lock()
	defer l.keysMu.Unlock()
	s, _ := l.Snapshot()
	if err := policy.Allowed(s.State, req.Actor, policy.AdminOwner); err != nil {
		return rpc.DestroyKeysReply{}, rpc.ErrRefused.With("%v", err)
	}
	if req.Actor.Door != policy.DoorSerial {
		return rpc.DestroyKeysReply{}, rpc.ErrRefused.With("keys are destroyed from the serial line only")
	}
	plan, err := l.ResetKeys(ctx)
	if err != nil {
		return rpc.DestroyKeysReply{}, err
	}
	reply := rpc.DestroyKeysReply{Token: plan.Token}
	for _, ref := range req.Refs {
		i := slices.IndexFunc(plan.Keys, func(k rpc.ResetKey) bool { return k.Ref == ref })
		switch {
		case i < 0 && plan.Away == "":
			return reply, rpc.ErrRefused.With("key %.16q is not in the token; begin again", ref)
		case i < 0, plan.Keys[i].Stays != "" && plan.Away == "":
			return reply, rpc.ErrRefused.With("key %.16q is not this node's to destroy", ref)
		}
		reply.Left = append(reply.Left, plan.Keys[i])
	}
	if plan.Away != "" {
		reply.Why = plan.Away
		return reply, nil
	}
	made, err := l.store.made()
	if err != nil {
		return reply, err
	}
	for len(reply.Left) > 0 {
		k := reply.Left[0]
		n, err := l.destroyKey(ctx, req.Actor, k, made[k.Ref].SPKI)
		if err != nil {
			reply.Why = err.Error()
			return reply, nil
		}
		reply.Objects += n
		reply.Gone, reply.Left = append(reply.Gone, k), reply.Left[1:]
	}
	return reply, nil
}

// destroyKey destroys one pair, between its two audit entries.
func (l *Ledger) destroyKey(ctx context.Context, actor policy.Actor, k rpc.ResetKey, spki []byte) (int, error) {
	what := fmt.Sprintf("%s, id %s, in a factory reset", k.Label, k.ID)
	if err := l.note(actor, actionKeyDestroy, string(k.Ref), "begun", what, ""); err != nil {
		return 0, fmt.Errorf("nothing is destroyed that can't be recorded: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, destroyLimit)
	defer cancel()
	r, err := rpc.HSMDestroy.Call(ctx, l.cfg.HSM, rpc.HSMDestroyRequest{SPKI: spki, ID: k.ID, Label: k.Label})
	if err != nil {
		return 0, errors.Join(err, l.note(actor, actionKeyDestroy, string(k.Ref), "failed", what+": "+err.Error(), "see key list"))
	}
	if err := l.note(actor, actionKeyDestroy, string(k.Ref), "ok", what, ""); err != nil {
		l.cfg.Log("key %.16s is destroyed, which the audit did not take: %v", k.Ref, err)
	}
	return r.Objects, nil
}
