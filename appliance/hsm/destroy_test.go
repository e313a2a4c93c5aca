package hsm

import (
	"strings"
	"testing"
)

// TestDestroysNothingThatGenerateDidNotMake has the requests that never reach a token.
func TestDestroysNothingThatGenerateDidNotMake(t *testing.T) {
	id := strings.Repeat("0a", IDSize)
	good := DestroyRequest{SPKI: []byte{1}, ID: id, Label: "guardhouse-signing-0a0a0a0a"}
	if err := good.Valid(); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*DestroyRequest){
		"a tenant's label":         func(r *DestroyRequest) { r.Label = "fabrikam" },
		"no label":                 func(r *DestroyRequest) { r.Label = "" },
		"another key's label":      func(r *DestroyRequest) { r.Label = "guardhouse-signing-0a0a0a0b" },
		"an unknown role":          func(r *DestroyRequest) { r.Label = "guardhouse-anything-0a0a0a0a" },
		"a label with more behind": func(r *DestroyRequest) { r.Label += "-copy" },
		"no identifier":            func(r *DestroyRequest) { r.ID = "" },
		"a shorter identifier":     func(r *DestroyRequest) { r.ID = "0a0a0a0a" },
		"upper case":               func(r *DestroyRequest) { r.ID = strings.ToUpper(id) },
		"no hexadecimal":           func(r *DestroyRequest) { r.ID = strings.Repeat("zz", IDSize) },
		"no public key":            func(r *DestroyRequest) { r.SPKI = nil },
		"a huge public key":        func(r *DestroyRequest) { r.SPKI = make([]byte, maxSPKI+1) },
	} {
		r := good
		change(&r)
		if err := r.Valid(); err == nil {
			t.Errorf("%s: accepted %+v", name, r)
		}
	}
}
