package supervise

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"guardhouse/appliance/rpc"
)

// Names of log sources that are not services.
const (
	LogInit   = "init"
	LogKernel = "kernel"
)

// Bounds of the log. A source that writes faster than MaxRate lines a second for longer than its burst loses lines, with a note of how
// many: a flood must not wash away what the others said.
const (
	MaxLine   = 4 << 10 // bytes of one line; the rest of a longer one is dropped
	ringBytes = 2 << 20
	ringLines = 8192
	lastLines = 64
	MaxRate   = 500
	burst     = 4000
)

// Log keeps what services and the kernel say: in memory until OpenDisk, then on disk as well. It never makes a writer wait for a disk.
// Methods may be called from any goroutine.
type Log struct {
	bootTime func() time.Duration

	mu      sync.Mutex
	ring    []entry // oldest first
	size    int     // bytes of text in ring
	next    uint64  // number of the next entry
	changed chan struct{}
	sources map[string]*source
	disk    *logDisk // nil before OpenDisk
	flushed chan struct{}
}

type entry struct {
	seq  uint64
	line rpc.LogLine
}

// source is one writer's token bucket and its last words.
type source struct {
	tokens  float64
	refill  time.Duration // bootTime of the last refill
	dropped int
	last    []rpc.LogLine
}

// NewLog makes an empty log in memory. bootTime is CLOCK_BOOTTIME (rpc.BootTime).
func NewLog(bootTime func() time.Duration) *Log {
	return &Log{bootTime: bootTime, changed: make(chan struct{}), sources: map[string]*source{}}
}

// Add writes one line. Control bytes are replaced and the length is bounded.
func (l *Log) Add(name, text string) { l.add(name, text, l.bootTime()) }

func (l *Log) add(name, text string, at time.Duration) {
	line := rpc.LogLine{BootTime: at, Service: name, Text: Clean(text)}
	l.mu.Lock()
	defer l.mu.Unlock()
	src := l.sources[name]
	if src == nil {
		src = &source{tokens: burst, refill: l.bootTime()}
		l.sources[name] = src
	}
	// The last words are kept even where the flood itself is not.
	src.last = append(src.last, line)
	if len(src.last) > lastLines {
		src.last = src.last[1:]
	}
	now := l.bootTime()
	src.tokens = min(burst, src.tokens+(now-src.refill).Seconds()*MaxRate)
	src.refill = now
	if src.tokens < 1 {
		src.dropped++
		return
	}
	if src.dropped > 0 {
		l.push(rpc.LogLine{BootTime: at, Service: name, Text: fmt.Sprintf("(%d lines dropped: %s writes more than %d lines a second)", src.dropped, name, MaxRate)})
		src.dropped = 0
	}
	src.tokens--
	l.push(line)
}

// push needs l.mu.
func (l *Log) push(line rpc.LogLine) {
	l.ring = append(l.ring, entry{l.next, line})
	l.next++
	l.size += len(line.Text)
	for len(l.ring) > ringLines || l.size > ringBytes {
		l.size -= len(l.ring[0].line.Text)
		l.ring[0] = entry{}
		l.ring = l.ring[1:]
	}
	close(l.changed)
	l.changed = make(chan struct{})
}

// Capture adds every line of r until it ends. A line longer than MaxLine is cut.
func (l *Log) Capture(name string, r io.Reader) {
	br := bufio.NewReaderSize(r, MaxLine+1)
	for {
		line, err := br.ReadSlice('\n')
		if len(line) > 0 {
			l.Add(name, string(trimEnd(line)))
		}
		for errors.Is(err, bufio.ErrBufferFull) {
			_, err = br.ReadSlice('\n')
		}
		if err != nil {
			return
		}
	}
}

func trimEnd(b []byte) []byte {
	for len(b) > 0 && (b[len(b)-1] == '\n' || b[len(b)-1] == '\r') {
		b = b[:len(b)-1]
	}
	return b
}

// LastWords keeps a service's latest lines apart, with the way it ended, so that no later line washes them away: on the disk if there
// is one, replacing those of its earlier crash in this boot.
func (l *Log) LastWords(name, exit string) {
	l.mu.Lock()
	var words []rpc.LogLine
	if src := l.sources[name]; src != nil {
		words = append(words, src.last...)
	}
	words = append(words, rpc.LogLine{BootTime: l.bootTime(), Service: name, Text: "ended: " + Clean(exit)})
	disk := l.disk
	l.mu.Unlock()
	if disk != nil {
		disk.lastWords(name, words)
	}
}

// since gives the entries from seq on that are still in memory, and a channel that closes at the next one.
func (l *Log) since(seq uint64) ([]entry, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.ring) == 0 || seq >= l.next {
		return nil, l.changed
	}
	first := l.ring[0].seq
	if seq < first {
		seq = first
	}
	return append([]entry(nil), l.ring[seq-first:]...), l.changed
}
