package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"guardhouse/board/lab"
	"guardhouse/board/lab/site"
)

// clock: four time servers agree, one lies and is named, three lie and nothing is signed any more until they have told the truth again and
// an administrator has compared them.
func clock(ctx context.Context, t *teller, st *story) error {
	s, err := st.open(ctx, t, site.Options{Name: "demo-time"})
	if err != nil {
		return err
	}
	defer s.Close()
	c := &watchedCast{turningCast: turningCast{cast: cast{story: st, site: s, dir: filepath.Join(s.Lab.Dir, "people")}}}
	return t.tell(ctx, s, []step{
		{"node up", "firmware, then the node's first prompt on its serial line", c.nodeUp},
		{"set up", "the answer file is typed at the speed of a serial line", c.setUp},
		{"four servers", "four time servers to agree", c.fourServers},
		{"HSM keys made", "the token makes four RSA keys", c.keysMade},
		{"host known", "it attests", c.live},
		{"key protector", "a tenant makes one, the host opens it twice", c.oldMachine},
		{"one lies", "the node to ask it again", c.oneLies},
		{"three lie", "the node to ask them again", c.threeLie},
		{"nothing signed", "", c.nothingSigned},
		{"goes on", "", c.goesOn},
		{"why", "", c.why},
		{"truth again", "the node to ask them again", c.truthAgain},
		{"released", "the host attests", c.released},
		{"audit", "", c.audit},
	})
}

// watchedCast adds four time servers: the first is a chronyd that stays honest, the others say what they are told.
type watchedCast struct {
	turningCast
	honest *lab.TimeServer
	liars  []*lab.Liar
}

// lie is an hour: far beyond any error of a clock, well within the life of a certificate.
const lie = time.Hour

// timeLine is what time status --json says.
type timeLine struct {
	Trusted struct {
		OK               bool
		Earliest, Latest time.Time
	}
	State, Reason string
	Bound         time.Duration
	Sources       []struct {
		Address, State string
		Offset, Bound  time.Duration
		Says           time.Time
	}
}

// in lists the servers in a state, by their number.
func (l timeLine) in(state string) (list []string) {
	for i, s := range l.Sources {
		if s.State == state {
			list = append(list, fmt.Sprintf("server %d", i+1))
		}
	}
	return list
}

// until waits for a time line that fits; fits says what is expected of one that does not.
func (c *watchedCast) until(ctx context.Context, fits func(timeLine) string) (l timeLine, err error) {
	err = c.retry(ctx, 80*time.Second, func() error {
		l = timeLine{}
		if err := c.site.JSON(ctx, nil, &l, "time", "status"); err != nil {
			return err
		}
		if want := fits(l); want != "" {
			return &failure{want, fmt.Sprintf("%s: %s; %+v", l.State, l.Reason, l.Sources), "time status on the node shows each server"}
		}
		return nil
	})
	return l, err
}

func (c *watchedCast) fourServers(ctx context.Context) (string, error) {
	c.honest = c.site.Times[0]
	words := []string{"time", "set", c.honest.GuestAddr()}
	for range 3 {
		l, err := c.site.Lab.NewLiar()
		if err != nil {
			return "", err
		}
		c.liars, words = append(c.liars, l), append(words, l.GuestAddr())
	}
	if err := c.retry(ctx, 20*time.Second, func() error { _, err := c.site.Verb(ctx, nil, words...); return err }); err != nil {
		return "", err
	}
	l, err := c.until(ctx, func(l timeLine) string {
		if l.State != "locked" || len(l.in("selected")) != 4 {
			return "a time that all four servers agree on"
		}
		return ""
	})
	if err != nil {
		return "", err
	}
	return c.line(l), c.contains(l)
}

// contains is the control: the interval holds the workstation's time, which the honest server serves.
func (c *watchedCast) contains(l timeLine) error {
	now := time.Now()
	if now.Before(l.Trusted.Earliest.Add(-5*time.Second)) || now.After(l.Trusted.Latest.Add(5*time.Second)) {
		return &failure{"a time that contains the workstation's " + now.UTC().Format(time.RFC3339), l.Trusted.Earliest.Format(time.RFC3339), ""}
	}
	return nil
}

// line is the time line: the bound, and each server with its distance from the node's clock.
func (c *watchedCast) line(l timeLine) string {
	var servers []string
	for _, s := range l.Sources {
		servers = append(servers, fmt.Sprintf("%+.1f", float64(s.Offset.Microseconds())/1000))
	}
	return fmt.Sprintf("%s +-%.1f ms; servers off by %s ms", l.Trusted.Earliest.Add(l.Trusted.Latest.Sub(l.Trusted.Earliest)/2).UTC().Format("15:04:05"),
		float64(l.Bound.Microseconds())/1000, strings.Join(servers, " "))
}

func (c *watchedCast) attests(ctx context.Context) (facts, error) {
	return c.must(ctx, c.attest()...)
}

func (c *watchedCast) attest() []string {
	return []string{"host-key", "attest", "--dir", c.folder("host1"), "--url", c.site.URL("/Attestation")}
}

func (c *watchedCast) oneLies(ctx context.Context) (string, error) {
	c.liars[0].Tell(lab.Lie{Offset: lie})
	l, err := c.until(ctx, func(l timeLine) string {
		if l.State != "locked" || !slices.Equal(l.in("falseticker"), []string{"server 2"}) {
			return "server 2 to be named a falseticker"
		}
		return ""
	})
	if err != nil {
		return "", err
	}
	if err := c.contains(l); err != nil {
		return "", err
	}
	_, err = c.attests(ctx)
	return "server 2 says an hour more and is named a falseticker; the host attests", err
}

func (c *watchedCast) threeLie(ctx context.Context) (string, error) {
	for _, s := range c.liars {
		s.Tell(lab.Lie{Offset: lie})
	}
	l, err := c.until(ctx, func(l timeLine) string {
		if l.State != "suspect" || l.Trusted.OK {
			return "a time that is suspect, and trusted no more"
		}
		return ""
	})
	if err != nil {
		return "", err
	}
	return l.State + ": " + l.Reason, nil
}

func (c *watchedCast) nothingSigned(ctx context.Context) (string, error) {
	if _, err := c.mustRefuse(ctx, "an attestation while the time is suspect", "Unavailable", c.attest()...); err != nil {
		return "", err
	}
	f, err := c.mustRefuse(ctx, "a roll while the time is suspect", "ServiceUnavailableException", c.roll(c.old)...)
	if err != nil {
		return "", err
	}
	if !strings.Contains(f.str("error"), "can't be judged") {
		return "", &failure{"the reason in the refusal", f.str("error"), ""}
	}
	return "attestation and key release answer 503, to be asked again; the second says that no certificate's dates can be judged", nil
}

func (c *watchedCast) goesOn(ctx context.Context) (string, error) {
	for _, path := range []string{"/Attestation/getinfo", "/Attestation/v2.0/signingCertificates", "/KeyProtection/service/metadata/2014-07/metadata.xml"} {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.site.URL("")+path, nil)
		if err != nil {
			return "", err
		}
		r, err := http.DefaultClient.Do(req)
		if err != nil {
			return "", err
		}
		_, err = io.Copy(io.Discard, r.Body)
		r.Body.Close()
		if err != nil {
			return "", err
		}
		if r.StatusCode != http.StatusOK || r.Header.Get("Date") != "" {
			return "", &failure{path + " to answer 200, without a Date", r.Status + " " + r.Header.Get("Date"), ""}
		}
	}
	return "getinfo, metadata.xml and the published attestation signers answer, without a Date", nil
}

func (c *watchedCast) why(ctx context.Context) (string, error) {
	var v struct {
		State string
		Why   []string
	}
	if err := c.site.JSON(ctx, nil, &v, "time", "why"); err != nil {
		return "", err
	}
	if len(v.Why) != 3 {
		return "", &failure{"three sentences", fmt.Sprintf("%d: %q", len(v.Why), v.Why), ""}
	}
	return strings.Join(v.Why, " "), nil
}

func (c *watchedCast) truthAgain(ctx context.Context) (string, error) {
	for _, s := range c.liars {
		s.Tell(lab.Lie{})
	}
	l, err := c.until(ctx, func(l timeLine) string {
		if len(l.in("selected")) != 4 {
			return "four servers that agree again"
		}
		for _, s := range l.Sources {
			if d := time.Since(s.Says).Abs(); d > 5*time.Minute {
				return "four servers that say the workstation's time"
			}
		}
		return ""
	})
	if err != nil {
		return "", err
	}
	if l.State == "suspect" {
		if _, err := c.mustRefuse(ctx, "an attestation before anybody decided", "Unavailable", c.attest()...); err != nil {
			return "", err
		}
	}
	return "all four say the same again; the node stays " + l.State + " and waits for a decision, or a minute", nil
}

func (c *watchedCast) released(ctx context.Context) (string, error) {
	var d struct {
		Message string
		By      []string
		Waiting *struct{ ID string }
	}
	by := "by itself"
	err := c.site.JSON(ctx, nil, &d, "time", "release")
	if err == nil {
		if d.Waiting != nil || len(d.By) != 1 {
			return "", &failure{"one administrator to be enough where only one exists", fmt.Sprintf("%+v", d), ""}
		}
		by = "released by " + d.By[0]
	}
	l, untilErr := c.until(ctx, func(l timeLine) string {
		if l.State != "locked" {
			return fmt.Sprintf("a time that is trusted again (time release: %v)", err)
		}
		return ""
	})
	if untilErr != nil {
		return "", untilErr
	}
	if err := c.contains(l); err != nil {
		return "", err
	}
	if _, err := c.attests(ctx); err != nil {
		return "", err
	}
	return by + "; " + c.line(l) + "; the host attests, its machine opens", c.starts(ctx, &c.old)
}

func (c *watchedCast) audit(ctx context.Context) (string, error) {
	out, err := c.site.Verb(ctx, nil, "audit", "tail", "--lines", "60")
	if err != nil {
		return "", err
	}
	for _, want := range []string{"time-suspect", "time-lock", "no-trusted-time"} {
		if !strings.Contains(string(out), want) {
			return "", &failure{"an audit entry " + want, "none among the newest 60", "audit tail on the node"}
		}
	}
	return "tells when the time was suspect, who was refused for it, and when it was trusted again", nil
}
