// Package stat turns paired samples of a benchmark into ratios with intervals.
package stat

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
)

// Interval is an estimate with the bounds of its 95 % confidence interval.
type Interval struct {
	Mid float64 `json:"mid"`
	Lo  float64 `json:"lo"`
	Hi  float64 `json:"hi"`
	N   int     `json:"n"` // samples it rests on
}

// String prints the estimate and its bounds with the precision a ratio needs.
func (i Interval) String() string {
	if i.N == 0 {
		return "-"
	}
	return fmt.Sprintf("%.3f [%.3f, %.3f]", i.Mid, i.Lo, i.Hi)
}

// Overlaps reports whether two intervals share a value; an empty interval overlaps nothing.
func (i Interval) Overlaps(j Interval) bool {
	return i.N > 0 && j.N > 0 && i.Lo <= j.Hi && j.Lo <= i.Hi
}

// Quantile returns the q-quantile (0..1) of xs by linear interpolation, NaN when xs is empty. xs stays as it is.
func Quantile(xs []float64, q float64) float64 {
	if len(xs) == 0 {
		return math.NaN()
	}
	s := slices.Clone(xs)
	slices.Sort(s)
	pos := q * float64(len(s)-1)
	i := int(pos)
	if i >= len(s)-1 {
		return s[len(s)-1]
	}
	return s[i] + (pos-float64(i))*(s[i+1]-s[i])
}

// Median returns the 0.5-quantile of xs.
func Median(xs []float64) float64 { return Quantile(xs, 0.5) }

// resamples is the number of bootstrap draws: the bounds then move by less than a tenth of their width from seed to seed.
const resamples = 4000

// MedianInterval returns the median of xs and its 95 % percentile-bootstrap interval. The draws are seeded by the
// number of samples alone, so the same samples always give the same interval.
func MedianInterval(xs []float64) Interval {
	if len(xs) == 0 {
		return Interval{}
	}
	rng := rand.New(rand.NewPCG(1, uint64(len(xs))))
	medians := make([]float64, resamples)
	draw := make([]float64, len(xs))
	for i := range medians {
		for j := range draw {
			draw[j] = xs[rng.IntN(len(xs))]
		}
		medians[i] = Median(draw)
	}
	return Interval{Mid: Median(xs), Lo: Quantile(medians, 0.025), Hi: Quantile(medians, 0.975), N: len(xs)}
}

// Ratios divides a by b round by round. A round in which either sample is missing (zero, negative, NaN) is left out:
// a ratio across rounds would compare different moments of a noisy machine.
func Ratios(a, b []float64) []float64 {
	out := make([]float64, 0, min(len(a), len(b)))
	for i := range min(len(a), len(b)) {
		if a[i] > 0 && b[i] > 0 {
			out = append(out, a[i]/b[i])
		}
	}
	return out
}

// Band is the symmetric interval around 1 inside which a ratio says nothing, given the reference measured twice per round.
func Band(first, second []float64) Interval {
	i := MedianInterval(Ratios(second, first))
	if i.N == 0 {
		return i
	}
	half := max(math.Abs(i.Lo-1), math.Abs(i.Hi-1))
	return Interval{Mid: 1, Lo: 1 - half, Hi: 1 + half, N: i.N}
}
