package path

import (
	"net/netip"

	"github.com/strait-net/strait/bench/internal/kube"
	"github.com/strait-net/strait/bench/internal/node"
	"github.com/strait-net/strait/bench/internal/rr"
)

// Backend is a pod that serves all modes.
type Backend struct {
	member *Member
	pod    pod
	end    End
}

// Backend starts a server in a new pod of the node.
func (m *Member) Backend(name string) (*Backend, error) {
	made, err := m.pods(name)
	if err != nil {
		return nil, err
	}
	group, err := m.Group.Child(name)
	if err != nil {
		return nil, err
	}
	b := &Backend{member: m, pod: made[0]}
	site := m.cluster.site
	b.end.Place, b.end.Bill = rr.Place{Space: made[0].space, CPU: site.serverCPU, Groups: group.Procs()}, group
	return b, site.program.Serve(site.ctx, site.spawner, b.end.Place)
}

// Reach gives two nodes of a system that leaves routes to others the routes to each other's pods.
func (m *Member) Reach(o *Member) error {
	if m.System.Proxy == "" {
		return nil
	}
	for _, pair := range [][2]*Member{{m, o}, {o, m}} {
		for i, via := range []netip.Addr{pair[1].v4, pair[1].v6} {
			if err := pair[0].Space.Route(pair[1].cidrs[i], via); err != nil {
				return err
			}
		}
	}
	return nil
}

// NodePort is a path from a client that is no node to a backend by way of a port of the node. forwarding is Strait's; empty: the
// system's own way.
func (m *Member) NodePort(name, forwarding string, backend *Backend) (*Path, error) {
	c := m.cluster
	c.services++
	c.ports++
	first := 30000 + 10*c.ports
	modes := []rr.Mode{rr.CRR, rr.UDPPPS}
	s := kube.Service{Name: label(name), Addresses: map[int]netip.Addr{4: netip.AddrFrom4([4]byte{10, 96, 1, byte(c.services)}), 6: serviceAddress6(c.services)},
		Ports: servicePorts(first, modes...)}
	about := m.about() + ", node port"
	if forwarding != "" {
		s.Annotations = map[string]string{"strait.dev/forwarding": forwarding}
		about += ", " + forwarding
	}
	if err := c.server.Publish(c.site.ctx, s, backend.pod.address, backend.member.Name); err != nil {
		return nil, err
	}
	g, err := c.client.Child(label(name))
	if err != nil {
		return nil, err
	}
	p := &Path{Name: name, About: about, Address: map[int]netip.Addr{4: m.v4, 6: m.v6}, Port: first, Modes: modes,
		Client: End{Place: rr.Place{Space: c.outside, CPU: c.site.clientCPU, Groups: g.Procs()}, Bill: g}, Server: backend.end,
		Witness: []Witness{{m.Space, "eth0"}, {backend.member.Space, backend.pod.device}}}
	if m.System.Proxy == "" {
		p.Nodes = []*node.Node{m.Node}
		if backend.member != m {
			p.Nodes = append(p.Nodes, backend.member.Node)
		}
	}
	return p, c.proven(p)
}
