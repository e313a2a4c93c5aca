//go:build qemu

package site

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"guardhouse/appliance/disk"
)

// rawDisk is the data disk of a machine that is off, opened with the recovery secret by nothing but what is written down about its
// format: the header and its slot (appliance/disk, appliance/volume), dm-integrity's layout and dm-crypt's sectors (the kernel's sources,
// drivers/md/dm-integrity.c and dm-crypt.c). It is how the tests know where a file lies.
type rawDisk struct {
	t    *testing.T
	name string
	b    []byte

	data, tweak cipher.Block
	mac         []byte
	interleave  int64 // sectors of an area
	metadata    int64 // sectors of its check values
	start       int64 // first sector of the first area's check values
	sectors     int64 // of data
}

const (
	rawBody = 1 << 20 // where the integrity layer begins
	rawTag  = 48      // HMAC 32, IV 16
	rawUnit = 8       // sectors that share one
)

func (s *stage) rawDisk(t *testing.T) *rawDisk {
	t.Helper()
	r := &rawDisk{t: t, name: filepath.Join(s.Lab.Dir, "nodes", s.Name, "data.img")}
	var err error
	if r.b, err = os.ReadFile(r.name); err != nil {
		t.Fatal(err)
	}
	secret, err := s.RecoverySecret()
	if err != nil {
		t.Fatal(err)
	}
	keys, err := disk.Derive(volumeKey(t, r.b, secret), disk.LabelDisk, 96)
	if err != nil {
		t.Fatal(err)
	}
	if r.data, err = aes.NewCipher(keys[:32]); err == nil {
		r.tweak, err = aes.NewCipher(keys[32:64])
	}
	if err != nil {
		t.Fatal(err)
	}
	r.mac = keys[64:]
	sb := r.b[rawBody:]
	if string(sb[:8]) != "integrt\x00" || binary.LittleEndian.Uint16(sb[10:]) != rawTag || 1<<sb[28] != rawUnit {
		t.Fatalf("integrity superblock: %x", sb[:32])
	}
	le := binary.LittleEndian
	const entry, perSector = 8 + 8*rawUnit + rawTag, (512 - 8) / (8 + 8*rawUnit + rawTag) // of the journal; an entry is a multiple of 8
	section := int64(perSector*8*rawUnit + 8)
	r.interleave = 1 << sb[9]
	r.metadata = (r.interleave/rawUnit*rawTag + (128<<10 - 1)) >> 17 << 17 / 512
	r.start = rawBody/512 + 8 + section*int64(le.Uint32(sb[12:]))
	r.sectors = int64(le.Uint64(sb[16:])) &^ (rawUnit - 1)
	if entry%8 != 0 {
		t.Fatal("a journal entry is not padded")
	}
	return r
}

// volumeKey opens the header's recovery slot.
func volumeKey(t *testing.T, raw []byte, text string) []byte {
	t.Helper()
	h, damaged, err := disk.ReadHeader(bytes.NewReader(raw))
	if err != nil || damaged != "" {
		t.Fatalf("header: %v %s", err, damaged)
	}
	slot := h.Slot("recovery")
	if slot == nil {
		t.Fatal("no recovery slot")
	}
	var s struct {
		Version  int
		ID, Form string
		Box      []byte
	}
	if err := json.Unmarshal(slot.Data, &s); err != nil {
		t.Fatal(err)
	}
	secret := strings.ReplaceAll(text, "-", "")
	secret = secret[:len(secret)-2] // the check symbols
	key, err := hkdf.Key(sha256.New, []byte(secret), []byte(h.Volume), "guardhouse recovery", 32)
	if err != nil {
		t.Fatal(err)
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		t.Fatal(err)
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		t.Fatal(err)
	}
	volume, err := gcm.Open(nil, make([]byte, gcm.NonceSize()), s.Box, fmt.Appendf(nil, "%d/%s/%s/%s", s.Version, s.Form, s.ID, h.Volume))
	if err != nil {
		t.Fatal(err)
	}
	return volume
}

// place is where the unit with a sector of the volume lies on the disk, and its check value, in bytes.
func (r *rawDisk) place(sector int64) (data, tag int64) {
	area, within := sector/r.interleave, sector%r.interleave
	base := r.start + area*(r.interleave+r.metadata)
	return (base + r.metadata + within) * 512, base*512 + within/rawUnit*rawTag
}

// open decrypts a unit; ok is false where its check value is wrong.
func (r *rawDisk) open(sector int64, out []byte) (ok bool) {
	at, tag := r.place(sector)
	in, check := r.b[at:at+rawUnit*512], r.b[tag:tag+rawTag]
	m := hmac.New(sha256.New, r.mac)
	m.Write(binary.LittleEndian.AppendUint64(nil, uint64(sector)))
	m.Write(check[32:])
	m.Write(in)
	if !hmac.Equal(m.Sum(nil), check[:32]) {
		return false
	}
	var tw [16]byte
	r.tweak.Encrypt(tw[:], check[32:])
	for i := 0; i < len(in); i += 16 {
		for j := range tw {
			out[i+j] = in[i+j] ^ tw[j]
		}
		r.data.Decrypt(out[i:], out[i:])
		carry := byte(0)
		for j := range tw {
			out[i+j] ^= tw[j]
			tw[j], carry = tw[j]<<1|carry, tw[j]>>7
		}
		tw[0] ^= 0x87 * carry
	}
	return true
}

// plain writes the decrypted volume beside the disk, sparse, and gives its name.
func (r *rawDisk) plain() string {
	r.t.Helper()
	name := filepath.Join(r.t.TempDir(), "plain.img")
	f, err := os.Create(name)
	if err != nil {
		r.t.Fatal(err)
	}
	defer f.Close()
	unit, zero := make([]byte, rawUnit*512), make([]byte, rawUnit*512)
	for sector := int64(0); sector < r.sectors; sector += rawUnit {
		if !r.open(sector, unit) {
			r.t.Fatalf("sector %d of %d does not open", sector, r.sectors)
		}
		if !bytes.Equal(unit, zero) {
			if _, err := f.WriteAt(unit, sector*512); err != nil {
				r.t.Fatal(err)
			}
		}
	}
	if err := f.Truncate(r.sectors * 512); err != nil {
		r.t.Fatal(err)
	}
	return name
}

// blocks are the sectors at which the blocks of a file begin.
func (r *rawDisk) blocks(plain, file string) (sectors []int64) {
	r.t.Helper()
	for _, word := range strings.Fields(debugfs(r.t, plain, "blocks "+file)) {
		n, err := strconv.ParseInt(word, 10, 64)
		if err != nil {
			r.t.Fatalf("blocks of %s: %q", file, word)
		}
		if n > 0 {
			sectors = append(sectors, n*rawUnit)
		}
	}
	if len(sectors) == 0 {
		r.t.Fatalf("%s has no blocks", file)
	}
	return sectors
}

// list is what is in a folder, sorted.
func (r *rawDisk) list(plain, folder string) (names []string) {
	r.t.Helper()
	for line := range strings.Lines(debugfs(r.t, plain, "ls -p "+folder)) { // /inode/mode/uid/gid/name/size/
		if f := strings.Split(line, "/"); len(f) >= 7 && f[5] != "." && f[5] != ".." {
			names = append(names, f[5])
		}
	}
	slices.Sort(names)
	if len(names) == 0 {
		r.t.Fatalf("nothing in %s", folder)
	}
	return names
}

func debugfs(t *testing.T, image, command string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "/sbin/debugfs", "-R", command, image).Output()
	if err != nil {
		t.Fatalf("debugfs %s: %v", command, err)
	}
	return string(out)
}

// flip changes one bit of a unit's ciphertext on the disk; doing it again undoes it.
func (r *rawDisk) flip(sector int64) {
	r.t.Helper()
	at, _ := r.place(sector)
	f, err := os.OpenFile(r.name, os.O_RDWR, 0)
	if err != nil {
		r.t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 1)
	if _, err = f.ReadAt(b, at+1000); err == nil {
		_, err = f.WriteAt([]byte{b[0] ^ 4}, at+1000)
	}
	if err != nil {
		r.t.Fatal(err)
	}
}
