// Testrun runs the project's Go tests and prints each package's time beside its budget, what was skipped and why, and the output of
// what failed. Its last line is "N passed, N failed, N skipped". The exit code is 0 only if at least one test ran and none failed.
//
// Budgets are for people: a package over its budget is marked, not failed, because machines differ.
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
)

// event is one line of go test -json (cmd/test2json).
type event struct {
	Action     string
	Package    string
	ImportPath string
	Test       string
	Elapsed    float64
	Output     string
}

type result struct {
	pkg     string
	elapsed float64
	state   string
}

type run struct {
	passed, failed, skipped int
	output                  map[string][]string // package + test -> lines, kept until the outcome is known
	results                 []result
	reasons                 map[string]int // skip reason -> count
}

func main() {
	budget := flag.String("budget", "", "file of lines `package seconds`")
	race := flag.Bool("race", false, "run with the race detector")
	tags := flag.String("tags", "", "build tags")
	timeout := flag.String("timeout", "20m", "per package")
	flag.Parse()
	limits, err := readBudget(*budget)
	if err != nil {
		fmt.Fprintln(os.Stderr, "testrun:", err)
		os.Exit(2)
	}
	args := []string{"test", "-json", "-count=1", "-timeout", *timeout}
	if *race {
		args = append(args, "-race")
	}
	if *tags != "" {
		args = append(args, "-tags", *tags)
	}
	pkgs := flag.Args()
	if len(pkgs) == 0 {
		pkgs = []string{"./..."}
	}
	r := &run{output: map[string][]string{}, reasons: map[string]int{}}
	gerr := r.goTest(append(args, pkgs...), limits)
	r.report(limits)
	if gerr != nil || r.failed > 0 || r.passed == 0 {
		os.Exit(1)
	}
}

func (r *run) goTest(args []string, limits map[string]float64) error {
	cmd := exec.Command("go", args...)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start go test: %w", err)
	}
	lines := bufio.NewReader(out)
	for {
		line, err := lines.ReadBytes('\n')
		if len(line) > 0 {
			var e event
			if json.Unmarshal(line, &e) == nil {
				r.take(e, limits)
			} else {
				os.Stdout.Write(line)
			}
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
	}
	return cmd.Wait()
}

// take counts top-level tests only: subtests are part of theirs.
func (r *run) take(e event, limits map[string]float64) {
	key := e.Package + " " + e.Test
	top := e.Test != "" && !strings.Contains(e.Test, "/")
	switch e.Action {
	case "output", "build-output":
		if e.Action == "build-output" {
			fmt.Print(e.Output)
			return
		}
		r.output[key] = append(r.output[key], e.Output)
	case "pass":
		if top {
			r.passed++
		}
		if e.Test == "" {
			r.finish(e, "ok", limits)
		}
		delete(r.output, key)
	case "skip":
		if top {
			r.skipped++
			r.reasons[reason(r.output[key])]++
		}
		if e.Test == "" {
			r.finish(e, "no tests", limits)
		}
		delete(r.output, key)
	case "fail":
		if top {
			r.failed++
		}
		fmt.Printf("--- FAIL %s\n%s", key, strings.Join(r.output[key], ""))
		if e.Test == "" {
			if e.Elapsed == 0 {
				r.failed++ // did not build or start
			}
			r.finish(e, "FAIL", limits)
		}
		delete(r.output, key)
	}
}

func (r *run) finish(e event, state string, limits map[string]float64) {
	res := result{strings.TrimPrefix(e.Package, "guardhouse/"), e.Elapsed, state}
	r.results = append(r.results, res)
	fmt.Println(format(res, limits))
}

func format(res result, limits map[string]float64) string {
	note := ""
	if limit, ok := limits[res.pkg]; ok {
		note = fmt.Sprintf("of %4.0f s", limit)
		if res.elapsed > limit {
			note += "  OVER BUDGET"
		}
	}
	return fmt.Sprintf("%-8s %-32s %7.1f s %s", res.state, res.pkg, res.elapsed, note)
}

// reason is the text of the line that t.Skip printed.
func reason(output []string) string {
	for _, l := range slices.Backward(output) {
		if _, text, ok := strings.Cut(strings.TrimSpace(l), ".go:"); ok {
			_, text, _ = strings.Cut(text, ": ")
			return text
		}
	}
	return "no reason given"
}

func (r *run) report(limits map[string]float64) {
	var sum float64
	over := 0
	for _, res := range r.results {
		sum += res.elapsed
		if limit, ok := limits[res.pkg]; ok && res.elapsed > limit {
			over++
		}
	}
	for text, n := range r.reasons {
		fmt.Printf("skipped %d: %s\n", n, text)
	}
	fmt.Printf("%.0f s of tests in %d packages, %d over budget\n", sum, len(r.results), over)
	fmt.Printf("%d passed, %d failed, %d skipped\n", r.passed, r.failed, r.skipped)
}

func readBudget(path string) (map[string]float64, error) {
	limits := map[string]float64{}
	if path == "" {
		return limits, nil
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	for i, line := range strings.Split(string(b), "\n") {
		line, _, _ = strings.Cut(line, "#")
		f := strings.Fields(line)
		if len(f) == 0 {
			continue
		}
		if len(f) != 2 {
			return nil, fmt.Errorf("%s:%d: want a package and seconds", path, i+1)
		}
		s, err := strconv.ParseFloat(f[1], 64)
		if err != nil {
			return nil, fmt.Errorf("%s:%d: %w", path, i+1, err)
		}
		limits[f[0]] = s
	}
	return limits, nil
}
