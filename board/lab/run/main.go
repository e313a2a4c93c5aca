// Run boots one node in the lab with its serial line in this terminal.
//
//	run -build .build [-hsm attached] [-node blank|demo|NAME]
//	run -build .build [-node NAME] -encrypt age1...     print what setup of that node asks for second
//
// "blank" is a new machine every time; any other name keeps its disk and TPM between runs, "demo" is the demo's node. Ctrl-C ends the
// machine and everything around it; the state stays in the folder that is printed.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"golang.org/x/term"

	"guardhouse/board/lab/site"
)

const ctrlC = 0x03

func main() {
	build := flag.String("build", ".build", "folder of image, caches and nodes")
	hsm := flag.String("hsm", "attached", "HSM variant of the image")
	node := flag.String("node", "blank", "blank, demo, or another name")
	recipient := flag.String("encrypt", "", "print an example of the secrets file for the node, encrypted to its setup `key`")
	flag.Parse()
	if *recipient != "" {
		text, err := site.ExampleSecrets(filepath.Join(*build, "lab", *node), *recipient)
		if err != nil {
			fmt.Fprintln(os.Stderr, "run:", err)
			os.Exit(1)
		}
		os.Stdout.Write(text)
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	if err := run(ctx, *build, *hsm, *node); err != nil && ctx.Err() == nil {
		fmt.Fprintln(os.Stderr, "run:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, build, hsm, node string) error {
	fmt.Println("To leave: Ctrl-C. It switches the machine off and leaves no process.")
	build, err := filepath.Abs(build)
	if err != nil {
		return err
	}
	dir := filepath.Join(build, "lab", node)
	if _, err := os.Stat(dir); node != "blank" && errors.Is(err, os.ErrNotExist) && node == "demo" {
		return errors.New("there is no demo node yet: make demo makes it")
	}
	img, kept := site.Kept(build, node)
	if node == "blank" || !kept {
		fmt.Println("Building the image; the log is", site.ImageLog(build, hsm))
		if img, err = site.BuildImage(ctx, build, hsm); err != nil {
			return err
		}
	}
	s, err := site.Open(ctx, site.Options{Build: build, Name: node, HSM: hsm, Fresh: node == "blank"}, img)
	if err != nil {
		return err
	}
	defer s.Close()
	if err := s.Boot(ctx); err != nil {
		return err
	}
	if err := s.Describe(os.Stdout); err != nil {
		return err
	}
	return attach(ctx, s)
}

// attach joins the terminal to the serial line. The terminal is raw meanwhile, so that each key reaches the node; Ctrl-C alone does not.
func attach(ctx context.Context, s *site.Site) error {
	fd := int(os.Stdin.Fd())
	if term.IsTerminal(fd) {
		old, err := term.MakeRaw(fd)
		if err != nil {
			return err
		}
		defer term.Restore(fd, old)
	}
	return s.Node.Serial.Attach(ctx, os.Stdin, os.Stdout, ctrlC)
}
