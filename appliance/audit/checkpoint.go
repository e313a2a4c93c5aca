package audit

import (
	"crypto/rand"
	"fmt"
)

// Checkpoint is the node's signature over a stretch of its chain: record First follows hash Prev, record Last has hash Hash. The
// signature is over the text that Text gives, see [PublicKey].
type Checkpoint struct {
	Node      string `json:"node"`
	First     uint64 `json:"first"`
	Prev      string `json:"prev"`
	Last      uint64 `json:"last"`
	Hash      string `json:"hash"`
	Signature []byte `json:"signature"`
}

// Text is what is signed.
func (c Checkpoint) Text() []byte {
	return fmt.Appendf(nil, "guardhouse audit checkpoint 1\nnode %s\nfirst %d %s\nlast %d %s\n", c.Node, c.First, c.Prev, c.Last, c.Hash)
}

func (c Checkpoint) signedBy(node string, keys ...PublicKey) bool {
	for _, key := range keys {
		if c.Node == node && key.verifies(c.Text(), c.Signature) {
			return true
		}
	}
	return false
}

var errNoKey = problem(KindKey, "set the node up, or cure its secrets first (status)", "this node has no audit key yet")

// sign makes a checkpoint over [from, to] in the places given.
func (l *Log) sign(from, to chain) (*Checkpoint, error) {
	l.mu.Lock()
	c := &Checkpoint{Node: l.node, First: from.seq + 1, Prev: from.hash, Last: to.seq, Hash: to.hash}
	signer := l.signer
	l.mu.Unlock()
	if signer == nil {
		return nil, errNoKey
	}
	var err error
	if c.Signature, err = signText(rand.Reader, signer, c.Text()); err != nil {
		return nil, fmt.Errorf("sign audit checkpoint: %w", err)
	}
	return c, nil
}

// checkpoint signs the whole chain as it is and keeps that as the newest checkpoint. Without a key it does nothing. l.wmu is held.
func (l *Log) checkpoint() error {
	l.mu.Lock()
	start, at, signer := l.start(), chain{l.last, l.hash}, l.signer
	l.mu.Unlock()
	if signer == nil || at.seq == start.seq {
		return nil
	}
	c, err := l.sign(start, at)
	if err != nil {
		return err
	}
	if err := l.writeJSON(headFile, c); err != nil {
		return err
	}
	l.mu.Lock()
	l.head = c
	l.mu.Unlock()
	return nil
}

// start is the place before the oldest record kept; l.mu is held.
func (l *Log) start() chain {
	if len(l.segments) > 0 {
		return chain{l.segments[0].first - 1, l.segments[0].prev}
	}
	return chain{l.last, l.hash}
}
