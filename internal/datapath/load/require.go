package load

import (
	"errors"
	"fmt"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/features"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// ErrUnsupported is matched by every error that says the kernel lacks something.
var ErrUnsupported = errors.New("not supported by this kernel")

// UnsupportedError names a feature that the kernel lacks. It matches ErrUnsupported.
type UnsupportedError struct {
	Feature string // what is missing
	Needed  string // first Linux version that has it
	Running string // this kernel's release
	For     string // what Strait does with it
}

// Error returns one sentence for an operator.
func (e *UnsupportedError) Error() string {
	return fmt.Sprintf("%s %s: %s, which %s needs, came with Linux %s", e.Feature, ErrUnsupported, e.Feature, e.For, e.Needed)
}

// Is reports whether target is ErrUnsupported.
func (e *UnsupportedError) Is(target error) bool { return target == ErrUnsupported }

// requirement is one feature with its test. The test's error matches ebpf.ErrNotSupported when the kernel lacks it; any other
// error leaves the question open, and the load will answer it.
type requirement struct {
	feature, needed, purpose string
	test                     func() error
}

func requirements(socketLB bool) []requirement {
	const path, sockets = "the packet path", "socket load balancing"
	helper := func(kind ebpf.ProgramType, h asm.BuiltinFunc) func() error {
		return func() error { return features.HaveProgramHelper(kind, h) }
	}
	mapType := func(kind ebpf.MapType) func() error {
		return func() error { return features.HaveMapType(kind) }
	}
	all := []requirement{
		{"BPF type information (CONFIG_DEBUG_INFO_BTF, /sys/kernel/btf/vmlinux)", "5.4", "loading programs and socket storage", haveBTF},
		{"LRU hash map", "4.10", "the connection table", mapType(ebpf.LRUHash)},
		{"longest prefix match map", "4.11", "the ipcache", mapType(ebpf.LPMTrie)},
		{"32-bit jumps (BPF instruction set v3)", "5.1", "every program", features.HaveV3ISA},
		{"atomic operations other than add", "5.12", path, haveAtomicOr},
		{"bpf_fib_lookup", "4.18", path, helper(ebpf.SchedCLS, asm.FnFibLookup)},
		{"bpf_redirect_neigh", "5.10", path, helper(ebpf.SchedCLS, asm.FnRedirectNeigh)},
		{"bpf_redirect_peer", "5.10", path, helper(ebpf.SchedCLS, asm.FnRedirectPeer)},
		{"bpf_ktime_get_coarse_ns", "5.11", path, helper(ebpf.SchedCLS, asm.FnKtimeGetCoarseNs)},
	}
	if !socketLB {
		return all
	}
	return append(all,
		requirement{"socket storage", "5.2", sockets, mapType(ebpf.SkStorage)},
		requirement{"cgroup programs for connect and sendmsg", "4.18", sockets,
			func() error { return features.HaveProgramType(ebpf.CGroupSockAddr) }},
		requirement{"socket storage in cgroup programs", "5.10", sockets, helper(ebpf.CGroupSockAddr, asm.FnSkStorageGet)},
		requirement{"bpf_set_retval", "5.18", sockets, helper(ebpf.CGroupSockAddr, asm.FnSetRetval)},
	)
}

// Require tests the kernel for everything the datapath cannot do without, and returns an error that names all that is missing.
func Require(socketLB bool) error { return check(requirements(socketLB)) }

func check(all []requirement) error {
	var missing []error
	for _, r := range all {
		if err := r.test(); errors.Is(err, ebpf.ErrNotSupported) {
			missing = append(missing, &UnsupportedError{Feature: r.feature, Needed: r.needed, For: r.purpose, Running: release()})
		}
	}
	if len(missing) == 0 {
		return nil
	}
	return fmt.Errorf("kernel %s: %w", release(), errors.Join(missing...))
}

// HaveTCX reports whether programs can be attached to devices by tcx links (Linux 6.6); clsact filters serve otherwise.
func HaveTCX() bool {
	const loopback = 1 // in every network namespace
	_, err := link.QueryPrograms(link.QueryOptions{Target: loopback, Attach: ebpf.AttachTCXIngress})
	return err == nil
}

func haveBTF() error {
	if _, err := btf.LoadKernelSpec(); err != nil {
		return fmt.Errorf("%w: %w", ebpf.ErrNotSupported, err)
	}
	return nil
}

func haveAtomicOr() error {
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type:    ebpf.SchedCLS,
		License: "GPL",
		Instructions: asm.Instructions{
			asm.Mov.Imm(asm.R0, 0),
			asm.StoreMem(asm.RFP, -8, asm.R0, asm.DWord),
			asm.OrAtomic.Mem(asm.RFP, asm.R0, asm.DWord, -8),
			asm.Return(),
		},
	})
	if err == nil {
		return p.Close()
	}
	if errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("%w: %w", ebpf.ErrNotSupported, err)
	}
	return err
}

func release() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "of unknown version"
	}
	return strings.TrimRight(string(u.Release[:]), "\x00")
}
