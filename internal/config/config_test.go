package config

import (
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sigs.k8s.io/yaml"
)

func TestDefaultIsValid(t *testing.T) {
	if err := Default().Validate(); err != nil {
		t.Fatal(err)
	}
	for _, empty := range []string{"", "\n", "{}", "null", "# only a comment\n"} {
		c, err := Parse([]byte(empty))
		if err != nil {
			t.Errorf("Parse(%q): %v", empty, err)
		}
		if c.IPAM.PodCIDRv4.String() != "10.244.0.0/16" || !c.IPv4 || c.IPv6 {
			t.Errorf("Parse(%q) = %+v, want the defaults", empty, c)
		}
	}
}

func TestParse(t *testing.T) {
	c, err := Parse([]byte(`
clusterName: lab
routingMode: native
network: flat
ipv6: true
devices: [eth0, eth1]
mtu: 9000
ipam:
  podCIDRv4: 10.1.0.0/16
  podCIDRv6: fd00:1::/56
  nodeMaskV4: 25
  coolDown: 1m30s
serviceCIDRs: [10.96.0.0/12, "fd00:96::/112"]
masqueradePorts: 20000-20999
vxlan:
  port: 4789
maps:
  conntrack: 1024
logLevel: debug
cgroupRoot:
`))
	if err != nil {
		t.Fatal(err)
	}
	low, high, err := c.MasqueradePortRange()
	if err != nil || low != 20000 || high != 20999 {
		t.Errorf("MasqueradePortRange = %d, %d, %v", low, high, err)
	}
	if c.RoutingMode != NativeMode || c.Network != Flat || c.IPAM.CoolDown.Duration != 90*time.Second ||
		c.PodCIDR(true) != netip.MustParsePrefix("fd00:1::/56") || c.IPAM.NodeMaskV6 != 64 || c.Maps.Conntrack != 1024 ||
		c.Maps.NAT != Default().Maps.NAT || len(c.Devices) != 2 || c.ServiceCIDRs[1].String() != "fd00:96::/112" {
		t.Errorf("parsed %+v", c)
	}
}

func TestSwitchesNeedNoQuotes(t *testing.T) {
	for text, want := range map[string]Services{
		"{mode: off, xdp: off}":         {Mode: ServicesOff, XDP: XDPOff},
		"{mode: on, xdp: native}":       {Mode: ServicesOn, XDP: XDPNative},
		`{mode: "drain", xdp: "off"}`:   {Mode: ServicesDrain, XDP: XDPOff},
		`{mode: "off", xdp: "generic"}`: {Mode: ServicesOff, XDP: XDPGeneric},
	} {
		c, err := Parse([]byte("services: " + text))
		if err != nil || c.Services.Mode != want.Mode || c.Services.XDP != want.XDP {
			t.Errorf("%s: %+v, %v", text, c.Services, err)
		}
	}
}

// Each case gives the parts every message must have: the key, the value and what would be accepted.
func TestRefused(t *testing.T) {
	for _, c := range []struct {
		name, yaml string
		want       []string
	}{
		{"not yaml", "a: [", []string{"not YAML"}},
		{"no mapping", "[1, 2]", []string{"configuration: [1,2]", "clusterName, routingMode"}},
		{"duplicate key", "mtu: 1500\nmtu: 1400", []string{"mtu", "already set"}},
		{"unknown key", "routeingMode: vxlan", []string{"routeingMode: unknown key", "routingMode"}},
		{"key in wrong case", "RoutingMode: vxlan", []string{"RoutingMode: unknown key"}},
		{"unknown nested key", "ipam: {poolv4: 10.0.0.0/8}", []string{"ipam.poolv4: unknown key", "podCIDRv4"}},
		{"scalar for section", "ipam: cluster-pool", []string{`ipam: "cluster-pool"`, "mode, podCIDRv4"}},
		{"text for bool", "ipv4: yes please", []string{`ipv4: "yes please": want true or false`}},
		{"port too large", "vxlan: {port: 70000}", []string{"vxlan.port: 70000: want a number from 0 to 65535"}},
		{"text for list", "devices: eth0", []string{`devices: "eth0": want a list`}},
		{"number for duration", "ipam: {coolDown: 30}", []string{"ipam.coolDown: 30", `"30s"`}},
		{"negative duration", "ipam: {coolDown: -1s}", []string{`ipam.coolDown: "-1s": want 0s to 1h`}},
		{"unknown mode", "routingMode: geneve", []string{`routingMode: "geneve": unknown; accepted: vxlan, native`}},
		{"unknown network", "network: open", []string{"island, flat, isolated"}},
		{"unknown ipam", "ipam: {mode: crd}", []string{`ipam.mode: "crd"`, "cluster-pool, kubernetes"}},
		{"unknown level", "logLevel: trace", []string{"debug, info, warn, error"}},
		{"no family", "ipv4: false", []string{"ipv4: false", "at least one"}},
		{"family without pool", "ipam: {podCIDRv4: \"\"}", []string{`ipam.podCIDRv4: "": IPv4 is enabled`}},
		{"not a CIDR", "ipam: {podCIDRv4: 10.0.0.0}", []string{`ipam.podCIDRv4: "10.0.0.0": not a CIDR`}},
		{"host bits", "ipam: {podCIDRv4: 10.0.1.0/16}", []string{`write "10.0.0.0/16"`}},
		{"mapped", "ipam: {podCIDRv6: \"::ffff:10.0.0.0/112\"}", []string{"v4-mapped"}},
		{"wrong family", "ipam: {podCIDRv4: \"fd00::/48\"}", []string{`ipam.podCIDRv4: "fd00::/48": want an IPv4 CIDR`}},
		{"loopback pool", "ipam: {podCIDRv4: 127.0.0.0/16}", []string{"loopback"}},
		{"everything pool", "ipam: {podCIDRv4: 0.0.0.0/0}", []string{"ipam.podCIDRv4"}},
		{"mask shorter than pool", "ipam: {nodeMaskV4: 12}", []string{"ipam.nodeMaskV4: 12: want a length from 16", "to 30"}},
		{"mask too long", "ipam: {nodeMaskV4: 31}", []string{"ipam.nodeMaskV4: 31"}},
		{"too many nodes", "ipv6: true\nipam: {podCIDRv6: \"fd00::/16\"}", []string{"ipam.nodeMaskV6: 64", "at most 48"}},
		{"service in pods", "serviceCIDRs: [10.244.128.0/20]", []string{"serviceCIDRs[0]", "overlaps ipam.podCIDRv4 10.244.0.0/16"}},
		{"two v4 service ranges", "serviceCIDRs: [10.96.0.0/16, 10.97.0.0/16]", []string{"serviceCIDRs[1]", "at most one"}},
		{"bad service range", "serviceCIDRs: [10.96.0.0/16, x]", []string{`serviceCIDRs[1]: "x": not a CIDR`}},
		{"long device", "devices: [a-very-long-device]", []string{"devices[0]", "15"}},
		{"loopback device", "devices: [lo]", []string{`devices[0]: "lo"`}},
		{"device twice", "devices: [eth0, eth0]", []string{"devices[1]", "twice"}},
		{"mtu too small", "mtu: 600", []string{"mtu: 600: want 0 (detect) or 646"}},
		{"port range order", "masqueradePorts: 29999-10000", []string{"masqueradePorts", `"10000-29999"`}},
		{"port range text", "masqueradePorts: many", []string{`masqueradePorts: "many": want "min-max"`}},
		{"port range low", "masqueradePorts: 80-8000", []string{"below 1024"}},
		{"port range small", "masqueradePorts: 20000-20009", []string{"has 10 ports; at least 256"}},
		{"port range meets tunnel", "masqueradePorts: 8000-9000", []string{"contains vxlan.port 8472"}},
		{"services mode number", "services: {mode: 1}", []string{"services.mode: 1: want text"}},
		{"services mode", "services: {mode: maybe}", []string{`services.mode: "maybe": unknown; accepted: on, off, drain`}},
		{"algorithm", "services: {algorithm: wlc}", []string{`services.algorithm: "wlc"`, "random, maglev, rr, lc, dh, sh, sed, nq, p2c"}},
		{"forwarding", "services: {forwarding: nat}", []string{`services.forwarding: "nat"`, "snat, dsr"}},
		{"xdp", "services: {xdp: yes}", []string{`services.xdp: "on": unknown; accepted: off, native, generic`}},
		{"xdp mode", "services: {xdp: offload}", []string{`services.xdp: "offload"`, "off, native, generic"}},
		{"maglev not prime", "services: {maglevSize: 16384}", []string{"services.maglevSize: 16384: want a prime from 251 to 131071"}},
		{"maglev small", "services: {maglevSize: 7}", []string{"services.maglevSize: 7"}},
		{"node ports text", "services: {nodePorts: \"30000\"}", []string{`services.nodePorts: "30000": want "min-max" such as "30000-32767"`}},
		{"node ports order", "services: {nodePorts: 32767-30000}", []string{`write "30000-32767"`}},
		{"node port zero", "services: {nodePorts: 0-100}", []string{"services.nodePorts", "from 1 to 65535"}},
		{"node ports masqueraded", "services: {nodePorts: 29999-32767}", []string{"services.nodePorts", "meets masqueradePorts 10000-29999"}},
		{"node ports meet tunnel", "services: {nodePorts: 8000-9000}", []string{"services.nodePorts", "contains vxlan.port 8472"}},
		{"no tunnel port", "vxlan: {port: 0}", []string{"vxlan.port: 0"}},
		{"map size", "maps: {nat: 1}", []string{"maps.nat: 1: want 256 to"}},
		{"ring no power of two", "flows: {ring: 3000000}", []string{"flows.ring: 3000000: want a power of two from 65536 to 1073741824 bytes"}},
		{"ring small", "flows: {ring: 4096}", []string{"flows.ring: 4096"}},
		{"ring large", "flows: {ring: 2147483648}", []string{"flows.ring: 2147483648"}},
		{"keeps nothing", "flows: {keep: 0}", []string{"flows.keep: 0: want 1 to 1048576"}},
		{"keeps too much", "flows: {keep: 2000000}", []string{"flows.keep: 2000000"}},
		{"flows at no port", "flows: {listen: everywhere, tlsDir: /certs}", []string{`flows.listen: "everywhere"`, ":port"}},
		{"flows without certificates", "flows: {listen: \":4244\"}", []string{`flows.tlsDir: "": flows.listen is ":4244"`, "ca.crt, tls.crt and tls.key"}},
		{"relay in the open", "relay: {local: \"0.0.0.0:4245\"}", []string{`relay.local: "0.0.0.0:4245": it has no TLS; want a loopback address`}},
		{"relay local nowhere", "relay: {local: \"127.0.0.1\"}", []string{`relay.local: "127.0.0.1"`}},
		{"relay of nobody", "relay: {peer: \"hubble-peer\", tlsDir: /certs}", []string{`relay.peer: "hubble-peer": want host:port`}},
		{"relay without certificates", "relay: {peer: \"hubble-peer:443\"}", []string{`relay.tlsDir: "": relay.listen and relay.peer speak TLS`}},
		{"relay at no port", "relay: {listen: \"4246\", tlsDir: /certs}", []string{`relay.listen: "4246"`}},
		{"relay's certificates relative", "relay: {tlsDir: certs}", []string{`relay.tlsDir: "certs": want an absolute path`}},
		{"certificates for an hour", "operator: {certificates: {validity: 1h}}", []string{`operator.certificates.validity: "1h0m0s": want 24h0m0s to 8760h0m0s`}},
		{"relative certificates", "flows: {listen: \":4244\", tlsDir: certs}", []string{`flows.tlsDir: "certs": want an absolute path`}},
		{"relative path", "stateDir: var/lib", []string{`stateDir: "var/lib": want an absolute path`}},
		{"server without scheme", "api: {server: \"10.0.0.1:6443\"}", []string{"api.server", "https://host:port"}},
		{"server port", "api: {server: \"https://10.0.0.1:0\"}", []string{"api.server", "1 to 65535"}},
		{"metrics address", "metricsAddress: nine", []string{`metricsAddress: "nine"`, ":port"}},
		{"cluster name", "clusterName: My_Cluster", []string{`clusterName: "My_Cluster"`}},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := Parse([]byte(c.yaml))
			if err == nil {
				t.Fatal("accepted")
			}
			for _, part := range c.want {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("error %q lacks %q", err, part)
				}
			}
		})
	}
}

func TestAllProblemsTogether(t *testing.T) {
	_, err := Parse([]byte("routingMode: x\nnetwork: why\nmtu: 1\nlogLevel: z\n"))
	if err == nil {
		t.Fatal("accepted")
	}
	for _, key := range []string{"routingMode", "network", "mtu", "logLevel"} {
		if !strings.Contains(err.Error(), key+":") {
			t.Errorf("%q lacks %s", err, key)
		}
	}
	_, err = Parse([]byte("nope: 1\nvxlan: {port: x, gbp: true}\nlogLevel: loud\n"))
	if err == nil || strings.Count(err.Error(), "\n") != 3 {
		t.Errorf("want four lines, got %v", err)
	}
}

func TestLoad(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config.yaml")
	if _, err := Load(path); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("missing file: %v", err)
	}
	if err := os.WriteFile(path, []byte("mtu: x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(path); err == nil || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "mtu") {
		t.Errorf("bad file: %v", err)
	}
}

func TestRoundTrip(t *testing.T) {
	want := Default()
	want.IPv6 = true
	want.ServiceCIDRs = []Prefix{{netip.MustParsePrefix("10.96.0.0/12")}}
	b, err := yaml.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	got, err := Parse(b)
	if err != nil {
		t.Fatalf("%v in\n%s", err, b)
	}
	gotJSON, _ := json.Marshal(got)
	wantJSON, _ := json.Marshal(want)
	if string(gotJSON) != string(wantJSON) {
		t.Errorf("got  %s\nwant %s", gotJSON, wantJSON)
	}
}

// What is accepted is valid, prints, and reads back as the same.
func FuzzParse(f *testing.F) {
	f.Add([]byte("routingMode: native\nipv6: true\n"))
	f.Add([]byte("ipam: {podCIDRv4: 10.0.0.0/8, nodeMaskV4: 24}\nserviceCIDRs: [10.96.0.0/12]"))
	f.Add([]byte("devices: [eth0]\nmasqueradePorts: 1024-65535\nvxlan: {port: 1}\nroutingMode: native"))
	f.Add([]byte("api: {server: \"https://[::1]:6443\"}\nmetricsAddress: \"[::1]:9\""))
	f.Add([]byte("services: {mode: off, algorithm: maglev, maglevSize: 251, nodePorts: 1-2}"))
	f.Add([]byte("flows: {enabled: false, ring: 65536, keep: 1, listen: \"[::1]:4244\", tlsDir: /certs}"))
	f.Add([]byte("? [a]\n: {b: !!binary x}"))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := Parse(b)
		if err != nil {
			return
		}
		if err := c.Validate(); err != nil {
			t.Fatalf("accepted but not valid: %v", err)
		}
		out, err := yaml.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		again, err := Parse(out)
		if err != nil {
			t.Fatalf("own output refused: %v\n%s", err, out)
		}
		a, _ := json.Marshal(c)
		z, _ := json.Marshal(again)
		if string(a) != string(z) {
			t.Fatalf("%s\n%s", a, z)
		}
	})
}
