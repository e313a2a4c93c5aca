package lab

import (
	"bufio"
	"encoding/binary"
	"io"
	"net"
	"sync"
	"sync/atomic"
)

// frameMax bounds one Ethernet frame on the switch: QEMU's own limit for stream sockets is 4 KiB + 64 KiB.
const frameMax = 68 << 10

// Switch is a learning Ethernet switch for QEMU's stream sockets (4 byte big-endian length, then the frame). It
// runs in this process and touches no interface of the workstation. All methods may be called at any time.
type Switch struct {
	frames atomic.Int64

	mu     sync.Mutex
	ports  map[*port]struct{}
	macs   map[[6]byte]*port
	group  map[string]int // node name -> partition; absent is 0
	closed bool
}

// port is one plugged cable. Frames that a slow guest does not take are dropped, as a real switch does.
type port struct {
	name string
	conn net.Conn
	out  chan []byte
	gone chan struct{}
}

func newSwitch() *Switch {
	return &Switch{ports: map[*port]struct{}{}, macs: map[[6]byte]*port{}, group: map[string]int{}}
}

// Partition splits the network: nodes of one group hear each other only; nodes not named form one more group.
func (s *Switch) Partition(groups ...[]string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.group = map[string]int{}
	for i, names := range groups {
		for _, n := range names {
			s.group[n] = i + 1
		}
	}
}

// Heal joins all partitions.
func (s *Switch) Heal() { s.Partition() }

// Frames counts the frames delivered so far.
func (s *Switch) Frames() int64 { return s.frames.Load() }

// plug connects a node's cable and serves it until conn ends.
func (s *Switch) plug(name string, conn net.Conn) {
	p := &port{name: name, conn: conn, out: make(chan []byte, 512), gone: make(chan struct{})}
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		conn.Close()
		return
	}
	s.ports[p] = struct{}{}
	s.mu.Unlock()
	go p.write()
	go func() {
		s.read(p)
		s.unplug(p)
	}()
}

func (s *Switch) unplug(p *port) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, there := s.ports[p]; !there {
		return
	}
	delete(s.ports, p)
	for m, q := range s.macs {
		if q == p {
			delete(s.macs, m)
		}
	}
	close(p.gone)
	p.conn.Close()
}

func (s *Switch) close() {
	s.mu.Lock()
	s.closed = true
	var list []*port
	for p := range s.ports {
		list = append(list, p)
	}
	s.mu.Unlock()
	for _, p := range list {
		s.unplug(p)
	}
}

func (s *Switch) read(p *port) {
	r := bufio.NewReaderSize(p.conn, 64<<10)
	var head [4]byte
	for {
		if _, err := io.ReadFull(r, head[:]); err != nil {
			return
		}
		n := binary.BigEndian.Uint32(head[:])
		if n > frameMax {
			return // out of step: nothing after this can be trusted
		}
		frame := make([]byte, 4+n)
		copy(frame, head[:])
		if _, err := io.ReadFull(r, frame[4:]); err != nil {
			return
		}
		if n >= 14 {
			s.forward(p, frame)
		}
	}
}

// forward learns the source address and delivers frame (with its length) to one port, or to all of the partition.
func (s *Switch) forward(from *port, frame []byte) {
	dst, src := [6]byte(frame[4:10]), [6]byte(frame[10:16])
	s.mu.Lock()
	defer s.mu.Unlock()
	if src[0]&1 == 0 && len(s.macs) < 4096 {
		s.macs[src] = from
	}
	if to := s.macs[dst]; to != nil && dst[0]&1 == 0 {
		s.deliver(from, to, frame)
		return
	}
	for to := range s.ports {
		s.deliver(from, to, frame)
	}
}

func (s *Switch) deliver(from, to *port, frame []byte) {
	if from == to || s.group[from.name] != s.group[to.name] {
		return
	}
	select {
	case to.out <- frame:
		s.frames.Add(1)
	default:
	}
}

func (p *port) write() {
	for {
		select {
		case f := <-p.out:
			if _, err := p.conn.Write(f); err != nil {
				return // the reader sees the end as well and unplugs
			}
		case <-p.gone:
			return
		}
	}
}
