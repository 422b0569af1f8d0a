package topology

import (
	"strings"
	"testing"
)

func spec(ip string) Spec {
	return Spec{Name: "t", Nodes: 3, Mode: "vxlan", IP: ip, Network: "island", IPAM: "cluster-pool", CNI: "strait"}
}

func TestAddressesFollowTheFamilies(t *testing.T) {
	for _, c := range []struct{ ip, node, pods, services, dns, api string }{
		{"dual", "172.18.0.12/24,fd18::12/64", "10.244.0.0/16,fd44::/48", "10.96.0.0/16,fd96::/112", "10.96.0.10,fd96::a", "172.18.0.2:6443"},
		{"ipv4", "172.18.0.12/24", "10.244.0.0/16", "10.96.0.0/16", "10.96.0.10", "172.18.0.2:6443"},
		{"ipv6", "fd18::12/64", "fd44::/48", "fd96::/112", "fd96::a", "[fd18::2]:6443"},
	} {
		s := spec(c.ip)
		got := []string{Join(s.Node(2).Addrs), Join(s.PodCIDRs()), Join(s.ServiceCIDRs()), Join(s.ClusterDNS()), s.APIServer().String()}
		want := []string{c.node, c.pods, c.services, c.dns, c.api}
		for i := range want {
			if got[i] != want[i] {
				t.Errorf("%s: got %s, want %s", c.ip, got[i], want[i])
			}
		}
	}
}

func TestNoAddressIsGivenTwice(t *testing.T) {
	s := spec("dual")
	seen := map[string]string{}
	add := func(owner string, addrs []string) {
		for _, a := range addrs {
			if other, taken := seen[a]; taken {
				t.Fatalf("%s belongs to %s and %s", a, other, owner)
			}
			seen[a] = owner
		}
	}
	add("router", strings.Split(Join(s.RouterAddrs()), ","))
	add("control plane", strings.Split(Join(s.ControlPlaneAddrs()), ","))
	for i := 1; i <= MaxNodes; i++ {
		add(s.Node(i).Name, strings.Split(Join(s.Node(i).Addrs), ","))
	}
}

func TestValidateNamesFieldValueAndChoice(t *testing.T) {
	for _, c := range []struct {
		change func(*Spec)
		want   string
	}{
		{func(s *Spec) { s.Name = "Not/good" }, `--name "Not/good"`},
		{func(s *Spec) { s.Nodes = 0 }, "--nodes 0: want 1 to 100"},
		{func(s *Spec) { s.Mode = "ipip" }, `--mode "ipip": want one of vxlan, native`},
		{func(s *Spec) { s.IP = "6" }, `--ip "6": want one of dual, ipv4, ipv6`},
		{func(s *Spec) { s.Proxy = "ipvs" }, `--kube-proxy "ipvs": want one of none, iptables, nftables`},
	} {
		s := spec("dual")
		c.change(&s)
		if err := s.Validate(); err == nil || !strings.HasPrefix(err.Error(), c.want) {
			t.Errorf("got %v, want %s", err, c.want)
		}
	}
	if err := spec("dual").Validate(); err != nil {
		t.Error(err)
	}
}
