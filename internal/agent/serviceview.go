package agent

import (
	"errors"
	"time"

	"golang.org/x/sys/unix"

	"github.com/strait-net/strait/internal/bpf"
	"github.com/strait-net/strait/internal/config"
	"github.com/strait-net/strait/internal/datapath/maps"
	"github.com/strait-net/strait/internal/localapi"
	"github.com/strait-net/strait/internal/state"
	"github.com/strait-net/strait/internal/status"
)

// kubeProxyStatus says how services are served, and counts what there is of them.
func (a *agent) kubeProxyStatus() (localapi.KubeProxy, error) {
	cfg := a.cfg.Services
	mode, decided := a.serviceMode()
	k := localapi.KubeProxy{
		Mode: string(mode), SocketLB: a.cgroupDir() != "" && mode == config.ServicesOn, Cgroup: a.cgroupDir(),
		Protocols: []string{"TCP", "UDP", "SCTP"}, Devices: a.nativeDevices(),
		Forwarding: cfg.Forwarding, Algorithm: cfg.Algorithm, XDP: string(cfg.XDP), NodePorts: cfg.NodePorts, Announce: cfg.Announce,
		ByType: map[string]int{},
	}
	if !decided.IsZero() {
		k.Decided = &decided
	}
	for f := range a.state.Frontends.Snapshot().All() {
		k.Frontends++
		k.ByType[string(f.Type)]++
	}
	return k, errors.Join(
		a.maps.EachBackend(func(_ uint32, b maps.Backend) {
			k.Backends++
			if b.Flags&bpf.BackendLeaving != 0 {
				k.Leaving++
			}
		}),
		a.maps.EachTable(func(uint32, uint32) { k.MaglevTables++ }),
	)
}

// kernelServices reads what the kernel holds of services: a few system calls for each 2,048 rows.
func (a *agent) kernelServices() (status.KernelServices, error) {
	k := status.KernelServices{
		Frontends: map[status.Target]status.KernelFrontend{}, Backends: map[status.Target]status.KernelBackend{},
		Affinity: map[status.KernelAffinity]int{},
	}
	loads, generations := map[uint32]maps.Load{}, map[uint32]uint32{} // by backend
	timeouts := map[uint32]time.Duration{}                            // by set
	err := errors.Join(
		a.maps.EachService(func(f maps.Frontend, s maps.Service) {
			k.Frontends[target(f)] = status.KernelFrontend{ID: s.ID, Set: s.Set, OuterSet: s.OuterSet}
			timeouts[s.Set] = time.Duration(s.Affinity) * time.Second
			timeouts[s.OuterSet] = timeouts[s.Set]
		}),
		a.maps.EachLoad(func(id uint32, l maps.Load) { loads[id] = l }),
		a.maps.EachBackend(func(id uint32, b maps.Backend) {
			l := loads[id]
			generations[id] = b.Generation
			k.Backends[status.Target{AddrPort: b.AddrPort, Protocol: state.Protocol(b.Protocol)}] = status.KernelBackend{
				ID: id, Leaving: b.Flags&bpf.BackendLeaving != 0, Open: l.Sockets + l.Tracked, Ever: l.Connections,
			}
		}),
	)
	if err != nil {
		return k, err
	}
	now, err := monotonicSeconds()
	if err != nil {
		return k, err
	}
	return k, a.maps.EachAffinity(func(c maps.Affinity) {
		idle := time.Duration(int32(now-c.Last)) * time.Second
		if generations[c.Backend] == c.Generation && idle <= timeouts[c.Set] {
			k.Affinity[status.KernelAffinity{Set: c.Set, Backend: c.Backend}]++
		}
	})
}

func target(f maps.Frontend) status.Target {
	return status.Target{AddrPort: f.AddrPort, Protocol: state.Protocol(f.Protocol)}
}

// monotonicSeconds is the clock of the maps' times.
func monotonicSeconds() (uint32, error) {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC_COARSE, &now); err != nil {
		return 0, err
	}
	return uint32(now.Sec), nil
}

// traffic reads the whole connection table once.
func (a *agent) traffic(of []status.Target) ([]localapi.Traffic, error) {
	ends := make([]maps.Frontend, len(of))
	for i, t := range of {
		ends[i] = maps.Frontend{AddrPort: t.AddrPort, Protocol: uint8(t.Protocol)}
	}
	sums, err := a.maps.Traffic(ends)
	out := make([]localapi.Traffic, len(of))
	for i, s := range sums {
		out[i] = localapi.Traffic(s)
	}
	return out, err
}
