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
	os.Stdout.WriteString("\r\n" + supervise.Clean(line) + "\r\n")
}

// herald speaks on the serial line while the node can't reach setup: in at most five lines what failed, its code and what to do. Once
// the console is ready it is silent: the console shows the problems.
func (n *node) herald(ctx context.Context) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	var said string
	var at time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if n.super.Ready(rpc.Console) {
			said = ""
			continue
		}
		text := n.obstacle(rpc.BootTime() - n.started)
		if text == "" || text == said && time.Since(at) < heraldRepeat {
			continue
		}
		said, at = text, time.Now()
		os.Stdout.WriteString("\r\n" + strings.ReplaceAll(text, "\n", "\r\n") + "\r\n")
	}
}

// obstacle is why the node can't reach setup after so long, "" where it still may.
func (n *node) obstacle(up time.Duration) string {
	n.mu.Lock()
	problems := maps.Clone(n.problems)
	n.mu.Unlock()
	for _, kind := range slices.Sorted(maps.Keys(problems)) {
		if strings.HasPrefix(kind, "disk-") {
			return fiveLines(problems[kind])
		}
	}
	if up < heraldPatience {
		return ""
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
		return fiveLines(policy.Problem{Kind: "service-" + s.Name, What: what, Remedy: "restart the node; if it stays, start another image and keep the data disk as it is"})
	}
	for _, kind := range slices.Sorted(maps.Keys(problems)) {
		return fiveLines(problems[kind])
	}
	return ""
}

func fiveLines(p policy.Problem) string {
	cut := func(s string) string {
		s = supervise.Clean(s)
		if r := []rune(s); len(r) > heraldWidth {
			s = string(r[:heraldWidth-3]) + "..."
		}
		return s
	}
	return "guardhouse can't be set up yet  [" + cut(p.Kind) + "]\n  what: " + cut(p.What) + "\n  do:   " + cut(p.Remedy)
}
