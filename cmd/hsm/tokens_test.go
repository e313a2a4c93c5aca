package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"guardhouse/appliance/hsm"
)

// place is a token whose module reads fixed paths, in mount and IPC namespaces
// of its own, where those paths lead into the test's folder. Workers and tools
// enter them.
type place struct {
	module, label, pin string
	holder             *exec.Cmd
}

const (
	openCryptoki = "/usr/lib/x86_64-linux-gnu/opencryptoki/libopencryptoki.so.0"
	p11Proxy     = "/usr/lib/x86_64-linux-gnu/p11-kit-proxy.so"
	softOKN      = "/usr/lib/x86_64-linux-gnu/libsoftokn3.so"
)

// newPlace runs script in new namespaces; it prints "ready" and stays.
func newPlace(t testing.TB, p *place, script string, args ...string) *place {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("only root can give the token's fixed paths to a test of its own (mount namespace)")
	}
	p.holder = exec.Command("unshare", append([]string{"--mount", "--ipc", "sh", "-ec", "mount --make-rprivate /\n" + script, "sh"}, args...)...)
	p.holder.Stderr = os.Stderr
	p.holder.SysProcAttr = &unix.SysProcAttr{Setpgid: true, Pdeathsig: unix.SIGKILL}
	out, err := p.holder.StdoutPipe()
	if err == nil {
		err = p.holder.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = unix.Kill(-p.holder.Process.Pid, unix.SIGKILL)
		_ = p.holder.Wait()
	})
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "ready\n" {
		t.Fatalf("the token's place was not made: %q, %v", line, err)
	}
	return p
}

// within makes a command that runs in the place.
func (p *place) within(args ...string) *exec.Cmd {
	return exec.Command("nsenter", append([]string{"-t", strconv.Itoa(p.holder.Process.Pid), "-m", "-i", "--"}, args...)...)
}

// tool runs pkcs11-tool on the token, as its owner would.
func (p *place) tool(args ...string) (string, error) {
	out, err := p.within(append([]string{"pkcs11-tool", "--module", p.module}, args...)...).CombinedOutput()
	return string(out), err
}

func (p *place) mustTool(t testing.TB, args ...string) {
	t.Helper()
	if out, err := p.tool(args...); err != nil {
		t.Fatalf("pkcs11-tool %v (package opensc): %v: %s", args, err, out)
	}
}

// keeper runs a keeper whose workers live in the place.
func (p *place) keeper(t testing.TB, timing hsm.Timing) *hsm.Keeper {
	t.Helper()
	k := hsm.NewKeeper(func() *exec.Cmd {
		cmd := p.within(os.Args[0], "worker")
		cmd.Stderr, cmd.Env = os.Stderr, os.Environ()
		return cmd
	}, timing, func(f string, a ...any) { t.Logf(f, a...) })
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { _ = k.Run(ctx); close(done) }()
	t.Cleanup(func() { cancel(); <-done })
	if err := errors.Join(k.Configure(hsm.ModuleConfig{Module: p.module, TokenLabel: p.label}, nil), k.SetPIN([]byte(p.pin))); err != nil {
		t.Fatal(err)
	}
	return k
}

const officerPIN = "87654321" // opencryptoki's first one

// newOpenCryptoki makes a software token of opencryptoki with its slot daemon.
func newOpenCryptoki(t testing.TB) *place {
	t.Helper()
	if _, err := os.Stat(openCryptoki); err != nil {
		t.Fatalf("package opencryptoki: %v", err)
	}
	dir := t.TempDir()
	for _, d := range []string{"lib/swtok/TOK_OBJ", "lock/swtok", "log", "etc"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o770); err != nil {
			t.Fatal(err)
		}
	}
	const conf = "version opencryptoki-3.1\nslot 0\n{\nstdll = libpkcs11_sw.so\n}\n"
	if err := os.WriteFile(filepath.Join(dir, "etc/opencryptoki.conf"), []byte(conf), 0o640); err != nil {
		t.Fatal(err)
	}
	p := newPlace(t, &place{module: openCryptoki, label: "guardhouse-oc", pin: "4711oc"}, `
		mount -t tmpfs tmpfs /run; mkdir -p /run/lock/opencryptoki /var/log/opencryptoki; mount -t tmpfs tmpfs /dev/shm
		chgrp -R pkcs11 "$1"; chmod -R g+rwX "$1"
		mount --bind "$1/lib" /var/lib/opencryptoki; mount --bind "$1/lock" /run/lock/opencryptoki
		mount --bind "$1/log" /var/log/opencryptoki; mount --bind "$1/etc" /etc/opencryptoki
		pkcsslotd -f >"$1/log/out" 2>&1 &
		for i in $(seq 200); do [ -S /run/pkcsslotd.socket ] && break; sleep 0.02; done
		[ -S /run/pkcsslotd.socket ]; echo ready; exec sleep 600`, dir)
	p.mustTool(t, "--init-token", "--slot", "0", "--so-pin", officerPIN, "--label", p.label)
	p.resetPIN(t)
	return p
}

// resetPIN is what the token's security officer does.
func (p *place) resetPIN(t testing.TB) {
	t.Helper()
	p.mustTool(t, "--init-pin", "--login", "--login-type", "so", "--so-pin", officerPIN, "--new-pin", p.pin)
}

// newNSS makes a token of NSS's softokn, the slowest we know. It wants its
// parameters with C_Initialize, which p11-kit hands over.
func newNSS(t testing.TB) *place {
	t.Helper()
	if _, err := os.Stat(softOKN); err != nil {
		t.Fatalf("package libnss3: %v", err)
	}
	dir := t.TempDir()
	p := &place{module: p11Proxy, label: "NSS Certificate DB", pin: userPIN}
	module := fmt.Sprintf("module: %s\nx-init-reserved: configdir=sql:%s/db\n", softOKN, dir)
	err := errors.Join(os.Mkdir(filepath.Join(dir, "db"), 0o700), os.Mkdir(filepath.Join(dir, "modules"), 0o700),
		os.WriteFile(filepath.Join(dir, "modules/nss.module"), []byte(module), 0o600), os.WriteFile(filepath.Join(dir, "pin"), []byte(p.pin+"\n"), 0o600))
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("certutil", "-N", "-d", "sql:"+dir+"/db", "-f", dir+"/pin").CombinedOutput(); err != nil {
		t.Fatalf("certutil (package libnss3-tools): %v: %s", err, out)
	}
	return newPlace(t, p, `mount --bind "$1/modules" /usr/share/p11-kit/modules; echo ready; exec sleep 600`, dir)
}

// back waits until work succeeds, for at most limit; until then each failure
// must be one that hosts may retry.
func back(t *testing.T, k *hsm.Keeper, limit time.Duration, work func() error) {
	t.Helper()
	began := time.Now()
	for {
		err := work()
		if err == nil {
			t.Logf("back after %v", time.Since(began).Round(time.Millisecond))
			return
		}
		if e := hsm.AsError(err); !e.Retryable() && e.Kind != hsm.KindFailed {
			t.Fatalf("not a retryable error: %v", err)
		}
		if time.Since(began) > limit {
			t.Fatalf("not back after %v: %v; %+v", limit, err, k.Status())
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// softHSMDir is where newSoftHSM's variable leads to.
func softHSMDir(env string) string {
	return filepath.Join(filepath.Dir(strings.TrimPrefix(env, "SOFTHSM2_CONF=")), "tokens")
}
