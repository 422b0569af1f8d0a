// Package maps is typed access to every pinned map of the datapath: addresses are netip, ports and ids are numbers in host order.
package maps

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/cilium/ebpf"

	"github.com/strait-net/strait/internal/bpf"
	"github.com/strait-net/strait/internal/config"
	"github.com/strait-net/strait/internal/datapath/pin"
	"github.com/strait-net/strait/internal/flow"
)

// ErrShape is matched by the error that says a pinned map is not as the programs want it.
var ErrShape = errors.New("pinned map has another shape")

// Maps are the open maps of one agent. Methods may be called from any goroutine.
type Maps struct {
	// Ended, if set before anything else is done, is told of connections that Sweep and Purge forget and whose end no packet has told of. Those
	// that a full table pushes out nobody is told of.
	Ended   func(flow.Event)
	byName  map[string]*ebpf.Map
	orphan  orphans
	rebuild rebuilder
	pending []*rebuilt // in the order of their names; until Settle
}

// Spec returns the datapath with its maps in the configured sizes.
func Spec(sizes config.Maps) (*ebpf.CollectionSpec, error) {
	spec, err := bpf.LoadDatapath()
	if err != nil {
		return nil, fmt.Errorf("read embedded programs: %w", err)
	}
	for name, entries := range map[string]uint32{
		bpf.DatapathMapStraitCt:       sizes.Conntrack,
		bpf.DatapathMapStraitNat:      sizes.NAT,
		bpf.DatapathMapStraitService:  sizes.Services,
		bpf.DatapathMapStraitBackend:  sizes.Backends,
		bpf.DatapathMapStraitLoad:     sizes.Backends,
		bpf.DatapathMapStraitSlot:     2 * sizes.Backends, // a backend of a dual-stack or multi-port service is in several
		bpf.DatapathMapStraitIpcache:  sizes.IPCache,
		bpf.DatapathMapStraitIdentity: sizes.Identities,
		bpf.DatapathMapStraitPolicy:   sizes.Policies,
		bpf.DatapathMapStraitPort:     sizes.Ports,
		bpf.DatapathMapStraitRule:     sizes.Rules,
	} {
		if entries > 0 {
			spec.Maps[name].MaxEntries = entries
		}
	}
	spec.Maps[bpf.DatapathMapStraitMaglev].InnerMap.Flags |= anySize
	return spec, nil
}

// SizeEvents sets the size of the ring of records, in bytes: a power of two and a multiple of the page size.
func SizeEvents(spec *ebpf.CollectionSpec, bytes uint32) {
	spec.Maps[bpf.DatapathMapStraitEvents].MaxEntries = bytes
}

// Open opens every pinned map of spec and makes and pins those that are missing. One whose entries have an older form, or whose size was
// changed, is made anew with its entries in it: see Settle. Maps with any other shape stay as they are: the error matches ErrShape and
// names every one of them with both shapes, and nothing is made.
func Open(tree pin.Tree, spec *ebpf.CollectionSpec) (*Maps, error) {
	return openWith(rebuilder{tree, func(string) error { return nil }}, spec)
}

func openWith(r rebuilder, spec *ebpf.CollectionSpec) (_ *Maps, err error) {
	m := &Maps{byName: map[string]*ebpf.Map{}, rebuild: r}
	defer func() {
		if err != nil {
			m.Close()
		}
	}()
	var wrong []error
	var missing, other []*ebpf.MapSpec
	for _, name := range pinnedNames(spec) {
		want := spec.Maps[name]
		have, err := m.find(want)
		switch {
		case err != nil:
			wrong = append(wrong, err)
		case have == nil:
			missing = append(missing, want)
		default:
			m.byName[name] = have
			if shapeOf(have) == shapeOfSpec(want) {
				continue
			}
			if _, known := form(have, want); known {
				other = append(other, want)
				continue
			}
			wrong = append(wrong, fmt.Errorf("%w: %s is %s, want %s", ErrShape, name, shapeOf(have), shapeOfSpec(want)))
		}
	}
	if len(wrong) > 0 {
		return nil, fmt.Errorf("%w\nempty the node with strait uninstall, or go back to the version that has made them", errors.Join(wrong...))
	}
	for _, want := range other {
		if err := m.remake(want); err != nil {
			return nil, err
		}
	}
	for _, want := range missing {
		made, err := ebpf.NewMapWithOptions(want, ebpf.MapOptions{PinPath: r.tree.Maps()})
		if err != nil {
			return nil, fmt.Errorf("create map %s (%s): %w", want.Name, shapeOfSpec(want), r.tree.Explain(err))
		}
		m.byName[want.Name] = made
	}
	return m, nil
}

// find opens a pinned map, nil if there is none. One that was being rebuilt is gone on with.
func (m *Maps) find(want *ebpf.MapSpec) (*ebpf.Map, error) {
	name := want.Name
	have, err := ebpf.LoadPinnedMap(m.rebuild.current(name), nil)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("open pinned map %s: %w", name, err)
	}
	next, err := m.rebuild.resume(name)
	if err != nil || next == nil {
		return have, err
	}
	if have == nil {
		return next, m.rebuild.swap(name)
	}
	if l, known := form(have, want); known && shapeOf(next) == shapeOfSpec(want) {
		m.pending = append(m.pending, &rebuilt{name: name, old: have, form: l})
		return next, nil
	}
	err = m.rebuild.finish(name, have, next)
	_ = have.Close()
	return next, err
}

// remake makes a map anew beside the pinned one.
func (m *Maps) remake(want *ebpf.MapSpec) error {
	old := m.byName[want.Name]
	l, _ := form(old, want)
	made, err := m.rebuild.make(want, old, l)
	if err != nil {
		return err
	}
	m.byName[want.Name] = made
	m.pending = append(m.pending, &rebuilt{name: want.Name, old: old, form: l})
	return nil
}

// OpenPinned opens the maps that are pinned, for reading, and makes none. The error matches os.ErrNotExist when there are none
// at all.
func OpenPinned(tree pin.Tree) (*Maps, error) {
	spec, err := bpf.LoadDatapath()
	if err != nil {
		return nil, fmt.Errorf("read embedded programs: %w", err)
	}
	m := &Maps{byName: map[string]*ebpf.Map{}}
	for _, name := range pinnedNames(spec) {
		have, err := ebpf.LoadPinnedMap(filepath.Join(tree.Next(), name), nil)
		if errors.Is(err, os.ErrNotExist) {
			have, err = ebpf.LoadPinnedMap(filepath.Join(tree.Maps(), name), nil)
		}
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			m.Close()
			return nil, fmt.Errorf("open pinned map %s: %w", name, err)
		}
		m.byName[name] = have
	}
	if len(m.byName) == 0 {
		return nil, fmt.Errorf("open pinned maps in %s: %w", tree.Maps(), os.ErrNotExist)
	}
	return m, nil
}

// Kernel returns the maps by name, for loading programs that use them. They belong to m.
func (m *Maps) Kernel() map[string]*ebpf.Map { return m.byName }

// Close closes the maps; they stay in the kernel.
func (m *Maps) Close() {
	for _, k := range m.byName {
		_ = k.Close()
	}
	for _, p := range m.pending {
		_ = p.old.Close()
	}
}

func pinnedNames(spec *ebpf.CollectionSpec) []string {
	var names []string
	for name, s := range spec.Maps {
		if s.Pinning == ebpf.PinByName {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// shape is what a program and a map have to agree on.
type shape struct {
	kind           ebpf.MapType
	key, value     uint32 // bytes
	entries, flags uint32
}

// String returns "lru_hash of 40 to 96 bytes, 1024 entries, flags 0x0".
func (s shape) String() string {
	return fmt.Sprintf("%s of %d to %d bytes, %d entries, flags 0x%x", s.kind, s.key, s.value, s.entries, s.flags)
}

func shapeOf(m *ebpf.Map) shape {
	return shape{m.Type(), m.KeySize(), m.ValueSize(), m.MaxEntries(), m.Flags()}
}

func shapeOfSpec(s *ebpf.MapSpec) shape {
	return shape{s.Type, s.KeySize, s.ValueSize, s.MaxEntries, s.Flags}
}
