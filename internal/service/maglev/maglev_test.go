package maglev

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
)

const size = 16381

func backends(n int, random *rand.Rand) []Backend {
	out := make([]Backend, n)
	for i := range out {
		ip := netip.AddrFrom4([4]byte{10, byte(random.IntN(256)), byte(i >> 8), byte(i)})
		if random.IntN(3) == 0 {
			ip = netip.AddrFrom16([16]byte{0xfd, byte(random.IntN(256)), 14: byte(i >> 8), 15: byte(i)})
		}
		out[i] = Backend{AddrPort: netip.AddrPortFrom(ip, uint16(1+random.IntN(65535)))}
	}
	return out
}

func shares(table []uint32, n int) []int {
	out := make([]int, n)
	for _, b := range table {
		out[b]++
	}
	return out
}

func TestEvenness(t *testing.T) {
	for seed := range uint64(30) {
		random := rand.New(rand.NewPCG(seed, 1))
		n := 1 + random.IntN(150)
		list := backends(n, random)
		got := shares(Table(size, list), n)
		low, high := slices.Min(got), slices.Max(got)
		if high-low > 1 {
			t.Errorf("%d backends of one weight have %d to %d entries", n, low, high)
		}
	}
}

func TestWeights(t *testing.T) {
	for seed := range uint64(30) {
		random := rand.New(rand.NewPCG(seed, 2))
		n := 2 + random.IntN(20)
		list, sum := backends(n, random), 0
		for i := range list {
			list[i].Weight = uint32(1 + random.IntN(20))
			sum += int(list[i].Weight)
		}
		for i, have := range shares(Table(size, list), n) {
			want := float64(size) * float64(list[i].Weight) / float64(sum)
			if math.Abs(float64(have)-want) > 2 {
				t.Errorf("backend %d of weight %d/%d has %d entries, want %.1f", i, list[i].Weight, sum, have, want)
			}
		}
	}
}

// moved counts the entries that belong to another backend although theirs is still there.
func moved(before []Backend, old []uint32, after []Backend, now []uint32) (n int) {
	for i := range old {
		b := before[old[i]]
		if after[now[i]] != b && slices.Contains(after, b) {
			n++
		}
	}
	return n
}

// Removing one of ten ideally moves only its own tenth.
func TestDisruption(t *testing.T) {
	worst := 0
	for seed := range uint64(50) {
		random := rand.New(rand.NewPCG(seed, 3))
		before := backends(10, random)
		old := Table(size, before)
		after := slices.Delete(slices.Clone(before), int(seed%10), int(seed%10)+1)
		worst = max(worst, moved(before, old, after, Table(size, after)))
	}
	if share := float64(worst) / size; share >= 0.02 {
		t.Errorf("the removal of one of 10 backends moved %.2f %% of the entries of others, want less than 2 %%", 100*share)
	} else {
		t.Logf("worst of 50: %.2f %% of the entries of others", 100*share)
	}
}

// The table is the same on every node and in every version: connections would move during an upgrade otherwise.
func TestTableIsForEver(t *testing.T) {
	list := backends(10, rand.New(rand.NewPCG(1, 1)))
	list[3].Weight = 4
	b := make([]byte, 0, 4*size)
	for _, i := range Table(size, list) {
		b = binary.BigEndian.AppendUint32(b, i)
	}
	const want = "73662058aaf748d64df8830701d0f74a1785093c949bf13a1f0b8a1d37da7334"
	if got := fmt.Sprintf("%x", sha256.Sum256(b)); got != want {
		t.Errorf("hash of the table is %s, want %s", got, want)
	}
	mapped := slices.Clone(list)
	for i, m := range mapped {
		mapped[i].AddrPort = netip.AddrPortFrom(netip.AddrFrom16(m.Addr().As16()), m.Port())
	}
	if !slices.Equal(Table(size, mapped), Table(size, list)) {
		t.Error("v4-mapped addresses have another table")
	}
}

func TestSmallTables(t *testing.T) {
	random := rand.New(rand.NewPCG(9, 9))
	if Table(size, nil) != nil || Table(0, backends(1, random)) != nil {
		t.Error("a table of nothing")
	}
	for _, m := range []uint32{1, 2, 251} {
		for _, n := range []int{1, 2, 300} {
			if got := Table(m, backends(n, random)); len(got) != int(m) {
				t.Errorf("%d entries, want %d", len(got), m)
			}
		}
	}
}

func BenchmarkTable(b *testing.B) {
	for _, n := range []int{10, 100, 1000} {
		list := backends(n, rand.New(rand.NewPCG(1, 1)))
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			for b.Loop() {
				Table(size, list)
			}
		})
	}
}
