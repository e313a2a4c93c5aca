package main

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"filippo.io/age"
	"github.com/miekg/pkcs11"
	"golang.org/x/crypto/ssh"

	"guardhouse/appliance/ledger"
	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
	"guardhouse/appliance/tpm"
)

// oneLedger is a real ledger, set up, over the HSM process of its own node and those in others.
func oneLedger(t *testing.T, own *rpc.Client, others map[string]*rpc.Client) (*ledger.Ledger, policy.Actor) {
	t.Helper()
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := free.Addr().String()
	free.Close()
	_, port, _ := net.SplitHostPort(addr)
	chip := exec.Command("swtpm", "socket", "--tpm2", "--tpmstate", "dir="+t.TempDir(), "--server", "type=tcp,bindaddr=127.0.0.1,port="+port, "--flags", "not-need-init,startup-clear")
	if err := chip.Start(); err != nil {
		t.Fatalf("swtpm (Debian package swtpm): %v", err)
	}
	t.Cleanup(func() { _ = chip.Process.Kill(); _ = chip.Wait() })
	for range 250 {
		if dev, err := tpm.Open("swtpm:" + addr); err == nil {
			dev.Close()
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	var now policy.TrustedTime
	j, _ := json.Marshal(map[string]any{"boot": "b", "bootTime": time.Minute, "utc": time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC), "bound": time.Millisecond, "driftPPM": 100, "expires": 100 * time.Hour})
	if err := json.Unmarshal(j, &now); err != nil {
		t.Fatal(err)
	}
	l, err := ledger.Open(t.Context(), ledger.Config{Dir: t.TempDir(), TPM: "swtpm:" + addr, Policy: tpm.ImagePCRs, Boot: "b", BootTime: func() time.Duration { return time.Minute },
		Time: func() policy.TrustedTime { return now }, Rand: rand.Reader, Epoch: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC), HSM: own, HSMs: others,
		Network: func(context.Context, policy.Network) error { return nil }, Log: t.Logf})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	pub, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	sshPub, err := ssh.NewPublicKey(pub)
	if err != nil {
		t.Fatal(err)
	}
	line := strings.TrimSpace(string(ssh.MarshalAuthorizedKey(sshPub)))
	answers := "version = 1\n[service]\nname = \"hgs.example.test\"\nmode = \"HostKey\"\nhttp = true\nhttps = true\n[node]\nname = \"node1\"\ntime-servers = [\"10.0.2.2\"]\n" +
		"[node.network]\n[[node.network.interface]]\nname = \"front\"\nmac = [\"any\"]\naddresses = [\"10.0.2.15/24\"]\nroles = [\"service\", \"cluster\", \"management\"]\n" +
		"[node.hsm]\nmodule = \"/usr/lib/x.so\"\ntoken = \"x\"\n[[admin]]\nname = \"ada\"\nrole = \"owner\"\nkey = \"" + line + "\"\n"
	key, err := l.SetupKey()
	if err != nil {
		t.Fatal(err)
	}
	to, err := age.ParseX25519Recipient(key.Recipient)
	if err != nil {
		t.Fatal(err)
	}
	var sealed bytes.Buffer
	w, err := age.Encrypt(&sealed, to)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = w.Write([]byte("version = 1\nhsm-pin = \"" + userPIN + "\"\n"))
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := l.SetUp(t.Context(), rpc.SetupRequest{Answers: []byte(answers), Secrets: sealed.Bytes(), Actor: policy.Actor{Name: "setup", Door: policy.DoorSetup}}); err != nil {
		t.Fatal(err)
	}
	return l, policy.Actor{Name: "ada", Key: ssh.FingerprintSHA256(sshPub), Door: policy.DoorSSH}
}

// cloned is a copy of a SoftHSM token, as the vendor's cloning of an HSM.
func cloned(t *testing.T, env string) string {
	t.Helper()
	_, conf, _ := strings.Cut(env, "=")
	dir := t.TempDir()
	if err := os.CopyFS(filepath.Join(dir, "tokens"), os.DirFS(filepath.Join(filepath.Dir(conf), "tokens"))); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(conf)
	if err != nil {
		t.Fatal(err)
	}
	copied := filepath.Join(dir, "softhsm2.conf")
	if err := os.WriteFile(copied, bytes.ReplaceAll(text, []byte(filepath.Dir(conf)), []byte(dir)), 0o600); err != nil {
		t.Fatal(err)
	}
	return "SOFTHSM2_CONF=" + copied
}

func fresh() string {
	id := make([]byte, 16)
	_, _ = rand.Read(id)
	return hex.EncodeToString(id)
}

// TestAKeyBecomesPrimaryOnlyWhereEveryNodeCanUseIt: two hsm processes on two tokens under one ledger. What is wrong on the second node is
// named with the node, and the primary keys stay as they are.
func TestAKeyBecomesPrimaryOnlyWhereEveryNodeCanUseIt(t *testing.T) {
	env := newSoftHSM(t)
	born := map[policy.KeyRole][]byte{}
	t.Run("the vendor's tool makes a pair", func(t *testing.T) {
		p, s := vendorTool(t, env)
		born[policy.RoleSigning] = makeForeign(t, p, s, foreign{label: "next-signing", id: 1, sign: true})
		born[policy.RoleEncryption] = makeForeign(t, p, s, foreign{label: "next-encryption", id: 2, decrypt: true})
	})
	n1 := startNode(t, rpc.Ledger, env, configured)
	n1.await(t, "STATUS=token ready")
	others := map[string]*rpc.Client{}
	l, ada := oneLedger(t, n1.client, others)
	if _, err := l.MakeKeys(t.Context(), rpc.MakeKeysRequest{Actor: ada, ID: fresh(), Roles: []policy.KeyRole{policy.RoleSigning, policy.RoleEncryption}, Bits: 2048}); err != nil {
		t.Fatal(err)
	}
	next := map[policy.KeyRole]policy.Key{}
	for role, spki := range born {
		added, err := l.AddKey(t.Context(), rpc.KeyAddRequest{Actor: ada, ID: fresh(), Ref: policy.RefOf(spki), Role: role})
		if err != nil || !added.Tests[0].OK {
			t.Fatalf("%+v, %v", added, err)
		}
		next[role] = added.Key
	}
	primary := func(k policy.Key) error {
		body, _ := json.Marshal(policy.KeyChange{Ref: k.Ref})
		_, _, err := l.Propose(t.Context(), policy.Command{ID: fresh(), Kind: policy.CmdKeyPrimary, Actor: ada, Body: body})
		return err
	}
	forbid := func(attribute uint) func(*testing.T, *pkcs11.Ctx, pkcs11.SessionHandle, string) {
		return func(t *testing.T, p *pkcs11.Ctx, s pkcs11.SessionHandle, label string) {
			for _, o := range named(t, p, s, label, pkcs11.CKO_PRIVATE_KEY) {
				if err := p.SetAttributeValue(s, o, []*pkcs11.Attribute{pkcs11.NewAttribute(attribute, false)}); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	remove := func(t *testing.T, p *pkcs11.Ctx, s pkcs11.SessionHandle, label string) {
		for _, class := range []uint{pkcs11.CKO_PRIVATE_KEY, pkcs11.CKO_PUBLIC_KEY} {
			for _, o := range named(t, p, s, label, class) {
				if err := p.DestroyObject(s, o); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	for name, c := range map[string]struct {
		role  policy.KeyRole
		spoil func(*testing.T, *pkcs11.Ctx, pkcs11.SessionHandle, string)
		says  string
	}{
		"missing":         {policy.RoleSigning, remove, "the token does not hold it"},
		"without sign":    {policy.RoleSigning, forbid(pkcs11.CKA_SIGN), "CKA_SIGN is false"},
		"without decrypt": {policy.RoleEncryption, forbid(pkcs11.CKA_DECRYPT), "CKA_DECRYPT is false"},
		"another under its label": {policy.RoleSigning, func(t *testing.T, p *pkcs11.Ctx, s pkcs11.SessionHandle, label string) {
			remove(t, p, s, label)
			makeForeign(t, p, s, foreign{label: label, id: 9, sign: true})
		}, "under its label lies another key"},
	} {
		t.Run(name, func(t *testing.T) {
			copied := cloned(t, env)
			p, s := vendorTool(t, copied)
			c.spoil(t, p, s, next[c.role].Label)
			n2 := startNode(t, rpc.Ledger, copied, configured)
			n2.await(t, "STATUS=token ready")
			others["node2"] = n2.client
			defer delete(others, "node2")
			err := primary(next[c.role])
			if !errors.Is(err, rpc.ErrRefused) || !strings.Contains(err.Error(), "on node node2: ") || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%v", err)
			}
			if s, _ := l.Snapshot(); s.State.Keys[next[c.role].Ref].Primary {
				t.Error("it is primary")
			}
		})
	}
	t.Run("unreachable, then whole", func(t *testing.T) {
		n2 := startNode(t, rpc.Ledger, cloned(t, env), configured)
		n2.await(t, "STATUS=token ready")
		others["node2"] = rpc.NewClient(filepath.Join(t.TempDir(), "gone.sock"))
		if err := primary(next[policy.RoleSigning]); !errors.Is(err, rpc.ErrRefused) || !strings.Contains(err.Error(), "not tested") {
			t.Errorf("a node that can't be reached: %v", err)
		}
		others["node2"] = n2.client
		for role, k := range next {
			if err := primary(k); err != nil {
				t.Errorf("%s, the same key on both: %v", role, err)
			}
		}
	})
}

// named finds objects by label and class.
func named(t *testing.T, p *pkcs11.Ctx, s pkcs11.SessionHandle, label string, class uint) []pkcs11.ObjectHandle {
	t.Helper()
	if err := p.FindObjectsInit(s, []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_CLASS, class), pkcs11.NewAttribute(pkcs11.CKA_LABEL, label)}); err != nil {
		t.Fatal(err)
	}
	found, _, err := p.FindObjects(s, 10)
	if err != nil || len(found) != 1 {
		t.Fatalf("%d objects of the class %d under %s: %v", len(found), class, label, err)
	}
	if err := p.FindObjectsFinal(s); err != nil {
		t.Fatal(err)
	}
	return found
}
