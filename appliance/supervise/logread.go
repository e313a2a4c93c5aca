package supervise

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"guardhouse/appliance/rpc"
)

// MaxLogLines is the most lines one request gets before it follows.
const MaxLogLines = 100_000

// Read sends the newest lines the request asks for, oldest first, and with Follow each new one until ctx ends or send fails. Of an
// earlier boot it also sends the last words that services left in it.
func (l *Log) Read(ctx context.Context, req rpc.LogRequest, send func(rpc.LogLine) error) error {
	if req.Boot > 0 || req.Boot < -earlierBoots {
		return rpc.ErrRefused.With("boot %d is not kept; 0 is this boot, -1 and -%d the ones before", req.Boot, earlierBoots)
	}
	if req.Lines < 0 || req.Lines > MaxLogLines {
		return rpc.ErrRefused.With("at most %d lines can be asked for", MaxLogLines)
	}
	if req.Lines == 0 {
		req.Lines = 200
	}
	l.mu.Lock()
	disk, next := l.disk, l.next
	l.mu.Unlock()
	var lines []rpc.LogLine
	var err error
	switch {
	case req.Boot < 0:
		lines, err = earlier(disk, req)
	case disk == nil || !l.enough(req):
		lines, next, err = l.current(disk, req)
	default:
		lines, next = l.inMemory(req)
	}
	if err != nil {
		return err
	}
	for _, line := range lines {
		if err := send(line); err != nil {
			return err
		}
	}
	if !req.Follow || req.Boot < 0 {
		return nil
	}
	return l.follow(ctx, next, req.Service, send)
}

// enough reports whether the memory alone answers the request.
func (l *Log) enough(req rpc.LogRequest) bool {
	lines, _ := l.inMemory(req)
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(lines) >= req.Lines || len(l.ring) > 0 && l.ring[0].seq == 0
}

func (l *Log) inMemory(req rpc.LogRequest) ([]rpc.LogLine, uint64) {
	entries, _ := l.since(0)
	t := tail{service: req.Service, max: req.Lines}
	var next uint64
	for _, e := range entries {
		t.add(e.line)
		next = e.seq + 1
	}
	return t.lines(), next
}

// current reads this boot from the disk, waiting a moment for the newest lines to arrive there.
func (l *Log) current(disk *logDisk, req rpc.LogRequest) ([]rpc.LogLine, uint64, error) {
	if disk == nil {
		lines, next := l.inMemory(req)
		return lines, next, nil
	}
	l.mu.Lock()
	next := l.next
	l.mu.Unlock()
	time.Sleep(flushEvery)
	t := tail{service: req.Service, max: req.Lines}
	err := readSegments(disk.dir, t.add)
	return t.lines(), next, err
}

func earlier(disk *logDisk, req rpc.LogRequest) ([]rpc.LogLine, error) {
	if disk == nil {
		return nil, rpc.ErrUnavailable.With("the data disk is not open, so earlier boots can't be read")
	}
	boots, err := bootDirs(disk.root)
	if err != nil {
		return nil, fmt.Errorf("read the log folder: %w", err)
	}
	i := len(boots) - 1 + req.Boot
	if i < 0 {
		return nil, rpc.ErrRefused.With("there is no log of boot %d: the node has not been started that often, or it was trimmed", req.Boot)
	}
	t := tail{service: req.Service, max: req.Lines}
	if err := readSegments(boots[i].path, t.add); err != nil {
		return nil, err
	}
	lines := t.lines()
	words, _ := filepath.Glob(filepath.Join(boots[i].path, "last-*.txt"))
	for _, w := range words {
		lt := tail{service: req.Service, max: lastLines + 1}
		if err := readLines(w, lt.add); err != nil {
			return nil, err
		}
		for _, line := range lt.lines() {
			line.Text = "[last words] " + line.Text
			lines = append(lines, line)
		}
	}
	return lines, nil
}

func (l *Log) follow(ctx context.Context, next uint64, service string, send func(rpc.LogLine) error) error {
	for {
		entries, changed := l.since(next)
		for _, e := range entries {
			next = e.seq + 1
			if service != "" && e.line.Service != service {
				continue
			}
			if err := send(e.line); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		}
	}
}

// tail keeps the last max lines of a service, or of all where service is "".
type tail struct {
	service string
	max     int
	kept    []rpc.LogLine
	start   int
}

func (t *tail) add(line rpc.LogLine) {
	if t.service != "" && line.Service != t.service {
		return
	}
	if len(t.kept) < t.max {
		t.kept = append(t.kept, line)
		return
	}
	t.kept[t.start] = line
	t.start = (t.start + 1) % t.max
}

func (t *tail) lines() []rpc.LogLine {
	return append(append([]rpc.LogLine(nil), t.kept[t.start:]...), t.kept[:t.start]...)
}

func readSegments(dir string, add func(rpc.LogLine)) error {
	for _, f := range segments(dir) {
		if err := readLines(f, add); err != nil {
			return err
		}
	}
	return nil
}

// readLines reads a file a power cut may have torn: lines that don't parse are left out, and everything is cleaned again.
func readLines(path string, add func(rpc.LogLine)) error {
	f, err := os.Open(path)
	if os.IsNotExist(err) {
		return nil // trimmed meanwhile
	}
	if err != nil {
		return fmt.Errorf("read the log: %w", err)
	}
	defer f.Close()
	sc := bufio.NewScanner(f)
	sc.Buffer(make([]byte, 64<<10), 1<<20)
	for sc.Scan() {
		if line, ok := parseLine(sc.Text()); ok {
			add(line)
		}
	}
	return nil
}

func parseLine(s string) (rpc.LogLine, bool) {
	ms, rest, ok := strings.Cut(s, " ")
	name, text, ok2 := strings.Cut(rest, " ")
	n, err := strconv.ParseInt(ms, 10, 64)
	if !ok || !ok2 || err != nil || n < 0 || name == "" {
		return rpc.LogLine{}, false
	}
	return rpc.LogLine{BootTime: time.Duration(n) * time.Millisecond, Service: Clean(name), Text: Clean(text)}, true
}
