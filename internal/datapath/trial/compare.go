package trial

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"

	"github.com/cilium/ebpf"

	"github.com/strait-net/strait/internal/datapath/load"
)

// Compare says in which way an attached program is another than the one that is tried; nothing when they decide the same.
func (b *Bench) Compare(name string, id uint32, c load.Config) (differs string, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	mine, err := b.programLocked(name, c)
	if err != nil {
		return "", err
	}
	attached, err := ebpf.NewProgramFromID(ebpf.ProgramID(id))
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Sprintf("program %d is gone", id), nil
	}
	if err != nil {
		return "", fmt.Errorf("open program %d: %w", id, err)
	}
	defer func() { _ = attached.Close() }()
	tag, err := tagOf(attached)
	if err != nil {
		return "", err
	}
	want, err := tagOf(mine)
	if err != nil {
		return "", err
	}
	if tag != want {
		return fmt.Sprintf("its instructions (tag %s) are not those of this agent's %s (tag %s)", tag, name, want), nil
	}
	have, used, err := load.Constants(attached)
	if err != nil {
		return "", err
	}
	constants, _, err := load.Constants(mine)
	if err != nil {
		return "", err
	}
	if !bytes.Equal(have, constants) {
		return "it was loaded with other settings", nil
	}
	return b.strange(used)
}

// strange names a map that is not one of the live ones: the program looks things up elsewhere.
func (b *Bench) strange(used map[ebpf.MapID]string) (string, error) {
	known := map[ebpf.MapID]bool{}
	for name, m := range b.live {
		info, err := m.Info()
		if err != nil {
			return "", fmt.Errorf("look at map %s: %w", name, err)
		}
		if id, ok := info.ID(); ok {
			known[id] = true
		}
	}
	for id, name := range used {
		if spec := b.cfg.Spec.Maps[name]; known[id] || spec != nil && spec.Pinning != ebpf.PinByName { // each load has its own
			continue
		}
		return fmt.Sprintf("it uses map %s (id %d), which is not the one that is pinned", name, id), nil
	}
	return "", nil
}

func tagOf(p *ebpf.Program) (string, error) {
	info, err := p.Info()
	if err != nil {
		return "", fmt.Errorf("look at program: %w", err)
	}
	return info.Tag, nil
}
