package cli

import (
	"errors"
	"fmt"
	"os"

	"github.com/strait-net/strait/internal/config"
	"github.com/strait-net/strait/internal/datapath/attach"
	"github.com/strait-net/strait/internal/datapath/maps"
	"github.com/strait-net/strait/internal/datapath/netdev"
	"github.com/strait-net/strait/internal/datapath/pin"
	"github.com/strait-net/strait/internal/localapi"
)

// pinTree is where the agent of this node keeps its maps; it is there when the agent is not.
func pinTree() pin.Tree {
	c, err := config.Load(defaultConfig)
	if err != nil {
		c = config.Default() // no file, or one that the agent does not take either
	}
	return pin.At(c.BPFRoot)
}

// pinned reports whether this node has maps of Strait.
func pinned() bool {
	_, err := os.Stat(pinTree().Maps())
	return err == nil
}

// kernelObjects reads from the kernel what strait bpf list prints.
func kernelObjects() (o objects, err error) {
	tree := pinTree()
	m, err := maps.OpenPinned(tree)
	if err != nil {
		return o, err
	}
	defer m.Close()
	list, err := m.List()
	if err != nil {
		return o, err
	}
	for _, d := range list {
		o.Maps = append(o.Maps, localapi.Map{Name: d.Name, Type: d.Type, Entries: d.Entries, Max: d.Max, Bytes: d.Bytes})
	}
	net, err := netdev.Open()
	if err != nil {
		return o, err
	}
	defer net.Close()
	programs, err := attach.New(tree, net, nil, false).List()
	if err != nil {
		return o, err
	}
	for _, p := range programs {
		o.Programs = append(o.Programs, localapi.Program{Name: p.Program, Hook: string(p.Kind), Target: p.Device, ID: p.ProgramID})
	}
	return o, nil
}

// kernelDump reads a map from the kernel.
func kernelDump(name string, limit int, match ...string) (localapi.MapDump, error) {
	m, err := maps.OpenPinned(pinTree())
	if err != nil {
		return localapi.MapDump{}, err
	}
	defer m.Close()
	d, err := m.Dump(name, limit, match...)
	if errors.Is(err, maps.ErrUnknownMap) {
		err = fmt.Errorf("%w: %w", localapi.ErrNotFound, err)
	}
	return localapi.MapDump{Name: d.Name, Columns: d.Columns, Rows: d.Rows, Omitted: d.Omitted}, err
}
