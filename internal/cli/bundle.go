package cli

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"os"
	"path"
	"strings"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
)

// bundleVerbs are asked of every node that can be reached; each answer is a file of the archive.
var bundleVerbs = []string{
	"version", "status --verbose", "get nodes", "get endpoints", "get remotes", "get routes", "get devices", "get pods", "get namespaces",
	"get identities", "get programs", "service list", "policy list", "policy rules", "check", "ipam check", "observe --last 2000", "bpf list",
	"bpf dump strait_counter", "bpf dump strait_endpoint", "bpf dump strait_ipcache", "bpf dump strait_device", "bpf dump strait_node",
	"bpf dump strait_ct --limit 2000", "bpf dump strait_nat --limit 2000", "bpf dump strait_service --limit 5000",
	"bpf dump strait_backend --limit 5000", "bpf dump strait_identity --limit 5000", "bpf dump strait_policy --limit 5000",
}

// bundleLogLines is how much of an agent's log goes into the archive.
const bundleLogLines = 5000

func (a *app) bundleCmd() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "support-bundle",
		Short: "Put everything that helps to find a fault into one archive",
		Long: `Asks every node what it knows (status, tables, maps of the kernel, checks) and puts the answers, with the logs of the agents and of the operator
when a cluster is asked, into a .tar.gz. What could not be had is in the archive as a file that says why. It holds names and addresses of pods, services and policies,
no Secrets and nothing of what packets carry.`,
		Example: "  strait support-bundle\n  strait support-bundle --file /tmp/case-1234.tar.gz --node n2",
		Args:    exactArgs(),
		RunE:    func(cmd *cobra.Command, _ []string) error { return a.bundle(cmd.Context(), file) },
	}
	cmd.Flags().StringVar(&file, "file", "", "where it is written (default strait-support-DATE.tar.gz; - for standard output)")
	return cmd
}

func (a *app) bundle(ctx context.Context, name string) error {
	now := a.Now()
	root := "strait-support-" + now.UTC().Format("20060102-150405")
	if name == "" {
		name = root + ".tar.gz"
	}
	out := a.Out
	if name != "-" {
		f, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		if err != nil {
			return usage("--file: %w", err)
		}
		defer func() { _ = f.Close() }() // closed with its error below
		out = f
	}
	archive := newArchive(out, root, now)
	failed := 0
	for _, verb := range bundleVerbs {
		_, _ = fmt.Fprintf(a.Err, "strait %s\n", verb) // progress, nobody left to tell
		text, errs, code := a.again(ctx, strings.Fields(verb))
		if code != ExitOK && code != ExitProblems {
			failed++
		}
		archive.add(bundleFile(verb)+".json", text)
		archive.add(bundleFile(verb)+".err", errs)
	}
	failed += a.bundleLogs(ctx, archive)
	if err := archive.close(); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	if f, ok := out.(*os.File); ok && name != "-" {
		if err := f.Close(); err != nil {
			return fmt.Errorf("write %s: %w", name, err)
		}
		_, _ = fmt.Fprintf(a.Err, "wrote %s, %d files\n", name, archive.files)
	}
	if failed > 0 {
		return fmt.Errorf("not all could be had (%d of the questions failed): the .err files in the archive say why", failed)
	}
	return ctx.Err()
}

func bundleFile(verb string) string {
	return strings.NewReplacer(" --limit ", "-first-", " --", "-", " ", "-").Replace(verb)
}

// again runs another verb as if it had been typed with the same flags, for programs.
func (a *app) again(ctx context.Context, args []string) (out, errs []byte, code int) {
	var stdout, stderr bytes.Buffer
	env := a.Env
	env.Out, env.Err, env.Width, env.Color = &stdout, &stderr, 0, false
	for flag, value := range map[string]string{
		"socket": a.socket, "node": a.node, "kubeconfig": a.kubeconfig, "context": a.context, "agent-namespace": a.namespace, "timeout": a.timeout.String(),
	} {
		if value != "" {
			args = append(args, "--"+flag+"="+value)
		}
	}
	code = Run(ctx, env, append(args, "-o", "json"))
	return stdout.Bytes(), stderr.Bytes(), code
}

// bundleLogs adds the logs of Strait's pods when a cluster is asked, and returns how many could not be had.
func (a *app) bundleLogs(ctx context.Context, to *archive) (failed int) {
	if client, err := a.local(ctx); err != nil || client != nil {
		return 0 // on a node: its journal, or the cluster, has the log
	}
	cluster, err := a.cluster()
	if err != nil {
		to.add("logs.err", []byte(err.Error()+"\n"))
		return 1
	}
	listing, cancel := context.WithTimeout(ctx, a.timeout)
	defer cancel()
	pods, err := cluster.pods(listing, "app.kubernetes.io/name in (strait-agent,strait-operator,strait-relay)")
	if err != nil {
		to.add("logs.err", []byte(err.Error()+"\n"))
		return 1
	}
	for i := range pods {
		for _, c := range pods[i].Spec.Containers {
			file := path.Join("logs", pods[i].Spec.NodeName+"-"+pods[i].Name+"-"+c.Name)
			text, err := cluster.log(ctx, &pods[i], c.Name, a.timeout)
			if err != nil {
				failed++
				to.add(file+".err", []byte(err.Error()+"\n"))
			}
			to.add(file+".log", text)
		}
	}
	return failed
}

// log returns the end of a container's log.
func (c *cluster) log(ctx context.Context, pod *corev1.Pod, container string, timeout time.Duration) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	lines := int64(bundleLogLines)
	return c.core.Get().Resource("pods").Namespace(pod.Namespace).Name(pod.Name).SubResource("log").
		VersionedParams(&corev1.PodLogOptions{Container: container, TailLines: &lines}, c.parameter).DoRaw(ctx)
}

// archive writes files into a .tar.gz; its first error stays.
type archive struct {
	zip   *gzip.Writer
	tar   *tar.Writer
	root  string
	at    time.Time
	files int
	err   error
}

func newArchive(to io.Writer, root string, at time.Time) *archive {
	zip := gzip.NewWriter(to)
	return &archive{zip: zip, tar: tar.NewWriter(zip), root: root, at: at}
}

// add writes a file; an empty one is left out.
func (x *archive) add(name string, content []byte) {
	if len(content) == 0 || x.err != nil {
		return
	}
	x.files++
	x.err = x.tar.WriteHeader(&tar.Header{Name: path.Join(x.root, name), Mode: 0o600, Size: int64(len(content)), ModTime: x.at})
	if x.err == nil {
		_, x.err = x.tar.Write(content)
	}
}

func (x *archive) close() error {
	if x.err == nil {
		x.err = x.tar.Close()
	}
	if x.err == nil {
		x.err = x.zip.Close()
	}
	return x.err
}
