package cli

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"

	observerpb "github.com/cilium/cilium/api/v1/observer"
	"k8s.io/client-go/util/exec"

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
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	read, write := io.Pipe()
	var errout bytes.Buffer
	var execErr error
	var running sync.WaitGroup
	running.Go(func() {
		execErr = c.stream(ctx, t, append([]string{"strait"}, args...), write, &errout)
		_ = write.Close() // of a pipe: never fails
	})
	lines := bufio.NewScanner(read)
	lines.Buffer(nil, longestFlow)
	var err error
	for err == nil && lines.Scan() {
		answer := &observerpb.GetFlowsResponse{}
		if err = json.Unmarshal(lines.Bytes(), answer); err != nil {
			err = fmt.Errorf("answer of %s is not what this version understands: %w", t.pod, err)
			continue
		}
		err = hear(answer)
	}
	cancel()
	_ = read.CloseWithError(io.ErrClosedPipe) // of a pipe: never fails
	running.Wait()
	switch {
	case err != nil:
		return err
	case lines.Err() != nil && !errors.Is(lines.Err(), io.EOF):
		return fmt.Errorf("read answer of %s: %w", t.pod, lines.Err())
	case errout.Len() > 0:
		err = errors.New(strings.TrimPrefix(strings.TrimSpace(errout.String()), "strait: "))
		var code exec.CodeExitError
		if what := unknownThere(err.Error()); what != "" { // a gap: other nodes may know it
			return fmt.Errorf("its strait is of another version than this command: %s; see strait status -o wide", what)
		}
		if errors.As(execErr, &code) && code.Code == ExitUsage {
			return &flowmerge.Refusal{Err: &exitError{ExitUsage, err}}
		}
		return err
	case execErr != nil:
		return fmt.Errorf("ask %s: %w", t.pod, execErr)
	}
	return nil
}
