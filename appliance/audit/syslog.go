package audit

import (
	"cmp"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"guardhouse/appliance/policy"
)

// MaxSyslog bounds a syslog message in bytes. Every receiver should take 8192 (RFC 5425 section 4.3.1); what is longer loses facts and
// text, and says so.
const MaxSyslog = 8192

// The number behind the @ is the one that RFC 5612 keeps for examples: the project has none of its own.
const (
	sdAudit = "audit@32473"
	sdFacts = "facts@32473"
)

// Severities and the facility, RFC 5424 section 6.2.1.
const (
	facilityAudit   = 13
	severityWarning = 4
	severityNotice  = 5
	severityInfo    = 6
)

// Syslog is the record as an RFC 5424 message of node, without framing. What it holds:
//
//	timeQuality  isSynced, and syncAccuracy: half the width of the trusted interval in microseconds, which TIMESTAMP is the middle of
//	meta         sequenceId: the record's number
//	audit@32473  seq, hash, prev, kind, action, outcome and where they are set source, subject, actor, door, session, policy, count, boot,
//	             bootTime (milliseconds since the node started), windowsEvent, cut="1" where something did not fit
//	facts@32473  the record's facts by their names
//
// APP-NAME is guardhouse, PROCID the node's name, MSGID the kind. The chain remains the record: a collector can check hash and prev
// against an export.
func Syslog(r Record, host, node string) []byte {
	e := r.Entry
	b := fmt.Appendf(nil, "<%d>1 %s %s guardhouse %s %s ", facilityAudit*8+severity(e), timestamp(e.At), header5424(host, 255), header5424(node, 128), header5424(string(e.Kind), 32))
	b = append(b, timeQuality(e.At)...)
	b = fmt.Appendf(b, `[meta sequenceId="%d"]`, (r.Seq-1)%(1<<31-1)+1)
	b = append(b, "["+sdAudit...)
	b = param(b, "seq", strconv.FormatUint(r.Seq, 10))
	b = param(b, "hash", r.Hash)
	b = param(b, "prev", r.Prev)
	b = param(b, "kind", string(e.Kind))
	b = param(b, "action", e.Action)
	b = param(b, "outcome", e.Outcome)
	b = param(b, "source", e.Source)
	b = param(b, "subject", e.Subject)
	if a := e.Actor; a != nil {
		b = param(b, "actor", a.Name)
		b = param(b, "door", string(a.Door))
		b = param(b, "session", a.Session)
	}
	b = param(b, "policy", number10(e.Policy))
	b = param(b, "count", number10(uint64(max(e.Count, 0))))
	b = param(b, "boot", e.At.Boot)
	b = param(b, "bootTime", number10(uint64(max(e.BootTime, 0))))
	b = param(b, "windowsEvent", e.Facts[policy.FactWindowsEvent])
	facts, fit := facts5424(e.Facts, MaxSyslog/2-len(sdFacts)-len(b))
	text := "\uFEFF" + text5424(e)
	if room := MaxSyslog - len(b) - len(` cut="1"]`) - len(facts) - 1; len(text) > room {
		for room > 0 && !utf8.RuneStart(text[room]) {
			room--
		}
		text, fit = text[:max(room, 0)], false
	}
	if !fit {
		b = param(b, "cut", "1")
	}
	b = append(b, ']')
	b = append(b, facts...)
	return append(append(b, ' '), text...)
}

func severity(e policy.AuditEntry) int {
	switch {
	case e.Kind == policy.AuditRefusal, e.Kind == policy.AuditUnknown, e.Kind == policy.AuditLogin && e.Outcome != "ok":
		return severityWarning
	case e.Kind == policy.AuditGrant, e.Kind == policy.AuditContinue:
		return severityInfo
	}
	return severityNotice
}

// timestamp is the middle of the trusted interval, or the nil value where there was none.
func timestamp(s policy.Stamp) string {
	if s.Latest == 0 {
		return "-"
	}
	return time.UnixMilli(s.Earliest + (s.Latest-s.Earliest)/2).UTC().Format("2006-01-02T15:04:05.000Z07:00")
}

func timeQuality(s policy.Stamp) string {
	if s.Latest == 0 {
		return `[timeQuality tzKnown="1" isSynced="0"]`
	}
	// The stamp is in whole milliseconds: up to half a one is lost on each side.
	return fmt.Sprintf(`[timeQuality tzKnown="1" isSynced="1" syncAccuracy="%d"]`, (s.Latest-s.Earliest)*500+1000)
}

// header5424 makes a field of the header: printable US-ASCII without blanks, "-" where nothing is left.
func header5424(s string, most int) string {
	s = strings.Map(func(r rune) rune {
		if r <= ' ' || r > '~' {
			return -1
		}
		return r
	}, s)
	return cmp.Or(s[:min(len(s), most)], "-")
}

// param adds a structured-data parameter; none where the value is empty.
func param(b []byte, name, value string) []byte {
	if value == "" {
		return b
	}
	b = append(append(append(b, ' '), name...), '=', '"')
	for _, r := range value {
		switch {
		case r == '"' || r == '\\' || r == ']':
			b = append(b, '\\', byte(r))
		case r < ' ' || r == 0x7f:
			b = append(b, ' ')
		default: // what was no UTF-8 has become U+FFFD
			b = utf8.AppendRune(b, r)
		}
	}
	return append(b, '"')
}

// facts5424 is the element with the facts, as many as fit into room bytes.
func facts5424(facts map[string]string, room int) (b []byte, fit bool) {
	fit = true
	for _, k := range sortedKeys(facts) {
		name := strings.Map(func(r rune) rune {
			if r <= ' ' || r > '~' || strings.ContainsRune(`=]"`, r) {
				return '_'
			}
			return r
		}, k)
		before := len(b)
		if name == "" || facts[k] == "" {
			continue
		}
		if b = param(b, name[:min(len(name), 32)], facts[k]); len(b) > room {
			b, fit = b[:before], false
		}
	}
	if len(b) == 0 {
		return nil, fit
	}
	return append(append([]byte("["+sdFacts), b...), ']'), fit
}

// text5424 is the message for people, on one line.
func text5424(e policy.AuditEntry) string {
	t := string(e.Kind) + " " + e.Action + ": " + e.Outcome
	if e.Count > 1 {
		t += fmt.Sprintf(" (%d times)", e.Count)
	}
	for _, s := range []string{e.Detail, e.Remedy} {
		if s != "" {
			t += "; " + s
		}
	}
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(t, "\uFFFD"))
}

func number10(n uint64) string {
	if n == 0 {
		return ""
	}
	return strconv.FormatUint(n, 10)
}

// Frame puts the length before the message (RFC 5425 section 4.3).
func Frame(message []byte) []byte {
	return append(fmt.Appendf(nil, "%d ", len(message)), message...)
}

// TestMessage is a message that is no record: it has no number and no hash.
func TestMessage(now time.Time, host, node string) []byte {
	b := fmt.Appendf(nil, "<%d>1 %s %s guardhouse %s test ", facilityAudit*8+severityNotice, now.UTC().Format("2006-01-02T15:04:05.000Z07:00"), header5424(host, 255), header5424(node, 128))
	b = param(append(b, "["+sdAudit...), "kind", "test")
	return append(b, "] \uFEFFtest of the way to this collector; this is no audit record"...)
}
