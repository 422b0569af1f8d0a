// Package measure takes interleaved samples, A, B, C, A, B, C, so that a moment of foreign load hits all paths of a round alike.
package measure

import (
	"context"
	"fmt"
	"time"

	"github.com/strait-net/strait/bench/internal/rr"
	"github.com/strait-net/strait/bench/internal/stat"
)

// Test is one kind of conversation in one address family.
type Test struct {
	Mode   rr.Mode
	Family int // 4 or 6
}

// String names the test as results do: "crr/4".
func (t Test) String() string { return fmt.Sprintf("%s/%d", t.Mode, t.Family) }

// Point is one sample with what it cost.
type Point struct {
	Rate float64 // operations per second; bytes for stream
	CPU  float64 // nanoseconds of both ends per operation
	P50  float64 // nanoseconds
	P99  float64 // nanoseconds
	// Beside are nanoseconds per operation of those who are no end, by who they are.
	Beside map[string]float64
}

// Series is one test on one path, an entry per round. A sample that was not taken is zero in every list.
type Series struct {
	Path string    `json:"path"`
	Test string    `json:"test"`
	Rate []float64 `json:"rate"`
	CPU  []float64 `json:"cpu_ns_per_op"`
	P50  []float64 `json:"p50_ns,omitempty"`
	P99  []float64 `json:"p99_ns,omitempty"`
	// Beside is CPU time of those who are no end of the path, by who they are.
	Beside map[string][]float64 `json:"beside_ns_per_op,omitempty"`
	Errs   []string             `json:"errors,omitempty"`
}

// Plan is what to measure in which order.
type Plan struct {
	Rounds int
	Tests  []Test
	Paths  []string // the first is the floor and is measured again at the end of each round as "<name>#2"
	Skip   func(path string, test Test) bool
	Pause  time.Duration // between samples, for the stragglers of the last one
}

// Again is the name of the second measurement of a path in a round.
func Again(path string) string { return path + "#2" }

// Sampler takes one sample.
type Sampler func(ctx context.Context, path string, test Test) (Point, error)

// Run carries the plan out. A failed sample is noted and the run goes on; a cancelled context ends it with what there is.
func Run(ctx context.Context, p Plan, sample Sampler, progress func(round int, test Test)) []Series {
	if len(p.Paths) == 0 {
		return nil
	}
	floor := p.Paths[0]
	order := append(append([]string{}, p.Paths...), Again(floor))
	index := map[string]*Series{}
	var out []*Series
	for _, t := range p.Tests {
		for _, path := range order {
			if path != floor && path != Again(floor) && p.Skip != nil && p.Skip(path, t) {
				continue
			}
			s := &Series{Path: path, Test: t.String()}
			index[path+" "+s.Test] = s
			out = append(out, s)
		}
	}
	for round := range p.Rounds {
		for _, t := range p.Tests {
			progress(round, t)
			for _, path := range order {
				s, wanted := index[path+" "+t.String()]
				if !wanted || ctx.Err() != nil {
					continue
				}
				on := path
				if path == Again(floor) {
					on = floor
				}
				s.add(sample(ctx, on, t))
				time.Sleep(p.Pause)
			}
		}
	}
	result := make([]Series, len(out))
	for i, s := range out {
		if stat.Quantile(s.P50, 1) == 0 { // modes without a round trip
			s.P50, s.P99 = nil, nil
		}
		result[i] = *s
	}
	return result
}

func (s *Series) add(p Point, err error) {
	if err != nil {
		p = Point{}
		s.Errs = append(s.Errs, fmt.Sprintf("sample %d: %v", len(s.Rate)+1, err))
	}
	s.Rate = append(s.Rate, p.Rate)
	s.CPU = append(s.CPU, p.CPU)
	s.P50 = append(s.P50, p.P50)
	s.P99 = append(s.P99, p.P99)
	if s.Beside == nil && len(p.Beside) > 0 {
		s.Beside = map[string][]float64{}
	}
	for who := range p.Beside {
		if s.Beside[who] == nil {
			s.Beside[who] = make([]float64, len(s.Rate)-1) // of samples that were not taken
		}
	}
	for who := range s.Beside {
		s.Beside[who] = append(s.Beside[who], p.Beside[who])
	}
}
