package uki

import (
	"crypto/sha256"
	"fmt"
)

// AuthenticodeSHA256 returns the image hash that firmware extends into PCR 4
// for a PE image and that Secure Boot signatures cover: the whole file
// without the checksum, the certificate table's directory entry and the
// certificate table itself ("Windows Authenticode Portable Executable
// Signature Format", Calculating the PE Image Hash; the firmware's reading
// of it is TCG PC Client Platform Firmware Profile 3.3.4.1).
//
// Bytes between the last section and the certificate table are hashed, as
// the specification demands; bytes after the certificate table are refused.
func AuthenticodeSHA256(file []byte) ([32]byte, error) {
	im, err := read(file)
	if err != nil {
		return [32]byte{}, err
	}
	checksum := im.optional + 64
	h := sha256.New()
	h.Write(file[:checksum])
	if im.certDir == 0 {
		h.Write(file[checksum+4 : im.headers])
	} else {
		h.Write(file[checksum+4 : im.certDir])
		h.Write(file[im.certDir+8 : im.headers])
	}
	at := im.headers
	for _, s := range im.sections {
		if s.rawSize == 0 {
			continue
		}
		if s.rawAt != at {
			return [32]byte{}, fmt.Errorf("%w: gap in the file before %q", ErrSection, s.name)
		}
		h.Write(file[s.rawAt : s.rawAt+s.rawSize])
		at = s.rawAt + s.rawSize
	}
	rest := int64(len(file)) - at
	if im.certSize > rest {
		return [32]byte{}, fmt.Errorf("%w: certificate table of %d bytes outside the file", ErrNotPE, im.certSize)
	}
	h.Write(file[at : int64(len(file))-im.certSize])
	return [32]byte(h.Sum(nil)), nil
}

// Certificates returns the certificate table of a signed image, cut from
// file; it is empty for an unsigned one.
func Certificates(file []byte) ([]byte, error) {
	im, err := read(file)
	if err != nil {
		return nil, err
	}
	if im.certSize > int64(len(file))-im.endOfSections {
		return nil, fmt.Errorf("%w: certificate table of %d bytes outside the file", ErrNotPE, im.certSize)
	}
	return file[int64(len(file))-im.certSize:], nil
}
