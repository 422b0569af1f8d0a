package cli_test

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/strait-net/strait/internal/localapi"
)

func active(s ...string) (out []localapi.Backend) {
	for _, a := range s {
		out = append(out, localapi.Backend{Address: at(a), State: "active", Weight: 1})
	}
	return out
}

// exampleServices are the rows of node n<i>: ids and connections differ from node to node.
func exampleServices(i int, trouble bool) []localapi.Service {
	id := uint32(10 * i)
	add := func(n uint32, front, kind, name, port string, backends []localapi.Backend) localapi.Service {
		s := localapi.Service{ID: id + n, Set: id + n, Frontend: at(front), Protocol: "TCP", Type: kind, Namespace: "default", Name: name, Port: port,
			Algorithm: "random", Forwarding: "snat", Backends: backends, Status: "done"}
		if len(backends) > 0 {
			s.Backends[0].Open = uint32(i)
		}
		return s
	}
	dns := add(2, "10.96.0.10:53", "ClusterIP", "kube-dns", "dns", active("10.244.1.3:53", "10.244.2.3:53"))
	dns.Protocol, dns.Namespace = "UDP", "kube-system"
	dnsTCP := add(3, "10.96.0.10:53", "ClusterIP", "kube-dns", "dns-tcp", active("10.244.1.3:53", "10.244.2.3:53"))
	dnsTCP.Namespace = "kube-system"
	web6 := add(4, "[fd00:96::7]:80", "ClusterIP", "web", "", append(active("[fd00:10:244:1::2]:8080"),
		localapi.Backend{Address: at("[fd00:10:244:2::2]:8080"), State: "terminating", Weight: 1}))
	node := add(7, "0.0.0.0:30080", "NodePort", "web", "", active("10.244.1.2:8080", "10.244.2.2:8080"))
	here := node
	wildcard := node.Frontend
	here.Frontend, here.Of = netip.AddrPortFrom(addr(fmt.Sprintf("10.0.0.%d", i)), 30080), &wildcard
	shop := add(8, "203.0.113.7:443", "LoadBalancer", "shop", "https", active("10.244.1.9:8443", "10.244.3.9:8443"))
	shop.Algorithm, shop.AffinitySeconds, shop.ExternalLocal, shop.Forwarding = "maglev", 10800, true, "dsr"
	shop.SourceRanges, shop.Backends[1].Weight, shop.OuterSet = []netip.Prefix{prefix("198.51.100.0/24")}, 3, id+9
	if i == 1 {
		shop.Outer = active("10.244.1.9:8443")
	}
	host := add(9, "0.0.0.0:9100", "HostPort", fmt.Sprintf("exporter-%d", i), "", active(fmt.Sprintf("10.244.%d.7:9100", i)))
	if trouble {
		web6.Status, web6.Error, web6.ID = "error", "map strait_service is full", 0
	}
	idle := func(kind, name, note string) localapi.Service {
		return localapi.Service{Type: kind, Namespace: "default", Name: name, Note: note, Backends: []localapi.Backend{}, Status: "done"}
	}
	return []localapi.Service{
		add(1, "10.96.0.1:443", "ClusterIP", "kubernetes", "https", active("10.0.0.100:6443")), dns, dnsTCP, web6,
		add(6, "10.96.0.7:80", "ClusterIP", "web", "", active("10.244.1.2:8080", "10.244.2.2:8080")),
		add(5, "10.96.4.4:80", "ClusterIP", "empty", "", []localapi.Backend{}), node, here, shop, host,
		idle("Headless", "cache", "nothing to do: DNS answers with its endpoints"),
		idle("ExternalName", "db", "nothing to do: resolved by DNS to db.example.org"),
	}
}

// exampleDetail is a load balancer with an endpoint in every state, or a service that is not balanced.
func exampleDetail(i int, name string, trouble bool) (localapi.ServiceDetail, error) {
	d := localapi.ServiceDetail{Node: fmt.Sprintf("n%d", i), Namespace: "default", Created: ago(50 * time.Hour), Frontends: []localapi.Service{}, Endpoints: []localapi.ServiceEndpoint{}}
	switch name {
	case "default/db":
		d.Name, d.Type, d.Target, d.Note = "db", "ExternalName", "db.example.org", "nothing to do: resolved by DNS to db.example.org"
		return d, nil
	case "default/cache":
		d.Name, d.Type, d.Note = "cache", "Headless", "nothing to do: DNS answers with its endpoints"
		return d, nil
	case "default/shop":
	default:
		return d, fmt.Errorf("service %s: %w", name, localapi.ErrNotFound)
	}
	d.Name, d.Type, d.Algorithm, d.Forwarding = "shop", "LoadBalancer", "maglev", "dsr"
	d.InternalPolicy, d.ExternalPolicy, d.AffinitySeconds, d.HealthCheckNodePort = "Cluster", "Local", 10800, 31000
	d.SourceRanges = []netip.Prefix{prefix("198.51.100.0/24")}
	for _, s := range exampleServices(i, trouble) {
		if s.Name == "shop" {
			d.Frontends = append(d.Frontends, s)
		}
	}
	for n, e := range []localapi.ServiceEndpoint{
		{Address: at("10.244.1.9:8443"), Pod: "default/shop-1", Node: "n1", Zone: "a", State: "active", Weight: 1, Open: 3, Ever: 120, Clients: 2},
		{Address: at("10.244.2.9:8443"), Pod: "default/shop-2", Node: "n2", Zone: "b", State: "out", Why: "not ready", Weight: 1},
		{Address: at("10.244.3.8:8443"), Pod: "default/shop-4", Node: "n3", Zone: "b", State: "leaving", Why: "terminating", Weight: 1, Open: 1, Ever: 80},
		{Address: at("10.244.3.9:8443"), Pod: "default/shop-3", Node: "n3", Zone: "b", State: "active", Weight: 3, Open: 9, Ever: 12345, Clients: 5},
	} {
		e.Port, e.Protocol, e.ID = "https", "TCP", uint32(n+1)
		if e.State == "active" && e.Node != d.Node {
			e.Why = "for clients outside: on another node, and the traffic policy is Local"
		}
		if e.Ever > 0 {
			e.Traffic = localapi.Traffic{Connections: 3, ToPackets: 1000 * uint64(i), ToBytes: 123456 * uint64(i), FromPackets: 900, FromBytes: 98765432}
		}
		d.AffinityClients += e.Clients
		d.Endpoints = append(d.Endpoints, e)
	}
	if trouble {
		d.Problems = []string{`annotation strait.dev/weights "n9": want ADDRESS=N, node:NAME=N or zone:NAME=N; the default is used`}
	}
	return d, nil
}
