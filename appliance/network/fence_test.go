package network

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// fencedUID is somebody without rights; the thread's filesystem uid is what a socket remembers.
const (
	fencedUID = 12345
	otherUID  = 12346 // is held to other addresses
)

// asUID runs do on this thread with the filesystem uid of another user: sockets made by it are that user's.
func asUID(uid int, do func() error) error {
	unix.Setfsuid(uid)
	defer unix.Setfsuid(0)
	return do()
}

// dial connects without Go's poller, so that the socket is made on this thread. It returns the socket.
func dial(to netip.AddrPort, from uint16) (int, error) {
	family, sa := unix.AF_INET6, unix.Sockaddr(&unix.SockaddrInet6{Addr: to.Addr().As16(), Port: int(to.Port())})
	if to.Addr().Is4() {
		family, sa = unix.AF_INET, &unix.SockaddrInet4{Addr: to.Addr().As4(), Port: int(to.Port())}
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &unix.Timeval{Sec: 5})
	unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	if from != 0 {
		if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}, Port: int(from)}); err != nil {
			unix.Close(fd)
			return -1, err
		}
	}
	if err := unix.Connect(fd, sa); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// listen opens a listening socket in the namespace of this thread.
func listen(t *testing.T, address string) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	a := l.Addr().(*net.TCPAddr).AddrPort()
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}

// TestFencedProcessReachesOnlyItsAddresses runs in a network namespace of its own.
func TestFencedProcessReachesOnlyItsAddresses(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("a network namespace needs root")
	}
	runtime.LockOSThread() // never unlocked: the thread, and its namespace, end with the test
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range []string{"192.0.2.7/32", "192.0.2.8/32", "2001:db8::7/128"} {
		addr, _ := netlink.ParseAddr(a)
		addr.Flags = unix.IFA_F_NODAD
		if err := netlink.AddrAdd(lo, addr); err != nil {
			t.Fatal(err)
		}
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		t.Fatal(err)
	}
	good, otherPort, otherHost, six := listen(t, "192.0.2.7:0"), listen(t, "192.0.2.7:0"), listen(t, "192.0.2.8:0"), listen(t, "[2001:db8::7]:0")
	local, otherLocal := listen(t, "127.0.0.1:0"), listen(t, "127.0.0.1:0")
	if err := Fence(Held{UIDs: []uint32{fencedUID}, Peers: []netip.AddrPort{good, six, local}}, Held{UIDs: []uint32{otherUID}, Peers: []netip.AddrPort{otherHost}}); err != nil {
		if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EPROTONOSUPPORT) {
			t.Skip("this kernel has no nf_tables; the image's has, see the tests of board/lab/site: ", err)
		}
		t.Fatal(err)
	}
	for _, c := range []struct {
		what string
		uid  int
		to   netip.AddrPort
		want error
	}{
		{"its address", fencedUID, good, nil},
		{"its IPv6 address", fencedUID, six, nil},
		{"its port here", fencedUID, local, nil},
		{"another port", fencedUID, otherPort, unix.ECONNREFUSED},
		{"another host", fencedUID, otherHost, unix.ECONNREFUSED},
		{"another port here", fencedUID, otherLocal, unix.ECONNREFUSED},
		{"somebody else", 0, otherHost, nil},
		{"the other's address", fencedUID, otherHost, unix.ECONNREFUSED},
		{"the other", otherUID, otherHost, nil},
		{"the other to an address that is not its", otherUID, good, unix.ECONNREFUSED},
	} {
		start := time.Now()
		err := asUID(c.uid, func() error {
			fd, err := dial(c.to, 0)
			if err == nil {
				unix.Close(fd)
			}
			return err
		})
		if !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.what, err, c.want)
		}
		if took := time.Since(start); took > time.Second {
			t.Errorf("%s: known after %v only", c.what, took)
		}
	}
	answersPass(t)
	datagramsDoNot(t, good)
	servesItsPortOnly(t, good)
	if err := Fence(Held{UIDs: []uint32{fencedUID}}); err != nil {
		t.Fatal(err)
	}
	if err := asUID(fencedUID, func() error { _, err := dial(good, 0); return err }); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("a fence without addresses: %v", err)
	}
}

// answersPass lets the fenced one listen on an allowed local port: who connects gets answers, but that port opens no connections.
func answersPass(t *testing.T) {
	t.Helper()
	var at netip.AddrPort
	var server int
	err := asUID(fencedUID, func() (err error) {
		if server, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		if err = unix.Bind(server, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
			return err
		}
		sa, err := unix.Getsockname(server)
		if err != nil {
			return err
		}
		at = netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(sa.(*unix.SockaddrInet4).Port))
		return unix.Listen(server, 1)
	})
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(server)
	if err := Fence(Held{UIDs: []uint32{fencedUID}, Peers: []netip.AddrPort{at}}); err != nil {
		t.Fatal(err)
	}
	fd, err := dial(at, 0)
	if err != nil {
		t.Fatalf("the module can't reach its helper on %v: %v", at, err)
	}
	unix.Close(fd)
	unix.Close(server)
	elsewhere := listen(t, "127.0.0.1:0")
	err = asUID(fencedUID, func() error { _, err := dial(elsewhere, at.Port()); return err })
	if !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("a new connection from the allowed port: %v", err)
	}
}

// datagramsDoNot: only TCP passes, to an allowed address and port as well.
func datagramsDoNot(t *testing.T, to netip.AddrPort) {
	t.Helper()
	err := asUID(fencedUID, func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return unix.Sendto(fd, []byte("x"), 0, &unix.SockaddrInet4{Addr: to.Addr().As4(), Port: int(to.Port())})
	})
	if err == nil || !strings.Contains(err.Error(), "permitted") {
		t.Errorf("a datagram: %v", err)
	}
}

// servesItsPortOnly has the fenced one accept a connection on a socket that root made: its answers pass, and neither that port nor another
// of its sockets opens a connection.
func servesItsPortOnly(t *testing.T, elsewhere netip.AddrPort) {
	t.Helper()
	server, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	unix.SetsockoptInt(server, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	if err := errors.Join(unix.Bind(server, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}), unix.Listen(server, 1)); err != nil {
		t.Fatal(err)
	}
	sa, err := unix.Getsockname(server)
	if err != nil {
		t.Fatal(err)
	}
	at := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(sa.(*unix.SockaddrInet4).Port))
	answer := func() error {
		fd, err := dial(at, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 1})
		if err := asUID(fencedUID, func() error {
			conn, _, err := unix.Accept4(server, unix.SOCK_CLOEXEC)
			if err != nil {
				return err
			}
			defer unix.Close(conn)
			_, err = unix.Write(conn, []byte("x"))
			return err
		}); err != nil {
			return err
		}
		n, err := unix.Read(fd, make([]byte, 1))
		if err == nil && n != 1 {
			return errors.New("the connection ended")
		}
		return err
	}
	if err := Fence(Held{UIDs: []uint32{fencedUID}}); err != nil {
		t.Fatal(err)
	}
	if answer() == nil {
		t.Error("an answer from a port that the fenced one does not serve: what it accepts is not counted as its own")
	}
	if err := Fence(Held{UIDs: []uint32{fencedUID}, Serves: []uint16{at.Port()}}); err != nil {
		t.Fatal(err)
	}
	if err := answer(); err != nil {
		t.Errorf("an answer from the port that it serves: %v", err)
	}
	unix.Close(server)
	for _, from := range []uint16{0, at.Port()} {
		err := asUID(fencedUID, func() error { _, err := dial(elsewhere, from); return err })
		if !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("a connection of its own from port %d: %v", from, err)
		}
	}
}
