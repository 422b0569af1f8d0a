package ipam

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"
	"time"
)

func prefixes(t *testing.T, s ...string) []netip.Prefix {
	t.Helper()
	var out []netip.Prefix
	for _, p := range s {
		out = append(out, netip.MustParsePrefix(p))
	}
	return out
}

func newAllocator(t *testing.T, coolDown time.Duration, pools ...string) *Allocator {
	t.Helper()
	a := New(coolDown)
	if err := a.SetPools(prefixes(t, pools...)); err != nil {
		t.Fatal(err)
	}
	return a
}

func TestSetPoolsRefuses(t *testing.T) {
	for _, c := range []struct {
		pools []string
		want  string
	}{
		{[]string{"10.0.0.0/31"}, "pool 10.0.0.0/31 has no usable address"},
		{[]string{"10.0.0.1/32"}, "pool 10.0.0.1/32 has no usable address"},
		{[]string{"fd00::1/128"}, "pool fd00::1/128 has no usable address"},
		{[]string{"10.0.0.0/16", "10.0.3.0/24"}, "pool 10.0.3.0/24 overlaps pool 10.0.0.0/16"},
		{[]string{"fd00::/64", "10.0.0.0/24", "fd00::8:0/112"}, "pool fd00::8:0/112 overlaps pool fd00::/64"},
		{[]string{"::ffff:10.0.0.0/120"}, "not a prefix"},
	} {
		a := newAllocator(t, 0, "10.9.0.0/24")
		err := a.SetPools(prefixes(t, c.pools...))
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("SetPools(%v) = %v, want %q", c.pools, err, c.want)
		}
		if r := a.Report(time.Time{}); len(r) != 1 || r[0].Prefix.String() != "10.9.0.0/24" {
			t.Errorf("after a refused SetPools the pools are %v", r)
		}
	}
	if err := New(0).SetPools([]netip.Prefix{{}}); err == nil {
		t.Error("the zero prefix is accepted as a pool")
	}
}

func TestEdgesAreNeverGiven(t *testing.T) {
	now := time.Unix(1000, 0)
	for _, c := range []struct {
		pool string
		want []string
	}{
		{"10.0.0.8/29", []string{"10.0.0.9", "10.0.0.10", "10.0.0.11", "10.0.0.12", "10.0.0.13", "10.0.0.14"}},
		{"10.0.0.255/30", []string{"10.0.0.253", "10.0.0.254"}},
		{"fd00::4/126", []string{"fd00::5", "fd00::6", "fd00::7"}},
		{"fd00::/127", []string{"fd00::1"}},
	} {
		a := newAllocator(t, 0, c.pool)
		for i, want := range c.want {
			got, err := a.Allocate(fmt.Sprint(i), now)
			if err != nil || len(got) != 1 || got[0].String() != want {
				t.Fatalf("%s: address %d is %v, %v; want %s", c.pool, i, got, err, want)
			}
		}
		if _, err := a.Allocate("more", now); !errors.Is(err, ErrExhausted) {
			t.Errorf("%s: %v after the last address, want ErrExhausted", c.pool, err)
		}
		if r := a.Report(now)[0]; r.Capacity != uint64(len(c.want)) || r.InUse != len(c.want) {
			t.Errorf("%s: report %+v", c.pool, r)
		}
	}
}

func TestPairIsAllOrNothing(t *testing.T) {
	now := time.Unix(1000, 0)
	a := newAllocator(t, time.Minute, "10.0.0.0/24", "fd00::/127")
	pair, err := a.Allocate("a", now)
	if err != nil || len(pair) != 2 || !pair[0].Is4() || !pair[1].Is6() {
		t.Fatalf("%v, %v; want an IPv4 and an IPv6 address", pair, err)
	}
	again, err := a.Allocate("a", now)
	if err != nil || again[0] != pair[0] || again[1] != pair[1] {
		t.Errorf("same owner: %v, %v; want %v", again, err, pair)
	}
	if _, err = a.Allocate("b", now); !errors.Is(err, ErrExhausted) {
		t.Fatalf("%v; want the IPv6 pool exhausted", err)
	}
	if r := a.Report(now)[0]; r.InUse != 1 {
		t.Errorf("the IPv4 pool has %d in use after a refused pair, want 1", r.InUse)
	}
}

func TestExhaustedErrorSaysWhy(t *testing.T) {
	now := time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)
	a := newAllocator(t, 30*time.Second, "10.0.0.0/29")
	for i := range 6 {
		if _, err := a.Allocate(fmt.Sprint(i), now); err != nil {
			t.Fatal(err)
		}
	}
	a.Release("4", now)
	a.Release("5", now.Add(time.Second))
	_, err := a.Allocate("x", now.Add(2*time.Second))
	want := "pool 10.0.0.0/29 is exhausted: 4 in use, 2 cooling down until 2026-01-02T12:00:30Z"
	if err == nil || err.Error() != want {
		t.Errorf("error %v, want %q", err, want)
	}
	if ready := a.Ready(now.Add(2 * time.Second)); ready == nil || ready.Error() != want {
		t.Errorf("Ready %v, want %q", ready, want)
	}
	if got, err := a.Allocate("x", now.Add(30*time.Second)); err != nil || got[0].String() != "10.0.0.5" {
		t.Errorf("after the cool-down: %v, %v; want 10.0.0.5", got, err)
	}
}

func TestNoPools(t *testing.T) {
	a := New(0)
	if _, err := a.Allocate("a", time.Time{}); !errors.Is(err, ErrNoPools) {
		t.Errorf("Allocate: %v, want ErrNoPools", err)
	}
	if err := a.Ready(time.Time{}); !errors.Is(err, ErrNoPools) {
		t.Errorf("Ready: %v, want ErrNoPools", err)
	}
}

func TestRestore(t *testing.T) {
	now := time.Unix(1000, 0)
	in, out := netip.MustParseAddr("10.0.0.7"), netip.MustParseAddr("10.7.0.7")

	a := New(time.Minute) // before the pools are known, as after a restart without an API server
	if err := a.Restore("a", in, out); err != nil {
		t.Fatal(err)
	}
	if err := a.SetPools(prefixes(t, "10.0.0.0/24")); err != nil {
		t.Fatal(err)
	}
	if f := a.Foreign(); len(f) != 1 || f[0] != out {
		t.Errorf("Foreign() = %v, want [%v]", f, out)
	}
	if got, err := a.Allocate("b", now); err != nil || got[0].String() != "10.0.0.8" {
		t.Errorf("after a restart: %v, %v; want the address behind the highest in use", got, err)
	}
	if err := a.Restore("c", in); !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), "in use by a") {
		t.Errorf("Restore of another's address: %v", err)
	}
	if err := a.Restore("c", out.Next()); !errors.Is(err, ErrForeign) {
		t.Errorf("Restore outside the pools: %v, want ErrForeign", err)
	}
	if _, held := a.Owner(out.Next()); !held {
		t.Error("a foreign address is not held")
	}
	if err := a.Restore("a", in); err != nil {
		t.Errorf("Restore twice: %v", err)
	}
	a.Release("a", now)
	if err := a.Restore("a", in); err != nil {
		t.Errorf("Restore of a cooling address: %v", err)
	}
	if r := a.Report(now)[0]; r.InUse != 2 || r.Cooling != 0 {
		t.Errorf("report %+v, want 2 in use, 0 cooling", r)
	}
}

func TestCoolSurvivesRestart(t *testing.T) {
	now := time.Unix(1000, 0)
	a := newAllocator(t, time.Minute, "10.0.0.0/30")
	a.Cool(netip.MustParseAddr("10.0.0.1"), now.Add(time.Second))
	if got, err := a.Allocate("a", now); err != nil || got[0].String() != "10.0.0.2" {
		t.Fatalf("%v, %v; want 10.0.0.2", got, err)
	}
	if _, err := a.Allocate("b", now); !errors.Is(err, ErrExhausted) {
		t.Errorf("cooling address given out: %v", err)
	}
	if _, err := a.Allocate("b", now.Add(time.Second)); err != nil {
		t.Error(err)
	}
	a.Cool(netip.MustParseAddr("10.0.0.1"), now.Add(time.Hour))
	if r := a.Report(now)[0]; r.InUse != 2 || r.Cooling != 0 {
		t.Errorf("Cool of an owned address: %+v", r)
	}
}

// TestIPAM2_Properties runs random operations against a model: no address has two owners, none is given out before its
// cool-down is over, a refusal is right, and the reports agree with the model.
func TestIPAM2_Properties(t *testing.T) {
	for seed := range uint64(40) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { property(t, rand.New(rand.NewPCG(seed, 1))) })
	}
}

func property(t *testing.T, r *rand.Rand) {
	const coolDown = 30 * time.Second
	pools := []string{"10.1.0.0/28", "fd00:1::/123"}
	if r.IntN(2) == 0 {
		pools = []string{"10.1.0.0/29", "10.2.0.0/30", "fd00:1::/64"}
	}
	a := newAllocator(t, coolDown, pools...)
	now := time.Unix(1_000_000, 0)
	held := map[string][]netip.Addr{}
	owner := map[netip.Addr]string{}
	freeAt := map[netip.Addr]time.Time{}
	for step := range 2000 {
		now = now.Add(time.Duration(r.IntN(4000)) * time.Millisecond)
		name := fmt.Sprint("o", r.IntN(24))
		if r.IntN(2) == 0 {
			for _, addr := range a.Release(name, now) {
				freeAt[addr] = now.Add(coolDown)
				delete(owner, addr)
			}
			delete(held, name)
			continue
		}
		got, err := a.Allocate(name, now)
		if err != nil {
			var e *ExhaustedError
			if !errors.As(err, &e) || held[name] != nil {
				t.Fatalf("step %d: %v", step, err)
			}
			if e.Cooling > 0 && !e.Until.After(now) {
				t.Fatalf("step %d: exhausted until %v, which is over", step, e.Until)
			}
			continue
		}
		for i, addr := range got {
			if h := held[name]; h != nil && h[i] != addr {
				t.Fatalf("step %d: %s holds %v and got %v", step, name, h, got)
			}
			if o, ok := owner[addr]; ok && o != name {
				t.Fatalf("step %d: %v has the owners %s and %s", step, addr, o, name)
			}
			if at := freeAt[addr]; held[name] == nil && now.Before(at) {
				t.Fatalf("step %d: %v is reused %v before its cool-down is over", step, addr, at.Sub(now))
			}
			owner[addr] = name
		}
		held[name] = got
	}
	inUse := 0
	for _, p := range a.Report(now) {
		inUse += p.InUse
		if uint64(p.InUse+p.Cooling) > p.Capacity {
			t.Errorf("%+v holds more than it has", p)
		}
	}
	if inUse != len(owner) {
		t.Errorf("%d addresses in use, want %d", inUse, len(owner))
	}
}

func BenchmarkAllocateRelease(b *testing.B) {
	a := New(0)
	if err := a.SetPools([]netip.Prefix{netip.MustParsePrefix("10.0.0.0/24"), netip.MustParsePrefix("fd00::/64")}); err != nil {
		b.Fatal(err)
	}
	now := time.Unix(1000, 0)
	for i := range 253 {
		if _, err := a.Allocate(fmt.Sprint("held", i), now); err != nil {
			b.Fatal(err)
		}
	}
	for b.Loop() {
		if _, err := a.Allocate("x", now); err != nil {
			b.Fatal(err)
		}
		a.Release("x", now)
	}
}
