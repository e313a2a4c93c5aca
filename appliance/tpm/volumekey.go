package tpm

import (
	"bytes"
	"crypto"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
)

const hashSHA256 = crypto.SHA256

// Kinds of errors of the volume key, beside those of Secrets.
const (
	KindOwned      = "tpm-owned"       // the TPM has another owner
	KindNoPolicy   = "seal-no-policy"  // no signed policy fits the way this machine booted
	KindBelowFloor = "seal-old-image"  // the image is older than the version floor allows
	KindStillOpen  = "seal-still-open" // the key could be had again after the registers were capped
)

// VolumeSlot is the volume key in the TPM's custody. It opens under any policy that the authority signs, now or later, so an update
// needs no new slot. Nothing in it is secret without this TPM.
type VolumeSlot struct {
	Version   int    `json:"version"`   // 1
	Root      []byte `json:"root"`      // name of the storage root key: which TPM this is
	Authority []byte `json:"authority"` // policy signing key, PEM
	Public    []byte `json:"public"`    // TPM2B_PUBLIC
	Private   []byte `json:"private"`   // TPM2B_PRIVATE
}

// MaxVolumeSlot bounds an encoded VolumeSlot, in bytes.
const MaxVolumeSlot = 4 << 10

// Encode gives the slot's bytes.
func (s VolumeSlot) Encode() ([]byte, error) { return json.Marshal(s) }

// ParseVolumeSlot reads Encode's bytes.
func ParseVolumeSlot(b []byte) (VolumeSlot, error) {
	var s VolumeSlot
	if len(b) > MaxVolumeSlot {
		return s, damagedSlot("it is larger than %d bytes", MaxVolumeSlot)
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&s); err != nil {
		return VolumeSlot{}, damagedSlot("%v", err)
	}
	if s.Version != 1 {
		return VolumeSlot{}, damagedSlot("version %d is not known", s.Version)
	}
	return s, nil
}

func damagedSlot(format string, args ...any) error {
	return &Error{KindDamaged, "the volume's TPM slot can't be read: " + fmt.Sprintf(format, args...), "open the volume with the recovery secret"}
}

// root is the storage root key as loaded.
type root struct {
	handle tpm2.TPMHandle
	name   tpm2.TPM2BName
	public tpm2.TPMTPublic
}

// storageRoot finds the persistent storage root key. Errors: KindOtherTPM where there is none.
func (t *TPM) storageRoot() (*root, error) {
	r, err := tpm2.ReadPublic{ObjectHandle: StorageRoot}.Execute(t.t)
	if errors.Is(err, tpm2.TPMRCHandle) {
		return nil, otherTPM()
	}
	if err != nil {
		return nil, &Error{KindNoTPM, fmt.Sprintf("the TPM does not show its storage root key: %v", err), "power the machine off and on; if it stays, replace the TPM and use the recovery secret"}
	}
	pub, err := r.OutPublic.Contents()
	if err != nil {
		return nil, fmt.Errorf("storage root key: %w", err)
	}
	return &root{StorageRoot, r.Name, *pub}, nil
}

func otherTPM() error {
	return &Error{KindOtherTPM, "this disk was sealed by another TPM, or this TPM was cleared",
		"put the disk back into its machine, or open it with the recovery secret and reseal"}
}

// persistRoot makes the storage root key, replaces what lies under our handle, and keeps it.
func (t *TPM) persistRoot() (*root, error) {
	srk, err := storageRoot(t.t)
	if err != nil {
		return nil, err
	}
	defer flush(t.t, srk.ObjectHandle)
	owner := tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)}
	if old, err := t.storageRoot(); err == nil {
		if bytes.Equal(old.name.Buffer, srk.Name.Buffer) {
			return old, nil
		}
		_, err := tpm2.EvictControl{Auth: owner, ObjectHandle: &tpm2.NamedHandle{Handle: StorageRoot, Name: old.name}, PersistentHandle: StorageRoot}.Execute(t.t)
		if err != nil {
			return nil, fmt.Errorf("replace storage root key: %w", err)
		}
	}
	_, err = tpm2.EvictControl{Auth: owner, ObjectHandle: &tpm2.NamedHandle{Handle: srk.ObjectHandle, Name: srk.Name}, PersistentHandle: StorageRoot}.Execute(t.t)
	if err != nil {
		return nil, fmt.Errorf("keep storage root key: %w", err)
	}
	return t.storageRoot()
}

// Holds reports whether this TPM is the one that the slot was sealed by, and was not cleared since.
func (t *TPM) Holds(slot VolumeSlot) (bool, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	srk, err := t.storageRoot()
	var e *Error
	if errors.As(err, &e) && e.Kind == KindOtherTPM {
		return false, nil
	}
	return err == nil && bytes.Equal(srk.name.Buffer, slot.Root), err
}

// authorityPublic is the signing key as the TPM loads it. Its name is bound into the sealed object: never change the template.
func authorityPublic(key *rsa.PublicKey) tpm2.TPMTPublic {
	return tpm2.TPMTPublic{Type: tpm2.TPMAlgRSA, NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{SignEncrypt: true, UserWithAuth: true},
		Parameters:       tpm2.NewTPMUPublicParms(tpm2.TPMAlgRSA, &tpm2.TPMSRSAParms{KeyBits: 2048}),
		Unique:           tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{Buffer: key.N.FillBytes(make([]byte, 256))})}
}

// SealVolume puts the volume key into the TPM's custody, for boots that the authority signs. Prepare must have been called.
func (t *TPM) SealVolume(authority *rsa.PublicKey, authorityPEM, key []byte) (VolumeSlot, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	srk, err := t.storageRoot()
	if err != nil {
		return VolumeSlot{}, err
	}
	name, err := tpm2.ObjectName(ptr(authorityPublic(authority)))
	if err != nil {
		return VolumeSlot{}, err
	}
	calc, err := tpm2.NewPolicyCalculator(tpm2.TPMAlgSHA256)
	if err != nil {
		return VolumeSlot{}, err
	}
	if err := (tpm2.PolicyAuthorize{KeySign: *name, PolicyRef: tpm2.TPM2BDigest{Buffer: []byte(PolicyRef)}}).Update(calc); err != nil {
		return VolumeSlot{}, err
	}
	session := tpm2.HMAC(tpm2.TPMAlgSHA256, 16, tpm2.Salted(srk.handle, srk.public), tpm2.AESEncryption(128, tpm2.EncryptInOut))
	r, err := tpm2.Create{
		ParentHandle: tpm2.AuthHandle{Handle: srk.handle, Name: srk.name, Auth: session},
		InSensitive:  tpm2.TPM2BSensitiveCreate{Sensitive: &tpm2.TPMSSensitiveCreate{Data: tpm2.NewTPMUSensitiveCreate(&tpm2.TPM2BSensitiveData{Buffer: key})}},
		InPublic: tpm2.New2B(tpm2.TPMTPublic{Type: tpm2.TPMAlgKeyedHash, NameAlg: tpm2.TPMAlgSHA256,
			ObjectAttributes: tpm2.TPMAObject{FixedTPM: true, FixedParent: true, NoDA: true},
			AuthPolicy:       tpm2.TPM2BDigest{Buffer: calc.Hash().Digest}}),
	}.Execute(t.t)
	if err != nil {
		return VolumeSlot{}, fmt.Errorf("seal volume key: %w", err)
	}
	return VolumeSlot{Version: 1, Root: srk.name.Buffer, Authority: authorityPEM, Public: tpm2.Marshal(r.OutPublic), Private: tpm2.Marshal(r.OutPrivate)}, nil
}

func ptr[T any](v T) *T { return &v }

// UnsealVolume gets the volume key out under the one of these policies that fits how this machine booted, and tells which; the caller
// wipes the key. It sends at most 12 commands where it succeeds. Errors of type *Error say what differs.
func (t *TPM) UnsealVolume(slot VolumeSlot, policies []SignedPolicy) ([]byte, SignedPolicy, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	authority, err := ParseAuthority(slot.Authority)
	if err != nil {
		return nil, SignedPolicy{}, damagedSlot("its authority: %v", err)
	}
	srk, err := t.storageRoot()
	if err != nil {
		return nil, SignedPolicy{}, err
	}
	if !bytes.Equal(srk.name.Buffer, slot.Root) {
		return nil, SignedPolicy{}, otherTPM()
	}
	p, err := t.fitting(policies, AuthorityID(authority))
	if err != nil {
		return nil, SignedPolicy{}, err
	}
	key, err := t.unsealUnder(srk, slot, authority, p)
	return key, p, err
}

// Fitting is the policy of this boot, or an *Error that says why there is none: what is asked before a disk is prepared, because what
// is sealed then must open again.
func (t *TPM) Fitting(authority *rsa.PublicKey, policies []SignedPolicy) (SignedPolicy, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.fitting(policies, AuthorityID(authority))
}

// fitting picks the newest release's policy by the authority whose registers are the present ones.
func (t *TPM) fitting(policies []SignedPolicy, authority string) (SignedPolicy, error) {
	now, err := readPCRs(t.t, PolicyPCRs)
	if err != nil {
		return SignedPolicy{}, err
	}
	var found, nearest *SignedPolicy
	foreign := 0
	for i := range policies {
		p := &policies[i]
		if p.Key != authority {
			foreign++
			continue
		}
		d := p.differs(now)
		if len(d) == 0 && (found == nil || p.Release > found.Release) {
			found = p
		}
		if nearest == nil || len(d) < len(nearest.differs(now)) {
			nearest = p
		}
	}
	switch {
	case found != nil:
		return *found, nil
	case nearest != nil:
		var what []string
		for _, pcr := range nearest.differs(now) {
			what = append(what, fmt.Sprintf("PCR %d (%s) is %.4x, not %.8s", pcr, pcrMeaning[pcr], now[pcr], nearest.PCRs[pcr]))
		}
		return SignedPolicy{}, &Error{KindNoPolicy, fmt.Sprintf("no signed policy fits this boot: %s; nearest is %.64q", strings.Join(what, "; "), nearest.Name),
			"undo the change, or boot the other slot, or open the volume with the recovery secret and reseal"}
	case foreign > 0:
		return SignedPolicy{}, &Error{KindNoPolicy, fmt.Sprintf("the image's policies are signed by another key than %.16s.., to which this volume is sealed", authority),
			"boot an image of the builder who set this node up, or open the volume with the recovery secret and reseal"}
	}
	return SignedPolicy{}, &Error{KindNoPolicy, "there is no signed policy beside the image", "write the release to the boot disk again, or open the volume with the recovery secret"}
}

// pcrMeaning says what a register of PolicyPCRs holds, for people.
var pcrMeaning = map[uint]string{4: "boot path", 7: "Secure Boot keys and state", 11: "image", 12: "command line and credentials beside the image", 13: "extensions beside the image"}

func (t *TPM) unsealUnder(srk *root, slot VolumeSlot, authority *rsa.PublicKey, p SignedPolicy) ([]byte, error) {
	pub, err := tpm2.Unmarshal[tpm2.TPM2BPublic](slot.Public)
	if err != nil {
		return nil, damagedSlot("%v", err)
	}
	priv, err := tpm2.Unmarshal[tpm2.TPM2BPrivate](slot.Private)
	if err != nil {
		return nil, damagedSlot("%v", err)
	}
	obj, err := tpm2.Load{ParentHandle: tpm2.AuthHandle{Handle: srk.handle, Name: srk.name, Auth: tpm2.PasswordAuth(nil)}, InPrivate: *priv, InPublic: *pub}.Execute(t.t)
	if err != nil {
		return nil, damagedSlot("the TPM does not take it (%v)", err)
	}
	defer flush(t.t, obj.ObjectHandle)
	ticket, name, err := verifyPolicy(t.t, authority, p)
	if err != nil {
		return nil, err
	}
	// Any register that is extended between the policy's check and its use makes the TPM ask for the check anew; the kernel measures each
	// module that it loads meanwhile into PCR 10.
	for try := 1; ; try++ {
		key, err := unsealOnce(t.t, srk, obj, p, name, ticket)
		if !errors.Is(err, tpm2.TPMRCPCRChanged) || try == maxPCRChanges {
			return key, refusedKey(err)
		}
	}
}

// maxPCRChanges bounds how often a policy is checked anew because a register changed meanwhile.
const maxPCRChanges = 100

// refusedKey makes an *Error of a refusal that does not explain itself; nil stays nil.
func refusedKey(err error) error {
	var explained *Error
	if err == nil || errors.As(err, &explained) {
		return err
	}
	return &Error{KindNoPolicy, fmt.Sprintf("the TPM refuses the volume key: %v", err), "boot the other slot, or open the volume with the recovery secret and reseal"}
}

// unsealOnce runs the policy in a session of its own and asks for the key.
func unsealOnce(t transport.TPM, srk *root, obj *tpm2.LoadResponse, p SignedPolicy, authority tpm2.TPM2BName, ticket tpm2.TPMTTKVerified) ([]byte, error) {
	var unmet error
	session := tpm2.Policy(tpm2.TPMAlgSHA256, 16, func(tpm transport.TPM, h tpm2.TPMISHPolicy, _ tpm2.TPM2BNonce) error {
		if unmet = satisfy(tpm, h, p, authority, ticket); unmet != nil {
			flush(tpm, h) // go-tpm leaves it, and a TPM has room for few
		}
		return unmet
	}, tpm2.Salted(srk.handle, srk.public), tpm2.AESEncryption(128, tpm2.EncryptOut)) // TPM2_Unseal has no parameter to encrypt
	r, err := tpm2.Unseal{ItemHandle: tpm2.AuthHandle{Handle: obj.ObjectHandle, Name: obj.Name, Auth: session}}.Execute(t)
	if unmet != nil {
		return nil, unmet
	}
	if err != nil {
		return nil, err
	}
	return r.OutData.Buffer, nil
}

// verifyPolicy has the TPM check the signature; the ticket proves it to TPM2_PolicyAuthorize.
func verifyPolicy(t transport.TPM, authority *rsa.PublicKey, p SignedPolicy) (tpm2.TPMTTKVerified, tpm2.TPM2BName, error) {
	var none tpm2.TPMTTKVerified
	message, err := p.ToSign()
	if err != nil {
		return none, tpm2.TPM2BName{}, err
	}
	key, err := tpm2.LoadExternal{InPublic: tpm2.New2B(authorityPublic(authority)), Hierarchy: tpm2.TPMRHOwner}.Execute(t)
	if err != nil {
		return none, tpm2.TPM2BName{}, fmt.Errorf("load policy signing key: %w", err)
	}
	defer flush(t, key.ObjectHandle)
	sum := sha256Sum(message)
	v, err := tpm2.VerifySignature{KeyHandle: key.ObjectHandle, Digest: tpm2.TPM2BDigest{Buffer: sum},
		Signature: tpm2.TPMTSignature{SigAlg: tpm2.TPMAlgRSASSA, Signature: tpm2.NewTPMUSignature(tpm2.TPMAlgRSASSA,
			&tpm2.TPMSSignatureRSA{Hash: tpm2.TPMAlgSHA256, Sig: tpm2.TPM2BPublicKeyRSA{Buffer: p.Signature}})}}.Execute(t)
	if err != nil {
		return none, tpm2.TPM2BName{}, &Error{KindNoPolicy, fmt.Sprintf("the signature of policy %.64q does not verify: %v", p.Name, err), "write the release to the boot disk again"}
	}
	return v.Validation, key.Name, nil
}

// satisfy runs the policy's commands in the session, in the order of SignedPolicy.Digest.
func satisfy(t transport.TPM, h tpm2.TPMISHPolicy, p SignedPolicy, authority tpm2.TPM2BName, ticket tpm2.TPMTTKVerified) error {
	if _, err := (tpm2.PolicyPCR{PolicySession: h, Pcrs: selection(PolicyPCRs...)}).Execute(t); err != nil {
		return err
	}
	floor, err := floorAtMost(p.Release)
	if err != nil {
		return err
	}
	floor.PolicySession = h
	if _, err := floor.Execute(t); err != nil {
		if now, readErr := readFloor(t); readErr == nil && now > p.Release {
			return &Error{KindBelowFloor, fmt.Sprintf("this image is release %d, and this machine's version floor is %d", p.Release, now), "boot the newer image in the other slot"}
		}
		return &Error{KindOtherTPM, fmt.Sprintf("the TPM's version floor is not as this node left it: %v", err), "open the volume with the recovery secret and reseal"}
	}
	digest, err := p.Digest()
	if err != nil {
		return err
	}
	_, err = tpm2.PolicyAuthorize{PolicySession: h, ApprovedPolicy: tpm2.TPM2BDigest{Buffer: digest},
		PolicyRef: tpm2.TPM2BDigest{Buffer: []byte(PolicyRef)}, KeySign: authority, CheckTicket: ticket}.Execute(t)
	return err
}

// CapEvent is extended, as its SHA-256, once the volume is open. From then on no policy of any image fits until the next boot.
const CapEvent = "guardhouse: volume open"

// Capped is PCR 11 after Cap, from its value before: what a node shows while its volume is open.
func Capped(pcr11 [32]byte) [32]byte {
	event := sha256Sum([]byte(CapEvent))
	return [32]byte(sha256Sum(append(pcr11[:], event...)))
}

// Cap extends PCR 11, so that nothing that runs later in this boot gets the volume key, and proves it: the same slot and policy must
// now be refused. KindStillOpen where they are not. used is the policy that opened the volume.
func (t *TPM) Cap(slot VolumeSlot, used SignedPolicy) error {
	if err := t.CapAlone(); err != nil {
		return err
	}
	return t.ProveCapped(slot, used)
}

// CapAlone is Cap without the proof: for a boot in which the volume is opened without this TPM, so that there is nothing to prove it with.
func (t *TPM) CapAlone() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	_, err := tpm2.PCRExtend{PCRHandle: tpm2.AuthHandle{Handle: 11, Auth: tpm2.PasswordAuth(nil)},
		Digests: tpm2.TPMLDigestValues{Digests: []tpm2.TPMTHA{{HashAlg: tpm2.TPMAlgSHA256, Digest: sha256Sum([]byte(CapEvent))}}}}.Execute(t.t)
	if err != nil {
		return fmt.Errorf("cap PCR 11: %w", err)
	}
	return nil
}

// ProveCapped asks the TPM itself: our own comparison of registers must not be what refuses.
func (t *TPM) ProveCapped(slot VolumeSlot, used SignedPolicy) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	authority, err := ParseAuthority(slot.Authority)
	if err != nil {
		return damagedSlot("its authority: %v", err)
	}
	srk, err := t.storageRoot()
	if err != nil {
		return err
	}
	key, err := t.unsealUnder(srk, slot, authority, used)
	var refused *Error
	if errors.As(err, &refused) && refused.Kind == KindNoPolicy {
		return nil
	}
	if err != nil {
		return fmt.Errorf("prove that the volume key is out of reach: %w", err)
	}
	clear(key)
	return &Error{KindStillOpen, "the TPM gives the volume key out after its registers were capped", "power the machine off; do not use this TPM"}
}
