package policy

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"
)

// life drives the records of attestation signers through time.
type life struct {
	t     *testing.T
	s     State
	actor Actor
	key   *rsa.PrivateKey
	made  int64
}

var spring = time.Date(2027, 4, 1, 12, 0, 0, 0, time.UTC)

func newLife(t *testing.T) *life {
	s, actors := setUp(t)
	return &life{t: t, s: s, actor: actors[AdminOperator], key: rsaKey(t, 2048), made: 0}
}

func at(t time.Time) Stamp {
	return Stamp{Earliest: t.UnixMilli(), Latest: t.UnixMilli() + 40, Boot: "b"}
}

func (l *life) command(kind Kind, now time.Time, body any) Command {
	c := command(l.t, kind, l.actor, body)
	c.At = at(now)
	return c
}

// signer is the command that adds one with a certificate of its own that begins at now.
func (l *life) signer(now time.Time) Command {
	l.t.Helper()
	l.made++
	// Its key exists only as a number: nothing is signed with it here.
	pub := &rsa.PublicKey{N: new(big.Int).Add(new(big.Int).Lsh(big.NewInt(1), 2047), big.NewInt(2*l.made+1)), E: 65537}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(l.made), NotBefore: now.Add(-HealthBackdate), NotAfter: now.Add(365 * 24 * time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, pub, l.key)
	if err != nil {
		l.t.Fatal(err)
	}
	return l.command(CmdKeyAdd, now, KeyAdd{Role: RoleAttestationSigner, Label: "s", Certificate: der})
}

func (l *life) apply(c Command) KeyRef {
	l.t.Helper()
	var r Result
	l.s, r = must(l.t, l.s, c)
	return KeyRef(r.Subject)
}

func (l *life) stages(now time.Time, want map[KeyRef]SignerStage, inUse KeyRef) {
	l.t.Helper()
	for ref, stage := range want {
		if got := l.s.Keys[ref].SignerStage(now); got != stage {
			l.t.Errorf("at %s key %.8s is %s, want %s", now.Format(time.RFC3339), ref, got, stage)
		}
	}
	if k, ok := l.s.SignerInUse(now); ok != (inUse != "") || k.Ref != inUse {
		l.t.Errorf("at %s key %.8s signs, want %.8s", now.Format(time.RFC3339), k.Ref, inUse)
	}
}

func TestASignerIsPublishedADayBeforeItSignsAndADayAfter(t *testing.T) {
	l := newLife(t)
	first := l.apply(l.signer(spring))
	l.stages(spring, map[KeyRef]SignerStage{first: SignerInUse}, first) // at once on a new cluster
	_, _, due, ok := l.s.SignerRenewal()
	if day := 24 * time.Hour; !ok || due.Sub(spring) < 243*day || due.Sub(spring) > 244*day {
		t.Errorf("renewal at %s", due)
	}
	second := l.apply(l.signer(due))
	use := due.Add(SignerOverlap + time.Second)
	l.stages(due, map[KeyRef]SignerStage{first: SignerInUse, second: SignerNext}, first)
	l.stages(use.Add(-2*time.Second), map[KeyRef]SignerStage{first: SignerInUse, second: SignerNext}, first)
	l.stages(use, map[KeyRef]SignerStage{first: SignerRetired, second: SignerInUse}, second)
	l.stages(use.Add(SignerOverlap-2*time.Second), map[KeyRef]SignerStage{first: SignerRetired}, second)
	l.stages(use.Add(SignerOverlap), map[KeyRef]SignerStage{first: SignerWithdrawn}, second)
	if k := l.s.Keys[first]; k.SignerAcceptedUntil().Before(use.Add(MaxHealthLife)) || k.RetiredAt != l.s.Keys[second].UseFrom {
		t.Errorf("what it signed last is refused from %s", k.SignerAcceptedUntil())
	}
	if p, _ := l.s.PrimaryKey(RoleAttestationSigner); p.Ref != second || l.s.Keys[first].Primary {
		t.Error("not exactly the newest is primary")
	}
	refused(t, l.s, l.command(CmdKeyDisable, use, KeyChange{second}))
	l.apply(l.command(CmdKeyDisable, use, KeyChange{first}))
	l.stages(use, map[KeyRef]SignerStage{first: SignerDisabled}, second)
}

// TestDisablingTheSignerInUseLeavesNoGap: a key that was stolen is taken away at once, and hosts attest on.
func TestDisablingTheSignerInUseLeavesNoGap(t *testing.T) {
	l := newLife(t)
	stolen := l.apply(l.signer(spring))
	now := spring.Add(time.Hour)
	next := l.apply(l.signer(now))
	l.apply(l.command(CmdKeyDisable, now, KeyChange{stolen}))
	l.stages(now, map[KeyRef]SignerStage{stolen: SignerDisabled, next: SignerInUse}, next)
	later := l.apply(l.signer(now.Add(48 * time.Hour)))
	without := l.command(CmdKeyDisable, now, KeyChange{next})
	without.At = Stamp{}
	l.apply(without)
	l.stages(now.Add(49*time.Hour), map[KeyRef]SignerStage{later: SignerInUse}, later)
}

func TestRefusesASignerWhileTheNextOneWaits(t *testing.T) {
	l := newLife(t)
	l.apply(l.signer(spring))
	l.apply(l.signer(spring.Add(time.Hour)))
	refused(t, l.s, l.signer(spring.Add(2*time.Hour)))
	without := l.signer(spring.Add(48 * time.Hour))
	without.At = Stamp{}
	refused(t, l.s, without)
	l.apply(l.signer(spring.Add(48 * time.Hour)))
}

func TestASignerFromAWrongClockIsReplacedBeforeItIsUsed(t *testing.T) {
	l := newLife(t)
	good := l.apply(l.signer(spring))
	wrong := l.apply(l.signer(spring.AddDate(10, 0, 0))) // the clock was ten years ahead
	l.stages(spring, map[KeyRef]SignerStage{good: SignerInUse, wrong: SignerNext}, good)
	if _, valid, _, _ := l.s.SignerRenewal(); valid.Holds(spring) {
		t.Fatal("nothing tells that it needs a successor")
	}
	next := l.apply(l.signer(spring.Add(time.Minute)))
	later := spring.AddDate(0, 0, 3)
	l.stages(later, map[KeyRef]SignerStage{good: SignerWithdrawn, next: SignerInUse}, next)
	l.stages(spring.AddDate(10, 0, 2), map[KeyRef]SignerStage{wrong: SignerWithdrawn}, next)
}

func TestASignerIsUsedAtOnceWhereNoOtherCould(t *testing.T) {
	l := newLife(t)
	old := l.apply(l.signer(spring))
	after := spring.AddDate(2, 0, 0) // the node was off, its signer's certificate is over
	next := l.apply(l.signer(after))
	l.stages(after, map[KeyRef]SignerStage{next: SignerInUse, old: SignerRetired}, next)
	short := after.Add(365*24*time.Hour - 3*time.Hour) // too late for a day of overlap
	last := l.apply(l.signer(short))
	l.stages(short, map[KeyRef]SignerStage{next: SignerInUse, last: SignerNext}, next)
	l.stages(short.Add(2*time.Hour), map[KeyRef]SignerStage{next: SignerRetired, last: SignerInUse}, last)
}

func TestAnAdministratorMovesSigningAtOnce(t *testing.T) {
	l := newLife(t)
	first, now := l.apply(l.signer(spring)), spring.Add(time.Minute)
	next := l.apply(l.signer(now))
	l.apply(l.command(CmdKeyPrimary, now, KeyChange{next}))
	l.stages(now, map[KeyRef]SignerStage{first: SignerRetired, next: SignerInUse}, next)
	week := now.AddDate(0, 0, 7)
	l.apply(l.command(CmdKeyPrimary, week, KeyChange{first})) // withdrawn long ago
	l.stages(week, map[KeyRef]SignerStage{first: SignerInUse, next: SignerRetired}, first)
	if l.s.Keys[first].PublishedAt != week.Unix() {
		t.Error("its publication did not begin again")
	}
	without := l.command(CmdKeyPrimary, week, KeyChange{next})
	without.At = Stamp{}
	refused(t, l.s, without)
}

// TestRecordsOfAnOlderVersionGoOn: they have no times, and the primary one signs.
func TestRecordsOfAnOlderVersionGoOn(t *testing.T) {
	l := newLife(t)
	first := l.apply(l.signer(spring))
	second := l.apply(l.signer(spring.AddDate(0, 8, 0)))
	for _, ref := range []KeyRef{first, second} {
		k := l.s.Keys[ref]
		k.PublishedAt, k.UseFrom, k.RetiredAt, k.Primary = 0, 0, 0, ref == first
		l.s.Keys[ref] = k
	}
	now := spring.AddDate(0, 9, 0)
	l.stages(now, map[KeyRef]SignerStage{first: SignerInUse, second: SignerInUse}, first)
	third := l.apply(l.signer(now))
	l.stages(now, map[KeyRef]SignerStage{first: SignerInUse, second: SignerRetired, third: SignerNext}, first)
	l.stages(now.AddDate(0, 0, 2), map[KeyRef]SignerStage{third: SignerInUse}, third)
}

func TestAttestationOnlyTakesNoGuardianKeys(t *testing.T) {
	b, _ := goodSetup(t)
	b.Service.AttestationOnly = true
	s, _ := must(t, NewState(), command(t, CmdSetup, Actor{Door: DoorSetup}, b))
	if !slices.Equal(s.KeyRolesUsed(), []KeyRole{RoleAttestationSigner}) {
		t.Error(s.KeyRolesUsed())
	}
	node := Actor{Name: "n1", Door: DoorNode}
	der := certificate(t, rsaKey(t, 2048))
	for _, role := range KeyRoles {
		c := command(t, CmdKeyAdd, node, KeyAdd{Role: role, Certificate: der})
		if role == RoleAttestationSigner {
			must(t, s, c)
		} else {
			refused(t, s, c)
		}
	}
}

func TestReattestRefusesWhatOneHostHas(t *testing.T) {
	s, actors := setUp(t)
	op := actors[AdminOperator]
	s, r := must(t, s, command(t, CmdHostAdd, op, HostAdd{Name: "host1", HostKey: spki(t, rsaKey(t, 2048))}))
	c := command(t, CmdHostReattest, op, ByName{"host1"})
	c.At = at(spring)
	s, _ = must(t, s, c)
	if h := s.Hosts[r.Subject]; h.DenyIssuedBefore != spring.Unix()+1 || h.Revoked {
		t.Errorf("%+v", h)
	}
	refused(t, s, command(t, CmdHostReattest, op, ByName{"host2"}))
	c.At = Stamp{}
	refused(t, s, c)
}

// TestP13_18_SignersAreRenewedAtTwoThirdsAndOverlapADay; see p13_test.go of package hgsa.
func TestP13_18_SignersAreRenewedAtTwoThirdsAndOverlapADay(t *testing.T) {
	if SignerBits != 3072 || SignerOverlap != 24*time.Hour {
		t.Errorf("RSA %d, overlap %s", SignerBits, SignerOverlap)
	}
	l := newLife(t)
	l.apply(l.signer(spring))
	_, valid, due, ok := l.s.SignerRenewal()
	if two := valid.To.Sub(valid.From) * 2 / 3; !ok || due.Sub(valid.From)-two > time.Second || two-due.Sub(valid.From) > time.Second {
		t.Errorf("renewed after %s of %s", due.Sub(valid.From), valid.To.Sub(valid.From))
	}
}

// TestTheDenyDateOfOneSigner, own and foreign: it moves forward only, never into the future, and leaves the others alone.
func TestTheDenyDateOfOneSigner(t *testing.T) {
	l := newLife(t)
	own := l.apply(l.signer(spring))
	l.apply(l.command(CmdSignerTrust, spring, SignerTrust{Name: "site2", Certificate: certificate(t, rsaKey(t, 2048))}))
	l.apply(l.command(CmdSignerTrust, spring, SignerTrust{Name: "site3", Certificate: certificate(t, rsaKey(t, 2048))}))
	var site2, site3 string
	for tp, s := range l.s.Signers {
		if s.Name == "site2" {
			site2 = tp
		} else {
			site3 = tp
		}
	}
	now := NextSecond(at(spring))
	deny := func(tp string, before int64) Command {
		return l.command(CmdSignerDeny, spring, SignerDeny{Thumbprint: tp, Before: before})
	}
	ours := Thumbprint(l.s.Keys[own].Certificate)
	for _, tp := range []string{ours, site2} {
		refused(t, l.s, deny(tp, now+2))
		blind := deny(tp, now)
		blind.At = Stamp{}
		refused(t, l.s, blind)
		l.apply(deny(tp, now))
		refused(t, l.s, deny(tp, now-1))
	}
	refused(t, l.s, deny(strings.Repeat("0", 64), now))
	refused(t, l.s, deny("", now))
	if l.s.Keys[own].DenyIssuedBefore != now || l.s.Signers[site2].DenyIssuedBefore != now || l.s.Signers[site3].DenyIssuedBefore != 0 || l.s.Service.DenyIssuedBefore != 0 {
		t.Fatalf("own %d, site2 %d, site3 %d, all %d", l.s.Keys[own].DenyIssuedBefore, l.s.Signers[site2].DenyIssuedBefore, l.s.Signers[site3].DenyIssuedBefore, l.s.Service.DenyIssuedBefore)
	}
}
