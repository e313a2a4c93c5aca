package verb_test

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/json"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	"guardhouse/appliance/appraise"
	"guardhouse/appliance/evidence"
	"guardhouse/appliance/policy"
	"guardhouse/console/verb"
	"guardhouse/console/verb/verbtest"
)

// TestWayBackIsKeptUntilHostsPassedOrSomebodyTypesThePhrase is the administrator's view of policy.Stragglers, dry run included.
func TestWayBackIsKeptUntilHostsPassedOrSomebodyTypesThePhrase(t *testing.T) {
	f := verbtest.Start(t, true)
	s := f.Session(policy.DoorSSH)
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	mustCall(t, s, "host add hv1", armor("RSA PUBLIC KEY", x509.MarshalPKCS1PublicKey(&key.PublicKey)))
	mustCall(t, s, "dump-key add ops --sha256 "+strings.Repeat("ab", 32), "")
	mustCall(t, s, "dump-key add more --sha256 "+strings.Repeat("cd", 32), "")
	mustCall(t, s, "service set --mode TPM", "")
	waitFor(t, f, func(st policy.State) bool { return st.Service.Mode == policy.ModeTPM && len(st.DumpKeys) == 2 })
	if text := flat(t, s, "mode status", ""); !strings.Contains(text, "Switched from HostKey mode, 2026") || !strings.Contains(text, "What HostKey mode needs can't be removed") {
		t.Errorf("mode status said %s", text)
	}
	mustCall(t, s, "service set --mode HostKey", "")
	waitFor(t, f, func(st policy.State) bool { return st.Service.Mode == policy.ModeHostKey })

	const phrase = "remove-TPM-although-1-of-1-hosts-have-not-passed-in-HostKey"
	for _, line := range []string{"dump-key remove ops", "dump-key remove ops --dry-run", "dump-key remove ops --phrase yes"} {
		_, err := call(s, line, "")
		if err == nil || !strings.Contains(err.Error(), "hv1 not seen") || !strings.Contains(err.Error(), "--phrase "+phrase) {
			t.Errorf("%s: %v", line, err)
		}
	}
	if text := flat(t, s, "dump-key remove more --phrase "+phrase, ""); !strings.Contains(text, "by typed phrase, while 1 of 1 hosts have not passed") {
		t.Errorf("it said %s", text)
	}
	snap, _ := f.Node.Snapshot()
	id := snap.State.HostsByName("hv1")[0].ID
	f.Observe(policy.ObservedHost, id, map[string]string{"verdict": "ok"}) // in the very moment of the switch: not certainly after it
	if text := flat(t, s, "mode status", ""); !strings.Contains(text, "0 of 1 machines have passed here") || !strings.Contains(text, "before the switch: ok") {
		t.Errorf("mode status said %s", text)
	}
	later := policy.Stamp{Earliest: verbtest.At.Latest + 5000, Latest: verbtest.At.Latest + 5020, Boot: "boot"}
	f.ObserveAt(later, policy.ObservedHost, id, map[string]string{"verdict": "ok"})
	if text := flat(t, s, "mode status", ""); !strings.Contains(text, "1 of 1 machines have passed here") || strings.Contains(text, "can't be removed") {
		t.Errorf("mode status said %s", text)
	}
	mustCall(t, s, "dump-key remove ops", "")
	if _, err := call(s, "host remove hv1 --mode TPM", ""); err == nil || !strings.Contains(err.Error(), "in TPM mode") {
		t.Error(err)
	}
}

// TestAModeSwitchIsTriedOnStoredEvidenceFirstAndComesTrue (C06): what the dry run says of each host is what the service says of it after the
// switch; and one verb takes the switch back.
func TestAModeSwitchIsTriedOnStoredEvidenceFirstAndComesTrue(t *testing.T) {
	f := verbtest.Start(t, true)
	s := f.Session(policy.DoorSSH)
	lab, gone := newVendor(t), newVendor(t)
	mustCall(t, s, "tpm-trust import lab", armor("CERTIFICATE", lab.cert.Raw))
	mustCall(t, s, "tpm-trust import gone", armor("CERTIFICATE", gone.cert.Raw))
	waitFor(t, f, func(st policy.State) bool { return len(st.Anchors) == 2 })
	for name, maker := range map[string]*vendor{"fine": lab, "dumps": lab, "silent": lab, "untrusted": gone, "mute": gone} {
		spki, cert := maker.tpm(t)
		mustCall(t, s, "host add-tpm "+name, platform(t, spki, cert))
	}
	for _, name := range []string{"onlykey", "left"} {
		key, err := rsa.GenerateKey(rand.Reader, 2048)
		if err != nil {
			t.Fatal(err)
		}
		mustCall(t, s, "host add "+name, armor("RSA PUBLIC KEY", x509.MarshalPKCS1PublicKey(&key.PublicKey)))
	}
	mustCall(t, s, "host revoke left", "")
	good := bootLog("revoked", ciFile(false), nil)
	mustCall(t, s, "baseline add base", string(good))
	mustCall(t, s, "ci-policy add allow", ciFile(false))
	waitFor(t, f, func(st policy.State) bool { return len(st.Hosts) == 7 && len(st.CIPolicies) == 1 })
	logs := map[string][]byte{"fine": good, "untrusted": good, "dumps": bootLog("revoked", ciFile(false), map[evidence.SettingID]uint64{evidence.DumpsDisabled: 0})}
	shown := func(want map[string]bool) {
		t.Helper()
		for name, log := range logs {
			if v := attest(t, f, name, log); v.Passed != want[name] {
				t.Errorf("%s: passed %t: %+v", name, v.Passed, v.Findings)
			}
		}
	}
	shown(map[string]bool{"fine": true, "untrusted": true})
	mustCall(t, s, "tpm-trust vendor gone off", "")
	waitFor(t, f, func(st policy.State) bool { return st.VendorOff("gone") })

	effect := func(line string) (e verb.ModeEffect, text string) {
		t.Helper()
		out, err := call(s, line, "")
		if err != nil {
			t.Fatal(line, err)
		}
		b, _ := json.Marshal(out.Value)
		var v verb.ModeSwitched
		if err := json.Unmarshal(b, &v); err != nil || v.Mode == nil || v.DryRun != strings.Contains(line, "--dry-run") {
			t.Fatalf("%s: %s, %v", line, b, err)
		}
		checkWidth(t, line, out.Text.String())
		return *v.Mode, strings.Join(strings.Fields(out.Text.String()), " ")
	}
	mode := func(m policy.Mode) {
		t.Helper()
		waitFor(t, f, func(st policy.State) bool { return st.Service.Mode == m })
	}
	e, text := effect("service set --mode TPM --dry-run")
	var fail []string
	for _, h := range e.Fail {
		fail = append(fail, h.Host)
		if h.Reason == "" || h.Remedy == "" || !strings.Contains(text, "- "+h.Host+": ") {
			t.Errorf("%+v in %s", h, text)
		}
	}
	if e.Machines != 6 || !slices.Equal(e.Pass, []string{"fine"}) || !slices.Equal(fail, []string{"dumps", "mute", "untrusted"}) ||
		!slices.Equal(e.NotSeen, []string{"silent"}) || !slices.Equal(e.Unregistered, []string{"onlykey"}) || !strings.Contains(text, "Nothing was changed") {
		t.Fatalf("%+v: %s", e, text)
	}
	if snap, _ := f.Node.Snapshot(); snap.State.Service.Mode != policy.ModeHostKey || snap.State.Service.Switched != nil {
		t.Fatal("a dry run has switched the mode")
	}
	refusedCall(t, s, "mode undo", "", "never switched", "service set --mode")
	if done, _ := effect("service set --mode TPM"); !slices.Equal(done.Pass, e.Pass) || len(done.Fail) != len(e.Fail) {
		t.Errorf("done %+v, tried %+v", done, e)
	}
	mode(policy.ModeTPM)
	for name := range logs { // it comes true
		predicted := slices.Contains(e.Pass, name)
		shownNow := attest(t, f, name, logs[name])
		if shownNow.Passed != predicted {
			t.Errorf("%s: predicted %t, is %+v", name, predicted, shownNow)
		}
		if i := slices.Index(fail, name); i >= 0 && shownNow.Findings[0].What != e.Fail[i].Reason {
			t.Errorf("%s fails because %s, predicted was %s", name, shownNow.Findings[0].What, e.Fail[i].Reason)
		}
	}
	back, text := effect("mode undo --dry-run")
	if !slices.Equal(back.Pass, []string{"onlykey"}) || len(back.Unregistered) != 5 || !strings.Contains(text, "5 of 6 machines are not registered in HostKey mode") {
		t.Errorf("%+v: %s", back, text)
	}
	if _, text = effect("mode undo"); !strings.Contains(text, "to go back: mode undo") {
		t.Errorf("mode undo said %s", text)
	}
	mode(policy.ModeHostKey)
	mustCall(t, s, "mode undo", "")
	mode(policy.ModeTPM)
	if text := flat(t, s, "service set --health-life 4h --dry-run", ""); !strings.Contains(text, "Nothing was changed") {
		t.Errorf("service set said %s", text)
	}
	refusedCall(t, s, "service set --health-life 1m --dry-run", "", "15m")
	if snap, _ := f.Node.Snapshot(); snap.State.Service.HealthLife == 4*time.Hour {
		t.Error("a dry run has changed the life of certificates")
	}
}

// TestAChangeOfTrustIsTriedOnStoredEvidenceFirst: and a host whose TPM is not trusted is not said to pass because of a policy.
func TestAChangeOfTrustIsTriedOnStoredEvidenceFirst(t *testing.T) {
	f, s, maker := tpmNode(t, "hv7")
	good := bootLog("revoked", ciFile(false), nil)
	mustCall(t, s, "baseline add base", string(good))
	mustCall(t, s, "ci-policy add allow", ciFile(false))
	waitFor(t, f, func(st policy.State) bool { return len(st.Hosts) == 1 && len(st.CIPolicies) == 1 })
	if v := attest(t, f, "hv7", good); !v.Passed {
		t.Fatalf("%+v", v.Findings)
	}
	for _, line := range []string{"tpm-trust vendor lab off --dry-run", "tpm-trust remove lab --dry-run", "tpm-trust remove " + policy.Thumbprint(maker.cert.Raw) + " --dry-run"} {
		if text := flat(t, s, line, ""); !strings.Contains(text, "Nothing was changed") || !strings.Contains(text, "1 that pass would fail") || !strings.Contains(text, "- hv7:") {
			t.Errorf("%s said %s", line, text)
		}
	}
	if snap, _ := f.Node.Snapshot(); snap.State.VendorOff("lab") || len(snap.State.Anchors) != 1 {
		t.Fatal("a dry run has changed something")
	}
	mustCall(t, s, "tpm-trust vendor lab off", "")
	waitFor(t, f, func(st policy.State) bool { return st.VendorOff("lab") })
	if text := flat(t, s, "policy enable Hgs_BitLockerEnabled --dry-run", ""); !strings.Contains(text, "0 that pass would fail") || !strings.Contains(text, "1 fail as before") {
		t.Errorf("of a host that fails already: %s", text)
	}
	if text := flat(t, s, "tpm-trust vendor lab on --dry-run", ""); !strings.Contains(text, "1 that fail would pass") {
		t.Errorf("switched on again: %s", text)
	}
	if v := attest(t, f, "hv7", good); v.Passed || v.Findings[0].Kind != appraise.UntrustedEK {
		t.Errorf("%+v", v)
	}
	mustCall(t, s, "tpm-trust remove lab", "")
	waitFor(t, f, func(st policy.State) bool { return len(st.Anchors) == 0 })
	two := armor("CERTIFICATE", maker.cert.Raw) + armor("CERTIFICATE", newVendor(t).cert.Raw)
	text := flat(t, s, "tpm-trust import lab --dry-run", two)
	for _, want := range []string{"Nothing was changed", "2 certificates of the TPM vendor lab would be trusted", "root Lab TPM Root", "read 2 roots, 0 intermediates", "1 that fail would pass", "+ hv7:"} {
		if !strings.Contains(text, want) {
			t.Errorf("tpm-trust import --dry-run does not say %q: %s", want, text)
		}
	}
	if text := flat(t, s, "tpm-trust import lab --virtual --dry-run", two); !strings.Contains(text, "would not count until you say so") || !strings.Contains(text, "0 that fail would pass") {
		t.Errorf("of virtual TPMs: %s", text)
	}
	if snap, _ := f.Node.Snapshot(); len(snap.State.Anchors) != 0 {
		t.Fatal("a dry run has changed something")
	}
	if text := flat(t, s, "tpm-trust import lab", armor("CERTIFICATE", maker.cert.Raw)); !strings.Contains(text, "1 that fail will pass") {
		t.Errorf("an import: %s", text)
	}
	waitFor(t, f, func(st policy.State) bool { return len(st.Anchors) == 1 })
	out, err := call(s, "tpm-trust import lab --dry-run", two)
	if v, _ := out.Value.(verb.TrustImported); err != nil || len(v.New) != 1 || v.Roots != 2 || !v.DryRun || len(v.Messages) != 0 {
		t.Errorf("with one of them known: %+v, %v", out.Value, err)
	}
}

// TestAnImportThatDoesNotFitChangesNothing: neither as a dry run nor in earnest, even where its first part would fit.
func TestAnImportThatDoesNotFitChangesNothing(t *testing.T) {
	f := verbtest.Start(t, true)
	s := f.Session(policy.DoorSSH)
	maker := newVendor(t)
	var file strings.Builder
	for size, n := 0, int64(2); size <= policy.MaxAnchorBytes; n++ {
		tmpl := *maker.cert
		tmpl.SerialNumber = big.NewInt(n)
		tmpl.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 2, 3}, Value: make([]byte, policy.MaxEKCertificate-1024)}}
		der, err := x509.CreateCertificate(rand.Reader, &tmpl, maker.cert, maker.key.Public(), maker.key)
		if err != nil {
			t.Fatal(err)
		}
		size += len(der)
		file.WriteString(armor("CERTIFICATE", der))
	}
	for _, line := range []string{"tpm-trust import lab --dry-run", "tpm-trust import lab"} {
		refusedCall(t, s, line, file.String(), "no room for this one")
	}
	if snap, _ := f.Node.Snapshot(); len(snap.State.Anchors) != 0 {
		t.Errorf("%d certificates are trusted", len(snap.State.Anchors))
	}
}
