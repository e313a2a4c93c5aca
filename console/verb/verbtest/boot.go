package verbtest

import (
	"encoding/json"
	"strings"

	"guardhouse/appliance/rpc"
)

// boots answers for the ledger what it knows of the boot. The files are not genuine.
func (f *Fake) boots(s *rpc.Server) {
	zero := strings.Repeat("00", 32)
	on(f, s, rpc.LedgerExplain, func(rpc.Empty) (rpc.ExplainReply, error) {
		return rpc.ExplainReply{Opened: &rpc.OpenedPolicy{Policy: "own keys, no dbx", Release: 7, PCRs: map[int]string{4: zero}},
			Registers: []rpc.BootRegister{{PCR: 4, Value: zero, State: "as logged", Signed: "as signed"}, {PCR: 11, Value: zero, State: "as logged, then capped by the node"}},
			Events: []rpc.BootEvent{{PCR: 4, Type: "boot application", Digest: zero, What: "a program that firmware started from the boot entry"},
				{PCR: 0, Type: "no action", What: "nothing measured"}}}, nil
	})
	file := rpc.FileReply{File: json.RawMessage(`{"version":1}`)}
	on(f, s, rpc.LedgerIdentity, func(rpc.Empty) (rpc.FileReply, error) { return file, nil })
	on(f, s, rpc.LedgerActivate, func(rpc.ActivateRequest) (rpc.FileReply, error) { return file, nil })
	on(f, s, rpc.LedgerQuote, func(rpc.QuoteRequest) (rpc.FileReply, error) { return file, nil })
}
