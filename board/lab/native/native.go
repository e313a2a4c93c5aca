// Package native runs the programs of a node on the workstation, without a machine: the same binaries, supervisor, uids, sockets and
// token as in the image, with a software TPM and real time servers, in a few seconds. Faults that a release image has no hook for (a
// killed process, a cut disk) are made here.
//
// Promise: each program runs under its own uid, so that the rpc doors are tested as they are used; nothing outlives Close.
//
// Limits: needs root for the uids. The calling test stands in for two processes: init (it takes every network
// and does nothing with it) and the console (it runs as uid 0, which the programs are told is the console's).
package native

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"

	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
	"guardhouse/appliance/sandbox"
	"guardhouse/appliance/supervise"
	"guardhouse/board/lab"
	"guardhouse/board/lab/site"
)

// uids of the programs. The test itself is the console.
var uids = rpc.UIDs{rpc.Console: 0, rpc.Init: 65001, rpc.Ledger: 65002, rpc.HSM: 65003, rpc.HGS: 65004, rpc.Clock: 65005}

// Unavailable says why this can't run here, or "".
func Unavailable() string {
	if os.Getuid() != 0 {
		return "needs root, to run each program under its own uid"
	}
	return ""
}

// Options of a stack. Dir is short, exists and is reachable for other uids; Data is the folder of the ledger's disk ("" = Dir/data).
type Options struct {
	Dir      string
	Data     string
	Cache    string   // of unpacked Debian packages; "" = Dir/lab/cache
	Services []string // names; nil = all
	HGSArgs  []string
	// TimeOffset is by how much the node's only time server is ahead; 0, or 2 s and more.
	TimeOffset time.Duration
}

// Stack is a running node without a machine.
type Stack struct {
	*supervise.Native
	opt   Options
	Lab   *lab.Lab
	Token *lab.Token
	Time  []*lab.TimeServer
	Admin *site.Admin

	tpm     *exec.Cmd
	tpmAddr string
	stop    context.CancelFunc
	done    sync.WaitGroup
}

// Programs are all that a Stack can run.
var Programs = []string{rpc.HSM, rpc.Ledger, rpc.Clock, rpc.HGS}

// Build compiles the named commands into dir.
func Build(ctx context.Context, dir string, names ...string) error {
	for _, name := range names {
		cmd := exec.CommandContext(ctx, "go", "build", "-o", filepath.Join(dir, name), "guardhouse/cmd/"+name)
		if cmd.Env = os.Environ(); name != rpc.HSM {
			cmd.Env = append(cmd.Env, "CGO_ENABLED=0") // static, as in the image: these may not make memory code, which a loader does
		}
		out, err := cmd.CombinedOutput()
		if err != nil {
			return fmt.Errorf("build %s: %w: %s", name, err, out)
		}
	}
	return nil
}

// Open makes the parts around the programs. Start starts them.
func Open(ctx context.Context, o Options) (*Stack, error) {
	if why := Unavailable(); why != "" {
		return nil, errors.New(why)
	}
	if o.Data == "" {
		o.Data = filepath.Join(o.Dir, "data")
	}
	ctx, stop := context.WithCancel(ctx)
	s := &Stack{opt: o, stop: stop}
	if err := s.open(ctx); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

func (s *Stack) open(ctx context.Context) (err error) {
	for _, d := range []string{s.opt.Dir, filepath.Join(s.opt.Dir, "run")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
		os.Chmod(d, 0o755)
	}
	if s.Lab, err = lab.New(ctx, lab.Options{Dir: filepath.Join(s.opt.Dir, "lab"), Cache: s.opt.Cache}); err != nil {
		return err
	}
	if s.Token, err = s.Lab.NewToken(ctx, site.TokenLabel); err != nil {
		return err
	}
	sock := filepath.Join(s.opt.Dir, "p11.sock")
	os.Remove(sock)
	if _, err = s.Token.ServeUnix(sock); err != nil {
		return err
	}
	if err := os.Chmod(sock, 0o666); err != nil {
		return err
	}
	if s.opt.TimeOffset == 0 {
		s.Time, err = s.Lab.TimeServers(ctx, 1)
	} else {
		var wrong *lab.TimeServer
		wrong, err = s.Lab.TimeServer(ctx, s.opt.TimeOffset)
		s.Time = []*lab.TimeServer{wrong}
	}
	if err != nil {
		return err
	}
	if s.Admin, err = site.OpenAdmin(s.Lab.Dir); err != nil {
		return err
	}
	if err := s.startTPM(ctx); err != nil {
		return err
	}
	return s.serveInit(ctx)
}

// startTPM runs swtpm on loopback ports that the kernel chose.
func (s *Stack) startTPM(ctx context.Context) error {
	state := filepath.Join(s.opt.Dir, "tpm")
	if err := os.MkdirAll(state, 0o700); err != nil {
		return err
	}
	var last error
	for range 5 {
		server, ctrl, err := twoPorts()
		if err != nil {
			return err
		}
		cmd := exec.CommandContext(ctx, "swtpm", "socket", "--tpm2", "--tpmstate", "dir="+state, "--server", fmt.Sprintf("type=tcp,port=%d,bindaddr=127.0.0.1", server),
			"--ctrl", fmt.Sprintf("type=tcp,port=%d,bindaddr=127.0.0.1", ctrl), "--flags", "not-need-init,startup-clear")
		if err := startTied(ctx, cmd); err != nil {
			return fmt.Errorf("start swtpm: %w", err)
		}
		s.tpm, s.tpmAddr = cmd, fmt.Sprintf("127.0.0.1:%d", server)
		for range 100 {
			c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", ctrl))
			if last = err; err == nil {
				c.Close()
				return nil
			}
			time.Sleep(20 * time.Millisecond)
		}
		cmd.Process.Kill()
		cmd.Wait()
	}
	return fmt.Errorf("swtpm does not answer: %w", last)
}

func twoPorts() (a, b int, err error) {
	l1, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, 0, err
	}
	defer l1.Close()
	l2, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, 0, err
	}
	defer l2.Close()
	return l1.Addr().(*net.TCPAddr).Port, l2.Addr().(*net.TCPAddr).Port, nil
}

// serveInit stands in for init's socket.
func (s *Stack) serveInit(ctx context.Context) error {
	path := rpc.SocketPath(s.run(), rpc.Init)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	l, err := rpc.Listen(path)
	if err != nil {
		return err
	}
	srv := rpc.NewServer(uids)
	rpc.Handle(srv, rpc.InitNetwork, func(context.Context, rpc.Caller, policy.Network) (rpc.Empty, error) {
		return rpc.Empty{}, nil
	}, rpc.Ledger)
	rpc.Handle(srv, rpc.InitStatus, func(context.Context, rpc.Caller, rpc.Empty) (rpc.InitStatusReply, error) {
		return rpc.InitStatusReply{Version: "native"}, nil
	}, rpc.Ledger, rpc.Console)
	s.done.Go(func() { srv.Serve(ctx, l) })
	return nil
}

func (s *Stack) run() string { return filepath.Join(s.opt.Dir, "run") }

// Start starts the programs found in bin (Build) and waits until they are ready.
func (s *Stack) Start(ctx context.Context, bin string) error {
	if err := os.MkdirAll(s.opt.Data, 0o700); err != nil {
		return err
	}
	if err := chownAll(s.opt.Data, uids[rpc.Ledger]); err != nil {
		return err
	}
	module := "/usr/lib/x86_64-linux-gnu/pkcs11/p11-kit-client.so"
	if _, err := os.Stat(module); err != nil {
		return err
	}
	attachDir := filepath.Join(s.opt.Dir, "hsm")
	if err := os.MkdirAll(attachDir, 0o755); err != nil {
		return err
	}
	all := map[string]supervise.NativeService{
		rpc.Ledger: {Args: []string{"--data", s.opt.Data, "--tpm", "swtpm:" + s.tpmAddr}, Sockets: []string{"peer"}},
		rpc.HSM:    {Args: []string{"--attach-dir", attachDir}, Env: []string{"P11_KIT_SERVER_ADDRESS=unix:path=" + filepath.Join(s.opt.Dir, "p11.sock")}},
		rpc.Clock:  {},
		rpc.HGS:    {Args: s.opt.HGSArgs, Sockets: []string{"http", "https"}},
	}
	names := s.opt.Services
	if names == nil {
		names = Programs
	}
	var services []supervise.NativeService
	for _, name := range names {
		svc := all[name]
		uid := uids[name]
		svc.Name, svc.Program, svc.UID, svc.Watchdog = name, filepath.Join(bin, name), &uid, 30*time.Second
		services = append(services, svc)
	}
	n, err := supervise.RunNative(s.run(), uids, supervise.DefaultTiming, services...)
	if err != nil {
		return err
	}
	s.Native = n
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	return n.WaitReady(ctx, names...)
}

// Client calls a program as the console.
func (s *Stack) Client(process string) *rpc.Client {
	return rpc.NewClient(rpc.SocketPath(s.run(), process))
}

// URL is the base URL of a service of hgs.
func (s *Stack) URL(path string) string { return "http://" + s.Addr["http"] + path }

// SetUp runs setup through the ledger's own door for it, as the serial console does.
func (s *Stack) SetUp(ctx context.Context) error {
	ledger := s.Client(rpc.Ledger)
	defer ledger.Close()
	key, err := rpc.LedgerSetupKey.Call(ctx, ledger, rpc.Empty{})
	if err != nil {
		return err
	}
	text, err := site.RenderAnswers(site.AnswerValues{Name: "native", Times: []string{s.Time[0].Addr()}, Token: site.TokenLabel,
		Module: "/usr/lib/x86_64-linux-gnu/pkcs11/p11-kit-client.so", AdminName: site.AdminName, AdminKey: s.Admin.Public})
	if err != nil {
		return err
	}
	secrets, err := site.EncryptSecrets(key.Recipient, s.Token.PIN(), "native-passphrase")
	if err != nil {
		return err
	}
	_, err = rpc.LedgerSetupApply.Call(ctx, ledger, rpc.SetupRequest{Answers: text, Secrets: secrets, Actor: policy.Actor{Name: "setup", Door: policy.DoorSetup, Session: "native"}})
	return err
}

// Actor is the site's administrator.
func (s *Stack) Actor() (policy.Actor, error) {
	fp, err := policy.KeyFingerprint(s.Admin.Public)
	return policy.Actor{Name: site.AdminName, Key: fp, Door: policy.DoorSSH, Session: "native"}, err
}

// Propose sends a command as the site's administrator; id "" makes one.
func (s *Stack) Propose(ctx context.Context, ledger *rpc.Client, id string, kind policy.Kind, body any) (policy.Result, error) {
	a, err := s.Actor()
	if err != nil {
		return policy.Result{}, err
	}
	if id == "" {
		id = NewID()
	}
	b, err := json.Marshal(body)
	if err != nil {
		return policy.Result{}, err
	}
	return rpc.LedgerPropose.Call(ctx, ledger, policy.Command{ID: id, Kind: kind, Actor: a, Body: b})
}

// NewID is a request id.
func NewID() string {
	b := make([]byte, 16)
	rand.Read(b)
	return hex.EncodeToString(b)
}

// MakeKeys has the HSM make one key for each role, once there is a trusted time.
func (s *Stack) MakeKeys(ctx context.Context) error {
	a, err := s.Actor()
	if err != nil {
		return err
	}
	ledger := s.Client(rpc.Ledger)
	defer ledger.Close()
	for {
		_, err = rpc.LedgerMakeKeys.Call(ctx, ledger, rpc.MakeKeysRequest{Actor: a, ID: NewID(), Roles: policy.KeyRoles, Bits: 2048, Subject: "native"})
		if !errors.Is(err, rpc.ErrUnavailable) || ctx.Err() != nil {
			return err
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// StopPrograms ends the programs, not what is around them; Start may follow.
func (s *Stack) StopPrograms() {
	if s.Native != nil {
		s.Native.Close()
		s.Native = nil
	}
}

// Close ends everything.
func (s *Stack) Close() {
	s.StopPrograms()
	s.stop()
	s.done.Wait()
	if s.tpm != nil {
		s.tpm.Process.Kill()
		s.tpm.Wait()
	}
	if s.Lab != nil {
		s.Lab.Close()
	}
}

func chownAll(dir string, uid uint32) error {
	return filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(path, int(uid), int(uid))
	})
}

// Shim must be called first thing in main or TestMain of a program that uses a Stack: the supervisor starts programs through it.
func Shim() { sandbox.Shim() }
