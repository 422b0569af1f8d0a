package maps

import (
	"encoding/binary"
	"errors"
	"fmt"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"

	"github.com/strait-net/strait/internal/bpf"
)

// loads sets strait_load.tracked of every backend to what the sweep has counted: entries that were pushed out of a full table or swept
// have never been taken off.
func (s *sweep) loads() error {
	wrong := map[uint32]uint32{}
	if err := each(s.Maps, bpf.DatapathMapStraitLoad, func(id uint32, l bpf.Load) {
		if n := s.tracked[id]; n != l.Tracked {
			wrong[id] = n
		}
	}); err != nil {
		return err
	}
	if len(wrong) == 0 {
		return nil
	}
	load, err := s.get(bpf.DatapathMapStraitLoad)
	if err != nil {
		return err
	}
	set, err := trackedSetter(load)
	if err != nil {
		return err
	}
	defer set.Close()
	var errs []error
	for id, n := range wrong {
		errs = append(errs, setTracked(set, id, n))
	}
	s.found.Loads = len(wrong)
	return errors.Join(errs...)
}

// trackedSetter returns a program of kind syscall that writes one counter of a row in place. A write by bpf(2) would replace the row, and
// with it what programs count in the others meanwhile.
func trackedSetter(load *ebpf.Map) (*ebpf.Program, error) {
	const wordOfID, wordOfCount = 0, 4 // in the context
	tracked := int16(unsafe.Offsetof(bpf.Load{}.Tracked))
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "strait_tracked", Type: ebpf.Syscall, Flags: sleepable, License: "Dual BSD/GPL",
		Instructions: asm.Instructions{
			asm.Mov.Reg(asm.R6, asm.R1),
			asm.LoadMem(asm.R2, asm.R6, wordOfID, asm.Word),
			asm.StoreMem(asm.RFP, -4, asm.R2, asm.Word),
			asm.LoadMapPtr(asm.R1, load.FD()),
			asm.Mov.Reg(asm.R2, asm.RFP),
			asm.Add.Imm(asm.R2, -4),
			asm.FnMapLookupElem.Call(),
			asm.JEq.Imm(asm.R0, 0, "out"),
			asm.LoadMem(asm.R1, asm.R6, wordOfCount, asm.Word),
			asm.StoreMem(asm.R0, tracked, asm.R1, asm.Word),
			asm.Mov.Imm(asm.R0, 0).WithSymbol("out"),
			asm.Return(),
		},
	})
	if err != nil {
		return nil, fmt.Errorf("load the program that sets connection counts right: %w", err)
	}
	return p, nil
}

// sleepable is BPF_F_SLEEPABLE, which programs of kind syscall must carry.
const sleepable = 1 << 4

func setTracked(set *ebpf.Program, backend, n uint32) error {
	var args [8]byte
	binary.NativeEndian.PutUint32(args[0:], backend)
	binary.NativeEndian.PutUint32(args[4:], n)
	if _, err := set.Run(&ebpf.RunOptions{Context: args[:]}); err != nil {
		return fmt.Errorf("set tracked connections of backend %d: %w", backend, err)
	}
	return nil
}
