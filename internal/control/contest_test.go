package control

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/strait-net/strait/internal/config"
	"github.com/strait-net/strait/internal/state"
)

func addrs(texts ...string) []netip.Addr {
	var out []netip.Addr
	for _, t := range texts {
		out = append(out, netip.MustParseAddr(t))
	}
	return out
}

func nodePort(name, address string, age int64, port uint16) state.Service {
	s := svc(name, address, age)
	s.Type, s.Ports[0].NodePort = state.NodePort, port
	return s
}

func balancer(name, address string, age int64, ingress ...string) state.Service {
	s := svc(name, address, age)
	s.Type, s.Ingress = state.LoadBalancer, addrs(ingress...)
	return s
}

func external(name, address string, age int64, external ...string) state.Service {
	s := svc(name, address, age)
	s.ExternalIPs = addrs(external...)
	return s
}

// pod is a local pod with a host port.
func pod(name, address, hostIP string, port uint16, age int64) state.Endpoint {
	e := state.Endpoint{
		ContainerID: name, IfName: "eth0", Namespace: "shop", Pod: name, Addresses: addrs(address), Phase: state.EndpointReady, Since: time.Unix(age, 0),
		HostPorts: []state.PortMapping{{Port: port, Target: 80, Protocol: state.TCP}},
	}
	if hostIP != "" {
		e.HostPorts[0].Address = netip.MustParseAddr(hostIP)
	}
	return e
}

func member(name, zone, address, cidr string) state.Node {
	return state.Node{Name: name, Zone: zone, Addresses: addrs(address), PodCIDRs: []netip.Prefix{netip.MustParsePrefix(cidr)}}
}

// holders is "key of holder" of the frontends that are no cluster addresses, and the problems.
func (r *serviceRig) holders() string {
	var lines []string
	for f := range r.st.Frontends.Snapshot().All() {
		if f.Type != state.ClusterIP {
			lines = append(lines, f.Key()+" of "+claimantOf(f).String())
		}
	}
	for p := range r.st.Problems.Snapshot().All() {
		lines = append(lines, p.Subject+": "+p.Text)
	}
	return strings.Join(lines, "\n")
}

func TestConflicts(t *testing.T) {
	for _, c := range []struct {
		name     string
		services []state.Service
		pods     []state.Endpoint
		want     string
	}{
		{"node port of two services", []state.Service{nodePort("young", "10.96.0.1", 9, 30080), nodePort("old", "10.96.0.2", 1, 30080)}, nil,
			"0.0.0.0:30080/TCP of service shop/old\n" +
				"service shop/young: 0.0.0.0:30080/TCP belongs to service shop/old, which is older; this service does not get it"},
		{"of one age", []state.Service{nodePort("b", "10.96.0.1", 1, 30080), nodePort("a", "10.96.0.2", 1, 30080)}, nil,
			"0.0.0.0:30080/TCP of service shop/a\n" +
				"service shop/b: 0.0.0.0:30080/TCP belongs to service shop/a, which is as old and the first by name; this service does not get it"},
		{"node port and host port", []state.Service{nodePort("young", "10.96.0.1", 9, 30080)}, []state.Endpoint{pod("old", "10.0.0.1", "", 30080, 1)},
			"0.0.0.0:30080/TCP of service shop/young\n" +
				"pod shop/old: 0.0.0.0:30080/TCP belongs to service shop/young, and services go before host ports; this pod does not get it"},
		{"host port of two pods", nil, []state.Endpoint{pod("young", "10.0.0.2", "", 80, 9), pod("old", "10.0.0.1", "", 80, 1)},
			"0.0.0.0:80/TCP of pod shop/old\npod shop/young: 0.0.0.0:80/TCP belongs to pod shop/old, which is older; this pod does not get it"},
		{"host ports with hostIPs", nil, []state.Endpoint{pod("a", "10.0.0.2", "192.0.2.1", 80, 9), pod("b", "10.0.0.1", "192.0.2.2", 80, 1), pod("c", "10.0.0.3", "", 80, 1)},
			"0.0.0.0:80/TCP of pod shop/c\n192.0.2.1:80/TCP of pod shop/a\n192.0.2.2:80/TCP of pod shop/b"},
		{"a pod and a service of one name", []state.Service{nodePort("web", "10.96.0.1", 1, 30080)}, []state.Endpoint{pod("web", "10.0.0.1", "", 80, 1)},
			"0.0.0.0:30080/TCP of service shop/web\n0.0.0.0:80/TCP of pod shop/web"},
		{"load balancer address of two", []state.Service{balancer("young", "10.96.0.1", 9, "203.0.113.7"), balancer("old", "10.96.0.2", 1, "203.0.113.7")}, nil,
			"203.0.113.7:80/TCP of service shop/old\n" +
				"service shop/young: 203.0.113.7:80/TCP belongs to service shop/old, which is older; this service does not get it"},
		{"nobody takes a cluster address away", []state.Service{external("thief", "10.96.0.1", 1, "10.96.0.2"), svc("victim", "10.96.0.2", 9)}, nil,
			"service shop/thief: 10.96.0.2:80/TCP belongs to service shop/victim, whose cluster address it is; this service does not get it"},
		{"two kinds of one address", []state.Service{func() state.Service {
			s := balancer("web", "10.96.0.1", 1, "203.0.113.7")
			s.ExternalIPs = s.Ingress
			return s
		}()}, nil, "203.0.113.7:80/TCP of service shop/web"},
		{"several of one service", []state.Service{func() state.Service {
			s := nodePort("young", "10.96.0.1", 9, 30080)
			s.ExternalIPs = addrs("203.0.113.7")
			return s
		}(), func() state.Service {
			s := nodePort("old", "10.96.0.2", 1, 30080)
			s.ExternalIPs = addrs("203.0.113.7")
			return s
		}()}, nil, "0.0.0.0:30080/TCP of service shop/old\n203.0.113.7:80/TCP of service shop/old\n" +
			"service shop/young: 0.0.0.0:30080/TCP belongs to service shop/old, which is older; this service does not get it; " +
			"203.0.113.7:80/TCP belongs to service shop/old, which is older; this service does not get it"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newServiceRig()
			for _, s := range c.services {
				r.st.Services.Insert(s)
				r.step()
			}
			r.st.Endpoints.Insert(c.pods...)
			r.step()
			if got := r.holders(); got != c.want {
				t.Errorf("got\n%s\nwant\n%s", got, c.want)
			}
			for _, s := range c.services {
				r.st.Services.Delete(s.String())
			}
			for _, e := range c.pods {
				r.st.Endpoints.Delete(e.Key())
			}
			r.step()
			if got := r.holders(); got != "" || r.st.Frontends.Snapshot().Len() != 0 || len(r.loop.contested)+len(r.loop.exposed)+len(r.loop.wrong) != 0 {
				t.Errorf("left: %s", got)
			}
		})
	}
}

func TestAddressesOfOthersAreRefused(t *testing.T) {
	for _, c := range []struct {
		name string
		svc  state.Service
		want string
	}{
		{"pod CIDR", balancer("web", "10.96.0.1", 1, "10.244.1.7", "203.0.113.7"), "203.0.113.7:80/TCP of service shop/web\n" +
			"service shop/web: LoadBalancer address 10.244.1.7 is in pod CIDR 10.244.1.0/24 of node you; it is not served"},
		{"node address", balancer("web", "10.96.0.1", 1, "192.0.2.2"),
			"192.0.2.2:80/TCP of service shop/web"},
		{"IPv6 pod CIDR", balancer("web", "10.96.0.1", 1, "fd00:1::7"),
			"service shop/web: LoadBalancer address fd00:1::7 is in pod CIDR fd00:1::/64 of node me; it is not served"},
		{"external IP of a node", external("web", "10.96.0.1", 1, "192.0.2.2"), "192.0.2.2:80/TCP of service shop/web"},
		{"external IP of a pod", external("web", "10.96.0.1", 1, "10.244.1.7"),
			"service shop/web: external IP 10.244.1.7 is in pod CIDR 10.244.1.0/24 of node you; it is not served"},
		{"every address", balancer("web", "10.96.0.1", 1, "0.0.0.0"),
			"service shop/web: LoadBalancer address 0.0.0.0 is no address that others can reach; it is not served"},
		{"loopback and link-local", external("web", "10.96.0.1", 1, "::1", "169.254.169.254"),
			"service shop/web: external IP 169.254.169.254 is no address that others can reach; it is not served; " +
				"external IP ::1 is no address that others can reach; it is not served"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newServiceRig()
			me := member("me", "", "192.0.2.1", "fd00:1::/64")
			r.st.Nodes.Insert(me, member("you", "", "192.0.2.2", "10.244.1.0/24"))
			r.st.Services.Insert(c.svc)
			r.step()
			if got := r.holders(); got != c.want {
				t.Errorf("got\n%s\nwant\n%s", got, c.want)
			}
			if _, _, ok := r.st.Frontends.Snapshot().Get("10.96.0.1:80/TCP"); !ok {
				t.Error("its cluster address is not served either")
			}
		})
	}
	r := newServiceRig()
	r.st.Services.Insert(balancer("web", "10.96.0.1", 1, "10.244.1.7"))
	for _, c := range []struct {
		change func()
		served bool
	}{
		{func() {}, true},
		{func() { r.st.Nodes.Insert(member("you", "", "192.0.2.2", "10.244.1.0/24")) }, false},
		{func() { r.st.Nodes.Insert(member("you", "", "192.0.2.2", "10.244.2.0/24")) }, true},
		{func() { r.st.Nodes.Insert(member("me", "", "10.244.1.7", "10.244.1.0/24")) }, false},
		{func() { r.st.Nodes.Delete("me") }, true},
	} {
		c.change()
		r.step()
		_, _, served := r.st.Frontends.Snapshot().Get("10.244.1.7:80/TCP")
		if problems := r.st.Problems.Snapshot().Len(); served != c.served || (problems == 0) != served {
			t.Errorf("served %t with %d problems, want %t", served, problems, c.served)
		}
	}
}

func TestNodePortsThatAreNotGuarded(t *testing.T) {
	r := newServiceRig()
	r.loop = NewServices(r.st, "me", config.Services{NodePorts: "30000-32767"}, quiet())
	r.st.Services.Insert(nodePort("good", "10.96.0.1", 1, 32767), nodePort("far", "10.96.0.2", 1, 32768))
	r.step()
	if got, want := r.holders(), "0.0.0.0:32767/TCP of service shop/good\n0.0.0.0:32768/TCP of service shop/far\n"+
		"service shop/far: node port 32768 is served, but other programs can bind to it: it is outside services.nodePorts 30000-32767, "+
		"which has to be the API server's --service-node-port-range"; got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestZoneOfThisNode(t *testing.T) {
	r := newServiceRig()
	s := endpoints("web", "x", "10.0.0.1", "10.0.0.2")
	s.Endpoints[0].ForZones, s.Endpoints[1].ForZones = []string{"a"}, []string{"b"}
	r.st.EndpointSlices.Insert(s)
	r.st.Services.Insert(svc("web", "10.96.0.1", 1))
	for _, c := range []struct {
		change func()
		want   string
	}{
		{func() {}, "[10.0.0.1:8080 10.0.0.2:8080]"},
		{func() { r.st.Nodes.Insert(member("me", "a", "192.0.2.1", "10.244.0.0/24")) }, "[10.0.0.1:8080]"},
		{func() { r.st.Nodes.Insert(member("you", "b", "192.0.2.2", "10.244.1.0/24")) }, "[10.0.0.1:8080]"},
		{func() { r.st.Nodes.Insert(member("me", "b", "192.0.2.1", "10.244.0.0/24")) }, "[10.0.0.2:8080]"},
		{func() { r.st.Nodes.Delete("me") }, "[10.0.0.2:8080]"}, // unknown for now is no reason to move connections
		{func() { r.st.Nodes.Insert(member("me", "", "192.0.2.1", "10.244.0.0/24")) }, "[10.0.0.1:8080 10.0.0.2:8080]"},
	} {
		c.change()
		r.step()
		row, _, _ := r.st.Frontends.Snapshot().Get("10.96.0.1:80/TCP")
		if got := targets(row.Backends); got != c.want {
			t.Errorf("got %s, want %s", got, c.want)
		}
	}
}

// A pod that comes again under its name keeps its host port; its old sandbox may go later.
func TestHostPortOfAnotherSandbox(t *testing.T) {
	r := newServiceRig()
	first, second := pod("web-0", "10.0.0.1", "", 80, 1), pod("web-0", "10.0.0.2", "", 80, 2)
	second.ContainerID = "second"
	for _, c := range []struct {
		change func()
		want   string
	}{
		{func() { r.st.Endpoints.Insert(first) }, "[10.0.0.1:80]"},
		{func() { second.Phase = state.EndpointAdding; r.st.Endpoints.Insert(second) }, "[10.0.0.1:80]"},
		{func() { second.Phase = state.EndpointReady; r.st.Endpoints.Insert(second) }, "[10.0.0.2:80]"},
		{func() { r.st.Endpoints.Delete(first.Key()) }, "[10.0.0.2:80]"},
		{func() { r.st.Endpoints.Delete(second.Key()) }, "[]"},
	} {
		c.change()
		r.step()
		row, _, _ := r.st.Frontends.Snapshot().Get("0.0.0.0:80/TCP")
		if got := targets(row.Backends); got != c.want || r.st.Problems.Snapshot().Len() != 0 {
			t.Errorf("got %s, want %s", got, c.want)
		}
	}
}

// change does one thing at random that the loop follows. The object of this node is never deleted: its zone would be remembered.
func (r *serviceRig) change(rnd *rand.Rand) {
	name := fmt.Sprintf("s%d", rnd.IntN(6))
	pick := func(list ...string) string { return list[rnd.IntN(len(list))] }
	sometimes := func(n int) bool { return rnd.IntN(n) == 0 }
	switch rnd.IntN(10) {
	case 0:
		r.st.Services.Delete("shop/" + name)
	case 1, 2, 3:
		r.st.Services.Insert(randomService(rnd, name))
	case 4:
		r.st.EndpointSlices.Delete(fmt.Sprintf("shop/x%d", rnd.IntN(8)))
	case 5:
		node := member(pick("me", "you", "they"), pick("", "a", "b"), fmt.Sprintf("203.0.113.%d", rnd.IntN(5)), fmt.Sprintf("198.51.100.%d/31", 2*rnd.IntN(3)))
		if node.Name != "me" && sometimes(2) {
			r.st.Nodes.Delete(node.Name)
			return
		}
		r.st.Nodes.Insert(node)
	case 6, 7:
		p := pod(name, fmt.Sprintf("10.0.1.%d", rnd.IntN(3)), pick("", "", "203.0.113.1"), uint16(30080+rnd.IntN(3)), int64(rnd.IntN(3)))
		p.ContainerID = pick("one", "two") + name
		p.Phase = state.EndpointPhase(pick("ready", "ready", "adding", "degraded"))
		if sometimes(3) {
			r.st.Endpoints.Delete(p.Key())
			return
		}
		r.st.Endpoints.Insert(p)
	default:
		var list []string
		for range rnd.IntN(4) {
			list = append(list, fmt.Sprintf("10.0.0.%d", rnd.IntN(5)))
		}
		s := endpoints(name, fmt.Sprintf("x%d", rnd.IntN(8)), list...)
		for i := range s.Endpoints {
			e := &s.Endpoints[i]
			e.Node, e.Zone = pick("me", "you", ""), pick("a", "b")
			e.Ready = !sometimes(3)
			e.Serving, e.Terminating = !e.Ready && sometimes(2), !e.Ready
			if !sometimes(4) {
				e.ForZones = []string{pick("a", "b")}
			}
			if !sometimes(4) {
				e.ForNodes = []string{pick("me", "you")}
			}
		}
		r.st.EndpointSlices.Insert(s)
	}
}

func randomService(rnd *rand.Rand, name string) state.Service {
	pick := func(list ...string) string { return list[rnd.IntN(len(list))] }
	sometimes := func(n int) bool { return rnd.IntN(n) == 0 }
	s := svc(name, fmt.Sprintf("10.96.0.%d", rnd.IntN(4)), int64(rnd.IntN(3)))
	s.Type = state.ServiceType(pick("ClusterIP", "NodePort", "LoadBalancer", "ExternalName"))
	if sometimes(3) {
		s.Ports = append(s.Ports, state.ServicePort{Name: "https", Port: 443, Protocol: state.TCP}, s.Ports[0])
	}
	if sometimes(3) {
		s.ClusterIPs = append(s.ClusterIPs, addrs(pick("10.96.0.1", "fd00:96::1", "fd00:96::2"))...)
	}
	if s.Type != state.ClusterIP {
		s.Ports[0].NodePort = uint16(30080 + rnd.IntN(3))
	}
	for range rnd.IntN(3) {
		s.ExternalIPs = append(s.ExternalIPs, addrs(fmt.Sprintf("%s.%d", pick("203.0.113", "198.51.100", "10.96.0"), rnd.IntN(5)))...)
	}
	for range rnd.IntN(3) {
		s.Ingress = append(s.Ingress, addrs(fmt.Sprintf("%s.%d", pick("203.0.113", "198.51.100"), rnd.IntN(5)))...)
	}
	if sometimes(3) {
		s.SourceRanges = []netip.Prefix{netip.MustParsePrefix(pick("192.0.2.0/24", "10.0.0.0/8"))}
	}
	s.ExternalPolicy, s.InternalPolicy = state.TrafficPolicy(pick("Cluster", "Local")), state.TrafficPolicy(pick("", "Cluster", "Local"))
	s.Algorithm, s.Forwarding = state.Algorithm(pick("", "maglev", "rr")), state.Forwarding(pick("", "dsr"))
	s.Affinity = time.Duration(rnd.IntN(2)) * time.Minute
	if sometimes(3) {
		s.Weights = []state.Weight{{Of: pick("10.0.0.1", "node:me", "zone:a"), Value: uint16(rnd.IntN(3))}}
	}
	s.Headless, s.PublishNotReady = sometimes(8), sometimes(8)
	if sometimes(10) {
		s.Proxy = "mesh"
	}
	return s
}

// Taking changes in as they come gives the same rows and problems as computing everything at the end.
func TestIncrementalEqualsFromScratch(t *testing.T) {
	for seed := range uint64(1000) {
		rnd := rand.New(rand.NewPCG(seed, 3))
		rig := newServiceRig()
		for range 80 {
			rig.change(rnd)
			if rnd.IntN(3) == 0 {
				rig.step()
			}
		}
		rig.step()
		scratch := newServiceRig()
		scratch.st.Nodes.Insert(slices.Collect(rig.st.Nodes.Snapshot().All())...)
		scratch.st.Services.Insert(slices.Collect(rig.st.Services.Snapshot().All())...)
		scratch.st.EndpointSlices.Insert(slices.Collect(rig.st.EndpointSlices.Snapshot().All())...)
		scratch.st.Endpoints.Insert(slices.Collect(rig.st.Endpoints.Snapshot().All())...)
		scratch.step()
		if got, want := rig.dump(), scratch.dump(); got != want {
			t.Fatalf("seed %d: incremental\n%s\nfrom scratch\n%s", seed, got, want)
		}
	}
}
