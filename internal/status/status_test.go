package status_test

import (
	"context"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/strait-net/strait/internal/localapi"
	"github.com/strait-net/strait/internal/reconcile"
	"github.com/strait-net/strait/internal/state"
	"github.com/strait-net/strait/internal/status"
)

// healthy is a status nothing is wrong with.
func healthy() localapi.Status {
	return localapi.Status{
		Kubernetes:  localapi.Kubernetes{Connected: true, Server: "https://api:6443", Tables: []localapi.WatchTable{{Name: "nodes", Synced: true}}},
		Routing:     localapi.Routing{Mode: "vxlan", Devices: []string{"eth0"}},
		Masquerade:  localapi.Masquerade{Enabled: true, Devices: []string{"eth0"}},
		IPAM:        localapi.IPAM{Mode: "cluster-pool", Pools: []localapi.Pool{{Family: "IPv4", CIDR: "10.1.0.0/24", Capacity: 254}}},
		CNI:         localapi.CNI{Ready: true},
		Reconcilers: []reconcile.Health{{Table: "remotes", Rows: 3}},
		Maps:        []localapi.Map{{Name: "strait_service", Type: "Hash", Entries: 10, Max: 1000}},
		Health:      localapi.ClusterHealth{Nodes: 1, Reachable: 1},
	}
}

func TestJudge(t *testing.T) {
	ready := localapi.Endpoint{Namespace: "default", Pod: "a", Phase: "ready"}
	for _, tc := range []struct {
		name      string
		change    func(*localapi.Status)
		endpoints []localapi.Endpoint
		state     localapi.State
		want      []string // "severity subject: text"
	}{
		{name: "nothing", change: func(*localapi.Status) {}, endpoints: []localapi.Endpoint{ready}, state: localapi.OK},
		{name: "api server gone", change: func(s *localapi.Status) {
			s.Kubernetes.Connected, s.Kubernetes.Error = false, "connection refused"
		}, state: localapi.Degraded, want: []string{"error Kubernetes: not connected: connection refused"}},
		{name: "starting", change: func(s *localapi.Status) {
			s.Kubernetes.Tables[0].Synced = false
			s.CNI.Ready = false
		}, state: localapi.Starting, want: []string{
			"warning Kubernetes: not everything has arrived yet: nodes", "warning CNI: waiting for Kubernetes"}},
		{name: "a row fails", change: func(s *localapi.Status) {
			s.Reconcilers[0].Failing, s.Reconcilers[0].LastError = 1, "10.2.0.0/24: no space"
		}, state: localapi.Degraded, want: []string{"error table remotes: 1 of 3 rows not in the kernel, the last: 10.2.0.0/24: no space"}},
		{name: "prune fails", change: func(s *localapi.Status) { s.Reconcilers[0].LastError = "interrupted" },
			state: localapi.Degraded, want: []string{"error table remotes: the check of the kernel did not finish: interrupted"}},
		{name: "no CIDR", change: func(s *localapi.Status) { s.IPAM.Pools = nil }, state: localapi.Degraded,
			want: []string{"error IPAM: this node has no pod CIDR: no pod can start"}},
		{name: "addresses used up by those cooling down", change: func(s *localapi.Status) {
			s.IPAM.Pools[0].Allocated, s.IPAM.Pools[0].CoolingDown = 250, 4
		}, state: localapi.Degraded, want: []string{"error IPAM: no free IPv4 address in 10.1.0.0/24: 250 given out, 4 cooling down"}},
		{name: "addresses nearly used up", change: func(s *localapi.Status) { s.IPAM.Pools[0].Allocated = 240 },
			state: localapi.OK, want: []string{"warning IPAM: 240 of 254 IPv4 addresses of 10.1.0.0/24 are in use"}},
		{name: "IPv6 pool of all the addresses there are", change: func(s *localapi.Status) {
			s.IPAM.Pools[0] = localapi.Pool{Capacity: math.MaxUint64, Allocated: 5}
		}, state: localapi.OK},
		{name: "CNI and queue", change: func(s *localapi.Status) {
			s.CNI = localapi.CNI{LastError: "no such binary", Queued: 2}
		}, state: localapi.Degraded, want: []string{"error CNI: not ready: no such binary", "warning CNI: 2 deletes wait on disk to be replayed"}},
		{name: "maps", change: func(s *localapi.Status) {
			s.Maps = []localapi.Map{
				{Name: "full", Type: "Hash", Entries: 1000, Max: 1000}, {Name: "nearly", Type: "LPMTrie", Entries: 950, Max: 1000},
				{Name: "lru", Type: "LRUHash", Entries: 1000, Max: 1000}, {Name: "array", Type: "PerCPUArray", Entries: 5, Max: 5},
				{Name: "uncounted", Type: "Hash", Entries: localapi.Uncounted, Max: 5}, {Name: "strait_muted", Type: "Hash", Entries: 5, Max: 5}, {Name: "unbounded", Type: "SkStorage"},
			}
		}, state: localapi.Degraded, want: []string{"error map full: full: 1000 of 1000 entries", "warning map nearly: nearly full: 950 of 1000 entries"}},
		{name: "no devices", change: func(s *localapi.Status) { s.Routing.Devices, s.Masquerade.Devices = nil, nil }, state: localapi.Degraded,
			want: []string{"error devices: no device has a node address or a default route: other nodes cannot be reached",
				"error masquerading: no device has an address to masquerade with: pods cannot reach the outside"}},
		{name: "leftovers by owner", change: func(s *localapi.Status) {
			s.Leftovers = []localapi.Leftover{{Kind: "device", Name: "flannel.1", Of: "flannel"},
				{Kind: "rules", Name: "KUBE-SERVICES", Of: "kube-proxy", Effect: "rewrites"}, {Kind: "conflist", Name: "10-flannel", Of: "flannel"}}
		}, state: localapi.OK, want: []string{"warning leftovers: of flannel: device flannel.1, conflist 10-flannel",
			"warning leftovers: of kube-proxy: rules KUBE-SERVICES (rewrites)"}},
		{name: "endpoint", change: func(*localapi.Status) {},
			endpoints: []localapi.Endpoint{ready, {Namespace: "default", Pod: "b", Phase: "degraded", Error: "device st1 is gone"}},
			state:     localapi.Degraded, want: []string{"error endpoint default/b: device st1 is gone"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := healthy()
			tc.change(&s)
			status.Judge(&s, tc.endpoints)
			var got []string
			for _, p := range s.Problems {
				got = append(got, fmt.Sprintf("%s %s: %s", p.Severity, p.Subject, p.Text))
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("problems (-want +got):\n%s", diff)
			}
			if s.State != tc.state {
				t.Errorf("state %s, want %s", s.State, tc.state)
			}
			if s.Endpoints.Ready+s.Endpoints.Degraded != len(tc.endpoints) {
				t.Errorf("endpoints counted as %+v, want %d", s.Endpoints, len(tc.endpoints))
			}
		})
	}
}

func TestJudgeNamesFewAndCountsTheRest(t *testing.T) {
	s := healthy()
	var endpoints []localapi.Endpoint
	for i := range 12 {
		endpoints = append(endpoints, localapi.Endpoint{Namespace: "d", Pod: fmt.Sprint(i), Phase: "degraded"})
		s.Health.Peers = append(s.Health.Peers, localapi.Peer{Node: fmt.Sprint("n", i), Checked: s.Since.AddDate(2000, 0, 0)})
	}
	status.Judge(&s, endpoints, localapi.Problem{Severity: localapi.SeverityWarning, Subject: "record x", Text: "corrupt"})
	var all strings.Builder
	for _, p := range s.Problems {
		fmt.Fprintln(&all, p.Subject, p.Text)
	}
	if len(s.Problems) != 13 || !strings.Contains(all.String(), "endpoints 7 more") || !strings.Contains(all.String(), "nodes 7 more") {
		t.Errorf("problems:\n%s", all.String())
	}
	if last := s.Problems[len(s.Problems)-1]; last.Subject != "record x" {
		t.Errorf("the warning is not last: %+v", last)
	}
}

func TestProvider(t *testing.T) {
	st := state.New()
	addr, prefix := netip.MustParseAddr, netip.MustParsePrefix
	st.Nodes.Insert(
		state.Node{Name: "n1", Addresses: []netip.Addr{addr("10.0.0.1")}},
		state.Node{Name: "n2", Addresses: []netip.Addr{addr("10.0.0.2")}, PodCIDRs: []netip.Prefix{prefix("10.2.0.0/24")}},
		state.Node{Name: "n3"},
	)
	st.Remotes.Insert(
		state.Remote{Prefix: prefix("10.2.0.0/24"), Kind: state.RemotePods, Node: "n2", Tunnel: true, NextHop: addr("10.0.0.2")},
		state.Remote{Prefix: prefix("10.3.0.0/24"), Kind: state.RemotePods, Node: "n3", NextHop: addr("10.0.0.3"), Device: "eth0",
			Status: reconcile.Status{Kind: reconcile.Error, Err: "no space"}},
	)
	front := func(a string, backends ...state.Backend) state.Frontend {
		return state.Frontend{Address: addr(a), Port: 80, Protocol: state.TCP, Type: state.ClusterIP, Backends: backends,
			Status: reconcile.Status{Kind: reconcile.Done}}
	}
	st.Frontends.Insert(front("fd00::1"), front("10.9.0.1", state.Backend{Address: addr("10.2.0.5"), Port: 8080, Terminating: true}), front("10.9.0.2"))
	st.Endpoints.Insert(
		state.Endpoint{ContainerID: "1", Namespace: "a", Pod: "a", Phase: state.EndpointReady},
		state.Endpoint{ContainerID: "2", Namespace: "b", Pod: "b", Phase: state.EndpointDegraded},
	)
	done := st.Nodes.Register("test")

	p := status.Provider(status.Sources{State: st, Node: "n1",
		Peers: func() []localapi.Peer { return []localapi.Peer{{Node: "n2", Reachable: true}, {Node: "n3"}} },
		Services: func() (status.KernelServices, error) {
			return status.KernelServices{Frontends: map[status.Target]status.KernelFrontend{
				tcp("10.9.0.1:80"): {ID: 2, Set: 7}, tcp("10.9.0.2:80"): {ID: 1, Set: 8},
			}}, nil
		},
	})
	ctx := context.Background()
	nodes, _ := p.Nodes(ctx)
	var lines []string
	for _, n := range nodes {
		lines = append(lines, strings.TrimSpace(fmt.Sprintf("%s %s %s %s", n.Name, n.Health, n.Via, n.Error)))
	}
	if diff := cmp.Diff([]string{"n1 this node", "n2 reachable tunnel 10.0.0.2", "n3 unreachable 10.0.0.3 dev eth0 10.3.0.0/24: no space"}, lines); diff != "" {
		t.Errorf("nodes:\n%s", diff)
	}
	services, _ := p.Services(ctx)
	var ids []uint32
	for _, s := range services {
		ids = append(ids, s.ID)
	}
	if !slices.Equal(ids, []uint32{1, 2, 0}) || services[1].Backends[0].State != "terminating" || services[0].Status != "done" {
		t.Errorf("services = %+v", services)
	}
	if endpoints, _ := p.Endpoints(ctx); len(endpoints) != 2 || endpoints[0].Pod != "b" {
		t.Errorf("the degraded endpoint is not first: %+v", endpoints)
	}
	if remotes, _ := p.Remotes(ctx); len(remotes) != 2 || remotes[0].Status != "pending" || remotes[1].Error != "no space" {
		t.Errorf("remotes = %+v", remotes)
	}
	if tables := status.WatchTables(st); tables[0].Synced || !slices.Equal(tables[0].Pending, []string{"test"}) || tables[0].Rows != 3 {
		t.Errorf("tables = %+v", tables)
	}
	done()
	if tables := status.WatchTables(st); !tables[0].Synced || tables[1].Synced {
		t.Errorf("tables = %+v", tables)
	}
}

func tcp(at string) status.Target {
	return status.Target{AddrPort: netip.MustParseAddrPort(at), Protocol: state.TCP}
}
