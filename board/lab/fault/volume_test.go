package fault

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

const appendEnv = "FAULT_TEST_APPEND"

func TestMain(m *testing.M) {
	Front()
	if dir := os.Getenv("FAULT_TEST_HOLD"); dir != "" {
		hold(dir)
	}
	if path := os.Getenv(appendEnv); path != "" {
		appender(path, os.Getenv("FAULT_TEST_FSYNC") != "")
	}
	os.Exit(m.Run())
}

// appender appends records of 1000 bytes for ever and prints the number of each that is safe by its belief.
func appender(path string, fsync bool) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_RDWR, 0o600)
	if err != nil {
		os.Exit(3)
	}
	st, _ := f.Stat()
	for n := st.Size() / 1000; ; n++ {
		if _, err := f.Write(record(n)); err != nil {
			os.Exit(0)
		}
		if fsync && f.Sync() != nil {
			os.Exit(0)
		}
		fmt.Println(n)
	}
}

// hold mounts a volume and waits to be killed.
func hold(dir string) {
	v, err := OpenVolume(context.Background(), VolumeOptions{Dir: dir, Size: 16 << 20})
	if err == nil {
		err = v.Mount(context.Background())
	}
	fmt.Println(err)
	select {}
}

func TestKilledHolderLeavesNoMount(t *testing.T) {
	if why := Unavailable(); why != "" {
		t.Skip(why)
	}
	dir := t.TempDir()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), "FAULT_TEST_HOLD="+dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, _ := bufio.NewReader(out).ReadString('\n')
	mounts := func() bool {
		b, err := os.ReadFile("/proc/mounts")
		return err != nil || strings.Contains(string(b), dir)
	}
	if line != "<nil>\n" || !mounts() {
		t.Errorf("not mounted: %s", line)
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	for end := time.Now().Add(10 * time.Second); mounts(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("still mounted 10 s after its process was killed")
		}
	}
}

func record(n int64) []byte {
	b := make([]byte, 1000)
	for i := 8; i < 996; i++ {
		b[i] = byte(n + int64(i))
	}
	binary.BigEndian.PutUint64(b, uint64(n))
	binary.BigEndian.PutUint32(b[996:], crc32.ChecksumIEEE(b[:996]))
	return b
}

// oneLife mounts the volume, lets the appender work, cuts the power and returns the last number it printed (-1: none).
func oneLife(t *testing.T, v *Volume, seed uint64, fsync bool, work time.Duration) int64 {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	if err := v.Mount(ctx); err != nil {
		t.Fatalf("seed %d: %v", seed, err)
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), appendEnv+"="+filepath.Join(v.Dir, "log"))
	if fsync {
		cmd.Env = append(cmd.Env, "FAULT_TEST_FSYNC=1")
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	acked := make(chan int64)
	go func() {
		last := int64(-1)
		sc := bufio.NewScanner(out)
		for sc.Scan() {
			if n, err := strconv.ParseInt(sc.Text(), 10, 64); err == nil {
				last = n
			}
		}
		acked <- last
	}()
	time.Sleep(work)
	report, err := v.Cut(ctx, seed)
	if err != nil {
		t.Fatal(err)
	}
	_ = cmd.Process.Kill()
	last := <-acked
	_ = cmd.Wait()
	if err := v.Unmount(ctx); err != nil {
		t.Fatal(err)
	}
	if testing.Verbose() {
		t.Logf("seed %d: acknowledged up to %d, %+v", seed, last, report)
	}
	return last
}

// whole mounts the volume and counts the good records from the beginning of the log.
func whole(t *testing.T, v *Volume) int64 {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	if err := v.Mount(ctx); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := v.Unmount(ctx); err != nil {
			t.Error(err)
		}
	}()
	f, err := os.Open(filepath.Join(v.Dir, "log"))
	if os.IsNotExist(err) {
		return 0
	}
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r := bufio.NewReader(f)
	buf := make([]byte, 1000)
	for n := int64(0); ; n++ {
		if _, err := io.ReadFull(r, buf); err != nil || string(buf) != string(record(n)) {
			return n
		}
	}
}

func testVolume(t *testing.T, options string) *Volume {
	t.Helper()
	if why := Unavailable(); why != "" {
		t.Skip(why)
	}
	v, err := OpenVolume(t.Context(), VolumeOptions{Dir: t.TempDir(), Size: 16 << 20, MountOptions: options})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := v.Close(); err != nil {
			t.Error(err)
		}
	})
	return v
}

func TestFsyncedRecordsSurviveCuts(t *testing.T) {
	v := testVolume(t, "")
	for seed := uint64(1); seed <= 6; seed++ {
		last := oneLife(t, v, seed, true, 150*time.Millisecond)
		if n := whole(t, v); n < last+1 {
			t.Fatalf("seed %d: record %d was acknowledged, only %d are there", seed, last, n)
		}
		truncate(t, v)
	}
}

// truncate empties the log, so that a torn tail does not hide the next life's records.
func truncate(t *testing.T, v *Volume) {
	t.Helper()
	if err := v.Mount(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(v.Dir, "log")); err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	if err := v.Unmount(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// The disk bites: without fsync, and with fsync but without flushes below it, acknowledged records get lost.
func TestUnflushedRecordsAreLost(t *testing.T) {
	for _, c := range []struct {
		name, options string
		fsync         bool
	}{
		{"no fsync", "", false},
		{"fsync without a flush", "nobarrier", true},
	} {
		v := testVolume(t, c.options)
		lost := false
		for seed := uint64(1); seed <= 6 && !lost; seed++ {
			last := oneLife(t, v, seed, c.fsync, 150*time.Millisecond)
			if c.options != "" {
				// Without flushes the file system itself may be damaged: that is a loss too.
				if v.Mount(t.Context()) != nil {
					lost = true
					break
				}
				_ = v.Unmount(t.Context())
			}
			lost = whole(t, v) < last+1
			truncate(t, v)
		}
		if !lost {
			t.Errorf("%s: nothing was lost in 6 cuts: the fault disk does not bite", c.name)
		}
	}
}
