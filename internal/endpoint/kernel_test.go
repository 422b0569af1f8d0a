package endpoint

import (
	"errors"
	"fmt"
	"hash/crc32"
	"log/slog"
	gomaps "maps"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/strait-net/strait/internal/cni/wire"
	"github.com/strait-net/strait/internal/datapath/maps"
	"github.com/strait-net/strait/internal/datapath/netdev"
	"github.com/strait-net/strait/internal/ipam"
	"github.com/strait-net/strait/internal/state"
)

// kernel is what outlives an agent: devices, attached programs, map entries. It stands in for the real one where a test must
// fail or kill the agent at an exact step; the real one has its own tests.
type kernel struct {
	mu       sync.Mutex
	index    int
	devices  map[string]device
	programs map[string]bool
	entries  map[netip.Addr]maps.Endpoint
	netns    map[uint64]maps.Netns
	traces   map[netip.Addr]bool // connections and the like: packets make them while there is an entry
}

type device struct {
	index int
	pod   netdev.Pod
}

func newKernel() *kernel {
	return &kernel{devices: map[string]device{}, programs: map[string]bool{}, entries: map[netip.Addr]maps.Endpoint{}, netns: map[uint64]maps.Netns{}, traces: map[netip.Addr]bool{}}
}

// fault is what happens at a step.
type fault int

const (
	none       fault = iota
	fail             // the step returns an error and does nothing
	failAfter        // the step returns an error and did its work
	killBefore       // the agent is killed before the step
	killAfter        // the agent is killed after the step
)

// life is one run of the agent against the kernel. A killed life never touches the kernel again.
type life struct {
	*kernel
	k      *Keeper
	mu     sync.Mutex
	steps  []string
	at     int // step to disturb, from 1; 0: none
	always bool
	fault  fault
	killed chan struct{}
	end    chan struct{}
}

var errInjected = errors.New("injected")

func (l *life) step(name string, do func()) error {
	l.mu.Lock()
	l.steps = append(l.steps, name)
	hit := len(l.steps) == l.at || l.always && l.at > 0 && len(l.steps) >= l.at
	f := l.fault
	l.mu.Unlock()
	select {
	case <-l.killed:
		l.dead()
	default:
	}
	if !hit {
		f = none
	}
	switch f {
	case fail:
		return fmt.Errorf("%s: %w", name, errInjected)
	case killBefore:
		close(l.killed)
		l.dead()
	}
	l.kernel.mu.Lock()
	do()
	l.kernel.mu.Unlock()
	switch f {
	case failAfter:
		return fmt.Errorf("%s: %w", name, errInjected)
	case killAfter:
		close(l.killed)
		l.dead()
	}
	return nil
}

// dead ends the calling goroutine when the test ends, without running more of the agent.
func (l *life) dead() {
	<-l.end
	runtime.Goexit()
}

func (l *life) AddPod(p netdev.Pod) (index int, err error) {
	err = l.step("AddPod", func() {
		l.index++
		index = l.index
		made := p
		made.Guard = nil
		l.devices[p.Device] = device{index: index, pod: made}
	})
	if err == nil {
		err = p.Guard(index)
	}
	return index, err
}

func (l *life) SetPodMTU(p netdev.Pod) error {
	return l.step("SetPodMTU", func() {
		d := l.devices[p.Device]
		d.pod.MTU = p.MTU
		l.devices[p.Device] = d
	})
}

func (l *life) DeleteDevice(name string) error {
	return l.step("DeleteDevice", func() { delete(l.devices, name) })
}

func (l *life) CheckPod(p netdev.Pod) ([]netdev.Difference, error) {
	l.kernel.mu.Lock()
	defer l.kernel.mu.Unlock()
	d, ok := l.devices[p.Device]
	if !ok {
		return []netdev.Difference{{What: "interface " + p.Device, Want: "veth"}}, nil
	}
	var out []netdev.Difference
	if d.pod.MTU != p.MTU {
		out = append(out, netdev.Difference{What: "MTU", Want: fmt.Sprint(p.MTU), Have: fmt.Sprint(d.pod.MTU)})
	}
	if !slices.Equal(d.pod.Addresses, p.Addresses) {
		out = append(out, netdev.Difference{What: "addresses", Want: fmt.Sprint(p.Addresses), Have: fmt.Sprint(d.pod.Addresses)})
	}
	return out, nil
}

func (l *life) PodDevices() ([]string, error) {
	l.kernel.mu.Lock()
	defer l.kernel.mu.Unlock()
	return slices.Sorted(gomaps.Keys(l.devices)), nil
}

func (l *life) Index(name string) (int, error) {
	l.kernel.mu.Lock()
	defer l.kernel.mu.Unlock()
	if d, ok := l.devices[name]; ok {
		return d.index, nil
	}
	return 0, fmt.Errorf("device %s: %w", name, os.ErrNotExist)
}

func (l *life) DeviceName(index int) (string, error) {
	l.kernel.mu.Lock()
	defer l.kernel.mu.Unlock()
	for name, d := range l.devices {
		if d.index == index {
			return name, nil
		}
	}
	return "", fmt.Errorf("device %d: %w", index, os.ErrNotExist)
}

func (l *life) AttachPod(name string, _ int) error {
	return l.step("AttachPod", func() { l.programs[name] = true })
}

func (l *life) DetachPod(name string) error {
	return l.step("DetachPod", func() { delete(l.programs, name) })
}

// programs and tables have the same method names as links, so they are types of their own.
type lifePrograms struct{ *life }

func (l lifePrograms) CheckPod(name string, _ int) ([]string, error) {
	l.kernel.mu.Lock()
	defer l.kernel.mu.Unlock()
	if !l.programs[name] {
		return []string{"programs of " + name + " are missing"}, nil
	}
	return nil, nil
}

func (l *life) PutEndpoint(e maps.Endpoint) error {
	return l.step("PutEndpoint", func() {
		l.entries[e.Address] = e
		l.traces[e.Address] = true
	})
}

func (l *life) DeleteEndpoint(a netip.Addr) error {
	return l.step("DeleteEndpoint", func() { delete(l.entries, a) })
}

// NetNSCookie gives each path a cookie of its own.
func (l *life) NetNSCookie(path string) (uint64, error) {
	return uint64(crc32.ChecksumIEEE([]byte(path))), nil
}

func (l *life) PutNetns(cookie uint64, n maps.Netns) error {
	return l.step("PutNetns", func() { l.netns[cookie] = n })
}

func (l *life) DeleteNetns(cookie uint64) error {
	return l.step("DeleteNetns", func() { delete(l.netns, cookie) })
}

func (l *life) EachNetns(fn func(uint64, maps.Netns)) error {
	l.kernel.mu.Lock()
	defer l.kernel.mu.Unlock()
	for cookie, n := range l.netns {
		fn(cookie, n)
	}
	return nil
}

func (l *life) Purge(addrs []netip.Addr) error {
	return l.step("Purge", func() {
		for _, a := range addrs {
			if _, open := l.entries[a]; !open {
				delete(l.traces, a)
			}
		}
	})
}

func (l *life) Endpoint(a netip.Addr) (maps.Endpoint, bool, error) {
	l.kernel.mu.Lock()
	defer l.kernel.mu.Unlock()
	e, ok := l.entries[a]
	return e, ok, nil
}

func (l *life) Endpoints() ([]maps.Endpoint, error) {
	l.kernel.mu.Lock()
	defer l.kernel.mu.Unlock()
	return slices.Collect(gomaps.Values(l.entries)), nil
}

// bench is a node for tests: a record directory, a kernel, a clock, and one life of the agent after another.
type bench struct {
	t      *testing.T
	dir    string
	kernel *kernel
	now    time.Time
	state  *state.State
}

const (
	coolDown = 30 * time.Second
	testMTU  = 1450
)

func newBench(t *testing.T) *bench {
	return &bench{t: t, dir: filepath.Join(t.TempDir(), "endpoints"), kernel: newKernel(), now: time.Unix(1_700_000_000, 0)}
}

// start begins a new life of the agent. Pods and MTU are known.
func (b *bench) start(pools ...string) *life {
	b.t.Helper()
	l := b.boot()
	b.restore(l, pools...)
	return l
}

func (b *bench) boot() *life {
	l := &life{kernel: b.kernel, killed: make(chan struct{}), end: make(chan struct{})}
	b.t.Cleanup(func() { close(l.end) })
	b.state = state.New()
	l.k = New(Config{
		Dir:      b.dir,
		Pools:    ipam.New(coolDown),
		Links:    l,
		Programs: lifePrograms{l},
		Maps:     l,
		Table:    b.state.Endpoints,
		Problems: b.state.Problems,
		Log:      slog.New(slog.DiscardHandler),
		Now:      func() time.Time { return b.now },
	})
	return l
}

func (b *bench) restore(l *life, pools ...string) {
	b.t.Helper()
	if pools == nil {
		pools = []string{"10.0.0.0/24", "fd00::/64"}
	}
	var prefixes []netip.Prefix
	for _, p := range pools {
		prefixes = append(prefixes, netip.MustParsePrefix(p))
	}
	if err := l.k.SetPools(prefixes); err != nil {
		b.t.Fatal(err)
	}
	if err := l.k.Restore(b.t.Context()); err != nil {
		b.t.Fatal(err)
	}
	if err := l.k.SetMTU(b.t.Context(), testMTU); err != nil {
		b.t.Fatal(err)
	}
}

// disturb makes the step that comes as the nth from now go wrong.
func (l *life) disturb(n int, f fault, always bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.at, l.fault, l.always, l.steps = n, f, always, nil
}

// run calls fn and returns its error, or killed if the life ended in it.
func (l *life) run(fn func() error) (err error, killed bool) {
	done := make(chan error, 1)
	go func() { done <- fn() }()
	select {
	case err := <-done:
		return err, false
	case <-l.killed:
		return nil, true
	}
}

func attachment(id string) wire.Attachment {
	// Any namespace that is not the node's network will do: nothing here enters it.
	return wire.Attachment{Network: "strait", ContainerID: id, IfName: "eth0", NetNS: "/proc/self/ns/ipc", Namespace: "default", Pod: "pod-" + id}
}

// consistent fails the test unless kernel, records, addresses and table agree on exactly the attachments given.
func (b *bench) consistent(l *life, ids ...string) {
	b.t.Helper()
	b.kernel.mu.Lock()
	devices := slices.Sorted(gomaps.Keys(b.kernel.devices))
	programs := slices.Sorted(gomaps.Keys(b.kernel.programs))
	entries, traces := gomaps.Clone(b.kernel.entries), gomaps.Clone(b.kernel.traces)
	names := gomaps.Clone(b.kernel.netns)
	b.kernel.mu.Unlock()
	var want []string
	inUse := 0
	for _, id := range ids {
		a := attachment(id)
		want = append(want, netdev.PodDevice(a.ContainerID, a.IfName))
		row, _, ok := b.state.Endpoints.Snapshot().Get(a.Key())
		if !ok || row.Phase != state.EndpointReady {
			b.t.Errorf("row of %s is %+v, want it ready", id, row)
			continue
		}
		for _, addr := range row.Addresses {
			inUse++
			if e, ok := entries[addr]; !ok || int(e.Index) != b.kernel.devices[row.Device].index {
				b.t.Errorf("entry of %v is %+v, want device %d", addr, e, row.DeviceIndex)
			}
			delete(entries, addr)
			delete(traces, addr)
		}
	}
	// All attachments of these tests are in one namespace, which has the addresses of the one that came first.
	var first state.Endpoint
	if len(ids) > 0 {
		first, _, _ = b.state.Endpoints.Snapshot().Get(attachment(slices.Min(ids)).Key())
	}
	if entry := netnsEntry(first.Addresses); len(names) != min(len(ids), 1) || len(ids) > 0 && names[first.NetNSCookie] != entry {
		b.t.Errorf("strait_netns is %v, want %d with %v", names, first.NetNSCookie, entry)
	}
	slices.Sort(want)
	if !slices.Equal(devices, want) {
		b.t.Errorf("devices are %v, want %v", devices, want)
	}
	if !slices.Equal(programs, want) {
		b.t.Errorf("programs are on %v, want %v", programs, want)
	}
	if len(entries) > 0 {
		b.t.Errorf("left over in strait_endpoint: %v", entries)
	}
	if len(traces) > 0 {
		b.t.Errorf("left over in the tables that packets write: %v", traces)
	}
	if n := b.state.Endpoints.Snapshot().Len(); n != len(ids) {
		b.t.Errorf("%d rows, want %d", n, len(ids))
	}
	have := 0
	for _, p := range l.k.cfg.Pools.Report(b.now) {
		have += p.InUse
	}
	if have != inUse {
		b.t.Errorf("%d addresses in use, want %d", have, inUse)
	}
	files, err := filepath.Glob(filepath.Join(b.dir, "*-eth0.*"))
	if err != nil || len(files) != len(ids) {
		b.t.Errorf("records are %v (%v), want %d", files, err, len(ids))
	}
	if tmp, err := filepath.Glob(filepath.Join(b.dir, ".tmp-*")); err != nil || len(tmp) > 0 {
		b.t.Errorf("temporary files left: %v (%v)", tmp, err)
	}
}
