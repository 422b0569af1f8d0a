package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/strait-net/strait/internal/cni/server"
	"github.com/strait-net/strait/internal/cni/wire"
	"github.com/strait-net/strait/internal/config"
	"github.com/strait-net/strait/internal/datapath/attach"
	"github.com/strait-net/strait/internal/datapath/maps"
	"github.com/strait-net/strait/internal/datapath/netdev"
	"github.com/strait-net/strait/internal/localapi"
	"github.com/strait-net/strait/internal/state"
	"github.com/strait-net/strait/internal/status"
)

// provider answers the local API from tables and from the live kernel.
func (a *agent) provider() localapi.Provider {
	p := status.Provider(status.Sources{
		State: a.state, Node: a.Node, Peers: a.peers, Services: a.kernelServices, Traffic: a.traffic,
		Policy: a.policies.view.sources(),
	})
	p.Status = a.status
	p.Maps = func(context.Context) ([]localapi.Map, error) { return a.mapList() }
	p.DumpMap = a.dumpMap
	p.CheckIPAM = a.checkIPAM
	p.Check = a.check
	p.Explain = a.explain
	p.Takeover, p.TakeOver, p.UndoTakeover = a.takeoverStatus, a.takeOver, a.undoTakeover
	return p
}

func (a *agent) peers() []localapi.Peer {
	if a.prober == nil {
		return nil
	}
	return a.prober.Peers()
}

func (a *agent) status(ctx context.Context) (localapi.Status, error) {
	s := localapi.Status{
		Version: a.Version, Node: a.Node, Cluster: a.cfg.ClusterName, Since: a.began,
		Kubernetes: a.kubernetesStatus(),
		Routing: localapi.Routing{
			Mode: string(a.cfg.RoutingMode), Network: string(a.cfg.Network), Host: "bpf", Attach: a.attachKind(),
			TunnelDevice: netdev.VXLANDevice, TunnelPort: a.cfg.VXLAN.Port, Devices: a.nativeDevices(),
		},
		Masquerade: a.masqueradeStatus(),
		IPAM:       a.ipamStatus(),
		MTU:        a.mtuStatus(),
		CNI:        a.cniStatus(),
	}
	if a.prober != nil {
		s.Health = a.prober.Health()
	}
	for _, r := range a.reconcilers {
		s.Reconcilers = append(s.Reconcilers, r.Health())
	}
	s.Reconcilers = append(s.Reconcilers, a.announcements.Health())
	var errs []error
	var err error
	s.Programs, err = a.programList()
	errs = append(errs, err)
	s.Maps, err = a.mapList()
	errs = append(errs, err)
	s.Counters, err = a.counterList()
	errs = append(errs, err)
	if s.Flows = a.flowStatus(); !s.Flows.Enabled {
		s.Features = append(s.Features, localapi.Feature{Name: "Flows", Text: "off: flows.enabled is false"})
	}
	s.Policy, err = a.policies.view.status()
	errs = append(errs, err)
	s.Leftovers, err = a.leftovers()
	errs = append(errs, err)
	s.KubeProxy, err = a.kubeProxyStatus()
	errs = append(errs, err)
	found := status.FailedServices(a.state.Frontends.Snapshot().All())
	if err := errors.Join(errs...); err != nil {
		found = append(found, localapi.Problem{Severity: localapi.SeverityError, Subject: "kernel", Text: err.Error()})
	}
	for p := range a.state.Problems.Snapshot().All() {
		found = append(found, status.Reported(p))
	}
	for _, text := range a.watcher.Problems() {
		found = append(found, localapi.Problem{Severity: localapi.SeverityError, Subject: "devices", Text: text})
	}
	status.Judge(&s, status.Endpoints(a.state.Endpoints.Snapshot().All()), found...)
	return s, ctx.Err()
}

func (a *agent) kubernetesStatus() localapi.Kubernetes {
	k := localapi.Kubernetes{Server: a.Source, Connected: true, Tables: status.WatchTables(a.state)}
	if a.client == nil {
		return k
	}
	k.Server = a.client.Host()
	for p := range a.state.Problems.Snapshot().By(state.ProblemsBySource, "kube") {
		if p.Subject == "api server" {
			k.Connected, k.Error = false, p.Text
		}
	}
	return k
}

func (a *agent) attachKind() string {
	if a.tcx {
		return string(attach.TCX)
	}
	return string(attach.Clsact)
}

func (a *agent) nativeDevices() (names []string) {
	for d := range a.state.Devices.Snapshot().All() {
		if d.Native {
			names = append(names, d.Name)
		}
	}
	return names
}

func (a *agent) masqueradeStatus() localapi.Masquerade {
	m := localapi.Masquerade{Enabled: a.cfg.Network == config.Island}
	if !m.Enabled {
		return m
	}
	m.Ports, m.Devices = a.cfg.MasqueradePorts, a.nativeDevices()
	if a.cfg.IPv4 {
		m.Families = append(m.Families, "IPv4")
	}
	if a.cfg.IPv6 {
		m.Families = append(m.Families, "IPv6")
	}
	return m
}

func (a *agent) ipamStatus() localapi.IPAM {
	s := localapi.IPAM{Mode: string(a.cfg.IPAM.Mode)}
	for _, p := range a.pools.Report(time.Now()) {
		family := "IPv4"
		if p.Prefix.Addr().Is6() {
			family = "IPv6"
		}
		s.Pools = append(s.Pools, localapi.Pool{
			Family: family, CIDR: p.Prefix.String(), Allocated: uint64(p.InUse), CoolingDown: uint64(p.Cooling), Capacity: p.Capacity,
		})
	}
	return s
}

func (a *agent) mtuStatus() (m localapi.MTU) {
	for d := range a.state.Devices.Snapshot().All() {
		if d.Native && (m.Device == 0 || d.MTU < m.Device) {
			m.Device = d.MTU
		}
	}
	a.mu.RLock()
	defer a.mu.RUnlock()
	m.Pod = a.podMTU
	return m
}

func (a *agent) cniStatus() localapi.CNI {
	c := localapi.CNI{Ready: a.isOpen(), Exclusive: a.cfg.CNI.Exclusive}
	if a.cfg.CNI.Install {
		c.Conflist = filepath.Join(a.cfg.CNI.ConfDir, server.ConflistName)
	}
	if at := a.lastAdd.Load(); at != 0 {
		c.LastAdd = time.Unix(0, at)
	}
	c.LastError, _ = a.lastError.Load().(string)
	if queued, err := wire.NewQueue(a.cfg.StateDir).Names(); err == nil {
		c.Queued = len(queued)
	}
	return c
}

func (a *agent) programList() ([]localapi.Program, error) {
	a.mu.RLock()
	list, err := a.attacher.List()
	a.mu.RUnlock()
	if err != nil {
		return nil, err
	}
	var out []localapi.Program
	for _, p := range list {
		target := p.Device
		if p.Kind == attach.Cgroup {
			target = a.cgroupDir()
		}
		out = append(out, localapi.Program{Name: p.Program, Hook: string(p.Kind), Target: target, ID: p.ProgramID})
	}
	return out, nil
}

func (a *agent) mapList() ([]localapi.Map, error) {
	list, err := a.maps.List()
	if err != nil {
		return nil, err
	}
	var out []localapi.Map
	for _, m := range list {
		out = append(out, localapi.Map{Name: m.Name, Type: m.Type, Entries: m.Entries, Max: m.Max, Bytes: m.Bytes})
	}
	return out, nil
}

func (a *agent) dumpMap(_ context.Context, name string, limit int, match ...string) (localapi.MapDump, error) {
	d, err := a.maps.Dump(name, limit, match...)
	if errors.Is(err, maps.ErrUnknownMap) {
		err = fmt.Errorf("%w: %w", localapi.ErrNotFound, err)
	}
	return localapi.MapDump{Name: d.Name, Columns: d.Columns, Rows: d.Rows, Omitted: d.Omitted}, err
}

func (a *agent) counterList() ([]localapi.Counter, error) {
	list, err := a.maps.Counters()
	if err != nil {
		return nil, err
	}
	var out []localapi.Counter
	for _, c := range list {
		out = append(out, localapi.Counter{
			Reason: uint32(c.Reason), Name: strings.ToLower(c.Reason.String()), Text: c.Reason.Text(), Verdict: c.Reason.Kind(),
			Packets: c.Packets, Bytes: c.Bytes,
		})
	}
	return out, nil
}

// leftovers are traces of other networks: devices, and configurations a runtime may choose.
func (a *agent) leftovers() (out []localapi.Leftover, err error) {
	devices, err := a.net.ForeignDevices()
	if err != nil {
		return nil, err
	}
	for _, f := range devices {
		out = append(out, localapi.Leftover{Kind: "device", Name: f.Device, Of: f.Of, Effect: f.Effect})
	}
	preferred, err := server.Install{ConfDir: a.cfg.CNI.ConfDir}.Preferred()
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	for _, path := range preferred {
		out = append(out, localapi.Leftover{Kind: "conflist", Name: path, Of: "another CNI", Effect: "the runtime chooses it instead of Strait's"})
	}
	return out, nil
}

func splitPort(address string) (string, string, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return "", "", fmt.Errorf("metricsAddress %q: want host:port: %w", address, err)
	}
	return host, port, nil
}
