package agent_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	flowpb "github.com/cilium/cilium/api/v1/flow"
	observerpb "github.com/cilium/cilium/api/v1/observer"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/strait-net/strait/internal/testkit"
)

// observed asks a node as a person does, until is finds what it wants.
func observed(t *testing.T, n *testkit.Node, what string, is func([]*flowpb.Flow) bool, args ...string) {
	t.Helper()
	var text string
	if !within(10*time.Second, func() bool {
		text = n.CLI(append([]string{"observe", "--all", "-o", "jsonpb"}, args...)...)
		var flows []*flowpb.Flow
		lines := bufio.NewScanner(strings.NewReader(text))
		lines.Buffer(nil, 1<<20)
		for lines.Scan() {
			r := &observerpb.GetFlowsResponse{}
			if err := json.Unmarshal(lines.Bytes(), r); err != nil {
				t.Fatalf("%v in %s", err, lines.Text())
			}
			if r.GetFlow() != nil {
				flows = append(flows, r.GetFlow())
			}
		}
		return is(flows)
	}) {
		t.Errorf("%s: %s of %s says\n%s\nagent: %s", what, strings.Join(args, " "), n.Name, text, n.CLI("observe", "--all"))
	}
}

func extension(f *flowpb.Flow, name string) *structpb.Value {
	s := &structpb.Struct{}
	if f.GetExtensions().UnmarshalTo(s) != nil {
		return nil
	}
	return s.GetFields()[name]
}

// some reports whether there is a flow of which all is true.
func some(is ...func(*flowpb.Flow) bool) func([]*flowpb.Flow) bool {
	return func(flows []*flowpb.Flow) bool {
	next:
		for _, f := range flows {
			for _, i := range is {
				if !i(f) {
					continue next
				}
			}
			return true
		}
		return false
	}
}

// OBS-1, OBS-2, CLI-7: both nodes of a connection tell of it with names and the rule that decided, of its end with what it carried, and of a
// denial why; a client of Hubble's protocol follows.
func TestObserve(t *testing.T) {
	d := newDatabase(t, testkit.Options{})
	d.c.ApplyText("policy", onlyApp)
	for _, when := range []string{"with policy", "once more"} { // the first time some may have passed before it was in force
		holds(t, when, path{d.app.Namespace, d.store, storePort, true}, path{d.other.Namespace, d.store, storePort, false})
	}
	receiver, sender := d.c.Nodes[0], d.c.Nodes[1]
	verdict := func(want flowpb.Verdict) func(*flowpb.Flow) bool {
		return func(f *flowpb.Flow) bool { return f.Verdict == want }
	}
	between := func(from, to string) func(*flowpb.Flow) bool {
		return func(f *flowpb.Flow) bool {
			return f.Source.GetNamespace()+"/"+f.Source.GetPodName() == from && f.Destination.GetNamespace()+"/"+f.Destination.GetPodName() == to
		}
	}
	allowed := func(f *flowpb.Flow) bool {
		by := f.GetIngressAllowedBy()
		return len(by) == 1 && by[0].Name == "store" && by[0].Namespace == "default" && by[0].Kind == "NetworkPolicy" &&
			extension(f, "rule").GetStringValue() == "NetworkPolicy default/store ingress spec.ingress[0]"
	}
	for _, protocol := range []string{"tcp", "udp"} {
		for _, version := range []string{"--ipv4", "--ipv6"} {
			observed(t, receiver, "allowed", some(between("default/app", "default/store"), verdict(flowpb.Verdict_FORWARDED), allowed),
				"--to-pod", "store", "--to-port", "5432", "--traffic-direction", "ingress", "--protocol", protocol, version, "--type", "policy-verdict")
			denied := func(f *flowpb.Flow) bool {
				text := extension(f, "explanation").GetStringValue()
				return f.DropReasonDesc == flowpb.DropReason_POLICY_DENIED && len(f.IngressDeniedBy) == 1 && f.IngressDeniedBy[0].Name == "store" &&
					strings.Contains(text, "no rule of NetworkPolicy default/store allowed it; nearest miss NetworkPolicy default/store spec.ingress[0]: namespace elsewhere, want default") &&
					extension(f, "packets").GetNumberValue() >= 1
			}
			observed(t, receiver, "denied", some(between("elsewhere/other", "default/store"), verdict(flowpb.Verdict_DROPPED), denied),
				"--from-pod", "elsewhere/other", "--verdict", "dropped", "--protocol", protocol, version)
		}
	}
	observed(t, sender, "sender's side", some(between("default/app", "default/store")), "--from-pod", "app", "--to-ip", d.store.IPv4.String(), "--protocol", "tcp")
	ended := func(f *flowpb.Flow) bool {
		return extension(f, "event").GetStringValue() == "ended" && extension(f, "packets").GetNumberValue() >= 3 && extension(f, "answeredBytes").GetNumberValue() > 100
	}
	observed(t, receiver, "ended", some(between("default/app", "default/store"), ended), "--pod", "store", "--type", "trace", "--protocol", "tcp")
	follow(t, receiver, d)
}

// follow is a client of Hubble's protocol.
func follow(t *testing.T, n *testkit.Node, d database) {
	t.Helper()
	conn, err := grpc.NewClient(fmt.Sprintf("unix:///proc/%d/root/run/strait/hubble.sock", n.AgentPID()), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	client := observerpb.NewObserverClient(conn)
	st, err := client.ServerStatus(ctx, &observerpb.ServerStatusRequest{})
	if err != nil || st.SeenFlows == 0 || st.NumFlows == 0 || st.FlowsRate == 0 {
		t.Errorf("status %v, %v", st, err)
	}
	stream, err := client.GetFlows(ctx, &observerpb.GetFlowsRequest{Follow: true, Number: 1, Whitelist: []*flowpb.FlowFilter{
		{SourcePod: []string{"default/near"}, DestinationPort: []string{fmt.Sprint(storePort)}, Protocol: []string{"tcp"}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	var knocking sync.WaitGroup
	defer knocking.Wait()
	defer cancel()
	knocking.Go(func() {
		for ctx.Err() == nil {
			passes(d.near.Namespace, "tcp", d.store.IPv4, storePort)
		}
	})
	for {
		r, err := stream.Recv()
		if err != nil {
			t.Errorf("follow: %v", err)
			return
		}
		if f := r.GetFlow(); f.GetSource().GetPodName() == "near" && f.GetTrafficDirection() == flowpb.TrafficDirection_INGRESS {
			return
		}
	}
}
