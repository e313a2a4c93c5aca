// Package tpm is the node's use of its TPM 2.0: reading PCRs, giving out the volume key for a boot that the image's builder signed, and
// keeping the node's secrets under a key that only this TPM gives out, and only to the image that made them.
//
// Promise of the volume key. It opens under [SignedPolicy] alone: PCR 4, 7, 11, 12, 13 as the builder predicted them, and a release that
// is not below the version floor in the TPM; both are compared by the TPM, not here. Once [TPM.Cap] has run nothing gets it until the
// next boot. Neither the key nor the owner's authorisation crosses the bus in clear.
//
// Promise. [Secrets] boxes each secret with AES-256-GCM under a 32-byte root key, its name bound in; the root key is sealed in the TPM
// under a [SealPolicy], crosses the bus encrypted to a key that the TPM holds, and lies in one locked page of memory until Close wipes
// it. A secret is replaced whole or not at all, power cuts included. A changed image, another TPM, a damaged box are each an error that
// says so and what to do; none of them makes a new root key where boxes of an old one exist.
//
// Limits. The policy here, [LiteralPCRs], holds PCR values and nothing else: every update of the image makes the root key unreadable
// ("not update-safe"). Whoever controls the running image can unseal. Go's garbage collector may leave copies of plaintext secrets that
// callers asked for; only the root key is locked. The TPM is not defended against a person who desolders it and answers as it.
package tpm

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
	"github.com/google/go-tpm/tpm2/transport/linuxtpm"
)

// TPM is an open TPM. Safe for concurrent use; commands run one after the other.
type TPM struct {
	mu   sync.Mutex
	t    transport.TPMCloser
	path string
	sent *atomic.Int64
}

// counted counts the commands that are sent: each takes a discrete TPM tens of milliseconds.
type counted struct {
	transport.TPMCloser
	sent *atomic.Int64
}

func (c counted) Send(b []byte) ([]byte, error) {
	c.sent.Add(1)
	return c.TPMCloser.Send(b)
}

func newTPM(t transport.TPMCloser, path string) *TPM {
	sent := new(atomic.Int64)
	return &TPM{t: counted{t, sent}, path: path, sent: sent}
}

// Commands is how many commands were sent since Open.
func (t *TPM) Commands() int { return int(t.sent.Load()) }

// Open opens a device ("/dev/tpmrm0") or, where there is no machine, an emulator that speaks raw TPM commands on a socket:
// "swtpm:127.0.0.1:2321" or "swtpm:/path/of/socket".
func Open(path string) (*TPM, error) {
	addr, emulated := strings.CutPrefix(path, "swtpm:")
	if !emulated {
		t, err := linuxtpm.Open(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, &Error{KindNoTPM, "this machine has no TPM 2.0, or it is off: there is no " + path, "enable the TPM 2.0 in the firmware's settings and reboot"}
		}
		if err != nil {
			return nil, fmt.Errorf("open TPM: %w; enable TPM 2.0 in the firmware's settings", err)
		}
		return newTPM(t, path), nil
	}
	network := "tcp"
	if strings.HasPrefix(addr, "/") {
		network = "unix"
	}
	conn, err := net.DialTimeout(network, addr, 5*time.Second)
	if err != nil {
		return nil, fmt.Errorf("open emulated TPM: %w", err)
	}
	return newTPM(transport.FromReadWriteCloser(conn), path), nil
}

// Close closes the device.
func (t *TPM) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.t.Close()
}

// ReadPCRs gives the SHA-256 bank's values of the PCRs, 32 bytes each. A TPM without that bank is an error.
func (t *TPM) ReadPCRs(pcrs ...uint) (map[uint][]byte, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return readPCRs(t.t, pcrs)
}

// readPCRs asks for all at once and again for what a TPM left out: it answers at most eight, and may answer fewer.
func readPCRs(t transport.TPM, pcrs []uint) (map[uint][]byte, error) {
	values := make(map[uint][]byte, len(pcrs))
	missing := slices.Clone(pcrs)
	for len(missing) > 0 {
		r, err := tpm2.PCRRead{PCRSelectionIn: selection(missing...)}.Execute(t)
		if err != nil {
			return nil, fmt.Errorf("read PCR %d: %w", missing[0], err)
		}
		digests := r.PCRValues.Digests
		for _, s := range r.PCRSelectionOut.PCRSelections {
			for _, pcr := range selected(s) { // digests come in the order of the registers' numbers
				if s.Hash != tpm2.TPMAlgSHA256 || len(digests) == 0 || len(digests[0].Buffer) != 32 || !slices.Contains(missing, pcr) {
					return nil, fmt.Errorf("read PCR %d: the TPM answers something else", pcr)
				}
				values[pcr], digests = digests[0].Buffer, digests[1:]
			}
		}
		left := slices.DeleteFunc(slices.Clone(missing), func(pcr uint) bool { return values[pcr] != nil })
		if len(left) == len(missing) {
			return nil, fmt.Errorf("read PCR %d: the TPM has no SHA-256 bank; enable it in the firmware's settings", missing[0])
		}
		missing = left
	}
	return values, nil
}

func selected(s tpm2.TPMSPCRSelection) (pcrs []uint) {
	for i, b := range s.PCRSelect {
		for bit := range 8 {
			if b&(1<<bit) != 0 {
				pcrs = append(pcrs, uint(8*i+bit))
			}
		}
	}
	return pcrs
}

func selection(pcrs ...uint) tpm2.TPMLPCRSelection {
	return tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{{Hash: tpm2.TPMAlgSHA256, PCRSelect: tpm2.PCClientCompatible.PCRs(pcrs...)}}}
}

// Measurements gives PCR 0 to 15 as lower-case hex.
func (t *TPM) Measurements() (map[int]string, error) {
	pcrs := make([]uint, 16)
	for i := range pcrs {
		pcrs[i] = uint(i)
	}
	values, err := t.ReadPCRs(pcrs...)
	if err != nil {
		return nil, err
	}
	m := make(map[int]string, len(values))
	for pcr, v := range values {
		m[int(pcr)] = hex.EncodeToString(v)
	}
	return m, nil
}

// Describe names the maker and the firmware version, for people.
func (t *TPM) Describe() (string, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	property := func(p tpm2.TPMPT) (uint32, error) {
		r, err := tpm2.GetCapability{Capability: tpm2.TPMCapTPMProperties, Property: uint32(p), PropertyCount: 1}.Execute(t.t)
		if err != nil {
			return 0, err
		}
		list, err := r.CapabilityData.Data.TPMProperties()
		if err != nil || len(list.TPMProperty) == 0 || list.TPMProperty[0].Property != p {
			return 0, errors.New("the TPM does not tell this property")
		}
		return list.TPMProperty[0].Value, nil
	}
	maker, err := property(tpm2.TPMPTManufacturer)
	if err != nil {
		return "", fmt.Errorf("describe TPM: %w", err)
	}
	firmware, err := property(tpm2.TPMPTFirmwareVersion1)
	if err != nil {
		return "", fmt.Errorf("describe TPM: %w", err)
	}
	name := strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return -1
		}
		return r
	}, string([]byte{byte(maker >> 24), byte(maker >> 16), byte(maker >> 8), byte(maker)}))
	return fmt.Sprintf("%s firmware %d.%d", strings.TrimSpace(name), firmware>>16, firmware&0xffff), nil
}

func sha256Sum(b []byte) []byte {
	sum := sha256.Sum256(b)
	return sum[:]
}
