package keys

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// Attributes of Secure Boot's variables (UEFI specification 8.2.1): non-volatile, boot services, runtime, time-based authenticated; and the
// one that says that data is added to what is there.
const (
	Attributes = 0x27
	appendData = 0x40
)

// ErrUpdate reports a change of a firmware variable that its own signature does not cover.
var ErrUpdate = errors.New("bad firmware update")

// Update is a change of one of Secure Boot's variables, which firmware makes when the key above it has signed: KEK for db and dbx, PK for
// KEK and PK.
type Update struct {
	Name   string    // PK, KEK, db or dbx
	Append bool      // add Data to the variable; else replace it
	Data   []byte    // signature lists
	Time   time.Time // whole seconds; firmware takes no replacement that is not newer than the variable
}

// Variable is the variable's name and GUID with the update's data.
func (u Update) Variable() (Variable, error) {
	switch u.Name {
	case "PK", "KEK":
		return Variable{u.Name, GlobalVariable, u.Data}, nil
	case "db", "dbx":
		return Variable{u.Name, SecurityDatabase, u.Data}, nil
	}
	return Variable{}, fmt.Errorf("%w: %q is no variable of Secure Boot", ErrUpdate, u.Name)
}

// Attributes are those with which the variable is to be written, and which the signature covers.
func (u Update) Attributes() uint32 {
	if u.Append {
		return Attributes | appendData
	}
	return Attributes
}

// signer is the role that may sign the update.
func (u Update) signer() string {
	if u.Name == "db" || u.Name == "dbx" {
		return KEK
	}
	return PK
}

// signed is what the signature covers: UEFI specification 8.2.2, step 2 of the construction.
func (u Update) signed() ([]byte, error) {
	v, err := u.Variable()
	if err != nil {
		return nil, err
	}
	b := append(UTF16(v.Name), v.GUID[:]...)
	b = binary.LittleEndian.AppendUint32(b, u.Attributes())
	return append(append(b, EFITime(u.Time)...), u.Data...), nil
}

// RolloverSteps are the updates that take a machine's firmware from one set to another, in the order of Rollover's states, each signed and
// as firmware setups and operating systems take it (.auth).
func RolloverSteps(old, next *Set, now time.Time) ([]Update, [][]byte, error) {
	steps := []struct {
		by *Set
		u  Update
	}{
		{old, Update{Name: "db", Append: true, Data: next.list(DB)}},
		{old, Update{Name: "KEK", Append: true, Data: next.list(KEK)}},
		{old, Update{Name: "PK", Data: next.list(PK)}},
		{next, Update{Name: "KEK", Data: next.list(KEK)}},
		{next, Update{Name: "db", Data: next.list(DB)}},
	}
	var updates []Update
	var files [][]byte
	for i, s := range steps {
		s.u.Time = now.Add(time.Duration(i) * time.Second) // a replacement must be newer than the step that added
		file, err := s.by.SignUpdate(s.u)
		if err != nil {
			return nil, nil, fmt.Errorf("step %d, %s: %w", i+1, s.u.Name, err)
		}
		updates, files = append(updates, s.u), append(files, file)
	}
	return updates, files, nil
}

// certPKCS7 is EFI_CERT_TYPE_PKCS7_GUID.
var certPKCS7 = guid(0x4aafd29d, 0x68df, 0x49ee, [8]byte{0x8a, 0xa9, 0x34, 0x7d, 0x37, 0x56, 0x65, 0xa7})

// authHeader is the size of EFI_TIME and WIN_CERTIFICATE_UEFI_GUID.
const authHeader = 16 + 24

// SignUpdate makes the file that firmware takes: EFI_VARIABLE_AUTHENTICATION_2 (UEFI specification 8.2.2) and the data. The same key and
// update give the same bytes.
func (s *Set) SignUpdate(u Update) ([]byte, error) {
	message, err := u.signed()
	if err != nil {
		return nil, err
	}
	role := u.signer()
	signer, err := s.Signer(role)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(message)
	signature, err := signer.Sign(rand.Reader, sum[:], crypto.SHA256)
	if err != nil {
		return nil, fmt.Errorf("sign %s: %w", u.Name, err)
	}
	if err := rsa.VerifyPKCS1v15(s.RSA(role), crypto.SHA256, sum[:], signature); err != nil {
		return nil, fmt.Errorf("sign %s: the signer's answer does not verify with the certificate", u.Name)
	}
	p7, err := detached(s.Certs[role], signature)
	if err != nil {
		return nil, err
	}
	b := EFITime(u.Time)
	b = binary.LittleEndian.AppendUint32(b, uint32(24+len(p7)))
	b = binary.LittleEndian.AppendUint16(b, 0x0200) // WIN_CERTIFICATE's revision
	b = binary.LittleEndian.AppendUint16(b, 0x0ef1) // WIN_CERT_TYPE_EFI_GUID
	return bytes.Join([][]byte{b, certPKCS7[:], p7, u.Data}, nil), nil
}

var (
	oidData   = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 1}
	oidSHA256 = asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 1}
	oidRSA    = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 1}
)

// detached is a PKCS #7 SignedData without content and without attributes. It is bare, without the ContentInfo that libraries put around
// it: the specification's words, and the only form that older firmware takes.
func detached(cert *x509.Certificate, signature []byte) ([]byte, error) {
	algorithm := func(b *cryptobyte.Builder, oid asn1.ObjectIdentifier) {
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1ObjectIdentifier(oid)
			b.AddASN1NULL() // firmware looks for the hash at a fixed offset, which counts this
		})
	}
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1Int64(1)
		b.AddASN1(cbasn1.SET, func(b *cryptobyte.Builder) { algorithm(b, oidSHA256) })
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) { b.AddASN1ObjectIdentifier(oidData) })
		b.AddASN1(cbasn1.Tag(0).ContextSpecific().Constructed(), func(b *cryptobyte.Builder) { b.AddBytes(cert.Raw) })
		b.AddASN1(cbasn1.SET, func(b *cryptobyte.Builder) {
			b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
				b.AddASN1Int64(1)
				b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
					b.AddBytes(cert.RawIssuer)
					b.AddASN1BigInt(cert.SerialNumber)
				})
				algorithm(b, oidSHA256)
				algorithm(b, oidRSA)
				b.AddASN1OctetString(signature)
			})
		})
	})
	return b.Bytes()
}
