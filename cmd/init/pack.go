package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"guardhouse/appliance/disk"
	"guardhouse/appliance/hsm/pack"
	"guardhouse/appliance/rpc"
	"guardhouse/appliance/sandbox"
	"guardhouse/appliance/supervise"
)

// fencing are the modules of the network fence and what they need, loaded first among the later ones: hsm waits for them.
var fencing = map[string]bool{"nfnetlink": true, "libcrc32c": true, "nf_tables": true, "nf_reject_ipv4": true, "nf_reject_ipv6": true, "nft_reject": true, "nft_reject_inet": true}

// siteLook is the time between two looks at the site data that a helper process needs.
const siteLook = 2 * time.Second

// readPack reads which HSM pack this image has.
func (n *node) readPack() {
	var err error
	if n.pack, err = pack.Read(pack.ManifestPath); err != nil {
		n.problem("hsm-pack", err.Error(), "build the image again")
	}
}

// raiseFence holds hsm and the pack's helper to the pack's addresses, forward to none before a collector is set, and the ledger to none before it has
// named its peers. Without a fence neither of the first two is ever started: fenced stays open.
func (n *node) raiseFence() {
	n.fencing.Lock()
	defer n.fencing.Unlock()
	if err := n.fence(); err != nil {
		n.problem("hsm-fence", err.Error()+", so no process that uses the HSM is started, nor the one that sends the audit", "the image does not fit this kernel; build it again")
		return
	}
	n.logf("HSM pack %q: fence up", n.pack.Title())
	close(n.fenced)
}

// hsmUIDs are those who reach the HSM and nothing else.
func hsmUIDs() []uint32 {
	hsm, _ := sandbox.Find(rpc.HSM)
	return []uint32{sandbox.HSMDaemonProcess.UID, hsm.UID}
}

// startFenced releases what only runs behind the fence.
func (n *node) startFenced(ctx context.Context) {
	select {
	case <-ctx.Done():
		return
	case <-n.fenced:
	}
	for _, p := range sandbox.Table {
		if p.Fenced && !p.NeedsDisk {
			n.super.Release(p.Name)
		}
	}
	if len(n.pack.Daemon) > 0 {
		n.keepHelper(ctx, pack.SiteDir)
	}
}

// addHelper lists the pack's helper process, if there is one.
func (n *node) addHelper() error {
	if len(n.pack.Daemon) == 0 {
		return nil
	}
	p := sandbox.HSMDaemonProcess
	p.Program, p.Args = n.pack.Daemon[0], n.pack.Daemon[1:]
	return n.super.Add(supervise.Service{Name: p.Name, Mute: true, Hold: "waits for its site data", Command: func(env []string) (*exec.Cmd, error) {
		// Made anew, so that a socket which an earlier process left is not in the way.
		for _, f := range p.Paths {
			if err := errors.Join(os.RemoveAll(f.Path), disk.Folder(f.Path, p.UID, f.Group, f.Mode)); err != nil {
				return nil, err
			}
		}
		return sandbox.Command(sandbox.LaunchOf(p, append(env, n.pack.Env...)...), nil)
	}})
}

// keepHelper starts the helper as soon as disk and site data are there, and anew whenever the data changes.
func (n *node) keepHelper(ctx context.Context, dir string) {
	tick := time.NewTicker(siteLook)
	defer tick.Stop()
	seen, running := "", false
	for {
		if n.hasDisk() {
			state, missing := siteState(dir, n.pack.Site)
			n.siteProblem(missing)
			switch {
			case missing != "":
			case !running:
				n.super.Release(sandbox.HSMDaemon)
				seen, running = state, true
			case state != seen:
				n.logf("site data of the HSM pack has changed, starting %s anew", sandbox.HSMDaemon)
				seen = state
				n.super.Restart(sandbox.HSMDaemon)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (n *node) siteProblem(missing string) {
	if missing == "" {
		n.problem("hsm-site-data", "", "")
		return
	}
	n.problem("hsm-site-data", "the HSM pack "+n.pack.Title()+" lacks site data: "+missing, "hsm site-data put NAME < FILE, for each of them")
}

// siteState changes whenever one of the files does; missing names those that are not there.
func siteState(dir string, names []string) (state, missing string) {
	var absent []string
	for _, name := range names {
		st, err := os.Lstat(filepath.Join(dir, name))
		if errors.Is(err, fs.ErrNotExist) {
			absent = append(absent, name)
		}
		if err == nil {
			state += fmt.Sprint(name, " ", st.Size(), " ", st.ModTime().UnixNano(), "\n")
		}
	}
	return state, strings.Join(absent, ", ")
}
