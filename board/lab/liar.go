package lab

import (
	"encoding/binary"
	"fmt"
	"net"
	"strconv"
	"sync"
	"time"
)

// Liar is a time server for fault injection only: a small NTP responder (RFC 5905, mode 4 answers, no
// authentication) whose answers can be made wrong in ways that chronyd refuses to be. Honest time in a lab comes from
// [TimeServer].
type Liar struct {
	// Port is its UDP port on 127.0.0.1.
	Port int

	conn *net.UDPConn
	mu   sync.Mutex
	lie  Lie
	seen int
}

// Lie is what a Liar says. The zero Lie is an honest stratum 1.
type Lie struct {
	Offset         time.Duration // its clock is ahead by this
	Drift          float64       // and runs fast by this (1e-6 is 1 ppm) since it was told so
	Leap           uint8         // leap indicator, 3 = not synchronised
	Stratum        uint8         // 0 means 1; see Kiss
	Kiss           string        // four letters, such as "RATE": a kiss-o'-death instead of an answer
	RootDispersion time.Duration // what it claims about its own error
	Delay          time.Duration // held back before answering: an asymmetric path
	WrongOrigin    bool          // answers with another request's timestamp
	Silent         bool          // does not answer

	since time.Time
}

// NewLiar starts a fault-injecting time server; it ends with the lab.
func (l *Lab) NewLiar() (*Liar, error) {
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		return nil, fmt.Errorf("lab: liar: %w", err)
	}
	s := &Liar{conn: c, Port: c.LocalAddr().(*net.UDPAddr).Port}
	go s.serve()
	l.onClose(func() { c.Close() })
	return s, nil
}

// GuestAddr is the server's address as a guest writes it.
func (s *Liar) GuestAddr() string { return net.JoinHostPort(HostAddress, strconv.Itoa(s.Port)) }

// Addr is the server's address on the workstation.
func (s *Liar) Addr() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(s.Port)) }

// Tell makes it say something else from now on.
func (s *Liar) Tell(lie Lie) {
	lie.since = time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lie = lie
}

// Asked counts the requests so far.
func (s *Liar) Asked() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.seen
}

func (s *Liar) serve() {
	buf := make([]byte, 512)
	for {
		n, from, err := s.conn.ReadFromUDP(buf)
		if err != nil {
			return
		}
		now := time.Now()
		s.mu.Lock()
		s.seen++
		lie := s.lie
		s.mu.Unlock()
		if n < 48 || buf[0]&7 != 3 || lie.Silent { // only clients' requests
			continue
		}
		request := [48]byte(buf[:48])
		if lie.Delay == 0 {
			s.answer(from, &request, lie, now)
			continue
		}
		time.AfterFunc(lie.Delay, func() { s.answer(from, &request, lie, now) })
	}
}

func (s *Liar) answer(to *net.UDPAddr, q *[48]byte, lie Lie, received time.Time) {
	shift := func(t time.Time) uint64 {
		return ntpTime(t.Add(lie.Offset + time.Duration(lie.Drift*float64(t.Sub(lie.since)))))
	}
	var a [48]byte
	a[0] = lie.Leap<<6 | q[0]&0x38 | 4
	a[1], a[2], a[3] = max(1, lie.Stratum), q[2], 0xec // precision 2^-20 s
	binary.BigEndian.PutUint32(a[8:], uint32(lie.RootDispersion.Seconds()*65536))
	copy(a[12:], "LIE")
	if lie.Kiss != "" {
		a[1] = 0
		copy(a[12:16], lie.Kiss)
	}
	binary.BigEndian.PutUint64(a[16:], shift(received))
	copy(a[24:32], q[40:48])
	if lie.WrongOrigin {
		a[31] ^= 1
	}
	binary.BigEndian.PutUint64(a[32:], shift(received))
	binary.BigEndian.PutUint64(a[40:], shift(time.Now()))
	_, _ = s.conn.WriteToUDP(a[:], to) // a lost answer is an answer not given
}

// ntpTime is the 64 bit timestamp of RFC 5905: seconds since 1900 and a binary fraction.
func ntpTime(t time.Time) uint64 {
	return uint64(t.Unix()+2208988800)<<32 | uint64(t.Nanosecond())<<32/1e9
}
