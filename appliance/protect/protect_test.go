package protect

import (
	"bytes"
	"crypto/rand"
	"errors"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"guardhouse/appliance/health"
	"guardhouse/appliance/kps"
	"guardhouse/appliance/policy"
)

func TestHostGetsItsKeyAndTheNextProtector(t *testing.T) {
	n := newNode(t)
	protector, tk := n.protector()
	for round := range 3 {
		w := n.roll(protector, n.certificate())
		got, err := opened(t, protector, w)
		if err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		if !bytes.Equal(got.IngressKey, tk) || bytes.Equal(got.EgressKey, tk) || bytes.Equal(got.Egress.Bytes(), protector) {
			t.Fatalf("round %d: wrong keys", round)
		}
		mine, err := got.Egress.Open(t.Context(), ownerOf(t, got.Egress), rand.Reader)
		if err != nil || !bytes.Equal(mine, got.EgressKey) {
			t.Fatalf("round %d: the owner cannot open the egress protector: %v", round, err)
		}
		if got.Egress.MaxOfflineUnwraps != 0 || len(got.Policies) != 0 {
			t.Errorf("offline unwrapping is on")
		}
		e := n.entries[len(n.entries)-1]
		if e.Kind != policy.AuditGrant || e.Outcome != "ok" || e.Subject != hostID || e.Policy != 7 || e.Facts["protector"] != sum(protector) ||
			e.Facts["egress"] != sum(got.Egress.Bytes()) || e.Facts["host"] != "host1" || e.Source != "192.0.2.1" || len(e.Facts) > policy.MaxAuditFacts {
			t.Errorf("audit entry %+v", e)
		}
		if e.At.Earliest == 0 || e.At.Latest < e.At.Earliest || e.BootTime == 0 || e.Facts["owner"] == "" || e.Facts["encryptionKey"] == "" || e.Facts["signingKey"] == "" || e.Facts["certificate"] == "" {
			t.Errorf("the audit entry lacks the time with its bound, the owner or the keys used: %+v", e)
		}
		protector, tk = got.Egress.Bytes(), got.EgressKey
	}
	if len(n.entries) != 3 || len(n.seen) != 3 {
		t.Fatalf("%d audit entries, uses %+v", len(n.entries), n.seen)
	}
	for round, u := range n.seen {
		e := n.entries[round]
		if !u.Valid() || u.Host != hostID || u.HostName != "host1" || u.Protector != e.Facts["egress"] || string(u.Encryption) != e.Facts["encryptionKey"] ||
			string(u.Signing) != e.Facts["signingKey"] || u.At != e.At || round > 0 && u.Mark != n.seen[round-1].Next {
			t.Errorf("use %d: %+v", round, u)
		}
	}
}

func ownerOf(t testing.TB, p *kps.Protector) kps.Owner {
	o := owner(t)
	o.SigningCertificate, o.EncryptionCertificate = p.Owner().SigningCertificate, p.Owner().EncryptionCertificate
	return o
}

func TestPayloadHasTheVersionOfThePath(t *testing.T) {
	n := newNode(t)
	protector, _ := n.protector()
	body := kps.NewRequest(protector, n.certificate()).Marshal()
	for _, path := range []string{kps.RollPathV1, strings.ToUpper(kps.RollPathV1), "/keyprotection/service/2014-07/rolltransportkey/"} {
		w := n.do(http.MethodPost, path, body)
		if _, err := opened(t, protector, w); err != nil {
			t.Errorf("%s: %v", path, err)
		}
		if e := n.entries[len(n.entries)-1]; e.Facts["payload"] != "1" {
			t.Errorf("%s: payload %s", path, e.Facts["payload"])
		}
	}
}

func TestNothingLeavesBeforeTheAuditIsDurable(t *testing.T) {
	n := newNode(t)
	protector, _ := n.protector()
	n.auditErr = errors.New("disk full")
	w := n.roll(protector, n.certificate())
	wantRefusal(t, w, http.StatusServiceUnavailable, kps.CodeUnavailable, "audit")
	if bytes.Contains(w.Body.Bytes(), []byte("EgressProtector")) {
		t.Error("a key left without an audit entry")
	}
	if len(n.seen) != 0 {
		t.Error("a roll that gave nothing was observed as one")
	}
}

func TestRule9_1_1_HealthCertificateIsJudgedFirst(t *testing.T) {
	n := newNode(t)
	k := testKeys()
	own := n.signerCert()
	stranger := signerCertificate(t, k[foreign])
	n.change(func(s *policy.State) { s.Hosts["other"] = policy.Host{ID: "other"} })
	flipped := n.certificate()
	flipped[len(flipped)-1] ^= 1
	expired, err := health.Issue(rand.Reader, health.Between(now.Add(-3*time.Minute), now.Add(-3*time.Minute), true), health.Order{Purpose: health.Encryption, HostID: hostID, Key: &k[vsm].PublicKey, Life: time.Minute}, own, k[attestation])
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		cert    []byte
		outcome string
	}{
		"no certificate at all":    {[]byte("not DER"), string(health.Unparsable)},
		"self-signed":              {certify(t, hostID, k[vsm]).Raw, string(health.UnknownSigner)},
		"signer not trusted":       {healthy(t, health.Order{}, stranger, k[foreign]), string(health.UnknownSigner)},
		"one bit flipped":          {flipped, string(health.BadSignature)},
		"expired":                  {expired, string(health.Expired)},
		"of the signing kind":      {healthy(t, health.Order{Purpose: health.Signing}, own, k[attestation]), string(health.WrongKeyUsage)},
		"host that was never here": {healthy(t, health.Order{HostID: strings.Repeat("AB", 32)}, own, k[attestation]), outcomeUnknownHost},
	} {
		t.Run(name, func(t *testing.T) {
			n.refused = nil
			// The protector is garbage: who is judged first shows in the code.
			wantRefusal(t, n.roll([]byte("garbage"), c.cert), http.StatusBadRequest, kps.CodeHealthCertificate, "")
			if len(n.refused) != 1 || n.refused[0].Outcome != c.outcome || n.refused[0].Remedy == "" {
				t.Errorf("refusals %+v, want %s", n.refused, c.outcome)
			}
		})
	}
	if len(n.entries) != 0 {
		t.Errorf("unknown callers filled the audit: %+v", n.entries)
	}
}

func TestRevokedHostIsRefusedAtOnceWithItsValidCertificate(t *testing.T) {
	n := newNode(t)
	protector, _ := n.protector()
	cert := n.certificate()
	if w := n.roll(protector, cert); w.Code != http.StatusOK {
		t.Fatal(w.Body)
	}
	n.changeHost(func(h *policy.Host) { h.Revoked = true })
	wantRefusal(t, n.roll(protector, cert), http.StatusBadRequest, kps.CodeHealthCertificate, "revoked")
	last := n.entries[len(n.entries)-1]
	if last.Kind != policy.AuditRefusal || last.Outcome != outcomeRevoked || last.Subject != hostID || last.Remedy == "" {
		t.Errorf("audit entry %+v", last)
	}
	// The flood after it is summed, not written one by one.
	entries := len(n.entries)
	for range 20 {
		n.roll(protector, cert)
	}
	if len(n.entries) != entries || len(n.refused) != 20 {
		t.Errorf("%d entries, %d summed", len(n.entries)-entries, len(n.refused))
	}
	n.changeHost(func(h *policy.Host) { h.Revoked, h.DenyIssuedBefore = false, now.Unix() })
	wantRefusal(t, n.roll(protector, cert), http.StatusBadRequest, kps.CodeHealthCertificate, "older")
	n.changeHost(func(h *policy.Host) { h.DenyIssuedBefore = now.Add(-health.Backdate - time.Minute).Unix() })
	if w := n.roll(protector, cert); w.Code != http.StatusOK {
		t.Errorf("a certificate issued after the deny date: %s", w.Body)
	}
	n.change(func(s *policy.State) { delete(s.Hosts, hostID) })
	wantRefusal(t, n.roll(protector, cert), http.StatusBadRequest, kps.CodeHealthCertificate, "registered")
}

// TestReattestNowThenAttestThenRoll: what was issued before the verb is refused, what was issued a second later opens; for all hosts and for
// one. NotBefore could not tell them apart: both are back-dated by minutes.
func TestReattestNowThenAttestThenRoll(t *testing.T) {
	verb := policy.Stamp{Earliest: now.UnixMilli(), Latest: now.UnixMilli() + 40}
	deny := policy.NextSecond(verb)
	for name, change := range map[string]func(n *node){
		"all hosts": func(n *node) { n.change(func(s *policy.State) { s.Service.DenyIssuedBefore = deny }) },
		"one host":  func(n *node) { n.changeHost(func(h *policy.Host) { h.DenyIssuedBefore = deny }) },
		"one signer": func(n *node) {
			n.changeKey(policy.RoleAttestationSigner, func(k *policy.Key) { k.DenyIssuedBefore = deny })
		},
		"one signer later than all": func(n *node) {
			n.change(func(s *policy.State) { s.Service.DenyIssuedBefore = deny - 3600 })
			n.changeKey(policy.RoleAttestationSigner, func(k *policy.Key) { k.DenyIssuedBefore = deny })
		},
		"one signer before all": func(n *node) {
			n.change(func(s *policy.State) { s.Service.DenyIssuedBefore = deny })
			n.changeKey(policy.RoleAttestationSigner, func(k *policy.Key) { k.DenyIssuedBefore = deny - 3600 })
		},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			protector, _ := n.protector()
			issue := func(at time.Time) []byte {
				k := testKeys()
				signer := n.signerCert()
				der, err := health.Issue(rand.Reader, health.Between(at, at.Add(40*time.Millisecond), true),
					health.Order{Purpose: health.Encryption, Key: &k[vsm].PublicKey, HostID: hostID, Life: health.DefaultLife}, signer, k[attestation])
				if err != nil {
					t.Fatal(err)
				}
				return der
			}
			before, after := issue(now.Add(-time.Millisecond)), issue(now.Add(time.Second))
			for _, cert := range [][]byte{before, after} {
				if w := n.roll(protector, cert); w.Code != http.StatusOK {
					t.Fatal(w.Body)
				}
			}
			change(n)
			wantRefusal(t, n.roll(protector, before), http.StatusBadRequest, kps.CodeHealthCertificate, "the host must attest again")
			if w := n.roll(protector, after); w.Code != http.StatusOK {
				t.Errorf("attested a second later: %s", w.Body)
			}
		})
	}
}

// TestAWithdrawnSignersCertificatesCountUntilTheyExpire, and a forgery under its name does not count after that.
func TestAWithdrawnSignersCertificatesCountUntilTheyExpire(t *testing.T) {
	for name, c := range map[string]struct {
		retired time.Duration // ago
		ok      bool
	}{"retired": {time.Hour, true}, "withdrawn": {24*time.Hour + time.Minute, true}, "all it signed has expired": {26 * time.Hour, false}} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			protector, _ := n.protector()
			cert := n.certificate()
			n.changeKey(policy.RoleAttestationSigner, func(k *policy.Key) { k.Primary, k.RetiredAt = false, now.Add(-c.retired).Unix() })
			w := n.roll(protector, cert)
			if c.ok && w.Code != http.StatusOK {
				t.Error(w.Body)
			}
			if !c.ok {
				wantRefusal(t, w, http.StatusBadRequest, kps.CodeHealthCertificate, string(health.SignerNotValid))
			}
		})
	}
}

func TestAttestationOnlySaysThatThereIsNoKeyProtection(t *testing.T) {
	n := newNode(t)
	protector, _ := n.protector()
	cert, before := n.certificate(), n.signatures.Load()
	n.change(func(s *policy.State) { s.Service.AttestationOnly, s.Keys = true, map[policy.KeyRef]policy.Key{} })
	get := httptest.NewRecorder()
	n.service.ServeHTTP(get, httptest.NewRequest("GET", kps.MetadataPath, nil))
	other := httptest.NewRecorder()
	n.service.ServeHTTP(other, httptest.NewRequest("PUT", "/KeyProtection/anything", nil))
	for name, w := range map[string]*httptest.ResponseRecorder{"roll": n.roll(protector, cert), "metadata": get, "anything": other} {
		e, err := kps.ParseError(w.Body.Bytes())
		if err != nil || w.Code != http.StatusServiceUnavailable || e.Message != absentMessage {
			t.Errorf("%s: %d %s", name, w.Code, w.Body)
		}
		if w.Header().Get("Retry-After") != "" {
			t.Errorf("%s: it asks the caller to come again", name)
		}
	}
	if len(n.refused) != 3 || n.refused[0].Outcome != outcomeAbsent || n.signatures.Load() != before {
		t.Errorf("noted %+v", n.refused)
	}
}

// TestWhatChangesWhileTheTokenWorksCounts: the token may take seconds, and what an administrator took away meanwhile gives nothing.
func TestWhatChangesWhileTheTokenWorksCounts(t *testing.T) {
	disable := func(k *policy.Key) { k.Enabled = false }
	for name, c := range map[string]struct {
		change func(n *node)
		code   kps.Code
		says   string
	}{
		"host revoked":   {func(n *node) { n.changeHost(func(h *policy.Host) { h.Revoked = true }) }, kps.CodeHealthCertificate, "revoked"},
		"host removed":   {func(n *node) { n.change(func(s *policy.State) { delete(s.Hosts, hostID) }) }, kps.CodeHealthCertificate, "registered"},
		"deny date":      {func(n *node) { n.change(func(s *policy.State) { s.Service.DenyIssuedBefore = now.Unix() }) }, kps.CodeHealthCertificate, string(health.IssuedBeforeDeny)},
		"signer retired": {func(n *node) { n.changeKey(policy.RoleAttestationSigner, disable) }, kps.CodeHealthCertificate, string(health.UnknownSigner)},
		"key disabled":   {func(n *node) { n.changeKey(policy.RoleEncryption, disable) }, kps.CodeInvalidProtector, "disabled"},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			protector, _ := n.protector()
			cert := n.certificate()
			n.token = func() error { c.change(n); return nil }
			wantRefusal(t, n.roll(protector, cert), http.StatusBadRequest, c.code, c.says)
		})
	}
	n := newNode(t)
	protector, _ := n.protector()
	cert := n.certificate()
	n.token = func() error { n.change(func(s *policy.State) { s.Service.HTTP = true }); return nil }
	if w := n.roll(protector, cert); w.Code != http.StatusOK {
		t.Errorf("a change that has nothing to do with it: %s", w.Body)
	}
}

func TestDenyDatesOfServiceAndSigner(t *testing.T) {
	n := newNode(t)
	protector, _ := n.protector()
	cert := n.certificate()
	n.change(func(s *policy.State) { s.Service.DenyIssuedBefore = now.Unix() })
	wantRefusal(t, n.roll(protector, cert), http.StatusBadRequest, kps.CodeHealthCertificate, string(health.IssuedBeforeDeny))
	n.change(func(s *policy.State) { s.Service.DenyIssuedBefore = 0 })

	k := testKeys()
	other := signerCertificate(t, k[foreign])
	anybody := healthy(t, health.Order{HostID: strings.Repeat("CD", 32)}, other, k[foreign])
	trust := policy.TrustedSigner{Thumbprint: policy.Thumbprint(other.Raw), Certificate: other.Raw}
	n.change(func(s *policy.State) { s.Signers[trust.Thumbprint] = trust })
	if w := n.roll(protector, anybody); w.Code != http.StatusOK {
		t.Errorf("a host of a trusted foreign attestation signer: %s", w.Body)
	}
	trust.DenyIssuedBefore = now.Unix()
	n.change(func(s *policy.State) { s.Signers[trust.Thumbprint] = trust })
	wantRefusal(t, n.roll(protector, anybody), http.StatusBadRequest, kps.CodeHealthCertificate, string(health.IssuedBeforeDeny))
	n.changeKey(policy.RoleAttestationSigner, func(k *policy.Key) { k.Enabled = false })
	wantRefusal(t, n.roll(protector, cert), http.StatusBadRequest, kps.CodeHealthCertificate, string(health.UnknownSigner))
}

func TestRefusesProtectorsAndSaysWhich(t *testing.T) {
	n := newNode(t)
	good, _ := n.protector()
	cert := n.certificate()
	edit := func(old, to string) []byte {
		if !bytes.Contains(good, []byte(old)) {
			t.Fatalf("no %q", old)
		}
		return bytes.Replace(good, []byte(old), []byte(to), 1)
	}
	alone, _, err := kps.New(owner(t), nil, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		protector []byte
		code      kps.Code
		message   string
	}{
		"garbage":             {[]byte("garbage"), kps.CodeInvalidProtector, ""},
		"document type":       {edit("<Protector", "<!DOCTYPE x><Protector"), kps.CodeInvalidProtector, "document type"},
		"dangling guardian":   {edit(`<GuardianSignature WrappingId="1"`, `<GuardianSignature WrappingId="8"`), kps.CodeInvalidProtector, "does not exist"},
		"wrong guardian":      {edit(`<GuardianSignature WrappingId="1"`, `<GuardianSignature WrappingId="2"`), kps.CodeInvalidProtector, "GuardianSignature"},
		"dangling parent":     {edit(`ParentWrappingId="1"`, `ParentWrappingId="8"`), kps.CodeInvalidWrapping, "does not exist"},
		"duplicate ids":       {edit(`<Id>2</Id>`, `<Id>1</Id>`), kps.CodeInvalidWrapping, "twice"},
		"bad certificate":     {edit(`<SigningCertificate>MII`, `<SigningCertificate>MIA`), kps.CodeInvalidWrapping, "X.509"},
		"unknown algorithm":   {edit(kps.RSAOAEP, "urn:unheard-of"), kps.CodeInvalidProtector, "urn:unheard-of"},
		"not for this server": {alone.Bytes(), kps.CodeInvalidProtector, "none of its wrappings"},
	} {
		t.Run(name, func(t *testing.T) {
			wantRefusal(t, n.roll(c.protector, cert), http.StatusBadRequest, c.code, c.message)
		})
	}
	if !strings.Contains(n.log.String(), "urn:unheard-of") {
		t.Error("the unknown algorithm is not in the log")
	}
}

func TestRefusesAlgorithmsOfTheRequestThatAreUnknown(t *testing.T) {
	n := newNode(t)
	protector, _ := n.protector()
	r := kps.NewRequest(protector, n.certificate())
	r.WrappingKeyEncryptionAlgorithm = "urn:wrap"
	wantRefusal(t, n.do(http.MethodPost, kps.RollPathV2, r.Marshal()), http.StatusBadRequest, kps.CodeUnsupportedAlgorithm, "urn:wrap")
	if !strings.Contains(n.log.String(), `"urn:wrap"`) {
		t.Errorf("log: %s", &n.log)
	}
}

func TestNoFlippedByteOfAProtectorGetsAnotherKey(t *testing.T) {
	n := newNode(t)
	protector, tk := n.protector()
	cert := n.certificate()
	for i := 3; i < len(protector); i += 29 {
		bad := slices.Clone(protector)
		bad[i] ^= 4
		w := n.roll(bad, cert)
		if w.Code != http.StatusOK {
			continue
		}
		got, err := opened(t, bad, w)
		if err != nil || !bytes.Equal(got.IngressKey, tk) {
			t.Errorf("byte %d: accepted with another result: %v", i, err)
		}
	}
}

func TestTokenThatIsGoneIsNotTheProtectorsFault(t *testing.T) {
	n := newNode(t)
	protector, _ := n.protector()
	cert := n.certificate()
	n.token = func() error { return errToken }
	w := n.roll(protector, cert)
	wantRefusal(t, w, http.StatusServiceUnavailable, kps.CodeUnavailable, "HSM")
	if strings.Contains(w.Body.String(), errToken.Error()) {
		t.Error("the token's error left the node")
	}
	calls := 0
	n.token = func() error { // decrypts, then fails to sign
		if calls++; calls > 1 {
			return errToken
		}
		return nil
	}
	wantRefusal(t, n.roll(protector, cert), http.StatusServiceUnavailable, kps.CodeUnavailable, "HSM")
	for _, e := range n.entries {
		if e.Kind == policy.AuditGrant {
			t.Error("a roll that failed is audited as a grant")
		}
	}
}

func TestRule9_2_SigningKeyHeldAndEnabled_AndADisabledOneIsNamed(t *testing.T) {
	for _, role := range []policy.KeyRole{policy.RoleEncryption, policy.RoleSigning} {
		n := newNode(t)
		protector, _ := n.protector()
		cert := n.certificate()
		var ref policy.KeyRef
		n.changeKey(role, func(k *policy.Key) { k.Enabled, ref = false, k.Ref })
		wantRefusal(t, n.roll(protector, cert), http.StatusBadRequest, kps.CodeInvalidProtector, string(ref[:16]))
	}
}

func TestOldKeyOpensAfterRotationUntilItIsDisabled(t *testing.T) {
	n := newNode(t)
	protector, tk := n.protector()
	cert := n.certificate()
	k := testKeys()
	for role, i := range map[policy.KeyRole]int{policy.RoleSigning: spareSigning, policy.RoleEncryption: spareEncryption} {
		n.changeKey(role, func(k *policy.Key) { k.Primary = false })
		r := record(role, certify(t, "next "+string(role), k[i]))
		n.change(func(s *policy.State) { s.Keys[r.Ref] = r })
	}
	got, err := opened(t, protector, n.roll(protector, cert))
	if err != nil || !bytes.Equal(got.IngressKey, tk) {
		t.Fatalf("old protector: %v", err)
	}
	if !kps.SameKey(n.guardian().EncryptionCertificate.PublicKey, k[spareEncryption].Public()) {
		t.Error("metadata.xml does not name the new primary key")
	}
}

func TestRule9_2_ComparedByPublicKey_SoARenewedCertificateServes(t *testing.T) {
	n := newNode(t)
	protector, tk := n.protector()
	renewed := certify(t, "renewed", testKeys()[encryption])
	n.changeKey(policy.RoleEncryption, func(k *policy.Key) { k.Certificate = renewed.Raw })
	if got, err := opened(t, protector, n.roll(protector, n.certificate())); err != nil || !bytes.Equal(got.IngressKey, tk) {
		t.Errorf("%v", err)
	}
}
