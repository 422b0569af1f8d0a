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
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

var update = flag.Bool("update", false, "write golden files instead of comparing")

// TestInstructions holds the size of each program against a golden file, so that growth shows in review. What the verifier walks
// through differs between kernels: that column counts only on the kernel series the file was written on.
func TestInstructions(t *testing.T) {
	needRoot(t)
	const golden = "testdata/instructions.golden"
	series := kernelSeries(t)
	var b strings.Builder
	fmt.Fprintf(&b, "# program, instructions, instructions walked by the verifier of Linux %s\n", series)
	spec := privateSpec(t)
	for _, name := range slices.Sorted(maps.Keys(spec.Programs)) {
		fmt.Fprintf(&b, "%-15s %5d %6d\n", name, len(spec.Programs[name].Instructions), verified(t, spec, name))
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

// withoutVerified keeps the first two columns.
func withoutVerified(s string) string {
	var b strings.Builder
	for line := range strings.Lines(s) {
		if f := strings.Fields(line); len(f) == 3 {
			fmt.Fprintln(&b, f[0], f[1])
		}
	}
	return b.String()
}
