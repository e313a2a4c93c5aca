package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

func buildHostsim(ctx context.Context, build string) (string, error) {
	bin := filepath.Join(build, "bin", "hostsim")
	if err := os.MkdirAll(filepath.Dir(bin), 0o755); err != nil {
		return "", err
	}
	out, err := exec.CommandContext(ctx, "go", "build", "-o", bin, "guardhouse/cmd/hostsim").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("build hostsim: %w: %s", err, out)
	}
	return bin, nil
}

// facts is what hostsim --json printed.
type facts map[string]any

func (f facts) str(name string) string {
	s, _ := f[name].(string)
	return s
}

// sim runs hostsim. refused is true when it ended with exit code 1: the service, or a check of hostsim's own, said no; facts["error"]
// tells. err is anything else, a usage error of ours above all.
func (s *story) sim(ctx context.Context, args ...string) (f facts, refused bool, err error) {
	cmd := exec.CommandContext(ctx, s.hostsim, append(args, "--json")...)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err = cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() == 1 {
		refused, err = true, nil
	}
	if err != nil {
		return nil, false, fmt.Errorf("hostsim %s: %w: %s", strings.Join(args, " "), err, errOut.String())
	}
	if err := json.Unmarshal(out.Bytes(), &f); err != nil {
		return nil, false, fmt.Errorf("hostsim %s: %w", strings.Join(args, " "), err)
	}
	return f, refused, nil
}

// must is sim for what has to work.
func (s *story) must(ctx context.Context, args ...string) (facts, error) {
	f, refused, err := s.sim(ctx, args...)
	if err == nil && refused {
		err = &failure{"hostsim " + strings.Join(args[:min(2, len(args))], " ") + " to work", f.str("error"), "the node's log tells more: ssh to it and log show hgs"}
	}
	return f, err
}

// mustRefuse is sim for what has to be refused with a code or reply that contains want.
func (s *story) mustRefuse(ctx context.Context, what, want string, args ...string) (facts, error) {
	f, refused, err := s.sim(ctx, args...)
	if err != nil {
		return nil, err
	}
	if !refused {
		return nil, &failure{what + " to be refused", "it was answered", "do not use this image: a check is missing"}
	}
	if !strings.Contains(f.str("error"), want) {
		return nil, &failure{what + " to be refused as " + want, f.str("error"), "the refusal has another reason than the one under test"}
	}
	return f, nil
}
