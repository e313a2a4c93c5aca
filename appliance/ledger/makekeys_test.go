package ledger

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
)

// token answers the HSM's methods with keys in memory and keeps the rule that an encryption key signs nothing.
type token struct {
	mu    sync.Mutex
	keys  map[policy.KeyRef]*rsa.PrivateKey
	list  []rpc.HSMKey
	fail  error
	leaky bool // makes keys that it would give out
	// sick is what a test finds about a key; software, where set, is asked for the software keys when they have changed.
	sick     map[policy.KeyRef]policy.Problem
	silent   int // tests that find no answer before one does
	software func() ([]rpc.SoftwareKey, error)
	loaded   []rpc.SoftwareKey
	away     error // it lists nothing
	// destroying is called before a key goes; an error keeps it.
	destroying func(rpc.HSMDestroyRequest) error
	deaf       int // reloads that fail before one does not
}

// test is hsm.Test: every key that is there works unless it is sick.
func (k *token) test(_ context.Context, _ rpc.Caller, req rpc.HSMTestRequest) ([]rpc.HSMTestResult, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	var list []rpc.HSMTestResult
	k.silent--
	for _, q := range req.Keys {
		r := rpc.HSMTestResult{Ref: q.Ref, Role: q.Role, OK: true}
		soft := slices.ContainsFunc(k.loaded, func(s rpc.SoftwareKey) bool { return s.Ref == q.Ref })
		if k.silent >= 0 {
			r.OK, r.Problems = false, []policy.Problem{{Kind: rpc.KeyUnreachable, What: "no answer", Remedy: "see hsm status"}}
		} else if p, sick := k.sick[q.Ref]; sick {
			r.OK, r.Problems = false, []policy.Problem{p}
		} else if k.keys[q.Ref] == nil && !soft {
			r.OK, r.Problems = false, []policy.Problem{{Kind: rpc.KeyMissing, What: "the token does not hold it", Remedy: "bring it"}}
		}
		list = append(list, r)
	}
	return list, nil
}

// request is hsm.Request with the checks of the real one left to its own tests.
func (k *token) request(_ context.Context, _ rpc.Caller, req rpc.HSMRequestRequest) (rpc.HSMSignReply, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	key := k.keys[req.Ref]
	if key == nil {
		return rpc.HSMSignReply{}, rpc.ErrRefused.With("there is no such key")
	}
	sum := sha256.Sum256(req.Info)
	sig, err := rsa.SignPKCS1v15(nil, key, crypto.SHA256, sum[:])
	return rpc.HSMSignReply{Signature: sig}, err
}

func (k *token) reload(context.Context, rpc.Caller, rpc.Empty) (rpc.Empty, error) {
	if k.software == nil {
		return rpc.Empty{}, nil
	}
	list, err := k.software()
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.deaf--; k.deaf >= 0 {
		return rpc.Empty{}, rpc.ErrUnavailable.With("the process has just been started")
	}
	k.loaded = list
	return rpc.Empty{}, err
}

func (k *token) generate(_ context.Context, _ rpc.Caller, req rpc.HSMGenerateRequest) (rpc.HSMKey, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.fail != nil {
		return rpc.HSMKey{}, k.fail
	}
	key, err := rsa.GenerateKey(rand.Reader, req.Bits)
	if err != nil {
		return rpc.HSMKey{}, err
	}
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return rpc.HSMKey{}, err
	}
	made := rpc.HSMKey{Ref: policy.RefOf(spki), Role: req.Role, Label: "guardhouse-" + string(req.Role) + "-01020304", SPKI: spki, Bits: req.Bits, Sensitive: true, NeverExtractable: true, Extractable: k.leaky}
	k.keys[made.Ref] = key
	k.list = append(k.list, made)
	return made, nil
}

func (k *token) sign(_ context.Context, _ rpc.Caller, req rpc.HSMSignRequest) (rpc.HSMSignReply, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	key := k.keys[req.Ref]
	if key == nil || req.Role == policy.RoleEncryption || req.PSS {
		return rpc.HSMSignReply{}, rpc.ErrRefused.With("this key may not sign that")
	}
	sig, err := rsa.SignPKCS1v15(nil, key, crypto.Hash(req.Hash), req.Digest)
	return rpc.HSMSignReply{Signature: sig}, err
}

func (b *bench) attachToken() *token {
	b.t.Helper()
	k, client := b.newToken()
	b.cfg.HSM = client
	b.l.cfg.HSM = client
	return k
}

// newToken is another node's.
func (b *bench) newToken() (*token, *rpc.Client) {
	b.t.Helper()
	k := &token{keys: map[policy.KeyRef]*rsa.PrivateKey{}, sick: map[policy.KeyRef]policy.Problem{}}
	s := rpc.NewServer(rpc.UIDs{rpc.Ledger: uint32(os.Getuid())})
	rpc.Handle(s, rpc.HSMGenerate, k.generate, rpc.Ledger)
	rpc.Handle(s, rpc.HSMSign, k.sign, rpc.Ledger)
	rpc.Handle(s, rpc.HSMKeys, func(context.Context, rpc.Caller, rpc.Empty) ([]rpc.HSMKey, error) {
		k.mu.Lock()
		defer k.mu.Unlock()
		return k.list, k.away
	}, rpc.Ledger)
	rpc.Handle(s, rpc.HSMDestroy, k.destroy, rpc.Ledger)
	rpc.Handle(s, rpc.HSMTest, k.test, rpc.Ledger)
	rpc.Handle(s, rpc.HSMRequest, k.request, rpc.Ledger)
	rpc.Handle(s, rpc.HSMSoftware, k.reload, rpc.Ledger)
	path := filepath.Join(b.t.TempDir(), "hsm.sock")
	l, err := rpc.Listen(path)
	if err != nil {
		b.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); s.Serve(ctx, l) }()
	b.t.Cleanup(func() { cancel(); <-done })
	return k, rpc.NewClient(path)
}

func TestMakeKeysCertifiesRecordsAndIsRepeatable(t *testing.T) {
	b := newBench(t)
	k := b.attachToken()
	ada := b.setUp()
	req := rpc.MakeKeysRequest{Actor: ada, ID: newID(), Roles: []policy.KeyRole{policy.RoleEncryption, policy.RoleAttestationSigner, policy.RoleCommunications, policy.RoleSigning}, Bits: 2048, Subject: "Example Fabric"}
	if _, err := b.l.MakeKeys(context.Background(), req); !errors.Is(err, rpc.ErrUnavailable) {
		t.Fatalf("without a trusted time: %v", err)
	}
	utc := time.Date(2026, 11, 22, 10, 30, 0, 0, time.UTC)
	b.trust(utc)
	made, err := b.l.MakeKeys(context.Background(), req)
	if err != nil {
		t.Fatal(err)
	}
	again, err := b.l.MakeKeys(context.Background(), req)
	if err != nil || len(again.Keys) != 4 || len(k.list) != 4 {
		t.Fatalf("a retry made %d keys in the token: %v", len(k.list), err)
	}
	if len(made.Keys) != 4 || len(made.Token) != 4 || made.Index == 0 {
		t.Fatalf("%+v", made)
	}
	certs := map[policy.KeyRole]*x509.Certificate{}
	for _, key := range made.Keys {
		c, err := x509.ParseCertificate(key.Certificate)
		if err != nil {
			t.Fatal(err)
		}
		certs[key.Role] = c
		if !key.Primary || policy.RefOf(c.RawSubjectPublicKeyInfo) != key.Ref {
			t.Errorf("%+v", key)
		}
		if c.NotBefore.After(utc) || c.NotBefore.Before(utc.Add(-time.Hour)) || c.NotAfter.Before(utc.AddDate(0, 11, 0)) {
			t.Errorf("%s: %s to %s", key.Role, c.NotBefore, c.NotAfter)
		}
	}
	for role, cn := range map[policy.KeyRole]string{policy.RoleSigning: "Example Fabric signing", policy.RoleEncryption: "Example Fabric encryption",
		policy.RoleCommunications: "Example Fabric communications", policy.RoleAttestationSigner: "Microsoft Remote Attestation Service"} {
		if certs[role].Subject.CommonName != cn {
			t.Errorf("%s: CN %q", role, certs[role].Subject.CommonName)
		}
		issuer := certs[role]
		if role == policy.RoleEncryption {
			issuer = certs[policy.RoleSigning]
		}
		if err := issuer.CheckSignature(certs[role].SignatureAlgorithm, certs[role].RawTBSCertificate, certs[role].Signature); err != nil {
			t.Errorf("%s: %v", role, err)
		}
	}
	b.restart()
	if again, err := b.l.MakeKeys(context.Background(), req); err != nil || again.Keys[0].Ref != made.Keys[0].Ref || len(k.list) != 4 {
		t.Errorf("after a restart: %v", err)
	}
}

func TestMakeKeysRefusesWhoMayNotAndWhatCannotBe(t *testing.T) {
	b := newBench(t)
	k := b.attachToken()
	ada := b.setUp()
	b.trust(time.Date(2026, 11, 22, 10, 30, 0, 0, time.UTC))
	good := rpc.MakeKeysRequest{Actor: ada, ID: newID(), Roles: []policy.KeyRole{policy.RoleSigning}, Bits: 2048, Subject: "x"}
	for name, edit := range map[string]func(*rpc.MakeKeysRequest){
		"nobody":             func(r *rpc.MakeKeysRequest) { r.Actor = policy.Actor{Name: "eve"} },
		"the node":           func(r *rpc.MakeKeysRequest) { r.Actor = policy.Actor{Door: policy.DoorNode} },
		"no id":              func(r *rpc.MakeKeysRequest) { r.ID = "" },
		"small":              func(r *rpc.MakeKeysRequest) { r.Bits = 1024 },
		"no role":            func(r *rpc.MakeKeysRequest) { r.Roles = nil },
		"unknown role":       func(r *rpc.MakeKeysRequest) { r.Roles = []policy.KeyRole{"root"} },
		"twice":              func(r *rpc.MakeKeysRequest) { r.Roles = append(r.Roles, r.Roles...) },
		"long subject":       func(r *rpc.MakeKeysRequest) { r.Subject = string(make([]byte, 41)) },
		"bad subject":        func(r *rpc.MakeKeysRequest) { r.Subject = "a\nb" },
		"nothing to certify": func(r *rpc.MakeKeysRequest) { r.Roles = []policy.KeyRole{policy.RoleEncryption} },
	} {
		req := good
		edit(&req)
		if _, err := b.l.MakeKeys(context.Background(), req); !errors.Is(err, rpc.ErrRefused) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if len(k.list) != 0 {
		t.Errorf("%d keys were made", len(k.list))
	}
	k.leaky = true
	if _, err := b.l.MakeKeys(context.Background(), good); !errors.Is(err, rpc.ErrRefused) {
		t.Errorf("a key that can be extracted: %v", err)
	}
	if s, _ := b.l.Snapshot(); len(s.State.Keys) != 0 {
		t.Error("it was recorded")
	}
	k.fail = rpc.ErrUnavailable.With("the token is away")
	if _, err := b.l.MakeKeys(context.Background(), good); !errors.Is(err, rpc.ErrUnavailable) {
		t.Errorf("%v", err)
	}
}
