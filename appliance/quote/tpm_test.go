package quote_test

import (
	"bytes"
	"encoding/pem"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"guardhouse/appliance/evidence"
	"guardhouse/appliance/tpm"
)

// maker is a maker of TPMs with a certificate authority of its own.
type maker string

func newMaker(t *testing.T) maker {
	t.Helper()
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	tool, err := exec.LookPath("swtpm_localca")
	if err != nil {
		t.Fatalf("%v (Debian package swtpm-tools)", err)
	}
	for name, text := range map[string]string{
		"ca.conf":    fmt.Sprintf("statedir = %s\nsigningkey = %s\nissuercert = %s\ncertserial = %s\n", dir, in("signkey.pem"), in("issuercert.pem"), in("certserial")),
		"ca.options": "--platform-manufacturer Test\n--platform-version 1\n--platform-model Test\n",
		"setup.conf": fmt.Sprintf("create_certs_tool = %s\ncreate_certs_tool_config = %s\ncreate_certs_tool_options = %s\n", tool, in("ca.conf"), in("ca.options")),
	} {
		if err := os.WriteFile(in(name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return maker(dir)
}

// trust is what somebody who knows the maker trusts.
func (m maker) trust(t *testing.T) *evidence.Trust {
	t.Helper()
	var certs [2]*evidence.Certificate
	for i, name := range []string{"swtpm-localca-rootca-cert.pem", "issuercert.pem"} {
		b, err := os.ReadFile(filepath.Join(string(m), name))
		if err != nil {
			t.Fatal(err)
		}
		block, _ := pem.Decode(b)
		if certs[i], err = evidence.ParseCertificate(block.Bytes); err != nil {
			t.Fatal(err)
		}
	}
	return evidence.NewTrust(certs[:1], certs[1:])
}

// make manufactures a TPM; an empty maker makes one without a certificate.
func (m maker) make(t *testing.T) *tpm.TPM {
	t.Helper()
	state := t.TempDir()
	if m != "" {
		out, err := exec.Command("swtpm_setup", "--tpm2", "--tpmstate", state, "--config", filepath.Join(string(m), "setup.conf"), "--create-ek-cert", "--pcr-banks", "sha256").CombinedOutput()
		if err != nil {
			t.Fatalf("swtpm_setup (Debian package swtpm-tools): %v: %s", err, out)
		}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0") // finds a free port; swtpm takes none of ours
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	l.Close()
	_, port, _ := net.SplitHostPort(address)
	cmd := exec.Command("swtpm", "socket", "--tpm2", "--tpmstate", "dir="+state, "--server", "type=tcp,bindaddr=127.0.0.1,port="+port, "--flags", "not-need-init,startup-clear")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatalf("swtpm (Debian package swtpm): %v", err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	for range 200 {
		if d, err := tpm.Open("swtpm:" + address); err == nil {
			t.Cleanup(func() { d.Close() })
			return d
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Fatalf("swtpm does not answer: %s", out.String())
	return nil
}
