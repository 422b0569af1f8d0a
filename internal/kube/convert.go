package kube

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"unique"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/strait-net/strait/internal/state"
)

// NotReadyTaint keeps pods off a node until its network has worked once.
const NotReadyTaint = "strait.dev/not-ready"

// proxyNameLabel on a Service or its slices names the proxy that serves it instead of the cluster's own.
const proxyNameLabel = "service.kubernetes.io/service-proxy-name"

// ToNode returns the row of a Node. An address or CIDR that cannot be read fails the whole object: half a node would be routed wrongly.
func ToNode(o *corev1.Node) (state.Node, error) {
	n := state.Node{Name: o.Name, UID: string(o.UID), Created: o.CreationTimestamp.Time}
	var errs []error
	for i, a := range o.Status.Addresses {
		if a.Type != corev1.NodeInternalIP {
			continue
		}
		addr, err := parseAddr(a.Address)
		if err != nil {
			errs = append(errs, fmt.Errorf("status.addresses[%d]: %w", i, err))
			continue
		}
		if !slices.Contains(n.Addresses, addr) {
			n.Addresses = append(n.Addresses, addr)
		}
	}
	cidrs := o.Spec.PodCIDRs
	if len(cidrs) == 0 && o.Spec.PodCIDR != "" {
		cidrs = []string{o.Spec.PodCIDR}
	}
	for i, text := range cidrs {
		p, err := netip.ParsePrefix(text)
		if err != nil || p.Addr().Is4In6() {
			errs = append(errs, fmt.Errorf("spec.podCIDRs[%d]: %q: want a CIDR such as 10.244.1.0/24", i, text))
			continue
		}
		n.PodCIDRs = append(n.PodCIDRs, p.Masked())
	}
	n.Tainted = slices.ContainsFunc(o.Spec.Taints, func(t corev1.Taint) bool { return t.Key == NotReadyTaint })
	return n, errors.Join(errs...)
}

// ToService returns the row of a Service.
func ToService(o *corev1.Service) (state.Service, error) {
	_, headlessLabel := o.Labels[corev1.IsHeadlessService]
	s := state.Service{
		ServiceName:     state.ServiceName{Namespace: o.Namespace, Name: o.Name},
		Type:            state.ServiceType(o.Spec.Type),
		Headless:        headlessLabel || o.Spec.ClusterIP == corev1.ClusterIPNone,
		PublishNotReady: o.Spec.PublishNotReadyAddresses,
		Proxy:           o.Labels[proxyNameLabel],
		Created:         o.CreationTimestamp.Time,
	}
	if s.Type == "" {
		s.Type = state.ClusterIP
	}
	var errs []error
	switch s.Type {
	case state.ClusterIP, state.NodePort, state.LoadBalancer, state.ExternalName:
	default:
		errs = append(errs, fmt.Errorf("spec.type: %q: unknown; accepted: ClusterIP, NodePort, LoadBalancer, ExternalName", s.Type))
	}
	clusterIPs := o.Spec.ClusterIPs
	if len(clusterIPs) == 0 && o.Spec.ClusterIP != "" {
		clusterIPs = []string{o.Spec.ClusterIP}
	}
	for i, text := range clusterIPs {
		if text == corev1.ClusterIPNone || text == "" {
			continue
		}
		addr, err := parseAddr(text)
		if err != nil {
			errs = append(errs, fmt.Errorf("spec.clusterIPs[%d]: %w", i, err))
			continue
		}
		s.ClusterIPs = append(s.ClusterIPs, addr)
	}
	for i, p := range o.Spec.Ports {
		proto, err := parseProtocol(&p.Protocol)
		if err != nil {
			errs = append(errs, fmt.Errorf("spec.ports[%d].protocol: %w", i, err))
			continue
		}
		if p.Port < 1 || p.Port > 65535 || p.NodePort < 0 || p.NodePort > 65535 {
			errs = append(errs, fmt.Errorf("spec.ports[%d]: port %d, nodePort %d: want 1 to 65535", i, p.Port, p.NodePort))
			continue
		}
		s.Ports = append(s.Ports, state.ServicePort{Name: p.Name, Port: uint16(p.Port), Protocol: proto, NodePort: uint16(p.NodePort)})
	}
	return s, errors.Join(errs...)
}

// ToEndpointSlice returns the row of an EndpointSlice; ok is false for one that can never have a frontend: its service
// is headless, or it belongs to no service, or its addresses are names.
func ToEndpointSlice(o *discoveryv1.EndpointSlice) (row state.EndpointSlice, ok bool, err error) {
	service := o.Labels[discoveryv1.LabelServiceName]
	_, headless := o.Labels[corev1.IsHeadlessService]
	if service == "" || headless || o.AddressType == discoveryv1.AddressTypeFQDN {
		return state.EndpointSlice{}, false, nil
	}
	row = state.EndpointSlice{
		Namespace: intern(o.Namespace),
		Name:      o.Name,
		Service:   state.ServiceName{Namespace: intern(o.Namespace), Name: service},
	}
	var errs []error
	for i, p := range o.Ports {
		if p.Port == nil {
			continue // "all ports": no service of Kubernetes makes one
		}
		proto, err := parseProtocol(p.Protocol)
		if err != nil {
			errs = append(errs, fmt.Errorf("ports[%d].protocol: %w", i, err))
			continue
		}
		if *p.Port < 0 || *p.Port > 65535 {
			errs = append(errs, fmt.Errorf("ports[%d].port: %d: want 1 to 65535", i, *p.Port))
			continue
		}
		row.Ports = append(row.Ports, state.EndpointPort{Name: intern(deref(p.Name, "")), Port: uint16(*p.Port), Protocol: proto})
	}
	row.Endpoints = make([]state.SliceEndpoint, 0, len(o.Endpoints))
	for i, e := range o.Endpoints {
		// Consumers use the first address only: discovery/v1, Endpoint.addresses.
		if len(e.Addresses) == 0 {
			continue
		}
		addr, err := parseAddr(e.Addresses[0])
		if err != nil {
			errs = append(errs, fmt.Errorf("endpoints[%d].addresses[0]: %w", i, err))
			continue
		}
		ready := deref(e.Conditions.Ready, true)
		row.Endpoints = append(row.Endpoints, state.SliceEndpoint{
			Address:     addr,
			Ready:       ready,
			Serving:     deref(e.Conditions.Serving, ready),
			Terminating: deref(e.Conditions.Terminating, false),
			Node:        intern(deref(e.NodeName, "")),
		})
	}
	return row, true, errors.Join(errs...)
}

func parseAddr(text string) (netip.Addr, error) {
	a, err := netip.ParseAddr(text)
	if err != nil || a.Zone() != "" {
		return netip.Addr{}, fmt.Errorf("%q: want an IPv4 or IPv6 address", text)
	}
	return a.Unmap(), nil
}

func parseProtocol(p *corev1.Protocol) (state.Protocol, error) {
	switch deref(p, corev1.ProtocolTCP) {
	case corev1.ProtocolTCP, "":
		return state.TCP, nil
	case corev1.ProtocolUDP:
		return state.UDP, nil
	case corev1.ProtocolSCTP:
		return state.SCTP, nil
	}
	return 0, fmt.Errorf("%q: unknown; accepted: TCP, UDP, SCTP", *p)
}

func deref[T any](p *T, otherwise T) T {
	if p == nil {
		return otherwise
	}
	return *p
}

// intern makes equal strings share memory: node names, namespaces and port names repeat in every endpoint.
func intern(s string) string { return unique.Make(s).Value() }
