package attach

import (
	"errors"
	"fmt"
	"io/fs"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/strait-net/strait/internal/datapath/netdev"
)

// Seen is a program on a hook of a device.
type Seen struct {
	Program string // its name in the kernel
	ID      uint32
	Kind    Kind
}

// Look returns the programs of a device's hook in the order in which they run. Of clsact filters only ours are known.
func Look(net *netdev.Net, device string, index int, ingress bool) (out []Seen, err error) {
	kind := ebpf.AttachTCXEgress
	if ingress {
		kind = ebpf.AttachTCXIngress
	}
	found, err := link.QueryPrograms(link.QueryOptions{Target: index, Attach: kind})
	// A kernel without tcx knows no such question.
	if err != nil && !errors.Is(err, ebpf.ErrNotSupported) && !errors.Is(err, unix.EINVAL) {
		return nil, fmt.Errorf("list programs of %s: %w", device, err)
	}
	if found != nil {
		for _, p := range found.Programs {
			name, err := programName(p.ID)
			if err != nil {
				return nil, err
			}
			out = append(out, Seen{Program: name, ID: uint32(p.ID), Kind: TCX})
		}
	}
	f, ok, err := net.Filter(device, ingress)
	if err != nil {
		return nil, err
	}
	if ok {
		out = append(out, Seen{Program: f.Name, ID: f.ProgramID, Kind: Clsact})
	}
	return out, nil
}

func programName(id ebpf.ProgramID) (string, error) {
	p, err := ebpf.NewProgramFromID(id)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("open program %d: %w", id, err)
	}
	defer func() { _ = p.Close() }()
	info, err := p.Info()
	if err != nil {
		return "", fmt.Errorf("look at program %d: %w", id, err)
	}
	return info.Name, nil
}

// LookXDP returns the XDP program of a device, if it has one.
func LookXDP(l netdev.Link) (seen Seen, ok bool, err error) {
	if l.XDP == 0 {
		return Seen{}, false, nil
	}
	name, err := programName(ebpf.ProgramID(l.XDP))
	return Seen{Program: name, ID: l.XDP, Kind: XDP}, true, err
}
