package tap

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"runtime"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

const (
	blockSize = 256 << 10 // room for the largest packet; a block is handed over after Linger, however little is in it
	frameSize = 1 << 11   // only for the kernel's arithmetic: frames of version 3 have the size they need
)

// Tap is one socket. One goroutine at a time.
type Tap struct {
	fd   int
	ring []byte
	next int // block that is filled or will be
	seen uint64
	lost uint64
}

// Open makes a Tap in the network namespace of the calling thread; it can be used in any.
func Open(c Config) (t *Tap, err error) {
	// Without a protocol nothing comes in before the socket is bound.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open packet socket: %w", err)
	}
	t = &Tap{fd: fd}
	defer func() {
		if err != nil {
			err = errors.Join(err, t.Close())
		}
	}()
	if err := t.set(c); err != nil {
		return nil, err
	}
	to := unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ALL)}
	if c.Device != "" {
		device, err := net.InterfaceByName(c.Device)
		if err != nil {
			return nil, fmt.Errorf("find device %s: %w", c.Device, err)
		}
		to.Ifindex = device.Index
	}
	if err := unix.Bind(fd, &to); err != nil {
		return nil, fmt.Errorf("bind packet socket to device %q: %w", c.Device, err)
	}
	return t, nil
}

func htons(v uint16) uint16 {
	var b [2]byte
	binary.BigEndian.PutUint16(b[:], v)
	return binary.NativeEndian.Uint16(b[:])
}

func (t *Tap) set(c Config) error {
	if err := unix.SetsockoptInt(t.fd, unix.SOL_PACKET, unix.PACKET_VERSION, unix.TPACKET_V3); err != nil {
		return fmt.Errorf("set version of packet socket: %w", err)
	}
	if c.Incoming {
		if err := unix.SetsockoptInt(t.fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1); err != nil {
			return fmt.Errorf("ignore outgoing packets: %w", err)
		}
	}
	if err := t.attach(c.Filter); err != nil {
		return err
	}
	request := unix.TpacketReq3{
		Block_size: blockSize, Block_nr: uint32(c.Size / blockSize), Frame_size: frameSize, Frame_nr: uint32(c.Size / frameSize),
		Retire_blk_tov: uint32(Linger / time.Millisecond),
	}
	if err := unix.SetsockoptTpacketReq3(t.fd, unix.SOL_PACKET, unix.PACKET_RX_RING, &request); err != nil {
		return fmt.Errorf("make ring of %d bytes: %w", c.Size, err)
	}
	ring, err := unix.Mmap(t.fd, 0, c.Size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("map ring: %w", err)
	}
	t.ring = ring
	return nil
}

func (t *Tap) attach(filter []bpf.Instruction) error {
	raw, err := bpf.Assemble(filter)
	if err != nil {
		return fmt.Errorf("assemble filter: %w", err)
	}
	if len(raw) == 0 {
		return nil
	}
	code := make([]unix.SockFilter, len(raw))
	for i, r := range raw {
		code[i] = unix.SockFilter{Code: r.Op, Jt: r.Jt, Jf: r.Jf, K: r.K}
	}
	program := unix.SockFprog{Len: uint16(len(code)), Filter: &code[0]}
	err = unix.SetsockoptSockFprog(t.fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &program)
	runtime.KeepAlive(code)
	if err != nil {
		return fmt.Errorf("attach filter of %d instructions: %w", len(code), err)
	}
	return nil
}

// block is the kernel's struct tpacket_block_desc, as far as it is read.
type block struct {
	_      uint32 // version
	_      uint32 // offset to private
	header unix.TpacketHdrV1
}

// Read hands all packets that there are to fn, and returns how many.
func (t *Tap) Read(fn func(Frame)) (n int) {
	for range len(t.ring) / blockSize {
		at := t.ring[t.next*blockSize : (t.next+1)*blockSize]
		// The kernel lays out blocks at multiples of the page size: they are aligned.
		b := (*block)(unsafe.Pointer(&at[0])) //nolint:gosec // the layout is the kernel's
		if atomic.LoadUint32(&b.header.Block_status)&unix.TP_STATUS_USER == 0 {
			return n
		}
		n += read(at, b.header, fn)
		atomic.StoreUint32(&b.header.Block_status, unix.TP_STATUS_KERNEL)
		t.next = (t.next + 1) % (len(t.ring) / blockSize)
	}
	return n
}

// read goes through one block. Offsets are the kernel's, and still checked.
func read(at []byte, h unix.TpacketHdrV1, fn func(Frame)) (n int) {
	const link = int(unix.TPACKET_ALIGNMENT) * ((int(unsafe.Sizeof(unix.Tpacket3Hdr{})) + unix.TPACKET_ALIGNMENT - 1) / unix.TPACKET_ALIGNMENT)
	const size = link + int(unsafe.Sizeof(unix.RawSockaddrLinklayer{}))
	offset := int(h.Offset_to_first_pkt)
	for range h.Num_pkts {
		if offset < 0 || offset+size > len(at) {
			return n
		}
		p := (*unix.Tpacket3Hdr)(unsafe.Pointer(&at[offset]))               //nolint:gosec // the layout is the kernel's
		l := (*unix.RawSockaddrLinklayer)(unsafe.Pointer(&at[offset+link])) //nolint:gosec // the layout is the kernel's
		begin := offset + int(p.Mac)
		if end := begin + int(p.Snaplen); end <= len(at) {
			fn(Frame{
				Time: time.Unix(int64(p.Sec), int64(p.Nsec)), Device: int(l.Ifindex), Link: l.Hatype, Out: l.Pkttype == unix.PACKET_OUTGOING,
				Length: int(p.Len), Data: at[begin:end:end],
			})
			n++
		}
		offset += int(p.Next_offset)
	}
	return n
}

// Count is what passed the filter and what of it was lost for want of room, since the Tap was opened.
func (t *Tap) Count() (seen, lost uint64, err error) {
	// The kernel begins anew whenever it is asked.
	s, err := unix.GetsockoptTpacketStatsV3(t.fd, unix.SOL_PACKET, unix.PACKET_STATISTICS)
	if err != nil {
		return t.seen, t.lost, fmt.Errorf("read statistics of packet socket: %w", err)
	}
	t.seen, t.lost = t.seen+uint64(s.Packets), t.lost+uint64(s.Drops)
	return t.seen, t.lost, nil
}

// Close ends it.
func (t *Tap) Close() error {
	var errs []error
	if t.ring != nil {
		errs = append(errs, unix.Munmap(t.ring))
		t.ring = nil
	}
	if t.fd >= 0 {
		errs = append(errs, unix.Close(t.fd))
		t.fd = -1
	}
	return errors.Join(errs...)
}

// Wait waits until one of some taps can be read, or for as long as said.
func Wait(taps []*Tap, limit time.Duration) error {
	var set []unix.PollFd
	for _, t := range taps {
		set = append(set, unix.PollFd{Fd: int32(t.fd), Events: unix.POLLIN})
	}
	if _, err := unix.Poll(set, int(limit/time.Millisecond)); err != nil && !errors.Is(err, unix.EINTR) {
		return fmt.Errorf("wait for packets: %w", err)
	}
	for _, s := range set {
		if s.Revents&(unix.POLLERR|unix.POLLNVAL) != 0 {
			return errors.New("wait for packets: the device is gone or down")
		}
	}
	return nil
}
