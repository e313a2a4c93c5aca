package main

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"guardhouse/appliance/hsm"
	"guardhouse/appliance/hsm/token"
	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
	"guardhouse/board/lab/native"
)

// BenchmarkNode puts a whole node (all programs, natively, with their uids, audit on disk) beside the token operations that each answer
// needs, in one run: an attestation needs one signature, a roll one decryption and one signature. The load is hostsim's, 4 at once, which
// verifies every answer and shares the two processors, so the ratio is a lower bound. Metrics: per second, and ratio to the raw token.
func BenchmarkNode(b *testing.B) {
	if why := native.Unavailable(); why != "" {
		b.Skip(why)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	dir, err := os.MkdirTemp("", "gh-")
	if err != nil {
		b.Fatal(err)
	}
	defer os.RemoveAll(dir)
	os.Chmod(dir, 0o755)
	bin := filepath.Join(dir, "bin")
	if err := native.Build(ctx, bin, append([]string{"hostsim"}, native.Programs...)...); err != nil {
		b.Fatal(err)
	}
	os.Chmod(bin, 0o755)
	s, err := native.Open(ctx, native.Options{Dir: dir, HGSArgs: []string{"--grants-per-minute", "100000000", "--rolls-per-minute", "100000000"}})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	if err := s.Start(ctx, bin); err != nil {
		b.Fatal(err)
	}
	if err := s.SetUp(ctx); err != nil {
		b.Fatal(err)
	}
	if err := s.MakeKeys(ctx); err != nil {
		b.Fatal(err)
	}
	hostsim := func(args ...string) map[string]any {
		b.Helper()
		out, err := exec.CommandContext(ctx, filepath.Join(bin, "hostsim"), append(args, "--json")...).Output()
		if err != nil {
			b.Fatalf("hostsim %v: %v", args, err)
		}
		var f map[string]any
		if err := json.Unmarshal(out, &f); err != nil {
			b.Fatal(err)
		}
		return f
	}
	people := filepath.Join(dir, "people")
	protector := filepath.Join(people, "protector.xml")
	hostsim("host-key", "new", "--dir", people, "--name", "host1")
	cer, err := os.ReadFile(filepath.Join(people, "host.cer"))
	if err != nil {
		b.Fatal(err)
	}
	cert, err := x509.ParseCertificate(cer)
	if err != nil {
		b.Fatal(err)
	}
	ledger := s.Client(rpc.Ledger)
	defer ledger.Close()
	if _, err := s.Propose(ctx, ledger, "", policy.CmdHostAdd, policy.HostAdd{Name: "host1", HostKey: cert.RawSubjectPublicKeyInfo}); err != nil {
		b.Fatal(err)
	}
	hostsim("host-key", "attest", "--dir", people, "--url", s.URL("/Attestation"))
	hostsim("guardian", "new", "--dir", people)
	hostsim("protector", "new", "--dir", people, "--metadata", s.URL("/KeyProtection"), "--out", protector)

	sign, signer, decrypt := rawToken(b, s)
	const n = "2000"
	b.Run("attest", func(b *testing.B) {
		for b.Loop() {
			rate := hostsim("load", "--dir", people, "--url", s.URL("/Attestation"), "--n", n)["attestationsPerSecond"].(float64)
			b.ReportMetric(rate, "attestations/s")
			b.ReportMetric(signer, "raw-signatures/s")
			b.ReportMetric(rate/signer, "of-raw-token")
		}
		b.ReportMetric(0, "ns/op")
	})
	b.Run("roll", func(b *testing.B) {
		for b.Loop() {
			rate := hostsim("load", "--dir", people, "--kps", s.URL("/KeyProtection"), "--in", protector, "--n", n)["rollsPerSecond"].(float64)
			b.ReportMetric(rate, "rolls/s")
			b.ReportMetric(1/(1/sign+1/decrypt), "raw-decrypt+sign/s")
			b.ReportMetric(rate*(1/sign+1/decrypt), "of-raw-token")
		}
		b.ReportMetric(0, "ns/op")
	})
}

// rawToken measures the token in this process, 4 callers at once, in operations a second: signatures and OAEP decryptions by
// RSA-2048, and signatures by a key of an attestation signer's size.
func rawToken(b *testing.B, s *native.Stack) (sign, signer, decrypt float64) {
	for _, e := range s.Token.Env() {
		if conf, ok := strings.CutPrefix(e, "SOFTHSM2_CONF="); ok {
			os.Setenv("SOFTHSM2_CONF", conf)
		}
	}
	t, err := token.Open(hsm.ModuleConfig{Module: softHSM, TokenLabel: s.Token.Label}, []byte(s.Token.PIN()), func() {}, rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	defer t.Close()
	sk, err := t.Generate(policy.RoleSigning, 2048)
	if err != nil {
		b.Fatal(err)
	}
	ak, err := t.Generate(policy.RoleAttestationSigner, policy.SignerBits)
	if err != nil {
		b.Fatal(err)
	}
	ek, err := t.Generate(policy.RoleEncryption, 2048)
	if err != nil {
		b.Fatal(err)
	}
	pub, err := x509.ParsePKIXPublicKey(ek.SPKI)
	if err != nil {
		b.Fatal(err)
	}
	digest := sha256.Sum256([]byte("m"))
	ct, err := rsa.EncryptOAEP(sha256.New(), rand.Reader, pub.(*rsa.PublicKey), digest[:], nil)
	if err != nil {
		b.Fatal(err)
	}
	rate := func(op func() error) float64 {
		const callers, span = 4, 2 * time.Second
		var n atomic.Int64
		var wg sync.WaitGroup
		start := time.Now()
		for range callers {
			wg.Go(func() {
				for time.Since(start) < span {
					if err := op(); err != nil {
						b.Error(err)
						return
					}
					n.Add(1)
				}
			})
		}
		wg.Wait()
		return float64(n.Load()) / time.Since(start).Seconds()
	}
	signs := func(k hsm.Key) func() error {
		return func() error {
			_, err := t.Sign(hsm.SignRequest{Ref: k.Ref, Digest: digest[:], Hash: crypto.SHA256, Scheme: hsm.PKCS1v15})
			return err
		}
	}
	sign, signer = rate(signs(sk)), rate(signs(ak))
	decrypt = rate(func() error { _, err := t.Decrypt(ek.Ref, ct, p1); return err })
	return sign, signer, decrypt
}
