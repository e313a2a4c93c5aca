package rpc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"guardhouse/appliance/policy"
)

var (
	echo   = Method[string, string]{"test.Echo"}
	refuse = Method[Empty, Empty]{"test.Refuse"}
	hang   = Method[Empty, Empty]{"test.Hang"}
	count  = Stream[int, int]{"test.Count"}
)

func serve(t *testing.T, uids UIDs) (string, *Server) {
	t.Helper()
	dir := t.TempDir()
	os.Chmod(dir, 0o755)
	path := filepath.Join(dir, "s")
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	s := NewServer(uids)
	Handle(s, echo, func(_ context.Context, c Caller, v string) (string, error) { return c.Process + ":" + v, nil }, "me")
	Handle(s, refuse, func(context.Context, Caller, Empty) (Empty, error) {
		return Empty{}, fmt.Errorf("outer: %w", ErrNoQuorum.With("one of three answers"))
	}, "me")
	Handle(s, hang, func(ctx context.Context, _ Caller, _ Empty) (Empty, error) { <-ctx.Done(); return Empty{}, ctx.Err() }, "me", "other")
	HandleStream(s, count, func(ctx context.Context, _ Caller, n int, send func(int) error) error {
		for i := range n {
			if err := send(i); err != nil {
				return err
			}
		}
		return nil
	}, "me")
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); s.Serve(ctx, l) }()
	t.Cleanup(func() { cancel(); <-done })
	return path, s
}

func me() UIDs { return UIDs{"me": uint32(os.Getuid())} }

func TestCallsAndStreams(t *testing.T) {
	path, _ := serve(t, me())
	c := NewClient(path)
	defer c.Close()
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			got, err := echo.Call(t.Context(), c, fmt.Sprint(i))
			if err != nil || got != fmt.Sprintf("me:%d", i) {
				t.Errorf("%q %v", got, err)
			}
		})
	}
	wg.Wait()
	sum := 0
	if err := count.Open(t.Context(), c, 100, func(n int) error { sum += n; return nil }); err != nil || sum != 4950 {
		t.Fatal(sum, err)
	}
	_, err := refuse.Call(t.Context(), c, Empty{})
	if !errors.Is(err, ErrNoQuorum) || !strings.Contains(err.Error(), "one of three") {
		t.Fatal(err)
	}
	if got, err := echo.Call(t.Context(), c, "after an error"); err != nil || got != "me:after an error" {
		t.Fatal(got, err)
	}
	if _, err := (Method[Empty, Empty]{"test.None"}).Call(t.Context(), c, Empty{}); !errors.Is(err, ErrUnknownMethod) {
		t.Fatal(err)
	}
}

func TestRefusesCallersOfAnotherUID(t *testing.T) {
	path, _ := serve(t, UIDs{"someone-else": uint32(os.Getuid()) + 1})
	if _, err := echo.Call(t.Context(), NewClient(path), "x"); !errors.Is(err, ErrNotAllowed) && !errors.Is(err, ErrLost) {
		t.Fatalf("a caller with a wrong uid got %v", err)
	}
	path, _ = serve(t, UIDs{"other": uint32(os.Getuid())})
	if _, err := echo.Call(t.Context(), NewClient(path), "x"); !errors.Is(err, ErrNotAllowed) {
		t.Fatalf("a process that the method does not allow got %v", err)
	}
}

// TestHelperCall is not a test of its own: TestRefusesAProcessRunningAsAnotherUser runs it under another uid.
func TestHelperCall(t *testing.T) {
	path := os.Getenv("RPC_HELPER_SOCKET")
	if path == "" {
		return
	}
	_, err := echo.Call(t.Context(), NewClient(path), "x")
	fmt.Println("RESULT", err)
}

func TestRefusesAProcessRunningAsAnotherUser(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root to start a process under another uid")
	}
	path, _ := serve(t, me())
	for dir := filepath.Dir(path); dir != "/"; dir = filepath.Dir(dir) {
		if st, err := os.Stat(dir); err == nil && st.Mode()&0o5 != 0o5 {
			os.Chmod(dir, st.Mode()|0o5)
			t.Cleanup(func() { os.Chmod(dir, st.Mode()) })
		}
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	// The test binary lies in a folder that only root may enter: hand it over as an open file.
	f, err := os.Open(exe)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	cmd := exec.Command("/proc/self/fd/3", "-test.run=^TestHelperCall$")
	cmd.ExtraFiles = []*os.File{f}
	cmd.Dir = "/"
	cmd.Env = []string{"RPC_HELPER_SOCKET=" + path}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 12345, Gid: 12345}}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if !bytes.Contains(out, []byte("RESULT")) || bytes.Contains(out, []byte("<nil>")) {
		t.Fatalf("a process of another user was answered: %s", out)
	}
}

func TestClientBelievesOnlyTheExpectedServer(t *testing.T) {
	path, _ := serve(t, me())
	if _, err := echo.Call(t.Context(), NewProvedClient(path, uint32(os.Getuid())+1), "x"); !errors.Is(err, ErrNotAllowed) {
		t.Fatal(err)
	}
	if _, err := echo.Call(t.Context(), NewProvedClient(path, uint32(os.Getuid())), "x"); err != nil {
		t.Fatal(err)
	}
}

func TestHandlerEndsWhenTheCallerGoesAway(t *testing.T) {
	path, _ := serve(t, me())
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	start := time.Now()
	if _, err := hang.Call(ctx, NewClient(path), Empty{}); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatal(err)
	}
	if time.Since(start) > 5*time.Second {
		t.Fatal("the deadline did not end the call")
	}
	// serve's cleanup waits for all handlers: it would hang if this one had not seen its caller leave.
}

func TestRefusesOversizedAndTruncatedFrames(t *testing.T) {
	path, _ := serve(t, me())
	for name, frame := range map[string][]byte{
		"announces 4 GiB":                {0xff, 0xff, 0xff, 0xff, 'x'},
		"a method longer than the frame": {0, 0, 0, 3, 'a', 'b', 'c'},
		"empty":                          {0, 0, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			conn, err := net.Dial("unix", path)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			conn.Write(frame)
			conn.SetReadDeadline(time.Now().Add(5 * time.Second))
			if n, err := conn.Read(make([]byte, 1)); err == nil {
				t.Fatalf("answered with %d bytes", n)
			} else if errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatal("the connection was kept")
			}
		})
	}
}

func TestIdleConnectionsSurviveARestart(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "s")
	c := NewClient(path)
	for range 3 {
		l, err := Listen(path)
		if err != nil {
			t.Fatal(err)
		}
		s := NewServer(me())
		Handle(s, echo, func(_ context.Context, _ Caller, v string) (string, error) { return v, nil }, "me")
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); s.Serve(ctx, l) }()
		if got, err := echo.Call(t.Context(), c, "x"); err != nil || got != "x" {
			t.Fatal(got, err)
		}
		cancel()
		<-done
	}
}

func TestTrustedTimeComesOnlyFromTheClocksUID(t *testing.T) {
	dir := t.TempDir()
	os.Mkdir(filepath.Join(dir, "clock.d"), 0o755)
	l, err := Listen(SocketPath(dir, Clock))
	if err != nil {
		t.Fatal(err)
	}
	s := NewServer(me())
	want := policy.TrustedTime{Boot: "b", BootTime: BootTime(), UTC: time.Unix(1800000000, 0).UTC(), Bound: time.Second, Expires: BootTime() + time.Hour}
	ServeTime(s, func(ctx context.Context, _ Caller, _ Empty, send func(policy.TrustedTime) error) error {
		send(want)
		<-ctx.Done()
		return nil
	}, "me")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); s.Serve(ctx, l) }()
	defer func() { cancel(); <-done }()

	good := WatchTime(ctx, dir, uint32(os.Getuid()))
	bad := WatchTime(ctx, dir, uint32(os.Getuid())+1)
	for deadline := time.Now().Add(5 * time.Second); good.Changes() == 0; {
		if time.Now().After(deadline) {
			t.Fatal("no time arrived")
		}
		time.Sleep(5 * time.Millisecond)
	}
	if _, _, ok := good.Now(); !ok {
		t.Fatal("the clock's time was not believed")
	}
	if _, _, ok := bad.Now(); ok || bad.Changes() != 0 {
		t.Fatal("a time was believed that another uid had sent")
	}
}

// TestTheLastTimeIsKeptWhenTheClockDies: until it expires, and not a moment longer.
func TestTheLastTimeIsKeptWhenTheClockDies(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "clock.d"), 0o755); err != nil {
		t.Fatal(err)
	}
	l, err := Listen(SocketPath(dir, Clock))
	if err != nil {
		t.Fatal(err)
	}
	s := NewServer(me())
	value := policy.TrustedTime{Boot: "b", BootTime: BootTime(), UTC: time.Unix(1800000000, 0).UTC(), Bound: time.Second, DriftPPM: 100, Expires: BootTime() + time.Hour}
	ServeTime(s, func(ctx context.Context, _ Caller, _ Empty, send func(policy.TrustedTime) error) error {
		send(value)
		<-ctx.Done()
		return nil
	}, "me")
	ctx, die := context.WithCancel(t.Context())
	dead := make(chan struct{})
	go func() { defer close(dead); s.Serve(ctx, l) }()
	src := WatchTime(t.Context(), dir, uint32(os.Getuid()))
	for deadline := time.Now().Add(5 * time.Second); src.Changes() == 0; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("no time arrived")
		}
	}
	event := src.Event()
	die()
	<-dead
	time.Sleep(300 * time.Millisecond) // the stream is gone and was tried again
	select {
	case <-event:
		t.Error("the clock's death woke everybody")
	default:
	}
	if _, _, ok := src.Now(); !ok || src.Changes() != 1 {
		t.Errorf("trusted %v after %d values", ok, src.Changes())
	}
	last := src.Get()
	if _, _, ok := last.At(last.Expires - 1); !ok {
		t.Error("it ended before its time")
	}
	if _, _, ok := last.At(last.Expires); ok {
		t.Error("it outlived its time")
	}
}

// FuzzReadFrame: whatever is read as a frame is what writing it gives, and nothing else is.
func FuzzReadFrame(f *testing.F) {
	var b bytes.Buffer
	w := newWire(&b)
	w.request(request{"hsm.Sign", []byte(`{"ref":"x"}`)})
	w.reply(reply{Body: []byte("{}")})
	w.reply(reply{Body: []byte("[1]"), More: true})
	w.reply(reply{Err: ErrNoQuorum})
	w.reply(reply{})
	for b.Len() > 0 {
		f.Add(b.Next(5 + int(b.Bytes()[3]) - 1))
	}
	f.Add([]byte{0, 0, 0, 2, 9, '}'})
	f.Add([]byte{0, 0, 0, 0})
	f.Add([]byte{0xff, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		var again bytes.Buffer
		in := bytes.NewReader(b)
		r := wire{r: &inbox{r: in}}
		if q, err := r.readRequest(); err == nil {
			if err := newWire(&again).request(q); err != nil || !bytes.Equal(again.Bytes(), b[:len(b)-in.Len()-r.r.buffered()]) {
				t.Errorf("a request that is written otherwise: %q %v", again.Bytes(), err)
			}
		}
		r = wire{r: &inbox{r: bytes.NewReader(b)}}
		rep, err := r.readReply(MaxFrame)
		if err != nil {
			return
		}
		again.Reset()
		w := newWire(&again)
		said := reply{Body: bytes.Clone(rep.Body), Err: rep.Err, More: rep.More}
		if err := w.reply(rep); err != nil { // wipes the body
			t.Fatal(err)
		}
		if got, err := w.readReply(MaxFrame); err != nil || !reflect.DeepEqual(got, said) && len(got.Body)+len(said.Body) > 0 {
			t.Errorf("%+v, %v", got, err)
		}
	})
}

// TestKeepsNothingOfWhatItRead: the reader's own memory must not outlive the buffer that the caller wipes.
func TestKeepsNothingOfWhatItRead(t *testing.T) {
	var b bytes.Buffer
	w := newWire(&b)
	for range 3 {
		if err := w.reply(reply{Body: []byte(`{"pin":"1234-secret"}`)}); err != nil {
			t.Fatal(err)
		}
	}
	for range 3 {
		if rep, err := w.readReply(MaxFrame); err != nil || !bytes.Contains(rep.Body, []byte("secret")) {
			t.Fatalf("%q %v", rep.Body, err)
		}
	}
	if bytes.Contains(w.r.buf[:], []byte("secret")) || bytes.Contains(w.out[:cap(w.out)], []byte("secret")) {
		t.Error("a secret stays in the wire's memory")
	}
}
