package stat

import (
	"math"
	"math/rand/v2"
	"testing"
)

func TestQuantile(t *testing.T) {
	for _, c := range []struct {
		xs   []float64
		q    float64
		want float64
	}{
		{[]float64{3, 1, 2}, 0.5, 2},
		{[]float64{1, 2, 3, 4}, 0.5, 2.5},
		{[]float64{10}, 0.99, 10},
		{[]float64{0, 10}, 0.25, 2.5},
		{[]float64{5, 1}, 1, 5},
		{[]float64{5, 1}, 0, 1},
	} {
		if got := Quantile(c.xs, c.q); got != c.want {
			t.Errorf("Quantile(%v, %v) = %v, want %v", c.xs, c.q, got, c.want)
		}
	}
	if !math.IsNaN(Median(nil)) {
		t.Error("the median of nothing must be NaN")
	}
}

func TestQuantileLeavesItsInputInOrder(t *testing.T) {
	xs := []float64{3, 1, 2}
	Quantile(xs, 0.5)
	if xs[0] != 3 || xs[1] != 1 || xs[2] != 2 {
		t.Errorf("input was reordered: %v", xs)
	}
}

func TestRatiosPairWithinRoundsOnly(t *testing.T) {
	got := Ratios([]float64{1, 0, 6, math.NaN(), 9}, []float64{2, 5, 3, 1})
	if len(got) != 2 || got[0] != 0.5 || got[1] != 2 {
		t.Errorf("ratios = %v, want [0.5 2]", got)
	}
}

func TestMedianIntervalIsReproducible(t *testing.T) {
	xs := []float64{0.9, 1.1, 1.0, 0.95, 1.05, 1.3, 0.7}
	if a, b := MedianInterval(xs), MedianInterval(xs); a != b {
		t.Errorf("two runs differ: %v, %v", a, b)
	}
	if i := MedianInterval(nil); i.N != 0 || i.String() != "-" {
		t.Errorf("interval of nothing = %v", i)
	}
}

// The 95 % interval has to contain the true median about 95 times in 100; fewer than 85 means the bootstrap is wrong.
func TestMedianIntervalCovers(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 7))
	const trials = 200
	covered := 0
	for range trials {
		xs := make([]float64, 15)
		for i := range xs {
			xs[i] = 1 + 0.1*rng.NormFloat64()
		}
		if i := MedianInterval(xs); i.Lo <= 1 && 1 <= i.Hi {
			covered++
		}
	}
	if covered < trials*85/100 {
		t.Errorf("interval covered the true median in %d of %d trials", covered, trials)
	}
}

// One wild round, as foreign load makes them, must not move the estimate.
func TestMedianIntervalWithstandsAnOutlier(t *testing.T) {
	xs := []float64{0.98, 0.99, 1, 1, 1, 1, 1, 1.01, 1.01, 1.02, 40}
	if i := MedianInterval(xs); i.Mid != 1 || i.Hi > 1.02 {
		t.Errorf("interval = %v", i)
	}
}

func TestBandIsSymmetricAndHoldsTheReference(t *testing.T) {
	b := Band([]float64{100, 100, 100, 100}, []float64{101, 103, 99, 102})
	if math.Abs((1-b.Lo)-(b.Hi-1)) > 1e-12 || b.Lo > 0.99 || b.Hi < 1.02 {
		t.Errorf("band = %v", b)
	}
	if b.Overlaps(Interval{Mid: 1.5, Lo: 1.4, Hi: 1.6, N: 4}) {
		t.Error("a ratio far outside must not overlap the band")
	}
	if !b.Overlaps(Interval{Mid: 0.98, Lo: 0.97, Hi: 1.0, N: 4}) {
		t.Error("a ratio that touches the band must overlap it")
	}
	if e := Band(nil, nil); e.N != 0 || e.Overlaps(b) {
		t.Errorf("band of nothing = %v", e)
	}
}
