package ledger

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ed25519"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"guardhouse/appliance/audit"
	"guardhouse/appliance/policy"
	"guardhouse/appliance/tpm"
)

// The key of the audit's checkpoints lies in the TPM. Where the TPM can't use it any more (it was cleared, or replaced and the disk
// opened all the same), or the node still has the software key of an earlier image, the node makes a new one, has that recorded, and says
// so: losing the key costs nobody a machine, but it must never go unnoticed.

// Kinds of problems with it.
const (
	auditKeyNew     = "audit-key-new"     // the checkpoints are signed with another key than before
	auditKeyMissing = "audit-key-missing" // the checkpoints are not signed
)

const (
	auditKeyRetry  = time.Minute
	auditKeyRemedy = "reboot the node; if it comes again, the TPM is failing"
)

// newAuditKey has the TPM make a key; blob is to be kept under secretAudit.
func (l *Ledger) newAuditKey() (blob []byte, public audit.PublicKey, err error) {
	if l.tpm == nil {
		return nil, nil, errors.New("there is no TPM")
	}
	k, err := l.tpm.NewSigningKey()
	if err != nil {
		return nil, nil, err
	}
	if public, err = audit.EncodeKey(k.Public()); err != nil {
		return nil, nil, err
	}
	blob, err = k.Encode()
	return blob, public, err
}

// auditKey is the key in use. why is not empty where it should give way to a new one; then key may be nil.
func (l *Ledger) auditKey() (key crypto.Signer, why string, err error) {
	blob, err := l.secrets.Get(secretAudit)
	if errors.Is(err, tpm.ErrNoSecret) {
		old, err := l.privateKey(secretOldKey)
		if k, ok := old.(ed25519.PrivateKey); ok && err == nil {
			return k, "the key lies in the TPM from now on", nil
		}
		return nil, "the earlier key is lost", nil
	}
	if err != nil {
		return nil, "", err
	}
	k, err := l.tpm.LoadSigningKey(blob)
	var e *tpm.Error
	switch {
	case errors.As(err, &e):
		return nil, "of the earlier key the TPM says: " + e.What, nil
	case err != nil:
		return nil, "", err
	}
	return k, "", nil
}

// adoptKeys gives the audit its key once the node has one. It changes nothing: replaceAuditKey does.
func (l *Ledger) adoptKeys() error {
	s, _ := l.Snapshot()
	if s.NodeID == "" || l.secrets == nil {
		return nil
	}
	key, _, err := l.auditKey()
	if err != nil || key == nil {
		return err
	}
	return l.useAuditKey(s, key)
}

func (l *Ledger) useAuditKey(s policy.Snapshot, key crypto.Signer) error {
	var former []audit.PublicKey
	for _, k := range s.State.Nodes[s.NodeID].AuditKeys() {
		former = append(former, k)
	}
	return l.audit.SetNode(s.NodeID, key, former...)
}

// keepAuditKey makes a new key where there must be one, again and again until it is recorded.
func (l *Ledger) keepAuditKey(ctx context.Context) {
	for {
		var retry <-chan time.Time
		s, changed := l.Snapshot()
		if s.State.SetUp() && l.secrets != nil {
			changed = nil // the key needs one look per start
			if err := l.replaceAuditKey(ctx); err != nil && ctx.Err() == nil {
				l.setProblem(policy.Problem{Kind: auditKeyMissing, What: "the audit's checkpoints can't be signed, or not as recorded: " + err.Error(), Remedy: auditKeyRemedy})
				retry = time.After(auditKeyRetry)
			} else if err == nil {
				l.clearProblem(auditKeyMissing)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		case <-retry:
		}
	}
}

// replaceAuditKey makes a new key if one is due and has the cluster record it. The key is kept before it is recorded: a crash in between
// leaves one that is recorded at the next start.
func (l *Ledger) replaceAuditKey(ctx context.Context) error {
	l.setupMu.Lock()
	defer l.setupMu.Unlock()
	key, why, err := l.auditKey()
	if err != nil {
		return err
	}
	if why != "" {
		blob, _, err := l.newAuditKey()
		if err == nil {
			err = l.secrets.Put(secretAudit, blob)
		}
		if err != nil {
			return err
		}
		if key, err = l.tpm.LoadSigningKey(blob); err != nil {
			return err
		}
	}
	public, err := audit.EncodeKey(key.Public())
	if err != nil {
		return err
	}
	s, _ := l.Snapshot()
	known := s.State.Nodes[s.NodeID].AuditKey
	if err := l.useAuditKey(s, key); err != nil {
		return err
	}
	if bytes.Equal(known, public) {
		return nil
	}
	if why == "" {
		why = "it was made, but not recorded, before the node stopped"
	}
	if err := l.recordAuditKey(ctx, s, public, why); err != nil {
		return err
	}
	if len(known) == ed25519.PublicKeySize {
		l.cfg.Log("the audit's checkpoints are signed by the TPM from now on")
		return l.secrets.Delete(secretOldKey)
	}
	l.setProblem(policy.Problem{Kind: auditKeyNew, What: "this node signs its audit with a new key, because " + why,
		Remedy: "unless you cleared or replaced the TPM, somebody else did; compare audit key with what you noted, note the new fingerprint, and export the audit"})
	return nil
}

func (l *Ledger) recordAuditKey(ctx context.Context, s policy.Snapshot, public audit.PublicKey, why string) error {
	body, err := json.Marshal(policy.AuditKeyChange{Node: s.NodeID, Key: public, Why: why})
	if err != nil {
		return err
	}
	id := make([]byte, 16)
	if _, err := io.ReadFull(l.cfg.Rand, id); err != nil {
		return fmt.Errorf("randomness: %w", err)
	}
	_, _, err = l.Propose(ctx, policy.Command{ID: hex.EncodeToString(id), Kind: policy.CmdAuditKey, Body: body,
		Actor: policy.Actor{Name: s.State.Nodes[s.NodeID].Name, Door: policy.DoorNode}})
	return err
}
