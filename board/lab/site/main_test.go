//go:build qemu

package site

import (
	"flag"
	"os"
	"testing"
)

// TestMain runs one machine at a time: with Secure Boot two machines without hardware virtualisation starve each other on two processors,
// until QEMU answers no connection for minutes.
func TestMain(m *testing.M) {
	flag.Parse()
	if err := flag.Set("test.parallel", "1"); err != nil {
		panic(err) // the flag is the testing package's own
	}
	os.Exit(m.Run())
}
