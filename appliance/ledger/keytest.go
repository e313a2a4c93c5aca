package ledger

import (
	"cmp"
	"context"
	"crypto/x509"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
)

// Times of the tests that nobody asks for. A test costs each key one operation.
const (
	testLimit  = time.Minute // for all keys on one node
	testRetry  = 5 * time.Second
	testAgain  = time.Hour
	testGrace  = 30 * time.Second // after the start, until a node that does not answer is a finding: tokens take their time
	testKind   = "key-test"
	testRemedy = "see key test for all findings"
)

// hsms are the HSM processes of every node that is on record, by node id; nil for a node that can't be asked, which counts as failed.
func (l *Ledger) hsms() (clients map[string]*rpc.Client, names map[string]string) {
	s, _ := l.Snapshot()
	clients, names = map[string]*rpc.Client{}, map[string]string{}
	for id, n := range s.State.Nodes {
		clients[id], names[id] = nil, n.Name
	}
	maps.Copy(clients, l.cfg.HSMs)
	clients[s.NodeID] = l.cfg.HSM
	return clients, names
}

// testKeys has every node use the keys once. It gives one result for each key and node, by key in the order asked, then by node id. A
// node that does not answer, or not to the question, gives a failed result for each key.
func (l *Ledger) testKeys(ctx context.Context, keys []rpc.HSMTestKey) []rpc.HSMTestResult {
	clients, _ := l.hsms()
	ids := slices.Sorted(maps.Keys(clients))
	answers := make([][]rpc.HSMTestResult, len(ids))
	var wg sync.WaitGroup
	for i, id := range ids {
		wg.Go(func() { answers[i] = testOn(ctx, id, clients[id], keys) })
	}
	wg.Wait()
	results := make([]rpc.HSMTestResult, 0, len(ids)*len(keys))
	for k := range keys {
		for i := range ids {
			results = append(results, answers[i][k])
		}
	}
	return results
}

func testOn(ctx context.Context, node string, client *rpc.Client, keys []rpc.HSMTestKey) []rpc.HSMTestResult {
	why := "this node's HSM process can't be reached from here"
	if client != nil {
		ctx, cancel := context.WithTimeout(ctx, testLimit)
		defer cancel()
		list, err := rpc.HSMTest.Call(ctx, client, rpc.HSMTestRequest{Keys: keys})
		switch {
		case err != nil:
			why = err.Error()
		case !answersTo(list, keys):
			why = "the HSM process answered another question"
		default:
			for i := range list {
				list[i].Node = node
				list[i].OK = list[i].OK && len(list[i].Problems) == 0
			}
			return list
		}
	}
	list := make([]rpc.HSMTestResult, len(keys))
	for i, k := range keys {
		list[i] = rpc.HSMTestResult{Node: node, Ref: k.Ref, Role: k.Role, Problems: []policy.Problem{{Kind: rpc.KeyUnreachable,
			What: fmt.Sprintf("%s key %.16s: not tested: %s", k.Role, k.Ref, why), Remedy: "see hsm status on this node, then test again"}}}
	}
	return list
}

// answersTo reports whether each result is for the key in its place, and says why where it failed.
func answersTo(list []rpc.HSMTestResult, keys []rpc.HSMTestKey) bool {
	if len(list) != len(keys) {
		return false
	}
	for i, r := range list {
		if r.Ref != keys[i].Ref || !r.OK && len(r.Problems) == 0 {
			return false
		}
	}
	return true
}

// failures are the findings of the results that failed, each with the name of its node.
func (l *Ledger) failures(results []rpc.HSMTestResult) []policy.Problem {
	_, names := l.hsms()
	var list []policy.Problem
	for _, r := range results {
		if r.OK {
			continue
		}
		for _, p := range r.Problems {
			p.What = "on node " + cmp.Or(names[r.Node], r.Node) + ": " + p.What
			list = append(list, p)
		}
	}
	return list
}

// testKey is a recorded key as a test wants it; ok is false for a certificate that does not parse, which Apply has kept out.
func testKey(k policy.Key) (rpc.HSMTestKey, bool) {
	cert, err := x509.ParseCertificate(k.Certificate)
	if err != nil {
		return rpc.HSMTestKey{}, false
	}
	return rpc.HSMTestKey{Ref: k.Ref, Role: k.Role, SPKI: cert.RawSubjectPublicKeyInfo, Label: k.Label}, true
}

// recordedKeys are the keys to test, by role, then by reference: those named, or all that are enabled.
func recordedKeys(s policy.State, refs []policy.KeyRef) ([]rpc.HSMTestKey, error) {
	var list []rpc.HSMTestKey
	add := func(k policy.Key) {
		if t, ok := testKey(k); ok {
			list = append(list, t)
		}
	}
	for _, ref := range refs {
		k, ok := s.Keys[ref]
		if !ok {
			return nil, rpc.ErrRefused.With("there is no key %.16q; see key list", ref)
		}
		add(k)
	}
	if len(refs) == 0 {
		for _, k := range s.Keys {
			if k.Enabled {
				add(k)
			}
		}
	}
	slices.SortFunc(list, func(a, b rpc.HSMTestKey) int {
		return cmp.Or(cmp.Compare(slices.Index(policy.KeyRoles, a.Role), slices.Index(policy.KeyRoles, b.Role)), cmp.Compare(a.Ref, b.Ref))
	})
	return slices.CompactFunc(list, func(a, b rpc.HSMTestKey) bool { return a.Ref == b.Ref }), nil
}

// KeyTest tests recorded keys on every node, because a person asks.
func (l *Ledger) KeyTest(ctx context.Context, req rpc.KeyTestRequest) (rpc.KeyTestReply, error) {
	s, _ := l.Snapshot()
	if !s.State.SetUp() {
		return rpc.KeyTestReply{}, rpc.ErrUnavailable.With("the node is not set up")
	}
	if len(req.Refs) > policy.MaxKeys {
		return rpc.KeyTestReply{}, rpc.ErrRefused.With("at most %d keys are tested at a time", policy.MaxKeys)
	}
	keys, err := recordedKeys(s.State, req.Refs)
	if err != nil || len(keys) == 0 {
		return rpc.KeyTestReply{Results: []rpc.HSMTestResult{}}, err
	}
	results := l.testKeys(ctx, keys)
	if len(req.Refs) == 0 {
		l.tell(results)
	}
	return rpc.KeyTestReply{Results: results}, nil
}

// primaries are the commands that may make keys primary which were not.
var primaries = []policy.Kind{policy.CmdKeyPrimary, policy.CmdRotationPrimary, policy.CmdRotationUndo, policy.CmdRotationAbort}

// gatePrimary refuses to make a key primary that any node can't use. What the records refuse anyway is left to them, and so is a request
// that was answered before.
func (l *Ledger) gatePrimary(ctx context.Context, c policy.Command) error {
	if _, done, err := l.store.result(c.ID); done || err != nil {
		return err
	}
	s, _ := l.Snapshot()
	next, result, err := policy.Apply(s.State, c)
	if err != nil {
		return nil
	}
	var refs []policy.KeyRef
	for ref, k := range next.Keys {
		if k.Primary && (!s.State.Keys[ref].Primary || string(ref) == result.Subject) {
			refs = append(refs, ref)
		}
	}
	if len(refs) == 0 {
		return nil
	}
	keys, err := recordedKeys(s.State, refs)
	if err != nil {
		return nil
	}
	failed := l.failures(l.testKeys(ctx, keys))
	if len(failed) == 0 {
		return nil
	}
	var what []string
	for _, p := range failed {
		what = append(what, p.What)
	}
	why := "the key fails its test " + strings.Join(what, "; ")
	if err := l.note(c.Actor, string(c.Kind), result.Subject, "refused", why, failed[0].Remedy); err != nil {
		return err
	}
	return rpc.ErrRefused.With("%s refused: %s; %s", c.Kind, why, failed[0].Remedy)
}

// note records what an administrator did that is no command of the records.
func (l *Ledger) note(actor policy.Actor, action, subject, outcome, detail, remedy string) error {
	_, err := l.audit.Append(context.Background(), l.stamped(policy.AuditEntry{Kind: policy.AuditCommand, Actor: &actor, Action: action, Subject: subject,
		Outcome: outcome, Detail: detail, Remedy: remedy}))
	return auditError(err)
}

// tell makes a problem of the Status out of a test of all keys, or takes it back.
func (l *Ledger) tell(results []rpc.HSMTestResult) {
	failed := l.failures(results)
	if len(failed) == 0 {
		l.clearProblem(testKind)
		return
	}
	p := policy.Problem{Kind: testKind, What: "a key fails its test " + failed[0].What, Remedy: failed[0].Remedy}
	if n := len(failed); n > 1 {
		p.What = fmt.Sprintf("%s, and %d findings more", p.What, n-1)
		p.Remedy += "; " + testRemedy
	}
	l.setProblem(p)
}

// testNew tests a key that was just made or found. A token that is slow for a moment (it has just made keys) gets two more tries, because
// the outcome decides whether the key becomes primary; a key that failed its test gets none.
func (l *Ledger) testNew(ctx context.Context, key rpc.HSMTestKey) []rpc.HSMTestResult {
	for try := 0; ; try++ {
		results := l.testKeys(ctx, []rpc.HSMTestKey{key})
		if settled(results) || try == 2 {
			return results
		}
		select {
		case <-ctx.Done():
			return results
		case <-time.After(l.cfg.testPause):
		}
	}
}

// settled reports whether every node answered.
func settled(results []rpc.HSMTestResult) bool {
	return !slices.ContainsFunc(results, func(r rpc.HSMTestResult) bool {
		return slices.ContainsFunc(r.Problems, func(p policy.Problem) bool { return p.Kind == rpc.KeyUnreachable })
	})
}

// keepTested tests all enabled keys at the start, when they change and every hour.
func (l *Ledger) keepTested(ctx context.Context) {
	began, last := l.cfg.BootTime(), ""
	for {
		s, changed := l.Snapshot()
		keys, _ := recordedKeys(s.State, nil)
		wait := testAgain
		if len(keys) == 0 {
			l.clearProblem(testKind)
		} else {
			results := l.testKeys(ctx, keys)
			if ctx.Err() != nil {
				return
			}
			if !settled(results) {
				wait = testRetry
			}
			if wait == testAgain || l.cfg.BootTime()-began > testGrace {
				l.tell(results)
			}
		}
		last = fmt.Sprint(refsOf(keys))
		timer := time.NewTimer(wait)
		for due := false; !due; {
			select {
			case <-ctx.Done():
				timer.Stop()
				return
			case <-timer.C:
				due = true
			case <-changed:
				s, changed = l.Snapshot()
				now, _ := recordedKeys(s.State, nil)
				due = fmt.Sprint(refsOf(now)) != last
			}
		}
		timer.Stop()
	}
}

func refsOf(keys []rpc.HSMTestKey) []policy.KeyRef {
	refs := make([]policy.KeyRef, len(keys))
	for i, k := range keys {
		refs[i] = k.Ref
	}
	return refs
}
