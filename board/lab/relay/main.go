// Command relay is the helper process of the lab's own HSM pack: it forwards a unix socket to a token over TCP, as vendors' daemons do. It
// also tells the lab what a helper process can see and reach on a node, over a second TCP connection that it opens itself.
//
//	relay SOCKET TOKEN CONTROL
//
// CONTROL gets one question a line, and one line answers each: "dial ADDRESS", "list FOLDER", "hash FILE", "write FILE", "who", "die".
package main

import (
	"bufio"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"
)

func main() {
	if len(os.Args) != 4 {
		fmt.Fprintln(os.Stderr, "usage: relay SOCKET TOKEN CONTROL")
		os.Exit(2)
	}
	l, err := net.Listen("unix", os.Args[1])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println("relay to", os.Args[2])
	go answer(os.Args[3])
	for {
		c, err := l.Accept()
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		go forward(c, os.Args[2])
	}
}

func forward(c net.Conn, to string) {
	defer c.Close()
	d, err := net.DialTimeout("tcp", to, 5*time.Second)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return
	}
	defer d.Close()
	var both sync.WaitGroup
	for _, pair := range [][2]net.Conn{{c, d}, {d, c}} {
		both.Go(func() {
			io.Copy(pair[0], pair[1])
			pair[0].Close()
		})
	}
	both.Wait()
}

// answer connects to the lab again and again.
func answer(control string) {
	for {
		c, err := net.DialTimeout("tcp", control, 5*time.Second)
		if err == nil {
			for s := bufio.NewScanner(c); s.Scan(); {
				word, arg, _ := strings.Cut(s.Text(), " ")
				fmt.Fprintln(c, strings.ReplaceAll(do(word, arg), "\n", " "))
			}
			c.Close()
		}
		time.Sleep(200 * time.Millisecond)
	}
}

func do(word, arg string) string {
	var out string
	var err error
	switch word {
	case "dial":
		var c net.Conn
		if c, err = net.DialTimeout("tcp", arg, 5*time.Second); err == nil {
			c.Close()
			out = "connected"
		}
	case "list":
		var list []os.DirEntry
		list, err = os.ReadDir(arg)
		for _, e := range list {
			out += e.Name() + " "
		}
	case "hash":
		var data []byte
		data, err = os.ReadFile(arg)
		out = fmt.Sprintf("%x", sha256.Sum256(data))
	case "write":
		err = os.WriteFile(arg, []byte("x"), 0o600)
	case "who":
		out = fmt.Sprintf("uid %d gid %d", os.Getuid(), os.Getgid())
	case "die":
		syscall.Kill(os.Getpid(), syscall.SIGKILL)
	}
	if err != nil {
		return "error: " + err.Error()
	}
	return strings.TrimSpace("ok " + out)
}
