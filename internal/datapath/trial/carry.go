package trial

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
)

// carrier is a program that gives a packet the tunnel's metadata and goes on with another program. A test run cannot set them. What a program
// sets is meant for sending, but the kernel keeps one struct for both ways, and the field of the local address, by which a sender says who it
// is, is where a receiver finds the remote one (net/core/filter.c, bpf_skb_get_tunnel_key; the local address since Linux 6.0).
type carrier struct {
	program *ebpf.Program
	next    *ebpf.Map
}

func (c *carrier) close() {
	_ = c.program.Close()
	_ = c.next.Close()
}

const (
	tunnelID    = 1  // ENCAP_VNI
	tunnelKey   = 44 // size of struct bpf_tunnel_key
	keyTTL      = 21 // offsets in it
	keyLocal    = 28
	keyAt       = -48 // on the stack
	flagIPv6    = 1   // BPF_F_TUNINFO_IPV6
	notCarried  = 100 // verdicts that no program gives
	notExecuted = 101
)

func carry(program *ebpf.Program, kind ebpf.AttachType, sender netip.Addr) (*carrier, error) {
	key := make([]byte, -keyAt)
	binary.NativeEndian.PutUint32(key, tunnelID)
	key[keyTTL] = 64
	flags := int64(0)
	if sender = sender.Unmap(); sender.Is4() { // in host order
		binary.NativeEndian.PutUint32(key[keyLocal:], binary.BigEndian.Uint32(sender.AsSlice()))
	} else {
		copy(key[keyLocal:], sender.AsSlice())
		flags = flagIPv6
	}
	next, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.ProgramArray, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	if err != nil {
		return nil, fmt.Errorf("make table of programs: %w", err)
	}
	code := asm.Instructions{asm.Mov.Reg(asm.R6, asm.R1)}
	for i := 0; i < len(key); i += 4 {
		code = append(code, asm.StoreImm(asm.RFP, int16(keyAt+i), int64(int32(binary.NativeEndian.Uint32(key[i:]))), asm.Word))
	}
	code = append(code,
		asm.Mov.Reg(asm.R1, asm.R6),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, keyAt),
		asm.Mov.Imm(asm.R3, tunnelKey),
		asm.Mov.Imm(asm.R4, int32(flags)),
		asm.FnSkbSetTunnelKey.Call(),
		asm.JEq.Imm(asm.R0, 0, "carried"),
		asm.Mov.Imm(asm.R0, notCarried),
		asm.Return(),
		asm.Mov.Reg(asm.R1, asm.R6).WithSymbol("carried"),
		asm.LoadMapPtr(asm.R2, next.FD()),
		asm.Mov.Imm(asm.R3, 0),
		asm.FnTailCall.Call(),
		asm.Mov.Imm(asm.R0, notExecuted),
		asm.Return(),
	)
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "strait_carry", Type: ebpf.SchedCLS, AttachType: kind, License: "Dual BSD/GPL", Instructions: code,
	})
	if err != nil {
		_ = next.Close()
		return nil, fmt.Errorf("load the program that stands for the tunnel: %w", err)
	}
	c := &carrier{program: p, next: next}
	if err := next.Put(uint32(0), program); err != nil {
		c.close()
		return nil, fmt.Errorf("lead to the program behind the tunnel: %w", err)
	}
	return c, nil
}
