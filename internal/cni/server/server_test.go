package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"go.uber.org/goleak"

	"github.com/strait-net/strait/internal/cni/wire"
	"github.com/strait-net/strait/internal/state"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// node is an Endpoints that remembers what was asked of it.
type node struct {
	mu      sync.Mutex
	calls   []string
	live    map[string]bool
	refuse  error         // every call
	hold    chan struct{} // when not nil, Add waits for it
	adding  int
	most    int // ADDs at the same time
	waitCtx bool
}

func (n *node) note(call string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.calls = append(n.calls, call)
	return n.refuse
}

func (n *node) Add(ctx context.Context, a wire.Attachment) (state.Endpoint, error) {
	n.mu.Lock()
	n.adding++
	n.most = max(n.most, n.adding)
	hold := n.hold
	n.mu.Unlock()
	if hold != nil {
		<-hold
	}
	if n.waitCtx {
		<-ctx.Done()
		return state.Endpoint{}, fmt.Errorf("add: %w", ctx.Err())
	}
	err := n.note("ADD " + a.Key())
	n.mu.Lock()
	defer n.mu.Unlock()
	n.adding--
	n.live[a.Key()] = true
	return state.Endpoint{
		ContainerID: a.ContainerID, IfName: a.IfName, NetNS: a.NetNS, Device: "st0123", MTU: 1450,
		PodMAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}, HostMAC: net.HardwareAddr{2, 0, 0, 0, 0, 2},
		Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.5"), netip.MustParseAddr("fd00::5")},
	}, err
}

func (n *node) Del(_ context.Context, a wire.Attachment) error {
	err := n.note("DEL " + a.Key())
	n.mu.Lock()
	defer n.mu.Unlock()
	if err == nil {
		delete(n.live, a.Key())
	}
	return err
}

func (n *node) Check(_ context.Context, a wire.Attachment, addrs []netip.Addr) error {
	return n.note(fmt.Sprintf("CHECK %s %v", a.Key(), addrs))
}

func (n *node) GC(_ context.Context, network string, valid map[string]bool) error {
	return n.note(fmt.Sprintf("GC %s %v", network, valid))
}

func (n *node) Status(context.Context) error { return n.note("STATUS") }

func (n *node) refuseWith(err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.refuse = err
}

func gateway(v6 bool) netip.Addr {
	if v6 {
		return netip.MustParseAddr("fe80::1")
	}
	return netip.MustParseAddr("169.254.1.1")
}

type rig struct {
	*Server
	t        *testing.T
	node     *node
	problems func() int
	stop     func()
}

// newRig returns a server in a temporary directory that does not serve yet.
func newRig(t *testing.T, change func(*Config)) *rig {
	t.Helper()
	dir := t.TempDir()
	n := &node{live: map[string]bool{}}
	problems := state.NewProblems()
	cfg := Config{
		Socket: filepath.Join(dir, "run", "cni.sock"), StateDir: filepath.Join(dir, "lib"),
		Endpoints: n, Gateway: gateway, Problems: problems, Log: slog.New(slog.DiscardHandler),
	}
	if change != nil {
		change(&cfg)
	}
	return &rig{Server: New(cfg), t: t, node: n, problems: func() int { return problems.Snapshot().Len() }}
}

func (r *rig) start() *rig {
	r.t.Helper()
	if err := r.Listen(); err != nil {
		r.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(r.t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	r.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			r.t.Error(err)
		}
	})
	r.t.Cleanup(r.stop)
	return r
}

func config(version, more string) json.RawMessage {
	return json.RawMessage(fmt.Sprintf(`{"cniVersion":%q,"name":"strait","type":"strait-cni"%s}`, version, more))
}

func request(c wire.Command, id, version string) wire.Request {
	return wire.Request{Command: c, ContainerID: id, IfName: "eth0", NetNS: "/run/netns/" + id, Config: config(version, "")}
}

func (r *rig) call(req wire.Request) (json.RawMessage, error) {
	return wire.Call(r.cfg.Socket, req, 10*time.Second)
}

func wantCode(t *testing.T, err error, code uint, text string) {
	t.Helper()
	var e *types.Error
	if !errors.As(err, &e) || e.Code != code || !strings.Contains(e.Error(), text) {
		t.Errorf("error %v, want code %d and %q", err, code, text)
	}
}

func TestCNI1_ResultShapes(t *testing.T) {
	r := newRig(t, nil).start()
	for _, version := range wire.Versions() {
		out, err := r.call(request(wire.Add, "a", version))
		if err != nil {
			t.Fatal(err)
		}
		var got struct {
			CNIVersion string `json:"cniVersion"`
			Interfaces []struct {
				Name, Mac, Sandbox string
				MTU                int
			} `json:"interfaces"`
			IPs []struct {
				Version   string
				Address   string
				Gateway   string
				Interface *int
			} `json:"ips"`
			Routes []struct{ Dst, GW string } `json:"routes"`
		}
		if err := json.Unmarshal(out, &got); err != nil {
			t.Fatalf("%s: %v", out, err)
		}
		wantVersions := []string{"", ""}
		if version < "1" {
			wantVersions = []string{"4", "6"}
		}
		if got.CNIVersion != version || len(got.Interfaces) != 2 || len(got.IPs) != 2 || len(got.Routes) != 2 {
			t.Fatalf("%s: %s", version, out)
		}
		if i := got.Interfaces[1]; i.Name != "eth0" || i.Sandbox != "/run/netns/a" || i.Mac != "02:00:00:00:00:01" || got.Interfaces[0].Sandbox != "" {
			t.Errorf("%s: interfaces %+v", version, got.Interfaces)
		}
		if hasMTU := got.Interfaces[1].MTU == 1450; hasMTU != (version >= "1") {
			t.Errorf("%s: interfaces %+v", version, got.Interfaces)
		}
		for i, want := range []string{"10.0.0.5/32 169.254.1.1", "fd00::5/128 fe80::1"} {
			ip := got.IPs[i]
			if ip.Address+" "+ip.Gateway != want || ip.Version != wantVersions[i] || ip.Interface == nil || *ip.Interface != 1 {
				t.Errorf("%s: address %+v, want %s of version %q on interface 1", version, ip, want, wantVersions[i])
			}
		}
		if got.Routes[0].Dst != "0.0.0.0/0" || got.Routes[1].Dst != "::/0" || got.Routes[1].GW != "fe80::1" {
			t.Errorf("%s: routes %+v", version, got.Routes)
		}
	}
}

func TestCNI1_Codes(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Deadline = 200 * time.Millisecond }).start()
	for _, c := range []struct {
		req  wire.Request
		code uint
		text string
	}{
		{wire.Request{Command: "BREW", Config: config("1.1.0", "")}, 4, `CNI_COMMAND: "BREW"`},
		{wire.Request{Command: wire.Add, Config: config("1.1.0", `,"colour":"blue"`)}, 2, `"colour" with value "blue"`},
		{wire.Request{Command: wire.Add, ContainerID: "a", NetNS: "x", IfName: "e", Config: config("1.1.0", "")}, 4, "CNI_NETNS"},
		{wire.Request{Command: wire.Add, ContainerID: "a", NetNS: "/x", IfName: "e", Config: config("1.1.0", `,"prevResult":{}`)}, 2, "prevResult"},
		{wire.Request{Command: wire.GC, Config: config("1.1.0", "")}, 7, "cni.dev/valid-attachments"},
		{request(wire.Check, "a", "1.1.0"), 7, "prevResult"},
		{wire.Request{Command: wire.Check, ContainerID: "a", NetNS: "/x", IfName: "e",
			Config: config("1.0.0", `,"prevResult":{"ips":[{"address":"10.0.0.5"}]}`)}, 7, `ips[0].address: "10.0.0.5"`},
		{wire.Request{Command: wire.Check, ContainerID: "a", NetNS: "/x", IfName: "e",
			Config: config("1.0.0", `,"prevResult":{"ips":[{"address":"10.0.0.5/32","interface":3}]}`)}, 7, "ips[0].interface: 3"},
		{wire.Request{Command: wire.Check, ContainerID: "a", NetNS: "/x", IfName: "e",
			Config: config("0.4.0", `,"prevResult":{"interfaces":[null],"ips":[null]}`)}, 7, "ips[0].address"},
	} {
		_, err := r.call(c.req)
		wantCode(t, err, c.code, c.text)
	}
	if len(r.node.calls) > 0 {
		t.Errorf("bad requests reached the endpoints: %v", r.node.calls)
	}
	r.node.refuseWith(errors.New("kernel says no"))
	_, err := r.call(request(wire.Add, "a", "1.1.0"))
	wantCode(t, err, types.ErrInternal, "kernel says no")
	_, err = r.call(request(wire.Status, "", "1.1.0"))
	wantCode(t, err, types.ErrPluginNotAvailable, "kernel says no")
	r.node.refuseWith(wire.WithCode(types.ErrLimitedConnectivity, errors.New("half dead")))
	_, err = r.call(request(wire.Status, "", "1.1.0"))
	wantCode(t, err, types.ErrLimitedConnectivity, "half dead")
	r.node.waitCtx = true
	_, err = r.call(request(wire.Add, "a", "1.1.0"))
	wantCode(t, err, types.ErrTryAgainLater, "deadline")
}

func TestCheckTakesOurAddresses(t *testing.T) {
	r := newRig(t, nil).start()
	req := request(wire.Check, "a", "0.4.0")
	req.Config = config("0.4.0", `,"prevResult":{"interfaces":[{"name":"st1"},{"name":"eth0","sandbox":"/run/netns/a"},{"name":"net1","sandbox":"/run/netns/a"}],
		"ips":[{"version":"4","address":"10.0.0.5/32","interface":1},{"version":"4","address":"10.9.0.5/32","interface":2},{"version":"6","address":"fd00::5/128"}]}`)
	if _, err := r.call(req); err != nil {
		t.Fatal(err)
	}
	if want := "CHECK a/eth0 [10.0.0.5 fd00::5]"; r.node.calls[0] != want {
		t.Errorf("%s, want %s", r.node.calls[0], want)
	}
}

func TestGCPassesValid(t *testing.T) {
	r := newRig(t, nil).start()
	req := wire.Request{Command: wire.GC, Config: config("1.1.0", `,"cni.dev/valid-attachments":[{"containerID":"a","ifname":"eth0"}],"cni.dev/attachments":[]`)}
	if _, err := r.call(req); err != nil || r.node.calls[0] != "GC strait map[a/eth0:true]" {
		t.Errorf("%v, %v", r.node.calls, err)
	}
}

func TestGarbageOnTheSocket(t *testing.T) {
	r := newRig(t, nil).start()
	for _, junk := range []string{"", "\x00", "{", "GET / HTTP/1.1\r\n\r\n", `{"version":3}`, strings.Repeat("[", 100_000)} {
		conn, err := net.Dial("unix", r.cfg.Socket)
		if err != nil {
			t.Fatal(err)
		}
		_, err = conn.Write([]byte(junk))
		err = errors.Join(err, conn.(*net.UnixConn).CloseWrite())
		var resp wire.Response
		err = errors.Join(err, json.NewDecoder(conn).Decode(&resp), conn.Close())
		if err != nil || resp.Error == nil || resp.Error.Code != types.ErrDecodingFailure {
			t.Errorf("%.20q: %+v, %v; want code 6", junk, resp.Error, err)
		}
	}
	if _, err := r.call(request(wire.Add, "a", "1.1.0")); err != nil {
		t.Errorf("after garbage: %v", err)
	}
	st, err := os.Stat(r.cfg.Socket)
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("socket has mode %v, %v; want 0600", st.Mode(), err)
	}
}

func TestParallelAdds(t *testing.T) {
	r := newRig(t, nil)
	r.node.hold = make(chan struct{})
	r.start()
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			if _, err := r.call(request(wire.Add, fmt.Sprint("p", i), "1.1.0")); err != nil {
				t.Error(err)
			}
		})
	}
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
		r.node.mu.Lock()
		n := r.node.adding
		r.node.mu.Unlock()
		if n == 20 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d ADDs in parallel, want 20", n)
		}
	}
	stopped := make(chan struct{})
	go func() { r.stop(); close(stopped) }()
	time.Sleep(20 * time.Millisecond) // the server is told to stop with 20 in work: they are answered all the same
	close(r.node.hold)
	wg.Wait()
	<-stopped
}

func (r *rig) enqueue(id string) {
	r.t.Helper()
	req := request(wire.Del, id, "1.1.0")
	a, err := req.Attachment("strait")
	if err == nil {
		err = r.queue.Put(a, req)
	}
	if err != nil {
		r.t.Fatal(err)
	}
}

func TestCNI1_QueuedDeletes(t *testing.T) {
	r := newRig(t, func(c *Config) { c.ReplayEvery = 20 * time.Millisecond })
	r.enqueue("a")
	r.enqueue("b")
	bad := filepath.Join(r.cfg.StateDir, "cni", "deletes", "bad-eth0.json")
	if err := os.WriteFile(bad, []byte(`{"version":1,"command":"ADD","config":{}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	r.start()
	if _, err := r.call(request(wire.Add, "c", "1.1.0")); err != nil {
		t.Fatal(err)
	}
	slices.Sort(r.node.calls[:2])
	if want := []string{"DEL a/eth0", "DEL b/eth0", "ADD c/eth0"}; !slices.Equal(r.node.calls, want) {
		t.Errorf("%v, want the queued deletes before anything else: %v", r.node.calls, want)
	}
	if _, err := os.Stat(bad + ".corrupt"); err != nil {
		t.Errorf("file that is no DEL: %v, want it set aside", err)
	}
	if r.problems() != 1 {
		t.Errorf("%d problems, want 1", r.problems())
	}
	r.enqueue("late") // by a plugin that found no agent a moment before there was one
	for deadline := time.Now().Add(5 * time.Second); r.queue.Has(wire.Attachment{ContainerID: "late", IfName: "eth0"}); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("a late queued delete is not done")
		}
	}
}

func TestQueuedDeleteNeverKillsLaterAdd(t *testing.T) {
	r := newRig(t, func(c *Config) { c.ReplayEvery = time.Hour }).start()
	r.enqueue("a")
	r.node.refuseWith(errors.New("busy"))
	_, err := r.call(request(wire.Add, "a", "1.1.0"))
	wantCode(t, err, types.ErrTryAgainLater, "earlier delete of a/eth0")
	if r.problems() != 1 {
		t.Errorf("%d problems, want the delete that cannot be done", r.problems())
	}
	r.node.refuseWith(nil)
	if _, err := r.call(request(wire.Add, "a", "1.1.0")); err != nil {
		t.Fatal(err)
	}
	r.replay(t.Context())
	if !r.node.live["a/eth0"] || r.problems() != 0 {
		t.Errorf("after ADD and replay: %v, %d problems; want it alive", r.node.calls, r.problems())
	}
	r.enqueue("a")
	if _, err := r.call(request(wire.Del, "a", "1.1.0")); err != nil {
		t.Fatal(err)
	}
	if names, err := r.queue.Names(); err != nil || len(names) > 0 {
		t.Errorf("a DEL that was done stays queued: %v, %v", names, err)
	}
}

func TestListenReplacesOldSocket(t *testing.T) {
	r := newRig(t, nil)
	if err := r.Listen(); err != nil {
		t.Fatal(err)
	}
	old := r.listener
	defer old.Close()
	r.start() // as after kill -9: the old socket file is still there
	if _, err := r.call(request(wire.Status, "", "1.1.0")); err != nil {
		t.Error(err)
	}
	long := newRig(t, func(c *Config) { c.Socket = "/tmp/" + strings.Repeat("x", 120) })
	if err := long.Listen(); err == nil || !strings.Contains(err.Error(), "xxx") {
		t.Errorf("path that is too long: %v", err)
	}
}

func FuzzPrevResult(f *testing.F) {
	f.Add([]byte(`{"interfaces":[{"name":"eth0","sandbox":"/x"},null],"ips":[{"address":"10.0.0.5/32","interface":0},{"address":"fd00::5/128"}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		addrs, err := resultAddresses(wire.Config{PrevResult: data}, wire.Attachment{IfName: "eth0"})
		var e *types.Error
		if err != nil && (!errors.As(err, &e) || e.Code != types.ErrInvalidNetworkConfig) {
			t.Errorf("error without its code: %v", err)
		}
		for _, a := range addrs {
			if !a.IsValid() || a.Is4In6() {
				t.Errorf("address %v", a)
			}
		}
	})
}
