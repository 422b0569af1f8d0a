package status_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/strait-net/strait/internal/localapi"
	"github.com/strait-net/strait/internal/service"
	"github.com/strait-net/strait/internal/state"
	"github.com/strait-net/strait/internal/status"
)

// shop is a cluster with services of every kind, seen from n1 of zone a.
func shop(t *testing.T) *state.State {
	t.Helper()
	addr := netip.MustParseAddr
	st := state.New()
	st.Nodes.Insert(state.Node{Name: "n1", Zone: "a", Addresses: []netip.Addr{addr("192.0.2.1"), addr("2001:db8::1")}})
	st.Devices.Insert(
		state.Device{Name: "eth0", Native: true, Addresses: []netip.Prefix{netip.MustParsePrefix("192.0.2.1/24"), netip.MustParsePrefix("198.51.100.1/24")}},
		state.Device{Name: "other", Addresses: []netip.Prefix{netip.MustParsePrefix("203.0.113.1/24")}})
	web := state.Service{ServiceName: state.ServiceName{Namespace: "shop", Name: "web"}, Type: state.NodePort, ClusterIPs: []netip.Addr{addr("10.96.0.7")},
		Ports:    []state.ServicePort{{Name: "http", Port: 80, Protocol: state.TCP, NodePort: 30080}},
		Affinity: 3 * time.Hour, InternalPolicy: state.PolicyCluster, ExternalPolicy: state.PolicyLocal, HealthCheckNodePort: 31000}
	st.Services.Insert(web,
		state.Service{ServiceName: state.ServiceName{Namespace: "shop", Name: "db"}, Type: state.ExternalName, Target: "db.example.org"},
		state.Service{ServiceName: state.ServiceName{Namespace: "shop", Name: "cache"}, Type: state.ClusterIP, Headless: true},
		state.Service{ServiceName: state.ServiceName{Namespace: "shop", Name: "mesh"}, Type: state.ClusterIP, Proxy: "mesh.example.org", ClusterIPs: []netip.Addr{addr("10.96.0.9")}})
	slice := state.EndpointSlice{Namespace: "shop", Name: "web-1", Service: web.ServiceName, Ports: []state.EndpointPort{{Name: "http", Port: 8080, Protocol: state.TCP}},
		Endpoints: []state.SliceEndpoint{
			{Address: addr("10.244.1.4"), Ready: true, Serving: true, Node: "n1", Zone: "a", Pod: "shop/web-1"},
			{Address: addr("10.244.2.4"), Ready: true, Serving: true, Node: "n2", Zone: "b", Pod: "shop/web-2"},
			{Address: addr("10.244.2.5"), Node: "n2", Pod: "shop/web-3"},
			{Address: addr("10.244.2.6"), Terminating: true, Node: "n2", Pod: "shop/web-4"},
		}}
	headless := state.EndpointSlice{Namespace: "shop", Name: "cache-1", Service: state.ServiceName{Namespace: "shop", Name: "cache"},
		Ports:     []state.EndpointPort{{Port: 6379, Protocol: state.TCP}},
		Endpoints: []state.SliceEndpoint{{Address: addr("10.244.1.8"), Ready: true, Pod: "shop/cache-0"}, {Address: addr("10.244.1.9"), Pod: "shop/cache-1"}}}
	st.EndpointSlices.Insert(slice, headless)
	st.Frontends.Insert(service.Frontends(web, []state.EndpointSlice{slice}, service.Local{Node: "n1", Zone: "a", Algorithm: state.Maglev, Forwarding: state.SNAT})...)
	st.Problems.Insert(state.Problem{Source: "services", Subject: "service shop/web", Text: "port 30080 is contested"},
		state.Problem{Source: "services", Subject: "service shop/web2", Text: "another"})
	return st
}

// kernel holds the frontends of shop, one backend with load, and one that is leaving.
func kernel() (status.KernelServices, error) {
	return status.KernelServices{
		Frontends: map[status.Target]status.KernelFrontend{tcp("10.96.0.7:80"): {ID: 6, Set: 3, OuterSet: 3}, tcp("0.0.0.0:30080"): {ID: 5, Set: 3, OuterSet: 4}},
		Backends: map[status.Target]status.KernelBackend{tcp("10.244.1.4:8080"): {ID: 1, Open: 2, Ever: 20}, tcp("10.244.2.4:8080"): {ID: 2},
			tcp("10.244.2.6:8080"): {ID: 9, Leaving: true, Open: 1}},
		Affinity: map[status.KernelAffinity]int{{Set: 3, Backend: 1}: 4, {Set: 4, Backend: 1}: 1, {Set: 77, Backend: 1}: 100},
	}, nil
}

func TestServices(t *testing.T) {
	p := status.Provider(status.Sources{State: shop(t), Node: "n1", Services: kernel})
	rows, err := p.Services(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, r := range rows {
		line := fmt.Sprintf("%d %s %s", r.ID, r.Frontend, r.Type)
		if r.Of != nil {
			line += " of " + r.Of.String()
		}
		for _, b := range r.Backends {
			line += fmt.Sprintf(" %s:%d", b.Address, b.Open)
		}
		for _, b := range r.Outer {
			line += fmt.Sprintf(" outer %s", b.Address)
		}
		got = append(got, strings.TrimSpace(line+" "+r.Note))
	}
	want := []string{
		"5 0.0.0.0:30080 NodePort 10.244.1.4:8080:2 10.244.2.4:8080:0 outer 10.244.1.4:8080",
		"5 192.0.2.1:30080 NodePort of 0.0.0.0:30080 10.244.1.4:8080:2 10.244.2.4:8080:0 outer 10.244.1.4:8080",
		"5 198.51.100.1:30080 NodePort of 0.0.0.0:30080 10.244.1.4:8080:2 10.244.2.4:8080:0 outer 10.244.1.4:8080",
		"6 10.96.0.7:80 ClusterIP 10.244.1.4:8080:2 10.244.2.4:8080:0",
		"0 invalid AddrPort Headless nothing to do: DNS answers with its endpoints",
		"0 invalid AddrPort ExternalName nothing to do: resolved by DNS to db.example.org",
		"0 invalid AddrPort ClusterIP nothing to do: served by mesh.example.org (label service.kubernetes.io/service-proxy-name)",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("services (-want +got):\n%s", diff)
	}
}

func TestService(t *testing.T) {
	p := status.Provider(status.Sources{State: shop(t), Node: "n1", Services: kernel,
		Traffic: func(of []status.Target) ([]localapi.Traffic, error) {
			out := make([]localapi.Traffic, len(of))
			for i, t := range of {
				out[i].Connections = int(t.Addr().As4()[3])
			}
			return out, nil
		}})
	d, err := p.Service(context.Background(), "shop", "web")
	if err != nil {
		t.Fatal(err)
	}
	if d.Type != "NodePort" || d.Algorithm != "maglev" || d.ExternalPolicy != "Local" || d.AffinitySeconds != 10800 || d.AffinityClients != 5 || d.HealthCheckNodePort != 31000 {
		t.Errorf("service = %+v", d)
	}
	if diff := cmp.Diff([]string{"port 30080 is contested"}, d.Problems); diff != "" {
		t.Errorf("problems (-want +got):\n%s", diff)
	}
	var got []string
	for _, e := range d.Endpoints {
		got = append(got, fmt.Sprintf("%s %s %s on %s: %s, open %d, ever %d, clients %d, traffic %d %s", e.Address, e.Port, e.Pod, e.Node, e.State, e.Open, e.Ever,
			e.Clients, e.Traffic.Connections, e.Why))
	}
	want := []string{
		"10.244.1.4:8080 http shop/web-1 on n1: active, open 2, ever 20, clients 5, traffic 4 ",
		"10.244.2.4:8080 http shop/web-2 on n2: active, open 0, ever 0, clients 0, traffic 4 for clients outside: on another node, and the traffic policy is Local",
		"10.244.2.5:8080 http shop/web-3 on n2: out, open 0, ever 0, clients 0, traffic 5 not ready",
		"10.244.2.6:8080 http shop/web-4 on n2: leaving, open 1, ever 0, clients 0, traffic 6 terminating",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("endpoints (-want +got):\n%s", diff)
	}
}

func TestServiceWithoutFrontends(t *testing.T) {
	p := status.Provider(status.Sources{State: shop(t), Node: "n1"})
	d, err := p.Service(context.Background(), "shop", "cache")
	if err != nil || d.Note == "" || len(d.Endpoints) != 2 || d.Endpoints[0].State != "active" || d.Endpoints[1].State != "out" || d.Endpoints[1].Why != "not ready" {
		t.Errorf("headless = %+v, %v", d, err)
	}
	if d, err := p.Service(context.Background(), "shop", "db"); err != nil || d.Target != "db.example.org" || len(d.Frontends) != 0 {
		t.Errorf("external name = %+v, %v", d, err)
	}
	if _, err := p.Service(context.Background(), "shop", "nothing"); !errors.Is(err, localapi.ErrNotFound) {
		t.Errorf("a service that is not there: %v", err)
	}
	p = status.Provider(status.Sources{State: shop(t), Node: "n1", Services: func() (status.KernelServices, error) { return status.KernelServices{}, errors.New("no maps") }})
	if _, err := p.Service(context.Background(), "shop", "web"); err == nil || err.Error() != "no maps" {
		t.Errorf("a kernel that cannot be read: %v", err)
	}
}

// A pod with host ports is a service of the pod's name.
func TestHostPorts(t *testing.T) {
	st := state.New()
	st.Frontends.Insert(state.Frontend{Address: netip.IPv4Unspecified(), Port: 8080, Protocol: state.TCP, Type: state.HostPort,
		Service:  state.ServiceName{Namespace: "shop", Name: "web-1"},
		Backends: []state.Backend{{Address: netip.MustParseAddr("10.244.1.4"), Port: 80, Weight: 1, Pod: "shop/web-1"}}})
	d, err := status.Provider(status.Sources{State: st, Node: "n1"}).Service(context.Background(), "shop", "web-1")
	if err != nil || d.Type != "HostPort" || len(d.Endpoints) != 1 || d.Endpoints[0].Pod != "shop/web-1" || d.Endpoints[0].State != "active" {
		t.Errorf("host port = %+v, %v", d, err)
	}
}

func TestFailedServicesAreNamed(t *testing.T) {
	failed := func(name, at, why string) state.Frontend {
		f := state.Frontend{Address: netip.MustParseAddr(at), Port: 80, Protocol: state.TCP, Service: state.ServiceName{Namespace: "shop", Name: name}}
		f.Err = why
		return f
	}
	found := status.FailedServices(slices.Values([]state.Frontend{failed("web", "10.96.0.7", ""), failed("web", "fd00::7", "map strait_service: full"),
		failed("web", "10.96.0.8", "map strait_service: full"), failed("api", "10.96.0.9", "no")}))
	if len(found) != 2 || found[0].Subject != "service shop/web" || found[0].Text != "[fd00::7]:80/TCP is not in the kernel: map strait_service: full" {
		t.Errorf("failed services = %+v", found)
	}
}

func TestMistakesInAServiceDoNotDegradeTheNode(t *testing.T) {
	s := healthy()
	status.Judge(&s, nil, status.Reported(state.Problem{Source: "kube", Subject: "service shop/web", Text: "bad annotation"}))
	if s.State != localapi.OK || len(s.Problems) != 1 || s.KubeProxy.Problems != 1 {
		t.Errorf("%s with %+v", s.State, s.Problems)
	}
	if p := status.Reported(state.Problem{Source: "kube", Subject: "node n1", Text: "bad CIDR"}); p.Severity != localapi.SeverityError {
		t.Errorf("a mistake in a node: %+v", p)
	}
}

func TestDrain(t *testing.T) {
	for _, tc := range []struct {
		decided  *time.Time
		problems int
	}{{nil, 1}, {&time.Time{}, 0}} {
		s := healthy()
		s.KubeProxy.Mode, s.KubeProxy.Decided = "drain", tc.decided
		if status.Judge(&s, nil); len(s.Problems) != tc.problems || s.State != localapi.OK {
			t.Errorf("decided %v: %s with %+v", tc.decided, s.State, s.Problems)
		}
	}
}

// A full table concerns thousands of services: some are named, all are counted.
func TestManyServicesWithProblems(t *testing.T) {
	s := healthy()
	var found []localapi.Problem
	for i := range 1000 {
		subject := fmt.Sprintf("service shop/web-%d", i)
		found = append(found, localapi.Problem{Severity: localapi.SeverityError, Subject: subject, Text: "full"}, localapi.Problem{Severity: localapi.SeverityError, Subject: subject, Text: "more"})
	}
	status.Judge(&s, nil, found...)
	if len(s.Problems) != 11 || s.Problems[0].Action != "see strait service show shop/web-0" || s.Problems[10].Text != "995 more have problems" {
		t.Errorf("%d problems, first %+v, last %+v", len(s.Problems), s.Problems[0], s.Problems[len(s.Problems)-1])
	}
}
