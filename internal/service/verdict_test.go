package service

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"

	"github.com/strait-net/strait/internal/state"
)

func TestEndpoints(t *testing.T) {
	for _, c := range []struct {
		name   string
		svc    state.Service
		slices []state.EndpointSlice
		want   string
	}{
		{"states", web(), []state.EndpointSlice{slice("http/TCP/8080", "10.0.0.1 ready", "10.0.0.2", "10.0.0.3 terminating", "10.0.0.4 serving terminating")},
			"10.0.0.1:8080 ready\n10.0.0.2:8080 not ready\n10.0.0.3:8080 terminating\n10.0.0.4:8080 terminating"},
		{"fallback", web(), []state.EndpointSlice{slice("http/TCP/8080", "10.0.0.2", "10.0.0.4 serving terminating")},
			"10.0.0.2:8080 not ready\n10.0.0.4:8080 terminating but still serving, and none is ready"},
		{"published", web(func(s *state.Service) { s.PublishNotReady = true }), []state.EndpointSlice{slice("http/TCP/8080", "10.0.0.2")},
			"10.0.0.2:8080 not ready, but the service publishes such endpoints"},
		{"external Local", web(ofType(state.NodePort), outerLocal), []state.EndpointSlice{slice("http/TCP/8080", "10.0.0.1 ready @me", "10.0.0.2 ready @you")},
			"10.0.0.1:8080 ready | ready\n10.0.0.2:8080 ready | on another node, and the traffic policy is Local"},
		{"internal Local", web(innerLocal), []state.EndpointSlice{slice("http/TCP/8080", "10.0.0.1 ready @me", "10.0.0.2 ready @you")},
			"10.0.0.1:8080 ready\n10.0.0.2:8080 on another node, and the traffic policy is Local"},
		{"hints", web(), []state.EndpointSlice{slice("http/TCP/8080", "10.0.0.1 ready >a", "10.0.0.2 ready >b")},
			"10.0.0.1:8080 ready\n10.0.0.2:8080 its hints are for other zones"},
		{"node hints", web(), []state.EndpointSlice{slice("http/TCP/8080", "10.0.0.1 ready >>me", "10.0.0.2 ready >>you")},
			"10.0.0.1:8080 ready\n10.0.0.2:8080 its hints are for other nodes"},
		{"weight", web(weights("10.0.0.1=0")), []state.EndpointSlice{slice("http/TCP/8080", "10.0.0.1 ready")}, "10.0.0.1:8080 weight 0"},
		{"port", web(), []state.EndpointSlice{slice("https/TCP/8443", "10.0.0.1 ready"), slice("http/UDP/8080", "10.0.0.2 ready")},
			"10.0.0.1:0 its slice has no port of this name and protocol\n10.0.0.2:0 its slice has no port of this name and protocol"},
		{"family", web(), []state.EndpointSlice{slice("http/TCP/8080", "fd00::1 ready")}, "[fd00::1]:8080 the service has no address of its family"},
		{"twice", web(), []state.EndpointSlice{slice("http/TCP/8080", "10.0.0.1"), slice("http/TCP/8080,x/TCP/1", "10.0.0.1 ready")},
			"10.0.0.1:8080 another slice has the same endpoint\n10.0.0.1:8080 ready"},
		{"headless", web(func(s *state.Service) { s.Headless = true }), []state.EndpointSlice{slice("http/TCP/8080", "10.0.0.1 ready")}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			var lines []string
			for _, v := range Endpoints(c.svc, c.slices, here) {
				line := netip.AddrPortFrom(v.Address, v.TargetPort).String() + " " + string(v.Inside)
				if v.Outside != "" {
					line += " | " + string(v.Outside)
				}
				lines = append(lines, line)
			}
			if got := strings.Join(lines, "\n"); got != c.want {
				t.Errorf("got\n%s\nwant\n%s", got, c.want)
			}
		})
	}
}

// Whatever the slices say: the endpoints that verdicts call used are exactly the backends, every endpoint has a verdict, and backends are
// never of two grades.
func TestVerdictsAgreeWithBackends(t *testing.T) {
	words := []string{" ready", " ready", " ready", " serving terminating", " terminating", ""}
	for seed := range uint64(3000) {
		r := rand.New(rand.NewPCG(seed, 2))
		pick := func(list ...string) string { return list[r.IntN(len(list))] }
		svc := web(ofType(state.LoadBalancer), func(s *state.Service) {
			if r.IntN(2) == 0 {
				dual(s)
			}
			s.ExternalPolicy = state.TrafficPolicy(pick("Local", "Cluster"))
			s.InternalPolicy = state.TrafficPolicy(pick("Local", "Cluster", "Cluster"))
			s.PublishNotReady = r.IntN(8) == 0
			if r.IntN(3) == 0 {
				weights(pick("zone:a=0", "node:me=0,zone:b=3", "10.0.0.1=2,fd00::2=0"))(s)
			}
		})
		hinted, total := r.IntN(2) == 0, 0
		var list []state.EndpointSlice
		for range r.IntN(4) {
			s := slice(pick("http/TCP/8080", "http/TCP/8080", "http/TCP/9090", "other/TCP/1"))
			for range r.IntN(5) {
				text := fmt.Sprintf("%s%d%s @%s +%s", pick("10.0.0.", "fd00::"), r.IntN(6), words[r.IntN(len(words))], pick("me", "you"), pick("a", "b"))
				if hinted {
					text += pick(" >a", " >b", " >a,b", " >>me >a", " >>you >b")
				}
				s.Endpoints = append(s.Endpoints, endpoint(text))
				total++
			}
			list = append(list, s)
		}
		verdicts := Endpoints(svc, list, here)
		if len(verdicts) != total {
			t.Fatalf("seed %d: %d verdicts on %d endpoints", seed, len(verdicts), total)
		}
		for _, f := range Frontends(svc, list, here) {
			inside, outside := map[netip.AddrPort]bool{}, map[netip.AddrPort]bool{}
			for _, v := range verdicts {
				if v.Address.Is6() != f.Address.Is6() {
					continue
				}
				target := netip.AddrPortFrom(v.Address, v.TargetPort)
				if v.Inside.Used() {
					inside[target] = true
				}
				if v.Outside.Used() {
					outside[target] = true
				}
			}
			if f.Type == state.ClusterIP {
				agree(t, seed, f.Key(), inside, f.Backends)
			} else if f.OuterLocal {
				agree(t, seed, f.Key(), outside, f.OuterBackends)
			} else {
				agree(t, seed, f.Key(), outside, f.Backends)
			}
		}
	}
}

func agree(t *testing.T, seed uint64, key string, used map[netip.AddrPort]bool, backends []state.Backend) {
	t.Helper()
	for _, b := range backends {
		if !used[netip.AddrPortFrom(b.Address, b.Port)] || b.Weight == 0 || b.Terminating != backends[0].Terminating {
			t.Fatalf("seed %d: %s has %+v, verdicts use %v", seed, key, backends, used)
		}
	}
	if len(used) != len(backends) {
		t.Fatalf("seed %d: %s has %+v, verdicts use %v", seed, key, backends, used)
	}
}
