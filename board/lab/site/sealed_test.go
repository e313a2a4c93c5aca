//go:build qemu

package site

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"guardhouse/board/lab"
	"guardhouse/images/keys"
	"guardhouse/images/uki"
)

// Contents of dbx: one that the release was built for, and a later one that it was not.
var (
	dbxShipped = keys.HashList([16]byte{}, sha256.Sum256([]byte("a program revoked before the release")))
	dbxLater   = append(slices.Clip(dbxShipped), keys.HashList([16]byte{}, sha256.Sum256([]byte("a program revoked after the release")))...)
)

// TestSealedBoot is what the firmware, the boot disk and the data disk of a machine can be changed to while it is off. It is not parallel
// because a step sets the environment.
func TestSealedBoot(t *testing.T) {
	build := buildDir(t)
	file := filepath.Join(t.TempDir(), "dbx")
	if err := os.WriteFile(file, dbxShipped, 0o600); err != nil {
		t.Fatal(err)
	}
	img, err := buildImage(t.Context(), build, "image-dbx", "--hsm", Attached, "--dbx", file)
	if err != nil {
		t.Fatal(err)
	}
	s := openStageOf(t, "test-sealed", Attached, img)
	if err := s.Boot(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.ready(t, false)
	s.steps(t, []step{
		{"SetUpMakesTheSecret", setUpMakesTheSecret},
		{"RefusesAnotherCommandLine", refusesAnotherCommandLine},
		{"RefusesSecureBootOff", refusesSecureBootOff},
		{"RefusesADriverBeforeTheImage", refusesADriver},
		{"RefusesTheCommandLineOfABootEntry", refusesTheCommandLineOfABootEntry},
		{"OpensAfterADBXUpdateThatWasShippedFirst", opensAfterDBXUpdate},
		{"AsksForTheSecretAfterADBXUpdateThatWasNot", asksAfterDBXUpdate},
		{"NamesACorruptedDatabase", namesACorruptedDatabase},
		{"NamesACorruptedSectorThatNobodyReads", namesACorruptedSector},
	})
}

// shut waits for the lines that say why the volume stays shut: at most five, of this kind.
func (s *stage) shut(t *testing.T, kind string) Refusal {
	t.Helper()
	r, err := s.Shut(within(t, 120*time.Second))
	if err != nil {
		t.Fatal(err)
	}
	if r.Kind != kind || r.Lines > 5 {
		t.Errorf("shut in %d lines for %q: %s; want %s", r.Lines, r.Kind, r.What, kind)
	}
	t.Logf("shut %.1f s after power-on [%s]: %s / %s", time.Since(s.Node.Started).Seconds(), r.Kind, r.What, r.Remedy)
	return r
}

func (s *stage) bootFrom(t *testing.T, disk string) {
	t.Helper()
	if err := s.BootWith(t.Context(), func(o *lab.NodeOptions) { o.Image = disk }); err != nil {
		t.Fatal(err)
	}
}

func (s *stage) off(t *testing.T) {
	t.Helper()
	if err := s.Node.Stop(within(t, 60*time.Second)); err != nil {
		t.Fatal(err)
	}
}

// refusesAnotherCommandLine: the firmware does with Secure Boot, the TPM without.
func refusesAnotherCommandLine(t *testing.T, s *stage) {
	s.off(t)
	disk, err := s.OtherCommandLine()
	if err != nil {
		t.Fatal(err)
	}
	s.bootFrom(t, disk)
	if err := s.Denied(within(t, 90*time.Second)); err != nil {
		t.Error(err)
	}
	s.Node.Kill()
	if err := s.SecureBoot(false); err != nil {
		t.Fatal(err)
	}
	s.bootFrom(t, disk)
	if r := s.shut(t, "seal-no-policy"); !strings.Contains(r.What, "PCR 11 (image)") || !strings.Contains(r.What, "PCR 7 (Secure Boot keys and state)") {
		t.Error(r.What)
	}
	s.Node.Kill()
}

// refusesSecureBootOff has the right image on a machine that verifies none. It leaves it so.
func refusesSecureBootOff(t *testing.T, s *stage) {
	if err := s.Boot(t.Context()); err != nil {
		t.Fatal(err)
	}
	r := s.shut(t, "seal-no-policy")
	if !strings.Contains(r.What, "PCR 7 (Secure Boot keys and state)") || strings.Contains(r.What, "PCR 11") || !strings.Contains(r.Remedy, "undo") {
		t.Errorf("%s / %s", r.What, r.Remedy)
	}
	s.Node.Kill()
}

// refusesADriver: without PCR 7 in the policy this boot would open, since the image is ours and firmware measures a driver into PCR 2 alone.
func refusesADriver(t *testing.T, s *stage) {
	with := s.diskWithDriver(t)
	if err := s.Lab.BootVariables(s.Name, option(t, "Driver0000", with, driverFile, nil), number("DriverOrder", 0)); err != nil {
		t.Fatal(err)
	}
	s.bootFrom(t, with)
	r := s.shut(t, "seal-no-policy")
	for _, want := range []string{"Secure Boot is off", "driver.efi", "(PCR 2)", "PCR 7 (Secure Boot keys and state)"} {
		if !strings.Contains(r.What, want) {
			t.Errorf("it does not tell of %q: %s", want, r.What)
		}
	}
	if strings.Contains(r.What, "PCR 11") || !strings.Contains(r.Remedy, "undo") {
		t.Errorf("%s / %s", r.What, r.Remedy)
	}
	s.recoverAndLogIn(t)
	hash, err := uki.AuthenticodeSHA256(bootDriver())
	if err != nil {
		t.Fatal(err)
	}
	var log struct {
		Events []struct {
			PCR          int
			Digest, What string
		}
		Problems []problem
	}
	if err := s.JSON(within(t, 60*time.Second), nil, &log, "node", "explain"); err != nil {
		t.Fatal(err)
	}
	measured := false
	for _, e := range log.Events {
		measured = measured || e.PCR == 2 && e.Digest == hex.EncodeToString(hash[:]) && strings.Contains(e.What, "driver.efi")
	}
	if !measured || len(log.Problems) != 0 {
		t.Errorf("the driver's measurement is not in the boot log, or the log does not fit: %+v", log)
	}
	s.resealIsRefused(t, "Secure Boot is off", "driver.efi")
	s.off(t)
	s.remove(t, "Driver0000", "DriverOrder")
}

// recoverAndLogIn opens the shut volume with its recovery secret and waits for the services.
func (s *stage) recoverAndLogIn(t *testing.T) {
	t.Helper()
	secret, err := s.RecoverySecret()
	if err != nil {
		t.Fatal(err)
	}
	if opened, reason, err := s.Recover(within(t, 60*time.Second), secret); err != nil || !opened {
		t.Fatalf("opened: %v, %q %v", opened, reason, err)
	}
	s.ready(t, true)
	if err := s.SerialLogin(within(t, 60*time.Second)); err != nil {
		t.Fatal(err)
	}
}

// resealIsRefused: a seal to this boot would not open again, and the preview says why.
func (s *stage) resealIsRefused(t *testing.T, want ...string) {
	t.Helper()
	_, err := s.Reseal(within(t, 60*time.Second))
	if err == nil {
		t.Fatal("resealed to a boot that nobody signed")
	}
	t.Logf("reseal: %v", err)
	text := s.answered(t, "recovery status")
	for _, w := range want {
		if !strings.Contains(err.Error(), w) || !strings.Contains(text, w) {
			t.Errorf("%q is not named: %v; recovery status: %s", w, err, text)
		}
	}
}

// refusesTheCommandLineOfABootEntry: with Secure Boot off the boot stub takes what a boot entry gives it, into PCR 12.
func refusesTheCommandLineOfABootEntry(t *testing.T, s *stage) {
	own := s.commandLine(t)
	other := strings.Replace(own, "lockdown=confidentiality", "lockdown=integrity", 1)
	if other == own {
		t.Fatalf("the image's command line is %q", own)
	}
	s.withCommandLine(t, other)
	if err := s.Boot(t.Context()); err != nil {
		t.Fatal(err)
	}
	r := s.shut(t, "seal-no-policy")
	for _, want := range []string{"Secure Boot is off", "another command line or a credential (PCR 12): \"" + other[:20]} {
		if !strings.Contains(r.What, want) {
			t.Errorf("it does not tell of %q: %s", want, r.What)
		}
	}
	if st := s.waiting(t, "status"); !strings.Contains(st, "PCR 12 (command line and credentials beside the image)") || strings.Contains(st, "PCR 11") {
		t.Error(st)
	}
	s.Node.Kill()
	s.remove(t, "Boot0100", "BootNext")
}

// waiting types a word at the prompt of a node whose volume is shut and gives its text, in single blanks.
func (s *stage) waiting(t *testing.T, word string) string {
	t.Helper()
	return squeeze(s.typed(t, word, `(?s)`+regexp.QuoteMeta(word)+`\r\n(.*?)waiting> `)[1])
}

func (s *stage) dbx(t *testing.T, content []byte) {
	t.Helper()
	if err := s.Lab.EnrollFirmware(s.Name, s.Image.Keys.Variables(content), true); err != nil {
		t.Fatal(err)
	}
}

// opensAfterDBXUpdate also undoes what the steps before did to the firmware.
func opensAfterDBXUpdate(t *testing.T, s *stage) {
	s.dbx(t, dbxShipped)
	if err := s.Boot(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.ready(t, true)
	eventually(t, 40*time.Second, func(ctx context.Context) error {
		_, by, _, err := s.Opened(ctx)
		if want := fmt.Sprintf("dbx %.8x", sha256.Sum256(dbxShipped)); err == nil && !strings.Contains(by, want) {
			t.Errorf("opened by %s, want %s", by, want)
		}
		return err
	})
	s.off(t)
}

func asksAfterDBXUpdate(t *testing.T, s *stage) {
	s.dbx(t, dbxLater)
	if err := s.Boot(t.Context()); err != nil {
		t.Fatal(err)
	}
	r := s.shut(t, "seal-no-policy")
	if !strings.HasPrefix(r.What, "dbx was changed (") || !strings.Contains(r.What, "PCR 7 (Secure Boot keys and state)") || strings.Contains(r.What, "PCR 4") {
		t.Error(r.What)
	}
	if !strings.Contains(r.Remedy, "recovery secret") {
		t.Error(r.Remedy)
	}
	s.recoverAndLogIn(t)
	s.resealIsRefused(t, "dbx was changed (")
	s.off(t)
	s.dbx(t, dbxShipped)
}

// damageTold waits for the line that names the sector, and whose it was.
func (s *stage) damageTold(t *testing.T, sector int64, file string) {
	t.Helper()
	m := s.expect(t, `guardhouse[A-Z ]*: the data volume fails its integrity check at (sector \d+) \(([^)]*)\)[^\r\n]*[\r\n]`)
	if m[1] != fmt.Sprintf("sector %d", sector) || m[2] != file {
		t.Errorf("%q, want sector %d of %s", m[1:], sector, file)
	}
}

// namesACorruptedDatabase flips a bit in the records themselves: the node says on its serial line why it serves nobody, and invents nothing.
func namesACorruptedDatabase(t *testing.T, s *stage) {
	raw := s.rawDisk(t)
	sector := raw.blocks(raw.plain(), "/ledger/state.db")[0]
	raw.flip(sector)
	if err := s.Boot(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.damageTold(t, sector, "/data/ledger/state.db")
	eventually(t, 40*time.Second, func(context.Context) error {
		st := s.waiting(t, "status")
		if strings.Contains(st, "not set up") {
			t.Fatalf("takes the node for a new one: %s", st)
		}
		for _, want := range []string{"the records can't be read", "fails its integrity check", "/data/ledger/state.db", "restore"} {
			if !strings.Contains(st, want) {
				return fmt.Errorf("status does not say %q: %s", want, st)
			}
		}
		return nil
	})
	s.off(t)
	raw.flip(sector) // undone: the next step finds all as it was
}

// namesACorruptedSector flips a bit of a file that nothing needs for a start: the check of the whole volume finds it.
func namesACorruptedSector(t *testing.T, s *stage) {
	raw := s.rawDisk(t)
	plain := raw.plain()
	const logs = "/init/log/"
	boots := raw.list(plain, logs)
	file := logs + boots[len(boots)-1] + "/" // the newest: older ones may be deleted at the start
	file += raw.list(plain, file)[0]
	sector := raw.blocks(plain, file)[0]
	raw.flip(sector)
	t.Logf("sector %d of the volume, %s, changed", sector, file)
	if err := s.Boot(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.ready(t, true)
	s.damageTold(t, sector, "/data"+file)
	eventually(t, 60*time.Second, func(ctx context.Context) error {
		st, err := s.status(ctx)
		if err != nil {
			return err
		}
		i := slices.IndexFunc(st.Problems, func(p problem) bool { return p.Kind == "data-corrupt" })
		if i < 0 {
			return fmt.Errorf("not found yet: %+v", st.Problems)
		}
		p := st.Problems[i]
		if !strings.Contains(p.What, fmt.Sprintf("integrity check at sector %d (/data%s)", sector, file)) || !strings.Contains(p.Remedy, "restore") {
			t.Errorf("%+v", p)
		}
		return nil
	})
	s.off(t)
}
