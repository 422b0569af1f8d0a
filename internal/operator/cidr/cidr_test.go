package cidr

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
)

func prefixes(list ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, p := range list {
		out = append(out, netip.MustParsePrefix(p))
	}
	return out
}

func TestTake(t *testing.T) {
	for _, c := range []struct {
		name, pool string
		bits       int
		used       []netip.Prefix
		from       uint64
		want       []string
	}{
		{"v4 in order", "10.244.0.0/16", 24, nil, 0, []string{"10.244.0.0/24", "10.244.1.0/24", "10.244.2.0/24"}},
		{"v6 at a 64-bit border", "fd00:10:244::/48", 64, nil, 0, []string{"fd00:10:244::/64", "fd00:10:244:1::/64"}},
		{"v6 above it", "fd00::/32", 48, nil, 0xffff, []string{"fd00:0:ffff::/48", "fd00::/48"}},
		{"v6 below it", "fd00::/96", 112, prefixes("fd00::/112"), 0, []string{"fd00::1:0/112"}},
		{"v6 across it", "fd00::/56", 72, nil, 0x100, []string{"fd00:0:0:1::/72", "fd00:0:0:1:100::/72"}},
		{"the whole pool", "10.1.0.0/24", 24, nil, 7, []string{"10.1.0.0/24", "none"}},
		{"used are skipped", "10.1.0.0/22", 24, prefixes("10.1.0.0/24", "10.1.2.64/26"), 0, []string{"10.1.1.0/24", "10.1.3.0/24", "none"}},
		{"a wider one", "10.1.0.0/22", 24, prefixes("10.1.2.0/23"), 0, []string{"10.1.0.0/24", "10.1.1.0/24", "none"}},
		{"wider than the pool", "10.1.0.0/22", 24, prefixes("10.0.0.0/8"), 0, []string{"none"}},
		{"elsewhere", "10.1.0.0/23", 24, prefixes("10.2.0.0/16", "fd00::/8"), 0, []string{"10.1.0.0/24", "10.1.1.0/24", "none"}},
		{"goes round", "10.1.0.0/22", 24, prefixes("10.1.3.0/24"), 2, []string{"10.1.2.0/24", "10.1.0.0/24", "10.1.1.0/24", "none"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			p, err := New(netip.MustParsePrefix(c.pool), c.bits, c.used, c.from)
			if err != nil {
				t.Fatal(err)
			}
			for _, want := range c.want {
				got, ok := p.Take()
				if text := got.String(); ok && text != want || !ok && want != "none" {
					t.Errorf("got %s %t, want %s", text, ok, want)
				}
			}
		})
	}
}

func TestNewRefuses(t *testing.T) {
	for _, c := range []struct {
		pool string
		bits int
	}{{"10.0.0.0/16", 12}, {"10.0.0.0/16", 33}, {"10.0.0.1/16", 24}, {"fd00::/16", 64}} {
		if _, err := New(netip.MustParsePrefix(c.pool), c.bits, nil, 0); err == nil {
			t.Errorf("%s in blocks of length %d accepted", c.pool, c.bits)
		}
	}
}

// Against a list of every block: what is given is inside, of the right size, touches nothing used, and all of it is given.
func TestAgainstModel(t *testing.T) {
	pools := []struct {
		prefix string
		bits   int
	}{{"10.0.0.0/20", 26}, {"10.0.0.0/26", 30}, {"fd00::/58", 64}, {"fd00::/60", 66}, {"fd00:0:0:ff00::/56", 60}}
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, 4))
		c := pools[r.IntN(len(pools))]
		prefix := netip.MustParsePrefix(c.prefix)
		empty, err := New(prefix, c.bits, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		var free, used []netip.Prefix
		for range empty.Size() {
			b, _ := empty.Take()
			free = append(free, b)
		}
		for range r.IntN(12) {
			b := free[r.IntN(len(free))]
			u := netip.PrefixFrom(b.Addr(), min(b.Bits()+r.IntN(5)-3, b.Addr().BitLen())).Masked()
			used = append(used, u)
		}
		free = slices.DeleteFunc(free, func(b netip.Prefix) bool {
			return slices.ContainsFunc(used, func(u netip.Prefix) bool { return u.Overlaps(b) })
		})
		p, err := New(prefix, c.bits, used, r.Uint64())
		if err != nil {
			t.Fatal(err)
		}
		var got []netip.Prefix
		for {
			if int(p.Free()) != len(free)-len(got) {
				t.Fatalf("seed %d: %d free, want %d", seed, p.Free(), len(free)-len(got))
			}
			b, ok := p.Take()
			if !ok {
				break
			}
			got = append(got, b)
		}
		slices.SortFunc(got, netip.Prefix.Compare)
		slices.SortFunc(free, netip.Prefix.Compare)
		if !slices.Equal(got, free) {
			t.Fatalf("seed %d: pool %s/%d, used %v\ngot  %v\nwant %v", seed, prefix, c.bits, used, got, free)
		}
	}
}
