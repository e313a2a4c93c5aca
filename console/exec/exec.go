// Package exec runs one verb as `ssh node verb ... [--json]`: arguments from one command line, a file on standard input, the answer on
// standard output. It promises that scripts can rely on the exit code (0 ok, 1 refused or failed, 2 usage, 3 not allowed, 4 unavailable,
// try again) and, with --json, on one JSON value on standard output, the failure included. A test that ran and did not pass is a whole
// answer with the exit code 1.
//
// Limits: standard input is at most verb.MaxStdin bytes but for verbs that stream it. Nothing is asked back: a verb that needs a dialogue fails here.
package exec

import (
	"context"
	"errors"
	"fmt"
	"io"

	"guardhouse/console/verb"
)

// Run runs the command line and gives the exit code. stdin is read only where the verb wants it. End of ctx ends streams.
func Run(ctx context.Context, s *verb.Session, line string, stdin io.Reader, stdout, stderr io.Writer) int {
	words, err := verb.Split(line)
	if err != nil {
		return fail(s.Node, err, false, stdout, stderr)
	}
	v, args, err := verb.Parse(words)
	if err != nil {
		return fail(s.Node, err, args.JSON, stdout, stderr)
	}
	if err := verb.Permitted(v, s); err != nil { // before reading what may be 4 MiB
		return fail(s.Node, err, args.JSON, stdout, stderr)
	}
	out, err := answer(ctx, v, s, args, stdin)
	if err == nil {
		err = write(ctx, out, args.JSON, stdout)
	}
	if err != nil {
		return fail(s.Node, err, args.JSON, stdout, stderr)
	}
	if out.Failed {
		return verb.ExitFailed
	}
	return verb.ExitOK
}

// answer gives the verb what it reads from standard input.
func answer(ctx context.Context, v *verb.Verb, s *verb.Session, args verb.Args, stdin io.Reader) (verb.Output, error) {
	if v.WantsStream(args) {
		return verb.RunStream(ctx, v, s, args, stdin)
	}
	var input []byte
	if v.WantsStdin(args) {
		var err error
		if input, err = io.ReadAll(io.LimitReader(stdin, verb.MaxStdin+1)); err != nil {
			return verb.Output{}, fmt.Errorf("read standard input: %w", err)
		}
	}
	return verb.Run(ctx, v, s, args, input, nil)
}

func write(ctx context.Context, out verb.Output, asJSON bool, stdout io.Writer) error {
	if out.Stream != nil {
		return out.Stream(ctx, stdout, asJSON)
	}
	if !asJSON {
		_, err := io.WriteString(stdout, out.Text.String())
		return err
	}
	b, err := verb.JSON(out.Value)
	if err != nil {
		return err
	}
	_, err = stdout.Write(b)
	return err
}

func fail(n *verb.Node, err error, asJSON bool, stdout, stderr io.Writer) int {
	f := verb.Explain(err)
	if errors.Is(err, context.Canceled) { // the client hung up, as people do to end log follow
		return f.Code
	}
	if asJSON {
		if b, err := n.FailureJSON(f); err == nil {
			stdout.Write(b)
		}
		return f.Code
	}
	io.WriteString(stderr, n.Banner()+verb.FailurePage(f).String())
	return f.Code
}
