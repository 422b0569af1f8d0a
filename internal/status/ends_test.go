package status_test

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/strait-net/strait/internal/state"
	"github.com/strait-net/strait/internal/status"
)

// Who has a name or an address is found without a list of everybody.
func TestEnds(t *testing.T) {
	st := shop(t)
	a := netip.MustParseAddr
	st.Nodes.Insert(state.Node{Name: "n2", Addresses: []netip.Addr{a("192.0.2.2")}}, state.Node{Name: "n3", Addresses: []netip.Addr{a("192.0.2.3")}})
	st.Pods.Insert(state.Pod{Namespace: "shop", Name: "web-2", Node: "n2", Addresses: []netip.Addr{a("10.244.2.4")}},
		state.Pod{Namespace: "default", Name: "n3", Node: "n1", Addresses: []netip.Addr{a("10.244.1.7")}},
		state.Pod{Namespace: "shop", Name: "web-9", Node: "n3", Addresses: []netip.Addr{a("10.244.3.9")}})
	p := status.Provider(status.Sources{State: st, Node: "n1"})
	for _, tc := range []struct{ words, want string }{
		{"shop/web-1", "node n1"}, // no such pod; who answers is always said
		{"shop/web-2", "node n1, node n2, pod shop/web-2"},
		{"shop/web-2 10.244.2.4 shop/web-2", "node n1, node n2, pod shop/web-2"},
		{"n3", "node n1, node n3, pod default/n3"},
		{"192.0.2.2", "node n1, node n2"},
		{"::ffff:10.244.3.9", "node n1, node n3, pod shop/web-9"},
		{"shop/cache", "node n1, service shop/cache invalid AddrPort 0 backends"},
		{"10.96.0.7", "node n1, service shop/web 10.96.0.7:80 0 backends"},
	} {
		got, err := p.Ends(context.Background(), strings.Fields(tc.words))
		if err != nil {
			t.Fatal(err)
		}
		var lines []string
		for _, n := range got.Nodes {
			lines = append(lines, "node "+n.Name)
		}
		for _, p := range got.Pods {
			lines = append(lines, "pod "+p.Namespace+"/"+p.Name)
		}
		for _, s := range got.Services {
			lines = append(lines, fmt.Sprintf("service %s/%s %s %d backends", s.Namespace, s.Name, s.Frontend, len(s.Backends)))
		}
		if text := strings.Join(lines, ", "); text != tc.want {
			t.Errorf("%s: %s, want %s", tc.words, text, tc.want)
		}
	}
}
