// Package attach keeps the programs attached: to devices by tcx links or clsact filters, to the cgroup by cgroup links; links are
// pinned, so that they outlive the agent, and get a new program inside.
//
// Pods' devices always have clsact filters. A tcx attachment waits for an RCU grace period under the kernel's network lock:
// 10-16 ms each here, two per pod on ADD and on DEL, for which all other pods wait, too. A filter takes 0.4 ms with its qdisc and
// 0.05 ms without. Nothing else attaches to a pod's device, so the order of programs, which tcx is better at, is no matter there.
package attach

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/strait-net/strait/internal/bpf"
	"github.com/strait-net/strait/internal/datapath/load"
	"github.com/strait-net/strait/internal/datapath/netdev"
	"github.com/strait-net/strait/internal/datapath/pin"
)

// Kind says how a program is attached.
type Kind string

// The kinds of attachments.
const (
	TCX    Kind = "tcx"
	Clsact Kind = "clsact"
	Cgroup Kind = "cgroup"
	XDP    Kind = "xdp"         // in the driver
	SKB    Kind = "xdp-generic" // XDP in the stack, for devices whose driver has none
)

// Attachment is one program in its place.
type Attachment struct {
	Program   string `json:"program"`
	Kind      Kind   `json:"kind"`
	Device    string `json:"device,omitempty"` // none for a cgroup
	ProgramID uint32 `json:"programID"`
	Current   bool   `json:"current"` // it is the program this agent has loaded
}

// Attacher attaches the programs of one agent. Methods may be called from any goroutine; calls for the same device must not
// overlap.
type Attacher struct {
	tree     pin.Tree
	net      *netdev.Net
	programs *load.Programs // nil: for listing and detaching only
	tcx      bool
}

// New returns an Attacher. programs may be nil if nothing will be attached.
func New(tree pin.Tree, net *netdev.Net, programs *load.Programs, tcx bool) *Attacher {
	return &Attacher{tree: tree, net: net, programs: programs, tcx: tcx}
}

// hook is a place of a program on a device.
type hook struct {
	program string
	ingress bool
}

func podHooks() []hook {
	return []hook{{bpf.DatapathProgStraitFromPod, true}, {bpf.DatapathProgStraitToPod, false}}
}

// nativeHooks begins with the program that translates replies back.
func nativeHooks() []hook {
	return []hook{{bpf.DatapathProgStraitToNet, false}, {bpf.DatapathProgStraitFromNet, true}}
}

func tunnelHooks() []hook {
	return []hook{{bpf.DatapathProgStraitFromVx, true}, {bpf.DatapathProgStraitToVx, false}}
}

// AttachPod attaches the programs of a pod's device, or puts the loaded ones in place of older ones. index is the device's, or 0.
func (a *Attacher) AttachPod(device string, index int) error {
	for _, h := range podHooks() {
		if err := a.filter(h, device, index); err != nil {
			return err
		}
	}
	return nil
}

// DetachPod removes the programs of a pod's device. They go with the device as well.
func (a *Attacher) DetachPod(device string) error {
	return errors.Join(a.net.DetachFilter(device, true), a.net.DetachFilter(device, false))
}

// CheckPod describes what is wrong with the programs of a pod's device.
func (a *Attacher) CheckPod(device string, _ int) (wrong []string, err error) {
	for _, h := range podHooks() {
		p, err := a.program(h.program)
		if err != nil {
			return nil, err
		}
		f, ok, err := a.net.Filter(device, h.ingress)
		switch {
		case err != nil:
			return nil, err
		case !ok:
			wrong = append(wrong, fmt.Sprintf("program %s is not attached to %s", h.program, device))
		case f.ProgramID != 0 && f.ProgramID != programID(p):
			wrong = append(wrong, fmt.Sprintf("program %s on %s has id %d, want %d", h.program, device, f.ProgramID, programID(p)))
		}
	}
	return wrong, nil
}

// Native attaches the programs of a device that carries cluster and outside traffic, and Tunnel those of the tunnel device.
func (a *Attacher) Native(device string) error { return a.device(nativeHooks(), device) }

// Tunnel attaches the programs of the tunnel device.
func (a *Attacher) Tunnel(device string) error { return a.device(tunnelHooks(), device) }

func (a *Attacher) device(hooks []hook, device string) error {
	index, err := a.net.Index(device)
	if err != nil {
		return fmt.Errorf("attach programs: %w", err)
	}
	attach := a.filter
	if a.tcx {
		attach = a.link
	}
	for _, h := range hooks {
		if err := attach(h, device, index); err != nil {
			return err
		}
	}
	return nil
}

func (a *Attacher) filter(h hook, device string, index int) error {
	p, err := a.program(h.program)
	if err != nil {
		return err
	}
	return a.net.AttachFilter(device, index, h.ingress, p.FD(), h.program)
}

func (a *Attacher) link(h hook, device string, index int) error {
	p, err := a.program(h.program)
	if err != nil {
		return err
	}
	kind := ebpf.AttachTCXEgress
	if h.ingress {
		kind = ebpf.AttachTCXIngress
	}
	return a.keep(a.pin(h.program, device), p,
		func(i *link.Info) bool { return i.TCX() != nil && i.TCX().Ifindex == uint32(index) },
		func() (link.Link, error) {
			l, err := link.AttachTCX(link.TCXOptions{Interface: index, Program: p, Attach: kind})
			if err != nil {
				return nil, fmt.Errorf("attach tcx link %s to %s: %w", h.program, device, err)
			}
			return l, nil
		})
}

// keep makes the link pinned at path hold p. A pinned link that is somewhere else (its device has been made anew) is given up.
func (a *Attacher) keep(path string, p *ebpf.Program, here func(*link.Info) bool, attach func() (link.Link, error)) error {
	pinned, err := link.LoadPinnedLink(path, nil)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return fmt.Errorf("open pinned link %s: %w", filepath.Base(path), err)
	default:
		defer release(pinned)
		info, err := pinned.Info()
		if err != nil {
			return fmt.Errorf("look at pinned link %s: %w", filepath.Base(path), err)
		}
		if here(info) {
			if uint32(info.Program) == programID(p) {
				return nil
			}
			if err := pinned.Update(p); err != nil {
				return fmt.Errorf("replace program in link %s: %w", filepath.Base(path), err)
			}
			return nil
		}
		if err := pinned.Unpin(); err != nil {
			return fmt.Errorf("unpin stale link %s: %w", filepath.Base(path), err)
		}
	}
	l, err := attach()
	if err != nil {
		return err
	}
	defer release(l)
	if err := l.Pin(path); err != nil {
		return fmt.Errorf("pin link %s: %w", filepath.Base(path), a.tree.Explain(err))
	}
	return nil
}

// Refresh puts the loaded programs in the place of older ones wherever they are attached, pods included, and attaches none anew. When it has
// succeeded no program of an earlier start is left, save those of which none is loaded.
func (a *Attacher) Refresh() error {
	pins, err := a.pins()
	if err != nil {
		return err
	}
	filters, err := a.net.Filters() // before the first is replaced: while old and new ones run side by side, time counts
	errs := []error{err}
	for _, name := range pins {
		errs = append(errs, a.refresh(name))
	}
	for _, f := range filters {
		p, err := a.program(f.Name)
		if err != nil || programID(p) == f.ProgramID {
			continue
		}
		index, err := a.net.Index(f.Device)
		if err == nil {
			err = a.net.AttachFilter(f.Device, index, f.Ingress, p.FD(), f.Name)
		}
		if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENODEV) { // the device is gone, and its programs with it
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func (a *Attacher) refresh(name string) error {
	pinned, _, ok := parsePin(name)
	program, _ := kindOfXDP(pinned)
	p, err := a.program(program)
	if !ok || err != nil {
		return nil
	}
	l, err := link.LoadPinnedLink(filepath.Join(a.tree.Links(), name), nil)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open pinned link %s: %w", name, err)
	}
	defer release(l)
	switch info, err := l.Info(); {
	case err != nil:
		return fmt.Errorf("look at pinned link %s: %w", name, err)
	case uint32(info.Program) == programID(p):
		return nil
	}
	if err := l.Update(p); err != nil && !errors.Is(err, unix.ENOLINK) { // what it was attached to is gone
		return fmt.Errorf("replace program in link %s: %w", name, err)
	}
	return nil
}

// Detach removes the programs of a native or tunnel device; what is not there is no error.
func (a *Attacher) Detach(device string) error {
	for _, h := range slices.Concat(nativeHooks(), tunnelHooks()) {
		if err := unpin(a.pin(h.program, device)); err != nil {
			return err
		}
	}
	return errors.Join(a.detachXDP(device), a.net.DetachFilter(device, true), a.net.DetachFilter(device, false))
}

// Prune removes programs from devices that keep does not want (pods' devices are never asked about), and pins of links whose
// device or cgroup is gone. It describes what it removed.
func (a *Attacher) Prune(keep func(device string) bool) (removed []string, err error) {
	var errs []error
	pins, err := a.pins()
	if err != nil {
		return nil, err
	}
	for _, name := range pins {
		program, device, ok := parsePin(name)
		if !ok {
			continue
		}
		gone, err := a.defunct(name)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		unwanted := device != cgroupPin && !keep(device)
		if !gone && !unwanted {
			continue
		}
		if err := unpin(filepath.Join(a.tree.Links(), name)); err != nil {
			errs = append(errs, err)
			continue
		}
		removed = append(removed, fmt.Sprintf("link of %s on %s", program, device))
	}
	filters, err := a.net.Filters()
	if err != nil {
		return removed, errors.Join(append(errs, err)...)
	}
	for _, f := range filters {
		if netdev.IsPodDevice(f.Device) || keep(f.Device) && !a.tcx {
			continue
		}
		errs = append(errs, a.net.DetachFilter(f.Device, f.Ingress))
		removed = append(removed, fmt.Sprintf("filter %s on %s", f.Name, f.Device))
	}
	return removed, errors.Join(errs...)
}

// defunct reports whether a pinned link holds nothing any more.
func (a *Attacher) defunct(name string) (bool, error) {
	l, err := link.LoadPinnedLink(filepath.Join(a.tree.Links(), name), nil)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("open pinned link %s: %w", name, err)
	}
	defer release(l)
	info, err := l.Info()
	if err != nil {
		return false, fmt.Errorf("look at pinned link %s: %w", name, err)
	}
	if t := info.TCX(); t != nil {
		return t.Ifindex == 0, nil
	}
	if x := info.XDP(); x != nil {
		return x.Ifindex == 0, nil
	}
	if c := info.Cgroup(); c != nil {
		return c.CgroupId == 0, nil
	}
	return true, nil
}

// DetachAll removes every program from every place and every pinned link.
func (a *Attacher) DetachAll() error {
	pins, err := a.pins()
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	var errs []error
	for _, name := range pins {
		errs = append(errs, unpin(filepath.Join(a.tree.Links(), name)))
	}
	filters, err := a.net.Filters()
	errs = append(errs, err)
	for _, f := range filters {
		errs = append(errs, a.net.DetachFilter(f.Device, f.Ingress))
	}
	return errors.Join(errs...)
}

// List returns what is attached, in the order of devices and programs.
func (a *Attacher) List() ([]Attachment, error) {
	pins, err := a.pins()
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var out []Attachment
	for _, name := range pins {
		at, ok, err := a.pinned(name)
		if err != nil {
			return nil, err
		}
		if ok {
			out = append(out, at)
		}
	}
	filters, err := a.net.Filters()
	if err != nil {
		return nil, err
	}
	for _, f := range filters {
		out = append(out, Attachment{Program: f.Name, Kind: Clsact, Device: f.Device, ProgramID: f.ProgramID, Current: a.current(f.Name, f.ProgramID)})
	}
	slices.SortFunc(out, func(x, y Attachment) int {
		return strings.Compare(x.Device+"\x00"+x.Program, y.Device+"\x00"+y.Program)
	})
	return out, nil
}

func (a *Attacher) pinned(name string) (at Attachment, ok bool, err error) {
	program, device, ok := parsePin(name)
	if !ok {
		return Attachment{}, false, nil
	}
	l, err := link.LoadPinnedLink(filepath.Join(a.tree.Links(), name), nil)
	if errors.Is(err, fs.ErrNotExist) {
		return Attachment{}, false, nil
	}
	if err != nil {
		return Attachment{}, false, fmt.Errorf("open pinned link %s: %w", name, err)
	}
	defer release(l)
	info, err := l.Info()
	if err != nil {
		return Attachment{}, false, fmt.Errorf("look at pinned link %s: %w", name, err)
	}
	at = Attachment{Program: program, Kind: TCX, Device: device, ProgramID: uint32(info.Program)}
	switch {
	case device == cgroupPin:
		at.Kind, at.Device = Cgroup, ""
	case info.TCX() != nil && info.TCX().Ifindex == 0, info.XDP() != nil && info.XDP().Ifindex == 0:
		return Attachment{}, false, nil // the device is gone
	case info.XDP() != nil:
		at.Program, at.Kind = kindOfXDP(program)
	}
	at.Current = a.current(at.Program, at.ProgramID)
	return at, true, nil
}

func (a *Attacher) current(program string, id uint32) bool {
	if a.programs == nil {
		return false
	}
	p := a.programs.Program(program)
	return p != nil && programID(p) == id
}

func (a *Attacher) program(name string) (*ebpf.Program, error) {
	if a.programs != nil {
		if p := a.programs.Program(name); p != nil {
			return p, nil
		}
	}
	return nil, fmt.Errorf("program %s is not loaded", name)
}

func (a *Attacher) pins() ([]string, error) {
	entries, err := os.ReadDir(a.tree.Links())
	if err != nil {
		return nil, fmt.Errorf("list pinned links: %w", err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names, nil
}

// A pin's name has no dot: the bpf file system refuses it, and names of VLAN devices have one.
const dot = "%2e"

func (a *Attacher) pin(program, device string) string {
	return filepath.Join(a.tree.Links(), program+"-"+strings.ReplaceAll(device, ".", dot))
}

func parsePin(name string) (program, device string, ok bool) {
	program, device, ok = strings.Cut(name, "-")
	return program, strings.ReplaceAll(device, dot, "."), ok
}

func unpin(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unpin link %s: %w", filepath.Base(path), err)
	}
	return nil
}

// release closes our handle of a link; a pin keeps it attached.
func release(l link.Link) { _ = l.Close() }

// programID is 0 for a program that cannot be looked at, which matches none.
func programID(p *ebpf.Program) uint32 {
	info, err := p.Info()
	if err != nil {
		return 0
	}
	id, _ := info.ID()
	return uint32(id)
}
