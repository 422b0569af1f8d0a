package maps

import (
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/strait-net/strait/internal/bpf"
)

// How long a connection may be silent before it is forgotten, by its state. The values for TCP are above the longest
// keepalive (7200 s) while established, and those of the kernel's own conntrack otherwise.
const (
	tcpEstablished = 8000 * time.Second
	tcpHalfClosed  = 120 * time.Second // one end has sent FIN
	tcpClosed      = 10 * time.Second  // both have, or a reset was seen
	tcpUnanswered  = 60 * time.Second
	udpAnswered    = 180 * time.Second
	udpUnanswered  = 60 * time.Second
	icmpSilent     = 30 * time.Second
	otherSilent    = 600 * time.Second
)

// timeout is pure: the state machine of a connection is in its flags.
func timeout(protocol uint8, flags bpf.CtFlags) time.Duration {
	switch protocol {
	case unix.IPPROTO_TCP:
		const fins = bpf.CtFinLo | bpf.CtFinHi
		switch {
		case flags&bpf.CtRst != 0, flags&fins == fins:
			return tcpClosed
		case flags&fins != 0:
			return tcpHalfClosed
		case flags&bpf.CtReplied != 0:
			return tcpEstablished
		}
		return tcpUnanswered
	case unix.IPPROTO_UDP:
		if flags&bpf.CtReplied != 0 {
			return udpAnswered
		}
		return udpUnanswered
	case unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6:
		return icmpSilent
	}
	return otherSilent
}

func expired(k bpf.CtKey, e bpf.CtEntry, nowSeconds uint32) bool {
	silent := int32(nowSeconds - e.LastSeen) // negative when a packet came while we were reading
	return silent >= 0 && time.Duration(silent)*time.Second > timeout(k.Proto, e.Flags)
}

// natKey returns where the way back of a connection with another source is kept. The replies come from the other end; to a service they
// come from its backend, which is unknown (not ok) once its row is gone.
func natKey(k bpf.CtKey, e bpf.CtEntry, back backends) (bpf.NatKey, bool) {
	if e.Flags&bpf.CtNat == 0 {
		return bpf.NatKey{}, false
	}
	n := bpf.NatKey{Node: e.NatAddr, NodePort: e.NatPort, Remote: k.Hi, RemotePort: k.HiPort, Proto: k.Proto}
	if e.Flags&bpf.CtHiBegan != 0 {
		n.Remote, n.RemotePort = k.Lo, k.LoPort
	}
	if k.Proto == unix.IPPROTO_ICMP || k.Proto == unix.IPPROTO_ICMPV6 {
		n.RemotePort = 0 // echo: the identifier is the node's port
	}
	if e.Flags&bpf.CtService != 0 {
		b, ok := back[e.Backend]
		if !ok || b.Generation != e.BackendGen {
			return bpf.NatKey{}, false
		}
		n.Remote, n.RemotePort = b.Addr, b.Port
	}
	return n, true
}

// backends is strait_backend as it was when a sweep began.
type backends map[uint32]bpf.Backend

// Swept is what a sweep found and did.
type Swept struct {
	Connections int // seen
	Expired     int // of them removed
	NAT         int // ways back seen
	Orphans     int // of them removed because their connection is gone
	Loads       int // counts of backends that were set right
	Took        time.Duration
}

// orphans remembers ways back that had no connection in the last sweep: one that is just being made has none yet.
type orphans struct {
	mu   sync.Mutex // one sweep at a time
	seen map[bpf.NatKey]bool
}

// Sweep forgets connections that have been silent too long, and ways back whose connection is gone.
func (m *Maps) Sweep() (Swept, error) {
	m.orphan.mu.Lock()
	defer m.orphan.mu.Unlock()
	begin := time.Now()
	now, err := clock()
	if err != nil {
		return Swept{}, err
	}
	sweep := sweep{Maps: m, at: begin, now: uint32(now / time.Second), back: backends{}, tracked: map[uint32]uint32{}}
	err = each(m, bpf.DatapathMapStraitBackend, func(id uint32, b bpf.Backend) { sweep.back[id] = b })
	if err == nil {
		err = sweep.connections()
	}
	if err == nil {
		err = errors.Join(sweep.ways(), sweep.loads())
	}
	sweep.found.Took = time.Since(begin)
	return sweep.found, err
}

// sweep is one sweep under way.
type sweep struct {
	*Maps
	at      time.Time
	now     uint32 // s
	back    backends
	tracked map[uint32]uint32 // backend id -> entries of clients that have not ended
	found   Swept
}

func (s *sweep) connections() error {
	ct, err := s.get(bpf.DatapathMapStraitCt)
	if err != nil {
		return err
	}
	var errs []error
	err = scan(ct, func(k bpf.CtKey, e bpf.CtEntry) bool {
		s.found.Connections++
		if !expired(k, e, s.now) {
			s.count(k, e)
			return true
		}
		// A packet may have revived it since the chunk was read.
		if err := ct.Lookup(&k, &e); err != nil || !expired(k, e, s.now) {
			return true
		}
		if err := s.forget(k, e); err != nil {
			errs = append(errs, err)
			return true
		}
		s.found.Expired++
		return true
	})
	if err != nil {
		errs = append(errs, fmt.Errorf("sweep connections: %w", err))
	}
	return errors.Join(errs...)
}

func (s *sweep) count(k bpf.CtKey, e bpf.CtEntry) {
	const fins = bpf.CtFinLo | bpf.CtFinHi
	if e.Flags&bpf.CtService == 0 || k.Proto == unix.IPPROTO_TCP && (e.Flags&bpf.CtRst != 0 || e.Flags&fins == fins) {
		return
	}
	if b, ok := s.back[e.Backend]; ok && b.Generation == e.BackendGen {
		s.tracked[e.Backend]++
	}
}

// forget removes a connection and its way back. The way back goes first: without a connection nothing refers to it.
func (s *sweep) forget(k bpf.CtKey, e bpf.CtEntry) error {
	if n, ok := natKey(k, e, s.back); ok {
		if err := remove(s.Maps, bpf.DatapathMapStraitNat, n); err != nil {
			return err
		}
	}
	if err := remove(s.Maps, bpf.DatapathMapStraitCt, k); err != nil {
		return err
	}
	s.tellEnd(k, e, s.back, s.at)
	return nil
}

func (s *sweep) ways() error {
	ct, err := s.get(bpf.DatapathMapStraitCt)
	if err != nil {
		return err
	}
	alone := map[bpf.NatKey]bool{}
	var errs []error
	err = each(s.Maps, bpf.DatapathMapStraitNat, func(k bpf.NatKey, e bpf.NatEntry) {
		s.found.NAT++
		if s.connected(ct, k, e) {
			return
		}
		if !s.orphan.seen[k] {
			alone[k] = true
			return
		}
		if err := remove(s.Maps, bpf.DatapathMapStraitNat, k); err != nil {
			errs = append(errs, err)
			return
		}
		s.found.Orphans++
	})
	s.orphan.seen = alone
	return errors.Join(append(errs, err)...)
}

// connected reports whether the connection of a way back exists and uses it. Which end is the low one is not worth knowing here.
func (s *sweep) connected(ct *ebpf.Map, k bpf.NatKey, e bpf.NatEntry) bool {
	begun := bpf.CtKey{Lo: e.Client, LoPort: e.ClientPort, Hi: k.Remote, HiPort: k.RemotePort, Proto: k.Proto}
	if k.Proto == unix.IPPROTO_ICMP || k.Proto == unix.IPPROTO_ICMPV6 {
		begun.HiPort = e.ClientPort
	}
	if e.FrontPort != 0 {
		begun.Hi, begun.HiPort = e.FrontAddr, e.FrontPort
	}
	other := bpf.CtKey{Lo: begun.Hi, LoPort: begun.HiPort, Hi: begun.Lo, HiPort: begun.LoPort, Proto: k.Proto}
	for _, key := range []bpf.CtKey{begun, other} {
		var c bpf.CtEntry
		switch err := ct.Lookup(&key, &c); {
		case errors.Is(err, ebpf.ErrKeyNotExist):
		case err != nil:
			return true // not known: it stays
		case c.Flags&bpf.CtNat != 0 && c.NatAddr == k.Node && c.NatPort == k.NodePort:
			return s.leadsTo(c, k)
		}
	}
	return false
}

// leadsTo reports whether a connection goes to the sender of the replies of a way back: one to a service may have another backend now.
// That of a backend whose row is gone stays as long as the connection.
func (s *sweep) leadsTo(c bpf.CtEntry, k bpf.NatKey) bool {
	if c.Flags&bpf.CtService == 0 {
		return true
	}
	b, ok := s.back[c.Backend]
	return !ok || b.Generation != c.BackendGen || b.Addr == k.Remote && b.Port == k.RemotePort
}

// Purge removes every trace of addresses from the tables that packets write, so that they can be given to other pods. It costs
// the same for one address as for many.
func (m *Maps) Purge(addresses []netip.Addr) error {
	gone := make(map[bpf.Addr]bool, len(addresses))
	for _, a := range addresses {
		gone[bpf.AddrFrom(a)] = true
	}
	if len(gone) == 0 {
		return nil
	}
	now := time.Now()
	return errors.Join(
		purge(m, bpf.DatapathMapStraitCt, func(k bpf.CtKey, e bpf.CtEntry) bool {
			hit := gone[k.Lo] || gone[k.Hi]
			if hit {
				m.tellEnd(k, e, nil, now)
			}
			return hit
		}),
		purge(m, bpf.DatapathMapStraitNat, func(k bpf.NatKey, e bpf.NatEntry) bool { return gone[e.Client] || gone[k.Remote] }),
		purge(m, bpf.DatapathMapStraitFrag, func(k bpf.FragKey, _ bpf.FragEntry) bool { return gone[k.Src] || gone[k.Dst] }),
		purge(m, bpf.DatapathMapStraitDgram, func(k bpf.DgramKey, _ bpf.SockaddrKey) bool { return gone[k.Backend.Addr] }),
		purge(m, bpf.DatapathMapStraitAffinity, func(k bpf.AffinityKey, _ bpf.Affinity) bool { return gone[k.Client] }),
	)
}

func purge[K comparable, V any](m *Maps, name string, match func(K, V) bool) error {
	var found []K
	if err := each(m, name, func(k K, v V) {
		if match(k, v) {
			found = append(found, k)
		}
	}); err != nil {
		return err
	}
	var errs []error
	for _, k := range found {
		errs = append(errs, remove(m, name, k))
	}
	return errors.Join(errs...)
}

// clock is that of ct_entry.last_seen and, in nanoseconds, of ct_entry.began.
func clock() (time.Duration, error) {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC_COARSE, &ts); err != nil {
		return 0, fmt.Errorf("read monotonic clock: %w", err)
	}
	return time.Duration(ts.Nano()), nil
}
