package verb

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"

	"guardhouse/appliance/rpc"
)

// nodeExplain shows each register, then what was measured into it.
func nodeExplain(ctx context.Context, s *Session, _ Args, _ []byte) (Output, error) {
	r, err := rpc.LedgerExplain.Call(ctx, s.Node.Ledger, rpc.Empty{})
	if err != nil {
		return Output{}, err
	}
	return Output{Text: explainPage(r), Value: r}, nil
}

func explainPage(r rpc.ExplainReply) *Page {
	p := new(Page)
	switch {
	case len(r.Problems) == 0 && r.Opened != nil:
		p.Line("This boot is as it was signed: policy %q of release %d opened the volume.", r.Opened.Policy, r.Opened.Release)
	case len(r.Problems) == 0:
		p.Line("The log leads to all registers. The volume was opened by its recovery secret.")
	}
	for _, problem := range r.Problems {
		p.Line("! %s", problem.What).Line("  -> %s", problem.Remedy)
	}
	for _, g := range r.Registers {
		state := g.State
		if g.Quirk != "" {
			state += " " + g.Quirk
		}
		if g.Signed != "" {
			state += ", " + g.Signed
		}
		p.Blank().Line("PCR %d  %s", g.PCR, state).Line("  %s", g.Value)
		for _, e := range r.Events {
			if e.PCR == g.PCR && e.Digest != "" {
				p.Line("  - %s", e.What).Line("      %.16s.., %s", e.Digest, e.Type)
			}
		}
	}
	return p
}

// file is a file to be kept as it is: nothing is added to it.
func file(raw json.RawMessage) (Output, error) {
	var b bytes.Buffer
	if err := json.Indent(&b, raw, "", " "); err != nil {
		return Output{}, fmt.Errorf("the ledger's file: %w", err)
	}
	p := new(Page)
	p.b.WriteString(CleanLines(b.String()) + "\n")
	return Output{Text: p, Value: raw, Raw: true}, nil
}

func nodeIdentity(ctx context.Context, s *Session, _ Args, _ []byte) (Output, error) {
	r, err := rpc.LedgerIdentity.Call(ctx, s.Node.Ledger, rpc.Empty{})
	if err != nil {
		return Output{}, err
	}
	return file(r.File)
}

func nodeActivate(ctx context.Context, s *Session, _ Args, stdin []byte) (Output, error) {
	if !json.Valid(stdin) {
		return Output{}, failed("standard input is no challenge", "give the file that mkimage enroll made: node activate < node1.challenge.json")
	}
	r, err := rpc.LedgerActivate.Call(ctx, s.Node.Ledger, rpc.ActivateRequest{Actor: s.Actor, Challenge: stdin})
	if err != nil {
		return Output{}, err
	}
	return file(r.File)
}

func nodeQuote(ctx context.Context, s *Session, a Args, _ []byte) (Output, error) {
	nonce, err := hex.DecodeString(strings.ToLower(a.Get("nonce")))
	if err != nil || len(nonce) < 8 || len(nonce) > 32 {
		return Output{}, usage("NONCE is not 8 to 32 bytes in hexadecimal", "make one: openssl rand -hex 16")
	}
	r, err := rpc.LedgerQuote.Call(ctx, s.Node.Ledger, rpc.QuoteRequest{Nonce: nonce})
	if err != nil {
		return Output{}, err
	}
	return file(r.File)
}
