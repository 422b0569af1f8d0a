// Package sockets closes the sockets that the socket programs have connected to a backend which is gone.
//
// A BPF iterator over strait_sk lists them, in all network namespaces, and no others: a socket that names the same address by itself is
// its owner's business. NETLINK_SOCK_DIAG closes them, inside their namespace. bpf_sock_destroy would save that step, but comes with
// kernel 6.5 and only for iterators over the kernel's own tables; this works on 6.1, with CONFIG_INET_DIAG_DESTROY, which distributions
// set.
package sockets

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/strait-net/strait/internal/bpf"
	"github.com/strait-net/strait/internal/datapath/maps"
)

// ErrUnsupported is returned when the kernel cannot close sockets.
var ErrUnsupported = errors.New("kernel without CONFIG_INET_DIAG_DESTROY, or without module tcp_diag or udp_diag")

// Target is a backend.
type Target struct {
	netip.AddrPort
	Protocol uint8 // IPPROTO_TCP or IPPROTO_UDP; the programs connect no others
}

// Table is the sockets that the socket programs have connected.
type Table struct {
	programs listPrograms
	list     *link.Iter
	own      uint64 // cookie of the process's network namespace
}

// New returns the sockets of the programs that use the maps. The caller's thread is in the node's network namespace.
func New(m *maps.Maps) (*Table, error) {
	storage, ok := m.Kernel()[bpf.DatapathMapStraitSk]
	if !ok {
		return nil, fmt.Errorf("map %s: %w", bpf.DatapathMapStraitSk, os.ErrNotExist)
	}
	return newTable(storage)
}

func newTable(storage *ebpf.Map) (*Table, error) {
	t := &Table{}
	diag, err := open(netns.None())
	if err != nil {
		return nil, err
	}
	t.own, err = unix.GetsockoptUint64(diag.GetFd(), unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	diag.Close()
	if err != nil {
		return nil, fmt.Errorf("get network namespace cookie: %w", err)
	}
	if err := loadListObjects(&t.programs, nil); err != nil {
		return nil, fmt.Errorf("load socket iterator: %w", err)
	}
	if t.list, err = link.AttachIter(link.IterOptions{Program: t.programs.StraitList, Map: storage}); err != nil {
		return nil, errors.Join(fmt.Errorf("attach socket iterator: %w", err), t.programs.Close())
	}
	return t, nil
}

// Release gives up the iterator.
func (t *Table) Release() { _ = errors.Join(t.list.Close(), t.programs.Close()) }

// Close closes the sockets that are connected to a target. Whoever uses one gets ECONNABORTED. namespaces are the paths of those in
// which sockets can be closed, by cookie, besides the node's own; one that is gone is no error. It goes on after an error.
func (t *Table) Close(namespaces map[uint64]string, targets []Target) (closed int, err error) {
	wanted := make(map[Target]bool, len(targets))
	for _, at := range targets {
		wanted[Target{netip.AddrPortFrom(at.Addr().Unmap(), at.Port()), at.Protocol}] = true
	}
	found, err := t.connected(wanted)
	if err != nil {
		return 0, err
	}
	var errs []error
	missing := map[uint64]bool{} // cookies
	for cookie, rows := range found {
		path, known := namespaces[cookie]
		if !known && cookie != t.own {
			continue // made by somebody inside a pod; there is no way in
		}
		n, unknown, err := closeIn(path, rows)
		closed += n
		for _, row := range unknown {
			missing[row.Cookie] = true
		}
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, fmt.Errorf("close %d sockets in network namespace %d %s: %w", len(rows), cookie, path, err))
		}
	}
	if len(missing) > 0 {
		errs = append(errs, t.reallyMissing(wanted, missing))
	}
	return closed, errors.Join(errs...)
}

// reallyMissing tells sockets that were closed meanwhile from those that a kernel without the protocol's sock_diag module cannot find.
func (t *Table) reallyMissing(wanted map[Target]bool, missing map[uint64]bool) error {
	found, err := t.connected(wanted)
	for _, rows := range found {
		for _, row := range rows {
			if missing[row.Cookie] {
				return ErrUnsupported
			}
		}
	}
	return err
}

// connected returns the sockets that are connected to a target, by the cookie of their namespace.
func (t *Table) connected(wanted map[Target]bool) (map[uint64][]listSockRow, error) {
	rows, err := t.rows()
	if err != nil {
		return nil, err
	}
	found := map[uint64][]listSockRow{}
	for _, row := range rows {
		// A socket that has connected to something else since, by itself, is not the target's.
		if to := given(row); wanted[to] && to.AddrPort == remote(row) {
			found[row.Netns] = append(found[row.Netns], row)
		}
	}
	return found, nil
}

func (t *Table) rows() ([]listSockRow, error) {
	list, err := t.list.Open()
	if err != nil {
		return nil, fmt.Errorf("open socket iterator: %w", err)
	}
	defer func() { _ = list.Close() }()
	raw, err := io.ReadAll(list)
	if err != nil {
		return nil, fmt.Errorf("read socket iterator: %w", err)
	}
	rows := make([]listSockRow, len(raw)/binary.Size(listSockRow{}))
	if _, err := binary.Decode(raw, binary.NativeEndian, rows); err != nil {
		return nil, fmt.Errorf("read socket iterator: %w", err)
	}
	return rows, nil
}

// closeIn closes sockets of one namespace, the own one for an empty path, and returns those that the kernel did not find. The error matches
// os.ErrNotExist when there is no such namespace.
func closeIn(path string, rows []listSockRow) (closed int, missing []listSockRow, err error) {
	ns := netns.None()
	if path != "" {
		if ns, err = netns.GetFromPath(path); err != nil {
			return 0, nil, err
		}
		defer func() { _ = ns.Close() }()
	}
	diag, err := open(ns)
	if err != nil {
		return 0, nil, err
	}
	defer diag.Close()
	for _, row := range rows {
		switch err := destroy(diag, row); {
		case err == nil:
			closed++
		case errors.Is(err, unix.ENOENT):
			missing = append(missing, row)
		case errors.Is(err, unix.EOPNOTSUPP):
			return closed, missing, ErrUnsupported
		default:
			return closed, missing, err
		}
	}
	return closed, missing, nil
}

func open(ns netns.NsHandle) (*nl.NetlinkSocket, error) {
	diag, err := nl.GetNetlinkSocketAt(ns, netns.None(), unix.NETLINK_INET_DIAG)
	if errors.Is(err, unix.EINVAL) { // a file that is left of a namespace is none
		err = os.ErrNotExist
	}
	if err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	return diag, nil
}

// remote returns what the socket is connected to.
func remote(row listSockRow) netip.AddrPort {
	b := words(row.Remote)
	address := netip.AddrFrom16(b).Unmap()
	if row.Family == unix.AF_INET {
		address = netip.AddrFrom4([4]byte(b[:4]))
	}
	return netip.AddrPortFrom(address, bpf.NetPort(row.RemotePort))
}

// given returns the backend that the programs connected it to.
func given(row listSockRow) Target {
	address := netip.AddrFrom16(words(row.Backend.Addr.W)).Unmap()
	return Target{netip.AddrPortFrom(address, bpf.NetPort(row.Backend.Port)), row.Backend.Proto}
}

// words returns 16 bytes that were read as four numbers.
func words(w [4]uint32) (b [16]byte) {
	for i, v := range w {
		binary.NativeEndian.PutUint32(b[4*i:], v)
	}
	return b
}

// destroy sends SOCK_DESTROY with a struct inet_diag_req_v2, include/uapi/linux/inet_diag.h. The cookie makes sure that it is that socket.
func destroy(diag *nl.NetlinkSocket, row listSockRow) error {
	local, remote := words(row.Local), words(row.Remote)
	out := append(make([]byte, 0, 56), uint8(row.Family), row.Backend.Proto, 0, 0)
	out = binary.NativeEndian.AppendUint32(out, ^uint32(0)) // in any state
	out = binary.NativeEndian.AppendUint16(out, row.LocalPort)
	out = binary.NativeEndian.AppendUint16(out, row.RemotePort)
	out = append(append(out, local[:]...), remote[:]...)
	out = binary.NativeEndian.AppendUint32(out, row.Ifindex)
	out = binary.NativeEndian.AppendUint32(out, uint32(row.Cookie))
	out = binary.NativeEndian.AppendUint32(out, uint32(row.Cookie>>32))
	req := nl.NewNetlinkRequest(nl.SOCK_DESTROY, unix.NLM_F_ACK)
	req.Sockets = map[int]*nl.SocketHandle{unix.NETLINK_INET_DIAG: {Socket: diag}}
	req.AddRawData(out)
	_, err := req.Execute(unix.NETLINK_INET_DIAG, 0)
	return err
}
