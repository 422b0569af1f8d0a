package bpf

import (
	"encoding/binary"
	"net/netip"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

//go:generate go tool bpf2go -go-package bpf -cc clang-19 -target bpfel -output-suffix _test -type ask -cflags "-O2 -mcpu=v3 -Wall -Wextra -Werror -Wno-unused-parameter -Wno-unused-function -I../../bpf/include -I../../bpf" Select testdata/select.c

// asker asks the datapath for backends, without sockets or packets.
type asker struct {
	*balancer
	prog *ebpf.Program
}

func (b *balancer) asker(constants ...constant) asker {
	b.t.Helper()
	spec, err := LoadSelect()
	b.check(err)
	for name, m := range b.maps() {
		if want := spec.Maps[name]; want != nil {
			want.MaxEntries = m.MaxEntries()
			want.Pinning = ebpf.PinNone
		}
	}
	spec.Maps[DatapathMapStraitMaglev].InnerMap.Flags |= unix.BPF_F_INNER_MAP
	for _, c := range constants {
		b.check(spec.Variables[c.name].Set(c.value))
	}
	var objs SelectPrograms
	b.check(spec.LoadAndAssign(&objs, &ebpf.CollectionOptions{MapReplacements: b.maps()}))
	b.t.Cleanup(func() { objs.Close() })
	return asker{b, objs.StraitAsk}
}

// asking is who asks.
type asking struct {
	addr  netip.Addr
	hash  uint32
	outer bool
}

// question is what the program reads instead of a packet.
func (a asker) question(front netip.AddrPort, proto uint8, c asking) []byte {
	a.t.Helper()
	in := SelectAsk{Hash: c.hash}
	key := SockaddrKeyFrom(front, proto)
	in.Front.Addr.W, in.Front.Port, in.Front.Proto = key.Addr.W, key.Port, key.Proto
	in.Client.W = AddrFrom(c.addr).W
	if c.outer {
		in.Outer = 1
	}
	packet, err := binary.Append(nil, binary.NativeEndian, in)
	a.check(err)
	return packet
}

// ask gives the id of the backend that a client is sent to, 0 if there is none.
func (a asker) ask(front netip.AddrPort, proto uint8, c asking) uint32 {
	a.t.Helper()
	act, packet, err := a.prog.Test(a.question(front, proto, c))
	a.check(err)
	if act != xdpPass {
		a.t.Fatalf("verdict %d, want %d", act, xdpPass)
	}
	var out SelectAsk
	_, err = binary.Decode(packet, binary.NativeEndian, &out)
	a.check(err)
	return out.Backend
}

const xdpPass = 2

// table gives a set its maglev table of backend ids.
func (b *balancer) table(set uint32, ids []uint32) {
	b.t.Helper()
	inner, err := ebpf.NewMap(&ebpf.MapSpec{
		Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: uint32(len(ids)), Flags: unix.BPF_F_INNER_MAP,
	})
	b.check(err)
	defer inner.Close()
	for i, id := range ids {
		b.check(inner.Put(uint32(i), id))
	}
	b.check(b.objs.StraitMaglev.Put(set, inner))
}
