package verb

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strconv"
	"time"

	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
)

func rotationVerbs() []Verb {
	confirm := flag("confirm", Number, "how many key protectors you accept to lose, as the refusal names them")
	return []Verb{
		{Name: "rotation start", Role: operator, Doors: loggedIn, Risk: Changes, Run: rotationStart,
			Params: []Param{flag("bits", Choice, "default 2048", "2048", "3072", "4096"), flag("subject", Text, "name that tenants see, default: the service's name"),
				flag("days", Number, "what counts as in use, default 90")},
			Help: "begin to replace the guardian's pair: makes a new one", Example: "rotation start --subject \"Contoso HGS 2027\"",
			More: "Steps: a new pair; tested on every node and primary; owners move their machines; the old pair disabled; removed. The plan is on record: after a " +
				"crash or a reboot rotation next goes on. rotation undo takes one step back, until the old pair is removed.",
			Replaces: []string{"Add-HgsKeyProtectionCertificate"}},
		{Name: "rotation status", Role: reviewer, Doors: loggedIn, Risk: Reads, Run: rotationStatus,
			Help: "how far the rotation is, and what still needs the old pair", Example: "rotation status"},
		{Name: "rotation next", Role: operator, Doors: loggedIn, Risk: Disrupts, Run: rotationNext, Params: []Param{confirm},
			Help: "take the next step of the rotation", Example: "rotation next --confirm 41",
			More:     "While key protectors were last seen on the old pair within the rotation's days, disabling and removing it wants their number typed.",
			Replaces: []string{"Set-HgsKeyProtectionCertificate", "Remove-HgsKeyProtectionCertificate"}},
		{Name: "rotation undo", Role: operator, Doors: loggedIn, Risk: Changes, Run: rotationBack(policy.CmdRotationUndo),
			Help: "take the last step of the rotation back", Example: "rotation undo"},
		{Name: "rotation abort", Role: operator, Doors: loggedIn, Risk: Changes, Run: rotationBack(policy.CmdRotationAbort),
			Help: "give up the rotation: the old pair is primary again", Example: "rotation abort"},
		{Name: "rotation instructions", Role: reviewer, Doors: loggedIn, Risk: Reads, Run: rotationInstructions,
			Help: "what owners of virtual machines do, to send them", Example: "rotation instructions"},
	}
}

func compromiseVerb() Verb {
	return Verb{Name: "key compromise", Role: operator, Doors: loggedIn, Risk: Disrupts, Params: []Param{keyParam}, Run: keyCompromise,
		Help: "freeze a key that others may have, list what needs it", Example: "key compromise 5f3ac9",
		More: "Whoever has a guardian's signing and encryption key can open what was protected for it, or pretend to be this service. The key is disabled at once, " +
			"primary or not: machines that need it don't start until their owners have moved them, or key enable takes it back."}
}

// RotationValue is a rotation in --json. Old and New tell what was last seen on the pairs; Next is the verb that goes on.
type RotationValue struct {
	Rotation *policy.Rotation `json:"rotation"` // null where there is none
	Old      *rpc.UsageReply  `json:"old,omitempty"`
	New      *rpc.UsageReply  `json:"new,omitempty"`
	Next     string           `json:"next"`
	Message  string           `json:"message,omitempty"`
}

// rotationSteps are the lines of the plan: done once the rotation is at the step or beyond.
var rotationSteps = []struct {
	at   policy.RotationStep
	text string
}{
	{policy.RotationStarted, "started"},
	{policy.RotationMade, "new pair made and recorded"},
	{policy.RotationPrimary, "new pair tested on every node and primary"},
	{policy.RotationDisabled, "old pair disabled"},
	{"", "old pair removed"},
}

func stepIndex(at policy.RotationStep) int {
	for i, s := range rotationSteps {
		if s.at == at {
			return i
		}
	}
	return 0
}

// rotationUse asks what was last seen on the two pairs.
func rotationUse(ctx context.Context, s *Session, r policy.Rotation) (old, fresh *rpc.UsageReply, err error) {
	o, err := usageOf(ctx, s, r.Days, 20, r.Old.Signing, r.Old.Encryption)
	if err != nil || r.New == (policy.KeyPair{}) {
		return &o, nil, err
	}
	n, err := usageOf(ctx, s, r.Days, 20, r.New.Signing, r.New.Encryption)
	return &o, &n, err
}

func rotationStatus(ctx context.Context, s *Session, _ Args, _ []byte) (Output, error) {
	return rotationPage(ctx, s, "")
}

// rotationPage is the plan as it is now, below what was just done.
func rotationPage(ctx context.Context, s *Session, done string) (Output, error) {
	snap, _ := s.Node.Snapshot()
	v := RotationValue{Rotation: snap.State.Rotation, Message: done, Next: "rotation start"}
	p := new(Page)
	if done != "" {
		p.Line("%s", done).Blank()
	}
	if v.Rotation == nil {
		p.Line("No rotation is under way. To begin one: rotation start")
		return Output{Text: p, Value: v}, nil
	}
	r := *v.Rotation
	old, fresh, err := rotationUse(ctx, s, r)
	if err != nil {
		return Output{}, err
	}
	v.Old, v.New, v.Next = old, fresh, "rotation next"
	now, _ := trusted(ctx, s)
	p.Line("Rotation of the guardian's pair, started %s by %s:", ago(r.Started, now), r.By)
	at := stepIndex(r.Step)
	for i, step := range rotationSteps {
		p.Line("  %s %s", map[bool]string{true: "done", false: "    "}[i <= at], step.text)
	}
	p.Blank()
	pairFields(p, "old pair", snap.State, r.Old, old, now)
	pairFields(p, "new pair", snap.State, r.New, fresh, now)
	if r.Step == policy.RotationPrimary && old.Recent > 0 {
		v.Next = "rotation next --confirm " + strconv.Itoa(old.Recent)
		p.Line("Owners move their machines now: rotation instructions. What was not moved does not start once the old pair is disabled.")
	}
	if r.Step == policy.RotationDisabled && old.Recent > 0 {
		v.Next = "rotation next --confirm " + strconv.Itoa(old.Recent)
	}
	p.Field("next", "%s", v.Next).Field("back", "%s", map[bool]string{true: "rotation abort", false: "rotation undo, or rotation abort"}[at < stepIndex(policy.RotationPrimary)])
	return Output{Text: p, Value: v}, nil
}

func pairFields(p *Page, label string, state policy.State, pair policy.KeyPair, use *rpc.UsageReply, now time.Time) {
	if pair == (policy.KeyPair{}) {
		p.Field(label, "not made yet")
		return
	}
	for _, ref := range []policy.KeyRef{pair.Signing, pair.Encryption} {
		k, ok := state.Keys[ref]
		if !ok {
			p.Field(label, "%.16s: NOT ON RECORD", ref)
			continue
		}
		p.Field(label, "%s %.16s, %s", k.Role, ref, map[bool]string{true: "enabled", false: "disabled"}[k.Enabled]+map[bool]string{true: ", primary"}[k.Primary])
	}
	p.Field("", "%s", seenText(*use, now))
}

func rotationStart(ctx context.Context, s *Session, a Args, _ []byte) (Output, error) {
	bits, _ := strconv.Atoi(a.Or("bits", "2048"))
	body := policy.RotationStart{Bits: bits, Subject: a.Get("subject"), Days: cmp.Or(number(a, "days"), rpc.DefaultUsageDays)}
	if _, _, err := propose(ctx, s, policy.CmdRotationStart, body); err != nil {
		return Output{}, err
	}
	return rotationNext(ctx, s, Args{}, nil)
}

// rotationNext takes the step that follows. Each is one command, and making the keys is repeatable: whoever was interrupted repeats it.
func rotationNext(ctx context.Context, s *Session, a Args, _ []byte) (Output, error) {
	snap, _ := s.Node.Snapshot()
	r := snap.State.Rotation
	if r == nil {
		return Output{}, failed("no rotation is under way", "rotation start")
	}
	move := policy.RotationMove{ID: r.ID, From: r.Step}
	kind := policy.CmdRotationPrimary
	switch r.Step {
	case policy.RotationStarted:
		pair, err := rotationPair(ctx, s, *r)
		if err != nil {
			return Output{}, err
		}
		kind, move.New = policy.CmdRotationPair, pair
	case policy.RotationPrimary, policy.RotationDisabled:
		kind = policy.CmdRotationDisable
		if r.Step == policy.RotationDisabled {
			kind = policy.CmdRotationRemove
		}
		seen, err := confirmed(ctx, s, a, r.Days, r.Old)
		if err != nil {
			return Output{}, err
		}
		move.Seen = seen
	}
	_, result, err := propose(ctx, s, kind, move)
	if err != nil {
		return Output{}, err
	}
	return rotationPage(ctx, s, result.Message)
}

// rotationPair makes the new pair. The request's id follows from the plan's: what was made before a crash is found again.
func rotationPair(ctx context.Context, s *Session, r policy.Rotation) (pair policy.KeyPair, err error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	snap, _ := s.Node.Snapshot()
	sum := sha256.Sum256([]byte("guardhouse pair of a rotation 1\x00" + r.ID))
	made, err := rpc.LedgerMakeKeys.Call(ctx, s.Node.Ledger, rpc.MakeKeysRequest{Actor: s.Actor, ID: hex.EncodeToString(sum[:16]),
		Roles: []policy.KeyRole{policy.RoleSigning, policy.RoleEncryption}, Bits: r.Bits, Subject: cmp.Or(r.Subject, snap.State.Service.Name)})
	if err != nil {
		return pair, err
	}
	s.Node.reached(ctx, made.Index)
	for _, k := range made.Keys {
		switch k.Role {
		case policy.RoleSigning:
			pair.Signing = k.Ref
		case policy.RoleEncryption:
			pair.Encryption = k.Ref
		}
	}
	return pair, nil
}

// confirmed is how many key protectors were last seen on the pair within the days; where there are any, that number must have been typed.
func confirmed(ctx context.Context, s *Session, a Args, days int, pair policy.KeyPair) (int, error) {
	use, err := usageOf(ctx, s, days, 1, pair.Signing, pair.Encryption)
	if err != nil {
		return 0, err
	}
	if use.Recent == 0 || a.Get("confirm") == strconv.Itoa(use.Recent) {
		return use.Recent, nil
	}
	now, _ := trusted(ctx, s)
	return 0, failed(fmt.Sprintf("%s last seen on the old pair within %s, newest %s: their machines will not start without it", count(use.Recent, "key protector"), count(days, "day"), ago(use.Newest, now)),
		fmt.Sprintf("have their owners move them (rotation instructions, key usage %.12s), or accept the loss: rotation next --confirm %d", pair.Encryption, use.Recent))
}

func rotationBack(kind policy.Kind) func(context.Context, *Session, Args, []byte) (Output, error) {
	return func(ctx context.Context, s *Session, _ Args, _ []byte) (Output, error) {
		snap, _ := s.Node.Snapshot()
		r := snap.State.Rotation
		if r == nil {
			return Output{}, failed("no rotation is under way", "what is finished can't be taken back")
		}
		_, result, err := propose(ctx, s, kind, policy.RotationMove{ID: r.ID, From: r.Step})
		if err != nil {
			return Output{}, err
		}
		return rotationPage(ctx, s, result.Message)
	}
}

func rotationInstructions(_ context.Context, s *Session, _ Args, _ []byte) (Output, error) {
	snap, _ := s.Node.Snapshot()
	p := new(Page)
	value := struct {
		Metadata string     `json:"metadataUrl"`
		Guardian []KeyValue `json:"guardian"`
		Steps    []string   `json:"steps"`
	}{Guardian: []KeyValue{}, Steps: slices.Clone(ownerSteps)}
	scheme := "https"
	if snap.State.Service.HTTP {
		scheme = "http"
	}
	value.Metadata = scheme + "://" + snap.State.Service.Name + "/KeyProtection/service/metadata/2014-07/metadata.xml"
	if r := snap.State.Rotation; r == nil || !(r.Step == policy.RotationPrimary || r.Step == policy.RotationDisabled) {
		p.Line("! The new pair is not primary (see rotation status): what follows would grant to the pair that is primary now.").Blank()
	}
	p.Line("For each owner of shielded virtual machines. The guardian service has new keys; machines that were not granted to them stop starting on the day " +
		"the old ones are disabled. A machine must be off for this; its disks are not touched.")
	p.Blank().Line("The new guardian:").Line("  %s", value.Metadata)
	for _, role := range []policy.KeyRole{policy.RoleSigning, policy.RoleEncryption} {
		if k, ok := snap.State.PrimaryKey(role); ok {
			v := keyValue(k, nil)
			value.Guardian = append(value.Guardian, v)
			p.Field(string(role), "SHA-1 %s", v.SHA1).Field("", "SHA-256 %s", v.SHA256)
		}
	}
	p.Blank()
	for _, step := range ownerSteps {
		p.Line("%s", step)
	}
	return Output{Text: p, Value: value}, nil
}

// ownerSteps is row B18 for whoever holds the owner's keys. Lines that begin with two blanks are typed.
var ownerSteps = []string{
	"1. On the machine's host, the machine off: save its key protector.",
	"  [IO.File]::WriteAllBytes('C:\\kp\\VM.kp', (Get-VMKeyProtector -VMName VM))",
	"2. Where the owner's guardian with its private keys is: import the new guardian, whose thumbprints you compare with those above.",
	"  Import-HgsGuardian -Name HGS-new -Path metadata.xml -AllowUntrustedRoot",
	"3. Grant, next to the old one, and save.",
	"  $kp = ConvertTo-HgsKeyProtector -Bytes ([IO.File]::ReadAllBytes('VM.kp'))",
	"  $kp = Grant-HgsKeyProtectorAccess -KeyProtector $kp -GuardianFriendlyName HGS-new -AllowUntrustedRoot",
	"  [IO.File]::WriteAllBytes('VM-new.kp', $kp.RawData)",
	"4. On the host again: give it to the machine and start it.",
	"  Set-VMKeyProtector -VMName VM -KeyProtector ([IO.File]::ReadAllBytes('VM-new.kp'))",
	"  Start-VM VM",
	"If it does not start, this takes the old key protector back:",
	"  Set-VMKeyProtector -VMName VM -RestoreLastKnownGoodKeyProtector",
	"Backups of the machine hold the old key protector: make new ones before the old keys are removed.",
}

func keyCompromise(ctx context.Context, s *Session, a Args, _ []byte) (Output, error) {
	snap, _ := s.Node.Snapshot()
	ref, err := findKey(snap.State, a.Get("key"))
	if err != nil {
		return Output{}, err
	}
	out, result, err := propose(ctx, s, policy.CmdKeyFreeze, policy.KeyChange{Ref: ref})
	if err != nil {
		return Output{}, err
	}
	v := UsageValue{Key: keyValue(snap.State.Keys[ref], nil), Protectors: []rpc.ProtectorUsage{}}
	value := struct {
		Message string `json:"message"`
		UsageValue
	}{result.Message, v}
	r, err := usageOf(ctx, s, policy.MaxRotationDays, 5000, ref)
	if err != nil { // frozen it is all the same
		out.Text.Line("What needs it is not known: %s", Explain(err).Error())
		return Output{Text: out.Text, Value: value}, nil
	}
	now, _ := trusted(ctx, s)
	value.Use, value.Days, value.Total, value.Recent, value.Protectors = useOf(r, ref), r.Days, r.Total, r.Recent, append(value.Protectors, r.Protectors...)
	out.Text.Line("%s", seenText(r, now))
	protectorRows(out.Text, r, now)
	out.Text.Blank().Line("Next: a new pair (key new --roles signing,encryption), then owners move their machines: rotation instructions. To move a machine its owner needs " +
		"their own keys only, not this one. Whoever copied the key and a machine's disk can open that disk: its owner decides what that means.")
	return Output{Text: out.Text, Value: value}, nil
}
