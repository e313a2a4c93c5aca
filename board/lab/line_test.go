package lab

import (
	"bytes"
	"context"
	"errors"
	"net"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"
)

func testLine(t *testing.T) (*Line, net.Conn) {
	t.Helper()
	guest, ours := net.Pipe()
	s, err := newLine(ours, filepath.Join(t.TempDir(), "serial.log"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { guest.Close() })
	return s, guest
}

func TestExpectGoesForwardAndExplainsFailure(t *testing.T) {
	s, guest := testLine(t)
	go func() { _, _ = guest.Write([]byte("login: one\r\nlogin: two\r\n")) }()
	re := regexp.MustCompile(`login: (\w+)\r\n`)
	for _, want := range []string{"one", "two"} {
		m, err := s.Expect(t.Context(), re)
		if err != nil || m[1] != want {
			t.Fatalf("got %q %v, want %s", m, err, want)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := s.Expect(ctx, re)
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "login: two") || !strings.Contains(err.Error(), s.LogPath()) {
		t.Errorf("got %v", err)
	}
	guest.Close()
	if _, err := s.Expect(t.Context(), re); !errors.Is(err, ErrLineEnded) {
		t.Errorf("got %v", err)
	}
}

func TestTranscriptIsBounded(t *testing.T) {
	s, guest := testLine(t)
	block := bytes.Repeat([]byte("x"), 64<<10)
	for range 3 * transcriptMax / len(block) {
		if _, err := guest.Write(block); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := guest.Write([]byte("end")); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Expect(t.Context(), regexp.MustCompile("end")); err != nil {
		t.Fatal(err)
	}
	if n := len(s.Transcript()); n > transcriptMax {
		t.Errorf("transcript of %d bytes", n)
	}
}

func TestTerminalAttachesAndLeaves(t *testing.T) {
	s, guest := testLine(t)
	go func() { _, _ = guest.Write([]byte("before ")) }()
	if _, err := s.Expect(t.Context(), regexp.MustCompile("before ")); err != nil {
		t.Fatal(err)
	}
	keys, terminal := net.Pipe()
	screen := &bounded{}
	left := make(chan error, 1)
	go func() { left <- s.Attach(t.Context(), terminal, screen, 0x1d) }()
	if _, err := keys.Write([]byte("hi")); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 2)
	if _, err := guest.Read(got); err != nil || string(got) != "hi" {
		t.Fatalf("%q %v", got, err)
	}
	if _, err := guest.Write([]byte("after")); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Expect(t.Context(), regexp.MustCompile("after")); err != nil {
		t.Fatal(err)
	}
	if _, err := keys.Write([]byte{0x1d}); err != nil {
		t.Fatal(err)
	}
	if err := <-left; err != nil {
		t.Error(err)
	}
	if screen.String() != "before after" {
		t.Errorf("screen: %q", screen.String())
	}
}

// bounded is a screen that two goroutines may use.
type bounded struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *bounded) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *bounded) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}
