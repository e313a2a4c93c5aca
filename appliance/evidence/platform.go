package evidence

import (
	"bytes"
	"encoding/base64"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"

	"guardhouse/appliance/text"
)

// Platform is a platform identifier: the XML file in which Get-PlatformIdentifier names a host (hgsa.md section 10). Microsoft publishes
// what is in it, not how the elements are called; the reader therefore goes by what it can recognise, the writer's names are ours.
type Platform struct {
	Name         string
	Machine      string   // SMBIOS GUID
	Serial       string   // of the computer
	MACs         []string // of its network adapters
	EK           *EK
	Certificate  *Certificate // nil if there is none
	NoCertReason string       // what the file says instead of a certificate
}

// ErrPlatform is why a file is refused.
var ErrPlatform = errors.New("no platform identifier (the XML file of Get-PlatformIdentifier)")

// elements maps the names under which a field may appear, in lower case, to the field. Unknown elements are ignored.
var elements = map[string]string{
	"name": "name", "friendlyname": "name",
	"smbiosguid": "machine", "smbiosuuid": "machine", "systemuuid": "machine", "uuid": "machine",
	"serialnumber": "serial", "computerserialnumber": "serial", "systemserialnumber": "serial",
	"macaddress": "mac", "mac": "mac",
	"ekpub": "key", "endorsementkey": "key", "endorsementkeypublic": "key", "publickey": "key",
	"ekcert": "cert", "endorsementkeycertificate": "cert", "ekcertificate": "cert", "certificate": "cert",
	"ekcerterror": "reason", "certificateerror": "reason", "error": "reason",
}

// ParsePlatform reads a platform identifier in UTF-8 or UTF-16, with or without byte order mark. It must hold a key or a certificate; if it
// holds both they must fit.
func ParsePlatform(raw []byte) (*Platform, error) {
	if len(raw) > MaxPlatform {
		return nil, fmt.Errorf("%w: %d bytes, more than %d", ErrPlatform, len(raw), MaxPlatform)
	}
	doc, err := toUTF8(raw)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrPlatform, err)
	}
	p := &Platform{}
	if err := p.read(doc); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrPlatform, err)
	}
	if p.Certificate != nil {
		certified, err := p.Certificate.EK()
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrPlatform, err)
		}
		if p.EK != nil && !p.EK.Same(certified) {
			return nil, fmt.Errorf("%w: its certificate is for another key", ErrPlatform)
		}
		if p.EK == nil {
			p.EK = certified
		}
	}
	if p.EK == nil {
		return nil, fmt.Errorf("%w: it holds no endorsement key; capture it from an elevated prompt", ErrPlatform)
	}
	return p, nil
}

func toUTF8(raw []byte) ([]byte, error) {
	e, mark := text.Detect(raw)
	if e != text.UTF8 {
		return text.FromUTF16(raw[mark:], e, 2*MaxPlatform)
	}
	if !utf8.Valid(raw) {
		return nil, errors.New("neither UTF-8 nor UTF-16")
	}
	return raw[mark:], nil
}

// read walks the elements. Text of an element counts for the innermost element and, so that nesting and attributes don't matter, so does a
// "Value" below it.
func (p *Platform) read(text []byte) error {
	d := xml.NewDecoder(bytes.NewReader(text))
	d.CharsetReader = func(_ string, r io.Reader) (io.Reader, error) { return r, nil } // converted already, whatever the declaration says
	var path []string
	seen := 0
	for {
		token, err := d.Token()
		if err == io.EOF {
			if seen == 0 {
				return errors.New("no elements")
			}
			return nil
		}
		if err != nil {
			return err
		}
		switch t := token.(type) {
		case xml.StartElement:
			if seen++; len(path) == 16 || seen > 4096 {
				return errors.New("too many elements")
			}
			path = append(path, strings.ToLower(t.Name.Local))
			for _, a := range t.Attr {
				if err := p.set(strings.ToLower(a.Name.Local), a.Value); err != nil {
					return err
				}
			}
		case xml.EndElement:
			path = path[:len(path)-1]
		case xml.CharData:
			if len(path) == 0 {
				continue
			}
			name := path[len(path)-1]
			if name == "value" && len(path) > 1 {
				name = path[len(path)-2]
			}
			if err := p.set(name, string(t)); err != nil {
				return err
			}
		}
	}
}

func (p *Platform) set(name, value string) error {
	value = strings.TrimSpace(value)
	if value == "" {
		return nil
	}
	switch elements[name] {
	case "name":
		p.Name = limit(value)
	case "machine":
		p.Machine = limit(value)
	case "serial":
		p.Serial = limit(value)
	case "mac":
		if len(p.MACs) < 64 {
			p.MACs = append(p.MACs, limit(value))
		}
	case "reason":
		p.NoCertReason = limit(value)
	case "key":
		b, err := base64.StdEncoding.DecodeString(strip(value))
		if err != nil {
			return fmt.Errorf("endorsement key: %w", err)
		}
		ek, err := ParseEK(b)
		if err != nil {
			return err
		}
		if p.EK != nil && !p.EK.Same(ek) {
			return errors.New("two different endorsement keys")
		}
		p.EK = ek
	case "cert":
		b, err := base64.StdEncoding.DecodeString(strip(value))
		if err != nil { // an error text stands where the certificate would be
			p.NoCertReason = limit(value)
			return nil
		}
		c, err := ParseCertificate(b)
		if err != nil {
			return err
		}
		if p.Certificate != nil && !bytes.Equal(p.Certificate.Original, c.Original) {
			return errors.New("two different certificates")
		}
		p.Certificate = c
	}
	return nil
}

func limit(s string) string {
	const longest = 512
	for i := range s {
		if i >= longest {
			return s[:i]
		}
	}
	return s
}

func strip(s string) string {
	return strings.Map(func(r rune) rune {
		if r == ' ' || r == '\t' || r == '\r' || r == '\n' {
			return -1
		}
		return r
	}, s)
}

// platformXML is the file as we write it.
type platformXML struct {
	XMLName xml.Name `xml:"PlatformIdentifier"`
	Name    string   `xml:"Name"`
	Machine string   `xml:"SmbiosGuid,omitempty"`
	Serial  string   `xml:"SerialNumber,omitempty"`
	MACs    []string `xml:"MacAddresses>MacAddress,omitempty"`
	Key     string   `xml:"EndorsementKey"`
	Cert    string   `xml:"EndorsementKeyCertificate,omitempty"`
	Reason  string   `xml:"CertificateError,omitempty"`
}

// WritePlatform writes a platform identifier in UTF-8 with a byte order mark, as PowerShell does; key is the endorsement key in any form
// that [ParseEK] reads.
func WritePlatform(p *Platform, key []byte) ([]byte, error) {
	x := platformXML{Name: p.Name, Machine: p.Machine, Serial: p.Serial, MACs: p.MACs, Key: base64.StdEncoding.EncodeToString(key), Reason: p.NoCertReason}
	if p.Certificate != nil {
		x.Cert = base64.StdEncoding.EncodeToString(p.Certificate.Original)
	}
	b, err := xml.MarshalIndent(x, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("platform identifier: %w", err)
	}
	return append([]byte("\xef\xbb\xbf"+xml.Header), append(b, '\n')...), nil
}
