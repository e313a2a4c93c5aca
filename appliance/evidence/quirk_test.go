package evidence

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"go/ast"
	"go/parser"
	"go/token"
	"slices"
	"strconv"
	"testing"
)

// quirkCase is a log that shows a quirk, with what the TPM reported, and the same without it.
type quirkCase struct {
	quirk   Quirk
	log     string // in testdata
	bank    Bank
	with    func(t *testing.T, raw []byte, pcrs PCRs) ([]byte, PCRs) // makes the log show it; nil: the log does as it is
	spoiled func(t *testing.T, raw []byte, pcrs PCRs) ([]byte, PCRs) // goes beyond what is forgiven; nil: nothing to go beyond
	refused Kind
}

var quirkCases = []quirkCase{
	{QuirkExitBootServices, "ebs_event_missing_eventlog", SHA1, func(t *testing.T, raw []byte, pcrs PCRs) ([]byte, PCRs) {
		// What this machine's TPM reported, from the test of go-attestation where the log comes from.
		pcrs[5], _ = hex.DecodeString("31245808d6d35849bc394f6343f2b3ff908ed5e3")
		return raw, pcrs
	}, func(t *testing.T, raw []byte, pcrs PCRs) ([]byte, PCRs) {
		extend(SHA1, pcrs[5], SHA1.sum(nil, []byte("something else")), make([]byte, 0, 128))
		return raw, pcrs
	}, KindPCR},
	{QuirkLocality, "glinux-alex.bin", SHA256, func(t *testing.T, raw []byte, pcrs PCRs) ([]byte, PCRs) {
		return withoutEvent(t, raw, 1), pcrs // the event says locality 3
	}, func(t *testing.T, raw []byte, pcrs PCRs) ([]byte, PCRs) {
		extend(SHA256, pcrs[0], make([]byte, 32), make([]byte, 0, 128))
		return raw, pcrs
	}, KindPCR},
	{QuirkPadding, "hostsim.tcglog", SHA256, func(t *testing.T, raw []byte, pcrs PCRs) ([]byte, PCRs) {
		return append(raw, bytes.Repeat([]byte{0xff}, 99)...), pcrs
	}, func(t *testing.T, raw []byte, pcrs PCRs) ([]byte, PCRs) {
		raw[len(raw)-1] = 0
		return raw, pcrs
	}, KindLog},
	{QuirkPadding, "option_rom_eventlog", SHA1, func(t *testing.T, raw []byte, pcrs PCRs) ([]byte, PCRs) {
		return append(raw, make([]byte, 4096)...), pcrs
	}, func(t *testing.T, raw []byte, pcrs PCRs) ([]byte, PCRs) {
		raw[len(raw)-1] = 1
		return raw, pcrs
	}, KindLog},
	{QuirkTrustPoint, "option_rom_eventlog", SHA1, nil, func(t *testing.T, raw []byte, pcrs PCRs) ([]byte, PCRs) {
		at := bytes.LastIndex(raw, []byte{0xff, 0xff, 0xff, 0xff, 3, 0, 0, 0})
		raw[at+4] = byte(EventTag) // measured into a PCR that does not exist
		return raw, pcrs
	}, KindLog},
	{QuirkShimByte, "debian-10.bin", SHA1, nil, func(t *testing.T, raw []byte, pcrs PCRs) ([]byte, PCRs) {
		l, f := ParseLog(raw)
		if f != nil {
			t.Fatal(f)
		}
		for i := range l.Events {
			if e := &l.Events[i]; e.PCR == 7 && e.Type == EventVariableAuthz {
				e.Data[len(e.Data)-2] ^= 1 // a byte that was measured
			}
		}
		return raw, pcrs
	}, KindDigest},
}

// withoutEvent cuts an event out of a crypto-agile log.
func withoutEvent(t *testing.T, raw []byte, event int) []byte {
	t.Helper()
	l, f := ParseLog(raw)
	if f != nil || !l.Agile || event == 0 {
		t.Fatal(f)
	}
	e := l.Events[event]
	head := binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint32(nil, e.PCR), uint32(e.Type))
	whole := slices.Concat(binary.LittleEndian.AppendUint32(head, uint32(len(l.Banks))), e.digests, appendSized(nil, e.Data))
	at := bytes.Index(raw, whole)
	if at < 0 {
		t.Fatal("the event is not found in its own log")
	}
	return slices.Concat(raw[:at], raw[at+len(whole):])
}

// withoutPlaces is what was proved, without where in the log it stands.
func withoutPlaces(t *testing.T, f *Facts) []byte {
	t.Helper()
	c := *f
	c.Quirks, c.Events = nil, 0
	c.Variables, c.Authorities, c.Policies = slices.Clone(f.Variables), slices.Clone(f.Authorities), slices.Clone(f.Policies)
	for i := range c.Variables {
		c.Variables[i].Event = 0
	}
	for i := range c.Authorities {
		c.Authorities[i].Event = 0
	}
	for i := range c.Policies {
		c.Policies[i].Event = 0
	}
	for i := range c.Settings {
		c.Settings[i].Event = 0
	}
	return asJSON(t, &c)
}

// TestFirmwareQuirks: each is forgiven and named, adds or hides no fact, and what goes beyond it is refused.
func TestFirmwareQuirks(t *testing.T) {
	for _, c := range quirkCases {
		t.Run(string(c.quirk)+"/"+c.log, func(t *testing.T) {
			raw := read(t, c.log)
			pcrs, f := Replay(raw, c.bank)
			if f != nil {
				t.Fatal(f)
			}
			plain := mustProve(t, raw, pcrs, c.bank)
			if c.with != nil {
				if slices.Contains(plain.Quirks, c.quirk) {
					t.Error("shown before it was there")
				}
				raw, pcrs = c.with(t, slices.Clip(bytes.Clone(raw)), pcrs)
			}
			facts := mustProve(t, raw, pcrs, c.bank)
			if !slices.Contains(facts.Quirks, c.quirk) {
				t.Errorf("not named: %v", facts.Quirks)
			}
			if !bytes.Equal(withoutPlaces(t, facts), withoutPlaces(t, plain)) {
				t.Errorf("facts change:\n%s\n%s", asJSON(t, plain), asJSON(t, facts))
			}
			spoiled, pcrs := c.spoiled(t, bytes.Clone(raw), pcrs)
			if _, f := Prove(spoiled, pcrs, c.bank); f == nil || f.Kind != c.refused {
				t.Errorf("what goes beyond it: %v, want %s", f, c.refused)
			}
		})
	}
}

// TestEveryQuirkHasALog reads the names from the source, so that none comes without a case.
func TestEveryQuirkHasALog(t *testing.T) {
	file, err := parser.ParseFile(token.NewFileSet(), "replay.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	ast.Inspect(file, func(n ast.Node) bool {
		v, ok := n.(*ast.ValueSpec)
		if !ok || len(v.Values) != 1 {
			return true
		}
		if id, ok := v.Type.(*ast.Ident); !ok || id.Name != "Quirk" {
			return true
		}
		name, err := strconv.Unquote(v.Values[0].(*ast.BasicLit).Value)
		if err != nil {
			t.Fatal(err)
		}
		found++
		if !slices.ContainsFunc(quirkCases, func(c quirkCase) bool { return c.quirk == Quirk(name) }) {
			t.Errorf("quirk %q has no log", name)
		}
		return true
	})
	if found < 5 {
		t.Errorf("only %d quirks found", found)
	}
}
