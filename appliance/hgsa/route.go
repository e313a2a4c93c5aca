package hgsa

import "strings"

// Operation is one of the five operations of section 2.
type Operation string

// The operations; the values are the last path segment in lower case.
const (
	OpAttest              Operation = "attest"
	OpDomainAttest        Operation = "domainattest"
	OpHostKeyAttest       Operation = "hostkeyattest"
	OpGetInfo             Operation = "getinfo"
	OpSigningCertificates Operation = "signingcertificates"
)

// Method is the one HTTP method of the operation.
func (o Operation) Method() string {
	switch o {
	case OpGetInfo, OpSigningCertificates:
		return "GET"
	}
	return "POST"
}

// Mode is the operation mode that serves the operation (6.2); ModeUnknown for
// the two informational ones.
func (o Operation) Mode() AttestationOperationMode {
	switch o {
	case OpAttest:
		return ModeTPM
	case OpDomainAttest:
		return ModeAD
	case OpHostKeyAttest:
		return ModeHostKey
	}
	return ModeUnknown
}

// BodyLimit is the largest request body of the operation, in bytes.
func (o Operation) BodyLimit() int64 {
	if o == OpAttest {
		return MaxAttestBody
	}
	return MaxBody
}

// Route is what a path asks for. Version is "v1.0", "v2.0" or empty.
type Route struct {
	Operation Operation
	Version   string
}

// ParseRoute matches a decoded URL path as the genuine service and the SQL
// drivers use it: in any case, with an optional attestationservice.svc segment,
// an optional version segment, doubled slashes and a trailing slash. ok is
// false for every other path, which is then a 404.
func ParseRoute(path string) (r Route, ok bool) {
	if len(path) > 256 {
		return Route{}, false
	}
	var parts []string
	for _, s := range strings.Split(strings.ToLower(path), "/") {
		if s != "" {
			parts = append(parts, s)
		}
	}
	if len(parts) < 2 || len(parts) > 4 || parts[0] != "attestation" {
		return Route{}, false
	}
	parts = parts[1:]
	if parts[0] == "attestationservice.svc" {
		parts = parts[1:]
	}
	if len(parts) > 0 && (parts[0] == "v1.0" || parts[0] == "v2.0") {
		r.Version, parts = parts[0], parts[1:]
	}
	if len(parts) != 1 {
		return Route{}, false
	}
	switch op := Operation(parts[0]); op {
	case OpAttest, OpDomainAttest, OpHostKeyAttest, OpGetInfo, OpSigningCertificates:
		r.Operation = op
		return r, true
	}
	return Route{}, false
}
