package announce

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// repeats are the times after the first message at which it is sent again: frames get lost, and switches take their time.
func repeats() []time.Duration {
	return []time.Duration{200 * time.Millisecond, time.Second, 2 * time.Second, 5 * time.Second}
}

// Herald tells the neighbours on a link who has an address, and makes the link deliver questions about IPv6 addresses.
type Herald struct {
	log *slog.Logger

	mu      sync.Mutex
	devices map[string]seen
	spoken  map[place]context.CancelFunc // messages that are being repeated
	joined  map[group]map[netip.Addr]bool
	socket  int // holds the memberships; -1: not open yet
	ctx     context.Context
}

// place is an address on a link.
type place struct {
	index uint32
	addr  netip.Addr
}

// seen is a device as it was a moment ago.
type seen struct {
	index uint32
	mac   [6]byte
	at    time.Time
}

// group is a solicited-node multicast group (RFC 4291 2.7.1) on a link: addresses with the same last 24 bits share one.
type group struct {
	index uint32
	addr  netip.Addr
}

// NewHerald returns a herald that speaks until ctx ends.
func NewHerald(ctx context.Context, log *slog.Logger) *Herald {
	return &Herald{
		log: log, devices: map[string]seen{}, spoken: map[place]context.CancelFunc{}, joined: map[group]map[netip.Addr]bool{}, socket: -1, ctx: ctx,
	}
}

// Place finds where a device is now: its index and its MAC. It looks once a second at the most, however many addresses there are.
func (h *Herald) Place(device string) (index uint32, mac [6]byte, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if s := h.devices[device]; time.Since(s.at) < time.Second {
		return s.index, s.mac, nil
	}
	i, err := net.InterfaceByName(device)
	if err != nil {
		return 0, mac, fmt.Errorf("find device %s: %w", device, err)
	}
	if len(i.HardwareAddr) != len(mac) {
		return 0, mac, fmt.Errorf("device %s has no Ethernet address: nothing can be announced on it", device)
	}
	s := seen{uint32(i.Index), [6]byte(i.HardwareAddr), time.Now()}
	h.devices[device] = s
	return s.index, s.mac, nil
}

// Listen makes the link deliver what neighbours ask about an IPv6 address. It may be repeated.
func (h *Herald) Listen(device string, index uint32, addr netip.Addr) error {
	if addr.Is4() {
		return nil
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	g := group{index, solicitedNode(addr)}
	if h.joined[g] == nil {
		if err := h.joinLocked(device, g); err != nil {
			return fmt.Errorf("join %s on %s: %w", g.addr, device, err)
		}
		h.joined[g] = map[netip.Addr]bool{}
	}
	h.joined[g][addr] = true
	return nil
}

// Announce tells the neighbours that the address is at this device now, several times.
func (h *Herald) Announce(index uint32, mac [6]byte, addr netip.Addr) {
	h.mu.Lock()
	defer h.mu.Unlock()
	p := place{index, addr}
	if stop := h.spoken[p]; stop != nil {
		stop()
	}
	ctx, stop := context.WithCancel(h.ctx)
	h.spoken[p] = stop
	go func() {
		defer stop()
		for _, after := range append([]time.Duration{0}, repeats()...) {
			select {
			case <-ctx.Done():
				return
			case <-time.After(after):
			}
			if err := send(index, mac, addr); err != nil {
				h.log.Warn("neighbours not told of an address", "address", addr, "index", index, "err", err)
			}
		}
	}()
}

// Withdraw ends what Listen and Announce began. Neighbours are told nothing: the next node tells them.
func (h *Herald) Withdraw(index uint32, addr netip.Addr) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if stop := h.spoken[place{index, addr}]; stop != nil {
		stop()
		delete(h.spoken, place{index, addr})
	}
	if addr.Is4() {
		return
	}
	g := group{index, solicitedNode(addr)}
	if delete(h.joined[g], addr); len(h.joined[g]) > 0 {
		return
	}
	delete(h.joined, g)
	if err := h.leaveLocked(g); err != nil {
		h.log.Warn("multicast group not left", "group", g.addr, "index", index, "err", err)
	}
}

// joinLocked subscribes twice: as a listener, so that switches which look at MLD (RFC 3810) forward the group, and in the device's own
// filter, which stays when this process ends: questions are answered while it restarts.
func (h *Herald) joinLocked(device string, g group) error {
	if err := h.openLocked(); err != nil {
		return err
	}
	err := unix.SetsockoptIPv6Mreq(h.socket, unix.IPPROTO_IPV6, unix.IPV6_JOIN_GROUP, &unix.IPv6Mreq{Multiaddr: g.addr.As16(), Interface: g.index})
	if err != nil && !errors.Is(err, unix.EADDRINUSE) {
		return err
	}
	if err := filter(h.socket, unix.SIOCADDMULTI, device, g.addr); err != nil && !errors.Is(err, unix.EEXIST) {
		return err
	}
	return nil
}

func (h *Herald) leaveLocked(g group) error {
	if err := h.openLocked(); err != nil {
		return err
	}
	device, err := net.InterfaceByIndex(int(g.index))
	if err != nil {
		return nil //nolint:nilerr // gone, and its groups with it
	}
	// After a restart there may be a filter without a membership.
	err = unix.SetsockoptIPv6Mreq(h.socket, unix.IPPROTO_IPV6, unix.IPV6_LEAVE_GROUP, &unix.IPv6Mreq{Multiaddr: g.addr.As16(), Interface: g.index})
	if err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
		return err
	}
	if err := filter(h.socket, unix.SIOCDELMULTI, device.Name, g.addr); err != nil && !errors.Is(err, unix.ENOENT) {
		return err
	}
	return nil
}

func (h *Herald) openLocked() (err error) {
	if h.socket >= 0 {
		return nil
	}
	h.socket, err = unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		h.socket = -1
		return fmt.Errorf("open socket for multicast groups: %w", err)
	}
	context.AfterFunc(h.ctx, func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		_ = unix.Close(h.socket)
		h.socket = -1
	})
	return nil
}

// filter changes the multicast filter of a device by struct ifreq (netdevice(7)).
func filter(socket int, request uintptr, device string, g netip.Addr) error {
	var r struct {
		name   [unix.IFNAMSIZ]byte
		family uint16
		mac    [6]byte
		_      [16]byte
	}
	copy(r.name[:unix.IFNAMSIZ-1], device)
	r.mac = multicastMAC(g)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(socket), request, uintptr(unsafe.Pointer(&r))); errno != 0 {
		return errno
	}
	return nil
}

// solicitedNode returns ff02::1:ffXX:XXXX.
func solicitedNode(a netip.Addr) netip.Addr {
	b := a.As16()
	g := [16]byte{0: 0xff, 1: 0x02, 11: 1, 12: 0xff, 13: b[13], 14: b[14], 15: b[15]}
	return netip.AddrFrom16(g)
}

// multicastMAC returns the Ethernet address of an IPv6 group (RFC 2464 7).
func multicastMAC(g netip.Addr) [6]byte {
	b := g.As16()
	return [6]byte{0x33, 0x33, b[12], b[13], b[14], b[15]}
}

// send puts the messages about an address on the link.
func send(index uint32, mac [6]byte, addr netip.Addr) error {
	socket, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open packet socket: %w", err)
	}
	defer func() { _ = unix.Close(socket) }()
	for _, frame := range frames(mac, addr) {
		if err := unix.Sendto(socket, frame, 0, &unix.SockaddrLinklayer{Ifindex: int(index), Halen: 6}); err != nil {
			return fmt.Errorf("send: %w", err)
		}
	}
	return nil
}

// frames are the gratuitous messages: ARP as request and as reply, because stacks differ in which of them they learn from (RFC 5227 3),
// or an unsolicited neighbour advertisement to all nodes (RFC 4861 7.2.6).
func frames(mac [6]byte, addr netip.Addr) [][]byte {
	if addr.Is4() {
		return [][]byte{gratuitousARP(mac, addr, 1), gratuitousARP(mac, addr, 2)}
	}
	return [][]byte{unsolicited(mac, addr)}
}

func gratuitousARP(mac [6]byte, addr netip.Addr, op byte) []byte {
	ip := addr.As4()
	f := append([]byte{}, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff)
	f = append(f, mac[:]...)
	f = append(f, 0x08, 0x06, 0, 1, 0x08, 0x00, 6, 4, 0, op)
	f = append(append(f, mac[:]...), ip[:]...)
	target := [6]byte{} // of a request nobody knows it
	if op == 2 {
		target = mac
	}
	return append(append(f, target[:]...), ip[:]...)
}

func unsolicited(mac [6]byte, addr netip.Addr) []byte {
	const override = 0x20
	src, dst := addr.As16(), netip.MustParseAddr("ff02::1").As16()
	nd := append([]byte{136, 0, 0, 0, override, 0, 0, 0}, src[:]...)
	nd = append(append(nd, 2, 1), mac[:]...) // target link-layer address, 8 bytes
	pseudo := append(append([]byte{}, src[:]...), dst[:]...)
	pseudo = binary.BigEndian.AppendUint32(pseudo, uint32(len(nd)))
	pseudo = binary.BigEndian.AppendUint32(pseudo, unix.IPPROTO_ICMPV6)
	binary.BigEndian.PutUint16(nd[2:], checksum(append(pseudo, nd...)))

	f := append([]byte{}, 0x33, 0x33, 0, 0, 0, 1)
	f = append(f, mac[:]...)
	f = append(f, 0x86, 0xdd, 0x60, 0, 0, 0, 0, byte(len(nd)), unix.IPPROTO_ICMPV6, 255)
	f = append(append(f, src[:]...), dst[:]...)
	return append(f, nd...)
}

// checksum is that of RFC 1071 over an even number of bytes.
func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}
