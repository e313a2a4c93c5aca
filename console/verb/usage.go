package verb

import (
	"cmp"
	"context"
	"fmt"
	"strconv"
	"time"

	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
)

const usageNote = "Counted on this node, since it keeps the record. A machine that was restored, or made from one shielding data file with others, " +
	"counts more than once; never less."

// usage asks the ledger how keys are used; refs selects the key protectors that it lists.
func usageOf(ctx context.Context, s *Session, days, limit int, refs ...policy.KeyRef) (rpc.UsageReply, error) {
	return rpc.LedgerUsage.Call(ctx, s.Node.Ledger, rpc.UsageRequest{Keys: refs, Days: days, Limit: limit})
}

// useOf is the line of one key.
func useOf(r rpc.UsageReply, ref policy.KeyRef) *rpc.KeyUsage {
	for _, k := range r.Keys {
		if k.Ref == ref {
			return &k
		}
	}
	return nil
}

// useText says how a key is used, with the age of its last use as now knows it.
func useText(k *rpc.KeyUsage, now time.Time) string {
	if k == nil {
		return "never, as far as this node remembers"
	}
	return fmt.Sprintf("%s; %s, %s last seen on it", ago(k.Last, now), count(int(k.Rolls), "roll"), count(k.Protectors, "key protector"))
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return strconv.Itoa(n) + " " + what + "s"
}

// ago is how long before now a stamp lies.
func ago(at policy.Stamp, now time.Time) string {
	if at.Latest == 0 || now.IsZero() {
		return "at an unknown time"
	}
	d := now.Sub(time.UnixMilli(at.Earliest))
	switch {
	case d < time.Minute:
		return "just now"
	case d < 2*time.Hour:
		return strconv.Itoa(int(d/time.Minute)) + " min ago"
	case d < 48*time.Hour:
		return strconv.Itoa(int(d/time.Hour)) + " h ago"
	}
	return strconv.Itoa(int(d/(24*time.Hour))) + " days ago"
}

// UsageValue is key usage in --json. Recent are the key protectors seen within Days; Protectors are listed newest first, up to the limit.
type UsageValue struct {
	Key        KeyValue             `json:"key"`
	Use        *rpc.KeyUsage        `json:"use"`
	Days       int                  `json:"days"`
	Total      int                  `json:"total"`
	Recent     int                  `json:"recent"`
	Protectors []rpc.ProtectorUsage `json:"protectors"`
}

func keyUsage(ctx context.Context, s *Session, a Args, _ []byte) (Output, error) {
	snap, _ := s.Node.Snapshot()
	ref, err := findKey(snap.State, a.Get("key"))
	if err != nil {
		return Output{}, err
	}
	days, limit := number(a, "days"), number(a, "limit")
	r, err := usageOf(ctx, s, days, limit, ref)
	if err != nil {
		return Output{}, err
	}
	now, _ := trusted(ctx, s)
	v := UsageValue{Key: keyValue(snap.State.Keys[ref], nil), Use: useOf(r, ref), Days: r.Days, Total: r.Total, Recent: r.Recent,
		Protectors: append([]rpc.ProtectorUsage{}, r.Protectors...)}
	p := new(Page).Field(string(v.Key.Role), "%s", v.Key.Subject).Field("reference", "%s", ref).Field("last used", "%s", useText(v.Use, now))
	p.Blank().Line("%s", seenText(r, now))
	protectorRows(p, r, now)
	p.Blank().Line("%s", usageNote)
	return Output{Text: p, Value: v}, nil
}

// seenText is the sentence that decides whether a key may go.
func seenText(r rpc.UsageReply, now time.Time) string {
	if r.Total == 0 {
		return "No key protector was last seen on it."
	}
	return fmt.Sprintf("%s last seen on it, newest %s; %d of them within %s.", count(r.Total, "key protector"), ago(r.Newest, now), r.Recent, count(r.Days, "day"))
}

func protectorRows(p *Page, r rpc.UsageReply, now time.Time) {
	var rows [][]string
	for _, one := range r.Protectors {
		rows = append(rows, []string{clip(cmp.Or(one.OwnerName, "?")), one.Owner[:16], clip(cmp.Or(one.HostName, one.Host)), ago(one.At, now), strconv.FormatUint(one.Rolls, 10), one.Protector[:16]})
	}
	if len(rows) > 0 {
		p.Table([]string{"OWNER", "CERTIFICATE", "HOST", "SEEN", "ROLLS", "PROTECTOR"}, rows)
	}
	if more := r.Total - len(rows); more > 0 {
		p.Line("and %d more; see --limit", more)
	}
}

func number(a Args, name string) int {
	n, _ := strconv.Atoi(a.Get(name)) // the parser took digits only
	return n
}

func usageVerb() Verb {
	return Verb{Name: "key usage", Role: reviewer, Doors: loggedIn, Risk: Reads, Run: keyUsage,
		Params: []Param{keyParam, flag("days", Number, "what counts as recent, default 90"), flag("limit", Number, "how many are listed, default 200")},
		Help:   "which key protectors were last seen on a key", Example: "key usage 5f3ac9 --days 30",
		More: "Look here before key disable: what is listed does not open any more without this key, until its owner has granted it to another guardian. " + usageNote}
}
