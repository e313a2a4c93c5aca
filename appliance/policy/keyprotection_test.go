package policy

import (
	"strings"
	"testing"
	"time"
)

func TestDenialsNameWhatTheyRefuse(t *testing.T) {
	s, actors := setUp(t)
	op := actors[AdminOperator]
	key := strings.Repeat("ab", 32)
	for name, b := range map[string]HostDeny{
		"neither":       {Name: "d"},
		"blank subject": {Name: "d", Subject: "  "},
		"no name":       {Subject: "hv7"},
		"upper case":    {Name: "d", Key: strings.ToUpper(key)},
		"short key":     {Name: "d", Key: key[2:]},
		"long subject":  {Name: "d", Subject: strings.Repeat("x", MaxSubject+1)},
		"escape":        {Name: "d", Subject: "hv7\x1b[2J"},
		"note":          {Name: "d", Key: key, Note: "a\nb"},
	} {
		refused(t, s, command(t, CmdHostDeny, op, b))
		if t.Failed() {
			t.Fatal(name)
		}
	}
	s, _ = must(t, s, command(t, CmdHostDeny, op, HostDeny{Name: "d", Subject: " hv7 ", Key: key, Note: "stolen"}))
	if d := s.Denials["d"]; d.Subject != "hv7" || d.Key != key || d.Added.Latest == 0 {
		t.Errorf("%+v", d)
	}
	s, _ = must(t, s, command(t, CmdHostDeny, op, HostDeny{Name: "d", Subject: "hv8"}))
	if d := s.Denials["d"]; len(s.Denials) != 1 || d.Subject != "hv8" || d.Key != "" {
		t.Errorf("%+v", s.Denials)
	}
	before := s
	s, _ = must(t, s, command(t, CmdHostAllow, op, ByName{"d"}))
	if len(s.Denials) != 0 || len(before.Denials) != 1 {
		t.Error("not taken back, or taken back in older records too")
	}
	refused(t, s, command(t, CmdHostAllow, op, ByName{"d"}))
}

func TestRevocationKeepsTheKeysItWasToldUntilRestore(t *testing.T) {
	s, actors := setUp(t)
	op := actors[AdminOperator]
	s, _ = must(t, s, command(t, CmdHostAdd, op, HostAdd{Name: "host1", HostKey: spki(t, rsaKey(t, 2048))}))
	refused(t, s, command(t, CmdHostRevoke, op, HostRevoke{Name: "host1", Keys: []string{"no hash"}}))
	refused(t, s, command(t, CmdHostRevoke, op, HostRevoke{Name: "host1", Keys: revokedKeys(maxRevokedKeys + 1)}))
	keys := revokedKeys(6)
	s, _ = must(t, s, command(t, CmdHostRevoke, op, HostRevoke{Name: "host1", Keys: keys[:3]}))
	s, _ = must(t, s, command(t, CmdHostRevoke, op, HostRevoke{Name: "host1", Keys: keys[2:]}))
	h, _ := s.HostByName("host1")
	if got := strings.Join(h.CertifiedKeys, " "); got != strings.Join(keys[2:], " ") {
		t.Errorf("kept %s", got)
	}
	s, _ = must(t, s, command(t, CmdHostRestore, op, ByName{"host1"}))
	if h, _ = s.HostByName("host1"); h.CertifiedKeys != nil || h.DenyForeignBefore == 0 {
		t.Errorf("after restore: %+v", h)
	}
}

func TestOfflineCachingHasAnEndAndAClass(t *testing.T) {
	s, actors := setUp(t)
	op := actors[AdminOperator]
	good := OfflineSet{Class: "edge", MaxUnwraps: 2, Until: 1_800_000_001 + 3600}
	with := func(f func(*OfflineSet)) OfflineSet { b := good; f(&b); return b }
	for name, b := range map[string]OfflineSet{
		"no end":        with(func(b *OfflineSet) { b.Until = 0 }),
		"end now":       with(func(b *OfflineSet) { b.Until = 1_800_000_001 }),
		"end far away":  with(func(b *OfflineSet) { b.Until += 400 * 24 * 3600 }),
		"too many":      with(func(b *OfflineSet) { b.MaxUnwraps = MaxOfflineUnwraps + 1 }),
		"no class":      with(func(b *OfflineSet) { b.Class = "" }),
		"off twice":     {Class: "edge"},
		"off with date": {Class: "edge", Until: good.Until},
	} {
		refused(t, s, command(t, CmdClassOffline, op, b))
		if t.Failed() {
			t.Fatal(name)
		}
	}
	c := command(t, CmdClassOffline, op, good)
	c.At = Stamp{}
	refused(t, s, c)
	before := s
	s, _ = must(t, s, command(t, CmdClassOffline, op, good))
	if len(before.Offline) != 0 {
		t.Error("older records were changed")
	}
	end := time.Unix(good.Until, 0)
	for _, c := range []struct {
		class string
		at    time.Time
		want  uint32
	}{{"edge", end.Add(-time.Second), 2}, {"edge", end, 0}, {"core", end.Add(-time.Second), 0}, {"", end.Add(-time.Second), 0}} {
		if o, ok := s.OfflineUnwraps(c.class, c.at); o.MaxUnwraps != c.want || ok != (c.want != 0) {
			t.Errorf("%q at %v: %+v", c.class, c.at, o)
		}
	}
	s, _ = must(t, s, command(t, CmdClassOffline, op, OfflineSet{Class: "edge"}))
	if len(s.Offline) != 0 {
		t.Error("still on")
	}
}

func TestKeyProtectionSwitchesAreOffUntilSet(t *testing.T) {
	s, actors := setUp(t)
	if s.Service.OtherSigning || s.Service.ForeignForms {
		t.Error("on by itself")
	}
	on := true
	s, _ = must(t, s, command(t, CmdServiceSet, actors[AdminOperator], ServiceSet{OtherSigning: &on, ForeignForms: &on}))
	if !s.Service.OtherSigning || !s.Service.ForeignForms {
		t.Errorf("%+v", s.Service)
	}
}
