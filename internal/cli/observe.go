package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	flowpb "github.com/cilium/cilium/api/v1/flow"
	observerpb "github.com/cilium/cilium/api/v1/observer"
	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/strait-net/strait/internal/observer"
	"github.com/strait-net/strait/internal/observer/wire"
)

// lastFlows is how many are shown when nothing else is asked for.
const lastFlows = 20

// observation is what is to be shown.
type observation struct {
	app          *app
	output       flowFormat
	last, first  uint64
	all, follow  bool
	since, until string
	numeric      bool
	beats        bool // for the command that asks from outside
	server       string
	tlsDir       string
	filters      flowFilters
}

func (a *app) observeCmd() *cobra.Command {
	o := &observation{app: a, output: flowCompact}
	cmd := &cobra.Command{
		Use:   "observe",
		Short: "Show what happens to connections, and which rule decided",
		Long: `Shows connections as they begin and end, and what is denied or dropped, with the names of who is at both ends and the rule that decided. On a
node it asks the agent of the node, anywhere else those of all nodes, in order of time.

Without flags it shows the last 20 flows; --last, --first, --all, --since and --until choose others, and --follow waits for more. Filters of
different kinds have to match together, several values of one kind are alternatives, and --not turns the next filter around: what it matches is
not shown. They are those of Hubble's client. A service is found by its own address and port as well as by those of its backends.

Each denial says which rule denies, or which policies have no rule that allows it and which of their rules almost did. What stood for several
packets says for how many: an agent is told once per second of what is repeated.

While flows are followed a node that stops answering is named, asked again, and then for what has happened meanwhile.

Exit codes: 0 shown, 1 a node did not answer, 2 the command line is wrong, 3 no agent could be reached.`,
		Example: `  strait observe -f                                everything, as it happens
  strait observe -f --verdict dropped              what is lost, and why
  strait observe --pod shop/web --since 5m
  strait observe --from-namespace shop --to-port 5432 -o table
  strait observe -n shop --not --to-port 53 -f
  strait observe --to-service shop/db --all -o jsonpb | jq .flow.verdict
  kubectl -n kube-system port-forward deploy/strait-relay 4245 & strait observe -f --server 127.0.0.1:4245`,
		Args: exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error { return o.run(cmd.Context()) },
	}
	f := cmd.Flags()
	f.VarP(&o.output, "output", "o", "how to print: "+strings.Join(flowFormats(), ", "))
	f.Uint64Var(&o.last, "last", 0, fmt.Sprintf("the last N flows (default %d, unless others are chosen)", lastFlows))
	f.Uint64Var(&o.first, "first", 0, "the first N flows that are remembered")
	f.BoolVar(&o.all, "all", false, "all flows that are remembered")
	f.BoolVarP(&o.follow, "follow", "f", false, "wait for more")
	f.StringVar(&o.since, "since", "", "flows since then: 5m (ago), or a time as 2006-01-02T15:04:05Z")
	f.StringVar(&o.until, "until", "", "flows until then")
	f.BoolVar(&o.numeric, "numeric", false, "addresses in place of names")
	f.StringVar(&o.server, "server", "", "ask the relay at HOST:PORT for those of all nodes, in place of each agent by exec")
	f.StringVar(&o.tlsDir, "tls-dir", "", "directory with ca.crt, tls.crt and tls.key, for --server by TLS")
	f.BoolVar(&o.beats, "beats", false, "")
	_ = f.MarkHidden("beats") // it is there
	o.filters.addTo(a, cmd)
	a.complete(cmd, "output", fixed(flowFormats()...))
	return cmd
}

func (o *observation) run(ctx context.Context) error {
	q, err := o.request()
	if err != nil {
		return err
	}
	switch {
	case o.server != "":
		return o.relay(ctx, q)
	case o.tlsDir != "":
		return usage("--tls-dir is for --server: others are asked as kubectl asks them, or on the node")
	}
	client, err := o.app.local(ctx)
	if err != nil {
		return err
	}
	if client != nil {
		return o.local(ctx, q)
	}
	cluster, err := o.app.cluster()
	if err != nil {
		return err
	}
	return o.cluster(ctx, cluster, q)
}

// request is what is asked of each node.
func (o *observation) request() (*observerpb.GetFlowsRequest, error) {
	chosen := 0
	for _, is := range []bool{o.last > 0, o.first > 0, o.all} {
		if is {
			chosen++
		}
	}
	switch {
	case chosen > 1:
		return nil, usage("--last, --first and --all: want one of them")
	case o.first > 0 && o.follow:
		return nil, usage("--first and --follow: the first flows have been, there is nothing to wait for; want one of them")
	case o.follow && o.output.needsAll():
		return nil, usage("-o %s and --follow: a table is laid out when its last line is known; want -o compact", o.output)
	}
	q := &observerpb.GetFlowsRequest{Number: max(o.last, o.first), First: o.first > 0, Follow: o.follow}
	var err error
	if q.Since, err = o.moment("since", o.since); err != nil {
		return nil, err
	}
	if q.Until, err = o.moment("until", o.until); err != nil {
		return nil, err
	}
	if q.Whitelist, q.Blacklist, err = o.filters.lists(); err != nil {
		return nil, err
	}
	switch {
	case o.all:
		q.Number = math.MaxUint64
		if o.follow {
			q.Since = timestamppb.New(time.Unix(0, 0))
		}
	case q.Number == 0 && !o.follow && q.Since == nil && q.Until == nil:
		q.Number = lastFlows
	}
	return q, nil
}

// moment reads a time, or how long ago it was.
func (o *observation) moment(flag, text string) (*timestamppb.Timestamp, error) {
	if text == "" {
		return nil, nil
	}
	if d, err := time.ParseDuration(text); err == nil && d >= 0 {
		return timestamppb.New(o.app.Now().Add(-d)), nil
	}
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04:05", "2006-01-02 15:04:05", "2006-01-02T15:04", "2006-01-02 15:04", time.DateOnly} {
		if t, err := time.ParseInLocation(layout, text, o.app.Now().Location()); err == nil {
			return timestamppb.New(t), nil
		}
	}
	return nil, usage("--%s %q: want how long ago, as 90s or 5m, or a time, as 2006-01-02T15:04:05Z", flag, text)
}

// local asks the observer of this node.
func (o *observation) local(ctx context.Context, q *observerpb.GetFlowsRequest) error {
	socket := filepath.Join(filepath.Dir(o.app.socketName()), observer.SocketName)
	if o.beats {
		ctx = metadata.AppendToOutgoingContext(ctx, wire.Beat, wire.BeatEvery.String())
	}
	refusal := func(err error) error { return o.refusal(socket, err) }
	return o.read(ctx, q, o.printer(false), refusal, "unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
}

// relay asks all nodes through the relay.
func (o *observation) relay(ctx context.Context, q *observerpb.GetFlowsRequest) error {
	host, _, err := net.SplitHostPort(o.server)
	if err != nil {
		return usage("--server %q: want HOST:PORT: %w", o.server, err)
	}
	if o.app.node != "" {
		return usage("--node and --server: the relay asks all nodes; want --node-name %s", o.app.node)
	}
	way := grpc.WithTransportCredentials(insecure.NewCredentials())
	switch address, err := netip.ParseAddr(host); {
	case o.tlsDir != "":
		way = wire.NewCertificates(o.tlsDir).Client(wire.RelayName)
	case host != "localhost" && (err != nil || !address.IsLoopback()):
		return usage("--server %s: without --tls-dir it has to be an address of this machine, such as that of kubectl port-forward: others could read along", o.server)
	}
	show := o.printer(true)
	err = o.read(ctx, q, show, func(err error) error {
		switch s := status.Convert(err); s.Code() {
		case codes.InvalidArgument:
			return usage("%s", s.Message())
		case codes.Unavailable:
			return unreachable(fmt.Errorf("the relay at %s does not answer: %s", o.server, wire.Reason(err)))
		default:
			return fmt.Errorf("the relay at %s: %s", o.server, s.Message())
		}
	}, "passthrough:///"+o.server, way, wire.Alive())
	if err == nil && show.failed {
		return &exitError{ExitProblems, nil}
	}
	return err
}

// read shows what an observer says.
func (o *observation) read(ctx context.Context, q *observerpb.GetFlowsRequest, show *flowPrinter, refusal func(error) error, to string, options ...grpc.DialOption) error {
	conn, err := grpc.NewClient(to, options...)
	if err != nil {
		return unreachable(fmt.Errorf("connect to %s: %w", to, err))
	}
	defer func() { _ = conn.Close() }()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := observerpb.NewObserverClient(conn).GetFlows(ctx, q)
	for err == nil {
		var r *observerpb.GetFlowsResponse
		if r, err = stream.Recv(); err != nil {
			break
		}
		if err := show.add(r); err != nil {
			return err
		}
	}
	if errors.Is(err, io.EOF) || status.Code(err) == codes.Canceled {
		return show.finish()
	}
	return errors.Join(show.finish(), refusal(err))
}

// refusal says what to do about an observer that does not answer.
func (o *observation) refusal(socket string, err error) error {
	_, statErr := os.Stat(socket)
	switch s := status.Convert(err); {
	case s.Code() == codes.InvalidArgument:
		return usage("%s", s.Message())
	case errors.Is(statErr, fs.ErrNotExist):
		if _, err := os.Stat(o.app.socketName()); err == nil {
			return unreachable(fmt.Errorf("the agent of this node tells of no flows: no %s; see flows.enabled in its configuration", socket))
		}
		return o.app.localError(fs.ErrNotExist)
	case s.Code() == codes.Unavailable && strings.Contains(s.Message(), "permission denied"):
		return unreachable(fmt.Errorf("%s may be opened by root only: try sudo", socket))
	case s.Code() == codes.Unavailable && strings.Contains(s.Message(), "connection refused"):
		return o.app.localError(fs.ErrNotExist)
	case s.Code() == codes.Unavailable:
		return unreachable(fmt.Errorf("the agent of this node has stopped answering: %s", s.Message()))
	default:
		return errors.New(s.Message())
	}
}

// arguments are those by which a node is asked from outside.
func (o *observation) arguments(q *observerpb.GetFlowsRequest) ([]string, error) {
	args := []string{"observe", "--beats", "-o", string(flowJSONPB)}
	switch {
	case q.Number == math.MaxUint64:
		args = append(args, "--all")
	case q.First:
		args = append(args, "--first", fmt.Sprint(q.Number))
	case q.Number > 0:
		args = append(args, "--last", fmt.Sprint(q.Number))
	}
	if q.Follow {
		args = append(args, "--follow")
	}
	for flag, t := range map[string]*timestamppb.Timestamp{"--since": q.Since, "--until": q.Until} {
		if t != nil {
			args = append(args, flag, t.AsTime().Format(time.RFC3339Nano))
		}
	}
	for _, filters := range []struct {
		list []*flowpb.FlowFilter
		not  []string
	}{{q.Whitelist, nil}, {q.Blacklist, []string{"--not"}}} {
		for _, f := range filters.list {
			text, err := json.Marshal(f)
			if err != nil {
				return nil, fmt.Errorf("print filter: %w", err)
			}
			args = append(slices.Concat(args, filters.not), "--allowlist", string(text))
		}
	}
	return args, nil
}
