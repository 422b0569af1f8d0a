package kube

import (
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/strait-net/strait/internal/policy"
	"github.com/strait-net/strait/internal/policy/eval"
	"github.com/strait-net/strait/internal/state"
)

// ciliumCluster is a cluster for the examples, of which each pod is named namespace/name; other names are addresses.
func ciliumCluster() *eval.Cluster {
	c := &eval.Cluster{
		CIDRs: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/16")},
		Nodes: []eval.Node{
			{Name: "n1", Addresses: []netip.Addr{netip.MustParseAddr("192.168.33.1")}, Labels: policy.NewLabels(map[string]string{"type": "ingress-worker"})},
			{Name: "n2", Addresses: []netip.Addr{netip.MustParseAddr("192.168.33.2")}, Labels: policy.NewLabels(map[string]string{"node-role.kubernetes.io/control-plane": ""})},
		},
		APIServers: []netip.Addr{netip.MustParseAddr("192.168.33.2")},
		Namespaces: []eval.Namespace{
			{Name: "ns2", Labels: policy.NewLabels(map[string]string{"faction": "alliance", "kubernetes.io/metadata.name": "ns2"})},
		},
	}
	add := func(namespace, name string, ports []policy.NamedPort, labels ...string) {
		m := map[string]string{}
		for i := 0; i < len(labels); i += 2 {
			m[labels[i]] = labels[i+1]
		}
		address := netip.AddrFrom4([4]byte{10, 0, 0, byte(len(c.Pods) + 1)})
		c.Pods = append(c.Pods, eval.Pod{
			Namespace: namespace, Name: name, Node: "n1", Addresses: []netip.Addr{address}, ServiceAccount: name, Labels: policy.NewLabels(m), Ports: ports,
		})
	}
	add("web", "app", nil, "app", "app")
	add("web", "postgres", nil, "app", "postgres")
	add("web", "other", nil, "app", "other")
	add("shop", "app", nil, "app", "app")
	add("default", "deathstar", nil, "org", "empire", "class", "deathstar")
	add("default", "tiefighter", nil, "org", "empire", "class", "tiefighter")
	add("default", "xwing", nil, "org", "alliance", "class", "xwing")
	add("ns1", "leia", nil, "name", "leia")
	add("ns1", "luke", nil, "name", "luke")
	add("ns2", "luke", nil, "name", "luke")
	add("ns1", "rebels", nil, "name", "rebel-base")
	add("kube-system", "dns", nil, "k8s-app", "kube-dns")
	add("public", "any", nil)
	add("shop", "front", nil, "role", "frontend")
	add("shop", "back", nil, "role", "backend")
	add("shop", "restricted", nil, "role", "restricted")
	add("shop", "victim", nil, "role", "victim")
	add("shop", "open", nil, "role", "public", "env", "prod")
	add("shop", "dev", nil, "env", "dev")
	add("shop", "service", []policy.NamedPort{{Name: "http", Protocol: policy.TCP, Port: 8080}, {Name: "metrics", Protocol: policy.UDP, Port: 9}}, "app", "my-service")
	return c
}

// connect reads "web/app web/postgres 5432/TCP".
func connect(t *testing.T, c *eval.Cluster, text string) eval.Connection {
	t.Helper()
	words := strings.Fields(text)
	port, protocol, found := strings.Cut(words[2], "/")
	n, err := strconv.ParseUint(port, 10, 16)
	protocols := map[string]policy.Protocol{"TCP": policy.TCP, "UDP": policy.UDP, "SCTP": policy.SCTP, "ICMP": policy.ICMP}
	if err != nil || !found || protocols[protocol] == 0 {
		t.Fatalf("%s: no port", text)
	}
	return eval.Connection{From: whose(t, c, words[0]), To: whose(t, c, words[1]), Protocol: protocols[protocol], Port: uint16(n)}
}

func whose(t *testing.T, c *eval.Cluster, name string) netip.Addr {
	t.Helper()
	if a, err := netip.ParseAddr(name); err == nil {
		return a
	}
	for _, p := range c.Pods {
		if p.Namespace+"/"+p.Name == name {
			return p.Addresses[0]
		}
	}
	t.Fatalf("nobody is called %s", name)
	return netip.Addr{}
}

// TestCiliumExamplesDecide lets the evaluator, which is written from the documents, decide what the documentation says about its examples.
func TestCiliumExamplesDecide(t *testing.T) {
	rows := map[string]state.Policy{}
	files, err := filepath.Glob("testdata/cilium/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no manifests: %v", err)
	}
	for _, file := range files {
		raw, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		objects, err := ParseObjects(raw)
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range objects {
			rows[o.GetName()], _ = readCilium(t, o)
		}
	}
	const world, large = "203.0.113.9", "10.200.0.1" // outside of the cluster
	for _, c := range []struct {
		policy       string
		allow, other []string // pass; do not
	}{
		{
			"postgres",
			[]string{"web/app web/postgres 5432/TCP", "web/postgres web/app 80/TCP", "web/other web/app 80/TCP", "192.168.33.1 web/postgres 1/TCP"},
			[]string{
				"web/other web/postgres 5432/TCP", "web/app web/postgres 5433/TCP", "web/app web/postgres 5432/UDP", "shop/app web/postgres 5432/TCP",
				world + " web/postgres 5432/TCP", "192.168.33.2 web/postgres 5432/TCP",
			},
		},
		{
			"rule1",
			[]string{"default/tiefighter default/deathstar 80/TCP", "default/xwing default/tiefighter 80/TCP"},
			[]string{"default/xwing default/deathstar 80/TCP", "default/tiefighter default/deathstar 443/TCP", world + " default/deathstar 80/TCP"},
		},
		{"l3-ingress", []string{"shop/front shop/back 1/TCP", "shop/front shop/back 2048/ICMP"}, []string{"shop/dev shop/back 1/TCP"}},
		{"ingress-of-the-namespace", []string{"shop/dev shop/victim 1/SCTP"}, []string{"web/app shop/victim 1/TCP", world + " shop/victim 1/TCP"}},
		{"default-deny-egress", []string{"shop/front shop/restricted 1/TCP"}, []string{"shop/restricted shop/front 1/TCP", "shop/restricted " + world + " 53/UDP"}},
		{"deny-wins", []string{"shop/front shop/dev 1/TCP", "shop/front " + world + " 1/TCP"}, []string{"shop/front shop/back 1/TCP"}},
		{
			"external",
			[]string{"shop/service 20.1.1.1 80/TCP", "shop/service " + large + " 80/TCP"},
			[]string{"shop/service 20.1.1.2 80/TCP", "shop/service 10.96.0.1 80/TCP", "shop/service shop/back 80/TCP", "shop/service 10.0.77.77 80/TCP"},
		},
		{"from-control-plane", []string{"192.168.33.2 shop/open 1/TCP"}, []string{"shop/back shop/open 1/TCP", world + " shop/open 1/TCP"}},
		{"to-apiserver", []string{"shop/dev 192.168.33.2 6443/TCP"}, []string{"shop/dev 192.168.33.1 6443/TCP", "shop/dev shop/back 1/TCP"}},
		{"to-host", []string{"shop/dev 192.168.33.1 1/TCP"}, []string{"shop/dev 192.168.33.2 1/TCP"}},
		{"from-world", []string{world + " shop/open 1/TCP"}, []string{"shop/dev shop/open 1/TCP", "192.168.33.2 shop/open 1/TCP", "10.0.77.77 shop/open 1/TCP"}},
		{"external-lockdown", []string{"shop/dev shop/open 1/TCP", "192.168.33.2 ns1/leia 1/TCP", "ns1/leia " + world + " 1/TCP"}, []string{world + " ns1/leia 1/TCP"}},
		{"health-checks", []string{world + " ns1/leia 1/TCP", "ns1/leia " + world + " 1/TCP"}, nil},
		{"init", []string{"192.168.33.2 shop/service 1/TCP", "shop/service " + world + " 1/TCP"}, []string{"shop/dev shop/service 1/TCP"}},
		{"l4-range", []string{"shop/service " + world + " 80/TCP", "shop/service shop/dev 444/TCP"}, []string{"shop/service " + world + " 445/TCP", "shop/service " + world + " 80/UDP"}},
		{"icmp", []string{"shop/service " + world + " 2048/ICMP", "shop/service " + world + " 2049/ICMP"}, []string{"shop/service " + world + " 0/ICMP", "shop/service " + world + " 80/TCP"}},
		{
			"names-and-any",
			[]string{world + " shop/service 8080/TCP", world + " shop/service 9/UDP", world + " shop/service 53/SCTP", world + " shop/service 7/SCTP"},
			[]string{world + " shop/service 2048/ICMP"}, // ports are of TCP, UDP and SCTP
		},
		{"isolate", []string{"ns1/luke ns1/leia 1/TCP", "ns1/leia ns2/luke 1/TCP"}, []string{"ns2/luke ns1/leia 1/TCP"}},
		{"across", []string{"ns2/luke ns1/leia 1/TCP"}, []string{"ns1/luke ns1/leia 1/TCP"}},
		{"to-dns", []string{"public/any kube-system/dns 53/UDP"}, []string{"public/any kube-system/dns 53/TCP", "public/any " + world + " 53/UDP"}},
		{"alliance-only", []string{"ns2/luke ns1/rebels 1/TCP", "ns1/rebels ns2/luke 1/TCP"}, []string{"ns1/luke ns1/rebels 1/TCP", "ns1/rebels ns1/leia 1/TCP"}},
		{"service-accounts", []string{"ns1/luke ns1/leia 1/TCP"}, []string{"ns2/luke ns1/leia 1/TCP"}},
		{"cluster-scope", []string{"ns2/luke ns1/leia 1/TCP", "ns1/luke ns1/leia 1/TCP"}, []string{"shop/dev ns1/leia 1/TCP"}},
		{"all-to-dns", []string{"shop/dev kube-system/dns 53/UDP"}, []string{world + " kube-system/dns 53/UDP", "192.168.33.2 kube-system/dns 53/UDP"}},
		{"no-default-deny", []string{"shop/dev kube-system/dns 53/UDP", "shop/dev " + world + " 1/TCP"}, nil},
		{
			"lock-down-ingress",
			[]string{world + " 192.168.33.1 22/TCP", "192.168.33.2 192.168.33.1 9/TCP", world + " 192.168.33.2 23/TCP", world + " ns1/leia 23/TCP"},
			[]string{world + " 192.168.33.1 23/TCP"},
		},
	} {
		cluster := ciliumCluster()
		cluster.Policies = rows[c.policy].Specs
		if len(cluster.Policies) == 0 {
			t.Errorf("%s: no policy: %s", c.policy, rows[c.policy].Refused)
		}
		for _, texts := range [][]string{c.allow, c.other} {
			for _, text := range texts {
				want := slices.Contains(c.allow, text)
				if outcome := cluster.Decide(connect(t, cluster, text)); outcome.Allow() != want {
					t.Errorf("%s: %s: %t, want %t (%+v)", c.policy, text, !want, want, outcome)
				}
			}
		}
	}
}

// What is rare in other kinds of policy, compiled: protocols without ports, types of ICMP, every port of some protocols, names.
func TestCiliumPortsCompile(t *testing.T) {
	pod := []policy.NamedPort{{Name: "http", Protocol: policy.TCP, Port: 8080}, {Name: "http", Protocol: policy.UDP, Port: 8443}}
	other := policy.Peer{Kind: policy.WorldPeer, Prefix: netip.MustParsePrefix("203.0.113.9/32")}
	for _, c := range []struct {
		rule           string
		allowed, other []policy.Port
	}{
		{`toPorts: [{ports: [{protocol: VRRP}]}]`, []policy.Port{{Protocol: 112}}, []policy.Port{{Protocol: policy.TCP, First: 80}, {Protocol: 113}}},
		{`icmps: [{fields: [{type: 0}]}]`, []policy.Port{{Protocol: policy.ICMP}, {Protocol: policy.ICMP, First: 255}},
			[]policy.Port{{Protocol: policy.ICMP, First: 256}, {Protocol: policy.ICMPv6}, {Protocol: policy.TCP}}},
		{`icmps: [{fields: [{type: 255, family: IPv6}]}]`, []policy.Port{{Protocol: policy.ICMPv6, First: 65535}}, []policy.Port{{Protocol: policy.ICMPv6, First: 65279}}},
		{`toPorts: [{ports: [{port: "0"}]}]`, []policy.Port{{Protocol: policy.TCP, First: 1}, {Protocol: policy.UDP}, {Protocol: policy.SCTP, First: 65535}},
			[]policy.Port{{Protocol: policy.ICMP, First: 2048}, {Protocol: 112}}},
		{`toPorts: [{ports: [{port: http}]}]`, []policy.Port{{Protocol: policy.TCP, First: 8080}, {Protocol: policy.UDP, First: 8443}},
			[]policy.Port{{Protocol: policy.UDP, First: 8080}, {Protocol: policy.SCTP, First: 8080}}},
		{`toPorts: [{ports: [{port: http, protocol: UDP}]}]`, []policy.Port{{Protocol: policy.UDP, First: 8443}}, []policy.Port{{Protocol: policy.TCP, First: 8080}}},
	} {
		row, err := readCilium(t, ciliumObject(t, false, "spec", "{endpointSelector: {}, ingress: [{"+c.rule+"}]}"))
		if err != nil {
			t.Fatal(err)
		}
		set := policy.Set{Policies: []*policy.Policy{&row.Specs[0]}, Ports: pod}
		for i, p := range slices.Concat(c.allowed, c.other) {
			if e := policy.Explain(set, policy.Ingress, &other, p.Protocol, p.First); e.Allow != (i < len(c.allowed)) {
				t.Errorf("%s: protocol %d port %d: %t (%+v)", c.rule, p.Protocol, p.First, e.Allow, e.Rule)
			}
		}
	}
}
