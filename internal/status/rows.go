// Package status turns the agent's tables into the rows of the local API and says what is wrong.
package status

import (
	"context"
	"iter"
	"net/netip"
	"slices"
	"strings"

	"github.com/strait-net/strait/internal/localapi"
	"github.com/strait-net/strait/internal/reconcile"
	"github.com/strait-net/strait/internal/state"
	"github.com/strait-net/strait/internal/table"
)

// Sources is what the rows are made of. State and Node are required.
type Sources struct {
	State *state.State
	Node  string // name of this node
	// Peers is what the prober found, nil when nothing probes.
	Peers func() []localapi.Peer
	// Services reads what the kernel holds of services; nil when unknown.
	Services func() (KernelServices, error)
	// Traffic sums what the connection table has counted for each of the targets; nil when unknown.
	Traffic func([]Target) ([]localapi.Traffic, error)
	Policy  PolicySources
}

// Provider returns a provider whose functions over tables are filled in: Nodes, Endpoints, Services, Remotes, Routes, Devices, and
// those about policy but for Check.
func Provider(s Sources) localapi.Provider {
	if s.Peers == nil {
		s.Peers = func() []localapi.Peer { return nil }
	}
	if s.Services == nil {
		s.Services = func() (KernelServices, error) { return KernelServices{}, nil }
	}
	if s.Traffic == nil {
		s.Traffic = func(of []Target) ([]localapi.Traffic, error) { return make([]localapi.Traffic, len(of)), nil }
	}
	st := s.State
	return localapi.Provider{
		Nodes: func(context.Context) ([]localapi.Node, error) {
			return Nodes(st.Nodes.Snapshot().All(), st.Remotes.Snapshot().All(), s.Node, s.Peers()), nil
		},
		Endpoints: func(context.Context) ([]localapi.Endpoint, error) {
			return Endpoints(st.Endpoints.Snapshot().All()), nil
		},
		Services: func(context.Context) ([]localapi.Service, error) { return s.services() },
		Service: func(_ context.Context, namespace, name string) (localapi.ServiceDetail, error) {
			return s.service(state.ServiceName{Namespace: namespace, Name: name})
		},
		Remotes: func(context.Context) ([]localapi.Remote, error) { return Remotes(st.Remotes.Snapshot().All()), nil },
		Routes:  func(context.Context) ([]localapi.Route, error) { return Routes(st.Routes.Snapshot().All()), nil },
		Devices: func(context.Context) ([]localapi.Device, error) { return Devices(st.Devices.Snapshot().All()), nil },

		Policies: func(context.Context) ([]localapi.Policy, error) { return s.policies() },
		Policy: func(_ context.Context, name localapi.PolicyName) (localapi.PolicyDetail, error) {
			return s.policy(name)
		},
		Rules: func(_ context.Context, shadowed bool) (localapi.Rules, error) { return s.rules(shadowed) },
		Pods:  func(context.Context) ([]localapi.PodRow, error) { return Pods(st.Pods.Snapshot().All()), nil },
		Namespaces: func(context.Context) ([]localapi.NamespaceRow, error) {
			return Namespaces(st.Namespaces.Snapshot().All()), nil
		},
		Identities: func(context.Context) ([]localapi.IdentityRow, error) {
			return Identities(st.Identities.Snapshot().All()), nil
		},
		PolicyPrograms: func(context.Context) ([]localapi.ProgramRow, error) {
			return Programs(st.Programs.Snapshot().All()), nil
		},
		Verdict: func(_ context.Context, q localapi.VerdictQuestion) (localapi.PolicyVerdict, error) {
			return s.verdict(q)
		},
		Ends: func(_ context.Context, words []string) (localapi.Ends, error) { return s.ends(words), nil },
	}
}

// WatchTables returns the tables fed from Kubernetes.
func WatchTables(st *state.State) []localapi.WatchTable {
	return []localapi.WatchTable{
		watch(st.Nodes), watch(st.Services), watch(st.EndpointSlices), watch(st.Pods), watch(st.Namespaces), watch(st.Policies),
	}
}

func watch[T any](t *table.Table[T]) localapi.WatchTable {
	w := localapi.WatchTable{Name: t.Name(), Rows: t.Snapshot().Len(), Pending: t.Pending()}
	slices.Sort(w.Pending)
	select {
	case <-t.Initialized():
		w.Synced = true
	default:
	}
	return w
}

// Nodes returns the nodes in order of their names, with the way to their pods and what the prober found.
func Nodes(nodes iter.Seq[state.Node], remotes iter.Seq[state.Remote], self string, peers []localapi.Peer) []localapi.Node {
	via, failed := map[string]string{}, map[string]string{}
	for r := range remotes {
		if r.Node == "" || r.Node == self {
			continue
		}
		if r.Kind == state.RemotePods && via[r.Node] == "" {
			via[r.Node] = way(r)
		}
		if r.Err != "" {
			failed[r.Node] = r.Prefix.String() + ": " + r.Err
		}
	}
	rows := []localapi.Node{}
	for n := range nodes {
		row := localapi.Node{
			Name: n.Name, Self: n.Name == self, Addresses: n.Addresses, PodCIDRs: n.PodCIDRs, Tainted: n.Tainted,
			Via: via[n.Name], Error: failed[n.Name],
		}
		i := slices.IndexFunc(peers, func(p localapi.Peer) bool { return p.Node == n.Name })
		switch {
		case row.Self:
			row.Health = "this node"
		case i >= 0 && peers[i].Reachable:
			row.Health = "reachable"
		case i >= 0:
			row.Health = "unreachable"
		}
		rows = append(rows, row)
	}
	return rows
}

func way(r state.Remote) string {
	switch {
	case r.Tunnel:
		return "tunnel " + r.NextHop.String()
	case r.NextHop.IsValid():
		return r.NextHop.String() + " dev " + r.Device
	}
	return r.Device
}

// Endpoints returns the local endpoints, the degraded ones first, then by namespace and pod.
func Endpoints(endpoints iter.Seq[state.Endpoint]) []localapi.Endpoint {
	rows := []localapi.Endpoint{}
	for e := range endpoints {
		rows = append(rows, localapi.Endpoint{
			Namespace: e.Namespace, Pod: e.Pod, PodUID: e.PodUID, Addresses: e.Addresses, Phase: string(e.Phase), Error: e.Error,
			IfName: e.IfName, Device: e.Device, DeviceIndex: e.DeviceIndex, PodMAC: e.PodMAC.String(), HostMAC: e.HostMAC.String(),
			MTU: e.MTU, ContainerID: e.ContainerID, NetNS: e.NetNS, Since: e.Since,
		})
	}
	bad := func(e localapi.Endpoint) int {
		if e.Phase == string(state.EndpointDegraded) {
			return 0
		}
		return 1
	}
	slices.SortStableFunc(rows, func(a, b localapi.Endpoint) int {
		if d := bad(a) - bad(b); d != 0 {
			return d
		}
		if d := strings.Compare(a.Namespace, b.Namespace); d != 0 {
			return d
		}
		return strings.Compare(a.Pod, b.Pod)
	})
	return rows
}

// Remotes returns the rows of the ipcache in order of their prefixes.
func Remotes(remotes iter.Seq[state.Remote]) []localapi.Remote {
	rows := []localapi.Remote{}
	for r := range remotes {
		rows = append(rows, localapi.Remote{
			Prefix: r.Prefix, Kind: string(r.Kind), Node: r.Node, Tunnel: r.Tunnel, NextHop: text(r.NextHop), Device: r.Device,
			Status: kind(r.Status), Error: r.Err,
		})
	}
	slices.SortFunc(rows, func(a, b localapi.Remote) int { return a.Prefix.Compare(b.Prefix) })
	return rows
}

// Routes returns the routes in order of their prefixes.
func Routes(routes iter.Seq[state.Route]) []localapi.Route {
	rows := []localapi.Route{}
	for r := range routes {
		rows = append(rows, localapi.Route{
			Prefix: r.Prefix, Kind: string(r.Kind), Device: r.Device, Via: text(r.Via), Source: text(r.Source), MTU: r.MTU,
			Status: kind(r.Status), Error: r.Err,
		})
	}
	slices.SortFunc(rows, func(a, b localapi.Route) int { return a.Prefix.Compare(b.Prefix) })
	return rows
}

// Devices returns the node's devices in order of their names.
func Devices(devices iter.Seq[state.Device]) []localapi.Device {
	rows := []localapi.Device{}
	for d := range devices {
		rows = append(rows, localapi.Device{
			Name: d.Name, Index: d.Index, MTU: d.MTU, Up: d.Up, Native: d.Native, Addresses: d.Addresses,
		})
	}
	return rows
}

func kind(s reconcile.Status) string {
	if s.Kind == reconcile.Pending {
		return "pending"
	}
	return string(s.Kind)
}

func text(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}
