package endpoint_test

import (
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	"golang.org/x/sys/unix"

	"github.com/strait-net/strait/internal/datapath/maps"
	"github.com/strait-net/strait/internal/datapath/nstest"
	"github.com/strait-net/strait/internal/datapath/pin"
	"github.com/strait-net/strait/internal/state"
)

// NET-7: host ports come from the runtime by the conflist's capability, are published and survive a restart; a second pod with the same
// one is refused for the time being, and nothing is left of the attempt.
func TestNET7_HostPorts(t *testing.T) {
	n := newNode(t)
	a, stop := n.start()
	with := func(id string, mappings ...map[string]any) error {
		rt := n.sandbox(id)
		rt.CapabilityArgs = map[string]any{"portMappings": mappings}
		_, err := n.cni.AddNetworkList(t.Context(), n.list("1.0.0"), rt)
		return err
	}
	tcp := map[string]any{"HostPort": 8080, "ContainerPort": 80, "Protocol": "tcp", "HostIP": ""} // as containerd writes it
	udp := map[string]any{"hostPort": 8080, "containerPort": 53, "protocol": "udp", "hostIP": "192.0.2.1"}
	if err := with("a", tcp, udp); err != nil {
		t.Fatal(err)
	}
	want := []state.PortMapping{
		{Port: 8080, Target: 80, Protocol: state.TCP},
		{Address: netip.MustParseAddr("192.0.2.1"), Port: 8080, Target: 53, Protocol: state.UDP},
	}
	published := func(a *agent) {
		t.Helper()
		if row, _, _ := a.state.Endpoints.Snapshot().Get("a/eth0"); !reflect.DeepEqual(row.HostPorts, want) {
			t.Errorf("host ports %v, want %v", row.HostPorts, want)
		}
	}
	published(a)
	wantCode(t, with("b", tcp), types.ErrTryAgainLater, "host port :8080/tcp: pod default/pod-a has :8080/tcp")
	wantCode(t, with("b", map[string]any{"hostPort": 8080, "containerPort": 1, "protocol": "udp"}), types.ErrTryAgainLater, "default/pod-a has 192.0.2.1:8080/udp")
	wantCode(t, with("b", map[string]any{"hostPort": 80, "containerPort": 1, "protocol": "icmp"}), types.ErrInvalidNetworkConfig, `portMappings[0].protocol": "icmp"`)
	n.clean("a")
	udp["hostIP"] = "192.0.2.2"
	if err := with("b", udp); err != nil {
		t.Errorf("another address: %v", err)
	}
	stop()
	a, _ = n.start()
	published(a)
	if err := n.del("1.0.0", "a"); err != nil {
		t.Error(err)
	}
	if err := with("c", tcp); err != nil {
		t.Errorf("after the other pod is gone: %v", err)
	}
	n.clean("b", "c")
}

func cookie(t testing.TB, netns string) (c uint64) {
	t.Helper()
	nstest.In(t, netns, func() {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
		if err != nil {
			t.Error(err)
			return
		}
		defer unix.Close(fd)
		if c, err = unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE); err != nil {
			t.Error(err)
		}
	})
	return c
}

// The namespace of each pod has its addresses in strait_netns, also after a restart with records of before there were cookies in them,
// and after somebody has emptied the table.
func TestNetNSHasAddresses(t *testing.T) {
	n := newNode(t)
	a, stop := n.start()
	want := map[uint64]maps.Netns{}
	for _, id := range []string{"a", "b"} {
		addrs, err := n.add("1.0.0", id)
		if err != nil {
			t.Fatal(err)
		}
		want[cookie(t, n.netns[id])] = maps.Netns{IPv4: addrs[0], IPv6: addrs[1]}
	}
	check := func(when string) {
		t.Helper()
		have := map[uint64]maps.Netns{}
		if err := a.maps.EachNetns(func(c uint64, e maps.Netns) { have[c] = e }); err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(have, want) {
			t.Errorf("%s: strait_netns is %v, want %v", when, have, want)
		}
	}
	check("after ADD")
	stop()
	files, _ := filepath.Glob(filepath.Join(n.StateDir, "endpoints", "*.json"))
	for _, f := range files {
		raw, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		from := strings.Index(string(raw), `"netnsCookie"`)
		to := from + strings.IndexByte(string(raw[from:]), ',') + 1
		if err := os.WriteFile(f, append(raw[:from:from], raw[to:]...), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if len(files) != 2 {
		t.Fatalf("records %v", files)
	}
	m, err := maps.OpenPinned(pin.At(n.BPFRoot))
	if err != nil {
		t.Fatal(err)
	}
	for c := range want {
		if err := m.DeleteNetns(c); err != nil {
			t.Error(err)
		}
	}
	if err := m.PutNetns(1<<40, maps.Netns{IPv4: netip.MustParseAddr("10.11.0.250")}); err != nil { // left by an agent that was killed
		t.Error(err)
	}
	m.Close()
	a, stop = n.start()
	check("after a restart")
	stop()
	a, _ = n.start()
	check("after another")
	for c := range want {
		if err := a.maps.DeleteNetns(c); err != nil {
			t.Error(err)
		}
	}
	a.keeper.Verify(t.Context())
	check("after the periodic check")
	for _, id := range []string{"a", "b"} {
		delete(want, cookie(t, n.netns[id]))
		if err := n.del("1.0.0", id); err != nil {
			t.Error(err)
		}
		check("after DEL of " + id)
	}
}
