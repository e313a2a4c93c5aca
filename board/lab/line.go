package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"regexp"
	"sync"
	"time"
)

// Sizes of what is kept of a serial line.
const (
	transcriptMax = 1 << 20  // bytes in memory; the oldest half goes when it is full
	lineLogMax    = 16 << 20 // bytes in the log file of one boot
)

// Line is a node's serial line, seen from the other end of the cable. Everything received is kept, bounded, in a
// transcript and in a log file. Expect and Send may be used by one goroutine each; Transcript by any.
type Line struct {
	conn net.Conn
	path string

	mu      sync.Mutex
	buf     []byte        // transcript
	dropped int64         // bytes received before buf[0]
	next    int           // index in buf where the next Expect begins
	changed chan struct{} // closed and replaced when buf grows or the line ends
	ended   bool
}

// ErrLineEnded says that the node went away while something was expected on its serial line.
var ErrLineEnded = errors.New("the serial line ended (the node stopped)")

// newLine takes over conn and logs to the file at path; the logs of the three boots before are kept as path.1 to .3.
func newLine(conn net.Conn, path string) (*Line, error) {
	for i := 2; i >= 0; i-- {
		from := path
		if i > 0 {
			from = fmt.Sprintf("%s.%d", path, i)
		}
		if err := os.Rename(from, fmt.Sprintf("%s.%d", path, i+1)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	s := &Line{conn: conn, path: path, changed: make(chan struct{})}
	go s.read(f)
	return s, nil
}

func (s *Line) read(f *os.File) {
	defer f.Close()
	logged := 0
	buf := make([]byte, 4096)
	for {
		n, err := s.conn.Read(buf)
		if n > 0 && logged < lineLogMax {
			// A log that cannot be written must not stop the line.
			_, _ = f.Write(buf[:n])
			logged += n
		}
		s.mu.Lock()
		s.buf = append(s.buf, buf[:n]...)
		if len(s.buf) > transcriptMax {
			cut := len(s.buf) - transcriptMax/2
			s.buf = append([]byte(nil), s.buf[cut:]...)
			s.next = max(0, s.next-cut)
			s.dropped += int64(cut)
		}
		s.ended = err != nil
		close(s.changed)
		s.changed = make(chan struct{})
		s.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// Expect waits until re matches what arrived after the previous match, and returns the match and its groups. Text
// arrives in pieces, so that a match may be tried in the middle of a line: end re with `\r?\n` when it ends with
// something of variable length. On failure the error holds the last lines seen and the path of the log.
func (s *Line) Expect(ctx context.Context, re *regexp.Regexp) ([]string, error) {
	for {
		s.mu.Lock()
		if at := re.FindSubmatchIndex(s.buf[s.next:]); at != nil {
			groups := make([]string, len(at)/2)
			for i := range groups {
				if at[2*i] >= 0 {
					groups[i] = string(s.buf[s.next+at[2*i] : s.next+at[2*i+1]])
				}
			}
			s.next += at[1]
			s.mu.Unlock()
			return groups, nil
		}
		changed, ended := s.changed, s.ended
		s.mu.Unlock()
		if ended {
			return nil, s.failure(re, ErrLineEnded)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, s.failure(re, ctx.Err())
		}
	}
}

func (s *Line) failure(re *regexp.Regexp, err error) error {
	return fmt.Errorf("serial line: expected %q: %w\nlast seen:\n%s\nlog: %s", re, err, tail(s.path), s.path)
}

// Send types text and a carriage return, at once.
func (s *Line) Send(text string) error { return s.Write([]byte(text + "\r")) }

// Write sends raw bytes. It gives up after 10 s without progress (a guest that does not read).
func (s *Line) Write(b []byte) error {
	_ = s.conn.SetWriteDeadline(time.Now().Add(10 * time.Second))
	if _, err := s.conn.Write(b); err != nil {
		return fmt.Errorf("serial line: send: %w", err)
	}
	return nil
}

// Transcript returns a copy of what is kept of the line, raw.
func (s *Line) Transcript() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return string(s.buf)
}

// LogPath is the file with everything received in this boot (the first 16 MiB).
func (s *Line) LogPath() string { return s.path }

// NoLeave is a leave key that nobody can type.
const NoLeave = -1

// ServeUnix lets terminal programs attach through a unix socket at path (socat -,raw,echo=0 unix-connect:path), one
// at a time, until the node stops or ctx ends.
func (s *Line) ServeUnix(ctx context.Context, path string) error {
	ln, err := net.Listen("unix", path)
	if err != nil {
		return fmt.Errorf("serial line: %w", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	context.AfterFunc(ctx, func() { ln.Close() })
	go func() {
		defer cancel()
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			err = s.Attach(ctx, c, c, NoLeave)
			c.Close()
			if errors.Is(err, ErrLineEnded) {
				return
			}
		}
	}()
	return nil
}

// Attach joins a terminal to the line until in ends, ctx ends, the node stops, or the byte leave is typed (0x1d is
// Ctrl-]; or [NoLeave]). What was received before is written first. Making the terminal raw is the caller's. A
// terminal too slow for the line misses what the transcript forgot; Expect goes on working beside it.
func (s *Line) Attach(ctx context.Context, in io.Reader, out io.Writer, leave int) error {
	typed := make(chan error, 1)
	go func() {
		buf := make([]byte, 1024)
		for {
			n, err := in.Read(buf)
			if at := bytes.IndexByte(buf[:n], byte(leave)); at >= 0 && leave != NoLeave {
				n, err = at, io.EOF
			}
			if n > 0 {
				if werr := s.Write(buf[:n]); werr != nil {
					err = werr
				}
			}
			if err != nil {
				typed <- err
				return
			}
		}
	}()
	at := int64(0)
	for leaving := error(nil); ; {
		s.mu.Lock()
		changed, ended := s.changed, s.ended
		news := bytes.Clone(s.buf[max(0, at-s.dropped):])
		at = s.dropped + int64(len(s.buf))
		s.mu.Unlock()
		if _, err := out.Write(news); err != nil {
			return err
		}
		switch {
		case leaving != nil:
			if errors.Is(leaving, io.EOF) {
				return nil
			}
			return leaving
		case ended:
			return ErrLineEnded
		}
		select {
		case <-changed:
		case leaving = <-typed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
