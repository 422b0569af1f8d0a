package control

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/strait-net/strait/internal/service"
	"github.com/strait-net/strait/internal/state"
	"github.com/strait-net/strait/internal/table"
)

const serviceProblems = "services" // source of the problems the service loop reports

// Services keeps state.Frontends as services and their slices want them. A change costs what its own service costs, however many there are.
type Services struct {
	state *state.State
	log   *slog.Logger
	done  func()
	// owner is the service each slice was last seen to belong to: its label can change.
	owner map[string]state.ServiceName
	// contested holds the services that claim one frontend, where there are several: the older service has it.
	contested map[string][]state.ServiceName
	reported  bool // problems were reported that may have to be taken back
}

// NewServices returns the loop. It registers with the table it writes.
func NewServices(st *state.State, log *slog.Logger) *Services {
	return &Services{
		state: st, log: log, done: st.Frontends.Register(serviceProblems),
		owner: map[string]state.ServiceName{}, contested: map[string][]state.ServiceName{},
	}
}

// Run applies changes until ctx ends. It begins when services and slices are known whole: a frontend without its
// slices would refuse connections.
func (s *Services) Run(ctx context.Context) error {
	if err := all(ctx, s.state.Services.Initialized(), s.state.EndpointSlices.Initialized()); err != nil {
		return err
	}
	services, endpoints := s.state.Services.Changes(), s.state.EndpointSlices.Changes()
	defer services.Close()
	defer endpoints.Close()
	for {
		moreServices, moreSlices := s.step(services, endpoints)
		s.done()
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-moreServices:
		case <-moreSlices:
		}
	}
}

// step takes in everything that has changed.
func (s *Services) step(services *table.Changes[state.Service], endpoints *table.Changes[state.EndpointSlice]) (moreServices, moreSlices <-chan struct{}) {
	changedServices, moreServices := services.Next()
	changedSlices, moreSlices := endpoints.Next()
	var dirty []state.ServiceName
	for _, c := range changedServices {
		dirty = append(dirty, c.Row.ServiceName)
	}
	for _, c := range changedSlices {
		key := s.state.EndpointSlices.Key(c.Row)
		if before, known := s.owner[key]; known && before != c.Row.Service {
			dirty = append(dirty, before)
		}
		dirty = append(dirty, c.Row.Service)
		if s.owner[key] = c.Row.Service; c.Deleted {
			delete(s.owner, key)
		}
	}
	if len(dirty) > 0 {
		s.apply(dirty)
	}
	return moreServices, moreSlices
}

// round is the work on one set of changes.
type round struct {
	services  table.Snapshot[state.Service]
	slices    table.Snapshot[state.EndpointSlice]
	frontends table.Snapshot[state.Frontend]
	queue     []state.ServiceName
	wanted    map[state.ServiceName]map[string]state.Frontend // services computed in this round
	touched   map[string]state.ServiceName                    // frontends whose row may change, and a service that claims them
	released  map[string]bool                                 // frontends a service no longer claims
}

// apply computes the services and writes the rows that differ. A service that contests a frontend with another is
// computed together with it.
func (s *Services) apply(dirty []state.ServiceName) {
	r := &round{
		services: s.state.Services.Snapshot(), slices: s.state.EndpointSlices.Snapshot(), frontends: s.state.Frontends.Snapshot(),
		queue:   dirty,
		wanted:  make(map[state.ServiceName]map[string]state.Frontend, len(dirty)),
		touched: map[string]state.ServiceName{}, released: map[string]bool{},
	}
	for len(r.queue) > 0 {
		name := r.queue[0]
		r.queue = r.queue[1:]
		if _, computed := r.wanted[name]; !computed {
			s.compute(r, name)
		}
	}
	s.state.Frontends.Write(func(tx *table.Txn[state.Frontend]) {
		for key := range r.released {
			if _, claimed := r.touched[key]; !claimed {
				tx.Delete(key)
			}
		}
		for key, claimant := range r.touched {
			row := r.wanted[s.winner(r, key, claimant)][key]
			if old, _, ok := tx.Get(key); !ok || !old.SameIntent(row) {
				tx.Insert(row)
			}
		}
	})
	s.report(r)
	s.log.Debug("services computed", "services", len(r.wanted), "frontends", len(r.touched), "contested", len(s.contested))
}

// compute finds what one service claims now, and what it has given up.
func (s *Services) compute(r *round, name state.ServiceName) {
	want := map[string]state.Frontend{}
	r.wanted[name] = want
	if svc, _, ok := r.services.Get(name.String()); ok {
		for _, f := range service.Frontends(svc, slices.Collect(r.slices.By(state.SlicesByService, name.String()))) {
			if _, twice := want[f.Key()]; !twice {
				want[f.Key()] = f
			}
		}
	}
	for old := range r.frontends.By(state.FrontendsByService, name.String()) {
		if _, still := want[old.Key()]; !still {
			r.released[old.Key()] = true
		}
	}
	for key, claimants := range s.contested {
		if !slices.Contains(claimants, name) {
			continue
		}
		r.queue = append(r.queue, claimants...)
		if _, still := want[key]; !still {
			s.withdraw(key, name)
		}
	}
	for key := range want {
		if row, _, ok := r.frontends.Get(key); ok && row.Service != name {
			s.contest(r, key, row.Service, name)
		}
		if other, ok := r.touched[key]; ok && other != name {
			s.contest(r, key, other, name)
		}
		r.touched[key] = name
	}
}

// contest notes that both services claim the frontend, if the first still does.
func (s *Services) contest(r *round, key string, first, second state.ServiceName) {
	if want, computed := r.wanted[first]; computed {
		if _, still := want[key]; !still {
			return
		}
	}
	for _, name := range []state.ServiceName{first, second} {
		if !slices.Contains(s.contested[key], name) {
			s.contested[key] = append(s.contested[key], name)
		}
	}
	r.queue = append(r.queue, first)
}

func (s *Services) withdraw(key string, name state.ServiceName) {
	rest := slices.DeleteFunc(slices.Clone(s.contested[key]), func(n state.ServiceName) bool { return n == name })
	if s.contested[key] = rest; len(rest) < 2 {
		delete(s.contested, key)
	}
}

// winner returns the claimant that has the frontend: the older, then the first by name.
func (s *Services) winner(r *round, key string, claimant state.ServiceName) state.ServiceName {
	claimants := s.contested[key]
	if len(claimants) == 0 {
		return claimant
	}
	return slices.MinFunc(claimants, func(a, b state.ServiceName) int {
		x, _, _ := r.services.Get(a.String())
		y, _, _ := r.services.Get(b.String())
		return cmp.Or(x.Created.Compare(y.Created), strings.Compare(a.String(), b.String()))
	})
}

func (s *Services) report(r *round) {
	if len(s.contested) == 0 && !s.reported {
		return
	}
	var problems []state.Problem
	for key, claimants := range s.contested {
		has := s.winner(r, key, claimants[0])
		for _, name := range claimants {
			if name != has {
				problems = append(problems, state.Problem{
					Subject: "service " + name.String(),
					Text:    fmt.Sprintf("%s belongs to service %s, which is older; this service does not get it", key, has),
				})
			}
		}
	}
	slices.SortFunc(problems, func(a, b state.Problem) int {
		return cmp.Or(strings.Compare(a.Subject, b.Subject), strings.Compare(a.Text, b.Text))
	})
	state.Report(s.state.Problems, serviceProblems, time.Now(), problems)
	s.reported = len(problems) > 0
}
