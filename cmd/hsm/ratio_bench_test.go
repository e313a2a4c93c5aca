package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"guardhouse/appliance/hsm"
	"guardhouse/appliance/hsm/pack"
	"guardhouse/appliance/hsm/token"
	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
)

// asRaw makes this test program measure the token in its own process, slice by
// slice as standard input asks. Its value is a rawSetting.
const asRaw = "GUARDHOUSE_HSM_RAW"

type rawSetting struct {
	Module, Label, PIN string
	Sign, Decrypt      policy.KeyRef
	Ciphertext         []byte
}

// slice is what one measured stretch gave.
type slice struct {
	Ops   int
	Took  time.Duration
	Times []time.Duration // of each operation
	CPU   time.Duration   // of the processes that took part
}

const (
	sliceCallers = 4
	sliceLength  = 250 * time.Millisecond
)

// measure runs op by sliceCallers at once for sliceLength. op is told its turn:
// even ones decrypt, odd ones sign, as rolls do.
func measure(op func(turn int) error) (slice, error) {
	var s slice
	var mu sync.Mutex
	var wg sync.WaitGroup
	var failed error
	start := time.Now()
	for range sliceCallers {
		wg.Go(func() {
			var times []time.Duration
			var err error
			for turn := 0; err == nil && (time.Since(start) < sliceLength || turn%2 != 0); turn++ {
				began := time.Now()
				err = op(turn)
				times = append(times, time.Since(began))
			}
			mu.Lock()
			defer mu.Unlock()
			s.Times, failed = append(s.Times, times...), errors.Join(failed, err)
		})
	}
	wg.Wait()
	s.Ops, s.Took = len(s.Times), time.Since(start)
	return s, failed
}

// cpu is the processor time of a process so far, in steps of 10 ms.
func cpu(pid int) time.Duration {
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0
	}
	f := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	user, _ := strconv.Atoi(f[11])
	system, _ := strconv.Atoi(f[12])
	return time.Duration(user+system) * 10 * time.Millisecond
}

var benchDigest = sha256.Sum256([]byte("m"))

// measureRaw is the test program under asRaw.
func measureRaw() error {
	var r rawSetting
	if err := json.Unmarshal([]byte(os.Getenv(asRaw)), &r); err != nil {
		return err
	}
	t, err := token.Open(hsm.ModuleConfig{Module: r.Module, TokenLabel: r.Label}, []byte(r.PIN), func() {}, rand.Reader)
	if err != nil {
		return err
	}
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		before := cpu(os.Getpid())
		s, err := measure(func(turn int) error {
			if turn%2 == 0 {
				_, err := t.Decrypt(r.Decrypt, r.Ciphertext, p1)
				return err
			}
			_, err := t.Sign(hsm.SignRequest{Ref: r.Sign, Digest: benchDigest[:], Hash: crypto.SHA256, Scheme: hsm.PKCS1v15})
			return err
		})
		if err != nil {
			return err
		}
		s.CPU = cpu(os.Getpid()) - before
		if err := json.NewEncoder(os.Stdout).Encode(s); err != nil {
			return err
		}
	}
	return in.Err()
}

// startRaw starts it within p, or here where p is nil.
func startRaw(b *testing.B, r rawSetting, env string, p *place) func() slice {
	config, err := json.Marshal(r)
	if err != nil {
		b.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	if p != nil {
		cmd = p.within(os.Args[0])
	}
	cmd.Env = append(os.Environ(), asRaw+"="+string(config), env)
	cmd.Stderr = os.Stderr
	in, err1 := cmd.StdinPipe()
	out, err2 := cmd.StdoutPipe()
	if err := errors.Join(err1, err2, cmd.Start()); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { in.Close(); _ = cmd.Wait() })
	d := json.NewDecoder(out)
	return func() slice {
		var s slice
		if _, err := io.WriteString(in, "slice\n"); err != nil {
			b.Fatal(err)
		}
		if err := d.Decode(&s); err != nil {
			b.Fatalf("raw token: %v", err)
		}
		return s
	}
}

// BenchmarkOfRawToken puts the operations of rolls (a decryption, a signature, 4
// callers) through hsm's rpc socket, keeper and worker beside the same ones on
// the same token in one process, by turns of a quarter of a second, so that other
// load on the machine falls on both. of-raw is the ratio of the rates; p99-of-raw
// is the 99th percentile through hsm over the mean of the raw token at that load.
// cpu-of-raw compares processor time for each operation (client, keeper and
// worker against the raw process), which other load disturbs least: it is what
// of-raw comes to, and can't exceed, when nothing but the two processors is the
// limit. What it is made of stands beside it. The worker's share is the raw token's
// when all is well; a token of R us leaves R/9 us to client and keeper for 0.9.
func BenchmarkOfRawToken(b *testing.B) {
	b.Run("softhsm2", func(b *testing.B) {
		env := newSoftHSM(b)
		k := startKeeper(b, softHSM, env, hsm.Timing{})
		ofRaw(b, k, rawSetting{Module: softHSM, Label: label, PIN: userPIN}, env, nil)
	})
	b.Run("opencryptoki", func(b *testing.B) {
		p := newOpenCryptoki(b)
		ofRaw(b, p.keeper(b, hsm.Timing{}), rawSetting{Module: p.module, Label: p.label, PIN: p.pin}, "", p)
	})
}

func ofRaw(b *testing.B, k *hsm.Keeper, r rawSetting, env string, p *place) {
	var pub *rsa.PublicKey
	r.Sign, _ = generate(b, k, policy.RoleSigning)
	r.Decrypt, pub = generate(b, k, policy.RoleEncryption)
	r.Ciphertext = seal(b, pub, benchDigest[:])
	raw := startRaw(b, r, env, p)

	dir := b.TempDir()
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	b.Cleanup(func() { cancel(); wg.Wait() })
	if err := os.Mkdir(filepath.Join(dir, rpc.HSM+".d"), 0o700); err != nil {
		b.Fatal(err)
	}
	l, err := rpc.Listen(rpc.SocketPath(dir, rpc.HSM))
	if err != nil {
		b.Fatal(err)
	}
	server := rpc.NewServer(rpc.UIDs{rpc.HGS: uint32(os.Getuid())})
	soft := hsm.NewSoftware(func() *exec.Cmd { return workerCommand(os.Args[0], "software") }, nil, b.Logf)
	register(server, hsm.Keyring{Token: k, Software: soft}, &source{k: k, c: &cable{dir: dir, log: b.Logf}, site: newSite(pack.Manifest{Module: r.Module}, dir)})
	wg.Go(func() { _ = server.Serve(ctx, l) })
	client := rpc.NewClient(rpc.SocketPath(dir, rpc.HSM))
	through := func(turn int) error {
		var err error
		if turn%2 == 0 {
			_, err = rpc.HSMDecrypt.Call(ctx, client, rpc.HSMDecryptRequest{Ref: r.Decrypt, Ciphertext: r.Ciphertext, Hash: uint(crypto.SHA256), MGF: uint(crypto.SHA256)})
		} else {
			_, err = rpc.HSMSign.Call(ctx, client, rpc.HSMSignRequest{Ref: r.Sign, Role: policy.RoleSigning, Digest: benchDigest[:], Hash: uint(crypto.SHA256)})
		}
		return err
	}
	raw()
	if _, err := measure(through); err != nil { // both warm
		b.Fatal(err)
	}
	var ours, theirs slice
	var inWorker time.Duration
	add := func(to *slice, s slice) {
		to.Ops, to.Took, to.Times = to.Ops+s.Ops, to.Took+s.Took, append(to.Times, s.Times...)
		to.CPU += s.CPU
	}
	worker := childOf(b, os.Getpid())
	for b.Loop() {
		add(&theirs, raw())
		before, beforeWorker := cpu(os.Getpid()), cpu(worker)
		s, err := measure(through)
		if err != nil {
			b.Fatal(err)
		}
		s.CPU = cpu(os.Getpid()) - before
		inWorker += cpu(worker) - beforeWorker
		add(&ours, s)
	}
	rate := func(s slice) float64 { return float64(s.Ops) / s.Took.Seconds() }
	slices.Sort(ours.Times)
	slices.Sort(theirs.Times)
	p99 := ours.Times[len(ours.Times)*99/100]
	mean := float64(theirs.Took) * sliceCallers / float64(theirs.Ops)
	b.ReportMetric(rate(theirs), "raw-ops/s")
	b.ReportMetric(rate(ours), "ops/s")
	b.ReportMetric(rate(ours)/rate(theirs), "of-raw")
	b.ReportMetric(float64(p99)/mean, "p99-of-raw")
	perOp := func(d time.Duration, s slice) float64 { return float64(d.Microseconds()) / float64(s.Ops) }
	b.ReportMetric(perOp(theirs.CPU, theirs)/perOp(ours.CPU+inWorker, ours), "cpu-of-raw")
	b.ReportMetric(perOp(theirs.CPU, theirs), "raw-cpu-us/op")
	b.ReportMetric(perOp(ours.CPU, ours), "keeper+client-cpu-us/op")
	b.ReportMetric(perOp(inWorker, ours), "worker-cpu-us/op")
	b.ReportMetric(0, "ns/op")
}
