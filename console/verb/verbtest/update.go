package verbtest

import (
	"bytes"

	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
)

// Bundle is what the fake init takes for an update: "refused" is one that it refuses, "broken" one that breaks off.
const Bundle = "an update"

// updates is init's part: a stream that is kept, and answered by its text.
func (f *Fake) updates(s *rpc.Server) {
	running := rpc.UpdateRunning{Version: "1.0-test", Number: 6, Floor: 6, Slot: "A", Format: 1}
	var came bytes.Buffer
	var install bool
	on(f, s, rpc.InitUpdateStatus, func(rpc.Empty) (rpc.UpdateStatus, error) {
		return rpc.UpdateStatus{Running: running, Phase: "failed", Release: 7, Version: "1.1", Image: "ab", Why: "release 7 was started and did not come up"}, nil
	})
	on(f, s, rpc.InitUpdateBegin, func(r rpc.UpdateRequest) (rpc.UpdateSession, error) {
		came.Reset()
		if install = r.Install; r.Stick {
			came.WriteString(Bundle)
		}
		return rpc.UpdateSession{ID: "1"}, nil
	})
	on(f, s, rpc.InitUpdateData, func(p rpc.UpdatePiece) (rpc.Empty, error) {
		came.Write(p.Data)
		return rpc.Empty{}, nil
	})
	on(f, s, rpc.InitUpdateEnd, func(rpc.UpdateSession) (rpc.UpdateReport, error) {
		r := rpc.UpdateReport{Running: running, Verified: true, Release: &rpc.UpdateRelease{Version: "1.1", Number: 7, BuildEpoch: 1795000000, Kernel: "6.1", KeySet: "Contoso", OldestFormat: 1, NewestFormat: 1, WritesFormat: 1,
			Image: "ab", SignedBy: "cd", Notes: "faster\nsafer"}}
		switch came.String() {
		case Bundle:
			r.Written = install
		case "refused":
			r.Problems = []policy.Problem{{Kind: "update-below-floor", What: "the bundle is release 5, and the floor is 6", Remedy: "install a newer release"}}
		default:
			r.Failed, r.Remedy, r.Verified, r.Release = "not a usable update bundle", "send it again", false, nil
		}
		return r, nil
	})
	on(f, s, rpc.InitUpdateBack, func(rpc.UpdateRequest) (rpc.UpdateBackReply, error) {
		return rpc.UpdateBackReply{Message: "release 7 is given up; release 6 starts again"}, nil
	})
}
