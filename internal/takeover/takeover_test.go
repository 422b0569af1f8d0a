package takeover

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var equal = cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })

// The node 172.18.0.11 with pods 10.244.1.0/24; the service 10.96.0.20:80 has its node port at 30080.
func view() View {
	services := []string{"10.96.0.20:80", "172.18.0.11:30080", "127.0.0.1:30080", "[fd96::20]:80"}
	return View{
		Service: func(a netip.AddrPort, protocol uint8) bool {
			return protocol != 99 && slices.Contains(services, a.String())
		},
		Backend: func(a netip.AddrPort, _ uint8) (uint32, uint32, bool) {
			known := []string{"10.244.1.5:8080", "10.244.2.7:8080", "172.18.0.11:9090", "[fd44::1:5]:8080"}
			i := slices.Index(known, a.String())
			return uint32(i + 1), 7, i >= 0
		},
		Pod: func(a netip.Addr) bool {
			return netip.MustParsePrefix("10.244.1.0/24").Contains(a) || netip.MustParsePrefix("fd44::1:0/112").Contains(a)
		},
		Node: func(a netip.Addr) bool { return a.String() == "172.18.0.11" },
	}
}

// flow reads "SOURCE > DESTINATION, REPLY SOURCE > REPLY DESTINATION", as conntrack -L shows them.
func flow(text string) Flow {
	f := strings.Fields(strings.NewReplacer(">", " ", ",", " ").Replace(text))
	at := netip.MustParseAddrPort
	return Flow{Protocol: 6, Source: at(f[0]), Destination: at(f[1]), ReplySource: at(f[2]), ReplyDestination: at(f[3]), Replied: true}
}

func TestMake(t *testing.T) {
	for _, c := range []struct {
		name   string
		flow   string
		change func(*Flow)
		want   Plan
	}{
		{
			name: "pod to a service, backend here",
			flow: "10.244.1.9:4000 > 10.96.0.20:80, 10.244.1.5:8080 > 10.244.1.9:4000",
			want: imported("10.244.1.9:4000", "10.96.0.20:80", "10.244.1.5:8080", 1, "", true),
		},
		{
			name: "pod to a service, backend elsewhere: the pod is an end here",
			flow: "10.244.1.9:4000 > 10.96.0.20:80, 10.244.2.7:8080 > 10.244.1.9:4000",
			want: imported("10.244.1.9:4000", "10.96.0.20:80", "10.244.2.7:8080", 2, "", true),
		},
		{
			name: "pod to itself: kube-proxy masquerades",
			flow: "10.244.1.5:4000 > 10.96.0.20:80, 10.244.1.5:8080 > 172.18.0.11:4000",
			want: imported("10.244.1.5:4000", "10.96.0.20:80", "10.244.1.5:8080", 1, "172.18.0.11:4000", false),
		},
		{
			name: "outside to a node port, backend elsewhere",
			flow: "172.19.0.2:5000 > 172.18.0.11:30080, 10.244.2.7:8080 > 172.18.0.11:61234",
			want: imported("172.19.0.2:5000", "172.18.0.11:30080", "10.244.2.7:8080", 2, "172.18.0.11:61234", false),
		},
		{
			name: "outside to a node port, externalTrafficPolicy Local",
			flow: "172.19.0.2:5000 > 172.18.0.11:30080, 10.244.1.5:8080 > 172.19.0.2:5000",
			want: imported("172.19.0.2:5000", "172.18.0.11:30080", "10.244.1.5:8080", 1, "", true),
		},
		{
			name: "outside to a node port, answered by the node's own network",
			flow: "172.19.0.2:5000 > 172.18.0.11:30080, 172.18.0.11:9090 > 172.19.0.2:5000",
			want: imported("172.19.0.2:5000", "172.18.0.11:30080", "172.18.0.11:9090", 3, "", true),
		},
		{
			name: "only passing through: no end is here",
			flow: "172.19.0.2:5000 > 172.18.0.11:30080, 10.244.2.7:8080 > 172.19.0.2:5000",
			want: imported("172.19.0.2:5000", "172.18.0.11:30080", "10.244.2.7:8080", 2, "", false),
		},
		{
			name: "IPv6",
			flow: "[fd44::1:9]:4000 > [fd96::20]:80, [fd44::1:5]:8080 > [fd44::1:9]:4000",
			want: imported("[fd44::1:9]:4000", "[fd96::20]:80", "[fd44::1:5]:8080", 4, "", true),
		},
		{
			name:   "no answer yet",
			flow:   "10.244.1.9:4000 > 10.96.0.20:80, 10.244.1.5:8080 > 10.244.1.9:4000",
			change: func(f *Flow) { f.Replied = false },
			want: func() Plan {
				p := imported("10.244.1.9:4000", "10.96.0.20:80", "10.244.1.5:8080", 1, "", true)
				p.Import[0].Replied = false
				return p
			}(),
		},
		{
			name: "a socket of the node",
			flow: "172.18.0.11:4000 > 10.96.0.20:80, 10.244.1.5:8080 > 172.18.0.11:4000",
			want: Plan{Held: []Flow{flow("172.18.0.11:4000 > 10.96.0.20:80, 10.244.1.5:8080 > 172.18.0.11:4000")}},
		},
		{
			name: "a socket of the node to the node port on loopback",
			flow: "127.0.0.1:4000 > 127.0.0.1:30080, 10.244.1.5:8080 > 172.18.0.11:4000",
			want: Plan{Held: []Flow{flow("127.0.0.1:4000 > 127.0.0.1:30080, 10.244.1.5:8080 > 172.18.0.11:4000")}},
		},
		{
			name: "a backend that has gone",
			flow: "10.244.1.9:4000 > 10.96.0.20:80, 10.244.3.3:8080 > 10.244.1.9:4000",
			want: Plan{Lost: []Flow{flow("10.244.1.9:4000 > 10.96.0.20:80, 10.244.3.3:8080 > 10.244.1.9:4000")}},
		},
		{name: "not translated", flow: "10.244.1.9:4000 > 10.96.0.20:80, 10.96.0.20:80 > 10.244.1.9:4000"},
		{name: "only masqueraded, by somebody else", flow: "10.244.1.9:4000 > 1.1.1.1:80, 1.1.1.1:80 > 172.18.0.11:4000"},
		{name: "somebody else's port", flow: "172.19.0.2:5000 > 172.18.0.11:8088, 172.17.0.2:80 > 172.19.0.2:5000"},
		{
			name:   "ended",
			flow:   "10.244.1.9:4000 > 10.96.0.20:80, 10.244.1.5:8080 > 10.244.1.9:4000",
			change: func(f *Flow) { f.Closed = true },
		},
		{
			name:   "another protocol",
			flow:   "10.244.1.9:4000 > 10.96.0.20:80, 10.244.1.5:8080 > 10.244.1.9:4000",
			change: func(f *Flow) { f.Protocol = 99 },
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := flow(c.flow)
			if c.change != nil {
				c.change(&f)
			}
			got := Make([]Flow{f}, view())
			if diff := cmp.Diff(c.want, got, equal); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
			if got.Imported(f) != (len(got.Import) > 0) {
				t.Errorf("Imported = %v", got.Imported(f))
			}
		})
	}
}

func imported(client, front, backend string, id uint32, masquerade string, ends bool) Plan {
	c := Connection{
		Protocol: 6, Client: netip.MustParseAddrPort(client), Front: netip.MustParseAddrPort(front), Backend: netip.MustParseAddrPort(backend),
		ID: id, Generation: 7, Ends: ends, Replied: true,
	}
	if masquerade != "" {
		c.Masquerade = netip.MustParseAddrPort(masquerade)
	}
	return Plan{Import: []Connection{c}}
}

// The order in which the kernel lists connections does not matter.
func TestMakeIsDeterministic(t *testing.T) {
	flows := []Flow{
		flow("10.244.1.9:4001 > 10.96.0.20:80, 10.244.1.5:8080 > 10.244.1.9:4001"),
		flow("10.244.1.9:4000 > 10.96.0.20:80, 10.244.2.7:8080 > 10.244.1.9:4000"),
		flow("172.18.0.11:4001 > 10.96.0.20:80, 10.244.1.5:8080 > 172.18.0.11:4001"),
		flow("172.18.0.11:4000 > 10.96.0.20:80, 10.244.1.5:8080 > 172.18.0.11:4000"),
	}
	want := Make(flows, view())
	slices.Reverse(flows)
	got := Make(flows, view())
	if diff := cmp.Diff(want, got, equal); diff != "" {
		t.Error(diff)
	}
	for _, f := range flows {
		if got.Imported(f) == slices.Contains(got.Held, f) {
			t.Errorf("%v is both or neither", f)
		}
	}
}
