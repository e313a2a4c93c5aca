package verb

import (
	"context"
	"encoding/base64"
	"encoding/pem"
	"slices"
	"strconv"
	"strings"

	"guardhouse/appliance/appraise"
	"guardhouse/appliance/evidence"
	"guardhouse/appliance/policy"
)

// endorsement is a TPM as somebody gave it.
type endorsement struct {
	ek   *evidence.EK
	cert *evidence.Certificate // nil: none
	why  string                // what the file says instead of a certificate
	name string                // of the host, by its platform identifier; "": none
	box  *policy.Machine       // by its platform identifier; nil: it says nothing
}

// parseEndorsement reads a platform identifier, or the key or certificate alone in any form.
func parseEndorsement(data []byte) (endorsement, error) {
	text := strings.TrimSpace(string(fromUTF16(data)))
	if text == "" {
		return endorsement{}, usage("nothing came on standard input", "give the platform identifier: host add-tpm NAME < hv7.xml")
	}
	if strings.HasPrefix(text, "<") {
		p, err := evidence.ParsePlatform(data)
		if err != nil {
			return endorsement{}, failed(err.Error(), "capture it on the host: (Get-PlatformIdentifier -Name NAME).Save(FILE) in an elevated prompt")
		}
		return endorsement{p.EK, p.Certificate, p.NoCertReason, p.Name, machineOf(p)}, nil
	}
	raw := data
	if _, err := evidence.ParseCertificate(data); err == nil {
		// as it was read from the TPM: what is forgiven in it is told
	} else if certs, _, err := evidence.ReadBundle(fromUTF16(data)); err == nil && len(certs) == 1 {
		raw = certs[0].Original
	} else if block, rest := pem.Decode([]byte(text)); block != nil && len(rest) == 0 && strings.HasSuffix(block.Type, "PUBLIC KEY") {
		raw = block.Bytes
	} else if der, err := base64.StdEncoding.DecodeString(strings.Join(strings.Fields(text), "")); err == nil {
		raw = der
	}
	if c, err := evidence.ParseCertificate(raw); err == nil {
		ek, err := c.EK()
		if err != nil {
			return endorsement{}, failed(err.Error(), "give the certificate of the TPM's endorsement key")
		}
		return endorsement{ek: ek, cert: c}, nil
	}
	ek, err := evidence.ParseEK(raw)
	if err != nil {
		return endorsement{}, failed("the input is no platform identifier, endorsement key or its certificate: "+err.Error(), "capture it on the host with Get-PlatformIdentifier")
	}
	return endorsement{ek: ek}, nil
}

// machineOf is what a file says of the machine, as far as records can hold it.
func machineOf(p *evidence.Platform) *policy.Machine {
	fit := func(s string) string {
		if s = Clean(s); len(s) > policy.MaxNameLength {
			s = strings.ToValidUTF8(s[:policy.MaxNameLength], "")
		}
		return s
	}
	m := &policy.Machine{SMBIOS: fit(p.Machine), Serial: fit(p.Serial)}
	for _, mac := range p.MACs {
		if mac = macDigits(mac); policy.ValidMAC(mac) && len(m.MACs) < policy.MaxMACs && !slices.Contains(m.MACs, mac) {
			m.MACs = append(m.MACs, mac)
		}
	}
	if m.SMBIOS == "" && m.Serial == "" && len(m.MACs) == 0 {
		return nil
	}
	return m
}

// macDigits is a MAC address without what people write between its digits.
func macDigits(s string) string {
	return strings.ToUpper(strings.NewReplacer(":", "", "-", "", ".", "", " ", "").Replace(s))
}

// macText is a MAC address as Windows shows it.
func macText(digits string) string {
	var pairs []string
	for ; len(digits) > 1; digits = digits[2:] {
		pairs = append(pairs, digits[:2])
	}
	return strings.Join(pairs, "-")
}

// pendingEndorsement is the TPM of the one unknown host whose id begins with prefix.
func pendingEndorsement(ctx context.Context, s *Session, prefix string) (endorsement, error) {
	v, err := pendingHost(ctx, s, prefix)
	if err != nil {
		return endorsement{}, err
	}
	if v.Mode != "TPM" {
		return endorsement{}, failed("that host asked with a host key, not with a TPM", "use host add NAME --pending "+prefix)
	}
	return v.endorsement()
}

// endorsement is the TPM that the observation holds. A certificate that can't be read, or is for another key, counts as none.
func (v *PendingValue) endorsement() (endorsement, error) {
	damaged := failed("the observation does not hold that TPM's key", "give its platform identifier as a file: host add-tpm NAME < FILE")
	spki, err := base64.StdEncoding.DecodeString(v.SPKI)
	if err != nil {
		return endorsement{}, damaged
	}
	e := endorsement{why: "none for this key came when it asked"}
	if e.ek, err = evidence.ParseEK(spki); err != nil || e.ek.ID() != v.ID {
		return endorsement{}, damaged
	}
	if alg, err := strconv.ParseUint(v.facts["nameAlg"], 10, 16); err == nil && evidence.Bank(alg).Size() > 0 {
		e.ek.NameAlg = evidence.Bank(alg)
	}
	if bits, err := strconv.Atoi(v.facts["symmetric"]); err == nil {
		e.ek.Symmetric = bits
	}
	if der, err := base64.StdEncoding.DecodeString(v.facts["certificate"]); err == nil && len(der) > 0 {
		if c, err := evidence.ParseCertificate(der); err == nil {
			if certified, err := c.EK(); err == nil && certified.Same(e.ek) {
				e.cert = c
			}
		}
	}
	return e, nil
}

// chain says whether the certificate leads to a trusted root, in the words that host add-tpm would have for it.
func (v *PendingValue) chain(trust *appraise.Trust) {
	e, err := v.endorsement()
	switch {
	case err != nil:
		v.Why = Explain(err).Error()
	case e.cert == nil:
		v.Why = "it has no certificate: " + e.why
	default:
		if _, err = trust.Chain(e.cert); err != nil {
			v.Why = clipLong(err.Error())
		}
		v.Trusted = err == nil
	}
}
