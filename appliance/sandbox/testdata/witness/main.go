// Witness tries what a confined process must not do and what it must be able to, and tells how each went: name, tab, result.
package main

import (
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

func say(what string, err error) {
	result := "ok"
	if err != nil {
		result = err.Error()
		if errno, ok := err.(unix.Errno); ok {
			result = unix.ErrnoName(errno)
		}
	}
	fmt.Printf("%s:\t%s\n", what, result)
}

// open tries a path as openat alone answers.
func open(path string, flags int) error {
	fd, err := unix.Open(path, flags, 0o600)
	if err == nil {
		unix.Close(fd)
	}
	return err
}

func call(number uintptr, args ...uintptr) error {
	var a [6]uintptr
	copy(a[:], args)
	if _, _, e := unix.Syscall6(number, a[0], a[1], a[2], a[3], a[4], a[5]); e != 0 {
		return e
	}
	return nil
}

func main() {
	switch os.Args[1] {
	case "calls":
		calls(os.Args[2], os.Args[3:])
		return
	case "narrow":
		narrow()
		return
	}
	allowed, other := os.Args[1], os.Args[2]
	say("allowed file", open(allowed, unix.O_RDONLY))
	say("write allowed file", open(allowed, unix.O_WRONLY))
	say("other file", open(other, unix.O_RDONLY))
	say("passwd", open("/etc/passwd", unix.O_RDONLY))
	say("root folder", open("/", unix.O_RDONLY|unix.O_DIRECTORY))
	say("new file", open(other+".new", unix.O_CREAT|unix.O_WRONLY))
	for name, family := range map[string]int{"inet": unix.AF_INET, "inet6": unix.AF_INET6, "unix": unix.AF_UNIX, "netlink": unix.AF_NETLINK, "packet": unix.AF_PACKET} {
		_, err := unix.Socket(family, unix.SOCK_STREAM, 0)
		say("socket "+name, err)
	}
	say("connect", unix.Connect(3, &unix.SockaddrUnix{Name: "@x"}))
	say("start a program", unix.Exec("/bin/true", []string{"true"}, nil))
	_, err := unix.MemfdCreate("x", 0)
	say("program in memory", err)
	_, err = unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE|unix.PROT_EXEC, unix.MAP_PRIVATE|unix.MAP_ANON)
	say("code in memory", err)
	if os.Args[3] == "fork" { // where it succeeds, half a program goes on in the child
		say("fork", call(unix.SYS_CLONE, uintptr(unix.SIGCHLD)))
		say("vfork", call(unix.SYS_VFORK))
	}
	say("signal others", unix.Kill(unix.Getppid(), 0))
	say("trace", call(unix.SYS_PTRACE, unix.PTRACE_ATTACH, 1))
	say("mount", unix.Mount("none", "/tmp", "tmpfs", 0, ""))
	say("key", call(unix.SYS_ADD_KEY))
	say("ring", call(unix.SYS_IO_URING_SETUP, 1))
	say("namespace", unix.Unshare(unix.CLONE_NEWUSER))
	say("unlink", unix.Unlink(other))
	say("work", work())
}

// work is what reads a bundle does: a stream, threads, memory, a file that comes over a socket.
func work() error {
	var wg sync.WaitGroup
	for range 8 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			runtime.LockOSThread()
			b := make([]byte, 8<<20)
			sha256.Sum256(b)
			time.Sleep(time.Millisecond)
		}()
	}
	wg.Wait()
	runtime.GC()
	if n, err := io.Copy(io.Discard, os.Stdin); err != nil || n != 1<<20 {
		return fmt.Errorf("read %d: %w", n, err)
	}
	oob := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(3, make([]byte, 1), oob, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return err
	}
	messages, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil {
		return err
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fds[0]), "slot")
	if _, err := f.WriteAt([]byte("release"), 512); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := unix.Fadvise(fds[0], 0, 0, unix.FADV_DONTNEED); err != nil {
		return err
	}
	_, err = f.ReadAt(make([]byte, 7), 512)
	return err
}
