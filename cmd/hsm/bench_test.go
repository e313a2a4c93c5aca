package main

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"os"
	"strings"
	"testing"

	"guardhouse/appliance/hsm"
	"guardhouse/appliance/hsm/token"
	"guardhouse/appliance/policy"
)

// bench runs op with 1 and with 4 callers.
func bench(b *testing.B, name string, op func() error) {
	b.Run(name+"/callers=1", func(b *testing.B) {
		for b.Loop() {
			if err := op(); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run(name+"/callers=4", func(b *testing.B) {
		b.SetParallelism(2) // times GOMAXPROCS, which is 2 on the reference machine
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				if err := op(); err != nil {
					b.Error(err)
					return
				}
			}
		})
	})
}

// BenchmarkToken compares the token in our own process ("raw") with the same
// token behind keeper and worker ("process"), and with one attached from outside
// by p11-kit and a channel ("attached"). RSA-2048.
func BenchmarkToken(b *testing.B) {
	digest := sha256.Sum256([]byte("m"))
	sign := func(ref policy.KeyRef) hsm.SignRequest {
		return hsm.SignRequest{Ref: ref, Digest: digest[:], Hash: crypto.SHA256, Scheme: hsm.PKCS1v15}
	}
	ctx := context.Background()
	through := func(name, module, env string) {
		k := startKeeper(b, module, env, hsm.Timing{})
		s, _ := generate(b, k, policy.RoleSigning)
		e, pub := generate(b, k, policy.RoleEncryption)
		ct := seal(b, pub, digest[:])
		bench(b, "sign/"+name, func() error { _, err := k.Sign(ctx, sign(s)); return err })
		bench(b, "decrypt/"+name, func() error { _, err := k.Decrypt(ctx, e, ct, p1); return err })
	}
	env := newSoftHSM(b)
	_, conf, _ := strings.Cut(env, "=")
	if err := os.Setenv("SOFTHSM2_CONF", conf); err != nil {
		b.Fatal(err)
	}
	t, err := token.Open(hsm.ModuleConfig{Module: softHSM, TokenLabel: label}, []byte(userPIN), func() {}, rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	defer t.Close()
	s, err := t.Generate(policy.RoleSigning, 2048)
	if err != nil {
		b.Fatal(err)
	}
	e, err := t.Generate(policy.RoleEncryption, 2048)
	if err != nil {
		b.Fatal(err)
	}
	bench(b, "sign/raw", func() error { _, err := t.Sign(sign(s.Ref)); return err })
	pub, err := x509.ParsePKIXPublicKey(e.SPKI)
	if err != nil {
		b.Fatal(err)
	}
	ct := seal(b, pub.(*rsa.PublicKey), digest[:])
	bench(b, "decrypt/raw", func() error { _, err := t.Decrypt(e.Ref, ct, p1); return err })
	through("process", softHSM, env)
	_, attached := newOutside(b)
	through("attached", p11Client, attached)
}
