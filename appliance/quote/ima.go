package quote

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
)

// Bounds of the kernel's own log, of IMA. It is kept in memory by the kernel and begins with one entry over PCR 0 to 9; what follows
// depends on the kernel's policy.
const (
	MaxKernelLog     = 1 << 20 // bytes
	maxKernelEntries = 1 << 13
)

// kernelEntry is one entry: the digest that went into PCR 10 of the SHA-256 bank, and the text that tells what it is of.
type kernelEntry struct {
	digest [32]byte
	name   string
}

// violated is what IMA extends where it could not measure a file that somebody was writing to.
var violated = [32]byte(bytes.Repeat([]byte{0xff}, 32))

// parseKernelLog reads binary_runtime_measurements (Linux, Documentation/security/IMA-templates.rst): for each entry the PCR, the SHA-1 of
// its data, the name of the template, the data; numbers in the machine's order. The second field of each template that is known here
// (ima-ng, ima-sig) is a name. Since Linux 5.8 the SHA-256 bank is extended with the SHA-256 of the data.
func parseKernelLog(b []byte) ([]kernelEntry, error) {
	if len(b) > MaxKernelLog {
		return nil, fmt.Errorf("the kernel's log is larger than %d bytes", MaxKernelLog)
	}
	short := errors.New("the kernel's log is cut short")
	field := func(b []byte) (f, rest []byte, ok bool) {
		if len(b) < 4 || uint64(binary.LittleEndian.Uint32(b)) > uint64(len(b)-4) {
			return nil, nil, false
		}
		n := 4 + int(binary.LittleEndian.Uint32(b))
		return b[4:n], b[n:], true
	}
	var list []kernelEntry
	for len(b) > 0 {
		if len(b) < 24 || len(list) == maxKernelEntries {
			return nil, short
		}
		pcr, sum := binary.LittleEndian.Uint32(b), b[4:24]
		template, rest, ok := field(b[24:])
		if !ok {
			return nil, short
		}
		data, rest, ok := field(rest)
		if !ok {
			return nil, short
		}
		if pcr != 10 || string(template) != "ima-ng" && string(template) != "ima-sig" {
			return nil, fmt.Errorf("the kernel's log has an entry of PCR %d and template %.16q", pcr, template)
		}
		e := kernelEntry{digest: sha256.Sum256(data)}
		if bytes.Equal(sum, make([]byte, len(sum))) {
			e.digest = violated
		}
		if _, after, ok := field(data); ok {
			if name, _, ok := field(after); ok {
				e.name = text(name)
			}
		}
		list, b = append(list, e), rest
	}
	return list, nil
}

// kernelRegister is PCR 10 after these entries.
func kernelRegister(list []kernelEntry) (pcr [32]byte) {
	for _, e := range list {
		pcr = sha256.Sum256(append(pcr[:], e.digest[:]...))
	}
	return pcr
}

func (e kernelEntry) what() string {
	switch {
	case e.digest == violated:
		return "the kernel could not measure a file that was being changed" + quoted(e.name)
	case e.name == "boot_aggregate":
		return "the kernel sums up PCR 0 to 9"
	}
	return "the kernel measured what it loaded" + quoted(e.name)
}
