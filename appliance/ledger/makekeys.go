package ledger

import (
	"context"
	"crypto"
	"crypto/sha1" // the usual subject key identifier; identifies, protects nothing
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math/big"
	"slices"
	"time"

	"guardhouse/appliance/health"
	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
)

// guardianLife is long because HGS treats guardian certificates as containers of keys: their expiry stops nothing, and a key is retired
// by disabling it (kps.md 12). Hosts and tenants do look at the dates when they import them.
const guardianLife = 10 * 365 * 24 * time.Hour

const maxSubject = 40 // characters; the role's word must fit into a CN of 64

// MakeKeys has the HSM make a key for each role, certifies it and records it. The commands' ids derive from the request's, so a retry
// finds the keys of the first try and makes only what is missing. A crash between the HSM and the records leaves a key in the token
// that nothing refers to; key list shows it, and AddKey records it.
//
// Each new key is tested on every node before it is recorded: one that fails is recorded, but not as primary, and a new attestation
// signer that fails is not recorded at all, because it would be used.
//
// Signing, communications and attestation signer keys certify themselves. The encryption key may not sign anything (the token would
// refuse), so the guardian's signing key certifies it: the one made in this request, or the primary one. A CA can
// certify each later, see CertificateRequest.
func (l *Ledger) MakeKeys(ctx context.Context, req rpc.MakeKeysRequest) (rpc.MakeKeysReply, error) {
	l.keysMu.Lock()
	defer l.keysMu.Unlock()
	var reply rpc.MakeKeysReply
	if err := l.checkMakeKeys(&req); err != nil {
		return reply, err
	}
	defer l.wakeRenewal()
	for _, role := range req.Roles {
		made, err := l.makeKey(ctx, req, role, reply.Keys...)
		if err != nil {
			return reply, fmt.Errorf("%s key: %w", role, err)
		}
		reply.Keys, reply.Index, reply.Tests = append(reply.Keys, made.key), made.index, append(reply.Tests, made.tests...)
	}
	all, err := rpc.HSMKeys.Call(ctx, l.cfg.HSM, rpc.Empty{})
	if err != nil {
		return reply, fmt.Errorf("the keys are made and recorded, but the token does not describe them: %w", err)
	}
	for _, k := range all {
		if slices.ContainsFunc(reply.Keys, func(made policy.Key) bool { return made.Ref == k.Ref }) {
			reply.Token = append(reply.Token, k)
		}
	}
	return reply, nil
}

func (l *Ledger) checkMakeKeys(req *rpc.MakeKeysRequest) error {
	if err := l.ready(); err != nil {
		return err
	}
	s, _ := l.Snapshot()
	if err := policy.Allowed(s.State, req.Actor, policy.AdminOperator); err != nil {
		return rpc.ErrRefused.With("%v", err)
	}
	if req.Actor.Door == policy.DoorNode || req.Actor.Door == policy.DoorSetup {
		return rpc.ErrRefused.With("keys are made by an administrator")
	}
	if !validID(req.ID) {
		return rpc.ErrRefused.With("the request id is not 32 lower-case hex digits")
	}
	if req.Bits != 2048 && req.Bits != 3072 && req.Bits != 4096 {
		return rpc.ErrRefused.With("a key has 2048, 3072 or 4096 bits")
	}
	if req.Subject == "" {
		req.Subject = s.State.Service.Name
	}
	if err := checkSubject(req.Subject); err != nil {
		return err
	}
	roles := map[policy.KeyRole]bool{}
	for _, r := range req.Roles {
		if !slices.Contains(policy.KeyRoles, r) || roles[r] {
			return rpc.ErrRefused.With("%.32q is not a key role, or is named twice", r)
		}
		roles[r] = true
	}
	if len(roles) == 0 {
		return rpc.ErrRefused.With("no role is named")
	}
	for r := range roles {
		if !slices.Contains(s.State.KeyRolesUsed(), r) {
			return rpc.ErrRefused.With("this service only attests: it has no %s key", r)
		}
	}
	// In the order of policy.KeyRoles the signing key comes before the encryption key that it certifies.
	slices.SortFunc(req.Roles, func(a, b policy.KeyRole) int {
		return slices.Index(policy.KeyRoles, a) - slices.Index(policy.KeyRoles, b)
	})
	if _, has := issuer(s.State); roles[policy.RoleEncryption] && !has && !roles[policy.RoleSigning] {
		return rpc.ErrRefused.With("there is no signing key that could certify the encryption key; make both")
	}
	if err := l.audit.Admits(policy.AuditCommand); err != nil {
		return rpc.ErrUnavailable.With("nothing may be changed that can't be recorded: %v", err)
	}
	if _, err := l.now(); err != nil {
		return err
	}
	return l.checkSigner(*req, s.State)
}

func checkSubject(subject string) error {
	if len(subject) > maxSubject {
		return rpc.ErrRefused.With("the subject is longer than %d characters", maxSubject)
	}
	for _, c := range subject {
		if c < ' ' || c > '~' || c == '/' {
			return rpc.ErrRefused.With("the subject holds a character that is not printable ASCII")
		}
	}
	return nil
}

// now is the trusted interval, or why there is none.
func (l *Ledger) now() (health.Window, error) {
	w := health.Between(l.cfg.Time().At(l.cfg.BootTime()))
	if !w.Known() {
		return w, errNoTime()
	}
	return w, nil
}

func errNoTime() error {
	return rpc.ErrUnavailable.With("the time is not trusted, so no certificate can be made; see time status")
}

// begin is from when on what is certified now is valid, or why nothing can be.
func (l *Ledger) begin() (time.Time, error) {
	earliest, _, ok := l.cfg.Time().At(l.cfg.BootTime())
	if !ok {
		return time.Time{}, errNoTime()
	}
	return earliest.Add(-policy.HealthBackdate).UTC().Truncate(time.Second), nil
}

// derivedID is the request id of one part of a request.
func derivedID(id, part string) string {
	sum := sha256.Sum256([]byte("guardhouse part of request 1\x00" + id + "\x00" + part))
	return hex.EncodeToString(sum[:16])
}

// madeKey is a key that was recorded, the index of its command and its tests.
type madeKey struct {
	key   policy.Key
	index uint64
	tests []rpc.HSMTestResult
}

// makeKey makes one key; before are those that were made for the same request.
func (l *Ledger) makeKey(ctx context.Context, req rpc.MakeKeysRequest, role policy.KeyRole, before ...policy.Key) (madeKey, error) {
	id := derivedID(req.ID, string(role))
	if done, ok, err := l.doneBefore(id); ok || err != nil {
		return done, err
	}
	bits := req.Bits
	if role == policy.RoleAttestationSigner {
		bits = max(bits, policy.SignerBits)
	}
	made, err := rpc.HSMGenerate.Call(ctx, l.cfg.HSM, rpc.HSMGenerateRequest{Role: role, Bits: bits})
	if err != nil {
		return madeKey{}, fmt.Errorf("make in the HSM: %w", err)
	}
	if policy.RefOf(made.SPKI) != made.Ref {
		return madeKey{}, fmt.Errorf("the HSM's answer names another key than it holds")
	}
	if err := l.store.noteMade(made); err != nil {
		return madeKey{}, fmt.Errorf("remember that the key was made here: %w", err)
	}
	if made.Extractable || !made.Sensitive {
		return madeKey{}, rpc.ErrRefused.With("the token made key %s so that it would give the private half out; it is not used. Check the token's settings and delete that key", made.Label)
	}
	der, err := l.certify(made, role, req.Subject, before...)
	if err != nil {
		return madeKey{}, err
	}
	return l.record(ctx, req.Actor, id, made.SPKI, policy.KeyAdd{Role: role, Label: made.Label, Certificate: der})
}

// doneBefore answers a request that was answered before.
func (l *Ledger) doneBefore(id string) (madeKey, bool, error) {
	r, ok, err := l.store.result(id)
	if err != nil || !ok {
		return madeKey{}, false, err
	}
	s, _ := l.Snapshot()
	k, have := s.State.Keys[policy.KeyRef(r.Result.Subject)]
	if !have {
		return madeKey{}, true, rpc.ErrRefused.With("this request was done before (%s)", r.Refused+r.Result.Message)
	}
	return madeKey{key: k, index: r.Index}, true, nil
}

// record tests a key on every node and records it: as spare if it failed.
func (l *Ledger) record(ctx context.Context, actor policy.Actor, id string, spki []byte, add policy.KeyAdd) (madeKey, error) {
	tests := l.testNew(ctx, rpc.HSMTestKey{Ref: policy.RefOf(spki), Role: add.Role, SPKI: spki, Label: add.Label})
	if failed := l.failures(tests); len(failed) > 0 {
		if add.Role == policy.RoleAttestationSigner {
			return madeKey{tests: tests}, rpc.ErrRefused.With("the new attestation signer is not used, because it fails its test: %s; %s", failed[0].What, failed[0].Remedy)
		}
		add.Spare = true
	}
	body, err := json.Marshal(add)
	if err != nil {
		return madeKey{}, err
	}
	index, result, err := l.Propose(ctx, policy.Command{ID: id, Kind: policy.CmdKeyAdd, Actor: actor, Body: body})
	if err != nil {
		return madeKey{index: index, tests: tests}, err
	}
	s, _ := l.Snapshot()
	return madeKey{s.State.Keys[policy.KeyRef(result.Subject)], index, tests}, nil
}

// roleWords is how the CN of a key's certificate ends.
var roleWords = map[policy.KeyRole]string{
	policy.RoleSigning:        "signing",
	policy.RoleEncryption:     "encryption",
	policy.RoleCommunications: "communications",
}

// certify makes the certificate of a new key.
func (l *Ledger) certify(k rpc.HSMKey, role policy.KeyRole, subject string, before ...policy.Key) ([]byte, error) {
	signer, err := rpc.NewHSMSignerFor(l.cfg.HSM, k.Ref, role, k.SPKI)
	if err != nil {
		return nil, err
	}
	now, err := l.now()
	if err != nil {
		return nil, err
	}
	if role == policy.RoleAttestationSigner {
		return health.NewSignerCertificate(l.cfg.Rand, now, "", health.DefaultSignerLife, signer)
	}
	t, err := l.guardianTemplate(subject+" "+roleWords[role], k.SPKI)
	if err != nil {
		return nil, err
	}
	issuer, key := t, crypto.Signer(signer)
	t.KeyUsage = x509.KeyUsageDigitalSignature
	if role == policy.RoleEncryption {
		t.KeyUsage = x509.KeyUsageKeyEncipherment | x509.KeyUsageDataEncipherment
		if issuer, key, err = l.issuingKey(before); err != nil {
			return nil, err
		}
	}
	der, err := x509.CreateCertificate(l.cfg.Rand, t, issuer, signer.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("certify: %w", err)
	}
	return der, nil
}

func (l *Ledger) guardianTemplate(cn string, spki []byte) (*x509.Certificate, error) {
	serial := make([]byte, 16)
	if _, err := io.ReadFull(l.cfg.Rand, serial); err != nil {
		return nil, fmt.Errorf("randomness: %w", err)
	}
	serial[0] = serial[0]&0x7f | 0x40
	begin, err := l.begin()
	if err != nil {
		return nil, err
	}
	ski := sha1.Sum(spki)
	return &x509.Certificate{SerialNumber: new(big.Int).SetBytes(serial), Subject: pkix.Name{CommonName: cn}, NotBefore: begin,
		NotAfter: begin.Add(guardianLife), SignatureAlgorithm: x509.SHA256WithRSA, SubjectKeyId: ski[:]}, nil
}

// issuingKey is the signing key that certifies encryption keys: one that was made for the same request, so that the halves of a new pair
// belong together; else the primary one or, where no key passed its test yet, any of ours.
func (l *Ledger) issuingKey(before []policy.Key) (*x509.Certificate, crypto.Signer, error) {
	s, _ := l.Snapshot()
	k, ok := issuer(s.State)
	for _, one := range before {
		if one.Role == policy.RoleSigning {
			k, ok = one, true
		}
	}
	if !ok {
		return nil, nil, rpc.ErrRefused.With("there is no signing key that could certify the encryption key; make both")
	}
	cert, err := x509.ParseCertificate(k.Certificate)
	if err != nil {
		return nil, nil, fmt.Errorf("certificate of the signing key: %w", err)
	}
	signer, err := rpc.NewHSMSigner(l.cfg.HSM, k)
	return cert, signer, err
}

func issuer(s policy.State) (policy.Key, bool) {
	if k, ok := s.PrimaryKey(policy.RoleSigning); ok {
		return k, true
	}
	for _, ref := range slices.Sorted(maps.Keys(s.Keys)) {
		if k := s.Keys[ref]; k.Role == policy.RoleSigning && k.Enabled && k.Tenant == "" {
			return k, true
		}
	}
	return policy.Key{}, false
}
