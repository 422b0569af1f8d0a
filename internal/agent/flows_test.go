package agent_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	flowpb "github.com/cilium/cilium/api/v1/flow"
	observerpb "github.com/cilium/cilium/api/v1/observer"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/strait-net/strait/internal/testkit"
)

// told is a flow with what Hubble has no field for.
type told struct {
	*flowpb.Flow
	extra map[string]any
}

// toldBy asks a node for the flows that it remembers, as Hubble's client does.
func toldBy(t *testing.T, n *testkit.Node, filter *flowpb.FlowFilter) (out []told) {
	t.Helper()
	// The socket is in the node's mount namespace.
	conn, err := grpc.NewClient(fmt.Sprintf("unix:///proc/%d/root/run/strait/hubble.sock", n.AgentPID()), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	stream, err := observerpb.NewObserverClient(conn).GetFlows(ctx, &observerpb.GetFlowsRequest{Number: 1 << 20, Whitelist: []*flowpb.FlowFilter{filter}})
	if err != nil {
		t.Fatal(err)
	}
	for {
		r, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		if f := r.GetFlow(); f != nil {
			var s structpb.Struct
			if err := f.GetExtensions().UnmarshalTo(&s); err != nil {
				t.Fatalf("extensions of %v: %v", f, err)
			}
			out = append(out, told{f, s.AsMap()})
		}
	}
}

// awaited waits until a node has told what ok looks for.
func awaited(t *testing.T, n *testkit.Node, what string, filter *flowpb.FlowFilter, ok func(told) bool) told {
	t.Helper()
	var seen []told
	for end := time.Now().Add(policyLimit); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		seen = toldBy(t, n, filter)
		for _, f := range seen {
			if ok(f) {
				return f
			}
		}
	}
	t.Errorf("%s does not tell of %s; of %d flows the last are", n.Name, what, len(seen))
	for _, f := range seen[max(0, len(seen)-5):] {
		t.Logf("%v", f.Flow)
	}
	return told{&flowpb.Flow{}, nil}
}

func event(kind string) func(told) bool { return func(f told) bool { return f.extra["event"] == kind } }

// number is a field of the extensions.
func (f told) number(name string) uint64 {
	n, _ := f.extra[name].(float64)
	return uint64(n)
}

func between(from, to *testkit.Pod, protocol string, port int) *flowpb.FlowFilter {
	return &flowpb.FlowFilter{
		SourcePod: []string{from.String()}, DestinationPod: []string{to.String()}, Protocol: []string{protocol}, DestinationPort: []string{strconv.Itoa(port)},
	}
}

// metrics reads counters of a node; the key is name and labels as they are printed.
func metrics(t *testing.T, n *testkit.Node) map[string]uint64 {
	t.Helper()
	out := map[string]uint64{}
	lines := bufio.NewScanner(strings.NewReader(n.Get("/metrics")))
	for lines.Scan() {
		name, value, ok := strings.Cut(lines.Text(), " ")
		if v, err := strconv.ParseFloat(value, 64); ok && err == nil && strings.HasPrefix(name, "strait_") {
			out[name] = uint64(v)
		}
	}
	return out
}

// OBS-1: who talked to whom, allowed or denied by which rule, by which service, with which address, and how much until the end.
func TestFlows(t *testing.T) {
	d := newDatabase(t, testkit.Options{})
	d.c.ApplyText("policy", onlyApp)
	service := shop(d.c, d.store)
	service.TargetPort = storePort
	d.c.Serve(service)
	d.c.Outside.Echo(storePort)
	holds(t, "with policy", path{d.app.Namespace, d.store, storePort, true}, path{d.other.Namespace, d.store, storePort, false})
	one, two := d.c.Nodes[0], d.c.Nodes[1]

	allowed := awaited(t, one, "an allowed connection", between(d.app, d.store, "tcp", storePort), event("new"))
	if got := allowed.GetIngressAllowedBy(); len(got) != 1 || got[0].GetName() != "store" || got[0].GetKind() != "NetworkPolicy" {
		t.Errorf("allowed by %v", got)
	}
	if allowed.GetVerdict() != flowpb.Verdict_FORWARDED || allowed.GetTrafficDirection() != flowpb.TrafficDirection_INGRESS || allowed.extra["rule"] != "NetworkPolicy default/store ingress spec.ingress[0]" {
		t.Errorf("allowed: %v", allowed.Flow)
	}
	sent := awaited(t, two, "the beginning of a connection", between(d.app, d.store, "tcp", storePort), event("new"))
	if sent.GetIngressAllowedBy() != nil || sent.GetNodeName() != two.Name {
		t.Errorf("at the sender: %v", sent.Flow)
	}
	for _, n := range d.c.Nodes {
		end := awaited(t, n, "the end of a connection", between(d.app, d.store, "tcp", storePort), event("ended"))
		if end.number("packets") < 4 || end.number("answeredPackets") < 3 || end.number("bytes") < 4*40 || end.number("bytes") > 20*100 {
			t.Errorf("%s: ended with %v", n.Name, end.extra)
		}
	}

	t.Run("service", func(t *testing.T) {
		visit(t, d.app.Namespace, clusterIPs[0], servicePort, "store", d.app.IPv4, 1)
		f := awaited(t, two, "a connection to a service", between(d.app, d.store, "tcp", storePort), func(f told) bool {
			return f.extra["event"] == "new" && f.GetDestinationService() != nil
		})
		if f.GetDestinationService().GetName() != "shop" || f.extra["frontend"] != testkit.HostPort(clusterIPs[0], servicePort) || f.extra["servicePort"] != "tcp" {
			t.Errorf("a service: %v %v", f.GetDestinationService(), f.extra)
		}
		// The backend's node has not seen the service's address, but knows its own pod for a backend.
		by := &flowpb.FlowFilter{DestinationService: []string{"default/shop"}, SourcePod: []string{d.other.String()}, Verdict: []flowpb.Verdict{flowpb.Verdict_DROPPED}}
		awaited(t, one, "a denial by its service at the backend's node", by, event("denied"))
	})
	t.Run("masquerade", func(t *testing.T) {
		outside := testkit.OutsideAddr(false)
		if !passes(d.app.Namespace, "tcp", outside, storePort) {
			t.Fatal("the outside does not answer")
		}
		f := awaited(t, two, "a masqueraded connection", &flowpb.FlowFilter{SourcePod: []string{d.app.String()}, DestinationIp: []string{outside.String()}}, event("ended"))
		if a, err := netip.ParseAddrPort(fmt.Sprint(f.extra["masquerade"])); err != nil || a.Addr() != two.IPv4 {
			t.Errorf("masqueraded with %v", f.extra["masquerade"])
		}
		if f.GetDestination().GetIdentity() != 2 {
			t.Errorf("the outside is %v", f.GetDestination())
		}
	})
	t.Run("denied, again and again", func(t *testing.T) { deniedAgain(t, d) })
	t.Run("exact", func(t *testing.T) { exactly(t, d) })
}

// deniedAgain sends what policy denies for some seconds: few records stand for all of it.
func deniedAgain(t *testing.T, d database) {
	node, filter := d.c.Nodes[0], between(d.other, d.store, "udp", otherPort)
	const denied = `strait_datapath_packets_total{reason="policy-ingress",verdict="dropped"}`
	time.Sleep(1200 * time.Millisecond) // what was denied before is told
	counted := func() (records int, packets uint64) {
		for _, f := range toldBy(t, node, filter) {
			if f.GetVerdict() == flowpb.Verdict_DROPPED {
				records, packets = records+1, packets+f.number("packets")
			}
		}
		return records, packets
	}
	before := metrics(t, node)
	records, packets := counted()
	got := d.other.Probe(testkit.Probe{Network: "udp", Address: testkit.HostPort(d.store.IPv4, otherPort), For: 2500 * time.Millisecond, Timeout: 5 * time.Millisecond})
	sent := uint64(got.Failed)
	if got.OK > 0 || sent < 20 {
		t.Fatalf("%d passed, %d denied", got.OK, sent)
	}
	var after map[string]uint64
	var more int
	var stood uint64
	if !within(policyLimit, func() bool {
		after = metrics(t, node)
		r, p := counted()
		more, stood = r-records, p-packets
		return stood >= sent
	}) || stood != sent {
		t.Errorf("%d packets were denied, records stand for %d", sent, stood)
	}
	if more < 2 || more > 6 {
		t.Errorf("%d records of a client that tried for two and a half seconds", more)
	}
	if n := after[denied] - before[denied]; n != sent {
		t.Errorf("%d packets were denied, the kernel counts %d", sent, n)
	}
	f := awaited(t, node, "a denial", filter, func(f told) bool { return f.GetVerdict() == flowpb.Verdict_DROPPED })
	if f.GetDropReasonDesc() != flowpb.DropReason_POLICY_DENIED || f.GetTrafficDirection() != flowpb.TrafficDirection_INGRESS || len(f.GetIngressDeniedBy()) != 1 ||
		!strings.Contains(fmt.Sprint(f.extra["explanation"]), "no rule of NetworkPolicy default/store allowed it") || f.GetSource().GetNamespace() != "elsewhere" {
		t.Errorf("a denial: %v", f.Flow)
	}
}

// exactly removes a pod whose connection then ends with the packets that were exchanged.
func exactly(t *testing.T, d database) {
	node := d.c.Nodes[1]
	p := node.AddPodAs("brief", testkit.PodSpec{Labels: map[string]string{"app": "app"}})
	if !within(policyLimit, func() bool { return passes(p.Namespace, "tcp", d.store.IPv4, storePort) }) {
		t.Fatal("the new pod does not reach the store")
	}
	const size = 100
	got := p.Probe(testkit.Probe{Network: "udp", Address: testkit.HostPort(d.store.IPv4, storePort), Keep: true, For: 300 * time.Millisecond, Interval: 10 * time.Millisecond, Size: size})
	if got.Failed > 0 || got.OK == 0 {
		t.Fatalf("exchanges: %+v", got)
	}
	if err := p.Detach(); err != nil {
		t.Fatal(err)
	}
	f := awaited(t, node, "the end of a removed pod's connection", between(p, d.store, "udp", storePort), event("ended"))
	sent := uint64(got.OK)
	if f.extra["hook"] != "sweep" || f.number("packets") != sent || f.number("answeredPackets") != sent || f.number("bytes") != sent*(20+8+size) {
		t.Errorf("%d exchanges of %d bytes; told %v", sent, size, f.extra)
	}
}

// OBS-1: under a flood that nobody reads, counts stay exact, what is lost is said, and denials go last.
func TestFloodOfFlows(t *testing.T) {
	d := newDatabase(t, testkit.Options{Config: map[string]any{"flows": map[string]any{"ring": 64 << 10, "keep": 1 << 16}}})
	d.c.ApplyText("policy", onlyApp)
	holds(t, "with policy", path{d.near.Namespace, d.store, otherPort, false})
	node := d.c.Nodes[0]
	const (
		newFlows    = `strait_flows_total{kind="new"}`
		lostNew     = `strait_flow_records_lost_total{kind="new"}`
		lostDenied  = `strait_flow_records_lost_total{kind="denied"}`
		packetsLost = `strait_flow_packets_lost_total{kind="denied"}`
		stopped     = `strait_flow_stopped_packets_total{direction="ingress",reason="policy-ingress"}`
		dropped     = `strait_datapath_packets_total{reason="policy-ingress",verdict="dropped"}`
		each        = 3000
	)
	for name, f := range map[string]struct {
		suspend bool
	}{"unread": {true}, "read": {false}} {
		t.Run(name, func(t *testing.T) {
			time.Sleep(2500 * time.Millisecond) // what was held back is told
			before := metrics(t, node)
			if f.suspend {
				signal(t, node, syscall.SIGSTOP)
				t.Cleanup(func() { signal(t, node, syscall.SIGCONT) })
			}
			begun := time.Now()
			flood(t, d.near, d.app.IPv4, 10000, each)   // allowed: nothing judges app
			flood(t, d.near, d.store.IPv4, 10000, each) // denied
			took := time.Since(begun)
			if f.suspend {
				signal(t, node, syscall.SIGCONT)
			}
			var after map[string]uint64
			delta := func(name string) uint64 { return after[name] - before[name] }
			if !within(3*policyLimit, func() bool {
				after = metrics(t, node)
				return delta(newFlows)+delta(lostNew) >= each && delta(stopped)+delta(packetsLost) >= each
			}) {
				t.Error("not everything is told or counted")
			}
			t.Logf("%d connections and %d denials in %s: %d and %d told, %d and %d lost", each, each, took, delta(newFlows), delta(stopped), delta(lostNew), delta(lostDenied))
			if n := delta(newFlows) + delta(lostNew); n != each {
				t.Errorf("%d connections began, %d are told or counted as lost", each, n)
			}
			if n := delta(stopped) + delta(packetsLost); n != each || delta(dropped) != each {
				t.Errorf("%d packets were denied, %d are told or counted as lost, the kernel counts %d", each, n, delta(dropped))
			}
			if f.suspend && (delta(lostNew) == 0 || delta(lostDenied) == 0 || delta(newFlows) == 0 || delta(stopped) < 64) {
				t.Error("nothing is lost, or no denials are told, of a ring that nobody has read")
			}
			if status, _ := node.TryCLI("status"); f.suspend && !strings.Contains(status, "lost for lack of room") {
				t.Errorf("strait status does not say that flows were lost:\n%s", status)
			}
		})
	}
}

func signal(t *testing.T, n *testkit.Node, s syscall.Signal) {
	t.Helper()
	if err := syscall.Kill(n.AgentPID(), s); err != nil {
		t.Fatal(err)
	}
}

// flood sends one datagram to each of so many ports.
func flood(t *testing.T, from *testkit.Pod, to netip.Addr, first, ports int) {
	t.Helper()
	var err error
	from.Do(func() {
		var socket net.PacketConn
		if socket, err = net.ListenPacket("udp4", "0.0.0.0:0"); err != nil {
			return
		}
		defer func() { _ = socket.Close() }()
		for i := range ports {
			target := net.UDPAddrFromAddrPort(netip.AddrPortFrom(to, uint16(first+i)))
			if _, err = socket.WriteTo([]byte("x"), target); err != nil && !errors.Is(err, syscall.ECONNREFUSED) {
				return
			}
			err = nil
		}
	})
	if err != nil {
		t.Fatal(err)
	}
}
