package metric

import (
	"context"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/strait-net/strait/internal/localapi"
)

// collectTimeout bounds the making of a Status during a scrape.
const collectTimeout = 5 * time.Second

// Agent is the metrics of the agent: histograms it is told of, and everything else read from the Status at each scrape.
type Agent struct {
	reconcile       *prometheus.HistogramVec
	reconcileErrors *prometheus.CounterVec
	cni             *prometheus.HistogramVec
}

// NewAgent registers the agent's metrics. status is called at each scrape.
func NewAgent(reg prometheus.Registerer, status func(context.Context) (localapi.Status, error)) *Agent {
	a := &Agent{
		reconcile: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "strait_reconcile_duration_seconds",
			Help:    "Time of one operation of a reconciler on the kernel, by table and operation (update, delete, prune).",
			Buckets: prometheus.ExponentialBuckets(10e-6, 4, 10), // 10 us to 2.6 s
		}, []string{"table", "operation"}),
		reconcileErrors: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "strait_reconcile_errors_total",
			Help: "Operations of a reconciler that failed and are tried again, by table and operation.",
		}, []string{"table", "operation"}),
		cni: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "strait_cni_request_duration_seconds",
			Help:    "Time of a CNI request inside the agent, by verb and CNI error code (0: success).",
			Buckets: prometheus.ExponentialBuckets(0.5e-3, 2, 14), // 0.5 ms to 4 s
		}, []string{"verb", "code"}),
	}
	reg.MustRegister(a.reconcile, a.reconcileErrors, a.cni, newStatusCollector(status))
	return a
}

// Reconciler returns the Observe function of the reconciler of a table.
func (a *Agent) Reconciler(table string) func(operation string, took time.Duration, err error) {
	return func(operation string, took time.Duration, err error) {
		a.reconcile.WithLabelValues(table, operation).Observe(took.Seconds())
		if err != nil {
			a.reconcileErrors.WithLabelValues(table, operation).Inc()
		}
	}
}

// CNI notes a request. code is the CNI error code, 0 for success.
func (a *Agent) CNI(verb string, code uint, took time.Duration) {
	a.cni.WithLabelValues(verb, strconv.FormatUint(uint64(code), 10)).Observe(took.Seconds())
}
