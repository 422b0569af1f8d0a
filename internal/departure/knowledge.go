package departure

import (
	"net/netip"
	"slices"

	"github.com/strait-net/strait/internal/state"
)

// knowledge is what the tables say, gathered once per look.
type knowledge struct {
	loads      Loads
	asks       bool
	listed     map[netip.Addr][]string // pods that EndpointSlices have at the addresses waited for, namespace/name
	pods       map[netip.Addr]string   // of local endpoints
	own        []netip.Prefix          // this node's pod CIDRs
	namespaces map[uint64]string
}

func (d *Departures) gather() knowledge {
	k := knowledge{
		loads: d.cfg.Loads, asks: d.cfg.Alive != nil,
		listed: make(map[netip.Addr][]string, len(d.waiting)), pods: map[netip.Addr]string{}, namespaces: map[uint64]string{},
	}
	streams := false
	for _, w := range d.waiting {
		k.listed[w.Addr()] = nil
		streams = streams || w.Protocol != state.UDP
	}
	for e := range d.cfg.State.Endpoints.Snapshot().All() {
		for _, a := range e.Addresses {
			k.pods[a] = e.Namespace + "/" + e.Pod
		}
		if e.NetNSCookie != 0 {
			k.namespaces[e.NetNSCookie] = e.NetNS
		}
	}
	if node, _, ok := d.cfg.State.Nodes.Snapshot().Get(d.cfg.Node); ok {
		k.own = node.PodCIDRs
	}
	if !streams {
		return k
	}
	for s := range d.cfg.State.EndpointSlices.Snapshot().All() {
		for i := range s.Endpoints {
			if e := &s.Endpoints[i]; k.waits(e.Address) {
				k.listed[e.Address] = append(k.listed[e.Address], e.Pod)
			}
		}
	}
	return k
}

func (k knowledge) waits(a netip.Addr) bool {
	_, waited := k.listed[a]
	return waited
}

// of returns the facts about one backend. An address may have gone to another pod meanwhile.
func (k knowledge) of(w *wait) (facts, error) {
	load, _, err := k.loads.Load(w.ID)
	if err != nil {
		return facts{}, err
	}
	f := facts{sockets: load.Sockets > 0, tracked: load.Tracked > 0, asks: k.asks}
	f.listed = slices.ContainsFunc(k.listed[w.Addr()], func(pod string) bool { return pod == "" || w.Pod == "" || pod == w.Pod })
	pod, here := k.pods[w.Addr()]
	switch {
	case here && (w.Pod == "" || pod == w.Pod):
		f.local = attached
	case slices.ContainsFunc(k.own, func(p netip.Prefix) bool { return p.Contains(w.Addr()) }):
		f.local = detached
	}
	return f, nil
}
