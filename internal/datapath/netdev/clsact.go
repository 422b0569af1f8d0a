package netdev

import (
	"errors"
	"fmt"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The filter that holds a program. Handle and priority are ours alone: other software's filters on the
// device are neither seen nor touched.
const (
	filterPriority = 0x5354 // "ST"
	filterHandle   = 1
)

// AttachFilter puts a program on a device's clsact qdisc, replacing the one AttachFilter put there before at once. ingress
// is as the device sees it; index may be 0 when it is not known.
func (n *Net) AttachFilter(device string, index int, ingress bool, programFD int, name string) error {
	if index == 0 {
		link, err := n.link(device)
		if err != nil {
			return err
		}
		index = link.Attrs().Index
	}
	qdisc := &netlink.GenericQdisc{
		QdiscAttrs: netlink.QdiscAttrs{
			LinkIndex: index,
			Handle:    netlink.MakeHandle(0xffff, 0),
			Parent:    netlink.HANDLE_CLSACT,
		},
		QdiscType: "clsact",
	}
	if err := n.h.QdiscAdd(qdisc); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("add clsact qdisc to %s: %w", device, err)
	}
	filter := bpfFilter(index, ingress)
	filter.Fd, filter.Name, filter.DirectAction = programFD, name, true
	if err := n.h.FilterReplace(filter); err != nil {
		return fmt.Errorf("attach filter %s to %s: %w", name, device, err)
	}
	return nil
}

// DetachFilter removes what AttachFilter put there; nothing, or no device, is no error. The qdisc stays: others may use it.
func (n *Net) DetachFilter(device string, ingress bool) error {
	link, err := n.link(device)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	err = n.h.FilterDel(bpfFilter(link.Attrs().Index, ingress))
	// EINVAL: there is no clsact qdisc.
	if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("detach filter from %s: %w", device, err)
	}
	return nil
}

// Filter is a program that AttachFilter put on a device.
type Filter struct {
	Device    string
	Ingress   bool
	Name      string
	ProgramID uint32 // 0: the kernel did not say
}

// Filter returns the filter AttachFilter put there, if it is there. A device that does not exist has none.
func (n *Net) Filter(device string, ingress bool) (f Filter, ok bool, err error) {
	link, err := n.link(device)
	if errors.Is(err, os.ErrNotExist) {
		return Filter{}, false, nil
	}
	if err != nil {
		return Filter{}, false, err
	}
	return n.filter(link, ingress)
}

func (n *Net) filter(link netlink.Link, ingress bool) (f Filter, ok bool, err error) {
	list, err := dump(func() ([]netlink.Filter, error) { return n.h.FilterList(link, hook(ingress)) })
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENODEV) { // no clsact qdisc, or the device has just gone
		return Filter{}, false, nil
	}
	if err != nil {
		return Filter{}, false, fmt.Errorf("list filters of %s: %w", link.Attrs().Name, err)
	}
	for _, f := range list {
		if b, ok := f.(*netlink.BpfFilter); ok && b.Priority == filterPriority && b.Handle == filterHandle {
			return Filter{Device: link.Attrs().Name, Ingress: ingress, Name: b.Name, ProgramID: uint32(b.Id)}, true, nil
		}
	}
	return Filter{}, false, nil
}

// Filters returns every filter AttachFilter put on any device.
func (n *Net) Filters() ([]Filter, error) {
	links, err := n.links()
	if err != nil {
		return nil, err
	}
	var out []Filter
	for _, l := range links {
		for _, ingress := range []bool{true, false} {
			f, ok, err := n.filter(l, ingress)
			if err != nil {
				return nil, err
			}
			if ok {
				out = append(out, f)
			}
		}
	}
	return out, nil
}

func bpfFilter(index int, ingress bool) *netlink.BpfFilter {
	return &netlink.BpfFilter{FilterAttrs: netlink.FilterAttrs{
		LinkIndex: index,
		Parent:    hook(ingress),
		Handle:    filterHandle,
		Protocol:  unix.ETH_P_ALL,
		Priority:  filterPriority,
	}}
}

func hook(ingress bool) uint32 {
	if ingress {
		return netlink.HANDLE_MIN_INGRESS
	}
	return netlink.HANDLE_MIN_EGRESS
}
