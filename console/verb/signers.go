package verb

import (
	"cmp"
	"context"
	"crypto/x509"
	"fmt"
	"slices"
	"strings"
	"time"

	"guardhouse/appliance/policy"
)

// SignerValue is an attestation signer in --json. Own ones are keys of this service.
type SignerValue struct {
	Name             string    `json:"name"`
	Own              bool      `json:"own"`
	Subject          string    `json:"subject"`
	SHA1             string    `json:"sha1"`
	SHA256           string    `json:"sha256"`
	NotAfter         time.Time `json:"notAfter"`
	DenyIssuedBefore int64     `json:"denyIssuedBefore,omitempty"` // unix seconds
	// Of own ones only. Stage is empty where the node does not know the time; the moments are zero where there is none (yet).
	Ref         policy.KeyRef      `json:"ref,omitempty"`
	Stage       policy.SignerStage `json:"stage,omitempty"`
	PublishedAt time.Time          `json:"publishedAt,omitzero"`
	UseFrom     time.Time          `json:"useFrom,omitzero"`
	RetiredAt   time.Time          `json:"retiredAt,omitzero"`
	Renewal     time.Time          `json:"renewal,omitzero"` // when its successor is made; only of the newest one
}

func signerValue(name string, own bool, der []byte, deny int64) SignerValue {
	v := SignerValue{Name: name, Own: own, DenyIssuedBefore: deny}
	v.SHA1, v.SHA256 = thumbprints(der)
	if cert, err := x509.ParseCertificate(der); err == nil {
		v.Subject, v.NotAfter = cert.Subject.String(), cert.NotAfter.UTC()
	}
	return v
}

func signerList(_ context.Context, s *Session, _ Args, _ []byte) (Output, error) {
	snap, _ := s.Node.Snapshot()
	signers := []SignerValue{}
	for _, k := range snap.State.AttestationSigners() {
		signers = append(signers, ownSigner(snap.State, k, s.Node.Stamp()))
	}
	own := len(signers)
	for _, t := range snap.State.Signers {
		signers = append(signers, signerValue(t.Name, false, t.Certificate, max(t.DenyIssuedBefore, snap.State.Service.DenyIssuedBefore)))
	}
	slices.SortFunc(signers[own:], func(a, b SignerValue) int { return cmp.Compare(a.Name, b.Name) })
	p := new(Page)
	for _, v := range signers {
		p.Blank().Line("%s", v.Name).Field("  subject", "%s", v.Subject).Field("  SHA-1", "%s", v.SHA1).
			Field("  SHA-256", "%s", v.SHA256).Field("  valid until", "%s", v.NotAfter.Format("2006-01-02"))
		v.life(p)
		if v.DenyIssuedBefore > 0 {
			p.Field("  refused", "certificates issued before %s", unixTime(v.DenyIssuedBefore))
		}
	}
	if own == 0 {
		p.Blank().Line("This service has no attestation signer. Make one: attestation-signer renew")
	}
	return Output{Text: p, Value: struct {
		Signers []SignerValue `json:"signers"`
	}{signers}}, nil
}

func signerTrust(ctx context.Context, s *Session, a Args, stdin []byte) (Output, error) {
	in, err := ParseInput(stdin)
	if err != nil {
		return Output{}, err
	}
	if in.Certificate == nil {
		return Output{}, failed("this is a bare public key", "give the attestation signer's certificate")
	}
	out, _, err := propose(ctx, s, policy.CmdSignerTrust, policy.SignerTrust{Name: a.Get("name"), Certificate: in.Certificate.Raw})
	if err != nil {
		return Output{}, err
	}
	s1, s256 := thumbprints(in.Certificate.Raw)
	out.Text.Field("subject", "%s", in.Certificate.Subject).Field("SHA-1", "%s", s1).Field("SHA-256", "%s", s256)
	return out, nil
}

func signerDistrust(ctx context.Context, s *Session, a Args, _ []byte) (Output, error) {
	return byName(ctx, s, policy.CmdSignerDistrust, a)
}

// signerDeny refuses what was issued before a second. "now" is the second after the latest moment that now can be, so that no
// certificate issued before the verb survives.
func signerDeny(ctx context.Context, s *Session, a Args, _ []byte) (Output, error) {
	var moment time.Time
	if strings.EqualFold(a.Get("time"), "now") {
		stamp := s.Node.Stamp()
		if stamp.Latest == 0 {
			return Output{}, unavailable("the time is not trusted, so \"now\" has no meaning", "see time status")
		}
		moment = time.Unix(policy.NextSecond(stamp), 0)
	} else {
		var err error
		if moment, err = parseTime(a.Get("time")); err != nil {
			return Output{}, err
		}
		if stamp := s.Node.Stamp(); stamp.Latest > 0 && moment.UnixMilli() > stamp.Latest {
			return Output{}, failed("that moment is in the future: it would refuse certificates not yet issued, and can't be taken back", "use now")
		}
	}
	deny := moment.Unix()
	snap, _ := s.Node.Snapshot()
	if a.Has("attestation-signer") {
		return denyOneSigner(ctx, s, snap.State, a.Get("attestation-signer"), moment)
	}
	out, _, err := propose(ctx, s, policy.CmdServiceSet, policy.ServiceSet{DenyIssuedBefore: &deny})
	if err != nil {
		return Output{}, err
	}
	out.Text.Line("Health certificates issued before %s are refused; each host attests again by itself when it next needs a key.",
		moment.UTC().Format("2006-01-02 15:04:05 UTC"))
	if len(snap.State.Signers) > 0 {
		out.Text.Line("Of certificates from other services the beginning of their validity counts, which may lie before their issue.")
	}
	return out, nil
}

// namedSigner is an attestation signer, own or foreign.
type namedSigner struct {
	own         bool
	certificate []byte // DER
}

// findSigners are the attestation signers that a word names: a foreign one's name, the label or reference of an own one's key, or a SHA-256 or
// SHA-1 thumbprint in any case. Several may bear one name.
func findSigners(state policy.State, word string) (found []namedSigner) {
	add := func(own bool, der []byte, names ...string) {
		s1, s256 := thumbprints(der)
		if slices.Contains(names, word) || strings.EqualFold(word, s1) || strings.EqualFold(word, s256) {
			found = append(found, namedSigner{own, der})
		}
	}
	for _, k := range state.AttestationSigners() {
		add(true, k.Certificate, k.Label, string(k.Ref))
	}
	for _, t := range state.Signers {
		add(false, t.Certificate, t.Name)
	}
	return found
}

// denyOneSigner is attestation-signer deny-before for the signer that a word names.
func denyOneSigner(ctx context.Context, s *Session, state policy.State, word string, moment time.Time) (Output, error) {
	found := findSigners(state, word)
	switch {
	case len(found) == 0:
		return Output{}, failed(fmt.Sprintf("there is no attestation signer %q", clip(word)), "see attestation-signer list")
	case len(found) > 1:
		return Output{}, failed(fmt.Sprintf("%d attestation signers are named %q", len(found), clip(word)), "name one by its thumbprint: attestation-signer list")
	}
	signer := found[0]
	out, _, err := propose(ctx, s, policy.CmdSignerDeny, policy.SignerDeny{Thumbprint: policy.Thumbprint(signer.certificate), Before: moment.Unix()})
	if err != nil {
		return Output{}, err
	}
	s1, s256 := thumbprints(signer.certificate)
	out.Text.Field("SHA-1", "%s", s1).Field("SHA-256", "%s", s256)
	if signer.own {
		out.Text.Line("Its hosts attest again by themselves when they next need a key.")
	} else {
		out.Text.Line("Of its certificates the beginning of their validity counts, which may lie before their issue.")
	}
	return out, nil
}

func parseTime(text string) (time.Time, error) {
	for _, layout := range []string{time.RFC3339, "2006-01-02T15:04:05", "2006-01-02 15:04:05", "2006-01-02 15:04", "2006-01-02"} {
		if t, err := time.ParseInLocation(layout, text, time.UTC); err == nil && t.Year() >= 2000 && t.Year() < 2200 {
			return t, nil
		}
	}
	return time.Time{}, usage(fmt.Sprintf("%q is not a time", clip(text)), "write now, or UTC as 2026-11-22T15:04:05Z")
}
