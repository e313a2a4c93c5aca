// Package update is how a node gets from one release to the next: it reads update bundles, writes the slot that doesn't run, has
// firmware start it once, and shuts older releases out when the new one has proved itself (Updater).
//
// A bundle (the file guardhouse-update) is one release in one stream:
//
//	"guardhouse-upd1\n"                        16 bytes
//	length of the manifest, signatures         2 x uint32, big-endian
//	manifest                                   JSON (Manifest)
//	for each signature: key id, signature      32 and 256 bytes; RSASSA-PKCS1-v1_5 with SHA-256 over signedPrefix and the manifest
//	signed boots (tpm.PolicyFile), SBOM, image the manifest says how long, and their SHA-256
//
// Promise: nothing of a bundle is believed before a release key that the running image carries has signed its manifest, and no part is
// acknowledged before its hash agrees; for the image, which comes last, also not before the stream has ended. A bundle that is cut off,
// changed, in another order or longer than it says is refused. At most about a MiB of it is in memory, whatever it
// claims.
//
// At every moment of an update one slot holds a whole release that the version floor allows, and firmware comes to it; the tests of
// board/lab/fault cut the power at every step. The running slot is never written.
//
// Limits: the image goes to its writer while it is being hashed, so the writer must treat it as nobody's until UKI returns nil. Whether a
// release may follow the running one (floor, stored format, unsealing) is for Judge, before it is written; that PCR 4 and 11 of its signed
// boots are those of its image is the builder's word (mkimage verify-release checks it). Signatures have no dates: a release is never too
// old by time, only by its number. Reading the firmware's log is for finding the way out of a failed boot, never for trust.
package update

import (
	"bytes"
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"

	"guardhouse/appliance/tpm"
)

// Limits of a bundle, in bytes.
const (
	MaxManifest = 64 << 10
	MaxPolicy   = tpm.MaxPolicyFile
	MaxSBOM     = 16 << 20
	MaxUKI      = 256 << 20
)

const (
	magic         = "guardhouse-upd1\n"
	signedPrefix  = "guardhouse release 1\n" // so that a signature of the same key for another purpose is none here
	maxSignatures = 4
	signatureSize = 256
)

// Errors of a bundle, wrapped with detail.
var (
	ErrBundle    = errors.New("not a usable update bundle")
	ErrUntrusted = errors.New("the update is not signed by a release key of this node's key set")
	ErrOrder     = errors.New("the parts of a bundle are read once, in order")
)

// Bundle is a bundle whose manifest was verified. Its methods read on in the stream; it is for one goroutine.
type Bundle struct {
	Manifest Manifest
	Policy   []byte // the signed boots, hash verified; tpm.ParsePolicyFile reads them
	SignedBy string // the release key that verified: lower-case hex SHA-256 of its SubjectPublicKeyInfo

	r    io.Reader
	next int // 0 SBOM, 1 image, 2 done or failed
}

// Open reads a bundle up to and with its signed boots. keys are the release keys of the running image (Keys): one of them must have
// signed.
func Open(r io.Reader, keys ...*rsa.PublicKey) (*Bundle, error) {
	manifest, signatures, err := readHeader(r)
	if err != nil {
		return nil, err
	}
	b := &Bundle{r: r}
	if b.SignedBy, err = verify(manifest, signatures, keys); err != nil {
		return nil, err
	}
	if b.Manifest, err = parseManifest(manifest); err != nil {
		return nil, err
	}
	var policy bytes.Buffer
	if err := b.part("the signed boots", b.Manifest.Policy, &policy); err != nil {
		return nil, err
	}
	b.Policy = policy.Bytes()
	return b, nil
}

// SBOM copies the bill of materials to w: CycloneDX 1.6 as JSON. It can be left out: UKI then skips and checks it.
func (b *Bundle) SBOM(w io.Writer) error {
	if b.next != 0 {
		return ErrOrder
	}
	b.next = 2
	if err := b.part("the SBOM", b.Manifest.SBOM, w); err != nil {
		return err
	}
	b.next = 1
	return nil
}

// UKI copies the image to w and returns nil only when every byte was the signed one and the stream ended with it. What w was given
// before an error is to be thrown away.
func (b *Bundle) UKI(w io.Writer) error {
	if b.next == 0 {
		if err := b.SBOM(io.Discard); err != nil {
			return err
		}
	}
	if b.next != 1 {
		return ErrOrder
	}
	b.next = 2
	if err := b.part("the image", b.Manifest.UKI, w); err != nil {
		return err
	}
	switch n, err := io.ReadFull(b.r, make([]byte, 1)); {
	case n != 0:
		return fmt.Errorf("%w: more follows its end", ErrBundle)
	case err != io.EOF:
		return fmt.Errorf("read update: %w", err)
	}
	return nil
}

// part streams one part and compares its hash.
func (b *Bundle) part(what string, p Part, w io.Writer) error {
	h := sha256.New()
	n, err := io.Copy(io.MultiWriter(h, w), io.LimitReader(b.r, p.Size))
	if err != nil {
		return fmt.Errorf("update, %s: %w", what, err)
	}
	if n != p.Size {
		return fmt.Errorf("%w: it ends in %s, after %d of %d bytes; send it again", ErrBundle, what, n, p.Size)
	}
	if hex.EncodeToString(h.Sum(nil)) != p.SHA256 {
		return fmt.Errorf("%w: %s is not what the release key signed; send it again", ErrBundle, what)
	}
	return nil
}

type signature struct {
	key   [sha256.Size]byte
	value [signatureSize]byte
}

func readHeader(r io.Reader) (manifest []byte, signatures []signature, err error) {
	cut := func(err error) error {
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			return fmt.Errorf("%w: it ends in its header", ErrBundle)
		}
		return fmt.Errorf("read update: %w", err)
	}
	var head struct {
		Magic              [len(magic)]byte
		Manifest, Signings uint32
	}
	if err := binary.Read(r, binary.BigEndian, &head); err != nil {
		return nil, nil, cut(err)
	}
	if string(head.Magic[:]) != magic {
		return nil, nil, fmt.Errorf("%w: it does not begin like one; the file to send is the one that `mkimage release` wrote", ErrBundle)
	}
	if head.Manifest == 0 || head.Manifest > MaxManifest || head.Signings == 0 || head.Signings > maxSignatures {
		return nil, nil, fmt.Errorf("%w: a manifest of %d bytes with %d signatures", ErrBundle, head.Manifest, head.Signings)
	}
	manifest = make([]byte, head.Manifest)
	if _, err := io.ReadFull(r, manifest); err != nil {
		return nil, nil, cut(err)
	}
	for range head.Signings {
		var s signature
		for _, field := range [][]byte{s.key[:], s.value[:]} {
			if _, err := io.ReadFull(r, field); err != nil {
				return nil, nil, cut(err)
			}
		}
		signatures = append(signatures, s)
	}
	return manifest, signatures, nil
}

// verify finds a signature by one of our keys. One that claims to be and is not makes the bundle bad, whatever else is in it.
func verify(manifest []byte, signatures []signature, keys []*rsa.PublicKey) (string, error) {
	sum := digest(manifest)
	found := ""
	for _, s := range signatures {
		id := hex.EncodeToString(s.key[:])
		for _, k := range keys {
			if KeyID(k) != id {
				continue
			}
			if err := rsa.VerifyPKCS1v15(k, crypto.SHA256, sum[:], s.value[:]); err != nil {
				return "", fmt.Errorf("%w: its manifest is not what release key %.16s signed", ErrBundle, id)
			}
			if found == "" {
				found = id
			}
		}
	}
	if found == "" {
		return "", fmt.Errorf("%w: it has key %.16s, and the node trusts %s; build the release with the key set of this node", ErrUntrusted, hex.EncodeToString(signatures[0].key[:]), names(keys))
	}
	return found, nil
}

// digest is what the release key signs.
func digest(manifest []byte) [sha256.Size]byte {
	return sha256.Sum256(append([]byte(signedPrefix), manifest...))
}

// Parts are the contents of a bundle, in its order.
type Parts struct{ Policy, SBOM, UKI []byte }

// Write makes a bundle on the workstation. It fills the sizes and hashes of m in. Each signer is an RSA-2048 release key; several are for
// a change of that key: nodes that know the old one and nodes that know the new one both take the bundle.
func Write(w io.Writer, m Manifest, parts Parts, signers ...crypto.Signer) error {
	m.Policy, m.SBOM, m.UKI = PartOf(parts.Policy), PartOf(parts.SBOM), PartOf(parts.UKI)
	text, err := m.encode()
	if err != nil {
		return err
	}
	if len(signers) == 0 || len(signers) > maxSignatures {
		return fmt.Errorf("a bundle has 1 to %d signatures, not %d", maxSignatures, len(signers))
	}
	sum := digest(text)
	head := binary.BigEndian.AppendUint32([]byte(magic), uint32(len(text)))
	head = binary.BigEndian.AppendUint32(head, uint32(len(signers)))
	head = append(head, text...)
	for _, s := range signers {
		pub, ok := s.Public().(*rsa.PublicKey)
		if !ok || pub.Size() != signatureSize {
			return errors.New("a release key is RSA-2048")
		}
		sig, err := s.Sign(nil, sum[:], crypto.SHA256)
		if err != nil {
			return fmt.Errorf("sign release: %w", err)
		}
		if err := rsa.VerifyPKCS1v15(pub, crypto.SHA256, sum[:], sig); err != nil {
			return errors.New("sign release: the signer's answer is no signature by its key")
		}
		id := keyID(pub)
		head = append(append(head, id[:]...), sig...)
	}
	for _, b := range [][]byte{head, parts.Policy, parts.SBOM, parts.UKI} {
		if _, err := w.Write(b); err != nil {
			return err
		}
	}
	return nil
}
