package ledger

import (
	"context"
	"crypto/x509"
	"slices"

	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
)

// registerKeys offers what administrators do with keys beside plain commands.
func (l *Ledger) registerKeys(s *rpc.Server) {
	rpc.Handle(s, rpc.LedgerKeyAdd, func(ctx context.Context, _ rpc.Caller, req rpc.KeyAddRequest) (rpc.KeyAddReply, error) {
		return l.AddKey(ctx, req)
	}, rpc.Console)
	rpc.Handle(s, rpc.LedgerResetKeys, func(ctx context.Context, _ rpc.Caller, _ rpc.Empty) (rpc.ResetKeysReply, error) {
		return l.ResetKeys(ctx)
	}, rpc.Console)
	rpc.Handle(s, rpc.LedgerDestroyKeys, func(ctx context.Context, _ rpc.Caller, req rpc.DestroyKeysRequest) (rpc.DestroyKeysReply, error) {
		return l.DestroyKeys(ctx, req)
	}, rpc.Init)
	rpc.Handle(s, rpc.LedgerKeyImport, func(ctx context.Context, _ rpc.Caller, req rpc.KeyImportRequest) (rpc.KeyAddReply, error) {
		return l.ImportKey(ctx, req)
	}, rpc.Console)
	rpc.Handle(s, rpc.LedgerKeyRequest, func(_ context.Context, _ rpc.Caller, req rpc.KeyCSRRequest) (rpc.KeyCSRReply, error) {
		return l.CertificateRequest(req)
	}, rpc.Console)
	rpc.Handle(s, rpc.LedgerKeyTest, func(ctx context.Context, _ rpc.Caller, req rpc.KeyTestRequest) (rpc.KeyTestReply, error) {
		return l.KeyTest(ctx, req)
	}, rpc.Console, rpc.Init)
	rpc.Handle(s, rpc.LedgerSealKey, func(context.Context, rpc.Caller, rpc.Empty) (rpc.SetupKeyReply, error) {
		return rpc.SetupKeyReply{Recipient: l.sealKey.Recipient().String(), Boot: l.cfg.Boot}, nil
	}, rpc.Console)
	rpc.Handle(s, rpc.LedgerSoftwareKeys, func(context.Context, rpc.Caller, rpc.Empty) ([]rpc.SoftwareKey, error) {
		return l.SoftwareKeys()
	}, rpc.HSM)
}

// byAdministrator reports why the actor may not change keys now.
func (l *Ledger) byAdministrator(actor policy.Actor, id string) error {
	if err := l.ready(); err != nil {
		return err
	}
	s, _ := l.Snapshot()
	if err := policy.Allowed(s.State, actor, policy.AdminOperator); err != nil {
		return rpc.ErrRefused.With("%v", err)
	}
	if actor.Door != policy.DoorSerial && actor.Door != policy.DoorSSH {
		return rpc.ErrRefused.With("keys are brought by an administrator")
	}
	if !validID(id) {
		return rpc.ErrRefused.With("the request id is not 32 lower-case hex digits")
	}
	if err := l.audit.Admits(policy.AuditCommand); err != nil {
		return rpc.ErrUnavailable.With("nothing may be changed that can't be recorded: %v", err)
	}
	return nil
}

// AddKey records a pair that lies in the token already, found by its public key: one that the vendor's tools made, a tenant's (row B20),
// or one that an interrupted MakeKeys left. It is tested on every node first; one that fails is recorded, but not as primary.
func (l *Ledger) AddKey(ctx context.Context, req rpc.KeyAddRequest) (rpc.KeyAddReply, error) {
	l.keysMu.Lock()
	defer l.keysMu.Unlock()
	if err := l.byAdministrator(req.Actor, req.ID); err != nil {
		return rpc.KeyAddReply{}, err
	}
	if done, ok, err := l.doneBefore(req.ID); ok || err != nil {
		return l.added(done, err)
	}
	defer l.wakeRenewal()
	found, err := l.findInToken(ctx, req)
	if err != nil {
		return rpc.KeyAddReply{}, err
	}
	s, _ := l.Snapshot()
	if k, ok := s.State.Keys[req.Ref]; ok {
		return rpc.KeyAddReply{}, rpc.ErrRefused.With("this key is recorded already with the role %s; a renewed certificate is installed with key install", k.Role)
	}
	if req.Role == policy.RoleAttestationSigner {
		if err := l.checkSigner(rpc.MakeKeysRequest{ID: req.ID, Roles: []policy.KeyRole{req.Role}}, s.State); err != nil {
			return rpc.KeyAddReply{}, err
		}
		if len(req.Certificate) > 0 {
			return rpc.KeyAddReply{}, rpc.ErrRefused.With("attestation signers certify themselves; add it without a certificate")
		}
	}
	der := req.Certificate
	if len(der) == 0 {
		if req.Subject == "" {
			req.Subject = s.State.Service.Name
		}
		if err := checkSubject(req.Subject); err != nil {
			return rpc.KeyAddReply{}, err
		}
		if der, err = l.certify(found, req.Role, req.Subject); err != nil {
			return rpc.KeyAddReply{}, err
		}
	} else if err := checkBrought(der, req.Ref, req.Role); err != nil {
		return rpc.KeyAddReply{}, err
	}
	return l.added(l.record(ctx, req.Actor, req.ID, found.SPKI, policy.KeyAdd{Role: req.Role, Label: label(found.Label), Certificate: der, Tenant: req.Tenant}))
}

func (l *Ledger) added(made madeKey, err error) (rpc.KeyAddReply, error) {
	if err != nil {
		return rpc.KeyAddReply{Tests: made.tests}, err
	}
	return rpc.KeyAddReply{Key: made.key, Index: made.index, Tests: made.tests}, nil
}

// label cuts a label of somebody else's to what the records take. Labels are for people only.
func label(s string) string {
	out := []rune{}
	for _, r := range s {
		if r >= ' ' && r <= '~' && len(out) < policy.MaxLabel {
			out = append(out, r)
		}
	}
	return string(out)
}

func (l *Ledger) findInToken(ctx context.Context, req rpc.KeyAddRequest) (rpc.HSMKey, error) {
	all, err := rpc.HSMKeys.Call(ctx, l.cfg.HSM, rpc.Empty{})
	if err != nil {
		return rpc.HSMKey{}, err
	}
	i := slices.IndexFunc(all, func(k rpc.HSMKey) bool { return k.Ref == req.Ref && k.Store == policy.StoreToken })
	if i < 0 {
		return rpc.HSMKey{}, rpc.ErrRefused.With("the token holds no pair with the public key %.16q; see key list for those that are not recorded", req.Ref)
	}
	k := all[i]
	switch {
	case policy.RefOf(k.SPKI) != k.Ref:
		return k, rpc.ErrRefused.With("the HSM's answer names another key than it holds")
	case k.Extractable || !k.Sensitive:
		return k, rpc.ErrRefused.With("the token would give the private half of this key out (sensitive %v, extractable %v); set CKA_SENSITIVE and clear CKA_EXTRACTABLE with the vendor's tool", k.Sensitive, k.Extractable)
	case k.Bits < 2048:
		return k, rpc.ErrRefused.With("the key has %d bits; RSA of 2048 or more is accepted", k.Bits)
	case k.Role != "" && k.Role != req.Role:
		return k, rpc.ErrRefused.With("the key's label says that it is a %s key, not a %s key", k.Role, req.Role)
	}
	return k, nil
}

// checkBrought checks a certificate that came with a key.
func checkBrought(der []byte, ref policy.KeyRef, role policy.KeyRole) error {
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return rpc.ErrRefused.With("the certificate does not parse; give one DER or PEM certificate")
	}
	if policy.RefOf(cert.RawSubjectPublicKeyInfo) != ref {
		return rpc.ErrRefused.With("the certificate is for another public key than this pair's")
	}
	if why := policy.CheckKeyCertificate(role, cert).Refusal(); why != nil {
		return rpc.ErrRefused.With("%s; %s", why.What, why.Remedy)
	}
	return nil
}
