package maps

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/strait-net/strait/internal/bpf"
	"github.com/strait-net/strait/internal/identity"
)

// Uncounted is the number of entries of a map whose entries cannot be counted: those of socket storage belong to sockets.
const Uncounted = -1

// Description is what a person wants to know about a map before looking inside.
type Description struct {
	Name    string `json:"name"`
	Purpose string `json:"purpose"`
	Type    string `json:"type"`
	Entries int    `json:"entries"` // or Uncounted
	Max     int    `json:"max"`     // 0: no limit of its own
	Bytes   uint64 `json:"bytes,omitempty"`
}

// Dump is the content of a map as text: key columns first, rows sorted.
type Dump struct {
	Name    string     `json:"name"`
	Columns []string   `json:"columns"`
	Rows    [][]string `json:"rows"`
	Omitted int        `json:"omitted,omitempty"` // rows beyond the limit
}

// ErrUnknownMap is matched when a map of that name does not exist.
var ErrUnknownMap = errors.New("no such map")

// description ties a map's name to its meaning. Adding a map to the datapath means adding a line here; a test says so.
type description struct {
	name, purpose string
	columns       []string
	count         func(*ebpf.Map) (int, error)
	rows          func(m *ebpf.Map, row func([]string)) error
	sealed        string // why it cannot be read as a whole, without rows
}

// describe makes a description whose rows are formatted one by one.
func describe[K, V any](name, purpose, columns string, format func(K, V) []string) description {
	return description{
		name: name, purpose: purpose, columns: strings.Fields(columns),
		count: func(m *ebpf.Map) (n int, err error) {
			err = scan(m, func(K, V) bool { n++; return true })
			return n, err
		},
		rows: func(m *ebpf.Map, row func([]string)) error {
			return scan(m, func(k K, v V) bool { row(format(k, v)); return true })
		},
	}
}

// policyName prints the name of a policy, "-" for none.
func policyName(policy uint64) string {
	if policy == 0 {
		return "-"
	}
	return fmt.Sprintf("%016x", policy)
}

const ofSockets = "its entries belong to sockets"

func descriptions() []description {
	return append([]description{
		describe(bpf.DatapathMapStraitEndpoint, "addresses of this node's pods", "ADDRESS DEVICE POLICY POD-MAC NODE-MAC",
			func(k bpf.Addr, v bpf.Endpoint) []string {
				e := endpoint(k, v)
				return []string{e.Address.String(), number(e.Index), policyName(e.Policy),
					e.PodMAC.String(), e.HostMAC.String()}
			}),
		describe(bpf.DatapathMapStraitIpcache, "who has which addresses, and the way there", "PREFIX FLAGS VIA DEVICE NODE",
			func(k bpf.IpcacheKey, v bpf.Remote) []string {
				r := remote(k, v)
				return []string{r.Prefix.String(), remoteFlags(r.Flags), address(r.Node), number(r.Index), number(r.NodeID)}
			}),
		describe(bpf.DatapathMapStraitDevice, "devices that carry cluster and outside traffic", "DEVICE IPV4 IPV6 MTU",
			func(k uint32, v bpf.Device) []string {
				d := device(k, v)
				return []string{number(d.Index), address(d.Address), address(d.IPv6), number(d.MTU)}
			}),
		describe(bpf.DatapathMapStraitCt, "connections", "PROTOCOL BEGINNER OTHER STATE PACKETS BYTES REPLY-PACKETS REPLY-BYTES AGE SILENT NAT BACKEND FRONT FLAGS",
			connectionRow),
		describe(bpf.DatapathMapStraitNat, "ways back of connections with this node's address", "PROTOCOL REMOTE NODE CLIENT FRONT", wayBackRow),
		describe(bpf.DatapathMapStraitFrag, "ports of fragmented packets", "PROTOCOL SOURCE DESTINATION ID SOURCE-PORT DESTINATION-PORT",
			func(k bpf.FragKey, v bpf.FragEntry) []string {
				return []string{protocol(k.Proto), address(k.Src.Netip()), address(k.Dst.Netip()), number(k.Id),
					number(uint32(bpf.NetPort(v.Sport))), number(uint32(bpf.NetPort(v.Dport)))}
			}),
		describe(bpf.DatapathMapStraitService, "frontends of services",
			"FRONTEND PROTOCOL ID SET BACKENDS OUTER-SET OUTER-BACKENDS ALGORITHM AFFINITY FLAGS", serviceRow),
		describe(bpf.DatapathMapStraitSlot, "backends of each set", "SET SLOT BACKEND WEIGHT",
			func(k bpf.SlotKey, v bpf.Slot) []string {
				return []string{number(k.Set), number(k.Slot), number(v.Backend), number(v.Weight)}
			}),
		describe(bpf.DatapathMapStraitMaglev, "maglev table of each set that has one", "SET TABLE",
			func(set, table uint32) []string { return []string{number(set), number(table)} }),
		describe(bpf.DatapathMapStraitBackend, "addresses of backends", "ID ADDRESS PROTOCOL GENERATION FLAGS",
			func(k uint32, v bpf.Backend) []string {
				b := backend(v)
				return []string{number(k), b.String(), protocol(b.Protocol), number(b.Generation),
					flagNames(b.Flags, flagName[bpf.BackendFlags]{bpf.BackendLeaving, "leaving"})}
			}),
		describe(bpf.DatapathMapStraitLoad, "connections of each backend", "BACKEND SOCKETS TRACKED EVER",
			func(k uint32, v bpf.Load) []string {
				return []string{number(k), number(v.Sockets), number(v.Tracked), strconv.FormatUint(v.Connections, 10)}
			}),
		describe(bpf.DatapathMapStraitAffinity, "backend each client stays with", "CLIENT SET BACKEND GENERATION UNUSED", affinityRow),
		describe(bpf.DatapathMapStraitSource, "prefixes that may use a frontend", "ID PREFIX",
			func(k bpf.SourceKey, _ uint32) []string { return []string{number(k.Service), k.Prefix().String()} }),
		describe(bpf.DatapathMapStraitAnnounce, "service addresses this node answers for", "ADDRESS DEVICE MAC",
			func(k bpf.AnnounceKey, v bpf.Announce) []string {
				return []string{address(k.Addr.Netip()), number(k.Ifindex), net.HardwareAddr(v.Mac[:]).String()}
			}),
		describe(bpf.DatapathMapStraitNetns, "addresses of clients in each network namespace", "COOKIE IPV4 IPV6",
			func(k uint64, v bpf.Netns) []string {
				return []string{strconv.FormatUint(k, 10), address(v.Addr4.Netip()), address(v.Addr6.Netip())}
			}),
		describe(bpf.DatapathMapStraitDgram, "service each unconnected UDP socket talks to", "COOKIE BACKEND SERVICE",
			func(k bpf.DgramKey, v bpf.SockaddrKey) []string {
				return []string{strconv.FormatUint(k.Cookie, 10), k.Backend.AddrPort().String(), v.AddrPort().String()}
			}),
		describe(bpf.DatapathMapStraitIdentity, "who has which addresses, for policy", "PREFIX IDENTITY",
			func(k bpf.IpcacheKey, id uint64) []string {
				return []string{k.Prefix().String(), identity.ID(id).String()}
			}),
		describe(bpf.DatapathMapStraitPolicy, "what policies of local pods say to identities",
			"POLICY DIRECTION IDENTITY TABLE VERDICT RULE AUDIT AUDIT-RULE", policyRow),
		describe(bpf.DatapathMapStraitPort, "what policies say to protocols and ports", "TABLE PROTOCOL PORTS VERDICT RULE AUDIT AUDIT-RULE", portRow),
		describe(bpf.DatapathMapStraitNode, "revision of policy, and the policy of the node itself", "REVISION POLICY",
			func(_ uint32, v bpf.NodeState) []string { return []string{number(v.Revision), policyName(v.Policy)} }),
		{name: bpf.DatapathMapStraitRule, purpose: "what rules of policies let pass or stopped",
			columns: []string{"RULE", "PACKETS", "BYTES"}, rows: ruleRows},
		{name: bpf.DatapathMapStraitSk, purpose: "service each connected socket was told to connect to", sealed: ofSockets},
		{name: bpf.DatapathMapStraitSkUse, purpose: "backends each socket uses", sealed: ofSockets},
		{name: bpf.DatapathMapStraitCounter, purpose: "what became of packets", columns: []string{"REASON", "PACKETS", "BYTES", "TEXT"}},
	}, flowDescriptions()...)
}

// List describes the open maps in the order of a packet's interest in them.
func (m *Maps) List() ([]Description, error) {
	var out []Description
	for _, d := range descriptions() {
		k, ok := m.byName[d.name]
		if !ok {
			continue
		}
		row := Description{Name: d.name, Purpose: d.purpose, Type: strings.ToLower(k.Type().String()), Entries: Uncounted, Max: int(k.MaxEntries())}
		if info, err := k.Info(); err == nil {
			row.Bytes, _ = info.Memlock()
		}
		switch {
		case d.count != nil:
			n, err := d.count(k)
			if err != nil {
				return nil, fmt.Errorf("count entries of %s: %w", d.name, err)
			}
			row.Entries = n
		case k.Type() == ebpf.PerCPUArray:
			row.Entries = row.Max
		case k.Type() == ebpf.RingBuf: // its size is in bytes
			row.Bytes, row.Max = uint64(row.Max), 0
		}
		out = append(out, row)
	}
	return out, nil
}

// Dump returns the content of a map; limit 0 is all of it. The name may be given without "strait_". An unknown name is an error
// that matches ErrUnknownMap and names the known ones.
func (m *Maps) Dump(name string, limit int, match ...string) (Dump, error) {
	var known []string
	for _, d := range descriptions() {
		if d.name != name && d.name != "strait_"+name {
			known = append(known, d.name)
			continue
		}
		k, err := m.get(d.name)
		if err != nil {
			return Dump{}, err
		}
		out := Dump{Name: d.name, Columns: d.columns, Rows: [][]string{}}
		switch {
		case d.name == bpf.DatapathMapStraitCounter:
			err = m.counterRows(&out)
		case d.rows == nil:
			return Dump{}, fmt.Errorf("%s cannot be read as a whole: %s", d.name, d.sealed)
		default:
			err = d.rows(k, func(r []string) {
				if matches(r, match) {
					out.Rows = append(out.Rows, r)
				}
			})
			slices.SortFunc(out.Rows, compareRows)
		}
		if err != nil {
			return Dump{}, fmt.Errorf("dump %s: %w", d.name, err)
		}
		if limit > 0 && len(out.Rows) > limit {
			out.Omitted = len(out.Rows) - limit
			out.Rows = out.Rows[:limit]
		}
		return out, nil
	}
	return Dump{}, fmt.Errorf("%w: %q, want one of %s", ErrUnknownMap, name, strings.Join(known, ", "))
}

// matches reports whether a cell is one of the words, or an address with a port whose address is one.
func matches(row, words []string) bool {
	return len(words) == 0 || slices.ContainsFunc(row, func(cell string) bool {
		if slices.Contains(words, cell) {
			return true
		}
		end, err := netip.ParseAddrPort(cell)
		return err == nil && slices.Contains(words, end.Addr().String())
	})
}

func (m *Maps) counterRows(out *Dump) error {
	counters, err := m.Counters()
	for _, c := range counters {
		out.Rows = append(out.Rows, []string{c.Reason.String(), strconv.FormatUint(c.Packets, 10), strconv.FormatUint(c.Bytes, 10), c.Reason.Text()})
	}
	return err
}

// compareRows sorts addresses and numbers by value and everything else as text.
func compareRows(a, b []string) int {
	for i := range a {
		if c := compareCells(a[i], b[i]); c != 0 {
			return c
		}
	}
	return 0
}

func compareCells(a, b string) int {
	if x, err := strconv.ParseUint(a, 10, 64); err == nil {
		if y, err := strconv.ParseUint(b, 10, 64); err == nil {
			return cmp.Compare(x, y)
		}
	}
	if x, err := netip.ParseAddrPort(a); err == nil {
		if y, err := netip.ParseAddrPort(b); err == nil {
			return x.Compare(y)
		}
	}
	if x, err := netip.ParseAddr(a); err == nil {
		if y, err := netip.ParseAddr(b); err == nil {
			return x.Compare(y)
		}
	}
	if x, err := netip.ParsePrefix(a); err == nil {
		if y, err := netip.ParsePrefix(b); err == nil {
			return cmp.Or(x.Addr().Compare(y.Addr()), cmp.Compare(x.Bits(), y.Bits()))
		}
	}
	return cmp.Compare(a, b)
}

func connectionRow(k bpf.CtKey, e bpf.CtEntry) []string {
	beginner, other := addrPort(k.Lo, k.LoPort), addrPort(k.Hi, k.HiPort)
	from := 0
	if e.Flags&bpf.CtHiBegan != 0 {
		beginner, other, from = other, beginner, 1
	}
	age, silent := "", ""
	if now, err := clock(); err == nil {
		age = max(now-time.Duration(e.Began), 0).Truncate(time.Second).String()
		silent = max(now-time.Duration(e.LastSeen)*time.Second, 0).Truncate(time.Second).String()
	}
	nat := ""
	if e.Flags&bpf.CtNat != 0 {
		nat = addrPort(e.NatAddr, e.NatPort)
	}
	back, front := "", ""
	if e.Backend != 0 {
		back = number(e.Backend)
	}
	if e.Flags&(bpf.CtFront|bpf.CtSocket) != 0 {
		front = addrPort(e.FrontAddr, e.FrontPort)
	}
	return []string{protocol(k.Proto), beginner, other, connectionState(k.Proto, e.Flags),
		decimal(e.Packets[from]), decimal(e.Bytes[from]), decimal(e.Packets[1-from]), decimal(e.Bytes[1-from]), age, silent, nat, back, front, connectionFlags(e.Flags)}
}

func connectionFlags(f bpf.CtFlags) string {
	type name = flagName[bpf.CtFlags]
	return flagNames(f, name{bpf.CtService, "service"}, name{bpf.CtDSR, "dsr"}, name{bpf.CtStack, "stack"}, name{bpf.CtVirtual, "virtual"})
}

func connectionState(proto uint8, f bpf.CtFlags) string {
	const fins = bpf.CtFinLo | bpf.CtFinHi
	switch {
	case proto == unix.IPPROTO_TCP && f&bpf.CtRst != 0:
		return "reset"
	case proto == unix.IPPROTO_TCP && f&fins == fins:
		return "closed"
	case proto == unix.IPPROTO_TCP && f&fins != 0:
		return "half-closed"
	case f&bpf.CtReplied == 0:
		return "unanswered"
	case proto == unix.IPPROTO_TCP:
		return "established"
	}
	return "answered"
}

func wayBackRow(k bpf.NatKey, v bpf.NatEntry) []string {
	front := ""
	if v.FrontPort != 0 {
		front = addrPort(v.FrontAddr, v.FrontPort)
	}
	return []string{protocol(k.Proto), addrPort(k.Remote, k.RemotePort), addrPort(k.Node, k.NodePort), addrPort(v.Client, v.ClientPort), front}
}

func serviceRow(k bpf.SockaddrKey, v bpf.Service) []string {
	affinity := ""
	if v.Flags&bpf.ServiceAffinity != 0 {
		affinity = (time.Duration(v.Affinity) * time.Second).String()
	}
	return []string{k.AddrPort().String(), protocol(k.Proto), number(v.Id), number(v.Set), number(v.Count), number(v.OuterSet),
		number(v.OuterCount), algorithm(v.Algorithm), affinity, serviceFlags(v.Flags)}
}

func affinityRow(k bpf.AffinityKey, v bpf.Affinity) []string {
	unused := ""
	if now, err := clock(); err == nil {
		unused = max(now-time.Duration(v.Last)*time.Second, 0).Truncate(time.Second).String()
	}
	return []string{address(k.Client.Netip()), number(k.Set), number(v.Backend), number(v.Generation), unused}
}

// algorithm is the name annotations use.
func algorithm(a bpf.Algorithm) string {
	switch a {
	case bpf.AlgorithmRandom:
		return "random"
	case bpf.AlgorithmMaglev:
		return "maglev"
	case bpf.AlgorithmRR:
		return "rr"
	case bpf.AlgorithmLC:
		return "lc"
	case bpf.AlgorithmDH:
		return "dh"
	case bpf.AlgorithmSH:
		return "sh"
	case bpf.AlgorithmSED:
		return "sed"
	case bpf.AlgorithmNQ:
		return "nq"
	case bpf.AlgorithmP2C:
		return "p2c"
	}
	return number(uint32(a))
}

type flagName[F ~uint32] struct {
	flag F
	name string
}

func flagNames[F ~uint32](f F, all ...flagName[F]) string {
	var names []string
	for _, n := range all {
		if f&n.flag != 0 {
			names = append(names, n.name)
		}
	}
	return strings.Join(names, ",")
}

func remoteFlags(f bpf.RemoteFlags) string {
	type name = flagName[bpf.RemoteFlags]
	return flagNames(f, name{bpf.RemoteHost, "host"}, name{bpf.RemoteNode, "node"}, name{bpf.RemotePod, "pod"},
		name{bpf.RemoteAPIServer, "apiserver"}, name{bpf.RemoteTunnel, "tunnel"})
}

func serviceFlags(f bpf.ServiceFlags) string {
	type name = flagName[bpf.ServiceFlags]
	return flagNames(f, name{bpf.ServiceClusterIP, "cluster-ip"}, name{bpf.ServiceNodePort, "node-port"},
		name{bpf.ServiceLoadBalancer, "load-balancer"}, name{bpf.ServiceExternalIP, "external-ip"}, name{bpf.ServiceHostPort, "host-port"},
		name{bpf.ServiceAffinity, "affinity"}, name{bpf.ServiceSources, "sources"}, name{bpf.ServiceOuterLocal, "outer-local"},
		name{bpf.ServiceDSR, "dsr"})
}

func protocol(p uint8) string {
	switch p {
	case unix.IPPROTO_TCP:
		return "TCP"
	case unix.IPPROTO_UDP:
		return "UDP"
	case unix.IPPROTO_SCTP:
		return "SCTP"
	case unix.IPPROTO_ICMP:
		return "ICMP"
	case unix.IPPROTO_ICMPV6:
		return "ICMPv6"
	}
	return strconv.Itoa(int(p))
}

func number(n uint32) string { return strconv.FormatUint(uint64(n), 10) }

func decimal(n uint64) string { return strconv.FormatUint(n, 10) }

func address(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}

func addrPort(a bpf.Addr, port uint16) string {
	return net.JoinHostPort(address(a.Netip()), number(uint32(bpf.NetPort(port))))
}
