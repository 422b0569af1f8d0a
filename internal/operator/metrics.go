package operator

import "github.com/prometheus/client_golang/prometheus"

// metrics are what Prometheus sees of the operator.
type metrics struct {
	leader   prometheus.Gauge
	assigned prometheus.Counter
	refused  prometheus.Counter
	errors   prometheus.Counter
	cidrs    *prometheus.GaugeVec
	findings *prometheus.GaugeVec
}

func newMetrics(registry *prometheus.Registry) *metrics {
	m := &metrics{
		leader: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "strait_operator_leader", Help: "1 while this replica is the elected one.",
		}),
		assigned: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "strait_operator_pod_cidrs_assigned_total", Help: "Nodes that were given their pod CIDRs.",
		}),
		refused: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "strait_operator_pod_cidrs_refused_total", Help: "Assignments the API server refused because another writer was first.",
		}),
		errors: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "strait_operator_pod_cidrs_errors_total", Help: "Assignments that could not be written and are tried again.",
		}),
		cidrs: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "strait_operator_pool_node_cidrs", Help: "Node CIDRs of the pool by family and state (used, free).",
		}, []string{"family", "state"}),
		findings: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "strait_operator_findings", Help: "Nodes whose pod CIDRs need a person, by reason.",
		}, []string{"reason"}),
	}
	registry.MustRegister(m.leader, m.assigned, m.refused, m.errors, m.cidrs, m.findings)
	return m
}

func (m *metrics) show(p plan) {
	for _, u := range p.pools {
		m.cidrs.WithLabelValues(u.family, "used").Set(float64(u.used))
		m.cidrs.WithLabelValues(u.family, "free").Set(float64(u.free))
	}
	m.findings.Reset()
	for _, f := range p.findings {
		m.findings.WithLabelValues(f.reason).Inc()
	}
}
