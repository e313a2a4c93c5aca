//go:build qemu

package site

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// stage is a site with a tool for the hosts around it. Its tests are steps of one story: a boot under TCG costs 15 s.
type stage struct {
	*Site
	hostsim string
	people  string // folder of the hosts' and tenants' keys
	built   string // folder that the image was built in
}

// openStage builds the image of the variant and opens a fresh site of this name. Nothing runs but what is around the node.
func openStage(t *testing.T, name, hsm string) *stage {
	t.Helper()
	return openStageOf(t, name, hsm, image(t, hsm))
}

// openStageOf is openStage with an image of the test's own.
func openStageOf(t *testing.T, name, hsm string, img Image) *stage {
	t.Helper()
	build := buildDir(t)
	built := filepath.Dir(img.EFI)
	s, err := Open(t.Context(), Options{Build: build, Name: name, HSM: hsm, Fresh: true, Logf: t.Logf}, img)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	st := &stage{Site: s, hostsim: filepath.Join(build, "bin", "hostsim"), people: filepath.Join(s.Lab.Dir, "people"), built: built}
	compile(t, st.hostsim, "guardhouse/cmd/hostsim")
	return st
}

// step is one of a story on one site.
type step struct {
	name string
	run  func(*testing.T, *stage)
}

// steps runs the story; what comes after a step stands on it.
func (s *stage) steps(t *testing.T, list []step) {
	t.Helper()
	for _, step := range list {
		start := time.Now()
		if !t.Run(step.name, func(t *testing.T) { step.run(t, s) }) {
			t.Fatalf("the steps after %s stand on it; the node's log is %s", step.name, s.Node.Serial.LogPath())
		}
		t.Logf("%-42s %5.1f s", step.name, time.Since(start).Seconds())
	}
}

// made is what the tests of this package have built; each thing is built once, since its users may run at the same time.
var made struct {
	sync.Mutex
	images   map[string]Image
	programs map[string]bool
}

// image builds the image of the variant.
func image(t *testing.T, hsm string) Image {
	t.Helper()
	made.Lock()
	defer made.Unlock()
	img, ok := made.images[hsm]
	if !ok {
		var err error
		if img, err = BuildImage(t.Context(), buildDir(t), hsm); err != nil {
			t.Fatal(err)
		}
		if made.images == nil {
			made.images = map[string]Image{}
		}
		made.images[hsm] = img
	}
	return img
}

// compile builds a program of the project.
func compile(t *testing.T, file, pkg string) {
	t.Helper()
	made.Lock()
	defer made.Unlock()
	if made.programs[file] {
		return
	}
	if made.programs == nil {
		made.programs = map[string]bool{}
	}
	made.programs[file] = true
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", file, pkg).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", pkg, err, out)
	}
}

// patience stretches every limit: the machine that runs these tests has two processors for several nodes without hardware virtualisation.
const patience = 3

func within(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), patience*d)
	t.Cleanup(cancel)
	return ctx
}

// eventually repeats do until it works; for what becomes ready by itself.
func eventually(t *testing.T, limit time.Duration, do func(context.Context) error) {
	t.Helper()
	ctx := within(t, limit)
	start := time.Now()
	var last error // what the node said, not that the time was over
	for {
		err := do(ctx)
		if err == nil {
			if took := time.Since(start); took > 5*time.Second {
				t.Logf("took %v", took.Round(100*time.Millisecond))
			}
			return
		}
		if ctx.Err() == nil || last == nil {
			last = err
		}
		if ctx.Err() != nil {
			t.Fatalf("not within %v: %v", patience*limit, last)
		}
		time.Sleep(250 * time.Millisecond)
	}
}

// ready waits until a person could type. It wants the node set up, or blank.
func (s *stage) ready(t *testing.T, setUp bool) {
	t.Helper()
	got, err := s.WaitReady(within(t, 90*time.Second))
	if err != nil {
		t.Fatal(err)
	}
	if got != setUp {
		t.Fatalf("set up: %v, want %v; log: %s", got, setUp, s.Node.Serial.LogPath())
	}
	t.Logf("a person could type %.1f s after power-on", time.Since(s.Node.Started).Seconds())
}

// typed types a line on the serial line and waits for want.
func (s *stage) typed(t *testing.T, text, want string) []string {
	t.Helper()
	if err := s.Node.Serial.Send(text); err != nil {
		t.Fatal(err)
	}
	return s.expect(t, want)
}

func (s *stage) expect(t *testing.T, want string) []string {
	t.Helper()
	m, err := s.Node.Serial.Expect(within(t, 40*time.Second), regexp.MustCompile(want))
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// answered types a verb at the prompt and gives its text, in single blanks.
func (s *stage) answered(t *testing.T, text string) string {
	t.Helper()
	return squeeze(s.typed(t, text, `(?s)`+regexp.QuoteMeta(text)+`\r\n(.*?)guardhouse> `)[1])
}

func squeeze(text string) string { return strings.Join(strings.Fields(text), " ") }

// verb is Verb that must work.
func (s *stage) verb(t *testing.T, args ...string) string {
	t.Helper()
	out, err := s.Verb(within(t, 60*time.Second), nil, args...)
	if err != nil {
		t.Fatalf("%s: %v", strings.Join(args, " "), err)
	}
	return string(out)
}

// status is what `status --json` says, as far as the tests look.
type status struct {
	OK       bool
	SetUp    bool
	Problems []problem
	HSM      struct{ State string }
	Init     struct {
		Boot     string
		Services []struct {
			Name     string
			Restarts int
			RSS      int64
			Confined bool
		}
	}
}

type problem struct{ Kind, What, Remedy string }

// How fast the emulated machine's clock runs is chance, differs at each boot and is left out.
func (s *stage) status(ctx context.Context) (st status, err error) {
	err = s.JSON(ctx, nil, &st, "status")
	st.Problems = slices.DeleteFunc(st.Problems, func(p problem) bool { return p.Kind == "time-oscillator" })
	return st, err
}

// wellNow waits until nothing is wrong with the node.
func (s *stage) wellNow(t *testing.T) status {
	t.Helper()
	var st status
	eventually(t, 40*time.Second, func(ctx context.Context) (err error) {
		if st, err = s.status(ctx); err == nil && len(st.Problems) > 0 {
			err = fmt.Errorf("problems: %+v", st.Problems)
		}
		return err
	})
	return st
}

// sim runs hostsim and gives what it printed as JSON; err is why it said no.
func (s *stage) sim(ctx context.Context, args ...string) (map[string]any, error) {
	cmd := exec.CommandContext(ctx, s.hostsim, append(args, "--json")...)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	runErr := cmd.Run()
	var facts map[string]any
	if err := json.Unmarshal(out.Bytes(), &facts); err != nil {
		return nil, fmt.Errorf("hostsim %s: %v: %s", strings.Join(args, " "), runErr, errOut.String())
	}
	if text, _ := facts["error"].(string); text != "" {
		return facts, errors.New(text)
	}
	return facts, runErr
}

func (s *stage) mustSim(t *testing.T, args ...string) map[string]any {
	t.Helper()
	facts, err := s.sim(within(t, 60*time.Second), args...)
	if err != nil {
		t.Fatalf("hostsim %s: %v", strings.Join(args, " "), err)
	}
	return facts
}

func (s *stage) folder(who string) string { return filepath.Join(s.people, who) }

// guest registers a host, lets it attest, and has a tenant make a key protector for this service.
func (s *stage) guest(t *testing.T) {
	t.Helper()
	s.mustSim(t, "host-key", "new", "--dir", s.folder("host"), "--name", "host")
	cer, err := os.ReadFile(filepath.Join(s.folder("host"), "host.cer"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Verb(within(t, 30*time.Second), cer, "host", "add", "host"); err != nil {
		t.Fatal(err)
	}
	s.mustSim(t, "host-key", "attest", "--dir", s.folder("host"), "--url", s.URL("/Attestation"))
	s.mustSim(t, "guardian", "new", "--dir", s.folder("tenant"), "--name", "tenant")
	s.mustSim(t, "protector", "new", "--dir", s.folder("tenant"), "--metadata", s.URL("/KeyProtection"), "--out", s.protector())
}

func (s *stage) protector() string { return filepath.Join(s.people, "protector.xml") }

// roll sends the tenant's key protector as the host.
func (s *stage) roll(ctx context.Context) error {
	_, err := s.sim(ctx, "protector", "roll", "--dir", s.folder("host"), "--url", s.URL("/KeyProtection"), "--in", s.protector())
	return err
}
