package operator

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/strait-net/strait/internal/certificate"
)

// metrics are what Prometheus sees of the operator.
type metrics struct {
	leader   prometheus.Gauge
	assigned prometheus.Counter
	refused  prometheus.Counter
	errors   prometheus.Counter
	cidrs    *prometheus.GaugeVec
	findings *prometheus.GaugeVec

	allocations      prometheus.Counter
	allocationErrors prometheus.Counter
	addresses        *prometheus.GaugeVec
	waiting          *prometheus.GaugeVec

	conditions      prometheus.Counter
	conditionErrors prometheus.Counter
	agents          *prometheus.GaugeVec

	certificatesEnd     *prometheus.GaugeVec
	certificatesWritten *prometheus.CounterVec
	certificateErrors   prometheus.Counter
	certificateProblems *prometheus.GaugeVec
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
		allocations: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "strait_operator_service_statuses_written_total", Help: "Statuses of Services of type LoadBalancer that were written.",
		}),
		allocationErrors: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "strait_operator_service_status_errors_total", Help: "Statuses of Services that could not be written and are tried again.",
		}),
		addresses: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "strait_operator_loadbalancer_addresses", Help: "Addresses of LoadBalancerPools by pool, family and state (used, free).",
		}, []string{"pool", "family", "state"}),
		waiting: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "strait_operator_loadbalancer_services_without_address", Help: "Services of type LoadBalancer without the addresses they want, by reason.",
		}, []string{"reason"}),
		conditions: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "strait_operator_policy_statuses_written_total", Help: "Conditions of policies that were written.",
		}),
		conditionErrors: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "strait_operator_policy_status_errors_total", Help: "Conditions of policies that could not be written and are tried again.",
		}),
		agents: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "strait_operator_agents", Help: "Agents that are asked which policies they enforce, by state (answering, silent).",
		}, []string{"state"}),
		certificatesEnd: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "strait_operator_certificate_expiry_timestamp_seconds", Help: "When the certificate in a Secret ends, seconds since the epoch.",
		}, []string{"secret"}),
		certificatesWritten: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "strait_operator_certificates_written_total", Help: "Secrets with certificates that were written, by Secret and reason (CertificateRenewed and others, as events have it).",
		}, []string{"secret", "reason"}),
		certificateErrors: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "strait_operator_certificate_errors_total", Help: "Rounds in which Secrets with certificates could not be read or written; they are tried again.",
		}),
		certificateProblems: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "strait_operator_certificate_problems", Help: "Secrets with certificates that need a person, by Secret and reason.",
		}, []string{"secret", "reason"}),
	}
	registry.MustRegister(m.leader, m.assigned, m.refused, m.errors, m.cidrs, m.findings, m.allocations, m.allocationErrors, m.addresses, m.waiting,
		m.conditions, m.conditionErrors, m.agents, m.certificatesEnd, m.certificatesWritten, m.certificateErrors, m.certificateProblems)
	return m
}

func (m *metrics) showCertificates(d certificate.Decision) {
	for _, name := range certificate.Names() {
		if end, ok := d.Ends[name]; ok {
			m.certificatesEnd.WithLabelValues(name).Set(float64(end.Unix()))
		} else {
			m.certificatesEnd.DeleteLabelValues(name)
		}
	}
	m.certificateProblems.Reset()
	for _, p := range d.Problems {
		m.certificateProblems.WithLabelValues(p.Name, string(p.Reason)).Inc()
	}
}

func (m *metrics) showPools(p balance) {
	m.addresses.Reset()
	for _, v := range p.verdicts {
		for f, family := range []string{"IPv4", "IPv6"} {
			if n := v.status.Counts[f]; n.Total > 0 {
				m.addresses.WithLabelValues(v.Name, family, "used").Set(float64(n.Allocated))
				m.addresses.WithLabelValues(v.Name, family, "free").Set(float64(n.Free))
			}
		}
	}
	m.waiting.Reset()
	for _, g := range p.grants {
		if !g.Says.Done {
			m.waiting.WithLabelValues(g.Says.Reason).Inc()
		}
	}
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
