package verb

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"strings"
	"time"

	"guardhouse/appliance/evidence"
	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
)

var sharedFlag = flag("shared", Switch, "for all nodes, with a key that each derives from the cluster's secret")

func httpsVerbs() []Verb {
	return []Verb{
		{Name: "https show", Role: reviewer, Doors: loggedIn, Risk: Reads, Run: httpsShow,
			Help: "the HTTPS certificate: fingerprints, names, end", Example: "https show",
			Replaces: []string{"Get-WebBinding"}},
		{Name: "https csr", Role: operator, Doors: loggedIn, Risk: Changes, Run: httpsCSR,
			Params: []Param{flag("key", Choice, "default new (P-256)", rpc.HTTPSKeyNew, rpc.HTTPSKeyNewRSA, rpc.HTTPSKeyCurrent),
				flag("names", Text, "other DNS names and addresses, with commas"), sharedFlag},
			Help: "a request for an HTTPS certificate", Example: "https csr --names hgs2.example.test > hgs.csr",
			More: "The key is made on the node and never leaves it; what is served does not change before https install. A new key takes the place of that of an " +
				"earlier request that was not installed. Every Windows since Server 2016, and the .NET and JDBC drivers, take P-256; new-rsa (3072 bits) is for a CA " +
				"whose template takes RSA only, as AD CS's Web Server template does."},
		{Name: "https install", Role: operator, Doors: loggedIn, Risk: Disrupts, Run: httpsInstall, Params: []Param{sharedFlag},
			Stdin: "the issued certificate and its chain: PEM, DER or PKCS#7",
			Help:  "serve an issued HTTPS certificate from now on", Example: "https install < hgs.pem",
			More: "Its names must cover the service's, its key must be that of a request of https csr. Open connections stay; the next handshake shows it. " +
				"The last one installed counts, on one node or, with --shared, on all.",
			Replaces: []string{"Set-HgsServer"}},
		{Name: "https self-signed", Role: operator, Doors: loggedIn, Risk: Disrupts, Run: httpsSelfSigned, Params: []Param{sharedFlag},
			Help: "serve a new self-signed HTTPS certificate", Example: "https self-signed",
			More: "Hosts must have it in their root store: compare its fingerprint, then Import-Certificate -CertStoreLocation Cert:\\LocalMachine\\Root."},
	}
}

// HTTPSValue is an HTTPS certificate in --json. Self-signed ones must be in the root store of each host.
type HTTPSValue struct {
	Node       string           `json:"node"` // name; "" = shared
	Subject    string           `json:"subject"`
	Issuer     string           `json:"issuer"`
	SelfSigned bool             `json:"selfSigned"`
	Names      []string         `json:"names"`
	Key        string           `json:"key"`
	SHA1       string           `json:"sha1"`
	SHA256     string           `json:"sha256"`
	From       time.Time        `json:"notBefore"`
	Until      time.Time        `json:"notAfter"`
	Chain      int              `json:"chain"` // certificates sent beside it
	Shared     bool             `json:"shared"`
	PEM        string           `json:"pem"`
	Notes      []policy.Problem `json:"notes"`
}

func httpsValue(service string, node string, certificates [][]byte, earliest, latest time.Time) (HTTPSValue, error) {
	v := HTTPSValue{Node: node, Chain: max(0, len(certificates)-1), Notes: []policy.Problem{}, Names: []string{}}
	if len(certificates) == 0 {
		return v, failed("there is no HTTPS certificate", "https self-signed")
	}
	cert, err := x509.ParseCertificate(certificates[0])
	if err != nil {
		return v, failed("the HTTPS certificate does not parse: "+err.Error(), "https self-signed")
	}
	v.Subject, v.Issuer, v.SelfSigned = cert.Subject.String(), cert.Issuer.String(), bytes.Equal(cert.RawIssuer, cert.RawSubject)
	v.Names = append(v.Names, cert.DNSNames...)
	for _, ip := range cert.IPAddresses {
		v.Names = append(v.Names, ip.String())
	}
	v.Key = keyText(cert.RawSubjectPublicKeyInfo)
	v.SHA1, v.SHA256 = thumbprints(cert.Raw)
	v.From, v.Until = cert.NotBefore.UTC(), cert.NotAfter.UTC()
	v.PEM = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw}))
	v.Notes = append(v.Notes, policy.HTTPSNotes(service, cert, earliest, latest)...)
	return v, nil
}

func (v HTTPSValue) show(p *Page) {
	issuer := clip(v.Issuer)
	if v.SelfSigned {
		issuer = "itself: each host needs it in its root store"
	}
	p.Field("subject", "%s", clip(v.Subject)).Field("signed by", "%s", issuer).Field("names", "%s", strings.Join(v.Names, ", ")).Field("key", "%s", v.Key).
		Field("SHA-1", "%s", v.SHA1).Field("SHA-256", "%s", v.SHA256).
		Field("until", "%s", v.Until.Format("2006-01-02 15:04:05 UTC")).Field("sent with it", "%s", count(v.Chain, "certificate"))
	if v.Shared {
		p.Field("shared", "by all nodes without a certificate of their own")
	}
	problems(p, v.Notes)
}

// trusted is the trusted interval, zero where there is none.
func trusted(ctx context.Context, s *Session) (earliest, latest time.Time) {
	ctx, cancel := context.WithTimeout(ctx, statusLimit)
	defer cancel()
	st, err := rpc.ClockStatus.Call(ctx, s.Node.Clock, rpc.Empty{})
	if err != nil || !st.Trusted.OK {
		return time.Time{}, time.Time{}
	}
	return st.Trusted.Earliest, st.Trusted.Latest
}

// served is what this node answers with on port 443.
func served(ctx context.Context, s *Session) (HTTPSValue, error) {
	snap, _ := s.Node.Snapshot()
	self := snap.State.Nodes[snap.NodeID]
	earliest, latest := trusted(ctx, s)
	v, err := httpsValue(snap.State.Service.Name, self.Name, snap.State.HTTPSCertificate(snap.NodeID), earliest, latest)
	v.Shared = snap.State.Service.SharedHTTPS != nil && !self.OwnHTTPS
	return v, err
}

func httpsShow(ctx context.Context, s *Session, _ Args, _ []byte) (Output, error) {
	v, err := served(ctx, s)
	if err != nil {
		return Output{}, err
	}
	p := new(Page)
	if snap, _ := s.Node.Snapshot(); !snap.State.Service.HTTPS {
		p.Line("HTTPS is switched off: service set --https on").Blank()
	}
	v.show(p)
	return Output{Text: p, Value: v}, nil
}

// RequestValue is https csr in --json.
type RequestValue struct {
	Request    string        `json:"request"` // PEM
	Key        policy.KeyRef `json:"key"`
	Generation int           `json:"generation,omitempty"`
}

func httpsCSR(ctx context.Context, s *Session, a Args, _ []byte) (Output, error) {
	names := strings.FieldsFunc(a.Get("names"), func(r rune) bool { return r == ',' || r == ' ' })
	r, err := rpc.LedgerHTTPSRequest.Call(ctx, s.Node.Ledger, rpc.HTTPSRequest{Actor: s.Actor, Shared: a.Has("shared"), Key: a.Or("key", rpc.HTTPSKeyNew), Names: names})
	if err != nil {
		return Output{}, err
	}
	v := RequestValue{string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: r.Request})), r.Ref, r.Generation}
	p := new(Page).Line("Have this signed for server authentication, then: https install%s < FILE", map[bool]string{true: " --shared"}[a.Has("shared")])
	p.b.WriteString(v.Request)
	return Output{Text: p, Value: v}, nil
}

func httpsSelfSigned(ctx context.Context, s *Session, a Args, _ []byte) (Output, error) {
	r, err := rpc.LedgerHTTPSRequest.Call(ctx, s.Node.Ledger, rpc.HTTPSRequest{Actor: s.Actor, Shared: a.Has("shared"), Key: rpc.HTTPSKeyNew, SelfSigned: true})
	if err != nil {
		return Output{}, err
	}
	return installHTTPS(ctx, s, a.Has("shared"), policy.HTTPSInstall{Certificate: r.Certificate, Generation: r.Generation})
}

func httpsInstall(ctx context.Context, s *Session, a Args, stdin []byte) (Output, error) {
	chain, err := ParseChain(stdin)
	if err != nil {
		return Output{}, err
	}
	b := policy.HTTPSInstall{Certificate: chain[0], Chain: chain[1:]}
	if !a.Has("shared") {
		return installHTTPS(ctx, s, false, b)
	}
	// The key of the next generation, unless it is a renewal with the present key.
	snap, _ := s.Node.Snapshot()
	if shared := snap.State.Service.SharedHTTPS; shared != nil {
		b.Generation = shared.Generation
		now, err := x509.ParseCertificate(shared.Certificate)
		next, nextErr := x509.ParseCertificate(chain[0])
		if err == nil && nextErr == nil && bytes.Equal(now.RawSubjectPublicKeyInfo, next.RawSubjectPublicKeyInfo) {
			return installHTTPS(ctx, s, true, b)
		}
	}
	b.Generation++
	return installHTTPS(ctx, s, true, b)
}

func installHTTPS(ctx context.Context, s *Session, shared bool, b policy.HTTPSInstall) (Output, error) {
	self, ok := s.Node.Self()
	if !ok {
		return Output{}, unavailable("this node has no record yet", "try again in a few seconds")
	}
	if !shared {
		b.Node = self.ID
	}
	out, _, err := propose(ctx, s, policy.CmdHTTPSInstall, b)
	if err != nil {
		return Output{}, err
	}
	snap, _ := s.Node.Snapshot()
	earliest, latest := trusted(ctx, s)
	v, err := httpsValue(snap.State.Service.Name, self.Name, append([][]byte{b.Certificate}, b.Chain...), earliest, latest)
	if err != nil {
		return Output{}, err
	}
	v.Shared = shared
	out.Text.Blank()
	v.show(out.Text)
	return Output{Text: out.Text, Value: v}, nil
}

// ParseChain reads a certificate and those that issued it, in any order and any of the usual forms, and gives them in the order in which
// TLS sends them, without a root. A private key is refused.
func ParseChain(data []byte) ([][]byte, error) {
	if bytes.Contains(data, []byte("PRIVATE KEY-----")) {
		return nil, failed("the input holds a private key: others have seen it, and the node would not need it", "make the request on the node, with https csr or audit syslog csr: its key stays there")
	}
	if len(data) > maxInput {
		return nil, usage("the input is larger than 64 KiB", "give the certificate and its chain")
	}
	read, _, err := evidence.ReadBundle(fromUTF16(data))
	if err != nil {
		return nil, failed("the input holds no certificates: "+err.Error(), "give PEM, DER or PKCS#7 on standard input")
	}
	var all []*x509.Certificate
	for _, one := range read {
		cert, err := x509.ParseCertificate(one.Original)
		if err != nil {
			return nil, failed("a certificate does not parse: "+err.Error(), "export it anew from the CA")
		}
		all = append(all, cert)
	}
	leaf := leafOf(all)
	if leaf == nil {
		return nil, failed(fmt.Sprintf("of %d certificates it can't be told which is the node's", len(all)), "give the issued certificate and those that issued it, nothing else")
	}
	chain := [][]byte{leaf.Raw}
	for at := leaf; len(chain) <= len(all) && !bytes.Equal(at.RawIssuer, at.RawSubject); {
		var above *x509.Certificate
		for _, c := range all {
			if bytes.Equal(c.RawSubject, at.RawIssuer) && at.CheckSignatureFrom(c) == nil {
				above = c
			}
		}
		if above == nil || bytes.Equal(above.RawIssuer, above.RawSubject) {
			break
		}
		chain, at = append(chain, above.Raw), above
	}
	return chain, nil
}

// leafOf is the only certificate that issued none of the others.
func leafOf(all []*x509.Certificate) (leaf *x509.Certificate) {
	for _, c := range all {
		issuer := false
		for _, other := range all {
			issuer = issuer || c != other && !bytes.Equal(c.Raw, other.Raw) && bytes.Equal(other.RawIssuer, c.RawSubject)
		}
		if issuer {
			continue
		}
		if leaf != nil && !bytes.Equal(leaf.Raw, c.Raw) {
			return nil
		}
		leaf = c
	}
	return leaf
}

// httpsProblems are the status's: only where somebody can reach port 443.
func httpsProblems(snap policy.Snapshot, clock *rpc.ClockStatusReply) []policy.Problem {
	certificates := snap.State.HTTPSCertificate(snap.NodeID)
	if !snap.State.Service.HTTPS || len(certificates) == 0 {
		return nil
	}
	cert, err := x509.ParseCertificate(certificates[0])
	if err != nil {
		return []policy.Problem{{Kind: "https-certificate", What: "the HTTPS certificate does not parse", Remedy: "https self-signed"}}
	}
	if clock == nil || !clock.Trusted.OK {
		return policy.HTTPSNotes(snap.State.Service.Name, cert, time.Time{}, time.Time{})
	}
	return policy.HTTPSNotes(snap.State.Service.Name, cert, clock.Trusted.Earliest, clock.Trusted.Latest)
}

// communicationsProblems tells of the end of the certificate that signs metadata.xml (row B21). Guardian keys have none: their dates stop
// nothing (row B05).
func communicationsProblems(snap policy.Snapshot, clock *rpc.ClockStatusReply) []policy.Problem {
	k, ok := snap.State.PrimaryKey(policy.RoleCommunications)
	if !ok || clock == nil || !clock.Trusted.OK {
		return nil
	}
	cert, err := x509.ParseCertificate(k.Certificate)
	if err != nil || clock.Trusted.Latest.Add(policy.HTTPSWarning).Before(cert.NotAfter) {
		return nil
	}
	verb := "ends"
	if clock.Trusted.Latest.After(cert.NotAfter) {
		verb = "ended"
	}
	return []policy.Problem{{Kind: "communications-expiring", What: "the communications certificate, which signs metadata.xml, " + verb + " on " + cert.NotAfter.UTC().Format("2006-01-02") +
		": tenants' tools may not take the metadata", Remedy: fmt.Sprintf("key csr %.12s, have it signed, then key install; or key new --roles communications, then key primary", k.Ref)}}
}
