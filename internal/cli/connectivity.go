package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/strait-net/strait/internal/config"
	"github.com/strait-net/strait/internal/connectivity"
	"github.com/strait-net/strait/internal/localapi"
)

func (a *app) connectivityCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "connectivity",
		Short: "Test the network of a cluster with pods of its own",
	}
	cmd.AddCommand(a.connectivityTestCmd(), a.connectivityListCmd())
	return cmd
}

// connectivityOptions are the flags of strait connectivity test.
type connectivityOptions struct {
	only, nodes      []string
	keep             bool
	namespace, image string
	external, junit  string
	wait             time.Duration
}

func (a *app) connectivityTestCmd() *cobra.Command {
	var o connectivityOptions
	cmd := &cobra.Command{
		Use:   "test",
		Short: "Deploy servers and clients, ask over every kind of way, and say which do not work and why",
		Long: `Makes a namespace with servers (echo-a, echo-b, echo-b-host) and clients on one or two nodes, lets the clients ask over pod addresses,
services, node ports and names, under policies and without, and removes everything again, also when interrupted. The pods run the image of
the agents, so that nothing has to be pulled and nobody outside be asked.

Of what has to work, the answer must come from the right pod, over every address that the name should have; a moment is given to names and services
that are new. Where what no policy allows is denied (policyEnforcementMode always), a policy is made that allows the test's pods what they need.
Of what a policy forbids, nothing must come back, and the policy's own counter must have counted it. For a way that fails, what
policy says about it, its last flows and the hops of its path are printed. Scenarios that cannot be run here are skipped, and say why. strait connectivity list shows them all. --timeout
is the longest wait for the answers of one.

It is run from outside the nodes, with the kubeconfig of somebody who may make namespaces and run programs in pods.

Exit codes: 0 nothing failed, 1 a scenario failed or something could not be removed, 2 the command line is wrong, 3 the test could not be run.`,
		Example: `  strait connectivity test
  strait connectivity test --only pod-to-a,nodeport
  strait connectivity test --external https://example.org --junit report.xml
  strait connectivity test --nodes n2,n7 --keep`,
		Args: exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error { return a.connectivityTest(cmd.Context(), o) },
	}
	f := cmd.Flags()
	f.StringSliceVar(&o.only, "only", nil, "scenarios to run: names, or regular expressions that find some, separated by commas")
	f.BoolVar(&o.keep, "keep", false, "leave the namespace for a look at its pods; the next test removes it")
	f.StringVarP(&o.namespace, "namespace", "n", "strait-test", "namespace to make")
	f.StringSliceVar(&o.nodes, "nodes", nil, "one node, or two: that of echo-b, and the other (default the first two that can be tested)")
	f.StringVar(&o.image, "image", "", "image of the pods, with the strait program (default that of the agents)")
	f.StringVar(&o.external, "external", "", "URL of somebody outside; without it nobody outside is asked")
	f.DurationVar(&o.wait, "wait-timeout", 2*time.Minute, "longest wait for the pods to be ready, and for the namespace to be gone")
	f.StringVar(&o.junit, "junit", "", "write a report for continuous integration into this file")
	a.complete(cmd, "only", func(context.Context) []string { return scenarioNames() })
	a.complete(cmd, "nodes", a.nodeNames)
	return cmd
}

func scenarioNames() []string {
	var out []string
	for _, s := range connectivity.Scenarios() {
		out = append(out, s.Name)
	}
	return out
}

func (a *app) connectivityListCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the scenarios of strait connectivity test",
		Args:  exactArgs(),
		RunE: func(*cobra.Command, []string) error {
			all := connectivity.Scenarios()
			if !a.output.forPeople() {
				return a.print(all)
			}
			g := &grid{columns: columns("SCENARIO", "NEEDS", "SHOWS THAT")}
			for _, s := range all {
				g.add(s.Name, s.Need, s.Text)
			}
			return a.write(a.render(g))
		},
	}
}

// connectivityTest is everything from the command line to the exit code.
func (a *app) connectivityTest(ctx context.Context, o connectivityOptions) error {
	c, err := a.connectivityConfig(ctx, o)
	if err != nil {
		return err
	}
	var junit *os.File
	if o.junit != "" { // before anything is done that the report would be about
		if junit, err = os.Create(o.junit); err != nil {
			return usage("--junit: %w", err)
		}
		defer junit.Close()
	}
	report, err := connectivity.Run(ctx, c)
	if err != nil && len(report.Results) < len(c.Scenarios) {
		if ctx.Err() != nil {
			err = fmt.Errorf("interrupted after %d of %d scenarios: %w", len(report.Results), len(c.Scenarios), err)
		}
		return unreachable(err)
	}
	failed := report.Count(connectivity.Failed) > 0 || err != nil
	if junit != nil {
		err = errors.Join(err, report.WriteJUnit(junit), junit.Sync())
	}
	if a.output.forPeople() {
		err = errors.Join(err, a.write(a.connectivityText(report)))
	} else {
		err = errors.Join(err, a.print(report))
	}
	if o.keep {
		a.tell(fmt.Sprintf("namespace %s is kept; the next test removes it, or kubectl delete namespace %s", o.namespace, o.namespace))
	}
	if err == nil && failed {
		return &exitError{ExitProblems, nil}
	}
	return err
}

// tell reports progress to a person.
func (a *app) tell(line string) { _, _ = io.WriteString(a.Err, line+"\n") } // nobody left to tell

func (a *app) connectivityConfig(ctx context.Context, o connectivityOptions) (connectivity.Config, error) {
	scenarios, err := connectivity.Select(o.only)
	if err != nil {
		return connectivity.Config{}, usage("--only: %w", err)
	}
	var external *url.URL
	if o.external != "" {
		if external, err = connectivity.ParseExternal(o.external); err != nil {
			return connectivity.Config{}, usage("--external: %w", err)
		}
	}
	if len(o.nodes) > 2 {
		return connectivity.Config{}, usage("--nodes: %s: want one or two", strings.Join(o.nodes, ","))
	}
	cluster, err := a.cluster()
	if err != nil {
		return connectivity.Config{}, err
	}
	targets, err := cluster.agents(ctx, a.timeout)
	if err != nil {
		return connectivity.Config{}, unreachable(err)
	}
	agents := map[string]target{}
	var running []string
	for _, t := range targets {
		agents[t.node] = t
		if t.err == nil {
			running = append(running, t.node)
		}
	}
	inPods := *cluster
	inPods.namespace = o.namespace
	return connectivity.Config{
		API: cluster.config, Namespace: o.namespace, AgentNamespace: a.namespace, Image: o.image, Agents: running, Nodes: o.nodes,
		External: external, Scenarios: scenarios, Keep: o.keep, Wait: o.wait, Timeout: a.timeout,
		Exec: func(ctx context.Context, pod, container string, command []string) (stdout, stderr []byte, err error) {
			return inPods.exec(ctx, target{pod: pod, container: container}, command)
		},
		Policy: func(ctx context.Context, node, name string) (localapi.PolicyDetail, error) {
			said := askNode(ctx, a, cluster, agents[node], question[localapi.PolicyDetail]{
				args: []string{"policy", "show", "CiliumNetworkPolicy/" + o.namespace + "/" + name}})
			return said.Value, said.Err
		},
		Closed: func(ctx context.Context, node string) (bool, error) {
			said := askNode(ctx, a, cluster, agents[node], question[localapi.Status]{args: []string{"status"}})
			return said.Value.Policy.Enforcement == string(config.PolicyAlways), said.Err
		},
		Diagnose: func(ctx context.Context, p connectivity.Path) []string {
			return a.diagnose(ctx, o.namespace, p)
		},
		Say: a.tell,
		Done: func(i int, r connectivity.Result) {
			line := fmt.Sprintf("[%*d/%d] %s  %s", len(fmt.Sprint(len(scenarios))), i+1, len(scenarios), a.outcome(r.Outcome), r.Scenario)
			if r.Outcome == connectivity.Failed {
				line += ": " + r.Why
			}
			a.tell(line)
		},
	}, nil
}

// outcome is padded: outcomes stand below each other.
func (a *app) outcome(o connectivity.Outcome) string {
	return a.paint(lookOf(o), fmt.Sprintf("%-7s", o))
}

func lookOf(o connectivity.Outcome) style {
	return map[connectivity.Outcome]style{connectivity.Passed: green, connectivity.Failed: red, connectivity.Skipped: yellow}[o]
}

func (a *app) connectivityText(r connectivity.Report) string {
	g := &grid{columns: columns("SCENARIO", "OUTCOME", "TIME#", "+FROM", "+ON", "WHY")}
	for _, s := range r.Results {
		took := ""
		if s.Took > 0 {
			took = s.Took.Round(time.Millisecond).String()
		}
		g.add(s.Scenario, cell{text: string(s.Outcome), style: lookOf(s.Outcome)}, took, s.Client, s.Node, s.Why)
	}
	var b strings.Builder
	b.WriteString("\n" + a.render(g))
	for _, s := range r.Results {
		if s.Outcome != connectivity.Failed {
			continue
		}
		fmt.Fprintf(&b, "\n%s from %s on %s\n  %s\n", a.paint(bold, s.Scenario), s.Client, s.Node, wrap(s.Why, max(0, a.Width-2), "  "))
		for _, line := range s.Findings {
			b.WriteString(strings.TrimRight("  "+line, " ") + "\n")
		}
	}
	fmt.Fprintf(&b, "\n%s\n", a.connectivitySum(r))
	return b.String()
}

func (a *app) connectivitySum(r connectivity.Report) string {
	var parts []string
	for _, o := range []connectivity.Outcome{connectivity.Failed, connectivity.Passed, connectivity.Skipped} {
		if n := r.Count(o); n > 0 {
			parts = append(parts, a.paint(lookOf(o), fmt.Sprintf("%d %s", n, o)))
		}
	}
	where := r.Nodes[0]
	if len(r.Nodes) > 1 {
		where = "between " + strings.Join(r.Nodes, " and ")
	} else {
		where = "on " + where
	}
	return fmt.Sprintf("%s %s, in %s", strings.Join(parts, ", "), where, r.Took.Round(100*time.Millisecond))
}

// diagnose is what a person would ask next about a path that failed, while its pods are there.
func (a *app) diagnose(ctx context.Context, namespace string, p connectivity.Path) []string {
	ctx, cancel := context.WithTimeout(ctx, 3*a.timeout)
	defer cancel()
	source := namespace + "/" + p.Client
	destination, filter := fmt.Sprintf("%s/%s:%d", namespace, p.Server, p.Port), "--to-pod="+namespace+"/"+p.Server
	if p.Server == "" {
		if !p.Address.IsValid() {
			return nil // the name outside is not known, that has been said
		}
		destination, filter = p.Address.String(), "--to-ip="+p.Address.Addr().String()
	}
	asked := destination
	if p.Address.IsValid() {
		asked = p.Address.String() // the service's or the node's, as it was asked
	}
	if p.Protocol == "UDP" {
		destination, asked = destination+"/udp", asked+"/udp"
	}
	var out bytes.Buffer
	plain := *a
	plain.Out, plain.Err, plain.Color, plain.Width, plain.output, plain.outside = &out, &out, false, 0, formatTable, true
	for _, next := range []struct {
		name string
		cmd  *cobra.Command
		args []string
	}{
		{"policy verdict", plain.policyVerdictCmd(), []string{source, destination}},
		{"observe", plain.observeCmd(), []string{"--from-pod=" + source, filter, "--last=5"}},
		{"explain", plain.explainCmd(), []string{source, asked}},
	} {
		fmt.Fprintf(&out, "\n$ strait %s %s\n", next.name, strings.Join(next.args, " "))
		next.cmd.SilenceErrors, next.cmd.SilenceUsage = true, true
		next.cmd.SetArgs(next.args)
		var exit *exitError
		if err := next.cmd.ExecuteContext(ctx); err != nil && (!errors.As(err, &exit) || exit.err != nil) { // one without an error has said it
			fmt.Fprintln(&out, err)
		}
	}
	return strings.Split(strings.TrimSpace(out.String()), "\n")
}
