package kube

import (
	"context"
	"fmt"
	"net/netip"
)

// Paths of the collections that a run writes to.
const (
	NodePath    = "/api/v1/nodes"
	ServicePath = "/api/v1/namespaces/default/services"
	SlicePath   = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices"
)

// Node is a Node object.
type Node struct {
	Name      string
	Addresses []netip.Addr
	PodCIDRs  []netip.Prefix // IPv4 first
}

// Object renders the node as a kubelet registers it.
func (n Node) Object() Object {
	var addresses []Object
	for _, a := range n.Addresses {
		addresses = append(addresses, Object{"type": "InternalIP", "address": a.String()})
	}
	return Object{
		"apiVersion": "v1", "kind": "Node", "metadata": Object{"name": n.Name, "labels": Object{"kubernetes.io/hostname": n.Name}},
		"spec": Object{"podCIDR": n.PodCIDRs[0].String(), "podCIDRs": n.PodCIDRs},
		"status": Object{"addresses": addresses, "conditions": []Object{{"type": "Ready", "status": "True", "reason": "Bench",
			"lastHeartbeatTime": nil, "lastTransitionTime": nil}}},
	}
}

// Port is a port of a service and of its endpoints.
type Port struct {
	Number   int
	Target   int
	NodePort int    // 0: none
	Protocol string // TCP or UDP
}

func (p Port) name() string { return fmt.Sprintf("p%d", p.Number) }

// Service is a Service without selector.
type Service struct {
	Name        string
	Addresses   map[int]netip.Addr // cluster addresses by family; IPv4 is always there
	Ports       []Port
	Annotations map[string]string
}

// Object renders the service; with a node port it is of type NodePort.
func (s Service) Object() Object {
	kind, addresses, families := "ClusterIP", []string{s.Addresses[4].String()}, []string{"IPv4"}
	policy := "SingleStack"
	if a, ok := s.Addresses[6]; ok {
		addresses, families, policy = append(addresses, a.String()), append(families, "IPv6"), "RequireDualStack"
	}
	var ports []Object
	for _, p := range s.Ports {
		o := Object{"name": p.name(), "port": p.Number, "targetPort": p.Target, "protocol": p.Protocol}
		if p.NodePort > 0 {
			kind, o["nodePort"] = "NodePort", p.NodePort
		}
		ports = append(ports, o)
	}
	return Object{
		"apiVersion": "v1", "kind": "Service", "metadata": Object{"name": s.Name, "annotations": s.Annotations},
		"spec": Object{"type": kind, "clusterIP": addresses[0], "clusterIPs": addresses, "ipFamilies": families, "ipFamilyPolicy": policy, "ports": ports},
	}
}

// SliceName is the name of a service's EndpointSlice of a family.
func (s Service) SliceName(family int) string { return fmt.Sprintf("%s-v%d", s.Name, family) }

// Endpoint is an address behind a service; Node may be empty.
type Endpoint struct {
	Address netip.Addr
	Node    string
}

// Slice renders the service's EndpointSlice of a family.
func (s Service) Slice(family int, endpoints ...Endpoint) Object {
	var ports []Object
	for _, p := range s.Ports {
		ports = append(ports, Object{"name": p.name(), "port": p.Target, "protocol": p.Protocol})
	}
	list := []Object{}
	for _, e := range endpoints {
		o := Object{"addresses": []string{e.Address.String()}, "conditions": Object{"ready": true, "serving": true, "terminating": false}}
		if e.Node != "" {
			o["nodeName"] = e.Node
		}
		list = append(list, o)
	}
	return Object{
		"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": fmt.Sprintf("IPv%d", family),
		"metadata": Object{"name": s.SliceName(family), "labels": Object{"kubernetes.io/service-name": s.Name, "endpointslice.kubernetes.io/managed-by": "bench"}},
		"ports":    ports, "endpoints": list,
	}
}

// Publish creates a service with one endpoint per family.
func (s *Server) Publish(ctx context.Context, service Service, backend map[int]netip.Addr, node string) error {
	if err := s.Create(ctx, ServicePath, service.Object()); err != nil {
		return err
	}
	for family, a := range backend {
		if err := s.Create(ctx, SlicePath, service.Slice(family, Endpoint{a, node})); err != nil {
			return err
		}
	}
	return nil
}
