package main

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"

	"guardhouse/appliance/audit"
)

// auditVerify proves an export without any contact to the node that made it.
func auditVerify(o *options) error {
	f, err := os.Open(o.in)
	if err != nil {
		return err
	}
	defer f.Close()
	var want []byte
	if o.key != "" {
		b, err := hex.DecodeString(o.key)
		if err != nil || len(b) != sha256.Size {
			return fmt.Errorf("%w: --key is the fingerprint of the node's audit key, 64 hex digits, from audit key", errUsage)
		}
		want = b
	}
	s, err := audit.Verify(f, want)
	if err != nil {
		return err
	}
	o.say("node", s.Node, "node        %s", s.Node)
	o.say("auditKey", s.Key.Fingerprint(), "audit key   SHA-256 %s%s", s.Key.Fingerprint(), map[bool]string{true: "  (from the file: compare it with the node's)"}[want == nil])
	o.say("records", s.Records, "records     %d (%d to %d), every hash and the checkpoint's signature verified", s.Records, s.First, s.Last)
	o.say("hash", s.Hash, "last hash   %s", s.Hash)
	o.facts["kinds"] = s.Kinds
	return nil
}
