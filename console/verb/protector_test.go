package verb_test

import (
	"encoding/base64"
	"encoding/json"
	"os"
	"strings"
	"testing"
	"time"

	"guardhouse/appliance/kps"
	"guardhouse/appliance/policy"
	"guardhouse/console/verb"
	"guardhouse/console/verb/verbtest"
)

func inspectFile(t *testing.T, name string) []byte {
	t.Helper()
	b, err := os.ReadFile("testdata/inspect/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// guardianKeys records the pair that the key protector in testdata was made for, and gives its references.
func guardianKeys(t *testing.T, f *verbtest.Fake) map[policy.KeyRole]policy.KeyRef {
	t.Helper()
	for role, file := range map[policy.KeyRole]string{policy.RoleSigning: "signing.cer", policy.RoleEncryption: "encryption.cer"} {
		f.Do(t, policy.CmdKeyAdd, policy.KeyAdd{Role: role, Label: string(role), Certificate: inspectFile(t, file)})
	}
	refs := map[policy.KeyRole]policy.KeyRef{}
	snap, _ := f.Node.Snapshot()
	for ref, k := range snap.State.Keys {
		refs[k.Role] = ref
	}
	return refs
}

// succeed makes another pair primary, so that the first one may be disabled.
func succeed(t *testing.T, f *verbtest.Fake) {
	t.Helper()
	s := f.Session(policy.DoorSSH)
	mustCall(t, s, "key new --roles signing,encryption", "")
	snap, _ := f.Node.Snapshot()
	for ref, k := range snap.State.Keys {
		if !k.Primary && (k.Role == policy.RoleSigning || k.Role == policy.RoleEncryption) {
			f.Do(t, policy.CmdKeyPrimary, policy.KeyChange{Ref: ref})
		}
	}
}

func TestInspectExplainsWhichOfOurKeysOpensAProtectorOrWhyNone(t *testing.T) {
	file := inspectFile(t, "protector.xml")
	for name, c := range map[string]struct {
		before func(f *verbtest.Fake)
		edit   func(string) string
	}{
		"opened-by-primary": {func(f *verbtest.Fake) { guardianKeys(t, f) }, nil},
		"opened-by-old-key": {func(f *verbtest.Fake) { guardianKeys(t, f); succeed(t, f) }, nil},
		"key-disabled": {func(f *verbtest.Fake) {
			refs := guardianKeys(t, f)
			succeed(t, f)
			f.Do(t, policy.CmdKeyDisable, policy.KeyChange{Ref: refs[policy.RoleEncryption]})
		}, nil},
		"not-for-us": {func(*verbtest.Fake) {}, nil},
		"tampered": {func(f *verbtest.Fake) { guardianKeys(t, f) }, func(s string) string {
			return strings.Replace(s, `<GuardianSignature WrappingId="1"`, `<GuardianSignature WrappingId="2"`, 1)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			f := verbtest.Start(t, true)
			c.before(f)
			text := string(file)
			if c.edit != nil {
				text = c.edit(text)
			}
			golden(t, "inspect/"+name+".txt", mustCall(t, f.Session(policy.DoorSSH), "protector inspect", text))
		})
	}
}

func TestInspectReadsWhatPeoplePaste(t *testing.T) {
	f := verbtest.Start(t, true)
	guardianKeys(t, f)
	s := f.Session(policy.DoorSerial)
	file := inspectFile(t, "protector.xml")
	b64 := base64.StdEncoding.EncodeToString(file)
	lines := ""
	for i := 0; i < len(b64); i += 76 {
		lines += b64[i:min(len(b64), i+76)] + "\r\n"
	}
	utf16 := "\xff\xfe"
	for _, c := range string(file) {
		utf16 += string([]byte{byte(c), 0})
	}
	for name, in := range map[string]string{"file": string(file), "byte order mark": "\xef\xbb\xbf" + string(file), "base64": b64, "base64 in lines": lines, "UTF-16": utf16, "blank lines": "\n\n" + string(file) + "\n"} {
		out, err := call(s, "protector inspect", in)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		b, _ := verb.JSON(out.Value)
		var v verb.ProtectorValue
		if err := json.Unmarshal(b, &v); err != nil || !v.Opens || len(v.Wrappings) != 3 {
			t.Errorf("%s: %v %s", name, err, b)
		}
	}
	for name, c := range map[string]struct{ in, says string }{
		"nothing":       {"", "nothing came"},
		"no protector":  {"\x00\x00\x00\x04", "has none"},
		"the same, b64": {"AAAABA==", "has none"},
		"text":          {"hello, world", "neither XML nor base64"},
		"other XML":     {"<a xmlns='u'/>", "root element"},
		"entity bomb":   {`<!DOCTYPE a [<!ENTITY x "y">]><Protector/>`, "document type"},
		"algorithm":     {strings.Replace(string(file), kps.RSAOAEP, "urn:unheard-of\x7f", 1), "urn:unheard-of"},
	} {
		_, err := call(s, "protector inspect", c.in)
		if err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if text := verb.FailurePage(verb.Explain(err)).String(); strings.ContainsAny(text, "\x7f\x1b") {
			t.Errorf("%s: a control character reaches the terminal", name)
		}
	}
}

func TestDenialsByVerbs(t *testing.T) {
	f := verbtest.Start(t, true)
	s := f.Session(policy.DoorSSH)
	cert := f.Certificate(t, "hv7.site2")
	text := mustCall(t, s, "host deny site2-hv7 --note stolen", armor("CERTIFICATE", cert))
	key := string(policy.RefOf(spki(t, cert)))
	if !strings.Contains(text, "hv7.site2") || !strings.Contains(text, key) {
		t.Errorf("host deny said %s", text)
	}
	mustCall(t, s, "host deny by-name --common-name hv8.site2", "")
	mustCall(t, s, "host deny by-key --spki "+strings.ToUpper(key), "")
	if _, err := call(s, "host deny d", armor("PUBLIC KEY", spki(t, cert))); err == nil {
		t.Error("a bare key is taken for a certificate")
	}
	if _, err := call(s, "host deny d --spki zz", ""); err == nil {
		t.Error("a malformed hash was taken")
	}
	if text := mustCall(t, s, "host denied", ""); !strings.Contains(text, "by-name") || !strings.Contains(text, "stolen") || !strings.Contains(text, "0 registered hosts are revoked") {
		t.Errorf("host denied said %s", text)
	}
	for _, name := range []string{"site2-hv7", "by-name", "by-key"} {
		mustCall(t, s, "host allow "+name, "")
	}
	if snap, _ := f.Node.Snapshot(); len(snap.State.Denials) != 0 {
		t.Error("denials are left")
	}
}

// TestRevokingTellsTheKeysThatWereCertified: a foreign attestation signer may certify the same key under another name.
func TestRevokingTellsTheKeysThatWereCertified(t *testing.T) {
	f := verbtest.Start(t, true)
	s := f.Session(policy.DoorSSH)
	cert := f.Certificate(t, "hv7")
	mustCall(t, s, "host add hv7", armor("CERTIFICATE", cert))
	id, key := policy.HostID(spki(t, cert)), strings.Repeat("ab", 32)
	f.Observe(policy.ObservedIdentity, id, map[string]string{"vsmKey": key})
	f.Observe(policy.ObservedIdentity, strings.Repeat("0", 64), map[string]string{"vsmKey": strings.Repeat("cd", 32)})
	mustCall(t, s, "host revoke hv7", "")
	snap, _ := f.Node.Snapshot()
	if h := snap.State.Hosts[id]; !h.Revoked || len(h.CertifiedKeys) != 1 || h.CertifiedKeys[0] != key {
		t.Errorf("%+v", h)
	}
}

func TestOfflineCachingByVerbs(t *testing.T) {
	f := verbtest.Start(t, true)
	s := f.Session(policy.DoorSSH)
	if text := mustCall(t, s, "class list", ""); !strings.Contains(text, "no host class") {
		t.Errorf("class list said %s", text)
	}
	mustCall(t, s, "host add hv7 --class edge", armor("CERTIFICATE", f.Certificate(t, "hv7")))
	for _, bad := range []string{"class offline-caching edge", "class offline-caching edge --until yesterday", "class offline-caching edge --until 2001-01-01",
		"class offline-caching edge --until 2199-01-01", "class offline-caching edge --unwraps 0 --until 2026-12-31", "class offline-caching edge --off",
		"class offline-caching edge --off --unwraps 2"} {
		if _, err := call(s, bad, ""); err == nil {
			t.Errorf("%s: done", bad)
		}
	}
	end := time.UnixMilli(verbtest.At.Latest).UTC().AddDate(0, 0, 30).Format(time.DateOnly)
	mustCall(t, s, "class offline-caching edge --unwraps 2 --until "+end, "")
	if text := mustCall(t, s, "class list", ""); !strings.Contains(text, "2 unwraps, until "+end) {
		t.Errorf("class list said %s", text)
	}
	mustCall(t, s, "class offline-caching edge --off", "")
	if text := mustCall(t, s, "class list", ""); !strings.Contains(text, "off") || strings.Contains(text, "unwraps") {
		t.Errorf("class list said %s", text)
	}
}

func TestSwitchesOfKeyProtectionShow(t *testing.T) {
	f := verbtest.Start(t, true)
	s := f.Session(policy.DoorSSH)
	if text := mustCall(t, s, "service show", ""); strings.Contains(text, "foreign forms") || strings.Contains(text, "metadata.xml") {
		t.Errorf("on by default: %s", text)
	}
	mustCall(t, s, "service set --other-signing on --foreign-forms on", "")
	if text := mustCall(t, s, "service show", ""); !strings.Contains(text, "foreign forms  ON") || !strings.Contains(text, "metadata.xml") {
		t.Errorf("service show said %s", text)
	}
}
