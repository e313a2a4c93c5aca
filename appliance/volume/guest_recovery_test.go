package volume

import (
	"strings"
	"testing"

	"guardhouse/appliance/disk"
	"guardhouse/appliance/tpm"
)

// withSecret is a volume with a recovery secret, closed.
func (g *guest) withSecret(form string) [][]byte {
	g.Helper()
	v, err := g.m.Make(g.Context(), g.disk(), g.boot())
	if err != nil {
		g.Fatal(err)
	}
	texts := g.secret(v, form, nil)
	if v.key.key != nil {
		g.Error("the key is kept although the secret was confirmed")
	}
	g.put(v)
	return texts
}

func (g *guest) secret(v *Volume, form string, current [][]byte) (texts [][]byte) {
	g.Helper()
	d, err := v.DraftRecovery(form, current)
	if err != nil {
		g.Fatal(err)
	}
	defer d.Wipe()
	for _, text := range d.Texts {
		texts = append(texts, []byte(strings.ToLower(string(text))))
	}
	g.kind(v.ConfirmRecovery(d, append(texts[1:len(texts):len(texts)], texts[0][:8])), KindMistyped)
	if err := v.ConfirmRecovery(d, texts); err != nil {
		g.Fatal(err)
	}
	return texts
}

func (g *guest) recovers(boot Boot, texts [][]byte) *Volume {
	g.Helper()
	v, err := g.m.OpenWithRecovery(g.Context(), g.disk(), boot, texts)
	if err != nil {
		g.Fatal(err)
	}
	return v
}

func TestVolumeOnAnotherTPMOpensWithItsSecretAndIsResealed(t *testing.T) {
	g := newGuest(t)
	texts := g.withSecret(FormShares)
	g.clearTPM()
	g.refuses(g.boot(), tpm.KindOtherTPM)
	_, err := g.m.OpenWithRecovery(t.Context(), g.disk(), g.boot(), texts[:1])
	g.kind(err, KindMistyped)
	for _, step := range []string{"seal", "header", "own", "generation", "never"} {
		boot := g.boot()
		v := g.recovers(boot, [][]byte{texts[2], texts[0]})
		if lines := strings.Join(v.Changed.Lines(), "\n"); !strings.Contains(lines, "TPM: another one") || !strings.Contains(lines, "boot: signed as") {
			t.Fatalf("cut before %s: %s", step, lines)
		}
		cut := g.cutting(step, func() error { return v.Reseal(g.m.TPM) })
		if lastOwner, err = v.Owner(); err != nil {
			t.Fatal(err)
		}
		g.noted(v)
		if cut != (step != "never") {
			t.Fatalf("no step %s", step)
		}
		// By the same means as before, or already by the TPM.
		g.noted(g.recovers(g.boot(), texts[1:]))
		if next, err := g.m.Open(t.Context(), g.disk(), g.boot()); err == nil {
			t.Logf("cut before %s: the TPM opens it", step)
			g.noted(next)
		} else {
			g.kind(err, tpm.KindOtherTPM)
		}
		if step != "never" {
			g.clearTPM()
		}
	}
	g.opens(g.boot())
	// The TPM is as well owned as the first one.
	if err := g.m.TPM.Prepare(0, 0); err == nil {
		t.Error("anybody may set the version floor back after reseal")
	}
}

func TestVolumeIsNotResealedToABootThatNobodySigned(t *testing.T) {
	g := newGuest(t)
	texts := g.withSecret(FormPassphrase)
	boot := g.boot()
	g.opens(boot) // the registers are others now
	g.refuses(boot, tpm.KindNoPolicy)
	v := g.recovers(boot, texts)
	g.kind(v.Reseal(g.m.TPM), tpm.KindNoPolicy)
	if lines := strings.Join(v.Changed.Lines(), "\n"); !strings.Contains(lines, "TPM: the one that sealed") || !strings.Contains(lines, "PCR 11") {
		t.Error(lines)
	}
	g.noted(v)
	g.opens(g.boot())
}

func TestVolumeThatIsAnOlderCopyCountsAfterReseal(t *testing.T) {
	g := newGuest(t)
	texts := g.withSecret(FormPassphrase)
	older := g.head(nil)
	g.opens(g.boot())
	g.opens(g.boot())
	g.head(older)
	g.refuses(g.boot(), KindRolledBack)
	v := g.recovers(g.boot(), texts)
	if err := v.Reseal(g.m.TPM); err != nil {
		t.Fatal(err)
	}
	g.noted(v)
	g.opens(g.boot())
}

func TestVolumeOpensWithItsNewestSecretAlone(t *testing.T) {
	g := newGuest(t)
	first := g.withSecret(FormPassphrase)
	v, err := g.m.Open(t.Context(), g.disk(), g.boot())
	if err != nil {
		t.Fatal(err)
	}
	v.Forget()
	_, err = v.DraftRecovery(FormPassphrase, nil)
	g.kind(err, KindSecretNeeded)
	d, err := v.DraftRecovery(FormShares, first)
	if err != nil {
		t.Fatal(err)
	}
	if !g.cutting("recovery", func() error { return v.ConfirmRecovery(d, d.Texts) }) {
		t.Fatal("no such step")
	}
	g.noted(v)
	v = g.recovers(g.boot(), first) // a power cut before the end: the old one counts
	second := g.secret(v, FormShares, first)
	g.noted(v)
	_, err = g.m.OpenWithRecovery(t.Context(), g.disk(), g.boot(), first)
	g.kind(err, KindMistyped) // another form
	g.noted(g.recovers(g.boot(), second[:2]))
	g.opens(g.boot())
}

func TestVolumeIsMadeTwiceOnOneTPMAfterFactoryReset(t *testing.T) {
	g := newGuest(t)
	for _, step := range []string{"zeroise", "never", "never"} {
		texts := g.withSecret(FormPassphrase)
		owner := append([]byte(nil), lastOwner...)
		g.cutting(step, func() error { _, err := g.m.FactoryReset(g.disk(), owner); return err })
		if step == "zeroise" { // the TPM is given back, the disk holds the volume still
			g.refuses(g.boot(), tpm.KindOtherTPM)
			g.noted(g.recovers(g.boot(), texts))
			report, err := g.m.FactoryReset(g.disk(), owner)
			if err != nil || len(report) != 2 {
				t.Fatalf("%q %v", report, err)
			}
		}
		if d := g.disk(); d.Content != disk.Blank || d.Holds != "nothing" {
			t.Fatalf("the disk holds %s", d.Holds)
		}
		if _, err := g.m.TPM.Floor(); err == nil {
			t.Error("the TPM holds a version floor still")
		}
	}
}
