package endpoint_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/plugins/pkg/testutils"

	"github.com/strait-net/strait/internal/cni/plugin"
	"github.com/strait-net/strait/internal/cni/wire"
	"github.com/strait-net/strait/internal/datapath/netdev"
	"github.com/strait-net/strait/internal/datapath/nstest"
)

func addresses(r types.Result) ([]netip.Addr, error) {
	result, err := types100.GetResult(r)
	if err != nil {
		return nil, err
	}
	var out []netip.Addr
	for _, ip := range result.IPs {
		addr, _ := netip.AddrFromSlice(ip.Address.IP)
		out = append(out, addr.Unmap())
	}
	return out, nil
}

func gcAttachment(id string) types.GCAttachment {
	return types.GCAttachment{ContainerID: id, IfName: "eth0"}
}

func wantCode(t *testing.T, err error, code uint, text string) {
	t.Helper()
	var e *types.Error
	if !errors.As(err, &e) || e.Code != code || !strings.Contains(e.Error(), text) {
		t.Errorf("error %v, want code %d and %q", err, code, text)
	}
}

// hasInterface looks into the pod.
func hasInterface(t *testing.T, netns, name string, want []netip.Addr) {
	t.Helper()
	nstest.In(t, netns, func() {
		i, err := net.InterfaceByName(name)
		if err != nil {
			t.Error(err)
			return
		}
		have, err := i.Addrs()
		var text []string
		for _, a := range have {
			text = append(text, a.String())
		}
		for _, addr := range want {
			if p := netip.PrefixFrom(addr, addr.BitLen()).String(); err != nil || !slices.Contains(text, p) {
				t.Errorf("%s has %v (%v), want %s", name, text, err, p)
			}
		}
		if i.MTU != 1450 {
			t.Errorf("%s has MTU %d, want 1450", name, i.MTU)
		}
	})
}

func TestCNI1_EveryVersion(t *testing.T) {
	n := newNode(t)
	a, _ := n.start()
	for _, version := range wire.Versions() {
		t.Run(version, func(t *testing.T) {
			id := "pod-" + version
			addrs, err := n.add(version, id)
			if err != nil || len(addrs) != 2 {
				t.Fatalf("ADD: %v, %v", addrs, err)
			}
			hasInterface(t, n.netns[id], "eth0", addrs)
			n.clean(id)
			if row, _, ok := a.state.Endpoints.Snapshot().Get(id + "/eth0"); !ok || row.Pod != "pod-"+id || !slices.Equal(row.Addresses, addrs) {
				t.Errorf("row %+v", row)
			}
			if version >= "0.4.0" {
				if err := n.check(version, id); err != nil {
					t.Errorf("CHECK: %v", err)
				}
			}
			for range 2 {
				if err := n.del(version, id); err != nil {
					t.Errorf("DEL: %v", err)
				}
			}
			n.clean()
		})
	}
}

// TestCNI1_PluginTestUtils runs the verbs through the plugins' own test helpers, which validate the results.
func TestCNI1_PluginTestUtils(t *testing.T) {
	n := newNode(t)
	n.start()
	for _, version := range wire.Versions() {
		netns := nstest.NetNS(t)
		conf := fmt.Sprintf(`{"cniVersion":%q,"name":"strait","type":"strait-cni","socket":%q,"stateDir":%q%%s}`, version, n.Socket, n.StateDir)
		bare := fmt.Appendf(nil, conf, "")
		result, out, err := testutils.CmdAdd(netns, "utils", "eth0", bare, func() error { return inProcess(t, bare) })
		if err != nil {
			t.Fatalf("%s: ADD: %v", version, err)
		}
		if result.Version() != version && version >= "1" {
			t.Errorf("result of version %s, want %s", result.Version(), version)
		}
		with := fmt.Appendf(nil, conf, `,"prevResult":`+string(out))
		if version >= "0.4.0" {
			if err := testutils.CmdCheck(netns, "utils", "eth0", func() error { return inProcess(t, with) }); err != nil {
				t.Errorf("%s: CHECK: %v", version, err)
			}
		}
		if err := testutils.CmdDel(netns, "utils", "eth0", func() error { return inProcess(t, with) }); err != nil {
			t.Errorf("%s: DEL: %v", version, err)
		}
		if version == "1.1.0" {
			if err := testutils.CmdStatus(func() error { return inProcess(t, bare) }); err != nil {
				t.Errorf("%s: STATUS: %v", version, err)
			}
		}
	}
	n.clean()
}

// inProcess runs the plugin inside the test with conf as its standard input.
func inProcess(t *testing.T, conf []byte) error {
	t.Helper()
	file := filepath.Join(t.TempDir(), "stdin")
	if err := os.WriteFile(file, conf, 0o600); err != nil {
		return err
	}
	in, err := os.Open(file)
	if err != nil {
		return err
	}
	defer in.Close()
	stdin := os.Stdin
	os.Stdin = in
	defer func() { os.Stdin = stdin }()
	if e := skel.PluginMainFuncsWithError(plugin.Funcs(), plugin.Versions(), ""); e != nil {
		return e
	}
	return nil
}

func TestCNI1_Refusals(t *testing.T) {
	n := newNode(t, "10.11.0.0/30")
	n.start()
	run := func(env []string, stdin string) *types.Error {
		t.Helper()
		cmd := exec.Command(filepath.Join(n.bin, wire.PluginType))
		cmd.Env = append([]string{"CNI_PATH=" + n.bin, "CNI_CONTAINERID=x", "CNI_IFNAME=eth0", "CNI_NETNS=" + n.sandbox("x").NetNS}, env...)
		cmd.Stdin = strings.NewReader(stdin)
		out, failed := cmd.Output()
		e := new(types.Error)
		if err := json.Unmarshal(out, e); err != nil || failed == nil {
			t.Errorf("%v with %s: %s, %v; want a CNI error", env, stdin, out, failed)
		}
		return e
	}
	good := fmt.Sprintf(`{"cniVersion":"1.1.0","name":"strait","type":"strait-cni","socket":%q,"stateDir":%q}`, n.Socket, n.StateDir)
	for _, c := range []struct {
		env   []string
		stdin string
		code  uint
		text  string
	}{
		{[]string{"CNI_COMMAND=ADD"}, `{"cniVersion":`, 6, "unexpected end"},
		{[]string{"CNI_COMMAND=ADD"}, strings.Replace(good, `"name":"strait",`, "", 1), 7, "name"},
		{[]string{"CNI_COMMAND=ADD"}, strings.Replace(good, `"type"`, `"mtu":9000,"type"`, 1), 2, `"mtu" with value 9000`},
		{[]string{"CNI_COMMAND=ADD"}, strings.Replace(good, `"socket":"`, `"socket":"relative`, 1), 7, `"socket"`},
		{[]string{"CNI_COMMAND=ADD"}, strings.Replace(good, "1.1.0", "0.2.0", 1), 1, "incompatible"},
		{[]string{"CNI_COMMAND=ADD", "CNI_CONTAINERID="}, good, 4, "CNI_CONTAINERID"},
		{[]string{"CNI_COMMAND=ADD", "CNI_ARGS=COLOUR=blue"}, good, 4, `CNI_ARGS: "COLOUR=blue"`},
		{[]string{"CNI_COMMAND=ADD", "CNI_NETNS=/run/netns/none"}, good, 8, "/run/netns/none"},
		{[]string{"CNI_COMMAND=BREW"}, good, 4, "BREW"},
		{[]string{"CNI_COMMAND=CHECK"}, strings.Replace(good, `"type"`, `"prevResult":{"cniVersion":"1.1.0"},"type"`, 1), 3, "not attached"},
		{[]string{"CNI_COMMAND=GC"}, good, 7, "cni.dev/valid-attachments"},
	} {
		wantCode(t, run(c.env, c.stdin), c.code, c.text)
	}
	n.clean()

	for _, id := range []string{"a", "b"} {
		if _, err := n.add("1.0.0", id); err != nil {
			t.Fatal(err)
		}
	}
	_, err := n.add("1.0.0", "c")
	wantCode(t, err, types.ErrTryAgainLater, "pool 10.11.0.0/30 is exhausted: 2 in use")
	wantCode(t, n.status("1.1.0"), types.ErrPluginNotAvailable, "exhausted")
	n.clean("a", "b")
	taken := n.sandbox("d")
	taken.NetNS = n.netns["a"]
	if err := n.del("1.0.0", "b"); err != nil {
		t.Fatal(err)
	}
	_, err = n.cni.AddNetworkList(t.Context(), n.list("1.0.0"), taken)
	wantCode(t, err, types.ErrTryAgainLater, "cooling down until") // b's address rests
	if err := n.del("1.0.0", "a"); err != nil {
		t.Fatal(err)
	}
	n.clean()
}

func TestCNI1_InterfaceTaken(t *testing.T) {
	n := newNode(t)
	n.start()
	if _, err := n.add("1.1.0", "a"); err != nil {
		t.Fatal(err)
	}
	other := n.sandbox("b")
	other.NetNS = n.netns["a"]
	if _, err := n.cni.AddNetworkList(t.Context(), n.list("1.1.0"), other); err == nil || !strings.Contains(err.Error(), "eth0") {
		t.Errorf("a second sandbox in the same namespace: %v", err)
	}
	n.clean("a")
	if err := n.check("1.1.0", "a"); err != nil {
		t.Errorf("CHECK of the first: %v", err)
	}
	if err := n.gc(); err != nil {
		t.Fatal(err)
	}
	n.clean()
}

func TestCNI1_GC(t *testing.T) {
	n := newNode(t)
	n.start()
	for _, id := range []string{"a", "b", "c"} {
		if _, err := n.add("1.1.0", id); err != nil {
			t.Fatal(err)
		}
	}
	if err := n.gc("b"); err != nil {
		t.Fatal(err)
	}
	n.clean("b")
	if err := n.check("1.1.0", "b"); err != nil {
		t.Error(err)
	}
}

func TestCNI1_CheckFindsDamage(t *testing.T) {
	n := newNode(t)
	a, _ := n.start()
	addrs, err := n.add("1.1.0", "a")
	if err != nil {
		t.Fatal(err)
	}
	if err := a.maps.DeleteEndpoint(addrs[0]); err != nil {
		t.Fatal(err)
	}
	wantCode(t, n.check("1.1.0", "a"), types.ErrInternal, fmt.Sprintf("entry of %v in strait_endpoint is missing", addrs[0]))
	inside, err := netdev.OpenAt(n.netns["a"])
	if err != nil {
		t.Fatal(err)
	}
	defer inside.Close()
	if err := inside.DeleteDevice("eth0"); err != nil {
		t.Fatal(err)
	}
	err = n.check("1.1.0", "a")
	wantCode(t, err, types.ErrInternal, "interface eth0 is missing")
	a.keeper.Verify(t.Context()) // the drift check makes it anew
	if err := n.check("1.1.0", "a"); err != nil {
		t.Errorf("CHECK after the repair: %v", err)
	}
	hasInterface(t, n.netns["a"], "eth0", addrs)
}

func TestCNI1_AgentDown(t *testing.T) {
	n := newNode(t)
	_, stop := n.start()
	for _, id := range []string{"a", "b"} {
		if _, err := n.add("1.1.0", id); err != nil {
			t.Fatal(err)
		}
	}
	stop()
	_, err := n.add("1.1.0", "c")
	wantCode(t, err, types.ErrTryAgainLater, "agent is not running")
	wantCode(t, n.check("1.1.0", "a"), types.ErrTryAgainLater, "agent is not running")
	wantCode(t, n.status("1.1.0"), types.ErrPluginNotAvailable, "agent is not running: ")
	if err := n.gc("a", "b"); err == nil || !strings.Contains(err.Error(), "agent is not running") {
		t.Errorf("GC with the agent down: %v", err)
	}
	for range 2 {
		if err := n.del("1.1.0", "a"); err != nil {
			t.Errorf("DEL with the agent down: %v", err)
		}
	}
	if names, err := wire.NewQueue(n.StateDir).Names(); err != nil || !slices.Equal(names, []string{"a-eth0.json"}) {
		t.Errorf("queue %v, %v", names, err)
	}
	hasInterface(t, n.netns["b"], "eth0", nil) // it lives without an agent
	n.start()
	n.clean("b")
	if err := n.check("1.1.0", "b"); err != nil {
		t.Errorf("CHECK after the restart: %v", err)
	}
}

func TestCNI4_ParallelAdds(t *testing.T) {
	n := newNode(t)
	n.start()
	const rounds, parallel = 3, 20
	var all []time.Duration
	for range rounds {
		var mu sync.Mutex
		seen := map[netip.Addr]string{}
		var wg sync.WaitGroup
		for i := range parallel {
			id := fmt.Sprint("p", i)
			n.sandbox(id)
			wg.Go(func() {
				began := time.Now()
				addrs, err := n.add("1.1.0", id)
				took := time.Since(began)
				mu.Lock()
				defer mu.Unlock()
				all = append(all, took)
				if err != nil {
					t.Error(err)
				}
				for _, a := range addrs {
					if seen[a] != "" {
						t.Errorf("%v is given to %s and %s", a, seen[a], id)
					}
					seen[a] = id
				}
			})
		}
		wg.Wait()
		for i := range parallel {
			wg.Go(func() {
				if err := n.del("1.1.0", fmt.Sprint("p", i)); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		n.clean()
	}
	slices.Sort(all)
	t.Logf("ADD through the plugin, %d at a time: p50 %v, max %v", parallel, all[len(all)/2], all[len(all)-1])
}

// TestIPAM2_Kill9 kills the agent's process at random moments while pods are added and deleted through the real plugin, and
// starts it again. In the end nothing may be left, and no two living pods may ever have had the same address.
func TestIPAM2_Kill9(t *testing.T) {
	n := newNode(t)
	const workers, rounds = 6, 8
	var wg sync.WaitGroup
	stop := make(chan struct{})
	var mu sync.Mutex
	living := map[netip.Addr]string{}
	added := 0
	for w := range workers {
		id := fmt.Sprint("w", w)
		n.sandbox(id)
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				addrs, err := n.add("1.1.0", id)
				mu.Lock()
				for _, a := range addrs {
					if other := living[a]; other != "" {
						t.Errorf("%v is given to %s while %s has it", a, id, other)
					}
					living[a] = id
				}
				if err == nil {
					added++
				}
				mu.Unlock()
				if err != nil && wire.Code(err) != types.ErrTryAgainLater {
					t.Errorf("ADD: %v", err)
				}
				mu.Lock()
				for _, a := range addrs {
					delete(living, a)
				}
				mu.Unlock()
				if err := n.del("1.1.0", id); err != nil {
					t.Errorf("DEL: %v", err)
				}
			}
		})
	}
	for round := range rounds {
		p := n.spawn()
		if round%2 == 0 { // the others are killed while they start, or soon after
			n.await(func() error { return n.status("1.1.0") })
		}
		time.Sleep(time.Duration(rand.IntN(300)) * time.Millisecond)
		p.kill(syscall.SIGKILL)
	}
	p := n.spawn()
	time.Sleep(200 * time.Millisecond)
	close(stop)
	wg.Wait()
	n.await(func() error { return n.status("1.1.0") })
	for w := range workers {
		if err := n.del("1.1.0", fmt.Sprint("w", w)); err != nil {
			t.Errorf("DEL: %v", err)
		}
	}
	p.kill(syscall.SIGTERM)
	n.start()
	n.clean()
	mu.Lock()
	defer mu.Unlock()
	t.Logf("%d pods were added in %d lives of the agent", added, rounds+1)
	if added == 0 {
		t.Error("no ADD ever worked: the test proves nothing")
	}
}

type process struct {
	t   testing.TB
	cmd *exec.Cmd
}

// spawn starts the agent as a process of its own.
func (n *node) spawn() *process {
	n.t.Helper()
	spec, err := json.Marshal(n.layout)
	if err != nil {
		n.t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), agentEnv+"="+string(spec))
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		n.t.Fatal(err)
	}
	return &process{t: n.t, cmd: cmd}
}

func (p *process) kill(s syscall.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil {
		p.t.Errorf("agent has ended by itself: %v", err)
	}
	err := p.cmd.Wait()
	if s == syscall.SIGTERM && err != nil {
		p.t.Errorf("agent ended with %v", err)
	}
}
