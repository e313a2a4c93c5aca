//go:build qemu

package site

import (
	"context"
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// buildDir is .build at the module's root, where make keeps everything, or GUARDHOUSE_BUILD.
func buildDir(t testing.TB) string {
	t.Helper()
	if dir := os.Getenv("GUARDHOUSE_BUILD"); dir != "" {
		return dir
	}
	root, err := moduleRoot(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(root, ".build")
}

// BenchmarkPowerOn boots a node that is set up, again and again, until it answers its first getinfo. Metrics: s/power-on-to-getinfo,
// s/pid1-to-getinfo (the node's own uptime at that moment, which begins at the kernel's start), MiB of UKI, MiB resident in all services,
// and from the network's settings being in force, and from the clock's first question, to the first trusted time.
func BenchmarkPowerOn(b *testing.B) {
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Minute)
	defer cancel()
	build := buildDir(b)
	img, err := BuildImage(ctx, build, "")
	if err != nil {
		b.Fatal(err)
	}
	s, err := Open(ctx, Options{Build: build, Name: "bench", Fresh: true}, img)
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	if err := s.Boot(ctx); err != nil {
		b.Fatal(err)
	}
	if _, err := s.WaitReady(ctx); err != nil {
		b.Fatal(err)
	}
	if _, err := s.SetUp(ctx); err != nil {
		b.Fatal(err)
	}
	var wall, up, rss, network, asked float64
	n := 0
	for b.Loop() {
		s.Node.Kill()
		if err := s.Boot(ctx); err != nil {
			b.Fatal(err)
		}
		if err := s.waitGetinfo(ctx); err != nil {
			b.Fatal(err)
		}
		wall += time.Since(s.Node.Started).Seconds()
		var st struct {
			Init struct {
				Up       time.Duration `json:"up"`
				Services []struct {
					RSS int64 `json:"rss"`
				} `json:"services"`
			} `json:"init"`
		}
		before := time.Now()
		for { // SSH stays closed until the console has the records
			if err = s.JSON(ctx, nil, &st, "status"); err == nil || ctx.Err() != nil || time.Since(before) > 20*time.Second {
				break
			}
			time.Sleep(100 * time.Millisecond)
		}
		if err != nil {
			b.Fatal(err)
		}
		up += (st.Init.Up - time.Since(before)).Seconds()
		rss = 0
		for _, svc := range st.Init.Services {
			rss += float64(svc.RSS)
		}
		var c clockNow
		for c.SinceNetwork == 0 && time.Since(before) < 20*time.Second {
			if err := s.JSON(ctx, nil, &c, "time", "status"); err != nil {
				b.Fatal(err)
			}
			time.Sleep(100 * time.Millisecond)
		}
		if c.SinceNetwork == 0 {
			b.Fatalf("no trusted time since the network is up: %+v", c)
		}
		network, asked = network+c.SinceNetwork.Seconds(), asked+c.SinceLock.Seconds()
		n++
	}
	b.ReportMetric(wall/float64(n), "s/power-on-to-getinfo")
	b.ReportMetric(up/float64(n), "s/kernel-start-to-getinfo")
	b.ReportMetric(network/float64(n), "s/network-up-to-trusted")
	b.ReportMetric(asked/float64(n), "s/first-question-to-trusted")
	b.ReportMetric(float64(img.Size)/(1<<20), "MiB/UKI")
	b.ReportMetric(rss/(1<<20), "MiB/services")
	b.ReportMetric(0, "ns/op")
}

// waitGetinfo asks until the service says that it serves.
func (s *Site) waitGetinfo(ctx context.Context) error {
	c := http.Client{Timeout: time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	for {
		resp, err := c.Get(s.URL("/Attestation/Getinfo"))
		if err == nil {
			var info struct{ OperationMode int }
			err = json.NewDecoder(resp.Body).Decode(&info)
			resp.Body.Close()
			if err == nil && info.OperationMode != 0 {
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
}
