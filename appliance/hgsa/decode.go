package hgsa

// Style is how the optional forms of a message are written. The zero value is
// what the genuine serializer writes: number arrays and dashed GUIDs.
type Style struct {
	Base64      bool // binary values as base64 strings
	BinaryGUIDs bool // GUIDs as base64 of 16 bytes, as the specification's text says
}

// members is the union of the members of all messages; a decoder fills it and
// then asks whether they make up the message it wants.
type members struct {
	typ           string // from __type, without the namespace; empty if absent
	session       GUID
	types         []AttestationResultType
	resultTuples  []TupleOfAttestationResultTypebase64Binary
	provided      []TupleOfAttestationProvidedContentTypebase64Binary
	haveRequested bool
	haveProvided  bool
	haveEK        bool
	haveContext   bool
	ek            []byte
	context       []byte
}

// DecodeAttest reads the body of POST /attest: *TpmRequestInitial,
// *TpmRequestContinue or *AttestationRequest. Without a type hint the members
// decide. Errors wrap [ErrSyntax] or [ErrPayload].
func DecodeAttest(body []byte) (Request, Style, error) {
	m, style, err := decodeRequest(body, MaxAttestBody)
	if err != nil {
		return nil, style, err
	}
	typ := m.typ
	if typ == "" {
		switch {
		case m.haveProvided:
			typ = "AttestationRequest"
		case m.haveContext:
			typ = "TpmRequestContinue"
		case m.haveEK:
			typ = "TpmRequestInitial"
		}
	}
	base := TpmRequest{ProtocolRequestBase{m.session}, m.types, m.ek}
	switch typ {
	case "TpmRequestInitial", "TpmRequestContinue":
		if !m.haveEK || len(m.ek) == 0 || m.resultTuples != nil {
			return nil, style, payload("a TPM request needs RequestedContent as numbers and RtpmPublicEndorsementKey")
		}
		if typ == "TpmRequestInitial" {
			return &TpmRequestInitial{base}, style, nil
		}
		return &TpmRequestContinue{base, m.context}, style, nil
	case "AttestationRequest":
		r, err := m.attestation()
		if err != nil {
			return nil, style, err
		}
		return r, style, nil
	}
	return nil, style, payload("not a request of this endpoint")
}

// DecodeDomainAttest reads the body of POST /domainattest.
func DecodeDomainAttest(body []byte) (*ADRequest, Style, error) {
	m, style, err := decodeRequest(body, MaxBody)
	if err != nil {
		return nil, style, err
	}
	if m.typ != "" && m.typ != "ADRequest" || m.haveProvided || len(m.resultTuples) == 0 {
		return nil, style, payload("not an ADRequest")
	}
	return &ADRequest{ProtocolRequestBase{m.session}, m.resultTuples}, style, nil
}

// DecodeHostKeyAttest reads the body of POST /hostkeyattest.
func DecodeHostKeyAttest(body []byte) (*AttestationRequest, Style, error) {
	m, style, err := decodeRequest(body, MaxBody)
	if err != nil {
		return nil, style, err
	}
	if m.typ != "" && m.typ != "AttestationRequest" {
		return nil, style, payload("not an AttestationRequest")
	}
	r, err := m.attestation()
	return r, style, err
}

func (m *members) attestation() (*AttestationRequest, error) {
	if !m.haveProvided || !m.haveRequested || m.resultTuples != nil || m.haveEK || m.haveContext {
		return nil, payload("an AttestationRequest has ProvidedContent and RequestedContent, the latter as numbers")
	}
	return &AttestationRequest{ProtocolRequestBase{m.session}, m.types, m.provided}, nil
}

func decodeRequest(body []byte, limit int) (*members, Style, error) {
	r, err := newReader(body, limit)
	if err != nil {
		return nil, Style{}, err
	}
	m := &members{}
	if r.peek() != '{' {
		return nil, Style{}, payload("expected an object")
	}
	err = r.object(func(name string) error { return m.member(r, name) })
	return m, Style{Base64: r.base64}, err
}

// member reads one member of a request; null counts as absent.
func (m *members) member(r *reader, name string) (err error) {
	if r.null() {
		return nil
	}
	switch name {
	case "__type":
		var hint string
		if hint, err = r.str(); err == nil {
			m.typ, err = typeName(hint)
		}
	case "SessionId":
		m.session, err = r.guid()
	case "RequestedContent":
		m.haveRequested = true
		err = m.requested(r)
	case "ProvidedContent":
		m.haveProvided = true
		err = r.array(maxItems, func() error {
			tag, value, err := r.tuple()
			m.provided = append(m.provided, TupleOfAttestationProvidedContentTypebase64Binary{AttestationProvidedContentType(tag), value})
			return err
		})
	case "RtpmPublicEndorsementKey":
		m.haveEK = true
		m.ek, err = r.binary()
	case "RtpmNewContext":
		m.haveContext = true
		m.context, err = r.binary()
	default:
		err = r.skip()
	}
	return err
}

// requested reads numbers (TPM, v2.0) or tuples (AD), not a mixture.
func (m *members) requested(r *reader) error {
	err := r.array(maxItems, func() error {
		if r.peek() == '{' {
			tag, value, err := r.tuple()
			m.resultTuples = append(m.resultTuples, TupleOfAttestationResultTypebase64Binary{AttestationResultType(tag), value})
			return err
		}
		n, err := r.uint32()
		m.types = append(m.types, AttestationResultType(n))
		return err
	})
	if err == nil && m.types != nil && m.resultTuples != nil {
		err = payload("RequestedContent mixes numbers and tuples")
	}
	return err
}

// tuple reads {"m_Item1": tag, "m_Item2": value}; both are required.
func (r *reader) tuple() (tag uint32, value []byte, err error) {
	have1, have2 := false, false
	err = r.object(func(name string) (err error) {
		switch name {
		case "m_Item1":
			have1 = true
			tag, err = r.uint32()
		case "m_Item2":
			have2 = true
			value, err = r.binary()
		default:
			err = r.skip()
		}
		return err
	})
	if err == nil && (!have1 || !have2) {
		err = payload("a tuple lacks m_Item1 or m_Item2")
	}
	return tag, value, err
}
