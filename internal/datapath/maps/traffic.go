package maps

import (
	"fmt"

	"github.com/strait-net/strait/internal/bpf"
)

// Traffic is what connections with one address and port have carried.
type Traffic struct {
	Connections            int
	ToPackets, ToBytes     uint64 // sent to the address; layer 3
	FromPackets, FromBytes uint64
}

// Traffic sums up the connections that each of ends is an end of. It reads the whole table once.
func (m *Maps) Traffic(ends []Frontend) ([]Traffic, error) {
	out := make([]Traffic, len(ends))
	at := make(map[bpf.SockaddrKey]int, len(ends))
	for i, e := range ends {
		at[bpf.SockaddrKeyFrom(e.AddrPort, e.Protocol)] = i
	}
	ct, err := m.get(bpf.DatapathMapStraitCt)
	if err != nil || len(ends) == 0 {
		return out, err
	}
	count := func(a bpf.Addr, port uint16, k bpf.CtKey, e bpf.CtEntry, from int) {
		if i, ok := at[bpf.SockaddrKey{Addr: a, Port: port, Proto: k.Proto}]; ok {
			t := &out[i]
			t.Connections++
			t.FromPackets, t.FromBytes = t.FromPackets+e.Packets[from], t.FromBytes+e.Bytes[from]
			t.ToPackets, t.ToBytes = t.ToPackets+e.Packets[1-from], t.ToBytes+e.Bytes[1-from]
		}
	}
	err = scan(ct, func(k bpf.CtKey, e bpf.CtEntry) bool {
		count(k.Lo, k.LoPort, k, e, 0)
		count(k.Hi, k.HiPort, k, e, 1)
		return true
	})
	if err != nil {
		return nil, fmt.Errorf("sum up connections: %w", err)
	}
	return out, nil
}
