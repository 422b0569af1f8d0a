package agent

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"path/filepath"
	"slices"
	stdsync "sync"
	"time"

	"github.com/strait-net/strait/internal/config"
	"github.com/strait-net/strait/internal/datapath/attach"
	"github.com/strait-net/strait/internal/datapath/load"
	"github.com/strait-net/strait/internal/datapath/maps"
	"github.com/strait-net/strait/internal/datapath/netdev"
	"github.com/strait-net/strait/internal/datapath/pin"
	"github.com/strait-net/strait/internal/datapath/sync"
	"github.com/strait-net/strait/internal/datapath/trial"
	"github.com/strait-net/strait/internal/endpoint"
	"github.com/strait-net/strait/internal/healthcheck"
	"github.com/strait-net/strait/internal/ipam"
	"github.com/strait-net/strait/internal/state"
)

// node is what the agent has of its node: the kernel's side and the local pods.
type node struct {
	name   string // in Kubernetes
	cfg    config.Config
	log    *slog.Logger
	state  *state.State
	tree   pin.Tree
	net    *netdev.Net
	maps   *maps.Maps
	pools  *ipam.Allocator
	keeper *endpoint.Keeper
	netns  uint64 // cookie of the node's network namespace
	// policies is there before the first pod can be attached.
	policies *policies
	tcx      bool
	// newPrograms loads the programs of this build on the maps.
	newPrograms func(load.Config) (*load.Programs, error)
	bench       *trial.Bench

	mu       stdsync.RWMutex // guards loaded programs and what they were loaded with; held for reading while one is being attached
	podMTU   int
	tunnel   int      // index of the tunnel device
	decided  decision // zero: the configuration says who serves Services
	cgroup   string   // empty: socket load balancing is off
	stale    bool     // programs were loaded for another mode
	programs *load.Programs
	// constants is what programs were loaded with.
	constants load.Config
	attacher  *attach.Attacher
}

// openNode opens what the node has; nothing that carries traffic is changed. Programs are not loaded and pods not restored yet.
func openNode(name string, cfg config.Config, log *slog.Logger) (_ *node, err error) {
	n := &node{name: name, cfg: cfg, log: log, state: state.New(), tcx: load.HaveTCX(), pools: ipam.New(cfg.IPAM.CoolDown.Duration)}
	defer func() {
		if err != nil {
			n.close()
		}
	}()
	if n.decided, err = readDecision(cfg); err != nil {
		return nil, err
	}
	if n.cgroup, err = wantedCgroup(cfg, n.decided); err != nil {
		return nil, err
	}
	tree, mounted, err := pin.Prepare(cfg.BPFRoot)
	if err != nil {
		return nil, err
	}
	if mounted {
		log.Info("bpf file system mounted", "at", cfg.BPFRoot)
	}
	n.tree = tree
	if n.net, err = netdev.Open(); err != nil {
		return nil, err
	}
	if n.netns, err = n.net.OwnNetNSCookie(); err != nil {
		return nil, err
	}
	changed, err := netdev.EnableForwarding(cfg.IPv4, cfg.IPv6)
	if err != nil {
		return nil, err
	}
	portLo, portHi, err := cfg.NodePortRange()
	if err != nil {
		return nil, err
	}
	reserved, err := netdev.ReservePorts(portLo, portHi)
	if err != nil {
		return nil, err
	}
	if changed = append(changed, reserved...); len(changed) > 0 {
		log.Info("sysctls set", "changed", changed)
	}
	spec, err := maps.Spec(cfg.Maps)
	if err != nil {
		return nil, err
	}
	maps.SizeEvents(spec, cfg.Flows.Ring)
	if n.maps, err = maps.Open(tree, spec); err != nil {
		return nil, err
	}
	n.newPrograms = func(c load.Config) (*load.Programs, error) { return load.Load(spec, n.maps, c) }
	n.bench = trial.New(trial.Config{Spec: spec, Live: n.maps.Kernel(), Keep: explainKept, Sessions: explainSessions})
	n.keeper = endpoint.New(endpoint.Config{
		Dir: filepath.Join(cfg.StateDir, "endpoints"), Pools: n.pools, Links: n.net, Programs: podPrograms{n}, Maps: n.maps,
		Table: n.state.Endpoints, Problems: n.state.Problems, Log: log, Sources: n.sources,
		OwnNetNS: n.netns, Policies: admitter{n},
	})
	return n, nil
}

func (n *node) close() {
	if n.bench != nil {
		n.bench.Close()
	}
	if n.programs != nil {
		n.programs.Close()
	}
	if n.maps != nil {
		n.maps.Close()
	}
	if n.net != nil {
		n.net.Close()
	}
}

// load makes sure of the tunnel device, and of programs that know it and the MTU: new ones take the place of those attached.
// podMTU 0 is not checked.
func (n *node) load(podMTU int) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	tunnel, changed, err := n.net.EnsureVXLAN(netdev.VXLAN{Port: n.cfg.VXLAN.Port, MTU: podMTU})
	if err != nil {
		return err
	}
	if len(changed) > 0 {
		n.log.Info("tunnel device set up", "device", netdev.VXLANDevice, "changed", changed)
	}
	if n.programs != nil && n.podMTU == podMTU && n.tunnel == tunnel && !n.stale {
		return nil
	}
	lo, hi, err := n.cfg.MasqueradePortRange()
	if err != nil {
		return err
	}
	localLo, localHi, err := netdev.LocalPortRange()
	if err != nil {
		return err
	}
	services := n.cfg.Services
	portLo, portHi, err := n.cfg.NodePortRange()
	if err != nil {
		return err
	}
	imported, err := n.maps.HasImports(lo, hi)
	if err != nil {
		return err
	}
	constants := load.Config{
		Network: n.cfg.Network, VXLANIndex: tunnel, VXLANPort: n.cfg.VXLAN.Port, PodMTU: podMTU,
		MasqueradeLo: lo, MasqueradeHi: hi, LocalLo: localLo, LocalHi: localHi, SocketLB: n.cgroup != "", TCX: n.tcx, Imported: imported || n.decided.Mode == config.ServicesOn,
		Services: n.modeLocked(), NetnsCookie: n.netns, NodePortLo: portLo, NodePortHi: portHi, MaglevSize: services.MaglevSize,
		GuardMark: healthcheck.Mark, XDP: services.XDP != config.XDPOff, Events: n.cfg.Flows.Enabled,
	}
	programs, err := n.newPrograms(constants)
	if err != nil {
		return err
	}
	old := n.programs
	n.programs, n.constants, n.podMTU, n.tunnel, n.stale = programs, constants, podMTU, tunnel, false
	n.attacher = attach.New(n.tree, n.net, programs, n.tcx)
	err = errors.Join(n.takeOverLocked(), n.attachLocked())
	if old != nil {
		old.Close()
	}
	return err
}

// takeOverLocked replaces all programs of earlier starts, wherever they are: they and these must not use different maps for longer than that
// takes. Maps that were made anew are complete then.
func (n *node) takeOverLocked() error {
	if names := n.maps.Rebuilding(); len(names) > 0 {
		n.log.Info("pinned maps made anew, their entries copied", "maps", names)
	}
	if err := n.maps.CatchUp(); err != nil {
		return err
	}
	if err := n.attacher.Refresh(); err != nil {
		return err
	}
	return n.maps.Settle()
}

// attachLocked puts the loaded programs everywhere they belong. A device that has gone meanwhile is no error.
func (n *node) attachLocked() error {
	errs := []error{n.attacher.Tunnel(netdev.VXLANDevice)}
	if n.cgroup != "" {
		errs = append(errs, n.attacher.Cgroup(n.cgroup))
	} else {
		errs = append(errs, n.attacher.DetachCgroup())
	}
	for e := range n.state.Endpoints.Snapshot().All() {
		if err := n.attacher.AttachPod(e.Device, e.DeviceIndex); err != nil {
			n.log.Warn("pod programs not replaced, repaired by the next check", "device", e.Device, "err", err)
		}
	}
	for d := range n.state.Devices.Snapshot().All() {
		if d.Native {
			errs = append(errs, n.attacher.Native(d.Name), n.attacher.XDP(d.Name, n.cfg.Services.XDP))
		}
	}
	return errors.Join(errs...)
}

// followDevices attaches to native devices as they come, detaches from those that are no longer native, and makes the MTU of tunnel,
// programs and pods follow. It begins when the choice of devices is final: until then nothing is taken away.
func (n *node) followDevices(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-n.state.Devices.Initialized():
	}
	for {
		devices := n.state.Devices.Snapshot()
		if err := n.adopt(ctx, slices.Collect(devices.All())); err != nil {
			n.report("devices", err)
		} else {
			state.Clear(n.state.Problems, agentProblems, "devices")
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-devices.Changed():
		case <-time.After(time.Minute):
		}
	}
}

func (n *node) adopt(ctx context.Context, devices []state.Device) error {
	mtu := n.mtuOf(devices)
	if mtu == 0 {
		return errors.New("no device that is up carries an address of this node or a default route: set devices")
	}
	if err := n.load(mtu); err != nil {
		return err
	}
	n.mu.Lock()
	err := n.attachLocked()
	removed, pruneErr := n.attacher.Prune(func(device string) bool {
		return device == netdev.VXLANDevice || slices.ContainsFunc(devices, func(d state.Device) bool { return d.Native && d.Name == device })
	})
	n.mu.Unlock()
	if len(removed) > 0 {
		n.log.Info("programs detached", "from", removed)
	}
	differences, mapErr := sync.Devices(n.maps, slices.Values(devices))
	if len(differences) > 0 {
		n.log.Debug("devices written", "differences", differences)
	}
	return errors.Join(err, pruneErr, mapErr, n.nameSelf(), n.keeper.SetMTU(ctx, mtu))
}

// nameSelf tells the socket programs by which addresses services know the node's own clients.
func (n *node) nameSelf() error {
	var self maps.Netns
	for _, a := range n.sources() {
		if a.Is6() {
			self.IPv6 = a
		} else {
			self.IPv4 = a
		}
	}
	return n.maps.PutNetns(n.netns, self)
}

func (n *node) deviceIndex(name string) (int, bool) {
	d, _, ok := n.state.Devices.Snapshot().Get(name)
	return d.Index, ok
}

// mtuOf returns the largest packet a pod may send to another node, 0 while no device is known.
func (n *node) mtuOf(devices []state.Device) int {
	return netdev.PodMTU(devices, n.cfg.MTU, n.cfg.RoutingMode == config.VXLANMode, n.underlayV6())
}

// underlayV6 reports whether tunnels run over IPv6: only where nodes have no IPv4 address.
func (n *node) underlayV6() bool {
	v4, known := false, false
	for row := range n.state.Nodes.Snapshot().All() {
		known = true
		v4 = v4 || row.Address(false).IsValid()
	}
	return known && !v4
}

// agentProblems is the source of the problems the composition itself finds.
const agentProblems = "agent"

func (n *node) report(subject string, err error) {
	n.log.Warn("problem", "subject", subject, "err", err)
	state.Raise(n.state.Problems, state.Problem{Source: agentProblems, Subject: subject, Text: err.Error()}, time.Now())
}

// self returns this node's row.
func (n *node) self() (state.Node, bool) {
	row, _, ok := n.state.Nodes.Snapshot().Get(n.name)
	return row, ok
}

// addresses returns this node's addresses as Kubernetes knows them.
func (n *node) addresses() []netip.Addr {
	self, _ := n.self()
	return self.Addresses
}

// sources returns the node's first address of each family that is on a device, which its stack uses towards pods.
func (n *node) sources() (out []netip.Addr) {
	present := map[netip.Addr]bool{}
	for d := range n.state.Devices.Snapshot().All() {
		for _, p := range d.Addresses {
			present[p.Addr()] = true
		}
	}
	for _, v6 := range []bool{false, true} {
		i := slices.IndexFunc(n.addresses(), func(a netip.Addr) bool { return a.Is6() == v6 && present[a] })
		if i >= 0 {
			out = append(out, n.addresses()[i])
		}
	}
	return out
}

// podPrograms lets the keeper use whichever programs are loaded now.
type podPrograms struct{ n *node }

func (p podPrograms) AttachPod(device string, index int) error {
	p.n.mu.RLock()
	defer p.n.mu.RUnlock()
	return p.n.attacher.AttachPod(device, index)
}

func (p podPrograms) CheckPod(device string, index int) ([]string, error) {
	p.n.mu.RLock()
	defer p.n.mu.RUnlock()
	return p.n.attacher.CheckPod(device, index)
}

func (p podPrograms) DetachPod(device string) error {
	p.n.mu.RLock()
	defer p.n.mu.RUnlock()
	return p.n.attacher.DetachPod(device)
}
