package status

import (
	"iter"
	"net/netip"
	"slices"
	"strings"

	"github.com/strait-net/strait/internal/localapi"
	"github.com/strait-net/strait/internal/state"
)

// ends looks words up by index: its cost does not grow with the number of pods.
func (s Sources) ends(words []string) localapi.Ends {
	var pods []state.Pod
	var services []state.Service
	var frontends []state.Frontend
	names := []string{s.Node} // of nodes
	addresses := map[netip.Addr]bool{}
	for _, word := range slices.Compact(slices.Sorted(slices.Values(words))) {
		if a, err := netip.ParseAddr(word); err == nil {
			a = a.Unmap()
			addresses[a] = true
			pods = slices.AppendSeq(pods, s.State.Pods.Snapshot().By(state.PodsByAddress, a.String()))
			continue
		}
		names = append(names, word)
		if !strings.Contains(word, "/") {
			word = "default/" + word
		}
		if p, _, ok := s.State.Pods.Snapshot().Get(word); ok {
			pods = append(pods, p)
		}
		if svc, _, ok := s.State.Services.Snapshot().Get(word); ok {
			services = append(services, svc)
		}
		frontends = slices.AppendSeq(frontends, s.State.Frontends.Snapshot().By(state.FrontendsByService, word))
	}
	for f := range s.State.Frontends.Snapshot().All() {
		if addresses[f.Address] {
			frontends = append(frontends, f)
		}
	}
	for _, p := range pods {
		names = append(names, p.Node)
	}
	slices.SortFunc(pods, func(a, b state.Pod) int { return strings.Compare(a.Key(), b.Key()) })
	pods = slices.CompactFunc(pods, func(a, b state.Pod) bool { return a.Key() == b.Key() }) // by name and by address
	out := localapi.Ends{Node: s.Node, Pods: Pods(slices.Values(pods))}
	out.Nodes = Nodes(s.nodesThat(names, addresses), s.State.Remotes.Snapshot().All(), s.Node, nil)
	out.Services = append(Frontends(slices.Values(frontends), s.State.Services.Snapshot(), s.addresses(), KernelServices{}), Idle(slices.Values(services))...)
	for i := range out.Services {
		out.Services[i].Backends, out.Services[i].Outer = []localapi.Backend{}, nil
	}
	return out
}

// nodesThat returns the nodes with one of these names or addresses.
func (s Sources) nodesThat(names []string, addresses map[netip.Addr]bool) iter.Seq[state.Node] {
	return func(yield func(state.Node) bool) {
		for n := range s.State.Nodes.Snapshot().All() {
			has := slices.ContainsFunc(n.Addresses, func(a netip.Addr) bool { return addresses[a] })
			if (has || slices.Contains(names, n.Name)) && !yield(n) {
				return
			}
		}
	}
}
