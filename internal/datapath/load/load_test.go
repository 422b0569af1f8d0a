package load

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"

	"github.com/strait-net/strait/internal/bpf"
	"github.com/strait-net/strait/internal/config"
	"github.com/strait-net/strait/internal/datapath/maps"
	"github.com/strait-net/strait/internal/datapath/nstest"
	"github.com/strait-net/strait/internal/datapath/pin"
)

func TestMain(m *testing.M) { nstest.Main(m) }

func good() Config {
	return Config{
		Network: config.Island, VXLANIndex: 7, PodMTU: 1450, MasqueradeLo: 10000, MasqueradeHi: 29999,
		LocalLo: 32768, LocalHi: 60999, SocketLB: true, TCX: true,
		Events: true, Services: config.ServicesOn, NetnsCookie: 1, NodePortLo: 30000, NodePortHi: 32767, MaglevSize: 16381,
	}
}

func TestBadConfigNamesValues(t *testing.T) {
	for _, c := range []struct {
		change func(*Config)
		want   string
	}{
		{func(c *Config) { c.MasqueradeHi = 40000 }, "masqueradePorts 10000-40000 overlap net.ipv4.ip_local_port_range 32768-60999"},
		{func(c *Config) { c.MasqueradeLo = 30000 }, "masqueradePorts 30000-29999: want"},
		{func(c *Config) { c.Network = "peninsula" }, `network "peninsula": want island, flat or isolated`},
		{func(c *Config) { c.PodMTU = 576 }, "MTU 576"},
		{func(c *Config) { c.Services = "maybe" }, `services.mode "maybe": want on, off or drain`},
		{func(c *Config) { c.NodePortHi = 0 }, "services.nodePorts 30000-0: want"},
		{func(c *Config) { c.NodePortLo = 29999 }, "services.nodePorts 29999-32767 overlap masqueradePorts 10000-29999"},
	} {
		config := good()
		c.change(&config)
		if err := config.check(); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("error %v, want %q", err, c.want)
		}
	}
	if err := good().check(); err != nil {
		t.Error(err)
	}
}

func TestAssertNamesBothSizes(t *testing.T) {
	spec, err := maps.Spec(config.Maps{})
	if err != nil {
		t.Fatal(err)
	}
	if err := assert(spec); err != nil {
		t.Errorf("embedded programs and Go types differ: %v", err)
	}
	spec.Maps[bpf.DatapathMapStraitCt].ValueSize = 8
	if err := assert(spec); err == nil || !strings.Contains(err.Error(), "strait_ct holds 40 to 8 bytes in the programs, 40 to") {
		t.Errorf("error %v", err)
	}
}

func TestMissingFeaturesAreAllNamed(t *testing.T) {
	no := func() error { return ebpf.ErrNotSupported }
	unsure := func() error { return errors.New("no permission to ask") }
	err := check([]requirement{
		{"redirect", "5.10", "the packet path", no}, {"there", "4.10", "x", func() error { return nil }},
		{"storage", "5.2", "sockets", no}, {"unknown", "9.9", "x", unsure},
	})
	if !errors.Is(err, ErrUnsupported) {
		t.Fatalf("error %v", err)
	}
	var missing *UnsupportedError
	if !errors.As(err, &missing) || missing.Feature != "redirect" || missing.Needed != "5.10" {
		t.Errorf("first missing %+v", missing)
	}
	for _, want := range []string{"redirect", "came with Linux 5.10", "storage", "came with Linux 5.2", "kernel " + release()} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error %q lacks %q", err, want)
		}
	}
	if strings.Contains(err.Error(), "9.9") {
		t.Errorf("error %q blames a feature that could not be tested", err)
	}
}

func TestThisKernelHasEverything(t *testing.T) {
	nstest.Root(t)
	if err := Require(true); err != nil {
		t.Error(err)
	}
	var major, minor int
	if _, err := fmt.Sscanf(release(), "%d.%d", &major, &minor); err != nil {
		t.Fatal(err)
	}
	if want := major > 6 || major == 6 && minor >= 6; HaveTCX() != want {
		t.Errorf("tcx on %s: %v, want %v", release(), HaveTCX(), want)
	}
}

func prepare(t *testing.T) (*ebpf.CollectionSpec, *maps.Maps) {
	t.Helper()
	tree, _, err := pin.Prepare(nstest.BPFFS(t, 0))
	if err != nil {
		t.Fatal(err)
	}
	spec, err := maps.Spec(config.Maps{Conntrack: 1024, NAT: 1024, Services: 1024, Backends: 1024, IPCache: 1024})
	if err != nil {
		t.Fatal(err)
	}
	m, err := maps.Open(tree, spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.Close)
	return spec, m
}

func TestLoadUsesPinnedMaps(t *testing.T) {
	spec, m := prepare(t)
	for _, tcx := range []bool{HaveTCX(), false} {
		for _, sockets := range []bool{true, false} {
			c := good()
			c.TCX, c.SocketLB = tcx, sockets
			p, err := Load(spec, m, c)
			if err != nil {
				t.Fatal(err)
			}
			for _, name := range []string{bpf.DatapathProgStraitConnect4, bpf.DatapathProgStraitBind4, bpf.DatapathProgStraitRelease} {
				if got := slices.Contains(p.Names(), name); got != sockets {
					t.Errorf("%s loaded: %v, want %v", name, got, sockets)
				}
			}
			info, err := p.Program(bpf.DatapathProgStraitFromPod).Info()
			if err != nil {
				t.Fatal(err)
			}
			used, _ := info.MapIDs()
			ct, err := m.Kernel()[bpf.DatapathMapStraitEndpoint].Info()
			if err != nil {
				t.Fatal(err)
			}
			if id, _ := ct.ID(); !slices.Contains(used, id) {
				t.Errorf("strait_from_pod does not use the pinned strait_endpoint")
			}
			p.Close()
		}
	}
}

func TestVerifierErrorIsReadable(t *testing.T) {
	spec, m := prepare(t)
	spec.Programs[bpf.DatapathProgStraitFromPod].Instructions = asm.Instructions{
		asm.LoadMem(asm.R0, asm.R5, 0, asm.DWord).WithSymbol("broken"), asm.Return(),
	}
	c := good()
	c.TCX = HaveTCX()
	_, err := Load(spec, m, c)
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{"the verifier refused", "strait_from_pod", "R5 !read_ok"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error %q lacks %q", err, want)
		}
	}
}
