package evidence

import (
	"bytes"
	"encoding/binary"
	"flag"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
)

// boot is a Windows-like boot that a test can spoil at any point.
type boot struct {
	*Writer
}

func sipaKey(seed byte) []byte {
	n := bytes.Repeat([]byte{seed | 0x81}, 256)
	b := []byte{1, 0, 0, 0, 0, 8, 0, 0, 3, 0, 0, 0, 0, 1, 0, 0, 1, 0, 1}
	return append(b, n...)
}

func bools(v uint64, ids ...SettingID) [][]byte {
	var out [][]byte
	for _, id := range ids {
		out = append(out, id.Tagged(v, 1))
	}
	return out
}

func (b *boot) firmware() {
	b.Event(0, EventCRTMVersion, []byte{0, 0})
	b.Event(7, EventVariable, UEFIVariable("SecureBoot", []byte{1}))
	for _, v := range []string{"PK", "KEK", "db", "dbx"} {
		b.Event(7, EventVariable, UEFIVariable(v, []byte("contents of "+v)))
	}
	for pcr := range 8 {
		b.Separator(pcr)
	}
	b.Event(7, EventVariableAuthz, UEFIVariable("db", []byte("an authority")))
	b.Measure(4, EventBootApp, []byte("image"), []byte("path"))
}

func (b *boot) loader() {
	b.Event(11, EventCompactHash, []byte{0x10, 0, 0, 0})
	manager := TrustBoundary(slices.Concat(bools(0, BootDebug, TestSigning), [][]byte{TransferControl.Tagged(1, 4)})...)
	b.Event(12, EventTag, manager)
	system := TrustBoundary(b.system()...)
	b.Event(12, EventTag, system)
	b.Event(13, EventTag, system)
	b.Event(14, EventTag, TrustBoundary(Tagged(0x00060002, 1, 2, 3)))
	b.Event(11, EventCompactHash, []byte{0xff, 0xff, 0, 0})
}

func (b *boot) system() [][]byte {
	return slices.Concat(
		bools(0, KernelDebug, HypervisorDebug, SafeMode),
		bools(1, CodeIntegrity, PageFileEncryption, HibernationDisabled, DumpsDisabled, VBSRequired, VBSSecureBoot, VBSIOMMU),
		[][]byte{VSMLaunch.Tagged(1, 8), HVCI.Tagged(1, 8), TaggedIDK(sipaKey(1), false), TaggedIDK(sipaKey(2), true),
			TaggedPolicy("site policy", [4]uint16{10, 2, 3, 4}, SHA256, make([]byte, 32)), TaggedDumpKey(bytes.Repeat([]byte{7}, 32))})
}

func (b *boot) seal() {
	for pcr := 12; pcr <= 14; pcr++ {
		b.Separator(pcr)
	}
}

func goodBoot(banks ...Bank) *boot {
	b := &boot{NewWriter(banks...)}
	b.firmware()
	b.loader()
	b.seal()
	return b
}

func TestProvesSyntheticBootInEveryBank(t *testing.T) {
	for _, banks := range [][]Bank{{SHA1}, {SHA256}, {SHA1, SHA256}, {SHA256, SHA384, SHA512}} {
		b := goodBoot(banks...)
		for _, bank := range banks {
			f := mustProve(t, b.Log(), b.PCRs(bank), bank)
			if !bytes.Equal(f.IDK, sipaKey(1)) || !bytes.Equal(f.IDKS, sipaKey(2)) || len(f.DumpKey) != 32 {
				t.Error("keys are missing")
			}
			if len(f.Policies) != 1 || f.Policies[0].Name != "site policy" || f.Policies[0].Version != "10.2.3.4" {
				t.Errorf("policies %+v", f.Policies)
			}
			for _, id := range []SettingID{SecureBoot, VBSIOMMU, HVCI, VSMLaunch, DumpsDisabled, HibernationDisabled, PageFileEncryption} {
				if !f.Settings[id].Only(1) {
					t.Errorf("%s is %v", id, f.Settings[id].Values())
				}
			}
		}
	}
}

func TestRefuses(t *testing.T) {
	late := func(pcr int, typ EventType, data []byte) func(*boot) {
		return func(b *boot) { b.firmware(); b.loader(); b.seal(); b.Event(pcr, typ, data) }
	}
	for _, c := range []struct {
		name string
		make func(*boot)
		want Kind
	}{
		{"identity key measured by the running system", late(12, EventTag, TrustBoundary(TaggedIDK(sipaKey(9), false))), KindAfterCap},
		{"settings measured by the running system", late(13, EventTag, TrustBoundary(VSMLaunch.Tagged(1, 8))), KindAfterCap},
		{"second seal", late(12, EventSeparator, []byte("WBCL")), KindAfterCap},
		{"boot that was never sealed", func(b *boot) { b.firmware(); b.loader() }, KindUncapped},
		{"second identity key", func(b *boot) {
			b.firmware()
			b.loader()
			b.Event(13, EventTag, TrustBoundary(TaggedIDK(sipaKey(9), false)))
			b.seal()
		}, KindConflict},
		{"setting inside of a module", func(b *boot) {
			b.firmware()
			b.loader()
			b.Event(12, EventTag, TrustBoundary(Tagged(0x40010003, VSMLaunch.Tagged(1, 8)...)))
			b.seal()
		}, KindType},
		{"setting among the authorities", func(b *boot) {
			b.firmware()
			b.loader()
			b.Event(14, EventTag, TrustBoundary(VSMLaunch.Tagged(1, 8)))
			b.seal()
		}, KindType},
		{"Linux boot loader in PCR 12", late(12, EventIPL, []byte("cmdline")), KindType},
		{"action in PCR 13", late(13, EventEFIAction, []byte("hello")), KindType},
		{"configuration after the separator", late(7, EventVariable, UEFIVariable("SecureBoot", []byte{1})), KindAfterCap},
		{"second separator in PCR 7", late(7, EventSeparator, make([]byte, 4)), KindAfterCap},
		{"authority posing as an action", late(7, EventEFIAction, UEFIVariable("db", []byte("x"))), KindContent},
		{"firmware that failed to measure", late(3, EventSeparator, []byte{1, 0, 0, 0}), KindFirmware},
		{"missing dbx", func(b *boot) {
			for _, v := range []string{"SecureBoot", "PK", "KEK", "db"} {
				b.Event(7, EventVariable, UEFIVariable(v, nil))
			}
			b.Separator(7)
		}, KindVariables},
		{"db relabelled as an authority before the separator", func(b *boot) {
			for _, v := range []string{"SecureBoot", "PK", "KEK", "dbx"} {
				b.Event(7, EventVariable, UEFIVariable(v, nil))
			}
			b.Event(7, EventVariableAuthz, UEFIVariable("db", []byte("x")))
			b.Separator(7)
		}, KindVariables},
		{"data that the digest does not cover", func(b *boot) {
			b.firmware()
			b.loader()
			b.Measure(12, EventTag, []byte("something else"), TrustBoundary(VSMLaunch.Tagged(1, 8)))
			b.seal()
		}, KindDigest},
	} {
		b := &boot{NewWriter(SHA256)}
		c.make(b)
		facts, f := Prove(b.Log(), b.PCRs(SHA256), SHA256)
		if facts != nil || f == nil || f.Kind != c.want {
			t.Errorf("%s: %v, want %s", c.name, f, c.want)
		}
	}
}

func TestRefusesPCRsThatTheLogDoesNotExplain(t *testing.T) {
	b := goodBoot(SHA256)
	for pcr := range 16 {
		p := b.PCRs(SHA256)
		touched := slices.ContainsFunc(b.Extends, func(x Extend) bool { return x.PCR == pcr })
		extend(SHA256, p[pcr], SHA256.sum(nil, []byte("later")), make([]byte, 0, 128))
		want := KindPCR
		if !touched {
			want = KindUnlogged
		}
		if _, f := Prove(b.Log(), p, SHA256); f == nil || f.Kind != want || f.PCR != pcr {
			t.Errorf("PCR %d: %v, want %s", pcr, f, want)
		}
	}
	p := b.PCRs(SHA256)
	p[3] = p[3][:31]
	if _, f := Prove(b.Log(), p, SHA256); f == nil || f.Kind != KindBank {
		t.Errorf("short PCR value: %v", f)
	}
	if _, f := Prove(b.Log(), b.PCRs(SHA1), SHA1); f == nil || f.Kind != KindBank {
		t.Errorf("other bank: %v", f)
	}
}

// every says how many bits of a real log's data are passed over: go test ./appliance/evidence -run TestNoBitFlip -every 1 flips them all.
var every = flag.Int("every", 29, "flip each bit of a log whose number this divides")

// TestNoBitFlipChangesAFact flips every bit of hostsim's log and of the synthetic one; of the Windows logs every bit of the headers and
// every 29th of all, which in turn hits each of the eight of a byte. A flip may go unnoticed (in data that no digest covers and no fact comes
// from), but it must not change what is proved; as a verdict depends on nothing but what is proved, no flip turns a refusal into a pass.
// FuzzFlips goes on with more than one flip.
func TestNoBitFlipChangesAFact(t *testing.T) {
	for _, c := range flippable(t) {
		var bits []int
		step := 1
		if c.legacy {
			bits, step = headerBits(t, c.raw), *every
		}
		for bit := 0; bit < 8*len(c.raw); bit += step {
			bits = append(bits, bit)
		}
		want := asJSON(t, mustProve(t, c.raw, c.pcrs, c.bank))
		var unnoticed, changed atomic.Int64
		var wg sync.WaitGroup
		workers := runtime.GOMAXPROCS(0)
		for w := range workers {
			wg.Go(func() {
				raw := bytes.Clone(c.raw)
				for i := w; i < len(bits); i += workers {
					bit := bits[i]
					raw[bit/8] ^= 1 << (bit % 8)
					if facts, _ := Prove(raw, c.pcrs, c.bank); facts != nil {
						unnoticed.Add(1)
						if !bytes.Equal(asJSON(t, facts), want) {
							changed.Add(1)
							t.Errorf("%s: bit %d changes a fact", c.name, bit)
						}
					}
					raw[bit/8] ^= 1 << (bit % 8)
				}
			})
		}
		wg.Wait()
		t.Logf("%s: %d flips, %d still proved, %d changed a fact", c.name, len(bits), unnoticed.Load(), changed.Load())
	}
}

// flip is a log with the PCR values that belong to it.
type flip struct {
	name   string
	raw    []byte
	pcrs   PCRs
	bank   Bank
	legacy bool // of a real machine, long
}

func flippable(t testing.TB) []flip {
	good := goodBoot(SHA1, SHA256)
	vmLog, vmPCRs := vm(t)
	laptopLog, laptopPCRs := laptop(t)
	simulated := read(t, "hostsim.tcglog")
	simulatedPCRs, f := Replay(simulated, SHA256)
	if f != nil {
		t.Fatal(f)
	}
	return []flip{
		{"synthetic", good.Log(), good.PCRs(SHA256), SHA256, false},
		{"hostsim", simulated, simulatedPCRs, SHA256, false},
		{"virtual machine", vmLog, vmPCRs, SHA1, true},
		{"laptop", laptopLog, laptopPCRs, SHA1, true},
	}
}

// FuzzFlips changes bytes of the same logs at four places at once.
func FuzzFlips(f *testing.F) {
	logs := flippable(f)
	var want [][]byte
	for i, c := range logs {
		want = append(want, asJSON(f, mustProve(f, c.raw, c.pcrs, c.bank)))
		for at := 0; at < len(c.raw); at += len(c.raw) / 7 {
			f.Add(byte(i), uint32(at), uint32(at+1), uint32(at+4), uint32(at+8), uint32(0x01020480)>>(at%3))
		}
	}
	f.Fuzz(func(t *testing.T, which byte, a, b, c, d, masks uint32) {
		l := logs[int(which)%len(logs)]
		raw := bytes.Clone(l.raw)
		for i, at := range []uint32{a, b, c, d} {
			raw[int(at)%len(raw)] ^= byte(masks >> (8 * i))
		}
		if facts, _ := Prove(raw, l.pcrs, l.bank); facts != nil && !bytes.Equal(asJSON(t, facts), want[int(which)%len(logs)]) {
			t.Fatalf("%s: %x at %d, %d, %d, %d change a fact", l.name, masks, a, b, c, d)
		}
	})
}

// headerBits are the bits of every PCR index, type and length of a legacy log.
func headerBits(t *testing.T, raw []byte) []int {
	var bits []int
	for at := 0; at+32 <= len(raw); {
		for _, field := range []int{0, 4, 28} {
			for i := range 32 {
				bits = append(bits, 8*(at+field)+i)
			}
		}
		at += 32 + int(binary.LittleEndian.Uint32(raw[at+28:]))
	}
	return bits
}

// TestNoRelabellingChangesAFact gives every event every type.
func TestNoRelabellingChangesAFact(t *testing.T) {
	raw, pcrs := vm(t)
	want := asJSON(t, mustProve(t, raw, pcrs, SHA1))
	raw = bytes.Clone(raw)
	for at := 0; at+32 <= len(raw); at += 32 + int(binary.LittleEndian.Uint32(raw[at+28:])) {
		old := binary.LittleEndian.Uint32(raw[at+4:])
		for typ := range business {
			binary.LittleEndian.PutUint32(raw[at+4:], uint32(typ))
			if f, _ := Prove(raw, pcrs, SHA1); f != nil && !bytes.Equal(asJSON(t, f), want) {
				t.Errorf("type 0x%x at %d changes a fact", uint32(typ), at)
			}
		}
		binary.LittleEndian.PutUint32(raw[at+4:], old)
	}
}

// TestReplaysOtherSystems: logs that are no Windows boot replay too. None has a Windows fact.
func TestReplaysOtherSystems(t *testing.T) {
	for _, c := range []struct {
		file    string
		bank    Bank
		failure Kind
		foreign []int
		secure  uint64
	}{
		{"crypto_agile_eventlog", SHA256, "", nil, 0},
		{"ebs_event_missing_eventlog", SHA1, "", nil, 0},
		{"sb_cert_eventlog", SHA256, "", nil, 1},
		{"short_no_action_eventlog", SHA1, KindVariables, nil, 0},
		{"glinux-alex.bin", SHA256, "", nil, 0},
		{"debian-10.bin", SHA1, "", nil, 1},
	} {
		pcrs, f := Replay(read(t, c.file), c.bank)
		if f != nil {
			t.Errorf("%s: %v", c.file, f)
			continue
		}
		facts, f := Prove(read(t, c.file), pcrs, c.bank)
		if c.failure != "" {
			if f == nil || f.Kind != c.failure {
				t.Errorf("%s: %v", c.file, f)
			}
			continue
		}
		if f != nil {
			t.Errorf("%s: %v", c.file, f)
			continue
		}
		if !slices.Equal(facts.Foreign, c.foreign) || !facts.Settings[SecureBoot].Only(c.secure) || facts.Settings[VSMLaunch].Measured() || facts.IDK != nil {
			t.Errorf("%s: %s", c.file, asJSON(t, facts))
		}
	}
	if pcrs, _ := Replay(read(t, "short_no_action_eventlog"), SHA1); hexOf(pcrs[0]) != "0000000000000000000000000000000000000003" {
		t.Errorf("started at locality 3, PCR 0 is %x", pcrs[0])
	}
}

func TestNamesAnotherBootLoader(t *testing.T) {
	b := goodBoot(SHA256)
	b.Event(9, EventIPL, []byte("grub.cfg"))
	b.Event(8, EventIPL, []byte("linux"))
	if f := mustProve(t, b.Log(), b.PCRs(SHA256), SHA256); !slices.Equal(f.Foreign, []int{9, 8}) {
		t.Errorf("foreign PCRs %v", f.Foreign)
	}
}

func TestDevicePolicyIsToldFromSecureBoot(t *testing.T) {
	make := func(policy, authority EventType, name string) *Failure {
		b := &boot{NewWriter(SHA256)}
		b.Event(7, policy, UEFIVariable(name, []byte("devices")))
		b.firmware()
		b.Event(7, authority, UEFIVariable(name, []byte("a device")))
		_, f := Prove(b.Log(), b.PCRs(SHA256), SHA256)
		return f
	}
	if f := make(EventDevicePolicy, EventDeviceAuthz, "devdb"); f != nil {
		t.Error(f)
	}
	for _, f := range []*Failure{make(EventVariable, EventDeviceAuthz, "devdb"), make(EventDevicePolicy, EventVariableAuthz, "devdb"), make(EventDevicePolicy, EventDeviceAuthz, "MokList")} {
		if f == nil || f.Kind != KindType {
			t.Errorf("relabelled: %v", f)
		}
	}
}

func TestDescribesEvents(t *testing.T) {
	raw, _ := laptop(t)
	l, f := ParseLog(raw)
	if f != nil {
		t.Fatal(f)
	}
	var b bytes.Buffer
	for i := range l.Events {
		fmt.Fprintf(&b, "%d %s\n", i, l.Describe(i))
	}
	golden(t, "option_rom.events.txt", b.Bytes())
}
