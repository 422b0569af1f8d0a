package cli_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/gorilla/websocket"
	"golang.org/x/tools/txtar"

	"github.com/strait-net/strait/internal/cli"
	"github.com/strait-net/strait/internal/flow"
	"github.com/strait-net/strait/internal/identity"
	"github.com/strait-net/strait/internal/localapi"
	"github.com/strait-net/strait/internal/observer"
	"github.com/strait-net/strait/internal/policy"
	"github.com/strait-net/strait/internal/state"
	"github.com/strait-net/strait/internal/verdict"
)

// tell serves flows beside the socket of node n<i>'s agent.
func tell(t *testing.T, socket string, i int) *flow.Store {
	t.Helper()
	store := flow.NewStore(64)
	store.Append(now, exampleFlows(i))
	node := fmt.Sprintf("n%d", i)
	server := observer.New(observer.Config{
		Node: node, Cluster: "default", Version: "v0.1.0", Began: ago(time.Hour), Flows: store, State: state.New(),
		Explain: func(f *flow.Flow, way policy.Way) (policy.Explanation, bool) {
			return policy.Explanation{
				Verdict:  policy.Verdict{Rule: *f.IngressRule},
				Policies: []policy.Selecting{{Ref: f.IngressRule.Ref, Isolates: true}, {Ref: policy.Ref{Kind: policy.CiliumNetworkPolicy, Namespace: "shop", Name: "all"}, Isolates: true}},
				Misses: []policy.Miss{{RuleRef: policy.RuleRef{Ref: f.IngressRule.Ref, Way: way, Path: "spec.ingress[0]"},
					Why: []string{"peer label app=curl, want app=web"}}},
			}, true
		},
	})
	l, err := localapi.Listen(filepath.Join(filepath.Dir(socket), observer.SocketName))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- server.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("observer ends with %v", err)
		}
	})
	return store
}

// exampleFlows are what node n<i> has seen; times of nodes lie between each other.
func exampleFlows(i int) []flow.Flow {
	at := func(seconds int) time.Time {
		return ago(time.Minute).Add(time.Duration(seconds*10+i) * 100 * time.Millisecond)
	}
	address := func(text string) netip.AddrPort {
		return netip.MustParseAddrPort(strings.ReplaceAll(text, "N", fmt.Sprint(i)))
	}
	pod := func(namespace, name, app string) flow.End {
		return flow.End{Kind: policy.PodPeer, Identity: identity.ID(1000 + len(name)), Local: true, Node: fmt.Sprintf("n%d", i), Pod: &state.Pod{
			Namespace: namespace, Name: name, Workload: "Deployment/" + app, Labels: policy.NewLabels(map[string]string{"app": app})}}
	}
	web, db, curl := pod("shop", fmt.Sprintf("web-%d", i), "web"), pod("shop", fmt.Sprintf("db-%d", i), "db"), pod("default", "curl", "curl")
	curl.Local = false
	ref := func(kind policy.Kind, name, path string, way policy.Way) *policy.RuleRef {
		return &policy.RuleRef{Ref: policy.Ref{Kind: kind, Namespace: "shop", Name: name}, Way: way, Path: path}
	}
	opened := flow.Flow{
		Event: flow.Event{Time: at(0), Kind: flow.New, Hook: flow.FromPod, Protocol: policy.TCP, TCPFlags: 2, Egress: 1, Ingress: 2,
			Source: address("10.244.N.5:40000"), Target: address("10.244.N.6:5432"), Front: address("10.96.0.7:80")},
		From: web, To: db, Service: "shop/database", ServicePort: "sql",
		EgressRule: &policy.RuleRef{Ref: policy.Ref{Kind: policy.Builtin, Name: policy.DefaultAllow}}, IngressRule: ref(policy.NetworkPolicy, "db", "spec.ingress[0]", policy.Ingress),
	}
	ended := opened
	ended.Time, ended.Kind, ended.TCPFlags, ended.Egress, ended.Ingress, ended.EgressRule, ended.IngressRule = at(3), flow.Ended, 0x11, 0, 0, nil, nil
	ended.Sent, ended.Answered = flow.Traffic{Packets: 12, Bytes: 3210}, flow.Traffic{Packets: 10, Bytes: 88_123_456}
	denied := flow.Flow{
		Event: flow.Event{Time: at(1), Kind: flow.Denied, Hook: flow.FromVX, Reason: verdict.PolicyIngress, Protocol: policy.TCP, TCPFlags: 2, Ingress: 3,
			Source: address("10.244.9.9:50000"), Target: address("10.244.N.6:5432"), Sent: flow.Traffic{Packets: 3, Bytes: 180}},
		From: curl, To: db, IngressRule: ref(policy.NetworkPolicy, "db", "", policy.Ingress),
	}
	dropped := flow.Flow{
		Event: flow.Event{Time: at(2), Kind: flow.Dropped, Hook: flow.FromPod, Reason: verdict.NoMasqueradePort, Protocol: policy.UDP,
			Source: address("[fd00::5]:999"), Target: address("[2001:db8::1]:53"), Sent: flow.Traffic{Packets: 1, Bytes: 60}},
		From: web, To: flow.End{Kind: policy.WorldPeer, Identity: identity.World},
	}
	pinged := flow.Flow{
		Event: flow.Event{Time: at(4), Kind: flow.New, Hook: flow.ToPod, Protocol: policy.ICMP, ICMP: 8 << 8, Source: address("10.0.0.N:0"), Target: address("10.244.N.5:0")},
		From:  flow.End{Kind: policy.HostPeer, Identity: identity.Host, Local: true}, To: web,
	}
	audited := opened
	audited.Time, audited.Audited, audited.AuditedRule = at(5), 9, ref(policy.CiliumNetworkPolicy, "strict", "", policy.Ingress)
	lost := flow.Flow{Event: flow.Event{Time: at(6), Kind: flow.Lost, LostKind: flow.New, LostRecords: 17}}
	return []flow.Flow{opened, denied, dropped, ended, pinged, audited, lost}
}

// TestObserve runs the commands of testdata/observe/*.txtar as TestGolden does, with flows to show.
func TestObserve(t *testing.T) {
	cluster := threeNodes(t)
	cluster.nodes = append(cluster.nodes, "n4")
	for i := 1; i <= 3; i++ {
		tell(t, cluster.sockets[fmt.Sprintf("strait-agent-n%d", i)], i)
	}
	words := map[string]string{
		"$n1": cluster.sockets["strait-agent-n1"], "$cluster": cluster.kubeconfig(t), "$bare": agent(t, localapi.Provider{}), "$none": filepath.Join(t.TempDir(), "none"),
	}
	words["$barehubble"] = filepath.Join(filepath.Dir(words["$bare"]), observer.SocketName)
	files, err := filepath.Glob("testdata/observe/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no golden files: %v", err)
	}
	for _, file := range files {
		golden, err := txtar.ParseFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for i, section := range golden.Files {
			got := runSection(t, section.Name, words)
			if *update {
				golden.Files[i].Data = []byte(got)
			} else if diff := cmp.Diff(string(section.Data), got); diff != "" {
				t.Errorf("%s: %s (-want +got):\n%s", file, section.Name, diff)
			}
		}
		if *update {
			if err := os.WriteFile(file, txtar.Format(golden), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// channel sends what is written as messages of an exec.
type channel struct {
	conn   *websocket.Conn
	number byte
	gone   context.CancelFunc
}

func (c channel) Write(p []byte) (int, error) {
	if err := c.conn.WriteMessage(websocket.BinaryMessage, append([]byte{c.number}, p...)); err != nil {
		c.gone()
		return 0, err
	}
	return len(p), nil
}

// follow runs a command that goes on until the client has gone, or until its node is stopped.
func follow(conn *websocket.Conn, stopped <-chan struct{}, args []string) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		for {
			if _, _, err := conn.ReadMessage(); err != nil {
				cancel()
				return
			}
		}
	}()
	go func() {
		select {
		case <-stopped:
			cancel()
		case <-ctx.Done():
		}
	}()
	cli.Run(ctx, cli.Env{Version: "v0.1.0", Out: channel{conn, 1, cancel}, Err: channel{conn, 2, cancel}, Getenv: func(string) string { return "" }, Now: time.Now}, args)
}

// TestFollowCluster follows three nodes: what they tell comes in order of time, and one that goes away is named while the others go on, and asked
// again.
func TestFollowCluster(t *testing.T) {
	cluster := threeNodes(t)
	cluster.stopped = map[string]chan struct{}{"strait-agent-n3": make(chan struct{})} // ends one command each
	var stores []*flow.Store
	for i := 1; i <= 3; i++ {
		stores = append(stores, tell(t, cluster.sockets[fmt.Sprintf("strait-agent-n%d", i)], i))
	}
	config := cluster.kubeconfig(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var out, errs buffer
	code := make(chan int, 1)
	go func() {
		code <- cli.Run(ctx, cli.Env{Version: "v0.1.0", Out: &out, Err: &errs, Getenv: func(string) string { return "" }, Now: time.Now},
			[]string{"observe", "-f", "--last", "1", "--verdict", "dropped", "--kubeconfig", config})
	}()
	wait := func(what string, is func() bool) {
		t.Helper()
		for deadline := time.Now().Add(20 * time.Second); !is(); time.Sleep(5 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%s: %s%s", what, out.String(), errs.String())
			}
		}
	}
	lines := func() int { return strings.Count(out.String(), "\n") }
	wait("the last of all nodes, and what was lost after it", func() bool {
		return strings.Count(out.String(), "DROPPED") == 1 && strings.Count(out.String(), "LOST") == 3
	})
	begin := lines()
	base := time.Now()
	for n := range 30 { // told out of order by three nodes
		f := exampleFlows(n%3 + 1)[1]
		f.Time = base.Add(time.Duration(n) * time.Millisecond)
		f.Source = netip.AddrPortFrom(f.Source.Addr(), uint16(60000+n))
		stores[n%3].Append(time.Now(), []flow.Flow{f})
	}
	wait("30 denials", func() bool { return lines() == begin+30 })
	var ports []string
	for line := range strings.Lines(strings.SplitAfterN(out.String(), "\n", begin+1)[begin]) {
		_, rest, _ := strings.Cut(line, "default/curl:")
		ports = append(ports, rest[:5])
	}
	if !slices.IsSorted(ports) || len(ports) != 30 {
		t.Errorf("not in order of time: %v", ports)
	}
	cluster.stopped["strait-agent-n3"] <- struct{}{}
	wait("a node that ended", func() bool { return strings.Contains(errs.String(), "node n3 does not answer: ") })
	before := lines()
	f := exampleFlows(1)[1]
	f.Time = time.Now()
	stores[0].Append(time.Now(), []flow.Flow{f})
	wait("the others", func() bool { return lines() == before+1 })
	f = exampleFlows(3)[1]
	f.Time = time.Now()
	stores[2].Append(time.Now(), []flow.Flow{f})
	wait("a node that is back", func() bool { return strings.Contains(errs.String(), "node n3 answers now\n") })
	wait("what it saw meanwhile", func() bool { return lines() == before+2 })
	f.Time = time.Now()
	stores[2].Append(time.Now(), []flow.Flow{f})
	wait("what it sees now, and nothing twice", func() bool { return lines() == before+3 })
	if n := strings.Count(errs.String(), "\n"); n != 2 {
		t.Errorf("stderr: %s", errs.String())
	}
	cancel()
	if c := <-code; c != cli.ExitProblems {
		t.Errorf("exit code %d, want %d", c, cli.ExitProblems)
	}
}
