package main

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"guardhouse/appliance/hsm"
	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
)

func configured() (rpc.PINReply, error) {
	return rpc.PINReply{PIN: []byte(userPIN), HSM: policy.HSM{Module: softHSM, Token: label}}, nil
}

// shelf holds software keys as the ledger does.
type shelf struct {
	mu   sync.Mutex
	keys map[policy.KeyRole]*rsa.PrivateKey
}

func (s *shelf) fetch() ([]rpc.SoftwareKey, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []rpc.SoftwareKey
	for role, k := range s.keys {
		der, err := x509.MarshalPKCS8PrivateKey(k)
		if err != nil {
			return nil, err
		}
		list = append(list, rpc.SoftwareKey{Ref: refOf(k), Role: role, PKCS8: der})
	}
	return list, nil
}

func refOf(k *rsa.PrivateKey) policy.KeyRef {
	der, _ := x509.MarshalPKIXPublicKey(k.Public())
	return policy.RefOf(der)
}

// children lists the processes below pid whose last argument is kind.
func children(t *testing.T, parent int, kind string) (pids []int) {
	t.Helper()
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, d := range dirs {
		stat, err := os.ReadFile(d + "/stat")
		if err != nil {
			continue
		}
		f := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		cmdline, _ := os.ReadFile(d + "/cmdline")
		if len(f) > 1 && f[1] == strconv.Itoa(parent) && f[0] != "Z" && bytes.HasSuffix(cmdline, []byte("\x00"+kind+"\x00")) {
			pid, _ := strconv.Atoi(filepath.Base(d))
			pids = append(pids, pid)
		}
	}
	return pids
}

func signWith(ctx context.Context, n *node, k *rsa.PrivateKey) error {
	digest := sha256.Sum256([]byte("m"))
	for _, pss := range []bool{false, true} {
		got, err := rpc.HSMSign.Call(ctx, n.client, rpc.HSMSignRequest{Ref: refOf(k), Role: policy.RoleSigning, Digest: digest[:], Hash: uint(crypto.SHA256), PSS: pss})
		if err != nil {
			return err
		}
		verify := rsa.VerifyPKCS1v15(&k.PublicKey, crypto.SHA256, digest[:], got.Signature)
		if pss {
			verify = rsa.VerifyPSS(&k.PublicKey, crypto.SHA256, digest[:], got.Signature, nil)
		}
		if verify != nil {
			return verify
		}
	}
	return nil
}

// TestSoftwareKeysLiveInAProcessWithoutTheModule: locked, apart from the vendor's code, with the rules of their roles, back after a kill
// and gone after a removal.
func TestSoftwareKeysLiveInAProcessWithoutTheModule(t *testing.T) {
	store := &shelf{keys: map[policy.KeyRole]*rsa.PrivateKey{policy.RoleSigning: newRSA(t), policy.RoleEncryption: newRSA(t)}}
	n := startNodeWith(t, rpc.Ledger, newSoftHSM(t), configured, store.fetch)
	n.await(t, "STATUS=token ready")
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if _, err := rpc.HSMSoftware.Call(ctx, n.client, rpc.Empty{}); err != nil {
		t.Fatal(err)
	}
	sign, enc := store.keys[policy.RoleSigning], store.keys[policy.RoleEncryption]
	if err := signWith(ctx, n, sign); err != nil {
		t.Fatal(err)
	}
	digest := sha256.Sum256(nil)
	refusals := map[string]error{}
	_, refusals["an encryption key signs"] = rpc.HSMSign.Call(ctx, n.client, rpc.HSMSignRequest{Ref: refOf(enc), Digest: digest[:], Hash: uint(crypto.SHA256)})
	_, refusals["in another role"] = rpc.HSMSign.Call(ctx, n.client, rpc.HSMSignRequest{Ref: refOf(sign), Role: policy.RoleAttestationSigner, Digest: digest[:], Hash: uint(crypto.SHA256)})
	old := sha1.Sum(nil)
	_, refusals["SHA-1"] = rpc.HSMSign.Call(ctx, n.client, rpc.HSMSignRequest{Ref: refOf(sign), Digest: old[:], Hash: uint(crypto.SHA1)})
	for name, err := range refusals {
		if !errors.Is(err, rpc.ErrRefused) {
			t.Errorf("%s: %v", name, err)
		}
	}
	results, err := rpc.HSMTest.Call(ctx, n.client, rpc.HSMTestRequest{Keys: []rpc.HSMTestKey{recorded(t, policy.RoleSigning, sign), recorded(t, policy.RoleEncryption, enc)}})
	if err != nil || !results[0].OK || !results[1].OK || results[1].Token.Store != policy.StoreSoftware {
		t.Errorf("the keys' test: %+v, %v", results, err)
	}
	apart(t, n)

	if err := unix.Kill(children(t, n.cmd.Process.Pid, "software")[0], unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for began := time.Now(); ; time.Sleep(20 * time.Millisecond) {
		err := signWith(ctx, n, sign)
		if err == nil {
			t.Logf("back %v after the kill", time.Since(began).Round(time.Millisecond))
			break
		}
		if !errors.Is(err, rpc.ErrUnavailable) || time.Since(began) > 3*time.Second {
			t.Fatalf("%v after %v", err, time.Since(began))
		}
	}
	store.mu.Lock()
	delete(store.keys, policy.RoleSigning)
	store.mu.Unlock()
	if _, err := rpc.HSMSoftware.Call(ctx, n.client, rpc.Empty{}); err != nil {
		t.Fatal(err)
	}
	if err := signWith(ctx, n, sign); !errors.Is(err, rpc.ErrRefused) {
		t.Errorf("removed: %v", err)
	}
	if err := n.cmd.Process.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := <-n.exited; err != nil { // the log is whole now
		t.Errorf("the end: %v", err)
	}
	for role, k := range map[policy.KeyRole]*rsa.PrivateKey{policy.RoleSigning: sign, policy.RoleEncryption: enc} {
		if strings.Contains(n.stderr.String(), k.D.String()[:20]) || strings.Contains(n.stderr.String(), fmt.Sprintf("%x", k.D.Bytes()[:8])) {
			t.Errorf("the %s key is in the log", role)
		}
	}
}

// apart looks into the software worker: no module mapped, memory locked or no swap.
func apart(t *testing.T, n *node) {
	t.Helper()
	pids := children(t, n.cmd.Process.Pid, "software")
	if len(pids) != 1 {
		t.Fatalf("%d software workers", len(pids))
	}
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pids[0]))
	if err != nil || bytes.Contains(maps, []byte("softhsm")) {
		t.Errorf("the vendor's module shares the process: %v", err)
	}
	worker, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", children(t, n.cmd.Process.Pid, "worker")[0]))
	if err != nil || !bytes.Contains(worker, []byte("softhsm")) {
		t.Errorf("this check finds no module where one is: %v", err)
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pids[0]))
	if err != nil {
		t.Fatal(err)
	}
	swaps, err := os.ReadFile("/proc/swaps")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, "VmLck:"); ok && strings.Fields(rest)[0] == "0" && strings.Count(strings.TrimSpace(string(swaps)), "\n") > 0 {
			t.Error("its memory is not locked on a machine with swap")
		}
	}
}

func recorded(t *testing.T, role policy.KeyRole, k *rsa.PrivateKey) rpc.HSMTestKey {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(k.Public())
	if err != nil {
		t.Fatal(err)
	}
	return rpc.HSMTestKey{Ref: policy.RefOf(der), Role: role, SPKI: der}
}

// asking is a crypto.MessageSigner over hsm.Request.
type asking struct {
	n   *node
	ref policy.KeyRef
	pub crypto.PublicKey
}

func (a asking) Public() crypto.PublicKey { return a.pub }
func (a asking) Sign(io.Reader, []byte, crypto.SignerOpts) ([]byte, error) {
	return nil, errors.New("not a digest")
}
func (a asking) SignMessage(_ io.Reader, info []byte, _ crypto.SignerOpts) ([]byte, error) {
	r, err := rpc.HSMRequest.Call(context.Background(), a.n.client, rpc.HSMRequestRequest{Ref: a.ref, Info: info})
	return r.Signature, err
}

// TestAnEncryptionKeySignsItsRequestAndNothingElse: in the token, where its attributes forbid signatures, and as a software key.
func TestAnEncryptionKeySignsItsRequestAndNothingElse(t *testing.T) {
	store := &shelf{keys: map[policy.KeyRole]*rsa.PrivateKey{policy.RoleEncryption: newRSA(t)}}
	n := startNodeWith(t, rpc.Ledger, newSoftHSM(t), configured, store.fetch)
	n.await(t, "STATUS=token ready")
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if _, err := rpc.HSMSoftware.Call(ctx, n.client, rpc.Empty{}); err != nil {
		t.Fatal(err)
	}
	soft := store.keys[policy.RoleEncryption]
	signers := map[string]asking{"software key": {n, refOf(soft), soft.Public()}}
	for _, role := range []policy.KeyRole{policy.RoleEncryption, policy.RoleSigning} {
		made, err := rpc.HSMGenerate.Call(ctx, n.client, rpc.HSMGenerateRequest{Role: role, Bits: 2048})
		if err != nil || made.Sign != (role == policy.RoleSigning) {
			t.Fatalf("%+v, %v", made, err)
		}
		pub, err := x509.ParsePKIXPublicKey(made.SPKI)
		if err != nil {
			t.Fatal(err)
		}
		signers["token's "+string(role)] = asking{n, made.Ref, pub}
	}
	template := &x509.CertificateRequest{Subject: pkix.Name{CommonName: "Contoso"}, SignatureAlgorithm: x509.SHA256WithRSA}
	for name, s := range signers {
		der, err := x509.CreateCertificateRequest(rand.Reader, template, s)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		csr, err := x509.ParseCertificateRequest(der)
		if err != nil || csr.CheckSignature() != nil {
			t.Fatalf("%s: %v", name, err)
		}
		info := csr.RawTBSCertificateRequest
		other := signers["software key"]
		if name == "software key" {
			other = signers["token's signing"]
		}
		certificate, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{}, &x509.Certificate{}, soft.Public(), soft)
		if err != nil {
			t.Fatal(err)
		}
		cert, _ := x509.ParseCertificate(certificate)
		for what, bad := range map[string][]byte{"a certificate": cert.RawTBSCertificate, "a digest": make([]byte, 32), "nothing": nil,
			"more": append(slices.Clone(info), 0), "cut": info[:len(info)-1], "much": make([]byte, hsm.MaxRequest+1)} {
			if _, err := s.SignMessage(nil, bad, nil); !errors.Is(err, rpc.ErrRefused) {
				t.Errorf("%s signs %s: %v", name, what, err)
			}
		}
		if _, err := other.SignMessage(nil, info, nil); !errors.Is(err, rpc.ErrRefused) {
			t.Errorf("%s's request is signed with another key: %v", name, err)
		}
	}
}
