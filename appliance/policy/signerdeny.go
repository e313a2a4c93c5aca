package policy

import (
	"fmt"
	"time"
)

// SignerDeny is the body of CmdSignerDeny: health certificates of one attestation signer, own or foreign, that were issued before a moment
// are refused (row B25).
type SignerDeny struct {
	Thumbprint string `json:"thumbprint"` // lower-case hex SHA-256 of the signer's certificate
	Before     int64  `json:"before"`     // unix seconds
}

// checkDenyDate is why a deny date of so far may not become another one. It can't be taken back, so one in the future would refuse every
// host until then. A second is allowed: who asked may have read the time less exactly than who decides.
func checkDenyDate(c Command, sofar, before int64) error {
	switch {
	case before < sofar:
		return &Refused{c.Kind, "the deny date may only move forward", "it is " + time.Unix(sofar, 0).UTC().Format("2006-01-02 15:04:05 UTC") + " already"}
	case c.At.Latest == 0:
		return &Refused{c.Kind, "without a trusted time it can't be told whether the deny date lies in the future", "wait until time status says trusted"}
	case before > NextSecond(c.At)+1:
		return &Refused{c.Kind, "the deny date lies in the future, and it could not be taken back", "use the present time"}
	}
	return nil
}

func applySignerDeny(s *State, c Command) (Result, error) {
	b, err := decode[SignerDeny](c)
	if err != nil {
		return Result{}, err
	}
	until := time.Unix(b.Before, 0).UTC().Format("2006-01-02 15:04:05 UTC")
	if t, ok := s.Signers[b.Thumbprint]; ok {
		if err := checkDenyDate(c, t.DenyIssuedBefore, b.Before); err != nil {
			return Result{}, err
		}
		t.DenyIssuedBefore = b.Before
		s.Signers[b.Thumbprint] = t
		return Result{Message: "health certificates of attestation signer " + t.Name + " issued before " + until + " are refused", Subject: b.Thumbprint}, nil
	}
	for _, k := range s.AttestationSigners() {
		if Thumbprint(k.Certificate) != b.Thumbprint {
			continue
		}
		if err := checkDenyDate(c, k.DenyIssuedBefore, b.Before); err != nil {
			return Result{}, err
		}
		k.DenyIssuedBefore = b.Before
		s.Keys[k.Ref] = k
		return Result{Message: "health certificates of this service's attestation signer " + k.Label + " issued before " + until + " are refused", Subject: b.Thumbprint}, nil
	}
	return Result{}, &Refused{c.Kind, fmt.Sprintf("there is no attestation signer %.64q", b.Thumbprint), "see attestation-signer list"}
}
