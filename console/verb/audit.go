package verb

import (
	"cmp"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
)

func auditTail(ctx context.Context, s *Session, a Args, _ []byte) (Output, error) {
	records, err := rpc.LedgerAuditTail.Call(ctx, s.Node.Ledger, rpc.AuditTailRequest{Limit: min(max(a.Int("lines", 50), 1), 5000)})
	if err != nil {
		return Output{}, err
	}
	p := new(Page)
	for _, r := range records {
		e := r.Entry
		who := cmp.Or(e.Subject, e.Source)
		if e.Actor != nil {
			who = cmp.Or(e.Actor.Name, string(e.Actor.Door)) + " by " + string(e.Actor.Door)
		}
		line := fmt.Sprintf("%d  %s  %s %s: %s", r.Seq, whenWithin(e.At), e.Kind, e.Action, e.Outcome)
		if e.Count > 1 {
			line += fmt.Sprintf(" (%d times)", e.Count)
		}
		p.Line("%s", line)
		detail := slices.DeleteFunc([]string{who, e.Source, e.Detail, e.Remedy}, func(s string) bool { return s == "" })
		if detail = slices.Compact(detail); len(detail) > 0 {
			p.Line("    %s", strings.Join(detail, "; "))
		}
	}
	return Output{Text: p, Value: struct {
		Entries []rpc.AuditRecord `json:"entries"`
	}{append([]rpc.AuditRecord{}, records...)}}, nil
}

func auditVerify(ctx context.Context, s *Session, _ Args, _ []byte) (Output, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	v, err := rpc.LedgerAuditVerify.Call(ctx, s.Node.Ledger, rpc.Empty{})
	if err != nil {
		return Output{}, err
	}
	if v.Problem != "" {
		return Output{}, failed("the audit chain is broken: "+v.Problem, v.Remedy)
	}
	p := new(Page).Line("The audit chain holds: entries %d to %d, segments: %d, bytes: %d.", v.First, v.Last, v.Segments, v.Bytes).
		Field("last hash", "%s", v.Hash)
	return Output{Text: p, Value: v}, nil
}

// AuditKeyValue is one audit key in --json. SHA256 is over the key as the records hold it.
type AuditKeyValue struct {
	Kind   string       `json:"kind"`
	SHA256 string       `json:"sha256"`
	PEM    string       `json:"pem"`
	Until  policy.Stamp `json:"until,omitzero"` // of a former key
	Why    string       `json:"why,omitempty"`
}

func auditKeyValue(key []byte) AuditKeyValue {
	v := AuditKeyValue{Kind: "ECDSA P-256, in the TPM", SHA256: auditFingerprint(key)}
	spki := key
	if len(key) == ed25519.PublicKeySize {
		v.Kind = "Ed25519, in software"
		spki, _ = x509.MarshalPKIXPublicKey(ed25519.PublicKey(key))
	}
	v.PEM = string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: spki}))
	return v
}

func auditFingerprint(key []byte) string {
	sum := sha256.Sum256(key)
	return hex.EncodeToString(sum[:])
}

func auditKey(_ context.Context, s *Session, _ Args, _ []byte) (Output, error) {
	snap, _ := s.Node.Snapshot()
	n := snap.State.Nodes[snap.NodeID]
	now, former := auditKeyValue(n.AuditKey), []AuditKeyValue{}
	p := new(Page).Line("The audit of node %s is signed with", n.Name).Field("  key", "%s", now.Kind).Field("  SHA-256", "%s", now.SHA256)
	for _, f := range slices.Backward(n.FormerAuditKeys) {
		v := auditKeyValue(f.Key)
		v.Until, v.Why = f.Until, f.Why
		former = append(former, v)
		p.Blank().Line("until %s, because %s", when(f.Until), f.Why).Field("  key", "%s", v.Kind).Field("  SHA-256", "%s", v.SHA256)
	}
	return Output{Text: p, Value: struct {
		Node   string          `json:"node"`
		Key    AuditKeyValue   `json:"key"`
		Former []AuditKeyValue `json:"former"`
	}{n.Name, now, former}}, nil
}

func auditExport(_ context.Context, s *Session, a Args, _ []byte) (Output, error) {
	from, to := a.Int("from", 0), a.Int("to", 0)
	if from < 0 || to < 0 || to > 0 && to < from {
		return Output{}, usage("--from and --to are entry numbers, the first not above the last", "")
	}
	stream := func(ctx context.Context, w io.Writer, _ bool) error {
		return rpc.LedgerAuditExport.Open(ctx, s.Node.Ledger, rpc.AuditRange{From: uint64(from), To: uint64(to)}, func(c rpc.AuditChunk) error {
			_, err := w.Write(c.Data)
			return err
		})
	}
	return Output{Stream: stream, Binary: true}, nil
}

func auditTrim(ctx context.Context, s *Session, a Args, _ []byte) (Output, error) {
	below := a.Int("below", 0)
	if below <= 0 {
		return Output{}, usage("BELOW is the number of an entry", "see audit verify for the first and the last")
	}
	r, err := rpc.LedgerAuditTrim.Call(ctx, s.Node.Ledger, rpc.AuditTrimRequest{Actor: s.Actor, Below: uint64(below)})
	if err != nil {
		return Output{}, err
	}
	return Output{Text: new(Page).Line("segments dropped: %d, bytes free again: %d", r.Segments, r.Bytes), Value: r}, nil
}

func logShow(follow bool) func(context.Context, *Session, Args, []byte) (Output, error) {
	return func(_ context.Context, s *Session, a Args, _ []byte) (Output, error) {
		req := rpc.LogRequest{Service: a.Get("service"), Boot: a.Int("boot", 0), Lines: min(max(a.Int("lines", 200), 1), 100000), Follow: follow}
		if follow && !a.Has("lines") {
			req.Lines = 20
		}
		stream := func(ctx context.Context, w io.Writer, asJSON bool) error {
			return rpc.InitLog.Open(ctx, s.Node.Init, req, func(l rpc.LogLine) error {
				if asJSON {
					b, err := JSONLine(l)
					if err != nil {
						return err
					}
					_, err = w.Write(b)
					return err
				}
				_, err := fmt.Fprintf(w, "[%12.3f] %-8s %s\n", l.BootTime.Seconds(), Clean(l.Service), Clean(l.Text))
				return err
			})
		}
		return Output{Stream: stream, Endless: follow}, nil
	}
}
