package agent_test

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/strait-net/strait/internal/enforcement"
	"github.com/strait-net/strait/internal/testkit"
)

// policyLimit is how long a change of policy or of what it looks at may take to be in force. Generous: the tests share two cores.
const policyLimit = 3 * time.Second

// passes reports whether an exchange succeeds; a policy that denies shows as silence.
func passes(from *testkit.Namespace, network string, to netip.Addr, port int) bool {
	return from.Probe(testkit.Probe{Network: network, Address: testkit.HostPort(to, port), Timeout: 250 * time.Millisecond}).OK == 1
}

// path is one thing that has to pass or not.
type path struct {
	from *testkit.Namespace
	to   *testkit.Pod
	port int
	pass bool
}

func (p path) String() string { return fmt.Sprintf("%s to %s:%d", p.from.Name, p.to.Name, p.port) }

// holds waits until every path is as it should be, in both families and protocols.
func holds(t *testing.T, what string, paths ...path) {
	t.Helper()
	var wrong []string
	for end := time.Now().Add(policyLimit); ; {
		wrong = nil
		for _, p := range paths {
			for family, v6 := range families {
				for _, network := range []string{"tcp", "udp"} {
					if passes(p.from, network, p.to.Address(v6), p.port) != p.pass {
						wrong = append(wrong, fmt.Sprintf("%s over %s %s: want pass %t", p, family, network, p.pass))
					}
				}
			}
		}
		if len(wrong) == 0 {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%s:\n%s", what, strings.Join(wrong, "\n"))
		}
	}
}

// database is a web application and its database on two nodes, with somebody else on each.
type database struct {
	c                       *testkit.Cluster
	app, other, near, store *testkit.Pod
}

const (
	storePort = 5432
	otherPort = 5433
)

func newDatabase(t *testing.T, o testkit.Options) database {
	t.Helper()
	testkit.RequireRoot(t)
	o.NoAgents = true
	c := testkit.NewCluster(t, o)
	c.ApplyNamespace("default", nil, nil)
	c.ApplyNamespace("elsewhere", map[string]string{"team": "other"}, nil)
	c.StartAgents()
	label := func(app string) testkit.PodSpec {
		return testkit.PodSpec{Labels: map[string]string{"app": app}, Ports: []testkit.ContainerPort{{Name: "sql", Port: storePort, Protocol: "TCP"}}}
	}
	d := database{c: c}
	d.store = c.Nodes[0].AddPodAs("store", label("postgres"))
	d.near = c.Nodes[0].AddPodAs("near", label("app"))
	d.app = c.Nodes[1].AddPodAs("app", label("app"))
	d.other = c.Nodes[1].AddPodAs("other", testkit.PodSpec{Namespace: "elsewhere", Labels: map[string]string{"app": "app"}})
	for _, p := range []*testkit.Pod{d.store, d.near, d.app, d.other} {
		p.Echo(storePort)
		p.Echo(otherPort)
	}
	return d
}

// reports waits until each node tells the operator that it enforces these policies, as "NetworkPolicy default/store generation 1 pods 1".
func (d database) reports(t *testing.T, want ...[]string) {
	t.Helper()
	for i, n := range d.c.Nodes {
		var got []string
		if !within(policyLimit, func() bool {
			var r enforcement.Report
			if err := json.Unmarshal([]byte(n.Get(enforcement.Path)), &r); err != nil || r.Node != n.Name {
				t.Fatalf("report of %q, want %s: %v", r.Node, n.Name, err)
			}
			got = nil
			for _, row := range r.Policies {
				got = append(got, strings.TrimSpace(fmt.Sprintf("%s %s/%s generation %d pods %d %s", row.Kind, row.Namespace, row.Name, row.Generation, row.Pods, row.Error)))
			}
			return slices.Equal(got, want[i])
		}) {
			t.Errorf("%s enforces %v, want %v", n.Name, got, want[i])
		}
	}
}

const onlyApp = `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: store, namespace: default}
spec:
  podSelector: {matchLabels: {app: postgres}}
  ingress:
  - from: [{podSelector: {matchLabels: {app: app}}}]
    ports: [{port: 5432}, {port: 5432, protocol: UDP}]
`

// POL-1, POL-5, POL-8, CNI-3: only who is labelled reaches the database, from both nodes; verdicts follow policies and labels, also for
// connections that are under way; the own node always reaches its pods, and a pod itself.
func TestPolicyByLabel(t *testing.T) {
	for _, mode := range []string{"vxlan", "native"} {
		t.Run(mode, func(t *testing.T) {
			d := newDatabase(t, testkit.Options{Config: map[string]any{"routingMode": mode}})
			everybody := []path{
				{d.app.Namespace, d.store, storePort, true}, {d.near.Namespace, d.store, storePort, true}, {d.other.Namespace, d.store, storePort, true},
				{d.app.Namespace, d.store, otherPort, true}, {d.c.Nodes[1].Namespace, d.store, storePort, true},
			}
			holds(t, "without policy", everybody...)
			under := []func() testkit.Answer{}
			for _, from := range []*testkit.Pod{d.app, d.other} {
				under = append(under, from.StartProbe(testkit.Probe{
					Network: "tcp", Address: testkit.HostPort(d.store.IPv4, storePort), Keep: true, For: 2 * time.Second, Interval: 10 * time.Millisecond, Timeout: 6 * time.Second,
				}))
			}
			time.Sleep(300 * time.Millisecond)
			d.c.ApplyText("policy", onlyApp)
			if got := under[0](); got.Failed != 0 {
				t.Errorf("an allowed connection was broken: %v", got.Errors)
			}
			if got := under[1](); got.Failed == 0 {
				t.Error("a connection that is not allowed any more goes on")
			}
			holds(t, "with policy",
				path{d.app.Namespace, d.store, storePort, true}, path{d.near.Namespace, d.store, storePort, true},
				path{d.other.Namespace, d.store, storePort, false},
				path{d.app.Namespace, d.store, otherPort, false}, path{d.near.Namespace, d.store, otherPort, false},
				path{d.c.Nodes[0].Namespace, d.store, otherPort, true}, path{d.c.Nodes[1].Namespace, d.store, storePort, false},
				path{d.store.Namespace, d.store, otherPort, true}, path{d.store.Namespace, d.app, otherPort, true},
			)
			d.reports(t, []string{"NetworkPolicy default/store generation 1 pods 1"}, []string{"NetworkPolicy default/store generation 1 pods 0"})
			d.app.Relabel(map[string]string{"app": "batch"})
			holds(t, "relabelled", path{d.app.Namespace, d.store, storePort, false}, path{d.near.Namespace, d.store, storePort, true})
			d.app.Relabel(map[string]string{"app": "app", "version": "2"})
			holds(t, "relabelled back", path{d.app.Namespace, d.store, storePort, true})
			d.c.Remove("policy")
			holds(t, "policy removed", everybody...)
			d.reports(t, nil, nil)
		})
	}
}

// POL-1: egress, with CIDRs and exceptions, named ports, and the world behind masquerading.
func TestPolicyOfEgress(t *testing.T) {
	d := newDatabase(t, testkit.Options{})
	d.c.Outside.Echo(storePort)
	d.c.ApplyText("policy", `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: app, namespace: default}
spec:
  podSelector: {matchLabels: {app: app}}
  policyTypes: [Egress]
  egress:
  - to: [{podSelector: {matchLabels: {app: postgres}}}]
    ports: [{port: sql}]
  - to: [{ipBlock: {cidr: 172.18.0.0/24, except: [172.18.0.254/32]}}, {ipBlock: {cidr: "fd18::/64", except: ["fd18::fe/128"]}}]
`)
	tcp := func(from *testkit.Pod, to netip.Addr, port int, pass bool) {
		t.Helper()
		if !within(policyLimit, func() bool { return passes(from.Namespace, "tcp", to, port) == pass }) {
			t.Errorf("%s to %s:%d: want pass %t", from.Name, to, port, pass)
		}
	}
	for _, n := range d.c.Nodes {
		n.Echo(storePort)
	}
	for _, v6 := range families {
		for _, from := range []*testkit.Pod{d.app, d.near} {
			tcp(from, d.store.Address(v6), otherPort, false)
			tcp(from, d.store.Address(v6), storePort, true)
			tcp(from, d.other.Address(v6), storePort, false)
			tcp(from, testkit.OutsideAddr(v6), storePort, false)
			for _, n := range d.c.Nodes {
				a := n.IPv4
				if v6 {
					a = n.IPv6
				}
				tcp(from, a, storePort, true)
			}
		}
		tcp(d.other, testkit.OutsideAddr(v6), storePort, true)
	}
	d.c.ApplyText("policy", strings.ReplaceAll(strings.ReplaceAll(onlyApp, "app: postgres", "app: app"), "ingress:", "policyTypes: [Egress]\n  egress: []\n  ingress:"))
	tcp(d.app, d.store.IPv4, storePort, false)
}

// A service is no way around policy, in either direction, and a pod reaches itself through its own.
func TestPolicyWithServices(t *testing.T) {
	d := newDatabase(t, testkit.Options{})
	vips := []netip.Addr{netip.MustParseAddr("10.96.0.20"), netip.MustParseAddr("fd96::20")}
	d.c.Serve(testkit.Service{
		Name: "store", Type: "NodePort", Port: servicePort, TargetPort: storePort, NodePort: 30432, ClusterIPs: vips, Endpoints: d.store.Endpoints(),
	})
	programmed(t, d.c, testkit.HostPort(vips[0], servicePort)+"/TCP", 1)
	d.c.ApplyText("policy", onlyApp)
	holds(t, "policy", path{d.other.Namespace, d.store, storePort, false}, path{d.app.Namespace, d.store, storePort, true})
	for i := range vips {
		for _, network := range []string{"tcp", "udp"} {
			for _, c := range []struct {
				from *testkit.Namespace
				pass bool
			}{
				{d.app.Namespace, true}, {d.near.Namespace, true}, {d.store.Namespace, true}, {d.other.Namespace, false},
				{d.c.Nodes[0].Namespace, true}, {d.c.Nodes[1].Namespace, false},
			} {
				if got := passes(c.from, network, vips[i], servicePort); got != c.pass {
					t.Errorf("%s to the service at %s over %s: pass %t, want %t", c.from.Name, vips[i], network, got, c.pass)
				}
			}
		}
	}
	// From outside by node port: with the client's address where the pod is, with the other node's elsewhere; neither is allowed.
	for _, n := range d.c.Nodes {
		if passes(d.c.Outside, "tcp", n.IPv4, 30432) {
			t.Errorf("outside reaches the pod through %s", n.Name)
		}
	}
	d.c.ApplyText("policy-2", `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: outside, namespace: default}
spec:
  podSelector: {matchLabels: {app: postgres}}
  ingress: [{from: [{ipBlock: {cidr: 172.18.0.254/32}}, {ipBlock: {cidr: 172.18.0.2/32}}]}]
`)
	for _, n := range d.c.Nodes {
		if !within(policyLimit, func() bool { return passes(d.c.Outside, "tcp", n.IPv4, 30432) }) {
			t.Errorf("outside does not reach the pod through %s", n.Name)
		}
	}
}

// OPS-2: what is denied stays denied and what is allowed stays allowed while agents are killed and started.
func TestPolicySurvivesKilledAgents(t *testing.T) {
	d := newDatabase(t, testkit.Options{})
	d.c.ApplyText("policy", onlyApp)
	holds(t, "policy", path{d.other.Namespace, d.store, storePort, false}, path{d.app.Namespace, d.store, storePort, true})
	address := testkit.HostPort(d.store.IPv4, storePort)
	const length = 5 * time.Second
	allowed := d.app.StartProbe(testkit.Probe{Network: "tcp", Address: address, For: length, Interval: 5 * time.Millisecond, Timeout: 10 * time.Second})
	kept := d.near.StartProbe(testkit.Probe{Network: "tcp", Address: address, Keep: true, For: length, Interval: 5 * time.Millisecond, Timeout: 10 * time.Second})
	denied := d.other.StartProbe(testkit.Probe{Network: "udp", Address: address, For: length, Timeout: 20 * time.Millisecond})
	for range 2 {
		time.Sleep(300 * time.Millisecond)
		restart(d.c.Nodes, func() { time.Sleep(200 * time.Millisecond) })
	}
	if got := allowed(); got.Failed != 0 || got.OK < 100 {
		t.Errorf("allowed: %d exchanges, %d failed: %v", got.OK, got.Failed, got.Errors)
	}
	if got := kept(); got.Failed != 0 || got.OK < 100 {
		t.Errorf("allowed connection: %d exchanges, %d failed: %v", got.OK, got.Failed, got.Errors)
	}
	if got := denied(); got.OK != 0 || got.Failed < 50 {
		t.Errorf("denied: %d of %d got through", got.OK, got.OK+got.Failed)
	}
}

// No unprotected instant: from the moment a pod can be reached, its policy decides.
func TestNewPodsAreProtected(t *testing.T) {
	d := newDatabase(t, testkit.Options{})
	d.c.ApplyText("policy", onlyApp)
	holds(t, "policy", path{d.other.Namespace, d.store, storePort, false})
	n := d.c.Nodes[0]
	last := d.near.IPv4
	for i := range 15 {
		p := n.NewSandbox(fmt.Sprintf("new-%c", 'a'+i))
		p.Spec = &testkit.PodSpec{Labels: map[string]string{"app": "postgres"}}
		p.Write()
		p.Echo(storePort)
		// A static source has nobody who could be asked for a pod that it has not read yet.
		if !within(policyLimit, func() bool { return strings.Contains(n.CLI("get", "pods"), p.Name+" ") }) {
			t.Fatalf("the agent does not know %s", p.Name)
		}
		// The next addresses, asked all the time from before they are given away.
		next := last.Next()
		var waits []func() testkit.Answer
		var asked []netip.Addr
		for range 3 {
			asked = append(asked, next)
			waits = append(waits, d.other.StartProbe(testkit.Probe{
				Network: "udp", Address: testkit.HostPort(next, storePort), For: 400 * time.Millisecond, Timeout: 5 * time.Millisecond,
			}))
			next = next.Next()
		}
		if err := p.Attach(); err != nil {
			t.Fatal(err)
		}
		p.Write()
		if last = p.IPv4; !slices.Contains(asked, last) {
			t.Fatalf("%s has %s, which was not asked: %v", p.Name, last, asked)
		}
		for _, wait := range waits {
			if got := wait(); got.OK != 0 {
				t.Errorf("%s was reached %d times", p.Name, got.OK)
			}
		}
		if !within(policyLimit, func() bool { return passes(d.app.Namespace, "tcp", p.IPv4, storePort) }) {
			t.Errorf("%s is not reached by whom its policy allows", p.Name)
		}
	}
}

// POL-4, POL-7: modes and audit.
func TestPolicyModesAndAudit(t *testing.T) {
	d := newDatabase(t, testkit.Options{})
	open := []path{{d.other.Namespace, d.store, storePort, true}, {d.app.Namespace, d.store, storePort, true}}
	d.c.ApplyNamespace("default", nil, map[string]string{"policy.strait.dev/enforcement": "always"})
	holds(t, "always", path{d.other.Namespace, d.store, storePort, false}, path{d.app.Namespace, d.store, storePort, false})
	d.c.ApplyNamespace("default", nil, nil)
	holds(t, "default", open...)
	d.c.ApplyText("policy", onlyApp)
	holds(t, "policy", path{d.other.Namespace, d.store, storePort, false})
	d.c.ApplyNamespace("default", nil, map[string]string{"policy.strait.dev/enforcement": "never"})
	holds(t, "never", open...)
	d.c.ApplyNamespace("default", nil, map[string]string{"policy.strait.dev/audit": "true"})
	holds(t, "audited namespace", open...)
	d.c.ApplyNamespace("default", nil, nil)
	holds(t, "policy again", path{d.other.Namespace, d.store, storePort, false})
	d.c.ApplyText("policy", strings.Replace(onlyApp, "namespace: default}", `namespace: default, annotations: {policy.strait.dev/audit: "true"}}`, 1))
	holds(t, "audited policy", open...)
}

// POL-2: the tiers of ClusterNetworkPolicy around a NetworkPolicy.
func TestClusterNetworkPolicyTiers(t *testing.T) {
	d := newDatabase(t, testkit.Options{})
	tier := func(name, tier, action, from string, priority int) {
		d.c.ApplyText("tier-"+name, fmt.Sprintf(`
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {name: %s}
spec:
  tier: %s
  priority: %d
  subject: {pods: {namespaceSelector: {}, podSelector: {matchLabels: {app: postgres}}}}
  ingress:
  - name: rule
    action: %s
    from: [{namespaces: {matchLabels: {kubernetes.io/metadata.name: %s}}}]
`, name, tier, priority, action, from))
	}
	tier("base", "Baseline", "Deny", "elsewhere", 5)
	holds(t, "baseline denies", path{d.other.Namespace, d.store, storePort, false}, path{d.app.Namespace, d.store, storePort, true})
	d.c.ApplyText("policy", onlyApp)
	holds(t, "and the policy", path{d.other.Namespace, d.store, storePort, false}, path{d.app.Namespace, d.store, otherPort, false})
	tier("admin", "Admin", "Accept", "elsewhere", 10)
	holds(t, "admin accepts", path{d.other.Namespace, d.store, otherPort, true}, path{d.app.Namespace, d.store, storePort, true})
	tier("first", "Admin", "Pass", "elsewhere", 1)
	holds(t, "admin passes on first", path{d.other.Namespace, d.store, storePort, false})
	tier("first", "Admin", "Deny", "default", 1)
	holds(t, "admin denies first", path{d.app.Namespace, d.store, storePort, false}, path{d.other.Namespace, d.store, storePort, true})
}

// POL-3: a Cilium manifest as it is, and one with what is not supported: refused whole, and said so.
func TestCiliumPolicies(t *testing.T) {
	d := newDatabase(t, testkit.Options{})
	manifest := `
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: store, namespace: default}
spec:
  endpointSelector: {matchLabels: {app: postgres}}
  ingress:
  - fromEndpoints: [{matchLabels: {app: app}}]
    toPorts: [{ports: [{port: "5432", protocol: ANY}]}]
`
	d.c.ApplyText("policy", manifest)
	enforced := []path{
		{d.app.Namespace, d.store, storePort, true}, {d.near.Namespace, d.store, storePort, true},
		{d.other.Namespace, d.store, storePort, false}, {d.app.Namespace, d.store, otherPort, false},
	}
	holds(t, "policy", enforced...)
	d.c.ApplyText("policy", strings.Replace(manifest, "protocol: ANY}]", "protocol: TCP}], rules: {http: [{method: GET}]}", 1))
	if !within(policyLimit, func() bool { out, _ := d.c.Nodes[0].TryCLI("status"); return strings.Contains(out, "rules.http") }) {
		out, _ := d.c.Nodes[0].TryCLI("status")
		t.Errorf("status does not say what is not supported:\n%s", out)
	}
	holds(t, "the refused one changes nothing", enforced...)
	restart(d.c.Nodes, func() {})
	holds(t, "nor does it to an agent that has never read another", enforced...)
	d.c.ApplyText("policy", manifest+`
  ingressDeny:
  - fromEntities: [remote-node]
  - fromEndpoints: [{matchLabels: {version: "2"}}]
`)
	holds(t, "deny", enforced...)
	d.app.Relabel(map[string]string{"app": "app", "version": "2"})
	holds(t, "deny wins", path{d.app.Namespace, d.store, storePort, false}, path{d.near.Namespace, d.store, storePort, true})
}

// Host firewall: the node's own ports, for pods, nodes and outside; probes of the own node and its way out are not touched.
func TestHostFirewall(t *testing.T) {
	d := newDatabase(t, testkit.Options{})
	node := d.c.Nodes[0]
	node.Echo(storePort)
	node.Echo(otherPort)
	d.c.Outside.Echo(storePort)
	d.c.ApplyText("policy", `
apiVersion: cilium.io/v2
kind: CiliumClusterwideNetworkPolicy
metadata: {name: host}
spec:
  nodeSelector: {matchLabels: {kubernetes.io/hostname: node-1}}
  ingress:
  - fromEntities: [remote-node, host]
  - toPorts: [{ports: [{port: "5432", protocol: TCP}]}]
`)
	further := []netip.Addr{netip.MustParseAddr("172.18.0.101"), netip.MustParseAddr("172.30.0.1")} // that Kubernetes does not know
	node.Run("ip", "addr", "add", further[0].String()+"/24", "dev", "eth0")
	node.Run("ip", "addr", "add", further[1].String()+"/32", "dev", "lo")
	d.c.Outside.Run("ip", "route", "add", further[1].String(), "via", node.IPv4.String())
	for _, to := range append(further, node.IPv4, node.IPv6) {
		for _, from := range []*testkit.Namespace{d.c.Outside, d.near.Namespace} {
			if !within(policyLimit, func() bool { return !passes(from, "tcp", to, otherPort) }) {
				t.Errorf("%s reaches a port of the node that is not allowed, at %s", from.Name, to)
			}
			if !passes(from, "tcp", to, storePort) {
				t.Errorf("%s does not reach the allowed port of the node at %s", from.Name, to)
			}
		}
	}
	for _, v6 := range families {
		to := node.IPv4
		if v6 {
			to = node.IPv6
		}
		if !passes(d.c.Nodes[1].Namespace, "tcp", to, otherPort) {
			t.Errorf("another node does not reach the node at %s", to)
		}
		if !passes(node.Namespace, "tcp", testkit.OutsideAddr(v6), storePort) || !passes(node.Namespace, "tcp", d.store.Address(v6), storePort) {
			t.Error("the node's own way out is closed")
		}
	}
	if !passes(d.near.Namespace, "tcp", d.store.IPv4, storePort) {
		t.Error("pods are touched by the host's policy")
	}
}
