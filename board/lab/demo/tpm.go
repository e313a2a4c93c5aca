package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"guardhouse/board/lab"
	"guardhouse/board/lab/site"
)

// tpm: the service believes what hosts measured, and nothing else. One good host passes; the same host with dumps on, with an edited log and
// with other firmware is refused, each time with the finding and what to do; a host with another TPM is nobody.
func tpm(ctx context.Context, t *teller, st *story) error {
	s, err := st.open(ctx, t, site.Options{Name: "demo-tpm"})
	if err != nil {
		return err
	}
	defer s.Close()
	c := &measuredCast{cast: cast{story: st, site: s, dir: filepath.Join(s.Lab.Dir, "people")}}
	return t.tell(ctx, s, []step{
		{"node up", "firmware, then the node's first prompt on its serial line", c.nodeUp},
		{"set up", "the answer file is typed at the speed of a serial line", c.setUp},
		{"time trusted", "three time servers to agree", c.timeTrusted},
		{"HSM keys made", "the token makes four RSA keys", c.keysMade},
		{"TPM mode", "two TPMs are manufactured, with certificates of their vendor", c.mode},
		{"host known", "", c.known},
		{"host attests", "its TPM answers five questions, the token signs", c.attests},
		{"key released", "", c.released},
		{"dumps on", "the host restarts", c.dumps},
		{"log edited", "the host restarts", c.edited},
		{"new firmware", "the host restarts", c.firmware},
		{"another TPM", "", c.otherTPM},
		{"audit", "the export is verified without the node", c.audited},
	})
}

// measuredCast is the cast of a service in TPM mode: a host with its TPM, and a second TPM.
type measuredCast struct {
	cast
	own, other *lab.HostTPM
	id         string // of host1
}

func (c *measuredCast) mode(ctx context.Context) (_ string, err error) {
	if c.own, err = c.site.Lab.NewHostTPM(ctx, "host1"); err != nil {
		return "", err
	}
	if c.other, err = c.site.Lab.NewHostTPM(ctx, "other"); err != nil {
		return "", err
	}
	vendor, err := c.site.Lab.TPMVendor()
	if err != nil {
		return "", err
	}
	if _, err := c.site.Verb(ctx, nil, "service", "set", "--mode", "TPM"); err != nil {
		return "", err
	}
	// Control: the service says so itself, to everybody.
	f, err := c.must(ctx, "status", "--dir", c.folder("host1"), "--url", c.site.URL("/Attestation"))
	if err != nil {
		return "", err
	}
	if f.str("AttestationOperationMode") != "Tpm" {
		return "", &failure{"Getinfo to say Tpm", f.str("AttestationOperationMode"), ""}
	}
	var trust struct {
		Roots         int `json:"roots"`
		Intermediates int `json:"intermediates"`
	}
	if err := c.site.JSON(ctx, vendor, &trust, "tpm-trust", "import", "lab"); err != nil {
		return "", err
	}
	if trust.Roots != 1 || trust.Intermediates != 1 {
		return "", &failure{"one root and one intermediate", fmt.Sprintf("%+v", trust), ""}
	}
	return "Getinfo says Tpm; one TPM vendor trusted, root and intermediate", nil
}

// known registers what Windows' tools write on a host: platform identifier, baseline, code integrity policy, dump key.
func (c *measuredCast) known(ctx context.Context) (string, error) {
	dir := c.folder("host1")
	f, err := c.must(ctx, "tpm", "new", "--dir", dir, "--name", "host1", "--tpm", c.own.Spec)
	if err != nil {
		return "", err
	}
	c.id = f.str("id")
	file := func(name string) string { return filepath.Join(dir, name) }
	if _, err := c.must(ctx, "tpm", "identifier", "--dir", dir, "--name", "host1", "--out", file("host1.xml")); err != nil {
		return "", err
	}
	if _, err := c.must(ctx, "tpm", "baseline", "--dir", dir, "--out", file("host1.tcglog")); err != nil {
		return "", err
	}
	var added struct {
		ID      string `json:"id"`
		Trusted bool   `json:"trusted"`
	}
	for _, r := range []struct {
		file string
		verb []string
	}{
		{"host1.xml", []string{"host", "add-tpm", "host1"}}, {"host1.tcglog", []string{"baseline", "add", "lab-2026"}},
		{"sipolicy.bin", []string{"ci-policy", "add", "lab-policy"}}, {"", []string{"dump-key", "add", "lab-dumps", "--sha256", f.str("dumpKey")}},
	} {
		var in []byte
		if r.file != "" {
			if in, err = os.ReadFile(file(r.file)); err != nil {
				return "", err
			}
		}
		into := any(&struct{}{})
		if r.verb[1] == "add-tpm" {
			into = &added
		}
		if err := c.site.JSON(ctx, in, into, r.verb...); err != nil {
			return "", err
		}
	}
	if added.ID != c.id || !added.Trusted {
		return "", &failure{"host " + c.id + " with a trusted certificate", fmt.Sprintf("%+v", added), ""}
	}
	return fmt.Sprintf("%s by its endorsement key, certified; baseline, CI policy and dump key registered", short(c.id)), nil
}

func (c *measuredCast) attestArgs(tpm *lab.HostTPM, more ...string) []string {
	return append([]string{"tpm", "attest", "--dir", c.folder("host1"), "--tpm", tpm.Spec, "--url", c.site.URL("/Attestation")}, more...)
}

func (c *measuredCast) attests(ctx context.Context) (string, error) {
	at := time.Now()
	f, err := c.must(ctx, c.attestArgs(c.own)...)
	if err != nil {
		return "", err
	}
	took := time.Since(at)
	if f.str("subject") != c.id || f.str("version") != "v2.0" {
		return "", &failure{"certificates for " + c.id + " by v2.0", f.str("subject") + " by " + f.str("version"), ""}
	}
	// Control: the older protocol, which names the key and not its certificate, gives the same.
	if f, err = c.must(ctx, c.attestArgs(c.own, "--version", "v1.0")...); err != nil {
		return "", err
	}
	return fmt.Sprintf("v2.0 in %d ms with its restart, v1.0 too: certificates for both VSM keys until %s", took.Milliseconds(), f.str("notAfter")), nil
}

func (c *measuredCast) released(ctx context.Context) (string, error) {
	if _, err := c.protectorMade(ctx); err != nil {
		return "", err
	}
	return c.keyReleased(ctx)
}

// found is one finding of host findings.
type found struct {
	Kind     string `json:"kind"`
	Policy   string `json:"policy"`
	PCR      int    `json:"pcr"`
	Event    int    `json:"event"`
	Measured string `json:"measured"`
	Changed  string `json:"changed"`
	What     string `json:"what"`
	Remedy   string `json:"remedy"`
	Accept   string `json:"accept"`
}

// refused has the host fail in one way, and wants exactly one finding for it on the console.
func (c *measuredCast) refused(ctx context.Context, misbehave, reply, kind string) (f facts, one found, err error) {
	if f, err = c.mustRefuse(ctx, "a host that misbehaves with "+misbehave, reply, c.attestArgs(c.own, "--misbehave", misbehave)...); err != nil {
		return nil, found{}, err
	}
	var v struct {
		Current  bool    `json:"current"`
		Findings []found `json:"findings"`
	}
	err = c.retry(ctx, 5*time.Second, func() error {
		if err := c.site.JSON(ctx, nil, &v, "host", "findings", "host1"); err != nil {
			return err
		}
		if !v.Current || len(v.Findings) != 1 || v.Findings[0].Kind != kind || v.Findings[0].Remedy == "" {
			return &failure{"one finding, " + kind + ", with a remedy", fmt.Sprintf("%+v", v), ""}
		}
		return nil
	})
	if err != nil {
		return nil, found{}, err
	}
	return f, v.Findings[0], nil
}

func (c *measuredCast) dumps(ctx context.Context) (string, error) {
	f, one, err := c.refused(ctx, "dumps", "PolicyEvaluationErrorReply", "dumps-on")
	if err != nil {
		return "", err
	}
	if f.str("subStatus") != "DumpsEnabled" || one.Policy != "Hgs_NoDumps" {
		return "", &failure{"DumpsEnabled for Hgs_NoDumps", f.str("subStatus") + " for " + one.Policy, ""}
	}
	return fmt.Sprintf("host shows %s; console: PCR %d event %d, %s; %.60s", f.str("subStatus"), one.PCR, one.Event, one.Changed, one.Remedy), nil
}

func (c *measuredCast) edited(ctx context.Context) (string, error) {
	_, one, err := c.refused(ctx, "log-edited", "TcgLogValidationErrorReply", "log-refused")
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("PCR %d event %d: %.50s; %.60s", one.PCR, one.Event, one.Measured, one.Remedy), nil
}

// firmware shows a changed dbx as a difference, adopts it, and sees the host pass, the old state too.
func (c *measuredCast) firmware(ctx context.Context) (string, error) {
	_, one, err := c.refused(ctx, "secure-boot-settings", "PolicyEvaluationErrorReply", "baseline-mismatch")
	if err != nil {
		return "", err
	}
	if !strings.HasPrefix(one.Accept, "baseline add") {
		return "", &failure{"a verb that accepts the change", fmt.Sprintf("%q", one.Accept), ""}
	}
	diff, err := c.site.Verb(ctx, nil, "baseline", "add", "lab-2026-b", "--host", "host1", "--dry-run")
	if err != nil {
		return "", err
	}
	if !strings.Contains(string(diff), "+ variable dbx") || strings.Contains(string(diff), "variable KEK ") && strings.Contains(string(diff), "+ variable KEK") {
		return "", &failure{"a difference in dbx alone", string(diff), ""}
	}
	if _, err := c.mustRefuse(ctx, "the host before the change is accepted", "PolicyEvaluationErrorReply", c.attestArgs(c.own, "--misbehave", "secure-boot-settings")...); err != nil {
		return "", err
	}
	if _, err := c.site.Verb(ctx, nil, "baseline", "add", "lab-2026-b", "--host", "host1"); err != nil {
		return "", err
	}
	for _, args := range [][]string{{"--misbehave", "secure-boot-settings"}, nil} {
		if _, err := c.must(ctx, c.attestArgs(c.own, args...)...); err != nil {
			return "", err
		}
	}
	return "refused; the console shows dbx as the only difference; adopted by one verb: both states pass", nil
}

// otherTPM: a copy of the host's files does not help without its TPM, and an unregistered TPM waits for an administrator.
func (c *measuredCast) otherTPM(ctx context.Context) (string, error) {
	if _, err := c.mustRefuse(ctx, "a stolen identity on another TPM", "RtpmErrorReply", c.attestArgs(c.other, "--misbehave", "other-ek")...); err != nil {
		return "", err
	}
	f, err := c.must(ctx, "tpm", "new", "--dir", c.folder("stranger"), "--name", "stranger", "--tpm", c.other.Spec)
	if err != nil {
		return "", err
	}
	if _, err := c.mustRefuse(ctx, "an unregistered TPM", "UnauthorizedErrorReply", "tpm", "attest", "--dir", c.folder("stranger"), "--tpm", c.other.Spec,
		"--url", c.site.URL("/Attestation")); err != nil {
		return "", err
	}
	var p struct {
		Pending []struct {
			ID     string `json:"id"`
			Accept string `json:"accept"`
		} `json:"pending"`
	}
	err = c.retry(ctx, 5*time.Second, func() error {
		if err := c.site.JSON(ctx, nil, &p, "host", "pending"); err != nil {
			return err
		}
		if len(p.Pending) != 1 || p.Pending[0].ID != f.str("id") || !strings.HasPrefix(p.Pending[0].Accept, "host add-tpm") {
			return &failure{"the unknown TPM " + f.str("id") + " pending", fmt.Sprintf("%+v", p.Pending), ""}
		}
		return nil
	})
	if err != nil {
		return "", err
	}
	// Control: the pending one is registered without any file, and then fails for what it boots only.
	if _, err := c.site.Verb(ctx, nil, "host", "add-tpm", "stranger", "--pending", p.Pending[0].ID); err != nil {
		return "", err
	}
	if _, err := c.mustRefuse(ctx, "another CI policy", "SystemIntegrityCiKnownGoodGuid", "tpm", "attest", "--dir", c.folder("stranger"), "--tpm", c.other.Spec,
		"--url", c.site.URL("/Attestation")); err != nil {
		return "", err
	}
	return "host1's files on it: RtpmErrorReply; as itself: pending, accepted by one verb, then judged like all", nil
}

func (c *measuredCast) audited(ctx context.Context) (string, error) {
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
	var missing []string
	for _, kind := range []string{"dumps-on", "log-refused", "baseline-mismatch", "tpm-", "ci-policy-mismatch"} {
		if !strings.Contains(string(export), kind) {
			missing = append(missing, kind)
		}
	}
	slices.Sort(missing)
	if len(missing) > 0 {
		return "", &failure{"every refusal with its finding in the audit", "none of " + strings.Join(missing, " "), ""}
	}
	return fmt.Sprintf("%v records verified offline, each refusal with its finding", f["records"]), nil
}
