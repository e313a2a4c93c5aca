package main

import (
	"context"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"
)

// load attests and, with --in, rolls --n times with --c at once, checks every answer, and prints rates. It stops at the first failure:
// a load that is answered wrongly measures nothing.
func load(o *options) error {
	host, err := o.readKey(fileHostKey)
	if err != nil {
		return err
	}
	vsm, err := o.readKey(fileVSMKey)
	if err != nil {
		return err
	}
	c, err := o.httpClient()
	if err != nil {
		return err
	}
	var protector, certificate []byte
	if o.in != "" {
		if protector, err = os.ReadFile(o.in); err != nil {
			return err
		}
		if certificate, err = os.ReadFile(o.path(fileHealth)); err != nil {
			return err
		}
	}
	if o.n < 1 || o.n > 1_000_000 || o.c < 1 || o.c > 256 {
		return fmt.Errorf("%w: -n is 1 to 1000000, -c is 1 to 256", errUsage)
	}
	attestURL := o.url
	if attestURL != "" {
		err := o.measure("attestations", func(ctx context.Context) error {
			w := *o
			w.url, w.facts = attestURL, map[string]any{}
			_, err := w.attest(ctx, c, host, vsm)
			return err
		})
		if err != nil {
			return err
		}
	}
	if protector != nil {
		return o.measure("rolls", func(ctx context.Context) error {
			w := *o
			w.facts = map[string]any{}
			rolled, err := w.roll(ctx, c, protector, certificate, vsm)
			if err == nil {
				rolled.Wipe()
			}
			return err
		})
	}
	return nil
}

// measure runs op o.n times with o.c at once. Latencies in milliseconds.
func (o *options) measure(what string, op func(context.Context) error) error {
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	work := make(chan struct{})
	var mu sync.Mutex
	var took []time.Duration
	var wg sync.WaitGroup
	for range o.c {
		wg.Go(func() {
			for range work {
				t := time.Now()
				if err := op(ctx); err != nil {
					cancel(err)
					return
				}
				mu.Lock()
				took = append(took, time.Since(t))
				mu.Unlock()
			}
		})
	}
	start := time.Now()
feed:
	for range o.n {
		select {
		case work <- struct{}{}:
		case <-ctx.Done():
			break feed
		}
	}
	close(work)
	wg.Wait()
	if err := context.Cause(ctx); err != nil {
		return fmt.Errorf("%s, after %d: %w", what, len(took), err)
	}
	elapsed := time.Since(start)
	slices.Sort(took)
	ms := func(q float64) float64 { return float64(took[int(q*float64(len(took)-1))].Microseconds()) / 1000 }
	rate := float64(len(took)) / elapsed.Seconds()
	o.say(what+"PerSecond", rate, "%-13s %6d in %6.1f s  %7.1f/s  p50 %.1f ms  p99 %.1f ms", what, len(took), elapsed.Seconds(), rate, ms(0.5), ms(0.99))
	return nil
}
