package ledger

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"time"

	"guardhouse/appliance/disk"
	"guardhouse/appliance/policy"
	"guardhouse/appliance/quote"
	"guardhouse/appliance/rpc"
	"guardhouse/appliance/tpm"
)

// attestationFile holds the attestation key as only this TPM can use it.
const attestationFile = "attestation-key.json"

// checkBoot compares the node's boot log with its registers once, as soon as init answers; what does not fit becomes a problem of the
// status for the rest of this boot.
func (l *Ledger) checkBoot(ctx context.Context) {
	if l.cfg.BootLog == nil || l.tpm == nil {
		return
	}
	for pause := time.Second; ; pause = min(2*pause, time.Minute) {
		r, err := l.Explain(ctx)
		if err == nil {
			for _, p := range r.Problems {
				l.setProblem(p)
			}
			l.cfg.Log("boot: %d events, %d registers checked, %d problems", len(r.Events), len(r.Registers), len(r.Problems))
			return
		}
		l.cfg.Log("boot log: %v", err)
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
	}
}

// Explain is the boot in plain words, against the registers as they are now.
func (l *Ledger) Explain(ctx context.Context) (rpc.ExplainReply, error) {
	boot, pcrs, err := l.bootLog(ctx, nil)
	if err != nil {
		return rpc.ExplainReply{}, err
	}
	if len(boot.Log) == 0 {
		return rpc.ExplainReply{Opened: boot.Opened, Problems: []policy.Problem{{Kind: quote.KindLogMissing, What: "there is no boot log: " + boot.Problem,
			Remedy: "enable the TPM 2.0 in the firmware's settings; PCR values can still be compared with mkimage measure"}}}, nil
	}
	var opened *quote.Opened
	if o := boot.Opened; o != nil {
		opened = &quote.Opened{Policy: o.Policy, Release: o.Release, PCRs: o.PCRs}
	}
	report := quote.Explain(quote.Logs{Firmware: boot.Log, Kernel: boot.Kernel}, pcrs, opened)
	r := rpc.ExplainReply{Opened: boot.Opened, Registers: []rpc.BootRegister{}, Events: []rpc.BootEvent{}, Problems: report.Problems}
	for _, g := range report.Registers {
		r.Registers = append(r.Registers, rpc.BootRegister{PCR: g.PCR, Value: g.Value, State: g.State, Quirk: g.Quirk, Signed: g.Signed})
	}
	for _, e := range report.Events {
		r.Events = append(r.Events, rpc.BootEvent(e))
	}
	return r, nil
}

// bootLog asks init for the logs and the TPM for the registers, and runs during in between, which may be nil. A kernel with IMA extends
// PCR 10 while drivers are loaded: what is given belongs together, because the registers were the same before and after.
func (l *Ledger) bootLog(ctx context.Context, during func() error) (rpc.InitBootReply, map[int]string, error) {
	boot := rpc.InitBootReply{Problem: "these programs run outside an image"}
	if l.tpm == nil {
		return boot, nil, rpc.ErrUnavailable.With("%s", l.whySealed().What)
	}
	const tries = 5
	for range tries {
		before, err := l.tpm.Measurements()
		if err == nil && during != nil {
			err = during()
		}
		if err == nil && l.cfg.BootLog != nil {
			boot, err = l.cfg.BootLog(ctx)
		}
		if err != nil {
			return boot, nil, err
		}
		after, err := l.tpm.Measurements()
		if err != nil || maps.Equal(before, after) {
			return boot, after, err
		}
	}
	return boot, nil, rpc.ErrUnavailable.With("the TPM's registers change all the time")
}

// attestationKey loads the node's attestation key, and makes one where there is none that this TPM can use: then the node has to be
// enrolled anew, which whoever checks its quotes is told.
func (l *Ledger) attestationKey() (*tpm.AttestationKey, error) {
	if l.tpm == nil {
		return nil, rpc.ErrUnavailable.With("%s", l.whySealed().What)
	}
	l.attestMu.Lock()
	defer l.attestMu.Unlock()
	path := filepath.Join(l.cfg.Dir, attestationFile)
	stored, err := readBounded(path, tpm.MaxAttestationKey)
	if err == nil {
		var key *tpm.AttestationKey
		if key, err = l.tpm.LoadAttestationKey(stored); err == nil {
			return key, nil
		}
		var e *tpm.Error
		if !errors.As(err, &e) || e.Kind != tpm.KindOtherTPM && e.Kind != tpm.KindDamaged {
			return nil, err
		}
		l.cfg.Log("%v", err)
	} else if !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	key, err := l.tpm.NewAttestationKey()
	if err != nil {
		return nil, err
	}
	b, err := key.Encode()
	if err != nil {
		return nil, err
	}
	l.cfg.Log("made a new attestation key: enrol this node with mkimage enroll")
	return key, disk.ReplaceFile(path, b)
}

func readBounded(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, limit+1))
}

// Identity is what the node says of its TPM, for mkimage enroll.
func (l *Ledger) Identity() (rpc.FileReply, error) {
	key, err := l.attestationKey()
	if err != nil {
		return rpc.FileReply{}, err
	}
	public, certificate, err := l.tpm.Endorsement()
	if err != nil {
		return rpc.FileReply{}, err
	}
	return asFile(quote.Identity{Version: 1, Node: l.nodeName(), Endorsement: public, Certificate: certificate, AttestationKey: key.Public()})
}

// Activate answers the challenge of mkimage enroll.
func (l *Ledger) Activate(ctx context.Context, req rpc.ActivateRequest) (rpc.FileReply, error) {
	s, _ := l.Snapshot()
	if err := policy.Allowed(s.State, req.Actor, policy.AdminOperator); err != nil {
		return rpc.FileReply{}, rpc.ErrRefused.With("%v", err)
	}
	c, err := quote.Parse[quote.Challenge](req.Challenge)
	if err != nil {
		return rpc.FileReply{}, rpc.ErrRefused.With("the challenge is %v; give the file that mkimage enroll made", err)
	}
	key, err := l.attestationKey()
	if err != nil {
		return rpc.FileReply{}, err
	}
	secret, err := key.Activate(c.Credential, c.Secret)
	outcome, why := "ok", ""
	if err != nil {
		outcome, why = "refused", err.Error()
	}
	if _, auditErr := l.audit.Append(ctx, l.stamped(policy.AuditEntry{Kind: policy.AuditCommand, Actor: &req.Actor, Action: "node.activate", Outcome: outcome, Detail: why})); auditErr != nil {
		return rpc.FileReply{}, auditError(auditErr)
	}
	var e *tpm.Error
	if errors.As(err, &e) {
		return rpc.FileReply{}, rpc.ErrRefused.With("%v", err)
	}
	if err != nil {
		return rpc.FileReply{}, err
	}
	return asFile(quote.Answer{Version: 1, Secret: secret})
}

// Quote has the TPM quote PCR 0 to 15 over the nonce.
func (l *Ledger) Quote(ctx context.Context, nonce []byte) (rpc.FileReply, error) {
	if len(nonce) < quote.MinNonce || len(nonce) > quote.MaxNonce {
		return rpc.FileReply{}, rpc.ErrRefused.With("a nonce has %d to %d bytes", quote.MinNonce, quote.MaxNonce)
	}
	key, err := l.attestationKey()
	if err != nil {
		return rpc.FileReply{}, err
	}
	var attest, signature []byte
	boot, pcrs, err := l.bootLog(ctx, func() (err error) {
		attest, signature, err = key.Quote(nonce)
		return err
	})
	if err != nil {
		return rpc.FileReply{}, err
	}
	certified, err := l.certifyAuditKey(key, nonce)
	if err != nil {
		return rpc.FileReply{}, err
	}
	return asFile(quote.File{Version: 1, AuditKey: certified, Node: l.nodeName(), Image: l.cfg.Image, Nonce: hex.EncodeToString(nonce), AttestationKey: key.Public(),
		Attest: attest, Signature: signature, PCRs: pcrs,
		Logs: quote.Logs{Firmware: boot.Log, Kernel: boot.Kernel}})
}

// certifyAuditKey proves that the audit's key lies in the same TPM; nil where there is none there yet.
func (l *Ledger) certifyAuditKey(ak *tpm.AttestationKey, nonce []byte) (*quote.Certified, error) {
	if l.secrets == nil {
		return nil, nil
	}
	key, _, err := l.auditKey()
	if err != nil {
		return nil, err
	}
	k, ok := key.(*tpm.SigningKey)
	if !ok {
		return nil, nil
	}
	attest, signature, err := ak.Certify(k, nonce)
	return &quote.Certified{Key: k.Area(), Attest: attest, Signature: signature}, err
}

func asFile(v any) (rpc.FileReply, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return rpc.FileReply{}, fmt.Errorf("write the file: %w", err)
	}
	return rpc.FileReply{File: b}, nil
}

// nodeName is empty before setup.
func (l *Ledger) nodeName() string {
	s, _ := l.Snapshot()
	return s.State.Nodes[s.NodeID].Name
}

func (l *Ledger) registerBoot(s *rpc.Server) {
	rpc.Handle(s, rpc.LedgerExplain, func(ctx context.Context, _ rpc.Caller, _ rpc.Empty) (rpc.ExplainReply, error) { return l.Explain(ctx) }, rpc.Console)
	rpc.Handle(s, rpc.LedgerIdentity, func(context.Context, rpc.Caller, rpc.Empty) (rpc.FileReply, error) { return l.Identity() }, rpc.Console)
	rpc.Handle(s, rpc.LedgerActivate, func(ctx context.Context, _ rpc.Caller, req rpc.ActivateRequest) (rpc.FileReply, error) {
		return l.Activate(ctx, req)
	}, rpc.Console)
	rpc.Handle(s, rpc.LedgerQuote, func(ctx context.Context, _ rpc.Caller, req rpc.QuoteRequest) (rpc.FileReply, error) {
		return l.Quote(ctx, req.Nonce)
	}, rpc.Console)
}
