package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/google/go-tpm/tpm2"

	"guardhouse/appliance/evidence"
)

// device is a TPM 2.0: a software TPM on loopback ("swtpm:HOST:PORT", its control channel on the next port) or a device file
// ("/dev/tpmrm0"). It is a transport.TPM of go-tpm. Not safe for concurrent use.
type device struct {
	rw      io.ReadWriteCloser
	control string // address of swtpm's control channel; empty for a device file
	loaded  []uint32
}

const (
	tpmTimeout  = 30 * time.Second
	maxResponse = 4096
)

func openTPM(spec string) (*device, error) {
	if spec == "" {
		return nil, fmt.Errorf("%w: --tpm is missing, for example swtpm:127.0.0.1:2321 or /dev/tpmrm0", errUsage)
	}
	addr, software := strings.CutPrefix(spec, "swtpm:")
	if !software {
		f, err := os.OpenFile(spec, os.O_RDWR, 0)
		if err != nil {
			return nil, fmt.Errorf("TPM: %w", err)
		}
		return &device{rw: f}, nil
	}
	host, port, err := net.SplitHostPort(addr)
	n, portErr := strconv.ParseUint(port, 10, 16)
	if err != nil || portErr != nil {
		return nil, fmt.Errorf("%w: --tpm %q is not swtpm:HOST:PORT", errUsage, spec)
	}
	conn, err := net.DialTimeout("tcp", addr, tpmTimeout)
	if err != nil {
		return nil, fmt.Errorf("TPM: %w", err)
	}
	return &device{rw: conn, control: net.JoinHostPort(host, strconv.FormatUint(n+1, 10))}, nil
}

// Send runs one raw command and gives the raw response.
func (d *device) Send(cmd []byte) ([]byte, error) {
	if c, ok := d.rw.(net.Conn); ok {
		if err := c.SetDeadline(time.Now().Add(tpmTimeout)); err != nil {
			return nil, err
		}
	}
	if _, err := d.rw.Write(cmd); err != nil {
		return nil, fmt.Errorf("TPM: %w", err)
	}
	b := make([]byte, maxResponse)
	n, err := io.ReadAtLeast(d.rw, b, 10) // a device file gives all at once
	if err != nil {
		return nil, fmt.Errorf("TPM: %w", err)
	}
	size := int(binary.BigEndian.Uint32(b[2:]))
	if size < n || size > len(b) {
		return nil, fmt.Errorf("TPM: a response of %d bytes", size)
	}
	if _, err := io.ReadFull(d.rw, b[n:size]); err != nil {
		return nil, fmt.Errorf("TPM: %w", err)
	}
	d.remember(cmd, b[:size])
	return b[:size], nil
}

// Commands that leave something loaded.
const (
	ccCreatePrimary    = 0x00000131
	ccStartAuthSession = 0x00000176
)

// remember notes what a service's commands leave in the TPM: a software TPM has three places for keys.
func (d *device) remember(cmd, response []byte) {
	be := binary.BigEndian
	if code := be.Uint32(cmd[6:]); (code == ccCreatePrimary || code == ccStartAuthSession) && len(response) >= 14 && be.Uint32(response[6:]) == 0 {
		d.loaded = append(d.loaded, be.Uint32(response[10:]))
	}
}

// tidy flushes what is still loaded; a session that has ended is gone already, which is no error.
func (d *device) tidy() {
	for _, h := range d.loaded {
		_, _ = tpm2.FlushContext{FlushHandle: tpm2.TPMHandle(h)}.Execute(d)
	}
	d.loaded = nil
}

func (d *device) Close() error {
	d.tidy()
	return d.rw.Close()
}

// restart is power off and on: all PCRs begin anew. Only a software TPM can do it.
func (d *device) restart() error {
	if d.control == "" {
		return errors.New("this TPM can't be restarted from here: give --log with the boot log that belongs to its PCRs")
	}
	c, err := net.DialTimeout("tcp", d.control, tpmTimeout)
	if err != nil {
		return fmt.Errorf("TPM control channel: %w", err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(tpmTimeout)); err != nil {
		return err
	}
	var answer [4]byte
	if _, err = c.Write([]byte{0, 0, 0, 2, 0, 0, 0, 0}); err == nil { // CMD_INIT, no flags
		_, err = io.ReadFull(c, answer[:])
	}
	if err != nil || answer != [4]byte{} {
		return fmt.Errorf("TPM control channel: restart answered %x: %v", answer, err)
	}
	d.loaded = nil
	_, err = tpm2.Startup{StartupType: tpm2.TPMSUClear}.Execute(d)
	return err
}

// extend is one event of a boot.
func (d *device) extend(x evidence.Extend) error {
	list := tpm2.TPMLDigestValues{}
	for i, bank := range banks {
		list.Digests = append(list.Digests, tpm2.TPMTHA{HashAlg: tpm2.TPMAlgID(bank), Digest: x.Digests[i]})
	}
	_, err := tpm2.PCRExtend{PCRHandle: tpm2.AuthHandle{Handle: tpm2.TPMHandle(x.PCR), Auth: tpm2.PasswordAuth(nil)}, Digests: list}.Execute(d)
	if err != nil {
		return fmt.Errorf("extend PCR %d: %w", x.PCR, err)
	}
	return nil
}

// persistentEK is where Windows keeps the RSA 2048 key (TCG TPM v2.0 Provisioning Guidance).
const persistentEK = tpm2.TPMHandle(0x81010001)

// endorsementKey is the RSA 2048 key of the default template, as TPM2B_PUBLIC: the one that is kept in the TPM, or made anew.
func (d *device) endorsementKey() ([]byte, error) {
	if r, err := (tpm2.ReadPublic{ObjectHandle: persistentEK}).Execute(d); err == nil {
		return tpm2.Marshal(r.OutPublic), nil
	}
	r, err := tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHEndorsement, InPublic: tpm2.New2B(tpm2.RSAEKTemplate)}.Execute(d)
	if err != nil {
		return nil, fmt.Errorf("endorsement key: %w", err)
	}
	d.tidy()
	return tpm2.Marshal(r.OutPublic), nil
}

// nvEKCertificate is where manufacturers put the certificate of the RSA 2048 key (EK Credential Profile 2.2.1.4).
const nvEKCertificate = 0x01c00002

// endorsementCertificate reads the manufacturer's certificate; nil if there is none.
func (d *device) endorsementCertificate() []byte {
	index := tpm2.TPMHandle(nvEKCertificate)
	pub, err := tpm2.NVReadPublic{NVIndex: index}.Execute(d)
	if err != nil {
		return nil
	}
	area, err := pub.NVPublic.Contents()
	if err != nil {
		return nil
	}
	var der []byte
	for size := int(area.DataSize); len(der) < size; {
		r, err := tpm2.NVRead{AuthHandle: tpm2.AuthHandle{Handle: index, Name: pub.NVName, Auth: tpm2.PasswordAuth(nil)},
			NVIndex: tpm2.NamedHandle{Handle: index, Name: pub.NVName}, Size: uint16(min(512, size-len(der))), Offset: uint16(len(der))}.Execute(d)
		if err != nil || len(r.Data.Buffer) == 0 {
			return nil
		}
		der = append(der, r.Data.Buffer...)
	}
	return der
}
