package update

import (
	"slices"

	"guardhouse/appliance/policy"
)

// Owed is an audit entry about something that is decided and not yet in the audit. It is remembered in the same write as the decision,
// so a power cut loses both or neither; whoever writes it into the audit does so once for each ID, then says Told.
type Owed struct {
	ID    string            `json:"id"`    // of the event: the same however often it is told
	After uint64            `json:"after"` // the audit's last number before the decision: the entry lies behind it; 0 = not known
	Entry policy.AuditEntry `json:"entry"` // of what was decided, as it was then
}

// maxOwed bounds what waits for an audit that takes nothing; an update owes three entries at most.
const maxOwed = 12

// owe adds an entry to what is about to be saved.
func (u *Updater) owe(s *State, action, outcome, detail string) {
	if u.Note == nil {
		return
	}
	s.Owed = append(slices.Clone(s.Owed), u.Note(*s, action, outcome, detail))
	if more := len(s.Owed) - maxOwed; more > 0 {
		u.Log("update: the audit took nothing for so long that %d entries of updates are given up", more)
		s.Owed = s.Owed[more:]
	}
}

// Told forgets an entry that the audit has.
func (u *Updater) Told(id string) error {
	s := u.state
	s.Owed = slices.DeleteFunc(slices.Clone(s.Owed), func(o Owed) bool { return o.ID == id })
	if len(s.Owed) == len(u.state.Owed) {
		return nil
	}
	return u.save(s)
}
