package cli_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/strait-net/strait/internal/cli"
	"github.com/strait-net/strait/internal/localapi"
	"github.com/strait-net/strait/internal/reconcile"
	"github.com/strait-net/strait/internal/status"
	"github.com/strait-net/strait/internal/verdict"
)

var now = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)

func ago(d time.Duration) time.Time { return now.Add(-d) }

// nodeOf is a provider as the agent of node n<i> of three has it; trouble breaks things on it.
func nodeOf(i int, trouble bool) localapi.Provider {
	name := fmt.Sprintf("n%d", i)
	endpoints := exampleEndpoints(i, trouble)
	stat := func(context.Context) (localapi.Status, error) {
		s := exampleStatus(i)
		if trouble {
			ail(&s)
		}
		status.Judge(&s, endpoints)
		return s, nil
	}
	looks := 0
	return localapi.Provider{
		Status:    stat,
		Nodes:     func(context.Context) ([]localapi.Node, error) { return exampleNodes(name), nil },
		Endpoints: func(context.Context) ([]localapi.Endpoint, error) { return endpoints, nil },
		Services:  func(context.Context) ([]localapi.Service, error) { return exampleServices(i, trouble), nil },
		Service: func(_ context.Context, namespace, name string) (localapi.ServiceDetail, error) {
			return exampleDetail(i, namespace+"/"+name, trouble)
		},
		Remotes: func(context.Context) ([]localapi.Remote, error) { return exampleRemotes(i), nil },
		Routes: func(context.Context) ([]localapi.Route, error) {
			return []localapi.Route{
				{Prefix: prefix(fmt.Sprintf("10.244.%d.0/24", i)), Kind: "unreachable", Status: "done"},
				{Prefix: prefix("10.244.9.0/24"), Kind: "unicast", Device: "strait_vxlan", Source: "10.0.0.1", MTU: 1450, Status: "error", Error: "no such device"},
			}, nil
		},
		Devices: func(context.Context) ([]localapi.Device, error) {
			return []localapi.Device{{Name: "eth0", Index: 2, MTU: 1500, Up: true, Native: true,
				Addresses: []netip.Prefix{prefix(fmt.Sprintf("10.0.0.%d/24", i))}}}, nil
		},
		Maps: func(context.Context) ([]localapi.Map, error) { return exampleStatus(i).Maps, nil },
		DumpMap: func(_ context.Context, m string, limit int, match ...string) (localapi.MapDump, error) {
			if m == "strait_ct" {
				return exampleConnections(match), nil
			}
			d := localapi.MapDump{Name: m, Columns: []string{"PREFIX", "FLAGS", "NODE"}, Rows: [][]string{
				{"10.0.0.1/32", "host", ""}, {"10.244.2.0/24", "pod tunnel", "10.0.0.2"}, {"10.244.3.0/24", "pod tunnel", "10.0.0.3"}}}
			if m != "strait_ipcache" {
				return d, fmt.Errorf("map %q: %w", m, localapi.ErrNotFound)
			}
			if limit > 0 && limit < len(d.Rows) {
				d.Rows, d.Omitted = d.Rows[:limit], len(d.Rows)-limit
			}
			return d, nil
		},
		Policies: func(context.Context) ([]localapi.Policy, error) { return examplePolicies(i, trouble), nil },
		Policy: func(_ context.Context, name localapi.PolicyName) (localapi.PolicyDetail, error) {
			return examplePolicyDetail(i, name, trouble)
		},
		Rules: func(context.Context, bool) (localapi.Rules, error) {
			looks++
			rules := localapi.Rules{At: ago(0).Add(time.Duration(looks) * time.Second), Rules: exampleRules(i)}
			for j := range rules.Rules { // what is in between is looked at by strait policy top
				if r := &rules.Rules[j]; r.Count.Packets > 0 {
					r.Count = r.Count.Add(localapi.Count{Packets: uint64(looks * (j + 1)), Bytes: uint64(looks * 4000)})
				}
			}
			return rules, nil
		},
		Pods:           func(context.Context) ([]localapi.PodRow, error) { return examplePods(i), nil },
		Namespaces:     func(context.Context) ([]localapi.NamespaceRow, error) { return exampleNamespaces(), nil },
		Identities:     func(context.Context) ([]localapi.IdentityRow, error) { return exampleIdentities(), nil },
		PolicyPrograms: func(context.Context) ([]localapi.ProgramRow, error) { return examplePrograms(trouble), nil },
		Verdict: func(_ context.Context, q localapi.VerdictQuestion) (localapi.PolicyVerdict, error) {
			return exampleVerdict(i, q)
		},
		Explain: exampleExplain(i),
		Check: func(_ context.Context, repair bool) (localapi.Check, error) {
			return exampleCheck(i, repair, trouble), nil
		},
		CheckIPAM: func(_ context.Context, fix bool) (localapi.IPAMCheck, error) {
			c := localapi.IPAMCheck{Checked: 12}
			if trouble {
				c.Findings = []localapi.IPAMFinding{{Address: "10.244.1.77", Owner: "0f3a/eth0", Text: "the sandbox is gone", Fixed: fix}}
			}
			return c, nil
		},
	}
}

func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }
func addr(s string) netip.Addr     { return netip.MustParseAddr(s) }
func at(s string) netip.AddrPort   { return netip.MustParseAddrPort(s) }
func addrs(s ...string) (out []netip.Addr) {
	for _, a := range s {
		out = append(out, addr(a))
	}
	return out
}

func exampleStatus(i int) localapi.Status {
	s := localapi.Status{
		Version: "v0.1.0", Node: fmt.Sprintf("n%d", i), Cluster: "lab", Since: ago(3*time.Hour + 12*time.Minute),
		Kubernetes: localapi.Kubernetes{Server: "https://10.0.0.100:6443", Version: "v1.36.3", Connected: true, Tables: []localapi.WatchTable{
			{Name: "nodes", Rows: 3, Synced: true}, {Name: "services", Rows: 4, Synced: true}, {Name: "endpointslices", Rows: 5, Synced: true}}},
		Routing: localapi.Routing{Mode: "vxlan", Network: "island", Host: "bpf", Attach: "tcx", TunnelDevice: "strait_vxlan", TunnelPort: 8472,
			Devices: []string{"eth0"}},
		Masquerade: localapi.Masquerade{Enabled: true, Families: []string{"IPv4", "IPv6"}, Ports: "10000-29999", Devices: []string{"eth0"}},
		KubeProxy: localapi.KubeProxy{Mode: "on", SocketLB: true, Cgroup: "/sys/fs/cgroup/unified", Protocols: []string{"TCP", "UDP", "SCTP"}, Devices: []string{"eth0"},
			Forwarding: "snat", Algorithm: "random", XDP: "off", NodePorts: "30000-32767", Announce: true, Frontends: 9, Backends: 11, Leaving: 1, MaglevTables: 1,
			ByType: map[string]int{"ClusterIP": 6, "NodePort": 1, "LoadBalancer": 1, "HostPort": 1}},
		Policy: examplePolicyStatus(),
		Flows:  localapi.FlowStatus{Enabled: true, PerSecond: 12.3, Kept: 8192, Max: 8192, Lost: []localapi.LostCount{{Kind: "new", Records: 40}, {Kind: "denied"}}},
		IPAM: localapi.IPAM{Mode: "cluster-pool", Pools: []localapi.Pool{
			{Family: "IPv4", CIDR: fmt.Sprintf("10.244.%d.0/24", i), Allocated: 2, CoolingDown: 1, Capacity: 254},
			{Family: "IPv6", CIDR: fmt.Sprintf("fd00:10:244:%d::/64", i), Allocated: 2, Capacity: 1<<64 - 1}}},
		MTU: localapi.MTU{Device: 1500, Pod: 1450},
		CNI: localapi.CNI{Ready: true, Conflist: "/etc/cni/net.d/05-strait.conflist", LastAdd: ago(4 * time.Second)},
		Reconcilers: []reconcile.Health{
			{Table: "remotes", Rows: 9, Pruned: ago(20 * time.Second), Drift: 1}, {Table: "routes", Rows: 5, Pruned: ago(20 * time.Second)},
			{Table: "frontends", Rows: 7, Pruned: ago(20 * time.Second)}},
		Programs: []localapi.Program{
			{Name: "strait_from_pod", Hook: "tcx ingress", Target: "st1a2b3c", ID: 101, LinkID: 11, Pin: "/sys/fs/bpf/strait/v1/links/strait_from_pod-st1a2b3c"},
			{Name: "strait_from_net", Hook: "tcx ingress", Target: "eth0", ID: 103, LinkID: 12},
			{Name: "strait_connect4", Hook: "cgroup connect4", Target: "/sys/fs/cgroup/unified", ID: 104}},
		Maps: []localapi.Map{
			{Name: "strait_ct", Type: "LRUHash", Entries: 8200, Max: 262144, Bytes: 41943040}, {Name: "strait_ipcache", Type: "LPMTrie", Entries: 3, Max: 131072},
			{Name: "strait_service", Type: "Hash", Entries: 7, Max: 65536}, {Name: "strait_sk", Type: "SkStorage", Entries: localapi.Uncounted}},
		Counters: []localapi.Counter{
			{Reason: 1, Name: "to_local_pod", Text: "handed to a pod on this node", Verdict: verdict.Forwarded, Packets: 1234567, Bytes: 987654321},
			{Reason: 3, Name: "to_tunnel", Text: "sent through the tunnel", Verdict: verdict.Forwarded, Packets: 4321, Bytes: 654321},
			{Reason: 32, Name: "spoofed_source", Text: "source address is not the pod's own", Verdict: verdict.Dropped},
			{Reason: 44, Name: "multicast", Text: "multicast from pods is not carried", Verdict: verdict.Dropped, Packets: 17, Bytes: 1700}},
		Health:   localapi.ClusterHealth{Nodes: 3, Reachable: 3},
		Features: []localapi.Feature{{Name: "Encryption", Text: "off"}},
	}
	for j := 1; j <= 3; j++ {
		if j != i {
			s.Health.Peers = append(s.Health.Peers, localapi.Peer{Node: fmt.Sprintf("n%d", j), Address: fmt.Sprintf("10.0.0.%d:9962", j), Reachable: true,
				RTT: 412 * time.Microsecond, Checked: ago(3 * time.Second)})
		}
	}
	return s
}

// ail makes a node sick in many places.
func ail(s *localapi.Status) {
	s.KubeProxy.Mode, s.KubeProxy.SocketLB = "drain", false
	s.Kubernetes.Connected, s.Kubernetes.Error = false, "dial tcp 10.0.0.100:6443: connect: connection refused"
	s.Reconcilers[1].Failing, s.Reconcilers[1].LastError = 1, "10.244.9.0/24: no such device"
	s.Maps[2].Entries = 65000
	s.CNI.Queued = 2
	s.Health.Reachable--
	s.Health.Peers[1].Reachable, s.Health.Peers[1].Error, s.Health.Peers[1].RTT = false, "no answer in 3s", 0
	s.Leftovers = []localapi.Leftover{{Kind: "device", Name: "flannel.1", Of: "flannel", Effect: "its VXLAN port may be Strait's"}}
}

func exampleEndpoints(i int, trouble bool) []localapi.Endpoint {
	e := []localapi.Endpoint{
		{Namespace: "default", Pod: fmt.Sprintf("web-%d", i), Addresses: addrs(fmt.Sprintf("10.244.%d.2", i), fmt.Sprintf("fd00:10:244:%d::2", i)), Phase: "ready",
			IfName: "eth0", Device: "st1a2b3c", DeviceIndex: 8, PodMAC: "02:00:00:00:00:01", MTU: 1450, ContainerID: "4f0c1a2b3c4d5e6f7a8b", Since: ago(26 * time.Hour)},
		{Namespace: "kube-system", Pod: fmt.Sprintf("coredns-%d", i), Addresses: addrs(fmt.Sprintf("10.244.%d.3", i)), Phase: "ready",
			IfName: "eth0", Device: "st9f8e7d", DeviceIndex: 10, MTU: 1450, ContainerID: "aa0c1a2b3c4d5e6f7a8b", Since: ago(90 * time.Second)},
	}
	if trouble {
		e[0].Phase, e[0].Error = "degraded", "device st1a2b3c is gone"
	}
	return e
}

func exampleNodes(self string) (out []localapi.Node) {
	for i := 1; i <= 3; i++ {
		n := localapi.Node{Name: fmt.Sprintf("n%d", i), Addresses: addrs(fmt.Sprintf("10.0.0.%d", i), fmt.Sprintf("fd00::%d", i)),
			PodCIDRs: []netip.Prefix{prefix(fmt.Sprintf("10.244.%d.0/24", i)), prefix(fmt.Sprintf("fd00:10:244:%d::/64", i))}}
		if n.Name == self {
			n.Self, n.Health = true, "this node"
		} else {
			n.Via, n.Health = "tunnel "+n.Addresses[0].String(), "reachable"
		}
		if i == 3 {
			n.Tainted = true
			if n.Name != self {
				n.Health = "unreachable"
			}
		}
		out = append(out, n)
	}
	return out
}

func exampleRemotes(i int) (out []localapi.Remote) {
	for j := 1; j <= 3; j++ {
		r := localapi.Remote{Prefix: prefix(fmt.Sprintf("10.244.%d.0/24", j)), Kind: "pods", Node: fmt.Sprintf("n%d", j), Status: "done"}
		if j != i {
			r.Tunnel, r.NextHop = true, fmt.Sprintf("10.0.0.%d", j)
		}
		out = append(out, r)
	}
	return append(out,
		localapi.Remote{Prefix: prefix("10.0.0.100/32"), Kind: "apiserver", Status: "done"},
		localapi.Remote{Prefix: prefix("10.244.9.0/24"), Kind: "pods", Node: "n9", NextHop: "10.0.0.9", Device: "eth0", Status: "pending"})
}

// agent serves a provider on a socket and returns the socket.
func agent(t *testing.T, p localapi.Provider) string {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "agent.sock")
	l, err := localapi.Listen(socket)
	if err != nil {
		t.Fatal(err)
	}
	if p.Ends == nil && p.Pods != nil {
		p.Ends = exampleEnds(p)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = localapi.Serve(ctx, l, p, slog.New(slog.DiscardHandler))
	}()
	t.Cleanup(func() { cancel(); <-done })
	return socket
}

// terminal is what the command runs in.
type terminal struct {
	width int
	color bool
	env   map[string]string
}

func (term terminal) run(args ...string) (stdout, stderr string, code int) {
	var out, errs buffer
	env := cli.Env{Version: "v0.1.0", Out: &out, Err: &errs, Getenv: func(k string) string { return term.env[k] },
		Now: func() time.Time { return now }, Width: term.width, Color: term.color}
	code = cli.Run(context.Background(), env, args)
	return out.String(), errs.String(), code
}

// exampleConnections are those with a port of one of the addresses, as the agent chooses them.
func exampleConnections(match []string) localapi.MapDump {
	all := [][]string{
		{"TCP", "10.244.1.5:41234", "10.244.2.7:5432", "established", "12", "1800", "10", "9000", "4m0s", "2s", "", "", "10.96.0.12:5432", ""},
		{"UDP", "10.0.0.1:5353", "10.244.2.9:53", "unanswered", "1", "64", "0", "0", "3s", "3s", "", "", "", ""},
	}
	d := localapi.MapDump{Name: "strait_ct", Columns: strings.Fields("PROTOCOL BEGINNER OTHER STATE PACKETS BYTES REPLY-PACKETS REPLY-BYTES AGE SILENT NAT BACKEND FRONT FLAGS")}
	for _, row := range all {
		if len(match) == 0 || slices.ContainsFunc(match, func(m string) bool { return strings.HasPrefix(row[1], m+":") || strings.HasPrefix(row[2], m+":") }) {
			d.Rows = append(d.Rows, row)
		}
	}
	return d
}
