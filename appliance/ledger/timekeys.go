package ledger

import (
	"cmp"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
	"guardhouse/appliance/tpm"
)

// secretTimeKeys are the keys shared with time servers, as JSON of []rpc.TimeKey. The records name them by number only.
const secretTimeKeys = "time-keys"

const (
	maxTimeKeys   = 32
	maxTimeSecret = 32 // bytes: what NTP clients take
)

// timeKeySizes are the algorithms and how many bytes their keys have: at least, at most.
var timeKeySizes = map[string][2]int{"sha1": {8, maxTimeSecret}, "sha256": {16, maxTimeSecret}, "sha512": {16, maxTimeSecret}, "aes128": {16, 16}, "aes256": {32, 32}}

// parseTimeKey reads "ALGORITHM:HEX". Errors repeat nothing of it.
func parseTimeKey(id, text string) (k rpc.TimeKey, err error) {
	n, err := strconv.ParseUint(id, 10, 16)
	if err != nil || n == 0 {
		return k, errors.New("the number of a key is 1 to 65535")
	}
	algorithm, digits, ok := strings.Cut(text, ":")
	size, known := timeKeySizes[strings.ToLower(algorithm)]
	if !ok || !known {
		return k, fmt.Errorf("key %d is not ALGORITHM:HEX with sha1, sha256, sha512, aes128 or aes256", n)
	}
	secret, err := hex.DecodeString(strings.TrimSpace(digits))
	if err != nil || len(secret) < size[0] || len(secret) > size[1] {
		clear(secret)
		return k, fmt.Errorf("key %d must have %d to %d bytes in hexadecimal", n, size[0], size[1])
	}
	return rpc.TimeKey{ID: uint16(n), Algorithm: strings.ToLower(algorithm), Secret: secret}, nil
}

// TimeKeys gives the keys shared with time servers, in the order of their numbers; the caller wipes them.
func (l *Ledger) TimeKeys() ([]rpc.TimeKey, error) {
	if s, _ := l.Snapshot(); !s.State.SetUp() {
		return nil, rpc.ErrUnavailable.With("the node is not set up")
	}
	if l.secrets == nil {
		return nil, rpc.ErrUnavailable.With("the node's secrets are sealed: %s", l.whySealed().What)
	}
	b, err := l.secrets.Get(secretTimeKeys)
	if errors.Is(err, tpm.ErrNoSecret) {
		return []rpc.TimeKey{}, nil
	}
	defer clear(b)
	var keys []rpc.TimeKey
	if err == nil {
		err = json.Unmarshal(b, &keys)
	}
	if err != nil {
		return nil, fmt.Errorf("keys of time servers: %w", err)
	}
	return keys, nil
}

// TimeKeySet keeps or, without Sealed, forgets a key shared with time servers. Sealed is an age file for LedgerSealKey that holds the line
// "ALGORITHM:HEX".
func (l *Ledger) TimeKeySet(ctx context.Context, req rpc.TimeKeyRequest) error {
	s, _ := l.Snapshot()
	if err := policy.Allowed(s.State, req.Actor, policy.AdminOperator); err != nil {
		return rpc.ErrRefused.With("%v", err)
	}
	var fresh rpc.TimeKey
	if len(req.Sealed) > 0 {
		plain, err := unseal(req.Sealed, l.sealKey)
		if err != nil {
			return rpc.ErrRefused.With("%v; encrypt it to the key that key seal-key shows now", err)
		}
		defer clear(plain)
		if fresh, err = parseTimeKey(strconv.Itoa(int(req.ID)), strings.TrimSpace(string(plain))); err != nil {
			return rpc.ErrRefused.With("%v", err)
		}
		defer clear(fresh.Secret)
	}
	l.keysMu.Lock()
	defer l.keysMu.Unlock()
	keys, err := l.TimeKeys()
	if err != nil {
		return err
	}
	defer func() {
		for _, k := range keys {
			clear(k.Secret)
		}
	}()
	action := "time.key.set"
	kept := slices.DeleteFunc(slices.Clone(keys), func(k rpc.TimeKey) bool { return k.ID == req.ID })
	if len(req.Sealed) == 0 {
		if action = "time.key.remove"; len(kept) == len(keys) {
			return rpc.ErrRefused.With("there is no key %d", req.ID)
		}
		for server, id := range s.State.Nodes[s.NodeID].TimeKeys {
			if id == req.ID {
				return rpc.ErrRefused.With("%s must prove itself with key %d; change that first (time set)", server, id)
			}
		}
	} else if kept = append(kept, fresh); len(kept) > maxTimeKeys {
		return rpc.ErrRefused.With("there are %d keys already", maxTimeKeys)
	}
	slices.SortFunc(kept, func(a, b rpc.TimeKey) int { return cmp.Compare(a.ID, b.ID) })
	b, err := json.Marshal(kept)
	if err != nil {
		return err
	}
	defer clear(b)
	if err := l.secrets.Put(secretTimeKeys, b); err != nil {
		return rpc.ErrUnavailable.With("the key can't be kept: %v", err)
	}
	_, err = l.audit.Append(context.WithoutCancel(ctx), l.stamped(policy.AuditEntry{Kind: policy.AuditCommand, Actor: &req.Actor, Action: action,
		Subject: strconv.Itoa(int(req.ID)), Outcome: "ok"}))
	l.publish() // the clock asks for the keys again
	return auditError(err)
}
