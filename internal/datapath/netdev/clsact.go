package netdev

import (
	"errors"
	"fmt"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The filter that holds a program on kernels without tcx. Handle and priority are ours alone: other software's filters on the
// device are neither seen nor touched.
const (
	filterPriority = 0x5354 // "ST"
	filterHandle   = 1
)

// AttachFilter puts a program on a device's clsact qdisc, replacing the one AttachFilter put there before at once. ingress
// is as the device sees it.
func (n *Net) AttachFilter(device string, ingress bool, programFD int, name string) error {
	link, err := n.link(device)
	if err != nil {
		return err
	}
	qdisc := &netlink.GenericQdisc{
		QdiscAttrs: netlink.QdiscAttrs{
			LinkIndex: link.Attrs().Index,
			Handle:    netlink.MakeHandle(0xffff, 0),
			Parent:    netlink.HANDLE_CLSACT,
		},
		QdiscType: "clsact",
	}
	if err := n.h.QdiscAdd(qdisc); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("add clsact qdisc to %s: %w", device, err)
	}
	filter := bpfFilter(link, ingress)
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
	err = n.h.FilterDel(bpfFilter(link, ingress))
	// EINVAL: there is no clsact qdisc.
	if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("detach filter from %s: %w", device, err)
	}
	return nil
}

// Filter returns the name of the program AttachFilter put there, or "".
func (n *Net) Filter(device string, ingress bool) (string, error) {
	link, err := n.link(device)
	if err != nil {
		return "", err
	}
	list, err := dump(func() ([]netlink.Filter, error) { return n.h.FilterList(link, hook(ingress)) })
	if err != nil {
		return "", fmt.Errorf("list filters of %s: %w", device, err)
	}
	for _, f := range list {
		if b, ok := f.(*netlink.BpfFilter); ok && b.Priority == filterPriority && b.Handle == filterHandle {
			return b.Name, nil
		}
	}
	return "", nil
}

func bpfFilter(link netlink.Link, ingress bool) *netlink.BpfFilter {
	return &netlink.BpfFilter{FilterAttrs: netlink.FilterAttrs{
		LinkIndex: link.Attrs().Index,
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
