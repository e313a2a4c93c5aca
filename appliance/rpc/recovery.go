package rpc

import (
	"time"

	"guardhouse/appliance/policy"
)

// Methods of init for the data volume: who opens it, and its end.
var (
	InitVolume          = Method[Empty, VolumeReply]{"init.Volume"}                           // [console]
	InitRecoveryDraft   = Method[RecoveryDraftRequest, RecoveryDraft]{"init.RecoveryDraft"}   // [console] makes a secret; it counts for nothing yet
	InitRecoveryConfirm = Method[RecoveryTexts, VolumeReply]{"init.RecoveryConfirm"}          // [console] typed back: it counts now
	InitUnlock          = Method[RecoveryTexts, VolumeReply]{"init.Unlock"}                   // [console] opens a shut volume; wrong secrets cost time
	InitTimeRecover     = Method[TimeRecoverRequest, ClockStatusReply]{"init.TimeRecover"}    // [console] says what time it is where there are no administrators
	InitReseal          = Method[Empty, VolumeReply]{"init.Reseal"}                           // [console] after InitUnlock
	InitFactoryReset    = Method[FactoryResetRequest, FactoryResetReply]{"init.FactoryReset"} // [console] ends keys, services, volume and boot
)

// States of the data volume.
const (
	VolumeNone  = "none"  // there is no volume
	VolumeShut  = "shut"  // its recovery secret is needed
	VolumeTPM   = "tpm"   // the TPM opened it
	VolumeTyped = "typed" // the recovery secret did, and it is not resealed
)

// VolumeReply is the state of the data volume.
type VolumeReply struct {
	State   string   `json:"state"`
	Secret  string   `json:"secret,omitempty"`  // name of the recovery secret that opens it; "" = there is none
	Form    string   `json:"form,omitempty"`    // "passphrase" or "shares"
	Changed []string `json:"changed,omitempty"` // VolumeTyped: what the TPM did not accept
	Refused string   `json:"refused,omitempty"` // VolumeTyped: why it can't be resealed now
	Remedy  string   `json:"remedy,omitempty"`  // of Refused
}

// RecoveryDraftRequest asks for a secret of a form. Current is the one that stands, where one does. The receiver wipes it.
type RecoveryDraftRequest struct {
	Form    string   `json:"form"`
	Current [][]byte `json:"current,omitempty"`
}

// RecoveryDraft is a secret to be shown once: one passphrase or three shares. The receiver wipes it.
type RecoveryDraft struct {
	Secret string   `json:"secret"` // its name
	Form   string   `json:"form"`
	Texts  [][]byte `json:"texts"`
}

// RecoveryTexts is what a person typed: a passphrase, or shares. The receiver wipes it.
type RecoveryTexts struct {
	Texts [][]byte `json:"texts"`
}

// Wipe forgets the texts.
func (r RecoveryTexts) Wipe() {
	for _, t := range r.Texts {
		clear(t)
	}
}

// TimeRecoverRequest says what time it is by the word of whoever stands at the machine and knows its recovery secret: UTC when CLOCK_BOOTTIME
// was BootTime, in the boot that they were shown. The receiver wipes the texts.
type TimeRecoverRequest struct {
	Texts    [][]byte      `json:"texts"`
	UTC      time.Time     `json:"utc"`
	Boot     string        `json:"boot"`
	BootTime time.Duration `json:"bootTime"`
}

// FactoryResetRequest ends the node as it is. Shut must be true where the volume is shut, so that nobody resets a running node by the
// dialogue of one that waits.
type FactoryResetRequest struct {
	Actor policy.Actor `json:"actor"`
	Shut  bool         `json:"shut"`
	// Destroy are keys in the HSM that go first. Unless all of them are gone nothing else is done.
	Destroy []policy.KeyRef `json:"destroy,omitempty"`
}

// FactoryResetReply: Ends is false where keys were left, and the node goes on. Keys is nil where none were to be destroyed.
type FactoryResetReply struct {
	Ends bool              `json:"ends"`
	Keys *DestroyKeysReply `json:"keys,omitempty"`
}
