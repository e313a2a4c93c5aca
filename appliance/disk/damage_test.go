package disk

import "testing"

func TestReadsWhatTheKernelSaysOfTheVolume(t *testing.T) {
	for line, want := range map[string]struct {
		sector int64
		damage bool
	}{
		"device-mapper: crypt: dm-1: INTEGRITY AEAD ERROR, sector 2056":                {2056, true},
		"device-mapper: crypt: INTEGRITY AEAD ERROR, sector 7":                         {0, true}, // the first of its 4096 bytes
		"device-mapper: crypt: dm-1: INTEGRITY AEAD ERROR, sector -1":                  {},
		"device-mapper: crypt: dm-1: INTEGRITY AEAD ERROR, sector 1 or so":             {},
		"device-mapper: crypt: dm-1: INTEGRITY AEAD ERROR, sector 9999999999999999999": {},
		"ledger: device-mapper: crypt: dm-1: INTEGRITY AEAD ERROR, sector 8":           {},
		"": {},
	} {
		d, ok := KernelDamage(line)
		if ok != want.damage || d.Sector != want.sector || ok != d.Changed {
			t.Errorf("%q: %+v %v", line, d, ok)
		}
	}
	for line, want := range map[string]string{
		"EXT4-fs error (device dm-1): ext4_lookup:1837: inode #2: comm ledger: bad": "ext4_lookup:1837: inode #2: comm ledger: bad",
		"EXT4-fs (dm-1): Remounting filesystem read-only":                           "Remounting filesystem read-only",
		"EXT4-fs (dm-1): mounted filesystem with ordered data mode":                 "",
		"EXT4-fs error (device vdc): of another disk":                               "",
	} {
		if got := KernelTrouble(line); got != want {
			t.Errorf("%q: %q", line, got)
		}
	}
}
