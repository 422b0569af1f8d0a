package metric

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/strait-net/strait/internal/localapi"
)

// policyDescs are the metrics of policy. None has a label per policy or rule: strait policy top and unused tell of those.
type policyDescs struct {
	objects, pods, programs, identities, rules, revision, packets, bytes, drift *prometheus.Desc
}

func newPolicyDescs(d func(name, help string, labels ...string) *prometheus.Desc) policyDescs {
	return policyDescs{
		objects:    d("policy_objects", "Policies by kind and state (enforced, audited, refused, failed, off).", "kind", "state"),
		pods:       d("policy_pods", "Local pods by whether any policy selects them (selected, unselected).", "state"),
		programs:   d("policy_programs", "Sets of policies in use on this node, each compiled once."),
		identities: d("policy_identities", "Prefixes that policies in use tell apart."),
		rules:      d("policy_rules", "Rules of the policies that select a local pod."),
		revision:   d("policy_revision", "Grows with every change of what policy decides."),
		packets: d("policy_packets_total",
			"Packets by what rules of policies said; verdict is allowed, denied, or audited: decided otherwise if audited policies were enforced (counted when a connection is judged).",
			"direction", "verdict"),
		bytes: d("policy_bytes_total", "Bytes (layer 3), as strait_policy_packets_total.", "direction", "verdict"),
		drift: d("policy_drift_total", "Rows of the tables of policy that differed from what they should be and were repaired."),
	}
}

func (c policyDescs) all() []*prometheus.Desc {
	return []*prometheus.Desc{c.objects, c.pods, c.programs, c.identities, c.rules, c.revision, c.packets, c.bytes, c.drift}
}

func (c policyDescs) collect(p localapi.PolicyStatus, gauge gaugeFunc, counter counterFunc) {
	// A state that is over is told as 0, so that an alert on it ends.
	states := []string{localapi.PolicyEnforced, localapi.PolicyAudited, localapi.PolicyRefused, localapi.PolicyFailed, localapi.PolicyOff}
	for _, kind := range []string{"NetworkPolicy", "ClusterNetworkPolicy", "CiliumNetworkPolicy", "CiliumClusterwideNetworkPolicy"} {
		for _, state := range states {
			n := 0
			for _, o := range p.Objects {
				if o.Kind == kind && o.State == state {
					n = o.Count
				}
			}
			gauge(c.objects, float64(n), kind, state)
		}
	}
	gauge(c.pods, float64(p.Selected), "selected")
	gauge(c.pods, float64(p.Pods-p.Selected), "unselected")
	gauge(c.programs, float64(p.Programs))
	gauge(c.identities, float64(p.Identities))
	gauge(c.rules, float64(p.Rules))
	gauge(c.revision, float64(p.Revision))
	for _, v := range p.Packets {
		counter(c.packets, v.Packets, v.Direction, v.Verdict)
		counter(c.bytes, v.Bytes, v.Direction, v.Verdict)
	}
	counter(c.drift, p.Drift)
}

// Policy measures how long changes of policy take.
type Policy struct{ took prometheus.Histogram }

// NewPolicy registers the histogram.
func NewPolicy(reg prometheus.Registerer) *Policy {
	p := &Policy{took: prometheus.NewHistogram(prometheus.HistogramOpts{
		Name:    "strait_policy_propagation_duration_seconds",
		Help:    "Time from when a change of policies, pods, namespaces or nodes is seen until the kernel decides by it, established connections included.",
		Buckets: prometheus.ExponentialBuckets(0.25e-3, 2, 16), // 0.25 ms to 8 s
	})}
	reg.MustRegister(p.took)
	return p
}

// Applied notes that a change is in force, and how long that took since it was seen.
func (p *Policy) Applied(took time.Duration) { p.took.Observe(took.Seconds()) }
