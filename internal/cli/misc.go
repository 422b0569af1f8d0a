package cli

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"time"

	"github.com/spf13/cobra"
)

// versions is what strait version prints for programs.
type versions struct {
	Version  string `json:"version"`
	Go       string `json:"go"`
	Platform string `json:"platform"`
}

func (a *app) versionCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version of this command; strait status shows those of the agents",
		Args:  exactArgs(),
		RunE: func(*cobra.Command, []string) error {
			v := versions{a.Version, runtime.Version(), runtime.GOOS + "/" + runtime.GOARCH}
			if a.output.forPeople() {
				return a.write(fmt.Sprintf("strait %s (%s, %s)\n", v.Version, v.Go, v.Platform))
			}
			return a.print(v)
		},
	}
}

func completionCmd() *cobra.Command {
	shells := []string{"bash", "zsh", "fish", "powershell"}
	return &cobra.Command{
		Use:       "completion SHELL",
		Short:     "Print a script that completes verbs, flags, nodes and maps: bash, zsh, fish or powershell",
		Example:   "  source <(strait completion bash)",
		Args:      exactArgs("SHELL"),
		ValidArgs: shells,
		RunE: func(cmd *cobra.Command, args []string) error {
			root, out := cmd.Root(), cmd.OutOrStdout()
			switch args[0] {
			case "bash":
				return root.GenBashCompletionV2(out, true)
			case "zsh":
				return root.GenZshCompletion(out)
			case "fish":
				return root.GenFishCompletion(out, true)
			case "powershell":
				return root.GenPowerShellCompletionWithDesc(out)
			}
			return unknown("shell", args[0], "", shells)
		},
	}
}

// completionLimit bounds the wait of a person who pressed the tabulator key.
const completionLimit = 2 * time.Second

func (a *app) complete(cmd *cobra.Command, flag string, fn func(context.Context) []string) {
	complete := func(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
		return fn(cmd.Context()), cobra.ShellCompDirectiveNoFileComp
	}
	// The flag has just been defined: the only error, an unknown flag, cannot be.
	_ = cmd.RegisterFlagCompletionFunc(flag, complete)
}

func fixed(words ...string) func(context.Context) []string {
	return func(context.Context) []string { return words }
}

// nodeNames are the nodes that can be asked; none when nobody can be asked for them.
func (a *app) nodeNames(ctx context.Context) []string {
	a.timeout = completionLimit
	ctx, cancel := context.WithTimeout(ctx, completionLimit)
	defer cancel()
	a.node = ""
	client, err := a.local(ctx)
	if err != nil {
		return nil
	}
	if client != nil {
		nodes, err := client.Nodes(ctx)
		if err != nil {
			return nil
		}
		var out []string
		for _, n := range nodes {
			out = append(out, n.Name)
		}
		return out
	}
	cluster, err := a.cluster()
	if err != nil {
		return nil
	}
	agents, err := cluster.agents(ctx, completionLimit)
	if err != nil {
		return nil
	}
	return names(agents)
}

// mapNames are the maps of the first node that answers.
func (a *app) mapNames(ctx context.Context) []string {
	a.timeout = completionLimit
	all, err := ask(ctx, a, question[objects]{args: []string{"bpf", "list"}, local: localObjects, kernel: kernelObjects})
	if err != nil {
		return nil
	}
	var out []string
	for _, n := range all.nodes {
		for _, m := range n.Value.Maps {
			if !slices.Contains(out, m.Name) {
				out = append(out, m.Name)
			}
		}
	}
	slices.Sort(out)
	return out
}
