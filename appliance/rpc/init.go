package rpc

import (
	"time"

	"guardhouse/appliance/policy"
)

// ServiceStatus is one process as init sees it.
type ServiceStatus struct {
	Name     string        `json:"name"`
	PID      int           `json:"pid"`
	State    string        `json:"state"`  // starting, ready, restarting, failed, stopped
	Status   string        `json:"status"` // the service's own STATUS= line
	Restarts int           `json:"restarts"`
	Up       time.Duration `json:"up"`
	RSS      int64         `json:"rss"` // bytes
	LastExit string        `json:"lastExit,omitempty"`
	// Confined: the kernel says that its system calls are filtered (package sandbox), and that nothing gives it new rights.
	Confined bool `json:"confined,omitempty"`
}

// LinkStatus is one network interface.
type LinkStatus struct {
	Name      string   `json:"name"`
	Device    string   `json:"device"`
	MAC       string   `json:"mac"`
	Link      bool     `json:"link"`
	Addresses []string `json:"addresses"`
	Problem   string   `json:"problem,omitempty"`
	Remedy    string   `json:"remedy,omitempty"`
}

// Unused is true for a NIC that no interface of the network uses.
func (l LinkStatus) Unused() bool { return l.Name == "(unused)" }

// InitStatusReply is the machine.
type InitStatusReply struct {
	Version  string           `json:"version"`
	Boot     string           `json:"boot"`
	Up       time.Duration    `json:"up"`
	Services []ServiceStatus  `json:"services"`
	Links    []LinkStatus     `json:"links"`
	Disk     string           `json:"disk"`
	Problems []policy.Problem `json:"problems,omitempty"`
	// NetworkUp is the CLOCK_BOOTTIME reading at which the network's settings were first in force, 0 = not yet.
	NetworkUp time.Duration `json:"networkUp,omitempty"`
}

// LogRequest selects log lines. Service "" = all; Boot 0 = this one, -1 and -2 the ones before; Lines 0 = 200; Follow keeps sending.
type LogRequest struct {
	Service string `json:"service"`
	Boot    int    `json:"boot"`
	Lines   int    `json:"lines"`
	Follow  bool   `json:"follow"`
}

// LogLine is one line, control bytes already replaced.
type LogLine struct {
	BootTime time.Duration `json:"bootTime"`
	Service  string        `json:"service"`
	Text     string        `json:"text"`
}

// PowerRequest: Action is "reboot" or "off".
type PowerRequest struct {
	Action string       `json:"action"`
	Actor  policy.Actor `json:"actor"`
}
