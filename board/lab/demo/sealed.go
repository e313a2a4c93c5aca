package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"guardhouse/board/lab"
	"guardhouse/board/lab/site"
)

// sealed: the data volume opens by itself for the image that was signed, on the TPM that sealed it, and for people who hold its secret.
func sealed(ctx context.Context, t *teller, st *story) error {
	s, err := st.open(ctx, t, site.Options{Name: "demo-sealed", OwnDisk: true})
	if err != nil {
		return err
	}
	defer s.Close()
	c := &sealedCast{cast: cast{story: st, site: s}}
	return t.tell(ctx, s, []step{
		{"node up", "firmware, then the node's first prompt on its serial line", c.nodeUp},
		{"set up", "the answer file is typed, the recovery secret is shown and typed back", c.setUp},
		{"sealed boot", "the node restarts", c.sealedBoot},
		{"command line", "somebody changes the boot disk, firmware verifies it", c.commandLine},
		{"no Secure Boot", "the same disk with Secure Boot switched off", c.noSecureBoot},
		{"another TPM", "the disk is moved to another TPM", c.anotherTPM},
		{"recovered", "the recovery secret is typed", c.recovered},
		{"resealed", "the node restarts", c.resealed},
		{"updated", "the next release is built, sent over SSH, starts on trial and proves itself", c.updated},
		{"older image", "the image as it was delivered is booted again", c.olderImage},
	})
}

type sealedCast struct {
	cast
	before, after uint64 // release numbers
}

func (c *sealedCast) stop(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 40*time.Second)
	defer cancel()
	return c.site.Node.Stop(ctx)
}

// login boots and wants the node to come up by itself, its volume opened by the TPM.
func (c *sealedCast) login(ctx context.Context) (string, error) {
	if err := c.site.Boot(ctx); err != nil {
		return "", err
	}
	if _, err := c.site.WaitReady(ctx); err != nil {
		return "", err
	}
	var after time.Duration
	var by string
	var commands int
	err := c.retry(ctx, 30*time.Second, func() (err error) {
		after, by, commands, err = c.site.Opened(ctx)
		return err
	})
	if err != nil {
		return "", err
	}
	if commands > 15 {
		return "", &failure{"at most 15 TPM commands to the open disk", fmt.Sprint(commands), "see appliance/tpm"}
	}
	return fmt.Sprintf("unattended, open %.2f s after PID 1 began, %d TPM commands, by %s", after.Seconds(), commands, by), nil
}

func (c *sealedCast) sealedBoot(ctx context.Context) (string, error) {
	if err := c.stop(ctx); err != nil {
		return "", err
	}
	return c.login(ctx)
}

// commandLine: with Secure Boot the firmware itself refuses a changed image.
func (c *sealedCast) commandLine(ctx context.Context) (string, error) {
	if err := c.stop(ctx); err != nil {
		return "", err
	}
	disk, err := c.site.OtherCommandLine()
	if err != nil {
		return "", err
	}
	if err := c.site.BootWith(ctx, func(o *lab.NodeOptions) { o.Image = disk }); err != nil {
		return "", err
	}
	defer c.site.Node.Kill()
	if err := c.site.Denied(ctx); err != nil {
		return "", err
	}
	return "lockdown=integrity instead of confidentiality: the firmware says Access Denied", nil
}

// noSecureBoot: without it the changed image runs, and gets nothing.
func (c *sealedCast) noSecureBoot(ctx context.Context) (string, error) {
	disk, err := c.site.OtherCommandLine()
	if err != nil {
		return "", err
	}
	if err := c.site.SecureBoot(false); err != nil {
		return "", err
	}
	if err := c.site.BootWith(ctx, func(o *lab.NodeOptions) { o.Image = disk }); err != nil {
		return "", err
	}
	r, err := c.shut(ctx, "seal-no-policy")
	if err != nil {
		return "", err
	}
	for _, want := range []string{"PCR 4 (", "PCR 7 (", "PCR 11 ("} {
		if !strings.Contains(r.What, want) {
			return "", &failure{"the node to name " + want + "...)", r.What, ""}
		}
	}
	c.site.Node.Kill()
	return "it boots and stays shut: boot path, Secure Boot and image are named (PCR 4, 7, 11)", c.site.SecureBoot(true)
}

func (c *sealedCast) shut(ctx context.Context, kind string) (site.Refusal, error) {
	r, err := c.site.Shut(ctx)
	if err != nil {
		return r, err
	}
	if r.Kind != kind || r.Lines > 5 {
		return r, &failure{kind + " in at most 5 lines", fmt.Sprintf("%s in %d lines: %s", r.Kind, r.Lines, r.What), ""}
	}
	return r, nil
}

func (c *sealedCast) anotherTPM(ctx context.Context) (string, error) {
	if err := c.site.SwapTPM(); err != nil {
		return "", err
	}
	if err := c.site.Boot(ctx); err != nil {
		return "", err
	}
	r, err := c.shut(ctx, "seal-other-tpm")
	return "refused: " + r.What, err
}

func (c *sealedCast) recovered(ctx context.Context) (string, error) {
	opened, reason, err := c.site.Recover(ctx, "0000-0000-0000-0000-0000-0000-0000")
	if err != nil {
		return "", err
	}
	if opened || !strings.Contains(reason, "mistyped") {
		return "", &failure{"a wrong secret to be refused", reason, ""}
	}
	secret, err := c.site.RecoverySecret()
	if err != nil {
		return "", err
	}
	if opened, reason, err = c.site.Recover(ctx, secret); err != nil {
		return "", err
	}
	if !opened {
		return "", &failure{"the secret to open the volume", reason, ""}
	}
	if setUp, err := c.site.WaitReady(ctx); err != nil || !setUp {
		return "", fmt.Errorf("the services after recover: set up %v, %w", setUp, err)
	}
	return "a wrong secret is refused, the right one opens the volume, the services start", nil
}

func (c *sealedCast) resealed(ctx context.Context) (string, error) {
	if err := c.site.SerialLogin(ctx); err != nil {
		return "", err
	}
	preview, err := c.site.Reseal(ctx)
	if err != nil {
		return "", err
	}
	if !strings.Contains(preview, "another one than sealed the volume") {
		return "", &failure{"a preview that names the TPM", preview, ""}
	}
	if err := c.stop(ctx); err != nil {
		return "", err
	}
	return c.login(ctx)
}

// updated sends the next release through the door and waits until older ones are shut out.
func (c *sealedCast) updated(ctx context.Context) (string, error) {
	was, err := c.site.Update(ctx)
	if err != nil {
		return "", err
	}
	c.before, c.after = was.Running.Number, was.Running.Number+1
	bundle, err := c.site.NextRelease(ctx, c.before)
	if err != nil {
		return "", err
	}
	start := time.Now()
	var r struct{ Written bool }
	if err := c.site.JSON(ctx, bundle, &r, "update", "install"); err != nil || !r.Written {
		return "", fmt.Errorf("update install: written %v, %w", r.Written, err)
	}
	var slot string
	err = c.retry(ctx, 4*time.Minute, func() error {
		u, err := c.site.Update(ctx)
		if err == nil && (u.Running.Number != c.after || u.Running.Floor != c.after || u.Trial) {
			err = &failure{fmt.Sprintf("release %d, floor %d", c.after, c.after), fmt.Sprintf("release %d, floor %d, trial %v, %s", u.Running.Number, u.Running.Floor, u.Trial, u.Phase), "update status"}
		}
		slot = u.Running.Slot
		return err
	})
	if err != nil {
		return "", err
	}
	if slot == was.Running.Slot {
		return "", &failure{"the other slot to run", slot, ""}
	}
	return fmt.Sprintf("release %d, sent as %.1f MiB, runs from slot %s, marked good, floor raised: %d s in all", c.after, float64(len(bundle))/(1<<20), slot, int(time.Since(start).Seconds())), nil
}

// olderImage: what was delivered is signed as well as ever, and gets nothing any more.
func (c *sealedCast) olderImage(ctx context.Context) (string, error) {
	if err := c.stop(ctx); err != nil {
		return "", err
	}
	if err := c.site.BootDelivered(ctx); err != nil {
		return "", err
	}
	defer c.site.Node.Kill()
	r, err := c.shut(ctx, "seal-old-image")
	return "refused: " + r.What, err
}
