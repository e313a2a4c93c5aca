package policy

import (
	"crypto/rsa"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/crypto/ssh"
)

// Bounds of what records hold, in bytes where nothing else is said. They keep the largest possible State, as JSON, below what one
// message between processes may hold (rpc.MaxElement), and what people gave harmless on their terminals.
const (
	MaxNote        = 128 // also of a reason
	MaxLabel       = 64
	MaxCertificate = 8 << 10 // DER
	MaxTimeServers = 8       // of a node
	maxEntries     = 16      // of each list in a Network
	maxEntry       = 64
	maxHost        = 260 // host name and port
	maxPath        = 256
	maxSSHKey      = 4 << 10
)

// maxHostBytes bounds what all hosts together take as JSON: 10,000 hosts with 4 KB each fit, and so do MaxHosts with an RSA key of 2048 bits.
const maxHostBytes = 44 << 20

// room is at least what the host takes as JSON in a State. Notes and reasons may need six bytes for one.
func (h Host) room() int {
	n := 680 + 67*len(h.CertifiedKeys) + len(h.ID)*2 + len(h.Name) + len(h.Class) + 6*len(h.Note) + 4*len(h.HostKey)/3
	if t := h.TPM; t != nil {
		n += 256 + 4*(len(t.EK)+len(t.EKCert))/3 + 67*len(t.Chain) + 6*(len(t.Forced)+len(t.Inventory))
		if m := t.Machine; m != nil {
			n += 64 + 6*(len(m.SMBIOS)+len(m.Serial))
			for _, mac := range m.MACs {
				n += 3 + len(mac)
			}
		}
	}
	return n
}

// validText accepts printable UTF-8 of at most most bytes; empty is fine.
func validText(s string, most int) bool {
	return len(s) <= most && utf8.ValidString(s) && strings.IndexFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) < 0
}

// checkEnvelope bounds what a command says beside its body, because all of it ends up in records or in the audit.
func checkEnvelope(c Command) error {
	a := c.Actor
	switch {
	case !validText(a.Name, MaxNameLength) || !validText(a.Key, 2*MaxNameLength) || !validText(string(a.Door), MaxNameLength) || !validText(a.Session, MaxNameLength):
		return &Refused{c.Kind, "the actor of the command is malformed", ""}
	case c.At.Earliest < 0 || c.At.Latest < c.At.Earliest || c.At.Boot != "" && !ValidName(c.At.Boot):
		return &Refused{c.Kind, "the time of the command is malformed", ""}
	}
	return nil
}

// writable are the places where a process of the node could put a file of its own.
var writable = []string{"/data", "/dev", "/proc", "/run", "/sys", "/tmp"}

// CheckHSM refuses a module that is not part of the image: it becomes code in the process that holds the PIN.
func CheckHSM(h HSM) error {
	if h.Module == "" && h.Token == "" && h.Attach == "" {
		return nil
	}
	if !validText(h.Module, maxPath) || !path.IsAbs(h.Module) || path.Clean(h.Module) != h.Module ||
		slices.ContainsFunc(writable, func(dir string) bool { return h.Module == dir || strings.HasPrefix(h.Module, dir+"/") }) {
		return errors.New("hsm.module is not the path of a PKCS#11 module in the image")
	}
	if !validText(h.Token, maxEntry) || !validText(h.Attach, maxEntry) {
		return errors.New("hsm.token or hsm.attach holds characters that can't be shown, or is too long")
	}
	return nil
}

// CheckTimeServers bounds a node's list of time servers; each is HOST or HOST:PORT.
func CheckTimeServers(list []string) error {
	if len(list) > MaxTimeServers {
		return fmt.Errorf("%d time servers are given, %d are used at most", len(list), MaxTimeServers)
	}
	for _, s := range list {
		if s == "" || !validText(s, maxHost) || strings.ContainsAny(s, " /\\\"'") {
			return errors.New("a time server is not HOST or HOST:PORT")
		}
	}
	return nil
}

// CheckTimeKeys wants each key number to belong to a server of the list.
func CheckTimeKeys(servers []string, keys map[string]uint16) error {
	for server, id := range keys {
		if !slices.Contains(servers, server) {
			return fmt.Errorf("a key is named for %.64q, which is none of the time servers", server)
		}
		if id == 0 {
			return fmt.Errorf("the key of the time server %.64q is not 1 to 65535", server)
		}
	}
	return nil
}

// CheckTimeBound wants a limit between MinTimeBound and MaxTimeBound; 0 is the default.
func CheckTimeBound(d time.Duration) error {
	if d != 0 && (d < MinTimeBound || d > MaxTimeBound) {
		return fmt.Errorf("the limit of the time's error is %s; %s to %s are accepted", d, MinTimeBound, MaxTimeBound)
	}
	return nil
}

// checkNetwork bounds a Network. Whether it makes sense is for appliance/network to say.
func checkNetwork(n Network) error {
	bad := func(lists ...[]string) bool {
		return slices.ContainsFunc(lists, func(list []string) bool {
			return len(list) > maxEntries || slices.ContainsFunc(list, func(s string) bool { return !validText(s, maxEntry) })
		})
	}
	if bad(n.Resolvers) || len(n.Interfaces) > maxEntries {
		return fmt.Errorf("the network has more than %d interfaces or resolvers, or one that can't be shown", maxEntries)
	}
	for _, i := range n.Interfaces {
		roles := make([]string, len(i.Roles))
		for k, r := range i.Roles {
			roles[k] = string(r)
		}
		if bad([]string{i.Name, i.Bond}, i.MAC, i.Addresses, i.Gateways, roles) {
			return fmt.Errorf("an interface of the network has a list of more than %d entries, or an entry that is too long or can't be shown", maxEntries)
		}
	}
	return nil
}

func checkNode(n Node) error {
	if len(n.AuditKey) > MaxAuditKey || !validText(n.SSHHostKey, maxSSHKey) || len(n.Certificate) > MaxCertificate {
		return errors.New("a key or certificate of the node is too large")
	}
	return errors.Join(checkNetwork(n.Network), CheckTimeServers(n.TimeServers), CheckTimeKeys(n.TimeServers, n.TimeKeys), CheckHSM(n.HSM))
}

// adminKeyTypes are the SSH keys that people may have; RSA keys are bounded like all others here.
var adminKeyTypes = []string{ssh.KeyAlgoED25519, ssh.KeyAlgoSKED25519, ssh.KeyAlgoECDSA256, ssh.KeyAlgoECDSA384, ssh.KeyAlgoECDSA521, ssh.KeyAlgoSKECDSA256, ssh.KeyAlgoRSA}

// parseSSHKey reads one line of authorized_keys.
func parseSSHKey(line string) (ssh.PublicKey, error) {
	if len(line) > maxSSHKey {
		return nil, fmt.Errorf("an SSH public key of more than %d bytes is not accepted", maxSSHKey)
	}
	key, _, options, rest, err := ssh.ParseAuthorizedKey([]byte(line))
	if err != nil || len(options) > 0 || len(strings.TrimSpace(string(rest))) > 0 {
		return nil, errors.New("an SSH public key is one line of type and base64, as in id_ed25519.pub")
	}
	if !slices.Contains(adminKeyTypes, key.Type()) {
		return nil, fmt.Errorf("SSH keys of the type %.64q are not accepted; use Ed25519, ECDSA or RSA", key.Type())
	}
	if holder, ok := key.(ssh.CryptoPublicKey); ok {
		if k, isRSA := holder.CryptoPublicKey().(*rsa.PublicKey); isRSA {
			if err := usableRSA(k); err != nil {
				return nil, fmt.Errorf("the SSH key can't be used: %w", err)
			}
		}
	}
	return key, nil
}
