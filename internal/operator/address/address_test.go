package address

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/strait-net/strait/internal/state"
)

// pool reads "name 192.0.2.1-192.0.2.9 2001:db8::/120 [closed] [for=team]": for is the value of the label team.
func pool(text string) Pool {
	words := strings.Fields(text)
	p := Pool{Name: words[0], For: func(map[string]string) bool { return true }}
	for _, w := range words[1:] {
		team, selects := strings.CutPrefix(w, "for=")
		first, last, isRange := strings.Cut(w, "-")
		switch {
		case w == "closed":
			p.Closed = true
		case selects:
			p.For = func(l map[string]string) bool { return l["team"] == team }
		case isRange:
			p.Ranges = append(p.Ranges, state.AddressRange{First: netip.MustParseAddr(first), Last: netip.MustParseAddr(last)})
		default:
			p.Ranges = append(p.Ranges, state.RangeOf(netip.MustParsePrefix(w)))
		}
	}
	return p
}

// claim reads "name [4] [6] [has=ADDR] [asks=ADDR] [key=K] [port=N] [team=T] [local]"; without a family it is IPv4's. The age is the
// name's first letter.
func claim(text string) state.Claim {
	words := strings.Fields(text)
	c := state.Claim{}
	c.Namespace, c.Name, c.Created = "x", words[0], time.Unix(int64(words[0][0]), 0)
	port := uint16(80)
	for _, w := range words[1:] {
		key, value, _ := strings.Cut(w, "=")
		switch key {
		case "4", "6":
			c.Families = append(c.Families, key == "6")
		case "has":
			c.Held = append(c.Held, netip.MustParseAddr(value))
		case "asks":
			c.RequestedIPs = append(c.RequestedIPs, netip.MustParseAddr(value))
		case "key":
			c.SharingKey = value
		case "port":
			n, _ := strconv.ParseUint(value, 10, 16)
			port = uint16(n)
		case "team":
			c.Labels = map[string]string{"team": value}
		case "local":
			c.ExternalPolicy = state.PolicyLocal
		}
	}
	if c.Families == nil {
		c.Families = []bool{false}
	}
	c.Ports = []state.ServicePort{{Port: port, Protocol: state.TCP}}
	return c
}

func show(claims []state.Claim, grants []Grant) string {
	var lines []string
	for i, c := range claims {
		line := c.Name + " " + fmt.Sprint(grants[i].Addresses)
		if s := grants[i].Says; !s.Done {
			line += " " + s.Reason + ": " + s.Message
		}
		lines = append(lines, line)
	}
	return strings.Join(lines, "\n")
}

func TestAllocate(t *testing.T) {
	for _, c := range []struct {
		name   string
		pools  []string
		claims []string
		want   []string // beginnings of lines
	}{
		{"the lowest, the oldest first", []string{"p 192.0.2.8/29"}, []string{"b", "a"}, []string{"b [192.0.2.9]", "a [192.0.2.8]"}},
		{"blocks in order of addresses", []string{"p 192.0.2.20-192.0.2.20 192.0.2.10-192.0.2.10"}, []string{"a", "b"}, []string{"a [192.0.2.10]", "b [192.0.2.20]"}},
		{"dual-stack", []string{"p 192.0.2.8/29 2001:db8::10/124"}, []string{"a 6 4"}, []string{"a [2001:db8::10 192.0.2.8]"}},
		{"families of two pools", []string{"p 192.0.2.8/29", "q 2001:db8::10/124"}, []string{"a 4 6"}, []string{"a [192.0.2.8 2001:db8::10]"}},
		{"one family is missing: the other is given", []string{"p 192.0.2.8/29"}, []string{"a 4 6"}, []string{
			"a [192.0.2.8] NoPool: no LoadBalancerPool with IPv6 addresses is for this service"}},
		{"sticky", []string{"p 192.0.2.8/29"}, []string{"a", "b has=192.0.2.8", "c has=192.0.2.12"}, []string{"a [192.0.2.9]", "b [192.0.2.8]", "c [192.0.2.12]"}},
		{"held outside the pools", []string{"p 192.0.2.8/29"}, []string{"a has=198.51.100.1"}, []string{"a [192.0.2.8]"}},
		{"held by two: the older keeps it", []string{"p 192.0.2.8/29"}, []string{"b has=192.0.2.8", "a has=192.0.2.8"}, []string{"b [192.0.2.9]", "a [192.0.2.8]"}},
		{"exhausted", []string{"p 192.0.2.8/31", "q 192.0.2.20/32"}, []string{"a", "b", "c", "d"}, []string{
			"a [192.0.2.8]", "b [192.0.2.9]", "c [192.0.2.20]", "d [] Exhausted: no IPv4 address is free in LoadBalancerPool p, q: add a block or a pool"}},
		{"no pool", nil, []string{"a"}, []string{"a [] NoPool: no LoadBalancerPool with IPv4 addresses is for this service"}},
		{"selectors", []string{"p 192.0.2.8/29 for=red", "q 192.0.2.16/29"}, []string{"a team=blue", "b team=red"}, []string{"a [192.0.2.16]", "b [192.0.2.8]"}},
		{"a selector that does not choose it any more", []string{"p 192.0.2.8/29 for=red"}, []string{"a team=blue has=192.0.2.8"}, []string{"a [] NoPool"}},
		{"closed: nothing new, what is held stays", []string{"p 192.0.2.8/29 closed"}, []string{"a has=192.0.2.9", "b"}, []string{
			"a [192.0.2.9]", "b [] NoPool: LoadBalancerPool p, which has IPv4 addresses for this service, is not in use"}},
		{"asked for", []string{"p 192.0.2.8/29"}, []string{"a", "b asks=192.0.2.8"}, []string{"a [192.0.2.9]", "b [192.0.2.8]"}},
		{"asked for in one family", []string{"p 192.0.2.8/29 2001:db8::10/124"}, []string{"a 4 6 asks=2001:db8::1f"}, []string{"a [192.0.2.8 2001:db8::1f]"}},
		{"the first of several that is free", []string{"p 192.0.2.8/29"}, []string{"a asks=192.0.2.9", "b asks=192.0.2.9 asks=192.0.2.10"}, []string{"a [192.0.2.9]", "b [192.0.2.10]"}},
		{"asked for, taken", []string{"p 192.0.2.8/29"}, []string{"a has=192.0.2.9", "b asks=192.0.2.9"}, []string{"a [192.0.2.9]",
			"b [] Conflict: 192.0.2.9, asked for, belongs to service x/a: with the same annotation strait.dev/sharing-key they could have it in common"}},
		{"asked for, in no pool", []string{"p 192.0.2.8/29"}, []string{"a asks=198.51.100.1"}, []string{"a [] NoPool: 198.51.100.1, asked for, is in no LoadBalancerPool"}},
		{"asked for, in another's pool", []string{"p 192.0.2.8/29 for=red"}, []string{"a asks=192.0.2.8"}, []string{
			"a [] NoPool: 192.0.2.8, asked for, is in LoadBalancerPool p, whose serviceSelector does not choose this service"}},
		{"asked for, in a closed pool", []string{"p 192.0.2.8/29 closed"}, []string{"a asks=192.0.2.8"}, []string{"a [] NoPool: 192.0.2.8, asked for, is in LoadBalancerPool p, which gives"}},
		{"asked for in a family it does not have", []string{"p 192.0.2.8/29"}, []string{"a asks=2001:db8::1"}, []string{"a [192.0.2.8] Conflict: 2001:db8::1, asked for: the service has no IPv6"}},
		{"wants another than it has", []string{"p 192.0.2.8/29"}, []string{"a has=192.0.2.8 asks=192.0.2.9"}, []string{"a [192.0.2.9]"}},
		{"what one gives up is given to nobody yet", []string{"p 192.0.2.8/29"}, []string{"a has=192.0.2.8 asks=192.0.2.9", "b", "c asks=192.0.2.8"}, []string{
			"a [192.0.2.9]", "b [192.0.2.10]", "c [] Conflict: 192.0.2.8, asked for, is about to be given up"}},
		{"shared", []string{"p 192.0.2.8/29"}, []string{"a key=k", "b key=k port=81", "c key=k port=80", "d key=l port=82"}, []string{
			"a [192.0.2.8]", "b [192.0.2.8]", "c [192.0.2.9]", "d [192.0.2.10]"}},
		{"shared by asking", []string{"p 192.0.2.8/29"}, []string{"a key=k asks=192.0.2.12", "b key=k port=81 asks=192.0.2.12", "c key=k asks=192.0.2.12"}, []string{
			"a [192.0.2.12]", "b [192.0.2.12]", "c [] Conflict: 192.0.2.12, asked for, belongs to service x/a: both want port 80/TCP"}},
		{"shared and sticky", []string{"p 192.0.2.8/29"}, []string{"a key=k has=192.0.2.9", "b key=k port=81 has=192.0.2.9", "c key=k has=192.0.2.9"}, []string{
			"a [192.0.2.9]", "b [192.0.2.9]", "c [192.0.2.8]"}},
		{"not shared while one that gives it up still shows it", []string{"p 192.0.2.8/29"}, []string{"a key=k has=192.0.2.8", "b key=l port=81 has=192.0.2.8", "c key=k port=81", "d key=k port=82 asks=192.0.2.8"}, []string{
			"a [192.0.2.8]", "b [192.0.2.9]", "c [192.0.2.10]", "d [] Conflict: 192.0.2.8, asked for, is about to be given up"}},
		{"not shared when traffic is local", []string{"p 192.0.2.8/29"}, []string{"a key=k", "b key=k port=81 local"}, []string{"a [192.0.2.8]", "b [192.0.2.9]"}},
		{"the end of all addresses", []string{"p 255.255.255.255/32 ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/128"}, []string{"a 4 6", "b 4"}, []string{
			"a [255.255.255.255 ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]", "b [] Exhausted"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var pools []Pool
			var claims []state.Claim
			for _, text := range c.pools {
				pools = append(pools, pool(text))
			}
			for _, text := range c.claims {
				claims = append(claims, claim(text))
			}
			got := show(claims, Allocate(pools, claims, nil))
			lines := strings.Split(got, "\n")
			for i, want := range c.want {
				if !strings.HasPrefix(lines[i], want) {
					t.Errorf("got\n%s\nwant\n%s", lines[i], want)
				}
			}
		})
	}
}

func TestAddressesOfOthersAreTaken(t *testing.T) {
	got := Allocate([]Pool{pool("p 192.0.2.8/29")}, []state.Claim{claim("a"), claim("b asks=192.0.2.8")}, []state.Claim{claim("z has=192.0.2.8")})
	if got[0].Addresses[0].String() != "192.0.2.9" || len(got[1].Addresses) != 0 || got[1].Says.Reason != "Conflict" {
		t.Errorf("got %v", got)
	}
}

// A cluster in which services come, go, change what they ask for and are written late: nobody is ever given an address that another one
// shows or is given unless they may share it, and all rest once nothing changes any more.
func TestAllocateOverTime(t *testing.T) {
	pools := []Pool{pool("p 192.0.2.0/28 2001:db8::/124 for=red"), pool("q 192.0.2.64/28 2001:db8::40/124")}
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, 1))
		cluster := map[string]state.Claim{}
		list := func() []state.Claim {
			var out []state.Claim
			for _, name := range slices.Sorted(maps.Keys(cluster)) { // so that a seed is one history
				out = append(out, cluster[name])
			}
			return out
		}
		for range 60 {
			name := string(rune('a'+r.IntN(26))) + strconv.Itoa(r.IntN(2))
			switch r.IntN(6) {
			case 0:
				delete(cluster, name)
			case 1, 2, 3:
				text := name + []string{" 4", " 6", " 4 6"}[r.IntN(3)] + []string{"", " key=k", " key=l"}[r.IntN(3)] + fmt.Sprint(" port=", 80+r.IntN(3)) +
					[]string{"", " team=red"}[r.IntN(2)] + []string{"", "", fmt.Sprint(" asks=192.0.2.", r.IntN(80))}[r.IntN(3)]
				c := claim(text)
				c.Held = cluster[name].Held
				cluster[name] = c
			}
			claims := list()
			grants := Allocate(pools, claims, nil)
			checkGrants(t, seed, claims, grants)
			for i, c := range claims {
				if r.IntN(3) > 0 { // written
					c.Held = grants[i].Addresses
					cluster[c.Name] = c
				}
			}
		}
		for range 4 {
			claims := list()
			for i, g := range Allocate(pools, claims, nil) {
				claims[i].Held = g.Addresses
				cluster[claims[i].Name] = claims[i]
			}
		}
		claims := list()
		for i, g := range Allocate(pools, claims, nil) {
			if !slices.Equal(claims[i].Held, g.Addresses) {
				t.Fatalf("seed %d: no rest: %s has %v and is to get %v", seed, claims[i].Name, claims[i].Held, g.Addresses)
			}
		}
	}
}

// checkGrants looks at what is given, not at what is shown: two services that shared an address and do not want to any more both show
// it until the younger one is written.
func checkGrants(t *testing.T, seed uint64, claims []state.Claim, grants []Grant) {
	t.Helper()
	for i, c := range claims {
		for _, addr := range grants[i].Addresses {
			kept := slices.Contains(c.Held, addr)
			for j, other := range claims {
				given := slices.Contains(grants[j].Addresses, addr)
				if i != j && (given || !kept && slices.Contains(other.Held, addr)) && !mayShare(c, other) {
					t.Fatalf("seed %d: %s is given %s (held: %t), which %s has (given: %t)", seed, c.Name, addr, kept, other.Name, given)
				}
			}
		}
	}
}

func mayShare(a, b state.Claim) bool {
	return a.SharingKey != "" && a.SharingKey == b.SharingKey && a.Ports[0] != b.Ports[0] &&
		a.ExternalPolicy != state.PolicyLocal && b.ExternalPolicy != state.PolicyLocal
}

func TestSameInputSameOutput(t *testing.T) {
	pools := []Pool{pool("p 192.0.2.0/26 2001:db8::/122")}
	var claims []state.Claim
	for i := range 60 {
		claims = append(claims, claim(fmt.Sprintf("%c%d 4 6 key=%d port=%d", 'a'+i%26, i, i%7, i)))
	}
	want := map[string]string{}
	for round := range 20 {
		rand.Shuffle(len(claims), func(i, j int) { claims[i], claims[j] = claims[j], claims[i] })
		for i, g := range Allocate(pools, claims, nil) {
			if got := fmt.Sprint(g); round > 0 && got != want[claims[i].Name] {
				t.Fatalf("%s: %s, before %s", claims[i].Name, got, want[claims[i].Name])
			} else {
				want[claims[i].Name] = got
			}
		}
	}
}

func BenchmarkAllocate5000(b *testing.B) {
	pools := []Pool{pool("p 10.0.0.0/16 2001:db8::/64")}
	var claims []state.Claim
	for i := range 5000 {
		claims = append(claims, claim(fmt.Sprintf("n%d 4 6", i)))
	}
	for b.Loop() {
		if g := Allocate(pools, claims, nil); !g[4999].Says.Done {
			b.Fatal(g[4999])
		}
	}
}
