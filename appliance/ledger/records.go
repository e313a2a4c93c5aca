package ledger

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"

	bolt "go.etcd.io/bbolt"

	"guardhouse/appliance/policy"
)

// How the records lie in state.db. TestEveryKindOfRecordSurvivesARestart misses a field of policy.State that is not read and written here.

func (c *contents) read(tx *bolt.Tx) error {
	meta := tx.Bucket(bucketMeta)
	if v := readNumber(meta.Get(keyVersion)); v != policy.Version {
		return fmt.Errorf("the records have version %d, this image knows version %d", v, policy.Version)
	}
	c.index = readNumber(meta.Get(keyIndex))
	c.node = string(tx.Bucket(bucketLocal).Get(keyNode))
	c.floor = int64(readNumber(tx.Bucket(bucketLocal).Get(keyFloor)))
	if b := meta.Get(keyService); b != nil {
		if err := json.Unmarshal(b, &c.state.Service); err != nil {
			return fmt.Errorf("service settings: %w", err)
		}
	}
	if b := meta.Get(keyRotation); b != nil {
		if err := json.Unmarshal(b, &c.state.Rotation); err != nil {
			return fmt.Errorf("rotation: %w", err)
		}
	}
	for key, into := range map[string]**policy.Draft{string(keyDraft): &c.state.Draft, string(keyUndo): &c.state.Undo} {
		if b := meta.Get([]byte(key)); b != nil {
			if err := json.Unmarshal(b, into); err != nil {
				return fmt.Errorf("%s: %w", key, err)
			}
		}
	}
	sets := map[string]policy.PolicySet{}
	off := map[string]vendorOff{}
	s := &c.state
	// These maps are nil where there is no record.
	s.Tenants, s.Baselines, s.CIPolicies, s.DumpKeys = map[string]policy.Tenant{}, map[string]policy.Baseline{}, map[string]policy.CIPolicy{}, map[string]policy.DumpKey{}
	s.PolicySets, s.Anchors, s.VendorsOff = map[string]policy.PolicySet{}, map[string]policy.Anchor{}, map[string]bool{}
	s.Denials, s.Offline, s.Peers = map[string]policy.Denial{}, map[string]policy.OfflineCaching{}, map[string]policy.Peer{}
	err := errors.Join(
		load(tx, bucketDenials, s.Denials, func(d policy.Denial) string { return d.Name }),
		load(tx, bucketOffline, s.Offline, func(o policy.OfflineCaching) string { return o.Class }),
		load(tx, bucketPeers, s.Peers, func(p policy.Peer) string { return p.Name }),
		load(tx, bucketTenants, s.Tenants, func(t policy.Tenant) string { return t.Name }),
		load(tx, bucketBaselines, s.Baselines, func(b policy.Baseline) string { return b.Name }),
		load(tx, bucketCIPolicies, s.CIPolicies, func(p policy.CIPolicy) string { return p.Name }),
		load(tx, bucketDumpKeys, s.DumpKeys, func(k policy.DumpKey) string { return k.Name }),
		load(tx, bucketPolicySets, sets, setKey),
		load(tx, bucketAnchors, s.Anchors, func(a policy.Anchor) string { return a.Thumbprint }),
		load(tx, bucketVendorsOff, off, func(v vendorOff) string { return v.Vendor }),
		load(tx, bucketNodes, c.state.Nodes, func(n policy.Node) string { return n.ID }),
		load(tx, bucketAdmins, c.state.Admins, func(a policy.Admin) string { return a.Name }),
		load(tx, bucketHosts, c.state.Hosts, func(h policy.Host) string { return h.ID }),
		load(tx, bucketKeys, c.state.Keys, func(k policy.Key) policy.KeyRef { return k.Ref }),
		load(tx, bucketSigners, c.state.Signers, func(s policy.TrustedSigner) string { return s.Thumbprint }),
		tx.Bucket(bucketOutbox).ForEach(func(k, v []byte) error {
			var o outgoing
			if err := json.Unmarshal(v, &o); err != nil {
				return fmt.Errorf("outbox: %w", err)
			}
			c.outbox[readNumber(k)] = o
			return nil
		}))
	for _, set := range sets {
		s.PolicySets[set.Class] = set
	}
	for vendor := range off {
		s.VendorsOff[vendor] = true
	}
	s.Tenants, s.Baselines, s.CIPolicies, s.DumpKeys = orNil(s.Tenants), orNil(s.Baselines), orNil(s.CIPolicies), orNil(s.DumpKeys)
	s.Denials, s.Offline, s.Peers = orNil(s.Denials), orNil(s.Offline), orNil(s.Peers)
	s.PolicySets, s.Anchors, s.VendorsOff = orNil(s.PolicySets), orNil(s.Anchors), orNil(s.VendorsOff)
	return err
}

// vendorOff is the record of a vendor that is switched off.
type vendorOff struct {
	Vendor string `json:"vendor"`
}

// setKey is the key of a policy set: bbolt wants one that is not empty.
func setKey(s policy.PolicySet) string { return "class " + s.Class }

func setsByKey(sets map[string]policy.PolicySet) map[string]policy.PolicySet {
	m := make(map[string]policy.PolicySet, len(sets))
	for _, s := range sets {
		m[setKey(s)] = s
	}
	return m
}

func vendorsOff(off map[string]bool) map[string]vendorOff {
	m := make(map[string]vendorOff, len(off))
	for vendor, is := range off {
		if is {
			m[vendor] = vendorOff{vendor}
		}
	}
	return m
}

func orNil[V any](m map[string]V) map[string]V {
	if len(m) == 0 {
		return nil
	}
	return m
}

func load[K ~string, V any](tx *bolt.Tx, bucket []byte, into map[K]V, key func(V) K) error {
	return tx.Bucket(bucket).ForEach(func(k, v []byte) error {
		var r V
		if err := json.Unmarshal(v, &r); err != nil {
			return fmt.Errorf("record %s/%.40q: %w", bucket, k, err)
		}
		if string(key(r)) != string(k) {
			return fmt.Errorf("record %s/%.40q has another name inside", bucket, k)
		}
		into[K(k)] = r
		return nil
	})
}

// diff writes what differs between two maps of records.
func diff[K ~string, V any](tx *bolt.Tx, bucket []byte, old, new map[K]V, same func(a, b V) bool) error {
	b := tx.Bucket(bucket)
	for k, v := range new {
		if o, ok := old[k]; ok && same(o, v) {
			continue
		}
		j, err := json.Marshal(v)
		if err != nil {
			return err
		}
		if err := b.Put([]byte(k), j); err != nil {
			return err
		}
	}
	for k := range old {
		if _, ok := new[k]; !ok {
			if err := b.Delete([]byte(k)); err != nil {
				return err
			}
		}
	}
	return nil
}

// sameHost is spelled out because there may be 20,000 of them at each change.
func sameHost(a, b policy.Host) bool {
	return a.Name == b.Name && a.Class == b.Class && a.Revoked == b.Revoked && a.DenyIssuedBefore == b.DenyIssuedBefore && a.Note == b.Note &&
		a.Added == b.Added && a.ID == b.ID && bytes.Equal(a.HostKey, b.HostKey) &&
		a.DenyForeignBefore == b.DenyForeignBefore && slices.Equal(a.CertifiedKeys, b.CertifiedKeys) && (a.TPM == b.TPM || same(a.TPM, b.TPM))
}

// sameAnchor too: there may be 2,048. The thumbprint stands for the certificate.
func sameAnchor(a, b policy.Anchor) bool {
	return a.Thumbprint == b.Thumbprint && a.Vendor == b.Vendor && a.Root == b.Root && a.Name == b.Name && a.Added == b.Added
}

func same[V any](a, b V) bool { return reflect.DeepEqual(a, b) }

func writeState(tx *bolt.Tx, old, new policy.State) error {
	if !same(old.Service, new.Service) {
		b, err := json.Marshal(new.Service)
		if err != nil {
			return err
		}
		if err := tx.Bucket(bucketMeta).Put(keyService, b); err != nil {
			return err
		}
	}
	if !same(old.Rotation, new.Rotation) {
		b, err := json.Marshal(new.Rotation) // null where it is over
		if err != nil {
			return err
		}
		if err := tx.Bucket(bucketMeta).Put(keyRotation, b); err != nil {
			return err
		}
	}
	if err := errors.Join(writeDraft(tx, keyDraft, old.Draft, new.Draft), writeDraft(tx, keyUndo, old.Undo, new.Undo)); err != nil {
		return err
	}
	return errors.Join(
		diff(tx, bucketNodes, old.Nodes, new.Nodes, same),
		diff(tx, bucketAdmins, old.Admins, new.Admins, same),
		diff(tx, bucketHosts, old.Hosts, new.Hosts, sameHost),
		diff(tx, bucketKeys, old.Keys, new.Keys, same),
		diff(tx, bucketSigners, old.Signers, new.Signers, same),
		diff(tx, bucketTenants, old.Tenants, new.Tenants, same),
		diff(tx, bucketDenials, old.Denials, new.Denials, same),
		diff(tx, bucketOffline, old.Offline, new.Offline, same),
		diff(tx, bucketPeers, old.Peers, new.Peers, same),
		diff(tx, bucketBaselines, old.Baselines, new.Baselines, same),
		diff(tx, bucketCIPolicies, old.CIPolicies, new.CIPolicies, same),
		diff(tx, bucketDumpKeys, old.DumpKeys, new.DumpKeys, same),
		diff(tx, bucketPolicySets, setsByKey(old.PolicySets), setsByKey(new.PolicySets), same),
		diff(tx, bucketAnchors, old.Anchors, new.Anchors, sameAnchor),
		diff(tx, bucketVendorsOff, vendorsOff(old.VendorsOff), vendorsOff(new.VendorsOff), same))
}

// writeDraft writes what lies under a key of its own; nil is nothing.
func writeDraft(tx *bolt.Tx, key []byte, old, new *policy.Draft) error {
	switch {
	case same(old, new):
		return nil
	case new == nil:
		return tx.Bucket(bucketMeta).Delete(key)
	}
	b, err := json.Marshal(new)
	if err != nil {
		return err
	}
	return tx.Bucket(bucketMeta).Put(key, b)
}
