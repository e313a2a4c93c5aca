package main

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"guardhouse/appliance/sandbox"
)

// int80 makes a system call the way i386 programs do.
func int80()

// calls makes the calls, each name=number without arguments, then does the work of a service in dir. A call that ends the process is the
// last one, of course.
func calls(dir string, list []string) {
	for _, c := range list {
		name, number, _ := strings.Cut(c, "=")
		nr, err := strconv.Atoi(number)
		switch {
		case name == "int80":
			int80()
		case err != nil:
			fmt.Println(err)
			os.Exit(1)
		default:
			say(name, call(uintptr(nr)))
		}
	}
	for name, s := range map[string][3]int{"unix": {unix.AF_UNIX, unix.SOCK_STREAM}, "tcp": {unix.AF_INET6, unix.SOCK_STREAM}, "udp": {unix.AF_INET, unix.SOCK_DGRAM},
		"route": {unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_ROUTE}, "audit": {unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_AUDIT},
		"vsock": {unix.AF_VSOCK, unix.SOCK_STREAM}, "alg": {unix.AF_ALG, unix.SOCK_SEQPACKET}} {
		fd, err := unix.Socket(s[0], s[1]|unix.SOCK_CLOEXEC, s[2])
		if err == nil {
			unix.Close(fd)
		}
		say("socket "+name, err)
	}
	say("passwd", open("/etc/passwd", unix.O_RDONLY))
	say("service", service(dir))
	say("start a program", unix.Exec("/bin/true", []string{"true"}, nil))
}

// service is what all services do: threads, memory, files in folders, a door of their own.
func service(dir string) error {
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			runtime.LockOSThread()
			sha256.Sum256(make([]byte, 1<<20))
		})
	}
	wg.Wait()
	runtime.GC()
	sub, moved := filepath.Join(dir, "sub"), filepath.Join(dir, "moved")
	if err := os.Mkdir(sub, 0o700); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(sub, "file"), []byte("x"), 0o600); err != nil {
		return err
	}
	if err := os.Rename(filepath.Join(sub, "file"), moved); err != nil { // to another folder
		return err
	}
	door, err := net.Listen("unix", filepath.Join(dir, "door"))
	if err != nil {
		return err
	}
	defer door.Close()
	go func() {
		if c, err := door.Accept(); err == nil {
			c.Write([]byte("y"))
			c.Close()
		}
	}()
	c, err := net.Dial("unix", filepath.Join(dir, "door"))
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = c.Read(make([]byte, 1))
	return err
}

// narrow gives up what the worker of software keys does, and has threads from before and after it try what is left.
func narrow() {
	start, told := make(chan bool), make(chan error)
	try := func() {
		runtime.LockOSThread()
		<-start
		told <- open("/etc/passwd", unix.O_RDONLY)
	}
	for range 4 {
		go try()
	}
	for range 100 { // until they have their threads
		runtime.Gosched()
	}
	say("narrow", sandbox.SoftwareKeysFilter.Narrow())
	for range 4 {
		go try()
	}
	close(start)
	for i := range 8 {
		say(fmt.Sprint("open ", i), <-told)
	}
	_, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	say("socket", err)
	say("connect", unix.Connect(3, &unix.SockaddrUnix{Name: "@x"}))
	say("start a program", unix.Exec("/bin/true", []string{"true"}, nil))
	say("fork", call(unix.SYS_CLONE, uintptr(unix.SIGCHLD)))
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err == nil {
		_, err = rsa.SignPKCS1v15(nil, key, crypto.SHA256, make([]byte, 32))
	}
	say("sign", err)
	say("trace", call(unix.SYS_PTRACE))
}
