package ledger

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"filippo.io/age"

	"guardhouse/appliance/audit"
	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
)

// SetupKey is the public half of the age identity made at this start. The private half is only in memory.
func (l *Ledger) SetupKey() (rpc.SetupKeyReply, error) {
	identity := l.setupIdentity()
	if identity == nil {
		return rpc.SetupKeyReply{}, rpc.ErrRefused.With("this node is already set up")
	}
	if err := l.setupReady(); err != nil {
		return rpc.SetupKeyReply{}, err
	}
	return rpc.SetupKeyReply{Recipient: identity.Recipient().String(), Boot: l.cfg.Boot}, nil
}

// setupIdentity is nil on a node that is set up.
func (l *Ledger) setupIdentity() *age.X25519Identity {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.state.SetUp() {
		return nil
	}
	return l.identity
}

func (l *Ledger) setupReady() error {
	if err := l.ready(); err != nil {
		return err
	}
	if l.secrets == nil {
		why := l.whySealed()
		return rpc.ErrUnavailable.With("the node can't keep secrets: %s; %s", why.What, why.Remedy)
	}
	return nil
}

// SetUp checks the answers and the secrets and, unless it is a dry run, makes the node what they say. Whatever is wrong, nothing
// changes. The secrets are written first and the setup command last: a crash in between leaves a node that is not set up, and the next
// try replaces the secrets. A dry run without secrets checks the answers alone.
func (l *Ledger) SetUp(ctx context.Context, req rpc.SetupRequest) (policy.Result, error) {
	defer clear(req.Secrets)
	l.setupMu.Lock()
	defer l.setupMu.Unlock()
	identity := l.setupIdentity()
	if identity == nil {
		return policy.Result{}, rpc.ErrRefused.With("this node is already set up; nothing was changed")
	}
	if err := l.setupReady(); err != nil {
		return policy.Result{}, err
	}
	setup, err := parseAnswers(req.Answers)
	if err != nil {
		return policy.Result{}, rpc.ErrRefused.With("%v", err)
	}
	if req.DryRun && len(req.Secrets) == 0 {
		return policy.Result{Message: summary(setup)}, nil
	}
	secrets, err := openSecretFile(req.Secrets, identity, setup)
	if err != nil {
		return policy.Result{}, rpc.ErrRefused.With("%v", err)
	}
	if req.DryRun {
		return policy.Result{Message: summary(setup)}, nil
	}
	if err := l.putSecrets(&setup, secrets); err != nil {
		return policy.Result{}, rpc.ErrUnavailable.With("the node's secrets can't be kept: %v", err)
	}
	result, err := l.proposeSetup(ctx, setup, req.Actor)
	if s, _ := l.Snapshot(); s.State.SetUp() { // even where the answer is that nobody knows
		err = errors.Join(err, l.adoptKeys())
	}
	if err != nil {
		return result, err
	}
	l.mu.Lock()
	l.identity = nil // no second secrets file is ever read
	l.mu.Unlock()
	if err := l.sendNetwork(ctx, setup.Node.Network); err != nil {
		result.Message += "; the network is not up yet: " + err.Error()
	}
	return result, nil
}

func (l *Ledger) proposeSetup(ctx context.Context, setup policy.Setup, actor policy.Actor) (policy.Result, error) {
	body, err := json.Marshal(setup)
	if err != nil {
		return policy.Result{}, err
	}
	id := make([]byte, 16)
	if _, err := io.ReadFull(l.cfg.Rand, id); err != nil {
		return policy.Result{}, fmt.Errorf("randomness: %w", err)
	}
	_, result, err := l.Propose(ctx, policy.Command{ID: hex.EncodeToString(id), Kind: policy.CmdSetup, Body: body,
		Actor: policy.Actor{Name: actor.Name, Door: policy.DoorSetup, Session: actor.Session}})
	return result, err
}

// putSecrets makes the node's keys and keeps all that is secret; what is public goes into the setup command's body.
func (l *Ledger) putSecrets(setup *policy.Setup, given setupSecrets) error {
	blob, public, err := l.newAuditKey()
	if err != nil {
		return err
	}
	setup.Node.ID, setup.Node.AuditKey = audit.NodeID(public), public
	keys, err := newKeys(l.cfg.Rand, l.cfg.Epoch, setup)
	defer func() {
		for _, k := range keys {
			clear(k)
		}
	}()
	if err != nil {
		return fmt.Errorf("make keys: %w", err)
	}
	cluster := make([]byte, clusterSecretSize)
	if _, err := io.ReadFull(l.cfg.Rand, cluster); err != nil {
		return fmt.Errorf("randomness: %w", err)
	}
	keys[secretCluster], keys[secretAudit] = cluster, blob
	if setup.Node.HSM.Attended {
		err = l.forget(func(name string) bool { return name == secretPIN }) // of a setup that was interrupted
	} else {
		keys[secretPIN] = []byte(given.PIN)
	}
	if err = errors.Join(err, l.forget(func(name string) bool { return strings.HasPrefix(name, passphrasePrefix) || name == secretTimeKeys })); err != nil {
		return err
	}
	if len(given.timeKeys) > 0 {
		if keys[secretTimeKeys], err = json.Marshal(given.timeKeys); err != nil {
			return err
		}
	}
	for _, a := range setup.Admins {
		if p := given.Passphrases[a.Name]; p != "" {
			if keys[passphraseName(a.Name)], err = l.hashPassphrase([]byte(p), a.Key); err != nil {
				return err
			}
		}
	}
	for name, k := range keys {
		if err := l.secrets.Put(name, k); err != nil {
			return err
		}
	}
	return nil
}

// forget drops the secrets of a setup that was interrupted.
func (l *Ledger) forget(which func(name string) bool) error {
	names, err := l.secrets.Names()
	for _, n := range names {
		if which(n) {
			err = errors.Join(err, l.secrets.Delete(n))
		}
	}
	return err
}
