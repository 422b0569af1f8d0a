// Package path builds the ways between two pods that are measured side by side.
package path

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"github.com/strait-net/strait/bench/internal/bill"
	"github.com/strait-net/strait/bench/internal/node"
	"github.com/strait-net/strait/bench/internal/progcost"
	"github.com/strait-net/strait/bench/internal/rr"
	"github.com/strait-net/strait/bench/internal/toolbox"
	"github.com/strait-net/strait/bench/internal/wire"
)

// deviceMTU is the MTU of every device between nodes and of every pod that no tunnel narrows.
const deviceMTU = 1500

// End is one end of a path.
type End struct {
	rr.Place
	Bill bill.Group // CPU time of the process there
}

// Path is a way from a client to a server that runs already.
type Path struct {
	Name    string
	About   string
	Client  End
	Server  End
	Address map[int]netip.Addr // by family, 4 and 6
	Port    int                // see rr.Load
	Modes   []rr.Mode          // those that work on it; nil: all
	Witness []Witness
	Nodes   []*node.Node // whose BPF programs are on the path; empty: none
	// Accounts of those who work because of the path's connections, without being an end. Settle is how long they go on with what connections have left.
	Accounts map[string]bill.Group
	Settle   time.Duration
}

// Programs reads what the BPF programs on the path have cost so far.
func (p *Path) Programs() (map[ebpf.ProgramID]progcost.Total, error) {
	totals := map[ebpf.ProgramID]progcost.Total{}
	for _, n := range p.Nodes {
		if err := progcost.Linked(totals, n.Root("/sys/fs/bpf/strait")); err != nil {
			return nil, fmt.Errorf("path %s: %w", p.Name, err)
		}
		filters, err := n.Space.Programs()
		if err != nil {
			return nil, fmt.Errorf("path %s: %w", p.Name, err)
		}
		for _, id := range filters {
			if err := progcost.Add(totals, ebpf.ProgramID(id)); err != nil {
				return nil, fmt.Errorf("path %s: %w", p.Name, err)
			}
		}
	}
	return totals, nil
}

// Witness is a device that has to count the packets of the path, or the path is not what its name says.
type Witness struct {
	Space  *wire.Namespace
	Device string
}

// Seen sums the witnesses' counters.
func (p *Path) Seen() (uint64, error) {
	var total uint64
	for _, w := range p.Witness {
		n, err := w.Space.Packets(w.Device)
		if err != nil {
			return 0, fmt.Errorf("path %s: %w", p.Name, err)
		}
		total += n
	}
	return total, nil
}

// Site owns everything a run builds; Close removes it.
type Site struct {
	ctx       context.Context
	box       *toolbox.Box
	program   rr.Program
	spawner   *rr.Spawner
	root      bill.Group
	clientCPU int
	serverCPU int
	logs      string
	nodes     []*node.Node
	spaces    []*wire.Namespace
	underlay  *wire.Namespace
	cables    int
	// Of clusters with an API server: see Cluster.
	control, outside *wire.Namespace
	client           bill.Group // of the client outside
	members          int
}

// Config is what a site needs.
type Config struct {
	Box       *toolbox.Box
	Program   rr.Program
	Spawner   *rr.Spawner
	Root      bill.Group // cgroups of the run
	ClientCPU int
	ServerCPU int
	Logs      string // directory for daemons' output
}

// New makes an empty site.
func New(ctx context.Context, c Config) (*Site, error) {
	s := &Site{ctx: ctx, box: c.Box, program: c.Program, spawner: c.Spawner, root: c.Root, clientCPU: c.ClientCPU, serverCPU: c.ServerCPU, logs: c.Logs}
	under, err := s.space("underlay")
	if err != nil {
		return nil, err
	}
	s.underlay = under
	// Frames between nodes are not the business of a packet filter.
	for _, key := range []string{"net/bridge/bridge-nf-call-iptables", "net/bridge/bridge-nf-call-ip6tables"} {
		if err := under.Sysctl(key, "0"); err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
	}
	return s, under.Bridge("under")
}

// Close stops all nodes; namespaces go with them.
func (s *Site) Close() error {
	var errs []error
	for _, n := range s.nodes {
		errs = append(errs, n.Stop())
	}
	for _, n := range s.spaces {
		errs = append(errs, n.Close())
	}
	return errors.Join(errs...)
}

func (s *Site) space(name string) (*wire.Namespace, error) {
	n, err := wire.New(name)
	if err != nil {
		return nil, err
	}
	s.spaces = append(s.spaces, n)
	for key, value := range node.PodSettings() {
		if err := n.Sysctl(key, value); err != nil {
			return nil, err
		}
	}
	return n, nil
}

// Node starts a node that no other node can reach.
func (s *Site) Node(name string) (*node.Node, error) {
	group, err := s.root.Child(name)
	if err != nil {
		return nil, err
	}
	n, err := node.Start(name, group)
	if err != nil {
		return nil, err
	}
	s.nodes = append(s.nodes, n)
	return n, nil
}

// attachment is a node's place on the underlay bridge.
type attachment struct {
	*node.Node
	v4, v6 netip.Addr
}

// attached starts nodes on the underlay bridge in a subnet of their own.
func (s *Site) attached(name string, count int) ([]attachment, error) {
	var out []attachment
	s.cables++
	for i := range count {
		n, err := s.Node(fmt.Sprintf("%s-%d", name, i+1))
		if err != nil {
			return out, err
		}
		a := attachment{Node: n, v4: netip.AddrFrom4([4]byte{172, 31, byte(s.cables), byte(i + 1)}), v6: v6(0x31, s.cables, i+1)}
		err = wire.Cable(
			wire.End{Space: s.underlay, Device: fmt.Sprintf("u%d-%d", s.cables, i+1), Bridge: "under"},
			wire.End{Space: n.Space, Device: "eth0", Addresses: []netip.Prefix{netip.PrefixFrom(a.v4, 24), netip.PrefixFrom(a.v6, 64)}}, deviceMTU)
		if err != nil {
			return out, err
		}
		out = append(out, a)
	}
	return out, nil
}

// v6 is the address fd00:net:sub::host.
func v6(net, sub, host int) netip.Addr {
	return netip.AddrFrom16([16]byte{0xfd, 0, byte(net >> 8), byte(net), byte(sub >> 8), byte(sub), 14: byte(host >> 8), 15: byte(host)})
}

// ends makes the two ends of a path below a group, each with its own account.
func (s *Site) ends(group [2]bill.Group, name string, client, server *wire.Namespace) (End, End, error) {
	var ends [2]End
	for i, role := range []string{"client", "server"} {
		g, err := group[i].Child(name + "-" + role)
		if err != nil {
			return End{}, End{}, err
		}
		ends[i] = End{Bill: g, Place: rr.Place{Space: client, CPU: s.clientCPU, Groups: g.Procs()}}
	}
	ends[1].Space, ends[1].CPU = server, s.serverCPU
	return ends[0], ends[1], nil
}

// open starts the server of a path and proves that the path works and carries its own traffic.
func (s *Site) open(p *Path) (*Path, error) {
	if err := s.program.Serve(s.ctx, s.spawner, p.Server.Place); err != nil {
		return nil, fmt.Errorf("path %s: %w", p.Name, err)
	}
	return p, s.Prove(p)
}

// Prove sends a little traffic in each family and checks that the path's witnesses counted it.
func (s *Site) Prove(p *Path) error {
	for family, to := range p.Address {
		modes := p.Modes
		if modes == nil {
			modes = []rr.Mode{rr.RR, rr.CRR, rr.UDPRR}
		}
		for _, mode := range modes {
			before, err := p.Seen()
			if err != nil {
				return err
			}
			sample, err := s.Sample(p, rr.Load{Mode: mode, To: to, Port: p.Port, Warm: time.Millisecond, Length: 50 * time.Millisecond})
			if err != nil {
				return fmt.Errorf("path %s, IPv%d: %w", p.Name, family, err)
			}
			after, err := p.Seen()
			if err != nil {
				return err
			}
			if len(p.Witness) > 0 && after-before < sample.AllOps {
				return fmt.Errorf("path %s, IPv%d: %w: %d operations of %s, %d packets seen", p.Name, family, ErrElsewhere, sample.AllOps, mode, after-before)
			}
		}
	}
	return nil
}

// ErrElsewhere is returned when traffic reached its destination without passing the devices that give the path its name.
var ErrElsewhere = errors.New("traffic went another way")

// Carries reports whether a kind of conversation is possible on the path.
func (p *Path) Carries(m rr.Mode, family int) bool {
	_, ok := p.Address[family]
	return ok && (p.Modes == nil || slices.Contains(p.Modes, m))
}

// Sample takes one sample on a path.
func (s *Site) Sample(p *Path, l rr.Load) (rr.Sample, error) {
	return s.program.Sample(s.ctx, s.spawner, p.Client.Place, l)
}

// Direct is the floor: two namespaces and a cable.
func (s *Site) Direct() (*Path, error) {
	const name = "veth"
	client, err := s.space(name + "-client")
	if err != nil {
		return nil, err
	}
	server, err := s.space(name + "-server")
	if err != nil {
		return nil, err
	}
	address := map[int]netip.Addr{4: netip.MustParseAddr("10.99.0.2"), 6: v6(0x99, 0, 2)}
	err = wire.Cable(
		wire.End{Space: client, Device: "eth0", Addresses: []netip.Prefix{netip.MustParsePrefix("10.99.0.1/24"), netip.PrefixFrom(v6(0x99, 0, 1), 64)}},
		wire.End{Space: server, Device: "eth0", Addresses: []netip.Prefix{netip.PrefixFrom(address[4], 24), netip.PrefixFrom(address[6], 64)}}, deviceMTU)
	if err != nil {
		return nil, err
	}
	p := &Path{Name: name, About: "two namespaces and a veth pair, nothing else", Address: address, Witness: []Witness{{client, "eth0"}}}
	p.Client, p.Server, err = s.ends([2]bill.Group{s.root, s.root}, name, client, server)
	if err != nil {
		return nil, err
	}
	return s.open(p)
}

// Hosts is node to node without pods: what a network of pods can hope for.
func (s *Site) Hosts() (*Path, error) {
	const name = "nodes"
	nodes, err := s.attached(name, 2)
	if err != nil {
		return nil, err
	}
	for _, n := range nodes {
		for key, value := range node.PodSettings() {
			if err := n.Space.Sysctl(key, value); err != nil {
				return nil, err
			}
		}
	}
	p := &Path{Name: name, About: "node to node over the underlay bridge, no packet filter", Address: map[int]netip.Addr{4: nodes[1].v4, 6: nodes[1].v6},
		Witness: []Witness{{nodes[0].Space, "eth0"}}}
	p.Client, p.Server, err = s.ends([2]bill.Group{nodes[0].Group, nodes[1].Group}, name, nodes[0].Space, nodes[1].Space)
	if err != nil {
		return nil, err
	}
	return s.open(p)
}

// pod is a pod that CNI has connected.
type pod struct {
	space   *wire.Namespace
	address map[int]netip.Addr
	device  string // the node's end
}

// pods makes pods and connects them one after the other.
func pods(n *node.Node, confList, binDir string, names ...string) ([]pod, error) {
	return podsIn(n, "", confList, binDir, names...)
}

// podsIn makes pods that Kubernetes knows in a namespace.
func podsIn(n *node.Node, namespace, confList, binDir string, names ...string) ([]pod, error) {
	var out []pod
	for _, name := range names {
		space, err := n.Pod(name)
		if err != nil {
			return nil, err
		}
		reply, err := n.CNI(node.CNI{ConfList: confList, BinDir: binDir, Namespace: namespace, Pods: []string{name}})
		if err != nil {
			return nil, err
		}
		result, err := node.ParseResult([]byte(reply.Results[0]))
		if err != nil {
			return nil, err
		}
		p := pod{space: space, address: map[int]netip.Addr{}, device: result.HostDevice}
		for _, a := range result.Addresses {
			if a.Is4() {
				p.address[4] = a
			} else {
				p.address[6] = a
			}
		}
		out = append(out, p)
	}
	return out, nil
}

// Variant says which iptables the peers' rules are programmed with.
func Variant(n *node.Node) string {
	out, err := n.Run("iptables", "--version")
	if err != nil {
		return "none"
	}
	return strings.TrimSpace(out)
}
