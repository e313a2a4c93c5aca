package main

import (
	"context"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
	"guardhouse/appliance/sandbox"
	"guardhouse/appliance/supervise"
)

// Waits of the herald: how long services may take before it speaks, and how often it repeats itself.
const (
	heraldPatience = 60 * time.Second
	heraldRepeat   = 5 * time.Minute
	heraldWidth    = 200 // characters of a line
)

// say writes a line on the serial line. Only PID 1's own: the console process owns it once it is ready.
func (n *node) say(line string) {
	os.Stdout.WriteString("\r\n" + title(n.release) + ": " + supervise.Clean(line) + "\r\n")
}

// title begins every line of init's own on the serial line.
func title(r sandbox.ReleaseInfo) string {
	if r.Evaluation {
		return "guardhouse EVALUATION"
	}
	return "guardhouse"
}

// herald speaks on the serial line while the node can't reach setup: in at most five lines what failed, its code and what to do. Once
// the console is ready the line is the console's: from then on each kind of obstacle is told only once. Kinds are compared, not texts: those
// of a process that keeps ending change all the time.
type herald struct {
	n    *node
	said string
	at   time.Time
}

// run looks every second until ctx ends.
func (h *herald) run(ctx context.Context) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		h.look()
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// look speaks if there is something to say that was not said lately.
func (h *herald) look() {
	p := h.n.obstacle(rpc.BootTime() - h.n.started)
	if p.Kind == "" {
		h.said = ""
		return
	}
	if p.Kind == h.said && (time.Since(h.at) < heraldRepeat || h.n.super.Ready(rpc.Console)) {
		return
	}
	h.said, h.at = p.Kind, time.Now()
	os.Stdout.WriteString("\r\n" + strings.ReplaceAll(h.n.fiveLines(p), "\n", "\r\n") + "\r\n")
}

// obstacle is why the node can't reach setup after so long; its kind is "" where it still may.
func (n *node) obstacle(up time.Duration) policy.Problem {
	n.mu.Lock()
	problems := maps.Clone(n.problems)
	n.mu.Unlock()
	if p, found := problems[kindChanged]; found && n.damageStops() {
		return p
	}
	for _, kind := range slices.Sorted(maps.Keys(problems)) {
		if keepsDiskShut(kind) {
			return problems[kind]
		}
	}
	if up < heraldPatience {
		return policy.Problem{}
	}
	for _, s := range n.super.Status() {
		if s.Name != rpc.Console && s.Name != rpc.Ledger || s.State == supervise.StateReady {
			continue
		}
		what := "the process " + s.Name + " does not come up (" + s.State + ")"
		if s.LastExit != "" {
			what += ": " + s.LastExit
		}
		if s.Status != "" {
			what += ": " + s.Status
		}
		return policy.Problem{Kind: "service-" + s.Name, What: what, Remedy: "restart the node; if it stays, start another image and keep the data disk as it is"}
	}
	return policy.Problem{}
}

// fiveLines is p for the serial line: bounded, and harmless to a terminal.
func (n *node) fiveLines(p policy.Problem) string {
	cut := func(s string) string {
		s = supervise.Clean(s)
		if r := []rune(s); len(r) > heraldWidth {
			s = string(r[:heraldWidth-3]) + "..."
		}
		return s
	}
	return title(n.release) + " can't be set up yet  [" + cut(p.Kind) + "]\n  what: " + cut(p.What) + "\n  do:   " + cut(p.Remedy)
}
