package rpc

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"guardhouse/appliance/policy"
)

// counted is an element that tells how often it was encoded.
type counted struct{ times *atomic.Int32 }

func (c counted) MarshalJSON() ([]byte, error) {
	c.times.Add(1)
	return []byte(`"x"`), nil
}

// serveShared serves one stream until the test ends.
func serveShared[E any](t *testing.T, m Stream[Empty, E], fn func(send func(*Shared[E]) error) error) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "s")
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	s := NewServer(me())
	HandleSharedStream(s, m, func(_ context.Context, _ Caller, _ Empty, send func(*Shared[E]) error) error { return fn(send) }, "me")
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); s.Serve(ctx, l) }()
	t.Cleanup(func() { cancel(); <-done })
	return path
}

func TestASharedElementIsEncodedOnceAndSurvivesItsReceivers(t *testing.T) {
	var times atomic.Int32
	e := Share(counted{&times})
	m := Stream[Empty, counted]{"test.Counted"}
	path := serveShared(t, m, func(send func(*Shared[counted]) error) error {
		if err := send(e); err != nil {
			return err
		}
		return send(e) // its bytes are not wiped by the first
	})
	read := Stream[Empty, string](m)
	var all sync.WaitGroup
	for range 3 {
		all.Go(func() {
			var got []string
			err := read.Open(context.Background(), NewClient(path), Empty{}, func(s string) error { got = append(got, s); return nil })
			if err != nil || len(got) != 2 || got[0] != "x" || got[1] != "x" {
				t.Errorf("%q, %v", got, err)
			}
		})
	}
	all.Wait()
	if n := times.Load(); n != 1 {
		t.Errorf("encoded %d times", n)
	}
}

// largest is a snapshot that nearly fills an element.
func largest() policy.Snapshot {
	const each = 4 << 10
	note := strings.Repeat("n", each-512)
	state := policy.NewState()
	for i := range MaxElement / each {
		id := fmt.Sprintf("%064X", i)
		state.Hosts[id] = policy.Host{ID: id, Name: fmt.Sprint("host", i), Class: "default", Note: note}
	}
	return policy.Snapshot{Index: 7, NodeID: "node1", State: state}
}

// TestTheLargestSnapshotReachesThreeWatchersForTheMemoryOfOne: what is allocated while all three are served is no more than encoding
// it once takes, measured in the same run.
func TestTheLargestSnapshotReachesThreeWatchersForTheMemoryOfOne(t *testing.T) {
	e := Share(largest())
	path := serveShared(t, LedgerWatch, func(send func(*Shared[policy.Snapshot]) error) error { return send(e) })
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	if _, err := json.Marshal(e.Elem()); err != nil {
		t.Fatal(err)
	}
	runtime.ReadMemStats(&after)
	once := after.TotalAlloc - before.TotalAlloc
	runtime.ReadMemStats(&before)
	var sizes [3]int64
	var all sync.WaitGroup
	for i := range sizes {
		all.Go(func() {
			conn, err := net.Dial("unix", path)
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			if err := newWire(conn).request(request{LedgerWatch.Name, []byte("{}")}); err != nil {
				t.Error(err)
			}
			in := bufio.NewReader(conn)
			var head [4]byte
			if _, err := io.ReadFull(in, head[:]); err != nil {
				t.Error(err)
			}
			sizes[i], err = io.Copy(io.Discard, io.LimitReader(in, int64(binary.BigEndian.Uint32(head[:]))))
			if err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	runtime.ReadMemStats(&after)
	size := sizes[0]
	if size < MaxElement/10*9 || size > MaxElement || sizes != [3]int64{size, size, size} {
		t.Fatalf("elements of %d bytes", sizes)
	}
	got := after.TotalAlloc - before.TotalAlloc
	t.Logf("3 elements of %d bytes: %d allocated, %d to encode one", size, got, once)
	if got > once+once/4 {
		t.Errorf("%d bytes were allocated to send %d to each; encoding it takes %d", got, size, once)
	}
	// And a receiver takes it.
	hosts := 0
	err := LedgerWatch.Open(context.Background(), NewClient(path), Empty{}, func(s policy.Snapshot) error { hosts = len(s.State.Hosts); return nil })
	if err != nil || hosts != len(e.Elem().State.Hosts) {
		t.Errorf("%d hosts, %v", hosts, err)
	}
}
