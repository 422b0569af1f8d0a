package bpf

import (
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/gopacket/gopacket/layers"

	"github.com/strait-net/strait/internal/verdict"
)

// TestPolicyService: with packets to a service, its backend is judged; a denial leaves nothing behind.
func TestPolicyService(t *testing.T) {
	for _, f := range families() {
		r := newServiceRig(t, NetworkIsland)
		vip, pod, outside := at(f.world.Next(), 80), at(f.podA, 40000), at(f.world, 40000)
		for _, tc := range []struct {
			name            string
			client, backend netip.AddrPort
			ask, answer     func(*rig, skb) (*ebpf.Program, []byte)
			key             PolicyKey
			no              verdict.Reason
			yes, back       verdict.Reason
		}{
			{"pod to pod here, its egress", pod, at(f.podB, 8080), byPod, byPod, out(policyA, identityOther), verdict.PolicyEgress, verdict.ToBackend, verdict.ToClient},
			{"pod to pod here, ingress there", pod, at(f.podB, 8080), byPod, byPod, in(policyB, identityOther), verdict.PolicyIngress, verdict.ToBackend, verdict.ToClient},
			{"pod to pod elsewhere", pod, at(f.nativePod, 8080), byPod, byNet, out(policyA, friend), verdict.PolicyEgress, verdict.ToBackend, verdict.ToLocalPod},
			{"pod to this node", pod, at(f.node, 8080), byPod, byNode, out(policyA, identityOther), verdict.PolicyEgress, verdict.ToBackend, verdict.ToLocalPod},
			{"outside to pod here", outside, at(f.podA, 8080), byNet, byPod, in(policyA, foe), verdict.PolicyIngress, verdict.ToBackend, verdict.ToClient},
		} {
			for _, proto := range protocols() {
				r.each(f.name+" "+tc.name+" "+proto.String(), func(r *rig) {
					r.guard(f, tc.key)
					r.serve(setID, front{at: vip, proto: proto, flags: ServiceLoadBalancer, backends: []netip.AddrPort{tc.backend}})
					ask := skb{proto: proto, tcp: "S", payload: []byte("hello")}.from(tc.client).to(vip)
					answer := ask.from(tc.client).to(tc.backend).reverse().flag("SA")
					one := func(what string, s skb, by func(*rig, skb) (*ebpf.Program, []byte), reason verdict.Reason) send {
						prog, frame := by(r, s)
						return send{what, prog, frame, reason}
					}
					r.sends(one("denied", ask, tc.ask, tc.no))
					for name, m := range map[string]*ebpf.Map{"connections": r.objs.StraitCt, "mappings": r.objs.StraitNat} {
						if n := r.entries(m); n != 0 {
							r.t.Errorf("%d %s after a denial", n, name)
						}
					}
					if l := r.load(setID * 10); l.Tracked != 0 || l.Connections != 0 {
						r.t.Errorf("load %+v after a denial", l)
					}
					r.put(tc.key.Policy, tc.key.Identity, tc.key.Direction, allowed(60))
					var counted map[uint32]uint64
					talk := func() {
						r.sends(one("allowed", ask, tc.ask, tc.yes), one("answer", answer, tc.answer, tc.back),
							one("next", ask.flag("A"), tc.ask, tc.yes), one("next answer", answer.flag("A"), tc.answer, tc.back))
					}
					if counted = r.counted(talk); counted[60] != 4 {
						r.t.Errorf("rules counted %v, want 4 of rule 60", counted)
					}
					r.put(tc.key.Policy, tc.key.Identity, tc.key.Direction, denied(61))
					r.sends(one("cut", ask.flag("A"), tc.ask, tc.no), one("answer after the cut", answer.flag("A"), tc.answer, tc.no))
					r.put(tc.key.Policy, tc.key.Identity, tc.key.Direction, allowed(60))
					r.sends(one("answer, allowed again", answer.flag("A"), tc.answer, tc.back), one("allowed again", ask.flag("A"), tc.ask, tc.yes))
				})
			}
		}
	}
}

// TestPolicyServiceOutside: a backend outside the cluster, behind masquerading: counted once, and no port is used up.
func TestPolicyServiceOutside(t *testing.T) {
	for _, f := range families() {
		r := newServiceRig(t, NetworkIsland)
		r.each(f.name, func(r *rig) {
			vip, backend, client := at(f.world.Next(), 80), at(f.world, 8080), at(f.podA, 40000)
			r.guard(f, out(policyA, foe))
			r.serve(setID, front{at: vip, proto: protoTCP, flags: ServiceClusterIP, backends: []netip.AddrPort{backend}})
			ask := skb{proto: protoTCP, tcp: "S"}.from(client).to(vip)
			r.sends(send{"denied", r.objs.StraitFromPod, ask.bytes(t), verdict.PolicyEgress})
			if n := r.entries(r.objs.StraitCt) + r.entries(r.objs.StraitNat); n != 0 {
				r.t.Errorf("%d rows after a denial", n)
			}
			r.put(policyA, foe, PolicyEgress, allowed(60))
			counted := r.counted(func() {
				r.sends(send{"allowed", r.objs.StraitFromPod, ask.bytes(t), verdict.ToWorldMasqueraded}, send{"next", r.objs.StraitFromPod, ask.flag("A").bytes(t), verdict.ToWorldMasqueraded})
			})
			if counted[60] != 2 {
				r.t.Errorf("rules counted %v, want 2 of rule 60", counted)
			}
			if e := r.connection(client, backend, protoTCP); e.Packets[0]+e.Packets[1] != 2 {
				r.t.Errorf("connection counted %v packets, want 2", e.Packets)
			}
		})
	}
}

// TestPolicyHairpin: a pod reaches itself through its own service, whatever policies say.
func TestPolicyHairpin(t *testing.T) {
	for _, f := range families() {
		r := newServiceRig(t, NetworkIsland)
		for _, proto := range protocols() {
			r.each(f.name+" "+proto.String(), func(r *rig) {
				vip, client, backend := at(f.world.Next(), 80), at(f.podA, 40000), at(f.podA, 8080)
				r.enforce(policyRows{policies: nothing(policyA, ruleOther), pods: map[netip.Addr]uint64{f.podA: policyA}})
				r.serve(setID, front{at: vip, proto: proto, flags: ServiceClusterIP, backends: []netip.AddrPort{backend}})
				ask := skb{proto: proto, tcp: "S"}.from(client).to(vip)
				answer := skb{proto: proto, tcp: "SA"}.from(backend).to(at(f.podGateway, 40000))
				for range 2 {
					r.sends(send{"ask", r.objs.StraitFromPod, ask.bytes(t), verdict.ToBackend}, send{"answer", r.objs.StraitFromPod, answer.bytes(t), verdict.ToClient})
					r.revise()
				}
				// Whoever pretends to be the gateway is not the pod.
				forged := skb{proto: proto, tcp: "S"}.from(at(f.podGateway, 5)).to(backend)
				r.sends(send{"from the network under the gateway's address", r.objs.StraitFromNet, r.fromNet(forged), verdict.PolicyIngress})
			})
		}
	}
}

// TestPolicyErrors: an ICMP error passes with the connection it speaks about, and only then.
func TestPolicyErrors(t *testing.T) {
	for _, f := range families() {
		r := newServiceRig(t, NetworkFlat)
		icmp := layers.IPProtocol(f.icmpProto())
		about := func(from, to netip.Addr, s skb) skb {
			return skb{src: from, dst: to, proto: icmp, l4: f.unreachable(t, from, to, s.l3(t))}
		}
		ask := skb{proto: protoUDP, payload: []byte("hello there")}.from(at(f.podA, 40000)).to(at(f.nativePod, 53))
		local := ask.to(at(f.podB, 53))
		outward := ask.reverse()
		for _, tc := range []struct {
			name   string
			ask    send
			error  send
			key    PolicyKey
			no     verdict.Reason
			passed verdict.Reason
		}{
			{"from a router, about a pod's packet", send{"ask", r.objs.StraitFromPod, ask.bytes(t), verdict.ToNeighbour},
				send{"error", r.objs.StraitFromNet, r.fromNet(about(f.gateway, f.podA, ask)), verdict.ToLocalPod}, out(policyA, friend), verdict.PolicyEgress, verdict.ToLocalPod},
			{"from a pod here, about what it got", send{"ask", r.objs.StraitFromPod, local.bytes(t), verdict.ToLocalPod},
				send{"error", r.objs.StraitFromPod, about(f.podB, f.podA, local).bytes(t), verdict.ToLocalPod}, in(policyB, identityOther), verdict.PolicyIngress, verdict.ToLocalPod},
			{"from a pod, to a pod elsewhere", send{"ask", r.objs.StraitFromNet, r.fromNet(outward), verdict.ToLocalPod},
				send{"error", r.objs.StraitFromPod, about(f.podA, f.nativePod, outward).bytes(t), verdict.ToNeighbour}, in(policyA, friend), verdict.PolicyIngress, verdict.ToNeighbour},
			{"from this node, about a pod's packet", send{"ask", r.objs.StraitFromPod, ask.bytes(t), verdict.ToNeighbour},
				send{"error", r.objs.StraitToPod, about(f.node, f.podA, ask).bytes(t), verdict.ToLocalPod}, out(policyA, friend), verdict.PolicyEgress, verdict.ToLocalPod},
		} {
			r.each(f.name+" "+tc.name, func(r *rig) {
				r.guard(f)
				b := Endpoint{Ifindex: uint32(r.st), Policy: policyB}
				copy(b.PodMac[:], macPodB)
				copy(b.HostMac[:], macHostB)
				r.check(r.objs.StraitEndpoint.Put(AddrFrom(f.podB), b))
				unknown := tc.error
				unknown.what, unknown.reason = "about nothing that is known", verdict.UnrelatedIcmp
				if tc.error.prog == r.objs.StraitToPod { // a packet that came no further than here has begun nothing
					unknown.reason = verdict.ToLocalPod
				}
				r.sends(unknown, tc.ask, tc.error)
				r.put(tc.key.Policy, tc.key.Identity, tc.key.Direction, denied(ruleRow))
				cut := tc.error
				cut.what, cut.reason = "after the cut", tc.no
				r.sends(cut)
				r.put(tc.key.Policy, tc.key.Identity, tc.key.Direction, allowed(ruleRow))
				r.sends(tc.error)
				r.enforce(policyRows{pods: map[netip.Addr]uint64{f.podA: 0, f.podB: 0}})
				r.empty(r.objs.StraitCt)
				free := tc.error
				free.what = "about nothing that is known, without policies"
				r.sends(free)
			})
		}
	}
}

// TestPolicyServiceErrors: errors that are translated are judged by the connection between the real ends.
func TestPolicyServiceErrors(t *testing.T) {
	for _, f := range families() {
		r := newServiceRig(t, NetworkIsland)
		icmp := layers.IPProtocol(f.icmpProto())
		about := func(from, to netip.Addr, s skb) skb {
			return skb{src: from, dst: to, proto: icmp, l4: f.unreachable(t, from, to, s.l3(t))}
		}
		r.each(f.name+" service", func(r *rig) {
			vip, client, backend := at(f.world.Next(), 80), at(f.world, 40000), at(f.podA, 8080)
			r.guard(f)
			r.serve(setID, front{at: vip, proto: protoUDP, flags: ServiceLoadBalancer, backends: []netip.AddrPort{backend}})
			ask := skb{proto: protoUDP, payload: []byte("hello there")}.from(client).to(vip)
			fromBackend := about(backend.Addr(), client.Addr(), ask.to(backend)).bytes(t)
			fromClient := r.fromNet(about(client.Addr(), vip.Addr(), ask.reverse()))
			r.sends(send{"ask", r.objs.StraitFromNet, r.fromNet(ask), verdict.ToBackend},
				send{"from the backend", r.objs.StraitFromPod, fromBackend, verdict.ToClient}, send{"from the client", r.objs.StraitFromNet, fromClient, verdict.ToBackend})
			r.put(policyA, foe, PolicyIngress, denied(ruleRow))
			r.sends(send{"from the backend, cut", r.objs.StraitFromPod, fromBackend, verdict.PolicyIngress}, send{"from the client, cut", r.objs.StraitFromNet, fromClient, verdict.PolicyIngress})
		})
		r.each(f.name+" masquerade", func(r *rig) {
			r.guard(f)
			fl := f.flows(t)[1]
			port := r.leave(f, fl.out)
			sent := f.outside(t, fl.out, port)
			back := r.fromNet(about(f.gateway, f.node, sent))
			r.sends(send{"from a router", r.objs.StraitFromNet, back, verdict.ToLocalPod})
			r.put(policyA, foe, PolicyEgress, denied(ruleRow))
			r.sends(send{"from a router, cut", r.objs.StraitFromNet, back, verdict.PolicyEgress})
		})
	}
}

// TestPolicyServicesOff: where kube-proxy translates, the pod's egress to a service is judged where the backend is known, its answers with it.
func TestPolicyServicesOff(t *testing.T) {
	for _, f := range families() {
		r := newModeRig(t, ServicesOff, false)
		vip, client := at(f.world.Next(), 80), at(f.podA, 40000)
		for _, tc := range []struct {
			name    string
			backend netip.AddrPort
			out     *ebpf.Program // where the stack sends it
			passed  verdict.Reason
			answer  func(*rig, skb) (*ebpf.Program, []byte)
			key     PolicyKey
		}{
			{"pod here", at(f.podB, 8080), r.objs.StraitToPod, verdict.ToLocalPod, byPod, out(policyA, identityOther)},
			{"pod by next hop", at(f.nativePod, 8080), r.objs.StraitToNet, verdict.Unknown, byNet, out(policyA, friend)},
			{"pod through the tunnel", at(f.tunnelPod, 8080), r.objs.StraitToVx, verdict.ToTunnel, byVx, out(policyA, friend)},
		} {
			for _, proto := range protocols() {
				r.each(f.name+" "+tc.name+" "+proto.String(), func(r *rig) {
					r.guard(f, tc.key)
					r.serve(setID, front{at: vip, proto: proto, flags: ServiceClusterIP, backends: []netip.AddrPort{tc.backend}})
					ask := skb{proto: proto, tcp: "S"}.from(client).to(vip)
					real := ask.to(tc.backend)
					prog, answer := tc.answer(r, real.reverse().flag("SA"))
					translated := ask.reverse().flag("SA").bytes(t)
					toService := send{"to the service", r.objs.StraitFromPod, ask.bytes(t), verdict.ToStack}
					r.sends(toService, send{"denied at the backend", tc.out, real.bytes(t), verdict.PolicyEgress})
					if n := r.entries(r.objs.StraitCt); n != 1 {
						r.t.Errorf("%d entries after a denial, want the service's", n)
					}
					r.put(policyA, tc.key.Identity, PolicyEgress, allowed(60))
					counted := r.counted(func() {
						r.sends(toService, send{"allowed", tc.out, real.bytes(t), tc.passed}, send{"answer", prog, answer, verdict.ToStack},
							send{"answer, translated", r.objs.StraitToPod, translated, verdict.ToLocalPod})
					})
					if counted[60] != 2 {
						r.t.Errorf("rules counted %v, want 2 of rule 60", counted)
					}
					r.put(policyA, tc.key.Identity, PolicyEgress, denied(61))
					r.sends(send{"cut", tc.out, real.flag("A").bytes(t), verdict.PolicyEgress}, send{"answer after the cut", prog, answer, verdict.PolicyEgress})
				})
			}
		}
		r.each(f.name+" outside, to a node port", func(r *rig) {
			r.guard(f, in(policyA, foe))
			came := skb{proto: protoTCP, tcp: "S"}.from(at(f.world, 40000)).to(at(f.podA, 8080)).bytes(t)
			r.sends(send{"denied", r.objs.StraitToPod, came, verdict.PolicyIngress})
			r.put(policyA, foe, PolicyIngress, allowed(60))
			r.sends(send{"allowed", r.objs.StraitToPod, came, verdict.ToLocalPod})
		})
		r.each(f.name+" backend outside", func(r *rig) {
			r.guard(f, out(policyA, foe))
			real := skb{proto: protoTCP, tcp: "S"}.from(client).to(at(f.world, 8080)).bytes(t)
			r.sends(send{"denied", r.objs.StraitToNet, real, verdict.PolicyEgress})
			if n := r.entries(r.objs.StraitCt) + r.entries(r.objs.StraitNat); n != 0 {
				r.t.Errorf("%d rows after a denial", n)
			}
			r.put(policyA, foe, PolicyEgress, allowed(60))
			counted := r.counted(func() { r.sends(send{"allowed", r.objs.StraitToNet, real, verdict.Unknown}) })
			if counted[60] != 1 {
				r.t.Errorf("rules counted %v, want 1 of rule 60", counted)
			}
			if n := r.entries(r.objs.StraitNat); n != 1 {
				r.t.Errorf("%d mappings, want 1", n)
			}
		})
	}
}
