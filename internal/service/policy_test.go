package service

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/strait-net/strait/internal/state"
)

func addrs(texts ...string) []netip.Addr {
	var out []netip.Addr
	for _, t := range texts {
		out = append(out, netip.MustParseAddr(t))
	}
	return out
}

func ofType(kind state.ServiceType) func(*state.Service) {
	return func(s *state.Service) { s.Type = kind; s.Ports[0].NodePort = 30080 }
}

func outerLocal(s *state.Service) { s.ExternalPolicy = state.PolicyLocal }
func innerLocal(s *state.Service) { s.InternalPolicy = state.PolicyLocal }

func weights(text string) func(*state.Service) {
	return func(s *state.Service) {
		for _, part := range strings.Split(text, ",") {
			of, value, _ := strings.Cut(part, "=")
			w := state.Weight{Of: of}
			_, _ = fmt.Sscan(value, &w.Value)
			s.Weights = append(s.Weights, w)
		}
	}
}

func TestKinds(t *testing.T) {
	everywhere := func(s *state.Service) {
		ofType(state.LoadBalancer)(s)
		dual(s)
		s.Ingress = addrs("203.0.113.7", "2001:db8::7")
		s.ExternalIPs = addrs("198.51.100.1")
		s.SourceRanges = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}
		s.Affinity = time.Minute
	}
	for _, c := range []struct {
		name string
		svc  state.Service
		want string // type, key, source ranges
	}{
		{"node port of one family", web(ofType(state.NodePort)), "ClusterIP 10.96.0.10:80/TCP, NodePort 0.0.0.0:30080/TCP"},
		{"node port of both", web(ofType(state.NodePort), dual), "ClusterIP 10.96.0.10:80/TCP, ClusterIP [fd00:96::10]:80/TCP, " +
			"NodePort 0.0.0.0:30080/TCP, NodePort [::]:30080/TCP"},
		{"node port of IPv6", web(ofType(state.NodePort), func(s *state.Service) { s.ClusterIPs = addrs("fd00:96::10") }),
			"ClusterIP [fd00:96::10]:80/TCP, NodePort [::]:30080/TCP"},
		{"a node port is none of a ClusterIP service", web(func(s *state.Service) { s.Ports[0].NodePort = 30080 }), "ClusterIP 10.96.0.10:80/TCP"},
		{"load balancer", web(everywhere), "ClusterIP 10.96.0.10:80/TCP, ClusterIP [fd00:96::10]:80/TCP, NodePort 0.0.0.0:30080/TCP, " +
			"NodePort [::]:30080/TCP, LoadBalancer 203.0.113.7:80/TCP [192.0.2.0/24], LoadBalancer [2001:db8::7]:80/TCP [192.0.2.0/24], " +
			"ExternalIP 198.51.100.1:80/TCP"},
		{"load balancer without node ports", web(everywhere, func(s *state.Service) { s.Ports[0].NodePort = 0; s.Ingress = s.Ingress[:1] }),
			"ClusterIP 10.96.0.10:80/TCP, ClusterIP [fd00:96::10]:80/TCP, LoadBalancer 203.0.113.7:80/TCP [192.0.2.0/24], ExternalIP 198.51.100.1:80/TCP"},
		{"ingress that is left from another type", web(everywhere, func(s *state.Service) { s.Type = state.ClusterIP; s.ExternalIPs = nil }),
			"ClusterIP 10.96.0.10:80/TCP, ClusterIP [fd00:96::10]:80/TCP"},
		{"headless with external IPs", web(everywhere, func(s *state.Service) { s.Headless = true }), ""},
		{"external name", web(func(s *state.Service) { s.Type = state.ExternalName; s.ExternalIPs = addrs("198.51.100.1") }), ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			var got []string
			for _, f := range Frontends(c.svc, nil, here) {
				text := string(f.Type) + " " + f.Key()
				if len(f.SourceRanges) > 0 {
					text += fmt.Sprint(" ", f.SourceRanges)
				}
				got = append(got, text)
				if f.Affinity != c.svc.Affinity || f.Algorithm != state.Random || f.Forwarding != state.SNAT {
					t.Errorf("%+v", f)
				}
			}
			if got := strings.Join(got, ", "); got != c.want {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
		})
	}
	f := Frontends(web(func(s *state.Service) { s.Algorithm, s.Forwarding = state.Maglev, state.DSR }), nil, here)[0]
	if f.Algorithm != state.Maglev || f.Forwarding != state.DSR {
		t.Errorf("the service's own choice is not taken: %+v", f)
	}
}

// Each rule is tried with both families: the addresses of the table are turned into those of IPv6.
func TestPolicies(t *testing.T) {
	for _, c := range []struct {
		name      string
		svc       state.Service
		endpoints []string
		want      string // of the last frontend
	}{
		{"external Local", web(ofType(state.NodePort), outerLocal), []string{"10.0.0.1 ready @me", "10.0.0.2 ready @you"},
			"10.0.0.1:8080 10.0.0.2:8080 | outside: 10.0.0.1:8080"},
		{"external Local, none here", web(ofType(state.NodePort), outerLocal), []string{"10.0.0.2 ready @you"}, "10.0.0.2:8080 | outside:"},
		{"external Local is graded on the node", web(ofType(state.NodePort), outerLocal),
			[]string{"10.0.0.1 serving terminating @me", "10.0.0.2 ready @you"}, "10.0.0.2:8080 | outside: 10.0.0.1:8080(terminating)"},
		{"external Local does not mix", web(ofType(state.NodePort), outerLocal),
			[]string{"10.0.0.1 serving terminating @me", "10.0.0.2 ready @me"}, "10.0.0.2:8080 | outside: 10.0.0.2:8080"},
		{"external Local, terminating everywhere", web(ofType(state.NodePort), outerLocal),
			[]string{"10.0.0.1 serving terminating @me", "10.0.0.2 serving terminating @you"},
			"10.0.0.1:8080(terminating) 10.0.0.2:8080(terminating) | outside: 10.0.0.1:8080(terminating)"},
		{"external Local and an endpoint of no node", web(ofType(state.NodePort), outerLocal), []string{"10.0.0.1 ready"}, "10.0.0.1:8080 | outside:"},
		{"external Local is not for cluster addresses", web(outerLocal), []string{"10.0.0.2 ready @you"}, "10.0.0.2:8080"},
		{"internal Local", web(innerLocal), []string{"10.0.0.1 ready @me", "10.0.0.2 ready @you"}, "10.0.0.1:8080"},
		{"internal Local, none here", web(innerLocal), []string{"10.0.0.2 ready @you"}, ""},
		{"internal Local falls back on the node", web(innerLocal), []string{"10.0.0.1 serving terminating @me", "10.0.0.2 ready @you"}, "10.0.0.1:8080(terminating)"},
		{"internal Local is not for node ports", web(ofType(state.NodePort), innerLocal), []string{"10.0.0.2 ready @you"}, "10.0.0.2:8080"},
		{"internal Local ignores hints", web(innerLocal), []string{"10.0.0.1 ready @me >b", "10.0.0.2 ready @you >a"}, "10.0.0.1:8080"},

		{"zone hints", web(), []string{"10.0.0.1 ready >a", "10.0.0.2 ready >b", "10.0.0.3 ready >b,a"}, "10.0.0.1:8080 10.0.0.3:8080"},
		{"zone hints, one missing", web(), []string{"10.0.0.1 ready >a", "10.0.0.2 ready"}, "10.0.0.1:8080 10.0.0.2:8080"},
		{"zone hints, none ours", web(), []string{"10.0.0.1 ready >b", "10.0.0.2 ready >c"}, "10.0.0.1:8080 10.0.0.2:8080"},
		{"zone hints of what is not ready do not count", web(), []string{"10.0.0.1 ready >b", "10.0.0.2 >a", "10.0.0.3 ready >b"}, "10.0.0.1:8080 10.0.0.3:8080"},
		{"a hint missing at what is not ready does not matter", web(), []string{"10.0.0.1 ready >a", "10.0.0.2", "10.0.0.3 ready >b"}, "10.0.0.1:8080"},
		{"node hints", web(), []string{"10.0.0.1 ready >>me", "10.0.0.2 ready >>you"}, "10.0.0.1:8080"},
		{"node hints go before zone hints", web(), []string{"10.0.0.1 ready >>me >b", "10.0.0.2 ready >>you >a"}, "10.0.0.1:8080"},
		{"node hints not ours, zone hints ours", web(), []string{"10.0.0.1 ready >>you >a", "10.0.0.2 ready >>you >b"}, "10.0.0.1:8080"},
		{"node hint missing, zone hints ours", web(), []string{"10.0.0.1 ready >>me >b", "10.0.0.2 ready >a"}, "10.0.0.2:8080"},
		{"hints do not choose among the terminating", web(), []string{"10.0.0.1 serving terminating >a", "10.0.0.2 serving terminating >b"},
			"10.0.0.1:8080(terminating) 10.0.0.2:8080(terminating)"},
		{"hints are not for Local", web(ofType(state.NodePort), outerLocal), []string{"10.0.0.1 ready @me >b", "10.0.0.2 ready @you >a"},
			"10.0.0.2:8080 | outside: 10.0.0.1:8080"},

		{"weights, the most exact first", web(weights("zone:z=2,node:me=3,10.0.0.1=4")),
			[]string{"10.0.0.1 ready @me +z", "10.0.0.2 ready @me +z", "10.0.0.3 ready @you +z", "10.0.0.4 ready @you +y"},
			"10.0.0.1:8080*4 10.0.0.2:8080*3 10.0.0.3:8080*2 10.0.0.4:8080"},
		{"weight 0 gets nothing", web(weights("10.0.0.1=0")), []string{"10.0.0.1 ready", "10.0.0.2 ready"}, "10.0.0.2:8080"},
		{"weight 0 everywhere", web(weights("zone:z=0")), []string{"10.0.0.1 ready +z", "10.0.0.2 ready +z"}, ""},
		{"weight 0 does not hide what terminates", web(weights("10.0.0.1=0")), []string{"10.0.0.1 ready", "10.0.0.2 serving terminating"},
			"10.0.0.2:8080(terminating)"},
		{"a drained zone does not hold its clients by hints", web(weights("zone:a=0")),
			[]string{"10.0.0.1 ready +a >a", "10.0.0.2 ready +b >b", "10.0.0.3 ready +b >b"}, "10.0.0.2:8080 10.0.0.3:8080"},
		{"a weight of 0 is exact, too", web(weights("zone:z=5,10.0.0.1=0")), []string{"10.0.0.1 ready +z", "10.0.0.2 ready +z"}, "10.0.0.2:8080*5"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := last(c.svc, c.endpoints); got != c.want {
				t.Errorf("IPv4: got  %q\nwant %q", got, c.want)
			}
			v6, mixed := c.svc, c.svc
			v6.ClusterIPs = addrs("fd00:96::10")
			v6.Weights = slices.Clone(v6.Weights)
			for i := range v6.Weights {
				v6.Weights[i].Of = to6(v6.Weights[i].Of)
			}
			if got, want := last(v6, strings.Split(to6(strings.Join(c.endpoints, "\n")), "\n")), to6(c.want); got != want {
				t.Errorf("IPv6: got  %q\nwant %q", got, want)
			}
			// What is said of the other family changes nothing.
			noise := append(slices.Clone(c.endpoints), "fd00::99 ready @me +z", "fd00::98 ready @you")
			if got := last(mixed, noise); got != c.want {
				t.Errorf("with IPv6 endpoints: got  %q\nwant %q", got, c.want)
			}
		})
	}
}

// last returns the backends of the last frontend.
func last(svc state.Service, endpoints []string) string {
	var list []state.EndpointSlice
	for _, e := range endpoints {
		list = append(list, slice("http/TCP/8080", e)) // a slice each: decisions are about all of them
	}
	lines := strings.Split(dump(Frontends(svc, list, here)), "\n")
	_, text, _ := strings.Cut(lines[len(lines)-1], " ->")
	return strings.TrimPrefix(text, " ")
}

// to6 turns 10.0.0.N into fd00::N, and 10.0.0.N:8080 into [fd00::N]:8080.
func to6(text string) string {
	for i := range 10 {
		v4, v6 := fmt.Sprintf("10.0.0.%d", i), fmt.Sprintf("fd00::%d", i)
		text = strings.ReplaceAll(text, v4+":8080", "["+v6+"]:8080")
		text = strings.ReplaceAll(text, v4, v6)
	}
	return text
}

// The frontends of a set share its memory, and Set tells the sets apart that differ.
func TestSets(t *testing.T) {
	svc := web(ofType(state.LoadBalancer), outerLocal, innerLocal, func(s *state.Service) { s.Ingress = addrs("203.0.113.7") })
	sets := map[state.SetKey]string{}
	first := map[state.SetKey]*state.Backend{}
	for _, f := range Frontends(svc, []state.EndpointSlice{slice("http/TCP/8080", "10.0.0.1 ready @me", "10.0.0.2 ready @you")}, here) {
		for outer, backends := range map[bool][]state.Backend{false: f.Backends, true: f.OuterBackends} {
			if outer && !f.OuterLocal {
				continue
			}
			key := f.Set(outer)
			if before, known := sets[key]; known && before != list(backends) {
				t.Errorf("%+v is%s and%s", key, before, list(backends))
			} else if known && first[key] != &backends[0] {
				t.Errorf("%+v is in memory twice", key)
			}
			sets[key], first[key] = list(backends), &backends[0]
		}
	}
	if len(sets) != 2 {
		t.Errorf("%d sets, want those of the cluster and of the node: %v", len(sets), sets)
	}
}

func TestBackendsNameTheirPod(t *testing.T) {
	f := Frontends(web(), []state.EndpointSlice{slice("http/TCP/8080", "10.0.0.1 ready")}, here)[0]
	if f.Backends[0].Pod != "default/pod-10.0.0.1" {
		t.Errorf("%+v", f.Backends)
	}
}

func TestHostPorts(t *testing.T) {
	pod := func(edit func(*state.Endpoint)) state.Endpoint {
		e := state.Endpoint{
			Namespace: "shop", Pod: "web-0", Addresses: addrs("10.0.0.1", "fd00::1"), Phase: state.EndpointReady, Since: time.Unix(1, 0),
			HostPorts: []state.PortMapping{{Port: 8080, Target: 80, Protocol: state.TCP}},
		}
		edit(&e)
		return e
	}
	at := func(address string) func(*state.Endpoint) {
		return func(e *state.Endpoint) { e.HostPorts[0].Address = netip.MustParseAddr(address) }
	}
	for _, c := range []struct {
		name string
		pod  []state.Endpoint
		want string
	}{
		{"both families", []state.Endpoint{pod(func(*state.Endpoint) {})}, "0.0.0.0:8080/TCP -> 10.0.0.1:80\n[::]:8080/TCP -> [fd00::1]:80"},
		{"pod of one family", []state.Endpoint{pod(func(e *state.Endpoint) { e.Addresses = e.Addresses[1:] })}, "[::]:8080/TCP -> [fd00::1]:80"},
		{"first address of a family", []state.Endpoint{pod(func(e *state.Endpoint) { e.Addresses = addrs("10.0.0.1", "10.0.0.2") })},
			"0.0.0.0:8080/TCP -> 10.0.0.1:80"},
		{"hostIP", []state.Endpoint{pod(at("192.0.2.1"))}, "192.0.2.1:8080/TCP -> 10.0.0.1:80"},
		{"hostIP of IPv6", []state.Endpoint{pod(at("2001:db8::1"))}, "[2001:db8::1]:8080/TCP -> [fd00::1]:80"},
		{"hostIP 0.0.0.0", []state.Endpoint{pod(at("0.0.0.0"))}, "0.0.0.0:8080/TCP -> 10.0.0.1:80"},
		{"hostIP of a family the pod has not", []state.Endpoint{pod(func(e *state.Endpoint) { at("2001:db8::1")(e); e.Addresses = e.Addresses[:1] })}, ""},
		{"being made", []state.Endpoint{pod(func(e *state.Endpoint) { e.Phase = state.EndpointAdding })}, ""},
		{"degraded pods run", []state.Endpoint{pod(func(e *state.Endpoint) { e.Phase = state.EndpointDegraded; e.Addresses = e.Addresses[:1] })},
			"0.0.0.0:8080/TCP -> 10.0.0.1:80"},
		{"no host ports", []state.Endpoint{pod(func(e *state.Endpoint) { e.HostPorts = nil })}, ""},
		{"the newer sandbox first", []state.Endpoint{
			pod(func(e *state.Endpoint) { e.Addresses = addrs("10.0.0.1") }),
			pod(func(e *state.Endpoint) { e.Addresses, e.Since = addrs("10.0.0.2"), time.Unix(2, 0) }),
		}, "0.0.0.0:8080/TCP -> 10.0.0.2:80\n0.0.0.0:8080/TCP -> 10.0.0.1:80"},
		{"UDP", []state.Endpoint{pod(func(e *state.Endpoint) { e.HostPorts[0].Protocol = state.UDP; e.Addresses = e.Addresses[:1] })}, "0.0.0.0:8080/UDP -> 10.0.0.1:80"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := HostPorts(c.pod, here)
			if dump(got) != c.want {
				t.Errorf("got\n%s\nwant\n%s", dump(got), c.want)
			}
			for _, f := range got {
				if f.Type != state.HostPort || f.Service.String() != "shop/web-0" || f.Backends[0].Pod != "shop/web-0" {
					t.Errorf("%+v", f)
				}
			}
		})
	}
}
