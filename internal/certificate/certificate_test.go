package certificate

import (
	"flag"
	"fmt"
	"slices"
	"testing"
	"time"
)

var rounds = flag.Int("rounds", 1, "how often each of the simulated lives is lived")

// Years with wrong clocks, parties that read late, leaders that write late, two leaders, absent leaders, deletions and broken content: parties
// know each other all the time, unless the authority was lost and a leaf with it.
func TestPartiesKnowEachOther(t *testing.T) {
	day := 24 * time.Hour
	runs := []struct{ days, years float64 }{{90, 5}, {365, 5}, {30, 3}, {7, 2.5}, {1, 0.5}}
	for seed, c := range slices.Repeat(runs, *rounds) {
		t.Run(fmt.Sprintf("%d with %v days", seed, c.days), func(t *testing.T) {
			start := time.Now()
			w := newWorld(t, uint64(seed), time.Duration(c.days*float64(day)))
			w.run(time.Duration(c.years * float64(365*day)))
			t.Logf("%d checks, %d excused, %d disturbances, %d authorities, %v, %s", w.checks, w.excuses, w.disturbed, len(w.authorities), w.reasons, time.Since(start).Round(time.Millisecond))
		})
	}
}
