package rig

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/strait-net/strait/bench/internal/path"
	"github.com/strait-net/strait/bench/internal/result"
	"github.com/strait-net/strait/bench/internal/rr"
)

// settle is how long after a cold start memory is read.
const settle = 5 * time.Second

// services makes rows 3, 4, 7 and 8: all systems at each number of services, on fresh nodes of one cluster. Daemons are killed when their
// level is done, so that what their nodes' kernels hold is still that level's when row 3 is measured across all levels.
func (r *rig) services(ctx context.Context) error {
	r.Say("starting etcd and the API server")
	cluster, err := r.site.Cluster("services")
	if err != nil {
		return err
	}
	defer cluster.Close() // daemons are killed, kernels keep what they have
	for _, n := range r.Levels {
		begin := time.Now()
		if err := cluster.Fill(n); err != nil {
			return fmt.Errorf("write %d services: %w", n, err)
		}
		r.Say("%d services and slices are at the API server after %s", n, time.Since(begin).Round(10*time.Millisecond))
		if err := r.level(ctx, cluster, n); err != nil {
			return fmt.Errorf("%d services: %w", n, err)
		}
	}
	return nil
}

// systems are those to compare.
func (r *rig) systems() []path.System {
	return slices.DeleteFunc(path.Systems(), func(s path.System) bool {
		return s.Proxy == "" && r.PeersOnly || len(r.Systems) > 0 && !slices.Contains(r.Systems, s.Name)
	})
}

// straitServes reports whether Strait is among the systems.
func (r *rig) straitServes() bool {
	return slices.ContainsFunc(r.systems(), func(s path.System) bool { return s.Proxy == "" })
}

func (r *rig) level(ctx context.Context, cluster *path.Cluster, n int) error {
	var members []*path.Member
	ports := r.wants("4") && (n == r.Levels[0] || r.PortsEverywhere)
	for _, system := range r.systems() {
		m, err := r.member(ctx, cluster, system, n)
		if err != nil {
			return fmt.Errorf("%s: %w", system.Name, err)
		}
		if !ports {
			if err := m.Retire(); err != nil {
				return err
			}
			continue
		}
		members = append(members, m)
		if err := m.Pause(); err != nil {
			return err
		}
	}
	if !ports {
		return nil
	}
	for _, m := range members {
		if err := m.Resume(); err != nil {
			return err
		}
	}
	return r.nodePorts(ctx, cluster, members, n)
}

// member starts a system on a fresh node and takes what is about one node.
func (r *rig) member(ctx context.Context, cluster *path.Cluster, system path.System, n int) (*path.Member, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	m, err := cluster.Join(fmt.Sprintf("%s-%d", system.Name, n), system)
	if err != nil {
		return nil, err
	}
	pause := time.Duration(0)
	if r.wants("8") {
		pause = settle
	}
	start, err := m.ColdStart(pause)
	if err != nil {
		return nil, err
	}
	r.Say("%s with %d services: all work after %s, %s of CPU time, RSS %d MiB, peak %d MiB", system.Name, n,
		start.Took.Round(time.Millisecond), start.CPU, start.RSS>>10, start.Peak>>10)
	if r.wants("8") {
		r.run.Starts = append(r.run.Starts, result.Start{System: system.Name, Services: n, Seconds: start.Took.Seconds(), CPU: start.CPU.Seconds(), RSSKiB: start.RSS, PeakKiB: start.Peak})
	}
	if r.wants("7") {
		if err := r.changes(m, n); err != nil {
			return nil, err
		}
	}
	if r.wants("3") {
		direct, err := r.add(m.Direct(result.AtLevel(system.Name, n)))
		if err != nil {
			return nil, err
		}
		direct.Modes = []rr.Mode{rr.CRR}
		if _, err := r.add(m.Service(result.ByService(system.Name, n), direct)); err != nil {
			return nil, err
		}
	}
	return m, nil
}

func (r *rig) changes(m *path.Member, n int) error {
	changed, err := m.Changes(r.Changes, r.ChangeTime)
	if err != nil {
		return err
	}
	c := result.Change{System: m.System.Name, Services: n}
	for i := range changed.Took {
		c.Ms = append(c.Ms, milli(changed.Took[i]))
		c.WriteMs = append(c.WriteMs, milli(changed.Written[i]))
	}
	r.run.Changes = append(r.run.Changes, c)
	r.Say("%s with %d services: %d changes of endpoints", c.System, n, len(c.Ms))
	return nil
}

// nodePorts measures row 4: from outside to a backend on the node asked and to one on another node of the same system.
func (r *rig) nodePorts(ctx context.Context, cluster *path.Cluster, members []*path.Member, n int) error {
	floor, err := r.floor()
	if err != nil {
		return err
	}
	named := *floor
	named.Name = result.FloorPorts
	paths := []*path.Path{&named}
	all := slices.Clone(members)
	open := func(m *path.Member, name string, forwarding ...string) error {
		other, opened, err := r.openPorts(cluster, m, name, n, forwarding)
		if other != nil {
			all = append(all, other)
		}
		paths = append(paths, opened...)
		return err
	}
	for _, m := range members {
		if m.System.Proxy != "" {
			err = open(m, m.System.Name, "")
		} else {
			err = open(m, "strait-tc", "snat", "dsr")
		}
		if err != nil {
			return fmt.Errorf("node ports of %s: %w", m.System.Name, err)
		}
	}
	if r.straitServes() {
		m, err := r.fast(cluster, n)
		if err == nil {
			all = append(all, m)
			err = open(m, "strait-xdp", "snat", "dsr")
		}
		if err != nil {
			r.run.Notes = append(r.run.Notes, fmt.Sprintf("row 4 by XDP is left out or incomplete: %v", err))
			r.Say("XDP: %v", err)
		}
	}
	r.measure(ctx, paths, r.portTests())
	if err := r.programs(ctx, paths[1:], r.portTests()); err != nil {
		return fmt.Errorf("cost of the programs: %w", err)
	}
	for _, m := range all {
		if err := m.Retire(); err != nil {
			return err
		}
	}
	return nil
}

// fast starts a node of Strait whose node ports are handled at XDP.
func (r *rig) fast(cluster *path.Cluster, n int) (*path.Member, error) {
	m, err := cluster.Join(fmt.Sprintf("strait-xdp-%d", n), path.System{Name: "strait-xdp", XDP: "native"})
	if err != nil {
		return nil, err
	}
	_, err = m.ColdStart(0)
	return m, err
}

// openPorts opens the paths of a system's node ports, one per place of the backend and way of forwarding, and starts the other node.
func (r *rig) openPorts(cluster *path.Cluster, m *path.Member, name string, n int, ways []string) (other *path.Member, out []*path.Path, err error) {
	if other, err = cluster.Join(fmt.Sprintf("%s-%d-other", name, n), m.System); err != nil {
		return nil, nil, err
	}
	if _, err := other.ColdStart(0); err != nil {
		return other, nil, err
	}
	if err := m.Reach(other); err != nil {
		return other, nil, err
	}
	for i, on := range []*path.Member{m, other} {
		place := result.Places()[i]
		backend, err := on.Backend("backend-" + place)
		if err != nil {
			return other, out, err
		}
		for _, way := range ways {
			system := name
			if way != "" {
				system += "-" + way
			}
			p, err := r.note(m.NodePort(result.ByPort(system, place, n), way, backend))
			if err != nil {
				return other, out, err
			}
			out = append(out, p)
		}
	}
	return other, out, nil
}
