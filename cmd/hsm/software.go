package main

import (
	"context"
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"

	"guardhouse/appliance/hsm"
	"guardhouse/appliance/rpc"
	"guardhouse/appliance/sandbox"
)

// softwareWorker holds the software keys until the keeper hangs up.
func softwareWorker() error {
	unix.CloseOnExec(3)
	socket := os.NewFile(3, "keeper")
	conn, err := net.FileConn(socket)
	socket.Close()
	if err != nil {
		return fmt.Errorf("hsm: this is the worker of software keys; the keeper starts it: %w", err)
	}
	return hsm.ServeSoftware(conn, sandbox.SoftwareKeysFilter.Narrow)
}

// softwareKeys gets the software keys from the ledger, which seals them.
func softwareKeys(ledger *rpc.Client) func(context.Context) ([]hsm.SoftwareKey, error) {
	return func(ctx context.Context) ([]hsm.SoftwareKey, error) {
		sealed, err := rpc.LedgerSoftwareKeys.Call(ctx, ledger, rpc.Empty{})
		keys := make([]hsm.SoftwareKey, len(sealed))
		for i, k := range sealed {
			keys[i] = hsm.SoftwareKey{Ref: k.Ref, Role: k.Role, PKCS8: k.PKCS8}
		}
		return keys, err
	}
}

// registerSoftware offers what the ledger needs for keys that are not made here: requests for certificates, and word of new software
// keys.
func registerSoftware(s *rpc.Server, r hsm.Keyring) {
	rpc.Handle(s, rpc.HSMRequest, func(ctx context.Context, by rpc.Caller, q rpc.HSMRequestRequest) (rpc.HSMSignReply, error) {
		sig, err := r.Request(hsm.WithCaller(ctx, by.Process), q.Ref, q.Info)
		return rpc.HSMSignReply{Signature: sig}, wireError(err)
	}, rpc.Ledger)
	rpc.Handle(s, rpc.HSMSoftware, func(ctx context.Context, _ rpc.Caller, _ rpc.Empty) (rpc.Empty, error) {
		if err := r.Software.Reload(ctx); err != nil {
			return rpc.Empty{}, rpc.ErrUnavailable.With("the software keys were not loaded: %v", err)
		}
		return rpc.Empty{}, nil
	}, rpc.Ledger)
}
