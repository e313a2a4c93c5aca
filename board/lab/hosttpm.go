package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

// HostTPM is the TPM 2.0 of a host outside the nodes: a software TPM with an endorsement key certificate of the lab's own vendor, on two
// TCP ports in a row on loopback, the second one for its control channel.
type HostTPM struct {
	Dir  string // holds its state and its log
	Spec string // "swtpm:127.0.0.1:PORT", as hostsim's --tpm wants it

	process *process
}

// vendorFolder holds the keys and certificates of the lab's TPM vendor, one for all TPMs of a lab.
func (l *Lab) vendorFolder() string { return filepath.Join(l.Dir, "tpm-vendor") }

// TPMVendor gives the vendor's root and intermediate certificate in PEM. There is one after the first TPM that it made.
func (l *Lab) TPMVendor() ([]byte, error) {
	var all []byte
	for _, name := range []string{"swtpm-localca-rootca-cert.pem", "issuercert.pem"} {
		b, err := os.ReadFile(filepath.Join(l.vendorFolder(), name))
		if err != nil {
			return nil, fmt.Errorf("lab: certificates of the TPM vendor: %w", err)
		}
		all = append(all, b...)
	}
	return all, nil
}

// NewHostTPM manufactures a TPM, or finds the one of this name again, and powers it on. It ends with the lab.
func (l *Lab) NewHostTPM(ctx context.Context, name string) (*HostTPM, error) {
	if !nodeName.MatchString(name) {
		return nil, fmt.Errorf("lab: host TPM %q: bad name: want small letters, digits and '-'", name)
	}
	t := &HostTPM{Dir: filepath.Join(l.Dir, "host-tpms", name)}
	if _, err := os.Stat(t.state()); errors.Is(err, os.ErrNotExist) {
		if err := l.manufacture(ctx, t.state()); err != nil {
			return nil, fmt.Errorf("lab: host TPM %q: %w", name, err)
		}
	}
	for range 20 {
		if ok, err := t.powerOn(l); err != nil {
			return nil, fmt.Errorf("lab: host TPM %q: %w", name, err)
		} else if ok {
			return t, nil
		}
	}
	return nil, fmt.Errorf("lab: host TPM %q: swtpm does not start: %s", name, tail(t.log()))
}

func (t *HostTPM) state() string { return filepath.Join(t.Dir, "state") }

func (t *HostTPM) log() string { return filepath.Join(t.Dir, "swtpm.log") }

// manufacture has swtpm_setup make a TPM with its endorsement keys, and puts their certificates into it.
func (l *Lab) manufacture(ctx context.Context, state string) error {
	vendor, making := l.vendorFolder(), state+".new" // renamed when complete
	if err := errors.Join(os.RemoveAll(making), os.MkdirAll(making, 0o700), os.MkdirAll(vendor, 0o700)); err != nil {
		return err
	}
	in := func(name string) string { return filepath.Join(vendor, name) }
	tool, err := exec.LookPath("swtpm_localca")
	if err != nil {
		return fmt.Errorf("%w (Debian package swtpm-tools)", err)
	}
	for name, text := range map[string]string{
		"localca.conf":    "statedir = " + vendor + "\nsigningkey = " + in("signkey.pem") + "\nissuercert = " + in("issuercert.pem") + "\ncertserial = " + in("certserial") + "\n",
		"localca.options": "--platform-manufacturer Lab\n--platform-version 1\n--platform-model Lab\n",
		"setup.conf":      "create_certs_tool = " + tool + "\ncreate_certs_tool_config = " + in("localca.conf") + "\ncreate_certs_tool_options = " + in("localca.options") + "\n",
	} {
		if err := os.WriteFile(in(name), []byte(text), 0o600); err != nil {
			return err
		}
	}
	out, err := exec.CommandContext(ctx, "swtpm_setup", "--tpm2", "--tpmstate", making, "--config", in("setup.conf"), "--create-ek-cert",
		"--pcr-banks", "sha1,sha256").CombinedOutput()
	if err != nil {
		return fmt.Errorf("swtpm_setup: %w: %.600s", err, out)
	}
	return os.Rename(making, state)
}

// powerOn is false where somebody else took one of the ports first.
func (t *HostTPM) powerOn(l *Lab) (bool, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return false, err
	}
	port := listener.Addr().(*net.TCPAddr).Port
	listener.Close()
	log, err := os.OpenFile(t.log(), os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return false, err
	}
	defer log.Close()
	cmd := exec.Command("swtpm", "socket", "--tpm2", "--tpmstate", "dir="+t.state(), "--flags", "not-need-init,startup-clear",
		"--server", fmt.Sprintf("type=tcp,bindaddr=127.0.0.1,port=%d", port), "--ctrl", fmt.Sprintf("type=tcp,bindaddr=127.0.0.1,port=%d", port+1))
	cmd.Stdout, cmd.Stderr = log, log
	if t.process, err = l.procs.start("swtpm", cmd); err != nil {
		return false, err
	}
	for range 250 {
		select {
		case <-t.process.done:
			return false, nil
		case <-time.After(20 * time.Millisecond):
		}
		if c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port+1)); err == nil {
			c.Close()
			t.Spec = fmt.Sprintf("swtpm:127.0.0.1:%d", port)
			return true, nil
		}
	}
	t.process.kill()
	return false, nil
}
