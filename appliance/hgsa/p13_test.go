package hgsa

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"
)

// The tests named P13_nn, here and in the packages attest, evidence, appraise,
// health and policy, hold what we decided where the public record is silent:
// item nn of section 13 of hgsa.md. appliance/p13_test.go sees that none is
// forgotten.

func TestP13_02_TheClientReadsTheTypeBeforeTheStatus(t *testing.T) {
	for _, status := range []int{200, 400, 401, 403, 500, 503} {
		var refused *UnauthorizedErrorReply
		if _, err := ParseReply(status, EncodeReply(UnauthorizedError(), Style{})); !errors.As(err, &refused) {
			t.Errorf("status %d hides the reply: %v", status, err)
		}
	}
	var bare *StatusError
	for _, status := range []int{200, 404, 503} {
		if _, err := ParseReply(status, []byte("<html>proxy</html>")); !errors.As(err, &bare) || bare.Status != status {
			t.Errorf("status %d without a message: %v", status, err)
		}
	}
}

func TestP13_03_BinaryValuesAreReadInBothFormsAndMirrored(t *testing.T) {
	value := []byte{254, 255, 0, 62}
	for form, mirrored := range map[string]bool{`[254,255,0,62]`: false, `[-2,-1,0,62]`: false, `"\/v8APg=="`: true, `"/v8APg"`: true} {
		body := `{"__type":"TpmRequestContinue:#Microsoft.Windows.RemoteAttestation.Core","RequestedContent":[1],"RtpmPublicEndorsementKey":` + form + `,"RtpmNewContext":` + form + `}`
		r, style, err := DecodeAttest([]byte(body))
		if err != nil {
			t.Errorf("%s: %v", form, err)
			continue
		}
		m := r.(*TpmRequestContinue)
		if !bytes.Equal(m.RtpmNewContext, value) || !bytes.Equal(m.RtpmPublicEndorsementKey, value) || style.Base64 != mirrored {
			t.Errorf("%s: %+v %+v", form, m, style)
		}
		answer := string(EncodeReply(&TpmReplyContinue{value}, style))
		if strings.Contains(answer, `"\/v8APg=="`) != mirrored || strings.Contains(answer, `[254,255,0,62]`) == mirrored {
			t.Errorf("%s is answered by %s", form, answer)
		}
	}
}

func TestP13_04_GUIDsAreReadInEveryFormAndWrittenDashedInLowerCase(t *testing.T) {
	for _, form := range []string{`"0b8c6c1e-6d0e-4c6f-9f0a-3d1f6f6b2a11"`, `"{0B8C6C1E-6D0E-4C6F-9F0A-3D1F6F6B2A11}"`, `"HmyMCw5tb0yfCj0fb2sqEQ=="`,
		`[30,108,140,11,14,109,111,76,159,10,61,31,111,107,42,17]`} {
		r, _, err := DecodeHostKeyAttest([]byte(`{"SessionId":` + form + `,"RequestedContent":[1],"ProvidedContent":[]}`))
		if err != nil || r.SessionId != session {
			t.Errorf("%s: %v %v", form, r, err)
		}
	}
	reply := PolicyEvaluationError(PolicyIDs[0].ID)
	if got := string(EncodeReply(reply, Style{})); !strings.Contains(got, `"Reason":"`+strings.ToLower(PolicyIDs[0].ID.String())+`"`) {
		t.Error(got)
	}
	if got := string(EncodeReply(reply, Style{BinaryGUIDs: true})); strings.Contains(got, PolicyIDs[0].ID.String()) {
		t.Error("the switch for binary GUIDs does nothing:", got)
	}
}

func TestP13_14_ADModeIsReadOnEveryVersionSegment(t *testing.T) {
	for _, version := range []string{"", "v1.0/", "v2.0/"} {
		for _, service := range []string{"", "attestationservice.svc/"} {
			path := fmt.Sprintf("/Attestation/%s%sdomainattest", service, version)
			if r, ok := ParseRoute(path); !ok || r.Operation != OpDomainAttest || r.Operation.Mode() != ModeAD {
				t.Errorf("%s: %+v %t", path, r, ok)
			}
		}
	}
}
