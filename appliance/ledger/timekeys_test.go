package ledger

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"filippo.io/age"

	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
)

const (
	timeKeyText = "sha256:000102030405060708090a0b0c0d0e0f"
	keyedTime   = "[[node.time]]\nserver = \"10.0.2.2:11123\"\nkey-id = 7\n[[node.time]]\nserver = \"10.0.2.3\""
)

// setUpKeyed sets a node up whose first time server must prove itself with key 7.
func (b *bench) setUpKeyed(secrets string) error {
	answers := strings.NewReplacer("KEY", sshKey(b.t), "time-servers = [\"10.0.2.2:11123\"]", keyedTime, "[node]\n", "time-limit = \"1s\"\n[node]\n").Replace(answerFile)
	_, err := b.l.SetUp(context.Background(), rpc.SetupRequest{Answers: []byte(answers), Secrets: b.encrypt(secrets), Actor: setupActor})
	return err
}

func TestKeysOfTimeServersComeWithTheSecretsAndStayThere(t *testing.T) {
	b := newBench(t)
	if err := b.setUpKeyed(secretsFile); !errors.Is(err, rpc.ErrRefused) || !strings.Contains(err.Error(), "lacks key 7") {
		t.Fatalf("without the key: %v", err)
	}
	if err := b.setUpKeyed(secretsFile + "[time-key]\n7 = \"sha256:0011\"\n"); !errors.Is(err, rpc.ErrRefused) || strings.Contains(err.Error(), "0011") {
		t.Fatalf("with a short key: %v", err)
	}
	if err := b.setUpKeyed(secretsFile + "[time-key]\n7 = \"" + timeKeyText + "\"\n"); err != nil {
		t.Fatal(err)
	}
	b.restart()
	keys, err := b.l.TimeKeys()
	if err != nil || len(keys) != 1 || keys[0].ID != 7 || keys[0].Algorithm != "sha256" || len(keys[0].Secret) != 16 {
		t.Fatalf("%v %v", keys, err)
	}
	s, _ := b.l.Snapshot()
	n := s.State.Nodes[s.NodeID]
	if len(n.TimeServers) != 2 || n.TimeKeys["10.0.2.2:11123"] != 7 || len(n.TimeKeys) != 1 || s.State.Service.TimeBound != time.Second {
		t.Errorf("%+v, limit %s", n, s.State.Service.TimeBound)
	}
	if err := b.l.store.db.Sync(); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string][]byte{"raw": keys[0].Secret, "hex": []byte(hex.EncodeToString(keys[0].Secret))} {
		if found := b.filesWith(text); len(found) > 0 {
			t.Errorf("the key lies %s in %v", name, found)
		}
	}
}

func TestTimeKeyIsChangedSealedToTheNode(t *testing.T) {
	b := newBench(t)
	ada := b.setUp()
	ctx := context.Background()
	seal := func(text string) []byte {
		var out bytes.Buffer
		w, err := age.Encrypt(&out, b.l.sealKey.Recipient())
		if err != nil {
			t.Fatal(err)
		}
		w.Write([]byte(text))
		w.Close()
		return out.Bytes()
	}
	if err := b.l.TimeKeySet(ctx, rpc.TimeKeyRequest{Actor: ada, ID: 9, Sealed: []byte(timeKeyText)}); !errors.Is(err, rpc.ErrRefused) {
		t.Errorf("a key in the clear: %v", err)
	}
	if err := b.l.TimeKeySet(ctx, rpc.TimeKeyRequest{Actor: ada, ID: 9, Sealed: seal("md5:00112233")}); !errors.Is(err, rpc.ErrRefused) {
		t.Errorf("a weak key: %v", err)
	}
	if err := b.l.TimeKeySet(ctx, rpc.TimeKeyRequest{Actor: ada, ID: 9, Sealed: seal(timeKeyText + "\n")}); err != nil {
		t.Fatal(err)
	}
	s, _ := b.l.Snapshot()
	set := policy.NodeSet{Node: s.NodeID, TimeServers: []string{"10.0.2.9"}, TimeKeys: map[string]uint16{"10.0.2.9": 9}}
	if _, _, err := b.l.Propose(ctx, command(ada, policy.CmdNodeSet, set)); err != nil {
		t.Fatal(err)
	}
	if err := b.l.TimeKeySet(ctx, rpc.TimeKeyRequest{Actor: ada, ID: 9}); !errors.Is(err, rpc.ErrRefused) {
		t.Errorf("a key in use was removed: %v", err)
	}
	set.TimeKeys = nil
	if _, _, err := b.l.Propose(ctx, command(ada, policy.CmdNodeSet, set)); err != nil {
		t.Fatal(err)
	}
	if err := b.l.TimeKeySet(ctx, rpc.TimeKeyRequest{Actor: ada, ID: 9}); err != nil {
		t.Fatal(err)
	}
	if keys, err := b.l.TimeKeys(); err != nil || len(keys) != 0 {
		t.Errorf("%v %v", keys, err)
	}
	if len(b.audited("time.key.set")) != 1 || len(b.audited("time.key.remove")) != 1 {
		t.Error("the audit does not tell")
	}
}

// filesWith lists the files of the ledger that hold the text.
func (b *bench) filesWith(text []byte) (found []string) {
	b.t.Helper()
	err := filepath.WalkDir(b.cfg.Dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		file, err := os.ReadFile(path)
		if bytes.Contains(file, text) {
			found = append(found, path)
		}
		return err
	})
	if err != nil {
		b.t.Error(err)
	}
	return found
}
