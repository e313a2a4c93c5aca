package hgsa

import (
	"encoding/base64"
	"slices"
	"strconv"
)

// EncodeReply writes a reply without white space, __type first, in the style of
// the request it answers (3.3). A nil or foreign value gives the general
// retryable ErrorReply, so that a caller can't put an empty body on the wire.
func EncodeReply(reply Reply, style Style) []byte {
	room := 512 // and the bytes of what is long, as numbers; as base64 they are less
	switch t := reply.(type) {
	case *TpmReplyContinue:
		room += 4 * len(t.RtpmActiveContext)
	case *HealthCertificateReply:
		for _, c := range t.Content {
			room += 4*len(c.Item2) + 64
		}
	}
	w := &writer{b: make([]byte, 0, room), style: style}
	switch t := reply.(type) {
	case *ServiceInfoReply:
		w.begin(t.Type())
		w.uint("FunctionalLevel", uint64(t.FunctionalLevel))
		w.uint("OperationMode", uint64(t.OperationMode))
		w.list("SupportedFunctionalLevels", len(t.SupportedFunctionalLevels), func(i int) {
			w.b = strconv.AppendUint(w.b, uint64(t.SupportedFunctionalLevels[i]), 10)
		})
	case *TpmReplyContinue:
		w.begin(t.Type())
		w.binary("RtpmActiveContext", t.RtpmActiveContext)
	case *HealthCertificateReply:
		w.begin(t.Type())
		w.list("Content", len(t.Content), func(i int) {
			w.tuple(uint64(t.Content[i].Item1), t.Content[i].Item2)
		})
	case *OperationModeErrorReply:
		w.failure(t)
		w.uint("ExpectedOperationMode", uint64(t.ExpectedOperationMode))
	case *PolicyEvaluationErrorReply:
		w.failure(t)
		w.list("Reasons", len(t.Reasons), func(i int) {
			w.b = append(w.b, '{')
			w.guid("Reason", t.Reasons[i].Reason)
			w.boolean("Result", t.Reasons[i].Result)
			w.b = append(w.b, '}')
		})
	case Failure:
		w.failure(t)
	default:
		w.failure(InternalError())
	}
	return append(w.b, '}')
}

// EncodeRequest writes a request. AttestationRequest carries no type hint, as in
// its schema (3.2); the others do. A nil request gives nil.
func EncodeRequest(request Request, style Style) []byte {
	w := &writer{b: make([]byte, 0, 4096), style: style}
	switch t := request.(type) {
	case *TpmRequestInitial:
		w.begin("TpmRequestInitial")
		w.tpm(&t.TpmRequest)
	case *TpmRequestContinue:
		w.begin("TpmRequestContinue")
		w.tpm(&t.TpmRequest)
		w.binary("RtpmNewContext", t.RtpmNewContext)
	case *ADRequest:
		w.begin("ADRequest")
		w.guid("SessionId", t.SessionId)
		w.list("RequestedContent", len(t.RequestedContent), func(i int) {
			w.tuple(uint64(t.RequestedContent[i].Item1), t.RequestedContent[i].Item2)
		})
	case *AttestationRequest:
		w.b = append(w.b, '{')
		w.guid("SessionId", t.SessionId)
		w.list("ProvidedContent", len(t.ProvidedContent), func(i int) {
			w.tuple(uint64(t.ProvidedContent[i].Item1), t.ProvidedContent[i].Item2)
		})
		w.results(t.RequestedContent)
	default:
		return nil
	}
	return append(w.b, '}')
}

// writer appends to one buffer; nothing it does can fail.
type writer struct {
	b     []byte
	style Style
}

// name opens a member, with a comma unless it is the first of its object.
func (w *writer) name(n string) {
	if w.b[len(w.b)-1] != '{' {
		w.b = append(w.b, ',')
	}
	w.b = append(w.b, '"')
	w.b = append(w.b, n...)
	w.b = append(w.b, `":`...)
}

func (w *writer) begin(typ string) {
	w.b = append(w.b, `{"__type":"`...)
	w.b = append(w.b, typ...)
	w.b = append(w.b, Namespace...)
	w.b = append(w.b, '"')
}

func (w *writer) failure(f Failure) {
	w.begin(f.Type())
	w.boolean("Retryable", f.CanRetry())
}

func (w *writer) uint(n string, v uint64) {
	w.name(n)
	w.b = strconv.AppendUint(w.b, v, 10)
}

func (w *writer) boolean(n string, v bool) {
	w.name(n)
	w.b = strconv.AppendBool(w.b, v)
}

func (w *writer) guid(n string, g GUID) {
	w.name(n)
	if w.style.BinaryGUIDs {
		net := g.swap()
		w.base64(net[:])
		return
	}
	w.b = append(w.b, '"')
	w.b = append(w.b, g.String()...)
	w.b = append(w.b, '"')
}

func (w *writer) list(n string, count int, element func(i int)) {
	w.name(n)
	w.b = append(w.b, '[')
	for i := range count {
		if i > 0 {
			w.b = append(w.b, ',')
		}
		element(i)
	}
	w.b = append(w.b, ']')
}

func (w *writer) tuple(tag uint64, value []byte) {
	w.b = append(w.b, '{')
	w.uint("m_Item1", tag)
	w.binary("m_Item2", value)
	w.b = append(w.b, '}')
}

func (w *writer) tpm(t *TpmRequest) {
	w.guid("SessionId", t.SessionId)
	w.results(t.RequestedContent)
	w.binary("RtpmPublicEndorsementKey", t.RtpmPublicEndorsementKey)
}

func (w *writer) results(types []AttestationResultType) {
	w.list("RequestedContent", len(types), func(i int) {
		w.b = strconv.AppendUint(w.b, uint64(types[i]), 10)
	})
}

func (w *writer) binary(n string, v []byte) {
	w.name(n)
	if w.style.Base64 {
		w.base64(v)
		return
	}
	w.b = appendNumbers(w.b, v)
}

// base64 writes the solidus as \/, as the genuine serializer does.
func (w *writer) base64(v []byte) {
	w.b = append(w.b, '"')
	start := len(w.b)
	w.b = base64.StdEncoding.AppendEncode(w.b, v)
	slashes := 0
	for _, c := range w.b[start:] {
		if c == '/' {
			slashes++
		}
	}
	if slashes > 0 {
		plain := append([]byte(nil), w.b[start:]...)
		w.b = w.b[:start]
		for _, c := range plain {
			if c == '/' {
				w.b = append(w.b, '\\')
			}
			w.b = append(w.b, c)
		}
	}
	w.b = append(w.b, '"')
}

// appendNumbers writes [n,n,...,n] without white space.
func appendNumbers(dst, v []byte) []byte {
	dst = append(slices.Grow(dst, 4*len(v)+2), '[')
	for _, c := range v {
		n := &written[c]
		dst = append(dst, n[0], n[1], n[2], n[3])[:len(dst)+int(n[4])]
	}
	if len(v) > 0 {
		dst = dst[:len(dst)-1] // the last comma
	}
	return append(dst, ']')
}

// written has each byte as a number with a comma, and in the end how long that is.
var written = func() (t [256][5]byte) {
	for i := range t {
		t[i][4] = byte(copy(t[i][:4], strconv.Itoa(i)+","))
	}
	return t
}()
