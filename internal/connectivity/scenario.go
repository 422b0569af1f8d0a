package connectivity

import (
	"fmt"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strings"
)

// Scenario is a way between two ends and what has to become of a question that takes it.
type Scenario struct {
	Name string `json:"name"`
	Text string `json:"text"`            // what it shows
	Need string `json:"needs,omitempty"` // to be run at all
	// client asks, server answers: workloads. Without a server the world outside answers.
	client, server string
	policy         string // that judges the client; "": none of the test's
	denied         bool   // by the policy
	spread         bool   // over two nodes
	// direct: the server sees the client's own address.
	direct  bool
	targets func(*stage) []target
}

// target is a URL and the addresses that its host has to have.
type target struct {
	url  string
	want []netip.Addr // sorted; nil: whatever it has
}

// The needs.
const (
	needSpread   = "two nodes"
	needExternal = "--external URL"
	needName     = "--external URL with a name"
)

// Scenarios returns all there are, in the order in which they are run.
func Scenarios() []Scenario {
	all := []Scenario{
		{Name: "pod-to-a", Text: "a pod reaches a service by name, TCP and UDP, every address of it", client: client1, server: echoA, direct: true, targets: byService(echoA, "http", "udp")},
		{Name: "pod-to-external", Text: "a pod reaches the world outside", client: client1, targets: toExternal},
		{Name: "pod-to-a-denied-cnp", Text: "a CiliumNetworkPolicy that does not allow it stops it, and counts it", client: clientDenied, server: echoA, policy: clientDenied, denied: true, targets: byAddress(echoA)},
		{Name: "pod-to-a-allowed-cnp", Text: "a CiliumNetworkPolicy that allows it lets it pass, and counts it", client: clientAllowed, server: echoA, policy: clientAllowed, direct: true, targets: byAddress(echoA)},
		{Name: "pod-to-external-fqdn-allow-cnp", Text: "a CiliumNetworkPolicy that allows a name outside lets it pass", client: clientFQDN, policy: clientFQDN, targets: toExternal},
	}
	for _, way := range []struct {
		place, client string
		spread        bool
	}{{"intra", client1, false}, {"multi", client2, true}} {
		on := map[bool]string{false: "on its own node", true: "on another node"}[way.spread]
		all = append(all,
			Scenario{Name: "pod-to-b-" + way.place + "-node-clusterip", Text: "a pod reaches a pod " + on + " by the service's own addresses", client: way.client, server: echoB, spread: way.spread, direct: true, targets: byService(echoB, "http", "udp")},
			Scenario{Name: "pod-to-b-" + way.place + "-node-headless", Text: "a pod reaches a pod " + on + " by a name that is the pod's addresses", client: way.client, server: echoB, spread: way.spread, direct: true, targets: byHeadless("http", "udp")},
			Scenario{Name: "pod-to-b-" + way.place + "-node-nodeport", Text: "a pod reaches a pod " + on + " by a port of the nodes", client: way.client, server: echoB, spread: way.spread, targets: byNodePort(way.client)},
		)
	}
	all = append(all,
		Scenario{Name: "host-to-b-multi-node-clusterip", Text: "a node reaches a pod of another node by the service's own addresses", client: clientHost, server: echoB, spread: true, targets: byService(echoB, "http", "udp")},
		Scenario{Name: "host-to-b-multi-node-headless", Text: "a node reaches a pod of another node by a name that is the pod's addresses", client: clientHost, server: echoB, spread: true, targets: byHeadless("http", "udp")},
	)
	for i, s := range all {
		switch {
		case s.spread:
			all[i].Need = needSpread
		case s.policy == clientFQDN:
			all[i].Need = needName
		case s.server == "":
			all[i].Need = needExternal
		}
	}
	return all
}

// Select returns the scenarios named by words: each is a name, or a regular expression that finds some. No words: all.
func Select(words []string) ([]Scenario, error) {
	all := Scenarios()
	if len(words) == 0 {
		return all, nil
	}
	chosen := make([]bool, len(all))
	for _, word := range words {
		if i := slices.IndexFunc(all, func(s Scenario) bool { return s.Name == word }); i >= 0 {
			chosen[i] = true
			continue
		}
		pattern, err := regexp.Compile(word)
		if err != nil {
			return nil, fmt.Errorf("%q is neither a scenario nor a regular expression: %w", word, err)
		}
		found := false
		for i, s := range all {
			if pattern.MatchString(s.Name) {
				chosen[i], found = true, true
			}
		}
		if !found {
			return nil, fmt.Errorf("%q finds no scenario; there are: %s", word, strings.Join(names(all), ", "))
		}
	}
	var out []Scenario
	for i, s := range all {
		if chosen[i] {
			out = append(out, s)
		}
	}
	return out, nil
}

func names(all []Scenario) []string {
	var out []string
	for _, s := range all {
		out = append(out, s.Name)
	}
	return out
}

// lacks says what a scenario needs and does not have; empty: nothing.
func (s Scenario) lacks(nodes int, external *url.URL) string {
	switch {
	case s.spread && nodes < 2:
		return "needs two nodes that pods may be put on; there is one"
	case s.server == "" && external == nil:
		return "needs to know whom to ask outside: --external URL"
	case s.policy == clientFQDN && isAddress(external.Hostname()):
		return "needs a name outside, and " + external.Hostname() + " is an address"
	}
	return ""
}

func isAddress(host string) bool {
	_, err := netip.ParseAddr(host)
	return err == nil
}

// ParseExternal reads the URL of somebody outside; without a scheme it is taken for http.
func ParseExternal(text string) (*url.URL, error) {
	whole := text
	if !strings.Contains(text, "://") {
		whole = "http://" + text
	}
	u, err := url.Parse(whole)
	if err != nil || u.Hostname() == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, fmt.Errorf("%q: want a URL outside the cluster such as https://example.org", text)
	}
	return u, nil
}

// byService asks a service by its name.
func byService(name string, ports ...string) func(*stage) []target {
	return func(s *stage) []target { return s.named(name, s.services[name].addrs, ports) }
}

// byHeadless asks echo-b by the name that has the addresses of its pods.
func byHeadless(ports ...string) func(*stage) []target {
	return func(s *stage) []target { return s.named(echoBHeadless, s.pods[echoB].addrs, ports) }
}

// byAddress asks the addresses of a service: no name server has to be allowed for that.
func byAddress(name string) func(*stage) []target {
	return func(s *stage) []target { return addressed(s.services[name].addrs, "http", portHTTP) }
}

// byNodePort asks the port of echo-b's service at its own node, by name, and at that of the client.
func byNodePort(client string) func(*stage) []target {
	return func(s *stage) []target {
		var out []target
		for _, scheme := range []string{"http", "udp"} {
			port := s.services[echoB].nodePorts[scheme]
			out = append(out, target{fmt.Sprintf("%s://%s:%d/", scheme, echoBHost, port), s.pods[echoBHost].addrs})
			if s.pods[client].node != s.pods[echoB].node {
				out = append(out, addressed(s.pods[client].hostAddrs, scheme, port)...)
			}
		}
		return out
	}
}

func toExternal(s *stage) []target { return []target{{url: s.external.String()}} }

func (s *stage) named(host string, addrs []netip.Addr, schemes []string) []target {
	var out []target
	for _, scheme := range schemes {
		out = append(out, target{fmt.Sprintf("%s://%s:%d/", scheme, host, portOf(scheme)), addrs})
	}
	return out
}

func addressed(addrs []netip.Addr, scheme string, port int32) []target {
	var out []target
	for _, a := range addrs {
		out = append(out, target{fmt.Sprintf("%s://%s/", scheme, netip.AddrPortFrom(a, uint16(port))), []netip.Addr{a}})
	}
	return out
}
