// Package cli is what a person types: the verbs of the strait command and how their answers look.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/strait-net/strait/internal/localapi"
)

// The exit codes.
const (
	ExitOK          = 0
	ExitProblems    = 1 // the answer is there and something is wrong: a problem, a node that did not answer
	ExitUsage       = 2 // unknown verb, flag, format, node or map
	ExitUnreachable = 3 // no agent answered
)

// defaultConfig is where a node has the agent's configuration.
const defaultConfig = "/etc/strait/config.yaml"

// Env is the world as the command sees it. Out, Err, Getenv and Now are required.
type Env struct {
	Version string
	Out     io.Writer
	Err     io.Writer
	Getenv  func(string) string
	Now     func() time.Time
	Width   int  // columns of the terminal Out is, 0 when it is none
	Color   bool // Out shows colours
}

// Run executes the command line and returns the exit code.
func Run(ctx context.Context, env Env, args []string) int {
	root := New(env)
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return ExitOK
	}
	var exit *exitError
	if !errors.As(err, &exit) {
		exit = &exitError{ExitProblems, err}
	}
	if exit.err != nil {
		_, _ = fmt.Fprintln(env.Err, "strait: "+exit.err.Error()) // nobody left to tell
	}
	return exit.code
}

// exitError ends the command with a code. A nil err has been shown already.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit code %d", e.code)
	}
	return e.err.Error()
}
func (e *exitError) Unwrap() error { return e.err }

func usage(format string, args ...any) error {
	return &exitError{ExitUsage, fmt.Errorf(format, args...)}
}

func unreachable(err error) error { return &exitError{ExitUnreachable, err} }

// app is one invocation: its surroundings and the flags all verbs share.
type app struct {
	Env
	output     format
	socket     string
	node       string
	kubeconfig string
	context    string
	namespace  string
	timeout    time.Duration
	outside    bool // ask the cluster also where the socket of an agent is
}

// New returns the root command. It reads and writes only through env.
func New(env Env) *cobra.Command {
	a := &app{Env: env, output: formatTable}
	root := &cobra.Command{
		Use:   "strait",
		Short: "See and check the network of a Kubernetes cluster that runs Strait",
		Long: `See and check the network of a Kubernetes cluster that runs Strait.

On a node, or in a pod that has the agent's socket mounted, strait asks the agent of that node. Anywhere else it needs a
kubeconfig: it finds the strait-agent pods and asks all of them at once; a node that does not answer is named.

Exit codes: 0 all is well, 1 problems found, 2 the command line is wrong, 3 no agent could be reached.`,
		Example: `  strait status                      what is wrong, and how every part is
  strait status --node n2 --verbose  everything one node knows
  strait get endpoints               the pods of this node, or of all nodes
  strait service list -o json        services as the kernel balances them
  strait service show shop/web       one service: who is behind it, who is not and why
  strait policy list                 what is enforced, and what is refused and why
  strait policy verdict shop/web-1 shop/db-0:5432
  strait check                       do API, agent and kernel say the same
  strait bpf dump strait_ipcache     one map of the kernel`,
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.SetOut(env.Out)
	root.SetErr(env.Err)
	f := root.PersistentFlags()
	f.VarP(&a.output, "output", "o", "how to print: table, wide, json or yaml")
	f.StringVar(&a.socket, "socket", "", "agent's socket (default "+localapi.DefaultSocket+" where it exists)")
	f.StringVar(&a.node, "node", "", "ask only the agent of this node")
	f.StringVar(&a.kubeconfig, "kubeconfig", "", "ask the agents of the cluster of this file (default $KUBECONFIG, ~/.kube/config, in-cluster)")
	f.StringVar(&a.context, "context", "", "context of the kubeconfig")
	f.StringVar(&a.namespace, "agent-namespace", "kube-system", "namespace of the strait-agent pods")
	f.DurationVar(&a.timeout, "timeout", 10*time.Second, "longest wait for one node")
	root.AddCommand(a.statusCmd(), a.getCmd(), a.serviceCmd(), a.policyCmd(), a.checkCmd(), a.bpfCmd(), a.ipamCmd(), a.takeoverCmd(), a.dnsCmd(), a.conntrackCmd(), a.bundleCmd(), a.versionCmd(), completionCmd())
	root.AddCommand(a.connectivityCmd(), a.observeCmd())
	root.AddCommand(a.echoCmds()...)
	root.AddCommand(a.explainCmd(), a.explainPartCmd(), a.endsCmd())
	root.AddCommand(a.captureCmd(), a.capturePartCmd())
	root.AddCommand(a.nodeCmds()...)
	root.CompletionOptions.DisableDefaultCmd = true
	a.complete(root, "output", fixed(formats...))
	a.complete(root, "node", a.nodeNames)
	strict(root)
	return root
}

// strict gives every command of the tree errors that name what was typed and what exists.
func strict(cmd *cobra.Command) {
	cmd.SetFlagErrorFunc(func(c *cobra.Command, err error) error { return flagError(c, err) })
	if cmd.HasSubCommands() && cmd.RunE == nil {
		cmd.Args = cobra.ArbitraryArgs
		cmd.RunE = func(c *cobra.Command, args []string) error {
			if len(args) == 0 {
				return c.Help()
			}
			var verbs []string
			for _, sub := range c.Commands() {
				if sub.IsAvailableCommand() {
					verbs = append(verbs, sub.Name())
				}
			}
			return unknown("verb", args[0], " for "+c.CommandPath(), verbs)
		}
	}
	if check := cmd.Args; check != nil {
		cmd.Args = func(c *cobra.Command, args []string) error {
			err := check(c, args)
			var exit *exitError
			if err == nil || errors.As(err, &exit) {
				return err
			}
			return usage("%s: %w; see %s --help", c.CommandPath(), err, c.CommandPath())
		}
	}
	for _, sub := range cmd.Commands() {
		strict(sub)
	}
}

func flagError(c *cobra.Command, err error) error {
	var bad *pflag.InvalidValueError
	if errors.As(err, &bad) {
		return usage("%s: --%s %q: %w", c.CommandPath(), bad.GetFlag().Name, bad.GetValue(), bad.Unwrap())
	}
	var missing *pflag.NotExistError
	if !errors.As(err, &missing) {
		return usage("%s: %w", c.CommandPath(), err)
	}
	var flags []string
	c.Flags().VisitAll(func(f *pflag.Flag) {
		if !f.Hidden {
			flags = append(flags, "--"+f.Name)
		}
	})
	name := missing.GetSpecifiedName()
	if missing.GetSpecifiedShortnames() != "" {
		name = "-" + name
	} else {
		name = "--" + name
	}
	return unknown("flag", name, " for "+c.CommandPath(), flags)
}

// unknown is the error for a word that is none of those that exist.
func unknown(what, word, where string, exist []string) error {
	text := fmt.Sprintf("unknown %s %q%s", what, word, where)
	if near := nearest(word, exist); near != "" {
		text += fmt.Sprintf("; did you mean %q?", near)
	}
	if len(exist) > 0 {
		text += " There are: " + strings.Join(exist, ", ")
	}
	if !strings.Contains(text, "?") {
		text = strings.Replace(text, " There are:", "; there are:", 1)
	}
	return usage("%s", text)
}

// nearest returns the word that differs from typed in at most a third of its letters or begins with it, or nothing.
func nearest(typed string, words []string) string {
	best, at := "", 1+max(1, len(typed)/3)
	for _, w := range words {
		d := distance(strings.ToLower(typed), strings.ToLower(w))
		if len(typed) > 1 && strings.HasPrefix(w, typed) {
			d = min(d, 1)
		}
		if d < at && d < len(w) {
			best, at = w, d
		}
	}
	return best
}

// distance is the number of letters to change, add or remove to get from a to b.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		before := row[0]
		row[0] = i + 1
		for j := range len(b) {
			change := before
			if a[i] != b[j] {
				change++
			}
			before = row[j+1]
			row[j+1] = min(change, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}

func exactArgs(names ...string) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		switch {
		case len(args) < len(names):
			return fmt.Errorf("%s is missing", names[len(args)])
		case len(args) > len(names):
			return fmt.Errorf("unexpected argument %q", args[len(names)])
		}
		return nil
	}
}
