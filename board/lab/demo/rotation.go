package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"guardhouse/board/lab/site"
)

// rotation: the guardian's keys are replaced under a live host. Its machine opens at each step until the old pair is disabled, over an HSM
// that is pulled out and put back in the middle; the refusal names the key, and one step back heals it.
func rotation(ctx context.Context, t *teller, st *story) error {
	s, err := st.open(ctx, t, site.Options{Name: "demo-rotation"})
	if err != nil {
		return err
	}
	defer s.Close()
	c := &turningCast{cast: cast{story: st, site: s, dir: filepath.Join(s.Lab.Dir, "people")}}
	away := []step{
		{"HSM pulled", "", c.pulled},
		{"HSM back", "the node finds its token again by itself", c.back},
	}
	if st.hsm == site.Embedded {
		away = []step{{"HSM stays", "", c.embedded}}
	}
	return t.tell(ctx, s, slices.Concat([]step{
		{"node up", "firmware, then the node's first prompt on its serial line", c.nodeUp},
		{"set up", "the answer file is typed at the speed of a serial line", c.setUp},
		{"time trusted", "three time servers to agree", c.timeTrusted},
		{"HSM keys made", "the token makes four RSA keys", c.keysMade},
		{"host known", "it attests", c.live},
		{"key protector", "a tenant makes one, the host opens it twice", c.oldMachine},
		{"new pair", "the token makes two RSA keys", c.newPair},
	}, away, []step{
		{"primary", "each node uses both new keys once", c.primary},
		{"asked first", "", c.asked},
		{"old disabled", "", c.disabled},
		{"taken back", "", c.takenBack},
		{"old removed", "", c.removed},
		{"audit", "the export is verified without the node", c.told},
	}))
}

// turningCast is a host with two machines: one that depends on the old pair, one that a tenant made for the new one.
type turningCast struct {
	cast
	old, fresh machine
	guardian   string // of metadata.xml before the rotation
	oldKey     string // reference of the old encryption key
}

// machine is a key protector as its host keeps it, and the secret that it holds.
type machine struct{ file, secret string }

func (c *turningCast) live(ctx context.Context) (string, error) {
	line, err := c.hostRegistered(ctx)
	if err != nil {
		return "", err
	}
	_, err = c.hostAttests(ctx)
	return line + "; both attest", err
}

// made has the tenant make a key protector for the guardian that metadata.xml names now.
func (c *turningCast) made(ctx context.Context, name string) (m machine, guardian string, err error) {
	m.file = filepath.Join(c.folder("tenant"), name)
	f, err := c.must(ctx, "protector", "new", "--dir", c.folder("tenant"), "--metadata", c.site.URL("/KeyProtection"), "--out", m.file)
	m.secret = f.str("transportKey")
	return m, f.str("guardian"), err
}

func (c *turningCast) roll(m machine) []string {
	return []string{"protector", "roll", "--dir", c.folder("host1"), "--url", c.site.URL("/KeyProtection"), "--in", m.file, "--out", m.file}
}

// starts is the machine's start: the host gets the secret that is inside, and keeps the key protector that it gets back.
func (c *turningCast) starts(ctx context.Context, m *machine) error {
	f, err := c.must(ctx, c.roll(*m)...)
	if err != nil {
		return err
	}
	if f.str("ingressKey") != m.secret || f.str("egressKey") == m.secret {
		return &failure{"the host to get the secret " + m.secret, f.str("ingressKey"), ""}
	}
	m.secret = f.str("egressKey")
	return nil
}

func (c *turningCast) oldMachine(ctx context.Context) (string, error) {
	if _, err := c.must(ctx, "guardian", "new", "--dir", c.folder("tenant"), "--name", "tenant"); err != nil {
		return "", err
	}
	var err error
	if c.old, c.guardian, err = c.made(ctx, "old.xml"); err != nil {
		return "", err
	}
	for range 2 {
		if err := c.starts(ctx, &c.old); err != nil {
			return "", err
		}
	}
	return fmt.Sprintf("for guardian %s; the host opens it, and what came back", short(c.guardian)), nil
}

// plan is what rotation verbs say in --json.
type plan struct {
	Rotation *struct {
		Step     string
		Old, New struct{ Signing, Encryption string }
	}
	Old, New *struct{ Total, Recent int }
	Next     string
}

// at checks that the plan is at a step and knows of one key protector on the old pair.
func (p plan) at(step string) error {
	switch {
	case p.Rotation == nil || p.Rotation.Step != step:
		return &failure{"the rotation at the step " + step, fmt.Sprintf("%+v", p.Rotation), ""}
	case p.Old == nil || p.Old.Recent != 1:
		return &failure{"one key protector last seen on the old pair", fmt.Sprintf("%+v", p.Old), ""}
	}
	return nil
}

func (c *turningCast) newPair(ctx context.Context) (string, error) {
	var p plan
	if err := c.site.JSON(ctx, nil, &p, "rotation", "start"); err != nil {
		return "", err
	}
	if err := p.at("made"); err != nil {
		return "", err
	}
	c.oldKey = p.Rotation.Old.Encryption
	if p.Rotation.New.Encryption == c.oldKey || p.Rotation.New.Encryption == "" {
		return "", &failure{"another encryption key", p.Rotation.New.Encryption, ""}
	}
	if err := c.starts(ctx, &c.old); err != nil {
		return "", err
	}
	return fmt.Sprintf("%s beside %s, not primary; 1 key protector last seen on the old pair; it opens", short(p.Rotation.New.Encryption), short(c.oldKey)), nil
}

// embedded stands for the two lines about an HSM that is pulled: a token on the node's own disk can't be.
func (c *turningCast) embedded(ctx context.Context) (string, error) {
	if err := c.starts(ctx, &c.old); err != nil {
		return "", err
	}
	return "this image's token lies inside the node and can't be pulled: HSM=attached shows that", nil
}

func (c *turningCast) pulled(ctx context.Context) (string, error) {
	c.site.Token.Unplug()
	f, err := c.mustRefuse(ctx, "a roll without the HSM", "ServiceUnavailableException", c.roll(c.old)...)
	if err != nil {
		return "", err
	}
	status, _ := f["httpStatus"].(float64)
	if status != 503 {
		return "", &failure{"status 503, which a host tries again", fmt.Sprint(status), ""}
	}
	return "the host is told to come again (503), and nothing else", nil
}

func (c *turningCast) back(ctx context.Context) (string, error) {
	c.site.Token.Plug()
	at := time.Now()
	if err := c.retry(ctx, 20*time.Second, func() error { return c.starts(ctx, &c.old) }); err != nil {
		return "", err
	}
	return fmt.Sprintf("nobody acted; the machine opens again after %.1f s", time.Since(at).Seconds()), nil
}

func (c *turningCast) primary(ctx context.Context) (string, error) {
	var p plan
	if err := c.site.JSON(ctx, nil, &p, "rotation", "next"); err != nil {
		return "", err
	}
	if err := p.at("primary"); err != nil {
		return "", err
	}
	if err := c.starts(ctx, &c.old); err != nil {
		return "", err
	}
	var guardian string
	var err error
	if c.fresh, guardian, err = c.made(ctx, "fresh.xml"); err != nil {
		return "", err
	}
	if guardian == c.guardian {
		return "", &failure{"metadata.xml to name another guardian", guardian, ""}
	}
	if err := c.starts(ctx, &c.fresh); err != nil {
		return "", err
	}
	return fmt.Sprintf("metadata.xml names guardian %s; machines of both pairs open", short(guardian)), nil
}

// asked: the plan does not take a key away from a machine without somebody who says how many.
func (c *turningCast) asked(ctx context.Context) (string, error) {
	for _, args := range [][]string{{"rotation", "next"}, {"rotation", "next", "--confirm", "7"}} {
		_, err := c.site.Verb(ctx, nil, args...)
		var exit *site.ExitError
		if !errors.As(err, &exit) || !strings.Contains(exit.Stderr, "1 key protector last seen on the old pair") {
			return "", &failure{strings.Join(args, " ") + " to be refused with the number of machines", fmt.Sprint(err), ""}
		}
	}
	if err := c.starts(ctx, &c.old); err != nil {
		return "", err
	}
	return "refused: 1 key protector was last seen on the old pair; its number must be typed", nil
}

func (c *turningCast) disabled(ctx context.Context) (string, error) {
	var p plan
	if err := c.site.JSON(ctx, nil, &p, "rotation", "next", "--confirm", "1"); err != nil {
		return "", err
	}
	if err := p.at("disabled"); err != nil {
		return "", err
	}
	f, err := c.mustRefuse(ctx, "a key protector of the disabled pair", "InvalidProtectorException", c.roll(c.old)...)
	if err != nil {
		return "", err
	}
	if name := c.oldKey[:16]; !strings.Contains(f.str("error"), name) || !strings.Contains(f.str("error"), "disabled") {
		return "", &failure{"the refusal to name the key " + name, f.str("error"), ""}
	}
	err = c.retry(ctx, 5*time.Second, func() error {
		tail, err := c.site.Verb(ctx, nil, "audit", "tail", "--lines", "20")
		if err == nil && !strings.Contains(strings.Join(strings.Fields(string(tail)), ""), c.oldKey[:16]) {
			err = &failure{"the audit on the console to name the key " + c.oldKey[:16], "another", ""}
		}
		return err
	})
	if err != nil {
		return "", err
	}
	if err := c.starts(ctx, &c.fresh); err != nil { // control
		return "", err
	}
	return fmt.Sprintf("refused for encryption key %s, on the wire and in the audit; the new pair's machine opens", short(c.oldKey)), nil
}

func (c *turningCast) takenBack(ctx context.Context) (string, error) {
	var p plan
	if err := c.site.JSON(ctx, nil, &p, "rotation", "undo"); err != nil {
		return "", err
	}
	if err := p.at("primary"); err != nil {
		return "", err
	}
	if err := c.starts(ctx, &c.old); err != nil {
		return "", err
	}
	return "rotation undo: the same key protector opens again", nil
}

func (c *turningCast) removed(ctx context.Context) (string, error) {
	for range 2 {
		if _, err := c.site.Verb(ctx, nil, "rotation", "next", "--confirm", "1"); err != nil {
			return "", err
		}
	}
	var p plan
	if err := c.site.JSON(ctx, nil, &p, "rotation", "status"); err != nil {
		return "", err
	}
	if p.Rotation != nil {
		return "", &failure{"no rotation under way", p.Rotation.Step, ""}
	}
	if _, err := c.mustRefuse(ctx, "a key protector of the removed pair", "InvalidProtectorException", c.roll(c.old)...); err != nil {
		return "", err
	}
	if err := c.starts(ctx, &c.fresh); err != nil {
		return "", err
	}
	return "nothing of ours opens the old machine; the new pair's opens", nil
}

func (c *turningCast) told(ctx context.Context) (string, error) {
	export, err := c.site.Verb(ctx, nil, "audit", "export")
	if err != nil {
		return "", err
	}
	file := filepath.Join(c.dir, "audit.jsonl")
	if err := os.WriteFile(file, export, 0o644); err != nil {
		return "", err
	}
	f, err := c.must(ctx, "audit", "verify", "--in", file)
	if err != nil {
		return "", err
	}
	for _, kind := range []string{"rotation.start", "rotation.pair", "rotation.primary", "rotation.disable", "rotation.undo", "rotation.remove"} {
		if !strings.Contains(string(export), kind) {
			return "", &failure{"each step of the rotation in the audit", "no " + kind, ""}
		}
	}
	return fmt.Sprintf("%v records verified offline, each step of the rotation among them", f["records"]), nil
}
