package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
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

// suiteRun is what the runs of all suites share.
type suiteRun struct {
	state      wire.State
	dir        string // for what the run leaves behind
	kubeconfig string
}

func (p places) suiteRun(ctx context.Context, name string) (suiteRun, error) {
	var r suiteRun
	var err error
	if _, r.state, err = p.running(ctx, name); err != nil {
		return r, err
	}
	if r.dir, err = os.MkdirTemp("", "strait-suite-"); err != nil {
		return r, err
	}
	r.kubeconfig = filepath.Join(r.dir, "kubeconfig")
	return r, insideConfig(supervisor.Kubeconfig(p.state(name)), r.kubeconfig, r.state.Spec.APIServer())
}

// program returns a program that is no part of a lab's set, building it if the cache lacks it.
func (p places) program(ctx context.Context, program build.Program) (string, error) {
	b := build.Builder{Source: filepath.Join(p.source, "lab"), Cache: p.cache, Step: screen.New(os.Stderr).Step, Log: os.Stderr}
	return b.File(ctx, program)
}

func suiteCommand(p places, name *string) *cobra.Command {
	c := suite.Config{Procs: 4, Timeout: time.Hour}
	var summary string
	cmd := &cobra.Command{
		Use: "suite", Short: "Run Kubernetes' own end-to-end tests, or other suites, against the lab", Args: cobra.NoArgs,
		Example: `  lab suite --focus '\[sig-network\] Services' --skip '\[Disruptive\]' --summary docs/suite.md`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			r, err := p.suiteRun(cmd.Context(), *name)
			if err != nil {
				return err
			}
			c.Dir, c.Kubeconfig, c.Kubectl = r.dir, r.kubeconfig, filepath.Join(r.state.Bin, "kubectl")
			for _, m := range r.state.Machines {
				if m.Node != nil && m.Node.Running {
					c.Nodes++
				}
			}
			if err := p.buildSuite(cmd.Context(), &c); err != nil {
				return err
			}
			if err := suite.Prepare(c); err != nil {
				return err
			}
			failed := r.outside(suite.Command(c), os.Stdout)
			return errors.Join(failed, writeSummary("Kubernetes' own tests, "+c.Focus, filepath.Join(c.Dir, suite.ReportFile), suite.Read, summary))
		},
	}
	cmd.Flags().StringVar(&c.Focus, "focus", `\[sig-network\] Services`, "specs to run, a regular expression")
	cmd.Flags().StringVar(&c.Skip, "skip", "", "specs to leave out")
	cmd.Flags().IntVar(&c.Procs, "procs", c.Procs, "specs at the same time")
	cmd.Flags().DurationVar(&c.Timeout, "timeout", c.Timeout, "of the whole run")
	cmd.Flags().StringVar(&summary, "summary", "", "file for the table of results; empty: printed")
	cmd.AddCommand(conformanceCommand(p, name), cyclonusCommand(p, name))
	return cmd
}

func conformanceCommand(p places, name *string) *cobra.Command {
	c := suite.Conformance{Timeout: time.Hour}
	var summary, report string
	cmd := &cobra.Command{
		Use: "cluster-network-policy", Short: "Run the conformance tests of ClusterNetworkPolicy", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			r, err := p.suiteRun(cmd.Context(), *name)
			if err != nil {
				return err
			}
			if c.Tests, err = p.program(cmd.Context(), build.ConformanceProgram()); err != nil {
				return err
			}
			c.Kubeconfig, c.Report = r.kubeconfig, filepath.Join(r.dir, "report.yaml")
			output := filepath.Join(r.dir, "output")
			log, err := os.Create(output)
			if err != nil {
				return err
			}
			failed := r.outside(c.Command(), io.MultiWriter(os.Stdout, log))
			err = errors.Join(failed, log.Close(), writeSummary("Conformance tests of ClusterNetworkPolicy", output, suite.ReadGo, summary))
			if report == "" {
				return err
			}
			content, reading := os.ReadFile(c.Report)
			if reading != nil {
				return errors.Join(err, reading)
			}
			return errors.Join(err, os.WriteFile(report, content, 0o644))
		},
	}
	cmd.Flags().StringVar(&c.Focus, "focus", "", "tests to run, a regular expression; parts of tests after a slash")
	cmd.Flags().StringVar(&c.Features, "features", "ClusterNetworkPolicyNamedPorts,ClusterNetworkPolicyEgressNodePeers", "features beyond the standard ones")
	cmd.Flags().StringVar(&c.Version, "of", "dev", "version of Strait to name in the report")
	cmd.Flags().DurationVar(&c.Timeout, "timeout", c.Timeout, "of the whole run")
	cmd.Flags().StringVar(&report, "report", "", "file for the conformance report")
	cmd.Flags().StringVar(&summary, "summary", "", "file for the table of results; empty: printed")
	return cmd
}

func cyclonusCommand(p places, name *string) *cobra.Command {
	c := suite.Cyclonus{}
	var summary string
	cmd := &cobra.Command{
		Use: "cyclonus", Short: "Run cyclonus' generated cases of NetworkPolicy", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			r, err := p.suiteRun(cmd.Context(), *name)
			if err != nil {
				return err
			}
			if c.Program, err = p.program(cmd.Context(), build.CyclonusProgram()); err != nil {
				return err
			}
			c.Kubeconfig, c.Report = r.kubeconfig, filepath.Join(r.dir, "report.json")
			failed := r.outside(c.Command(), os.Stdout)
			return errors.Join(failed, writeSummary("Cyclonus' cases of NetworkPolicy", c.Report, suite.ReadCyclonus, summary))
		},
	}
	cmd.Flags().StringVar(&c.Focus, "focus", "", "cases to run, a regular expression over their descriptions")
	cmd.Flags().StringVar(&c.Mode, "by", "", "how pods are asked for: service-name, service-ip or pod-ip; empty: as each case says")
	cmd.Flags().BoolVar(&c.All, "all", false, "also cases that cyclonus leaves out by default")
	cmd.Flags().IntVar(&c.Every, "every", 1, "run each n-th case")
	cmd.Flags().IntVar(&c.Wait, "wait", 1, "seconds between a change and the first question")
	cmd.Flags().IntVar(&c.Retries, "retries", 0, "how often to ask again when an answer is wrong")
	cmd.Flags().StringVar(&summary, "summary", "", "file for the table of results; empty: printed")
	return cmd
}

func (p places) buildSuite(ctx context.Context, c *suite.Config) error {
	for _, program := range build.SuitePrograms() {
		file, err := p.program(ctx, program)
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

// outside runs a suite outside the nodes' network, where some tests believe to be, and from where all nodes can be reached.
func (r suiteRun) outside(child *exec.Cmd, out io.Writer) error {
	machine, err := r.state.Machine(topology.Outside)
	if err != nil {
		return err
	}
	net, err := namespace.OpenNet(machine.Name, machine.Net)
	if err != nil {
		return err
	}
	defer net.Close()
	child.Stdout, child.Stderr = out, os.Stderr
	if err := net.Do(child.Run); err != nil {
		return fmt.Errorf("run the suite: %w; reports are in %s", err, r.dir)
	}
	return nil
}

// writeSummary turns what a run left behind into a table; a file has a title as well.
func writeSummary(title, report string, read func(io.Reader) ([]suite.Spec, error), path string) error {
	content, err := os.ReadFile(report)
	if err != nil {
		return err
	}
	specs, err := read(bytes.NewReader(content))
	if err != nil {
		return err
	}
	out := os.Stdout
	if path != "" {
		if out, err = os.Create(path); err != nil {
			return err
		}
		defer out.Close()
		if _, err := fmt.Fprintf(out, "# %s\n\n%s, ", title, time.Now().UTC().Format(time.DateOnly)); err != nil {
			return err
		}
	}
	return suite.Summary(out, specs)
}
