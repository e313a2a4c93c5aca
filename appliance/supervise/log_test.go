package supervise

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"guardhouse/appliance/rpc"
)

// ticking is a clock that a test moves.
type ticking struct{ now atomic.Int64 }

func (c *ticking) time() time.Duration { return time.Duration(c.now.Load()) }

func harmless(t *testing.T, s string) {
	t.Helper()
	if !utf8.ValidString(s) || len(s) > 3*MaxLine+3 {
		t.Errorf("%d bytes, valid %v", len(s), utf8.ValidString(s))
	}
	for _, r := range s {
		if unicode.IsControl(r) || unicode.Is(unicode.Bidi_Control, r) {
			t.Errorf("%q holds %U", s, r)
		}
	}
}

func TestLogHoldsNoControlBytesAndNoLongLines(t *testing.T) {
	l := NewLog(rpc.BootTime)
	l.Capture("svc", strings.NewReader("a\x1b]0;x\x07b\tc\r\n"+strings.Repeat("y", 3*MaxLine)+"\nlast\xff \u202e\u009b end"))
	text := logText(t, l, rpc.LogRequest{})
	lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	if len(lines) != 3 || lines[0] != "svc: a\ufffd]0;x\ufffdb c" || len(lines[1]) > MaxLine+20 || lines[2] != "svc: last\ufffd \ufffd\ufffd end" {
		t.Errorf("%d lines: %q", len(lines), lines[0]+lines[len(lines)-1])
	}
	for _, line := range lines {
		harmless(t, line)
	}
}

func TestFloodOfOneServiceKeepsTheOthersLines(t *testing.T) {
	var c ticking
	l := NewLog(c.time)
	l.Add("quiet", "important")
	for i := range 100_000 {
		l.Add("loud", fmt.Sprint("noise ", i))
	}
	c.now.Add(int64(10 * time.Second))
	l.Add("loud", "after")
	text := logText(t, l, rpc.LogRequest{Lines: MaxLogLines})
	if !strings.Contains(text, "important") || !strings.Contains(text, "(96000 lines dropped") || !strings.Contains(text, "loud: after") {
		t.Errorf("log of %d bytes: %.300s", len(text), text)
	}
}

func TestLogOfEarlierBootsIsKeptWithinItsLimit(t *testing.T) {
	dir := t.TempDir()
	const limit = 512 << 10
	for boot := range 5 {
		var c ticking
		l := NewLog(c.time)
		l.Add(LogInit, fmt.Sprintf("early line of boot %d", boot))
		if err := l.OpenDisk(dir, fmt.Sprintf("id%d", boot), limit); err != nil {
			t.Fatal(err)
		}
		for i := range 6000 {
			c.now.Add(int64(10 * time.Millisecond))
			l.Add("svc", fmt.Sprintf("boot %d line %d %s", boot, i, strings.Repeat("x", 100)))
			if i%1000 == 0 {
				time.Sleep(60 * time.Millisecond)
			}
		}
		l.LastWords("svc", "killed by SIGKILL")
		l.CloseDisk(t.Context())
	}
	var size int64
	filepath.Walk(dir, func(_ string, st os.FileInfo, err error) error {
		if err == nil && !st.IsDir() {
			size += st.Size()
		}
		return nil
	})
	if boots, _ := bootDirs(dir); len(boots) != 3 || size > limit || size < limit/2 {
		t.Errorf("%d boots, %d bytes of %d", len(boots), size, limit)
	}
	l := NewLog(rpc.BootTime)
	if err := l.OpenDisk(dir, "now", limit); err != nil {
		t.Fatal(err)
	}
	defer l.CloseDisk(t.Context())
	text := logText(t, l, rpc.LogRequest{Boot: -1, Lines: 3, Service: "svc"})
	if !strings.HasPrefix(text, "svc: boot 4 line 5997") || !strings.Contains(text, "[last words] ended: killed by SIGKILL") {
		t.Errorf("boot -1: %.400s", text)
	}
	if err := l.Read(t.Context(), rpc.LogRequest{Boot: -3}, nil); err == nil {
		t.Error("boot -3 was read")
	}
}

func TestLogFollowsAndSurvivesATornFile(t *testing.T) {
	dir := t.TempDir()
	l := NewLog(rpc.BootTime)
	l.Add("a", "in memory first")
	if err := l.OpenDisk(dir, "id", MaxLog); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	got := make(chan string, 100)
	done := make(chan error, 1)
	go func() {
		done <- l.Read(ctx, rpc.LogRequest{Follow: true, Service: "a"}, func(line rpc.LogLine) error { got <- line.Text; return nil })
	}()
	next := func() string {
		select {
		case s := <-got:
			return s
		case <-time.After(5 * time.Second):
			t.Fatal("no line")
			return ""
		}
	}
	first := next()
	l.Add("b", "other service")
	l.Add("a", "later")
	if second := next(); first != "in memory first" || second != "later" {
		t.Errorf("%q, %q", first, second)
	}
	cancel()
	if err := <-done; err != context.Canceled {
		t.Error(err)
	}
	l.CloseDisk(t.Context())
	files, _ := filepath.Glob(dir + "/*/*.log")
	f, _ := os.OpenFile(files[0], os.O_APPEND|os.O_WRONLY, 0)
	f.WriteString("12345 torn\x00\x1b[0m li\n\x00\x00\x00garbage")
	f.Close()
	l = NewLog(rpc.BootTime)
	if err := l.OpenDisk(dir, "id2", MaxLog); err != nil {
		t.Fatal(err)
	}
	defer l.CloseDisk(t.Context())
	if text := logText(t, l, rpc.LogRequest{Boot: -1}); text != "a: in memory first\nb: other service\na: later\ntorn\ufffd\ufffd[0m: li\n" {
		t.Errorf("%q", text)
	}
}

func TestFullDiskIsReportedAndBlocksNobody(t *testing.T) {
	l := NewLog(rpc.BootTime)
	if err := l.OpenDisk(t.TempDir(), "id", MaxLog); err != nil {
		t.Fatal(err)
	}
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	l.disk.mu.Lock()
	l.disk.file, _ = full, l.disk.file.Close()
	l.disk.w.Reset(full)
	l.disk.mu.Unlock()
	for range 2000 {
		l.Add("svc", strings.Repeat("z", 200))
	}
	eventually(t, 5*time.Second, "problem reported", func() bool { return strings.Contains(l.DiskProblem(), "no space left") })
	l.CloseDisk(t.Context())
}

func TestKernelRecordsAreRead(t *testing.T) {
	for line, want := range map[string]string{
		"6,339,5140900,-;NET: Registered PF_INET6\n": "5.1409s NET: Registered PF_INET6",
		" SUBSYSTEM=acpi\n":                          "",
		"nonsense\n":                                 "",
		"6,1,-5,-;x\n":                               "",
		"6,1;x":                                      "",
	} {
		at, text, ok := parseKmsg(line)
		got := ""
		if ok {
			got = at.String() + " " + text
		}
		if got != want {
			t.Errorf("%q: %q, want %q", line, got, want)
		}
	}
}

func FuzzLogLine(f *testing.F) {
	f.Add("12 svc text")
	f.Add("6,339,5140900,-;text")
	f.Add("\xff\x00 \u202e 5")
	f.Fuzz(func(t *testing.T, s string) {
		if line, ok := parseLine(s); ok {
			harmless(t, line.Text)
			harmless(t, line.Service)
		}
		parseKmsg(s)
		harmless(t, Clean(s))
	})
}

func TestEachLineOfTheKernelIsSeenOnce(t *testing.T) {
	file := filepath.Join(t.TempDir(), "kmsg")
	records := "6,1,1000,-;Linux version 6\n SUBSYSTEM=cpu\n3,2,2000,-;device-mapper: crypt: dm-1: INTEGRITY AEAD ERROR, sector 8\nnot a record\n"
	if err := os.WriteFile(file, []byte(records), 0o600); err != nil {
		t.Fatal(err)
	}
	var seen []string
	if err := NewLog(func() time.Duration { return 0 }).Kernel(t.Context(), file, func(line string) { seen = append(seen, line) }); err != nil {
		t.Fatal(err)
	}
	if want := []string{"Linux version 6", "device-mapper: crypt: dm-1: INTEGRITY AEAD ERROR, sector 8"}; !slices.Equal(seen, want) {
		t.Errorf("%q", seen)
	}
}
