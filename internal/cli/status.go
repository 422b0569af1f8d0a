package cli

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/strait-net/strait/internal/localapi"
)

// statusOptions are the flags of strait status.
type statusOptions struct {
	verbose bool
	wait    bool
	limit   time.Duration
}

func (a *app) statusCmd() *cobra.Command {
	var o statusOptions
	cmd := &cobra.Command{
		Use:   "status",
		Short: "What is wrong, and how every part of the agent is",
		Long: `Shows what is wrong first, then how every part of the agent is. From outside a node: a line per node, the worst first.

Exit code 1 when a node has an error or does not answer; warnings alone do not count.`,
		Example: `  strait status
  strait status --verbose
  strait status --wait && kubectl apply -f app.yaml
  strait status -o json | jq '.problems'`,
		Args: exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error { return a.status(cmd.Context(), o) },
	}
	cmd.Flags().BoolVarP(&o.verbose, "verbose", "v", false, "also list controllers, programs, maps, counters and peers")
	cmd.Flags().BoolVarP(&o.wait, "wait", "w", false, "wait until every node is ok")
	cmd.Flags().DurationVar(&o.limit, "wait-timeout", 5*time.Minute, "longest wait of --wait")
	return cmd
}

func (a *app) status(ctx context.Context, o statusOptions) error {
	q := question[localapi.Status]{
		args:  []string{"status"},
		local: func(ctx context.Context, c *localapi.Client) (localapi.Status, error) { return c.Status(ctx) },
	}
	all, err := ask(ctx, a, q)
	if o.wait {
		all, err = a.waitOK(ctx, q, all, err, o.limit)
	}
	if err != nil {
		return err
	}
	switch {
	case !a.output.forPeople():
		err = printAnswers(a, all)
	case all.one:
		err = a.write(a.nodeStatus(all.nodes[0].Value, o.verbose))
	default:
		err = a.write(a.clusterStatus(all.nodes, o.verbose))
	}
	if err == nil && notOK(all.nodes) != "" {
		err = &exitError{ExitProblems, nil}
		if o.wait {
			err = &exitError{ExitProblems, fmt.Errorf("not ok after %v: %s", o.limit, notOK(all.nodes))}
		}
	}
	return err
}

// waitOK asks again until every node is ok or the limit is over, and tells on stderr what it waits for.
func (a *app) waitOK(ctx context.Context, q question[localapi.Status], all answers[localapi.Status], err error, limit time.Duration) (answers[localapi.Status], error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	said := ""
	for {
		why := ""
		var exit *exitError
		switch {
		case errors.As(err, &exit) && exit.code == ExitUsage:
			return all, err
		case err != nil:
			why = err.Error()
		default:
			why = notOK(all.nodes)
		}
		if why == "" {
			return all, nil
		}
		if why != said {
			_, _ = fmt.Fprintln(a.Err, "waiting: "+why) // nobody left to tell
			said = why
		}
		timer := time.NewTimer(time.Second)
		select {
		case <-ctx.Done():
			timer.Stop()
			return all, err
		case <-timer.C:
		}
		again, failed := ask(ctx, a, q)
		if ctx.Err() != nil {
			return all, err // of the last complete round
		}
		all, err = again, failed
	}
}

// notOK returns the first reason why a node is not ok, or nothing. A warning is no reason.
func notOK(nodes []answer[localapi.Status]) string {
	for _, n := range nodes {
		prefix := ""
		if name := nameOf(n); name != "" {
			prefix = "node " + name + ": "
		}
		switch {
		case n.Err != nil:
			return prefix + n.Err.Error()
		case n.Value.State == localapi.OK:
			continue
		case len(n.Value.Problems) > 0:
			return prefix + n.Value.Problems[0].Subject + ": " + n.Value.Problems[0].Text
		}
		return prefix + string(n.Value.State)
	}
	return ""
}

func nameOf(n answer[localapi.Status]) string {
	if n.Node == "" {
		return n.Value.Node
	}
	return n.Node
}
