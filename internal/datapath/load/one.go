package load

import (
	"fmt"

	"github.com/cilium/ebpf"
)

// One loads a single program of spec, with the constants of c, on the given maps. It is for running it on packets that nobody sends.
func One(spec *ebpf.CollectionSpec, given map[string]*ebpf.Map, c Config, name string) (*ebpf.Program, error) {
	spec, err := adapt(spec, c)
	if err != nil {
		return nil, err
	}
	if spec.Programs[name] == nil {
		return nil, fmt.Errorf("there is no program %s", name)
	}
	for other := range spec.Programs {
		if other != name {
			delete(spec.Programs, other)
		}
	}
	coll, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: given})
	if err != nil {
		return nil, explain(err)
	}
	defer coll.Close()
	return coll.DetachProgram(name), nil
}

// constants is what the loader calls the map of a program's constants.
const constants = ".rodata"

// Constants returns the constants that a loaded program has, as the kernel holds them, and its other maps by id, with their names. It is nil
// for a program without any.
func Constants(p *ebpf.Program) (value []byte, others map[ebpf.MapID]string, err error) {
	others = map[ebpf.MapID]string{}
	info, err := p.Info()
	if err != nil {
		return nil, nil, fmt.Errorf("look at program: %w", err)
	}
	ids, _ := info.MapIDs()
	for _, id := range ids {
		m, err := ebpf.NewMapFromID(id)
		if err != nil {
			return nil, nil, fmt.Errorf("open map %d of program %s: %w", id, info.Name, err)
		}
		info, err := m.Info()
		switch {
		case err != nil:
			err = fmt.Errorf("look at map %d: %w", id, err)
		case info.Name == constants:
			value, err = m.LookupBytes(uint32(0))
		default:
			others[id] = info.Name
		}
		_ = m.Close()
		if err != nil {
			return nil, nil, err
		}
	}
	return value, others, nil
}
