package network

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv4/nclient4"
)

// Waits of DHCP (RFC 2131): retries grow from first to most with some randomness; a lease is never believed for less than shortest or
// more than longest.
const (
	firstRetry    = time.Second
	mostRetry     = 30 * time.Second
	shortestLease = time.Minute
	longestLease  = 7 * 24 * time.Hour
)

// AcquireHere asks for a lease on device from this process, renews it at half its time and starts anew where it runs out, until ctx
// ends. It parses packets from anybody on the wire, so it must run without rights (see ReadLeases); it needs CAP_NET_RAW and
// CAP_NET_BIND_SERVICE.
func AcquireHere(ctx context.Context, device string, lease func(Lease)) error {
	retry := firstRetry
	for {
		began := time.Now()
		err := hold(ctx, device, lease)
		if ctx.Err() != nil {
			return nil
		}
		if time.Since(began) > mostRetry {
			retry = firstRetry
		}
		_ = err // no answer yet is the ordinary case; Links tells
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(retry/2 + rand.N(retry)):
		}
		retry = min(2*retry, mostRetry)
	}
}

// hold gets one lease and keeps it for as long as the server renews it.
func hold(ctx context.Context, device string, tell func(Lease)) error {
	c, err := nclient4.New(device, nclient4.WithTimeout(3*time.Second), nclient4.WithRetry(2))
	if err != nil {
		return fmt.Errorf("open %s: %w", device, err)
	}
	defer c.Close()
	l, err := c.Request(ctx)
	if err != nil {
		return fmt.Errorf("ask for a lease: %w", err)
	}
	for {
		tell(leaseOf(l.ACK))
		life := min(max(l.ACK.IPAddressLeaseTime(time.Hour), shortestLease), longestLease)
		renewed := false
		for _, part := range []time.Duration{life / 2, life * 3 / 8, life / 16} { // T1, T2, once more
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(part):
			}
			if next, err := c.Renew(ctx, l); err == nil {
				l, renewed = next, true
				break
			}
		}
		if !renewed {
			tell(Lease{Lost: true})
			return fmt.Errorf("the server does not renew the lease")
		}
	}
}

func leaseOf(ack *dhcpv4.DHCPv4) Lease {
	mask := ack.SubnetMask()
	if ones, bits := mask.Size(); bits != 32 || ones == 0 {
		mask = ack.YourIPAddr.DefaultMask()
	}
	l := Lease{Address: (&net.IPNet{IP: ack.YourIPAddr, Mask: mask}).String()}
	if r := ack.Router(); len(r) > 0 {
		l.Gateway = r[0].String()
	}
	for _, r := range ack.DNS() {
		if len(l.Resolvers) < MaxResolvers {
			l.Resolvers = append(l.Resolvers, r.String())
		}
	}
	return l
}

// maxLeaseLine bounds a line between the DHCP process and init, in bytes.
const maxLeaseLine = 1024

// WriteLeases writes each lease as a line of JSON: the DHCP process's half.
func WriteLeases(w io.Writer) func(Lease) {
	e := json.NewEncoder(w)
	return func(l Lease) { e.Encode(l) }
}

// ReadLeases reads what WriteLeases wrote, until r ends: init's half. Bounded, because the writer may have been taken over.
func ReadLeases(r io.Reader, lease func(Lease)) error {
	sc := bufio.NewScanner(r)
	sc.Buffer(make([]byte, maxLeaseLine), maxLeaseLine)
	for sc.Scan() {
		var l Lease
		if err := json.Unmarshal(sc.Bytes(), &l); err != nil {
			return fmt.Errorf("read a lease: %w", err)
		}
		lease(l)
	}
	return sc.Err()
}
