package verbtest

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"math/big"
	"slices"
	"strings"
	"time"

	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
)

// on registers a method that Fail can break.
func on[Req, Resp any](f *Fake, s *rpc.Server, m rpc.Method[Req, Resp], fn func(Req) (Resp, error)) {
	rpc.Handle(s, m, func(_ context.Context, _ rpc.Caller, req Req) (Resp, error) {
		if err := f.failure(m.Name); err != nil {
			var none Resp
			return none, err
		}
		return fn(req)
	}, rpc.Console)
}

func (f *Fake) ledger(s *rpc.Server) {
	rpc.HandleStream(s, rpc.LedgerWatch, f.watch, rpc.Console)
	on(f, s, rpc.LedgerPropose, f.propose)
	on(f, s, rpc.LedgerResetKeys, func(rpc.Empty) (rpc.ResetKeysReply, error) {
		f.mu.Lock()
		defer f.mu.Unlock()
		return f.resetKeys, nil
	})
	on(f, s, rpc.LedgerMakeKeys, f.makeKeys)
	f.timeDecisions(s)
	f.peers(s)
	on(f, s, rpc.LedgerUsage, f.usage)
	on(f, s, rpc.LedgerSyslogRequest, f.syslogRequest)
	on(f, s, rpc.LedgerKeyTest, f.keyTest)
	on(f, s, rpc.LedgerKeyAdd, f.keyAdd)
	on(f, s, rpc.LedgerKeyImport, f.keyImport)
	on(f, s, rpc.LedgerKeyRequest, f.keyRequest)
	on(f, s, rpc.LedgerSealKey, func(rpc.Empty) (rpc.SetupKeyReply, error) {
		return rpc.SetupKeyReply{Recipient: "age1qyqszqgpqyqszqgpqyqszqgpqyqszqgpqyqszqgpqyqszqgpqyqs3290gq", Boot: "boot"}, nil
	})
	on(f, s, rpc.LedgerHTTPSRequest, f.httpsRequest)
	on(f, s, rpc.LedgerAudit, func(e policy.AuditEntry) (policy.AuditReceipt, error) {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.audit = append(f.audit, e)
		return policy.AuditReceipt{Seq: uint64(len(f.audit))}, nil
	})
	on(f, s, rpc.LedgerObserved, func(r rpc.ObservedRequest) ([]policy.Observation, error) {
		if r.Kind == policy.ObservedPending {
			return f.pending, nil
		}
		f.mu.Lock()
		defer f.mu.Unlock()
		var list []policy.Observation
		for _, o := range f.observed {
			if o.Kind == r.Kind && (r.Subject == "" || o.Subject == r.Subject) {
				list = append([]policy.Observation{o}, list...) // the newest first
			}
		}
		return list, nil
	})
	on(f, s, rpc.LedgerEvidence, f.evidence)
	on(f, s, rpc.LedgerBootLog, func(r rpc.BootLogRequest) (rpc.BootLogReply, error) {
		f.mu.Lock()
		defer f.mu.Unlock()
		if log, ok := f.logs[r.Digest]; ok {
			return rpc.BootLogReply{Log: log}, nil
		}
		return rpc.BootLogReply{}, rpc.ErrUnavailable.With("the boot log is not kept here")
	})
	on(f, s, rpc.LedgerAuditTail, func(r rpc.AuditTailRequest) ([]rpc.AuditRecord, error) {
		var records []rpc.AuditRecord
		for i, e := range f.Audit() {
			records = append(records, rpc.AuditRecord{Seq: uint64(i + 1), Entry: e})
		}
		return records[max(0, len(records)-r.Limit):], nil
	})
	rpc.HandleStream(s, rpc.LedgerAuditExport, func(_ context.Context, _ rpc.Caller, _ rpc.AuditRange, send func(rpc.AuditChunk) error) error {
		for _, part := range []string{"first\x00", "second\n"} {
			if err := send(rpc.AuditChunk{Data: []byte(part)}); err != nil {
				return err
			}
		}
		return nil
	}, rpc.Console)
	on(f, s, rpc.LedgerAuditTrim, func(rpc.AuditTrimRequest) (rpc.AuditTrimReply, error) {
		return rpc.AuditTrimReply{Segments: 2, Bytes: 8192}, nil
	})
	on(f, s, rpc.LedgerAuditVerify, func(rpc.Empty) (rpc.AuditVerifyReply, error) {
		return rpc.AuditVerifyReply{First: 1, Last: 9, Hash: strings.Repeat("ab", 32), Segments: 1, Bytes: 4096}, nil
	})
	on(f, s, rpc.LedgerSetupKey, func(rpc.Empty) (rpc.SetupKeyReply, error) {
		return rpc.SetupKeyReply{Recipient: Recipient, Boot: "boot"}, nil
	})
	on(f, s, rpc.LedgerSetupApply, f.setup)
	on(f, s, rpc.LedgerSign, func(r rpc.NodeSignRequest) (rpc.NodeSignReply, error) {
		if r.Key != "ssh" {
			return rpc.NodeSignReply{}, rpc.ErrNotAllowed
		}
		return rpc.NodeSignReply{Signature: ed25519.Sign(f.hostKey, r.Digest)}, nil
	})
	on(f, s, rpc.LedgerPassphrase, func(r rpc.PassphraseRequest) (rpc.PassphraseReply, error) {
		return rpc.PassphraseReply{OK: r.Admin == "ada" && string(r.Passphrase) == Passphrase}, nil
	})
	on(f, s, rpc.LedgerSetPassphrase, func(r rpc.PassphraseRequest) (rpc.Empty, error) {
		if len(r.Passphrase) < 8 || r.Actor == nil || r.Actor.Name != r.Admin {
			return rpc.Empty{}, rpc.ErrRefused.With("a passphrase has 8 to 1024 characters")
		}
		return rpc.Empty{}, nil
	})
	f.boots(s)
	on(f, s, rpc.LedgerMeasure, func(rpc.Empty) (rpc.MeasureReply, error) {
		return rpc.MeasureReply{PCRs: map[int]string{4: strings.Repeat("4f", 32), 11: strings.Repeat("1b", 32)}, TPM: "IBM swtpm 2.0"}, nil
	})
	on(f, s, rpc.LedgerStatus, func(rpc.Empty) (rpc.LedgerStatusReply, error) {
		r := rpc.LedgerStatusReply{Index: 7, SetUp: true, NodeID: "0123456789abcdef", Sealing: "on the sealed volume", AuditSeq: 9,
			AuditBytes: 4096, AuditLimit: 64 << 20}
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.state.Service != nil && f.state.Service.Syslog != nil {
			r.Syslog = &rpc.SyslogStatus{Address: f.state.Service.Syslog.Address, Connected: true, Position: 7, Behind: 2}
		}
		return r, nil
	})
}

func (f *Fake) forward(s *rpc.Server) {
	on(f, s, rpc.ForwardTest, func(rpc.Empty) (rpc.ForwardTestReply, error) {
		return rpc.ForwardTestReply{Address: "siem.example.test:6514", Subject: "CN=siem.example.test", SHA1: strings.Repeat("ab", 20), SHA256: strings.Repeat("ab", 32), TLS: "TLS 1.3"}, nil
	})
}

func (f *Fake) watch(ctx context.Context, _ rpc.Caller, _ rpc.Empty, send func(policy.Snapshot) error) error {
	for {
		f.mu.Lock()
		snap, changed := policy.Snapshot{Index: f.index, NodeID: f.nodeID, State: f.state}, f.changed
		f.mu.Unlock()
		if err := send(snap); err != nil {
			return err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// setup refuses an answer file that holds the word wrong, and secrets that are not armored age.
func (f *Fake) setup(r rpc.SetupRequest) (policy.Result, error) {
	switch {
	case bytes.Contains(r.Answers, []byte("wrong")):
		return policy.Result{}, rpc.ErrRefused.With("the answer file can't be used: line 3: unknown key wrong; correct the answer file")
	case r.DryRun && len(r.Secrets) == 0:
		return policy.Result{Message: "service hgs.example.test in HostKey mode\nnode node1, 1 interface, 1 time server\nadministrators: ada (owner)"}, nil
	case !bytes.HasPrefix(r.Secrets, []byte("-----BEGIN AGE ENCRYPTED FILE-----\n")):
		return policy.Result{}, rpc.ErrRefused.With("the secrets are not an armored age file; encrypt them with age -a")
	case r.DryRun:
		return policy.Result{Message: "everything fits"}, nil
	}
	body, err := json.Marshal(f.setupBody())
	if err != nil {
		return policy.Result{}, err
	}
	return f.propose(policy.Command{ID: "setup", Kind: policy.CmdSetup, Actor: r.Actor, At: At, Body: body})
}

func (f *Fake) makeKeys(r rpc.MakeKeysRequest) (rpc.MakeKeysReply, error) {
	var reply rpc.MakeKeysReply
	for i, role := range r.Roles {
		key, err := rsa.GenerateKey(rand.Reader, r.Bits)
		if err != nil {
			return reply, err
		}
		template := &x509.Certificate{SerialNumber: big.NewInt(int64(i + 1)), Subject: pkix.Name{CommonName: r.Subject},
			NotBefore: time.UnixMilli(At.Earliest), NotAfter: time.UnixMilli(At.Earliest).AddDate(10, 0, 0)}
		der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
		if err != nil {
			return reply, err
		}
		spki, _ := x509.MarshalPKIXPublicKey(key.Public())
		f.mu.Lock()
		test := f.tested(policy.RefOf(spki), role)
		f.mu.Unlock()
		reply.Tests = append(reply.Tests, test)
		body, err := json.Marshal(policy.KeyAdd{Role: role, Label: "gh-" + string(role), Certificate: der, Spare: !test.OK})
		if err != nil {
			return reply, err
		}
		result, err := f.propose(policy.Command{ID: r.ID + string(role), Kind: policy.CmdKeyAdd, Actor: r.Actor, At: At, Body: body})
		if err != nil {
			return reply, err
		}
		reply.Index = result.Index
		f.mu.Lock()
		reply.Keys = append(reply.Keys, f.state.Keys[policy.KeyRef(result.Subject)])
		f.mu.Unlock()
		reply.Token = append(reply.Token, tokenKey(policy.KeyRef(result.Subject), role))
	}
	return reply, nil
}

func tokenKey(ref policy.KeyRef, role policy.KeyRole) rpc.HSMKey {
	return rpc.HSMKey{Ref: ref, Role: role, Label: "gh-" + string(role), Bits: 2048, Sensitive: true, NeverExtractable: true,
		Sign: role != policy.RoleEncryption, Decrypt: role == policy.RoleEncryption}
}

func (f *Fake) hsm(s *rpc.Server) {
	on(f, s, rpc.HSMStatus, func(rpc.Empty) (rpc.HSMStatusReply, error) {
		return rpc.HSMStatusReply{State: "ready", Pack: "p11-kit-client 0.24.1-2", Module: "/usr/lib/pkcs11/p11-kit-client.so", Token: "guardhouse", Serial: "0badcafe", OAEP: "software over raw RSA", Breaker: "closed"}, nil
	})
	on(f, s, rpc.HSMSiteList, func(rpc.Empty) (rpc.HSMSiteReply, error) {
		f.mu.Lock()
		defer f.mu.Unlock()
		return rpc.HSMSiteReply{Pack: "vendor 1.0", Files: append(slices.Clone(f.site), rpc.HSMSiteFile{Name: "world", Declared: true})}, nil
	})
	on(f, s, rpc.HSMSitePut, func(r rpc.HSMSiteRequest) (rpc.HSMSiteFile, error) {
		if r.Name != "client.pem" || r.Actor.Name == "" {
			return rpc.HSMSiteFile{}, rpc.ErrRefused.With("the HSM pack of this image declares no site data of this name")
		}
		sum := sha256.Sum256(r.Data)
		file := rpc.HSMSiteFile{Name: r.Name, Declared: true, Size: int64(len(r.Data)), SHA256: hex.EncodeToString(sum[:])}
		f.mu.Lock()
		defer f.mu.Unlock()
		f.site = []rpc.HSMSiteFile{file}
		return file, nil
	})
	on(f, s, rpc.HSMSiteRemove, func(r rpc.HSMSiteRequest) (rpc.HSMSiteFile, error) {
		f.mu.Lock()
		defer f.mu.Unlock()
		if len(f.site) == 0 || f.site[0].Name != r.Name {
			return rpc.HSMSiteFile{}, rpc.ErrRefused.With("there is no such site data")
		}
		file := f.site[0]
		f.site = nil
		return file, nil
	})
	on(f, s, rpc.HSMUnlock, func(r rpc.HSMUnlockRequest) (rpc.Empty, error) {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.unlocked = append(f.unlocked, fmt.Sprintf("%s %v", r.PIN, r.LastTry))
		return rpc.Empty{}, nil
	})
	on(f, s, rpc.HSMRetry, func(r rpc.HSMRetryRequest) (rpc.Empty, error) { return rpc.Empty{}, nil })
	on(f, s, rpc.HSMKeys, func(rpc.Empty) ([]rpc.HSMKey, error) {
		f.mu.Lock()
		defer f.mu.Unlock()
		keys := []rpc.HSMKey{}
		for ref, k := range f.state.Keys {
			if k.Store == policy.StoreToken && f.born[ref].key == nil {
				keys = append(keys, tokenKey(ref, k.Role))
			}
		}
		for _, b := range f.born {
			keys = append(keys, b.as)
		}
		return keys, nil
	})
}

func (f *Fake) clock(s *rpc.Server) {
	on(f, s, rpc.ClockStatus, func(rpc.Empty) (rpc.ClockStatusReply, error) {
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.clocked != nil {
			return *f.clocked, nil
		}
		return rpc.ClockStatusReply{State: rpc.ClockLocked, Boot: "boot", Limit: time.Minute, StopsAt: time.UnixMilli(At.Earliest).Add(26 * time.Hour),
			Why:       []string{"The time is trusted.", "One server says so.", "It is asked again in a minute."},
			Trusted:   rpc.ClockView{OK: true, Earliest: time.UnixMilli(At.Earliest), Latest: time.UnixMilli(At.Latest), Sources: []string{"10.0.2.2:11123"}, ExpiresIn: 26 * time.Hour},
			Sources:   []rpc.ClockSource{{Address: "10.0.2.2:11123", State: "selected", Offset: 1200 * time.Microsecond, Bound: 10 * time.Millisecond, Age: 4 * time.Second}},
			SinceLock: 84 * time.Millisecond, LockedAt: 9 * time.Second,
		}, nil
	})
}

func (f *Fake) init(s *rpc.Server) {
	on(f, s, rpc.InitStatus, func(rpc.Empty) (rpc.InitStatusReply, error) {
		return rpc.InitStatusReply{Version: "1.0-test", Boot: "boot", Up: 90 * time.Second, NetworkUp: 7700 * time.Millisecond, Disk: "ok, 3 of 64 MiB",
			Services: []rpc.ServiceStatus{{Name: rpc.Ledger, State: "ready"}, {Name: rpc.HGS, State: "ready", Restarts: 1}},
			Links:    []rpc.LinkStatus{{Name: "front", Device: "eth0", MAC: "52:54:00:12:34:56", Link: true, Addresses: []string{"10.0.2.15/24"}}}}, nil
	})
	f.volume(s)
	on(f, s, rpc.InitPower, func(r rpc.PowerRequest) (rpc.Empty, error) {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.power = append(f.power, r.Action)
		return rpc.Empty{}, nil
	})
	f.updates(s)
	rpc.HandleStream(s, rpc.InitLog, func(ctx context.Context, _ rpc.Caller, r rpc.LogRequest, send func(rpc.LogLine) error) error {
		for i := range 2 {
			if err := send(rpc.LogLine{BootTime: time.Duration(i+1) * time.Second, Service: "hgs", Text: "a line with \x1b[31mcolour"}); err != nil {
				return err
			}
		}
		if r.Follow {
			<-ctx.Done()
		}
		return nil
	}, rpc.Console)
}

// evidence is a page of what hosts showed, the last of each kind.
func (f *Fake) evidence(r rpc.EvidenceRequest) ([]policy.Observation, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	newest := map[string]map[policy.ObservationKind]policy.Observation{}
	for _, o := range f.observed {
		if (o.Kind != policy.ObservedGood && o.Kind != policy.ObservedFindings) || o.Subject <= r.After {
			continue
		}
		if newest[o.Subject] == nil {
			newest[o.Subject] = map[policy.ObservationKind]policy.Observation{}
		}
		newest[o.Subject][o.Kind] = o
	}
	list := []policy.Observation{}
	ids := slices.Sorted(maps.Keys(newest))
	for _, id := range ids[:min(256, len(ids))] {
		good, ok := newest[id][policy.ObservedGood]
		bad, failed := newest[id][policy.ObservedFindings]
		if ok && (r.Both || !failed || good.Last.Latest >= bad.Last.Latest) {
			list = append(list, good)
		}
		if failed && (r.Both || !ok || good.Last.Latest < bad.Last.Latest) {
			list = append(list, bad)
		}
	}
	return list, nil
}
