package bpf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"
	"github.com/google/go-cmp/cmp"
	"github.com/gopacket/gopacket/layers"

	"github.com/strait-net/strait/internal/verdict"
)

// record is one of the ring as a person reads it.
type record struct {
	Kind            EventKind
	Hook            Hook
	Reason          verdict.Reason
	Flags           EventFlags
	Src, Dst        netip.AddrPort
	Front, NAT      netip.AddrPort
	Out, In, Audit  uint32
	Packets, Bytes  [2]uint64
	Proto, TCPFlags uint8
	ICMP            uint16
}

func newEventRig(t testing.TB, network Network) *rig {
	t.Helper()
	return newRigWith(t, network, func(s *ebpf.CollectionSpec, r *rig) {
		r.set(s, DatapathVarCfgServices, ServicesOn)
		r.set(s, DatapathVarCfgEvents, true)
	})
}

// events reads what was told since the last call.
func (r *rig) events() []record {
	r.t.Helper()
	var all []record
	for _, e := range r.records() {
		if e.Time == 0 || e.Ifindex == 0 {
			r.t.Errorf("record without time or device: %+v", e)
		}
		port := func(a Addr, p uint16) netip.AddrPort {
			if a.IsZero() && p == 0 {
				return netip.AddrPort{}
			}
			return netip.AddrPortFrom(a.Netip(), NetPort(p))
		}
		all = append(all, record{e.Kind, e.Hook, verdict.Reason(e.Reason), e.Flags, port(e.Src, e.Sport), port(e.Dst, e.Dport), port(e.Front, e.FrontPort),
			port(e.Nat, e.NatPort), e.RuleOut, e.RuleIn, e.Audit, e.Packets, e.Bytes, e.Proto, e.TcpFlags, e.Icmp})
	}
	return all
}

func (r *rig) records() (all []Event) {
	r.t.Helper()
	reader, err := ringbuf.NewReader(r.objs.StraitEvents)
	r.check(err)
	defer reader.Close()
	reader.SetDeadline(time.Unix(1, 0))
	for {
		rec, err := reader.Read()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return all
		}
		r.check(err)
		var e Event
		if len(rec.RawSample) < binary.Size(e) {
			r.t.Fatalf("record of %d bytes, want %d", len(rec.RawSample), binary.Size(e))
		}
		if _, err := binary.Decode(rec.RawSample, binary.NativeEndian, &e); err != nil {
			r.t.Fatal(err)
		}
		all = append(all, e)
	}
}

// tells compares what was told since the last look.
func (r *rig) tells(what string, want ...record) {
	r.t.Helper()
	if diff := cmp.Diff(want, r.events(), cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); diff != "" {
		r.t.Errorf("%s: told (-want +got):\n%s", what, diff)
	}
}

// begun is the record of a new TCP connection.
func begun(hook Hook, src, dst netip.AddrPort) record {
	return record{Kind: EventNew, Hook: hook, Src: src, Dst: dst, Proto: uint8(protoTCP), TCPFlags: 2}
}

func (e record) front(at netip.AddrPort) record { e.Front = at; return e }
func (e record) nat(at netip.AddrPort) record   { e.NAT = at; return e }
func (e record) rules(out, in uint32) record    { e.Out, e.In = out, in; return e }

// ended is the record of the same connection when it is closed by a packet of hook.
func (e record) ended(hook Hook, flags EventFlags, tcp uint8, packets, bytes [2]uint64) record {
	e.Kind, e.Hook, e.Flags, e.TCPFlags, e.Packets, e.Bytes = EventEnd, hook, flags, tcp, packets, bytes
	return e
}

// stopped is the record of a packet that was not carried.
func stopped(kind EventKind, hook Hook, why verdict.Reason, s skb, frame []byte) record {
	e := record{Kind: kind, Hook: hook, Reason: why, Src: at(s.src, s.sport), Dst: at(s.dst, s.dport), Packets: [2]uint64{1}, Proto: uint8(s.proto)}
	e.Bytes[0] = uint64(len(frame) - 14)
	if s.proto == protoTCP {
		e.TCPFlags = 2
	}
	return e
}

// TestEvents runs all that shares programs.
func TestEvents(t *testing.T) {
	r := newEventRig(t, NetworkIsland)
	for name, test := range map[string]func(*rig, family){
		"ways": (*rig).eventWays, "idle": (*rig).eventIdle, "policy": (*rig).eventPolicy, "audit": (*rig).eventAudit, "service": (*rig).eventService,
		"masquerade": (*rig).eventMasquerade, "dropped": (*rig).eventDropped, "repeats": (*rig).eventRepeats,
	} {
		t.Run(name, func(t *testing.T) {
			for _, f := range families() {
				one := *r
				one.t, one.was = t, r.counts()
				one.empty(one.objs.StraitMuted)
				test(&one, f)
			}
		})
	}
}

// eventWays: a connection's begin and end are told once, wherever its packets are met.
func (r *rig) eventWays(f family) {
	pod := at(f.podA, 40000)
	for _, tc := range []struct {
		name     string
		from, to netip.AddrPort
		ask, ans func(*rig, skb) (*ebpf.Program, []byte)
		hook     Hook
		back     Hook
		node     bool // the node has a policy
	}{
		{"pod to pod here", pod, at(f.podB, 80), byPod, byPod, HookFromPod, HookFromPod, false},
		{"pod to pod by next hop", pod, at(f.nativePod, 80), byPod, byNet, HookFromPod, HookFromNet, false},
		{"pod to pod through the tunnel", pod, at(f.tunnelPod, 80), byPod, byVx, HookFromPod, HookFromVX, false},
		{"pod to this node", pod, at(f.node, 80), byPod, byNode, HookFromPod, HookToPod, false},
		{"pod by next hop to pod", at(f.nativePod, 80), pod, byNet, byPod, HookFromNet, HookFromPod, false},
		{"this node to pod", at(f.node, 80), pod, byNode, byPod, HookToPod, HookFromPod, false},
		{"outside to this node", at(f.world, 80), at(f.node, 22), byNet, toNet, HookFromNet, HookToNet, true},
		{"this node to outside", at(f.node, 1025), at(f.world, 80), toNet, byNet, HookToNet, HookFromNet, true},
	} {
		for end, last := range map[string][2]string{"closed": {"FA", "FA"}, "reset": {"A", "RA"}} {
			r.each(f.name+" "+tc.name+" "+end, func(r *rig) {
				rows := policyRows{pods: map[netip.Addr]uint64{f.podA: 0, f.podB: 0}} // both behind one device
				rules := [2]uint32{}
				if tc.node {
					rows.node, rows.policies = policyB, everything(policyB, 7)
					if tc.hook == HookFromNet {
						rules[1] = 7
					} else {
						rules[0] = 7
					}
				}
				r.enforce(rows)
				ask := skb{proto: protoTCP, tcp: "S", payload: []byte("hello there")}.from(tc.from).to(tc.to)
				run := func(by func(*rig, skb) (*ebpf.Program, []byte), s skb) uint64 {
					prog, frame := by(r, s)
					r.run(step{what: tc.name, prog: prog, in: frame})
					return uint64(len(frame) - 14)
				}
				size := run(tc.ask, ask)
				new := begun(tc.hook, tc.from, tc.to).rules(rules[0], rules[1])
				r.tells("first packet", new)
				run(tc.ans, ask.reverse().flag("SA"))
				run(tc.ask, ask.flag("A"))
				r.tells("known")
				run(tc.ask, ask.flag(last[0]))
				run(tc.ans, ask.reverse().flag(last[1]))
				tcp := uint8(0x11)
				if last[1] == "RA" {
					tcp = 0x14
				}
				r.tells("last packet", new.ended(tc.back, EventAnswer, tcp, [2]uint64{3, 2}, [2]uint64{3 * size, 2 * size}))
				run(tc.ask, ask.flag("A"))
				run(tc.ask, ask.flag("FA"))
				r.tells("late packets")
				run(tc.ask, ask)
				r.tells("the same ports again", new)
			})
		}
	}
}

// eventIdle: a connection that takes the place of one that has not ended ends it.
func (r *rig) eventIdle(f family) {
	t := r.t.(*testing.T)
	r.each(f.name, func(r *rig) {
		r.enforce(policyRows{})
		ask := skb{proto: protoTCP, tcp: "S", payload: []byte("hello there")}.from(at(f.podA, 40000)).to(at(f.podB, 80))
		syn := send{"syn", r.objs.StraitFromPod, ask.bytes(t), verdict.ToLocalPod}
		r.sends(syn)
		new := begun(HookFromPod, at(f.podA, 40000), at(f.podB, 80))
		r.tells("first", new)
		key := ctKeyOf(at(f.podA, 40000), at(f.podB, 80), protoTCP)
		change(t, r.objs.StraitCt, key, func(e *CtEntry) { e.LastSeen -= 100000 })
		r.sends(syn)
		size := uint64(len(syn.in) - 14)
		r.tells("second", new.ended(HookFromPod, 0, 2, [2]uint64{1, 0}, [2]uint64{size, 0}), new)
		r.sends(send{"reset of nothing", r.objs.StraitFromPod, ask.from(at(f.podA, 40001)).flag("RA").bytes(t), verdict.ToLocalPod})
		r.tells("a reset begins nothing")
	})
}

// eventPolicy: who decided is told with a connection, when somebody else decides, and of what is denied.
func (r *rig) eventPolicy(f family) {
	t := r.t.(*testing.T)
	r.each(f.name, func(r *rig) {
		ask := skb{proto: protoTCP, tcp: "S", payload: []byte("hello there")}.from(at(f.podA, 40000)).to(at(f.podB, 80))
		by := func(s skb, reason verdict.Reason) send {
			return send{"packet", r.objs.StraitFromPod, s.bytes(t), reason}
		}
		new := begun(HookFromPod, at(f.podA, 40000), at(f.podB, 80))
		r.guard(f)
		r.sends(by(ask, verdict.ToLocalPod))
		r.tells("allowed by both", new.rules(ruleOther, ruleB+ruleOther))
		answer, more := ask.reverse().flag("SA"), ask.flag("A")
		r.revise()
		r.sends(by(answer, verdict.ToLocalPod), by(more, verdict.ToLocalPod))
		r.tells("allowed by the same")
		r.put(policyA, identityOther, PolicyEgress, allowed(5))
		r.sends(by(answer, verdict.ToLocalPod), by(more, verdict.ToLocalPod))
		judged := new.rules(5, ruleB+ruleOther)
		judged.Kind, judged.Flags, judged.TCPFlags = EventJudged, EventAnswer, 0x12
		r.tells("allowed by another", judged)

		r.put(policyB, identityOther, PolicyIngress, denied(6))
		no := stopped(EventDenied, HookFromPod, verdict.PolicyIngress, ask, ask.bytes(t)).rules(5, 6)
		no.TCPFlags = 0x10
		r.sends(by(more, verdict.PolicyIngress))
		r.tells("cut", no)
		r.put(policyB, identityOther, PolicyIngress, allowed(ruleB+ruleOther))
		r.sends(by(more, verdict.ToLocalPod))
		judged.Flags, judged.TCPFlags = 0, 0x10
		r.tells("allowed again, by what it was before", judged)

		r.put(policyA, identityOther, PolicyEgress, denied(8))
		no.Reason, no.Flags, no.TCPFlags = verdict.PolicyEgress, EventAnswer, 0x12
		r.sends(by(answer, verdict.PolicyEgress))
		r.tells("answer cut", no.rules(8, 0))
		r.enforce(policyRows{pods: map[netip.Addr]uint64{f.podA: 0, f.podB: 0}})
		r.sends(by(more, verdict.ToLocalPod))
		r.tells("nobody judges any more", judged.rules(0, 0))

		missing := ask.to(at(f.podB, 81))
		r.enforce(policyRows{pods: map[netip.Addr]uint64{f.podA: policyA}})
		r.sends(by(missing, verdict.PolicyMissing))
		r.tells("missing", stopped(EventDenied, HookFromPod, verdict.PolicyMissing, missing, missing.bytes(t)))
	})
}

// eventAudit: what audited policies would have decided goes with the record.
func (r *rig) eventAudit(f family) {
	t := r.t.(*testing.T)
	verdictOf := func(rule uint32, flags PolicyFlags) PolicyEntry {
		return PolicyEntry{Verdict: PolicyVerdict{Rule: rule, AuditRule: ruleAudit, Flags: flags}}
	}
	for _, tc := range []struct {
		name    string
		out, in PolicyEntry
		audit   uint32
		denied  bool
	}{
		{"out would be denied", verdictOf(1, PolicyAllow|PolicyAudit|PolicyAuditDeny), allowed(2), ruleAudit, false},
		{"in would be denied", allowed(1), verdictOf(2, PolicyAllow|PolicyAudit|PolicyAuditDeny), ruleAudit, false},
		{"out would be denied, in is", verdictOf(1, PolicyAllow|PolicyAudit|PolicyAuditDeny), denied(2), 0, true},
		{"in would be allowed", allowed(1), verdictOf(2, PolicyAudit), ruleAudit, true},
		{"neither", allowed(1), allowed(2), 0, false},
	} {
		r.each(f.name+" "+tc.name, func(r *rig) {
			r.enforce(policyRows{pods: map[netip.Addr]uint64{f.podA: policyA, f.podB: policyB}, policies: map[PolicyKey]PolicyEntry{
				out(policyA, identityOther): tc.out, in(policyB, identityOther): tc.in}})
			r.empty(r.objs.StraitMuted)
			ask := skb{proto: protoTCP, tcp: "S", payload: []byte("hello there")}.from(at(f.podA, 40000)).to(at(f.podB, 80))
			r.run(step{prog: r.objs.StraitFromPod, in: ask.bytes(t)})
			want := begun(HookFromPod, at(f.podA, 40000), at(f.podB, 80))
			if tc.denied {
				want = stopped(EventDenied, HookFromPod, verdict.PolicyIngress, ask, ask.bytes(t))
			}
			if want.Audit = tc.audit; tc.audit != 0 {
				want.Flags = EventAudit
			}
			r.tells("audited", want.rules(1, 2))
		})
	}
}

// eventService: the real ends, the service and what stands for the client; one record whatever the number of entries.
func (r *rig) eventService(f family) {
	t := r.t.(*testing.T)
	vip, pod, outside := at(f.world.Next(), 80), at(f.podA, 40000), at(f.world, 40000)
	serve := func(r *rig, backend netip.AddrPort, flags ServiceFlags) skb {
		r.enforce(policyRows{pods: map[netip.Addr]uint64{f.podA: 0, f.podB: 0}}) // both behind one device
		r.serve(setID, front{at: vip, proto: protoTCP, flags: flags, backends: []netip.AddrPort{backend}})
		return skb{proto: protoTCP, tcp: "S", payload: []byte("hello there")}.to(vip)
	}
	talk := func(r *rig, prog *ebpf.Program, in []byte) uint64 {
		r.run(step{prog: prog, in: in})
		return uint64(len(in) - 14)
	}
	for _, tc := range []struct {
		name     string
		from, to netip.AddrPort
		ask, ans func(*rig, skb) (*ebpf.Program, []byte)
		hook     Hook
		back     Hook
	}{
		{"pod to pod here", pod, at(f.podB, 8080), byPod, byPod, HookFromPod, HookFromPod},
		{"pod to pod elsewhere", pod, at(f.nativePod, 8080), byPod, byNet, HookFromPod, HookFromNet},
		{"outside to pod here", outside, at(f.podA, 8080), byNet, byPod, HookFromNet, HookFromPod},
	} {
		r.each(f.name+" "+tc.name, func(r *rig) {
			ask := serve(r, tc.to, ServiceLoadBalancer).from(tc.from)
			answer := ask.to(tc.to).reverse()
			prog, frame := tc.ask(r, ask)
			size := talk(r, prog, frame)
			new := begun(tc.hook, tc.from, tc.to).front(vip)
			r.tells("first packet", new)
			for _, s := range []string{"SA", "A", "RA"} {
				prog, frame = tc.ans(r, answer.flag(s))
				talk(r, prog, frame)
			}
			r.tells("reset by the backend", new.ended(tc.back, EventAnswer, 0x14, [2]uint64{1, 3}, [2]uint64{size, 3 * size}))
		})
	}
	r.each(f.name+" hairpin", func(r *rig) {
		ask := serve(r, at(f.podA, 8080), ServiceClusterIP).from(pod)
		talk(r, r.objs.StraitFromPod, ask.bytes(t))
		r.tells("first packet", begun(HookFromPod, pod, at(f.podA, 8080)).front(vip))
	})
	r.each(f.name+" outside to pod elsewhere", func(r *rig) {
		ask := serve(r, at(f.nativePod, 8080), ServiceLoadBalancer).from(outside)
		size := talk(r, r.objs.StraitFromNet, r.fromNet(ask))
		e := r.connection(outside, vip, protoTCP)
		new := begun(HookFromNet, outside, at(f.nativePod, 8080)).front(vip).nat(at(f.node, NetPort(e.NatPort)))
		r.tells("first packet", new)
		back := skb{proto: protoTCP, tcp: "RA", payload: []byte("hello there")}.from(at(f.nativePod, 8080)).to(at(f.node, NetPort(e.NatPort)))
		talk(r, r.objs.StraitFromNet, r.fromNet(back))
		r.tells("reset by the backend", new.ended(HookFromNet, EventAnswer, 0x14, [2]uint64{1, 1}, [2]uint64{size, size}))
	})
	r.each(f.name+" answered directly", func(r *rig) {
		ask := serve(r, at(f.nativePod, 8080), ServiceLoadBalancer|ServiceDSR).from(outside)
		size := talk(r, r.objs.StraitFromNet, r.fromNet(ask))
		new := begun(HookFromNet, outside, at(f.nativePod, 8080)).front(vip)
		r.tells("first packet", new)
		talk(r, r.objs.StraitFromNet, r.fromNet(ask.flag("FA")))
		r.tells("the end that is seen here", new.ended(HookFromNet, 0, 0x11, [2]uint64{2, 0}, [2]uint64{2 * size, 0}))
		talk(r, r.objs.StraitFromNet, r.fromNet(ask.flag("RA")))
		r.tells("once")
	})
	r.each(f.name+" denied", func(r *rig) {
		ask := serve(r, at(f.podB, 8080), ServiceClusterIP).from(pod)
		r.guard(f, in(policyB, identityOther))
		talk(r, r.objs.StraitFromPod, ask.bytes(t))
		r.tells("denied", stopped(EventDenied, HookFromPod, verdict.PolicyIngress, ask.to(at(f.podB, 8080)), ask.bytes(t)).front(vip).rules(ruleOther, ruleB+ruleRow))
	})
	r.each(f.name+" without backends", func(r *rig) {
		ask := serve(r, at(f.podB, 8080), ServiceClusterIP|ServiceSources).from(pod)
		talk(r, r.objs.StraitFromPod, ask.bytes(t))
		r.tells("not in the ranges", stopped(EventDropped, HookFromPod, verdict.SourceRange, ask, ask.bytes(t)))
	})
}

// eventMasquerade: what stands for a pod outside is told, also when the connection is remembered again by its answer.
func (r *rig) eventMasquerade(f family) {
	t := r.t.(*testing.T)
	r.each(f.name, func(r *rig) {
		r.enforce(policyRows{})
		pod, outside := at(f.podA, 40000), at(f.world, 443)
		ask := skb{proto: protoTCP, tcp: "S", payload: []byte("hello there")}.from(pod).to(outside)
		r.sends(send{"ask", r.objs.StraitFromPod, ask.bytes(t), verdict.ToWorldMasqueraded}, send{"more", r.objs.StraitFromPod, ask.flag("A").bytes(t), verdict.ToWorldMasqueraded})
		port := NetPort(r.connection(pod, outside, protoTCP).NatPort)
		new := begun(HookFromPod, pod, outside).nat(at(f.node, port))
		r.tells("first packet", new)
		r.empty(r.objs.StraitCt)
		back := skb{proto: protoTCP, tcp: "A", payload: []byte("hello there")}.from(outside).to(at(f.node, port))
		r.sends(send{"answer", r.objs.StraitFromNet, r.fromNet(back), verdict.ToLocalPod})
		again := new
		again.Hook, again.Flags, again.TCPFlags = HookFromNet, EventAnswer, 0x10
		r.tells("remembered", again)
		r.sends(send{"reset", r.objs.StraitFromNet, r.fromNet(back.flag("R")), verdict.ToLocalPod})
		size := uint64(len(back.bytes(t)) - 14)
		r.tells("reset", again.ended(HookFromNet, EventAnswer, 4, [2]uint64{0, 2}, [2]uint64{0, 2 * size}))
	})
}

// eventDropped: what is lost for other reasons is told with what the packet says, however little that is.
func (r *rig) eventDropped(f family) {
	t := r.t.(*testing.T)
	r.enforce(policyRows{})
	pod := at(f.podA, 40000)
	ask := skb{proto: protoUDP, payload: []byte("hello")}.from(pod).to(at(f.podB, 53))
	icmp := skb{proto: layers.IPProtocol(f.icmpProto()), src: f.podA, dst: f.podB}
	icmp.l4 = f.unreachable(t, f.podA, f.podB, ask.l3(t))
	late := ask
	late.frag = frag{id: 9, offset: 5}
	malformed := ask.bytes(t)
	malformed[14] = 0
	named := func(kind EventKind, hook Hook, why verdict.Reason, s skb, frame []byte, change func(*record)) record {
		e := stopped(kind, hook, why, s, frame)
		change(&e)
		return e
	}
	for _, tc := range []struct {
		name string
		prog *ebpf.Program
		in   []byte
		want record
	}{
		{"spoofed", r.objs.StraitFromPod, ask.from(at(f.world, 1)).bytes(t), stopped(EventDropped, HookFromPod, verdict.SpoofedSource, ask.from(at(f.world, 1)), ask.bytes(t))},
		{"spoofed from the network", r.objs.StraitFromNet, r.fromNet(ask), stopped(EventDropped, HookFromNet, verdict.SpoofedSource, ask, ask.bytes(t))},
		{"no such pod", r.objs.StraitToPod, ask.to(at(f.gone, 1)).bytes(t), stopped(EventDropped, HookToPod, verdict.NoEndpoint, ask.to(at(f.gone, 1)), ask.bytes(t))},
		{"multicast", r.objs.StraitFromPod, ask.to(at(f.multicast, 5)).bytes(t), stopped(EventDropped, HookFromPod, verdict.Multicast, ask.to(at(f.multicast, 5)), ask.bytes(t))},
		{"housekeeping", r.objs.StraitFromPod, ask.to(at(f.housekeeping, 5)).bytes(t), record{}},
		{"fragment", r.objs.StraitFromPod, late.bytes(t), named(EventDropped, HookFromPod, verdict.FragmentUnknown, late, late.bytes(t), func(e *record) {
			e.Src, e.Dst = at(f.podA, 0), at(f.podB, 0)
		})},
		{"not of a tunnel", r.objs.StraitToVx, ask.to(at(f.nativePod, 1)).bytes(t), stopped(EventDropped, HookToVX, verdict.NoTunnelEndpoint, ask.to(at(f.nativePod, 1)), ask.bytes(t))},
		{"error about nothing", r.objs.StraitFromPod, icmp.bytes(t), named(EventDropped, HookFromPod, verdict.UnrelatedIcmp, icmp, icmp.bytes(t), func(e *record) {
			e.ICMP = map[bool]uint16{false: 3<<8 | 3, true: 1<<8 | 4}[f.v6]
		})},
		{"malformed", r.objs.StraitFromPod, malformed, record{Kind: EventDropped, Hook: HookFromPod, Reason: verdict.Malformed, Packets: [2]uint64{1}, Bytes: [2]uint64{uint64(len(malformed) - 14)}}},
		{"neither IPv4 nor IPv6", r.objs.StraitFromPod, append(append(append([]byte{}, ask.bytes(t)[:12]...), 0x88, 0xcc), ask.bytes(t)[14:]...),
			named(EventDropped, HookFromPod, verdict.UnsupportedL2, ask, ask.bytes(t), func(e *record) { e.Src, e.Dst, e.Proto = netip.AddrPort{}, netip.AddrPort{}, 0 })},
	} {
		t.Run(f.name+" "+tc.name, func(t *testing.T) {
			one := *r
			one.t = t
			one.run(step{what: tc.name, prog: tc.prog, in: tc.in})
			if tc.want == (record{}) {
				one.tells(tc.name)
				return
			}
			one.tells(tc.name, tc.want)
		})
	}
}

// eventRepeats: the same is told once in a second; the next record stands for what came between.
func (r *rig) eventRepeats(f family) {
	t := r.t.(*testing.T)
	r.each(f.name, func(r *rig) {
		r.guard(f, out(policyA, identityOther))
		ask := skb{proto: protoTCP, tcp: "S", payload: []byte("hello there")}.from(at(f.podA, 40000)).to(at(f.podB, 80))
		try := func(s skb) { r.run(step{prog: r.objs.StraitFromPod, in: s.bytes(t)}) }
		no := stopped(EventDenied, HookFromPod, verdict.PolicyEgress, ask, ask.bytes(t)).rules(ruleRow, 0)
		for range 5 {
			try(ask)
		}
		last := ask.from(at(f.podA, 40001))
		last.payload = []byte("hello there, you")
		try(last)
		r.tells("repeated", no)
		held := rows[MutedKey, Muted](r, r.objs.StraitMuted)
		if len(held) != 1 {
			r.t.Fatalf("%d repeats held back, want one", len(held))
		}
		size := no.Bytes[0]
		want := Muted{Told: held[0].Told, Packets: 5, Bytes: 5*size + 5, Sport: NetPort(40001), Hook: HookFromPod, RuleOut: ruleRow}
		if held[0] != want {
			r.t.Errorf("held back %+v, want %+v", held[0], want)
		}
		for _, other := range []skb{ask.to(at(f.podB, 81)), ask.to(at(f.world, 80))} {
			try(other)
			e := stopped(EventDenied, HookFromPod, verdict.PolicyEgress, other, other.bytes(t)).rules(ruleRow, 0)
			r.tells("another destination", e)
		}
		key := MutedKey{Src: AddrFrom(f.podA), Dst: AddrFrom(f.podB), Dport: NetPort(80), Proto: uint8(protoTCP), Reason: DatapathReason(verdict.PolicyEgress)}
		change(t, r.objs.StraitMuted, key, func(m *Muted) { m.Told -= uint64(time.Second) })
		try(ask)
		no.Packets[0], no.Bytes[0] = 6, 6*size+5
		r.tells("a second later", no)
		try(ask)
		r.tells("repeated again")
	})
}

// TestEventOverload: a flood from random sources: all that was lost is what was told, held back or counted as not told, and denials get the most.
func TestEventOverload(t *testing.T) {
	const ring, packets = 1 << 16, 12000
	r := newRigWith(t, NetworkFlat, func(s *ebpf.CollectionSpec, r *rig) {
		r.set(s, DatapathVarCfgServices, ServicesOn)
		r.set(s, DatapathVarCfgEvents, true)
		s.Maps[DatapathMapStraitEvents].MaxEntries = ring
		s.Maps[DatapathMapStraitMuted].MaxEntries = 512
	})
	random := rand.New(rand.NewPCG(1, 2))
	f := families()[0]
	r.enforce(policyRows{policies: everything(policyA, ruleOther), pods: map[netip.Addr]uint64{f.podA: policyA}})
	r.put(policyA, identityOther, PolicyIngress, denied(ruleRow))
	ask := skb{proto: protoTCP, tcp: "S", payload: []byte("hello there")}
	began := uint64(0)
	for i := range packets {
		src := netip.AddrFrom4([4]byte{203, 0, byte(random.Uint32() & 0x3), byte(random.Uint32())})
		s := ask.from(at(src, uint16(i))).to(at(f.podA, 80)) // denied
		prog := r.objs.StraitFromNet
		switch i % 3 {
		case 1: // no such source here
			s, prog = ask.from(at(src, uint16(i))).to(at(f.podB, 80)), r.objs.StraitFromPod
		case 2:
			s = ask.from(at(src, uint16(i))).to(at(f.podB, uint16(i)))
			began++
		}
		in := s.bytes(t)
		if prog == r.objs.StraitFromNet {
			in = r.fromNet(s)
		}
		r.run(step{prog: prog, in: in})
	}
	sum := map[EventKind]Counter{}
	records := map[EventKind]uint64{}
	add := func(k EventKind, n, bytes uint64) {
		c := sum[k]
		sum[k] = Counter{Packets: c.Packets + n, Bytes: c.Bytes + bytes}
	}
	for _, e := range r.records() {
		records[e.Kind]++
		if e.Kind == EventNew {
			add(e.Kind, 1, 0)
		} else {
			add(e.Kind, e.Packets[0], e.Bytes[0])
		}
	}
	it := r.objs.StraitMuted.Iterate()
	for k, m := (MutedKey{}), (Muted{}); it.Next(&k, &m); {
		if verdict.Reason(k.Reason) == verdict.PolicyIngress {
			add(EventDenied, m.Packets, m.Bytes)
		} else {
			add(EventDropped, m.Packets, m.Bytes)
		}
	}
	r.check(it.Err())
	lost := map[EventKind]Lost{}
	for kind := EventKind(0); kind < EventKinds; kind++ {
		var each []Lost
		r.check(r.objs.StraitLost.Lookup(kind, &each))
		var all Lost
		for _, c := range each {
			all.Records, all.Packets, all.Bytes = all.Records+c.Records, all.Packets+c.Packets, all.Bytes+c.Bytes
		}
		if lost[kind] = all; kind == EventNew {
			add(kind, all.Records, 0)
		} else {
			add(kind, all.Packets, all.Bytes)
		}
	}
	for kind, reason := range map[EventKind]verdict.Reason{EventDenied: verdict.PolicyIngress, EventDropped: verdict.SpoofedSource} {
		var want Counter
		var each []Counter
		r.check(r.objs.StraitCounter.Lookup(uint32(reason), &each))
		for _, c := range each {
			want.Packets, want.Bytes = want.Packets+c.Packets, want.Bytes+c.Bytes
		}
		want.Bytes -= 14 * want.Packets
		if sum[kind] != want {
			t.Errorf("%s: told, held back and lost are %+v, counted %+v", reason, sum[kind], want)
		}
		if lost[kind].Records == 0 {
			t.Errorf("%s: nothing was lost, the flood is too small", reason)
		}
	}
	if sum[EventNew].Packets != began {
		t.Errorf("%d connections told or lost, %d began", sum[EventNew].Packets, began)
	}
	if records[EventDenied] < records[EventDropped] || records[EventDropped] < 10 || records[EventNew] < 10 {
		t.Errorf("records %v, want some of each and denials most", records)
	}
	t.Logf("records %v, lost %+v", records, lost)
}

// TestEventsOff: nothing is told to nobody.
func TestEventsOff(t *testing.T) {
	for _, f := range families() {
		r := newServiceRig(t, NetworkIsland)
		r.guard(f, out(policyA, foe))
		ask := skb{proto: protoTCP, tcp: "S", payload: []byte("hello there")}.from(at(f.podA, 40000)).to(at(f.podB, 80))
		r.sends(send{"new", r.objs.StraitFromPod, ask.bytes(t), verdict.ToLocalPod}, send{"reset", r.objs.StraitFromPod, ask.flag("R").bytes(t), verdict.ToLocalPod},
			send{"denied", r.objs.StraitFromPod, ask.to(at(f.world, 80)).bytes(t), verdict.PolicyEgress},
			send{"lost", r.objs.StraitFromPod, ask.from(at(f.world, 80)).bytes(t), verdict.SpoofedSource})
		r.tells(f.name)
		if n := r.entries(r.objs.StraitMuted); n != 0 {
			t.Errorf("%s: %d repeats held back", f.name, n)
		}
	}
}

// BenchmarkFirst gives the time in the kernel of a packet that begins a connection or is denied, with and without records, one at a time.
func BenchmarkFirst(b *testing.B) {
	f := families()[0]
	for _, events := range []bool{false, true} {
		r := newRigWith(b, NetworkIsland, func(s *ebpf.CollectionSpec, r *rig) {
			r.set(s, DatapathVarCfgServices, ServicesOn)
			r.set(s, DatapathVarCfgEvents, events)
			s.Maps[DatapathMapStraitCt].MaxEntries = 1 << 18
			s.Maps[DatapathMapStraitMuted].MaxEntries = 1 << 18
		})
		r.guard(f, out(policyA, foe))
		r.check(r.objs.StraitEndpoint.Put(AddrFrom(f.podA), Endpoint{Ifindex: 1, Policy: policyA})) // such runs come in by the loopback device
		reader, err := ringbuf.NewReader(r.objs.StraitEvents)
		r.check(err)
		b.Cleanup(func() { reader.Close() })
		for _, tc := range []struct {
			name string
			to   netip.Addr
			port func(i int) uint16
			act  uint32
		}{
			{"known", f.podB, func(int) uint16 { return 1 }, actRedirect},
			{"new", f.podB, func(i int) uint16 { return uint16(2 + i) }, actRedirect},
			{"denied, told", f.world, func(i int) uint16 { return uint16(2 + i) }, actShot},
			{"denied, held back", f.world, func(int) uint16 { return 1 }, actShot},
		} {
			b.Run(fmt.Sprintf("%s, events %v", tc.name, events), func(b *testing.B) {
				var took []time.Duration
				for i := 0; b.Loop(); i++ {
					s := skb{proto: protoTCP, tcp: "S", payload: []byte("hello there")}.from(at(f.podA, 40000+uint16(i>>16))).to(at(tc.to, tc.port(i)))
					act, d, err := r.objs.StraitFromPod.Benchmark(s.bytes(b), 1, nil)
					if err != nil || act != tc.act {
						b.Fatalf("verdict %d, want %d: %v", int32(act), int32(tc.act), err)
					}
					took = append(took, d)
					if i%1000 == 999 {
						reader.SetDeadline(time.Unix(1, 0))
						for _, err := reader.Read(); err == nil; _, err = reader.Read() {
						}
					}
				}
				slices.Sort(took)
				b.ReportMetric(float64(took[len(took)/2].Nanoseconds()), "ns/packet") // the median: some were interrupted
				b.ReportMetric(0, "ns/op")
			})
		}
	}
}
