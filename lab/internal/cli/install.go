package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/strait-net/strait/lab/internal/chart"
	"github.com/strait-net/strait/lab/internal/client"
	"github.com/strait-net/strait/lab/internal/image"
	"github.com/strait-net/strait/lab/internal/manifest"
	"github.com/strait-net/strait/lab/internal/node"
	"github.com/strait-net/strait/lab/internal/screen"
	"github.com/strait-net/strait/lab/internal/supervisor"
	"github.com/strait-net/strait/lab/internal/topology"
	"github.com/strait-net/strait/lab/internal/wire"
)

// release is where Strait is installed.
func release() chart.Release { return chart.Release{Name: "strait", Namespace: "kube-system"} }

func installCommand(p places, name *string) *cobra.Command {
	var render bool
	var sets []string
	c := &cobra.Command{
		Use: "install", Short: "Load the images that are built now into a running lab and apply everything again", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, state, err := p.running(cmd.Context(), *name)
			if err != nil {
				return err
			}
			state.Spec.Set = append(state.Spec.Set, sets...)
			if render {
				content, err := renderChart(p, state.Spec)
				if err != nil {
					return err
				}
				_, err = cmd.OutOrStdout().Write(content)
				return err
			}
			return install(cmd.Context(), p, screen.New(os.Stdout), state.Spec)
		},
	}
	c.Flags().BoolVar(&render, "render", false, "only print what the chart renders to")
	c.Flags().StringArrayVar(&sets, "set", nil, "a value of Strait's Helm chart, in addition to those of lab up")
	return c
}

func renderChart(p places, spec topology.Spec) ([]byte, error) {
	return chart.Render(filepath.Join(p.source, "deploy", "helm", "strait"), release(), chart.Values(spec), spec.Set)
}

// install brings the cluster from "kubelets run" to "pods answer". Everything in it may be done again.
func install(ctx context.Context, p places, s *screen.Screen, spec topology.Spec) error {
	_, state, err := p.running(ctx, spec.Name)
	if err != nil {
		return err
	}
	cluster, err := client.New(supervisor.Kubeconfig(p.state(spec.Name)))
	if err != nil {
		return err
	}
	if spec.CNI == "strait" {
		if err := s.Run("Strait's chart applied", func() error { return installStrait(ctx, p, state, cluster, spec) }); err != nil {
			return err
		}
	}
	values := manifest.For(spec)
	err = s.Run("CoreDNS and the demo application applied", func() error {
		for _, render := range []func(manifest.Values) ([]byte, error){manifest.CoreDNS, manifest.Demo} {
			content, err := render(values)
			if err != nil {
				return err
			}
			if err := cluster.Apply(ctx, content); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	wait, cancel := context.WithTimeoutCause(ctx, 3*time.Minute, errors.New("not there after three minutes"))
	defer cancel()
	for _, w := range []struct {
		title string
		wait  func() error
	}{
		{fmt.Sprintf("%d nodes ready", len(nodes(state))), func() error { return cluster.WaitNodes(wait, len(nodes(state))) }},
		{"pods of kube-system ready", func() error { return cluster.WaitPods(wait, "kube-system") }},
		{"demo pods ready", func() error { return cluster.WaitPods(wait, "demo") }},
	} {
		if err := s.Run(w.title, w.wait); err != nil {
			return fmt.Errorf("wait for %s: %w", w.title, err)
		}
	}
	return show(ctx, p, s, state)
}

// installStrait loads the image that is built now into every node, applies the chart and, where a pod runs an older image, starts it again.
func installStrait(ctx context.Context, p places, state wire.State, cluster *client.Client, spec topology.Spec) error {
	content, err := renderChart(p, spec)
	if err != nil {
		return err
	}
	files, err := archives(p, state.Bin, true)
	if err != nil {
		return err
	}
	fresh, err := importNew(p, state, files)
	if err != nil {
		return err
	}
	if err := cluster.Apply(ctx, content); err != nil {
		return err
	}
	if !fresh {
		return nil
	}
	return cluster.Restart(ctx, release().Namespace, "app.kubernetes.io/part-of=strait")
}

// importNew imports the archives that a node has not seen, and says whether Strait's was among them.
func importNew(p places, state wire.State, files []string) (bool, error) {
	fresh := false
	var group errgroup.Group
	for _, m := range nodes(state) {
		if !m.Node.Running {
			continue
		}
		seen, err := os.ReadFile(node.ImportedFile(m.Node.Dir))
		if err != nil {
			return false, err
		}
		for _, file := range files {
			if strings.Contains(string(seen), file+"\n") {
				continue
			}
			fresh = fresh || strings.HasPrefix(file, image.Prefix(image.Strait))
			group.Go(func() error { return node.Load(m.Node.Pid, m.Node.Dir, state.Bin, filepath.Join(imageDir(p), file)) })
		}
	}
	return fresh, group.Wait()
}
