package bpf

import (
	"net/netip"

	"github.com/cilium/ebpf"
	"github.com/gopacket/gopacket/layers"

	"github.com/strait-net/strait/internal/verdict"
)

// policyRows are the tables of policy, as userspace writes them. What is loaded replaces all that was there.
//
// A test that generates policies makes one rig with newServiceRig(t, NetworkFlat), then for each case calls enforce and, for each packet, judge.
type policyRows struct {
	identities map[netip.Prefix]uint64
	policies   map[PolicyKey]PolicyEntry
	ports      map[PortKey]PolicyVerdict
	pods       map[netip.Addr]uint64 // of this node, and the policy that each has; 0: none
	node       uint64                // the policy of the node itself; 0: none
}

// enforce loads the rows under a new revision. Pods that are no pods of the little cluster are made, all behind pod A's device.
func (r *rig) enforce(rows policyRows) {
	r.t.Helper()
	for _, m := range []*ebpf.Map{r.objs.StraitIdentity, r.objs.StraitPolicy, r.objs.StraitPort} {
		r.empty(m)
	}
	for prefix, id := range rows.identities {
		r.check(r.objs.StraitIdentity.Put(IpcacheKeyFrom(prefix), id))
	}
	for k, e := range rows.policies {
		r.check(r.objs.StraitPolicy.Put(k, e))
	}
	for k, v := range rows.ports {
		r.check(r.objs.StraitPort.Put(k, v))
	}
	for ip, policy := range rows.pods {
		e := Endpoint{Ifindex: uint32(r.st), Policy: policy}
		copy(e.PodMac[:], macPodB)
		copy(e.HostMac[:], macHostB)
		r.check(r.objs.StraitEndpoint.Put(AddrFrom(ip), e))
	}
	var state NodeState
	r.check(r.objs.StraitNode.Lookup(uint32(0), &state))
	r.check(r.objs.StraitNode.Put(uint32(0), NodeState{Revision: state.Revision + 1, Policy: rows.node}))
}

// judge runs the first packet of a connection through the program that it meets first on this node, with no connection known, and gives
// the reason under which it was counted (Reason.Dropped says whether it was stopped) and the packets that each rule has counted with it. The
// port of to is type << 8 | code for ICMP. A packet between two ends of which neither is a pod here meets nothing.
func (r *rig) judge(from, to netip.AddrPort, proto layers.IPProtocol) (verdict.Reason, map[uint32]uint64) {
	r.t.Helper()
	r.forget()
	before := r.ruleCounts()
	r.reason() // what was counted before is not this packet's
	r.run(r.firstPacket(from, to, proto))
	counted := map[uint32]uint64{}
	for rule, n := range r.ruleCounts() {
		if n != before[rule] {
			counted[rule] = n - before[rule]
		}
	}
	return r.reason(), counted
}

// firstPacket is a step without expectations.
func (r *rig) firstPacket(from, to netip.AddrPort, proto layers.IPProtocol) step {
	r.t.Helper()
	s := skb{proto: proto, tcp: "S", payload: []byte("hello")}.from(from).to(to)
	switch proto {
	case layers.IPProtocolICMPv4:
		s.l4 = serialize(r.t, &layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(uint8(to.Port()>>8), uint8(to.Port())), Id: from.Port(), Seq: 1})
	case layers.IPProtocolICMPv6:
		s.l4 = icmp6(r.t, s.src, s.dst, uint8(to.Port()>>8), uint8(to.Port()), []byte{byte(from.Port() >> 8), byte(from.Port()), 0, 1})
	}
	var ep Endpoint
	var owner Remote
	if r.objs.StraitEndpoint.Lookup(AddrFrom(from.Addr()), &ep) == nil {
		return step{what: "from pod", prog: r.objs.StraitFromPod, in: s.bytes(r.t)}
	}
	if r.objs.StraitIpcache.Lookup(IpcacheKeyFrom(host(from.Addr())), &owner) == nil && owner.Flags&RemoteHost != 0 {
		return step{what: "from this node", prog: r.objs.StraitToPod, in: s.bytes(r.t)}
	}
	return step{what: "from the network", prog: r.objs.StraitFromNet, in: r.fromNet(s)}
}

// ruleCounts are the packets of all rules that have counted any.
func (r *rig) ruleCounts() map[uint32]uint64 {
	r.t.Helper()
	counts := map[uint32]uint64{}
	for rule := range uint32(rulesInTests) {
		var perCPU []Counter
		r.check(r.objs.StraitRule.Lookup(rule, &perCPU))
		for _, c := range perCPU {
			if c.Packets > 0 {
				counts[rule] += c.Packets
			}
		}
	}
	return counts
}

// identityOther stands for every identity that a policy has no row for.
const identityOther = 255

// rulesInTests bounds the numbers of rules that tests use, so that reading all counters stays cheap.
const rulesInTests = 256

func (r *rig) empty(m *ebpf.Map) {
	r.t.Helper()
	for {
		first, err := m.NextKeyBytes(nil)
		r.check(err)
		if first == nil {
			return
		}
		r.check(m.Delete(first))
	}
}

// portRow is the key of strait_port for a table, a protocol (0 with bits 0: all) and the leading bits of a port.
func portRow(table uint64, proto layers.IPProtocol, port uint16, bits uint32) PortKey {
	k := PortKey{PrefixLen: 96, Table: table}
	if proto != 0 {
		k.PrefixLen, k.Proto, k.Port = 112+bits, uint8(proto), NetPort(port)
	}
	return k
}

// everything is a policy that allows all in both directions by the given rule, to be changed by a test.
func everything(policy uint64, rule uint32) map[PolicyKey]PolicyEntry {
	allow := PolicyEntry{Verdict: PolicyVerdict{Rule: rule, Flags: PolicyAllow}}
	return map[PolicyKey]PolicyEntry{
		{Policy: policy, Identity: identityOther, Direction: PolicyEgress}:  allow,
		{Policy: policy, Identity: identityOther, Direction: PolicyIngress}: allow,
	}
}

// allowed and denied are verdicts for every port.
func allowed(rule uint32) PolicyEntry {
	return PolicyEntry{Verdict: PolicyVerdict{Rule: rule, Flags: PolicyAllow}}
}
func denied(rule uint32) PolicyEntry { return PolicyEntry{Verdict: PolicyVerdict{Rule: rule}} }
