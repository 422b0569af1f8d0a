package bpf

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/gopacket/gopacket/layers"

	"github.com/strait-net/strait/internal/policy"
	"github.com/strait-net/strait/internal/policy/eval"
	"github.com/strait-net/strait/internal/policy/eval/model"
	"github.com/strait-net/strait/internal/policy/eval/sample"
	"github.com/strait-net/strait/internal/verdict"
)

// TestProgramsAgreeWithDocuments sends packets through the programs under random policies and holds what becomes of them, and the rules that
// count them, against what package eval reads in the documents: first packets of connections, then, after a change of policies or labels,
// the next packets of both ends of those that were allowed.
//
// STRAIT_SEED repeats a run, STRAIT_CASES says how many packets there are.
func TestProgramsAgreeWithDocuments(t *testing.T) {
	start, want := uint64(time.Now().UnixNano()), 2500
	if n, err := strconv.ParseUint(os.Getenv("STRAIT_SEED"), 10, 64); err == nil {
		start = n
	}
	if n, err := strconv.Atoi(os.Getenv("STRAIT_CASES")); err == nil {
		want = n
	}
	t.Logf("STRAIT_SEED=%d", start)
	p := &policyProperty{rig: newServiceRig(t, NetworkFlat), was: map[uint32]uint64{}, seen: map[string]int{}}
	p.neighbourhood()
	packets := func() int { return p.seen["pass"] + p.seen["egress"] + p.seen["ingress"] }
	for i := uint64(0); packets() < want; i++ {
		dice := rand.New(rand.NewPCG(start, i))
		o := sample.Options{Policies: 6, DefaultMode: i%4 != 0, HostPolicy: true}
		c := sample.Cluster(dice, o)
		next := sample.Relabel(dice, o, c)
		if i%2 == 0 {
			next = sample.Repolicy(dice, o, c)
		}
		conns := sample.Connections(dice, c, 40)
		if err := p.both(c, next, conns); err == nil {
			continue
		}
		for _, conn := range conns { // the first that is wrong alone
			one := []eval.Connection{conn}
			if p.both(c, next, one) == nil {
				continue
			}
			c = sample.Shrink(c, func(c *eval.Cluster) bool { return p.both(c, next, one) != nil })
			next = sample.Shrink(next, func(next *eval.Cluster) bool { return p.both(c, next, one) != nil })
			t.Fatalf("STRAIT_SEED=%d, cluster %d: %v\n%s", start, i, p.both(c, next, one), sample.DescribeChange(c, next))
		}
		t.Fatalf("STRAIT_SEED=%d, cluster %d: wrong only together: %v\n%s", start, i, p.both(c, next, conns), sample.DescribeChange(c, next))
	}
	t.Logf("%d packets: %v", packets(), p.seen)
	for _, what := range []string{"pass", "egress", "ingress", "audit", "cut", "kept"} {
		if p.seen[what] < packets()/200 {
			t.Errorf("%d of %d packets are of kind %q: the generator no longer makes them", p.seen[what], packets(), what)
		}
	}
	if n := p.seen["aside"]; n > packets()/5 {
		t.Errorf("%d of %d packets end for reasons that have nothing to do with policy", n, packets())
	}
}

// policyProperty enforces clusters on a rig.
type policyProperty struct {
	rig     *rig
	numbers map[policy.RuleRef]uint32
	pods    []netip.Addr
	guarded bool              // the node has a policy
	was     map[uint32]uint64 // packets of rules
	seen    map[string]int
}

const ownNode = "n1"

// neighbourhood puts the addresses of generated clusters in place of those of the little one: all pods that are not here behind the next hop.
func (p *policyProperty) neighbourhood() {
	r := p.rig
	for i, f := range families() {
		away := Remote{Flags: RemotePod, Node: AddrFrom(f.nativeNode), Ifindex: uint32(r.net), NodeId: 2}
		other := away
		other.Flags = RemoteNode
		for _, gone := range []netip.Prefix{f.podCIDR, f.tunnelCIDR, f.nativeCIDR, host(f.node), host(f.tunnelNode), host(f.nativeNode), host(f.apiserver)} {
			r.check(r.objs.StraitIpcache.Delete(IpcacheKeyFrom(gone)))
		}
		for _, gone := range []netip.Addr{f.podA, f.podB} {
			r.check(r.objs.StraitEndpoint.Delete(AddrFrom(gone)))
		}
		for prefix, row := range map[string]Remote{
			[]string{"10.244.0.0/16", "fd00:10:244::/48"}[i]:   away,
			[]string{"172.18.0.1/32", "fd00:172:18::1/128"}[i]: {Flags: RemoteHost},
			[]string{"172.18.0.2/32", "fd00:172:18::2/128"}[i]: other,
			[]string{"172.18.0.3/32", "fd00:172:18::3/128"}[i]: other,
		} {
			r.check(r.objs.StraitIpcache.Put(IpcacheKeyFrom(netip.MustParsePrefix(prefix)), row))
		}
	}
}

// meets reports whether the connection meets policy on this node. ICMP errors belong to the connections they speak about, neighbour discovery
// (types 133 to 137) to a link, and what is meant for many to nobody.
func (p *policyProperty) meets(c *eval.Cluster, conn eval.Connection) bool {
	switch kind := conn.Port >> 8; conn.Protocol {
	case policy.ICMPv6:
		if kind < 128 || kind >= 133 && kind <= 137 {
			return false
		}
	case policy.ICMP:
		if kind == 3 || kind == 4 || kind == 5 || kind == 11 || kind == 12 {
			return false
		}
	}
	for _, a := range []netip.Addr{conn.From, conn.To} {
		if a.IsMulticast() || a.IsUnspecified() || a.IsLinkLocalUnicast() || a.IsLoopback() || a == netip.AddrFrom4([4]byte{255, 255, 255, 255}) {
			return false
		}
	}
	here := func(a netip.Addr) bool {
		for i := range c.Pods {
			for _, b := range c.Pods[i].Addresses {
				if a == b && c.Pods[i].Node == ownNode && !c.Pods[i].HostNetwork {
					return true
				}
			}
		}
		return false
	}
	return here(conn.From) || here(conn.To) || p.guarded && (c.NodeOf(conn.From) == ownNode || c.NodeOf(conn.To) == ownNode)
}

// enforce brings a cluster's policy into the maps.
func (p *policyProperty) enforce(c *eval.Cluster) error {
	tables, err := model.NewView(c, ownNode).Tables()
	if err != nil {
		return err
	}
	for _, a := range p.pods {
		p.rig.check(p.rig.objs.StraitEndpoint.Delete(AddrFrom(a)))
	}
	rows := policyRows{identities: map[netip.Prefix]uint64{}, policies: map[PolicyKey]PolicyEntry{}, ports: map[PortKey]PolicyVerdict{}, pods: map[netip.Addr]uint64{}}
	p.pods, p.guarded, rows.node = nil, tables.Node != 0, uint64(tables.Node)
	for prefix, id := range tables.Identities {
		rows.identities[prefix.Netip()] = uint64(id)
	}
	for k, e := range tables.Entries {
		row := PolicyEntry{Table: uint64(e.Table)}
		if e.Table == 0 {
			row.Verdict = p.verdict(e.Verdict)
		}
		rows.policies[PolicyKey{Policy: uint64(k.Program), Identity: uint64(k.Identity), Direction: PolicyDirection(k.Way)}] = row
	}
	for k, v := range tables.Ports {
		rows.ports[portRow(uint64(k.Table), layers.IPProtocol(k.Protocol), k.Port, uint32(k.Bits))] = p.verdict(v)
	}
	for a, id := range tables.Endpoints {
		rows.pods[a] = uint64(id)
		p.pods = append(p.pods, a)
	}
	if len(p.numbers) >= rulesInTests {
		return fmt.Errorf("%d rules, %d fit", len(p.numbers), rulesInTests)
	}
	p.rig.enforce(rows)
	return nil
}

func (p *policyProperty) number(ref policy.RuleRef) uint32 {
	if p.numbers[ref] == 0 {
		p.numbers[ref] = uint32(len(p.numbers) + 1)
	}
	return p.numbers[ref]
}

func (p *policyProperty) verdict(v policy.Verdict) PolicyVerdict {
	out := PolicyVerdict{Rule: p.number(v.Rule)}
	if v.Allow {
		out.Flags |= PolicyAllow
	}
	if v.Audit {
		out.AuditRule = p.number(v.AuditRule)
		out.Flags |= PolicyAudit
		if !v.AuditAllow {
			out.Flags |= PolicyAuditDeny
		}
	}
	return out
}

// both sends first packets under one cluster's policies, and later ones of what they have begun under those of the next.
func (p *policyProperty) both(c, next *eval.Cluster, conns []eval.Connection) error {
	p.rig.forget()
	p.numbers = map[policy.RuleRef]uint32{} // a rule keeps its number as long as it is there
	if err := p.enforce(c); err != nil {
		return err
	}
	var open []attempt
	for i, conn := range conns {
		f := attempt{conn, uint16(40000 + i)}
		if !p.meets(c, conn) {
			continue
		}
		passed, err := p.compare(c, f, packetOf{tcp: "S", judged: true})
		if err != nil {
			return err
		}
		if passed && f.goesOn() && p.meets(next, conn) && c.NodeOf(conn.From) == next.NodeOf(conn.From) && c.NodeOf(conn.To) == next.NodeOf(conn.To) {
			open = append(open, f)
		}
	}
	guarded := p.guarded
	if err := p.enforce(next); err != nil {
		return err
	}
	if guarded != p.guarded {
		return nil // connections of the node that are older than its policy have no entries
	}
	for _, f := range open {
		passed := false
		for _, answer := range []bool{false, true} {
			var err error
			// What has passed once is not judged again before the next change.
			passed, err = p.compare(next, f, packetOf{tcp: "A", answer: answer, judged: !passed})
			if err != nil {
				return fmt.Errorf("after a change, answer %v: %w", answer, err)
			}
			if passed {
				p.seen["kept"]++
			} else {
				p.seen["cut"]++
			}
		}
	}
	return nil
}

// attempt is a connection with a port of its own at the end that begins; an echo has it as its identifier.
type attempt struct {
	eval.Connection
	port uint16
}

// goesOn reports whether the connection has further packets. ICMP other than an echo has none.
func (f attempt) goesOn() bool {
	switch f.Protocol {
	case policy.ICMP:
		return f.Port == 8<<8
	case policy.ICMPv6:
		return f.Port == 128<<8
	}
	return true
}

// packetOf says which packet of a connection.
type packetOf struct {
	answer bool   // of the end that did not begin
	tcp    string // flags
	judged bool   // by policy: rules that are only audited count no others
}

// compare sends a packet of a connection. Of its two ends only pods of this node are asked here, the one that begins first.
func (p *policyProperty) compare(c *eval.Cluster, f attempt, which packetOf) (passed bool, err error) {
	want := c.Decide(f.Connection)
	if c.NodeOf(f.From) != ownNode {
		want.Egress = nil
	}
	if c.NodeOf(f.To) != ownNode {
		want.Ingress = nil
	}
	kind, counted := "pass", map[uint32]uint64{}
	for _, end := range []struct {
		verdict *policy.Verdict
		denied  string
	}{{want.Egress, "egress"}, {want.Ingress, "ingress"}} {
		if end.verdict == nil || kind != "pass" {
			continue
		}
		counted[p.number(end.verdict.Rule)]++
		if end.verdict.Audit && which.judged {
			counted[p.number(end.verdict.AuditRule)]++
			p.seen["audit"]++
		}
		if !end.verdict.Allow {
			kind = end.denied
		}
	}
	p.rig.run(p.packet(f, which))
	reason, rules := p.rig.reason(), p.counted()
	got := "pass"
	switch {
	case reason == verdict.PolicyEgress:
		got = "egress"
	case reason == verdict.PolicyIngress:
		got = "ingress"
	case reason == verdict.PolicyMissing:
		got = "missing"
	case reason.Dropped():
		p.seen["aside"]++
		p.seen[reason.String()]++
		return false, nil
	}
	p.seen[got]++
	if got != kind || !maps.Equal(counted, rules) {
		return false, fmt.Errorf("%s -> %s %s %d: %s (%s), counted by %v\n  documents: %s, counted by %v\n  egress:  %s\n  ingress: %s", f.From, f.To,
			f.Protocol, f.Port, got, reason, rules, kind, counted, model.Show(want.Egress), model.Show(want.Ingress))
	}
	return got == "pass", nil
}

// packet is one of a connection, through the program that it meets first on this node.
func (p *policyProperty) packet(f attempt, which packetOf) step {
	from, to := netip.AddrPortFrom(f.From, f.port), netip.AddrPortFrom(f.To, f.Port)
	icmp := f.Port
	if which.answer {
		from, to = to, from
		icmp = map[policy.Protocol]uint16{policy.ICMPv6: 129 << 8}[f.Protocol]
	}
	s := skb{proto: layers.IPProtocol(f.Protocol), payload: []byte("hello")}.from(from).to(to).flag(which.tcp)
	switch f.Protocol {
	case policy.ICMP:
		s.l4 = serialize(p.rig.t, &layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(uint8(icmp>>8), uint8(icmp)), Id: f.port, Seq: 1})
	case policy.ICMPv6:
		s.l4 = icmp6(p.rig.t, s.src, s.dst, uint8(icmp>>8), uint8(icmp), []byte{byte(f.port >> 8), byte(f.port), 0, 1})
	}
	var ep Endpoint
	var owner Remote
	r := p.rig
	if r.objs.StraitEndpoint.Lookup(AddrFrom(from.Addr()), &ep) == nil {
		return step{what: "from pod", prog: r.objs.StraitFromPod, in: s.bytes(r.t)}
	}
	if r.objs.StraitIpcache.Lookup(IpcacheKeyFrom(host(from.Addr())), &owner) == nil && owner.Flags&RemoteHost != 0 {
		prog := r.objs.StraitToNet
		if r.objs.StraitEndpoint.Lookup(AddrFrom(to.Addr()), &ep) == nil {
			prog = r.objs.StraitToPod
		}
		return step{what: "from this node", prog: prog, in: s.bytes(r.t)}
	}
	return step{what: "from the network", prog: r.objs.StraitFromNet, in: r.fromNet(s)}
}

// counted are the packets of each rule that is enforced since it was last asked.
func (p *policyProperty) counted() map[uint32]uint64 {
	out := map[uint32]uint64{}
	for rule := range uint32(len(p.numbers) + 1) {
		var perCPU []Counter
		p.rig.check(p.rig.objs.StraitRule.Lookup(rule, &perCPU))
		var sum uint64
		for _, c := range perCPU {
			sum += c.Packets
		}
		if n := sum - p.was[rule]; n > 0 {
			out[rule] = n
		}
		p.was[rule] = sum
	}
	return out
}
