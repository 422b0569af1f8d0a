package observer

import (
	"net/netip"
	"strings"

	"github.com/strait-net/strait/internal/policy"
	"github.com/strait-net/strait/internal/state"
	"github.com/strait-net/strait/internal/table"
)

// backends are those of services that a filter names, as EndpointSlices say now. For one goroutine.
type backends struct {
	names  names
	slices *table.Table[state.EndpointSlice]
	seen   table.Revision
	addrs  map[netip.Addr]bool
	ports  map[backend]bool
}

// backend is where a service's connections arrive.
type backend struct {
	at       netip.AddrPort
	protocol policy.Protocol
}

// refresh reads the slices again when any of them has changed.
func (b *backends) refresh() {
	s := b.slices.Snapshot()
	if s.Revision() == b.seen && b.addrs != nil {
		return
	}
	b.seen, b.addrs, b.ports = s.Revision(), map[netip.Addr]bool{}, map[backend]bool{}
	for slice := range s.All() {
		if !b.names.match(slice.Service.Namespace, slice.Service.Name) {
			continue
		}
		for _, e := range slice.Endpoints {
			b.addrs[e.Address] = true
			for _, p := range slice.Ports {
				b.ports[backend{netip.AddrPortFrom(e.Address, p.Port), policy.Protocol(p.Protocol)}] = true
			}
		}
	}
}

// byDestinationService matches what was sent to a service. Its name is known where its address was seen, on the client's node; elsewhere what goes
// to one of its backends, at a port of theirs, counts.
func (s *setting) byDestinationService(texts []string) (match, error) {
	wanted, err := readNames(texts)
	if err != nil {
		return nil, err
	}
	known := backends{names: wanted, slices: s.slices}
	return func(p *part) bool {
		if namespace, name, named := strings.Cut(p.Service, "/"); named {
			return wanted.match(namespace, name)
		}
		known.refresh()
		return known.ports[backend{p.Target, p.Protocol}]
	}, nil
}

// bySourceService matches what backends of a service send. Those that share their node's address cannot be told from the node.
func (s *setting) bySourceService(texts []string) (match, error) {
	wanted, err := readNames(texts)
	if err != nil {
		return nil, err
	}
	known := backends{names: wanted, slices: s.slices}
	return func(p *part) bool {
		if p.From.Kind == policy.HostPeer || p.From.Kind == policy.NodePeer {
			return false
		}
		known.refresh()
		return known.addrs[p.Source.Addr()]
	}, nil
}
