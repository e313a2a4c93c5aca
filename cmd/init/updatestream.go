package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"guardhouse/appliance/rpc"
	"guardhouse/appliance/sandbox"
	"guardhouse/appliance/supervise"
	"guardhouse/appliance/tpm"
	"guardhouse/appliance/update"
)

const (
	updateName = "guardhouse-update"
	streamRest = 2 * time.Minute  // silence that gives a stream up
	streamEnd  = 10 * time.Minute // for the last piece to be written and read back
	updateFile = "guardhouse-update"
)

// updateStream is a bundle on its way through the child that reads it.
type updateStream struct {
	id      string
	install bool
	stick   bool       // init feeds it
	fed     chan error // how that ended
	in      *os.File   // the child's standard input
	rest    *time.Timer
	kill    func()
	done    chan struct{} // closed when report is final
	report  rpc.UpdateReport
}

// registerUpdates offers the methods of updates to the console.
func (n *node) registerUpdates(s *rpc.Server) {
	rpc.Handle(s, rpc.InitUpdateStatus, func(context.Context, rpc.Caller, rpc.Empty) (rpc.UpdateStatus, error) { return n.updateStatus(), nil }, rpc.Console)
	rpc.Handle(s, rpc.InitUpdateBegin, func(ctx context.Context, _ rpc.Caller, r rpc.UpdateRequest) (rpc.UpdateSession, error) {
		return n.beginUpdate(ctx, r)
	}, rpc.Console)
	rpc.Handle(s, rpc.InitUpdateData, func(_ context.Context, _ rpc.Caller, p rpc.UpdatePiece) (rpc.Empty, error) {
		st, err := n.streamOf(p.ID)
		if err != nil {
			return rpc.Empty{}, err
		}
		st.rest.Reset(streamRest)
		if len(p.Data) > rpc.MaxUpdatePiece {
			return rpc.Empty{}, rpc.ErrRefused.With("a piece of %d bytes", len(p.Data))
		}
		if _, err := st.in.Write(p.Data); err != nil {
			return rpc.Empty{}, rpc.ErrRefused.With("the update is not read any further")
		}
		return rpc.Empty{}, nil
	}, rpc.Console)
	rpc.Handle(s, rpc.InitUpdateEnd, func(ctx context.Context, _ rpc.Caller, e rpc.UpdateSession) (rpc.UpdateReport, error) {
		st, err := n.streamOf(e.ID)
		if err != nil {
			return rpc.UpdateReport{}, err
		}
		if e.Abandon {
			st.kill()
		}
		st.rest.Reset(streamEnd)
		if !st.stick {
			st.in.Close()
		}
		select {
		case <-st.done:
		case <-ctx.Done():
			return rpc.UpdateReport{}, ctx.Err()
		}
		return st.report, nil
	}, rpc.Console)
	rpc.Handle(s, rpc.InitUpdateBack, func(_ context.Context, _ rpc.Caller, r rpc.UpdateRequest) (rpc.UpdateBackReply, error) {
		n.updates.mu.Lock()
		defer n.updates.mu.Unlock()
		if n.updates.u == nil || n.updates.stream != nil {
			return rpc.UpdateBackReply{}, rpc.ErrUnavailable.With("%s", cmp.Or(n.updates.cannot, "an update is being read"))
		}
		message, err := n.updates.u.Back(r.Actor.Name)
		if err != nil {
			return rpc.UpdateBackReply{}, rpc.ErrRefused.With("%v", err)
		}
		return rpc.UpdateBackReply{Message: message}, nil
	}, rpc.Console)
}

func (n *node) updateStatus() rpc.UpdateStatus {
	r := rpc.UpdateStatus{Running: n.running(), Phase: "idle"}
	if !n.updates.mu.TryLock() { // a copy of a slot holds it for seconds
		if last := n.updates.last.Load(); last != nil {
			r = *last
		}
		r.Why = "the slots are being compared or copied"
		return r
	}
	defer n.updates.mu.Unlock()
	n.describeUpdates(&r)
	return r
}

// describeUpdates fills r in and keeps it for while the lock is held; it holds it.
func (n *node) describeUpdates(r *rpc.UpdateStatus) {
	r.Missing, r.Cannot = n.updates.missing, n.updates.cannot
	u := n.updates.u
	if u == nil {
		r.Cannot = cmp.Or(r.Cannot, "the boot entries are not read yet")
		return
	}
	s := u.State()
	r.Running.Slot = update.EntryNames[u.Own][len("guardhouse "):]
	r.Phase, r.Release, r.Version, r.Image, r.Trial, r.Why = cmp.Or(string(s.Phase), "idle"), s.Release, s.Name, s.SHA256, u.OnTrial(), s.Why
	kept := *r
	n.updates.last.Store(&kept)
}

func (n *node) running() rpc.UpdateRunning {
	r := rpc.UpdateRunning{Version: n.release.Version, Number: n.release.Number}
	if t, err := tpm.Open(tpmDevice); err == nil {
		r.Floor, _ = t.Floor()
		t.Close()
	}
	return r
}

func (n *node) streamOf(id string) (*updateStream, error) {
	n.updates.mu.Lock()
	defer n.updates.mu.Unlock()
	if st := n.updates.stream; st != nil && st.id == id {
		return st, nil
	}
	return nil, rpc.ErrRefused.With("there is no such stream; begin again")
}

// beginUpdate starts the child that reads a bundle.
func (n *node) beginUpdate(ctx context.Context, r rpc.UpdateRequest) (rpc.UpdateSession, error) {
	n.updates.mu.Lock()
	defer n.updates.mu.Unlock()
	switch {
	case n.updates.u == nil:
		return rpc.UpdateSession{}, rpc.ErrUnavailable.With("%s", cmp.Or(n.updates.cannot, "the boot entries are not read yet"))
	case n.updates.stream != nil:
		select {
		case <-n.updates.stream.done: // its End was never called, or has been
		default:
			return rpc.UpdateSession{}, rpc.ErrUnavailable.With("another update is being read")
		}
	}
	target, err := n.updateTarget(ctx)
	if err != nil {
		return rpc.UpdateSession{}, err
	}
	id := make([]byte, 16)
	if _, err := rand.Read(id); err != nil {
		return rpc.UpdateSession{}, err
	}
	st := &updateStream{id: hex.EncodeToString(id), install: r.Install, stick: r.Stick, fed: make(chan error, 1), done: make(chan struct{}), report: rpc.UpdateReport{Running: n.running()}}
	st.report.Running.Format = target.Format
	st.report.Running.Slot = update.EntryNames[n.updates.u.Own][len("guardhouse "):]
	if err := n.startReader(st, update.Order{Install: r.Install, Target: target}); err != nil {
		return rpc.UpdateSession{}, err
	}
	n.updates.stream = st
	if r.Stick {
		go func() { st.fed <- n.feedFromStick(context.WithoutCancel(ctx), st) }()
	}
	return rpc.UpdateSession{ID: st.id}, nil
}

// startReader runs the child and follows its answers.
func (n *node) startReader(st *updateStream, order update.Order) error {
	spec, err := json.Marshal(order)
	if err != nil {
		return err
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "slot"), os.NewFile(uintptr(pair[1]), "slot")
	l := sandbox.LaunchOf(sandbox.UpdateProcess)
	l.Argv0, l.Args, l.Sockets = updateName, []string{string(spec)}, []string{"slot"}
	cmd, err := sandbox.Command(l, []*os.File{theirs})
	var pipes [3][2]*os.File // standard input, answers, log: read and write end
	for i := range pipes {
		if err == nil {
			pipes[i][0], pipes[i][1], err = os.Pipe()
		}
	}
	if err == nil {
		cmd.Stdin, cmd.Stdout, cmd.Stderr = pipes[0][0], pipes[1][1], pipes[2][1]
		err = n.reaper.Start(cmd)
	}
	for _, f := range []*os.File{theirs, pipes[0][0], pipes[1][1], pipes[2][1]} {
		f.Close() // the child has its own
	}
	if err != nil {
		for _, f := range []*os.File{ours, pipes[0][1], pipes[1][0], pipes[2][0]} {
			f.Close()
		}
		return err
	}
	st.in, st.kill = pipes[0][1], func() { cmd.Process.Kill() }
	st.rest = time.AfterFunc(streamRest, st.kill)
	go func() {
		defer pipes[2][0].Close()
		n.log.Capture(sandbox.Update, pipes[2][0])
	}()
	go func() {
		defer close(st.done)
		n.followReader(st, pipes[1][0], ours)
		st.rest.Stop()
		st.kill()
		st.in.Close()
		pipes[1][0].Close()
		ours.Close()
		n.reaper.Wait(cmd)
	}()
	return nil
}

// followReader turns the child's answers into the report. The slot is handed over only when nothing speaks against the release, and the
// next boot is changed only when the child says that the slot holds it whole.
func (n *node) followReader(st *updateStream, answers io.Reader, socket *os.File) {
	writing := false
	last, err := update.Answers(answers, func(a update.Answer) error {
		m := a.Manifest
		st.report.Release = &rpc.UpdateRelease{Version: m.Version, Number: m.Number, BuildEpoch: m.BuildEpoch, Kernel: m.Kernel, HSM: m.HSM, SourceCommit: m.SourceCommit,
			KeySet: m.KeySet, Evaluation: m.Evaluation, Notes: m.Notes, Image: m.UKI.SHA256, SignedBy: a.SignedBy,
			OldestFormat: m.MinStoredFormat, NewestFormat: m.StoredFormat, WritesFormat: m.Writes()}
		st.report.Problems = a.Problems
		if !st.install || len(a.Problems) > 0 {
			return nil
		}
		n.updates.mu.Lock()
		defer n.updates.mu.Unlock()
		u := n.updates.u
		if err := u.Begin(m); err != nil {
			return err
		}
		writing = true
		p, err := update.OpenPartition(n.updates.disk.Slots[u.Other()].Device, true)
		if err != nil {
			return err
		}
		defer p.Close()
		return update.SendSlot(socket, p)
	})
	if err == nil && last.Failed != "" {
		err, st.report.Remedy = errors.New(last.Failed), last.Remedy
	}
	st.report.Verified = err == nil
	if writing {
		n.updates.mu.Lock()
		defer n.updates.mu.Unlock()
		u := n.updates.u
		if werr := u.Wrote(err); err == nil && werr == nil {
			werr = u.Try()
			err, st.report.Written = werr, werr == nil
		} else {
			err = errors.Join(err, werr)
		}
	}
	if st.stick && last.Failed != "" {
		if ferr := <-st.fed; ferr != nil { // what the child got was nothing, or not all
			err, st.report.Remedy = ferr, "put one file "+stickFiles+" into the root of a FAT file system on a stick, and plug it in"
		}
	}
	if err != nil {
		st.report.Failed, st.report.Remedy = supervise.Clean(err.Error()), cmp.Or(supervise.Clean(st.report.Remedy), "send the file again; if it stays, see log show init")
	}
}

// updateMain is the process that reads a bundle.
func updateMain(spec string) error {
	var order update.Order
	if err := json.Unmarshal([]byte(spec), &order); err != nil {
		return fmt.Errorf("read the order: %w", err)
	}
	return update.Child(order, update.KeysFile, os.Stdin, os.Stdout, func() (update.Device, error) {
		return update.ReceiveSlot(os.NewFile(3, "socket"))
	})
}
