package disk

import (
	"bytes"
	"os"
	"testing"
	"time"

	"guardhouse/board/lab/pid1"
)

// TestMain makes the test binary able to be PID 1 of a guest with the image's device mapper.
func TestMain(m *testing.M) { pid1.Main(m, "-test.run=Volume") }

// guestDisk is the machine's data disk, wiped at its start.
func guestDisk(t *testing.T) Disk {
	t.Helper()
	if os.Getpid() != 1 {
		t.Skip("needs the device mapper of the image's kernel: TestVolumeOnTheImagesKernel of cmd/init runs this there")
	}
	list, err := (&Finder{Sys: "/sys", Dev: "/dev"}).List()
	if err != nil || len(list) != 1 {
		t.Fatalf("%+v %v", list, err)
	}
	t.Cleanup(func() { Close() })
	return list[0]
}

func TestVolumeGivesBackWhatWasWrittenWithItsKeyAlone(t *testing.T) {
	d := guestDisk(t)
	held, err := os.OpenFile(d.Path, os.O_RDWR, 0) // as package volume holds it, for the header: the page cache lives on
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	var last, steps int64
	start := time.Now()
	path, err := Create(t.Context(), d, testKey, func(done, total int64) {
		if done <= last || done > total {
			t.Errorf("progress %d after %d of %d", done, last, total)
		}
		last, steps = done, steps+1
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d MiB prepared in %v, %d steps", last>>20, time.Since(start).Round(time.Millisecond), steps)
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	secret := bytes.Repeat([]byte("transport key material "), 1000)
	at := last / 2 &^ 4095
	if _, err := f.WriteAt(secret, at); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	f.Close()
	if err := Close(); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(d.Path)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(raw, secret[:64]) {
		t.Error("the disk holds plain text")
	}
	if bytes.Contains(raw, testKey) {
		t.Error("the disk holds the key")
	}
	_, err = Open(d, bytes.Repeat([]byte{1}, KeySize))
	wantVolumeKind(t, err, KindIntegrity)
	start = time.Now()
	if path, err = Open(d, testKey); err != nil {
		t.Fatal(err)
	}
	t.Logf("opened in %v", time.Since(start).Round(time.Millisecond))
	if got := readAt(t, path, at, len(secret)); !bytes.Equal(got, secret) {
		t.Error("it gives back something else")
	}
	// Every sector was written: nothing reads as an error.
	if got := readAt(t, path, 0, 1<<20); !bytes.Equal(got, make([]byte, 1<<20)) {
		t.Error("unwritten room is not zero")
	}
	corruptOneSector(t, d, at, secret)
}

func readAt(t *testing.T, path string, at int64, n int) []byte {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, n)
	if _, err := f.ReadAt(b, at); err != nil {
		t.Fatal(err)
	}
	return b
}

// corruptOneSector flips one bit of ciphertext: its sector reads as an error, never as data, and its neighbours stay readable.
func corruptOneSector(t *testing.T, d Disk, at int64, secret []byte) {
	if err := Close(); err != nil {
		t.Fatal(err)
	}
	// Where the sector lies is the integrity layer's affair: try flipping places until the sector is hit.
	f, err := os.OpenFile(d.Path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	hit := false
	for place := int64(bodyStart) + at; place < d.Size-1 && !hit; place += 4096 {
		b := make([]byte, 1)
		f.ReadAt(b, place)
		f.WriteAt([]byte{b[0] ^ 4}, place)
		f.Sync()
		path, err := Open(d, testKey)
		if err != nil {
			t.Fatal(err)
		}
		v, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		got := make([]byte, 4096)
		_, err = v.ReadAt(got, at)
		v.Close()
		switch {
		case err != nil && isCorrupt(err):
			hit = true
			readAt(t, path, at+int64(2*4096), 4096)
			var found []Damage
			if err := Scrub(t.Context(), path, 0, func(d Damage) { found = append(found, d) }); err != nil {
				t.Fatal(err)
			}
			if len(found) != 1 || found[0] != (Damage{Sector: at / 512, Changed: true}) {
				t.Errorf("the check of the whole volume found %+v, not sector %d alone", found, at/512)
			}
		case err != nil:
			t.Fatalf("another error: %v", err)
		case !bytes.Equal(got, secret[:4096]):
			t.Fatal("changed data was given out")
		}
		if err := Close(); err != nil {
			t.Fatal(err)
		}
		f.WriteAt(b, place)
		f.Sync()
	}
	if !hit {
		t.Error("no place was found whose change is noticed")
	}
}
