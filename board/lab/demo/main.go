// Demo tells one story with a real node: real firmware, a real TPM, a real PKCS#11 token outside the machine, real HTTP. Each line has a
// control that could fail; the exit code is 0 only if every line and every control held.
//
//	demo -build .build [-hsm attached] [-chapter foundation|tpm|rotation|time|sealed|all]
//
// The chapter's node keeps its state below BUILD/lab/demo: `make run NODE=demo` returns to it.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"guardhouse/board/lab/site"
)

// chapters in the order in which CHAPTER=all runs them; each may take chapterLimit.
var chapters = []struct {
	name string
	tell func(context.Context, *teller, *story) error
}{
	{"foundation", foundation},
	{"tpm", tpm},
	{"rotation", rotation},
	{"time", clock},
	{"sealed", sealed},
}

const chapterLimit = 10 * time.Minute

func main() {
	build := flag.String("build", ".build", "folder of image, caches and the node's state")
	hsm := flag.String("hsm", "attached", "HSM variant of the image: attached, embedded, or a module's path")
	chapter := flag.String("chapter", "foundation", "which chapter, or all")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	os.Exit(run(ctx, *build, *hsm, *chapter))
}

func run(ctx context.Context, build, hsm, chapter string) int {
	t := newTeller(os.Stdout)
	build, err := filepath.Abs(build)
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		return 1
	}
	s := &story{build: build, hsm: hsm}
	if err := s.prepare(ctx, t); err != nil {
		return 1
	}
	told := 0
	for _, c := range chapters {
		if chapter != c.name && chapter != "all" {
			continue
		}
		told++
		cctx, cancel := context.WithTimeout(ctx, chapterLimit)
		err := c.tell(cctx, t, s)
		cancel()
		if err != nil {
			return 1
		}
	}
	if told == 0 {
		fmt.Fprintf(os.Stderr, "demo: there is no chapter %q; there is:", chapter)
		for _, c := range chapters {
			fmt.Fprintf(os.Stderr, " %s", c.name)
		}
		fmt.Fprintln(os.Stderr, " all")
		return 2
	}
	t.end("every line and its control held; the node's state is in %s", filepath.Join(build, "lab"))
	return 0
}

// story is what chapters share: the image, the workstation's tool, and how a chapter opens its site.
type story struct {
	build, hsm string
	hostsim    string
	image      site.Image
}

func (s *story) prepare(ctx context.Context, t *teller) error {
	return t.step("image", "the image is being built (the log is "+site.ImageLog(s.build, s.hsm)+")", func() (string, error) {
		img, err := site.BuildImage(ctx, s.build, s.hsm)
		if err != nil {
			return "", err
		}
		s.image = img
		if s.hostsim, err = buildHostsim(ctx, s.build); err != nil {
			return "", err
		}
		return fmt.Sprintf("%.1f MiB, predicted PCR 4 %s PCR 11 %s", float64(img.Size)/(1<<20), short(img.PCRs[4]), short(img.PCRs[11])), nil
	})
}

// open is a chapter's site: begun anew, with the image and the HSM variant that were asked for. o holds what is the chapter's own.
func (s *story) open(ctx context.Context, t *teller, o site.Options) (*site.Site, error) {
	o.Build, o.HSM, o.Fresh = s.build, s.hsm, true
	opened, err := site.Open(ctx, o, s.image)
	if err != nil {
		return nil, t.step("lab", "", func() (string, error) { return "", err })
	}
	return opened, nil
}
