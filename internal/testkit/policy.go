package testkit

import (
	"fmt"
	"os"
	"path/filepath"
)

// PodSpec is what Kubernetes says about a pod. The zero value is a pod of the namespace default without labels.
type PodSpec struct {
	Namespace   string
	Labels      map[string]string
	Annotations map[string]string
	Ports       []ContainerPort
}

// ContainerPort is a port with a name.
type ContainerPort struct {
	Name     string `json:"name"`
	Port     int    `json:"containerPort"`
	Protocol string `json:"protocol"`
}

// AddPodAs makes a Pod object, attaches the pod through the plugin, and writes its addresses into the object, as the kubelet does.
func (n *Node) AddPodAs(name string, spec PodSpec) *Pod {
	n.t.Helper()
	p := n.NewSandbox(name)
	p.Spec = &spec
	p.Write()
	if err := p.Attach(); err != nil {
		n.t.Fatalf("attach %s: %v\n%s", name, err, tail([]byte(n.AgentLog()), 4000))
	}
	p.Write()
	return p
}

// Write writes the Pod object with the present Spec and addresses.
func (p *Pod) Write() {
	p.node.t.Helper()
	var ips []any
	if p.Result != nil {
		ips = []any{map[string]any{"ip": p.IPv4.String()}, map[string]any{"ip": p.IPv6.String()}}
	}
	p.node.cluster.Apply(p.file(), map[string]any{
		"apiVersion": "v1", "kind": "Pod",
		"metadata": map[string]any{
			"name": p.Name, "namespace": p.KubernetesNamespace(), "uid": p.ContainerID, "labels": p.Spec.Labels, "annotations": p.Spec.Annotations,
		},
		"spec":   map[string]any{"nodeName": p.node.Name, "containers": []any{map[string]any{"name": "main", "ports": p.Spec.Ports}}},
		"status": map[string]any{"phase": "Running", "podIPs": ips},
	})
}

// Relabel changes the pod's labels.
func (p *Pod) Relabel(labels map[string]string) {
	p.node.t.Helper()
	p.Spec.Labels = labels
	p.Write()
}

// Forget removes the Pod object.
func (p *Pod) Forget() {
	p.node.t.Helper()
	p.node.cluster.Remove(p.file())
}

func (p *Pod) file() string { return "pod-" + p.KubernetesNamespace() + "-" + p.Name }

// KubernetesNamespace returns the namespace of the Pod object.
func (p *Pod) KubernetesNamespace() string {
	if p.Spec == nil || p.Spec.Namespace == "" {
		return "default"
	}
	return p.Spec.Namespace
}

// ApplyNamespace writes a Namespace object, with the label that Kubernetes gives every one.
func (c *Cluster) ApplyNamespace(name string, labels, annotations map[string]string) {
	c.t.Helper()
	all := map[string]string{"kubernetes.io/metadata.name": name}
	for k, v := range labels {
		all[k] = v
	}
	c.Apply("namespace-"+name, map[string]any{
		"apiVersion": "v1", "kind": "Namespace", "metadata": map[string]any{"name": name, "labels": all, "annotations": annotations},
	})
}

// ApplyText writes a manifest into a file of the static source.
func (c *Cluster) ApplyText(file, manifest string) {
	c.t.Helper()
	path := filepath.Join(c.objects, file+".yaml")
	must(c.t, os.WriteFile(path+".tmp", []byte(manifest), 0o644))
	must(c.t, os.Rename(path+".tmp", path))
}

// String names the pod as Kubernetes does.
func (p *Pod) String() string { return fmt.Sprintf("%s/%s", p.KubernetesNamespace(), p.Name) }
