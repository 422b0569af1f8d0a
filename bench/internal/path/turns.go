package path

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/strait-net/strait/bench/internal/kube"
	"github.com/strait-net/strait/bench/internal/node"
)

// Turned is what changes of a kind took until the verdict on a flow between two pods was another one.
type Turned struct {
	Kind string
	// Took is from sending the write to the API server until the first packet that was judged otherwise.
	Took []time.Duration
	// Written is how much of that passed until the API server had answered the write.
	Written []time.Duration
}

const turnPort = 9100

// write is one change, and whether the flow is allowed afterwards.
type write struct {
	kind    string
	allowed bool
	do      func() error
}

// Turns changes a policy, a pod's labels and a namespace's labels, each count times in each direction.
func (m *Member) Turns(count int) ([]Turned, error) {
	m.label("turn-client", map[string]string{"app": "turn-client", "side": "friend"})
	m.label("turn-server", map[string]string{"app": "turn-server"})
	made, err := m.pods("turn-client", "turn-server", "turn-witness")
	if err != nil {
		return nil, err
	}
	var to [2]netip.AddrPort
	for i, name := range []string{"turn-server", "turn-witness"} {
		if err := m.Echo(node.Echo{Pod: name, Port: turnPort}); err != nil {
			return nil, err
		}
		to[i] = netip.AddrPortFrom(made[i+1].address[4], turnPort)
	}
	kinds := map[string]*Turned{}
	var out []*Turned
	for i := range 2 * count {
		for _, w := range m.writes(i%2 == 0) {
			if err := m.cluster.site.ctx.Err(); err != nil {
				return nil, err
			}
			took, written, err := m.turn(w, to)
			if err != nil {
				return nil, fmt.Errorf("%s, round %d: %w", w.kind, i, err)
			}
			if w.kind == "" {
				continue
			}
			if kinds[w.kind] == nil {
				kinds[w.kind] = &Turned{Kind: w.kind}
				out = append(out, kinds[w.kind])
			}
			kinds[w.kind].Took, kinds[w.kind].Written = append(kinds[w.kind].Took, took), append(kinds[w.kind].Written, written)
			time.Sleep(time.Duration(10+i%17) * time.Millisecond) // in step with no timer
		}
	}
	all := make([]Turned, len(out))
	for i, t := range out {
		all[i] = *t
	}
	return all, nil
}

// writes are the changes of a round. Each begins with the flow in the state that the one before has left, allowed at first and at last; those without
// a kind only set the scene. In one direction labels are given, in the other taken.
func (m *Member) writes(pods bool) []write {
	server, ctx := m.cluster.server, m.cluster.site.ctx
	subject := map[string]string{"app": "turn-server"}
	deny := kube.Policy{Namespace: m.Name, Name: "turn-deny", Pods: subject}
	create := func(p kube.Policy) func() error {
		return func() error { return server.Create(ctx, kube.PolicyPath(p.Namespace), p.Object()) }
	}
	remove := func(p kube.Policy) func() error { return func() error { return server.Delete(ctx, p.Path()) } }
	labels := func(path, value string) func() error {
		return func() error {
			return server.Merge(ctx, path, kube.Object{"metadata": kube.Object{"labels": kube.Object{"side": value}}})
		}
	}
	out := []write{
		{"NetworkPolicy written", false, create(deny)},
		{"NetworkPolicy deleted", true, remove(deny)},
	}
	kind, path, rule := "namespace's label changed", kube.Namespace{Name: m.Name}.Path(), kube.Rule{Namespaces: map[string]string{"side": "friend"}}
	if pods {
		kind, path = "pod's label changed", kube.Pod{Namespace: m.Name, Name: "turn-client"}.Path()
		rule = kube.Rule{Pods: map[string]string{"side": "friend"}}
	}
	selective := kube.Policy{Namespace: m.Name, Name: "turn-select", Pods: subject, Rules: []kube.Rule{rule}}
	return append(out,
		write{"", false, func() error {
			if err := labels(path, "stranger")(); err != nil {
				return err
			}
			return create(selective)()
		}},
		write{kind, true, labels(path, "friend")},
		write{kind, false, labels(path, "stranger")},
		write{"", true, remove(selective)},
	)
}

// errTurned is returned when a verdict changes before what is to change it is written.
var errTurned = errors.New("the verdict changed before the write")

func (m *Member) turn(w write, to [2]netip.AddrPort) (took, written time.Duration, err error) {
	type seen struct {
		at  node.Moment
		err error
	}
	turned := make(chan seen, 1)
	go func() {
		at, err := m.Turn(node.Turn{Pod: "turn-client", To: to[0], Witness: to[1], Allowed: w.allowed, Every: 200 * time.Microsecond,
			Silence: 20 * time.Millisecond, Timeout: 20 * time.Second})
		turned <- seen{at, err}
	}()
	time.Sleep(5 * time.Millisecond) // the flow is under way
	begin := node.Now()
	if err := w.do(); err != nil {
		return 0, 0, err
	}
	written = node.Now().Sub(begin)
	s := <-turned
	if s.err == nil && s.at < begin {
		return 0, 0, errTurned
	}
	return s.at.Sub(begin), written, s.err
}
