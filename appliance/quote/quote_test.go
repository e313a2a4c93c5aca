package quote_test

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"guardhouse/appliance/evidence"
	"guardhouse/appliance/quote"
	"guardhouse/appliance/tpm"
)

// identity is what a node with this TPM says.
func identity(t *testing.T, d *tpm.TPM, k *tpm.AttestationKey) quote.Identity {
	t.Helper()
	public, certificate, err := d.Endorsement()
	if err != nil {
		t.Fatal(err)
	}
	return quote.Identity{Version: 1, Node: "node1", Endorsement: public, Certificate: certificate, AttestationKey: k.Public()}
}

func newKey(t *testing.T, d *tpm.TPM) *tpm.AttestationKey {
	t.Helper()
	k, err := d.NewAttestationKey()
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func enrol(t *testing.T, d *tpm.TPM, k *tpm.AttestationKey, trust *evidence.Trust) quote.Enrolment {
	t.Helper()
	c, p, err := quote.Begin(identity(t, d, k), trust, time.Now(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := k.Activate(c.Credential, c.Secret)
	if err != nil {
		t.Fatal(err)
	}
	e, err := quote.Finish(p, quote.Answer{Version: 1, Secret: secret})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// boot is a log and what its registers are, the last one PCR 11 before its cap.
func boot() *evidence.Writer {
	w := evidence.NewWriter(evidence.SHA256)
	w.Event(0, evidence.EventCRTMVersion, []byte("1\x00.\x000\x00\x00\x00"))
	w.Event(7, evidence.EventVariable, evidence.UEFIVariable("SecureBoot", []byte{1}))
	w.Event(7, evidence.EventVariable, evidence.UEFIVariable("PK", []byte("key")))
	for pcr := range 8 {
		w.Separator(pcr)
	}
	w.Event(4, evidence.EventEFIAction, []byte("Calling EFI Application from Boot Option"))
	w.Measure(4, evidence.EventBootApp, []byte("the image"), make([]byte, 32))
	for _, s := range []string{".linux", ".cmdline"} {
		w.Measure(11, evidence.EventIPL, []byte(s+"\x00"), []byte(s+"\x00"))
		w.Measure(11, evidence.EventIPL, []byte("contents of "+s), []byte(s+"\x00"))
	}
	return w
}

func registers(w *evidence.Writer) map[int]string {
	all, pcrs := w.PCRs(evidence.SHA256), map[int]string{}
	for i := range quote.Registers {
		pcrs[i] = hex.EncodeToString(all[i])
	}
	return pcrs
}

func capped(t *testing.T, pcrs map[int]string) map[int]string {
	t.Helper()
	raw, err := hex.DecodeString(pcrs[11])
	if err != nil {
		t.Fatal(err)
	}
	v := tpm.Capped([32]byte(raw))
	pcrs = maps.Clone(pcrs)
	pcrs[11] = hex.EncodeToString(v[:])
	return pcrs
}

func TestNodeFindsItsBootAsSigned(t *testing.T) {
	w := boot()
	before := registers(w)
	opened := &quote.Opened{Policy: "release 7", Release: 7, PCRs: map[int]string{4: before[4], 7: before[7], 11: before[11], 12: before[12], 13: before[13]}}
	r := quote.Explain(quote.Logs{Firmware: w.Log()}, capped(t, before), opened)
	if len(r.Problems) > 0 || len(r.Registers) != 16 {
		t.Fatalf("%+v", r.Problems)
	}
	if g := r.Registers[11]; g.State != quote.StateCapped || g.Signed != "as signed" {
		t.Errorf("PCR 11: %+v", g)
	}
	var all []string
	for _, e := range r.Events {
		all = append(all, e.What)
	}
	text := strings.Join(all, "\n")
	for _, want := range []string{"Secure Boot is on", "the image has a part .linux", "the image's .cmdline: the kernel's command line", "firmware starts a boot entry", "a program that firmware started", "init opened the data volume"} {
		if !strings.Contains(text, want) {
			t.Errorf("no event says %q:\n%s", want, text)
		}
	}
}

func TestNamesEachWayInWhichABootIsNotAsLogged(t *testing.T) {
	w := boot()
	before := registers(w)
	signed := map[int]string{4: before[4], 11: before[11]}
	for name, c := range map[string]struct {
		change func(pcrs map[int]string, o *quote.Opened)
		kind   string
	}{
		"a register the log knows nothing of": {func(p map[int]string, _ *quote.Opened) { p[14] = strings.Repeat("ab", 32) }, quote.KindLogMismatch},
		"a register that differs":             {func(p map[int]string, _ *quote.Opened) { p[4] = strings.Repeat("ab", 32) }, quote.KindLogMismatch},
		"something after the cap":             {func(p map[int]string, _ *quote.Opened) { p[11] = capped(t, p)[11] }, quote.KindLogMismatch},
		"no cap":                              {func(p map[int]string, _ *quote.Opened) { p[11] = before[11] }, quote.KindNotCapped},
		"another policy":                      {func(_ map[int]string, o *quote.Opened) { o.PCRs[4] = strings.Repeat("0", 64) }, quote.KindUnpredicted},
		"a register is missing":               {func(p map[int]string, _ *quote.Opened) { delete(p, 3) }, quote.KindLogMismatch},
	} {
		pcrs, o := capped(t, before), &quote.Opened{Policy: "p", PCRs: maps.Clone(signed)}
		c.change(pcrs, o)
		r := quote.Explain(quote.Logs{Firmware: w.Log()}, pcrs, o)
		if len(r.Problems) == 0 || r.Problems[0].Kind != c.kind || r.Problems[0].Remedy == "" {
			t.Errorf("%s: %+v", name, r.Problems)
		}
	}
	if r := quote.Explain(quote.Logs{Firmware: []byte("no log")}, before, nil); len(r.Problems) != 1 || r.Problems[0].Kind != quote.KindLogMissing {
		t.Errorf("%+v", r.Problems)
	}
}

func TestTextThatWasNotMeasuredIsNamed(t *testing.T) {
	w := boot()
	log := w.Log()
	at := bytes.Index(log, evidence.UEFIVariable("SecureBoot", []byte{1})) + len(evidence.UEFIVariable("SecureBoot", []byte{1})) - 1
	log[at] = 0 // the digest still says that it is on
	r := quote.Explain(quote.Logs{Firmware: log}, registers(w), nil)
	if len(r.Problems) != 1 || r.Problems[0].Kind != quote.KindLogMismatch || !slices.ContainsFunc(r.Events, func(e quote.Event) bool {
		return e.What == "not what was measured: Secure Boot is off"
	}) {
		t.Errorf("%+v", r.Problems)
	}
}

func TestLogsOfRealFirmwareSayWhatWasMeasured(t *testing.T) {
	for _, name := range []string{"crypto_agile_eventlog", "sb_cert_eventlog", "glinux-alex.bin"} {
		b, err := os.ReadFile(filepath.Join("..", "evidence", "testdata", name))
		if err != nil {
			t.Fatal(err)
		}
		all, f := evidence.Replay(b, evidence.SHA256)
		if f != nil {
			t.Fatalf("%s: %v", name, f)
		}
		pcrs := map[int]string{}
		for i := range quote.Registers {
			pcrs[i] = hex.EncodeToString(all[i])
		}
		if r := quote.Explain(quote.Logs{Firmware: b}, pcrs, nil); len(r.Problems) > 0 || len(r.Events) < 10 {
			t.Errorf("%s: %d events, %+v", name, len(r.Events), r.Problems)
		}
	}
}

// kernelLog is a log of IMA as Linux writes it, and PCR 10 after it.
func kernelLog(names ...string) (log []byte, pcr string) {
	field := func(b []byte) []byte { return append(binary.LittleEndian.AppendUint32(nil, uint32(len(b))), b...) }
	var value [32]byte
	for _, name := range names {
		data := slices.Concat(field([]byte("sha256:\x00"+strings.Repeat("d", 32))), field([]byte(name+"\x00")), field(nil))
		log = slices.Concat(log, binary.LittleEndian.AppendUint32(nil, 10), bytes.Repeat([]byte{1}, 20), field([]byte("ima-sig")), field(data))
		sum := sha256.Sum256(data)
		value = sha256.Sum256(append(value[:], sum[:]...))
	}
	return log, hex.EncodeToString(value[:])
}

func TestRegisterOfTheKernelIsCheckedAgainstItsOwnLog(t *testing.T) {
	w := boot()
	pcrs := registers(w)
	kernel, value := kernelLog("boot_aggregate", "a module")
	pcrs[10] = value
	r := quote.Explain(quote.Logs{Firmware: w.Log(), Kernel: kernel}, pcrs, nil)
	if len(r.Problems) > 0 || r.Registers[10].State != quote.StateKernel || !strings.Contains(r.Events[len(r.Events)-1].What, "a module") {
		t.Errorf("%+v %+v", r.Problems, r.Registers[10])
	}
	for name, bad := range map[string][]byte{"none": nil, "one entry less": kernel[:len(kernel)/2], "cut": kernel[:len(kernel)-1], "another PCR": append([]byte{11}, kernel[1:]...)} {
		if r := quote.Explain(quote.Logs{Firmware: w.Log(), Kernel: bad}, pcrs, nil); len(r.Problems) == 0 || r.Problems[0].Kind != quote.KindLogMismatch {
			t.Errorf("%s: %+v", name, r.Problems)
		}
	}
}

// quoted is a quote by a TPM whose registers are all as after its reset, so that an empty log leads to them.
func quoted(t *testing.T, d *tpm.TPM, k *tpm.AttestationKey, nonce []byte) quote.File {
	t.Helper()
	w := evidence.NewWriter(evidence.SHA256)
	attest, signature, err := k.Quote(nonce)
	if err != nil {
		t.Fatal(err)
	}
	pcrs, err := d.Measurements()
	if err != nil {
		t.Fatal(err)
	}
	return quote.File{Version: 1, Node: "node1", Nonce: hex.EncodeToString(nonce), AttestationKey: k.Public(), Attest: attest, Signature: signature, PCRs: pcrs, Logs: quote.Logs{Firmware: w.Log()}}
}

func TestQuoteOfAnEnrolledNodeIsGenuine(t *testing.T) {
	m := newMaker(t)
	d := m.make(t)
	if err := d.Prepare(1, 0); err != nil { // a machine with a sealed volume: the owner's authorisation is set
		t.Fatal(err)
	}
	if err := d.Own(bytes.Repeat([]byte{5}, tpm.OwnerAuthSize)); err != nil {
		t.Fatal(err)
	}
	stored, err := newKey(t, d).Encode()
	if err != nil {
		t.Fatal(err)
	}
	k, err := d.LoadAttestationKey(stored)
	if err != nil {
		t.Fatal(err)
	}
	e := enrol(t, d, k, m.trust(t))
	if e.Warning != "" || e.Root == "" || e.Maker == "" {
		t.Errorf("%+v", e)
	}
	if a, b := e.Thumbprints(); len(a) != 40 || len(b) != 64 {
		t.Errorf("thumbprints %q %q", a, b)
	}
	nonce := []byte("0123456789abcdef")
	f := quoted(t, d, k, nonce)
	raw, err := json.Marshal(f)
	if err != nil {
		t.Fatal(err)
	}
	if f, err = quote.Parse[quote.File](raw); err != nil {
		t.Fatal(err)
	}
	zero := strings.Repeat("0", 64)
	if v := quote.Verify(f, nonce, &e, &quote.Prediction{Name: "x", PCRs: map[int]string{4: zero}}); !v.Genuine() {
		t.Errorf("%+v", v.Findings)
	}
	if v := quote.Verify(f, nonce, nil, nil); v.Genuine() || !strings.Contains(wrong(v), quote.NotBound) {
		t.Errorf("without an enrolment: %+v", v.Findings)
	}
}

func wrong(v quote.Verdict) string {
	var s []string
	for _, f := range v.Findings {
		if !f.OK {
			s = append(s, f.What)
		}
	}
	return strings.Join(s, "\n")
}

func TestRefusesQuotesThatProveNothing(t *testing.T) {
	d := maker("").make(t)
	k, other := newKey(t, d), newKey(t, d)
	e := enrol(t, d, k, nil)
	if !strings.Contains(e.Warning, "no certificate") {
		t.Errorf("a TPM without a certificate: %+v", e)
	}
	nonce := []byte("a nonce of my own")
	good := quoted(t, d, k, nonce)
	if v := quote.Verify(good, nonce, &e, nil); !v.Genuine() {
		t.Fatalf("%+v", v.Findings)
	}
	audit, err := d.NewSigningKey()
	if err != nil {
		t.Fatal(err)
	}
	certified := func(f *quote.File, k *tpm.AttestationKey, nonce []byte) {
		attest, signature, err := k.Certify(audit, nonce)
		if err != nil {
			t.Fatal(err)
		}
		f.AuditKey = &quote.Certified{Key: audit.Area(), Attest: attest, Signature: signature}
	}
	log := boot().Log()
	for name, c := range map[string]struct {
		change func(f *quote.File)
		want   string
	}{
		"another nonce":                   {func(f *quote.File) { *f = quoted(t, d, k, []byte("another nonce of yours")) }, "it may be an old one"},
		"another key":                     {func(f *quote.File) { *f = quoted(t, d, other, nonce) }, "not the one that was enrolled"},
		"key exchanged":                   {func(f *quote.File) { f.AttestationKey = other.Public() }, "not by the attestation key"},
		"signature changed":               {func(f *quote.File) { f.Signature[len(f.Signature)-1] ^= 1 }, "not by the attestation key"},
		"quote changed":                   {func(f *quote.File) { f.Attest[len(f.Attest)-1] ^= 1 }, "not by the attestation key"},
		"a register changed":              {func(f *quote.File) { f.PCRs[4] = strings.Repeat("1", 64) }, "not those that were quoted"},
		"a register more":                 {func(f *quote.File) { f.PCRs[16] = strings.Repeat("0", 64) }, "not those that were quoted"},
		"a register less":                 {func(f *quote.File) { delete(f.PCRs, 9) }, "PCR 9 is missing"},
		"log exchanged":                   {func(f *quote.File) { f.Logs.Firmware = log }, "the boot log leads to"},
		"log cut":                         {func(f *quote.File) { f.Logs.Firmware = f.Logs.Firmware[:len(f.Logs.Firmware)-3] }, "log can't be read"},
		"audit key of another TPM's word": {func(f *quote.File) { certified(f, other, nonce) }, "the audit's key"},
		"audit key certified long ago":    {func(f *quote.File) { certified(f, k, []byte("an earlier nonce")) }, "does not certify it now"},
		"audit key exchanged":             {func(f *quote.File) { certified(f, k, nonce); f.AuditKey.Key = newSigningArea(t, d) }, "does not certify it now"},
		"audit key that anybody may load": {func(f *quote.File) { certified(f, k, nonce); f.AuditKey.Key = k.Public() }, "its attributes"},
		"quote for a certificate": {func(f *quote.File) {
			certified(f, k, nonce)
			f.AuditKey.Attest, f.AuditKey.Signature = f.Attest, f.Signature
		}, "does not certify it now"},
		"certificate for a quote": {func(f *quote.File) {
			certified(f, k, nonce)
			f.Attest, f.Signature = f.AuditKey.Attest, f.AuditKey.Signature
		}, "is no quote"},
		"no key": {func(f *quote.File) { f.AttestationKey = nil }, "attestation key"},
	} {
		f := good
		f.PCRs, f.Attest, f.Signature = maps.Clone(good.PCRs), bytes.Clone(good.Attest), bytes.Clone(good.Signature)
		c.change(&f)
		if v := quote.Verify(f, nonce, &e, nil); v.Genuine() || !strings.Contains(wrong(v), c.want) {
			t.Errorf("%s: %q", name, wrong(v))
		}
	}
	if v := quote.Verify(good, nonce, &e, &quote.Prediction{Name: "image", PCRs: map[int]string{11: strings.Repeat("0", 64)}}); v.Genuine() || !strings.Contains(wrong(v), "PCR 11") {
		t.Errorf("an uncapped PCR 11 passes: %+v", v.Findings)
	}
	short := quoted(t, d, k, []byte("1234"))
	if v := quote.Verify(short, []byte("1234"), &e, nil); v.Genuine() {
		t.Error("a nonce of four bytes passes")
	}
}

func newSigningArea(t *testing.T, d *tpm.TPM) []byte {
	t.Helper()
	k, err := d.NewSigningKey()
	if err != nil {
		t.Fatal(err)
	}
	return k.Area()
}

func TestRefusesAKeyOfAnotherTPM(t *testing.T) {
	m := newMaker(t)
	a, b := m.make(t), m.make(t)
	ka, kb := newKey(t, a), newKey(t, b)
	lie := identity(t, a, ka)
	lie.AttestationKey = kb.Public() // b's key with a's endorsement
	c, p, err := quote.Begin(lie, m.trust(t), time.Now(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, k := range map[string]*tpm.AttestationKey{"the endorsement's TPM": ka, "the key's TPM": kb} {
		if _, err := k.Activate(c.Credential, c.Secret); err == nil {
			t.Errorf("%s opened the challenge", name)
		} else if e := new(tpm.Error); !errors.As(err, &e) || e.Kind != tpm.KindOtherTPM {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := quote.Finish(p, quote.Answer{Version: 1, Secret: make([]byte, 32)}); !errors.Is(err, quote.ErrAnswer) {
		t.Errorf("a guessed answer: %v", err)
	}
	if _, err := quote.Finish(p, quote.Answer{}); !errors.Is(err, quote.ErrAnswer) {
		t.Errorf("an empty answer: %v", err)
	}
	lie = identity(t, a, ka)
	lie.Certificate = identity(t, b, kb).Certificate
	if _, _, err := quote.Begin(lie, nil, time.Now(), rand.Reader); err == nil || !strings.Contains(err.Error(), "another endorsement key") {
		t.Errorf("another TPM's certificate: %v", err)
	}
	stranger := newMaker(t)
	stranger.make(t)
	if _, _, err := quote.Begin(identity(t, a, ka), stranger.trust(t), time.Now(), rand.Reader); err == nil {
		t.Error("a maker that is not trusted passes")
	}
	bare := identity(t, a, ka)
	bare.Certificate = nil
	if _, _, err := quote.Begin(bare, m.trust(t), time.Now(), rand.Reader); err == nil || !strings.Contains(err.Error(), "no certificate") {
		t.Errorf("a withheld certificate: %v", err)
	}
	bare.AttestationKey = bare.Endorsement
	if _, _, err := quote.Begin(bare, nil, time.Now(), rand.Reader); err == nil || !strings.Contains(err.Error(), "attestation key: its attributes") {
		t.Errorf("a key that signs nothing: %v", err)
	}
	stored, err := ka.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.LoadAttestationKey(stored); err == nil {
		t.Error("another TPM loads the key")
	}
}

func FuzzVerify(f *testing.F) {
	kernel, _ := kernelLog("boot_aggregate")
	f.Add(kernel, boot().Log())
	f.Add([]byte(`{"version":1,"node":"n","nonce":"00","attestationKey":"AA==","attest":"","signature":"","pcrs":{"0":"00"},"logs":{"firmware":""}}`), boot().Log())
	f.Fuzz(func(t *testing.T, raw, log []byte) {
		file, err := quote.Parse[quote.File](raw)
		if err == nil {
			quote.Verify(file, []byte("0123456789abcdef"), nil, nil)
		}
		if id, err := quote.Parse[quote.Identity](raw); err == nil {
			quote.Begin(id, nil, time.Unix(1795000000, 0), rand.Reader)
		}
		pcrs := map[int]string{}
		for i := range quote.Registers {
			pcrs[i] = hex.EncodeToString(make([]byte, sha256.Size))
		}
		r := quote.Explain(quote.Logs{Firmware: log, Kernel: raw}, pcrs, nil)
		for _, e := range r.Events {
			if strings.ContainsAny(e.What, "\x00\x1b\n") || len([]rune(e.What)) > 400 {
				t.Errorf("%q", e.What)
			}
		}
	})
}
