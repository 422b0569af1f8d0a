package flow

import (
	"iter"
	"net/netip"

	"github.com/strait-net/strait/internal/identity"
	"github.com/strait-net/strait/internal/policy"
	"github.com/strait-net/strait/internal/state"
	"github.com/strait-net/strait/internal/table"
)

// owners finds out who has an address, as tables say at the last refresh.
type owners struct {
	node  string
	state *state.State

	pods       table.Snapshot[state.Pod]
	endpoints  table.Snapshot[state.Endpoint]
	devices    table.Snapshot[state.Device]
	remotes    *prefixes[state.Remote]
	identities *prefixes[state.Identity]

	local map[netip.Addr]state.Endpoint // of this node's pods; of endpoints
	own   map[netip.Addr]bool           // of this node's devices; of devices
}

func newOwners(node string, st *state.State) *owners {
	o := &owners{
		node: node, state: st,
		remotes:    newPrefixes(st.Remotes, func(r state.Remote) netip.Prefix { return r.Prefix }),
		identities: newPrefixes(st.Identities, func(i state.Identity) netip.Prefix { return i.Prefix }),
	}
	o.pods = st.Pods.Snapshot()
	o.readEndpoints()
	o.readDevices()
	return o
}

func (o *owners) close() {
	o.remotes.changes.Close()
	o.identities.changes.Close()
}

// refresh looks at the tables as they are now, and reports whether anything has changed.
func (o *owners) refresh() bool {
	changed := o.remotes.refresh()
	changed = o.identities.refresh() || changed
	if s := o.state.Pods.Snapshot(); s.Revision() != o.pods.Revision() {
		o.pods, changed = s, true
	}
	if o.state.Endpoints.Snapshot().Revision() != o.endpoints.Revision() {
		o.readEndpoints()
		changed = true
	}
	if o.state.Devices.Snapshot().Revision() != o.devices.Revision() {
		o.readDevices()
		changed = true
	}
	return changed
}

func (o *owners) readEndpoints() {
	o.endpoints, o.local = o.state.Endpoints.Snapshot(), map[netip.Addr]state.Endpoint{}
	for e := range o.endpoints.All() {
		for _, a := range e.Addresses {
			o.local[a] = e
		}
	}
}

func (o *owners) readDevices() {
	o.devices, o.own = o.state.Devices.Snapshot(), map[netip.Addr]bool{}
	for d := range o.devices.All() {
		for _, p := range d.Addresses {
			o.own[p.Addr()] = true
		}
	}
}

// of returns who has an address.
func (o *owners) of(a netip.Addr) End {
	who, known := o.identities.around(a)
	end := o.named(a, who.Pod)
	end.Local = end.Node != "" && end.Node == o.node && (end.Kind == policy.PodPeer || end.Kind == policy.HostPeer)
	end.Identity = reserved(end.Kind)
	// A row that is about more than what is at this address may be about another kind: the world's is that of a pod's neighbours, too.
	if known && who.Kind == end.Kind {
		end.Identity = who.ID
	}
	return end
}

// named finds kind, pod and node. believed is the pod that policy takes for the address' owner before a kubelet has said so.
func (o *owners) named(a netip.Addr, believed string) End {
	if e, ok := o.local[a]; ok {
		return End{Kind: policy.PodPeer, Pod: o.podOf(e), Node: o.node}
	}
	if p, ok := o.reported(a); ok {
		return End{Kind: policy.PodPeer, Pod: &p, Node: p.Node}
	}
	if p, _, ok := o.pods.Get(believed); ok {
		return End{Kind: policy.PodPeer, Pod: &p, Node: p.Node}
	}
	if o.own[a] || a.IsLoopback() {
		return End{Kind: policy.HostPeer, Node: o.node}
	}
	if r, ok := o.remotes.around(a); ok {
		return End{Kind: kindOf(r.Kind), Node: r.Node}
	}
	if a.IsLinkLocalUnicast() || a.IsUnspecified() {
		return End{Kind: policy.UnknownPeer}
	}
	return End{Kind: policy.WorldPeer}
}

// reported returns the pod that a kubelet says has an address.
func (o *owners) reported(a netip.Addr) (pod state.Pod, ok bool) {
	next, stop := iter.Pull(o.pods.By(state.PodsByAddress, a.String()))
	defer stop()
	return next()
}

// podOf returns the pod of an attachment. Its row may not be there yet, not any more, or be that of a later pod of the same name.
func (o *owners) podOf(e state.Endpoint) *state.Pod {
	p, _, ok := o.pods.Get(e.Namespace + "/" + e.Pod)
	if ok && (e.PodUID == "" || p.UID == e.PodUID) {
		return &p
	}
	return &state.Pod{Namespace: e.Namespace, Name: e.Pod, UID: e.PodUID, Node: o.node, Addresses: e.Addresses}
}

func kindOf(k state.RemoteKind) policy.PeerKind {
	switch k {
	case state.RemoteHost:
		return policy.HostPeer
	case state.RemoteNode:
		return policy.NodePeer
	case state.RemoteAPIServer:
		return policy.APIServerPeer
	}
	return policy.UnknownPeer // inside a pod CIDR
}

// reserved is the identity of who no policy in use tells apart.
func reserved(k policy.PeerKind) identity.ID {
	switch k {
	case policy.HostPeer:
		return identity.Host
	case policy.NodePeer:
		return identity.RemoteNode
	case policy.PodPeer:
		return identity.Pod
	case policy.APIServerPeer:
		return identity.APIServer
	case policy.WorldPeer:
		return identity.World
	}
	return identity.Unknown
}

// prefixes finds the row of a table with the longest prefix around an address. The table's keys are the prefixes as text.
type prefixes[T any] struct {
	table   *table.Table[T]
	changes *table.Changes[T]
	prefix  func(T) netip.Prefix
	rows    table.Snapshot[T]
	// lengths are those that a prefix of IPv4 and IPv6 ever had: few, and looking for one that is gone costs little.
	lengths [2][129]bool
}

func newPrefixes[T any](t *table.Table[T], prefix func(T) netip.Prefix) *prefixes[T] {
	p := &prefixes[T]{table: t, changes: t.Changes(), prefix: prefix, rows: t.Snapshot()}
	p.read()
	return p
}

func (p *prefixes[T]) refresh() bool {
	if p.table.Snapshot().Revision() == p.rows.Revision() {
		return false
	}
	p.read()
	return true
}

func (p *prefixes[T]) read() {
	changes, _ := p.changes.Next()
	for _, c := range changes {
		if at := p.prefix(c.Row); at.IsValid() {
			p.lengths[family(at.Addr())][at.Bits()] = true
		}
	}
	p.rows = p.table.Snapshot()
}

func (p *prefixes[T]) around(a netip.Addr) (row T, ok bool) {
	for bits := a.BitLen(); bits >= 0; bits-- {
		if !p.lengths[family(a)][bits] {
			continue
		}
		if at, err := a.Prefix(bits); err == nil {
			if row, _, ok := p.rows.Get(at.String()); ok {
				return row, true
			}
		}
	}
	return row, false
}

func family(a netip.Addr) int {
	if a.Is4() {
		return 0
	}
	return 1
}
