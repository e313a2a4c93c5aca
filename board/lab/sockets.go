package lab

import (
	"bufio"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sort"
	"strconv"
	"strings"
)

// Socket is a socket that waits for strangers: a listening TCP socket, or a UDP socket bound without a peer.
type Socket struct {
	Proto string         // "tcp" or "udp", either family
	Addr  netip.AddrPort // where it waits
	UID   int            // its owner
}

// String is like "tcp 127.0.0.1:80 uid 0".
func (s Socket) String() string { return fmt.Sprintf("%s %s uid %d", s.Proto, s.Addr, s.UID) }

// ListeningSockets returns every listening socket of this network namespace, sorted. A test compares it before and
// after work that must install or leave no daemon: see [NewSockets].
func ListeningSockets() ([]Socket, error) {
	var out []Socket
	for _, t := range []struct{ file, proto, state string }{
		{"tcp", "tcp", "0A"}, {"tcp6", "tcp", "0A"}, {"udp", "udp", "07"}, {"udp6", "udp", "07"},
	} {
		list, err := readSockets("/proc/net/"+t.file, t.proto, t.state)
		if errors.Is(err, os.ErrNotExist) && strings.HasSuffix(t.file, "6") {
			continue // a kernel without IPv6
		}
		if err != nil {
			return nil, fmt.Errorf("lab: listening sockets: %w", err)
		}
		out = append(out, list...)
	}
	sort.Slice(out, func(i, j int) bool { return out[i].String() < out[j].String() })
	return out, nil
}

// NewSockets returns what is in after and not in before.
func NewSockets(before, after []Socket) []Socket {
	old := map[Socket]int{}
	for _, s := range before {
		old[s]++
	}
	var out []Socket
	for _, s := range after {
		if old[s]--; old[s] < 0 {
			out = append(out, s)
		}
	}
	return out
}

func readSockets(path, proto, state string) ([]Socket, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var out []Socket
	sc := bufio.NewScanner(f)
	sc.Scan() // headings
	for sc.Scan() {
		// sl local_address rem_address st tx:rx tr:when retrnsmt uid ...
		f := strings.Fields(sc.Text())
		if len(f) < 8 || f[3] != state {
			continue
		}
		addr, ok := procAddr(f[1])
		if !ok {
			return nil, fmt.Errorf("%s: bad address %q", path, f[1])
		}
		uid, _ := strconv.Atoi(f[7])
		out = append(out, Socket{Proto: proto, Addr: addr, UID: uid})
	}
	return out, sc.Err()
}

// procAddr decodes /proc/net's "0100007F:0050": 32 bit words in host order (x86: little-endian), port in hex.
func procAddr(s string) (netip.AddrPort, bool) {
	host, port, ok := strings.Cut(s, ":")
	b, err := hex.DecodeString(host)
	n, perr := strconv.ParseUint(port, 16, 16)
	if !ok || err != nil || perr != nil || len(b) != 4 && len(b) != 16 {
		return netip.AddrPort{}, false
	}
	for i := 0; i < len(b); i += 4 {
		b[i], b[i+1], b[i+2], b[i+3] = b[i+3], b[i+2], b[i+1], b[i]
	}
	addr, _ := netip.AddrFromSlice(b)
	return netip.AddrPortFrom(addr.Unmap(), uint16(n)), true
}
