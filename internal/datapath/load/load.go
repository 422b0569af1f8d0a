// Package load brings the programs into the kernel: tests what the kernel can do, sets the programs' constants, asserts what C
// assumes, and explains what the verifier refused.
package load

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"unsafe"

	"github.com/cilium/ebpf"

	"github.com/strait-net/strait/internal/bpf"
	"github.com/strait-net/strait/internal/config"
	"github.com/strait-net/strait/internal/datapath/maps"
)

// Config is what the programs know as constants. A change of any of it means loading them again.
type Config struct {
	Network      config.Network
	VXLANIndex   int    // of the tunnel device; 0: there is none
	VXLANPort    uint16 // of the tunnel's packets between nodes
	PodMTU       int    // largest packet from a pod to another node; 0: not checked
	MasqueradeLo uint16 // ports of masqueraded connections, inclusive
	MasqueradeHi uint16
	// LocalLo and LocalHi are the node's net.ipv4.ip_local_port_range; zero: not compared.
	LocalLo, LocalHi uint16
	SocketLB         bool
	TCX              bool // programs will be attached by tcx links
	XDP              bool // the program of XDP is wanted

	Services    config.ServiceMode // empty: on
	NetnsCookie uint64             // of the node's own network namespace; 0: it is not told from others
	// NodePortLo and NodePortHi are the ports other programs may not bind to, inclusive; zero: none.
	NodePortLo, NodePortHi uint16
	MaglevSize             uint32 // entries of a table; 0: tables are not used
	GuardMark              uint32 // sockets with this mark may bind to the guarded ports; 0: none may
	Events                 bool   // what happens to connections is told by strait_events
	Imported               bool   // strait_nat has entries of another proxy, whose ports lie outside the range
}

// Programs are the loaded programs. They live until Close or as long as they are attached.
type Programs struct {
	byName map[string]*ebpf.Program
}

// Program returns a loaded program by name, or nil.
func (p *Programs) Program(name string) *ebpf.Program { return p.byName[name] }

// Names returns the names of the loaded programs in order.
func (p *Programs) Names() []string {
	var names []string
	for n := range p.byName {
		names = append(names, n)
	}
	slices.Sort(names)
	return names
}

// Close gives up the programs; attached ones stay in the kernel.
func (p *Programs) Close() {
	for _, k := range p.byName {
		_ = k.Close()
	}
}

// Load loads the programs of spec on the open maps. Nothing is attached. An error of the verifier shows its last words.
func Load(spec *ebpf.CollectionSpec, m *maps.Maps, c Config) (*Programs, error) {
	spec, err := adapt(spec, c)
	if err != nil {
		return nil, err
	}
	coll, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: m.Kernel()})
	if err != nil {
		return nil, explain(err)
	}
	defer coll.Close()
	out := &Programs{byName: map[string]*ebpf.Program{}}
	for name := range spec.Programs {
		out.byName[name] = coll.DetachProgram(name)
	}
	return out, nil
}

// adapt returns a copy of spec with the programs that are wanted and their constants.
func adapt(spec *ebpf.CollectionSpec, c Config) (*ebpf.CollectionSpec, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	if err := assert(spec); err != nil {
		return nil, err
	}
	spec = spec.Copy()
	if err := c.set(spec); err != nil {
		return nil, err
	}
	for name, p := range spec.Programs {
		switch p.Type {
		case ebpf.CGroupSockAddr, ebpf.CGroupSock:
			if !c.SocketLB {
				delete(spec.Programs, name)
			}
		case ebpf.XDP:
			if !c.XDP {
				delete(spec.Programs, name)
			}
		case ebpf.SchedCLS:
			if !c.TCX {
				p.AttachType = ebpf.AttachNone // kernels before tcx know no such attach type
			}
		}
	}
	return spec, nil
}

func (c Config) check() error {
	var errs []error
	if c.MasqueradeLo == 0 || c.MasqueradeLo > c.MasqueradeHi {
		errs = append(errs, fmt.Errorf("masqueradePorts %d-%d: want min-max, both 1 to 65535", c.MasqueradeLo, c.MasqueradeHi))
	}
	if c.LocalHi != 0 && c.MasqueradeLo <= c.LocalHi && c.LocalLo <= c.MasqueradeHi {
		errs = append(errs, fmt.Errorf(
			"masqueradePorts %d-%d overlap net.ipv4.ip_local_port_range %d-%d of this node: connections of pods and of the node would meet",
			c.MasqueradeLo, c.MasqueradeHi, c.LocalLo, c.LocalHi))
	}
	if c.PodMTU != 0 && c.PodMTU < 1280 {
		errs = append(errs, fmt.Errorf("MTU %d of pods: want at least 1280, the least IPv6 allows (RFC 8200)", c.PodMTU))
	}
	if (c.NodePortLo == 0) != (c.NodePortHi == 0) || c.NodePortLo > c.NodePortHi {
		errs = append(errs, fmt.Errorf("services.nodePorts %d-%d: want min-max, both 1 to 65535", c.NodePortLo, c.NodePortHi))
	} else if c.NodePortHi != 0 && c.NodePortLo <= c.MasqueradeHi && c.MasqueradeLo <= c.NodePortHi {
		errs = append(errs, fmt.Errorf("services.nodePorts %d-%d overlap masqueradePorts %d-%d: a reply could not be told from a new connection",
			c.NodePortLo, c.NodePortHi, c.MasqueradeLo, c.MasqueradeHi))
	}
	if _, err := c.network(); err != nil {
		errs = append(errs, err)
	}
	if _, err := c.services(); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func (c Config) services() (bpf.ServiceMode, error) {
	switch c.Services {
	case config.ServicesOn, "":
		return bpf.ServicesOn, nil
	case config.ServicesOff:
		return bpf.ServicesOff, nil
	case config.ServicesDrain:
		return bpf.ServicesDrain, nil
	}
	return 0, fmt.Errorf("services.mode %q: want %s, %s or %s", c.Services, config.ServicesOn, config.ServicesOff, config.ServicesDrain)
}

func (c Config) network() (bpf.Network, error) {
	switch c.Network {
	case config.Island:
		return bpf.NetworkIsland, nil
	case config.Flat:
		return bpf.NetworkFlat, nil
	case config.Isolated:
		return bpf.NetworkIsolated, nil
	}
	return 0, fmt.Errorf("network %q: want %s, %s or %s", c.Network, config.Island, config.Flat, config.Isolated)
}

func (c Config) set(spec *ebpf.CollectionSpec) error {
	network, err := c.network()
	if err != nil {
		return err
	}
	services, err := c.services()
	if err != nil {
		return err
	}
	for name, value := range map[string]any{
		bpf.DatapathVarCfgServices:     services,
		bpf.DatapathVarCfgNetnsCookie:  c.NetnsCookie,
		bpf.DatapathVarCfgNodePortMin:  c.NodePortLo,
		bpf.DatapathVarCfgNodePortMax:  c.NodePortHi,
		bpf.DatapathVarCfgMaglevSize:   c.MaglevSize,
		bpf.DatapathVarCfgGuardMark:    c.GuardMark,
		bpf.DatapathVarCfgImported:     c.Imported,
		bpf.DatapathVarCfgEvents:       c.Events,
		bpf.DatapathVarCfgNetwork:      network,
		bpf.DatapathVarCfgVxlanIfindex: uint32(c.VXLANIndex),
		bpf.DatapathVarCfgVxlanPort:    c.VXLANPort,
		bpf.DatapathVarCfgPodMtu:       uint32(c.PodMTU),
		bpf.DatapathVarCfgMasqPortMin:  c.MasqueradeLo,
		bpf.DatapathVarCfgMasqPortMax:  c.MasqueradeHi,
	} {
		v, ok := spec.Variables[name]
		if !ok {
			return fmt.Errorf("programs have no constant %s", name)
		}
		if err := v.Set(value); err != nil {
			return fmt.Errorf("set constant %s to %v: %w", name, value, err)
		}
	}
	return nil
}

// size is what both sides think of a map's entries, in bytes.
type size struct {
	name       string
	key, value uintptr
}

func sizeOf[K, V any](name string) size {
	var k K
	var v V
	return size{name, unsafe.Sizeof(k), unsafe.Sizeof(v)}
}

// assert compares the Go form of every entry with the programs'. They come from one header, unless one was built without the other.
func assert(spec *ebpf.CollectionSpec) error {
	var errs []error
	for _, s := range []size{
		sizeOf[bpf.Addr, bpf.Endpoint](bpf.DatapathMapStraitEndpoint),
		sizeOf[bpf.IpcacheKey, bpf.Remote](bpf.DatapathMapStraitIpcache),
		sizeOf[uint32, bpf.Device](bpf.DatapathMapStraitDevice),
		sizeOf[bpf.CtKey, bpf.CtEntry](bpf.DatapathMapStraitCt),
		sizeOf[bpf.NatKey, bpf.NatEntry](bpf.DatapathMapStraitNat),
		sizeOf[bpf.FragKey, bpf.FragEntry](bpf.DatapathMapStraitFrag),
		sizeOf[bpf.SockaddrKey, bpf.Service](bpf.DatapathMapStraitService),
		sizeOf[bpf.SlotKey, bpf.Slot](bpf.DatapathMapStraitSlot),
		sizeOf[uint32, bpf.Load](bpf.DatapathMapStraitLoad),
		sizeOf[bpf.AffinityKey, bpf.Affinity](bpf.DatapathMapStraitAffinity),
		sizeOf[uint64, bpf.Netns](bpf.DatapathMapStraitNetns),
		sizeOf[bpf.SourceKey, uint32](bpf.DatapathMapStraitSource),
		sizeOf[bpf.AnnounceKey, bpf.Announce](bpf.DatapathMapStraitAnnounce),
		sizeOf[uint32, uint32](bpf.DatapathMapStraitMaglev),
		sizeOf[uint32, bpf.Backend](bpf.DatapathMapStraitBackend),
		sizeOf[int32, bpf.SkPeer](bpf.DatapathMapStraitSk),
		sizeOf[int32, bpf.SkUse](bpf.DatapathMapStraitSkUse),
		sizeOf[bpf.DgramKey, bpf.SockaddrKey](bpf.DatapathMapStraitDgram),
		sizeOf[uint32, bpf.Counter](bpf.DatapathMapStraitCounter),
		sizeOf[bpf.MutedKey, bpf.Muted](bpf.DatapathMapStraitMuted),
		sizeOf[bpf.EventKind, bpf.Lost](bpf.DatapathMapStraitLost),
	} {
		m, ok := spec.Maps[s.name]
		if !ok {
			errs = append(errs, fmt.Errorf("programs have no map %s", s.name))
			continue
		}
		if uintptr(m.KeySize) != s.key || uintptr(m.ValueSize) != s.value {
			errs = append(errs, fmt.Errorf("map %s holds %d to %d bytes in the programs, %d to %d in this binary", s.name,
				m.KeySize, m.ValueSize, s.key, s.value))
		}
	}
	return errors.Join(errs...)
}

// verifierLines is how much of the verifier's log is worth reading: the end says what it refused.
const verifierLines = 12

func explain(err error) error {
	var refused *ebpf.VerifierError
	if !errors.As(err, &refused) {
		return fmt.Errorf("load programs: %w", err)
	}
	lines := refused.Log
	if n := len(lines); n > 0 && strings.HasPrefix(lines[n-1], "processed ") {
		lines = lines[:n-1]
	}
	if omitted := len(lines) - verifierLines; omitted > 0 {
		lines = append([]string{fmt.Sprintf("(%d lines before)", omitted)}, lines[omitted:]...)
	}
	return fmt.Errorf("load programs on kernel %s: the verifier refused: %w\n\t%s", release(), err, strings.Join(lines, "\n\t"))
}
