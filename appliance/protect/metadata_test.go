package protect

import (
	"bytes"
	"net/http"
	"testing"

	"guardhouse/appliance/kps"
	"guardhouse/appliance/policy"
)

// TestMetadataIsSignedAtOnceByTheInstalledCommunicationsCertificate is B21: another certificate of the same key, then another key.
func TestMetadataIsSignedAtOnceByTheInstalledCommunicationsCertificate(t *testing.T) {
	n := newNode(t)
	k := testKeys()
	signedBy := func(want []byte) {
		t.Helper()
		m, err := kps.ParseMetadata(n.do(http.MethodGet, kps.MetadataPath, nil).Body.Bytes())
		if err != nil || m.Signature != kps.SignatureValid || m.CommunicationsCertificate == nil {
			t.Fatalf("%v, %+v", err, m)
		}
		if !bytes.Equal(m.CommunicationsCertificate.Raw, want) {
			t.Errorf("signed as %s", m.CommunicationsCertificate.Subject)
		}
	}
	var first []byte
	n.changeKey(policy.RoleCommunications, func(k *policy.Key) { first = k.Certificate })
	signedBy(first)
	renewed := certify(t, "communications by a CA", k[communications])
	n.changeKey(policy.RoleCommunications, func(k *policy.Key) { k.Certificate = renewed.Raw })
	signedBy(renewed.Raw)
	next := certify(t, "communications, another key", k[spareSigning])
	n.changeKey(policy.RoleCommunications, func(k *policy.Key) { k.Primary = false })
	n.change(func(s *policy.State) { r := record(policy.RoleCommunications, next); s.Keys[r.Ref] = r })
	signedBy(next.Raw)
}
