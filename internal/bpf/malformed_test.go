package bpf

import (
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/gopacket/gopacket/layers"

	"github.com/strait-net/strait/internal/verdict"
)

// good gives packets of every kind that pod A may send to pod B.
func (f family) good(t testing.TB) map[string]skb {
	icmp := layers.IPProtocol(f.icmpProto())
	inner := skb{src: f.podB, dst: f.podA, proto: protoUDP, sport: 1, dport: 2, payload: []byte("abc")}.l3(t)
	return map[string]skb{
		"TCP":               {src: f.podA, dst: f.podB, proto: protoTCP, sport: 4000, dport: 80, tcp: "S"},
		"UDP":               {src: f.podA, dst: f.podB, proto: protoUDP, sport: 4000, dport: 80, payload: []byte("abcdef")},
		"SCTP":              {src: f.podA, dst: f.podB, proto: protoSCTP, sport: 4000, dport: 80},
		"echo":              {src: f.podA, dst: f.podB, proto: icmp, l4: f.echo(t, f.podA, f.podB, 77, false)},
		"error":             {src: f.podA, dst: f.podB, proto: icmp, l4: f.unreachable(t, f.podA, f.podB, inner)},
		"TCP with options":  {src: f.podA, dst: f.podB, proto: protoTCP, sport: 4000, dport: 80, tcp: "S", options: true},
		"UDP with options":  {src: f.podA, dst: f.podB, proto: protoUDP, sport: 4000, dport: 80, options: true, payload: []byte("abcdef")},
		"UDP first of many": {src: f.podA, dst: f.podB, proto: protoUDP, sport: 4000, dport: 80, frag: frag{id: 5, more: true}, payload: make([]byte, 24)},
	}
}

// TestTruncated cuts good packets at every length: whole they are delivered, short never.
func TestTruncated(t *testing.T) {
	for _, f := range families() {
		r := newRig(t, NetworkFlat)
		for name, s := range f.good(t) {
			t.Run(f.name+" "+name, func(t *testing.T) {
				frame := s.bytes(t)
				r := *r
				r.t = t
				r.do(step{what: "whole", prog: r.objs.StraitFromPod, in: frame, act: actRedirect, reason: verdict.ToLocalPod,
					out: withMACs(s, macPodB, macHostB).hop().bytes(t)})
				for n := 14; n < 14+len(s.l3(t)); n++ { // behind that is padding
					for _, prog := range []*ebpf.Program{r.objs.StraitFromPod, r.objs.StraitFromVx, r.objs.StraitToPod, r.objs.StraitFromNet} {
						act, _, ok := r.try(prog, frame[:n])
						reason := r.reason()
						stack := prog == r.objs.StraitFromNet && act == actStack
						if ok && !stack && (act != actShot || reason != verdict.Malformed) {
							t.Errorf("cut to %d of %d bytes by %s: verdict %d (%s)", n, len(frame), prog, int32(act), reason)
						}
					}
				}
			})
		}
	}
}

// try runs a packet that the kernel may refuse to make an skb of; ok tells.
func (r *rig) try(prog *ebpf.Program, frame []byte) (act uint32, out []byte, ok bool) {
	opts := ebpf.RunOptions{Data: frame, DataOut: make([]byte, len(frame)+256), Context: context{Ifindex: uint32(r.ifindex(prog))}}
	act, err := prog.Run(&opts)
	return act, opts.DataOut, err == nil
}

// TestLyingHeaders: lengths that contradict the packet.
func TestLyingHeaders(t *testing.T) {
	v4, v6 := families()[0], families()[1]
	r := newRig(t, NetworkFlat)
	change := func(s skb, at int, b ...byte) []byte {
		frame := s.bytes(t)
		copy(frame[at:], b)
		return frame
	}
	for name, frame := range map[string][]byte{
		"IPv4 version 5":            change(v4.good(t)["UDP"], 14, 0x55),
		"IPv4 header of 4 words":    change(v4.good(t)["UDP"], 14, 0x44),
		"IPv4 header of 15 words":   change(v4.good(t)["UDP"], 14, 0x4f),
		"IPv4 length 0":             change(v4.good(t)["UDP"], 16, 0, 0),
		"IPv4 length below header":  change(v4.good(t)["UDP"], 16, 0, 19),
		"IPv4 length beyond packet": change(v4.good(t)["UDP"], 16, 0xff, 0xff),
		"TCP header of 4 words":     change(v4.good(t)["TCP"], 14+20+12, 0x40),
		"TCP header beyond packet":  change(v4.good(t)["TCP"], 14+20+12, 0xf0),
		"IPv6 version 4":            change(v6.good(t)["UDP"], 14, 0x40),
		"IPv6 length 0":             change(v6.good(t)["UDP"], 14+4, 0, 0),
		"IPv6 length beyond packet": change(v6.good(t)["UDP"], 14+4, 0xff, 0xff),
		"IPv6 endless extensions":   change(v6.good(t)["UDP with options"], 14+40, 0, 0xff),
		"IPv6 mapped source":        change(v6.good(t)["UDP"], 14+8, append(make([]byte, 10), 0xff, 0xff, 10, 1, 0, 2)...),
		"IPv6 seven extensions":     sevenExtensions(t, v6),
		"IPv4 frame with IPv6 type": change(v4.good(t)["UDP"], 12, 0x86, 0xdd),
		"IPv6 frame with IPv4 type": change(v6.good(t)["UDP"], 12, 0x08, 0x00),
	} {
		r.do(step{what: name, prog: r.objs.StraitFromPod, in: frame, act: actShot, reason: verdict.Malformed})
	}
	// Padding behind the packet is no lie: short frames have it.
	s := v4.good(t)["TCP"]
	pad := make([]byte, 6)
	r.do(step{what: "padded", prog: r.objs.StraitFromPod, in: append(s.bytes(t), pad...), act: actRedirect, reason: verdict.ToLocalPod,
		out: append(withMACs(s, macPodB, macHostB).hop().bytes(t), pad...)})
}

func sevenExtensions(t testing.TB, f family) []byte {
	s := skb{src: f.podA, dst: f.podB, proto: layers.IPProtocolIPv6Destination}
	for range 6 {
		s.l4 = append(s.l4, byte(layers.IPProtocolIPv6Destination), 0, 1, 4, 0, 0, 0, 0)
	}
	s.l4 = append(s.l4, byte(protoUDP), 0, 1, 4, 0, 0, 0, 0, 0, 1, 0, 2, 0, 8, 0, 0)
	return s.bytes(t)
}

// TestRandomBytes throws noise, and good packets with noise in them, at each program. Whatever is delivered must still be what the
// datapath promises: from a pod only under its own address, and never a change of a packet it refuses.
func TestRandomBytes(t *testing.T) {
	r := newRig(t, NetworkIsland)
	rnd := rand.New(rand.NewPCG(1, 2))
	var seeds [][]byte
	for _, f := range families() {
		for _, s := range f.good(t) {
			seeds = append(seeds, s.bytes(t), r.fromNet(s))
		}
		for _, fl := range f.flows(t) {
			seeds = append(seeds, fl.out.bytes(t), r.fromNet(fl.reply))
		}
	}
	slices.SortFunc(seeds, slices.Compare) // maps iterate in any order, failures should repeat
	progs := []*ebpf.Program{r.objs.StraitFromPod, r.objs.StraitToPod, r.objs.StraitFromNet, r.objs.StraitFromVx, r.objs.StraitToVx}
	for i := range 20000 {
		frame := slices.Clone(seeds[rnd.IntN(len(seeds))])
		if i%10 == 0 {
			frame = make([]byte, 14+rnd.IntN(200))
			for j := range frame {
				frame[j] = byte(rnd.Uint32())
			}
		}
		for range rnd.IntN(4) {
			frame[12+rnd.IntN(len(frame)-12)] = byte(rnd.Uint32())
		}
		frame = frame[:14+rnd.IntN(len(frame)-13)]
		prog := progs[i%len(progs)]
		act, out, ok := r.try(prog, frame)
		if !ok {
			continue
		}
		switch act {
		case actStack, actShot:
			if prog != r.objs.StraitToVx && act == actStack && string(out) != string(frame) {
				t.Fatalf("%s changed a packet for the stack:\n%x\n%x", prog, frame, out)
			}
		case actRedirect:
			if prog == r.objs.StraitFromPod && !fromPodA(frame) {
				t.Fatalf("%s carried a packet of a stranger: %x", prog, frame)
			}
		default:
			t.Fatalf("%s: verdict %d on %x", prog, act, frame)
		}
	}
}

func fromPodA(frame []byte) bool {
	for _, f := range families() {
		at, kind := 14+12, []byte{8, 0}
		if f.v6 {
			at, kind = 14+8, []byte{0x86, 0xdd}
		}
		a := f.podA.AsSlice()
		if len(frame) >= at+len(a) && slices.Equal(frame[12:14], kind) && slices.Equal(frame[at:at+len(a)], a) {
			return true
		}
	}
	return false
}
