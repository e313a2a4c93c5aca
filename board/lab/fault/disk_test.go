package fault

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"pgregory.net/rapid"
)

func testDisk(t testing.TB, size int64) *Disk {
	t.Helper()
	d, err := Open(filepath.Join(t.TempDir(), "disk.img"), size)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func fill(b byte, n int) []byte { return bytes.Repeat([]byte{b}, n) }

func mustWrite(t testing.TB, d *Disk, b byte, off int64, n int, fua bool) {
	t.Helper()
	if err := d.Write(fill(b, n), off, fua); err != nil {
		t.Fatal(err)
	}
}

func readBack(t testing.TB, d *Disk, off int64, n int) []byte {
	t.Helper()
	p := make([]byte, n)
	if _, err := d.ReadAt(p, off); err != nil {
		t.Fatal(err)
	}
	return p
}

func TestFlushedAndFUAWritesSurviveEveryCut(t *testing.T) {
	for seed := range uint64(100) {
		d := testDisk(t, 1<<16)
		mustWrite(t, d, 1, 0, 4096, false)
		if err := d.Flush(); err != nil {
			t.Fatal(err)
		}
		mustWrite(t, d, 2, 8192, 2048, false)
		mustWrite(t, d, 3, 8192, 1024, true) // over a held write that may be lost or kept
		mustWrite(t, d, 4, 16384, 4096, false)
		r := d.Cut(seed)
		if r.Held != 2 || r.Kept+r.Dropped+r.Torn != r.Held {
			t.Fatalf("seed %d: %+v", seed, r)
		}
		d.PowerOn()
		if !bytes.Equal(readBack(t, d, 0, 4096), fill(1, 4096)) {
			t.Fatalf("seed %d: a flushed write is gone", seed)
		}
		if !bytes.Equal(readBack(t, d, 8192, 1024), fill(3, 1024)) {
			t.Fatalf("seed %d: an FUA write is gone", seed)
		}
	}
}

func TestCutLosesTearsAndRepeats(t *testing.T) {
	lost, kept, torn := 0, 0, 0
	for seed := range uint64(200) {
		var images [2][]byte
		for i := range images {
			d := testDisk(t, 1<<16)
			for n := range 8 {
				mustWrite(t, d, byte(n+1), int64(n)*4096, 4096, false)
			}
			r := d.Cut(seed)
			lost, kept, torn = lost+r.Dropped, kept+r.Kept, torn+r.Torn
			d.PowerOn()
			images[i] = readBack(t, d, 0, 8*4096)
			for n := range 8 {
				for s := range 8 {
					sector := images[i][n*4096+s*Sector:][:Sector]
					if !bytes.Equal(sector, fill(byte(n+1), Sector)) && !bytes.Equal(sector, fill(0, Sector)) {
						t.Fatalf("seed %d: a sector is torn", seed)
					}
				}
			}
		}
		if !bytes.Equal(images[0], images[1]) {
			t.Fatalf("seed %d lost different bytes twice", seed)
		}
	}
	if lost == 0 || kept == 0 || torn != 400 {
		t.Errorf("lost %d kept %d torn %d", lost, kept, torn)
	}
}

func TestCutDiskRefusesEverything(t *testing.T) {
	d := testDisk(t, 1<<16)
	mustWrite(t, d, 1, 0, 512, false)
	d.Cut(1)
	_, rerr := d.ReadAt(make([]byte, 512), 0)
	_, werr := d.WriteAt(make([]byte, 512), 0)
	for _, err := range []error{rerr, werr, d.Flush(), d.WriteZeroes(0, 512, false)} {
		if !errors.Is(err, ErrCut) {
			t.Errorf("got %v", err)
		}
	}
}

func TestHolderThatDiesLosesWhatItHeld(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk.img")
	d, err := Open(path, 1<<16)
	if err != nil {
		t.Fatal(err)
	}
	mustWrite(t, d, 7, 0, 512, false)
	b, err := os.ReadFile(path)
	if err != nil || !bytes.Equal(b[:512], make([]byte, 512)) {
		t.Fatalf("an unflushed write is in the image: %v", err)
	}
	d.Close()
}

func TestRefusesRangesBeyondTheDisk(t *testing.T) {
	d := testDisk(t, 1<<16)
	for _, c := range []struct {
		off int64
		n   int
	}{{1 << 16, 1}, {1<<16 - 1, 2}, {-1, 1}, {1<<63 - 1, 512}} {
		if err := d.Write(make([]byte, c.n), c.off, false); !errors.Is(err, ErrRange) {
			t.Errorf("%+v: %v", c, err)
		}
		if _, err := d.ReadAt(make([]byte, c.n), c.off); !errors.Is(err, ErrRange) {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

func TestInjectedFaultIsTheOperationsError(t *testing.T) {
	d := testDisk(t, 1<<16)
	bad := errors.New("bad sector")
	d.Inject(func(o Op) error {
		if o.Kind == "read" && o.Offset == 512 {
			return bad
		}
		return nil
	})
	if _, err := d.ReadAt(make([]byte, 512), 512); !errors.Is(err, bad) {
		t.Errorf("got %v", err)
	}
	readBack(t, d, 0, 512)
}

// Any sequence of writes, zeroes and flushes reads like a plain byte slice.
func TestReadsLikeAPlainDisk(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		const size = 8192
		d, err := Open(filepath.Join(t.TempDir(), "disk.img"), size)
		if err != nil {
			rt.Fatal(err)
		}
		defer d.Close()
		plain := make([]byte, size)
		for range rapid.IntRange(1, 30).Draw(rt, "steps") {
			off := rapid.IntRange(0, size-1).Draw(rt, "off")
			n := rapid.IntRange(1, min(3000, size-off)).Draw(rt, "n")
			switch rapid.IntRange(0, 5).Draw(rt, "op") {
			case 0:
				err = d.Flush()
			case 1:
				off, n = off/Sector*Sector, (n+Sector-1)/Sector*Sector
				n = min(n, size-off)
				clear(plain[off : off+n])
				err = d.WriteZeroes(int64(off), int64(n), rapid.Bool().Draw(rt, "fua"))
			default:
				b := fill(rapid.Byte().Draw(rt, "byte"), n)
				copy(plain[off:], b)
				err = d.Write(b, int64(off), rapid.Bool().Draw(rt, "fua"))
			}
			if err != nil {
				rt.Fatal(err)
			}
			got := make([]byte, n)
			if _, err := d.ReadAt(got, int64(off)); err != nil || !bytes.Equal(got, plain[off:off+n]) {
				rt.Fatalf("read back differs: %v", err)
			}
		}
		all := make([]byte, size)
		if _, err := d.ReadAt(all, 0); err != nil || !bytes.Equal(all, plain) {
			rt.Fatalf("differs at the end: %v", err)
		}
	})
}
