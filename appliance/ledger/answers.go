package ledger

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"

	"guardhouse/appliance/network"
	"guardhouse/appliance/policy"
)

// maxAnswers bounds the answer file and the secrets file, in bytes.
const maxAnswers = 64 << 10

// answers is the answer file, version 1. It never holds a secret.
type answers struct {
	Version int `toml:"version"`
	Service struct {
		Name       string `toml:"name"`
		Mode       string `toml:"mode"`
		HTTP       *bool  `toml:"http"`
		HTTPS      *bool  `toml:"https"`
		HealthLife string `toml:"health-life"`
		// KeyProtection false is the SQL Server case (row A05): attestation without guardian keys and without /KeyProtection.
		KeyProtection *bool `toml:"key-protection"`
		// TimeLimit is how uncertain the time may become before nothing is issued any more.
		TimeLimit string `toml:"time-limit"`
	} `toml:"service"`
	Node struct {
		Name        string   `toml:"name"`
		TimeServers []string `toml:"time-servers"`
		// Time is the long form of TimeServers, for those with a key. Keys themselves are in the secrets file.
		Time []struct {
			Server string `toml:"server"` // host or host:port
			KeyID  int    `toml:"key-id"`
		} `toml:"time"`
		Network policy.Network `toml:"network"`
		HSM     struct {
			Module string `toml:"module"`
			Token  string `toml:"token"`
			Attach string `toml:"attach"`
			PIN    string `toml:"pin"` // "sealed" or "attended", never a PIN
		} `toml:"hsm"`
	} `toml:"node"`
	Admins []struct {
		Name string `toml:"name"`
		Role string `toml:"role"`
		Key  string `toml:"key"`
	} `toml:"admin"`
}

// LineError is something wrong in a file a person wrote. Line counts from 1; 0 = the file as a whole.
type LineError struct {
	Line int
	Text string
}

func (e *LineError) Error() string {
	if e.Line == 0 {
		return "answer file: " + e.Text
	}
	return fmt.Sprintf("answer file, line %d: %s", e.Line, e.Text)
}

var modes = map[string]policy.Mode{"HostKey": policy.ModeHostKey, "TPM": policy.ModeTPM, "AD": policy.ModeAD}

// parseAnswers reads the answer file strictly and completely: every error it finds has its line, and a file with one is not used at
// all. No text of the file but key names is repeated in an error, since it might be a secret in the wrong place.
func parseAnswers(file []byte) (policy.Setup, error) {
	if len(file) > maxAnswers {
		return policy.Setup{}, &LineError{0, "it is larger than 64 KiB"}
	}
	if !utf8.Valid(file) {
		return policy.Setup{}, &LineError{0, "it is not UTF-8 text"}
	}
	if err := refuseSecrets(file); err != nil {
		return policy.Setup{}, err
	}
	var a answers
	d := toml.NewDecoder(bytes.NewReader(file)).DisallowUnknownFields()
	if err := d.Decode(&a); err != nil {
		return policy.Setup{}, tomlError(err)
	}
	lines := keyLines(file)
	s, problems := a.setup()
	var all []error
	for _, p := range problems {
		all = append(all, &LineError{lineOf(lines, p.key), p.key + ": " + p.text})
	}
	return s, errors.Join(all...)
}

// tomlError keeps the line and the reason of the library's errors, never the text of the file.
func tomlError(err error) error {
	var missing *toml.StrictMissingError
	if errors.As(err, &missing) {
		var all []error
		for _, e := range missing.Errors {
			line, _ := e.Position()
			all = append(all, &LineError{line, fmt.Sprintf("there is no setting %q", strings.Join(e.Key(), "."))})
		}
		return errors.Join(all...)
	}
	var de *toml.DecodeError
	if errors.As(err, &de) {
		line, _ := de.Position()
		text := "it is not valid TOML here"
		if key := de.Key(); len(key) > 0 {
			text = fmt.Sprintf("the value of %q has the wrong type", strings.Join(key, "."))
		}
		return &LineError{line, text}
	}
	return &LineError{0, "it is not valid TOML"}
}

// secretKeys are the ends of names whose values are secret; blanks, dashes and underscores do not count.
var secretKeys = []string{"pin", "passphrase", "passphrases", "password", "passwords", "passwd", "secret", "secrets", "privatekey"}

// secretMarks are texts that only secrets hold, wherever they stand: in a value, a comment, a multi-line string.
var secretMarks = []string{"AGE-SECRET-KEY-", "PRIVATE KEY-----", "BEGIN AGE ENCRYPTED FILE", "age-encryption.org/"}

// pinKind is the one line about a PIN that an answer file may hold.
var pinKind = regexp.MustCompile(`^\s*pin\s*=\s*"(` + pinSealed + `|` + pinAttended + `)"\s*(#.*)?$`)

// The values of pin under [node.hsm]: kept on the node, sealed to its TPM, or typed by an administrator after each boot.
const (
	pinSealed   = "sealed"
	pinAttended = "attended"
)

// refuseSecrets finds what does not belong into a file that is reviewed, mailed and kept.
func refuseSecrets(file []byte) error {
	n := 0
	for line := range strings.Lines(string(file)) {
		n++
		for _, mark := range secretMarks {
			if strings.Contains(strings.ToUpper(line), strings.ToUpper(mark)) {
				return &LineError{n, "this looks like a private key or an encrypted file; secrets go into the secrets file"}
			}
		}
	}
	var err error
	lines := strings.Split(string(file), "\n")
	walkKeys(file, func(key string, line int) {
		if key == "node.hsm.pin" && line > 0 && line <= len(lines) && pinKind.MatchString(lines[line-1]) {
			return // it names where the PIN comes from
		}
		last := key[strings.LastIndexByte(key, '.')+1:]
		name := strings.NewReplacer("-", "", "_", "", " ", "").Replace(strings.ToLower(last))
		if err == nil && slices.ContainsFunc(secretKeys, func(s string) bool { return strings.HasSuffix(name, s) }) {
			err = &LineError{line, fmt.Sprintf("%q is a secret and may not be in the answer file; put it into the secrets file", last)}
		}
	})
	return err
}

// keyLines maps each key, with its tables and an index for arrays of tables ("admin[1].key"), to its line.
func keyLines(file []byte) map[string]int {
	lines := map[string]int{}
	walkKeys(file, func(key string, line int) {
		if _, ok := lines[key]; !ok {
			lines[key] = line
		}
	})
	return lines
}

// lineOf finds the line of a key, or of the nearest table that it would stand in; 0 where there is neither.
func lineOf(lines map[string]int, key string) int {
	for key != "" {
		if line, ok := lines[key]; ok {
			return line
		}
		cut := max(strings.LastIndexByte(key, '.'), strings.LastIndexByte(key, '['))
		if cut < 0 {
			break
		}
		key = key[:cut]
	}
	return 0
}

// walkKeys gives every key and table header, as far as the file parses.
func walkKeys(file []byte, found func(key string, line int)) {
	p := unstable.Parser{}
	p.Reset(file)
	table, counts := "", map[string]int{}
	for p.NextExpression() {
		e := p.Expression()
		switch e.Kind {
		case unstable.Table, unstable.ArrayTable:
			key, line := keyOf(&p, e)
			table = indexed(key, counts)
			if e.Kind == unstable.ArrayTable {
				table = fmt.Sprintf("%s[%d]", indexed(key, counts), counts[key])
				counts[key]++
			}
			found(key, line)
			if table != key {
				found(table, line)
			}
		case unstable.KeyValue:
			walkKeyValue(&p, table, e, found)
		}
	}
}

// indexed puts the index of the newest element behind each array of tables that the key lies in: "node.network.interface[0].x".
func indexed(key string, counts map[string]int) string {
	parts := strings.Split(key, ".")
	for i := range len(parts) - 1 {
		plain := strings.Join(strings.Split(key, ".")[:i+1], ".")
		if n := counts[plain]; n > 0 {
			parts[i] = fmt.Sprintf("%s[%d]", parts[i], n-1)
		}
	}
	return strings.Join(parts, ".")
}

func walkKeyValue(p *unstable.Parser, table string, e *unstable.Node, found func(string, int)) {
	key, line := keyOf(p, e)
	if table != "" {
		key = table + "." + key
	}
	found(key, line)
	walkValue(p, key, e.Value(), found)
}

func walkValue(p *unstable.Parser, key string, v *unstable.Node, found func(string, int)) {
	if v == nil || v.Kind != unstable.InlineTable && v.Kind != unstable.Array {
		return
	}
	for it := v.Children(); it.Next(); {
		if n := it.Node(); n.Kind == unstable.KeyValue {
			walkKeyValue(p, key, n, found)
		} else {
			walkValue(p, key, n, found)
		}
	}
}

func keyOf(p *unstable.Parser, e *unstable.Node) (key string, line int) {
	var parts []string
	for it := e.Key(); it.Next(); {
		n := it.Node()
		if line == 0 {
			line = p.Shape(n.Raw).Start.Line
		}
		parts = append(parts, string(n.Data))
	}
	return strings.Join(parts, "."), line
}

// finding is one wrong value: which key, and what about it.
type finding struct{ key, text string }

// setup turns the answers into the body of the setup command; ids, keys and certificates are still missing in it.
func (a answers) setup() (s policy.Setup, wrong []finding) {
	bad := func(key, format string, args ...any) {
		wrong = append(wrong, finding{key, fmt.Sprintf(format, args...)})
	}
	if a.Version != 1 {
		bad("version", "this image reads version 1; begin the file with version = 1")
		return s, wrong
	}
	s.Service = policy.Service{Name: strings.ToLower(a.Service.Name), Mode: modes[a.Service.Mode], HTTP: a.Service.HTTP == nil || *a.Service.HTTP,
		HTTPS: a.Service.HTTPS == nil || *a.Service.HTTPS, HealthLife: policy.DefaultHealthLife, AttestationOnly: a.Service.KeyProtection != nil && !*a.Service.KeyProtection}
	if s.Service.Mode == policy.ModeUnknown {
		bad("service.mode", "it must be HostKey, TPM or AD")
	}
	if !validHostName(s.Service.Name) {
		bad("service.name", "it must be the host name in the hosts' URLs")
	}
	if !s.Service.HTTP && !s.Service.HTTPS {
		bad("service.https", "http and https are both off, no host could reach the service")
	}
	if a.Service.HealthLife != "" {
		life, err := time.ParseDuration(a.Service.HealthLife)
		if err != nil || life < policy.MinHealthLife || life > policy.MaxHealthLife {
			bad("service.health-life", "it must be a duration from %s to %s, as in \"8h\"", policy.MinHealthLife, policy.MaxHealthLife)
		}
		s.Service.HealthLife = life
	}
	if a.Service.TimeLimit != "" {
		limit, err := time.ParseDuration(a.Service.TimeLimit)
		if err != nil || limit == 0 || policy.CheckTimeBound(limit) != nil {
			bad("service.time-limit", "it must be a duration from %s to %s, as in \"60s\"", policy.MinTimeBound, policy.MaxTimeBound)
		}
		s.Service.TimeBound = limit
	}
	a.node(&s, bad)
	a.admins(&s, bad)
	return s, wrong
}

// timeServers reads both forms.
func (a answers) timeServers(n *policy.Node, bad func(key, format string, args ...any)) {
	n.TimeServers = slices.Clone(a.Node.TimeServers)
	key := "node.time-servers"
	if len(a.Node.Time) > 0 {
		if key = "node.time"; len(n.TimeServers) > 0 {
			bad(key, "name the time servers in time-servers or in [[node.time]], not in both")
		}
		n.TimeServers = nil
		for i, t := range a.Node.Time {
			n.TimeServers = append(n.TimeServers, t.Server)
			if t.KeyID < 0 || t.KeyID > 65535 {
				bad(fmt.Sprintf("node.time[%d].key-id", i), "it must be 1 to 65535; the key itself goes into the secrets file")
				continue
			}
			if t.KeyID != 0 {
				if n.TimeKeys == nil {
					n.TimeKeys = map[string]uint16{}
				}
				n.TimeKeys[t.Server] = uint16(t.KeyID)
			}
		}
	}
	if len(n.TimeServers) == 0 || len(n.TimeServers) > policy.MaxTimeServers {
		bad(key, "name 1 to %d time servers; three or more can outvote one that lies", policy.MaxTimeServers)
		return
	}
	seen := map[string]bool{}
	for _, server := range n.TimeServers {
		host, _, _ := strings.Cut(server, ":")
		if _, err := netip.ParseAddr(strings.Trim(server, "[]")); err != nil && !validHostName(host) && !strings.HasPrefix(server, "[") {
			bad(key, "each must be a host or host:port")
		}
		if seen[server] {
			bad(key, "a time server is named twice: it would vote twice")
		}
		seen[server] = true
	}
	if err := policy.CheckTimeServers(n.TimeServers); err != nil {
		bad(key, "%v", err)
	}
}

func (a answers) node(s *policy.Setup, bad func(key, format string, args ...any)) {
	n := a.Node
	s.Node = policy.Node{Name: n.Name, Network: n.Network, HSM: policy.HSM{Module: n.HSM.Module, Token: n.HSM.Token, Attach: n.HSM.Attach, Attended: n.HSM.PIN == pinAttended}}
	if !policy.ValidName(n.Name) {
		bad("node.name", "it must be 1 to %d letters, digits, dots, dashes", policy.MaxNameLength)
	}
	a.timeServers(&s.Node, bad)
	var field *network.FieldError
	if err := network.Validate(n.Network); errors.As(err, &field) {
		bad("node."+field.Field, "%s", field.Reason)
	} else if err != nil {
		bad("node.network", "%v", err)
	}
	if err := policy.CheckHSM(s.Node.HSM); err != nil || n.HSM.Module == "" {
		bad("node.hsm.module", "it must be the path of a PKCS#11 module in the image")
	}
	if n.HSM.Token == "" || len(n.HSM.Token) > 32 {
		bad("node.hsm.token", "it must be the token's label, 1 to 32 characters")
	}
	if n.HSM.Attach != "" && !strings.HasPrefix(n.HSM.Attach, "virtio:") {
		bad("node.hsm.attach", "it must be \"virtio:NAME\" or absent")
	}
}

func (a answers) admins(s *policy.Setup, bad func(key, format string, args ...any)) {
	owner := false
	for i, admin := range a.Admins {
		at := fmt.Sprintf("admin[%d].", i)
		role := policy.AdminRole(admin.Role)
		owner = owner || role == policy.AdminOwner
		if !policy.ValidName(admin.Name) {
			bad(at+"name", "it must be 1 to %d letters, digits, dots, dashes", policy.MaxNameLength)
		}
		if !role.Valid() {
			bad(at+"role", "it must be owner, operator or reviewer")
		}
		if _, err := policy.KeyFingerprint(admin.Key); err != nil {
			bad(at+"key", "%v", err)
		}
		s.Admins = append(s.Admins, policy.Admin{Name: admin.Name, Role: role, Key: strings.TrimSpace(admin.Key)})
	}
	if !owner {
		bad("admin", "there must be at least one [[admin]] with role = \"owner\"")
	}
}

// validHostName takes labels of letters, digits and dashes, or an IP address.
func validHostName(name string) bool {
	if name == "" || len(name) > 253 {
		return false
	}
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || len(label) > 63 || strings.Trim(label, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-") != "" {
			return false
		}
	}
	return true
}

// summary is what a person checks before saying yes, a line each.
func summary(s policy.Setup) string {
	var b strings.Builder
	on := map[bool]string{true: "on", false: "off"}
	mode := "?"
	for name, m := range modes {
		if m == s.Service.Mode {
			mode = name
		}
	}
	fmt.Fprintf(&b, "service  %s, mode %s, HTTP %s, HTTPS %s, health certificates live %s\n", s.Service.Name, mode, on[s.Service.HTTP], on[s.Service.HTTPS], s.Service.HealthLife)
	if s.Service.AttestationOnly {
		b.WriteString("         attestation only: no key protection, no guardian keys\n")
	}
	fmt.Fprintf(&b, "node     %s, time from %s\n", s.Node.Name, strings.Join(s.Node.TimeServers, ", "))
	for _, server := range s.Node.TimeServers {
		if id := s.Node.TimeKeys[server]; id != 0 {
			fmt.Fprintf(&b, "         %s must prove itself with key %d\n", server, id)
		}
	}
	b.WriteString("         none of these may be a shielded machine of this fabric: it could not start without this service, nor this service without it\n")
	if n := len(s.Node.TimeServers); n < 3 {
		b.WriteString("         with fewer than three time servers one that lies can't be outvoted\n")
	}
	for _, i := range s.Node.Network.Interfaces {
		addresses := strings.Join(i.Addresses, ", ")
		if i.DHCP {
			addresses = strings.TrimPrefix(addresses+", DHCP", ", ")
		}
		fmt.Fprintf(&b, "network  %s (%s): %s\n", i.Name, strings.Join(i.MAC, ", "), addresses)
	}
	fmt.Fprintf(&b, "HSM      token %s, module %s\n", s.Node.HSM.Token, s.Node.HSM.Module)
	if s.Node.HSM.Attended {
		b.WriteString("         attended: its PIN is not kept; type it after each boot (hsm unlock)\n")
	}
	for _, a := range s.Admins {
		fp, _ := policy.KeyFingerprint(a.Key)
		fmt.Fprintf(&b, "admin    %s (%s), key %s\n", a.Name, a.Role, fp)
	}
	return b.String()
}
