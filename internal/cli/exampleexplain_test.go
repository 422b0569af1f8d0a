package cli_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	corev1 "k8s.io/api/core/v1"

	"github.com/strait-net/strait/internal/cli"
	"github.com/strait-net/strait/internal/localapi"
	"github.com/strait-net/strait/internal/verdict"
)

// exampleExplain is a part as the agent of node n<i> tells it: pods shop/web-1 on n1 and shop/db-0 on n2, connected by a tunnel. Port 5433 is
// denied, nobody listens on port 9, and n3 is of a version that cannot explain.
func exampleExplain(i int) func(context.Context, localapi.ExplainQuestion) (localapi.ExplainPart, error) {
	if i == 3 {
		return nil
	}
	return func(_ context.Context, q localapi.ExplainQuestion) (localapi.ExplainPart, error) {
		e := &exampleWay{q: q, part: localapi.ExplainPart{Node: fmt.Sprintf("n%d", i), Version: "v0.1.0", Hops: []localapi.Hop{}, Packet: q.Packet}}
		if e.part.Packet.Source.Port() == 0 {
			e.part.Packet.Source = netip.AddrPortFrom(e.part.Packet.Source.Addr(), 40000)
		}
		switch q.Entry {
		case localapi.EntryPod:
			return e.part, e.sent()
		case localapi.EntryTunnel:
			e.on("strait_vxlan", fmt.Sprintf("comes out of the tunnel of %s: %s", q.Sender, e.what()), "", localapi.Fact{Name: "device", Value: "eth0"})
			e.received("strait_from_vx on strait_vxlan")
		case localapi.EntryNet:
			e.on("eth0", "comes in: "+e.what(), "")
			e.received("strait_from_net on eth0")
		case localapi.EntryNode:
			return e.part, localapi.BadQuestion("target %s: the sender has no address of its family", q.Packet.Target.Addr())
		}
		return e.part, nil
	}
}

// exampleEnds finds names and addresses in what a provider lists.
func exampleEnds(p localapi.Provider) func(context.Context, []string) (localapi.Ends, error) {
	return func(ctx context.Context, words []string) (out localapi.Ends, err error) {
		pods, _ := p.Pods(ctx)
		services, _ := p.Services(ctx)
		nodes, err := p.Nodes(ctx)
		asked := func(name string, addresses ...netip.Addr) bool {
			return slices.ContainsFunc(words, func(w string) bool {
				a, err := netip.ParseAddr(w)
				return w == name || "default/"+w == name || err == nil && slices.Contains(addresses, a)
			})
		}
		on := map[string]bool{}
		for _, pod := range pods {
			if asked(pod.Namespace+"/"+pod.Name, pod.Addresses...) {
				out.Pods, on[pod.Node] = append(out.Pods, pod), true
			}
		}
		for _, s := range services {
			if asked(s.Namespace+"/"+s.Name, s.Frontend.Addr()) {
				out.Services = append(out.Services, s)
			}
		}
		for _, n := range nodes {
			if n.Self || on[n.Name] || asked(n.Name, n.Addresses...) {
				out.Nodes = append(out.Nodes, n)
			}
		}
		return out, err
	}
}

type exampleWay struct {
	q    localapi.ExplainQuestion
	part localapi.ExplainPart
}

func (e *exampleWay) on(place, text, entry string, facts ...localapi.Fact) {
	e.part.Hops = append(e.part.Hops, localapi.Hop{Place: place, Text: text, Entry: entry, Facts: facts, Outcome: localapi.HopOn})
}

func (e *exampleWay) end(place, text, entry string, outcome localapi.HopOutcome, reason string) {
	e.part.Hops = append(e.part.Hops, localapi.Hop{Place: place, Text: text, Entry: entry, Outcome: outcome, Reason: reason})
}

func (e *exampleWay) what() string {
	p := e.part.Packet
	text := fmt.Sprintf("%s %s to %s", p.Protocol, p.Source, p.Target)
	if p.Answer {
		text = "the answer " + text
	}
	return text
}

// sent is the way of what a pod sends.
func (e *exampleWay) sent() error {
	p := &e.part.Packet
	if want := e.q.Backend; e.q.Service.IsValid() && want.IsValid() && want != at("10.244.1.2:8080") && want != at("10.244.2.2:8080") {
		return localapi.BadQuestion("backend %s: the service has [10.244.1.2:8080 10.244.2.2:8080]", want)
	}
	if e.q.Service.IsValid() {
		e.part.Backends = []netip.AddrPort{at("10.244.1.2:8080"), at("10.244.2.2:8080")}
		p.Target = e.part.Backends[1]
		e.on("socket", "asks for service default/web at 10.96.0.7:80 and is given backend 10.244.2.2:8080 (pod default/web-2)",
			"strait_service 10.96.0.7:80/TCP, set 16 of 2 backends", localapi.Fact{Name: "algorithm", Value: "random"})
	}
	sent := *p
	e.part.Sent = &sent
	e.on("pod "+e.q.Pod, fmt.Sprintf("sends %s by eth0 to 169.254.1.1", e.what()), "default via 169.254.1.1 dev eth0",
		localapi.Fact{Name: "mtu", Value: "1450"}, localapi.Fact{Name: "next hop", Value: "169.254.1.1 is 02:00:00:00:00:02 (permanent)"})
	target, device := p.Target.Addr().String(), "st1a2b3c"
	if !strings.HasPrefix(target, "10.") && p.Answer {
		e.on("strait_from_pod on "+device, "sent out of the cluster", "strait_ipcache has no row for "+target+": outside")
		e.part.Next = &localapi.ExplainNext{Entry: localapi.EntryNet}
		return nil
	}
	if !strings.HasPrefix(target, "10.") {
		e.on("strait_from_pod on "+device, "sent out of the cluster, masqueraded, as 10.0.0.1:10007 to "+p.Target.String(), "strait_ipcache has no row for "+target+": outside")
		p.Source = at("10.0.0.1:10007")
		e.on("route", "leaves by eth0 to 10.0.0.254", "default via 10.0.0.254 dev eth0")
		e.part.Next = &localapi.ExplainNext{Entry: localapi.EntryNet}
		return nil
	}
	node := map[string]string{"10.244.1": "n1", "10.244.2": "n2", "10.0.0": "n3"}[target[:strings.LastIndexByte(target, '.')]]
	if node == "n3" {
		e.on("strait_from_pod on "+device, "handed to the node's stack", "strait_ipcache 10.0.0.3/32 -> node")
		e.part.Next = &localapi.ExplainNext{Node: node, Entry: localapi.EntryNet}
		return nil
	}
	peer := "10.0.0." + node[1:]
	e.on("strait_from_pod on "+device, "sent through the tunnel", fmt.Sprintf("strait_ipcache 10.244.%s.0/24 -> tunnel to %s", node[1:], peer))
	e.on("strait_vxlan", fmt.Sprintf("wrapped for %s (node %s), leaves by eth0", peer, node), "10.0.0.0/24 dev eth0")
	if e.q.Packet.Size > 1450 {
		e.end("strait_vxlan", "1550 bytes with the tunnel's headers are more than the 1500 of eth0: they travel in pieces", "", localapi.HopWarning, "larger than the MTU 1500 of eth0")
	}
	e.on("eth0", "to "+peer+", whose hardware address is 02:00:00:00:02:01", "neighbour "+peer+" 02:00:00:00:02:01 (reachable)")
	e.part.Next = &localapi.ExplainNext{Node: node, Entry: localapi.EntryTunnel, Sender: addr("10.0.0." + e.part.Node[1:]), MAC: "02:00:00:00:02:01"}
	return nil
}

// received is the way of what has come to a node.
func (e *exampleWay) received(program string) {
	p := &e.part.Packet
	if e.q.Entry == localapi.EntryNet && p.Answer {
		p.Target = at("10.244.1.5:40000")
	}
	pod := map[string]string{"10.244.1.5": "shop/web-1", "10.244.2.7": "shop/db-0", "10.244.2.2": "default/web-2"}[p.Target.Addr().String()]
	rule := "NetworkPolicy shop/db ingress, nothing else"
	if p.Target.Port() == 5433 && !p.Answer {
		denied := verdict.PolicyIngress.Text()
		e.end(program, denied, rule, localapi.HopDropped, denied+" ("+rule+")")
		return
	}
	e.on(program, "handed to a pod on this node", fmt.Sprintf("strait_endpoint %s -> st9f8e7d (pod %s)", p.Target.Addr(), pod), localapi.Fact{Name: "rule", Value: "NetworkPolicy shop/db spec.ingress[0]"})
	e.part.Arrived = &localapi.ExplainArrived{Entry: localapi.EntryPod, Pod: pod}
	switch {
	case p.Answer:
		e.end("pod "+pod, "takes "+e.what(), "", localapi.HopDelivered, "")
	case p.Target.Port() == 9:
		e.end("pod "+pod, "its stack refuses "+e.what(), "", localapi.HopRefused, "nobody listens on TCP port 9")
	default:
		e.end("pod "+pod, "a socket takes "+e.what(), fmt.Sprintf("socket bound to [::]:%d", p.Target.Port()), localapi.HopDelivered, "")
	}
}

// CLI-8: a path is read by programs, too, by names that do not change.
func TestExplainForPrograms(t *testing.T) {
	config := threeNodes(t).kubeconfig(t)
	stdout, stderr, code := terminal{}.run("explain", "shop/web-1", "svc/web:80", "-o", "json", "--kubeconfig", config)
	var got struct {
		Source, Destination struct{ Kind, Name, Node, Address string }
		Backends            []string
		There, Back         []struct {
			Node string
			Part struct {
				Hops []struct{ Place, Text, Entry, Outcome string }
			}
		}
		Conclusion struct{ Verdict, Text string }
	}
	if err := json.Unmarshal([]byte(stdout), &got); err != nil || code != cli.ExitOK {
		t.Fatalf("= %d, %v %s\n%s", code, err, stderr, stdout)
	}
	if got.Source.Node != "n1" || got.Destination.Kind != "service" || got.Destination.Address != "10.96.0.7" || len(got.Backends) != 2 ||
		len(got.There) != 2 || len(got.Back) != 2 || got.There[1].Node != "n2" || got.Conclusion.Verdict != "delivered" {
		t.Errorf("= %+v", got)
	}
}

// Colours do not move anything, neither in the text nor in the picture.
func TestExplainColours(t *testing.T) {
	config := threeNodes(t).kubeconfig(t)
	for _, more := range []string{"--verbose", "--diagram"} {
		args := []string{"explain", "shop/web-1", "shop/db-0:5433", "--kubeconfig", config, more}
		plain, _, _ := terminal{width: 80}.run(args...)
		coloured, _, _ := terminal{width: 80, color: true}.run(args...)
		if !strings.Contains(coloured, "\x1b[31m") {
			t.Errorf("%s: a denial is not red:\n%s", more, coloured)
		}
		if stripped := regexp.MustCompile("\x1b\\[[0-9]*m").ReplaceAllString(coloured, ""); stripped != plain {
			t.Errorf("%s: colours move the text:\n%s\n%s", more, plain, stripped)
		}
		for line := range strings.Lines(plain) {
			if utf8.RuneCountInString(strings.TrimSuffix(line, "\n")) > 80 {
				t.Errorf("%s: wider than the terminal: %s", more, line)
			}
		}
	}
}

// An agent that knows nothing of explain is a gap, on its own node as well.
func TestExplainByAnOlderAgent(t *testing.T) {
	p := nodeOf(1, false)
	p.Explain = nil
	stdout, stderr, code := terminal{width: 80}.run("explain", "shop/web-1", "shop/db-0:5432", "--socket", agent(t, p))
	if code != cli.ExitUsage || !strings.Contains(stdout, "its agent cannot explain paths") {
		t.Errorf("= %d\n%s%s", code, stdout, stderr)
	}
}

// A node in the middle of a path that does not answer is named, and the rest is not made up.
func TestExplainWithASilentNode(t *testing.T) {
	s := threeNodes(t)
	s.sockets["strait-agent-n2"] = ""
	stdout, stderr, code := terminal{width: 80}.run("explain", "shop/web-1", "shop/db-0:5432", "--timeout", "2s", "--kubeconfig", s.kubeconfig(t))
	if code != cli.ExitUsage || !strings.Contains(stdout, "NOT KNOWN: no answer from strait-agent-n2 in 2s") || !strings.Contains(stdout, "Cannot be told") {
		t.Errorf("= %d\n%s%s", code, stdout, stderr)
	}
}

// Names that are not enough say what would be.
func TestExplainEnds(t *testing.T) {
	p := nodeOf(1, false)
	p.Pods = func(context.Context) ([]localapi.PodRow, error) {
		return append(examplePods(1),
			localapi.PodRow{Namespace: "default", Name: "web", Node: "n1", Addresses: addrs("10.244.1.2")},
			localapi.PodRow{Namespace: "default", Name: "n2", Node: "n1", Addresses: addrs("10.244.1.8")},
			localapi.PodRow{Namespace: "shop", Name: "late", Node: "n1"},
			localapi.PodRow{Namespace: "shop", Name: "pending"},
			localapi.PodRow{Namespace: "shop", Name: "six", Node: "n1", Addresses: addrs("fd00:10:244:1::9")}), nil
	}
	socket := agent(t, p)
	for _, tc := range []struct {
		src, dst, want string
	}{
		{"shop/web-1", "web:80", `DST "web" is the name of several: write pod/default/web or svc/default/web`},
		{"shop/web-1", "n2:80", `DST "n2" is the name of several: write pod/default/n2 or node/n2`},
		{"shop/late", "shop/web-1:80", "pod shop/late has no address yet"},
		{"shop/web-1", "shop/pending:80", "pod shop/pending is on no node yet"},
		{"shop/six", "svc/kube-system/kube-dns:53", "pod shop/six ([fd00:10:244:1::9]) and service kube-system/kube-dns ([10.96.0.10]) have no addresses of the same family"},
		{"shop/web-1", "svc/web:443", "service default/web has no port 443 of protocol TCP; it has 80/TCP"},
		{"shop/web-1", "node/n7:80", `DST: no node is called "n7"; did you mean "n1"?`},
		{"shop/web-1", "svc/wep:80", `DST: no service is called "default/wep"; did you mean "default/web"?`},
		{"shop/web-1", "pod/a/b/c:80", `DST "pod/a/b/c": want a pod as`},
		{"shop/web-1", "/web:80", `DST "/web": want a pod as`},
	} {
		stdout, stderr, code := terminal{width: 80}.run("explain", tc.src, tc.dst, "--socket", socket)
		if code != cli.ExitUsage || stdout != "" || !strings.Contains(stderr, tc.want) {
			t.Errorf("explain %s %s = %d, want %q:\n%s%s", tc.src, tc.dst, code, tc.want, stdout, stderr)
		}
	}
	for _, dst := range []string{"pod/default/web:8080", "svc/default/web:80", "10.96.0.7:80", "shop/db-0:5432"} {
		if stdout, stderr, _ := (terminal{width: 80}).run("explain", "shop/web-1", dst, "--socket", socket); !strings.Contains(stdout, "There\n") {
			t.Errorf("explain shop/web-1 %s:\n%s%s", dst, stdout, stderr)
		}
	}
}

func TestExplainCompletion(t *testing.T) {
	for _, tc := range []struct {
		typed []string
		want  []string
		not   string
	}{
		{[]string{""}, []string{"n1", "host", "world", "shop/web-1", "shop/db-0"}, "svc/"}, // a service sends nothing
		{[]string{"shop/web-1", ""}, []string{"n3", "shop/db-0", "svc/default/web", "svc/kube-system/kube-dns"}, "svc/default/cache"},
		{[]string{"shop/web-1", "shop/db-0", ""}, nil, "shop"},
	} {
		stdout, _, _ := terminal{}.run(append([]string{"__complete", "explain", "--socket", agent(t, nodeOf(2, false))}, tc.typed...)...)
		words := strings.Fields(stdout)
		for _, want := range tc.want {
			if !slices.Contains(words, want) {
				t.Errorf("explain %q<TAB> does not offer %s: %v", tc.typed, want, words)
			}
		}
		if strings.Contains(stdout, tc.not) {
			t.Errorf("explain %q<TAB> offers %s: %v", tc.typed, tc.not, words)
		}
	}
}

// Names that are right cost no list of all pods; those of pods that have ended, which agents forget, are looked up in Kubernetes.
func TestExplainListsNothing(t *testing.T) {
	s := threeNodes(t)
	s.ended = map[string]corev1.PodPhase{"shop/job-1": corev1.PodSucceeded}
	for i := 1; i <= 3; i++ {
		p := nodeOf(i, false)
		p.Ends = exampleEnds(p)
		p.Pods = func(context.Context) ([]localapi.PodRow, error) {
			return nil, errors.New("a list of all pods was asked for")
		}
		s.sockets[fmt.Sprintf("strait-agent-n%d", i)] = agent(t, p)
	}
	config := s.kubeconfig(t)
	for _, dst := range []string{"shop/db-0:5432", "svc/web:80", "10.244.2.7:5432", "10.96.0.7:80"} {
		if stdout, stderr, code := (terminal{width: 80}).run("explain", "shop/web-1", dst, "--kubeconfig", config); code != cli.ExitOK {
			t.Errorf("explain shop/web-1 %s = %d\n%s%s", dst, code, stdout, stderr)
		}
	}
	if s.listed != 0 {
		t.Errorf("all nodes were listed %d times", s.listed)
	}
	if _, stderr, _ := (terminal{}).run("explain", "shop/web-1", "shop/dbx:80", "--kubeconfig", config); !strings.Contains(stderr, "a list of all pods was asked for") {
		t.Errorf("a name that nobody has is compared with nothing: %s", stderr)
	}
	_, stderr, code := (terminal{}).run("explain", "shop/web-1", "shop/job-1:80", "--kubeconfig", threeNodesWith(t, s.ended).kubeconfig(t))
	if want := "DST: pod shop/job-1 has ended (Succeeded): it has no address any more"; code != cli.ExitUsage || !strings.Contains(stderr, want) {
		t.Errorf("= %d %s, want %s", code, stderr, want)
	}
}

func threeNodesWith(t *testing.T, ended map[string]corev1.PodPhase) *apiServer {
	s := threeNodes(t)
	s.ended = ended
	return s
}

// An agent that does not know the question for names is asked for whole tables.
func TestExplainNamesByAnOlderAgent(t *testing.T) {
	p := nodeOf(1, false)
	p.Ends = func(context.Context, []string) (localapi.Ends, error) { return localapi.Ends{}, localapi.ErrNotOffered }
	stdout, stderr, _ := terminal{width: 80}.run("explain", "shop/web-1", "shop/db-0:5432", "--socket", agent(t, p))
	if !strings.Contains(stdout, "There\n") {
		t.Errorf("%s%s", stdout, stderr)
	}
}

func TestExplainWithoutAgent(t *testing.T) {
	if _, stderr, code := (terminal{}).run("explain", "a", "b", "--socket", filepath.Join(t.TempDir(), "none")); code != cli.ExitUnreachable {
		t.Errorf("= %d %s", code, stderr)
	}
}
