package live

import (
	"encoding/json"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/strait-net/strait/internal/localapi"
	"github.com/strait-net/strait/internal/testkit"
)

const (
	webPort  = 80
	webNode  = 30080
	echoPort = 8080
)

// market is a service with a pod on each node, an endpoint that is not ready and all that can be asked of a service.
func market(c *testkit.Cluster) (service testkit.Service, pods []*testkit.Pod) {
	service = testkit.Service{
		Name: "web", Type: "LoadBalancer", Port: webPort, TargetPort: echoPort, NodePort: webNode,
		ClusterIPs:  []netip.Addr{netip.MustParseAddr("10.96.0.7"), netip.MustParseAddr("fd96::7")},
		Ingress:     []netip.Addr{netip.MustParseAddr("203.0.113.7")},
		Annotations: map[string]string{"strait.dev/algorithm": "maglev", "strait.dev/forwarding": "sideways"},
		Spec: map[string]any{"sessionAffinity": "ClientIP", "externalTrafficPolicy": "Local", "healthCheckNodePort": 31080,
			"loadBalancerSourceRanges": []string{"198.51.100.0/24"}, "sessionAffinityConfig": map[string]any{"clientIP": map[string]any{"timeoutSeconds": 600}}},
	}
	for _, n := range c.Nodes {
		p := n.AddPod("web-" + n.Name)
		p.Echo(echoPort)
		pods = append(pods, p)
		service.Endpoints = append(service.Endpoints, p.Endpoints()...)
	}
	service.Endpoints = append(service.Endpoints, testkit.ServiceEndpoint{Address: netip.MustParseAddr("10.244.9.9"), Node: "n9", Pod: "web-9", State: testkit.NotReady})
	objects := service.Objects()
	for _, o := range objects {
		if o["kind"] == "EndpointSlice" { // as kube-controller-manager notes it
			o["metadata"].(map[string]any)["annotations"] = map[string]string{"endpoints.kubernetes.io/last-change-trigger-time": time.Now().UTC().Format(time.RFC3339Nano)}
		}
	}
	c.Apply("service-web", objects...)
	c.Apply("service-db", map[string]any{"apiVersion": "v1", "kind": "Service", "metadata": map[string]any{"name": "db", "namespace": "default"},
		"spec": map[string]any{"type": "ExternalName", "externalName": "db.example.org"}})
	return service, pods
}

// listed waits until a node's kernel holds a frontend.
func listed(t *testing.T, n *testkit.Node, frontend string) (rows []localapi.Service) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		out, _ := strait(t, n, "service", "list", "-o", "json")
		if err := json.Unmarshal([]byte(out), &rows); err != nil {
			t.Fatalf("service list: %v\n%s", err, out)
		}
		for _, r := range rows {
			if r.Frontend.String() == frontend && r.Status == "done" && len(r.Backends) > 0 {
				return rows
			}
		}
	}
	t.Fatalf("%s never came\n%s", frontend, n.AgentLog())
	return nil
}

func TestServiceViews(t *testing.T) {
	testkit.RequireRoot(t)
	c := testkit.NewCluster(t, testkit.Options{})
	n := c.Nodes[0]
	for _, node := range c.Nodes {
		node.WaitReady(time.Minute)
	}
	service, pods := market(c)
	client := n.AddPod("client")
	rows := listed(t, n, "10.96.0.7:80")
	ids := map[string]uint32{}
	for _, r := range rows {
		ids[r.Frontend.String()+"/"+r.Protocol] = r.ID
	}
	wildcard, own := "0.0.0.0:30080/TCP", netip.AddrPortFrom(n.IPv4, webNode).String()+"/TCP"
	if ids[wildcard] == 0 || ids[own] != ids[wildcard] {
		t.Errorf("the node's address and the wildcard have ids %d and %d", ids[own], ids[wildcard])
	}

	stop := client.StartProbe(testkit.Probe{Network: "tcp", Address: testkit.HostPort(service.ClusterIPs[0], webPort), Timeout: 2 * time.Second, Size: 1000, For: 3 * time.Second, Interval: 100 * time.Millisecond, Keep: true})
	time.Sleep(time.Second)
	out, code := strait(t, n, "service", "show", "web", "-o", "json")
	var d localapi.ServiceDetail
	if err := json.Unmarshal([]byte(out), &d); err != nil || code != 0 {
		t.Fatalf("service show = %d, %v\n%s", code, err, out)
	}
	text, _ := strait(t, n, "service", "show", "web", "-o", "wide")
	t.Log(text)
	if a := stop(); a.OK == 0 {
		t.Errorf("client: %+v", a)
	}
	if d.Algorithm != "maglev" || d.AffinitySeconds != 600 || d.ExternalPolicy != "Local" || d.HealthCheckNodePort != 31080 || len(d.Problems) != 1 {
		t.Errorf("service web:\n%s", out)
	}
	var open, clients, out4 int
	var packets uint64
	for _, e := range d.Endpoints {
		open, clients, packets = open+int(e.Open), clients+e.Clients, packets+e.Traffic.ToPackets
		if e.State == "out" && e.Why == "not ready" && e.Pod == "default/web-9" {
			out4++
		}
	}
	if open != 1 || clients != 1 || packets == 0 || out4 != 2 { // TCP and UDP
		t.Errorf("open %d, clients %d, packets %d, out %d in\n%s", open, clients, packets, out4, text)
	}
	for _, want := range []struct {
		args []string
		text string
	}{
		{[]string{"service", "list"}, netip.AddrPortFrom(pods[0].IPv4, echoPort).String() + " (active)"},
		{[]string{"service", "list", "--type", "externalname"}, "resolved by DNS to db.example.org"},
		{[]string{"service", "rules", "web"}, "-A KUBE-NODEPORTS -p tcp -m comment --comment \"default/web:tcp\" -m tcp --dport 30080 -j KUBE-EXT-"},
		{[]string{"service", "rules", "web", "--as", "ipvs"}, "TCP  10.96.0.7:80 mh persistent 600"},
		{[]string{"status"}, "service default/web: "},
		{[]string{"status", "--verbose"}, "Maglev tables"},
	} {
		out, _ := strait(t, n, want.args...)
		if !strings.Contains(out, want.text) {
			t.Errorf("strait %v: want %s in\n%s", want.args, want.text, out)
		}
		t.Log(out)
	}
	metrics := n.Get("/metrics")
	for _, want := range []string{`strait_service_frontends{type="NodePort"} 4`, `strait_service_backends{state="used"} ` + strconv.Itoa(4*len(pods)), "strait_service_problems 1",
		"strait_service_programming_duration_seconds_sum 0."} { // a file source, so some tenths of a second
		if !strings.Contains(metrics, want) {
			t.Errorf("%s is not in the metrics", want)
		}
	}
	for line := range strings.Lines(metrics) {
		if strings.HasPrefix(line, "strait_service_programming") {
			t.Log(strings.TrimSpace(line))
		}
	}
}
