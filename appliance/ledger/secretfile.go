package ledger

import (
	"bytes"
	"errors"
	"fmt"
	"slices"

	"filippo.io/age"
	"github.com/pelletier/go-toml/v2"

	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
)

// Bounds of secrets, in bytes. A passphrase guards one person's door on the serial line, with a rising delay.
const (
	minPIN, maxPIN               = 4, 255
	minPassphrase, maxPassphrase = 8, 1024
)

// setupSecrets is the secrets file, version 1: TOML inside an age file for the node's setup key.
type setupSecrets struct {
	Version     int               `toml:"version"`
	PIN         string            `toml:"hsm-pin"`
	Passphrases map[string]string `toml:"passphrase"` // administrator -> serial passphrase
	TimeKeys    map[string]string `toml:"time-key"`   // key id -> "ALGORITHM:HEX", shared with time servers

	timeKeys []rpc.TimeKey
}

// openSecretFile decrypts and checks the secrets file of a node that is set up as setup says. Errors never repeat what is in it.
func openSecretFile(file []byte, identity age.Identity, setup policy.Setup) (setupSecrets, error) {
	var s setupSecrets
	b, err := unseal(file, identity)
	defer clear(b)
	if errors.Is(err, errNotSealedToUs) {
		return s, fmt.Errorf("secrets file: it does not open with this node's setup key; encrypt it to the key shown now (it changes at each boot)")
	}
	if err != nil {
		return s, fmt.Errorf("secrets file: %w", err)
	}
	if err := toml.NewDecoder(bytes.NewReader(b)).DisallowUnknownFields().Decode(&s); err != nil {
		if line := tomlError(err); line != nil {
			return s, fmt.Errorf("secrets file (decrypted): %w", line)
		}
	}
	if s.Version != 1 {
		return s, fmt.Errorf("secrets file: it must begin with version = 1")
	}
	switch n := len(s.PIN); {
	case setup.Node.HSM.Attended && n > 0:
		return s, fmt.Errorf("secrets file: the answer file says that the HSM's PIN is attended, so hsm-pin does not belong here")
	case setup.Node.HSM.Attended:
	case n < minPIN || n > maxPIN:
		return s, fmt.Errorf("secrets file: hsm-pin must have %d to %d characters", minPIN, maxPIN)
	}
	enrolled := map[string]bool{}
	for _, a := range setup.Admins {
		enrolled[a.Name] = true
	}
	for name, p := range s.Passphrases {
		if !enrolled[name] {
			return s, fmt.Errorf("secrets file: a passphrase is given for %.64q, who is no [[admin]] in the answer file", name)
		}
		if len(p) < minPassphrase || len(p) > maxPassphrase {
			return s, fmt.Errorf("secrets file: the passphrase of %s must have %d to %d characters", name, minPassphrase, maxPassphrase)
		}
	}
	for id, text := range s.TimeKeys {
		k, err := parseTimeKey(id, text)
		if err != nil {
			return s, fmt.Errorf("secrets file: [time-key]: %w", err)
		}
		s.timeKeys = append(s.timeKeys, k)
	}
	for server, id := range setup.Node.TimeKeys {
		if !slices.ContainsFunc(s.timeKeys, func(k rpc.TimeKey) bool { return k.ID == id }) {
			return s, fmt.Errorf("secrets file: [time-key] lacks key %d, with which %.64q is to prove itself", id, server)
		}
	}
	return s, nil
}
