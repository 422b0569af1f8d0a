package kube

import (
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/strait-net/strait/internal/policy"
	"github.com/strait-net/strait/internal/state"
)

func TestToPod(t *testing.T) {
	for _, c := range []struct{ name, pod, want, err string }{
		{"everything", `
metadata: {name: web-0, namespace: a, uid: u, labels: {tier: front, app: web}, annotations: {policy.strait.dev/audit: "true", strait.dev/addresses: 10.9.9.9}}
spec:
  nodeName: n1
  serviceAccountName: robot
  hostNetwork: true
  containers:
  - {name: c, ports: [{name: http, containerPort: 80}, {containerPort: 81}, {name: dns, protocol: UDP, containerPort: 53}]}
  - {name: d, ports: [{name: http, containerPort: 82}, {name: dns, protocol: TCP, containerPort: 53}]}
  initContainers:
  - {name: once, ports: [{name: setup, containerPort: 1}]}
  - {name: side, restartPolicy: Always, ports: [{name: metrics, protocol: SCTP, containerPort: 9090}]}
status:
  podIPs: [{ip: 10.1.0.7}, {ip: "fd00:1::7"}]`,
			"a/web-0 u on n1 [10.1.0.7 fd00:1::7] true robot [{app web} {tier front}] [{http TCP 80} {dns UDP 53} {dns TCP 53} {metrics SCTP 9090}] true", ""},
		{"published by its agent", `{metadata: {name: p, namespace: a, annotations: {strait.dev/addresses: "10.1.0.7, fd00:1::7"}}, spec: {nodeName: n1}}`, "a/p  on n1 claims [10.1.0.7 fd00:1::7] false  [] [] false", ""},
		{"published more than there can be", `{metadata: {name: p, namespace: a, annotations: {strait.dev/addresses: "10.1.0.7,10.1.0.8,fd00:1::7,10.1.0.7"}}, spec: {nodeName: n1}}`,
			"a/p  on n1 claims [10.1.0.7 fd00:1::7] false  [] [] false",
			`metadata.annotations[strait.dev/addresses]: "10.1.0.8": want one address of each family; it is left out`},
		{"claimed without a node", `{metadata: {name: p, namespace: a, annotations: {strait.dev/addresses: "10.1.0.7"}}}`, "a/p  on  [] false  [] [] false", ""},
		{"static", `{metadata: {name: p, namespace: a, uid: u, annotations: {kubernetes.io/config.mirror: hash}}}`, "a/p hash on  [] false  [] [] false", ""},
		{"without addresses", `{metadata: {name: p, namespace: a}}`, "a/p  on  [] false  [] [] false", ""},
		{"published nonsense", `{metadata: {name: p, namespace: a, annotations: {strait.dev/addresses: "10.1.0.7,ten"}}, spec: {nodeName: n1}}`, "a/p  on n1 claims [10.1.0.7] false  [] [] false",
			`metadata.annotations[strait.dev/addresses]: "ten": want an IPv4 or IPv6 address; it is left out`},
		{"audit", `{metadata: {name: p, namespace: a, annotations: {policy.strait.dev/audit: "yes"}}}`, "a/p  on  [] false  [] [] false",
			`metadata.annotations[policy.strait.dev/audit]: "yes": accepted: true, false; false is assumed`},
		{"port", `{metadata: {name: p, namespace: a}, spec: {containers: [{name: c, ports: [{name: x, containerPort: 70000}, {name: y, protocol: ICMP, containerPort: 7}, {name: z, containerPort: 7}]}]}}`,
			"a/p  on  [] false  [] [{z TCP 7}] false", `port x of container c: 70000: want 1 to 65535; it is left out`},
		{"ended well", `{metadata: {name: p, namespace: a}, status: {phase: Succeeded, podIPs: [{ip: 10.1.0.7}]}}`, "", ""},
		{"ended badly", `{metadata: {name: p, namespace: a}, status: {phase: Failed, podIPs: [{ip: 10.1.0.7}]}}`, "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			p, ok, err := ToPod(parse[*corev1.Pod](t, "apiVersion: v1\nkind: Pod\n"+strings.TrimSuffix(strings.TrimPrefix(flow(c.pod), "\n"), "\n")))
			got := ""
			if ok {
				addresses := fmt.Sprint(p.Addresses)
				if p.Claimed {
					addresses = "claims " + addresses
				}
				got = fmt.Sprint(p.Key(), " ", p.UID, " on ", p.Node, " ", addresses, " ", p.HostNetwork, " ", p.ServiceAccount, " ", p.Labels, " ", p.Ports, " ", p.Audit)
			}
			if got != c.want || (err == nil) != (c.err == "") || err != nil && !strings.HasPrefix(err.Error(), c.err) {
				t.Errorf("got\n%s\n%v\nwant\n%s\n%s", got, err, c.want, c.err)
			}
		})
	}
	bad := &corev1.Pod{}
	bad.Labels = map[string]string{"app": "\xff"}
	if _, _, err := ToPod(bad); err == nil || err.Error() != `metadata.labels: "app": "\xff": want UTF-8` {
		t.Errorf("labels that are not UTF-8: %v", err)
	}
}

func TestWorkloadOfPod(t *testing.T) {
	yes, no := true, false
	for _, c := range []struct {
		kind, name string
		controller *bool
		hash, want string
	}{
		{"ReplicaSet", "web-7d4b9c8f6d", &yes, "7d4b9c8f6d", "Deployment/web"},
		{"ReplicaSet", "a-b-7d4b9c8f6d", &yes, "7d4b9c8f6d", "Deployment/a-b"},
		{"ReplicaSet", "web", &yes, "", "ReplicaSet/web"},
		{"ReplicaSet", "web-7d4b9c8f6d", &yes, "other", "ReplicaSet/web-7d4b9c8f6d"},
		{"StatefulSet", "db", &yes, "", "StatefulSet/db"},
		{"Job", "backup-29384", &yes, "", "Job/backup-29384"},
		{"Rollout", "web-7d4b9c8f6d", &yes, "7d4b9c8f6d", "Rollout/web-7d4b9c8f6d"},
		{"Node", "n1", &yes, "", ""}, // static
		{"ConfigMap", "mine", &no, "", ""},
		{"ConfigMap", "mine", nil, "", ""},
	} {
		p := &corev1.Pod{}
		p.OwnerReferences = []metav1.OwnerReference{{Kind: "Other", Name: "first"}, {Kind: c.kind, Name: c.name, Controller: c.controller}}
		if c.hash != "" {
			p.Labels = map[string]string{"pod-template-hash": c.hash}
		}
		row, _, err := ToPod(p)
		if err != nil || row.Workload != c.want {
			t.Errorf("%s %s with hash %q: %q, %v; want %q", c.kind, c.name, c.hash, row.Workload, err, c.want)
		}
	}
}

// OPS-4: pods of a Deployment have their labels and ports in memory once, in whatever order they come.
func TestPodsOfADeploymentShareMemory(t *testing.T) {
	made := podMaker(t)
	st := state.New()
	s := newStore(st, pods(TablesOf(st)))
	var list []any
	for i := range 30 {
		list = append(list, made(i))
	}
	if err := s.Replace(list[:20], ""); err != nil {
		t.Fatal(err)
	}
	changed := made(7)
	changed.Labels["version"] = "v2"
	for _, o := range append(list[20:], changed) {
		if err := s.Add(o); err != nil {
			t.Fatal(err)
		}
	}
	labels, ports := map[*policy.Label]int{}, map[*policy.NamedPort]int{}
	for pod := range st.Pods.Snapshot().All() {
		if len(pod.Labels) != 5 || len(pod.Ports) != 2 {
			t.Fatalf("pod %+v", pod)
		}
		labels[&pod.Labels[0]]++
		ports[&pod.Ports[0]]++
	}
	if len(labels) != 4 || len(ports) > 4 {
		t.Errorf("labels %d times, ports %d times in memory, want 4 (one pod has been changed), 4 at most", len(labels), len(ports))
	}
}

// flow turns an object in flow style into its fields, to be put behind apiVersion and kind.
func flow(text string) string {
	if inner, ok := strings.CutPrefix(text, "{"); ok {
		text = strings.TrimSuffix(inner, "}")
		for _, field := range []string{"spec", "status"} {
			text = strings.Replace(text, ", "+field+":", "\n"+field+":", 1)
		}
	}
	return text
}

func TestToNamespace(t *testing.T) {
	always, never, standard := policy.ModeAlways, policy.ModeNever, policy.ModeDefault
	for _, c := range []struct {
		metadata string
		mode     *policy.Mode
		audit    bool
		labels   string
		err      string
	}{
		{`{name: a}`, nil, false, "[{kubernetes.io/metadata.name a}]", ""},
		{`{name: a, labels: {zoo: z, app: b, kubernetes.io/metadata.name: a}}`, nil, false, "[{app b} {kubernetes.io/metadata.name a} {zoo z}]", ""},
		{`{name: a, labels: {zoo: z, app: b}, annotations: {policy.strait.dev/enforcement: always, policy.strait.dev/audit: "true"}}`, &always, true,
			"[{app b} {kubernetes.io/metadata.name a} {zoo z}]", ""},
		{`{name: a, annotations: {policy.strait.dev/enforcement: never}}`, &never, false, "[{kubernetes.io/metadata.name a}]", ""},
		{`{name: a, annotations: {policy.strait.dev/enforcement: default, policy.strait.dev/audit: "false"}}`, &standard, false, "[{kubernetes.io/metadata.name a}]", ""},
		{`{name: a, annotations: {policy.strait.dev/enforcement: Always, policy.strait.dev/audit: "true"}}`, nil, true, "[{kubernetes.io/metadata.name a}]",
			`metadata.annotations[policy.strait.dev/enforcement]: "Always": accepted: default, always, never; the cluster's is used`},
	} {
		n, err := ToNamespace(parse[*corev1.Namespace](t, "apiVersion: v1\nkind: Namespace\nmetadata: "+c.metadata))
		if fmt.Sprint(n.Labels) != c.labels || n.Audit != c.audit || (n.Mode == nil) != (c.mode == nil) || n.Mode != nil && *n.Mode != *c.mode {
			t.Errorf("%s: got %+v", c.metadata, n)
		}
		if (err == nil) != (c.err == "") || err != nil && err.Error() != c.err {
			t.Errorf("%s: %v, want %s", c.metadata, err, c.err)
		}
	}
}
