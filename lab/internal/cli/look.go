package cli

import (
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/strait-net/strait/lab/internal/build"
	"github.com/strait-net/strait/lab/internal/controlplane"
	"github.com/strait-net/strait/lab/internal/image"
	"github.com/strait-net/strait/lab/internal/namespace"
	"github.com/strait-net/strait/lab/internal/node"
	"github.com/strait-net/strait/lab/internal/screen"
	"github.com/strait-net/strait/lab/internal/supervisor"
	"github.com/strait-net/strait/lab/internal/topology"
	"github.com/strait-net/strait/lab/internal/wire"
)

func listCommand(p places) *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "Show all labs of this machine", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			entries, err := os.ReadDir(p.labs)
			if err != nil && !errors.Is(err, os.ErrNotExist) {
				return err
			}
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
			fmt.Fprintln(w, "NAME\tSTATE\tNODES\tNETWORK\tAGE")
			for _, e := range entries {
				_, state, err := p.running(cmd.Context(), e.Name())
				if err != nil {
					fmt.Fprintf(w, "%s\tdead (lab down --name %s removes it)\t\t\t\n", e.Name(), e.Name())
					continue
				}
				fmt.Fprintf(w, "%s\trunning\t%d\t%s\t%s\n", e.Name(), len(nodes(state)), network(state.Spec), age(state))
			}
			return w.Flush()
		},
	}
}

func nodes(s wire.State) []wire.Machine {
	return slices.DeleteFunc(slices.Clone(s.Machines), func(m wire.Machine) bool { return m.Node == nil })
}

func network(s topology.Spec) string {
	if s.CNI != "strait" {
		return s.CNI + " " + s.IP
	}
	return strings.Join([]string{s.CNI, s.Mode, s.IP, s.Network}, " ")
}

func age(s wire.State) time.Duration { return time.Since(s.Started).Round(time.Second) }

func statusCommand(p places, name *string) *cobra.Command {
	return &cobra.Command{
		Use: "status", Short: "Show the machines of a lab", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, state, err := p.running(cmd.Context(), *name)
			if err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			fmt.Fprintf(out, "lab %s: %s, up %s, API server at 127.0.0.1:%d\n\n", *name, network(state.Spec), age(state), state.APIPort)
			w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
			fmt.Fprintln(w, "MACHINE\tSTATE\tADDRESSES\tINIT")
			for _, m := range state.Machines {
				status, init := "running", ""
				if m.Node != nil {
					init = fmt.Sprint(m.Node.Pid)
					if !m.Node.Running {
						status, init = "off", ""
					}
				}
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", m.Name, status, strings.Join(m.Addrs, " "), init)
			}
			return w.Flush()
		},
	}
}

func nodeCommand(p places, name *string) *cobra.Command {
	c := &cobra.Command{Use: "node", Short: "Add a node, take a node's power, boot it again"}
	add := &cobra.Command{
		Use: "add", Short: "Add one node", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, state, err := p.running(cmd.Context(), *name)
			if err != nil {
				return err
			}
			s := screen.New(os.Stdout)
			if err := raiseInotify(s, len(nodes(state))+1); err != nil {
				return err
			}
			return s.Run("node added, kubelet started", func() error {
				files, err := archives(p, state.Bin, state.Spec.CNI == "strait")
				if err != nil {
					return err
				}
				_, err = client.AddNode(cmd.Context(), wire.Boot{Load: files})
				return err
			})
		},
	}
	kill := &cobra.Command{
		Use: "kill NODE", Short: "Take the power from a node: everything on it dies at once, its disk stays", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, _, err := p.running(cmd.Context(), *name)
			if err != nil {
				return err
			}
			return screen.New(os.Stdout).Run(args[0]+" is off", func() error { return client.KillNode(cmd.Context(), args[0]) })
		},
	}
	restart := &cobra.Command{
		Use: "restart NODE", Short: "Boot a node with the disk it had, after taking its power if it is on", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, state, err := p.running(cmd.Context(), *name)
			if err != nil {
				return err
			}
			return screen.New(os.Stdout).Run(args[0]+" booted, kubelet started", func() error {
				files, err := archives(p, state.Bin, state.Spec.CNI == "strait")
				if err != nil {
					return err
				}
				return client.RestartNode(cmd.Context(), args[0], wire.Boot{Load: files})
			})
		},
	}
	c.AddCommand(add, kill, restart, kubeProxyCommand(p, name))
	return c
}

func kubeProxyCommand(p places, name *string) *cobra.Command {
	return &cobra.Command{
		Use: "kube-proxy NODE on|off", Short: "Stop the kube-proxy of a node or let it run again, in a lab started with --kube-proxy",
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			_, state, err := p.running(cmd.Context(), *name)
			if err != nil {
				return err
			}
			m, err := state.Machine(args[0])
			if err != nil {
				return err
			}
			if m.Node == nil || state.Spec.KubeProxy() == "" {
				return fmt.Errorf("%s runs no kube-proxy: nodes of a lab started with --kube-proxy do", args[0])
			}
			file := node.KubeProxyOff(m.Node.Dir)
			switch args[1] {
			case "off":
				return os.WriteFile(file, nil, 0o644)
			case "on":
				if err := os.Remove(file); err != nil && !errors.Is(err, os.ErrNotExist) {
					return err
				}
				return nil
			}
			return fmt.Errorf("%q: want on or off", args[1])
		},
	}
}

func shellCommand(p places, name *string) *cobra.Command {
	return &cobra.Command{
		Use:   "shell MACHINE [-- COMMAND...]",
		Short: "Run a command, by default a shell, inside a node, the router, outside or the control plane",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			_, state, err := p.running(cmd.Context(), *name)
			if err != nil {
				return err
			}
			machine, err := state.Machine(args[0])
			if err != nil {
				return err
			}
			command := args[1:]
			if len(command) == 0 {
				command = []string{"bash"}
			}
			child := exec.Command(command[0], command[1:]...)
			child.Stdin, child.Stdout, child.Stderr = os.Stdin, os.Stdout, os.Stderr
			child.Env = append(os.Environ(), "PS1="+*name+"/"+machine.Name+" \\w # ")
			return enter(machine, child)
		},
	}
}

// enter runs a command on a machine of the lab. On a node it also joins the node's cgroups, so that the node's socket
// programs see it.
func enter(m wire.Machine, child *exec.Cmd) error {
	if m.Node == nil {
		net, err := namespace.OpenNet(m.Name, m.Net)
		if err != nil {
			return err
		}
		defer net.Close()
		return net.Do(child.Run)
	}
	if !m.Node.Running {
		return fmt.Errorf("%s is off; boot it with: lab node restart %s", m.Name, m.Name)
	}
	if err := m.Node.CGroup.EnterLeaf(); err != nil {
		return err
	}
	return namespace.RunInProcess(m.Node.Pid, child)
}

func kubeconfigCommand(p places, name *string) *cobra.Command {
	return &cobra.Command{
		Use: "kubeconfig", Short: "Print the path of the administrator's kubeconfig", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if _, _, err := p.running(cmd.Context(), *name); err != nil {
				return err
			}
			_, err := fmt.Fprintln(cmd.OutOrStdout(), supervisor.Kubeconfig(p.state(*name)))
			return err
		},
	}
}

func kubectlCommand(p places, name *string) *cobra.Command {
	return &cobra.Command{
		Use: "kubectl [-- ARGUMENTS...]", Short: "Run kubectl as the lab's administrator",
		RunE: func(cmd *cobra.Command, args []string) error {
			_, state, err := p.running(cmd.Context(), *name)
			if err != nil {
				return err
			}
			child := kubectl(p, state, args...)
			child.Stdin, child.Stdout, child.Stderr = os.Stdin, os.Stdout, os.Stderr
			return child.Run()
		},
	}
}

func kubectl(p places, state wire.State, args ...string) *exec.Cmd {
	child := exec.Command(filepath.Join(state.Bin, "kubectl"), args...)
	child.Env = append(os.Environ(), "KUBECONFIG="+supervisor.Kubeconfig(p.state(state.Spec.Name)))
	return child
}

func logsCommand(p places, name *string) *cobra.Command {
	return &cobra.Command{
		Use:   "logs MACHINE COMPONENT",
		Short: "Print a log: node1 kubelet, control-plane kube-apiserver, router web",
		Args:  cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			state := p.state(*name)
			components := supervisor.Components()[args[0]]
			file := func(component string) string { return filepath.Join(controlplane.Logs(state), component+".log") }
			if components == nil {
				dir := supervisor.NodeDir(state, args[0])
				if _, err := os.Stat(dir); err != nil {
					known := slices.Sorted(maps.Keys(supervisor.Components()))
					return fmt.Errorf("no machine %q with logs; there are %s and the nodes", args[0], strings.Join(known, ", "))
				}
				components = []string{"containerd", "import", "init", "kubelet", "kube-proxy"}
				file = func(component string) string { return node.LogFile(dir, component) }
			}
			if len(args) == 1 || !slices.Contains(components, args[1]) {
				return fmt.Errorf("%s has the logs %s", args[0], strings.Join(components, ", "))
			}
			in, err := os.Open(file(args[1]))
			if err != nil {
				return err
			}
			defer in.Close()
			_, err = io.Copy(cmd.OutOrStdout(), in)
			return err
		},
	}
}

func imageCommand(p places) *cobra.Command {
	return &cobra.Command{
		Use: "image", Short: "Assemble the images and print their sizes", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			set, err := buildAll(cmd.Context(), p, screen.New(os.Stderr))
			if err != nil {
				return err
			}
			all, err := specs(p, set, true)
			if err != nil {
				return err
			}
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
			fmt.Fprintln(w, "IMAGE\tMB\tMB COMPRESSED\tARCHIVE")
			for _, s := range all {
				file, err := image.Archive(imageDir(p), s, runtime.GOARCH)
				if err != nil {
					return err
				}
				path := filepath.Join(imageDir(p), file)
				plain, packed, err := sizes(path)
				if err != nil {
					return err
				}
				fmt.Fprintf(w, "%s\t%.1f\t%.1f\t%s\n", s.Name, plain, packed, path)
			}
			return w.Flush()
		},
	}
}

// sizes are those of a file in MB, as it is and as a registry would send it.
func sizes(path string) (plain, packed float64, err error) {
	in, err := os.Open(path)
	if err != nil {
		return 0, 0, err
	}
	defer in.Close()
	var count counter
	zip := gzip.NewWriter(&count)
	n, err := io.Copy(zip, in)
	if err == nil {
		err = zip.Close()
	}
	return float64(n) / 1e6, float64(count) / 1e6, err
}

type counter int64

func (c *counter) Write(p []byte) (int, error) {
	*c += counter(len(p))
	return len(p), nil
}

func buildCommand(p places) *cobra.Command {
	return &cobra.Command{
		Use: "build", Short: "Only build what a lab and the tests in it need, into the cache", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s := screen.New(os.Stdout)
			if err := installPackages(cmd.Context(), s); err != nil {
				return err
			}
			set, err := buildAll(cmd.Context(), p, s)
			if err != nil {
				return err
			}
			for _, client := range build.Clients() {
				if _, err := p.program(cmd.Context(), client); err != nil {
					return err
				}
			}
			s.Note("programs are in %s", set)
			return nil
		},
	}
}
