package audit

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"guardhouse/appliance/policy"
)

func TestSyslogMessage(t *testing.T) {
	r := Record{Seq: 7, Prev: "aa", Hash: "bb", Entry: policy.AuditEntry{Kind: policy.AuditRefusal, At: policy.Stamp{Earliest: 1750000000100, Latest: 1750000000140, Boot: "b1"},
		BootTime: 5, Source: "192.0.2.1", Subject: "h1", Action: "attest", Outcome: "secure-boot-off", Detail: "a \"b\" \\ ]\nc", Remedy: "fix it", Policy: 12,
		Facts: map[string]string{policy.FactWindowsEvent: "1508", "host": "w]1", "odd name=": "x"}}}
	const want = `<108>1 2025-06-15T15:06:40.120Z node1.example guardhouse node1 refusal [timeQuality tzKnown="1" isSynced="1" syncAccuracy="21000"]` +
		`[meta sequenceId="7"][audit@32473 seq="7" hash="bb" prev="aa" kind="refusal" action="attest" outcome="secure-boot-off" source="192.0.2.1" subject="h1"` +
		` policy="12" boot="b1" bootTime="5" windowsEvent="1508"][facts@32473 host="w\]1" odd_name_="x" windowsEvent="1508"]` +
		" \uFEFFrefusal attest: secure-boot-off; a \"b\" \\ ] c; fix it"
	if got := string(Syslog(r, "node1.example", "node 1\n")); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if got := string(Frame([]byte("abc"))); got != "3 abc" {
		t.Error(got)
	}
	r.Entry = policy.AuditEntry{Kind: policy.AuditCommand, Action: "host.add", Outcome: "ok", Actor: &policy.Actor{Name: "ada", Door: policy.DoorSSH, Session: "s"}}
	got := string(Syslog(r, "", ""))
	for _, part := range []string{`<109>1 - - guardhouse - command [timeQuality tzKnown="1" isSynced="0"]`, ` actor="ada" door="ssh" session="s"]`} {
		if !strings.Contains(got, part) {
			t.Errorf("%s lacks %s", got, part)
		}
	}
	if got := string(TestMessage(time.Unix(0, 0), "h", "n")); !strings.HasPrefix(got, `<109>1 1970-01-01T00:00:00.000Z h guardhouse n test [audit@32473 kind="test"] `) {
		t.Error(got)
	}
}

// form is RFC 5424 section 6: what every message must look like, whatever is in it.
var form = regexp.MustCompile(`(?s)^<1\d\d>1 (-|\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z) [!-~]{1,255} guardhouse [!-~]{1,128} [!-~]{1,32} (\[[!-<>-~]+( [!-<>-~]{1,32}="(\\["\\\]]|[^"\\\]])*")*\])+( \x{FEFF}[^\n]*)?( )?$`)

func FuzzSyslog(f *testing.F) {
	f.Add("grant", "ok", "detail", "fact", "value")
	f.Add("a b]", "\"\\]", strings.Repeat("ü", 600), "=]\"", strings.Repeat("]", 512))
	f.Add("", "\x00\xff", "\n", "", "\uFFFD")
	f.Fuzz(func(t *testing.T, kind, outcome, detail, name, value string) {
		e := policy.AuditEntry{Kind: policy.AuditKind(kind), Source: value, Subject: detail, Action: outcome, Outcome: outcome, Detail: detail, Remedy: detail,
			Actor: &policy.Actor{Name: value, Session: detail}, Facts: map[string]string{}}
		for i := range policy.MaxAuditFacts {
			e.Facts[fmt.Sprint(i, name)] = value
		}
		bound(&e)
		m := Syslog(Record{Seq: 1, Hash: zeroHash, Prev: zeroHash, Entry: e}, value, detail)
		if len(m) > MaxSyslog || !utf8.Valid(m) || !form.Match(m) {
			t.Errorf("%d bytes: %q", len(m), m)
		}
	})
}

// readAll drains a reader.
func readAll(t *testing.T, r *Reader, n int) (seqs []uint64, skipped uint64) {
	t.Helper()
	for {
		records, missed, more, err := r.Next(n, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		skipped += missed
		for _, x := range records {
			seqs = append(seqs, x.Seq)
		}
		if more != nil {
			return seqs, skipped
		}
	}
}

func TestReaderGoesThroughSegmentsTrimsAndDamage(t *testing.T) {
	dir := t.TempDir()
	l := openTest(t, dir, Options{SegmentSize: 4 << 10})
	r := l.NewReader(0)
	if seqs, _ := readAll(t, r, 7); len(seqs) != 0 {
		t.Fatalf("%v", seqs)
	}
	for i := range 100 {
		mustAppend(t, l, entry(policy.AuditGrant, i))
	}
	last := l.Status().Last
	seqs, skipped := readAll(t, r, 7)
	if len(seqs) != int(last) || !slices.IsSorted(seqs) || skipped != 0 || r.At() != last {
		t.Fatalf("%d of %d, %d skipped", len(seqs), last, skipped)
	}
	_, _, more, _ := r.Next(7, 1<<20)
	mustAppend(t, l, entry(policy.AuditGrant, 1))
	select {
	case <-more:
	case <-time.After(10 * time.Second):
		t.Fatal("nobody was told of the next record")
	}
	if seqs, _ := readAll(t, r, 7); len(seqs) == 0 || seqs[0] != last+1 {
		t.Errorf("%v after %d", seqs, last)
	}

	// One damaged line in the middle is one record less; a trimmed segment is all of its records less.
	l.mu.Lock()
	middle, first := l.segments[len(l.segments)/2], l.segments[0]
	l.mu.Unlock()
	b, err := os.ReadFile(l.path(segmentName(middle.first)))
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 1
	if err := os.WriteFile(l.path(segmentName(middle.first)), b, 0o600); err != nil {
		t.Fatal(err)
	}
	seqs, skipped = readAll(t, l.NewReader(0), 7)
	if total := int(l.Status().Last); len(seqs) != total-1 || skipped != 1 {
		t.Errorf("damage: %d of %d, %d skipped", len(seqs), total, skipped)
	}
	export(t, l)
	if _, _, err := l.Trim(t.Context(), first.last+1, entry(policy.AuditCommand, 1)); err != nil {
		t.Fatal(err)
	}
	seqs, skipped = readAll(t, l.NewReader(0), 7)
	if seqs[0] != first.last+1 || skipped != first.last+1 {
		t.Errorf("trimmed: begins with %d, %d skipped", seqs[0], skipped)
	}
}
