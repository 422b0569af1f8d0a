// Package servicerules prints the state of services as kube-proxy would have written it: iptables chains, or IPVS virtual servers.
package servicerules

import (
	"cmp"
	"crypto/sha256"
	"encoding/base32"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"

	"github.com/strait-net/strait/internal/localapi"
)

// podDevices is how iptables names the node's ends of all pods: kube-proxy's --detect-local-mode=InterfaceNamePrefix.
const podDevices = "st+"

// port is one service port of one family: what kube-proxy has a set of chains for.
type port struct {
	name     string // NAMESPACE/NAME[:PORT], in comments and hashes
	protocol string // lower case
	v6       bool

	frontends []localapi.Service
	inside    []localapi.Backend // in order
	outside   []localapi.Backend // of externalTrafficPolicy Local
	local     bool               // outside is not inside
	innerOnly bool               // the cluster address has this node's backends only
	inner     []localapi.Backend // those
	affinity  uint32
	algorithm string
	masked    bool // clients outside reach other nodes' backends with the node's address
	health    uint16
}

// ports groups rows by service port and family, in order of names; rows of single node addresses say nothing of their own here.
func ports(rows []localapi.Service) (out []*port) {
	byKey := map[string]*port{}
	for _, r := range rows {
		if r.Of != nil || r.Note != "" || r.Type == "HostPort" {
			continue
		}
		p := &port{name: r.Namespace + "/" + r.Name, protocol: strings.ToLower(r.Protocol), v6: r.Frontend.Addr().Is6()}
		if r.Port != "" {
			p.name += ":" + r.Port
		}
		key := fmt.Sprint(p.name, p.protocol, p.v6)
		if known := byKey[key]; known != nil {
			p = known
		} else {
			byKey[key] = p
			out = append(out, p)
		}
		p.add(r)
	}
	slices.SortStableFunc(out, func(a, b *port) int {
		return cmp.Or(cmp.Compare(a.name, b.name), cmp.Compare(a.protocol, b.protocol))
	})
	for _, p := range out {
		slices.SortStableFunc(p.frontends, func(a, b localapi.Service) int {
			return cmp.Or(cmp.Compare(kindOrder(a.Type), kindOrder(b.Type)), a.Frontend.Compare(b.Frontend))
		})
	}
	return out
}

func kindOrder(kind string) int {
	return slices.Index([]string{"ClusterIP", "ExternalIP", "LoadBalancer", "NodePort"}, kind)
}

func (p *port) add(r localapi.Service) {
	p.frontends = append(p.frontends, r)
	p.affinity, p.algorithm, p.health = r.AffinitySeconds, r.Algorithm, max(p.health, r.HealthCheck)
	if r.InternalLocal {
		p.innerOnly, p.inner = true, r.Backends
	} else {
		p.inside = r.Backends
	}
	if r.ExternalLocal {
		p.local, p.outside = true, r.Outer
	}
	p.masked = r.Forwarding != "dsr"
}

// hash is what kube-proxy makes of a service port for the names of its chains: they are the same on every node and cluster.
func hash(text string) string {
	sum := sha256.Sum256([]byte(text))
	return base32.StdEncoding.EncodeToString(sum[:])[:16]
}

// chain returns the name of a chain of the port; kind is SVC, SVL, EXT or FW.
func (p *port) chain(kind string) string { return "KUBE-" + kind + "-" + hash(p.name+p.protocol) }

func (p *port) endpointChain(b localapi.Backend) string {
	return "KUBE-SEP-" + hash(p.name+p.protocol+b.Address.String())
}

// table is one of iptables' tables: chains and their rules, in order of first appearance.
type table struct {
	name   string
	chains []string
	rules  map[string][]string
}

func newTable(name string, chains ...string) *table {
	t := &table{name: name, rules: map[string][]string{}}
	for _, c := range chains {
		t.chain(c)
	}
	return t
}

func (t *table) chain(name string) {
	if _, known := t.rules[name]; !known {
		t.chains, t.rules[name] = append(t.chains, name), []string{}
	}
}

func (t *table) add(chain string, words ...string) {
	t.chain(chain)
	words = slices.DeleteFunc(words, func(w string) bool { return w == "" })
	t.rules[chain] = append(t.rules[chain], "-A "+chain+" "+strings.Join(words, " "))
}

func (t *table) print() []string {
	lines := []string{"*" + t.name}
	for _, c := range t.chains {
		lines = append(lines, ":"+c+" - [0:0]")
	}
	for _, c := range t.chains {
		lines = append(lines, t.rules[c]...)
	}
	return append(lines, "COMMIT")
}

// iptables is the two tables of one family.
type iptables struct {
	v6          bool
	nat, filter *table
}

// IPTables returns the lines of iptables-save, and of ip6tables-save when rows have IPv6 frontends. The rules are those kube-proxy writes
// with --detect-local-mode=InterfaceNamePrefix, less what is not true of Strait: clients outside are not let in to cluster addresses.
func IPTables(rows []localapi.Service) []string {
	var lines []string
	all := ports(rows)
	for _, v6 := range []bool{false, true} {
		of := func(p *port) bool { return p.v6 == v6 }
		hosts := slices.DeleteFunc(slices.Clone(rows), func(r localapi.Service) bool {
			return r.Type != "HostPort" || r.Of != nil || r.Frontend.Addr().Is6() != v6
		})
		if v6 && !slices.ContainsFunc(all, of) && len(hosts) == 0 {
			continue
		}
		program := "iptables-save"
		if v6 {
			program = "ip6tables-save"
		}
		lines = append(lines, "# "+program)
		t := &iptables{
			v6:     v6,
			nat:    newTable("nat", "KUBE-SERVICES", "KUBE-NODEPORTS", "KUBE-MARK-MASQ", "KUBE-POSTROUTING"),
			filter: newTable("filter", "KUBE-SERVICES", "KUBE-EXTERNAL-SERVICES", "KUBE-NODEPORTS", "KUBE-PROXY-FIREWALL"),
		}
		t.frame()
		for _, p := range all {
			if p.v6 == v6 {
				t.port(p)
				lines = append(lines, remarks(p)...)
			}
		}
		t.nat.add("KUBE-SERVICES", "-m comment --comment \"kubernetes service nodeports; NOTE: this must be the last rule in this chain\"",
			"-m addrtype --dst-type LOCAL -j KUBE-NODEPORTS")
		t.hostPorts(hosts)
		lines = append(lines, t.nat.print()...)
		lines = append(lines, t.filter.print()...)
	}
	return lines
}

// remarks says what iptables cannot.
func remarks(p *port) (out []string) {
	if p.algorithm != "" && p.algorithm != "random" {
		out = append(out, fmt.Sprintf("# %s/%s: the algorithm is %s; iptables has only random", p.name, p.protocol, p.algorithm))
	}
	if len(p.frontends) > 1 && !p.masked && !p.local {
		out = append(out, fmt.Sprintf("# %s/%s: forwarding is dsr; iptables would have to masquerade clients outside", p.name, p.protocol))
	}
	return out
}

// frame are the rules that do not depend on services.
func (t *iptables) frame() {
	t.nat.add("KUBE-MARK-MASQ", "-j MARK --set-xmark 0x4000/0x4000")
	t.nat.add("KUBE-POSTROUTING", "-m mark ! --mark 0x4000/0x4000 -j RETURN")
	t.nat.add("KUBE-POSTROUTING", "-j MARK --set-xmark 0x4000/0x0")
	t.nat.add("KUBE-POSTROUTING", comment("kubernetes service traffic requiring SNAT"), "-j MASQUERADE --random-fully")
}

func (t *iptables) port(p *port) {
	some := len(p.inside)+len(p.outside)+len(p.inner) > 0
	external := len(p.inside) > 0
	if p.local {
		external = len(p.outside) > 0
	}
	for _, f := range p.frontends {
		t.frontend(p, f, some, external)
	}
	if p.health != 0 {
		t.filter.add("KUBE-NODEPORTS", "-p tcp", comment(p.name+" health check node port"), "-m tcp", fmt.Sprintf("--dport %d", p.health), "-j ACCEPT")
	}
	if !some {
		return
	}
	if slices.ContainsFunc(p.frontends, func(f localapi.Service) bool { return f.Type != "ClusterIP" }) {
		t.external(p, external)
	}
	t.firewall(p)
	t.choice(p, p.chain("SVC"), p.inside)
	switch {
	case p.local:
		t.choice(p, p.chain("SVL"), p.outside)
	case p.innerOnly:
		t.choice(p, p.chain("SVL"), p.inner)
	}
	seen := map[netip.AddrPort]bool{}
	for _, b := range slices.Concat(p.inside, p.outside, p.inner) {
		if !seen[b.Address] {
			seen[b.Address] = true
			t.endpoint(p, b)
		}
	}
}

// frontend writes the jump of one address, or the refusal where there is nobody to jump to.
func (t *iptables) frontend(p *port, f localapi.Service, some, external bool) {
	to, what := p.chain("EXT"), ""
	refusing := "KUBE-EXTERNAL-SERVICES"
	ok := external
	switch f.Type {
	case "ClusterIP":
		to, what, refusing, ok = p.chain("SVC"), " cluster IP", "KUBE-SERVICES", len(f.Backends) > 0
		if f.InternalLocal {
			to = p.chain("SVL")
		}
	case "ExternalIP":
		what = " external IP"
	case "LoadBalancer":
		what = " loadbalancer IP"
		if len(f.SourceRanges) > 0 {
			to = p.chain("FW")
		}
	}
	port := fmt.Sprintf("--dport %d", f.Frontend.Port())
	protocol := "-p " + p.protocol
	match := "-m " + p.protocol
	if ok || some && f.Type != "ClusterIP" {
		chain, at := "KUBE-SERVICES", "-d "+host(f.Frontend.Addr())
		if f.Type == "NodePort" {
			chain, at = "KUBE-NODEPORTS", ""
		}
		t.nat.add(chain, at, protocol, comment(p.name+what), match, port, "-j "+to)
	}
	if f.Type == "LoadBalancer" && len(f.SourceRanges) > 0 && some {
		t.filter.add("KUBE-PROXY-FIREWALL", "-d "+host(f.Frontend.Addr()), protocol, comment(p.name+" traffic not accepted by "+to), match, port, "-j DROP")
	}
	if ok {
		return
	}
	text, target := " has no endpoints", "-j REJECT --reject-with icmp-port-unreachable"
	if t.v6 {
		target = "-j REJECT --reject-with icmp6-port-unreachable"
	}
	switch {
	case p.local && f.Type != "ClusterIP" && some:
		text, target = " has no local endpoints", "-j DROP"
	case f.InternalLocal:
		text = " has no local endpoints" // kube-proxy would drop; Strait refuses at once
	}
	if f.Type == "NodePort" {
		t.filter.add(refusing, protocol, comment(p.name+text), "-m addrtype --dst-type LOCAL", match, port, target)
		return
	}
	t.filter.add(refusing, "-d "+host(f.Frontend.Addr()), protocol, comment(p.name+text), match, port, target)
}

// external writes what becomes of clients of a node port, a load balancer's address or an external IP.
func (t *iptables) external(p *port, external bool) {
	ext, all := p.chain("EXT"), p.chain("SVC")
	if !p.local {
		if p.masked {
			t.nat.add(ext, comment("masquerade traffic for "+p.name+" external destinations"), "-j KUBE-MARK-MASQ")
		}
		t.nat.add(ext, "-j "+all)
		return
	}
	t.nat.add(ext, "-i "+podDevices, comment("pod traffic for "+p.name+" external destinations"), "-j "+all)
	t.nat.add(ext, comment("masquerade LOCAL traffic for "+p.name+" external destinations"), "-m addrtype --src-type LOCAL -j KUBE-MARK-MASQ")
	t.nat.add(ext, comment("route LOCAL traffic for "+p.name+" external destinations"), "-m addrtype --src-type LOCAL -j "+all)
	if external {
		t.nat.add(ext, "-j "+p.chain("SVL"))
	}
}

func (t *iptables) firewall(p *port) {
	for _, f := range p.frontends {
		if f.Type != "LoadBalancer" || len(f.SourceRanges) == 0 {
			continue
		}
		fw := p.chain("FW")
		for _, r := range f.SourceRanges {
			t.nat.add(fw, "-s "+r.String(), comment(p.name+" loadbalancer IP"), "-j "+p.chain("EXT"))
		}
		t.nat.add(fw, comment("other traffic to "+p.name+" will be dropped by KUBE-PROXY-FIREWALL"))
		return // the ranges are those of the service
	}
}

// choice writes a chain that leads to one of the backends: first where the client is known, then by chance.
func (t *iptables) choice(p *port, chain string, to []localapi.Backend) {
	if len(to) == 0 {
		return
	}
	arrow := func(b localapi.Backend) string { return comment(p.name + " -> " + b.Address.String()) }
	if p.affinity > 0 {
		for _, b := range to {
			t.nat.add(chain, arrow(b), fmt.Sprintf("-m recent --rcheck --seconds %d --reap --name %s --mask %s --rsource -j %s",
				p.affinity, p.endpointChain(b), t.mask(), p.endpointChain(b)))
		}
	}
	left := 0
	for _, b := range to {
		left += weight(b)
	}
	for i, b := range to {
		chance := ""
		if i < len(to)-1 {
			chance = "-m statistic --mode random --probability " + probability(float64(weight(b))/float64(left))
		}
		left -= weight(b)
		t.nat.add(chain, arrow(b), chance, "-j "+p.endpointChain(b))
	}
}

func weight(b localapi.Backend) int { return max(1, int(b.Weight)) }

// probability prints a share as iptables-save does: kube-proxy hands over ten digits, the kernel keeps 31 bits.
func probability(share float64) string {
	const one = 1 << 31
	ten := math.Round(share*1e10) / 1e10
	return fmt.Sprintf("%.11f", math.Round(ten*one)/one)
}

func (t *iptables) endpoint(p *port, b localapi.Backend) {
	chain := p.endpointChain(b)
	t.nat.add(chain, "-s "+host(b.Address.Addr()), comment(p.name), "-j KUBE-MARK-MASQ")
	remember := ""
	if p.affinity > 0 {
		remember = fmt.Sprintf("-m recent --set --name %s --mask %s --rsource", chain, t.mask())
	}
	t.nat.add(chain, "-p "+p.protocol, comment(p.name), remember, "-m "+p.protocol, "-j DNAT --to-destination "+b.Address.String())
}

// hostPorts writes what the portmap plugin would have: its chains per container are left out.
func (t *iptables) hostPorts(rows []localapi.Service) {
	slices.SortStableFunc(rows, func(a, b localapi.Service) int {
		return cmp.Or(a.Frontend.Compare(b.Frontend), cmp.Compare(a.Protocol, b.Protocol))
	})
	for _, r := range rows {
		at := ""
		if a := r.Frontend.Addr(); !a.IsUnspecified() {
			at = "-d " + host(a)
		}
		for _, b := range r.Backends {
			protocol := strings.ToLower(r.Protocol)
			t.nat.add("CNI-HOSTPORT-DNAT", at, "-p "+protocol, comment("host port of pod "+r.Namespace+"/"+r.Name), "-m "+protocol,
				fmt.Sprintf("--dport %d", r.Frontend.Port()), "-j DNAT --to-destination "+b.Address.String())
		}
	}
}

func (t *iptables) mask() string {
	if t.v6 {
		return "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"
	}
	return "255.255.255.255"
}

func comment(text string) string { return `-m comment --comment "` + text + `"` }

func host(a netip.Addr) string { return netip.PrefixFrom(a, a.BitLen()).String() }
