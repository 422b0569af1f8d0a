package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/strait-net/strait/internal/localapi"
)

// question is what a verb wants to know: asked of the agent on this node, or by running the same verb on other nodes.
type question[T any] struct {
	args  []string // of strait on the other node; -o json is added
	local func(context.Context, *localapi.Client) (T, error)
	// kernel answers on this node when no agent runs there; nil when only the agent knows.
	kernel func() (T, error)
}

// answer of one node.
type answer[T any] struct {
	Node  string
	Value T
	Err   error
}

// answers of all nodes asked, those that failed first, then by name.
type answers[T any] struct {
	nodes []answer[T]
	// one is set when a single node was asked: then its name says nothing new.
	one bool
}

// parallel bounds the nodes asked at the same time.
const parallel = 32

// ask asks every node that the flags and the surroundings lead to. The error is an exitError of ExitUnreachable when no
// node answered and of ExitUsage when there is no such node.
func ask[T any](ctx context.Context, a *app, q question[T]) (answers[T], error) {
	client, err := a.local(ctx)
	if err != nil {
		return answers[T]{}, err
	}
	if client != nil {
		ctx, cancel := context.WithTimeout(ctx, a.timeout)
		defer cancel()
		v, err := q.local(ctx, client)
		if err != nil && q.kernel != nil && absent(err) && pinned() {
			_, _ = fmt.Fprintln(a.Err, a.localError(err).Error()+"; this is read from the kernel") // nobody left to tell
			v, err = q.kernel()
		}
		if err != nil {
			return answers[T]{}, a.localError(err)
		}
		return answers[T]{[]answer[T]{{Value: v}}, true}, nil
	}
	cluster, err := a.cluster()
	if err != nil {
		return answers[T]{}, err
	}
	return askCluster(ctx, a, cluster, q)
}

func askCluster[T any](ctx context.Context, a *app, cluster *cluster, q question[T]) (answers[T], error) {
	agents, err := cluster.agents(ctx, a.timeout)
	if err != nil {
		return answers[T]{}, unreachable(err)
	}
	if a.node != "" {
		i := slices.IndexFunc(agents, func(t target) bool { return t.node == a.node })
		if i < 0 {
			return answers[T]{}, unknown("node", a.node, "", names(agents))
		}
		agents = agents[i : i+1]
	}
	all := answers[T]{nodes: make([]answer[T], len(agents)), one: a.node != ""}
	var group errgroup.Group
	group.SetLimit(parallel)
	for i, t := range agents {
		group.Go(func() error {
			all.nodes[i] = askNode(ctx, a, cluster, t, q)
			return nil
		})
	}
	_ = group.Wait() // errors are part of the answers
	if !slices.ContainsFunc(all.nodes, func(n answer[T]) bool { return n.Err == nil }) {
		return all, allFailed(all.nodes)
	}
	slices.SortStableFunc(all.nodes, func(x, y answer[T]) int {
		if (x.Err == nil) != (y.Err == nil) {
			if x.Err != nil {
				return -1
			}
			return 1
		}
		return strings.Compare(x.Node, y.Node)
	})
	return all, nil
}

// allFailed is the error when there is no answer at all: a refusal of the command line by a node is told as that.
func allFailed[T any](nodes []answer[T]) error {
	var lines []string
	for _, n := range nodes {
		var exit *exitError
		if errors.As(n.Err, &exit) {
			return exit
		}
		lines = append(lines, "  "+n.Node+": "+n.Err.Error())
	}
	return unreachable(errors.New("no agent answered:\n" + strings.Join(lines, "\n")))
}

// askNode runs the verb in the agent's pod. The verb's own exit code does not matter when there is an answer.
func askNode[T any](ctx context.Context, a *app, cluster *cluster, t target, q question[T]) answer[T] {
	out := answer[T]{Node: t.node, Err: t.err}
	if t.err != nil {
		return out
	}
	ctx, cancel := context.WithTimeout(ctx, a.timeout)
	defer cancel()
	args := append(append([]string{"strait"}, q.args...), "-o", "json")
	stdout, stderr, err := cluster.exec(ctx, t, args)
	switch {
	case len(stdout) > 0:
		if bad := json.Unmarshal(stdout, &out.Value); bad != nil {
			out.Err = fmt.Errorf("answer of %s is not what this version understands: %w", t.pod, bad)
		}
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		out.Err = fmt.Errorf("no answer from %s in %v", t.pod, a.timeout)
	default:
		if out.Err = t.failure(stderr, err); out.Err == nil {
			out.Err = fmt.Errorf("%s answered nothing", t.pod)
		}
	}
	return out
}

func names(agents []target) []string {
	var out []string
	for _, t := range agents {
		out = append(out, t.node)
	}
	slices.Sort(out)
	return out
}

// local returns the client of the agent on this node, or nil when the cluster is to be asked.
func (a *app) local(ctx context.Context) (*localapi.Client, error) {
	if a.kubeconfig != "" || a.context != "" || a.outside {
		return nil, nil
	}
	socket := a.socket
	if socket == "" {
		socket = localapi.DefaultSocket
		if _, err := os.Stat(socket); err != nil && !pinned() {
			return nil, nil
		}
	}
	client := localapi.NewClient(socket)
	if a.node == "" {
		return client, nil
	}
	ctx, cancel := context.WithTimeout(ctx, a.timeout)
	defer cancel()
	s, err := client.Status(ctx)
	if err == nil && s.Node == a.node {
		return client, nil
	}
	if a.socket == "" {
		return nil, nil
	}
	if err != nil {
		return nil, a.localError(err)
	}
	return nil, usage("node %q: the agent of %s is that of node %q", a.node, socket, s.Node)
}

// localError says what to do about an agent that does not answer; what an agent has answered is told as it is.
func (a *app) localError(err error) error {
	socket := a.socketName()
	var exit *exitError
	switch {
	case errors.As(err, &exit):
		return err
	case errors.Is(err, localapi.ErrNotFound), errors.Is(err, localapi.ErrBadQuestion):
		return usage("%w", err)
	case absent(err):
		text := "no agent runs on this node: nobody listens on " + socket
		if f, err := localapi.LastFailure(filepath.Dir(socket)); err == nil {
			text += fmt.Sprintf("; the last one ended %s ago: %s", a.age(f.At), f.Error)
		}
		return unreachable(errors.New(text))
	case errors.Is(err, fs.ErrPermission):
		return unreachable(fmt.Errorf("%s may be opened by root only: try sudo", socket))
	case errors.Is(err, context.DeadlineExceeded):
		return unreachable(fmt.Errorf("the agent of this node did not answer in %v", a.timeout))
	case errors.As(err, new(*net.OpError)):
		return unreachable(err)
	}
	return err // the agent's own words
}

// absent reports whether nobody listens on the socket.
func absent(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED)
}

func (a *app) socketName() string {
	if a.socket == "" {
		return localapi.DefaultSocket
	}
	return a.socket
}

// nodeResult is how the answer of one of several nodes is printed for programs.
type nodeResult struct {
	Node   string `json:"node"`
	Result any    `json:"result,omitempty"`
	Error  string `json:"error,omitempty"`
}

// printAnswers writes the answer of one node as it is, those of several as {"nodes": [...]}.
func printAnswers[T any](a *app, all answers[T]) error {
	if all.one {
		return a.print(all.nodes[0].Value)
	}
	out := struct {
		Nodes []nodeResult `json:"nodes"`
	}{[]nodeResult{}}
	for _, n := range all.nodes {
		if n.Err != nil {
			out.Nodes = append(out.Nodes, nodeResult{Node: n.Node, Error: n.Err.Error()})
			continue
		}
		out.Nodes = append(out.Nodes, nodeResult{Node: n.Node, Result: n.Value})
	}
	return a.print(out)
}

// deliver prints what the nodes answered, as it is for programs, else the text that lay makes of it. Nodes that did not
// answer are named on stderr and make the exit code ExitProblems.
func deliver[T any](a *app, all answers[T], lay func() string) error {
	failed := false
	for _, n := range all.nodes {
		if n.Err != nil {
			failed = true
			_, _ = fmt.Fprintf(a.Err, "node %s does not answer: %v\n", n.Node, n.Err) // nobody left to tell
		}
	}
	var err error
	if a.output.forPeople() {
		err = a.write(lay())
	} else {
		err = printAnswers(a, all)
	}
	if err == nil && failed {
		return &exitError{ExitProblems, nil}
	}
	return err
}

// age prints the time since t with its two largest units.
func (a *app) age(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	d := a.Now().Sub(t)
	switch {
	case d < 0:
		return "0s"
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm%ds", int(d.Minutes()), int(d.Seconds())%60)
	case d < 24*time.Hour:
		return fmt.Sprintf("%dh%dm", int(d.Hours()), int(d.Minutes())%60)
	}
	return fmt.Sprintf("%dd%dh", int(d.Hours())/24, int(d.Hours())%24)
}
