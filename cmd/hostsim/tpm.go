package main

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"

	"guardhouse/appliance/evidence"
)

// Files of a host in TPM mode in --dir, besides fileVSMKey (the VSM key for encryption) and fileHealth.
const (
	fileVSMSigning    = "vsm-signing.key"
	fileEK            = "ek.pub"       // TPM2B_PUBLIC
	fileEKCertificate = "ek.cer"       // the manufacturer's certificate; put one here if the TPM has none
	fileCIPolicy      = "sipolicy.bin" // the host's code integrity policy, unsigned
	fileDump          = "dump.pub"     // the public key that crash dumps are encrypted to
	fileLog           = "boot.tcglog"  // of the last start
	fileHealthSigning = "health-signing.cer"
)

// tpmHost is a host whose TPM proves what it started.
type tpmHost struct {
	o               *options
	vsm, vsmSigning *rsa.PrivateKey
	ek              []byte // TPM2B_PUBLIC
	certificate     *evidence.Certificate
	ciPolicy, dump  []byte
}

func (o *options) tpmHost() (*tpmHost, error) {
	h := &tpmHost{o: o}
	var err error
	if h.vsm, err = o.readKey(fileVSMKey); err != nil {
		return nil, err
	}
	if h.vsmSigning, err = o.readKey(fileVSMSigning); err != nil {
		return nil, err
	}
	for name, into := range map[string]*[]byte{fileEK: &h.ek, fileCIPolicy: &h.ciPolicy, fileDump: &h.dump} {
		if *into, err = os.ReadFile(o.path(name)); err != nil {
			return nil, fmt.Errorf("%w (make it first: hostsim tpm new)", err)
		}
	}
	raw, err := os.ReadFile(o.path(fileEKCertificate))
	if errors.Is(err, os.ErrNotExist) {
		return h, nil
	}
	if err == nil {
		h.certificate, err = evidence.ParseCertificate(raw)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", fileEKCertificate, err)
	}
	return h, nil
}

func tpmNew(o *options) error {
	d, err := openTPM(o.tpm)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := os.MkdirAll(o.dir, 0o700); err != nil {
		return err
	}
	ek, err := d.endorsementKey()
	if err != nil {
		return err
	}
	for _, name := range []string{fileVSMKey, fileVSMSigning} {
		k, err := newKey()
		if err != nil {
			return err
		}
		if err := o.writeKey(name, k); err != nil {
			return err
		}
	}
	var id [16]byte
	dump := make([]byte, 270) // stands for a public key: only its digest is ever used
	if _, err := rand.Read(id[:]); err != nil {
		return err
	}
	if _, err := rand.Read(dump); err != nil {
		return err
	}
	files := map[string][]byte{fileEK: ek, fileCIPolicy: newCIPolicy("policy of "+o.name, id), fileDump: dump}
	if der := d.endorsementCertificate(); der != nil {
		files[fileEKCertificate] = der
	}
	for name, b := range files {
		if err := os.WriteFile(o.path(name), b, 0o644); err != nil {
			return err
		}
	}
	key, err := evidence.ParseEK(ek)
	if err != nil {
		return err
	}
	sum := sha256.Sum256(dump)
	o.say("id", key.ID(), "endorsement key  %s", key.ID())
	o.say("certificate", files[fileEKCertificate] != nil, "certified        %t", files[fileEKCertificate] != nil)
	o.say("ciPolicy", o.path(fileCIPolicy), "CI policy        %s  SHA-256 %s", o.path(fileCIPolicy), sha256hex(files[fileCIPolicy]))
	o.say("dumpKey", hex.EncodeToString(sum[:]), "dump key         %x", sum)
	return nil
}

func tpmIdentifier(o *options) error {
	h, err := o.tpmHost()
	if err != nil {
		return err
	}
	p := &evidence.Platform{Name: o.name, Machine: "4c4c4544-0042-3510-8052-b4c04f4c4142", Serial: "LAB-" + o.name, MACs: []string{"02-00-00-00-00-01"},
		Certificate: h.certificate}
	if h.certificate == nil {
		p.NoCertReason = "No endorsement key certificate was found in the TPM."
	}
	b, err := evidence.WritePlatform(p, h.ek)
	if err != nil {
		return err
	}
	return o.write(b, "platform identifier")
}

// tpmBaseline is what Get-HgsAttestationBaselinePolicy saves: the log of a start of this host, with --misbehave of a changed one.
func tpmBaseline(o *options) error {
	h, err := o.tpmHost()
	if err != nil {
		return err
	}
	m, err := findMisbehaviour(o.misbehave)
	if err != nil {
		return err
	}
	w, err := h.start(m)
	if err != nil {
		return err
	}
	return o.write(w.Log(), "boot log")
}

func (o *options) write(b []byte, what string) error {
	if o.out == "" {
		return fmt.Errorf("%w: --out is missing", errUsage)
	}
	if err := os.WriteFile(o.out, b, 0o644); err != nil {
		return err
	}
	o.say("file", o.out, "%-16s %s  SHA-256 %s", what, o.out, sha256hex(b))
	return nil
}

func (h *tpmHost) start(m misbehaviour) (*evidence.Writer, error) {
	b := h.goodBoot()
	if m.boot != nil {
		m.boot(b)
	}
	return b.write()
}

// powerOn starts the host: the TPM is restarted and told everything that the log tells. It gives the log as it will be sent.
func (h *tpmHost) powerOn(d *device, m misbehaviour) ([]byte, error) {
	w, err := h.start(m)
	if err != nil {
		return nil, err
	}
	if err := d.restart(); err != nil {
		return nil, err
	}
	for _, x := range w.Extends {
		if err := d.extend(x); err != nil {
			return nil, err
		}
	}
	if m.late {
		x := evidence.Extend{PCR: 12}
		for _, b := range banks {
			x.Digests = append(x.Digests, make([]byte, b.Size()))
		}
		if err := d.extend(x); err != nil {
			return nil, err
		}
	}
	log := w.Log()
	if m.log != nil {
		if log, err = m.log(log); err != nil {
			return nil, err
		}
	}
	return log, os.WriteFile(h.o.path(fileLog), log, 0o644)
}
