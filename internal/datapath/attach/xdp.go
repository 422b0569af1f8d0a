package attach

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"

	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/strait-net/strait/internal/config"
)

// xdpProgram is attached by Attacher.XDP.
const xdpProgram = "strait_xdp"

// genericPin is added to the program in the name of a pin: a link cannot change its mode, and does not tell it.
const genericPin = "@generic"

// ErrXDP is matched when a device cannot have an XDP program in the mode that is asked for.
var ErrXDP = errors.New("device cannot do that")

// XDP attaches the XDP program to a device in the mode, and in no other; XDPOff detaches it. A mode that the device cannot do is never
// replaced by another: the error says what would work.
func (a *Attacher) XDP(device string, mode config.XDPMode) error {
	name, other, flags := xdpProgram, xdpProgram+genericPin, link.XDPDriverMode
	switch mode {
	case config.XDPOff, "":
		return a.detachXDP(device)
	case config.XDPNative:
	case config.XDPGeneric:
		name, other, flags = other, name, link.XDPGenericMode
	default:
		return fmt.Errorf("attach XDP to %s: mode %q: want %s, %s or %s", device, mode, config.XDPNative, config.XDPGeneric, config.XDPOff)
	}
	p, err := a.program(xdpProgram)
	if err != nil {
		return err
	}
	index, err := a.net.Index(device)
	if err != nil {
		return fmt.Errorf("attach XDP: %w", err)
	}
	// A device has one XDP program: the one in the other mode must go first. Meanwhile the programs behind it do all the work.
	if err := a.dropXDP(other, device); err != nil {
		return err
	}
	return a.keep(a.pin(name, device), p,
		func(i *link.Info) bool { return i.XDP() != nil && i.XDP().Ifindex == uint32(index) },
		func() (link.Link, error) {
			l, err := link.AttachXDP(link.XDPOptions{Program: p, Interface: index, Flags: flags})
			if err != nil {
				return nil, explainXDP(device, mode, err)
			}
			return l, nil
		})
}

func (a *Attacher) detachXDP(device string) error {
	return errors.Join(a.dropXDP(xdpProgram, device), a.dropXDP(xdpProgram+genericPin, device))
}

// dropXDP detaches at once. The kernel takes its time to detach a link that only loses its pin, and the device would be occupied.
func (a *Attacher) dropXDP(name, device string) error {
	path := a.pin(name, device)
	l, err := link.LoadPinnedLink(path, nil)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open pinned link %s: %w", filepath.Base(path), err)
	}
	defer release(l)
	if err := l.Detach(); err != nil {
		return fmt.Errorf("detach XDP from %s: %w", device, err)
	}
	return unpin(path)
}

func explainXDP(device string, mode config.XDPMode, err error) error {
	hint := "set services.xdp to off"
	if mode == config.XDPNative {
		hint = "set services.xdp to generic or off"
	}
	switch {
	case errors.Is(err, unix.EBUSY), errors.Is(err, unix.EEXIST):
		hint = "another XDP program is attached to it: remove that one, or set services.xdp to off"
	case errors.Is(err, unix.EOPNOTSUPP):
		hint = "its driver has no XDP: " + hint
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ERANGE), errors.Is(err, unix.E2BIG):
		hint = "its driver refuses it as it is set up, mostly because of its MTU or queues: change these, or " + hint
	}
	return fmt.Errorf("attach XDP to %s in %s mode: %w: %s: %w", device, mode, ErrXDP, hint, err)
}

// kindOfXDP returns the program and the kind that a pin's name tells.
func kindOfXDP(pinned string) (program string, kind Kind) {
	if program, generic := strings.CutSuffix(pinned, genericPin); generic {
		return program, SKB
	}
	return pinned, XDP
}
