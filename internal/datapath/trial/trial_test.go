package trial

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/strait-net/strait/internal/bpf"
	"github.com/strait-net/strait/internal/config"
	"github.com/strait-net/strait/internal/datapath/load"
	"github.com/strait-net/strait/internal/datapath/maps"
	"github.com/strait-net/strait/internal/datapath/nstest"
	"github.com/strait-net/strait/internal/datapath/pin"
	"github.com/strait-net/strait/internal/verdict"
)

func TestMain(m *testing.M) { nstest.Main(m) }

func TestFramesAreRightAndReadBack(t *testing.T) {
	for _, c := range []struct {
		src, dst string
		protocol uint8
		answer   bool
		size     int
		front    string
	}{
		{"10.1.0.2:4000", "10.2.0.2:80", unix.IPPROTO_TCP, false, 0, ""},
		{"10.1.0.2:4000", "10.2.0.2:80", unix.IPPROTO_TCP, true, 1450, ""},
		{"10.1.0.2:4000", "10.2.0.2:80", unix.IPPROTO_TCP, false, 900, "10.96.0.1:8000"},
		{"[fd00::1]:4000", "[fd00::2]:53", unix.IPPROTO_UDP, false, 0, "[fd96::1]:8000"},
		{"[fd00::1]:4000", "[fd00::2]:53", unix.IPPROTO_UDP, false, 101, ""},
		{"10.1.0.2:4000", "10.2.0.2:53", unix.IPPROTO_UDP, false, 0, ""},
		{"10.1.0.2:7", "10.2.0.2:7", unix.IPPROTO_ICMP, false, 84, ""},
		{"[fd00::1]:7", "[fd00::2]:7", unix.IPPROTO_ICMPV6, true, 0, ""},
		{"10.1.0.2:4000", "10.2.0.2:5000", unix.IPPROTO_SCTP, true, 0, ""},
	} {
		p := Packet{Source: netip.MustParseAddrPort(c.src), Target: netip.MustParseAddrPort(c.dst), Protocol: c.protocol, Answer: c.answer, Size: c.size, TTL: 9,
			To: net.HardwareAddr{2, 0, 0, 0, 0, 1}, From: net.HardwareAddr{2, 0, 0, 0, 0, 2}}
		if c.front != "" {
			p.Front = netip.MustParseAddrPort(c.front)
		}
		frame, err := p.Frame()
		if err != nil {
			t.Fatal(err)
		}
		back, err := Read(frame)
		p.Size = p.Length()
		if got, want := fmt.Sprint(back), fmt.Sprint(p); err != nil || got != want {
			t.Errorf("read back %s, %v, want %s", got, err, want)
		}
		parsed := gopacket.NewPacket(frame, layers.LayerTypeEthernet, gopacket.Default)
		if bad := parsed.ErrorLayer(); bad != nil {
			t.Errorf("%v: %v", p, bad.Error())
		}
		if l4, ok := parsed.TransportLayer().(interface {
			SetNetworkLayerForChecksum(gopacket.NetworkLayer) error
		}); ok {
			_ = l4.SetNetworkLayerForChecksum(parsed.NetworkLayer())
		}
		if l4, ok := parsed.Layer(layers.LayerTypeICMPv6).(*layers.ICMPv6); ok {
			_ = l4.SetNetworkLayerForChecksum(parsed.NetworkLayer())
		}
		if err, wrong := parsed.VerifyChecksums(); c.protocol != unix.IPPROTO_SCTP && (err != nil || len(wrong) > 0) {
			t.Errorf("%v: checksums: %v %v", p, err, wrong)
		}
	}
}

type rig struct {
	t       *testing.T
	bench   *Bench
	maps    *maps.Maps
	c       load.Config
	pod, vx int // devices
}

var (
	podA = netip.MustParseAddr("10.1.0.2")
	podB = netip.MustParseAddr("10.1.0.3")
	far  = netip.MustParseAddr("10.2.0.2")
	node = netip.MustParseAddr("192.0.2.20")
)

func newRig(t *testing.T) *rig {
	nstest.Root(t)
	r := &rig{t: t}
	tree, _, err := pin.Prepare(nstest.BPFFS(t, 0))
	r.must(err)
	spec, err := maps.Spec(config.Maps{})
	r.must(err)
	r.maps, err = maps.Open(tree, spec)
	r.must(err)
	t.Cleanup(r.maps.Close)
	for i, name := range []string{"sttrial0", "sttrial1"} {
		r.must(netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: fmt.Sprint("peer", i)}))
		t.Cleanup(func() { _ = netlink.LinkDel(&netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Name: name}}) })
	}
	index := func(name string) int {
		l, err := netlink.LinkByName(name)
		r.must(err)
		return l.Attrs().Index
	}
	r.pod, r.vx = index("sttrial0"), index("sttrial1")
	r.c = load.Config{
		Network: config.Island, VXLANIndex: r.vx, VXLANPort: 8472, PodMTU: 1450, MasqueradeLo: 10000, MasqueradeHi: 29999,
		TCX: load.HaveTCX(), Services: config.ServicesOn, MaglevSize: 16381, SocketLB: true,
	}
	r.must(r.maps.PutEndpoint(maps.Endpoint{Address: podA, Index: uint32(r.pod)}))
	r.must(r.maps.PutEndpoint(maps.Endpoint{Address: podB, Index: 4000}))
	for _, row := range []maps.Remote{
		{Prefix: netip.MustParsePrefix("10.1.0.0/24"), Flags: bpf.RemotePod},
		{Prefix: netip.MustParsePrefix("10.2.0.0/24"), Flags: bpf.RemotePod | bpf.RemoteTunnel, Node: node, NodeID: 1},
		{Prefix: netip.PrefixFrom(node, 32), Flags: bpf.RemoteNode | bpf.RemoteTunnel, Node: node, NodeID: 1},
	} {
		r.must(r.maps.PutRemote(row))
	}
	r.must(r.maps.PutNodeState(maps.NodeState{Revision: 1}))
	r.bench = New(Config{Spec: spec, Live: r.maps.Kernel(), Keep: time.Minute, Sessions: 2})
	t.Cleanup(r.bench.Close)
	return r
}

func (r *rig) must(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

func tcp(src, dst netip.Addr, sport, dport uint16) Packet {
	return Packet{Source: netip.AddrPortFrom(src, sport), Target: netip.AddrPortFrom(dst, dport), Protocol: unix.IPPROTO_TCP}
}

func (r *rig) try(run Run, action Action, reason verdict.Reason) Result {
	r.t.Helper()
	run.Constants = r.c
	out, err := r.bench.Run(run)
	r.must(err)
	if out.Action != action || out.Reason != reason || !out.Counted {
		r.t.Errorf("%s %s to %s: action %d for %s, want %d for %s", run.Program, run.Packet.Source, run.Packet.Target, out.Action, out.Reason, action, reason)
	}
	return out
}

func TestTrial(t *testing.T) {
	r := newRig(t)
	before := r.dump()
	began := time.Now()
	there := Run{Session: "one", Program: bpf.DatapathProgStraitFromPod, Device: r.pod, Packet: tcp(podA, podB, 4000, 80)}
	out := r.try(there, Redirect, verdict.ToLocalPod)
	t.Logf("first trial with loading %v", time.Since(began))
	began = time.Now()
	if len(out.Connections) != 1 || out.Packet.TTL != 63 {
		t.Errorf("%+v, want one connection and a hop", out)
	}
	r.try(Run{Session: "one", Program: bpf.DatapathProgStraitFromPod, Device: r.pod, Packet: tcp(podA, far, 4000, 80)}, Redirect, verdict.ToTunnel)
	t.Logf("second trial %v", time.Since(began))
	spoofed := tcp(podB, podA, 80, 4000)
	r.try(Run{Session: "one", Program: bpf.DatapathProgStraitFromPod, Device: r.pod, Packet: spoofed}, Drop, verdict.SpoofedSource)
	began = time.Now()
	in := Run{Session: "two", Program: bpf.DatapathProgStraitFromVx, Device: r.vx, Sender: node, Packet: tcp(far, podA, 4000, 80)}
	r.try(in, Redirect, verdict.ToLocalPod)
	t.Logf("first trial of another program %v", time.Since(began))
	in.Session, in.Sender = "three", netip.MustParseAddr("192.0.2.99")
	r.try(in, Drop, verdict.TunnelSpoofed)
	in.Sender = netip.MustParseAddr("2001:db8::99")
	r.try(in, Drop, verdict.TunnelSpoofed)
	if after := r.dump(); after != before {
		t.Errorf("live maps have changed:\n%s\nwere\n%s", after, before)
	}
	if len(r.bench.sessions) != 2 {
		t.Errorf("%d sessions are kept, want 2", len(r.bench.sessions))
	}
}

// Services make programs write into rows: turns, loads, the client's choice. All of it is the trial's own.
func TestServicesWriteNothingLive(t *testing.T) {
	r := newRig(t)
	front := netip.MustParseAddrPort("10.96.0.1:80")
	for i, b := range []netip.Addr{podB, far} {
		id := uint32(i + 1)
		r.must(r.maps.PutBackend(id, maps.Backend{AddrPort: netip.AddrPortFrom(b, 8080), Protocol: unix.IPPROTO_TCP, Generation: 1}))
		r.must(r.maps.PutLoad(id))
		r.must(r.maps.PutSlot(maps.Slot{Set: 5, Slot: uint32(i)}, maps.Share{Backend: id}))
	}
	for _, algorithm := range []bpf.Algorithm{bpf.AlgorithmRR, bpf.AlgorithmLC, bpf.AlgorithmRandom} {
		r.must(r.maps.PutService(maps.Frontend{AddrPort: front, Protocol: unix.IPPROTO_TCP}, maps.Service{
			ID: 1, Flags: bpf.ServiceClusterIP | bpf.ServiceAffinity, Affinity: 60, Algorithm: algorithm, Set: 5, Count: 2, OuterSet: 5, OuterCount: 2,
		}))
		before := r.dump()
		session := fmt.Sprint(algorithm)
		p := tcp(podA, front.Addr(), 4000, front.Port())
		first := r.try(Run{Session: session, Program: bpf.DatapathProgStraitFromPod, Device: r.pod, Packet: p}, Redirect, verdict.ToBackend)
		if len(first.Connections) != 2 {
			t.Errorf("%d connections, want that of the service and that of the backend", len(first.Connections))
		}
		for port := range uint16(5) { // the client stays with its backend, in this session
			p.Source = netip.AddrPortFrom(podA, 4001+port)
			if next := r.try(Run{Session: session, Program: bpf.DatapathProgStraitFromPod, Device: r.pod, Packet: p}, Redirect, verdict.ToBackend); next.Packet.Target != first.Packet.Target {
				t.Errorf("connection %d goes to %s, the first to %s", port, next.Packet.Target, first.Packet.Target)
			}
		}
		if after := r.dump(); after != before {
			t.Errorf("live maps have changed:\n%s\nwere\n%s", after, before)
		}
	}
}

// An answer is one only in the session that has seen the question; a known connection is one when it is asked for.
func TestSessionsAndEstablished(t *testing.T) {
	r := newRig(t)
	denied := uint64(77) // policy without any row: nothing may begin
	r.must(r.maps.PutEndpoint(maps.Endpoint{Address: podA, Index: uint32(r.pod), Policy: denied}))
	answer := tcp(far, podA, 80, 4000)
	answer.Answer = true
	in := Run{Session: "s", Program: bpf.DatapathProgStraitFromVx, Device: r.vx, Sender: node, Packet: answer}
	r.try(in, Drop, verdict.PolicyMissing)
	key := connectionKey(answer.Source, answer.Target, unix.IPPROTO_TCP)
	r.must(r.maps.Kernel()[bpf.DatapathMapStraitCt].Put(key, bpf.CtEntry{Flags: 0, PolicyRev: 1}))
	r.try(in, Drop, verdict.PolicyMissing)
	in.Established = true
	out := r.try(in, Redirect, verdict.ToLocalPod)
	if len(out.Connections) != 1 || out.Connections[0].Value.Flags&bpf.CtReplied == 0 {
		t.Errorf("connections %+v, want the known one answered", out.Connections)
	}
	var live bpf.CtEntry
	r.must(r.maps.Kernel()[bpf.DatapathMapStraitCt].Lookup(key, &live))
	if live.Flags != 0 || live.Packets != [2]uint64{} {
		t.Errorf("the live entry has changed: %+v", live)
	}
}

func TestCompare(t *testing.T) {
	r := newRig(t)
	spec, err := maps.Spec(config.Maps{})
	r.must(err)
	loaded, err := load.Load(spec, r.maps, r.c)
	r.must(err)
	defer loaded.Close()
	id := func(name string) uint32 {
		info, err := loaded.Program(name).Info()
		r.must(err)
		n, _ := info.ID()
		return uint32(n)
	}
	check := func(program string, of string, c load.Config, want string) {
		t.Helper()
		got, err := r.bench.Compare(program, id(of), c)
		if err != nil || (want == "") != (got == "") || !strings.Contains(got, want) {
			t.Errorf("%s compared with %s: %q, %v, want %q", program, of, got, err, want)
		}
	}
	check(bpf.DatapathProgStraitToPod, bpf.DatapathProgStraitToPod, r.c, "")
	check(bpf.DatapathProgStraitToPod, bpf.DatapathProgStraitToNet, r.c, "its instructions")
	other := r.c
	other.PodMTU = 1400
	check(bpf.DatapathProgStraitToPod, bpf.DatapathProgStraitToPod, other, "other settings")
}

// dump is everything in all live maps.
func (r *rig) dump() string {
	r.t.Helper()
	var out bytes.Buffer
	for _, name := range []string{
		bpf.DatapathMapStraitEndpoint, bpf.DatapathMapStraitIpcache, bpf.DatapathMapStraitDevice, bpf.DatapathMapStraitCt, bpf.DatapathMapStraitNat,
		bpf.DatapathMapStraitFrag, bpf.DatapathMapStraitService, bpf.DatapathMapStraitSlot, bpf.DatapathMapStraitBackend, bpf.DatapathMapStraitLoad,
		bpf.DatapathMapStraitAffinity, bpf.DatapathMapStraitNetns, bpf.DatapathMapStraitSource, bpf.DatapathMapStraitAnnounce,
		bpf.DatapathMapStraitIdentity, bpf.DatapathMapStraitPolicy, bpf.DatapathMapStraitPort, bpf.DatapathMapStraitNode, bpf.DatapathMapStraitDgram,
		bpf.DatapathMapStraitCounter,
	} {
		m := r.maps.Kernel()[name]
		it := m.Iterate()
		var key []byte
		if m.Type() == ebpf.PerCPUArray {
			var values [][]byte
			for it.Next(&key, &values) {
				fmt.Fprintf(&out, "%s %x %x\n", name, key, values)
			}
		} else {
			var value []byte
			for it.Next(&key, &value) {
				fmt.Fprintf(&out, "%s %x %x\n", name, key, value)
			}
		}
		r.must(it.Err())
	}
	err := r.maps.EachRule(func(c maps.RuleCount) {
		if c.Packets > 0 {
			fmt.Fprintf(&out, "rule %+v\n", c)
		}
	})
	r.must(err)
	return out.String()
}
