package maps

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/cilium/ebpf"

	"github.com/strait-net/strait/internal/datapath/pin"
)

// A pinned map whose entries have another form or whose size was changed is rebuilt:
//
//	                 pins            programs use   if the agent is killed here
//	Open fills       old             old            nothing has happened
//	Open pins        old, next       old            next is used by no program: it is dropped and made anew
//	agent attaches   old, next       both           next is used: Open goes on with it
//	Settle           next as old     next           done
//
// Entries that programs add to the old map before they are replaced are copied by CatchUp just before, and by Settle after that.

// rebuilt is a map on its way.
type rebuilt struct {
	name string
	old  *ebpf.Map
	form layout // of old
	// merged: programs write to the new map only, and all is in there.
	merged bool
}

// rebuilder is what Open does to maps that are not as wanted. at is told of every step that is done; an error stops there.
type rebuilder struct {
	tree pin.Tree
	at   func(step string) error
}

func (r rebuilder) current(name string) string { return filepath.Join(r.tree.Maps(), name) }

func (r rebuilder) next(name string) string { return filepath.Join(r.tree.Next(), name) }

// resume looks for a map that was being rebuilt when an agent was killed. A nil map: there is none. Programs that use it have entries
// nowhere else.
func (r rebuilder) resume(name string) (*ebpf.Map, error) {
	m, err := ebpf.LoadPinnedMap(r.next(name), nil)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open map %s, which is being rebuilt: %w", name, err)
	}
	used, err := inUse(m)
	if used {
		return m, nil
	}
	_ = m.Close()
	if err != nil {
		return nil, err
	}
	if err := os.Remove(r.next(name)); err != nil {
		return nil, fmt.Errorf("remove map %s, which was being rebuilt: %w", name, err)
	}
	return nil, nil
}

// form returns the form of a map that can be turned into what is wanted.
func form(have *ebpf.Map, want *ebpf.MapSpec) (layout, bool) {
	h, w := shapeOf(have), shapeOfSpec(want)
	if h.kind != w.kind || h.key != w.key || h.flags != w.flags {
		return layout{}, false
	}
	known := layouts(want.Name)
	if len(known) == 0 || known[0].value != w.value {
		return layout{}, false
	}
	i := slices.IndexFunc(known, func(l layout) bool { return l.value == h.value })
	if i < 0 {
		return layout{}, false
	}
	return known[i], true
}

// make makes the map aside and pins it when it is complete, so that a pin is never of a part.
func (r rebuilder) make(want *ebpf.MapSpec, old *ebpf.Map, l layout) (_ *ebpf.Map, err error) {
	fresh := want.Copy()
	fresh.Pinning = ebpf.PinNone
	m, err := ebpf.NewMap(fresh)
	if err != nil {
		return nil, fmt.Errorf("create map %s (%s): %w", want.Name, shapeOfSpec(want), err)
	}
	defer func() {
		if err != nil {
			_ = m.Close()
		}
	}()
	if err := r.at("make " + want.Name); err != nil {
		return nil, err
	}
	if err := l.fill(old, m); err != nil {
		return nil, fmt.Errorf("%w: %s is %s, want %s: its entries cannot be copied: %w", ErrShape, want.Name, shapeOf(old), shapeOfSpec(want),
			refused(m, want.Name, err))
	}
	if err := r.at("fill " + want.Name); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(r.tree.Next(), 0o700); err != nil {
		return nil, fmt.Errorf("rebuild map %s: %w", want.Name, r.tree.Explain(err))
	}
	if err := m.Pin(r.next(want.Name)); err != nil {
		return nil, fmt.Errorf("pin rebuilt map %s: %w", want.Name, r.tree.Explain(err))
	}
	return m, r.at("pin " + want.Name)
}

// swap puts the pin of the rebuilt map in the place of the old one: a rename, which is atomic.
func (r rebuilder) swap(name string) error {
	if err := os.Rename(r.next(name), r.current(name)); err != nil {
		return fmt.Errorf("swap pin of rebuilt map %s: %w", name, r.tree.Explain(err))
	}
	return r.at("swap " + name)
}

// finish ends a rebuilding towards a form that is no longer wanted, so that another can begin.
func (r rebuilder) finish(name string, old, m *ebpf.Map) error {
	for _, l := range layouts(name) {
		if l.value == old.ValueSize() && l.merge != nil && m.ValueSize() == layouts(name)[0].value {
			if err := l.merge(old, m); err != nil {
				return fmt.Errorf("copy entries of %s: %w", name, err)
			}
		}
	}
	return r.swap(name)
}

// Rebuilding returns the names of the maps that Open has made anew and Settle has not finished.
func (m *Maps) Rebuilding() []string {
	var names []string
	for _, p := range m.pending {
		names = append(names, p.name)
	}
	return names
}

// CatchUp copies what programs have added to maps that are being rebuilt since Open. Called just before programs on the new maps take the
// place of those on the old, it keeps the time short in which a new connection is known to the old ones only. Without any it does nothing.
func (m *Maps) CatchUp() error {
	var errs []error
	for _, p := range m.pending {
		errs = append(errs, m.merge(p))
	}
	return errors.Join(errs...)
}

// Settle ends what Open has begun: called when programs on the new maps have taken the place of all others, it copies the last entries and
// swaps the pins. After an error it may be called again. Without maps that are being rebuilt it does nothing.
func (m *Maps) Settle() error {
	var errs []error
	var left []*rebuilt
	for _, p := range m.pending {
		if err := m.settle(p); err != nil {
			errs = append(errs, err)
			left = append(left, p)
		}
	}
	if m.pending = left; len(left) == 0 && m.rebuild.tree != (pin.Tree{}) {
		_ = os.Remove(m.rebuild.tree.Next()) // not there, mostly
	}
	return errors.Join(errs...)
}

func (m *Maps) settle(p *rebuilt) error {
	if !p.merged {
		if err := m.merge(p); err != nil {
			return err
		}
		p.merged = true
		if err := m.rebuild.at("merge " + p.name); err != nil {
			return err
		}
	}
	if err := m.rebuild.swap(p.name); err != nil {
		return err
	}
	_ = p.old.Close()
	return nil
}

func (m *Maps) merge(p *rebuilt) error {
	if p.merged || p.form.merge == nil {
		return nil
	}
	if err := p.form.merge(p.old, m.byName[p.name]); err != nil {
		return fmt.Errorf("copy entries of %s that came meanwhile: %w", p.name, err)
	}
	return nil
}

// inUse reports whether any loaded program uses a map.
func inUse(m *ebpf.Map) (bool, error) {
	info, err := m.Info()
	if err != nil {
		return false, fmt.Errorf("look at map: %w", err)
	}
	want, _ := info.ID()
	for id := ebpf.ProgramID(0); ; {
		id, err = ebpf.ProgramGetNextID(id)
		if errors.Is(err, fs.ErrNotExist) {
			return false, nil
		}
		if err != nil {
			return false, fmt.Errorf("list programs: %w", err)
		}
		p, err := ebpf.NewProgramFromID(id)
		if errors.Is(err, fs.ErrNotExist) {
			continue // unloaded meanwhile
		}
		if err != nil {
			return false, fmt.Errorf("look at program %d: %w", id, err)
		}
		info, err := p.Info()
		_ = p.Close()
		if err != nil {
			return false, fmt.Errorf("look at program %d: %w", id, err)
		}
		if used, _ := info.MapIDs(); slices.Contains(used, want) {
			return true, nil
		}
	}
}
