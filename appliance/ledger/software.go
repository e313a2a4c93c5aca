package ledger

import (
	"bytes"
	"context"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"filippo.io/age"
	"filippo.io/age/armor"
	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"
	"software.sslmate.com/src/go-pkcs12"

	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
)

// Bounds of a software key on its way in.
const (
	maxSealed       = 64 << 10
	maxSoftwareKeys = 32
	maxIterations   = 1 << 20 // of a PFX's key derivations: a second's work
	softwareLimit   = 15 * time.Second
)

// softwareSecret begins the names of the secrets that are software keys: PKCS#8 DER.
const softwareSecret = "software-key-"

func softwareName(ref policy.KeyRef) string { return softwareSecret + string(ref[:48]) }

// ImportKey takes a software key (row B16): the PFX is opened here, its private half sealed, handed to the HSM process, tested on every
// node and recorded with its certificate, marked as a software key. It never enters the token. What was sealed is wiped again where the
// key is not recorded.
//
// Limits: the PFX's passphrase and the parsed key pass through this process's memory, parts of which the Go runtime can't wipe; its pages
// are never swapped on a node, which has no swap. Other nodes hold the key only once they were given it, so until then it fails its test
// there and is not primary.
func (l *Ledger) ImportKey(ctx context.Context, req rpc.KeyImportRequest) (rpc.KeyAddReply, error) {
	defer clear(req.Sealed)
	l.keysMu.Lock()
	defer l.keysMu.Unlock()
	if err := l.byAdministrator(req.Actor, req.ID); err != nil {
		return rpc.KeyAddReply{}, err
	}
	if done, ok, err := l.doneBefore(req.ID); ok || err != nil {
		return l.added(done, err)
	}
	if req.Role != policy.RoleSigning && req.Role != policy.RoleEncryption && req.Role != policy.RoleCommunications {
		return rpc.KeyAddReply{}, rpc.ErrRefused.With("a software key is for signing, encryption or communications; an attestation signer's private key never leaves the token it was made in")
	}
	key, err := l.openPFX(req.Sealed, req.Role)
	if err != nil {
		return rpc.KeyAddReply{}, l.refusedImport(req, err)
	}
	defer clear(key.der)
	s, _ := l.Snapshot()
	if k, ok := s.State.Keys[key.ref]; ok {
		return rpc.KeyAddReply{}, l.refusedImport(req, rpc.ErrRefused.With("this key is recorded already with the role %s", k.Role))
	}
	if n := len(softwareKeysOf(s.State)); n >= maxSoftwareKeys {
		return rpc.KeyAddReply{}, l.refusedImport(req, rpc.ErrRefused.With("%d software keys are recorded, the limit; remove one first", n))
	}
	if l.secrets == nil {
		return rpc.KeyAddReply{}, rpc.ErrUnavailable.With("the node can't keep secrets: %s", l.whySealed().What)
	}
	name := softwareName(key.ref)
	if err := l.secrets.Put(name, append([]byte(string(req.Role)+"\n"), key.der...)); err != nil {
		return rpc.KeyAddReply{}, fmt.Errorf("seal the key: %w", err)
	}
	made, err := madeKey{}, l.reloadSoftware(ctx)
	if err == nil {
		made, err = l.record(ctx, req.Actor, req.ID, key.spki, policy.KeyAdd{Role: req.Role, Label: "software key", Certificate: key.certificate, Store: policy.StoreSoftware, Tenant: req.Tenant})
	}
	if s, _ := l.Snapshot(); err != nil && s.State.Keys[key.ref].Ref == "" {
		err = errors.Join(err, l.secrets.Delete(name))
		_ = l.reloadSoftware(context.WithoutCancel(ctx)) // keepSoftware tries again
	}
	return l.added(made, err)
}

// refusedImport records that an import was refused; the reason holds nothing of the file.
func (l *Ledger) refusedImport(req rpc.KeyImportRequest, why error) error {
	return errors.Join(why, l.note(req.Actor, "key.import-pfx", "", "refused", why.Error(), ""))
}

// reloadSoftware has the HSM process fetch the software keys now.
func (l *Ledger) reloadSoftware(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, softwareLimit)
	defer cancel()
	_, err := rpc.HSMSoftware.Call(ctx, l.cfg.HSM, rpc.Empty{})
	return err
}

func softwareKeysOf(s policy.State) []policy.Key {
	var list []policy.Key
	for _, k := range s.Keys {
		if k.Store == policy.StoreSoftware {
			list = append(list, k)
		}
	}
	return list
}

// SoftwareKeys opens all software keys for the HSM process; the caller wipes them.
func (l *Ledger) SoftwareKeys() ([]rpc.SoftwareKey, error) {
	s, _ := l.Snapshot()
	if !s.State.SetUp() {
		return nil, rpc.ErrUnavailable.With("the node is not set up")
	}
	names, err := l.sealedSoftware()
	if err != nil {
		return nil, err
	}
	list := make([]rpc.SoftwareKey, 0, len(names))
	for _, name := range names {
		b, err := l.secret(name)
		if err != nil {
			return list, err
		}
		role, der, _ := bytes.Cut(b, []byte("\n"))
		ref, err := refOfPrivate(der)
		if err != nil {
			clear(b)
			return list, fmt.Errorf("software key %s: %w", name, err)
		}
		list = append(list, rpc.SoftwareKey{Ref: ref, Role: policy.KeyRole(role), PKCS8: der})
	}
	return list, nil
}

func refOfPrivate(der []byte) (policy.KeyRef, error) {
	parsed, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return "", errors.New("it does not parse")
	}
	key, ok := parsed.(*rsa.PrivateKey)
	if !ok {
		return "", errors.New("it is not RSA")
	}
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	return policy.RefOf(spki), err
}

func (l *Ledger) sealedSoftware() ([]string, error) {
	if l.secrets == nil {
		return nil, rpc.ErrUnavailable.With("the node's secrets are sealed: %s", l.whySealed().What)
	}
	names, err := l.secrets.Names()
	return slices.DeleteFunc(names, func(n string) bool { return !strings.HasPrefix(n, softwareSecret) }), err
}

// softwareAgain is when the HSM process is told again which software keys there are, if it could not be told.
const softwareAgain = time.Second

// keepSoftware wipes the sealed half of software keys that are not on record: removed ones, and what an interrupted import left. The HSM
// process is told for as long as it does not hear: until then it would go on using a key that was removed.
func (l *Ledger) keepSoftware(ctx context.Context) {
	told := true
	for {
		_, changed := l.Snapshot()
		wiped, err := l.wipeSoftware()
		if told = told && wiped == 0; !told && err == nil {
			err = l.reloadSoftware(ctx)
			told = err == nil
		}
		if err != nil && ctx.Err() == nil {
			l.cfg.Log("software keys: %v", err)
		}
		var again <-chan time.Time
		if !told {
			again = time.After(softwareAgain)
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		case <-again:
		}
	}
}

// wipeSoftware tells how many were wiped, also with an error.
func (l *Ledger) wipeSoftware() (wiped int, err error) {
	if l.secrets == nil || l.store == nil {
		return 0, nil
	}
	l.keysMu.Lock() // no import is under way
	defer l.keysMu.Unlock()
	s, _ := l.Snapshot()
	names, err := l.sealedSoftware()
	if err != nil {
		return 0, err
	}
	kept := map[string]bool{}
	for _, k := range softwareKeysOf(s.State) {
		kept[softwareName(k.Ref)] = true
	}
	for _, name := range names {
		if !kept[name] {
			if err := l.secrets.Delete(name); err != nil {
				return wiped, err
			}
			wiped++
		}
	}
	if wiped > 0 {
		l.cfg.Log("software keys: %d wiped that are not on record", wiped)
	}
	return wiped, nil
}

// pfxKey is what a PFX held. der is PKCS#8 and the caller's to wipe.
type pfxKey struct {
	ref                    policy.KeyRef
	der, spki, certificate []byte
}

// openPFX opens the age file, then the PFX in it. Errors never repeat what is in them.
func (l *Ledger) openPFX(sealed []byte, role policy.KeyRole) (pfxKey, error) {
	const remedy = "encrypt a line with the passphrase, then the PFX, to the key that key seal-key shows (it changes at each start)"
	plain, err := unseal(sealed, l.sealKey)
	defer clear(plain)
	if err != nil {
		return pfxKey{}, rpc.ErrRefused.With("%v; %s", err, remedy)
	}
	passphrase, pfx, ok := bytes.Cut(plain, []byte("\n"))
	passphrase = bytes.TrimSuffix(passphrase, []byte("\r"))
	if !ok || len(passphrase) > 1024 || len(pfx) == 0 {
		return pfxKey{}, rpc.ErrRefused.With("the encrypted file is not a line with the passphrase and then a PFX; %s", remedy)
	}
	return parsePFX(pfx, string(passphrase), role)
}

// parsePFX opens a PFX, DER or base64, that holds one RSA key with its certificate.
func parsePFX(pfx []byte, passphrase string, role policy.KeyRole) (pfxKey, error) {
	if der, err := base64.StdEncoding.DecodeString(strings.Join(strings.Fields(string(pfx)), "")); err == nil {
		defer clear(der)
		pfx = der
	}
	if !modestIterations(pfx, 0) {
		return pfxKey{}, rpc.ErrRefused.With("the PFX asks for more than %d rounds of key derivation; export it again with fewer", maxIterations)
	}
	private, cert, _, err := pkcs12.DecodeChain(pfx, passphrase)
	switch {
	case errors.Is(err, pkcs12.ErrIncorrectPassword):
		return pfxKey{}, rpc.ErrRefused.With("the passphrase does not open the PFX")
	case err != nil:
		return pfxKey{}, rpc.ErrRefused.With("the PFX does not open; it must be DER and hold one private key with its certificate")
	}
	key, ok := private.(*rsa.PrivateKey)
	if !ok {
		return pfxKey{}, rpc.ErrRefused.With("the private key in the PFX is not RSA; HGS takes RSA keys of 2048 bits or more")
	}
	if n := key.N.BitLen(); n < 2048 || n > 8192 {
		return pfxKey{}, rpc.ErrRefused.With("the RSA key in the PFX has %d bits; 2048 to 8192 are accepted", n)
	}
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return pfxKey{}, rpc.ErrRefused.With("the RSA key in the PFX can't be used")
	}
	ref := policy.RefOf(spki)
	if err := checkBrought(cert.Raw, ref, role); err != nil {
		return pfxKey{}, err
	}
	if err := key.Validate(); err != nil {
		return pfxKey{}, rpc.ErrRefused.With("the RSA key in the PFX is damaged")
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	return pfxKey{ref, der, spki, cert.Raw}, err
}

// modestIterations looks at every number in the open part of a PFX: none of an honest one is both small enough for a machine word and
// larger than any sensible count of rounds. What lies encrypted in it is not seen.
func modestIterations(der cryptobyte.String, depth int) bool {
	for !der.Empty() {
		var body cryptobyte.String
		var tag asn1.Tag
		if depth > 24 || !der.ReadAnyASN1(&body, &tag) {
			return true // no structure in here; the parser says what is wrong with it
		}
		if tag == asn1.INTEGER && len(body) <= 8 {
			var n uint64
			for _, b := range body {
				n = n<<8 | uint64(b)
			}
			if n > maxIterations {
				return false
			}
		}
		if _, err := x509.ParseCertificate(body); err == nil {
			continue // its serial number may be any
		}
		if (tag == asn1.OCTET_STRING || tag&0x20 != 0) && !modestIterations(body, depth+1) {
			return false
		}
	}
	return true
}

var errNotSealedToUs = errors.New("the file does not open with this node's key")

// unseal opens an age file, armored or not; the caller wipes the content.
func unseal(file []byte, identity age.Identity) ([]byte, error) {
	if len(file) > maxSealed {
		return nil, errors.New("the encrypted file is larger than 64 KiB")
	}
	var r io.Reader = bytes.NewReader(file)
	if text := bytes.TrimSpace(file); bytes.HasPrefix(text, []byte(armor.Header)) {
		r = armor.NewReader(bytes.NewReader(text))
	}
	plain, err := age.Decrypt(r, identity)
	if err != nil {
		return nil, errNotSealedToUs
	}
	b, err := io.ReadAll(io.LimitReader(plain, maxSealed+1))
	if err != nil || len(b) > maxSealed {
		clear(b)
		return nil, errors.New("the encrypted file was cut or changed, or is larger than 64 KiB")
	}
	return b, nil
}
