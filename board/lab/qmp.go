package lab

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strconv"
	"sync"
)

// qmp is a client of QEMU's machine protocol: JSON lines, one answer per command by id, events in between.
// Specification: QEMU's docs/interop/qmp-spec. A line longer than 1 MiB ends the connection.
type qmp struct {
	conn  net.Conn
	event func(name string, data json.RawMessage)

	mu      sync.Mutex
	nextID  int
	waiting map[string]chan qmpReply
	err     error // set once, when the connection is over
}

type qmpReply struct {
	Return json.RawMessage `json:"return"`
	Error  *struct {
		Class string `json:"class"`
		Desc  string `json:"desc"`
	} `json:"error"`
	ID    string          `json:"id"`
	Event string          `json:"event"`
	Data  json.RawMessage `json:"data"`
}

var errQMPOver = errors.New("qemu closed its control channel")

// newQMP takes over conn. event is called on the reader's goroutine and must not block or call the client.
func newQMP(conn net.Conn, event func(string, json.RawMessage)) *qmp {
	q := &qmp{conn: conn, event: event, waiting: map[string]chan qmpReply{}}
	go q.read()
	return q
}

func (q *qmp) read() {
	sc := bufio.NewScanner(q.conn)
	sc.Buffer(make([]byte, 0, 4096), 1<<20)
	for sc.Scan() {
		var m qmpReply
		if json.Unmarshal(sc.Bytes(), &m) != nil {
			break
		}
		if m.Event != "" {
			q.event(m.Event, m.Data)
			continue
		}
		q.mu.Lock()
		c := q.waiting[m.ID]
		delete(q.waiting, m.ID)
		q.mu.Unlock()
		if c != nil {
			c <- m // buffered: never blocks
		}
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.err = errQMPOver
	for id, c := range q.waiting {
		delete(q.waiting, id)
		close(c)
	}
	q.conn.Close()
}

// call runs one command and decodes its answer into out (nil: ignored).
func (q *qmp) call(ctx context.Context, command string, args any, out any) error {
	q.mu.Lock()
	if q.err != nil {
		q.mu.Unlock()
		return fmt.Errorf("qemu %s: %w", command, q.err)
	}
	q.nextID++
	id := strconv.Itoa(q.nextID)
	c := make(chan qmpReply, 1)
	q.waiting[id] = c
	line, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
		ID        string `json:"id"`
	}{command, args, id})
	if err == nil {
		_, err = q.conn.Write(append(line, '\n'))
	}
	q.mu.Unlock()
	if err != nil {
		return fmt.Errorf("qemu %s: %w", command, err)
	}
	select {
	case m, ok := <-c:
		switch {
		case !ok:
			return fmt.Errorf("qemu %s: %w", command, errQMPOver)
		case m.Error != nil:
			return fmt.Errorf("qemu %s: %s: %s", command, m.Error.Class, m.Error.Desc)
		case out == nil:
			return nil
		}
		return json.Unmarshal(m.Return, out)
	case <-ctx.Done():
		return fmt.Errorf("qemu %s: %w", command, ctx.Err())
	}
}
