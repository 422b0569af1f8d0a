package control

import (
	"context"
	"fmt"
	"iter"
	"log/slog"
	"maps"
	"slices"
	"time"

	"github.com/strait-net/strait/internal/config"
	"github.com/strait-net/strait/internal/service"
	"github.com/strait-net/strait/internal/state"
	"github.com/strait-net/strait/internal/table"
)

const serviceProblems = "services" // source of the problems the service loop reports

// Services keeps state.Frontends as services, their slices and the host ports of local pods want them. A change costs what its own service
// costs, however many there are.
type Services struct {
	state *state.State
	log   *slog.Logger
	done  func()
	local service.Local
	// guarded are the node ports that no other program can bind to.
	guarded ports
	// owner is the service each slice was last seen to belong to: its label can change.
	owner map[string]state.ServiceName
	// exposed holds the services with addresses that Kubernetes did not choose: nodes can be in their way.
	exposed map[claimant]struct{}
	// occupied is what nodes and pods have; nil, when nothing is exposed: to be made from the nodes when it is needed next.
	occupied *territory
	// contested holds the frontends that several claim.
	contested map[string]*contest
	// wrong says what of a service is not served, or not as it should be.
	wrong    map[claimant][]string
	reported bool // problems were reported that may have to be taken back
}

// NewServices returns the loop of node self. It registers with the table it writes.
func NewServices(st *state.State, self string, cfg config.Services, log *slog.Logger) *Services {
	low, high, err := config.Config{Services: cfg}.NodePortRange()
	if err != nil {
		low, high = 0, 0 // refused by the configuration's own check
	}
	return &Services{
		guarded: ports{low, high},
		state:   st, log: log, done: st.Frontends.Register(serviceProblems),
		local: service.Local{
			Node: self, Algorithm: state.Algorithm(cfg.Algorithm), Forwarding: state.Forwarding(cfg.Forwarding),
		},
		owner: map[string]state.ServiceName{}, exposed: map[claimant]struct{}{},
		contested: map[string]*contest{}, wrong: map[claimant][]string{},
	}
}

// feeds are the loop's positions in the tables it follows.
type feeds struct {
	services  *table.Changes[state.Service]
	slices    *table.Changes[state.EndpointSlice]
	nodes     *table.Changes[state.Node]
	endpoints *table.Changes[state.Endpoint]
}

func (s *Services) follow() *feeds {
	return &feeds{s.state.Services.Changes(), s.state.EndpointSlices.Changes(), s.state.Nodes.Changes(), s.state.Endpoints.Changes()}
}

func (f *feeds) close() {
	f.services.Close()
	f.slices.Close()
	f.nodes.Close()
	f.endpoints.Close()
}

// Run applies changes until ctx ends. It begins when services, slices and nodes are known whole: a frontend without its slices would
// refuse connections, and one chosen without this node's zone would move them. Local pods are known before any loop runs.
func (s *Services) Run(ctx context.Context) error {
	if err := all(ctx, s.state.Services.Initialized(), s.state.EndpointSlices.Initialized(), s.state.Nodes.Initialized()); err != nil {
		return err
	}
	f := s.follow()
	defer f.close()
	for {
		more := s.step(f)
		s.done()
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-more[0]:
		case <-more[1]:
		case <-more[2]:
		case <-more[3]:
		}
	}
}

// step takes in everything that has changed, and returns channels of which one is closed when there is more.
func (s *Services) step(f *feeds) (more [4]<-chan struct{}) {
	services, moreServices := f.services.Next()
	endpointSlices, moreSlices := f.slices.Next()
	nodes, moreNodes := f.nodes.Next()
	endpoints, moreEndpoints := f.endpoints.Next()
	dirty := s.movedNodes(nodes)
	for _, c := range services {
		dirty = append(dirty, claimant{ServiceName: c.Row.ServiceName})
	}
	for _, c := range endpointSlices {
		key := s.state.EndpointSlices.Key(c.Row)
		if before, known := s.owner[key]; known && before != c.Row.Service {
			dirty = append(dirty, claimant{ServiceName: before})
		}
		dirty = append(dirty, claimant{ServiceName: c.Row.Service})
		if s.owner[key] = c.Row.Service; c.Deleted {
			delete(s.owner, key)
		}
	}
	for _, c := range endpoints {
		dirty = append(dirty, claimant{state.ServiceName{Namespace: c.Row.Namespace, Name: c.Row.Pod}, true})
	}
	if len(dirty) > 0 {
		s.apply(dirty)
	}
	return [...]<-chan struct{}{moreServices, moreSlices, moreNodes, moreEndpoints}
}

// movedNodes returns who depends on the nodes that changed: all services on this node's zone, the exposed ones on every node's addresses.
// While this node has no object its zone stays what it was.
func (s *Services) movedNodes(nodes []table.Change[state.Node]) []claimant {
	if len(nodes) == 0 {
		return nil
	}
	var dirty []claimant
	before := s.occupied
	if s.occupied = nil; len(s.exposed) > 0 {
		s.occupied = occupied(s.state.Nodes.Snapshot().All())
		if !slices.Equal(before.held, s.occupied.held) {
			dirty = slices.AppendSeq(make([]claimant, 0, len(s.exposed)), maps.Keys(s.exposed))
		}
	}
	for _, c := range nodes {
		if c.Row.Name == s.local.Node && !c.Deleted && c.Row.Zone != s.local.Zone {
			s.local.Zone = c.Row.Zone
			for svc := range s.state.Services.Snapshot().All() {
				dirty = append(dirty, claimant{ServiceName: svc.ServiceName})
			}
		}
	}
	return dirty
}

// round is the work on one set of changes.
type round struct {
	services  table.Snapshot[state.Service]
	slices    table.Snapshot[state.EndpointSlice]
	endpoints table.Snapshot[state.Endpoint]
	frontends table.Snapshot[state.Frontend]
	queue     []claimant
	wanted    map[claimant]claims // of those computed in this round
	touched   map[string]claimant // frontends whose row may change, and one that claims them
	released  map[string]bool     // frontends somebody no longer claims
}

// claims are the frontends of one claimant.
type claims struct {
	since     time.Time
	frontends map[string]state.Frontend
}

// apply computes the claimants and writes the rows that differ. Who contests a frontend with another is computed together with it.
func (s *Services) apply(dirty []claimant) {
	r := &round{
		services: s.state.Services.Snapshot(), slices: s.state.EndpointSlices.Snapshot(),
		endpoints: s.state.Endpoints.Snapshot(), frontends: s.state.Frontends.Snapshot(),
		queue: dirty, wanted: make(map[claimant]claims, len(dirty)), touched: map[string]claimant{}, released: map[string]bool{},
	}
	for len(r.queue) > 0 {
		c := r.queue[0]
		r.queue = r.queue[1:]
		if _, computed := r.wanted[c]; !computed {
			s.compute(r, c)
		}
	}
	s.state.Frontends.Write(func(tx *table.Txn[state.Frontend]) {
		for key := range r.released {
			if _, claimed := r.touched[key]; !claimed {
				tx.Delete(key)
			}
		}
		for key, c := range r.touched {
			if contest := s.contested[key]; contest != nil {
				c = contest.decide(r, key)
			}
			row := r.wanted[c].frontends[key]
			if old, _, ok := tx.Get(key); !ok || !old.SameIntent(row) {
				tx.Insert(row)
			}
		}
	})
	s.report()
	s.log.Debug("services computed", "services", len(r.wanted), "frontends", len(r.touched), "contested", len(s.contested))
}

// compute finds what one claimant claims now, and what it has given up.
func (s *Services) compute(r *round, c claimant) {
	want := s.claims(r, c)
	r.wanted[c] = want
	for old := range r.frontends.By(state.FrontendsByService, c.ServiceName.String()) {
		if claimantOf(old) != c {
			continue
		}
		if _, still := want.frontends[old.Key()]; !still {
			r.released[old.Key()] = true
		}
	}
	for key, contest := range s.contested {
		if !slices.Contains(contest.claimants, c) {
			continue
		}
		r.queue = append(r.queue, contest.claimants...)
		if _, still := want.frontends[key]; !still {
			s.withdraw(key, c)
		}
	}
	for key := range want.frontends {
		if row, _, ok := r.frontends.Get(key); ok && claimantOf(row) != c {
			s.contest(r, key, claimantOf(row), c)
		}
		if other, ok := r.touched[key]; ok && other != c {
			s.contest(r, key, other, c)
		}
		r.touched[key] = c
	}
}

// claims returns what the claimant wants as its objects are now; of two equal keys the first counts.
func (s *Services) claims(r *round, c claimant) claims {
	var list []state.Frontend
	var out claims
	name := c.ServiceName.String()
	delete(s.exposed, c)
	delete(s.wrong, c)
	if c.pod {
		attachments := slices.Collect(r.endpoints.By(state.EndpointsByPod, name))
		list = service.HostPorts(attachments, s.local)
		for _, e := range attachments {
			if out.since.IsZero() || e.Since.Before(out.since) {
				out.since = e.Since
			}
		}
	} else if svc, _, ok := r.services.Get(name); ok {
		out.since = svc.Created
		list = service.Frontends(svc, collect(r.slices.By(state.SlicesByService, name)), s.local)
		list = s.check(c, list)
	}
	out.frontends = make(map[string]state.Frontend, len(list))
	for _, f := range list {
		key := f.Key()
		if _, twice := out.frontends[key]; !twice {
			out.frontends[key] = f
		}
	}
	return out
}

// collect is slices.Collect without the growth that costs most when there is one slice, as almost always.
func collect(rows iter.Seq[state.EndpointSlice]) []state.EndpointSlice {
	out := make([]state.EndpointSlice, 0, 1)
	for row := range rows {
		out = append(out, row)
	}
	return out
}

// check leaves out what may not be the service's, and notes what is wrong. Addresses that somebody wrote could as well be another's.
func (s *Services) check(c claimant, list []state.Frontend) []state.Frontend {
	var wrong []string
	list = slices.DeleteFunc(list, func(f state.Frontend) bool {
		var text string
		switch f.Type {
		case state.LoadBalancer, state.ExternalIP:
			s.exposed[c] = struct{}{}
			text = s.objection(f)
		case state.NodePort:
			if s.guarded.outside(f.Port) {
				wrong = append(wrong, fmt.Sprintf("node port %d is served, but other programs can bind to it: it is outside services.nodePorts %d-%d, which "+
					"has to be the API server's --service-node-port-range", f.Port, s.guarded.low, s.guarded.high))
			}
		}
		if text != "" {
			wrong = append(wrong, text)
		}
		return text != ""
	})
	if len(wrong) > 0 {
		slices.Sort(wrong)
		s.wrong[c] = slices.Compact(wrong)
	}
	return list
}

// ports is an inclusive range; the zero value stands for all.
type ports struct{ low, high uint16 }

func (p ports) outside(port uint16) bool { return p.high != 0 && (port < p.low || port > p.high) }

// objection says why an address may not be a service's, or nothing. It may be a node's address, as Kubernetes documents for external IPs
// and as balancers that run on the nodes themselves announce; then that port of the node is the service's.
func (s *Services) objection(f state.Frontend) string {
	kind := "LoadBalancer address "
	if f.Type == state.ExternalIP {
		kind = "external IP "
	}
	a := f.Address
	if a.IsUnspecified() || a.IsLoopback() || a.IsMulticast() || a.IsLinkLocalUnicast() {
		return kind + a.String() + " is no address that others can reach; it is not served"
	}
	if s.occupied == nil {
		s.occupied = occupied(s.state.Nodes.Snapshot().All())
	}
	other, overlaps := s.occupied.overlapping(host(a))
	if !overlaps || other.kind != state.RemotePods {
		return ""
	}
	return kind + a.String() + " is in " + describe(other) + " of node " + other.node + "; it is not served"
}

// occupied returns what the nodes have, overlapping or not; pod CIDRs go first.
func occupied(nodes iter.Seq[state.Node]) *territory {
	var list []claim
	for n := range nodes {
		for _, p := range n.PodCIDRs {
			list = append(list, claim{prefix: p, kind: state.RemotePods, node: n.Name})
		}
		for _, a := range n.Addresses {
			list = append(list, claim{prefix: host(a), kind: state.RemoteNode, node: n.Name})
		}
	}
	t := newTerritory(list)
	for _, c := range list {
		t.accept(c)
	}
	return t
}
