package netdev_test

import (
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/strait-net/strait/internal/datapath/netdev"
)

// The first thread of the process stays in its namespaces, whichever thread a goroutine happens to begin on.
func TestThrowawayIsNeverTheFirstThread(t *testing.T) {
	var first atomic.Int64
	for range 20 {
		var running sync.WaitGroup
		for range 50 {
			running.Add(1)
			netdev.Throwaway(func() {
				defer running.Done()
				if unix.Gettid() == unix.Getpid() {
					first.Add(1)
				}
			})
		}
		running.Wait()
	}
	if n := first.Load(); n > 0 {
		t.Errorf("%d of 1000 ran on the first thread", n)
	}
}
