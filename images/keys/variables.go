package keys

import (
	"crypto/x509"
	"encoding/binary"
	"time"
	"unicode/utf16"
)

// Variable is a firmware variable of Secure Boot. Data is what the firmware keeps and measures: signature lists.
type Variable struct {
	Name string
	GUID [16]byte
	Data []byte
}

// GUIDs of UEFI specification 32.4.1, in the firmware's byte order.
var (
	GlobalVariable   = guid(0x8be4df61, 0x93ca, 0x11d2, [8]byte{0xaa, 0x0d, 0x00, 0xe0, 0x98, 0x03, 0x2b, 0x8c})
	SecurityDatabase = guid(0xd719b2cb, 0x3d3a, 0x4596, [8]byte{0xa3, 0xbc, 0xda, 0xd0, 0x0e, 0x67, 0x65, 0x6f})
	certX509         = guid(0xa5c059a1, 0x94e4, 0x4aa7, [8]byte{0x87, 0xb5, 0xab, 0x15, 0x5c, 0x2b, 0xf0, 0x72})
	certSHA256       = guid(0xc1c41626, 0x504c, 0x4092, [8]byte{0xac, 0xa9, 0x41, 0xf9, 0x36, 0x93, 0x43, 0x28})
)

// Variables are PK, KEK, db and dbx as a machine holds them that trusts this set alone. dbx is a list of signature lists, nil for none.
func (s *Set) Variables(dbx []byte) []Variable { return Alone(s).Variables(dbx) }

// Authority is the EFI_SIGNATURE_DATA of the db certificate, which firmware measures when it starts an image that it signed.
func (s *Set) Authority() []byte { return signatureData(s.Owner, s.Certs[DB].Raw) }

func (s *Set) list(role string) []byte { return CertList(s.Owner, s.Certs[role]) }

// CertList is an EFI_SIGNATURE_LIST with one certificate (UEFI specification 32.4.1).
func CertList(owner [16]byte, cert *x509.Certificate) []byte {
	return signatureList(certX509, signatureData(owner, cert.Raw))
}

// HashList is an EFI_SIGNATURE_LIST with one image hash: in dbx it forbids that image.
func HashList(owner [16]byte, image [32]byte) []byte {
	return signatureList(certSHA256, signatureData(owner, image[:]))
}

func signatureData(owner [16]byte, data []byte) []byte { return append(owner[:], data...) }

func signatureList(kind [16]byte, data []byte) []byte {
	b := append([]byte(nil), kind[:]...)
	b = binary.LittleEndian.AppendUint32(b, uint32(28+len(data)))
	b = binary.LittleEndian.AppendUint32(b, 0) // no header
	b = binary.LittleEndian.AppendUint32(b, uint32(len(data)))
	return append(b, data...)
}

// UTF16 is a name in the firmware's encoding, without an end.
func UTF16(s string) []byte {
	var b []byte
	for _, u := range utf16.Encode([]rune(s)) {
		b = binary.LittleEndian.AppendUint16(b, u)
	}
	return b
}

// EFITime is an EFI_TIME of a variable's timestamp: no fractions, no zone.
func EFITime(t time.Time) []byte {
	t = t.UTC()
	b := binary.LittleEndian.AppendUint16(nil, uint16(t.Year()))
	b = append(b, byte(t.Month()), byte(t.Day()), byte(t.Hour()), byte(t.Minute()), byte(t.Second()), 0)
	return append(b, make([]byte, 8)...)
}
