package quote

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"slices"

	"guardhouse/appliance/evidence"
)

// maxWord bounds a text of the log in a reason, in characters: reasons share a line of the serial line.
const maxWord = 40

// Unsigned says in plain words why a boot is not one that was signed, as far as the boot log proves it: only what leads to the registers
// counts. pcrs are the registers (number -> lower-case hex), secureBoot the values of PCR 7 that were signed. It gives nothing where the
// log proves none of the reasons it knows: Secure Boot off, another dbx, drivers that firmware loaded from a disk, and what the boot
// stub took from beside the image, such as another command line. A driver's path is firmware's word; that one was loaded is proved.
func Unsigned(firmware []byte, pcrs map[int]string, secureBoot []string) []string {
	l, f := evidence.ParseLog(firmware)
	if f != nil {
		return nil
	}
	proved := func(pcr int) bool {
		value, err := hex.DecodeString(pcrs[pcr])
		if err != nil {
			return false
		}
		_, f := l.LeadsTo(pcr, value, evidence.SHA256)
		return f == nil
	}
	var why []string
	if proved(7) {
		if reason := secureBootReason(l, pcrs[7], secureBoot); reason != "" {
			why = append(why, reason)
		}
	}
	if proved(2) {
		for i := range l.Events {
			if e := &l.Events[i]; e.PCR == 2 && (e.Type == typeBootDriver || e.Type == typeRunDriver) && imagePath(e.Data) != "" {
				why = append(why, "firmware loaded the driver "+word(imagePath(e.Data))+" (PCR 2)")
				break // the others are in the boot log
			}
		}
	}
	if proved(12) {
		for i := range l.Events {
			if e := &l.Events[i]; e.PCR == 12 && e.Type == evidence.EventIPL {
				why = append(why, "the boot stub took another command line or a credential (PCR 12):"+quoted(word(text(e.Data))))
				break
			}
		}
	}
	return why
}

func word(s string) string {
	if r := []rune(s); len(r) > maxWord {
		return string(r[:maxWord-2]) + ".."
	}
	return s
}

// secureBootReason reads the settings in PCR 7. That dbx alone differs is proved by the value which the register would have with an
// empty one: every release is signed for that too.
func secureBootReason(l *evidence.Log, now string, signed []string) string {
	if slices.Contains(signed, now) {
		return ""
	}
	var dbx []byte
	without := make([]byte, sha256.Size) // PCR 7 with an empty dbx
	for i := range l.Events {
		e := &l.Events[i]
		if e.PCR != 7 || e.Type == evidence.EventNoAction {
			continue
		}
		digest := l.Digest(i, evidence.SHA256)
		if name, contents, ok := e.Variable(); ok && e.Type == evidence.EventVariable && l.HashesTo(i, evidence.SHA256) {
			switch name {
			case "SecureBoot":
				if !bytes.Equal(contents, []byte{1}) {
					return "Secure Boot is off"
				}
			case "dbx":
				dbx = contents
				digest = emptied(e.Data, len(contents))
			}
		}
		sum := sha256.Sum256(append(bytes.Clone(without), digest...))
		without = sum[:]
	}
	if len(dbx) == 0 || !slices.Contains(signed, hex.EncodeToString(without)) {
		return ""
	}
	return fmt.Sprintf("dbx was changed (%d bytes, SHA-256 %.8x) and the release has no policy for it", len(dbx), sha256.Sum256(dbx))
}

// emptied is the digest of the UEFI_VARIABLE_DATA of a setting without its contents, which are its last n bytes.
func emptied(data []byte, n int) []byte {
	b := bytes.Clone(data[:len(data)-n])
	binary.LittleEndian.PutUint64(b[24:], 0)
	sum := sha256.Sum256(b)
	return sum[:]
}
