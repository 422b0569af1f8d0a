package attach

import (
	"testing"

	"github.com/strait-net/strait/internal/config"
	"github.com/strait-net/strait/internal/datapath/load"
	"github.com/strait-net/strait/internal/datapath/maps"
	"github.com/strait-net/strait/internal/datapath/netdev"
	"github.com/strait-net/strait/internal/datapath/nstest"
	"github.com/strait-net/strait/internal/datapath/pin"
)

// All that ADD asks of the kernel, and of that the part for the programs.
func BenchmarkAdd(b *testing.B) {
	path := nstest.NetNS(b)
	tree, _, err := pin.Prepare(nstest.BPFFS(b, 0))
	if err != nil {
		b.Fatal(err)
	}
	spec, err := maps.Spec(config.Maps{Conntrack: 1024, NAT: 1024, Services: 1024, Backends: 1024, IPCache: 1024})
	if err != nil {
		b.Fatal(err)
	}
	m, err := maps.Open(tree, spec)
	if err != nil {
		b.Fatal(err)
	}
	defer m.Close()
	programs, err := load.Load(spec, m, load.Config{Network: config.Flat, MasqueradeLo: 10000, MasqueradeHi: 19999, TCX: true})
	if err != nil {
		b.Fatal(err)
	}
	defer programs.Close()
	nstest.In(b, "", func() {
		n, err := netdev.Open()
		if err != nil {
			b.Fatal(err)
		}
		defer n.Close()
		a := New(tree, n, programs, true)
		p := pod(path, 1)
		add := func() {
			index, err := n.AddPod(p)
			if err == nil {
				err = a.AttachPod(p.Device, index)
			}
			if err == nil {
				err = m.PutEndpoint(maps.Endpoint{Address: p.Addresses[0], Index: uint32(index), PodMAC: p.PodMAC, HostMAC: p.HostMAC})
			}
			if err != nil {
				b.Fatal(err)
			}
		}
		b.Run("add", func(b *testing.B) {
			for b.Loop() {
				add()
				b.StopTimer()
				if err := n.DeleteDevice(p.Device); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
		})
		b.Run("replace programs", func(b *testing.B) {
			add()
			for b.Loop() {
				if err := a.AttachPod(p.Device, 0); err != nil {
					b.Fatal(err)
				}
			}
			if err := n.DeleteDevice(p.Device); err != nil {
				b.Fatal(err)
			}
		})
	})
}
