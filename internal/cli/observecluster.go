package cli

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	observerpb "github.com/cilium/cilium/api/v1/observer"

	flowmerge "github.com/strait-net/strait/internal/observer/merge"
)

// longestFlow bounds a line of a node's answer, in bytes.
const longestFlow = 1 << 20

// cluster asks the observers of all nodes, and shows what they say in order of time.
func (o *observation) cluster(ctx context.Context, c *cluster, q *observerpb.GetFlowsRequest) error {
	agents, err := c.agents(ctx, o.app.timeout)
	if err != nil {
		return unreachable(err)
	}
	if o.app.node != "" {
		i := slices.IndexFunc(agents, func(t target) bool { return t.node == o.app.node })
		if i < 0 {
			return unknown("node", o.app.node, "", names(agents))
		}
		agents = agents[i : i+1]
	}
	how := flowmerge.Config{Request: q, Patience: flowmerge.Patience, Start: o.app.timeout, Silence: o.app.timeout}
	if !o.follow {
		how.Patience = o.app.timeout
	}
	m := flowmerge.New(how)
	for _, t := range agents {
		m.Join(o.source(c, t))
	}
	show := o.printer(len(agents) > 1)
	err = m.Run(ctx, show.add)
	var refusal *flowmerge.Refusal
	var nobody *flowmerge.Unreachable
	switch {
	case errors.As(err, &refusal):
		return refusal.Err
	case errors.As(err, &nobody):
		var failed []answer[struct{}]
		for _, f := range nobody.Nodes {
			failed = append(failed, answer[struct{}]{Node: f.Node, Err: f.Err})
		}
		return allFailed(failed)
	case err != nil && !errors.Is(err, context.Canceled):
		return err
	}
	if err := show.finish(); err != nil {
		return err
	}
	if show.failed {
		return &exitError{ExitProblems, nil}
	}
	return nil
}

// source is a node as a merge asks it: by the command itself, run in the agent's container.
func (o *observation) source(c *cluster, t target) flowmerge.Source {
	again := false
	return flowmerge.Source{Node: t.node, Ask: func(ctx context.Context, q *observerpb.GetFlowsRequest, hear func(*observerpb.GetFlowsResponse) error) error {
		if again { // its pod may be another one by now
			now, _, err := c.agentOn(ctx, o.app.timeout, t.node)
			if err != nil {
				return err
			}
			t = now
		}
		again = true
		args, err := o.arguments(q)
		if err != nil {
			return &flowmerge.Refusal{Err: err}
		}
		return o.listen(ctx, c, t, args, hear)
	}}
}

// unknownThere returns what a node's strait does not know of a request that this one has made; empty: it has another reason to refuse.
func unknownThere(text string) string {
	for _, is := range []string{`unknown verb "`, `unknown flag "`, "(unknown field)"} {
		if strings.Contains(text, is) {
			what, _, _ := strings.Cut(text, ";") // without all there is
			return what
		}
	}
	return ""
}

// listen runs the command on a node, and hands each of its lines to hear.
func (o *observation) listen(ctx context.Context, c *cluster, t target, args []string, hear func(*observerpb.GetFlowsResponse) error) error {
	if t.err != nil {
		return t.err
	}
	heard, failed := c.listen(ctx, t, append([]string{"strait"}, args...), func(said io.Reader) error {
		lines := bufio.NewScanner(said)
		lines.Buffer(nil, longestFlow)
		for lines.Scan() {
			answer := &observerpb.GetFlowsResponse{}
			if err := json.Unmarshal(lines.Bytes(), answer); err != nil {
				return fmt.Errorf("answer of %s is not what this version understands: %w", t.pod, err)
			}
			if err := hear(answer); err != nil {
				return err
			}
		}
		if err := lines.Err(); err != nil {
			return fmt.Errorf("read answer of %s: %w", t.pod, err)
		}
		return nil
	})
	if heard != nil || failed == nil {
		return heard
	}
	if what := unknownThere(failed.Error()); what != "" { // a gap: other nodes may know it
		return fmt.Errorf("its strait is of another version than this command: %s; see strait status -o wide", what)
	}
	var exit *exitError
	if errors.As(failed, &exit) {
		return &flowmerge.Refusal{Err: exit}
	}
	return failed
}
