// Package trial runs the datapath's programs on packets that nobody sends: on the live maps wherever programs only read, and on private
// ones for what they write, so that nothing is modelled and nothing is changed.
package trial

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/cilium/ebpf"

	"github.com/strait-net/strait/internal/bpf"
	"github.com/strait-net/strait/internal/datapath/load"
	"github.com/strait-net/strait/internal/verdict"
)

// Config is what a Bench needs.
type Config struct {
	Spec *ebpf.CollectionSpec // of the live maps
	Live map[string]*ebpf.Map // by name; they stay the caller's
	// Keep is how long what a session has left stays without being used.
	Keep time.Duration
	// Sessions is how many sessions are remembered at most.
	Sessions int
}

// Bench is where packets are tried. Methods may be called from any goroutine; one packet is tried at a time.
type Bench struct {
	cfg  Config
	live map[string]*ebpf.Map

	mu       sync.Mutex // guards everything below
	loaded   load.Config
	own      map[string]*ebpf.Map     // private maps
	programs map[string]*ebpf.Program // loaded when first asked for, until the constants change
	sessions map[string]*session
}

// session is what the packets of one path have left here.
type session struct {
	rows rows
	used time.Time
}

// New returns a bench on which nothing is loaded yet.
func New(c Config) *Bench {
	return &Bench{cfg: c, live: c.Live, sessions: map[string]*session{}, programs: map[string]*ebpf.Program{}}
}

// Close gives everything up.
func (b *Bench) Close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.releaseLocked()
}

// Warm loads a program, so that nobody waits for it later. It reports whether it was loaded already.
func (b *Bench) Warm(name string, c load.Config) (loaded bool, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	loaded = b.loaded == c && b.programs[name] != nil
	_, err = b.programLocked(name, c)
	return loaded, err
}

func (b *Bench) releaseLocked() {
	for _, p := range b.programs {
		_ = p.Close()
	}
	for _, m := range b.own {
		_ = m.Close()
	}
	b.programs, b.own, b.sessions = map[string]*ebpf.Program{}, nil, map[string]*session{}
}

// Run is one packet through one program.
type Run struct {
	Session   string // packets of one session find what the earlier ones have left
	Program   string
	Constants load.Config // what the attached programs were loaded with
	Device    int         // whose hook it is
	Ingress   int         // the device that the node's stack has it from; 0: the stack's own
	Sender    netip.Addr  // of the tunnel's packet that carried it
	Packet    Packet
	// Established: the entries of its connection are in the trial as well.
	Established bool
}

// Action is what a program tells the kernel to do.
type Action int

// The actions.
const (
	Pass     Action = iota // on its way
	Drop                   // no further
	Redirect               // out of another device, or into a pod
)

// Result is what a program has decided.
type Result struct {
	Action  Action
	Reason  verdict.Reason // Unknown: nothing was counted
	Counted bool
	Packet  Packet // as it is afterwards
	Rules   []uint32
	// Connections and Ways are the entries of strait_ct and strait_nat that are new or have changed.
	Connections []Connection
	Ways        []Way
}

// Connection is a row of strait_ct, and Way one of strait_nat.
type (
	Connection struct {
		Key   bpf.CtKey
		Value bpf.CtEntry
	}
	Way struct {
		Key   bpf.NatKey
		Value bpf.NatEntry
	}
)

// Run tries a packet. The devices have to be there, and the calling thread in their network namespace.
func (b *Bench) Run(r Run) (Result, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	program, err := b.programLocked(r.Program, r.Constants)
	if err != nil {
		return Result{}, err
	}
	s := b.sessionLocked(r.Session)
	if err := b.prepare(s.rows, r.Packet, r.Established); err != nil {
		return Result{}, err
	}
	if err := b.setLocked(s.rows); err != nil {
		return Result{}, err
	}
	if r.Sender.IsValid() {
		kind := b.cfg.Spec.Programs[r.Program].AttachType // a program leads only to its like
		if !r.Constants.TCX {
			kind = ebpf.AttachNone
		}
		carried, err := carry(program, kind, r.Sender)
		if err != nil {
			return Result{}, err
		}
		defer carried.close()
		program = carried.program
	}
	out, err := run(program, r)
	if err != nil {
		return Result{}, fmt.Errorf("try %s on %s to %s: %w", r.Program, r.Packet.Source, r.Packet.Target, err)
	}
	return out, b.readLocked(s, &out)
}

// context is the part of struct __sk_buff that a test run takes.
type context struct {
	_              [36]byte
	IngressIfindex uint32
	Ifindex        uint32
	_              [148]byte
}

// express is struct xdp_md, the context of XDP.
type express struct {
	Data, DataEnd, DataMeta, IngressIfindex, RxQueue, EgressIfindex uint32
}

// likeXDP is the action of tc that does what one of XDP does.
func likeXDP(act uint32) uint32 {
	const aborted, drop, pass, tx, redirect = 0, 1, 2, 3, 4
	switch act {
	case aborted, drop:
		return actShot
	case pass:
		return actOK
	case tx, redirect:
		return actRedirect
	}
	return notExecuted
}

const (
	contextLen = 192 // of struct __sk_buff, which is given whole
	spare      = 256 // for headers that a program adds

	actUnspec   = ^uint32(0)
	actOK       = 0
	actShot     = 2
	actRedirect = 7
)

func run(program *ebpf.Program, r Run) (out Result, err error) {
	frame, err := r.Packet.Frame()
	if err != nil {
		return out, err
	}
	opts := ebpf.RunOptions{
		Data: frame, DataOut: make([]byte, len(frame)+spare), ContextOut: make([]byte, contextLen),
		Context: context{Ifindex: uint32(r.Device), IngressIfindex: uint32(r.Ingress)},
	}
	if program.Type() == ebpf.XDP {
		opts.Context, opts.ContextOut = express{DataEnd: uint32(len(frame)), IngressIfindex: uint32(r.Device)}, nil
	}
	act, err := program.Run(&opts)
	if err != nil {
		return out, err
	}
	if program.Type() == ebpf.XDP {
		act = likeXDP(act)
	}
	switch act {
	case actUnspec, actOK:
		out.Action = Pass
	case actShot:
		out.Action = Drop
	case actRedirect:
		out.Action = Redirect
	default:
		return out, fmt.Errorf("action %d is none that the programs know", int32(act))
	}
	out.Packet, err = Read(opts.DataOut)
	return out, err
}

// sessionLocked returns a session, and forgets those that are too old or too many.
func (b *Bench) sessionLocked(name string) *session {
	now := time.Now()
	s := b.sessions[name]
	if s == nil {
		s = &session{rows: rows{}}
		b.sessions[name] = s
	}
	s.used = now
	for len(b.sessions) > b.cfg.Sessions {
		oldest := ""
		for other, o := range b.sessions {
			if other != name && (oldest == "" || o.used.Before(b.sessions[oldest].used)) {
				oldest = other
			}
		}
		if oldest == "" {
			break
		}
		delete(b.sessions, oldest)
	}
	for other, o := range b.sessions {
		if now.Sub(o.used) > b.cfg.Keep {
			delete(b.sessions, other)
		}
	}
	return s
}

// programLocked returns a program, loaded with the constants on this bench's maps.
func (b *Bench) programLocked(name string, c load.Config) (*ebpf.Program, error) {
	if b.own != nil && b.loaded != c {
		b.releaseLocked()
	}
	if p := b.programs[name]; p != nil {
		return p, nil
	}
	spec := b.cfg.Spec.Copy()
	given, err := b.mapsLocked(spec)
	if err != nil {
		return nil, err
	}
	p, err := load.One(spec, given, c, name)
	if err != nil {
		return nil, err
	}
	b.loaded, b.programs[name] = c, p
	return p, nil
}

// mapsLocked changes the spec to the maps of a trial, makes the private ones, and returns all.
func (b *Bench) mapsLocked(spec *ebpf.CollectionSpec) (map[string]*ebpf.Map, error) {
	made := b.own == nil
	if made {
		b.own = map[string]*ebpf.Map{}
	}
	given := map[string]*ebpf.Map{}
	for name, m := range spec.Maps {
		if m.Pinning != ebpf.PinByName {
			continue // constants: each program has its own
		}
		if !private(name, m) {
			if given[name] = b.live[name]; given[name] == nil {
				return nil, fmt.Errorf("map %s is not open", name)
			}
			continue
		}
		if made {
			own, err := ebpf.NewMap(m)
			if err != nil {
				b.releaseLocked()
				return nil, fmt.Errorf("make private map %s: %w", name, err)
			}
			b.own[name] = own
		}
		given[name] = b.own[name]
	}
	return given, nil
}

// setLocked brings the private maps to what a session knows.
func (b *Bench) setLocked(r rows) error {
	for _, name := range remembered() {
		if err := restore(b.own[name], r[name]); err != nil {
			return fmt.Errorf("set private map %s: %w", name, err)
		}
	}
	if muted := b.own["strait_muted"]; muted != nil {
		if err := restore(muted, nil); err != nil {
			return fmt.Errorf("empty private map %s: %w", "strait_muted", err)
		}
	}
	return nil
}

// readLocked finds out what a program has written, and empties its counters.
func (b *Bench) readLocked(s *session, out *Result) error {
	reasons, err := b.takeLocked(bpf.DatapathMapStraitCounter)
	if err != nil {
		return err
	}
	if out.Rules, err = b.takeLocked(bpf.DatapathMapStraitRule); err != nil {
		return err
	}
	if len(reasons) > 0 {
		out.Reason, out.Counted = verdict.Reason(reasons[0]), true
	}
	before := s.rows
	s.rows = rows{}
	for _, name := range remembered() {
		if s.rows[name], err = content(b.own[name]); err != nil {
			return fmt.Errorf("read private map %s: %w", name, err)
		}
	}
	for key, value := range s.rows[bpf.DatapathMapStraitCt] {
		if !bytes.Equal(before[bpf.DatapathMapStraitCt][key], value) {
			out.Connections = append(out.Connections, Connection{typed[bpf.CtKey]([]byte(key)), typed[bpf.CtEntry](value)})
		}
	}
	for key, value := range s.rows[bpf.DatapathMapStraitNat] {
		if !bytes.Equal(before[bpf.DatapathMapStraitNat][key], value) {
			out.Ways = append(out.Ways, Way{typed[bpf.NatKey]([]byte(key)), typed[bpf.NatEntry](value)})
		}
	}
	return nil
}

// takeLocked returns the indexes of a private array of counters that have counted, and sets them to zero.
func (b *Bench) takeLocked(name string) (moved []uint32, err error) {
	m := b.own[name]
	keys, values := make([]uint32, m.MaxEntries()), make([]bpf.Counter, m.MaxEntries())
	var cursor ebpf.MapBatchCursor
	n, err := m.BatchLookup(&cursor, keys, values, nil)
	if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil, fmt.Errorf("read private map %s: %w", name, err)
	}
	for i := range n {
		if values[i].Packets == 0 {
			continue
		}
		moved = append(moved, keys[i])
		if err := m.Put(keys[i], bpf.Counter{}); err != nil {
			return nil, fmt.Errorf("empty private map %s: %w", name, err)
		}
	}
	slices.Sort(moved)
	return moved, nil
}
