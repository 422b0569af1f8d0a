package rig

import (
	"context"
	"fmt"

	"github.com/strait-net/strait/bench/internal/path"
	"github.com/strait-net/strait/bench/internal/result"
)

// explain makes the row of how long strait explain takes, in a cluster that is as good as empty and in a large one.
func (r *rig) explain(ctx context.Context) error {
	cluster, err := r.site.Cluster("explain")
	if err != nil {
		return err
	}
	defer cluster.Close()
	for _, size := range []struct{ services, pods, policies int }{{10, 0, 0}, {10_000, 10_000, 10_000}} {
		if err := cluster.Fill(size.services); err != nil {
			return fmt.Errorf("write %d services: %w", size.services, err)
		}
		if err := cluster.Gather(size.pods, size.policies); err != nil {
			return fmt.Errorf("store %d pods and %d policies: %w", size.pods, size.policies, err)
		}
		x, err := cluster.Explainer(fmt.Sprintf("explain-%d", size.services))
		if err != nil {
			return err
		}
		for _, question := range []string{path.ExplainService, path.ExplainNodes} {
			e := result.Explained{Question: question, Services: size.services, Pods: size.pods, Policies: size.policies}
			if err := r.ask(ctx, x, &e); err != nil {
				return fmt.Errorf("%d services: %w: %s", size.services, err, x.Log())
			}
			r.run.Explained = append(r.run.Explained, e)
			r.Say("explain, %s, %d services: first %.0f ms, following %.0f ms", question, size.services, e.FirstMs, e.Ms)
		}
		if err := x.Stop(); err != nil {
			return err
		}
	}
	return nil
}

// ask asks agents that have just started, and the last of them again and again.
func (r *rig) ask(ctx context.Context, x *path.Explainer, e *result.Explained) error {
	starts, following := 3, 20
	if r.Brief {
		starts, following = 2, 8
	}
	for range starts {
		if err := x.Restart(); err != nil {
			return err
		}
		took, err := x.Ask(e.Question)
		if err != nil {
			return err
		}
		e.FirstMs = append(e.FirstMs, milli(took))
	}
	for range following {
		if err := ctx.Err(); err != nil {
			return err
		}
		took, err := x.Ask(e.Question)
		if err != nil {
			return err
		}
		e.Ms = append(e.Ms, milli(took))
	}
	return nil
}
