package connectivity

import (
	"fmt"
	"net/url"
	"slices"
	"strconv"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// The workloads, each a deployment of one pod, and the services.
const (
	echoA     = "echo-a"
	echoB     = "echo-b"
	echoBHost = "echo-b-host" // in the network of the node that echo-b is on

	client1       = "client-1"    // on the node of echo-b
	client2       = "client-2"    // on the other node
	clientHost    = "client-host" // in the network of the other node
	clientDenied  = "pod-to-a-denied-cnp"
	clientAllowed = "pod-to-a-allowed-cnp"
	clientFQDN    = "pod-to-external-fqdn-allow-cnp"

	echoBHeadless = "echo-b-headless"
)

// Ports of the servers. In a node's network they are others, because the node's own programs have the common ones.
const (
	portHTTP, portUDP = 8080, 8081
	hostHTTP, hostUDP = 19880, 19881
)

// portOf is the port of a service for the scheme of a URL.
func portOf(scheme string) int32 {
	if scheme == "udp" {
		return portUDP
	}
	return portHTTP
}

const (
	nameLabel = "name" // of a workload
	// runLabel marks a namespace of the test; it is runOn until the test ends and runKept when its pods were to stay.
	runLabel = "connectivity.strait.dev/test"
	runOn    = "running"
	runKept  = "kept"

	container = "echo"
	nobody    = 65534
)

// plan is what is put where.
type plan struct {
	namespace string
	image     string
	pull      corev1.PullPolicy
	here      string // node of echo-b
	there     string // the other node; the same when there is one only
	external  *url.URL
	scenarios []Scenario // that will be run
	// closed: what no policy allows is denied, in this cluster or on one of the nodes.
	closed bool
}

// workload is one deployment.
type workload struct {
	name   string
	node   string
	host   bool // in the node's network
	server bool
}

// workloads are those that the scenarios need, servers first.
func (p plan) workloads() []workload {
	all := []workload{
		{echoA, p.there, false, true}, {echoB, p.here, false, true}, {echoBHost, p.here, true, true},
		{client1, p.here, false, false}, {client2, p.there, false, false}, {clientHost, p.there, true, false},
		{clientDenied, p.here, false, false}, {clientAllowed, p.here, false, false}, {clientFQDN, p.here, false, false},
	}
	needed := func(w workload) bool {
		return slices.ContainsFunc(p.scenarios, func(s Scenario) bool {
			return w.name == s.client || w.name == s.server || w.name == echoBHost && s.server == echoB
		})
	}
	return slices.DeleteFunc(all, func(w workload) bool { return !needed(w) })
}

func (p plan) namespaceObject() *corev1.Namespace {
	return &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: p.namespace, Labels: map[string]string{
		"app.kubernetes.io/managed-by": "strait",
		runLabel:                       runOn,
		// Pods in the network of their node are among those of the test.
		"pod-security.kubernetes.io/enforce": "privileged",
		"pod-security.kubernetes.io/audit":   "privileged",
		"pod-security.kubernetes.io/warn":    "privileged",
	}}}
}

// deployment is pinned to its node by the scheduler, which knows ports that are taken; taints were looked at when the node was chosen.
func (p plan) deployment(w workload) *appsv1.Deployment {
	labels := map[string]string{nameLabel: w.name, "app.kubernetes.io/managed-by": "strait"}
	one, grace, no, yes, user := int32(1), int64(1), false, true, int64(nobody)
	c := corev1.Container{
		Name: container, Image: p.image, ImagePullPolicy: p.pull, Command: p.command(w),
		Env: []corev1.EnvVar{
			{Name: "POD_NAME", ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.name"}}},
			{Name: "NODE_NAME", ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: "spec.nodeName"}}},
		},
		TerminationMessagePolicy: corev1.TerminationMessageFallbackToLogsOnError,
		SecurityContext: &corev1.SecurityContext{
			RunAsNonRoot: &yes, RunAsUser: &user, RunAsGroup: &user, AllowPrivilegeEscalation: &no, ReadOnlyRootFilesystem: &yes,
			Capabilities:   &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
			SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
		},
	}
	if w.server {
		http, udp := w.ports()
		c.Ports = []corev1.ContainerPort{{Name: "http", ContainerPort: http}, {Name: "udp", ContainerPort: udp, Protocol: corev1.ProtocolUDP}}
		c.ReadinessProbe = &corev1.Probe{PeriodSeconds: 1, TimeoutSeconds: 2, ProbeHandler: corev1.ProbeHandler{
			HTTPGet: &corev1.HTTPGetAction{Path: "/", Port: intstr.FromInt32(http)}}}
	}
	spec := corev1.PodSpec{
		Containers: []corev1.Container{c}, HostNetwork: w.host,
		AutomountServiceAccountToken: &no, EnableServiceLinks: &no, TerminationGracePeriodSeconds: &grace,
		Affinity: &corev1.Affinity{NodeAffinity: &corev1.NodeAffinity{RequiredDuringSchedulingIgnoredDuringExecution: &corev1.NodeSelector{
			NodeSelectorTerms: []corev1.NodeSelectorTerm{{MatchFields: []corev1.NodeSelectorRequirement{
				{Key: "metadata.name", Operator: corev1.NodeSelectorOpIn, Values: []string{w.node}}}}}}}},
	}
	if w.host {
		spec.DNSPolicy = corev1.DNSClusterFirstWithHostNet
	}
	return &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: w.name, Namespace: p.namespace, Labels: labels},
		Spec: appsv1.DeploymentSpec{
			Replicas: &one, Strategy: appsv1.DeploymentStrategy{Type: appsv1.RecreateDeploymentStrategyType},
			Selector: &metav1.LabelSelector{MatchLabels: map[string]string{nameLabel: w.name}},
			Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: spec},
		},
	}
}

func (w workload) ports() (http, udp int32) {
	switch {
	case !w.server:
		return 0, 0
	case w.host:
		return hostHTTP, hostUDP
	}
	return portHTTP, portUDP
}

// command is that of a server; clients run it without ports, to be there for strait ask.
func (p plan) command(w workload) []string {
	http, udp := w.ports()
	return []string{"strait", "echo", "--http-port=" + strconv.Itoa(int(http)), "--udp-port=" + strconv.Itoa(int(udp))}
}

// services are those of the servers that are deployed, in all families the cluster has.
func (p plan) services() []*corev1.Service {
	var out []*corev1.Service
	add := func(name, of string, kind corev1.ServiceType, headless bool) {
		families := corev1.IPFamilyPolicyPreferDualStack
		s := &corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: p.namespace, Labels: map[string]string{"app.kubernetes.io/managed-by": "strait"}},
			Spec: corev1.ServiceSpec{
				Type: kind, Selector: map[string]string{nameLabel: of}, IPFamilyPolicy: &families,
				Ports: []corev1.ServicePort{
					{Name: "http", Port: portHTTP, TargetPort: intstr.FromString("http")},
					{Name: "udp", Port: portUDP, TargetPort: intstr.FromString("udp"), Protocol: corev1.ProtocolUDP},
				},
			},
		}
		if headless {
			s.Spec.ClusterIP = corev1.ClusterIPNone
		}
		out = append(out, s)
	}
	for _, w := range p.workloads() {
		switch w.name {
		case echoA:
			add(echoA, echoA, corev1.ServiceTypeClusterIP, false)
		case echoB:
			add(echoB, echoB, corev1.ServiceTypeNodePort, false)
			add(echoBHeadless, echoB, corev1.ServiceTypeClusterIP, true)
		case echoBHost:
			add(echoBHost, echoBHost, corev1.ServiceTypeClusterIP, true)
		}
	}
	return out
}

// restPolicy allows in a closed cluster what no policy of the test is about: everything to and from the other pods.
const restPolicy = "all-but-clients-with-a-policy"

func (p plan) rest() string {
	return fmt.Sprintf(`apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: %s
  namespace: %s
spec:
  podSelector:
    matchExpressions:
    - {key: %s, operator: NotIn, values: [%s, %s, %s]}
  policyTypes: [Ingress, Egress]
  ingress: [{}]
  egress: [{}]
`, restPolicy, p.namespace, nameLabel, clientDenied, clientAllowed, clientFQDN)
}

// policies are manifests, as people write them, by the name that the policy has in common with the client it judges.
func (p plan) policies() map[string]string {
	head := func(name, says string) string {
		return fmt.Sprintf(`apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata:
  name: %[1]s
  namespace: %[2]s
spec:
  description: %[3]s
  endpointSelector:
    matchLabels:
      name: %[1]s
  egress:
`, name, p.namespace, says)
	}
	out := map[string]string{}
	for _, s := range p.scenarios {
		switch s.policy {
		case clientDenied:
			out[s.policy] = head(s.policy, "this pod may ask echo-b and nobody else") + `  - toEndpoints:
    - matchLabels:
        name: echo-b
`
		case clientAllowed:
			out[s.policy] = head(s.policy, "this pod may ask echo-a and nobody else") + fmt.Sprintf(`  - toEndpoints:
    - matchLabels:
        name: echo-a
    toPorts:
    - ports:
      - port: "%d"
        protocol: TCP
`, portHTTP)
		case clientFQDN:
			out[s.policy] = head(s.policy, "this pod may ask one name outside") + fmt.Sprintf(`  - toEntities:
    - cluster
    toPorts:
    - ports:
      - port: "53"
        protocol: ANY
      rules:
        dns:
        - matchPattern: "*"
  - toFQDNs:
    - matchName: %q
`, p.external.Hostname())
		}
	}
	return out
}
