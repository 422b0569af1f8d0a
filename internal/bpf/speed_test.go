package bpf

import (
	"net"
	"testing"
	"time"

	"github.com/cilium/ebpf"
)

// BenchmarkEstablished gives the time in the kernel per packet of an established connection, by program and way. Such runs come in by
// the loopback device and repeat on the same packet, so the TTL bounds a batch.
func BenchmarkEstablished(b *testing.B) {
	const batch, loopback = 200, 1
	zero := make(net.HardwareAddr, 6)
	for _, f := range families() {
		r := newEventRig(b, NetworkIsland)
		r.check(r.objs.StraitEndpoint.Put(AddrFrom(f.podA), Endpoint{Ifindex: loopback}))
		counted := r.ruled(f)
		tcp := skb{src: f.podA, dst: f.podB, proto: protoTCP, sport: 40000, dport: 80, tcp: "A", ttl: 255}
		fromTunnel := skb{src: f.tunnelPod, dst: f.podA, proto: protoTCP, sport: 40000, dport: 80, tcp: "A", ttl: 255}
		toTunnel := skb{src: f.podA, dst: f.tunnelPod, proto: protoTCP, sport: 80, dport: 40000, tcp: "A", ttl: 255}
		fromNative := fromTunnel
		fromNative.src = f.nativePod
		toNative := toTunnel
		toNative.dst = f.nativePod
		for _, tc := range []struct {
			name string
			prog *ebpf.Program
			in   []byte
			act  uint32
		}{
			{"from pod to pod", r.objs.StraitFromPod, tcp.bytes(b), actRedirect},
			{"from pod to pod, counted at both ends", r.objs.StraitFromPod, counted.bytes(b), actRedirect},
			{"from pod to tunnel", r.objs.StraitFromPod, toTunnel.bytes(b), actRedirect},
			{"from pod to next hop", r.objs.StraitFromPod, toNative.bytes(b), actRedirect},
			{"from tunnel to pod", r.objs.StraitFromVx, fromTunnel.bytes(b), actRedirect},
			{"from net to pod", r.objs.StraitFromNet, withMACs(fromNative, zero, zero).bytes(b), actRedirect},
			{"from net to node", r.objs.StraitFromNet, withMACs(skb{src: f.world, dst: f.node, proto: protoTCP, sport: 1, dport: 22, tcp: "A"}, zero, zero).bytes(b), actStack},
			{"from net, a tunnel's packet", r.objs.StraitFromNet, withMACs(skb{src: f.tunnelNode, dst: f.node, proto: protoUDP, sport: 1, dport: 8472}, zero, zero).bytes(b), actStack},
			{"from node to pod", r.objs.StraitToPod, skb{src: f.node, dst: f.podA, proto: protoTCP, sport: 1, dport: 22, tcp: "A"}.bytes(b), actStack},
		} {
			b.Run(f.name+" "+tc.name, func(b *testing.B) {
				best := time.Hour
				for b.Loop() {
					act, d, err := tc.prog.Benchmark(tc.in, batch, nil)
					if err != nil || act != tc.act {
						b.Fatalf("verdict %d, want %d: %v", int32(act), int32(tc.act), err)
					}
					best = min(best, d)
				}
				b.ReportMetric(float64(best.Nanoseconds()), "ns/packet") // the best batch: others were interrupted
				b.ReportMetric(0, "ns/op")
			})
		}
	}
}

// ruled gives the connection of a packet from pod A to pod B that two rules have allowed, and are to count.
func (r *rig) ruled(f family) skb {
	r.t.Helper()
	s := skb{src: f.podA, dst: f.podB, proto: protoTCP, sport: 40001, dport: 80, tcp: "A", ttl: 255}
	r.check(r.objs.StraitCt.Put(ctKeyOf(at(s.src, s.sport), at(s.dst, s.dport), s.proto), CtEntry{RuleOut: 1, RuleIn: 2, LastSeen: monotonic(r.t)}))
	return s
}
