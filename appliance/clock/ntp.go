package clock

import (
	"bytes"
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/beevik/ntp"
)

// Key is a symmetric key shared with servers. Algorithm is sha1, sha256, sha512, aes128 or aes256 (CMAC); the codes are cut to 20 bytes as
// RFC 7822 wants it.
type Key struct {
	ID        uint16 `json:"id"`
	Algorithm string `json:"algorithm"`
	Secret    []byte `json:"secret"`
}

// algorithms are those of a Key. MD5 is left out: it protects nothing.
var algorithms = map[string]struct {
	kind     ntp.AuthType
	min, max int // bytes of the secret
}{
	"sha1": {ntp.AuthSHA1, 16, 32}, "sha256": {ntp.AuthSHA256, 16, 32}, "sha512": {ntp.AuthSHA512, 16, 32},
	"aes128": {ntp.AuthAES128, 16, 16}, "aes256": {ntp.AuthAES256, 32, 32},
}

// CheckKey says what is wrong with a key; it never names the secret.
func CheckKey(k Key) error {
	a, ok := algorithms[k.Algorithm]
	switch {
	case k.ID == 0:
		return errors.New("the number of a time key is 1 to 65535")
	case !ok:
		return fmt.Errorf("time key %d: algorithm %q is none of sha1, sha256, sha512, aes128, aes256", k.ID, k.Algorithm)
	case len(k.Secret) < a.min || len(k.Secret) > a.max:
		return fmt.Errorf("time key %d: a secret for %s has %d to %d bytes, not %d", k.ID, k.Algorithm, a.min, a.max, len(k.Secret))
	}
	return nil
}

// Kiss is a server's refusal to answer (RFC 5905 section 7.4): RATE for asking too often, DENY or RSTR for not being welcome.
type Kiss struct{ Code string }

func (k *Kiss) Error() string {
	switch k.Code {
	case "RATE":
		return "the server wants to be asked less often (kiss of death RATE)"
	case "DENY", "RSTR":
		return fmt.Sprintf("the server refuses to answer this node (kiss of death %s); have its access list changed or use another server", k.Code)
	}
	return fmt.Sprintf("the server refuses to answer (kiss of death %q)", k.Code)
}

func kissed(err error) bool {
	var k *Kiss
	return errors.As(err, &k)
}

// QueryNTP asks one server ("host" or "host:port") by NTP version 4. Every answer is validated as the library's Validate does (RFC 5905
// sanity, kiss of death, stratum, leap status, the code of the symmetric key where the server has one); the response's own Time is never
// used. Times are taken by the clock's Raw, so that stepping or slewing the wall clock meanwhile does not disturb an answer. NTP's 32 bits of
// seconds are read as 1970 to 2106, eras 0 and 1. key finds a Key by its number.
func QueryNTP(c Clock, key func(id uint16) (Key, bool)) func(ctx context.Context, s Server) (Sample, error) {
	zero := time.Unix(0, 0)
	return func(ctx context.Context, s Server) (Sample, error) {
		opt := ntp.QueryOptions{Timeout: queryTimeout, GetSystemTime: func() time.Time { return zero.Add(c.Read().Raw) }, Extensions: []ntp.Extension{sane{}}}
		if d, ok := ctx.Deadline(); ok {
			opt.Timeout = time.Until(d)
		}
		opt.Dialer = func(_, remote string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "udp", remote)
		}
		host, port, err := net.SplitHostPort(s.Address)
		if err != nil {
			host, port = strings.Trim(s.Address, "[]"), "123"
		} else if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
			return Sample{}, fmt.Errorf("%q has no valid port", s.Address)
		}
		if s.Key != 0 {
			k, ok := key(s.Key)
			if !ok {
				return Sample{}, fmt.Errorf("%s: this node has no time key %d (time key add)", s.Address, s.Key)
			}
			if err := CheckKey(k); err != nil {
				return Sample{}, fmt.Errorf("%s: %w", s.Address, err)
			}
			opt.Auth = ntp.AuthOptions{Type: algorithms[k.Algorithm].kind, Key: fmt.Sprintf("HEX:%x", k.Secret), KeyID: uint32(k.ID)}
		}
		r, err := ntp.QueryWithOptions(net.JoinHostPort(host, port), opt)
		if errors.Is(err, ntp.ErrAuthFailed) || errors.Is(err, ntp.ErrAuthNAK) {
			return Sample{}, fmt.Errorf("%s does not prove that it has time key %d; compare the keys on both sides", s.Address, s.Key)
		}
		if err != nil {
			return Sample{}, fmt.Errorf("ask %s: %w", s.Address, err)
		}
		if r.IsKissOfDeath() {
			return Sample{}, fmt.Errorf("%s: %w", s.Address, &Kiss{r.KissCode})
		}
		if err := r.Validate(); err != nil {
			return Sample{}, fmt.Errorf("%s gave an unusable answer: %w", s.Address, err)
		}
		return sampleOf(r, zero, s.Key != 0), nil
	}
}

// sane refuses what the library does not survive or read: it shifts by the two exponents of a message as they came, and panics at -128.
type sane struct{}

// ProcessQuery implements ntp.Extension.
func (sane) ProcessQuery(*bytes.Buffer) error { return nil }

// ProcessResponse implements ntp.Extension. Poll intervals of RFC 5905 end at 2^17 s; some servers have precisions below a nanosecond.
func (sane) ProcessResponse(b []byte) error {
	if len(b) < 48 || len(b) > 1024 {
		return fmt.Errorf("an answer of %d bytes is none", len(b))
	}
	if poll, precision := int8(b[2]), int8(b[3]); poll < -32 || poll > 32 || precision < -63 || precision > 4 {
		return fmt.Errorf("an answer with the poll interval 2^%d s and the precision 2^%d s makes no sense", poll, precision)
	}
	return nil
}

func sampleOf(r *ntp.Response, zero time.Time, verified bool) Sample {
	at := r.Timestamps.ClientRecv
	// The way there and back was measured by this machine's oscillator, too.
	distance := r.RootDistance + r.Precision + ppm(max(r.RTT, 0), UnmeasuredPPM)
	n := Sample{Raw: at.Sub(zero), UTC: at.Add(r.ClockOffset).UTC().Round(0), Distance: distance, Stratum: int(r.Stratum), Verified: verified}
	switch r.Leap {
	case ntp.LeapAddSecond:
		n.Leap = 1
	case ntp.LeapDelSecond:
		n.Leap = -1
	}
	return n
}

// BootID is the kernel's random name for this boot.
func BootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("read boot id: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}

// SameKeys compares two sets of keys without telling how far they agree.
func SameKeys(a, b []Key) bool {
	if len(a) != len(b) {
		return false
	}
	same := 1
	for i := range a {
		if a[i].ID != b[i].ID || a[i].Algorithm != b[i].Algorithm {
			return false
		}
		same &= subtle.ConstantTimeCompare(a[i].Secret, b[i].Secret)
	}
	return same == 1
}
