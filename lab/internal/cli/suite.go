package cli

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/strait-net/strait/lab/internal/build"
	"github.com/strait-net/strait/lab/internal/namespace"
	"github.com/strait-net/strait/lab/internal/screen"
	"github.com/strait-net/strait/lab/internal/suite"
	"github.com/strait-net/strait/lab/internal/supervisor"
	"github.com/strait-net/strait/lab/internal/topology"
	"github.com/strait-net/strait/lab/internal/wire"
)

func suiteCommand(p places, name *string) *cobra.Command {
	c := suite.Config{Procs: 4, Timeout: time.Hour}
	var summary string
	cmd := &cobra.Command{
		Use: "suite", Short: "Run Kubernetes' own end-to-end tests against the lab", Args: cobra.NoArgs,
		Example: `  lab suite --focus '\[sig-network\] Services' --skip '\[Disruptive\]' --summary docs/suite.md`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, state, err := p.running(cmd.Context(), *name)
			if err != nil {
				return err
			}
			for _, m := range state.Machines {
				if m.Node != nil && m.Node.Running {
					c.Nodes++
				}
			}
			if c.Dir, err = os.MkdirTemp("", "strait-suite-"); err != nil {
				return err
			}
			if err := p.buildSuite(cmd.Context(), &c); err != nil {
				return err
			}
			c.Kubectl, c.Kubeconfig = filepath.Join(state.Bin, "kubectl"), filepath.Join(c.Dir, "kubeconfig")
			if err := insideConfig(supervisor.Kubeconfig(p.state(*name)), c.Kubeconfig, state.Spec.APIServer()); err != nil {
				return err
			}
			failed := runSuite(state, c)
			return errors.Join(failed, writeSummary(c, summary))
		},
	}
	cmd.Flags().StringVar(&c.Focus, "focus", `\[sig-network\] Services`, "specs to run, a regular expression")
	cmd.Flags().StringVar(&c.Skip, "skip", "", "specs to leave out")
	cmd.Flags().IntVar(&c.Procs, "procs", c.Procs, "specs at the same time")
	cmd.Flags().DurationVar(&c.Timeout, "timeout", c.Timeout, "of the whole run")
	cmd.Flags().StringVar(&summary, "summary", "", "file for the table of results; empty: printed")
	return cmd
}

func (p places) buildSuite(ctx context.Context, c *suite.Config) error {
	b := build.Builder{Source: filepath.Join(p.source, "lab"), Cache: p.cache, Step: screen.New(os.Stdout).Step, Log: os.Stderr}
	for _, program := range build.SuitePrograms() {
		file, err := b.File(ctx, program)
		if err != nil {
			return err
		}
		if program.Test {
			// Its name in the cache ends in a key; ginkgo takes only what ends in .test for compiled.
			c.Tests = filepath.Join(c.Dir, program.Name)
			if err := os.Symlink(file, c.Tests); err != nil {
				return err
			}
			continue
		}
		c.Ginkgo = file
	}
	return nil
}

// insideConfig copies the administrator's kubeconfig, with the API server's address inside the lab.
func insideConfig(from, to string, server netip.AddrPort) error {
	config, err := clientcmd.LoadFromFile(from)
	if err != nil {
		return err
	}
	for _, cluster := range config.Clusters {
		cluster.Server = "https://" + server.String()
	}
	return clientcmd.WriteToFile(*config, to)
}

// runSuite runs the specs outside the nodes' network, where some of them believe to be, and from where all nodes can be reached.
func runSuite(state wire.State, c suite.Config) error {
	machine, err := state.Machine(topology.Outside)
	if err != nil {
		return err
	}
	net, err := namespace.OpenNet(machine.Name, machine.Net)
	if err != nil {
		return err
	}
	defer net.Close()
	if err := suite.Prepare(c); err != nil {
		return err
	}
	child := suite.Command(c)
	child.Stdout, child.Stderr = os.Stdout, os.Stderr
	if err := net.Do(child.Run); err != nil {
		return fmt.Errorf("run the suite: %w; reports are in %s", err, c.Dir)
	}
	return nil
}

func writeSummary(c suite.Config, path string) error {
	report, err := os.Open(filepath.Join(c.Dir, suite.ReportFile))
	if err != nil {
		return err
	}
	defer report.Close()
	specs, err := suite.Read(report)
	if err != nil {
		return err
	}
	out := os.Stdout
	if path != "" {
		if out, err = os.Create(path); err != nil {
			return err
		}
		defer out.Close()
	}
	return suite.Summary(out, specs)
}
