package bpf

import (
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/gopacket/gopacket/layers"

	"github.com/strait-net/strait/internal/verdict"
)

const (
	policyNode = 0xcccc
	ruleNode   = 200
)

// guardNode gives the node a policy that allows everything by rule 201 but what is denied by rule 202; pods have none.
func (r *rig) guardNode(f family, denied ...PolicyKey) {
	r.t.Helper()
	rows := everything(policyNode, ruleNode+ruleOther)
	for _, k := range denied {
		rows[k] = PolicyEntry{Verdict: PolicyVerdict{Rule: ruleNode + ruleRow}}
	}
	r.enforce(policyRows{policies: rows, identities: map[netip.Prefix]uint64{host(f.world): foe, host(f.nativePod): friend, host(f.podA): friend},
		pods: map[netip.Addr]uint64{f.podA: 0}, node: policyNode})
}

func toNet(r *rig, s skb) (*ebpf.Program, []byte) { return r.objs.StraitToNet, s.bytes(r.t) }
func toVx(r *rig, s skb) (*ebpf.Program, []byte)  { return r.objs.StraitToVx, s.bytes(r.t) }

// TestHostPolicy: connections of the node, wherever they begin, are judged at its own policy; without one they are left alone.
func TestHostPolicy(t *testing.T) {
	for _, f := range families() {
		r := newServiceRig(t, NetworkIsland)
		for _, tc := range []struct {
			name      string
			ask       skb
			asks      func(*rig, skb) (*ebpf.Program, []byte)
			answers   func(*rig, skb) (*ebpf.Program, []byte)
			key       PolicyKey
			pass      [2]verdict.Reason
			untracked bool // without a policy of the node
		}{
			{"from outside", skb{}.from(at(f.world, 40000)).to(at(f.node, 22)), byNet, toNet, in(policyNode, foe), [2]verdict.Reason{verdict.ToStack, verdict.Unknown}, true},
			{"outside", skb{}.from(at(f.node, 40000)).to(at(f.world, 443)), toNet, byNet, out(policyNode, foe), [2]verdict.Reason{verdict.Unknown, verdict.ToStack}, true},
			{"to a pod through the tunnel", skb{}.from(at(f.node, 40000)).to(at(f.tunnelPod, 443)), toVx, nil, out(policyNode, identityOther), [2]verdict.Reason{verdict.ToTunnel}, true},
			{"from a pod here", skb{}.from(at(f.podA, 40000)).to(at(f.node, 22)), byPod, byNode, in(policyNode, friend), [2]verdict.Reason{verdict.ToStack, verdict.ToLocalPod}, false},
			{"to a pod here", skb{}.from(at(f.node, 40000)).to(at(f.podA, 80)), byNode, byPod, out(policyNode, friend), [2]verdict.Reason{verdict.ToLocalPod, verdict.ToStack}, false},
		} {
			for _, proto := range protocols() {
				r.each(f.name+" "+tc.name+" "+proto.String(), func(r *rig) {
					one := func(what string, s skb, by func(*rig, skb) (*ebpf.Program, []byte), reason verdict.Reason) {
						if by != nil {
							prog, frame := by(r, s)
							r.sends(send{what, prog, frame, reason})
						}
					}
					ask := tc.ask
					ask.proto, ask.tcp = proto, "S"
					answer := ask.reverse().flag("SA")
					r.enforce(policyRows{pods: map[netip.Addr]uint64{f.podA: 0}})
					one("without a policy", ask, tc.asks, tc.pass[0])
					one("answer, without a policy", answer, tc.answers, tc.pass[1])
					if n := r.entries(r.objs.StraitCt); tc.untracked && n != 0 {
						r.t.Errorf("%d entries without a policy", n)
					}
					r.empty(r.objs.StraitCt)
					no := verdict.PolicyEgress
					if tc.key.Direction == PolicyIngress {
						no = verdict.PolicyIngress
					}
					r.guardNode(f, tc.key)
					one("denied", ask, tc.asks, no)
					if n := r.entries(r.objs.StraitCt); n != 0 {
						r.t.Errorf("%d entries after a denial", n)
					}
					r.put(policyNode, tc.key.Identity, tc.key.Direction, allowed(210))
					opposite := PolicyEgress
					if tc.key.Direction == PolicyEgress {
						opposite = PolicyIngress
					}
					r.put(policyNode, tc.key.Identity, opposite, denied(211))
					counted := r.counted(func() {
						one("allowed", ask, tc.asks, tc.pass[0])
						one("answer", answer, tc.answers, tc.pass[1])
					})
					want := uint64(2)
					if tc.answers == nil {
						want = 1
					}
					if counted[210] != want {
						r.t.Errorf("rules counted %v, want %d of rule 210", counted, want)
					}
					r.put(policyNode, tc.key.Identity, tc.key.Direction, denied(212))
					one("cut", ask.flag("A"), tc.asks, no)
					one("answer after the cut", answer.flag("A"), tc.answers, no)
				})
			}
		}
	}
}

// TestHostPolicyExempt: what no policy of the node may touch, lest the node be lost.
func TestHostPolicyExempt(t *testing.T) {
	for _, f := range families() {
		r := newServiceRig(t, NetworkIsland)
		icmp := layers.IPProtocol(f.icmpProto())
		r.each(f.name, func(r *rig) {
			rows := nothing(policyNode, ruleNode)
			r.enforce(policyRows{policies: rows, node: policyNode})
			tunnel := skb{proto: protoUDP}.from(at(f.tunnelNode, 50000)).to(at(f.node, 8472))
			own := skb{proto: protoUDP, payload: []byte("hello there")}.from(at(f.world, 5)).to(at(f.node, 9))
			told := skb{src: f.node, dst: f.world, proto: icmp, l4: f.unreachable(t, f.node, f.world, own.l3(t))}
			carried := skb{proto: protoUDP, payload: []byte("hello there")}.from(at(f.node, 5)).to(at(f.tunnelNode, 8472))
			tooBig := skb{src: f.gateway, dst: f.node, proto: icmp, l4: f.unreachable(t, f.gateway, f.node, carried.l3(t))}
			r.sends(
				send{"the tunnel", r.objs.StraitFromNet, r.fromNet(tunnel), verdict.ToStack},
				send{"as the tunnel, from no node", r.objs.StraitFromNet, r.fromNet(tunnel.from(at(f.world, 50000))), verdict.PolicyIngress},
				send{"multicast", r.objs.StraitToNet, skb{src: f.node, dst: f.multicast, proto: protoUDP}.bytes(t), verdict.Unknown},
				send{"the node's own error", r.objs.StraitToNet, told.bytes(t), verdict.Unknown},
				send{"an error about the tunnel", r.objs.StraitFromNet, r.fromNet(tooBig), verdict.ToStack},
				send{"forwarded for others", r.objs.StraitToNet, skb{src: f.gateway, dst: f.world, proto: protoUDP}.bytes(t), verdict.Unknown},
			)
			if f.v6 {
				ask := skb{src: f.gateway, dst: f.node, ttl: 255, proto: icmp, l4: icmp6(t, f.gateway, f.node, 135, 0, make([]byte, 20))}
				tell := skb{src: f.node, dst: f.gateway, ttl: 255, proto: icmp, l4: icmp6(t, f.node, f.gateway, 136, 0, make([]byte, 20))}
				r.sends(send{"neighbour solicitation", r.objs.StraitFromNet, r.fromNet(ask), verdict.ToStack}, send{"neighbour advertisement", r.objs.StraitToNet, tell.bytes(t), verdict.Unknown})
			}
			if n := r.entries(r.objs.StraitCt); n != 0 {
				r.t.Errorf("%d entries of what is not judged", n)
			}
		})
		r.each(f.name+" errors", func(r *rig) {
			r.guardNode(f)
			sent := skb{proto: protoUDP, payload: []byte("hello there")}.from(at(f.node, 5)).to(at(f.world, 9))
			about := r.fromNet(skb{src: f.gateway, dst: f.node, proto: icmp, l4: f.unreachable(t, f.gateway, f.node, sent.l3(t))})
			r.sends(send{"about nothing that is known", r.objs.StraitFromNet, about, verdict.UnrelatedIcmp},
				send{"sent", r.objs.StraitToNet, sent.bytes(t), verdict.Unknown}, send{"about it", r.objs.StraitFromNet, about, verdict.ToStack})
			r.put(policyNode, foe, PolicyEgress, denied(ruleNode))
			r.sends(send{"about it, cut", r.objs.StraitFromNet, about, verdict.PolicyEgress})
			r.enforce(policyRows{})
			r.empty(r.objs.StraitCt)
			r.sends(send{"without a policy", r.objs.StraitFromNet, about, verdict.ToStack})
		})
		r.each(f.name+" spoofed", func(r *rig) {
			r.guardNode(f)
			for _, src := range []netip.Addr{f.node, f.podA} {
				r.sends(send{src.String(), r.objs.StraitFromNet, r.fromNet(skb{proto: protoUDP}.from(at(src, 5)).to(at(f.node, 9))), verdict.SpoofedSource})
			}
		})
	}
}

// TestHostPolicySwitchedOn: connections that are under way when the node gets a policy go on if they might have begun, whoever sends first;
// nobody can make a way in of that.
func TestHostPolicySwitchedOn(t *testing.T) {
	for _, f := range families() {
		r := newServiceRig(t, NetworkIsland)
		server, client := at(f.world, 443), at(f.node, 40000)
		ask := skb{proto: protoTCP, tcp: "A"}.from(client).to(server)
		answer := ask.reverse()
		r.each(f.name+" the node began, the other end sends first", func(r *rig) {
			r.guardNode(f, in(policyNode, foe))
			counted := r.counted(func() {
				r.sends(send{"answer", r.objs.StraitFromNet, r.fromNet(answer), verdict.ToStack}, send{"next", r.objs.StraitToNet, ask.bytes(t), verdict.Unknown})
			})
			if counted[ruleNode+ruleOther] != 2 || counted[ruleNode+ruleRow] != 0 {
				r.t.Errorf("rules counted %v", counted)
			}
			r.sends(send{"a SYN by the same ports", r.objs.StraitFromNet, r.fromNet(answer.flag("S")), verdict.PolicyIngress},
				send{"a SYN by other ports", r.objs.StraitFromNet, r.fromNet(answer.from(at(f.world, 444)).flag("S")), verdict.PolicyIngress})
		})
		r.each(f.name+" the other end began, the node sends first", func(r *rig) {
			r.guardNode(f, out(policyNode, foe))
			r.sends(send{"the node's", r.objs.StraitToNet, ask.bytes(t), verdict.Unknown}, send{"the other end's", r.objs.StraitFromNet, r.fromNet(answer), verdict.ToStack})
			if ct := r.connection(client, server, protoTCP); ct == nil || ct.Flags&CtHiBegan != highBegan(server, client) {
				r.t.Errorf("entry %+v, want one that the other end began", ct)
			}
		})
		r.each(f.name+" neither may", func(r *rig) {
			r.guardNode(f, out(policyNode, foe), in(policyNode, foe))
			r.sends(send{"the node's", r.objs.StraitToNet, ask.bytes(t), verdict.PolicyEgress}, send{"the other end's", r.objs.StraitFromNet, r.fromNet(answer), verdict.PolicyIngress})
		})
	}
}

// TestHostPolicyService: the node as a backend is judged by who asks; its answers are the connection's.
func TestHostPolicyService(t *testing.T) {
	for _, f := range families() {
		r := newServiceRig(t, NetworkIsland)
		for _, proto := range protocols() {
			r.each(f.name+" "+proto.String(), func(r *rig) {
				frontend, backend, client := at(f.world.Next(), 80), at(f.node, 8080), at(f.world, 40000)
				r.guardNode(f, in(policyNode, foe), out(policyNode, foe))
				r.serve(setID, front{at: frontend, proto: proto, flags: ServiceLoadBalancer, backends: []netip.AddrPort{backend}})
				ask := skb{proto: proto, tcp: "S"}.from(client).to(frontend)
				answer := ask.to(backend).reverse().flag("SA").bytes(t)
				r.sends(send{"denied", r.objs.StraitFromNet, r.fromNet(ask), verdict.PolicyIngress})
				r.put(policyNode, foe, PolicyIngress, allowed(210))
				r.sends(send{"allowed", r.objs.StraitFromNet, r.fromNet(ask), verdict.ToBackend}, send{"answer", r.objs.StraitToNet, answer, verdict.ToClient})
				r.put(policyNode, foe, PolicyIngress, denied(211))
				r.sends(send{"answer after the cut", r.objs.StraitToNet, answer, verdict.PolicyIngress}, send{"cut", r.objs.StraitFromNet, r.fromNet(ask.flag("A")), verdict.PolicyIngress})
			})
		}
	}
}

// TestHostPolicyServicesOff: what kube-proxy translates is left to where both ends are known.
func TestHostPolicyServicesOff(t *testing.T) {
	for _, f := range families() {
		r := newModeRig(t, ServicesOff, false)
		r.each(f.name, func(r *rig) {
			r.enforce(policyRows{policies: nothing(policyNode, ruleNode), node: policyNode})
			r.serve(setID, front{at: at(f.any(), nodePort), proto: protoTCP, flags: ServiceNodePort, backends: []netip.AddrPort{at(f.nativePod, 8080)}})
			ask := skb{proto: protoTCP, tcp: "S"}.from(at(f.world, 40000)).to(at(f.node, nodePort))
			other := ask.to(at(f.node, 22))
			r.sends(send{"to a node port", r.objs.StraitFromNet, r.fromNet(ask), verdict.ToStack}, send{"to another port", r.objs.StraitFromNet, r.fromNet(other), verdict.PolicyIngress},
				send{"from the node port", r.objs.StraitToNet, ask.reverse().flag("SA").bytes(t), verdict.Unknown}, send{"from another port", r.objs.StraitToNet, other.reverse().flag("SA").bytes(t), verdict.PolicyEgress})
			// The stack's masquerading of a client: the backend answers to an address of the node.
			masked := skb{proto: protoTCP, tcp: "S"}.from(at(f.node, 50000)).to(at(f.nativePod, 8080))
			ctx := context{Ifindex: uint32(r.net), IngressIfindex: uint32(r.net)}
			if act, err := r.objs.StraitToNet.Run(&ebpf.RunOptions{Data: masked.bytes(t), Context: ctx, ContextOut: make([]byte, 192)}); err != nil || act != actStack {
				r.t.Errorf("under the node's address: verdict %d: %v", int32(act), err)
			}
			r.reason()
			r.sends(send{"its answer", r.objs.StraitFromNet, r.fromNet(masked.reverse().flag("SA")), verdict.ToStack})
		})
	}
}
