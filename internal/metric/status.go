package metric

import (
	"context"
	"math"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/strait-net/strait/internal/localapi"
	"github.com/strait-net/strait/internal/verdict"
)

// statusCollector reads a Status at each scrape, so that metrics and strait status never disagree.
type statusCollector struct {
	status func(context.Context) (localapi.Status, error)

	up, problems, started                                *prometheus.Desc
	packets, bytes, programs, mtu                        *prometheus.Desc
	mapEntries, mapCapacity                              *prometheus.Desc
	rows, failing, drift, checked                        *prometheus.Desc
	connected, tableRows, tableSynced                    *prometheus.Desc
	addresses, endpoints, frontends, cniReady, cniQueued *prometheus.Desc
	clusterNodes, leftovers                              *prometheus.Desc
	backends, maglev, unserved, troubled                 *prometheus.Desc
	policy                                               policyDescs
	flows                                                flowDescs
}

func newStatusCollector(status func(context.Context) (localapi.Status, error)) *statusCollector {
	d := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("strait_"+name, help, labels, nil)
	}
	return &statusCollector{
		status:   status,
		up:       d("agent_status_up", "1 when the agent could say how it is during this scrape, else 0 and the metrics below are missing."),
		problems: d("agent_problems", "Problems as strait status shows them, by severity (error, warning).", "severity"),
		started:  d("agent_start_time_seconds", "Start of the agent, seconds since the epoch."),

		packets:  d("datapath_packets_total", "Packets by what became of them; verdict is forwarded, ignored or dropped.", "reason", "verdict"),
		bytes:    d("datapath_bytes_total", "Bytes (layer 3) by what became of them; verdict is forwarded, ignored or dropped.", "reason", "verdict"),
		programs: d("datapath_programs", "Attached programs by name: one per device or cgroup.", "program"),
		mtu:      d("datapath_mtu_bytes", "Largest packet; of is device or pod.", "of"),

		mapEntries:  d("map_entries", "Entries in a map of the kernel (of those that fill up).", "map"),
		mapCapacity: d("map_capacity_entries", "Entries that map can hold.", "map"),

		rows:    d("reconcile_rows", "Rows of a desired table.", "table"),
		failing: d("reconcile_failing_rows", "Rows of a desired table that the kernel does not hold, with an error.", "table"),
		drift:   d("reconcile_drift_total", "Differences between table and kernel found and repaired, the first check after a start excepted.", "table"),
		checked: d("reconcile_checked_timestamp_seconds", "Last complete comparison of table and kernel, seconds since the epoch; 0 before the first.", "table"),

		connected:   d("kubernetes_connected", "1 while the API server answers."),
		tableRows:   d("kubernetes_table_rows", "Objects known from Kubernetes.", "table"),
		tableSynced: d("kubernetes_table_synced", "1 once all objects that existed at the start have arrived.", "table"),

		addresses: d("ipam_addresses", "Addresses of this node's pod CIDRs; state is allocated, cooling or free.", "family", "state"),
		endpoints: d("endpoint_pods", "Interfaces of local pods by phase (adding, ready, degraded).", "phase"),
		frontends: d("service_frontends", "Addresses and ports that services answer on, by type (ClusterIP, NodePort, LoadBalancer, ExternalIP, HostPort).", "type"),
		backends:  d("service_backends", "Backends the kernel knows; state is used, or leaving when it is kept for connections that it has.", "state"),
		maglev:    d("service_maglev_tables", "Tables of backend sets that are chosen from by maglev."),
		unserved: d("service_unserved_packets_total",
			"Packets for services that had no backend; outcome is refused (the client was told) or dropped (externalTrafficPolicy is Local and none was on the node).", "outcome"),
		troubled:  d("service_problems", "Services with a problem that strait status shows."),
		cniReady:  d("cni_ready", "1 once a probe sandbox has worked."),
		cniQueued: d("cni_queued_deletes", "Deletes on disk waiting to be replayed."),

		clusterNodes: d("cluster_nodes", "Nodes by whether their agents answer this one (reachable, unreachable), this node included.", "state"),
		policy:       newPolicyDescs(d),
		flows:        newFlowDescs(d),

		leftovers: d("node_leftovers", "Traces of other networks found on the node.", "of"),
	}
}

func (c *statusCollector) all() []*prometheus.Desc {
	return append(append(c.policy.all(), c.flows.all()...),
		c.up, c.problems, c.started, c.packets, c.bytes, c.programs, c.mtu, c.mapEntries, c.mapCapacity, c.rows, c.failing, c.drift,
		c.checked, c.connected, c.tableRows, c.tableSynced, c.addresses, c.endpoints, c.frontends, c.cniReady, c.cniQueued,
		c.clusterNodes, c.leftovers, c.backends, c.maglev, c.unserved, c.troubled,
	)
}

// Describe implements prometheus.Collector.
func (c *statusCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range c.all() {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c *statusCollector) Collect(ch chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), collectTimeout)
	defer cancel()
	s, err := c.status(ctx)
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	if err != nil {
		gauge(c.up, 0)
		return
	}
	counter := func(d *prometheus.Desc, v uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	gauge(c.up, 1)
	c.collectAgent(s, gauge)
	c.collectDatapath(s, gauge, counter)
	c.collectTables(s, gauge, counter)
	c.collectPods(s, gauge)
	c.collectServices(s, gauge, counter)
	c.policy.collect(s.Policy, gauge, counter)
	c.flows.collect(s.Flows, gauge, counter)
}

type (
	gaugeFunc   func(d *prometheus.Desc, v float64, labels ...string)
	counterFunc func(d *prometheus.Desc, v uint64, labels ...string)
)

func (c *statusCollector) collectAgent(s localapi.Status, gauge gaugeFunc) {
	problems := map[localapi.Severity]int{localapi.SeverityError: 0, localapi.SeverityWarning: 0}
	for _, p := range s.Problems {
		problems[p.Severity]++
	}
	for severity, n := range problems {
		gauge(c.problems, float64(n), string(severity))
	}
	gauge(c.started, unix(s.Since))
	gauge(c.clusterNodes, float64(s.Health.Reachable), "reachable")
	gauge(c.clusterNodes, float64(s.Health.Nodes-s.Health.Reachable), "unreachable")
	left := map[string]int{}
	for _, l := range s.Leftovers {
		left[l.Of]++
	}
	for of, n := range left {
		gauge(c.leftovers, float64(n), of)
	}
}

func (c *statusCollector) collectDatapath(s localapi.Status, gauge gaugeFunc, counter counterFunc) {
	for _, r := range s.Counters {
		counter(c.packets, r.Packets, r.Name, string(r.Verdict))
		counter(c.bytes, r.Bytes, r.Name, string(r.Verdict))
	}
	programs := map[string]int{}
	for _, p := range s.Programs {
		programs[p.Name]++
	}
	for name, n := range programs {
		gauge(c.programs, float64(n), name)
	}
	gauge(c.mtu, float64(s.MTU.Device), "device")
	gauge(c.mtu, float64(s.MTU.Pod), "pod")
	for _, m := range s.Maps {
		if m.Fills() {
			gauge(c.mapEntries, float64(m.Entries), m.Name)
			gauge(c.mapCapacity, float64(m.Max), m.Name)
		}
	}
}

func (c *statusCollector) collectTables(s localapi.Status, gauge gaugeFunc, counter counterFunc) {
	for _, r := range s.Reconcilers {
		gauge(c.rows, float64(r.Rows), r.Table)
		gauge(c.failing, float64(r.Failing), r.Table)
		counter(c.drift, r.Drift, r.Table)
		gauge(c.checked, unix(r.Pruned), r.Table)
	}
	gauge(c.connected, truth(s.Kubernetes.Connected))
	for _, t := range s.Kubernetes.Tables {
		gauge(c.tableRows, float64(t.Rows), t.Name)
		gauge(c.tableSynced, truth(t.Synced), t.Name)
	}
}

func (c *statusCollector) collectPods(s localapi.Status, gauge gaugeFunc) {
	type sums struct{ allocated, cooling, free float64 }
	families := map[string]sums{} // a node may have several CIDRs of a family
	for _, p := range s.IPAM.Pools {
		f := families[p.Family]
		f.allocated += float64(p.Allocated)
		f.cooling += float64(p.CoolingDown)
		f.free += math.Max(0, float64(p.Capacity)-float64(p.Allocated)-float64(p.CoolingDown))
		families[p.Family] = f
	}
	for family, f := range families {
		gauge(c.addresses, f.allocated, family, "allocated")
		gauge(c.addresses, f.cooling, family, "cooling")
		gauge(c.addresses, f.free, family, "free")
	}
	gauge(c.endpoints, float64(s.Endpoints.Adding), "adding")
	gauge(c.endpoints, float64(s.Endpoints.Ready), "ready")
	gauge(c.endpoints, float64(s.Endpoints.Degraded), "degraded")
	gauge(c.cniReady, truth(s.CNI.Ready))
	gauge(c.cniQueued, float64(s.CNI.Queued))
}

func (c *statusCollector) collectServices(s localapi.Status, gauge gaugeFunc, counter counterFunc) {
	k := s.KubeProxy
	for _, kind := range []string{"ClusterIP", "NodePort", "LoadBalancer", "ExternalIP", "HostPort"} { // one that is gone is told as 0
		gauge(c.frontends, float64(k.ByType[kind]), kind)
	}
	gauge(c.backends, float64(k.Backends-k.Leaving), "used")
	gauge(c.backends, float64(k.Leaving), "leaving")
	gauge(c.maglev, float64(k.MaglevTables))
	gauge(c.troubled, float64(k.Problems))
	outcomes := map[verdict.Reason]string{verdict.Refused: "refused", verdict.NoLocalBackend: "dropped"}
	for _, r := range s.Counters {
		if outcome, ok := outcomes[verdict.Reason(r.Reason)]; ok {
			counter(c.unserved, r.Packets, outcome)
		}
	}
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

func unix(t time.Time) float64 {
	if t.IsZero() {
		return 0
	}
	return float64(t.UnixMilli()) / 1000
}
