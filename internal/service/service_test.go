package service

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/strait-net/strait/internal/state"
)

// here is the node of the tests.
var here = Local{Node: "me", Zone: "a", Algorithm: state.Random, Forwarding: state.SNAT}

// endpoint reads "10.0.0.1 ready", "10.0.0.1 serving terminating", "10.0.0.1" (not ready), with @node, +zone and for hints >zone,zone and
// >>node.
func endpoint(text string) state.SliceEndpoint {
	words := strings.Fields(text)
	e := state.SliceEndpoint{Address: netip.MustParseAddr(words[0]), Pod: "default/pod-" + words[0]}
	for _, w := range words[1:] {
		switch {
		case w == "ready":
			e.Ready, e.Serving = true, true
		case w == "serving":
			e.Serving = true
		case w == "terminating":
			e.Terminating = true
		case w[0] == '@':
			e.Node = w[1:]
		case w[0] == '+':
			e.Zone = w[1:]
		case strings.HasPrefix(w, ">>"):
			e.ForNodes = strings.Split(w[2:], ",")
		case w[0] == '>':
			e.ForZones = strings.Split(w[1:], ",")
		}
	}
	return e
}

// slice reads "http/TCP/8080,dns/UDP/53" and endpoints.
func slice(ports string, endpoints ...string) state.EndpointSlice {
	s := state.EndpointSlice{Namespace: "default", Name: ports, Service: state.ServiceName{Namespace: "default", Name: "web"}}
	for _, p := range strings.Split(ports, ",") {
		f := strings.Split(p, "/")
		var number uint16
		fmt.Sscan(f[2], &number)
		s.Ports = append(s.Ports, state.EndpointPort{Name: f[0], Protocol: protocol(f[1]), Port: number})
	}
	for _, e := range endpoints {
		s.Endpoints = append(s.Endpoints, endpoint(e))
	}
	return s
}

func protocol(name string) state.Protocol {
	return map[string]state.Protocol{"TCP": state.TCP, "UDP": state.UDP, "SCTP": state.SCTP}[name]
}

func web(edit ...func(*state.Service)) state.Service {
	s := state.Service{
		ServiceName: state.ServiceName{Namespace: "default", Name: "web"},
		Type:        state.ClusterIP,
		ClusterIPs:  []netip.Addr{netip.MustParseAddr("10.96.0.10")},
		Ports:       []state.ServicePort{{Name: "http", Port: 80, Protocol: state.TCP}},
	}
	for _, e := range edit {
		e(&s)
	}
	return s
}

func dual(s *state.Service) { s.ClusterIPs = append(s.ClusterIPs, netip.MustParseAddr("fd00:96::10")) }

// dump is one line per frontend: "10.96.0.10:80/TCP -> 10.0.0.1:8080 10.0.0.2:8080*3(terminating) | outside: 10.0.0.1:8080".
func dump(frontends []state.Frontend) string {
	var lines []string
	for _, f := range frontends {
		line := f.Key() + " ->" + list(f.Backends)
		if f.OuterLocal {
			line += " | outside:" + list(f.OuterBackends)
		}
		lines = append(lines, line)
	}
	return strings.Join(lines, "\n")
}

func list(backends []state.Backend) string {
	var out string
	for _, b := range backends {
		out += " " + netip.AddrPortFrom(b.Address, b.Port).String()
		if b.Weight != 1 {
			out += fmt.Sprintf("*%d", b.Weight)
		}
		if b.Terminating {
			out += "(terminating)"
		}
	}
	return out
}

func TestFrontends(t *testing.T) {
	for _, c := range []struct {
		name   string
		svc    state.Service
		slices []state.EndpointSlice
		want   string
	}{
		{"no slices", web(), nil, "10.96.0.10:80/TCP ->"},
		{"ready only", web(), []state.EndpointSlice{slice("http/TCP/8080", "10.0.0.2 ready", "10.0.0.1 ready", "10.0.0.3")},
			"10.96.0.10:80/TCP -> 10.0.0.1:8080 10.0.0.2:8080"},
		{"two slices, sorted, once", web(), []state.EndpointSlice{
			slice("http/TCP/8080", "10.0.0.3 ready"), slice("http/TCP/8080", "10.0.0.1 ready", "10.0.0.3 ready")},
			"10.96.0.10:80/TCP -> 10.0.0.1:8080 10.0.0.3:8080"},
		{"in two slices, the better state counts", web(), []state.EndpointSlice{
			slice("http/TCP/8080", "10.0.0.1 serving terminating"), slice("http/TCP/8080", "10.0.0.1 ready")},
			"10.96.0.10:80/TCP -> 10.0.0.1:8080"},
		{"terminating not used while one is ready", web(), []state.EndpointSlice{
			slice("http/TCP/8080", "10.0.0.1 serving terminating", "10.0.0.2 ready")},
			"10.96.0.10:80/TCP -> 10.0.0.2:8080"},
		{"terminating but serving when none is ready", web(), []state.EndpointSlice{
			slice("http/TCP/8080", "10.0.0.1 serving terminating", "10.0.0.2 terminating", "10.0.0.3")},
			"10.96.0.10:80/TCP -> 10.0.0.1:8080(terminating)"},
		{"serving but not terminating is not ready", web(), []state.EndpointSlice{slice("http/TCP/8080", "10.0.0.1 serving")},
			"10.96.0.10:80/TCP ->"},
		{"publish not ready", web(func(s *state.Service) { s.PublishNotReady = true }),
			[]state.EndpointSlice{slice("http/TCP/8080", "10.0.0.1", "10.0.0.2 ready", "10.0.0.3 terminating")},
			"10.96.0.10:80/TCP -> 10.0.0.1:8080 10.0.0.2:8080 10.0.0.3:8080"},
		{"named target port differs between slices", web(), []state.EndpointSlice{
			slice("http/TCP/8080", "10.0.0.1 ready"), slice("http/TCP/9090", "10.0.0.2 ready")},
			"10.96.0.10:80/TCP -> 10.0.0.1:8080 10.0.0.2:9090"},
		{"ports by name and protocol", web(func(s *state.Service) {
			s.Ports = []state.ServicePort{{Name: "dns", Port: 53, Protocol: state.UDP}, {Name: "dns-tcp", Port: 53, Protocol: state.TCP}, {Name: "metrics", Port: 9153, Protocol: state.TCP}}
		}), []state.EndpointSlice{slice("dns/UDP/5353,dns-tcp/TCP/5354,dns/TCP/1", "10.0.0.1 ready")},
			"10.96.0.10:53/UDP -> 10.0.0.1:5353\n10.96.0.10:53/TCP -> 10.0.0.1:5354\n10.96.0.10:9153/TCP ->"},
		{"port without a number", web(), []state.EndpointSlice{slice("http/TCP/0", "10.0.0.1 ready")}, "10.96.0.10:80/TCP ->"},
		{"families do not mix", web(dual), []state.EndpointSlice{
			slice("http/TCP/8080", "10.0.0.1 ready"), slice("http/TCP/8080", "fd00::1 serving terminating")},
			"10.96.0.10:80/TCP -> 10.0.0.1:8080\n[fd00:96::10]:80/TCP -> [fd00::1]:8080(terminating)"},
		{"a terminating pod that is published", web(func(s *state.Service) { s.PublishNotReady = true }),
			[]state.EndpointSlice{slice("http/TCP/8080", "10.0.0.1 serving terminating")}, "10.96.0.10:80/TCP -> 10.0.0.1:8080"},
		{"headless", web(func(s *state.Service) { s.Headless, s.ClusterIPs = true, nil }),
			[]state.EndpointSlice{slice("http/TCP/8080", "10.0.0.1 ready")}, ""},
		{"headless by label keeps its address", web(func(s *state.Service) { s.Headless = true }), nil, ""},
		{"external name", web(func(s *state.Service) { s.Type, s.ClusterIPs = state.ExternalName, nil }), nil, ""},
		{"another proxy", web(func(s *state.Service) { s.Proxy = "mesh" }), nil, ""},
		{"cluster address of other types", web(func(s *state.Service) { s.Type = state.LoadBalancer }),
			[]state.EndpointSlice{slice("http/TCP/8080", "10.0.0.1 ready")}, "10.96.0.10:80/TCP -> 10.0.0.1:8080"},
		{"SCTP", web(func(s *state.Service) { s.Ports[0].Protocol = state.SCTP }),
			[]state.EndpointSlice{slice("http/SCTP/7", "10.0.0.1 ready")}, "10.96.0.10:80/SCTP -> 10.0.0.1:7"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := dump(Frontends(c.svc, c.slices, here)); got != c.want {
				t.Errorf("got\n%s\nwant\n%s", got, c.want)
			}
		})
	}
}

// The result depends on what the slices say, not on their order or on how endpoints are spread over them.
func TestOrderDoesNotMatter(t *testing.T) {
	states := []string{"", " ready", " serving terminating", " terminating"}
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 1))
		var list []state.EndpointSlice
		for range r.IntN(5) {
			s := slice("http/TCP/8080")
			for range r.IntN(6) {
				s.Endpoints = append(s.Endpoints, endpoint(fmt.Sprintf("10.0.0.%d", r.IntN(8))+states[r.IntN(len(states))]))
			}
			list = append(list, s)
		}
		want := dump(Frontends(web(), list, here))
		r.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
		for i := range list {
			e := slices.Clone(list[i].Endpoints)
			r.Shuffle(len(e), func(a, b int) { e[a], e[b] = e[b], e[a] })
			list[i].Endpoints = e
		}
		if got := dump(Frontends(web(), list, here)); got != want {
			t.Fatalf("seed %d: got\n%s\nwant\n%s", seed, got, want)
		}
	}
}
