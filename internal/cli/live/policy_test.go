package live

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"github.com/strait-net/strait/internal/localapi"
	"github.com/strait-net/strait/internal/testkit"
)

const (
	sqlPort   = 5432
	adminPort = 9100
)

// shopPolicies are the worked example, one that is refused, one that is only audited, and one of the admin tier.
const shopPolicies = `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db, namespace: shop}
spec:
  podSelector: {matchLabels: {app: db}}
  ingress:
  - from: [{podSelector: {matchLabels: {app: web}}}]
    ports: [{port: sql}]
  - from: [{podSelector: {matchLabels: {app: web, tier: front}}}]
    ports: [{port: sql}]
  - from: [{ipBlock: {cidr: 10.20.0.0/16}}]
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: legacy, namespace: shop}
spec:
  endpointSelector: {matchLabels: {app: db}}
  ingress:
  - toPorts: [{ports: [{port: "80", protocol: TCP}], rules: {http: [{method: GET}]}}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: shop, annotations: {policy.strait.dev/audit: "true"}}
spec:
  podSelector: {matchLabels: {app: web}}
---
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {name: tenants}
spec:
  tier: Admin
  priority: 10
  subject: {namespaces: {matchLabels: {tenant: a}}}
  ingress:
  - name: not-from-b
    action: Deny
    from: [{namespaces: {matchLabels: {tenant: b}}}]
`

// shop is a database on the first node, and on the second a web server, a batch job and somebody of another tenant.
type shop struct {
	c                     *testkit.Cluster
	db, web, batch, other *testkit.Pod
}

func newShop(t *testing.T) shop {
	t.Helper()
	testkit.RequireRoot(t)
	c := testkit.NewCluster(t, testkit.Options{NoAgents: true})
	c.ApplyNamespace("shop", map[string]string{"tenant": "a"}, nil)
	c.ApplyNamespace("elsewhere", map[string]string{"tenant": "b"}, nil)
	c.ApplyText("policies", shopPolicies)
	c.StartAgents()
	pod := func(n int, name, namespace, app string) *testkit.Pod {
		p := c.Nodes[n].AddPodAs(name, testkit.PodSpec{Namespace: namespace, Labels: map[string]string{"app": app},
			Ports: []testkit.ContainerPort{{Name: "sql", Port: sqlPort, Protocol: "TCP"}}})
		p.Echo(sqlPort)
		p.Echo(adminPort)
		return p
	}
	return shop{c: c, db: pod(0, "db-0", "shop", "db"), web: pod(1, "web-1", "shop", "web"), batch: pod(1, "batch-1", "shop", "batch"), other: pod(1, "web-9", "elsewhere", "web")}
}

// settled waits until both nodes know all pods.
func (s shop) settled(t *testing.T) {
	t.Helper()
	for _, n := range s.c.Nodes {
		for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
			out, _ := strait(t, n, "get", "identities")
			if strings.Contains(out, s.web.IPv4.String()) || n != s.c.Nodes[0] {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s does not know who is who:\n%s\n%s", n.Name, out, n.AgentLog())
			}
		}
	}
}

// verdict asks both nodes, as a person would who has no kubeconfig: allowed when all that judge allow.
func (s shop) verdict(t *testing.T, src, dst string) (allowed bool, text string) {
	t.Helper()
	allowed = true
	sides := 0
	for _, n := range s.c.Nodes {
		out, _ := strait(t, n, "policy", "verdict", src, dst, "-o", "json")
		var v localapi.PolicyVerdict
		if err := json.Unmarshal([]byte(out), &v); err != nil {
			t.Fatalf("policy verdict %s %s on %s: %v\n%s", src, dst, n.Name, err, out)
		}
		for _, side := range v.Sides {
			if side.Error != "" {
				t.Errorf("%s to %s on %s: %s", src, dst, n.Name, side.Error)
			}
			allowed = allowed && side.Verdict == localapi.VerdictAllowed
			sides++
			text += fmt.Sprintf("%s on %s %s: %s %v\n", side.Direction, n.Name, side.Verdict, side.Text, side.Misses)
		}
	}
	if sides == 0 {
		t.Errorf("%s to %s: nobody judges it", src, dst)
	}
	return allowed, text
}

// What strait policy verdict reads from the tables is what becomes of a real packet, in both families.
func TestVerdictIsWhatBecomesOfPackets(t *testing.T) {
	s := newShop(t)
	s.settled(t)
	pods := []*testkit.Pod{s.db, s.web, s.batch, s.other}
	for _, from := range pods {
		for _, to := range pods {
			for _, port := range []int{sqlPort, adminPort} {
				for _, v6 := range []bool{false, true} {
					if from == to {
						continue
					}
					got := from.Probe(testkit.Probe{Network: "tcp", Address: testkit.HostPort(to.Address(v6), port), Timeout: 300 * time.Millisecond}).OK == 1
					said, text := s.verdict(t, from.Address(v6).String(), testkit.HostPort(to.Address(v6), port))
					if got != said {
						t.Errorf("%s to %s:%d over %s: passes %t, but the verdict is\n%s", from, to, port, to.Address(v6), got, text)
					}
				}
			}
		}
	}
	for _, tc := range []struct {
		src, dst string
		text     string
		allowed  bool
	}{
		{"shop/web-1", "shop/db-0:sql", "NetworkPolicy shop/db spec.ingress[0]", true},
		{"shop/batch-1", "shop/db-0:sql", "peer label app=batch, want app=web", false},
		{"shop/web-1", "shop/db-0:9100", "port 9100/TCP, want ", false},
		{"elsewhere/web-9", "shop/db-0:sql", "ClusterNetworkPolicy tenants spec.ingress[0]", false},
		{"10.20.1.1", "shop/db-0:80", "spec.ingress[2]", true},
		{"world", "shop/db-0:80", "isolates it", false},
		{s.c.Nodes[0].IPv4.String(), "shop/db-0:80", "a node always reaches its own pods", true},
		{"shop/db-0", "world:443", "no policy isolates it", true},
	} {
		if allowed, text := s.verdict(t, tc.src, tc.dst); allowed != tc.allowed || !strings.Contains(text, tc.text) {
			t.Errorf("%s to %s: allowed %t, want %t by %s:\n%s", tc.src, tc.dst, allowed, tc.allowed, tc.text, text)
		}
	}
	// The exit code is for scripts: on the node of the database, which does not know what the other one says.
	for _, tc := range []struct {
		src, dst string
		code     int
	}{{"world", "shop/db-0:80", 1}, {"10.20.1.1", "shop/db-0:80", 0}, {"shop/web-1", "shop/db-0:80", 1}, {"shop/web-1", "shop/db-0:sql", 2}, {"shop/nobody", "shop/db-0:80", 2}} {
		if out, code := strait(t, s.c.Nodes[0], "policy", "verdict", tc.src, tc.dst); code != tc.code {
			t.Errorf("policy verdict %s %s: exit code %d, want %d\n%s", tc.src, tc.dst, code, tc.code, out)
		}
	}
}

func TestPolicyCommands(t *testing.T) {
	s := newShop(t)
	s.settled(t)
	n := s.c.Nodes[0]
	address := testkit.HostPort(s.db.IPv4, sqlPort)
	if got := s.web.Probe(testkit.Probe{Network: "tcp", Address: address, Timeout: time.Second, Size: 1}); got.OK != 1 {
		t.Errorf("web to the database: %v", got.Errors)
	}
	busy := s.batch.StartProbe(testkit.Probe{Network: "udp", Address: address, For: 4 * time.Second, Timeout: 20 * time.Millisecond})
	for _, tc := range []struct {
		args []string
		code int
		want []string
	}{
		{[]string{"policy", "list"}, 0, []string{"CiliumNetworkPolicy shop/legacy: generation 1 is refused", "rules.http", "enforced", "audited", "admin 10"}},
		{[]string{"policy", "show", "shop/db"}, 0, []string{"NetworkPolicy shop/db: enforced", "Pods here       db-0", "spec.ingress[0]", "pods app=web in namespace shop", "sql/TCP", "nothing else"}},
		{[]string{"policy", "show", "tenants"}, 0, []string{"spec.ingress[0] (not-from-b)", "pods in namespaces with tenant=b"}},
		{[]string{"policy", "show", "shop/legacy"}, 0, []string{"refused", "nothing of it is enforced; correct the object"}},
		{[]string{"policy", "top", "--denied", "--interval", "500ms"}, 0, []string{"NetworkPolicy shop/db ingress, nothing else"}},
		{[]string{"policy", "unused"}, 0, []string{"NetworkPolicy shop/db spec.ingress[2]", "CIDR 10.20.0.0/16"}},
		{[]string{"policy", "shadowed"}, 0, []string{"NetworkPolicy shop/db spec.ingress[1]", "spec.ingress[0]"}},
		{[]string{"policy", "verdict", "shop/batch-1", "shop/db-0:5432"}, 1, []string{"denied: shop/batch-1", "not asked", "Nearest to allowing ingress of shop/db-0", "peer label app=batch, want app=web"}},
		{[]string{"get", "pods"}, 0, []string{"web-1", "app=web", "sql 5432/TCP"}},
		{[]string{"get", "namespaces"}, 0, []string{"tenant=b"}},
		{[]string{"get", "identities"}, 0, []string{"pods app=web in namespace shop", "pods in namespaces with tenant=b", "own node"}},
		{[]string{"get", "programs"}, 0, []string{"shop/db-0", "NetworkPolicy/shop/db"}},
		{[]string{"status", "--wait"}, 0, []string{"Policy          default; 4 policies (1 refused, 1 audited)", "1 of 1 pod selected", "WARNING  policy CiliumNetworkPolicy shop/legacy"}},
		{[]string{"check"}, 0, []string{"ok: API, model and kernel agree: 1 pod, 4 policies, "}},
		{[]string{"check", "-o", "wide"}, 0, []string{"strait_policy", "strait_identity", "strait_endpoint", "programs", "model", "addresses", "routes"}},
	} {
		out, code := strait(t, n, tc.args...)
		t.Logf("$ strait %s\n%s", strings.Join(tc.args, " "), out)
		if code != tc.code {
			t.Errorf("strait %v = %d, want %d", tc.args, code, tc.code)
		}
		for _, want := range tc.want {
			if !strings.Contains(out, want) {
				t.Errorf("strait %v: %q is missing", tc.args, want)
			}
		}
	}
	busy()
	s.corrupt(t)
	metrics := n.Get("/metrics")
	for _, want := range []string{`strait_policy_objects{kind="CiliumNetworkPolicy",state="refused"} 1`, `strait_policy_packets_total{direction="ingress",verdict="denied"}`,
		"strait_policy_propagation_duration_seconds_count", `strait_policy_pods{state="selected"} 1`} {
		if !strings.Contains(metrics, want) {
			t.Errorf("%s is not in the metrics", want)
		}
	}
	// Counters outlive the agent.
	before := packets(t, n, "spec.ingress[0]")
	n.KillAgent()
	n.StartAgent()
	n.WaitReady(time.Minute)
	if after := packets(t, n, "spec.ingress[0]"); before == 0 || after < before {
		t.Errorf("the rule had counted %d packets, after a restart of the agent %d", before, after)
	}
}

// corrupt has the agent find what somebody else has done to the kernel's tables: strait check sees it, or the agent has been faster.
func (s shop) corrupt(t *testing.T) {
	t.Helper()
	n := s.c.Nodes[0]
	spoil(t, n)
	out, code := strait(t, n, "check")
	t.Logf("$ strait check\n%s", out)
	if code == 1 && !strings.Contains(out, "strait_identity") || code != 1 && !strings.Contains(out, "agree") {
		t.Errorf("check of a spoiled table = %d", code)
	}
	if out, code := strait(t, n, "check", "--repair"); code != 0 {
		t.Errorf("check --repair = %d\n%s", code, out)
	}
	if out, code := strait(t, n, "check"); code != 0 || !strings.Contains(out, "agree") {
		t.Errorf("check of a repaired table = %d\n%s", code, out)
	}
	out, _ = strait(t, n, "status", "-o", "json")
	var status localapi.Status
	if err := json.Unmarshal([]byte(out), &status); err != nil || status.Policy.Drift == 0 {
		t.Errorf("no drift in the status: %v\n%s", err, out)
	}
}

// spoil makes an address of the web server nobody's in particular, behind the agent's back.
func spoil(t *testing.T, n *testkit.Node) {
	t.Helper()
	m, err := ebpf.LoadPinnedMap(fmt.Sprintf("/proc/%d/root/sys/fs/bpf/strait/v1/maps/strait_identity", n.AgentPID()), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	var key, value []byte
	for rows := m.Iterate(); rows.Next(&key, &value); {
		if key[0] == 128 { // a whole address
			if err := m.Delete(key); err != nil {
				t.Fatal(err)
			}
			return
		}
	}
	t.Fatal("no address in strait_identity")
}

func packets(t *testing.T, n *testkit.Node, path string) uint64 {
	t.Helper()
	out, _ := strait(t, n, "policy", "show", "shop/db", "-o", "json")
	var d localapi.PolicyDetail
	if err := json.Unmarshal([]byte(out), &d); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, r := range d.RuleRows {
		if r.Path == path {
			return r.Count.Packets
		}
	}
	t.Fatalf("no rule %s in\n%s", path, out)
	return 0
}
