package site

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// Refusal is what the serial line says of a data volume that stays shut.
type Refusal struct {
	Kind, What, Remedy string
	Lines              int
}

var (
	reShut    = regexp.MustCompile(`guardhouse[A-Z ]* can't be set up yet +\[([a-z-]+)\]\s+what: ([^\r\n]*)\s+do: +([^\r\n]*)[\r\n]`)
	reWaiting = regexp.MustCompile(`waiting> `)
	reTyped   = regexp.MustCompile(`recovery secret [0-9a-f]{8}: `)
	reOpened  = regexp.MustCompile(`open (\S+) after init began by (policy .*) with (\d+) TPM commands`)
	reDenied  = regexp.MustCompile(`Access Denied`)
)

// Shut waits until the node says why its volume stays shut and offers its waiting line.
func (s *Site) Shut(ctx context.Context) (Refusal, error) {
	m, err := s.Node.Serial.Expect(ctx, reShut)
	if err != nil {
		return Refusal{}, err
	}
	r := Refusal{m[1], strings.TrimSpace(m[2]), strings.TrimSpace(m[3]), strings.Count(strings.TrimSpace(m[0]), "\n") + 1}
	_, err = s.Node.Serial.Expect(ctx, reWaiting)
	return r, err
}

// Denied waits until the firmware says that it does not start the image.
func (s *Site) Denied(ctx context.Context) error {
	_, err := s.Node.Serial.Expect(ctx, reDenied)
	return err
}

// OtherCommandLine copies the boot disk and has it start the kernel with less lockdown, as somebody who has the disk in their hands may.
func (s *Site) OtherCommandLine() (disk string, err error) {
	b, err := os.ReadFile(s.Image.Disk)
	if err != nil {
		return "", err
	}
	const word, weaker = "lockdown=confidentiality", "lockdown=integrity      "
	if !bytes.Contains(b, []byte(" "+word+" ")) { // once in each slot that holds an image
		return "", fmt.Errorf("the boot disk holds no %q", word)
	}
	disk = filepath.Join(s.Lab.Dir, "other-command-line.img")
	return disk, os.WriteFile(disk, bytes.ReplaceAll(b, []byte(" "+word+" "), []byte(" "+weaker+" ")), 0o600)
}

// SecureBoot switches it on or off in the firmware of the machine, which is off; the keys stay.
func (s *Site) SecureBoot(on bool) error {
	return s.Lab.EnrollFirmware(s.Name, s.Image.Keys.Variables(nil), on)
}

// SwapTPM gives the machine, which is off, a TPM out of its box.
func (s *Site) SwapTPM() error {
	dir := filepath.Join(s.Lab.Dir, "nodes", s.Name)
	return os.Rename(filepath.Join(dir, "tpm"), filepath.Join(dir, "tpm-before"))
}

// RecoverySecret is what setup had shown.
func (s *Site) RecoverySecret() (string, error) {
	b, err := os.ReadFile(filepath.Join(s.Lab.Dir, "recovery-secret"))
	return strings.TrimSpace(string(b)), err
}

// Recover types a secret on the waiting line and reports whether it opened the volume; reason is what the node said otherwise.
func (s *Site) Recover(ctx context.Context, secret string) (opened bool, reason string, err error) {
	line := s.Node.Serial
	if err := line.Send("recover"); err != nil {
		return false, "", err
	}
	if _, err := line.Expect(ctx, reTyped); err != nil {
		return false, "", err
	}
	if err := line.Send(secret); err != nil {
		return false, "", err
	}
	m, err := line.Expect(ctx, regexp.MustCompile(`(?s)the services start|(?:refused|unavailable): ([^\r\n]*)[\r\n].*waiting> `))
	if err != nil {
		return false, "", err
	}
	return m[1] == "", m[1], nil
}

// SerialLogin logs the administrator in on the serial line, where it asks for a login.
func (s *Site) SerialLogin(ctx context.Context) error {
	for _, step := range []struct{ text, want string }{{AdminName, "passphrase: "}, {s.Admin.Passphrase, `You are ` + AdminName + `(?s).*?guardhouse> `}} {
		if err := s.Node.Serial.Send(step.text); err != nil {
			return err
		}
		if _, err := s.Node.Serial.Expect(ctx, regexp.MustCompile(step.want)); err != nil {
			return err
		}
	}
	return nil
}

// Reseal gives the recovered volume to the present TPM and gives the preview that was shown. SerialLogin must have returned.
func (s *Site) Reseal(ctx context.Context) (preview string, err error) {
	line := s.Node.Serial
	if err := line.Send("reseal"); err != nil {
		return "", err
	}
	m, err := line.Expect(ctx, regexp.MustCompile(`(?s)reseal\r\n(.*)type yes to give|refused: (.*?)guardhouse> `))
	if err != nil {
		return "", err
	}
	if m[2] != "" {
		return "", errors.New(strings.Join(strings.Fields(m[2]), " "))
	}
	if err := line.Send("yes"); err != nil {
		return "", err
	}
	_, err = line.Expect(ctx, regexp.MustCompile(`(?s)opens the data volume again.*guardhouse> `))
	return strings.Join(strings.Fields(m[1]), " "), err
}

// Opened is how the TPM opened the data volume in this boot, from the node's log: time since PID 1 began, by what, commands of the TPM.
func (s *Site) Opened(ctx context.Context) (after time.Duration, by string, commands int, err error) {
	log, err := s.Verb(ctx, nil, "log", "show", "init")
	if err != nil {
		return 0, "", 0, err
	}
	m := reOpened.FindStringSubmatch(string(log))
	if m == nil {
		return 0, "", 0, errors.New("the log does not say that the TPM opened the volume")
	}
	if after, err = time.ParseDuration(m[1]); err == nil {
		commands, err = strconv.Atoi(m[3])
	}
	return after, m[2], commands, err
}
