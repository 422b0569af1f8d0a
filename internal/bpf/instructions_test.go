package bpf

import (
	"flag"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

var update = flag.Bool("update", false, "write golden files instead of comparing")

// TestInstructions holds the size of each program and the stack of its deepest chain of calls against a golden file, so that growth shows in
// review. What the verifier walks through differs between kernels: that column counts only on the kernel series the file was written on.
func TestInstructions(t *testing.T) {
	needRoot(t)
	const golden = "testdata/instructions.golden"
	series := kernelSeries(t)
	var b strings.Builder
	fmt.Fprintf(&b, "# program, instructions, bytes of stack, frames, instructions walked by the verifier of Linux %s\n", series)
	spec := privateSpec(t)
	for _, name := range slices.Sorted(maps.Keys(spec.Programs)) {
		deepest := chain(functions(spec.Programs[name].Instructions), name)
		if deepest.stack > stackLimit || deepest.frames > frameLimit {
			t.Errorf("%s: %d bytes of stack in %d frames, %d in %d are allowed", name, deepest.stack, deepest.frames, stackLimit, frameLimit)
		}
		fmt.Fprintf(&b, "%-15s %5d %3d %d %6d\n", name, len(spec.Programs[name].Instructions), deepest.stack, deepest.frames, verified(t, spec, name))
	}
	got := b.String()
	if *update {
		if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	raw, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	want := string(raw)
	if !strings.HasPrefix(want, got[:strings.Index(got, "\n")+1]) {
		want, got = withoutVerified(want), withoutVerified(got)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("sizes changed; if that is meant, run this test with -update (-golden +now):\n%s", diff)
	}
}

func kernelSeries(t *testing.T) string {
	t.Helper()
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		t.Fatal(err)
	}
	parts := strings.SplitN(unix.ByteSliceToString(u.Release[:]), ".", 3)
	return strings.Join(parts[:2], ".")
}

// verified loads one program alone and asks the kernel how much it walked through.
func verified(t *testing.T, spec *ebpf.CollectionSpec, name string) uint32 {
	t.Helper()
	one := spec.Copy()
	for name, value := range map[string]any{ // else the verifier would leave out what they switch
		DatapathVarCfgServices: ServicesOn, DatapathVarCfgMaglevSize: uint32(16381),
		DatapathVarCfgEvents: true, DatapathVarCfgNodePortMin: uint16(30000), DatapathVarCfgNodePortMax: uint16(32767), DatapathVarCfgGuardMark: uint32(1),
	} {
		if err := one.Variables[name].Set(value); err != nil {
			t.Fatal(err)
		}
	}
	maps.DeleteFunc(one.Programs, func(n string, _ *ebpf.ProgramSpec) bool { return n != name })
	coll, err := ebpf.NewCollection(one)
	if err != nil {
		t.Fatal(err)
	}
	defer coll.Close()
	info, err := coll.Programs[name].Info()
	if err != nil {
		t.Fatal(err)
	}
	n, _ := info.VerifiedInstructions()
	return n
}

// What a kernel allows to a program. Older ones round each frame up to 32 bytes, newer ones to 16.
const (
	stackLimit = 512
	frameLimit = 8
	frameUnit  = 32
)

// subprogram is a function of a program: the stack it uses itself, and whom it calls.
type subprogram struct {
	stack int
	calls map[string]bool
}

// functions reads the stack that each function uses from how far below its frame pointer it reaches.
func functions(ins asm.Instructions) map[string]*subprogram {
	all := map[string]*subprogram{}
	var f *subprogram
	var frameAt [asm.R10 + 1]bool // the register holds the frame pointer
	for _, in := range ins {
		if name := in.Symbol(); name != "" {
			f = &subprogram{calls: map[string]bool{}}
			all[name] = f
		}
		reach := 0
		switch class := in.OpCode.Class(); {
		case in.IsFunctionCall():
			f.calls[in.Reference()] = true
		case class.IsLoad() && in.Src == asm.R10, class.IsStore() && in.Dst == asm.R10:
			reach = -int(in.Offset)
		case in.OpCode.ALUOp() == asm.Add && frameAt[in.Dst] && in.OpCode.Source() == asm.ImmSource:
			reach = -int(in.Constant)
		}
		f.stack = max(f.stack, reach)
		if class := in.OpCode.Class(); class.IsALU() || class.IsLoad() {
			frameAt[in.Dst] = in.OpCode.ALUOp() == asm.Mov && in.OpCode.Source() == asm.RegSource && in.Src == asm.R10
		}
		frameAt[asm.R10] = false
	}
	return all
}

// deepest is the largest stack and the largest number of frames below and including a function; they may be of different chains.
type deepest struct{ stack, frames int }

func chain(all map[string]*subprogram, name string) deepest {
	f := all[name]
	var below deepest
	for callee := range f.calls {
		d := chain(all, callee)
		below.stack, below.frames = max(below.stack, d.stack), max(below.frames, d.frames)
	}
	own := (max(f.stack, 1) + frameUnit - 1) / frameUnit * frameUnit
	return deepest{below.stack + own, below.frames + 1}
}

// withoutVerified keeps all columns but the last.
func withoutVerified(s string) string {
	var b strings.Builder
	for line := range strings.Lines(s) {
		if f := strings.Fields(line); len(f) == 5 {
			fmt.Fprintln(&b, f[0], f[1], f[2], f[3])
		}
	}
	return b.String()
}
