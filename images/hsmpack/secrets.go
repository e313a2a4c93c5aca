package hsmpack

import (
	"bytes"
	"crypto/x509"
	"encoding/asn1"
	"regexp"
	"unicode/utf8"
)

// finding is a secret in a file; line counts from 1.
type finding struct {
	line int
	what string
}

var (
	// A header alone is in every TLS library; with its body it is a key.
	privatePEM = regexp.MustCompile(`^-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----\s+([A-Za-z-]+: [^\n]*\s+)*[A-Za-z0-9+/=]{16}`)
	ageKey     = regexp.MustCompile(`^AGE-SECRET-KEY-1[0-9A-Z]{20}`)
	// pin-value of a PKCS#11 URI (RFC 7512).
	uriPIN = regexp.MustCompile(`(?i)pkcs11:[^\s"']*pin-value=[^\s"'&;]`)
	// A setting whose name ends in one of these words and that has a value. Values that only say where the secret is are fine.
	settingPIN = regexp.MustCompile(`(?im)^[ \t]*-{0,2}["']?(?:[a-z0-9_.]*[-_. ]|[a-z0-9]*(?:user|so|login|hsm|slot|token|crypto))?(?:pin|passwd|password|passphrase|secret|authkey)["']?[ \t]*[:=][ \t]*["']?([^\s"';#,}]+)`)
	whereOnly  = regexp.MustCompile(`(?i)^(env:|file:|/|\$|<|null$|none$|true$|false$|yes$|no$|0$)`)
)

// maxHead is how far behind its first line the body of a PEM key begins at most, headers included.
const maxHead = 4096

// scan finds what must not be in an image: in any file private keys, in text PINs too.
func scan(data []byte) []finding {
	var out []finding
	for _, at := range []int{findAfter(data, "-----BEGIN ", privatePEM), findAfter(data, "AGE-SECRET-KEY-1", ageKey)} {
		if at >= 0 {
			out = append(out, finding{lineOf(data, at), "a private key"})
		}
	}
	if what := privateDER(data); what != "" {
		out = append(out, finding{1, what})
	}
	if bytes.IndexByte(data, 0) < 0 && utf8.Valid(data) {
		out = append(out, scanText(data)...)
	}
	return out
}

// findAfter looks with re only where begin stands: libraries are large and a regular expression is slow.
func findAfter(data []byte, begin string, re *regexp.Regexp) int {
	for at := 0; ; at++ {
		i := bytes.Index(data[at:], []byte(begin))
		if i < 0 {
			return -1
		}
		at += i
		if re.Match(data[at:min(len(data), at+maxHead)]) {
			return at
		}
	}
}

func scanText(text []byte) []finding {
	var out []finding
	if at := uriPIN.FindIndex(text); at != nil {
		out = append(out, finding{lineOf(text, at[0]), "a PIN in a PKCS#11 URI"})
	}
	for _, at := range settingPIN.FindAllSubmatchIndex(text, -1) {
		if !whereOnly.Match(text[at[2]:at[3]]) {
			out = append(out, finding{lineOf(text, at[2]), "a PIN or password"})
		}
	}
	return out
}

func lineOf(data []byte, at int) int { return 1 + bytes.Count(data[:at], []byte("\n")) }

// privateDER recognises files that are one binary key or key store.
func privateDER(data []byte) string {
	if len(data) < 32 || len(data) > 1<<20 || data[0] != 0x30 {
		return ""
	}
	if _, err := x509.ParsePKCS8PrivateKey(data); err == nil {
		return "a private key (PKCS#8)"
	}
	if _, err := x509.ParsePKCS1PrivateKey(data); err == nil {
		return "a private key (PKCS#1)"
	}
	if _, err := x509.ParseECPrivateKey(data); err == nil {
		return "a private key (SEC 1)"
	}
	var pfx struct {
		Version int
		Content asn1.RawValue
		MAC     asn1.RawValue `asn1:"optional"`
	}
	if rest, err := asn1.Unmarshal(data, &pfx); err == nil && len(rest) == 0 && pfx.Version == 3 && pfx.Content.IsCompound {
		return "a PKCS#12 store"
	}
	var sealed struct {
		Algorithm struct {
			ID         asn1.ObjectIdentifier
			Parameters asn1.RawValue `asn1:"optional"`
		}
		Data []byte
	}
	if rest, err := asn1.Unmarshal(data, &sealed); err == nil && len(rest) == 0 {
		return "an encrypted private key (PKCS#8)"
	}
	return ""
}
