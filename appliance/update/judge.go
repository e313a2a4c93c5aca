package update

import (
	"encoding/hex"
	"fmt"
	"slices"

	"guardhouse/appliance/policy"
	"guardhouse/appliance/tpm"
)

// Kinds of findings about a release, as judged before it is written.
const (
	KindBelowFloor  = "update-below-floor"   // the version floor forbids it
	KindOlder       = "update-older"         // it is older than the running release
	KindSame        = "update-same"          // it has the running release's number
	KindFormat      = "update-format"        // it can't read the stored data, or the running release could not read its
	KindWillNotOpen = "update-will-not-open" // no signed boot of it fits this machine
	KindNoRoom      = "update-no-room"       // it does not fit the slot
	KindEvaluation  = "update-evaluation"    // evaluation release on a node of other keys, or the reverse
)

// Target is the node that a release is judged against.
type Target struct {
	Release    uint64          `json:"release"` // running
	Floor      uint64          `json:"floor"`
	Format     int             `json:"format"` // of the stored data
	Reads      int             `json:"reads"`  // newest form of stored data that the running release reads
	Evaluation bool            `json:"evaluation"`
	Authority  []byte          `json:"authority"` // whose policies the volume follows, PEM
	PCRs       map[uint]string `json:"pcrs"`      // at least 7, lower-case hex
	SlotSize   int64           `json:"slotSize"`
}

// Judge lists what speaks against installing the bundle's release on the machine; none: it may be installed.
func Judge(b *Bundle, m Target) []policy.Problem {
	var list []policy.Problem
	add := func(kind, remedy, format string, args ...any) {
		list = append(list, policy.Problem{Kind: kind, What: fmt.Sprintf(format, args...), Remedy: remedy})
	}
	r := b.Manifest
	switch {
	case r.Number < m.Floor:
		add(KindBelowFloor, "install a newer release", "the bundle is release %d, and this machine's version floor is %d: the TPM would not give it the data", r.Number, m.Floor)
	case r.Number < m.Release:
		add(KindOlder, "install a newer release; update back returns to the other slot while that is possible", "the bundle is release %d, and release %d runs", r.Number, m.Release)
	case r.Number == m.Release:
		add(KindSame, "nothing is to be done; a changed image needs a higher release number", "the bundle is release %d, which runs already", r.Number)
	}
	if !r.Reads(m.Format) {
		add(KindFormat, "install the releases in between first", "the release reads stored data of format %d to %d, and this node's is %d", r.MinStoredFormat, r.StoredFormat, m.Format)
	}
	if r.Writes() > m.Reads {
		add(KindFormat, "install a release in between first, which reads that format and does not write it yet", "the release writes stored data of format %d, and the running one reads up to %d: there would be no way back", r.Writes(), m.Reads)
	}
	if r.Evaluation != m.Evaluation {
		add(KindEvaluation, "use releases of one kind of keys on a node", "one of the running release and the bundle's is signed with evaluation keys, the other is not")
	}
	if _, err := PlanSlot(r, m.SlotSize); err != nil {
		add(KindNoRoom, "write the release's disk image to a larger boot disk", "%v", err)
	}
	if why := opens(b, m); why != "" {
		add(KindWillNotOpen, "build the release for this machine's keys and dbx: mkimage build --keys --dbx", "%s", why)
	}
	return list
}

// opens predicts whether the volume opens for the release: "" if so.
func opens(b *Bundle, m Target) string {
	f, err := tpm.ParsePolicyFile(b.Policy)
	if err != nil {
		return err.Error()
	}
	authority, err := tpm.ParseAuthority(m.Authority)
	if err != nil {
		return "the running image names nobody who signs boots: " + err.Error()
	}
	ours := slices.DeleteFunc(slices.Clone(f.Policies), func(p tpm.SignedPolicy) bool { return p.Key != tpm.AuthorityID(authority) })
	if len(ours) == 0 {
		return fmt.Sprintf("none of its boots is signed by policy key %.16s.., which this node's volume follows", tpm.AuthorityID(authority))
	}
	none := hex.EncodeToString(make([]byte, 32))
	names := ""
	for _, p := range ours {
		if p.Release == b.Manifest.Number && p.PCRs[7] == m.PCRs[7] && p.PCRs[12] == none && p.PCRs[13] == none {
			return ""
		}
		names += fmt.Sprintf(", %.60q", p.Name)
	}
	return fmt.Sprintf("none of its signed boots fits this machine's Secure Boot keys and dbx (PCR 7 is %.16s..); it has %.300s", m.PCRs[7], names[2:])
}
