package rpc

import (
	"encoding/json"
	"testing"

	"guardhouse/appliance/policy"
)

// TestEventsAreStepsAndLocksNotRefinements: a holder is woken when what it decided by the time may be wrong, and only then.
func TestEventsAreStepsAndLocksNotRefinements(t *testing.T) {
	src := &TimeSource{}
	for _, step := range []struct {
		name, value string
		event       bool
	}{
		{"still nothing", `{}`, false},
		{"first lock", `{"boot":"b","utc":"2026-11-22T12:00:00Z","bound":1000000,"locks":1}`, true},
		{"a better value", `{"boot":"b","bootTime":64000000000,"utc":"2026-11-22T12:01:04Z","bound":900000,"locks":1}`, false},
		{"a step", `{"boot":"b","bootTime":65000000000,"utc":"2026-11-23T12:00:00Z","bound":1000000,"locks":2}`, true},
		{"a suspicion", `{"boot":"b","locks":2}`, true},
		{"its end", `{"boot":"b","bootTime":70000000000,"utc":"2026-11-22T12:02:00Z","bound":1000000,"locks":3}`, true},
	} {
		var v policy.TrustedTime
		if err := json.Unmarshal([]byte(step.value), &v); err != nil {
			t.Fatal(err)
		}
		event := src.Event()
		src.receive(v)
		select {
		case <-event:
			if !step.event {
				t.Errorf("%s woke everybody", step.name)
			}
		default:
			if step.event {
				t.Errorf("%s woke nobody", step.name)
			}
		}
	}
}
