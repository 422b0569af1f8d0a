package wire

import (
	"errors"
	"fmt"
	"io"
	"net"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// PassXDP attaches an XDP program that passes everything to a device, until it is closed. A veth takes frames that its peer sends from
// XDP only when it has a program itself.
func (n *Namespace) PassXDP(device string) (io.Closer, error) {
	const pass = 2 // XDP_PASS
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "bench_pass", Type: ebpf.XDP, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, pass), asm.Return()},
	})
	if err != nil {
		return nil, fmt.Errorf("load XDP program for %s: %w", device, err)
	}
	defer func() { _ = program.Close() }()
	var l link.Link
	err = n.Do(func() error {
		i, err := net.InterfaceByName(device)
		if err != nil {
			return err
		}
		l, err = link.AttachXDP(link.XDPOptions{Program: program, Interface: i.Index, Flags: link.XDPDriverMode})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("attach XDP program to %s of %s: %w", device, n.Name, err)
	}
	return l, nil
}

// ethtoolValue and ifreq are struct ethtool_value and the used part of struct ifreq of the kernel's user interface.
type ethtoolValue struct{ command, data uint32 }

type ifreq struct {
	name [unix.IFNAMSIZ]byte
	data *ethtoolValue
	_    [16]byte
}

// FullChecksums makes a device send packets whose checksums are complete, as a cable carries them: XDP sees packets as they are and
// cannot have a checksum completed later.
func (n *Namespace) FullChecksums(device string) error {
	return n.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open socket: %w", err)
		}
		r := ifreq{data: &ethtoolValue{command: unix.ETHTOOL_STXCSUM, data: 0}}
		copy(r.name[:unix.IFNAMSIZ-1], device)
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&r)))
		if errno != 0 {
			err = fmt.Errorf("turn off checksum offload of %s: %w", device, errno)
		}
		return errors.Join(err, unix.Close(fd))
	})
}
