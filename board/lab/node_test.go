package lab

import (
	"context"
	"regexp"
	"testing"
	"time"
)

func testLab(t *testing.T) *Lab {
	t.Helper()
	l, err := New(t.Context(), Options{Dir: t.TempDir(), Cache: cacheDir(t), Accel: "tcg", Logf: t.Logf})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func TestNodeReachesItsFirmware(t *testing.T) {
	l := testLab(t)
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	n, err := l.StartNode(ctx, NodeOptions{Name: "a", Cluster: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.Serial.Expect(ctx, regexp.MustCompile(`No bootable option|BdsDxe|Shell>`)); err != nil {
		t.Fatal(err)
	}
	t.Log(time.Since(n.Started), n.Addr(80), n.Disk.Stats())
}
