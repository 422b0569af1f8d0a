package operator

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/strait-net/strait/internal/state"
)

// lbPool reads "name CIDR-or-range... [for=team] [disabled]"; the age is the name's first letter.
func lbPool(text string) state.Pool {
	words := strings.Fields(text)
	p := state.Pool{Name: words[0], UID: "uid-" + words[0], Created: time.Unix(int64(words[0][0]), 0)}
	for _, w := range words[1:] {
		first, last, isRange := strings.Cut(w, "-")
		switch {
		case w == "disabled":
			p.Disabled = true
		case strings.HasPrefix(w, "for="):
			p.Selector = "team=" + strings.TrimPrefix(w, "for=")
		case isRange:
			p.Ranges = append(p.Ranges, state.AddressRange{First: netip.MustParseAddr(first), Last: netip.MustParseAddr(last)})
		default:
			p.Ranges = append(p.Ranges, state.RangeOf(netip.MustParsePrefix(w)))
		}
	}
	return p
}

func verdicts(pools []state.Pool, taken []occupied) string {
	var out []string
	for _, v := range judgePools(pools, taken) {
		line := v.Name + " " + v.status.Reason
		if _, by, ok := strings.Cut(v.status.Message, " overlaps "); ok {
			by, _, _ = strings.Cut(by, ";")
			line += " " + by
		}
		out = append(out, line)
	}
	return strings.Join(out, "\n")
}

func TestJudgePools(t *testing.T) {
	taken := []occupied{
		{state.RangeOf(netip.MustParsePrefix("10.244.0.0/16")), "pods"},
		{state.RangeOf(netip.MustParsePrefix("172.18.0.7/32")), "node"},
		{state.RangeOf(netip.MustParsePrefix("fd00::/48")), "pods6"},
	}
	for _, c := range []struct {
		name  string
		pools []string
		want  string
	}{
		{"in order of use", []string{"a 192.0.2.0/28", "c 192.0.2.16/28 for=x", "b 192.0.2.32/28"}, "c InUse\na InUse\nb InUse"},
		{"within", []string{"a 10.244.3.0/24"}, "a Overlap pods"},
		{"around", []string{"a 10.0.0.0/8"}, "a Overlap pods"},
		{"at the edges", []string{"a 10.243.255.0-10.243.255.255", "b 10.245.0.0-10.245.0.0"}, "a InUse\nb InUse"},
		{"one block of several", []string{"a 192.0.2.0/28 172.18.0.0-172.18.0.7 fd01::/64"}, "a Overlap node"},
		{"IPv6", []string{"a fd00::1:0/112"}, "a Overlap pods6"},
		{"the younger pool", []string{"b 192.0.2.0/24", "a 192.0.2.128/25"}, "a InUse\nb Overlap block 192.0.2.128-192.0.2.255 of LoadBalancerPool a, which is older"},
		{"with one that is not used itself", []string{"a 10.244.0.0/24 192.0.2.0/24", "b 192.0.2.0/25"}, "a Overlap pods\nb InUse"},
		{"with one that is disabled: its services have addresses", []string{"a 192.0.2.0/24 disabled", "b 192.0.2.0/25"},
			"a Disabled\nb Overlap block 192.0.2.0-192.0.2.255 of LoadBalancerPool a, which is older"},
		{"with itself", []string{"a 192.0.2.0/24 192.0.2.9-192.0.2.9"}, "a Invalid"},
	} {
		var pools []state.Pool
		for _, text := range c.pools {
			pools = append(pools, lbPool(text))
		}
		if got := verdicts(pools, taken); got != c.want {
			t.Errorf("%s: got\n%s\nwant\n%s", c.name, got, c.want)
		}
	}
}

func TestCounts(t *testing.T) {
	v := judgePools([]state.Pool{lbPool("a 192.0.2.0/28 198.51.100.1-198.51.100.1 2001:db8::/64")}, nil)
	countPools(v, map[netip.Addr]bool{netip.MustParseAddr("192.0.2.3"): true, netip.MustParseAddr("2001:db8::3"): true, netip.MustParseAddr("203.0.113.1"): true})
	want := [2]state.AddressCount{{Total: 17, Allocated: 1, Free: 16}, {Total: 1<<63 - 1, Allocated: 1, Free: 1<<63 - 1}}
	if v[0].status.Counts != want {
		t.Errorf("%+v", v[0].status.Counts)
	}
}

func lbClaim(name, class, says string, held ...string) state.Claim {
	c := state.Claim{Service: state.Service{
		ServiceName: state.ServiceName{Namespace: "x", Name: name}, UID: "uid-" + name, Type: state.LoadBalancer, Class: class, Families: []bool{false},
		Created: time.Unix(int64(name[0]), 0), Allocation: state.Allocation{Done: says == "Allocated", Reason: says},
	}}
	for _, text := range held {
		c.Held = append(c.Held, netip.MustParseAddr(text))
	}
	return c
}

func TestWhoseServiceItIs(t *testing.T) {
	pools := []state.Pool{lbPool("a 192.0.2.0/28")}
	named := lbClaim("a", "", "")
	named.Foreign = true
	other := lbClaim("a", "", "Allocated", "192.0.2.3")
	other.Type = state.ClusterIP
	for _, c := range []struct {
		name  string
		claim state.Claim
		pools []state.Pool
		want  bool
	}{
		{"no class, no pool", lbClaim("a", "", ""), nil, false},
		{"no class, a pool", lbClaim("a", "", ""), pools, true},
		{"no class, addresses of a pool", lbClaim("a", "", "", "192.0.2.3"), pools, true},
		{"no class, addresses of a cloud", lbClaim("a", "", "", "203.0.113.7"), pools, false},
		{"no class, a cloud's name", named, pools, false},
		{"no class, ours before the pool went", lbClaim("a", "", "Allocated", "192.0.2.3"), nil, true},
		{"our class", lbClaim("a", "strait.dev/lb", ""), nil, true},
		{"another class", lbClaim("a", "metallb", "", "192.0.2.3"), pools, false},
		{"another type", other, pools, false},
	} {
		if got := isOurs(c.claim, c.pools); got != c.want {
			t.Errorf("%s: %t", c.name, got)
		}
	}
}

// What was written counts before it is shown, also when the answer was lost and when it was taken away again.
func TestWhatWasSentIsHeld(t *testing.T) {
	b := balancer{cfg: settings(small), sent: map[string][]netip.Addr{}}
	pools := []state.Pool{lbPool("p 192.0.2.0/28")}
	plan := func(claims ...state.Claim) string {
		p := b.plan(nil, pools, claims)
		var out []string
		for i, c := range p.ours {
			out = append(out, fmt.Sprint(c.Name, p.grants[i].Addresses, c.shows(p.grants[i])))
		}
		for _, c := range p.abandoned {
			out = append(out, c.Name+" abandoned")
		}
		return strings.Join(out, " ")
	}
	expect := func(what, got, want string) {
		t.Helper()
		if got != want {
			t.Errorf("%s: %s, want %s", what, got, want)
		}
	}
	b.remember("uid-b", []netip.Addr{netip.MustParseAddr("192.0.2.0")})
	expect("sent", plan(lbClaim("a", "", ""), lbClaim("b", "", "")), "a[192.0.2.1] false b[192.0.2.0] false")
	wants := lbClaim("a", "", "")
	wants.RequestedIPs = []netip.Addr{netip.MustParseAddr("192.0.2.0")}
	expect("sent, and another asks for it", plan(wants, lbClaim("b", "", "")), "a[] false b[192.0.2.0] false")
	shown := lbClaim("b", "", "Allocated", "192.0.2.0")
	shown.Allocation.Message = "192.0.2.0"
	expect("shown", plan(shown), "b[192.0.2.0] true")
	if len(b.sent) != 0 {
		t.Errorf("still waits for %v", b.sent)
	}
	// Taken away, the answer lost: nobody gets it before it is seen to be gone.
	b.remember("uid-b", nil)
	b.cfg.ServiceCIDRs = nil
	gone := shown
	gone.RequestedIPs = []netip.Addr{netip.MustParseAddr("192.0.2.5")}
	expect("taken away", plan(gone, wants), "b[192.0.2.5] false a[] false")
	b.forget(nil)
	if len(b.sent) != 0 {
		t.Errorf("waits for a service that is gone: %v", b.sent)
	}
	typed := shown
	typed.Type = state.ClusterIP
	expect("another type", plan(typed), "b abandoned")
	if got := b.plan(nil, pools, []state.Claim{lbClaim("c", "metallb", "", "192.0.2.2"), lbClaim("d", "", "")}); !slices.Equal(got.grants[0].Addresses, []netip.Addr{netip.MustParseAddr("192.0.2.0")}) ||
		got.verdicts[0].status.Counts[0].Allocated != 2 {
		t.Errorf("%+v", got)
	}
}
