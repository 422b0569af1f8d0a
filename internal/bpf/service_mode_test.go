package bpf

import (
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/strait-net/strait/internal/verdict"
)

func newModeRig(t testing.TB, mode ServiceMode, imported bool) *rig {
	t.Helper()
	return newRigWith(t, NetworkIsland, func(s *ebpf.CollectionSpec, r *rig) {
		r.set(s, DatapathVarCfgServices, mode)
		r.set(s, DatapathVarCfgImported, imported)
	})
}

// TestServicesOff: what kube-proxy translates in the node's stack goes through it both ways.
func TestServicesOff(t *testing.T) {
	for _, f := range families() {
		r := newModeRig(t, ServicesOff, false)
		for _, proto := range protocols() {
			vip := at(f.world.Next(), 80)
			s := func(from, to netip.AddrPort, tcp string) skb { return skb{proto: proto, tcp: tcp}.from(from).to(to) }
			stack := func(what string, prog *ebpf.Program, in []byte) step {
				return step{what: what, prog: prog, in: in, act: actStack, reason: verdict.ToStack}
			}
			r.each(f.name+" to a service "+proto.String(), func(r *rig) {
				r.serve(setID, front{at: vip, proto: proto, flags: ServiceClusterIP, backends: []netip.AddrPort{at(f.podB, 8080)}})
				r.do(stack("first", r.objs.StraitFromPod, s(at(f.podA, 4000), vip, "S").bytes(t)),
					stack("next", r.objs.StraitFromPod, s(at(f.podA, 4000), vip, "A").bytes(t)))
				if act, _ := r.run(step{what: "no service", prog: r.objs.StraitFromPod, in: s(at(f.podA, 4000), at(f.world, 80), "S").bytes(t)}); act != actRedirect {
					r.t.Errorf("a packet to no service: verdict %d", int32(act))
				}
				r.reason()
			})
			for name, tc := range map[string]struct {
				client, backend netip.Addr
				out             *ebpf.Program
				outReason       verdict.Reason
				back            func(skb) []byte
				answer          *ebpf.Program
			}{
				"pod here":            {f.podB, f.podA, r.objs.StraitToPod, verdict.ToLocalPod, func(s skb) []byte { return s.bytes(t) }, r.objs.StraitFromPod},
				"outside, local only": {f.world, f.podA, r.objs.StraitToPod, verdict.ToLocalPod, func(s skb) []byte { return s.bytes(t) }, r.objs.StraitFromPod},
				"pod by next hop":     {f.podA, f.nativePod, r.objs.StraitToNet, verdict.Unknown, r.fromNet, r.objs.StraitFromNet},
				"pod in the tunnel":   {f.podA, f.tunnelPod, r.objs.StraitToVx, verdict.ToTunnel, func(s skb) []byte { return s.bytes(t) }, r.objs.StraitFromVx},
			} {
				r.each(f.name+" "+name+" "+proto.String(), func(r *rig) {
					ask := s(at(tc.client, 4000), at(tc.backend, 8080), "S")
					out := ask.bytes(t)
					if tc.outReason == verdict.ToTunnel {
						out = withMACs(ask, macTunnel, macSender).bytes(t)
					}
					for range 2 {
						r.do(step{what: "out", prog: tc.out, in: ask.bytes(t), act: actStack, reason: tc.outReason, out: out},
							stack("back", tc.answer, tc.back(ask.reverse().flag("SA"))))
					}
				})
			}
		}
	}
}

// TestServicesDrain: connections that are ours go on, new ones are kube-proxy's.
func TestServicesDrain(t *testing.T) {
	for _, f := range families() {
		r := newModeRig(t, ServicesDrain, false)
		for name, tc := range map[string]struct {
			client netip.AddrPort
			front  netip.AddrPort
			prog   *ebpf.Program
			frame  func(skb) []byte
		}{
			"outside": {at(f.world, 4000), at(f.node, nodePort), r.objs.StraitFromNet, r.fromNet},
			"pod":     {at(f.podA, 4000), at(f.world.Next(), 80), r.objs.StraitFromPod, func(s skb) []byte { return s.bytes(t) }},
		} {
			r.each(f.name+" "+name, func(r *rig) {
				backend := at(f.podB, 8080)
				r.serve(setID, front{at: tc.front, proto: protoTCP, flags: ServiceLoadBalancer, backends: []netip.AddrPort{backend}})
				s := skb{proto: protoTCP, tcp: "A"}.from(tc.client).to(tc.front)
				r.check(r.objs.StraitCt.Put(ctKeyOf(tc.client, tc.front, protoTCP), CtEntry{Flags: CtService | CtReplied | highBegan(tc.client, tc.front),
					Backend: setID * 10, BackendGen: 1, LastSeen: monotonic(r.t)}))
				other := s.flag("S")
				other.sport++
				r.do(step{what: "ours", prog: tc.prog, in: tc.frame(s), act: actRedirect, reason: verdict.ToBackend, out: withMACs(s.to(backend), macPodB, macHostB).hop().bytes(r.t)},
					step{what: "a new one", prog: tc.prog, in: tc.frame(other), act: actStack, reason: verdict.ToStack})
			})
		}
	}
}

// TestImported: connections that kube-proxy has begun: the stack's until they are ours, then with the addresses it gave them.
func TestImported(t *testing.T) {
	for _, f := range families() {
		r := newModeRig(t, ServicesOn, true)
		client, frontend, pod, us := at(f.world, 4000), at(f.node, nodePort), at(f.podA, 8080), at(f.node, 60123)
		for _, proto := range protocols() {
			r.each(f.name+" "+proto.String(), func(r *rig) {
				t := r.t
				r.serve(setID, front{at: at(f.any(), nodePort), proto: proto, flags: ServiceNodePort, backends: []netip.AddrPort{pod}})
				r.check(r.objs.StraitNat.Put(NatKey{Remote: AddrFrom(pod.Addr()), Node: AddrFrom(us.Addr()), RemotePort: NetPort(pod.Port()), NodePort: NetPort(us.Port()), Proto: uint8(proto)},
					NatEntry{Client: AddrFrom(client.Addr()), ClientPort: NetPort(client.Port()), FrontAddr: AddrFrom(frontend.Addr()), FrontPort: NetPort(frontend.Port())}))
				e := CtEntry{Flags: CtService | CtNat | CtStack | CtReplied | highBegan(client, frontend), Backend: setID * 10, BackendGen: 1,
					NatAddr: AddrFrom(us.Addr()), NatPort: NetPort(us.Port()), LastSeen: monotonic(r.t)}
				key := ctKeyOf(client, frontend, proto)
				r.check(r.objs.StraitCt.Put(key, e))
				ask := skb{proto: proto, tcp: "A", payload: []byte("more")}.from(client).to(frontend)
				answer := ask.reverse()
				raw := answer.from(pod).to(us)
				r.do(
					step{what: "still the stack's", prog: r.objs.StraitFromNet, in: r.fromNet(ask), act: actStack, reason: verdict.ToStack},
					step{what: "answer still the stack's", prog: r.objs.StraitFromPod, in: raw.bytes(t), act: actStack, reason: verdict.ToStack},
				)
				e.Flags &^= CtStack
				r.check(r.objs.StraitCt.Put(key, e))
				r.do(
					step{what: "ours", prog: r.objs.StraitFromNet, in: r.fromNet(ask), act: actRedirect, reason: verdict.ToBackend,
						out: withMACs(ask.from(us).to(pod), macPod, macHost).hop().bytes(t)},
					step{what: "answer", prog: r.objs.StraitFromPod, in: raw.bytes(t), act: actRedirect, reason: verdict.ToClient, out: answer.hop().bytes(t)},
				)
			})
		}
	}
}
