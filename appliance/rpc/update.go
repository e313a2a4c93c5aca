package rpc

import "guardhouse/appliance/policy"

// Methods of init for updates. One stream at a time: Begin, Data for each piece in order, End. A stream that rests for two minutes is
// given up.
var (
	InitUpdateStatus = Method[Empty, UpdateStatus]{"init.UpdateStatus"}          // [console]
	InitUpdateBegin  = Method[UpdateRequest, UpdateSession]{"init.UpdateBegin"}  // [console] ErrUnavailable while another one runs
	InitUpdateData   = Method[UpdatePiece, Empty]{"init.UpdateData"}             // [console] an error ends the stream; End tells why
	InitUpdateEnd    = Method[UpdateSession, UpdateReport]{"init.UpdateEnd"}     // [console]
	InitUpdateBack   = Method[UpdateRequest, UpdateBackReply]{"init.UpdateBack"} // [console] prepares the next boot; reboots nothing
)

// MaxUpdatePiece is the most bytes of one UpdatePiece.
const MaxUpdatePiece = 512 << 10

// UpdateRequest begins to check, or to install. Stick has init read the file guardhouse-update of a USB stick or other attached disk
// instead of pieces; End follows at once.
type UpdateRequest struct {
	Actor   policy.Actor `json:"actor"`
	Install bool         `json:"install,omitempty"`
	Stick   bool         `json:"stick,omitempty"`
}

// UpdateSession names a stream. End: Abandon throws away what came so far.
type UpdateSession struct {
	ID      string `json:"id"`
	Abandon bool   `json:"abandon,omitempty"`
}

// UpdatePiece is the next bytes of the bundle.
type UpdatePiece struct {
	ID   string `json:"id"`
	Data []byte `json:"data"`
}

// UpdateRelease is a release as its signed manifest describes it. Image and SignedBy are SHA-256 in lower-case hex, of the image and of
// the release key.
type UpdateRelease struct {
	Version      string `json:"version"`
	Number       uint64 `json:"number"`
	BuildEpoch   int64  `json:"buildEpoch"`
	Kernel       string `json:"kernel"`
	HSM          string `json:"hsm,omitempty"`
	SourceCommit string `json:"sourceCommit,omitempty"`
	KeySet       string `json:"keySet"`
	Evaluation   bool   `json:"evaluation"`
	Notes        string `json:"notes,omitempty"`
	OldestFormat int    `json:"oldestFormat"` // of stored data, that it reads
	NewestFormat int    `json:"newestFormat"`
	WritesFormat int    `json:"writesFormat"`
	Image        string `json:"image"`
	SignedBy     string `json:"signedBy"`
}

// UpdateReport is how a check or an installation ended. Problems: what speaks against installing it. Failed: why it broke off; then
// nothing of it will be started. Verified: every byte was the signed one. Written: it is in the other slot, and the next boot starts it.
type UpdateReport struct {
	Release  *UpdateRelease   `json:"release,omitempty"`
	Running  UpdateRunning    `json:"running"`
	Problems []policy.Problem `json:"problems,omitempty"`
	Verified bool             `json:"verified"`
	Written  bool             `json:"written"`
	Failed   string           `json:"failed,omitempty"`
	Remedy   string           `json:"remedy,omitempty"`
}

// UpdateRunning is the release that runs. Slot is "A" or "B"; empty where the node was not started from a boot disk with slots.
type UpdateRunning struct {
	Version string `json:"version"`
	Number  uint64 `json:"number"`
	Floor   uint64 `json:"floor"` // version floor: the lowest release that gets the data
	Slot    string `json:"slot"`
	Format  int    `json:"format"` // of the node's stored data
}

// UpdateStatus is how far an update is. Phase is one of appliance/update's, "idle" for none.
type UpdateStatus struct {
	Running UpdateRunning `json:"running"`
	Phase   string        `json:"phase"`
	Release uint64        `json:"release,omitempty"` // of the last update
	Version string        `json:"version,omitempty"`
	Image   string        `json:"image,omitempty"`   // SHA-256, hex
	Trial   bool          `json:"trial"`             // the running release is on trial
	Missing string        `json:"missing,omitempty"` // what it still lacks to be good
	Why     string        `json:"why,omitempty"`
	Cannot  string        `json:"cannot,omitempty"` // why this node takes no updates
}

// UpdateBackReply says what the next boot will be.
type UpdateBackReply struct {
	Message string `json:"message"`
}
