package main

import (
	"context"
	"crypto"
	"crypto/rand"
	"errors"
	"slices"

	"guardhouse/appliance/hsm"
	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
)

// register offers the hsm.* methods, each to the processes that need it.
func register(s *rpc.Server, keys hsm.Keyring, from *source) {
	k := keys.Token
	from.site.register(s)
	rpc.Handle(s, rpc.HSMStatus, func(context.Context, rpc.Caller, rpc.Empty) (rpc.HSMStatusReply, error) {
		r := status(k.Status(), from.attended(), from.c.problem())
		r.Pack = from.site.manifest.Title()
		return r, nil
	}, rpc.Console, rpc.Ledger, rpc.HGS)
	rpc.Handle(s, rpc.HSMKeys, func(ctx context.Context, by rpc.Caller, _ rpc.Empty) ([]rpc.HSMKey, error) {
		list, err := keys.Keys(hsm.WithCaller(ctx, by.Process))
		out := make([]rpc.HSMKey, 0, len(list))
		for _, key := range list {
			out = append(out, toRPC(key))
		}
		return out, wireError(err)
	}, rpc.Console, rpc.Ledger)
	rpc.Handle(s, rpc.HSMGenerate, func(ctx context.Context, by rpc.Caller, r rpc.HSMGenerateRequest) (rpc.HSMKey, error) {
		key, err := keys.Generate(hsm.WithCaller(ctx, by.Process), r.Role, r.Bits)
		return toRPC(key), wireError(err)
	}, rpc.Ledger)
	rpc.Handle(s, rpc.HSMDestroy, func(ctx context.Context, by rpc.Caller, r rpc.HSMDestroyRequest) (rpc.HSMDestroyReply, error) {
		n, err := keys.Destroy(hsm.WithCaller(ctx, by.Process), hsm.DestroyRequest(r))
		return rpc.HSMDestroyReply{Objects: n}, wireError(err)
	}, rpc.Ledger)
	rpc.Handle(s, rpc.HSMSign, func(ctx context.Context, by rpc.Caller, r rpc.HSMSignRequest) (rpc.HSMSignReply, error) {
		scheme := hsm.PKCS1v15
		if r.PSS {
			scheme = hsm.PSS
		}
		sig, err := keys.Sign(hsm.WithCaller(ctx, by.Process), hsm.SignRequest{Ref: r.Ref, Role: r.Role, Digest: r.Digest, Hash: crypto.Hash(r.Hash), Scheme: scheme})
		return rpc.HSMSignReply{Signature: sig}, wireError(err)
	}, rpc.HGS, rpc.Ledger)
	rpc.Handle(s, rpc.HSMDecrypt, func(ctx context.Context, by rpc.Caller, r rpc.HSMDecryptRequest) (rpc.HSMDecryptReply, error) {
		plain, err := keys.Decrypt(hsm.WithCaller(ctx, by.Process), r.Ref, r.Ciphertext, hsm.OAEP{Hash: crypto.Hash(r.Hash), MGF: crypto.Hash(r.MGF)})
		return rpc.HSMDecryptReply{Plaintext: plain}, wireError(err)
	}, rpc.HGS)
	rpc.Handle(s, rpc.HSMTest, func(ctx context.Context, by rpc.Caller, r rpc.HSMTestRequest) ([]rpc.HSMTestResult, error) {
		return selfTest(hsm.WithCaller(ctx, by.Process), keys, r, rand.Reader)
	}, rpc.Console, rpc.Ledger)
	rpc.Handle(s, rpc.HSMUnlock, func(_ context.Context, _ rpc.Caller, r rpc.HSMUnlockRequest) (rpc.Empty, error) {
		return rpc.Empty{}, wireError(from.unlock(r))
	}, rpc.Console)
	rpc.Handle(s, rpc.HSMRetry, func(_ context.Context, _ rpc.Caller, r rpc.HSMRetryRequest) (rpc.Empty, error) {
		k.Retry(r.LastTry)
		return rpc.Empty{}, nil
	}, rpc.Console)
	registerSoftware(s, keys)
}

// wireError gives a failure the kind that callers act on; nil stays nil.
func wireError(err error) error {
	e, ok := errors.AsType[*hsm.Error](err)
	if !ok {
		return err
	}
	switch e.Kind {
	case hsm.KindDecrypt:
		return rpc.ErrRefused.With("%s", rpc.DecryptRefused)
	case hsm.KindNoKey, hsm.KindUsage, hsm.KindRequest:
		return rpc.ErrRefused.With("%s", e.Error())
	default:
		return rpc.ErrUnavailable.With("%s", e.Error())
	}
}

func toRPC(k hsm.Key) rpc.HSMKey {
	return rpc.HSMKey{Store: k.Store, Ref: k.Ref, Role: k.Role, Label: k.Label, ID: k.ID, SPKI: k.SPKI, Bits: k.Bits, Sensitive: k.Sensitive,
		Extractable: k.Extractable, NeverExtractable: k.NeverExtractable, Sign: k.Sign, Decrypt: k.Decrypt}
}

func status(s hsm.Status, attended bool, cable error) rpc.HSMStatusReply {
	r := rpc.HSMStatusReply{State: string(s.State), Module: s.Module, Token: s.Token.Label, Serial: s.Token.Serial,
		Restarts: s.Restarts, Breaker: string(s.Breaker), Waiting: s.Waiting, Attended: attended, Problems: slices.Clone(s.Token.Problems)}
	switch s.Token.OAEP {
	case hsm.OAEPToken:
		r.OAEP = "token"
	case hsm.OAEPSoftware:
		r.OAEP = "software over raw RSA"
	}
	switch {
	case s.State == hsm.StateLocked && attended:
		r.Problems = append(r.Problems, policy.Problem{Kind: "hsm-waiting-for-pin", What: waitingForPIN,
			Remedy: "an operator types the token's PIN with hsm unlock: on the serial line, or ssh NODE hsm unlock < FILE"})
	case s.State == hsm.StateLocked:
		r.Problems = append(r.Problems, policy.Problem{Kind: "hsm-locked", What: "the HSM is locked: its PIN has not come from the node's secrets",
			Remedy: "none if the node has just started; else see what status says of the secrets"})
	}
	if s.State != hsm.StateReady && s.Last != nil {
		r.Problems = append(r.Problems, policy.Problem{Kind: "hsm-" + string(s.Last.Class), What: s.Last.What(), Remedy: s.Last.Remedy})
	}
	if cable != nil {
		r.Problems = append(r.Problems, policy.Problem{Kind: "hsm-cable", What: cable.Error(), Remedy: "check that the HSM's port is connected at its other end"})
	}
	return r
}
