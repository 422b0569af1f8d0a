package metric_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/goleak"

	"github.com/strait-net/strait/internal/localapi"
	"github.com/strait-net/strait/internal/metric"
	"github.com/strait-net/strait/internal/reconcile"
	"github.com/strait-net/strait/internal/verdict"
)

var update = flag.Bool("update", false, "write docs/reference/metrics.md")

//go:generate go test . -run TestReference -update

const reference = "../../docs/reference/metrics.md"

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func example(context.Context) (localapi.Status, error) {
	start := time.Unix(1000, 500e6)
	return localapi.Status{
		Since:      start,
		Problems:   []localapi.Problem{{Severity: localapi.SeverityError}, {Severity: localapi.SeverityError}},
		Kubernetes: localapi.Kubernetes{Connected: true, Tables: []localapi.WatchTable{{Name: "nodes", Rows: 3, Synced: true}}},
		KubeProxy:  localapi.KubeProxy{Frontends: 9, ByType: map[string]int{"ClusterIP": 7, "NodePort": 2}, Backends: 5, Leaving: 2, MaglevTables: 3, Problems: 4},
		Policy: localapi.PolicyStatus{
			Objects: []localapi.PolicyCount{{Kind: "NetworkPolicy", State: "refused", Count: 2}, {Kind: "ClusterNetworkPolicy", State: "enforced", Count: 1}},
			Pods:    5, Selected: 3, Programs: 2, Identities: 7, Rules: 11, Revision: 88, Drift: 1,
			Packets: []localapi.VerdictCount{{Direction: "ingress", Verdict: "denied", Packets: 4, Bytes: 400}, {Direction: "egress", Verdict: "audited", Packets: 6, Bytes: 600}},
		},
		Flows: localapi.FlowStatus{
			Enabled: true, Kept: 5, Max: 8, Seen: []localapi.FlowCount{{Kind: "new", Flows: 6}, {Kind: "denied", Flows: 0}},
			Lost:     []localapi.LostCount{{Kind: "new", Records: 7, Packets: 8}},
			Stopped:  []localapi.StoppedCount{{Reason: "policy-ingress", Direction: "ingress", Packets: 9}},
			RingUsed: 10, RingSize: 11,
		},
		IPAM: localapi.IPAM{Pools: []localapi.Pool{
			{Family: "IPv4", Allocated: 3, CoolingDown: 1, Capacity: 254}, {Family: "IPv4", Allocated: 2, Capacity: 14}}},
		MTU:         localapi.MTU{Device: 1500, Pod: 1450},
		CNI:         localapi.CNI{Ready: true, Queued: 1},
		Endpoints:   localapi.EndpointCount{Ready: 4, Degraded: 1},
		Reconcilers: []reconcile.Health{{Table: "remotes", Rows: 5, Failing: 1, Drift: 2, Pruned: start}},
		Programs:    []localapi.Program{{Name: "strait_from_pod"}, {Name: "strait_from_pod"}},
		Maps: []localapi.Map{{Name: "strait_ct", Type: "lruhash", Entries: 7, Max: 100}, {Name: "strait_sk", Entries: localapi.Uncounted},
			{Name: "strait_counter", Type: "percpuarray", Entries: 256, Max: 256}},
		Counters: []localapi.Counter{{Name: "to_stack", Verdict: verdict.Forwarded, Packets: 6, Bytes: 600}, {Name: "isolated", Verdict: verdict.Dropped, Packets: 1, Bytes: 60},
			{Reason: uint32(verdict.Refused), Name: "refused", Verdict: verdict.Forwarded, Packets: 8}},
		Health:    localapi.ClusterHealth{Nodes: 3, Reachable: 2},
		Leftovers: []localapi.Leftover{{Of: "flannel"}, {Of: "flannel"}},
	}, nil
}

func TestMetricsOfStatus(t *testing.T) {
	reg := prometheus.NewPedanticRegistry()
	agent := metric.NewAgent(reg, example)
	agent.Reconciler("remotes")("update", 3*time.Millisecond, errors.New("no"))
	agent.CNI("ADD", 11, time.Millisecond)
	want := `
# HELP strait_agent_problems Problems as strait status shows them, by severity (error, warning).
# TYPE strait_agent_problems gauge
strait_agent_problems{severity="error"} 2
strait_agent_problems{severity="warning"} 0
# HELP strait_agent_start_time_seconds Start of the agent, seconds since the epoch.
# TYPE strait_agent_start_time_seconds gauge
strait_agent_start_time_seconds 1000.5
# HELP strait_datapath_packets_total Packets by what became of them; verdict is forwarded, ignored or dropped.
# TYPE strait_datapath_packets_total counter
strait_datapath_packets_total{reason="isolated",verdict="dropped"} 1
strait_datapath_packets_total{reason="refused",verdict="forwarded"} 8
strait_datapath_packets_total{reason="to_stack",verdict="forwarded"} 6
# HELP strait_datapath_programs Attached programs by name: one per device or cgroup.
# TYPE strait_datapath_programs gauge
strait_datapath_programs{program="strait_from_pod"} 2
# HELP strait_ipam_addresses Addresses of this node's pod CIDRs; state is allocated, cooling or free.
# TYPE strait_ipam_addresses gauge
strait_ipam_addresses{family="IPv4",state="allocated"} 5
strait_ipam_addresses{family="IPv4",state="cooling"} 1
strait_ipam_addresses{family="IPv4",state="free"} 262
# HELP strait_map_entries Entries in a map of the kernel (of those that fill up).
# TYPE strait_map_entries gauge
strait_map_entries{map="strait_ct"} 7
# HELP strait_map_capacity_entries Entries that map can hold.
# TYPE strait_map_capacity_entries gauge
strait_map_capacity_entries{map="strait_ct"} 100
# HELP strait_reconcile_errors_total Operations of a reconciler that failed and are tried again, by table and operation.
# TYPE strait_reconcile_errors_total counter
strait_reconcile_errors_total{operation="update",table="remotes"} 1
# HELP strait_reconcile_drift_total Differences between table and kernel found and repaired, the first check after a start excepted.
# TYPE strait_reconcile_drift_total counter
strait_reconcile_drift_total{table="remotes"} 2
# HELP strait_cluster_nodes Nodes by whether their agents answer this one (reachable, unreachable), this node included.
# TYPE strait_cluster_nodes gauge
strait_cluster_nodes{state="reachable"} 2
strait_cluster_nodes{state="unreachable"} 1
# HELP strait_service_frontends Addresses and ports that services answer on, by type (ClusterIP, NodePort, LoadBalancer, ExternalIP, HostPort).
# TYPE strait_service_frontends gauge
strait_service_frontends{type="ClusterIP"} 7
strait_service_frontends{type="ExternalIP"} 0
strait_service_frontends{type="HostPort"} 0
strait_service_frontends{type="LoadBalancer"} 0
strait_service_frontends{type="NodePort"} 2
# HELP strait_service_backends Backends the kernel knows; state is used, or leaving when it is kept for connections that it has.
# TYPE strait_service_backends gauge
strait_service_backends{state="leaving"} 2
strait_service_backends{state="used"} 3
# HELP strait_service_maglev_tables Tables of backend sets that are chosen from by maglev.
# TYPE strait_service_maglev_tables gauge
strait_service_maglev_tables 3
# HELP strait_service_problems Services with a problem that strait status shows.
# TYPE strait_service_problems gauge
strait_service_problems 4
# HELP strait_service_unserved_packets_total Packets for services that had no backend; outcome is refused (the client was told) or dropped (externalTrafficPolicy is Local and none was on the node).
# TYPE strait_service_unserved_packets_total counter
strait_service_unserved_packets_total{outcome="refused"} 8
# HELP strait_policy_objects Policies by kind and state (enforced, audited, refused, failed, off).
# TYPE strait_policy_objects gauge
strait_policy_objects{kind="CiliumClusterwideNetworkPolicy",state="audited"} 0
strait_policy_objects{kind="CiliumClusterwideNetworkPolicy",state="enforced"} 0
strait_policy_objects{kind="CiliumClusterwideNetworkPolicy",state="failed"} 0
strait_policy_objects{kind="CiliumClusterwideNetworkPolicy",state="off"} 0
strait_policy_objects{kind="CiliumClusterwideNetworkPolicy",state="refused"} 0
strait_policy_objects{kind="CiliumNetworkPolicy",state="audited"} 0
strait_policy_objects{kind="CiliumNetworkPolicy",state="enforced"} 0
strait_policy_objects{kind="CiliumNetworkPolicy",state="failed"} 0
strait_policy_objects{kind="CiliumNetworkPolicy",state="off"} 0
strait_policy_objects{kind="CiliumNetworkPolicy",state="refused"} 0
strait_policy_objects{kind="ClusterNetworkPolicy",state="audited"} 0
strait_policy_objects{kind="ClusterNetworkPolicy",state="enforced"} 1
strait_policy_objects{kind="ClusterNetworkPolicy",state="failed"} 0
strait_policy_objects{kind="ClusterNetworkPolicy",state="off"} 0
strait_policy_objects{kind="ClusterNetworkPolicy",state="refused"} 0
strait_policy_objects{kind="NetworkPolicy",state="audited"} 0
strait_policy_objects{kind="NetworkPolicy",state="enforced"} 0
strait_policy_objects{kind="NetworkPolicy",state="failed"} 0
strait_policy_objects{kind="NetworkPolicy",state="off"} 0
strait_policy_objects{kind="NetworkPolicy",state="refused"} 2
# HELP strait_policy_pods Local pods by whether any policy selects them (selected, unselected).
# TYPE strait_policy_pods gauge
strait_policy_pods{state="selected"} 3
strait_policy_pods{state="unselected"} 2
# HELP strait_policy_packets_total Packets by what rules of policies said; verdict is allowed, denied, or audited: decided otherwise if audited policies were enforced (counted when a connection is judged).
# TYPE strait_policy_packets_total counter
strait_policy_packets_total{direction="egress",verdict="audited"} 6
strait_policy_packets_total{direction="ingress",verdict="denied"} 4
# HELP strait_policy_revision Grows with every change of what policy decides.
# TYPE strait_policy_revision gauge
strait_policy_revision 88
# HELP strait_policy_drift_total Rows of the tables of policy that differed from what they should be and were repaired.
# TYPE strait_policy_drift_total counter
strait_policy_drift_total 1
# HELP strait_flows_total What happened to connections, by kind (new, judged, ended, denied, dropped).
# TYPE strait_flows_total counter
strait_flows_total{kind="denied"} 0
strait_flows_total{kind="new"} 6
# HELP strait_flows_kept Flows that the agent remembers.
# TYPE strait_flows_kept gauge
strait_flows_kept 5
# HELP strait_flow_records_lost_total Records of the kernel that were lost because they came faster than they were read, by kind; denials go last.
# TYPE strait_flow_records_lost_total counter
strait_flow_records_lost_total{kind="new"} 7
# HELP strait_flow_packets_lost_total Packets that lost records would have stood for, by kind.
# TYPE strait_flow_packets_lost_total counter
strait_flow_packets_lost_total{kind="new"} 8
# HELP strait_flow_stopped_packets_total Packets that were denied or dropped, by reason and direction, as far as records told of them; strait_datapath_packets_total is exact.
# TYPE strait_flow_stopped_packets_total counter
strait_flow_stopped_packets_total{direction="ingress",reason="policy-ingress"} 9
# HELP strait_flow_ring_used_bytes Records of the kernel that are not read yet.
# TYPE strait_flow_ring_used_bytes gauge
strait_flow_ring_used_bytes 10
# HELP strait_flow_ring_size_bytes Room for records of the kernel. New and ended connections are told while half of it is free, denials to the brim.
# TYPE strait_flow_ring_size_bytes gauge
strait_flow_ring_size_bytes 11
# HELP strait_node_leftovers Traces of other networks found on the node.
# TYPE strait_node_leftovers gauge
strait_node_leftovers{of="flannel"} 2
`
	var names []string
	for line := range strings.Lines(want) {
		if f := strings.Fields(line); len(f) > 2 && f[1] == "TYPE" {
			names = append(names, f[2])
		}
	}
	if err := testutil.GatherAndCompare(reg, strings.NewReader(want), names...); err != nil {
		t.Error(err)
	}
	if problems, err := testutil.GatherAndLint(reg); err != nil || len(problems) > 0 {
		t.Errorf("names that Prometheus would not have chosen: %v, %v", problems, err)
	}
}

func TestScrapeOfAgentThatCannotSayHowItIs(t *testing.T) {
	reg := prometheus.NewPedanticRegistry()
	metric.NewAgent(reg, func(context.Context) (localapi.Status, error) { return localapi.Status{}, errors.New("no") })
	want := `
# HELP strait_agent_status_up 1 when the agent could say how it is during this scrape, else 0 and the metrics below are missing.
# TYPE strait_agent_status_up gauge
strait_agent_status_up 0
`
	if err := testutil.GatherAndCompare(reg, strings.NewReader(want)); err != nil {
		t.Error(err)
	}
}

func TestServer(t *testing.T) {
	ready := errors.New("tables not synced: nodes")
	s := metric.Server{
		Address: "127.0.0.1:0", Registry: metric.NewRegistry("agent", "v1"), Log: slog.New(slog.DiscardHandler),
		Ready: func() error { return ready },
	}
	ctx, cancel := context.WithCancel(context.Background())
	l, err := s.Listen(ctx)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l) }()
	get := func(path string) (int, string) {
		resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Get("http://" + l.Addr().String() + path)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, _ := io.ReadAll(resp.Body)
		return resp.StatusCode, string(body)
	}
	if code, body := get("/healthz"); code != 200 || body != "ok\n" {
		t.Errorf("/healthz = %d %q", code, body)
	}
	if code, body := get("/readyz"); code != 503 || body != "tables not synced: nodes\n" {
		t.Errorf("/readyz = %d %q", code, body)
	}
	if code, body := get("/metrics"); code != 200 || !strings.Contains(body, `strait_build_info{component="agent",go_version="go`) {
		t.Errorf("/metrics = %d %q", code, body)
	}
	if code, _ := get("/debug"); code != 404 {
		t.Errorf("/debug = %d", code)
	}
	s.Address = l.Addr().String()
	if _, err := s.Listen(ctx); err == nil || !strings.Contains(err.Error(), `metricsAddress "127.0.0.1:`) {
		t.Errorf("address in use: %v", err)
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("serve ended with %v", err)
	}
	w := httptest.NewRecorder()
	metric.Server{Registry: s.Registry, Log: s.Log}.Handler().ServeHTTP(w, httptest.NewRequest("GET", "/readyz", http.NoBody))
	if w.Code != 200 {
		t.Errorf("/readyz without a check = %d", w.Code)
	}
}

// TestReference keeps docs/reference/metrics.md equal to what an agent and a relay serve.
func TestReference(t *testing.T) {
	reg := metric.NewRegistry("agent", "v0")
	agent := metric.NewAgent(reg, example)
	agent.Reconciler("remotes")("update", time.Millisecond, errors.New("no"))
	agent.CNI("ADD", 0, time.Millisecond)
	metric.NewPolicy(reg).Applied(time.Millisecond)
	metric.NewProgramming(reg, time.Now())
	var b strings.Builder
	b.WriteString("# Metrics\n\nGenerated by `go test ./internal/metric -update`; do not edit. Served on `metricsAddress` at `/metrics`, next to the\n" +
		"usual `go_*` and `process_*`. All values come from the same place as `strait status`.\n\n")
	writeReference(t, &b, reg, "")
	b.WriteString("\n## Of the relay\n\nServed on `relay.metricsAddress`, next to `strait_build_info` and the usual ones.\n\n")
	relay := metric.NewRegistry("relay", "v0")
	metric.NewRelay(relay)
	writeReference(t, &b, relay, "strait_build_info")
	if *update {
		if err := os.MkdirAll("../../docs/reference", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(reference, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	old, err := os.ReadFile(reference)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(old), b.String()); diff != "" {
		t.Errorf("docs/reference/metrics.md is old, run with -update (-file +now):\n%s", diff)
	}
}

// writeReference writes the table of what is registered, but for one.
func writeReference(t *testing.T, b *strings.Builder, reg *prometheus.Registry, known string) {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	b.WriteString("| metric | type | labels | meaning |\n|---|---|---|---|\n")
	for _, f := range families {
		if !strings.HasPrefix(f.GetName(), "strait_") || f.GetName() == known {
			continue
		}
		var labels []string
		for _, l := range f.GetMetric()[0].GetLabel() {
			labels = append(labels, "`"+l.GetName()+"`")
		}
		slices.Sort(labels)
		fmt.Fprintf(b, "| `%s` | %s | %s | %s |\n", f.GetName(), strings.ToLower(f.GetType().String()), strings.Join(labels, " "), f.GetHelp())
	}
}

func TestRelay(t *testing.T) {
	reg := prometheus.NewPedanticRegistry()
	r := metric.NewRelay(reg)
	r.Nodes(3, 1)
	r.Peers(true)
	end := r.Stream()
	r.Stream()
	end()
	r.Flow()
	r.Lost(7)
	want := `
# HELP strait_relay_nodes Nodes whose flows the relay tells, by state (connected, unavailable).
# TYPE strait_relay_nodes gauge
strait_relay_nodes{state="connected"} 3
strait_relay_nodes{state="unavailable"} 1
# HELP strait_relay_peers_connected 1 while an agent tells the relay which nodes there are; else it goes on with those it knows.
# TYPE strait_relay_peers_connected gauge
strait_relay_peers_connected 1
# HELP strait_relay_streams Requests for flows that are being answered.
# TYPE strait_relay_streams gauge
strait_relay_streams 1
# HELP strait_relay_flows_total Flows that clients were told.
# TYPE strait_relay_flows_total counter
strait_relay_flows_total 1
# HELP strait_relay_lost_flows_total Flows that clients were told are missing: they read too slowly, or the kernel had no room. What two clients miss counts twice.
# TYPE strait_relay_lost_flows_total counter
strait_relay_lost_flows_total 7
`
	if err := testutil.GatherAndCompare(reg, strings.NewReader(want)); err != nil {
		t.Error(err)
	}
	if problems, err := testutil.GatherAndLint(reg); err != nil || len(problems) > 0 {
		t.Errorf("names that Prometheus would not have chosen: %v, %v", problems, err)
	}
}
