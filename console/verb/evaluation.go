package verb

import (
	"bytes"
	"context"
	"encoding/json"
	"io"

	"guardhouse/appliance/policy"
)

// EvaluationLine is the first line of every screen of a node whose image is signed with keys for trying out.
const EvaluationLine = "EVALUATION: this image is signed with keys for trying out, not for real hosts"

// Banner is EvaluationLine with its newline where it must be shown, else empty.
func (n *Node) Banner() string {
	if !n.Evaluation {
		return ""
	}
	return EvaluationLine + "\n"
}

// evaluationHint is the same for status --json.
var evaluationHint = policy.Problem{Kind: "evaluation", What: "this image is signed with keys for trying out, which are not kept as a customer's keys are",
	Remedy: "before real hosts use this node: mkimage keys, then mkimage build --keys"}

// marked adds EvaluationLine to what people read, and the member "evaluation" to a JSON object. Files (binary streams, Raw) and the
// lines of JSON streams stay as they are.
func (o Output) marked(evaluation bool) Output {
	if !evaluation {
		return o
	}
	if o.Text != nil && !o.Raw {
		p := new(Page).Line("%s", EvaluationLine)
		p.b.WriteString(o.Text.String())
		o.Text = p
	}
	if stream := o.Stream; stream != nil && !o.Binary {
		o.Stream = func(ctx context.Context, w io.Writer, asJSON bool) error {
			if !asJSON {
				if _, err := io.WriteString(w, EvaluationLine+"\n"); err != nil {
					return err
				}
			}
			return stream(ctx, w, asJSON)
		}
	}
	if o.Value != nil && !o.Raw {
		o.Value = evaluated{o.Value}
	}
	return o
}

// evaluated is a value that says of itself that it comes from an evaluation image, where it is an object.
type evaluated struct{ value any }

func (e evaluated) MarshalJSON() ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(e.value); err != nil {
		return nil, err
	}
	object, ok := bytes.CutPrefix(bytes.TrimSpace(b.Bytes()), []byte("{"))
	if !ok {
		return b.Bytes(), nil
	}
	const member = `{"evaluation":true`
	if bytes.Equal(object, []byte("}")) {
		return []byte(member + "}"), nil
	}
	return append([]byte(member+","), object...), nil
}

// FailureJSON is a failure for --json.
func (n *Node) FailureJSON(f *Failure) ([]byte, error) {
	v := any(struct {
		Error *Failure `json:"error"`
	}{f})
	if n.Evaluation {
		v = evaluated{v}
	}
	return JSON(v)
}
