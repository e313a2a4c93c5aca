package lab

import (
	"context"
	"fmt"
	"os"
	"testing"
	"time"
)

// holdEnv makes this test binary start a lab in the named folder and wait for its death.
const holdEnv = "LAB_TEST_HOLD"

func TestMain(m *testing.M) {
	if dir := os.Getenv(holdEnv); dir != "" {
		hold(dir)
	}
	os.Exit(m.Run())
}

func testLab(t testing.TB) *Lab {
	t.Helper()
	l, err := New(t.Context(), Options{Dir: t.TempDir(), Cache: cacheDir(t), Accel: "tcg", Logf: t.Logf})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func timeout(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// hold runs in a child: a lab with one of everything, whose process ids it prints.
func hold(dir string) {
	l, err := New(context.Background(), Options{Dir: dir, Cache: os.Getenv("LAB_TEST_CACHE"), Accel: "tcg"})
	check := func(err error) {
		if err != nil {
			fmt.Println("error:", err)
			os.Exit(1)
		}
	}
	check(err)
	tok, err := l.NewToken(context.Background(), "guardhouse")
	check(err)
	_, err = l.TimeServers(context.Background(), 1)
	check(err)
	_, err = l.StartNode(context.Background(), NodeOptions{Name: "a", Token: tok, DataMB: 16})
	check(err)
	_, err = tok.spawn(context.Background())
	check(err)
	l.procs.mu.Lock()
	for p := range l.procs.procs {
		fmt.Print(p.cmd.Process.Pid, " ")
	}
	l.procs.mu.Unlock()
	fmt.Println()
	time.Sleep(time.Minute)
}
