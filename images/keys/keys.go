// Package keys makes and reads the key set with which a customer's images are signed: who may boot (Secure Boot's PK, KEK and db), which
// boots open the disk (the policy key), and which releases a node installs (the release key).
//
// Promise: a set is made once and never overwritten; private keys are written with mode 0600 and never printed; every other program
// reaches them through crypto.Signer, so that a key may as well be in a token behind a command (Signer). What each key is for, where to
// keep it and what losing or leaking it means stands in the set's README.txt. While one set follows another no machine is locked out:
// Rollover names the states of its firmware, RolloverSteps signs what leads from one to the next.
//
// Limits: RSA-2048 throughout, because every UEFI firmware and every TPM 2.0 can verify it. Certificates are self-signed: firmware
// looks at the key, not at a chain.
package keys

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Roles of the keys of a set, which are also their file names.
const (
	PK      = "pk"      // may change KEK
	KEK     = "kek"     // may change db and dbx
	DB      = "db"      // signs images: what firmware starts
	Policy  = "policy"  // signs PCR policies: what opens the disk
	Release = "release" // signs release manifests: what a node installs
)

// Roles lists them in the order in which people should be told of them.
var Roles = []string{PK, KEK, DB, Policy, Release}

// ErrExists: the folder holds a set already.
var ErrExists = errors.New("there is a key set already")

// EvaluationName is the subject of sets that are made for trying out. Every screen of a node built with one says so.
const EvaluationName = "EVALUATION ONLY"

// Set is a key set as it lies in a folder.
type Set struct {
	Dir        string
	Name       string // the customer, in the certificates' subjects
	Evaluation bool
	Owner      [16]byte // signature owner GUID in the firmware's variables
	Certs      map[string]*x509.Certificate
}

// file is set.json.
type file struct {
	Version    int                 `json:"version"` // 1
	Name       string              `json:"name"`
	Evaluation bool                `json:"evaluation"`
	Owner      [16]byte            `json:"owner"`
	Commands   map[string][]string `json:"commands,omitempty"` // role -> program and arguments, instead of a key file
}

// life is long: firmware does not look at it, and a certificate that runs out must not stop a node from booting.
const life = 30 * 365 * 24 * time.Hour

// Make writes a new set into dir, which may exist but must hold no set.
func Make(dir, name string, evaluation bool, now time.Time) (*Set, error) {
	if evaluation {
		name = EvaluationName
	}
	if name == "" || len(name) > 40 || strings.ContainsFunc(name, func(r rune) bool { return r < ' ' || r > '~' }) {
		return nil, fmt.Errorf("the name of a key set has 1 to 40 printable ASCII characters, not %q", name)
	}
	if !evaluation && strings.Contains(strings.ToUpper(name), "EVALUATION") {
		return nil, errors.New("only an evaluation set is called so")
	}
	if _, err := os.Stat(filepath.Join(dir, "set.json")); err == nil {
		return nil, fmt.Errorf("%w in %s; it is never overwritten", ErrExists, dir)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	f := file{Version: 1, Name: name, Evaluation: evaluation}
	if _, err := io.ReadFull(rand.Reader, f.Owner[:]); err != nil {
		return nil, err
	}
	f.Owner[7], f.Owner[8] = f.Owner[7]&0x0f|0x40, f.Owner[8]&0x3f|0x80 // a random GUID (RFC 9562, 5.4), third field little-endian
	for _, role := range Roles {
		if err := makeKey(dir, role, name, now); err != nil {
			return nil, fmt.Errorf("%s key: %w", role, err)
		}
	}
	if err := write(filepath.Join(dir, "README.txt"), 0o644, []byte(readme(f))); err != nil {
		return nil, err
	}
	b, err := json.MarshalIndent(f, "", " ")
	if err != nil {
		return nil, err
	}
	if err := write(filepath.Join(dir, "set.json"), 0o644, append(b, '\n')); err != nil { // last: a set without it is no set
		return nil, err
	}
	return Load(dir)
}

func makeKey(dir, role, name string, now time.Time) error {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return err
	}
	template := &x509.Certificate{SerialNumber: serial, Subject: pkix.Name{CommonName: name + " " + role}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(life)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return err
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	defer clear(pkcs8)
	if err := write(filepath.Join(dir, role+".key"), 0o600, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})); err != nil {
		return err
	}
	return write(filepath.Join(dir, role+".crt"), 0o644, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

// write makes a new file and never replaces one.
func write(name string, mode os.FileMode, b []byte) error {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	return errors.Join(err, f.Sync(), f.Close())
}

// Load reads a set's public half.
func Load(dir string) (*Set, error) {
	f, err := readFile(dir)
	if err != nil {
		return nil, err
	}
	s := &Set{Dir: dir, Name: f.Name, Evaluation: f.Evaluation, Owner: f.Owner, Certs: map[string]*x509.Certificate{}}
	for _, role := range Roles {
		text, err := os.ReadFile(filepath.Join(dir, role+".crt"))
		if err != nil {
			return nil, fmt.Errorf("key set: %w", err)
		}
		block, _ := pem.Decode(text)
		if block == nil || block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("key set: %s.crt is not a PEM certificate", role)
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("key set: %s.crt: %w", role, err)
		}
		if pub, ok := cert.PublicKey.(*rsa.PublicKey); !ok || pub.N.BitLen() != 2048 {
			return nil, fmt.Errorf("key set: %s.crt is not RSA-2048", role)
		}
		s.Certs[role] = cert
	}
	return s, nil
}

func readFile(dir string) (file, error) {
	var f file
	b, err := os.ReadFile(filepath.Join(dir, "set.json"))
	if err != nil {
		return f, fmt.Errorf("no key set in %s (make one with mkimage keys): %w", dir, err)
	}
	if err := json.Unmarshal(b, &f); err != nil {
		return f, fmt.Errorf("key set %s: %w", dir, err)
	}
	if f.Version != 1 {
		return f, fmt.Errorf("key set %s has version %d, this program knows 1", dir, f.Version)
	}
	return f, nil
}

// Public is a role's public key in PEM, as the image carries the policy key.
func (s *Set) Public(role string) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: s.Certs[role].RawSubjectPublicKeyInfo})
}

// Fingerprint is the hex SHA-256 of a role's certificate.
func (s *Set) Fingerprint(role string) string {
	return fmt.Sprintf("%x", sha256.Sum256(s.Certs[role].Raw))
}

// guid writes a GUID given in its text's order of fields into the firmware's mixed byte order.
func guid(a uint32, b, c uint16, rest [8]byte) (g [16]byte) {
	binary.LittleEndian.PutUint32(g[:], a)
	binary.LittleEndian.PutUint16(g[4:], b)
	binary.LittleEndian.PutUint16(g[6:], c)
	copy(g[8:], rest[:])
	return g
}

// WritePublic writes the public half of the set into dir, which Load reads: it goes with every image. Beside each Secure Boot certificate
// in PEM lies what firmware setups enrol: a .cer (DER) and an .esl (EFI_SIGNATURE_LIST).
func (s *Set) WritePublic(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	b, err := json.MarshalIndent(file{Version: 1, Name: s.Name, Evaluation: s.Evaluation, Owner: s.Owner}, "", " ")
	if err != nil {
		return err
	}
	files := map[string][]byte{"set.json": append(b, '\n')}
	for _, role := range Roles {
		files[role+".crt"] = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certs[role].Raw})
	}
	for _, role := range []string{PK, KEK, DB} {
		files[role+".cer"], files[role+".esl"] = s.Certs[role].Raw, s.list(role)
	}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o644); err != nil {
			return err
		}
	}
	return nil
}
