package testkit

import (
	"maps"
	"net/netip"
	"strings"
)

// Service is a Service with one port, for TCP and UDP, and its EndpointSlices, one per family.
type Service struct {
	Name       string // in the namespace default
	Type       string // default ClusterIP
	Port       int
	TargetPort int
	NodePort   int // of both protocols; 0: none
	ClusterIPs []netip.Addr
	Ingress    []netip.Addr // status.loadBalancer
	// Spec is merged over the rest of the object's spec.
	Spec        map[string]any
	Annotations map[string]string
	Endpoints   []ServiceEndpoint
}

// ServiceEndpoint is one endpoint; the zero State is ready.
type ServiceEndpoint struct {
	Address netip.Addr
	Node    string
	Zone    string
	State   EndpointState
	Pod     string
}

// EndpointState is the state of an endpoint.
type EndpointState int

// The states of an endpoint.
const (
	Ready   EndpointState = iota
	Serving               // terminating, but still answering
	NotReady
)

// Endpoints are the addresses of a pod as endpoints.
func (p *Pod) Endpoints() (out []ServiceEndpoint) {
	for _, v6 := range []bool{false, true} {
		if a := p.Address(v6); a.IsValid() {
			out = append(out, ServiceEndpoint{Address: a, Node: p.node.Name, Pod: p.Name})
		}
	}
	return out
}

// Serve writes the objects of a service; again, with what has changed.
func (c *Cluster) Serve(s Service) {
	c.t.Helper()
	c.Apply("service-"+s.Name, s.Objects()...)
}

// ApplyService writes a ClusterIP Service with ready backends.
func (c *Cluster) ApplyService(name string, port int, clusterIPs []netip.Addr, targetPort int, backends ...netip.Addr) {
	c.t.Helper()
	c.Apply("service-"+name, ServiceObjects(name, port, clusterIPs, targetPort, backends...)...)
}

// ServiceObjects returns the objects of ApplyService.
func ServiceObjects(name string, port int, clusterIPs []netip.Addr, targetPort int, backends ...netip.Addr) []map[string]any {
	s := Service{Name: name, Port: port, TargetPort: targetPort, ClusterIPs: clusterIPs}
	for _, b := range backends {
		s.Endpoints = append(s.Endpoints, ServiceEndpoint{Address: b})
	}
	return s.Objects()
}

// Objects returns the Service and its slices.
func (s Service) Objects() []map[string]any {
	if s.Type == "" {
		s.Type = "ClusterIP"
	}
	var servicePorts, slicePorts []any
	for _, proto := range []string{"TCP", "UDP"} {
		port := map[string]any{"name": strings.ToLower(proto), "port": s.Port, "targetPort": s.TargetPort, "protocol": proto}
		if s.NodePort != 0 {
			port["nodePort"] = s.NodePort
		}
		servicePorts = append(servicePorts, port)
		slicePorts = append(slicePorts, map[string]any{"name": strings.ToLower(proto), "port": s.TargetPort, "protocol": proto})
	}
	spec := map[string]any{"type": s.Type, "ports": servicePorts}
	if len(s.ClusterIPs) > 0 {
		spec["clusterIP"], spec["clusterIPs"] = s.ClusterIPs[0].String(), s.ClusterIPs
	}
	maps.Copy(spec, s.Spec)
	var ingress []any
	for _, a := range s.Ingress {
		ingress = append(ingress, map[string]any{"ip": a.String(), "ipMode": "VIP"})
	}
	objects := []map[string]any{{
		"apiVersion": "v1", "kind": "Service",
		"metadata": map[string]any{"name": s.Name, "namespace": "default", "annotations": s.Annotations},
		"spec":     spec, "status": map[string]any{"loadBalancer": map[string]any{"ingress": ingress}},
	}}
	for _, family := range []string{"IPv4", "IPv6"} {
		endpoints := []any{}
		for _, e := range s.Endpoints {
			if e.Address.Is6() == (family == "IPv6") {
				endpoints = append(endpoints, e.object())
			}
		}
		objects = append(objects, map[string]any{
			"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
			"metadata": map[string]any{
				"name": s.Name + "-" + strings.ToLower(family), "namespace": "default",
				"labels": map[string]any{"kubernetes.io/service-name": s.Name},
			},
			"addressType": family, "ports": slicePorts, "endpoints": endpoints,
		})
	}
	return objects
}

func (e ServiceEndpoint) object() map[string]any {
	o := map[string]any{
		"addresses":  []string{e.Address.String()},
		"conditions": map[string]any{"ready": e.State == Ready, "serving": e.State != NotReady, "terminating": e.State == Serving},
	}
	if e.Node != "" {
		o["nodeName"] = e.Node
	}
	if e.Zone != "" {
		o["zone"] = e.Zone
	}
	if e.Pod != "" {
		o["targetRef"] = map[string]any{"kind": "Pod", "namespace": "default", "name": e.Pod}
	}
	return o
}
