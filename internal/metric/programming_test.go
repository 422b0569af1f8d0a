package metric_test

import (
	"context"
	"net/netip"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/strait-net/strait/internal/metric"
	"github.com/strait-net/strait/internal/reconcile"
	"github.com/strait-net/strait/internal/state"
)

// programming runs the measurement on tables of its own and returns the histogram's count and sum.
func programming(t *testing.T, since time.Time) (st *state.State, measured func() (uint64, float64)) {
	t.Helper()
	reg := prometheus.NewPedanticRegistry()
	p := metric.NewProgramming(reg, since)
	st = state.New()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = p.Run(ctx, st.EndpointSlices, st.Frontends) }()
	t.Cleanup(func() { cancel(); <-done })
	return st, func() (uint64, float64) {
		families, err := reg.Gather()
		if err != nil {
			t.Fatal(err)
		}
		h := families[0].GetMetric()[0].GetHistogram()
		return h.GetSampleCount(), h.GetSampleSum()
	}
}

var web = state.ServiceName{Namespace: "shop", Name: "web"}

func sliceAt(trigger time.Time) state.EndpointSlice {
	return state.EndpointSlice{Namespace: "shop", Name: "web-1", Service: web, Trigger: trigger}
}

func frontendAt(address string, kind reconcile.Kind, at time.Time) state.Frontend {
	return state.Frontend{Address: netip.MustParseAddr(address), Port: 80, Protocol: state.TCP, Service: web, Status: reconcile.Status{Kind: kind, Updated: at}}
}

func eventually(t *testing.T, measured func() (uint64, float64), count uint64) (sum float64) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
		n, sum := measured()
		if n == count {
			return sum
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d measurements, want %d", n, count)
		}
	}
}

func TestProgrammingWaitsForEveryFrontend(t *testing.T) {
	begin := time.Now()
	st, measured := programming(t, begin)
	trigger := begin.Add(time.Second)
	st.Frontends.Insert(frontendAt("10.96.0.7", reconcile.Done, begin), frontendAt("fd00::7", reconcile.Done, begin))
	st.EndpointSlices.Insert(sliceAt(trigger))
	st.Frontends.Insert(frontendAt("10.96.0.7", reconcile.Pending, time.Time{}), frontendAt("fd00::7", reconcile.Pending, time.Time{}))
	st.Frontends.Insert(frontendAt("10.96.0.7", reconcile.Done, trigger.Add(3*time.Second)))
	st.Frontends.Insert(frontendAt("fd00::7", reconcile.Error, trigger.Add(3*time.Second)))
	time.Sleep(20 * time.Millisecond)
	if n, _ := measured(); n != 0 {
		t.Fatalf("measured while a frontend is not in the kernel")
	}
	st.Frontends.Insert(frontendAt("fd00::7", reconcile.Done, trigger.Add(5*time.Second)))
	if sum := eventually(t, measured, 1); sum != 5 {
		t.Errorf("took %v s, want 5", sum)
	}
	// Once is enough.
	st.Frontends.Insert(frontendAt("10.96.0.7", reconcile.Done, trigger.Add(9*time.Second)))
	time.Sleep(20 * time.Millisecond)
	if n, _ := measured(); n != 1 {
		t.Errorf("%d measurements of one change", n)
	}
}

func TestProgrammingOfChangesThatAreNotMeasured(t *testing.T) {
	begin := time.Now()
	st, measured := programming(t, begin)
	st.EndpointSlices.Insert(sliceAt(begin.Add(-time.Second))) // before anybody measured
	st.Frontends.Insert(frontendAt("10.96.0.7", reconcile.Done, begin.Add(time.Second)))
	st.EndpointSlices.Insert(sliceAt(time.Time{})) // without a note
	st.Frontends.Insert(frontendAt("10.96.0.7", reconcile.Done, begin.Add(2*time.Second)))
	st.EndpointSlices.Insert(sliceAt(begin.Add(time.Minute)))
	st.Frontends.Insert(frontendAt("10.96.0.7", reconcile.Done, begin.Add(3*time.Second))) // written before the change
	time.Sleep(20 * time.Millisecond)
	if n, _ := measured(); n != 0 {
		t.Errorf("%d measurements, want none", n)
	}
}

// Changes that come faster than the kernel is written count from the first.
func TestProgrammingOfChangesInARow(t *testing.T) {
	begin := time.Now()
	st, measured := programming(t, begin)
	st.Frontends.Insert(frontendAt("10.96.0.7", reconcile.Pending, time.Time{}))
	st.EndpointSlices.Insert(sliceAt(begin.Add(time.Second)))
	time.Sleep(10 * time.Millisecond)
	st.EndpointSlices.Insert(sliceAt(begin.Add(2 * time.Second)))
	time.Sleep(10 * time.Millisecond)
	st.Frontends.Insert(frontendAt("10.96.0.7", reconcile.Done, begin.Add(4*time.Second)))
	if sum := eventually(t, measured, 1); sum != 3 {
		t.Errorf("took %v s, want 3", sum)
	}
}
