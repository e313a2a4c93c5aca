package verbtest

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"math/big"
	"slices"
	"time"

	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
)

// Born puts a pair into the token that no record knows.
func (f *Fake) Born(key *rsa.PrivateKey, label string) policy.KeyRef {
	spki, _ := x509.MarshalPKIXPublicKey(key.Public())
	k := tokenKey(policy.RefOf(spki), "")
	k.Label, k.SPKI, k.Sign, k.Decrypt = label, spki, true, true
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.born == nil {
		f.born = map[policy.KeyRef]born{}
	}
	f.born[k.Ref] = born{key, k}
	return k.Ref
}

type born struct {
	key *rsa.PrivateKey
	as  rpc.HSMKey
}

// Sick has the tests of a key fail with this finding; the zero one heals it. The empty reference is every key that has no finding of its own.
func (f *Fake) Sick(ref policy.KeyRef, p policy.Problem) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.sick == nil {
		f.sick = map[policy.KeyRef]policy.Problem{}
	}
	f.sick[ref] = p
}

// Sealed is what came with key import-pfx.
func (f *Fake) Sealed() []byte {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.sealed
}

func (f *Fake) keyTest(r rpc.KeyTestRequest) (rpc.KeyTestReply, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var reply rpc.KeyTestReply
	for ref, k := range f.state.Keys {
		if len(r.Refs) == 0 && k.Enabled || slices.Contains(r.Refs, ref) {
			reply.Results = append(reply.Results, f.tested(ref, k.Role))
		}
	}
	slices.SortFunc(reply.Results, func(a, b rpc.HSMTestResult) int {
		return slices.Index(policy.KeyRoles, a.Role) - slices.Index(policy.KeyRoles, b.Role)
	})
	return reply, nil
}

// tested is called with f.mu held.
func (f *Fake) tested(ref policy.KeyRef, role policy.KeyRole) rpc.HSMTestResult {
	r := rpc.HSMTestResult{Node: f.nodeID, Ref: ref, Role: role, OK: true, Took: 1200 * time.Microsecond}
	p := f.sick[ref]
	if p.Kind == "" {
		p = f.sick[""]
	}
	if p.Kind != "" {
		r.OK, r.Problems = false, []policy.Problem{p}
	}
	return r
}

func (f *Fake) keyAdd(r rpc.KeyAddRequest) (rpc.KeyAddReply, error) {
	f.mu.Lock()
	b, ok := f.born[r.Ref]
	test := f.tested(r.Ref, r.Role)
	f.mu.Unlock()
	if !ok {
		return rpc.KeyAddReply{}, rpc.ErrRefused.With("the token holds no pair with the public key %.16q", r.Ref)
	}
	der := r.Certificate
	if len(der) == 0 {
		template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "added"}, NotAfter: time.UnixMilli(At.Earliest).AddDate(1, 0, 0)}
		var err error
		if der, err = x509.CreateCertificate(rand.Reader, template, template, b.key.Public(), b.key); err != nil {
			return rpc.KeyAddReply{}, err
		}
	}
	return f.recorded(r.Actor, r.ID, policy.KeyAdd{Role: r.Role, Label: b.as.Label, Certificate: der, Tenant: r.Tenant, Spare: !test.OK}, test)
}

func (f *Fake) recorded(actor policy.Actor, id string, add policy.KeyAdd, test rpc.HSMTestResult) (rpc.KeyAddReply, error) {
	body, err := json.Marshal(add)
	if err != nil {
		return rpc.KeyAddReply{}, err
	}
	result, err := f.propose(policy.Command{ID: id, Kind: policy.CmdKeyAdd, Actor: actor, At: At, Body: body})
	if err != nil {
		return rpc.KeyAddReply{}, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return rpc.KeyAddReply{Key: f.state.Keys[policy.KeyRef(result.Subject)], Index: result.Index, Tests: []rpc.HSMTestResult{test}}, nil
}

func (f *Fake) keyImport(r rpc.KeyImportRequest) (rpc.KeyAddReply, error) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return rpc.KeyAddReply{}, err
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "imported"}, NotAfter: time.UnixMilli(At.Earliest).AddDate(1, 0, 0)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return rpc.KeyAddReply{}, err
	}
	f.mu.Lock()
	f.sealed = r.Sealed
	spki, _ := x509.MarshalPKIXPublicKey(key.Public())
	test := f.tested(policy.RefOf(spki), r.Role)
	f.mu.Unlock()
	return f.recorded(r.Actor, r.ID, policy.KeyAdd{Role: r.Role, Label: "software key", Certificate: der, Store: policy.StoreSoftware, Tenant: r.Tenant}, test)
}

// keyRequest gives a request of another key: its bytes are the ledger's business.
func (f *Fake) keyRequest(r rpc.KeyCSRRequest) (rpc.KeyCSRReply, error) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return rpc.KeyCSRReply{}, err
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: r.Profile + " " + r.Subject}}, key)
	return rpc.KeyCSRReply{Request: der}, err
}
