package images

import (
	"crypto"
	"crypto/sha256"
	"encoding/json"
	"fmt"

	"guardhouse/images/keys"
	"guardhouse/images/measure"
)

// signers are the key sets in the order in which they sign.
func (b *build) signers() []*keys.Set { return append([]*keys.Set{b.Keys}, b.Also...) }

// Boots are the machines on which an image that set and then also have signed opens the disk: those that hold set alone, those on their way
// from one of also to set, each with an empty dbx and with each of the given contents. A dbx under which no machine would start the image
// is an error.
func Boots(set *keys.Set, also []*keys.Set, dbx [][]byte) (boots []measure.Boot, err error) {
	trusts := []keys.Trust{keys.Alone(set)}
	for _, old := range also {
		states := keys.Rollover(old, set)
		trusts = append(trusts, states[:len(states)-1]...) // the last is set alone
	}
	signers := append([]*keys.Set{set}, also...)
	for _, content := range append([][]byte{nil}, dbx...) {
		name := "dbx empty"
		if len(content) > 0 {
			name = fmt.Sprintf("dbx %.8x", sha256.Sum256(content))
		}
		for _, t := range trusts {
			firmware := measure.FirmwareIn(t, content, signers...)
			if firmware == nil {
				return nil, fmt.Errorf("firmware with %s has a certificate in dbx that signs this image, and would not start it; leave that key set out of the build", name)
			}
			boots = append(boots, measure.Boot{Name: t.Name + ", " + name, Firmware: firmware})
		}
	}
	return boots, nil
}

// policies signs the boots of the image with the policy key of each set.
func (b *build) policies(img []byte) ([]byte, error) {
	boots, err := Boots(b.Keys, b.Also, b.DBX)
	if err != nil {
		return nil, err
	}
	var signers []crypto.Signer
	for _, set := range b.signers() {
		signer, err := set.Signer(keys.Policy)
		if err != nil {
			return nil, err
		}
		signers = append(signers, signer)
	}
	f, err := measure.SignPolicies(img, b.Release.Number, boots, signers...)
	if err != nil {
		return nil, err
	}
	text, err := json.MarshalIndent(f, "", " ")
	return append(text, '\n'), err
}
