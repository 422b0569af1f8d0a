package cli

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/spf13/cobra"

	"github.com/strait-net/strait/internal/explain"
	"github.com/strait-net/strait/internal/localapi"
)

// informants are the agents that can be asked: that of this node, or those of a cluster, which are looked for when they are needed.
type informants struct {
	app     *app
	client  *localapi.Client // of this node; nil: the cluster's
	cluster *cluster
	self    string            // the node that "host" stands for; empty: none
	agents  map[string]target // of the nodes that were asked for
	some    []target          // of any nodes
}

func (a *app) informants(ctx context.Context) (*informants, error) {
	client, err := a.local(ctx)
	if err != nil || client != nil {
		return &informants{app: a, client: client}, err
	}
	cluster, err := a.cluster()
	if err != nil {
		return nil, err
	}
	i := &informants{app: a, cluster: cluster, self: a.node, agents: map[string]target{}}
	if a.node == "" {
		if i.some, err = cluster.someAgents(ctx, a.timeout); err != nil {
			return nil, unreachable(err)
		}
		return i, nil
	}
	t, known, err := cluster.agentOn(ctx, a.timeout, a.node)
	if err != nil {
		return nil, unreachable(err)
	}
	if !known {
		all, err := cluster.agents(ctx, a.timeout)
		if err != nil {
			return nil, unreachable(err)
		}
		return nil, unknown("node", a.node, "", names(all))
	}
	i.some = []target{t}
	return i, nil
}

// nodes are some of those that can be asked.
func (i *informants) nodes() []string { return names(i.some) }

// who asks the first agent that answers who has these names and addresses: every agent knows all. An older one is asked for everybody.
func (i *informants) who(ctx context.Context, words []string) (everybody, error) {
	if len(words) == 0 && i.client == nil {
		return everybody{self: i.self, entrances: i.nodes()}, nil
	}
	return i.first(ctx, func(t target) (everybody, error) {
		ends, err := consult(ctx, i, t, endsOf(words))
		if err != nil && otherVersion(err) {
			e, err := i.census(ctx, t)
			e.whole = true
			return e, err
		}
		return everybody{self: ends.Node, pods: ends.Pods, nodes: ends.Nodes, services: ends.Services}, err
	})
}

// everybody asks the first agent that answers for whole tables.
func (i *informants) everybody(ctx context.Context) (everybody, error) {
	e, err := i.first(ctx, func(t target) (everybody, error) { return i.census(ctx, t) })
	e.whole = true
	return e, err
}

func (i *informants) first(ctx context.Context, ask func(target) (everybody, error)) (e everybody, err error) {
	if i.client != nil {
		if e, err = ask(target{}); err != nil {
			return e, i.app.localError(err)
		}
		for _, n := range e.nodes {
			if n.Self {
				e.self, i.self = n.Name, n.Name
			}
		}
		e.entrances = []string{e.self}
		return e, nil
	}
	var failed []answer[struct{}]
	for _, t := range i.some {
		if e, err = ask(t); err == nil {
			e.self, e.entrances = i.self, i.nodes()
			e.ended = func(pod string) string { return i.cluster.ended(ctx, i.app.timeout, pod) }
			return e, nil
		}
		failed = append(failed, answer[struct{}]{Node: t.node, Err: err})
	}
	return everybody{}, allFailed(failed)
}

// census asks one agent for all tables at once; of several errors the first table's is told.
func (i *informants) census(ctx context.Context, t target) (e everybody, err error) {
	var group sync.WaitGroup
	var failed [3]error
	group.Go(func() {
		e.pods, failed[0] = consult(ctx, i, t, question[[]localapi.PodRow]{args: []string{"get", "pods"},
			local: func(ctx context.Context, c *localapi.Client) ([]localapi.PodRow, error) { return c.Pods(ctx) }})
	})
	group.Go(func() {
		e.nodes, failed[1] = consult(ctx, i, t, question[[]localapi.Node]{args: []string{"get", "nodes"},
			local: func(ctx context.Context, c *localapi.Client) ([]localapi.Node, error) { return c.Nodes(ctx) }})
	})
	group.Go(func() {
		e.services, failed[2] = consult(ctx, i, t, question[[]localapi.Service]{args: []string{"service", "list"},
			local: func(ctx context.Context, c *localapi.Client) ([]localapi.Service, error) { return c.Services(ctx) }})
	})
	group.Wait()
	return e, cmp.Or(failed[:]...)
}

// consult asks one agent: this node's, or the one named.
func consult[T any](ctx context.Context, i *informants, t target, q question[T]) (T, error) {
	if i.client == nil {
		said := askNode(ctx, i.app, i.cluster, t, q)
		return said.Value, said.Err
	}
	ctx, cancel := context.WithTimeout(ctx, i.app.timeout)
	defer cancel()
	return q.local(ctx, i.client)
}

// follow follows the packet. What the first node says against the question is an error, what others cannot tell is a gap.
func (i *informants) follow(ctx context.Context, args []string, node string, q localapi.ExplainQuestion) (explain.Path, error) {
	var refused error
	first := true
	path := explain.Follow(ctx, func(ctx context.Context, node string, q localapi.ExplainQuestion) (localapi.ExplainPart, error) {
		part, err := i.part(ctx, args, node, q)
		if first && err != nil {
			var exit *exitError
			switch {
			case otherVersion(err), errors.Is(err, explain.ErrElsewhere): // a gap, wherever it is
			case i.client != nil:
				refused = i.app.localError(err)
			case errors.As(err, &exit):
				refused = exit
			}
		}
		first = false
		if err != nil && otherVersion(err) {
			err = fmt.Errorf("its agent cannot explain paths: it is of another version than this command (%s); see strait version", cmp.Or(i.app.Version, "unknown"))
		}
		return part, err
	}, node, q)
	return path, refused
}

// otherVersion reports whether an agent does not know the question at all.
func otherVersion(err error) bool {
	text := err.Error()
	return errors.Is(err, localapi.ErrNotOffered) || strings.Contains(text, localapi.ErrNotOffered.Error()) ||
		strings.Contains(text, "no such path") || strings.Contains(text, `unknown verb "explain-`) || strings.Contains(text, "unknown field")
}

// elsewhere says where to ask for what another node knows.
func elsewhere(what, node string, args []string) error {
	return fmt.Errorf("%s %w %s: ask from outside the cluster, or there: strait explain %s", what, explain.ErrElsewhere, node, strings.Join(args, " "))
}

func (i *informants) part(ctx context.Context, args []string, node string, q localapi.ExplainQuestion) (localapi.ExplainPart, error) {
	text, err := json.Marshal(q)
	if err != nil {
		return localapi.ExplainPart{}, fmt.Errorf("write question: %w", err)
	}
	asked := explainPart(q, string(text))
	if i.client != nil {
		if node != i.self {
			return localapi.ExplainPart{}, elsewhere("the rest", node, args)
		}
		return consult(ctx, i, target{}, asked)
	}
	t, err := i.agentOn(ctx, node)
	if err != nil {
		return localapi.ExplainPart{}, err
	}
	return consult(ctx, i, t, asked)
}

// agentOn is the agent of a node of a cluster.
func (i *informants) agentOn(ctx context.Context, node string) (target, error) {
	for _, t := range i.some {
		if t.node == node {
			return t, t.err
		}
	}
	if t, ok := i.agents[node]; ok {
		return t, t.err
	}
	t, _, err := i.cluster.agentOn(ctx, i.app.timeout, node)
	if err != nil {
		return target{}, err
	}
	i.agents[node] = t
	return t, t.err
}

// endsVerb asks one node who has a name or an address; other strait commands run it there.
const endsVerb = "explain-ends"

// endsCmd is for programs: the answer is JSON.
func (a *app) endsCmd() *cobra.Command {
	return &cobra.Command{
		Use:    endsVerb + " WORD...",
		Short:  "Who has a name or an address, answered in JSON",
		Hidden: true,
		Args:   cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			all, err := ask(cmd.Context(), a, endsOf(args))
			if err != nil {
				return err
			}
			return printForPrograms(a, all)
		},
	}
}

// endsOf is the question for an agent.
func endsOf(words []string) question[localapi.Ends] {
	return question[localapi.Ends]{
		args:  append([]string{endsVerb}, words...),
		local: func(ctx context.Context, c *localapi.Client) (localapi.Ends, error) { return c.Ends(ctx, words) },
	}
}
