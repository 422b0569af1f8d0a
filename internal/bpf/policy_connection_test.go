package bpf

import (
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/google/go-cmp/cmp"
	"github.com/gopacket/gopacket/layers"

	"github.com/strait-net/strait/internal/verdict"
)

// send is a packet with the reason it is to be counted under; out is not looked at.
type send struct {
	what   string
	prog   *ebpf.Program
	in     []byte
	reason verdict.Reason
}

func (r *rig) sends(packets ...send) {
	r.t.Helper()
	for _, p := range packets {
		r.run(step{what: p.what, prog: p.prog, in: p.in})
		if got := r.reason(); got != p.reason {
			r.t.Errorf("%s: %s, want %s", p.what, got, p.reason)
		}
	}
}

// revise raises the revision, as after a change.
func (r *rig) revise() {
	r.t.Helper()
	var state NodeState
	r.check(r.objs.StraitNode.Lookup(uint32(0), &state))
	state.Revision++
	r.check(r.objs.StraitNode.Put(uint32(0), state))
}

// put writes one entry of a policy, and says so.
func (r *rig) put(policy, id uint64, way PolicyDirection, e PolicyEntry) {
	r.t.Helper()
	r.check(r.objs.StraitPolicy.Put(PolicyKey{Policy: policy, Identity: id, Direction: way}, e))
	r.revise()
}

// counted gives the packets that each rule has counted while run ran.
func (r *rig) counted(run func()) map[uint32]uint64 {
	r.t.Helper()
	before := r.ruleCounts()
	run()
	all := map[uint32]uint64{}
	for rule, n := range r.ruleCounts() {
		if n != before[rule] {
			all[rule] = n - before[rule]
		}
	}
	return all
}

// guard gives both pods of a family policies that allow everything but what is denied.
func (r *rig) guard(f family, denied ...PolicyKey) {
	r.t.Helper()
	rows := everything(policyA, ruleOther)
	for k, v := range everything(policyB, ruleB+ruleOther) {
		rows[k] = v
	}
	for _, k := range denied {
		rule := uint32(ruleRow)
		if k.Policy == policyB {
			rule += ruleB
		}
		rows[k] = PolicyEntry{Verdict: PolicyVerdict{Rule: rule}}
	}
	r.enforce(policyRows{policies: rows, identities: map[netip.Prefix]uint64{host(f.nativePod): friend, host(f.tunnelPod): friend, host(f.world): foe},
		pods: map[netip.Addr]uint64{f.podA: policyA, f.podB: policyB}})
}

func out(policy, id uint64) PolicyKey {
	return PolicyKey{Policy: policy, Identity: id, Direction: PolicyEgress}
}
func in(policy, id uint64) PolicyKey {
	return PolicyKey{Policy: policy, Identity: id, Direction: PolicyIngress}
}

// conversation is a packet of who begins and an answer, and where each is met.
type conversation struct {
	name        string
	ask, answer skb
	asks        func(*rig, skb) (*ebpf.Program, []byte)
	answers     func(*rig, skb) (*ebpf.Program, []byte)
	way         PolicyDirection // of pod A
	peer        uint64
	passed      [2]verdict.Reason
}

func byPod(r *rig, s skb) (*ebpf.Program, []byte)  { return r.objs.StraitFromPod, s.bytes(r.t) }
func byNet(r *rig, s skb) (*ebpf.Program, []byte)  { return r.objs.StraitFromNet, r.fromNet(s) }
func byVx(r *rig, s skb) (*ebpf.Program, []byte)   { return r.objs.StraitFromVx, s.bytes(r.t) }
func byNode(r *rig, s skb) (*ebpf.Program, []byte) { return r.objs.StraitToPod, s.bytes(r.t) }

func conversations(f family) []conversation {
	pod := at(f.podA, 40000)
	begins := func(peer netip.Addr) skb { return skb{payload: []byte("hello")}.from(pod).to(at(peer, 80)) }
	to := func(name string, peer netip.Addr, by func(*rig, skb) (*ebpf.Program, []byte), id uint64, passed ...verdict.Reason) conversation {
		return conversation{name, begins(peer), begins(peer).reverse(), byPod, by, PolicyEgress, id, [2]verdict.Reason(passed)}
	}
	from := func(name string, peer netip.Addr, by func(*rig, skb) (*ebpf.Program, []byte), id uint64, passed ...verdict.Reason) conversation {
		return conversation{name, begins(peer).reverse(), begins(peer), by, byPod, PolicyIngress, id, [2]verdict.Reason(passed)}
	}
	return []conversation{
		to("to a pod here", f.podB, byPod, identityOther, verdict.ToLocalPod, verdict.ToLocalPod),
		to("to a pod by next hop", f.nativePod, byNet, friend, verdict.ToNeighbour, verdict.ToLocalPod),
		to("to a pod through the tunnel", f.tunnelPod, byVx, friend, verdict.ToTunnel, verdict.ToLocalPod),
		to("to this node", f.node, byNode, identityOther, verdict.ToStack, verdict.ToLocalPod),
		to("outside", f.world, byNet, foe, verdict.ToWorld, verdict.ToLocalPod),
		from("from a pod here", f.podB, byPod, identityOther, verdict.ToLocalPod, verdict.ToLocalPod),
		from("from a pod by next hop", f.nativePod, byNet, friend, verdict.ToLocalPod, verdict.ToNeighbour),
		from("from this node", f.node, byNode, identityOther, verdict.ToLocalPod, verdict.ToStack),
		from("from outside", f.world, byNet, foe, verdict.ToLocalPod, verdict.ToWorld),
	}
}

// TestPolicyEstablished: a change of policies cuts a connection in both directions, or lets it go on; answers need no permission of their own,
// and both ends' rules count.
func TestPolicyEstablished(t *testing.T) {
	for _, f := range families() {
		r := newServiceRig(t, NetworkFlat)
		for _, c := range conversations(f) {
			for _, proto := range append(protocols(), layers.IPProtocolGRE) {
				r.each(f.name+" "+c.name+" "+proto.String(), func(r *rig) {
					r.guard(f)
					ask, answer := c.ask, c.answer
					ask.proto, answer.proto, ask.tcp, answer.tcp = proto, proto, "S", "SA"
					if proto == layers.IPProtocolGRE {
						ask.sport, ask.dport, answer.sport, answer.dport = 0, 0, 0, 0
					}
					one := func(s skb, by func(*rig, skb) (*ebpf.Program, []byte), reason verdict.Reason, what string) send {
						prog, frame := by(r, s)
						return send{what, prog, frame, reason}
					}
					no := verdict.PolicyEgress
					if c.way == PolicyIngress {
						no = verdict.PolicyIngress
					}
					both := map[uint32]uint64{ruleOther: 3}
					if c.name == "to a pod here" || c.name == "from a pod here" {
						both[ruleB+ruleOther] = 3
					}
					rules := r.counted(func() {
						r.sends(one(ask, c.asks, c.passed[0], "first"), one(answer, c.answers, c.passed[1], "answer"),
							one(ask.flag("A"), c.asks, c.passed[0], "next"))
					})
					if diff := cmp.Diff(both, rules); diff != "" {
						r.t.Errorf("established: rules counted (-want +got):\n%s", diff)
					}
					// The other direction's policy is of no concern to this connection.
					opposite := PolicyIngress
					if c.way == PolicyIngress {
						opposite = PolicyEgress
					}
					r.put(policyA, c.peer, opposite, denied(50))
					r.sends(one(ask.flag("A"), c.asks, c.passed[0], "the other direction is denied"),
						one(answer.flag("A"), c.answers, c.passed[1], "the other direction is denied, answer"))

					r.put(policyA, c.peer, c.way, denied(ruleRow))
					cut := r.counted(func() {
						for range 2 {
							r.sends(one(answer.flag("A"), c.answers, no, "answer after the cut"), one(ask.flag("A"), c.asks, no, "after the cut"))
						}
					})
					if c.way == PolicyIngress { // who sends is asked first
						delete(cut, ruleB+ruleOther)
					}
					if diff := cmp.Diff(map[uint32]uint64{ruleRow: 4}, cut); diff != "" {
						r.t.Errorf("cut: rules counted (-want +got):\n%s", diff)
					}
					if n := r.entries(r.objs.StraitCt); n != 1 {
						r.t.Errorf("%d connections after the cut, want 1", n)
					}
					r.put(policyA, c.peer, c.way, allowed(ruleRow+1))
					again := r.counted(func() {
						r.sends(one(answer.flag("A"), c.answers, c.passed[1], "answer, allowed again"), one(ask.flag("A"), c.asks, c.passed[0], "allowed again"))
					})
					if again[ruleRow+1] != 2 {
						r.t.Errorf("allowed again: rules counted %v, want 2 of rule %d", again, ruleRow+1)
					}
					ct := r.connection(at(ask.src, ask.sport), at(ask.dst, ask.dport), proto)
					if ct == nil || ct.Packets[0]+ct.Packets[1] != 7 {
						r.t.Errorf("entry %+v, want the 7 packets that passed", ct)
					}
				})
			}
		}
	}
}

// TestPolicyBothEnds: of two pods of a node, each has its say.
func TestPolicyBothEnds(t *testing.T) {
	for _, f := range families() {
		r := newServiceRig(t, NetworkFlat)
		for name, tc := range map[string]struct {
			denied PolicyKey
			reason verdict.Reason
			rules  map[uint32]uint64
		}{
			"sender denies":                    {out(policyA, identityOther), verdict.PolicyEgress, map[uint32]uint64{ruleRow: 1}},
			"receiver denies":                  {in(policyB, identityOther), verdict.PolicyIngress, map[uint32]uint64{ruleOther: 1, ruleB + ruleRow: 1}},
			"sender's ingress does not matter": {in(policyA, identityOther), verdict.ToLocalPod, map[uint32]uint64{ruleOther: 1, ruleB + ruleOther: 1}},
			"receiver's egress does not":       {out(policyB, identityOther), verdict.ToLocalPod, map[uint32]uint64{ruleOther: 1, ruleB + ruleOther: 1}},
		} {
			r.each(f.name+" "+name, func(r *rig) {
				r.guard(f, tc.denied)
				reason, rules := r.judge(at(f.podA, 40000), at(f.podB, 80), protoTCP)
				if diff := cmp.Diff(tc.rules, rules); reason != tc.reason || diff != "" {
					r.t.Errorf("%s, want %s; rules counted (-want +got):\n%s", reason, tc.reason, diff)
				}
			})
		}
	}
}

// TestPolicySharedPorts: what comes from the other end of a connection by the same ports, and is no answer, is judged for itself.
func TestPolicySharedPorts(t *testing.T) {
	for _, f := range families() {
		r := newServiceRig(t, NetworkFlat)
		icmp := layers.IPProtocol(f.icmpProto())
		ping := func(from, to netip.Addr, reply bool) skb {
			return skb{src: from, dst: to, proto: icmp, l4: f.echo(t, from, to, 77, reply)}
		}
		r.each(f.name+" echo", func(r *rig) {
			r.guard(f, in(policyA, friend))
			a, b := f.podA, f.nativePod
			r.sends(
				send{"request", r.objs.StraitFromPod, ping(a, b, false).bytes(t), verdict.ToNeighbour},
				send{"reply", r.objs.StraitFromNet, r.fromNet(ping(b, a, true)), verdict.ToLocalPod},
				send{"request of the other end under the same identifier", r.objs.StraitFromNet, r.fromNet(ping(b, a, false)), verdict.PolicyIngress},
				send{"next reply", r.objs.StraitFromNet, r.fromNet(ping(b, a, true)), verdict.ToLocalPod},
			)
		})
		r.each(f.name+" echo, allowed for itself", func(r *rig) {
			r.guard(f, out(policyA, friend))
			a, b := f.podA, f.nativePod
			r.sends(
				send{"request", r.objs.StraitFromPod, ping(a, b, false).bytes(t), verdict.PolicyEgress},
				send{"request of the other end", r.objs.StraitFromNet, r.fromNet(ping(b, a, false)), verdict.ToLocalPod},
				send{"reply", r.objs.StraitFromPod, ping(a, b, true).bytes(t), verdict.ToNeighbour},
				send{"request under the same identifier", r.objs.StraitFromPod, ping(a, b, false).bytes(t), verdict.PolicyEgress},
			)
		})
		r.each(f.name+" messages without identifier", func(r *rig) {
			const one, two = 40, 160
			message := func(kind uint8) []byte {
				body := []byte{0, 0, 0, 0}
				if f.v6 {
					return skb{src: f.podA, dst: f.nativePod, proto: icmp, l4: icmp6(t, f.podA, f.nativePod, kind+100, 0, body)}.bytes(t)
				}
				return skb{src: f.podA, dst: f.nativePod, proto: icmp, l4: serialize(t, &layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(kind, 0)})}.bytes(t)
			}
			plus := uint16(0)
			if f.v6 {
				plus = 100
			}
			r.guard(f)
			r.check(r.objs.StraitPort.Put(portRow(7, 0, 0, 0), PolicyVerdict{Rule: 5}))
			r.check(r.objs.StraitPort.Put(portRow(7, icmp, (one+plus)<<8, 8), PolicyVerdict{Rule: 6, Flags: PolicyAllow}))
			r.put(policyA, friend, PolicyEgress, PolicyEntry{Table: 7})
			r.sends(
				send{"allowed type", r.objs.StraitFromPod, message(one), verdict.ToNeighbour},
				send{"another type between the same ends", r.objs.StraitFromPod, message(one + 1), verdict.PolicyEgress},
				send{"allowed type again", r.objs.StraitFromPod, message(one), verdict.ToNeighbour},
			)
		})
		r.each(f.name+" SYN", func(r *rig) {
			r.guard(f, in(policyA, friend))
			ask := skb{proto: protoTCP, tcp: "S"}.from(at(f.podA, 40000)).to(at(f.nativePod, 80))
			back := ask.reverse()
			r.sends(
				send{"SYN", r.objs.StraitFromPod, ask.bytes(t), verdict.ToNeighbour},
				send{"SYN ACK", r.objs.StraitFromNet, r.fromNet(back.flag("SA")), verdict.ToLocalPod},
				send{"SYN of the other end", r.objs.StraitFromNet, r.fromNet(back), verdict.PolicyIngress},
				send{"RST of the other end", r.objs.StraitFromNet, r.fromNet(back.flag("R")), verdict.ToLocalPod},
				send{"SYN of the other end after the end", r.objs.StraitFromNet, r.fromNet(back), verdict.PolicyIngress},
				send{"SYN again", r.objs.StraitFromPod, ask.bytes(t), verdict.ToNeighbour},
				send{"SYN ACK again", r.objs.StraitFromNet, r.fromNet(back.flag("SA")), verdict.ToLocalPod},
			)
		})
	}
}

// TestPolicyMasquerade: a pod that is seen as the node outside is judged as itself, and its answers with it.
func TestPolicyMasquerade(t *testing.T) {
	for _, f := range families() {
		r := newServiceRig(t, NetworkIsland)
		for _, fl := range f.flows(t) {
			r.each(f.name+" "+fl.name, func(r *rig) {
				r.guard(f, in(policyA, foe))
				port := r.leave(f, fl.out)
				reply := r.fromNet(f.outside(t, fl.reply, port))
				next := fl.out
				if next.tcp != "" {
					next.tcp = "A"
				}
				ask := next.bytes(t)
				yes, no := verdict.ToWorldMasqueraded, verdict.PolicyEgress
				r.sends(send{"reply", r.objs.StraitFromNet, reply, verdict.ToLocalPod}, send{"next", r.objs.StraitFromPod, ask, yes})
				r.put(policyA, foe, PolicyEgress, denied(ruleRow))
				r.sends(send{"reply after the cut", r.objs.StraitFromNet, reply, no}, send{"after the cut", r.objs.StraitFromPod, ask, no})
				r.empty(r.objs.StraitCt)
				r.sends(send{"reply by the mapping alone", r.objs.StraitFromNet, reply, no})
				if n := r.entries(r.objs.StraitCt); n != 0 {
					r.t.Errorf("%d entries made by a denied reply", n)
				}
				r.put(policyA, foe, PolicyEgress, allowed(ruleRow+1))
				r.sends(send{"reply by the mapping, allowed again", r.objs.StraitFromNet, reply, verdict.ToLocalPod}, send{"allowed again", r.objs.StraitFromPod, ask, yes})
			})
		}
	}
}

// TestPolicyFragments: later fragments share the verdict of the first.
func TestPolicyFragments(t *testing.T) {
	for _, f := range families() {
		r := newServiceRig(t, NetworkFlat)
		r.each(f.name, func(r *rig) {
			whole := skb{proto: protoUDP, payload: make([]byte, 64)}.from(at(f.podA, 4000)).to(at(f.nativePod, 53))
			l4 := whole.l3(t)[ipHeader(f):]
			first, later := whole, whole
			first.frag, first.l4 = frag{id: 9, more: true}, l4[:32]
			later.frag, later.l4 = frag{id: 9, offset: 4}, l4[32:]
			r.guard(f)
			r.sends(send{"first", r.objs.StraitFromPod, first.bytes(t), verdict.ToNeighbour}, send{"later", r.objs.StraitFromPod, later.bytes(t), verdict.ToNeighbour})
			r.put(policyA, friend, PolicyEgress, denied(ruleRow))
			r.sends(send{"later, after the cut", r.objs.StraitFromPod, later.bytes(t), verdict.PolicyEgress}, send{"first, after the cut", r.objs.StraitFromPod, first.bytes(t), verdict.PolicyEgress})
			r.empty(r.objs.StraitCt)
			r.empty(r.objs.StraitFrag)
			r.sends(send{"first, denied", r.objs.StraitFromPod, first.bytes(t), verdict.PolicyEgress}, send{"later, denied", r.objs.StraitFromPod, later.bytes(t), verdict.PolicyEgress})
			if n := r.entries(r.objs.StraitCt); n != 0 {
				r.t.Errorf("%d connections, want none", n)
			}
		})
	}
}
