package metric

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/strait-net/strait/internal/reconcile"
	"github.com/strait-net/strait/internal/state"
	"github.com/strait-net/strait/internal/table"
)

// forgetAfter is how long a change may have no effect on any frontend before it is taken for one that has none.
const forgetAfter = time.Minute

// Programming measures how long changes of endpoints take: from when Kubernetes says that something changed until the kernel holds every
// frontend of the service. It follows two tables and costs a look-up per changed row.
type Programming struct {
	took      prometheus.Histogram
	since     time.Time // changes before it happened while nobody measured
	frontends *table.Table[state.Frontend]
	pending   map[state.ServiceName]change
}

// change is one whose effect has not been seen in the kernel yet.
type change struct{ trigger, noticed time.Time }

// NewProgramming registers the histogram. since is when the agent began.
func NewProgramming(reg prometheus.Registerer, since time.Time) *Programming {
	p := &Programming{
		since: since, pending: map[state.ServiceName]change{},
		took: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "strait_service_programming_duration_seconds",
			Help: "Time from a change of a service's endpoints, as its EndpointSlice notes it (to the second where a pod's readiness is the cause), " +
				"until the kernel holds it.",
			Buckets: prometheus.ExponentialBuckets(1e-3, 2, 17), // 1 ms to 66 s
		}),
	}
	reg.MustRegister(p.took)
	return p
}

// Run measures until ctx ends.
func (p *Programming) Run(ctx context.Context, endpoints *table.Table[state.EndpointSlice], frontends *table.Table[state.Frontend]) error {
	p.frontends = frontends
	changedSlices, changedFrontends := endpoints.Changes(), frontends.Changes()
	defer changedSlices.Close()
	defer changedFrontends.Close()
	forget := time.NewTicker(forgetAfter)
	defer forget.Stop()
	for {
		// In this order: a frontend that is in the kernel because of a slice is seen after the slice.
		slices, moreSlices := changedSlices.Next()
		for _, c := range slices {
			p.notice(c.Row, time.Now())
		}
		rows, moreFrontends := changedFrontends.Next()
		for _, c := range rows {
			p.settle(c.Row.Service)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-moreSlices:
		case <-moreFrontends:
		case now := <-forget.C:
			p.forget(now)
		}
	}
}

// notice takes a slice that has changed. Of changes that follow each other before the kernel holds any, the first counts.
func (p *Programming) notice(s state.EndpointSlice, now time.Time) {
	if s.Trigger.Before(p.since) {
		return
	}
	old, waiting := p.pending[s.Service]
	if waiting && !s.Trigger.After(old.trigger) {
		return
	}
	if _, done := p.written(s.Service); waiting && !done {
		return
	}
	p.pending[s.Service] = change{s.Trigger, now}
}

// settle looks whether the kernel holds a service now.
func (p *Programming) settle(service state.ServiceName) {
	c, waiting := p.pending[service]
	if !waiting {
		return
	}
	if at, done := p.written(service); done && at.After(c.trigger) {
		p.took.Observe(at.Sub(c.trigger).Seconds())
		delete(p.pending, service)
	}
}

// written returns when the last frontend of a service came into the kernel; done is false while some are on the way.
func (p *Programming) written(service state.ServiceName) (at time.Time, done bool) {
	for f := range p.frontends.Snapshot().By(state.FrontendsByService, service.String()) {
		if f.Kind != reconcile.Done {
			return time.Time{}, false
		}
		if f.Updated.After(at) {
			at = f.Updated
		}
	}
	return at, true
}

// forget drops changes that changed no frontend: a pod that is not ready came, a service without an address.
func (p *Programming) forget(now time.Time) {
	for service, c := range p.pending {
		if _, done := p.written(service); done && now.Sub(c.noticed) >= forgetAfter {
			delete(p.pending, service)
		}
	}
}
