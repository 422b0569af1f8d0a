package maps

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/strait-net/strait/internal/bpf"
)

func TestTrafficOfBothDirections(t *testing.T) {
	m := open(t)
	backend := netip.MustParseAddrPort("10.244.1.4:8080")
	connection := func(lo, hi string, proto uint8, e bpf.CtEntry) {
		t.Helper()
		l, h := netip.MustParseAddrPort(lo), netip.MustParseAddrPort(hi)
		k := bpf.CtKey{Lo: bpf.AddrFrom(l.Addr()), LoPort: bpf.NetPort(l.Port()), Hi: bpf.AddrFrom(h.Addr()), HiPort: bpf.NetPort(h.Port()), Proto: proto}
		if err := put(m, bpf.DatapathMapStraitCt, k, e); err != nil {
			t.Fatal(err)
		}
	}
	connection("10.0.0.9:40000", "10.244.1.4:8080", 6, bpf.CtEntry{Packets: [2]uint64{10, 7}, Bytes: [2]uint64{1000, 70000}, Flags: bpf.CtReplied})
	connection("10.244.1.4:8080", "10.244.2.1:40000", 6, bpf.CtEntry{Packets: [2]uint64{3, 5}, Bytes: [2]uint64{300, 50}, Flags: bpf.CtHiBegan})
	connection("10.0.0.9:40000", "10.244.1.4:8081", 6, bpf.CtEntry{Packets: [2]uint64{99, 99}})
	connection("10.0.0.9:40000", "10.244.1.4:8080", 17, bpf.CtEntry{Packets: [2]uint64{1, 0}, Bytes: [2]uint64{60, 0}})
	connection("10.0.0.9:40000", "10.96.0.1:80", 6, bpf.CtEntry{Packets: [2]uint64{99, 99}, Flags: bpf.CtService})
	got, err := m.Traffic([]Frontend{{backend, 6}, {backend, 17}, {netip.MustParseAddrPort("10.244.9.9:1"), 6}})
	if err != nil {
		t.Fatal(err)
	}
	want := []Traffic{
		{Connections: 2, ToPackets: 15, ToBytes: 1050, FromPackets: 10, FromBytes: 70300},
		{Connections: 1, ToPackets: 1, ToBytes: 60},
		{},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("traffic (-want +got):\n%s", diff)
	}
}
