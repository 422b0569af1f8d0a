package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/spf13/cobra"

	"github.com/strait-net/strait/internal/cli/uninstall"
	"github.com/strait-net/strait/internal/config"
	"github.com/strait-net/strait/internal/datapath/netdev"
)

// uninstallOptions are the flags of strait uninstall.
type uninstallOptions struct {
	config         string
	verify, dryRun bool
}

// uninstalled is what strait uninstall prints for programs.
type uninstalled struct {
	Removed []uninstall.Trace `json:"removed"`
	Left    []uninstall.Trace `json:"left"`
	Checked []string          `json:"checked,omitempty"` // kinds of things looked for, with --verify
}

// nodeCmds are the verbs that work on the node they are typed on, without an agent.
func (a *app) nodeCmds() []*cobra.Command {
	var o uninstallOptions
	cmd := &cobra.Command{
		Use:   "uninstall",
		Short: "Remove everything Strait has put on this node",
		Long: `Removes what Strait has put on the node it is typed on: CNI configuration and plugin, programs, routes, devices, pinned
maps, records and sockets. Pods on the node have no network afterwards. The agent must have been stopped: delete its
DaemonSet first. With --verify it looks again at the end and says what it looked for; exit code 1 when something is left.`,
		Example: "  kubectl -n kube-system delete daemonset strait-agent\n  strait uninstall --verify",
		Args:    exactArgs(),
		RunE:    func(cmd *cobra.Command, _ []string) error { return a.uninstall(cmd.Context(), o) },
	}
	cmd.Flags().StringVar(&o.config, "config", defaultConfig, "configuration of the agent, for its paths; defaults where there is none")
	cmd.Flags().BoolVar(&o.verify, "verify", false, "prove that nothing is left")
	cmd.Flags().BoolVar(&o.dryRun, "dry-run", false, "only print what would be removed")
	return []*cobra.Command{cmd, a.enterCmd()}
}

func (a *app) uninstall(ctx context.Context, o uninstallOptions) error {
	c, err := config.Load(o.config)
	if errors.Is(err, fs.ErrNotExist) {
		c, err = config.Default(), nil
	}
	if err != nil {
		return usage("%w", err)
	}
	net, err := netdev.Open()
	if err != nil {
		return err
	}
	defer net.Close()
	node := uninstall.Node{Config: c, Net: net}
	before, err := node.Find()
	if err != nil {
		return fmt.Errorf("find what Strait has on this node: %w", err)
	}
	if o.dryRun {
		return a.traces("would be removed", uninstalled{Left: before})
	}
	failed := node.Remove(ctx)
	if errors.Is(failed, uninstall.ErrAgentRuns) {
		return fmt.Errorf("%w; delete the DaemonSet strait-agent first", failed)
	}
	left, err := node.Find()
	if err != nil {
		return fmt.Errorf("find what is left: %w", err)
	}
	result := uninstalled{Removed: []uninstall.Trace{}, Left: left}
	for _, t := range before {
		if !contains(left, t) {
			result.Removed = append(result.Removed, t)
		}
	}
	if o.verify {
		result.Checked = uninstall.Kinds()
	}
	if err := a.traces("left", result); err != nil {
		return err
	}
	if failed != nil {
		return failed
	}
	if len(left) > 0 {
		return fmt.Errorf("%s left on this node", plural(len(left), "thing"))
	}
	return nil
}

func contains[T comparable](all []T, x T) bool {
	return count(all, func(y T) bool { return x == y }) > 0
}

// traces prints what was removed and what is there.
func (a *app) traces(there string, u uninstalled) error {
	if !a.output.forPeople() {
		return a.print(u)
	}
	g := &grid{columns: columns("", "KIND", "NAME")}
	for _, t := range u.Left {
		g.add(cell{text: there, style: red}, t.Kind, t.Name)
	}
	for _, t := range u.Removed {
		g.add(cell{text: "removed", style: green}, t.Kind, t.Name)
	}
	text := a.renderOr(g, "nothing of Strait on this node")
	if len(u.Checked) > 0 && len(u.Left) == 0 {
		text += a.paint(green, "clean") + ": looked for " + strings.Join(u.Checked, ", ") + "; nothing is left\n"
	}
	return a.write(text)
}
