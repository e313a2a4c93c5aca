// Package supervise keeps the services of a node running. It promises: a service that ends is started again, at once the first time and
// more slowly while it keeps ending; a service that stays silent longer than its watchdog allows is ended and started again; the
// hardware watchdog is fed only while all of that works; what a service writes is kept, bounded, its last words before a crash
// included; listening sockets outlive the services that use them; no exit code is lost and no zombie stays.
//
// Three halves that know nothing of each other: Supervisor, Reaper, Log and Watchdog for PID 1 (or a test, see Native); Child, Ready
// and Status for the service.
//
// Limits: no dependencies between services: each copes with the others' absence. One process a service counts for readiness, its main
// one; the rest of its session is killed with it.
package supervise

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"time"

	"guardhouse/appliance/rpc"
)

// States of a service, as in rpc.ServiceStatus.
const (
	StateWaiting    = "waiting"    // not started yet: it needs something, see its status
	StateStarting   = "starting"   // runs, not ready yet
	StateReady      = "ready"      // said READY=1 and keeps its watchdog quiet
	StateRestarting = "restarting" // ended; waits before the next start
	StateStopped    = "stopped"    // ended because it was told to
)

// Service is one process to keep running.
type Service struct {
	Name string
	// Command builds the process. env must reach its environment. Called for each start, never twice at once.
	Command func(env []string) (*exec.Cmd, error)
	// Watchdog is the longest silence after READY=1; 0 = none.
	Watchdog time.Duration
	// Mute is set for a foreign program that speaks no sd_notify: it counts as ready while it runs, and gets no NOTIFY_SOCKET.
	Mute bool
	// Hold is why the service may not start yet; "" = it may. See Supervisor.Release.
	Hold string
	// Sockets are closed by Stop, after the service has ended. Command passes them on.
	Sockets []*os.File
}

// Timing is every wait of a Supervisor; tests shorten it.
type Timing struct {
	FirstRestart time.Duration // wait before the first restart
	MostRestart  time.Duration // longest wait; it doubles from the first
	Settled      time.Duration // a service that ran this long starts over with the first wait
	StartLimit   time.Duration // longest time until READY=1
	StopLimit    time.Duration // from SIGTERM to SIGKILL
	AbortLimit   time.Duration // from SIGABRT to SIGKILL after a missed watchdog
	Grace        time.Duration // how long a service that was ready may be away before Healthy says no
}

// DefaultTiming is the image's.
var DefaultTiming = Timing{
	FirstRestart: 100 * time.Millisecond, MostRestart: 30 * time.Second, Settled: time.Minute,
	StartLimit: 2 * time.Minute, StopLimit: 3 * time.Second, AbortLimit: 2 * time.Second, Grace: 90 * time.Second,
}

// Options are what a Supervisor works with. All fields are needed.
type Options struct {
	NotifyPath string // where the sd_notify socket is made; services must be able to reach it
	Reaper     *Reaper
	Log        *Log
	Timing     Timing
	// Changed is called after each change of a service's state, from any goroutine; it may be nil and must not block.
	Changed func(name, state string)
}

// Supervisor runs services. Its methods may be called from any goroutine.
type Supervisor struct {
	Options
	notify *notifier

	mu       sync.Mutex
	services []*service // in the order of Add
	stopping bool
}

// New makes a supervisor that has no services yet and listens on the notify socket.
func New(o Options) (*Supervisor, error) {
	n, err := listenNotify(o.NotifyPath)
	if err != nil {
		return nil, err
	}
	s := &Supervisor{Options: o, notify: n}
	go n.serve(s.noted)
	return s, nil
}

// Add starts to keep the service running, or only lists it where Hold says so.
func (s *Supervisor) Add(svc Service) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopping {
		return fmt.Errorf("start %s: everything is being stopped", svc.Name)
	}
	if s.find(svc.Name) != nil {
		return fmt.Errorf("there is a service %s already", svc.Name)
	}
	v := newService(s, svc)
	s.services = append(s.services, v)
	if svc.Hold == "" {
		v.begin()
	}
	return nil
}

// Release starts a held service; it does nothing to another one.
func (s *Supervisor) Release(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if v := s.find(name); v != nil && !s.stopping {
		v.begin()
	}
}

// Restart ends the service with SIGTERM; it is started again at once. It returns when the old process is gone.
func (s *Supervisor) Restart(name string) error {
	s.mu.Lock()
	v := s.find(name)
	s.mu.Unlock()
	if v == nil {
		return fmt.Errorf("there is no service %s", name)
	}
	v.restart()
	return nil
}

// find needs s.mu.
func (s *Supervisor) find(name string) *service {
	for _, v := range s.services {
		if v.Name == name {
			return v
		}
	}
	return nil
}

func (s *Supervisor) list() []*service {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]*service{}, s.services...)
}

// noted gives a message to the service whose main process sent it. Messages of anybody else are dropped.
func (s *Supervisor) noted(pid int, n note) {
	for _, v := range s.list() {
		if v.noted(pid, n) {
			return
		}
	}
}

// Status describes every service, in the order of Add.
func (s *Supervisor) Status() []rpc.ServiceStatus {
	var list []rpc.ServiceStatus
	for _, v := range s.list() {
		list = append(list, v.statusNow())
	}
	return list
}

// Ready reports whether the service is ready now.
func (s *Supervisor) Ready(name string) bool {
	s.mu.Lock()
	v := s.find(name)
	s.mu.Unlock()
	return v != nil && v.statusNow().State == StateReady
}

// Healthy is nil while every service that was ready once in this boot is ready and reports in time, or has been away for less than
// Grace. A service that never came up is no reason to reset the machine: the next boot would end the same way, and nobody could look.
func (s *Supervisor) Healthy() error {
	for _, v := range s.list() {
		if err := v.healthy(s.Timing.Grace); err != nil {
			return err
		}
	}
	return nil
}

// Stop ends all services one after another, the last added first, and waits for each: SIGTERM, after StopLimit SIGKILL. ctx bounds the
// whole; when it ends the remaining ones are killed. Nothing can be added afterwards.
func (s *Supervisor) Stop(ctx context.Context) {
	s.mu.Lock()
	already := s.stopping
	s.stopping = true
	s.mu.Unlock()
	services := s.list()
	for i := len(services) - 1; i >= 0; i-- {
		services[i].stop(ctx)
	}
	if !already {
		s.notify.conn.Close()
		os.Remove(s.notify.path)
	}
}
