package clock

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// raw is a Clock that only reads: nothing here may touch the clock of the machine that runs the tests.
type raw struct{ start time.Time }

func (r raw) Read() Reading        { d := time.Since(r.start); return Reading{d, d, r.start.Add(d)} }
func (raw) Step(time.Time) error   { return errors.New("not permitted") }
func (raw) Rate(ppm float64) error { return errors.New("not permitted") }
func (raw) Applied() float64       { return 0 }

// responder answers every question with what reply makes of it.
func responder(t testing.TB, reply func(question []byte) []byte) (address string) {
	t.Helper()
	return responderTo(t, func(_ int, question []byte) []byte { return reply(question) })
}

// responderTo also tells the port that asks.
func responderTo(t testing.TB, reply func(port int, question []byte) []byte) (address string) {
	t.Helper()
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	go func() {
		b := make([]byte, 2048)
		for {
			n, from, err := c.ReadFromUDP(b)
			if err != nil {
				return
			}
			if r := reply(from.Port, b[:n]); r != nil {
				c.WriteToUDP(r, from)
			}
		}
	}()
	return c.LocalAddr().String()
}

// answer is a valid one at the time utc, whose seconds are cut to 32 bits as NTP does.
func answer(question []byte, utc time.Time) []byte {
	b := make([]byte, 48)
	b[0], b[1], b[2], b[3] = 0<<6|4<<3|4, 2, 6, 0xe8
	copy(b[24:32], question[40:48])
	stamp := func(at []byte, u time.Time) {
		binary.BigEndian.PutUint32(at, uint32(u.Unix()+2208988800))
		binary.BigEndian.PutUint32(at[4:], uint32(uint64(u.Nanosecond())<<32/1e9))
	}
	stamp(b[16:], utc.Add(-time.Minute))
	stamp(b[32:], utc)
	stamp(b[40:], utc)
	return b
}

func ask(t *testing.T, s Server, keys ...Key) (Sample, error) {
	t.Helper()
	return askWithin(t, 2*time.Second, s, keys...)
}

func askWithin(t *testing.T, limit time.Duration, s Server, keys ...Key) (Sample, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	return QueryNTP(raw{time.Now()}, func(id uint16) (Key, bool) {
		for _, k := range keys {
			if k.ID == id {
				return k, true
			}
		}
		return Key{}, false
	})(ctx, s)
}

func TestBothErasOfNTPAreRead(t *testing.T) {
	for _, utc := range []time.Time{
		time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC),
		time.Date(2036, 2, 7, 6, 28, 15, 5e8, time.UTC),
		time.Date(2036, 2, 7, 6, 28, 16, 5e8, time.UTC),
		time.Date(2090, 1, 1, 0, 0, 0, 0, time.UTC),
	} {
		n, err := ask(t, Server{Address: responder(t, func(q []byte) []byte { return answer(q, utc) })})
		if err != nil || n.UTC.Sub(utc).Abs() > time.Second || n.Distance > time.Second {
			t.Errorf("%v was read as %v +- %v, %v", utc, n.UTC, n.Distance, err)
		}
	}
}

func TestRefusesAnswersThatAreNone(t *testing.T) {
	now := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	for name, spoil := range map[string]func(b []byte) []byte{
		"kiss of death":     func(b []byte) []byte { b[1] = 0; copy(b[12:], "RATE"); return b },
		"not synchronised":  func(b []byte) []byte { b[0] |= 3 << 6; return b },
		"stratum 16":        func(b []byte) []byte { b[1] = 16; return b },
		"another's origin":  func(b []byte) []byte { b[30] ^= 1; return b },
		"own question":      func(b []byte) []byte { b[0] = 4<<3 | 3; return b },
		"short":             func(b []byte) []byte { return b[:47] },
		"before its source": func(b []byte) []byte { copy(b[16:24], []byte{0xff, 0, 0, 0, 0, 0, 0, 0}); return b },
		"huge dispersion":   func(b []byte) []byte { b[8] = 1; return b },
	} {
		_, err := ask(t, Server{Address: responder(t, func(q []byte) []byte { return spoil(answer(q, now)) })})
		if err == nil {
			t.Errorf("%s: believed", name)
		}
		if kissed(err) != (name == "kiss of death") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestAServerWithAKeyMustProveIt(t *testing.T) {
	now := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	key := Key{7, "sha256", []byte("0123456789abcdef0123456789abcdef")}
	plain := responder(t, func(q []byte) []byte { return answer(q, now) })
	if _, err := ask(t, Server{Address: plain, Key: 7}, key); err == nil || !strings.Contains(err.Error(), "does not prove") {
		t.Errorf("an answer without a code: %v", err)
	}
	if _, err := ask(t, Server{Address: plain, Key: 8}, key); err == nil || !strings.Contains(err.Error(), "no time key 8") {
		t.Errorf("a key that the node does not have: %v", err)
	}
	forged := responder(t, func(q []byte) []byte {
		return append(answer(q, now), append([]byte{0, 0, 0, 7}, make([]byte, 20)...)...)
	})
	if _, err := ask(t, Server{Address: forged, Key: 7}, key); err == nil || strings.Contains(err.Error(), string(key.Secret)) {
		t.Errorf("a forged code: %v", err)
	}
	for _, bad := range []Key{{0, "sha256", key.Secret}, {7, "md5", key.Secret}, {7, "sha256", key.Secret[:15]}, {7, "aes128", key.Secret}} {
		if err := CheckKey(bad); err == nil || strings.Contains(err.Error(), string(bad.Secret)) {
			t.Errorf("key %d %s: %v", bad.ID, bad.Algorithm, err)
		}
	}
}

func FuzzAnswer(f *testing.F) {
	now := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	q := make([]byte, 48)
	f.Add(answer(q, now))
	f.Add(append(answer(q, now), 0, 0, 0, 0))
	f.Add([]byte{})
	var say atomic.Pointer[[]byte]
	address := responder(f, func(q []byte) []byte {
		b := slices.Clone(*say.Load())
		if len(b) >= 32 {
			copy(b[24:32], q[40:48])
		}
		return b
	})
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 1400 {
			return
		}
		say.Store(&b)
		n, err := ask(t, Server{Address: address})
		if err == nil && (n.Distance < 0 || n.UTC.Year() < 1970 || n.UTC.Year() > 2107) {
			t.Errorf("believed %+v", n)
		}
	})
}

func FuzzRestore(f *testing.F) {
	w := newWorld(1, 3)
	w.run(time.Hour)
	dir := f.TempDir()
	if err := w.k.Keep(dir); err != nil {
		f.Fatal(err)
	}
	good, err := os.ReadFile(filepath.Join(dir, stateFile))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte(`{"version":1,"configured":true,"servers":[{"address":""}],"limit":-1,"state":"locked","boot":"boot","own":{"raw":-1,"bound":-5,"drift":-1e300}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, stateFile), b, 0o600); err != nil {
			t.Fatal(err)
		}
		w := newWorld(1, 3)
		w.k.Restore(dir) // what the sealed disk holds is believed if it makes sense; it must not kill the process
		w.run(time.Second)
	})
}

func TestADamagedStateIsPutAsideAndTheClockStarts(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, stateFile), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	w := newWorld(1, 4)
	if err := w.k.Restore(dir); err == nil {
		t.Error("nothing was said")
	}
	if _, err := os.Stat(filepath.Join(dir, stateFile+".bad")); err != nil {
		t.Error(err)
	}
	w.run(time.Minute)
	w.containsTruth(t)
}

func TestKeysAreKeptForThisProcessAlone(t *testing.T) {
	dir := t.TempDir()
	keys := []Key{{7, "aes128", []byte("0123456789abcdef")}}
	if err := WriteKeys(dir, keys); err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(filepath.Join(dir, keysFile))
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Fatalf("%v, %v", st.Mode(), err)
	}
	back, err := ReadKeys(dir)
	if err != nil || !SameKeys(keys, back) {
		t.Errorf("%v", err)
	}
	back[0].Secret[3] ^= 1
	if SameKeys(keys, back) {
		t.Error("another key is the same")
	}
}

// TestTheKernelsClockIsRead reads only.
func TestTheKernelsClockIsRead(t *testing.T) {
	k, err := OpenKernel()
	if err != nil {
		t.Fatal(err)
	}
	a := k.Read()
	time.Sleep(20 * time.Millisecond)
	b := k.Read()
	if d := b.Raw - a.Raw; d < 15*time.Millisecond || d-(b.Boot-a.Boot) > time.Millisecond {
		t.Errorf("raw %v, boot %v, wall %v", d, b.Boot-a.Boot, b.Wall.Sub(a.Wall))
	}
	if r := k.Applied(); r < -1000 || r > 1000 {
		t.Errorf("rate %v ppm", r)
	}
}
