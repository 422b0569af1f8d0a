// Package rig composes a benchmark run: it builds the paths, has them measured side by side and collects the results.
package rig

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/strait-net/strait/bench/internal/bill"
	"github.com/strait-net/strait/bench/internal/measure"
	"github.com/strait-net/strait/bench/internal/path"
	"github.com/strait-net/strait/bench/internal/progcost"
	"github.com/strait-net/strait/bench/internal/result"
	"github.com/strait-net/strait/bench/internal/rr"
	"github.com/strait-net/strait/bench/internal/toolbox"
	"golang.org/x/sys/unix"
)

// Config is what to run.
type Config struct {
	Repo    string   // root of the repository
	Cache   string   // see toolbox.New
	Bin     string   // see toolbox.Box
	Out     string   // directory of the results
	Rows    []string // rows of the table of targets: see Known
	Levels  []int    // numbers of other services of rows 3, 4, 7 and 8
	Systems []string // those of path.Systems to compare in these rows; empty: all
	// Changes is the number of changes of endpoints per system and level, ChangeTime how long they may take in all.
	Changes    int
	ChangeTime time.Duration
	// Pods and Policies are the numbers of other nodes' pods and of policies of rows 9 and 10, rising; TurnCount the changes of each kind and direction.
	Pods, Policies []int
	TurnCount      int
	// PortsEverywhere measures row 4 at every level, not only at the first.
	PortsEverywhere bool
	Brief           bool // IPv4 only where rows 3 and 4 are measured
	Rounds          int
	Sample          time.Duration
	WarmUp          time.Duration
	Tests           []measure.Test
	Calls           int // sequential CNI calls per plugin
	PeersOnly       bool
	ClientCPU       int
	ServerCPU       int
	Say             func(format string, args ...any)
}

// Known are the rows that can be measured.
func Known() []string {
	return []string{"1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "13", "explain"}
}

func (c Config) wants(rows ...string) bool {
	return slices.ContainsFunc(rows, func(r string) bool { return slices.Contains(c.Rows, r) })
}

// rig is a run under way.
type rig struct {
	Config
	box     *toolbox.Box
	site    *path.Site
	paths   []*path.Path
	straits []*path.Strait
	run     *result.Run
}

// Run makes a run and returns its judged results. What it built is gone when it returns.
func Run(ctx context.Context, c Config) (out *result.Run, err error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("the benchmark makes network namespaces and has to run as root")
	}
	if runtime.NumCPU() < 2 {
		return nil, errors.New("the benchmark needs two CPUs, one for each end of a path")
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	r := &rig{Config: c}
	if r.box, err = toolbox.New(c.Cache, c.Repo, c.Say); err != nil {
		return nil, err
	}
	r.box.Bin = c.Bin
	program, err := r.build(ctx)
	if err != nil {
		return nil, err
	}
	release, err := c.alone(ctx, filepath.Join(r.box.Dir, "lock"))
	if err != nil {
		return nil, err
	}
	defer release()
	mountinfo, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	tree, err := bill.Find(string(mountinfo))
	if err != nil {
		return nil, err
	}
	r.run = &result.Run{Date: time.Now(), Commit: r.box.Commit(ctx), Machine: machine(tree), Settings: result.Settings{Rounds: c.Rounds, Sample: c.Sample.String(),
		WarmUp: c.WarmUp.String(), ClientCPU: c.ClientCPU, ServerCPU: c.ServerCPU}}
	root, err := tree.Root("strait-bench", os.Getpid())
	if err != nil {
		return nil, err
	}
	logs, err := os.MkdirTemp("", "strait-bench-")
	if err != nil {
		return nil, err
	}
	r.site, err = path.New(ctx, path.Config{Box: r.box, Program: program, Spawner: rr.NewSpawner(ctx), Root: root, ClientCPU: c.ClientCPU,
		ServerCPU: c.ServerCPU, Logs: logs})
	if err != nil {
		return nil, errors.Join(err, root.Remove())
	}
	defer func() {
		cancel() // ends the servers
		err = errors.Join(err, r.site.Close(), root.Remove())
		if err == nil {
			err = os.RemoveAll(logs)
		} else {
			c.Say("logs are kept in %s", logs)
		}
	}()
	if err := r.all(ctx); err != nil {
		return nil, err
	}
	r.run.Judge()
	return r.run, nil
}

func (r *rig) build(ctx context.Context) (rr.Program, error) {
	program, err := r.box.RR(ctx)
	if err != nil {
		return program, err
	}
	if err := r.box.Peers(ctx); err != nil {
		return program, err
	}
	if !r.PeersOnly {
		err = r.box.Strait(ctx)
	}
	return program, err
}

// all does the parts of the run in an order in which none disturbs the next.
func (r *rig) all(ctx context.Context) error {
	if r.wants("6") {
		if err := r.cni(ctx); err != nil {
			return fmt.Errorf("CNI calls: %w", err)
		}
	}
	if r.wants("13") && !r.PeersOnly {
		if err := r.flows(ctx); err != nil {
			return fmt.Errorf("flows: %w", err)
		}
	}
	if r.wants("explain") && !r.PeersOnly {
		if err := r.explain(ctx); err != nil {
			return fmt.Errorf("explain: %w", err)
		}
	}
	if !r.wants("1", "2", "3", "4", "5", "7", "8", "9", "10") {
		return nil
	}
	if err := r.open(); err != nil {
		return err
	}
	if r.wants("9") {
		if err := r.agents(ctx); err != nil {
			return fmt.Errorf("memory of the agents: %w", err)
		}
	}
	if r.wants("3", "4", "7", "8") {
		if err := r.services(ctx); err != nil {
			return fmt.Errorf("services: %w", err)
		}
	}
	if r.wants("5", "9", "10") {
		if err := r.policies(ctx); err != nil {
			return fmt.Errorf("policies: %w", err)
		}
	}
	if r.wants("1", "2", "3", "5") {
		r.measure(ctx, r.paths, r.mainTests())
		if err := r.programs(ctx, r.paths, r.mainTests()); err != nil {
			return fmt.Errorf("cost of the programs: %w", err)
		}
	}
	return ctx.Err()
}

func machine(tree bill.Tree) result.Machine {
	var u unix.Utsname
	_ = unix.Uname(&u)
	m := result.Machine{Kernel: unix.ByteSliceToString(u.Release[:]), CPUs: runtime.NumCPU(), Accounts: tree.String(), CPU: "unknown"}
	cpuinfo, _ := os.ReadFile("/proc/cpuinfo")
	if _, after, ok := strings.Cut(string(cpuinfo), "model name\t: "); ok {
		m.CPU, _, _ = strings.Cut(after, "\n")
	}
	if version, err := exec.Command("iptables", "--version").Output(); err == nil {
		m.Iptables = strings.TrimSpace(string(version))
	}
	load, _ := os.ReadFile("/proc/loadavg")
	m.Load, _, _ = strings.Cut(string(load), " ")
	return m
}

// add is note for a path of the rounds in which most rows are measured.
func (r *rig) add(p *path.Path, err error) (*path.Path, error) {
	if p, err = r.note(p, err); err == nil {
		r.paths = append(r.paths, p)
	}
	return p, err
}

// note notes that an opened path was proven: opening fails when a path's own devices do not count its packets.
func (r *rig) note(p *path.Path, err error) (*path.Path, error) {
	if err != nil {
		return nil, err
	}
	r.Say("path %s carries traffic: %s", p.Name, p.About)
	var devices []string
	for _, w := range p.Witness {
		devices = append(devices, w.Device)
	}
	r.run.Paths = append(r.run.Paths, result.PathNote{Name: p.Name, About: p.About, Proven: "packet counters of " + strings.Join(devices, ", ")})
	return p, nil
}

// open builds the paths of the wanted rows; the floor comes first.
func (r *rig) open() error {
	steps := []func() error{func() error { _, err := r.floor(); return err }}
	if r.wants("1") {
		for _, kind := range []string{path.Bridge, path.PTP} {
			steps = append(steps, func() error { _, err := r.add(r.site.Plugin(kind)); return err })
		}
	}
	if r.wants("1", "2", "9") && !r.PeersOnly {
		steps = append(steps, r.openStrait)
	}
	if r.wants("2") {
		steps = append(steps, func() error { _, err := r.add(r.site.Hosts()); return err })
		for _, backend := range []string{path.FlannelVXLAN, path.FlannelHostGW} {
			steps = append(steps, func() error { _, err := r.add(r.site.Flannel(backend)); return err })
		}
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// floor is the path of nothing but a cable; it is the first of r.paths.
func (r *rig) floor() (*path.Path, error) {
	if len(r.paths) > 0 {
		return r.paths[0], nil
	}
	return r.add(r.site.Direct())
}

// openStrait builds the paths through Strait.
func (r *rig) openStrait() error {
	vxlan, err := r.cluster(path.StraitOptions{Name: result.StraitVXLAN, Mode: "vxlan", Nodes: 2, Services: 10})
	if err != nil {
		return err
	}
	if r.wants("1", "2") {
		if _, err := r.add(vxlan.SameNode(result.Strait)); err != nil {
			return err
		}
	}
	if r.wants("2") {
		if _, err := r.add(vxlan.AcrossNodes(result.StraitVXLAN)); err != nil {
			return err
		}
		native, err := r.cluster(path.StraitOptions{Name: result.StraitNative, Mode: "native", Nodes: 2, Services: 10})
		if err != nil {
			return err
		}
		if _, err := r.add(native.AcrossNodes(result.StraitNative)); err != nil {
			return err
		}
	}
	return nil
}

func (r *rig) cluster(o path.StraitOptions) (*path.Strait, error) {
	c, err := r.site.Strait(o)
	if err != nil {
		return nil, fmt.Errorf("cluster %s: %w", o.Name, err)
	}
	r.straits = append(r.straits, c)
	return c, nil
}

// measured is what a series of rounds is about.
func measured(paths []*path.Path, tests []measure.Test) []measure.Test {
	return slices.DeleteFunc(slices.Clone(tests), func(t measure.Test) bool {
		return !slices.ContainsFunc(paths[1:], func(p *path.Path) bool { return p.Carries(t.Mode, t.Family) })
	})
}

// portTests are the wanted tests that row 4 is about.
func (r *rig) portTests() []measure.Test {
	return slices.DeleteFunc(slices.Clone(r.Tests), func(t measure.Test) bool {
		return t.Mode != rr.CRR && t.Mode != rr.UDPPPS || r.Brief && t.Family == 6
	})
}

// mainTests are the wanted tests of all other rows; a brief run about services alone leaves IPv6 out.
func (r *rig) mainTests() []measure.Test {
	if !r.Brief || r.wants("1", "2") {
		return r.Tests
	}
	return slices.DeleteFunc(slices.Clone(r.Tests), func(t measure.Test) bool { return t.Family == 6 })
}

// measure takes the samples of paths in turns; the first is the floor.
func (r *rig) measure(ctx context.Context, paths []*path.Path, tests []measure.Test) {
	tests = measured(paths, tests)
	byName := map[string]*path.Path{}
	plan := measure.Plan{Rounds: r.Rounds, Tests: tests, Pause: 50 * time.Millisecond, Skip: func(name string, t measure.Test) bool {
		return !byName[name].Carries(t.Mode, t.Family)
	}}
	for _, p := range paths {
		plan.Paths = append(plan.Paths, p.Name)
		byName[p.Name] = p
	}
	begin := time.Now()
	series := measure.Run(ctx, plan, func(ctx context.Context, name string, t measure.Test) (measure.Point, error) {
		return r.sample(ctx, byName[name], t)
	}, func(round int, t measure.Test) {
		if t != tests[0] {
			return
		}
		left := ""
		if round > 0 {
			left = fmt.Sprintf(", about %s left", (time.Since(begin) / time.Duration(round) * time.Duration(r.Rounds-round)).Round(time.Second))
		}
		r.Say("round %d of %d%s", round+1, r.Rounds, left)
	})
	for _, s := range series {
		if len(s.Errs) > 0 {
			r.run.Notes = append(r.run.Notes, fmt.Sprintf("%s %s: %d of %d samples failed; first: %s", s.Path, s.Test, len(s.Errs), len(s.Rate), s.Errs[0]))
		}
	}
	r.run.Series = append(r.run.Series, series...)
}

func (r *rig) sample(ctx context.Context, p *path.Path, t measure.Test) (measure.Point, error) {
	if err := ctx.Err(); err != nil {
		return measure.Point{}, err
	}
	before, err := used(p)
	if err != nil {
		return measure.Point{}, err
	}
	others, err := beside(p)
	if err != nil {
		return measure.Point{}, err
	}
	s, err := r.site.Sample(p, rr.Load{Mode: t.Mode, To: p.Address[t.Family], Port: p.Port, Warm: r.WarmUp, Length: r.Sample})
	if err != nil {
		return measure.Point{}, err
	}
	after, err := used(p)
	if err != nil {
		return measure.Point{}, err
	}
	point := measure.Point{Rate: s.Rate(), CPU: float64(after-before) / float64(s.AllOps), P50: float64(s.P50), P99: float64(s.P99)}
	if len(others) == 0 {
		return point, nil
	}
	if t.Mode == rr.CRR { // all others are a connection or two
		time.Sleep(p.Settle)
	}
	now, err := beside(p)
	point.Beside = map[string]float64{}
	for who := range now {
		point.Beside[who] = float64(now[who]-others[who]) / float64(s.AllOps)
	}
	return point, err
}

// beside is the CPU time of those who work because of a path's connections.
func beside(p *path.Path) (map[string]time.Duration, error) {
	out := map[string]time.Duration{}
	for who, account := range p.Accounts {
		used, err := account.Used()
		if err != nil {
			return nil, err
		}
		out[who] = used
	}
	return out, nil
}

// used is the CPU time of both ends of a path.
func used(p *path.Path) (time.Duration, error) {
	client, err := p.Client.Bill.Used()
	if err != nil {
		return 0, err
	}
	server, err := p.Server.Bill.Used()
	return client + server, err
}

// programs measures what BPF programs cost, in a pass of its own because the statistics cost something themselves.
func (r *rig) programs(ctx context.Context, paths []*path.Path, tests []measure.Test) error {
	stats, err := progcost.Enable()
	if err != nil {
		return err
	}
	defer func() { _ = stats.Close() }()
	for _, p := range paths {
		if len(p.Nodes) == 0 {
			continue
		}
		for _, t := range tests {
			if !p.Carries(t.Mode, t.Family) || ctx.Err() != nil {
				continue
			}
			before, err := p.Programs()
			if err != nil {
				return err
			}
			s, err := r.site.Sample(p, rr.Load{Mode: t.Mode, To: p.Address[t.Family], Port: p.Port, Warm: time.Millisecond, Length: 300 * time.Millisecond})
			if err != nil {
				return err
			}
			after, err := p.Programs()
			if err != nil {
				return err
			}
			ops := s.AllOps
			if t.Mode == rr.Stream {
				ops /= 1 << 20 // per MiB
			}
			r.run.Programs = append(r.run.Programs, result.ProgramCost{Path: p.Name, Test: t.String(), Costs: progcost.Between(before, after, ops)})
		}
	}
	return nil
}

// DefaultTests are all modes in IPv4 and the TCP ones in IPv6.
func DefaultTests() []measure.Test {
	var tests []measure.Test
	for _, m := range rr.Modes() {
		tests = append(tests, measure.Test{Mode: m, Family: 4})
	}
	for _, m := range []rr.Mode{rr.Stream, rr.RR, rr.CRR} {
		tests = append(tests, measure.Test{Mode: m, Family: 6})
	}
	return tests
}

// FindRepo walks up from dir to the repository.
func FindRepo(dir string) (string, error) {
	for d := dir; ; d = filepath.Dir(d) {
		if _, err := os.Stat(filepath.Join(d, "bench", "flanneld")); err == nil {
			return d, nil
		}
		if d == "/" {
			return "", fmt.Errorf("%s is not inside the repository", dir)
		}
	}
}
