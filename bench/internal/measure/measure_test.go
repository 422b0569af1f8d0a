package measure

import (
	"context"
	"errors"
	"slices"
	"testing"

	"github.com/strait-net/strait/bench/internal/rr"
)

func TestRunInterleavesAndMeasuresTheFloorTwice(t *testing.T) {
	var order []string
	plan := Plan{Rounds: 2, Tests: []Test{{rr.RR, 4}, {rr.CRR, 6}}, Paths: []string{"floor", "a", "b"},
		Skip: func(path string, test Test) bool { return path == "b" && test.Family == 6 }}
	series := Run(t.Context(), plan, func(_ context.Context, path string, test Test) (Point, error) {
		order = append(order, path+" "+test.String())
		return Point{Rate: float64(len(order)), CPU: 1}, nil
	}, func(int, Test) {})
	round := []string{"floor rr/4", "a rr/4", "b rr/4", "floor rr/4", "floor crr/6", "a crr/6", "floor crr/6"}
	if want := slices.Concat(round, round); !slices.Equal(order, want) {
		t.Errorf("order\n%v, want\n%v", order, want)
	}
	for _, s := range series {
		if len(s.Rate) != 2 || len(s.CPU) != 2 {
			t.Errorf("%s %s has %d samples, want one per round", s.Path, s.Test, len(s.Rate))
		}
	}
	if s := series[3]; s.Path != "floor#2" || s.Rate[0] != 4 || s.Rate[1] != 11 {
		t.Errorf("second measurement of the floor is %+v", s)
	}
}

func TestAFailedSampleKeepsItsRound(t *testing.T) {
	n := 0
	series := Run(t.Context(), Plan{Rounds: 3, Tests: []Test{{rr.RR, 4}}, Paths: []string{"floor"}},
		func(context.Context, string, Test) (Point, error) {
			if n++; n == 3 {
				return Point{Rate: 99}, errors.New("refused")
			}
			return Point{Rate: 1, P50: 5}, nil
		}, func(int, Test) {})
	s := series[0]
	if !slices.Equal(s.Rate, []float64{1, 0, 1}) || !slices.Equal(s.P50, []float64{5, 0, 5}) || len(s.Errs) != 1 {
		t.Errorf("series %+v: a failed sample must be zero at its own place", s)
	}
}

func TestRunEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	n := 0
	Run(ctx, Plan{Rounds: 100, Tests: []Test{{rr.RR, 4}}, Paths: []string{"floor"}}, func(context.Context, string, Test) (Point, error) {
		n++
		cancel()
		return Point{}, nil
	}, func(int, Test) {})
	if n != 1 {
		t.Errorf("%d samples after cancellation", n)
	}
}

func TestWhatIsBesideStaysInStep(t *testing.T) {
	var s Series
	s.add(Point{}, errors.New("no sample"))
	s.add(Point{Rate: 1, Beside: map[string]float64{"agent": 5}}, nil)
	s.add(Point{}, errors.New("no sample"))
	s.add(Point{Rate: 1, Beside: map[string]float64{"agent": 7, "reader": 9}}, nil)
	if !slices.Equal(s.Beside["agent"], []float64{0, 5, 0, 7}) || !slices.Equal(s.Beside["reader"], []float64{0, 0, 0, 9}) {
		t.Errorf("beside four samples: %v", s.Beside)
	}
}
