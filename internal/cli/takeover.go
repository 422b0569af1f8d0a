package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/strait-net/strait/internal/localapi"
)

// takeoverPatience is how long a takeover may last: some hundred thousand connections are read and written.
const takeoverPatience = 2 * time.Minute

// stopAdvice says how kube-proxy is stopped.
const stopAdvice = `stop it first, it would put its rules back; they stay and go on working, but follow no changes any more:
  kubectl -n kube-system delete daemonset kube-proxy
then take over each node; docs/takeover.md says how to stop it node by node`

func (a *app) takeoverCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "takeover",
		Short: "Move a node from kube-proxy to Strait, and back, without breaking connections",
	}
	var dryRun, yes, force bool
	start := &cobra.Command{
		Use:   "kube-proxy",
		Short: "Serve Services in place of kube-proxy on this node",
		Long: `Makes Strait serve Services on one node in place of kube-proxy, which must have been stopped there. Connections that
kube-proxy has made go on: they are read from the kernel and given to Strait's programs; those of the node's own sockets stay
with the node's stack until they end. Then kube-proxy's rules are removed and the node is looked through for what is left:
exit code 1 if there is anything. It can be repeated. The decision holds over restarts of the agent; write it into the
configuration (kubeProxyReplacement=true) when all nodes are done.`,
		Example: "  strait takeover kube-proxy --dry-run\n  strait takeover kube-proxy --yes\n  strait takeover kube-proxy --yes --node n2",
		Args:    exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !dryRun && !yes {
				return usage("%s changes who serves Services on this node: say --yes, or --dry-run to only look", cmd.CommandPath())
			}
			return a.takeOver(cmd.Context(), dryRun)
		},
	}
	start.Flags().BoolVar(&dryRun, "dry-run", false, "only print what would be done")
	start.Flags().BoolVar(&yes, "yes", false, "do it")
	status := &cobra.Command{
		Use:   "status",
		Short: "Show who serves Services, and what there is of kube-proxy on the node",
		Long: `Shows who serves Services on the node and what there is of kube-proxy. Exit code 1 when Strait serves and something of
kube-proxy is there.`,
		Args: exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error { return a.takeoverStatus(cmd.Context()) },
	}
	undo := &cobra.Command{
		Use:   "undo",
		Short: "Leave new connections to kube-proxy again",
		Long: `The way back: connections that Strait carries go on, new ones are left to kube-proxy, which must have been started and have
its rules on the node. When the last connection has ended, services are off.`,
		Args: exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error { return a.undoTakeover(cmd.Context(), force) },
	}
	undo.Flags().BoolVar(&force, "force", false, "even if kube-proxy has no rules on the node: nobody serves new connections then")
	cmd.AddCommand(start, status, undo)
	return cmd
}

// oneNode asks the agent of one node, this or the one named by --node: nobody moves a whole cluster with one word.
func oneNode(ctx context.Context, a *app, q question[localapi.Takeover]) (answers[localapi.Takeover], error) {
	if a.node == "" {
		client, err := a.local(ctx)
		if err != nil {
			return answers[localapi.Takeover]{}, err
		}
		if client == nil {
			return answers[localapi.Takeover]{}, usage("takeover works on one node: run it there, or name the node with --node")
		}
	}
	return ask(ctx, a, q)
}

func (a *app) takeOver(ctx context.Context, dryRun bool) error {
	a.timeout = max(a.timeout, takeoverPatience)
	args := []string{"takeover", "kube-proxy", "--yes"}
	if dryRun {
		args[2] = "--dry-run"
	}
	all, err := oneNode(ctx, a, question[localapi.Takeover]{args: args, local: func(ctx context.Context, c *localapi.Client) (localapi.Takeover, error) {
		t, err := a.look(ctx, c)
		if err != nil || dryRun || len(t.Running) > 0 {
			return t, err
		}
		if t, err = c.TakeOver(ctx); err != nil {
			return t, err
		}
		return a.removeLegacy(ctx, c, t)
	}})
	if err != nil {
		return err
	}
	t := all.nodes[0].Value
	if err := deliver(a, all, func() string { return a.takeoverText(t, !dryRun) }); err != nil {
		return err
	}
	switch {
	case len(t.Running) > 0:
		return fmt.Errorf("kube-proxy runs on this node: nothing has been changed; %s", stopAdvice)
	case !dryRun && len(t.Left) > 0:
		return fmt.Errorf("%s of kube-proxy left on this node", plural(len(t.Left), "thing"))
	}
	return nil
}

// look adds to what the agent sees what this process does: an agent in a container does not see the node's processes.
func (a *app) look(ctx context.Context, c *localapi.Client) (localapi.Takeover, error) {
	t, err := c.Takeover(ctx)
	if err != nil {
		return t, err
	}
	seen, err := proxyProcesses()
	for _, s := range seen {
		if !slices.Contains(t.Running, s) {
			t.Running = append(t.Running, s)
		}
	}
	return t, err
}

// removeLegacy removes rules of iptables-legacy by the node's own programs, which an agent in a container does not have.
func (a *app) removeLegacy(ctx context.Context, c *localapi.Client, t localapi.Takeover) (localapi.Takeover, error) {
	if count(t.Left, func(l localapi.ProxyTrace) bool { return l.Kind == legacyKind }) == 0 {
		return t, nil
	}
	ran, err := removeLegacyRules(ctx)
	if len(ran) > 0 {
		_, _ = fmt.Fprintf(a.Err, "rules of iptables-legacy removed by %s\n", strings.Join(ran, ", ")) // nobody left to tell
	}
	if err != nil {
		return t, errors.Join(err, errors.New("run strait takeover kube-proxy --yes in a shell of the node, not in the agent's container"))
	}
	now, err := c.Takeover(ctx)
	t.Left = now.Left
	return t, err
}

const legacyKind = "iptables-legacy"

func (a *app) takeoverStatus(ctx context.Context) error {
	all, err := oneNode(ctx, a, question[localapi.Takeover]{args: []string{"takeover", "status"}, local: a.look})
	if err != nil {
		return err
	}
	t := all.nodes[0].Value
	if err := deliver(a, all, func() string { return a.takeoverText(t, false) }); err != nil {
		return err
	}
	if t.Mode == "on" && len(t.Left)+len(t.Running) > 0 {
		return &exitError{ExitProblems, nil}
	}
	return nil
}

func (a *app) undoTakeover(ctx context.Context, force bool) error {
	a.timeout = max(a.timeout, takeoverPatience)
	args := []string{"takeover", "undo"}
	if force {
		args = append(args, "--force")
	}
	all, err := oneNode(ctx, a, question[localapi.Takeover]{args: args, local: func(ctx context.Context, c *localapi.Client) (localapi.Takeover, error) {
		return c.UndoTakeover(ctx, force)
	}})
	if err != nil {
		return err
	}
	return deliver(a, all, func() string { return a.takeoverText(all.nodes[0].Value, false) })
}

// takeoverText is what a person reads: who serves, what became of connections, and the traces of kube-proxy.
func (a *app) takeoverText(t localapi.Takeover, done bool) string {
	var out strings.Builder
	out.WriteString(a.servedBy(t))
	if done && len(t.Running) == 0 {
		fmt.Fprintf(&out, "Connections  %d taken over, %d of the node's own sockets stay with its stack, %d lead to backends that are gone\n",
			t.Import, t.Held, t.Lost)
	} else if t.Import+t.Held+t.Lost > 0 {
		fmt.Fprintf(&out, "Connections  of kube-proxy: %d can be taken over, %d are of the node's own sockets, %d lead to backends that are gone\n",
			t.Import, t.Held, t.Lost)
	}
	if t.Holding {
		out.WriteString("Stack        goes on translating until the last of them has ended (nftables table inet strait_takeover)\n")
	}
	g := &grid{columns: columns("", "KIND", "NAME", "WHAT")}
	for _, r := range t.Running {
		g.add(cell{text: "runs", style: red}, r.Kind, r.Name, r.Detail)
	}
	for _, l := range t.Left {
		g.add(cell{text: "there", style: yellow}, l.Kind, l.Name, l.Detail)
	}
	for _, r := range t.Removed {
		g.add(cell{text: "removed", style: green}, r.Kind, r.Name, r.Detail)
	}
	if len(g.rows) > 0 {
		out.WriteString("\n" + a.render(g))
	}
	if len(t.Left) == 0 && len(t.Running) == 0 {
		out.WriteString("\n" + a.paint(green, "clean") + ": looked for kube-proxy's processes and ports, " + strings.Join(t.Checked, ", ") + "; there is nothing\n")
	}
	return out.String()
}

func (a *app) servedBy(t localapi.Takeover) string {
	who := map[string]string{
		"on":    a.paint(green, "Strait"),
		"off":   "kube-proxy",
		"drain": a.paint(yellow, "kube-proxy") + " for new connections; Strait goes on with " + plural(t.Served, "connection"),
	}[t.Mode]
	text := "Services     served by " + who
	if t.Decided != nil {
		text += fmt.Sprintf(", decided %s ago; the configuration says %s", a.age(*t.Decided), t.Config)
	}
	return text + "\n"
}
