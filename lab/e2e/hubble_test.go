package e2e

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// from and to find a pod of the shop at one end of a flow.
func (s *shop) from(pod string) func(seenFlow) bool {
	return func(f seenFlow) bool { return f.Source.Namespace == s.namespace && f.Source.Pod == pod }
}

func (s *shop) to(pod string) func(seenFlow) bool {
	return func(f seenFlow) bool { return f.Destination.Namespace == s.namespace && f.Destination.Pod == pod }
}

func both(a, b func(seenFlow) bool) func(seenFlow) bool {
	return func(f seenFlow) bool { return a(f) && b(f) }
}

func either(a, b func(seenFlow) bool) func(seenFlow) bool {
	return func(f seenFlow) bool { return a(f) || b(f) }
}

func denied(f seenFlow) bool { return f.Verdict == "DROPPED" }

func is(policy, namespace string) func([]seenRef) bool {
	return func(by []seenRef) bool { return slices.Equal(by, []seenRef{{"NetworkPolicy", namespace, policy}}) }
}

// OBS-2: the flows of all nodes for clients made by others, while the certificates of the agents are made anew.
func TestOBS2_Relay(t *testing.T) {
	needRelay(t)
	for name, test := range map[string]func(*testing.T){"filters": filters, "clients": clients, "certificates": certificates} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t)
		})
	}
}

// filters: Hubble's own client, as it is, finds in the relay's stream of all nodes what its filters ask for, and nothing else.
func filters(t *testing.T) {
	hubble := here(shared.client(t, "hubble"), "--server", shared.forward(t, system, shared.relayPod(t).Name, relayLocal).String())
	allConnected(t, hubble)
	s := openShop(t, "filters")
	if err := s.trade(t.Context()); err != nil {
		t.Fatal(err)
	}
	curl, web, db := s.namespace+"/curl", s.namespace+"/web", s.namespace+"/db"
	refused := both(both(s.from("curl"), s.to("db")), func(f seenFlow) bool {
		return denied(f) && f.Reason == "POLICY_DENIED" && f.Direction == "INGRESS" && withoutCluster(f.NodeName) == s.node && f.L4.TCP.To == postgresPort &&
			is("db", s.namespace)(f.IngressDeniedBy) && slices.Contains(f.Source.Labels, "k8s:app=curl") &&
			strings.Contains(f.Summary, "no rule of NetworkPolicy "+db+" allowed it; nearest miss") && strings.Contains(f.Summary, "app=curl, want app=web")
	})
	let := both(s.from("web"), s.to("db"))
	out := both(let, func(f seenFlow) bool {
		return f.Verdict == "FORWARDED" && f.Direction == "EGRESS" && withoutCluster(f.NodeName) == s.other && is("web", s.namespace)(f.EgressAllowedBy) &&
			f.Service.Name == "db" && f.Service.Namespace == s.namespace
	})
	in := both(let, func(f seenFlow) bool {
		return f.Verdict == "FORWARDED" && f.Direction == "INGRESS" && withoutCluster(f.NodeName) == s.node && is("db", s.namespace)(f.IngressAllowedBy)
	})
	any := func(seenFlow) bool { return true }
	eventually(t, propagation, func(ctx context.Context) error { // until both nodes have told everything
		flows, err := s.observe(ctx, hubble)
		for i, want := range []func(seenFlow) bool{refused, out, in} {
			if err == nil && !slices.ContainsFunc(flows, want) {
				err = fmt.Errorf("want number %d is not among %+v", i, flows)
			}
		}
		return err
	})
	now := time.Now()
	for _, c := range []struct {
		args string
		all  func(seenFlow) bool   // what each flow has to be
		some []func(seenFlow) bool // what has to be among them; none: there must be no flow at all
	}{
		{"--pod " + web, either(s.from("web"), s.to("web")), []func(seenFlow) bool{in, out}},
		{"--from-pod " + curl, s.from("curl"), []func(seenFlow) bool{refused}},
		{"--to-pod " + db, s.to("db"), []func(seenFlow) bool{refused, in, out}},
		{"--from-label app=curl", s.from("curl"), []func(seenFlow) bool{refused}},
		{"--label app=web", either(s.from("web"), s.to("web")), []func(seenFlow) bool{in, out}},
		{"--label app=nobody", any, nil},
		{"--verdict DROPPED", denied, []func(seenFlow) bool{refused}},
		{"--verdict FORWARDED", func(f seenFlow) bool { return f.Verdict == "FORWARDED" }, []func(seenFlow) bool{in, out}},
		{"--not --verdict DROPPED", func(f seenFlow) bool { return !denied(f) }, []func(seenFlow) bool{in, out}},
		{"--not --from-pod " + web, func(f seenFlow) bool { return !s.from("web")(f) }, []func(seenFlow) bool{refused}},
		{"--drop-reason-desc POLICY_DENIED", denied, []func(seenFlow) bool{refused}},
		{"--drop-reason-desc CT_MAP_INSERTION_FAILED", any, nil},
		{"--to-port 5432", func(f seenFlow) bool { return f.L4.TCP.To == postgresPort }, []func(seenFlow) bool{refused, in, out}},
		{"--to-port 5433", any, nil},
		{"--to-service " + db, s.to("db"), []func(seenFlow) bool{in, out}},
		{"--ip " + s.database.String(), either(s.from("db"), s.to("db")), []func(seenFlow) bool{refused, in, out}},
		{"--protocol udp --to-pod " + db, any, nil},
		{"--protocol tcp --to-pod " + db, s.to("db"), []func(seenFlow) bool{refused, in}},
		{"--type policy-verdict", func(f seenFlow) bool { return f.EventType.Type == 5 }, []func(seenFlow) bool{refused, in, out}},
		{"--type drop", denied, []func(seenFlow) bool{refused}},
		{"--type trace", func(f seenFlow) bool { return f.EventType.Type == 4 }, []func(seenFlow) bool{let}},
		{"--traffic-direction egress", func(f seenFlow) bool { return f.Direction == "EGRESS" }, []func(seenFlow) bool{out}},
		{"--node-name *" + s.other, func(f seenFlow) bool { return withoutCluster(f.NodeName) == s.other }, []func(seenFlow) bool{out}},
		{"--since 10m", any, []func(seenFlow) bool{refused, in, out}},
		{"--until " + now.Add(-10*time.Minute).UTC().Format(time.RFC3339), any, nil},
		{"--last 1000 --to-pod " + db + " --verdict DROPPED", both(s.to("db"), denied), []func(seenFlow) bool{refused}},
	} {
		t.Run(c.args, func(t *testing.T) {
			flows, err := s.observe(t.Context(), hubble, strings.Fields(c.args)...)
			if err != nil {
				t.Fatal(err)
			}
			for i, f := range flows {
				if !c.all(f) || len(c.some) == 0 {
					t.Errorf("finds %+v", f)
				}
				if i > 0 && f.Time.Before(flows[i-1].Time) {
					t.Errorf("%v comes after %v", f.Time, flows[i-1].Time)
				}
			}
			for i, some := range c.some {
				if !slices.ContainsFunc(flows, some) {
					t.Errorf("want number %d is not among %+v", i, flows)
				}
			}
		})
	}
	s.firstAndLast(hubble)
	s.formats(hubble)
}

// observe returns the flows of the shop that the filters let through.
func (s *shop) observe(ctx context.Context, hubble asker, args ...string) ([]seenFlow, error) {
	always := []string{"observe", "-o", "jsonpb"}
	if mentions(args, "--not") || !mentions(args, "--namespace", "--pod", "--from-pod", "--to-pod", "--to-service", "--ip") { // which cannot be combined
		always = append(always, "--namespace", s.namespace)
	}
	if !mentions(args, "--since", "--until", "--first", "--last") {
		always = append(always, "--all")
	}
	out, err := hubble(ctx, append(always, args...)...)
	if err != nil {
		return nil, err
	}
	return readFlows(out)
}

func mentions(args []string, flags ...string) bool {
	return slices.ContainsFunc(args, func(a string) bool { return slices.Contains(flags, a) })
}

// firstAndLast asks for a number of flows: those of all nodes count together.
func (s *shop) firstAndLast(hubble asker) {
	s.Helper()
	all, err := s.observe(s.Context(), hubble, "--until", time.Now().UTC().Format(time.RFC3339Nano))
	if err != nil || len(all) < 6 {
		s.Fatalf("only %d flows: %v", len(all), err)
	}
	uuids := func(flows []seenFlow) (out []string) {
		for _, f := range flows {
			out = append(out, f.UUID)
		}
		return out
	}
	first, err := s.observe(s.Context(), hubble, "--first", "3")
	if err != nil || !slices.Equal(uuids(first), uuids(all[:3])) {
		s.Errorf("the first three are %v, %v; want %v", uuids(first), err, uuids(all[:3]))
	}
	until := all[len(all)-1].Time.UTC().Format(time.RFC3339Nano)
	last, err := s.observe(s.Context(), hubble, "--last", "3", "--until", until)
	if err != nil || !slices.Equal(uuids(last), uuids(all[len(all)-3:])) {
		s.Errorf("the last three are %v, %v; want %v", uuids(last), err, uuids(all[len(all)-3:]))
	}
	one, err := s.observe(s.Context(), hubble, "--uuid", all[1].UUID)
	if err != nil || len(one) != 1 || one[0].UUID != all[1].UUID {
		s.Errorf("by uuid %s: %+v, %v", all[1].UUID, one, err)
	}
}

// formats are those for people: who, to whom, and by which policy.
func (s *shop) formats(hubble asker) {
	s.Helper()
	for format, want := range map[string][]string{
		"compact": {s.namespace + "/curl:", "-> " + s.namespace + "/db:5432", "DENIED BY db (NetworkPolicy)", "no rule of NetworkPolicy " + s.namespace + "/db allowed it"},
		"dict":    {"SOURCE: " + s.namespace + "/curl:", "DESTINATION: " + s.namespace + "/db:5432", "VERDICT: DENIED BY db (NetworkPolicy)"},
		"table":   {"SOURCE", "DESTINATION", "VERDICT", s.namespace + "/curl:", s.namespace + "/db:5432", "DENIED BY db (NetworkPolicy)"},
	} {
		out, err := hubble(s.Context(), "observe", "-o", format, "--print-policy-names", "--from-pod", s.namespace+"/curl", "--verdict", "DROPPED", "--last", "1")
		for _, w := range want {
			if err != nil || !strings.Contains(out, w) {
				s.Errorf("-o %s lacks %q: %v in\n%s", format, w, err, out)
			}
		}
	}
}

// clients: a node's own socket, by Hubble's client and by grpcurl, and the relay by every way there is to it.
func clients(t *testing.T) {
	hubble, grpcurl := shared.client(t, "hubble"), shared.client(t, "grpcurl")
	relay := shared.relayPod(t)
	forwarded := here(hubble, "--server", shared.forward(t, system, relay.Name, relayLocal).String())
	allConnected(t, forwarded)
	s := openShop(t, "clients")
	if err := s.trade(t.Context()); err != nil {
		t.Fatal(err)
	}
	with := s.byTLS(s.other)
	for name, ask := range map[string]asker{
		"socket": shared.onNode(s.node, hubble, "--server", observerAt),
		// hubble's own way: the Service's first port, by the API server.
		"port-forward": func(ctx context.Context, args ...string) (string, error) {
			return shared.run(ctx, slices.Concat([]string{"client", "hubble", "--"}, args)...)
		},
		"service": shared.onNode(s.other, hubble, with...),
	} {
		t.Run(name, func(t *testing.T) {
			(&shop{stage: &stage{t, s.namespace}, node: s.node, other: s.other, database: s.database}).basics(ask, name == "socket")
		})
	}
	t.Run("peers", func(t *testing.T) { peers(t, hubble, s.node) })
	t.Run("grpcurl", func(t *testing.T) { s.grpcurl(t, shared.onNode(s.node, grpcurl)) })
	t.Run("stranger", func(t *testing.T) { // without a certificate, and without TLS
		own := slices.Index(with, "--tls-client-cert-file")
		for _, flags := range [][]string{with[:own], {"--server", strings.TrimPrefix(with[1], "tls://")}} {
			out, err := shared.onNode(s.other, hubble, append(slices.Clone(flags), "--request-timeout", "3s")...)(t.Context(), "list", "nodes")
			if err == nil || !strings.Contains(err.Error(), "code = Unavailable") {
				t.Errorf("%v: %v, %s; want a refusal", flags, err, out)
			}
		}
	})
}

// basics is what a person asks first.
func (s *shop) basics(hubble asker, alone bool) {
	s.Helper()
	nodes := len(shared.nodes)
	status, err := hubble(s.Context(), "status")
	want := []string{": Ok", "Current/Max Flows:", "Flows/s:"}
	if !alone {
		want = append(want, fmt.Sprintf("Connected Nodes: %d/%d", nodes, nodes))
	}
	for _, w := range want {
		if err != nil || !strings.Contains(status, w) {
			s.Errorf("status lacks %q: %v in\n%s", w, err, status)
		}
	}
	states, err := nodeStates(s.Context(), hubble)
	if err != nil || len(states) != nodes || states[s.node] != "NODE_CONNECTED" || !alone && states[s.other] != "NODE_CONNECTED" {
		s.Errorf("list nodes: %v, %v", states, err)
	}
	if out, err := hubble(s.Context(), "list", "namespaces"); err != nil || !strings.Contains(out, s.namespace+"\n") {
		s.Errorf("list namespaces: %v in\n%s", err, out)
	}
	eventually(s.T, propagation, func(ctx context.Context) error {
		flows, err := s.observe(ctx, hubble, "--verdict", "DROPPED")
		if err == nil && !slices.ContainsFunc(flows, both(s.from("curl"), s.to("db"))) {
			err = fmt.Errorf("what curl was denied is not in %+v", flows)
		}
		return err
	})
}

// byTLS writes the Secret for people's tools into files of a node, and returns hubble's flags to ask the relay's Service there with them.
func (s *shop) byTLS(node string) []string {
	s.Helper()
	secret, err := shared.kube.CoreV1().Secrets(system).Get(s.Context(), clientFiles, metav1.GetOptions{})
	if err != nil {
		s.Fatal(err)
	}
	dir := "/tmp/" + s.namespace
	script := []string{"umask 077", "mkdir " + dir}
	for _, name := range []string{"ca.crt", "tls.crt", "tls.key"} {
		script = append(script, fmt.Sprintf("echo %s | base64 -d > %s/%s", base64.StdEncoding.EncodeToString(secret.Data[name]), dir, name))
	}
	if _, err := shared.onMachine(s.Context(), node, strings.Join(script, " && ")); err != nil {
		s.Fatal(err)
	}
	s.Cleanup(func() { _, _ = shared.onMachine(context.Background(), node, "rm -r "+dir) })
	service, err := shared.kube.CoreV1().Services(system).Get(s.Context(), "hubble-relay", metav1.GetOptions{})
	if err != nil {
		s.Fatal(err)
	}
	host := service.Spec.ClusterIP
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	return []string{
		"--server", "tls://" + host + ":443", "--tls-server-name", "hubble-relay." + system + ".svc", "--tls-ca-cert-files", dir + "/ca.crt",
		"--tls-client-cert-file", dir + "/tls.crt", "--tls-client-key-file", dir + "/tls.key",
	}
}

// peers are told by every agent, and by no relay.
func peers(t *testing.T, hubble, node string) {
	out, _ := shared.onMachine(t.Context(), node, "timeout 3 "+hubble+" watch peers --server "+observerAt) // it never ends by itself
	for _, n := range shared.nodes {
		if !slices.ContainsFunc(strings.Split(out, "\n"), func(l string) bool {
			return strings.HasPrefix(l, "PEER_ADDED") && strings.Contains(l, n.name) && strings.Contains(l, ":4244") && strings.Contains(l, "observer.strait.dev")
		}) {
			t.Errorf("watch peers does not tell of %s:\n%s", n.name, out)
		}
	}
}

// grpcurl needs nothing but the server's reflection.
func (s *shop) grpcurl(t *testing.T, grpcurl asker) {
	at := []string{"-plaintext", "-unix", strings.TrimPrefix(observerAt, "unix://")}
	ask := func(args ...string) string {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		out, err := grpcurl(ctx, args...)
		if err != nil {
			t.Errorf("%v in %s", err, out)
		}
		return out
	}
	list := ask(append(at, "list")...)
	for _, service := range []string{"observer.Observer", "peer.Peer", "grpc.health.v1.Health"} {
		if !strings.Contains(list, service+"\n") {
			t.Errorf("list lacks %s:\n%s", service, list)
		}
	}
	if out := ask(append(at, "describe", "observer.Observer")...); !strings.Contains(out, "rpc GetFlows ( .observer.GetFlowsRequest ) returns ( stream .observer.GetFlowsResponse )") {
		t.Errorf("describe says\n%s", out)
	}
	var status struct{ NumFlows, MaxFlows string }
	if out := ask(append(at, "observer.Observer/ServerStatus")...); json.Unmarshal([]byte(out), &status) != nil || status.NumFlows == "" || status.MaxFlows == "" {
		t.Errorf("ServerStatus says\n%s", out)
	}
	query := fmt.Sprintf(`{"number": "5", "whitelist": [{"source_pod": [%q], "verdict": ["DROPPED"]}]}`, s.namespace+"/curl")
	answers, n := json.NewDecoder(bytes.NewReader([]byte(ask(slices.Concat([]string{"-d", query}, at, []string{"observer.Observer/GetFlows"})...)))), 0
	for ; answers.More(); n++ {
		var answer struct {
			Flow struct {
				Verdict string
				Source  struct{ PodName, Namespace string }
			}
		}
		if err := answers.Decode(&answer); err != nil || answer.Flow.Verdict != "DROPPED" || answer.Flow.Source.PodName != "curl" || answer.Flow.Source.Namespace != s.namespace {
			t.Fatalf("GetFlows: %v, %+v", err, answer)
		}
	}
	if n == 0 {
		t.Error("GetFlows finds nothing")
	}
}
