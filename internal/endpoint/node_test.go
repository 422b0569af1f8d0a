package endpoint_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/invoke"

	"github.com/strait-net/strait/internal/cni/server"
	"github.com/strait-net/strait/internal/cni/wire"
	"github.com/strait-net/strait/internal/config"
	"github.com/strait-net/strait/internal/datapath/attach"
	"github.com/strait-net/strait/internal/datapath/load"
	"github.com/strait-net/strait/internal/datapath/maps"
	"github.com/strait-net/strait/internal/datapath/netdev"
	"github.com/strait-net/strait/internal/datapath/nstest"
	"github.com/strait-net/strait/internal/datapath/pin"
	"github.com/strait-net/strait/internal/endpoint"
	"github.com/strait-net/strait/internal/ipam"
	"github.com/strait-net/strait/internal/state"
)

// The test binary is three programs: the tests, the agent's side of CNI (to be killed), and, built from cmd/strait-cni, the plugin.
const agentEnv = "STRAIT_ENDPOINT_AGENT"

func TestMain(m *testing.M) {
	if spec := os.Getenv(agentEnv); spec != "" {
		if err := runAgent(spec); err != nil {
			fmt.Fprintln(os.Stderr, "agent:", err)
			os.Exit(1)
		}
		return
	}
	nstest.Main(m)
}

// layout is where everything of a test node lies; it is passed to the agent process as JSON.
type layout struct {
	BPFRoot  string
	StateDir string
	Socket   string
	Pools    []netip.Prefix
	MTU      int
	CoolDown time.Duration
}

// agent is the part of the agent that CNI needs, on the real kernel.
type agent struct {
	keeper *endpoint.Keeper
	server *server.Server
	state  *state.State
	maps   *maps.Maps
	close  func()
}

func newAgent(l layout) (*agent, error) {
	tree, _, err := pin.Prepare(l.BPFRoot)
	if err != nil {
		return nil, err
	}
	spec, err := maps.Spec(config.Maps{Conntrack: 4096, NAT: 4096, Services: 64, Backends: 64, IPCache: 64})
	if err != nil {
		return nil, err
	}
	m, err := maps.Open(tree, spec)
	if err != nil {
		return nil, err
	}
	links, err := netdev.Open()
	if err != nil {
		m.Close()
		return nil, err
	}
	programs, err := load.Load(spec, m, load.Config{Network: config.Island, MasqueradeLo: 10000, MasqueradeHi: 29999})
	if err != nil {
		links.Close()
		m.Close()
		return nil, err
	}
	st := state.New()
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError}))
	a := &agent{state: st, maps: m}
	a.keeper = endpoint.New(endpoint.Config{
		Dir: filepath.Join(l.StateDir, "endpoints"), Pools: ipam.New(l.CoolDown),
		Links: links, Programs: attach.New(tree, links, programs, false), Maps: m, Table: st.Endpoints, Problems: st.Problems, Log: log,
	})
	a.server = server.New(server.Config{
		Socket: l.Socket, StateDir: l.StateDir, Endpoints: a.keeper, Gateway: netdev.Gateway, Problems: st.Problems, Log: log,
	})
	a.close = func() {
		programs.Close()
		links.Close()
		m.Close()
	}
	return a, nil
}

func (a *agent) run(ctx context.Context, l layout) error {
	if err := a.server.Listen(); err != nil {
		return err
	}
	if err := a.keeper.SetPools(l.Pools); err != nil {
		return err
	}
	if err := a.keeper.Restore(ctx); err != nil {
		return err
	}
	if err := a.keeper.SetMTU(ctx, l.MTU); err != nil {
		return err
	}
	return a.server.Run(ctx)
}

func runAgent(spec string) error {
	var l layout
	if err := json.Unmarshal([]byte(spec), &l); err != nil {
		return err
	}
	a, err := newAgent(l)
	if err != nil {
		return err
	}
	defer a.close()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	return a.run(ctx, l)
}

// node is a node of one test: its layout, the plugin and libcni.
type node struct {
	layout
	t   testing.TB
	cni *libcni.CNIConfig
	bin string // directory of the plugin

	mu    sync.Mutex
	netns map[string]string // by container
}

var builtPlugin = sync.OnceValues(buildPlugin)

func buildPlugin() (dir string, err error) {
	dir, err = os.MkdirTemp("", "strait-cni-test")
	if err != nil {
		return "", err
	}
	cmd := exec.Command("go", "build", "-o", filepath.Join(dir, wire.PluginType), "../../cmd/strait-cni")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build strait-cni: %w: %s", err, out)
	}
	return dir, nil
}

func newNode(t testing.TB, pools ...string) *node {
	t.Helper()
	nstest.Root(t)
	bin, err := builtPlugin()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if pools == nil {
		pools = []string{"10.11.0.0/24", "fd11::/64"}
	}
	run := &invoke.DefaultExec{RawExec: &invoke.RawExec{Stderr: os.Stderr}} // libcni would make its own on first use, unlocked
	n := &node{
		layout: layout{
			BPFRoot: nstest.BPFFS(t, 0), StateDir: filepath.Join(dir, "lib"), Socket: filepath.Join(dir, "run", "cni.sock"),
			MTU: 1450, CoolDown: 30 * time.Second,
		},
		t: t, bin: bin, netns: map[string]string{},
		cni: libcni.NewCNIConfigWithCacheDir([]string{bin}, filepath.Join(dir, "cache"), run),
	}
	for _, p := range pools {
		n.Pools = append(n.Pools, netip.MustParsePrefix(p))
	}
	return n
}

// start runs the agent inside the test until the test or stop ends it.
func (n *node) start() (a *agent, stop func()) {
	n.t.Helper()
	a, err := newAgent(n.layout)
	if err != nil {
		n.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(n.t.Context())
	done := make(chan error, 1)
	go func() { done <- a.run(ctx, n.layout) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			n.t.Error(err)
		}
		a.close()
	})
	n.t.Cleanup(stop)
	n.await(func() error { return n.status("1.1.0") })
	return a, stop
}

func (n *node) await(ready func() error) {
	n.t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		err := ready()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			n.t.Fatal(err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// list is the conflist that the installer writes, with one CNI version only.
func (n *node) list(version string) *libcni.NetworkConfigList {
	n.t.Helper()
	data, err := server.Install{Socket: n.Socket, StateDir: n.StateDir}.Conflist()
	if err != nil {
		n.t.Fatal(err)
	}
	var fields map[string]any
	if err := json.Unmarshal(data, &fields); err != nil {
		n.t.Fatal(err)
	}
	delete(fields, "cniVersions")
	fields["cniVersion"] = version
	if data, err = json.Marshal(fields); err != nil {
		n.t.Fatal(err)
	}
	list, err := libcni.ConfListFromBytes(data)
	if err != nil {
		n.t.Fatal(err)
	}
	return list
}

// sandbox returns the runtime's view of a pod, with a network namespace of its own.
func (n *node) sandbox(id string) *libcni.RuntimeConf {
	n.t.Helper()
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.netns[id] == "" {
		n.netns[id] = nstest.NetNS(n.t)
	}
	return &libcni.RuntimeConf{
		ContainerID: id, NetNS: n.netns[id], IfName: "eth0",
		Args: [][2]string{{"IgnoreUnknown", "1"}, {"K8S_POD_NAMESPACE", "default"}, {"K8S_POD_NAME", "pod-" + id}},
	}
}

func (n *node) add(version, id string) ([]netip.Addr, error) {
	n.t.Helper()
	result, err := n.cni.AddNetworkList(n.t.Context(), n.list(version), n.sandbox(id))
	if err != nil {
		return nil, err
	}
	return addresses(result)
}

func (n *node) del(version, id string) error {
	n.t.Helper()
	return n.cni.DelNetworkList(n.t.Context(), n.list(version), n.sandbox(id))
}

func (n *node) check(version, id string) error {
	n.t.Helper()
	return n.cni.CheckNetworkList(n.t.Context(), n.list(version), n.sandbox(id))
}

func (n *node) status(version string) error {
	return n.cni.GetStatusNetworkList(n.t.Context(), n.list(version))
}

func (n *node) gc(ids ...string) error {
	args := &libcni.GCArgs{}
	for _, id := range ids {
		args.ValidAttachments = append(args.ValidAttachments, gcAttachment(id))
	}
	return n.cni.GCNetworkList(n.t.Context(), n.list("1.1.0"), args)
}

// clean fails the test unless exactly the pods given have anything in the kernel or on disk.
func (n *node) clean(ids ...string) {
	n.t.Helper()
	links, err := netdev.Open()
	if err != nil {
		n.t.Fatal(err)
	}
	defer links.Close()
	var want []string
	for _, id := range ids {
		want = append(want, netdev.PodDevice(id, "eth0"))
	}
	slices.Sort(want)
	have, err := links.PodDevices()
	slices.Sort(have)
	if err != nil || !slices.Equal(have, want) {
		n.t.Errorf("pod devices %v (%v), want %v", have, err, want)
	}
	m, err := maps.OpenPinned(pin.At(n.BPFRoot))
	if err != nil {
		n.t.Fatal(err)
	}
	defer m.Close()
	entries, err := m.Endpoints()
	if err != nil || len(entries) != len(ids)*len(n.Pools) {
		n.t.Errorf("entries in strait_endpoint: %v (%v), want %d", entries, err, len(ids)*len(n.Pools))
	}
	pins, err := os.ReadDir(pin.At(n.BPFRoot).Links())
	if err != nil {
		n.t.Fatal(err)
	}
	for _, p := range pins {
		if !slices.ContainsFunc(want, func(device string) bool { return strings.HasSuffix(p.Name(), "-"+device) }) {
			n.t.Errorf("pinned link %s is left over", p.Name())
		}
	}
	records, err := filepath.Glob(filepath.Join(n.StateDir, "endpoints", "*-eth0.*"))
	if err != nil || len(records) != len(ids) {
		n.t.Errorf("records %v (%v), want %d", records, err, len(ids))
	}
	queued, err := wire.NewQueue(n.StateDir).Names()
	if err != nil || len(queued) > 0 {
		n.t.Errorf("queued deletes %v (%v)", queued, err)
	}
}
