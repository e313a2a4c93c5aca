package hgsa

// DecodeReply reads a reply by its type hint, in any of the accepted forms.
// Errors wrap [ErrSyntax] or [ErrPayload].
func DecodeReply(body []byte) (Reply, Style, error) {
	r, err := newReader(body, MaxAttestBody)
	if err != nil {
		return nil, Style{}, err
	}
	if r.peek() != '{' {
		return nil, Style{}, payload("expected an object")
	}
	m := &replyMembers{}
	if err := r.object(func(name string) error { return m.member(r, name) }); err != nil {
		return nil, Style{Base64: r.base64}, err
	}
	reply, err := m.reply()
	return reply, Style{Base64: r.base64}, err
}

// replyMembers is the union of the members of all replies.
type replyMembers struct {
	typ         string
	retryable   bool
	mode        AttestationOperationMode
	expected    AttestationOperationMode
	level       uint32
	levels      []uint32
	context     []byte
	content     []TupleOfAttestationResultTypebase64Binary
	reasons     []EvaluationLog
	haveRetry   bool
	haveMode    bool
	haveExpect  bool
	haveLevel   bool
	haveLevels  bool
	haveContext bool
	haveContent bool
	haveReasons bool
}

func (m *replyMembers) member(r *reader, name string) (err error) {
	if r.null() {
		return nil
	}
	switch name {
	case "__type":
		var hint string
		if hint, err = r.str(); err == nil {
			m.typ, err = typeName(hint)
		}
	case "Retryable":
		m.haveRetry = true
		m.retryable, err = r.boolean()
	case "OperationMode":
		m.haveMode = true
		m.mode, err = r.mode()
	case "ExpectedOperationMode":
		m.haveExpect = true
		m.expected, err = r.mode()
	case "FunctionalLevel":
		m.haveLevel = true
		m.level, err = r.uint32()
	case "SupportedFunctionalLevels":
		m.haveLevels = true
		err = r.array(maxItems, func() error {
			n, err := r.uint32()
			m.levels = append(m.levels, n)
			return err
		})
	case "RtpmActiveContext":
		m.haveContext = true
		m.context, err = r.binary()
	case "Content":
		m.haveContent = true
		err = r.array(maxItems, func() error {
			tag, value, err := r.tuple()
			m.content = append(m.content, TupleOfAttestationResultTypebase64Binary{AttestationResultType(tag), value})
			return err
		})
	case "Reasons":
		m.haveReasons = true
		err = r.array(maxItems, func() error {
			e, err := r.evaluation()
			m.reasons = append(m.reasons, e)
			return err
		})
	default:
		err = r.skip()
	}
	return err
}

func (r *reader) mode() (AttestationOperationMode, error) {
	n, err := r.uint32()
	return AttestationOperationMode(n), err
}

func (r *reader) evaluation() (e EvaluationLog, err error) {
	haveResult, haveReason := false, false
	err = r.object(func(name string) (err error) {
		switch name {
		case "Result":
			haveResult = true
			e.Result, err = r.boolean()
		case "Reason":
			haveReason = true
			e.Reason, err = r.guid()
		default:
			err = r.skip()
		}
		return err
	})
	if err == nil && (!haveResult || !haveReason) {
		err = payload("an EvaluationLog lacks Result or Reason")
	}
	return e, err
}

// reply picks the type. The general ErrorReply may come without a hint.
func (m *replyMembers) reply() (Reply, error) {
	switch m.typ {
	case typeServiceInfo:
		if !m.haveMode || !m.haveLevel || !m.haveLevels {
			return nil, payload("ServiceInfoReply lacks a member")
		}
		return &ServiceInfoReply{m.level, m.mode, m.levels}, nil
	case typeTpmReplyContinue:
		if !m.haveContext {
			return nil, payload("TpmReplyContinue lacks RtpmActiveContext")
		}
		return &TpmReplyContinue{m.context}, nil
	case typeHealthCertificate:
		if !m.haveContent {
			return nil, payload("HealthCertificateReply lacks Content")
		}
		return &HealthCertificateReply{m.content}, nil
	}
	if !m.haveRetry {
		return nil, payload("an error reply lacks Retryable, or the reply is of an unknown type")
	}
	return m.failure()
}

func (m *replyMembers) failure() (Reply, error) {
	base := ErrorReply{m.retryable}
	switch m.typ {
	case "", typeError:
		return &base, nil
	case typeOperationMode:
		if !m.haveExpect {
			return nil, payload("OperationModeErrorReply lacks ExpectedOperationMode")
		}
		return &OperationModeErrorReply{base, m.expected}, nil
	case typePayload:
		return &PayloadErrorReply{base}, nil
	case typePolicyEvaluation:
		if !m.haveReasons {
			return nil, payload("PolicyEvaluationErrorReply lacks Reasons")
		}
		return &PolicyEvaluationErrorReply{base, m.reasons}, nil
	case typeRtpm:
		return &RtpmErrorReply{base}, nil
	case typeTcgLogValidation:
		return &TcgLogValidationErrorReply{base}, nil
	case typeUnauthorized:
		return &UnauthorizedErrorReply{base}, nil
	case typeUnavailable:
		return &UnavailableErrorReply{base}, nil
	case typeVirtualSecureMode:
		return &VirtualSecureModeErrorReply{base}, nil
	case typeVsmReportValidation:
		return &VsmReportValidationErrorReply{base}, nil
	}
	return nil, payload("a reply of an unknown type")
}
