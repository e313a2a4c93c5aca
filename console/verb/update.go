package verb

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
)

// updateLimit ends a stream that never does.
const updateLimit = 30 * time.Minute

// RunStream runs a verb that takes standard input as it comes, however long it is.
func RunStream(ctx context.Context, v *Verb, s *Session, a Args, in io.Reader) (Output, error) {
	if err := Permitted(v, s); err != nil {
		return Output{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, updateLimit)
	defer cancel()
	return v.Stream(ctx, s, a, in)
}

// WantsStream reports whether the verb reads standard input as it comes with these arguments.
func (v *Verb) WantsStream(a Args) bool { return v.Stream != nil && !a.Has("stick") }

func updateVerbs() []Verb {
	stick := flag("stick", Switch, "read the file guardhouse-update* of a USB stick at the machine instead")
	return []Verb{
		{Name: "update check", Role: operator, Doors: loggedIn, Risk: Reads, Run: updateStick(false), Stream: updateStream(false), Params: []Param{stick},
			Help: "verify an update and say what it brings", Example: "update check < guardhouse-update",
			More: "Reads the whole file and changes nothing. It must be signed by a release key that this image carries. Shown are versions, changes, and what speaks against it: " +
				"a release below the version floor, stored data that it can't read or would leave unreadable for the running release, or no signed boot for this machine's Secure Boot keys, with which the data disk would stay shut."},
		{Name: "update install", Role: owner, Doors: loggedIn, Risk: Disrupts, Run: updateStick(true), Stream: updateStream(true),
			Params: []Param{stick, flag("later", Switch, "do not restart now; the next restart starts the release")},
			Help:   "write an update to the other slot and start it", Example: "update install < guardhouse-update",
			More: "The slot that runs is not touched. The new release starts once; if every process is ready, the HSM's keys work and the time is trusted, it is marked good, " +
				"copied to the old slot, and older releases lose access to the data. If not, or if it does not come up, the old release starts again. " +
				"With --stick the file is read from a USB stick; no driver touches a stick at any other time."},
		{Name: "update status", Role: reviewer, Doors: loggedIn, Risk: Reads, Run: updateStatus,
			Help: "running release, version floor, and how far an update is", Example: "update status --json"},
		{Name: "update back", Role: operator, Doors: loggedIn, Risk: Disrupts, Run: updateBack,
			Help: "restart into the other slot, once", Example: "update back",
			More: "While a release is on trial this gives it up for the old one. Afterwards both slots hold the same release, because older ones are below the version floor."},
	}
}

// updateStick is the verb at a door without standard input.
func updateStick(install bool) func(context.Context, *Session, Args, []byte) (Output, error) {
	return func(ctx context.Context, s *Session, a Args, _ []byte) (Output, error) {
		if !a.Has("stick") {
			return Output{}, usage("there is no file on this line", "ssh ADMIN@NODE update "+map[bool]string{false: "check", true: "install"}[install]+" < guardhouse-update, or put the file on a USB stick (FAT) and give --stick")
		}
		return runUpdate(ctx, s, a, install, nil)
	}
}

func updateStream(install bool) func(context.Context, *Session, Args, io.Reader) (Output, error) {
	return func(ctx context.Context, s *Session, a Args, in io.Reader) (Output, error) {
		return runUpdate(ctx, s, a, install, in)
	}
}

// runUpdate hands the bundle to init; in is nil where init reads a stick.
func runUpdate(ctx context.Context, s *Session, a Args, install bool, in io.Reader) (Output, error) {
	session, err := rpc.InitUpdateBegin.Call(ctx, s.Node.Init, rpc.UpdateRequest{Actor: s.Actor, Install: install, Stick: in == nil})
	if err != nil {
		return Output{}, err
	}
	if err := sendUpdate(ctx, s, session.ID, in); err != nil {
		gone, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		rpc.InitUpdateEnd.Call(gone, s.Node.Init, rpc.UpdateSession{ID: session.ID, Abandon: true})
		return Output{}, err
	}
	r, err := rpc.InitUpdateEnd.Call(ctx, s.Node.Init, session)
	if err != nil {
		return Output{}, err
	}
	if install {
		outcome, detail := installed(r)
		if err := s.audit(ctx, policy.AuditCommand, "update.install", outcome, detail); err != nil && r.Written {
			r.Problems = append(r.Problems, policy.Problem{Kind: "update-audit", What: "this could not be written to the audit: " + Explain(err).Error(), Remedy: "see audit verify"})
		}
	}
	switch {
	case r.Failed != "":
		return Output{}, failed(r.Failed, r.Remedy)
	case install && !r.Written && len(r.Problems) > 0:
		return Output{}, failed(r.Problems[0].What, r.Problems[0].Remedy)
	}
	return updatePage(ctx, s, a, install, r)
}

// sendUpdate passes the stream on in pieces until it ends, or until init has heard enough: End then says why.
func sendUpdate(ctx context.Context, s *Session, id string, in io.Reader) error {
	if in == nil {
		return nil
	}
	buf := make([]byte, rpc.MaxUpdatePiece)
	for {
		n, err := io.ReadFull(in, buf)
		if n > 0 {
			if _, err := rpc.InitUpdateData.Call(ctx, s.Node.Init, rpc.UpdatePiece{ID: id, Data: buf[:n]}); err != nil {
				if Explain(err).Kind == rpc.ErrRefused.Kind {
					return nil
				}
				return err
			}
		}
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read the update: %w", err)
		}
	}
}

// installed is what the audit keeps of an installation.
func installed(r rpc.UpdateReport) (outcome, detail string) {
	outcome = "ok"
	if !r.Written {
		outcome = "refused"
	}
	detail = "from release " + fmt.Sprint(r.Running.Number)
	if r.Release != nil {
		detail = fmt.Sprintf("release %d (%s), image SHA-256 %s, signed by %s, %s", r.Release.Number, r.Release.Version, r.Release.Image, r.Release.SignedBy, detail)
	}
	switch {
	case r.Failed != "":
		detail += ": " + r.Failed
	case !r.Written && len(r.Problems) > 0:
		detail += ": " + r.Problems[0].What
	}
	return outcome, detail
}

func updatePage(ctx context.Context, s *Session, a Args, install bool, r rpc.UpdateReport) (Output, error) {
	p := new(Page)
	u := cmp.Or(r.Release, &rpc.UpdateRelease{})
	p.Field("update", "%s, release %d%s", u.Version, u.Number, evaluationText(u.Evaluation)).Field("running", "%s, release %d, slot %s", r.Running.Version, r.Running.Number, r.Running.Slot)
	p.Field("floor", "release %d", r.Running.Floor).Field("built", "%s, kernel %s", time.Unix(u.BuildEpoch, 0).UTC().Format("2006-01-02 15:04 UTC"), u.Kernel)
	p.Field("keys", "%s", u.KeySet).Field("image", "SHA-256 %s", u.Image).Field("signed by", "%s", u.SignedBy)
	p.Field("stored data", "it reads format %d to %d and writes %d; this node's is %d", u.OldestFormat, u.NewestFormat, u.WritesFormat, r.Running.Format)
	if u.Notes != "" {
		p.Blank()
		for line := range strings.Lines(u.Notes) {
			p.Line("  %s", strings.TrimRight(line, "\n"))
		}
	}
	p.Blank()
	end := false
	switch {
	case install:
		p.Line("The release is in the other slot, verified and read back.")
		if a.Has("later") {
			p.Line("The next restart starts it, on trial.")
			break
		}
		p.Line("The machine restarts now. See update status afterwards.")
		if _, err := rpc.InitPower.Call(ctx, s.Node.Init, rpc.PowerRequest{Action: "reboot", Actor: s.Actor}); err != nil {
			return Output{}, err
		}
		end = true
	case len(r.Problems) == 0:
		p.Line("Every byte is as it was signed. The data disk will open for it on this machine.")
		p.Line("Installing it restarts the node once: about a minute in which this node answers no host. Other nodes of the service go on.")
	default:
		p.Line("It can't be installed on this node:")
	}
	problems(p, r.Problems)
	return Output{Text: p, Value: r, End: end}, nil
}

func evaluationText(yes bool) string {
	if yes {
		return ", EVALUATION"
	}
	return ""
}

func updateStatus(ctx context.Context, s *Session, _ Args, _ []byte) (Output, error) {
	r, err := rpc.InitUpdateStatus.Call(ctx, s.Node.Init, rpc.Empty{})
	if err != nil {
		return Output{}, err
	}
	p := new(Page).Field("running", "%s, release %d, slot %s", r.Running.Version, r.Running.Number, cmp.Or(r.Running.Slot, "unknown")).
		Field("floor", "release %d: older ones do not get the data", r.Running.Floor)
	words := map[string]string{"idle": "none under way", "writing": "being written", "written": "written, waits for a restart", "trial": "on trial", "good": "good, being copied to the other slot",
		"failed": "failed"}
	p.Field("update", "%s", cmp.Or(words[r.Phase], r.Phase))
	if r.Release != 0 {
		p.Field("last", "%s, release %d, image SHA-256 %s", r.Version, r.Release, r.Image)
	}
	if r.Trial && r.Missing != "" {
		p.Field("missing", "%s", r.Missing)
	}
	if r.Why != "" {
		p.Field("why", "%s", r.Why)
	}
	if r.Cannot != "" {
		p.Blank().Line("! this node takes no updates: %s", r.Cannot)
	}
	return Output{Text: p, Value: r}, nil
}

func updateBack(ctx context.Context, s *Session, _ Args, _ []byte) (Output, error) {
	r, err := rpc.InitUpdateBack.Call(ctx, s.Node.Init, rpc.UpdateRequest{Actor: s.Actor})
	if err != nil {
		return Output{}, err
	}
	p := new(Page).Line("%s", r.Message).Line("The machine restarts now.")
	if err := s.audit(ctx, policy.AuditCommand, "update.back", "ok", r.Message); err != nil {
		p.Line("this could not be written to the audit: %s", Explain(err).Error())
	}
	if _, err := rpc.InitPower.Call(ctx, s.Node.Init, rpc.PowerRequest{Action: "reboot", Actor: s.Actor}); err != nil {
		return Output{}, err
	}
	return Output{Text: p, Value: r, End: true}, nil
}
