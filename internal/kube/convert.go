package kube

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"
	"unique"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/strait-net/strait/internal/state"
)

// NotReadyTaint keeps pods off a node until its network has worked once.
const NotReadyTaint = "strait.dev/not-ready"

// ToNode returns the row of a Node. An address or CIDR that cannot be read fails the whole object: half a node would be routed wrongly.
func ToNode(o *corev1.Node) (state.Node, error) {
	n := state.Node{Name: o.Name, UID: string(o.UID), Zone: intern(o.Labels[corev1.LabelTopologyZone]), Created: o.CreationTimestamp.Time}
	_, n.NoLoadBalancer = o.Labels[corev1.LabelNodeExcludeBalancers]
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
	var err error
	n.Labels, err = toLabels(o.Labels)
	errs = append(errs, err)
	n.Tainted = slices.ContainsFunc(o.Spec.Taints, func(t corev1.Taint) bool { return t.Key == NotReadyTaint })
	return n, errors.Join(errs...)
}

// triggerOf reads what kube-controller-manager notes for measuring how long a change takes. Of one that cannot be read nothing depends.
func triggerOf(o *discoveryv1.EndpointSlice) time.Time {
	at, err := time.Parse(time.RFC3339Nano, o.Annotations[corev1.EndpointsLastChangeTriggerTime])
	if err != nil {
		return time.Time{}
	}
	return at.UTC()
}

// ToEndpointSlice returns the row of an EndpointSlice; ok is false for one that belongs to no service, or whose addresses are names.
func ToEndpointSlice(o *discoveryv1.EndpointSlice) (row state.EndpointSlice, ok bool, err error) {
	service := o.Labels[discoveryv1.LabelServiceName]
	_, headless := o.Labels[corev1.IsHeadlessService]
	if service == "" || o.AddressType == discoveryv1.AddressTypeFQDN {
		return state.EndpointSlice{}, false, nil
	}
	row = state.EndpointSlice{
		Namespace: intern(o.Namespace),
		Name:      o.Name,
		Service:   state.ServiceName{Namespace: intern(o.Namespace), Name: service},
		Headless:  headless,
		Trigger:   triggerOf(o),
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
			Zone:        intern(deref(e.Zone, "")),
			Pod:         podOf(o.Namespace, e.TargetRef),
		})
		if e.Hints != nil {
			addHints(row.Endpoints, e.Hints)
		}
	}
	return row, true, errors.Join(errs...)
}

// podOf returns namespace/name of what an endpoint refers to if that is a pod.
func podOf(namespace string, ref *corev1.ObjectReference) string {
	if ref == nil || ref.Kind != "Pod" || ref.Name == "" {
		return ""
	}
	if ref.Namespace != "" {
		namespace = ref.Namespace
	}
	return namespace + "/" + ref.Name
}

// addHints gives the last endpoint its hints. They are the same for many endpoints of a slice, which then share them.
func addHints(endpoints []state.SliceEndpoint, hints *discoveryv1.EndpointHints) {
	e := &endpoints[len(endpoints)-1]
	for _, z := range hints.ForZones {
		e.ForZones = append(e.ForZones, intern(z.Name))
	}
	for _, n := range hints.ForNodes {
		e.ForNodes = append(e.ForNodes, intern(n.Name))
	}
	const near = 8 // enough for zones; endpoints are not compared each with each
	for _, earlier := range endpoints[max(0, len(endpoints)-1-near) : len(endpoints)-1] {
		if slices.Equal(earlier.ForZones, e.ForZones) {
			e.ForZones = earlier.ForZones
		}
		if slices.Equal(earlier.ForNodes, e.ForNodes) {
			e.ForNodes = earlier.ForNodes
		}
	}
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

// intern makes equal strings share memory: node names, namespaces, zones and port names repeat in every endpoint.
func intern(s string) string {
	if s == "" {
		return ""
	}
	return unique.Make(s).Value()
}
