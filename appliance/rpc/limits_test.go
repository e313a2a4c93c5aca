package rpc

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// withoutDescriptors runs f while this process can open no further descriptor. f gets a function that frees one.
func withoutDescriptors(t *testing.T, f func(free func())) {
	t.Helper()
	var old unix.Rlimit
	if err := unix.Prlimit(0, unix.RLIMIT_NOFILE, nil, &old); err != nil {
		t.Fatal(err)
	}
	low := unix.Rlimit{Cur: 64, Max: old.Max}
	if err := unix.Prlimit(0, unix.RLIMIT_NOFILE, &low, nil); err != nil {
		t.Fatal(err)
	}
	defer unix.Prlimit(0, unix.RLIMIT_NOFILE, &old, nil)
	var taken []*os.File
	defer func() {
		for _, f := range taken {
			f.Close()
		}
	}()
	for {
		f, err := os.Open("/dev/null")
		if err != nil {
			break
		}
		taken = append(taken, f)
	}
	f(func() {
		taken[len(taken)-1].Close()
		taken = taken[:len(taken)-1]
	})
}

func TestServesOnAfterDescriptorsRanOut(t *testing.T) {
	path, _ := serve(t, me())
	var early net.Conn
	withoutDescriptors(t, func(free func()) {
		free()
		var err error
		if early, err = net.Dial("unix", path); err != nil { // takes the last one: the server can't accept it
			t.Fatal(err)
		}
		time.Sleep(5 * acceptPause)
	})
	defer early.Close()
	if got, err := echo.Call(t.Context(), NewClient(path), "x"); err != nil || got != "me:x" {
		t.Fatalf("after a moment without descriptors: %q, %v", got, err)
	}
}

func TestOneProcessCanNotTakeAllConnections(t *testing.T) {
	path, _ := serve(t, me())
	var all []net.Conn
	defer func() {
		for _, c := range all {
			c.Close()
		}
	}()
	for range MaxConnections + 8 {
		c, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, c)
	}
	// Which of them come too late is the scheduler's choice.
	var closed atomic.Int32
	var wg sync.WaitGroup
	for _, c := range all {
		wg.Go(func() {
			c.SetReadDeadline(time.Now().Add(500 * time.Millisecond))
			if _, err := c.Read(make([]byte, 1)); err == io.EOF {
				closed.Add(1)
			}
		})
	}
	wg.Wait()
	if n := closed.Load(); n != 8 {
		t.Fatalf("%d connections of %d were closed, want 8", n, len(all))
	}
	for _, c := range all {
		c.Close()
	}
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		got, err := echo.Call(t.Context(), NewClient(path), "x")
		if err == nil && got == "me:x" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("a place that was left is not given again:", err)
		}
	}
}

func TestClientBoundsItsCallsInFlight(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	var now, most atomic.Int32
	s := NewServer(me())
	Handle(s, echo, func(_ context.Context, _ Caller, v string) (string, error) {
		n := now.Add(1)
		defer now.Add(-1)
		for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
		}
		time.Sleep(20 * time.Millisecond)
		return v, nil
	}, "me")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); s.Serve(ctx, l) }()
	defer func() { cancel(); <-done }()
	c := NewClient(path)
	defer c.Close()
	var wg sync.WaitGroup
	for range 3 * maxCalls {
		wg.Go(func() {
			if _, err := echo.Call(ctx, c, "x"); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := most.Load(); n > maxCalls || n < 2 {
		t.Fatalf("%d calls at once, at most %d should be", n, maxCalls)
	}
	late, stop := context.WithTimeout(ctx, 10*time.Millisecond)
	defer stop()
	for range maxCalls {
		c.calls <- struct{}{}
	}
	if _, err := echo.Call(late, c, "x"); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatal("a call that waits for its turn does not end with its context:", err)
	}
}

func TestRefusesRequestsLargerThanAnyThatExists(t *testing.T) {
	path, _ := serve(t, me())
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.Write(append(binary.BigEndian.AppendUint32(nil, MaxRequest+1), 'x'))
	conn.SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, err := conn.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("the server waits for it: %v", err)
	}
	if _, err := echo.Call(t.Context(), NewClient(path), strings.Repeat("x", MaxRequest)); !errors.Is(err, ErrRefused) {
		t.Fatalf("the client sent it: %v", err)
	}
}

// TestACutReplyIsNotContinued has the receiver stop reading in the middle of a large element: the error that ends the stream must not be
// written behind half a frame, where it would be read as the rest of it.
func TestACutReplyIsNotContinued(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	s := NewServer(me())
	s.stall = 50 * time.Millisecond
	sent, reading := make(chan error, 1), make(chan struct{})
	big := Stream[Empty, string]{"test.Big"}
	HandleStream(s, big, func(_ context.Context, _ Caller, _ Empty, send func(string) error) error {
		err := send(strings.Repeat("x", 8<<20))
		sent <- err
		<-reading
		return err
	}, "me")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); s.Serve(ctx, l) }()
	defer func() { cancel(); <-done }()
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := newWire(conn).request(request{Method: big.Name, Body: []byte("{}")}); err != nil {
		t.Fatal(err)
	}
	if err := <-sent; err == nil {
		t.Fatal("a receiver that does not read did not end the stream")
	}
	drained := make(chan []byte)
	go func() {
		conn.SetReadDeadline(time.Now().Add(5 * time.Second))
		b, _ := io.ReadAll(conn)
		drained <- b
	}()
	time.Sleep(50 * time.Millisecond)
	close(reading)
	if b := <-drained; strings.Contains(string(b), `"kind"`) {
		t.Fatal("an error was written into the middle of another frame")
	}
	if err := (&wire{w: io.Discard}).reply(reply{Body: make([]byte, MaxFrame)}); !errors.Is(err, errTooLarge) {
		t.Fatal(err)
	}
}
