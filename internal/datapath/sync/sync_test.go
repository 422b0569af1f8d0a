package sync

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/strait-net/strait/internal/bpf"
	"github.com/strait-net/strait/internal/config"
	"github.com/strait-net/strait/internal/datapath/maps"
	"github.com/strait-net/strait/internal/datapath/nstest"
	"github.com/strait-net/strait/internal/datapath/pin"
	"github.com/strait-net/strait/internal/state"
)

func TestMain(m *testing.M) { nstest.Main(m) }

// open returns the real maps.
func open(t testing.TB, sizes config.Maps) *maps.Maps {
	t.Helper()
	tree, _, err := pin.Prepare(nstest.BPFFS(t, 0))
	if err != nil {
		t.Fatal(err)
	}
	spec, err := maps.Spec(sizes)
	if err != nil {
		t.Fatal(err)
	}
	m, err := maps.Open(tree, spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.Close)
	return m
}

var small = config.Maps{Conntrack: 1024, NAT: 1024, Services: 1024, Backends: 1024, IPCache: 1024}

func TestRemotes(t *testing.T) {
	m := open(t, small)
	ctx := context.Background()
	devices := map[string]int{"eth0": 3}
	ops := NewRemotes(m, func(name string) (int, bool) { i, ok := devices[name]; return i, ok })
	pfx, at := netip.MustParsePrefix, netip.MustParseAddr
	rows := []state.Remote{
		{Prefix: pfx("10.244.0.0/24"), Kind: state.RemotePods},
		{Prefix: pfx("10.244.1.0/24"), Kind: state.RemotePods, Tunnel: true, NextHop: at("192.168.0.2")},
		{Prefix: pfx("fd00:1::/64"), Kind: state.RemotePods, NextHop: at("fe80::2"), Device: "eth0"},
		{Prefix: pfx("192.168.0.1/32"), Kind: state.RemoteHost},
		{Prefix: pfx("192.168.0.9/32"), Kind: state.RemoteAPIServer},
	}
	for _, r := range rows {
		if err := ops.Update(ctx, r); err != nil {
			t.Fatal(err)
		}
	}
	prune := func(want ...string) {
		t.Helper()
		found, err := ops.Prune(ctx, slices.Values(rows))
		if err != nil {
			t.Fatal(err)
		}
		if diff := gocmp.Diff(want, found); diff != "" {
			t.Errorf("prune (-want +got):\n%s", diff)
		}
	}
	prune()
	if err := errors.Join(
		ops.Delete(ctx, rows[0]), ops.Delete(ctx, rows[0]),
		ops.Update(ctx, state.Remote{Prefix: pfx("10.9.0.0/16"), Kind: state.RemoteNode}),
	); err != nil {
		t.Fatal(err)
	}
	devices["eth0"] = 4 // made anew
	prune("ipcache entry 10.244.0.0/24 is missing",
		"ipcache entry fd00:1::/64 is flags 0x4 via fe80::2 device 3, want flags 0x4 via fe80::2 device 4",
		"ipcache entry 10.9.0.0/16 is not wanted")
	prune()
	got, err := m.Remotes()
	if err != nil {
		t.Fatal(err)
	}
	slices.SortFunc(got, func(a, b maps.Remote) int { return comparePrefix(a.Prefix, b.Prefix) })
	want := maps.Remote{Prefix: pfx("10.244.1.0/24"), Flags: bpf.RemotePod | bpf.RemoteTunnel, Node: at("192.168.0.2")}
	if got[1] != want {
		t.Errorf("tunnelled row %+v, want %+v", got[1], want)
	}
	for _, bad := range []struct {
		row  state.Remote
		want string
	}{
		{state.Remote{Prefix: pfx("10.1.0.0/16"), Kind: state.RemotePods, NextHop: at("10.0.0.1"), Device: "eth9"}, "device eth9 is not there"},
		{state.Remote{Prefix: pfx("10.1.0.0/16"), Kind: state.RemotePods, Tunnel: true}, "no tunnel endpoint"},
		{state.Remote{Prefix: pfx("10.1.0.0/16"), Kind: "alien"}, `unknown kind "alien"`},
	} {
		if err := ops.Update(ctx, bad.row); err == nil || !strings.Contains(err.Error(), bad.want) {
			t.Errorf("error %v, want %q", err, bad.want)
		}
	}
}

func TestDevices(t *testing.T) {
	m := open(t, small)
	pfx := netip.MustParsePrefix
	rows := []state.Device{
		{Name: "eth0", Index: 2, MTU: 1500, Native: true, Addresses: []netip.Prefix{pfx("192.168.0.1/24"), pfx("192.168.0.7/24"), pfx("fd00::1/64")}},
		{Name: "docker0", Index: 3, MTU: 1500, Addresses: []netip.Prefix{pfx("172.17.0.1/16")}},
	}
	if err := m.PutDevice(maps.Device{Index: 99}); err != nil {
		t.Fatal(err)
	}
	if found, err := Devices(m, slices.Values(rows)); err != nil || len(found) != 2 {
		t.Errorf("found %q, %v", found, err)
	}
	if found, err := Devices(m, slices.Values(rows)); err != nil || len(found) != 0 {
		t.Errorf("second time %q, %v", found, err)
	}
	got, err := m.Devices()
	want := []maps.Device{{Index: 2, Address: netip.MustParseAddr("192.168.0.1"), IPv6: netip.MustParseAddr("fd00::1"), MTU: 1500}}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%+v, %v, want %+v", got, err, want)
	}
}
