package verb_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"strings"
	"testing"
	"time"

	"guardhouse/appliance/evidence"
	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
	"guardhouse/console/verb"
	"guardhouse/console/verb/verbtest"
)

// tpmPublic is an RSA key as a TPM writes its endorsement key: TPM2B_PUBLIC of the default template.
func tpmPublic(t *testing.T, key *rsa.PublicKey) (tpm2b, spki []byte) {
	t.Helper()
	spki, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		t.Fatal(err)
	}
	policyA := []byte("\x83\x71\x97\x67\x44\x84\xb3\xf8\x1a\x90\xcc\x8d\x46\xa5\xd7\x24\xfd\x52\xd7\x6e\x06\x52\x0b\x64\xf2\xa1\xda\x1b\x33\x14\x69\xaa")
	b := append([]byte("\x00\x01\x00\x0b\x00\x03\x00\xb2\x00\x20"), policyA...)
	b = append(b, "\x00\x06\x00\x80\x00\x43\x00\x10\x08\x00\x00\x00\x00\x00\x01\x00"...)
	b = append(b, key.N.FillBytes(make([]byte, 256))...)
	return append([]byte{byte(len(b) >> 8), byte(len(b))}, b...), spki
}

// fixedKey is an RSA public key that is the same in every run; nobody has its private half.
func fixedKey(bit int) *rsa.PublicKey {
	n := new(big.Int).SetBit(big.NewInt(1), 2047, 1)
	return &rsa.PublicKey{N: n.SetBit(n, bit, 1), E: 65537}
}

// found calls host find and gives who was found, and by what.
func found(t *testing.T, s *verb.Session, line, stdin string) []verb.FoundHost {
	t.Helper()
	out, err := call(s, line, stdin)
	if err != nil {
		t.Errorf("%s < %.20q: %v", line, stdin, err)
		return nil
	}
	checkWidth(t, line, out.Text.String())
	b, err := verb.JSON(out.Value)
	var v struct{ Hosts []verb.FoundHost }
	if err == nil {
		err = json.Unmarshal(b, &v)
	}
	if err != nil {
		t.Fatal(err)
	}
	return v.Hosts
}

// machine adds to a platform identifier what it says of the computer.
func machine(t *testing.T, file string) string {
	t.Helper()
	at := strings.Index(file, "<Name>")
	if at < 0 {
		t.Fatal(file)
	}
	return file[:at] + "<SmbiosGuid>4C4C4544-0042-3510-8052-B4C04F4C4142</SmbiosGuid><SerialNumber>SN 0815-X</SerialNumber><MacAddresses><MacAddress>00-15-5D-01-02-03</MacAddress>" +
		"<MacAddress>00:15:5d:01:02:04</MacAddress><MacAddress>not-an-address</MacAddress><MacAddress>00155D010203</MacAddress></MacAddresses>" + file[at:]
}

// TestFindsARegisteredHost by each thing that its owner may hold of it (row D05), and by nothing of another host.
func TestFindsARegisteredHost(t *testing.T) {
	f := verbtest.Start(t, true)
	s := f.Session(policy.DoorSSH)
	maker := newVendor(t)
	ek, cert := maker.tpm(t)
	mustCall(t, s, "tpm-trust import lab", string(maker.cert.Raw))
	waitFor(t, f, func(st policy.State) bool { return len(st.Anchors) == 1 })
	mustCall(t, s, "host add-tpm hv7 --class edge --inventory 'Rack 4/11'", machine(t, platform(t, ek, cert)))
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	public, rsaEK := tpmPublic(t, &rsaKey.PublicKey)
	mustCall(t, s, "host add-tpm hv8 --policy-version v1 --force --reason lab", platform(t, rsaEK, nil))
	hostKey := f.Certificate(t, "hv9")
	mustCall(t, s, "host add hv9", armor("CERTIFICATE", hostKey))
	waitFor(t, f, func(st policy.State) bool { return len(st.Hosts) == 3 })
	f.Observe(policy.ObservedHost, policy.HostID(ek), map[string]string{"verdict": "ok"})

	b64 := base64.StdEncoding.EncodeToString
	keyID := policy.HostID(spki(t, hostKey))
	thumb := fmt.Sprintf("%x", sha1.Sum(cert))
	for _, c := range []struct{ word, stdin, host, by string }{
		{"hv7", "", "hv7", "name"}, {"HV7", "", "hv7", "name"}, {"hv9", "", "hv9", "name"},
		{"'rack 4/11'", "", "hv7", "inventory number"},
		{policy.HostID(ek), "", "hv7", "EK"}, {strings.ToLower(policy.HostID(ek)[:8]), "", "hv7", "EK"},
		{keyID[:12], "", "hv9", "host key"}, {"0x" + keyID, "", "hv9", "host key"},
		{"02", "", "hv7", "serial number of its EK certificate"}, {"2", "", "hv7", "serial number of its EK certificate"}, {"00:02", "", "hv7", "serial number of its EK certificate"},
		{"'sn 0815-x'", "", "hv7", "serial number of the computer"}, {"4c4c4544-0042-3510-8052-b4c04f4c4142", "", "hv7", "SMBIOS UUID"},
		{"{4C4C4544-0042-3510-8052-B4C04F4C4142}", "", "hv7", "SMBIOS UUID"}, {"00:15:5d:01:02:03", "", "hv7", "MAC address"}, {"00-15-5D-01-02-04", "", "hv7", "MAC address"},
		{"0015.5d01.0203", "", "hv7", "MAC address"}, {"00155d010203", "", "hv7", "MAC address"},
		{thumb, "", "hv7", "thumbprint of its EK certificate"}, {policy.Thumbprint(cert), "", "hv7", "thumbprint of its EK certificate"},
		{"", platform(t, ek, cert), "hv7", "EK"}, {"", platform(t, ek, nil), "hv7", "EK"}, {"", utf16le(strings.TrimPrefix(platform(t, ek, cert), "\xef\xbb\xbf")), "hv7", "EK"},
		{"", platform(t, public, nil), "hv8", "EK"}, {"", string(public), "hv8", "EK"}, {"", b64(public), "hv8", "EK"},
		{"", string(cert), "hv7", "EK"}, {"", b64(cert), "hv7", "EK"}, {"", armor("CERTIFICATE", cert), "hv7", "EK"}, {"", utf16le(armor("CERTIFICATE", cert)), "hv7", "EK"},
		{"", string(append(cert, 0xff, 0xff, 0xff)), "hv7", "EK"},
		{"", string(ek), "hv7", "EK"}, {"", b64(ek), "hv7", "EK"}, {"", armor("PUBLIC KEY", ek), "hv7", "EK"},
		{"", armor("RSA PUBLIC KEY", x509.MarshalPKCS1PublicKey(&rsaKey.PublicKey)), "hv8", "EK"},
		{"", string(hostKey), "hv9", "host key"}, {"", armor("CERTIFICATE", hostKey), "hv9", "host key"}, {"", b64(hostKey), "hv9", "host key"},
		{"", string(spki(t, hostKey)), "hv9", "host key"}, {"", armor("PUBLIC KEY", spki(t, hostKey)), "hv9", "host key"},
	} {
		hosts := found(t, s, "host find "+c.word, c.stdin)
		if len(hosts) != 1 || hosts[0].Name != c.host || hosts[0].By != c.by {
			t.Errorf("%s < %.30q: found %+v, want %s by its %s", c.word, c.stdin, hosts, c.host, c.by)
		}
	}
	text := flat(t, s, "host find 2", "")
	for _, want := range []string{"hv7 allowed TPM v2 edge " + policy.HostID(ek)[:8], " ok", "Found by: serial number of its EK certificate."} {
		if !strings.Contains(text, want) {
			t.Errorf("host find lacks %q: %s", want, text)
		}
	}
	for _, word := range []string{"00:15:5d:01:02", "0815", "''", "'-'", "not-an-address"} { // a part of it, nothing, what the file had in place of an address
		if out, err := call(s, "host find "+word, ""); err == nil {
			t.Errorf("host find %s: %s", word, out.Text)
		}
	}
	for _, want := range []string{"SN 0815-X, 4C4C4544-0042", "00-15-5D-01-02-03", "00-15-5D-01-02-04"} {
		if text := flat(t, s, "host show hv7", ""); !strings.Contains(text, want) {
			t.Errorf("host show lacks %q: %s", want, text)
		}
	}
	// A machine in both modes has two records of one name.
	another, _ := issuedFor(t, newKey(t).Public(), time.Unix(2e9, 0), 0)
	mustCall(t, s, "host add hv7", armor("CERTIFICATE", another))
	waitFor(t, f, func(st policy.State) bool { return len(st.Hosts) == 4 })
	if hosts := found(t, s, "host find hv7", ""); len(hosts) != 2 {
		t.Errorf("of two records %+v", hosts)
	}
	f.Fail("ledger.Observed", rpc.ErrUnavailable)
	if text := flat(t, s, "host find hv9", ""); !strings.Contains(text, "not known") {
		t.Errorf("without observations: %s", text)
	}
}

// TestTheEndorsementKeyOfAFileCountsHoweverItIsMarked: the hash of the bytes in an OAEP-only certificate is not the host's id.
func TestTheEndorsementKeyOfAFileCountsHoweverItIsMarked(t *testing.T) {
	f := verbtest.Start(t, true)
	s := f.Session(policy.DoorSSH)
	_, ek := tpmPublic(t, fixedKey(100))
	f.Do(t, policy.CmdHostAddTPM, policy.TPMHostAdd{Name: "hv7", EK: ek, NameAlg: 11, Symmetric: 128, Version: policy.Version1, Force: true, Reason: "lab"})
	marked := strings.Replace(string(ek), "\x2a\x86\x48\x86\xf7\x0d\x01\x01\x01", "\x2a\x86\x48\x86\xf7\x0d\x01\x01\x07", 1)
	if marked == string(ek) {
		t.Fatal("the key is not marked")
	}
	for _, in := range []string{marked, armor("PUBLIC KEY", []byte(marked)), base64.StdEncoding.EncodeToString([]byte(marked))} {
		if hosts := found(t, s, "host find", in); len(hosts) != 1 || hosts[0].ID != policy.HostID(ek) {
			t.Errorf("%.20q: %+v", in, hosts)
		}
	}
}

// TestSaysWhatToDoWhereNoHostIsFound: an unknown host, one that has asked, one whose TPM was replaced; each ends with code 1.
func TestSaysWhatToDoWhereNoHostIsFound(t *testing.T) {
	f := verbtest.Start(t, true)
	s := f.Session(policy.DoorSSH)
	maker := newVendor(t)
	ek, cert := maker.tpm(t)
	id := policy.HostID(ek)
	absent := func(line, stdin string, says ...string) {
		t.Helper()
		refusedCall(t, s, line, stdin, says...)
		if _, err := call(s, line, stdin); verb.Explain(err).Code != verb.ExitFailed {
			t.Errorf("%s: ends with %d", line, verb.Explain(err).Code)
		}
	}
	absent("host find hv7", "", "no host is registered", `"hv7"`, "host pending", "host add NAME")
	mustCall(t, s, "service set --mode TPM", "")
	waitFor(t, f, func(st policy.State) bool { return st.Service.Mode == policy.ModeTPM })
	absent("host find", platform(t, ek, cert), id, "host pending", "host add-tpm NAME < FILE")
	absent("host find "+id[:7], "", "no host is registered")
	absent("host find 00:15:5d:01:02:03", "", "no host is registered")

	f.PendingTPM(id, map[string]string{"mode": "TPM", "source": "10.0.2.9", "spki": base64.StdEncoding.EncodeToString(ek)})
	for _, c := range [][2]string{{"host find", string(cert)}, {"host find " + id[:8], ""}} {
		absent(c[0], c[1], "it has asked from 10.0.2.9", "host add-tpm NAME --pending "+id[:16])
	}
	absent("host find hv7", "", "host add-tpm NAME < FILE")

	mustCall(t, s, "tpm-trust import lab", string(maker.cert.Raw))
	waitFor(t, f, func(st policy.State) bool { return len(st.Anchors) == 1 })
	other, otherCert := maker.tpm(t)
	mustCall(t, s, "host add-tpm hv7", platform(t, ek, cert))
	waitFor(t, f, func(st policy.State) bool { return len(st.Hosts) == 1 })
	absent("host find", platform(t, other, otherCert), policy.HostID(other), "a host of the name hv7 in it is, with another key", "host remove hv7, then host add-tpm hv7")
	f.Fail("ledger.Observed", rpc.ErrUnavailable)
	absent("host find", platform(t, other, otherCert), "whether it has asked is not known")
}

// TestRefusesToLookForGarbage, and never repeats a private key.
func TestRefusesToLookForGarbage(t *testing.T) {
	f := verbtest.Start(t, true)
	s := f.Session(policy.DoorSSH)
	ek, cert := newVendor(t).tpm(t)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for stdin, says := range map[string]string{
		"":                       "nothing to look for",
		" \r\n":                  "nothing to look for",
		"hello":                  "no platform identifier, and the input is neither",
		"AAAA":                   "no platform identifier, and the input is not a certificate",
		"\x30\x82\xff\xff\x00":   "no platform identifier",
		"<a/>":                   "no endorsement key",
		"<a>":                    "no platform identifier",
		string(cert[:40]):        "no platform identifier",
		string(private):          "private key",
		strings.Repeat("<", 1e6): "no platform identifier",
		strings.Repeat("A", 1e6): "larger than",
		armor("PRIVATE KEY", private) + armor("CERTIFICATE", cert):   "private key",
		armor("CERTIFICATE", cert) + armor("CERTIFICATE", cert):      "more than one",
		strings.Replace(platform(t, ek, cert), "Key>", "Key>!", 1):   "no platform identifier",
		armor("CERTIFICATE REQUEST", cert[:60]):                      "not a certificate",
		"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----": "not a certificate",
	} {
		refusedCall(t, s, "host find", stdin, says)
		if _, err := call(s, "host find", stdin); err != nil && strings.Contains(err.Error(), base64.StdEncoding.EncodeToString(private)[:20]) {
			t.Error("the private key is repeated")
		}
	}
	refusedCall(t, s, "host find 'a b' c", "", "takes no")
	refusedCall(t, s, "host find "+strings.Repeat("x", 300), "", "longer than 256")
	refusedCall(t, s, "host find \x1b[2Jx", "", "no host")
	if _, err := call(s, "host find \x1b[2Jx", ""); strings.Contains(err.Error(), "\x1b") {
		t.Error("a word reaches the terminal as it came")
	}
	v, args, err := verb.Parse([]string{"host", "find", "hv7"})
	if err != nil || v.WantsStdin(args) {
		t.Errorf("a word is given and yet a file is waited for: %v", err)
	}
	if v, args, err = verb.Parse([]string{"host", "find"}); err != nil || !v.WantsStdin(args) {
		t.Errorf("without a word no file is read: %v", err)
	}
}

// TestHostFindScreens are what administrators see.
func TestHostFindScreens(t *testing.T) {
	f := verbtest.Start(t, true)
	s := f.Session(policy.DoorSSH)
	public, ek := tpmPublic(t, fixedKey(100))
	other, _ := tpmPublic(t, fixedKey(101))
	f.Do(t, policy.CmdHostAddTPM, policy.TPMHostAdd{Name: "hv7", EK: ek, NameAlg: 11, Symmetric: 128, Version: policy.Version1, Force: true, Reason: "lab", Class: "edge", Inventory: "4711"})
	f.Observe(policy.ObservedHost, policy.HostID(ek), map[string]string{"verdict": "ok"})
	var b strings.Builder
	for _, c := range []struct{ line, file, stdin string }{
		{"host find hv7", "", ""}, {"host find 4711", "", ""}, {"host find " + policy.HostID(ek)[:8], "", ""}, {"host find", " < hv7.xml", platform(t, public, nil)},
		{"host find hv8", "", ""}, {"host find", " < hv8.bin", string(other)}, {"host find", " < replaced.xml", platform(t, other, nil)}, {"host find", " < holiday.jpg", "\xff\xd8\xff\xe0"},
	} {
		b.WriteString("guardhouse> " + c.line + c.file + "\n")
		out, err := call(s, c.line, c.stdin)
		var failure *verb.Failure
		switch {
		case err == nil:
			b.WriteString(out.Text.String() + "\n")
		case errors.As(err, &failure):
			b.WriteString(new(verb.Page).Line("%s", failure.Reason).Line("  -> %s", failure.Remedy).String() + "\n")
		default:
			t.Fatal(err)
		}
	}
	golden(t, "host-find.txt", b.String())
}

// FuzzHostFindFile: whatever is given as a file is looked for or refused, in the words of a Failure.
func FuzzHostFindFile(f *testing.F) {
	node := verbtest.Start(f, true)
	s := node.Session(policy.DoorSSH)
	p, err := evidence.WritePlatform(&evidence.Platform{Name: "hv7"}, []byte("\x30\x00"))
	if err != nil {
		f.Fatal(err)
	}
	for _, seed := range []string{"", "hello", string(p), utf16le("<a/>"), armor("PUBLIC KEY", []byte("\x30\x00")), "\x00\x01\x00\x0b", string(node.Certificate(f, "hv7"))} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		var failure *verb.Failure
		if _, err := call(s, "host find", string(in)); !errors.As(err, &failure) || failure.Reason == "" {
			t.Fatalf("an empty node answers %v", err)
		}
	})
}
