package kube

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/strait-net/strait/internal/state"
)

// proxyNameLabel on a Service or its slices names the proxy that serves it instead of the cluster's own.
const proxyNameLabel = "service.kubernetes.io/service-proxy-name"

// The bounds of spec.sessionAffinityConfig.clientIP.timeoutSeconds, and what counts where it is absent.
const (
	affinityMaximum = 86400 * time.Second
	affinityDefault = 10800 * time.Second
)

// Partial is an error about parts of an object that were left out or replaced by their defaults: the row that came with it counts.
type Partial struct{ Err error }

// Error lists the parts.
func (p *Partial) Error() string { return p.Err.Error() }

// Unwrap returns what was wrong.
func (p *Partial) Unwrap() error { return p.Err }

// serviceReader converts one Service.
type serviceReader struct {
	o     *corev1.Service
	row   state.Service
	fatal []error // the object cannot be used
	parts []error // what is served without
}

// ToService returns the row of a Service. With a *Partial error the row counts all the same: a wrong annotation must not take a service
// away. What is left out never opens a service to more clients than it names.
func ToService(o *corev1.Service) (state.Service, error) {
	_, headlessLabel := o.Labels[corev1.IsHeadlessService]
	r := serviceReader{o: o, row: state.Service{
		ServiceName:     state.ServiceName{Namespace: intern(o.Namespace), Name: o.Name},
		Headless:        headlessLabel || o.Spec.ClusterIP == corev1.ClusterIPNone,
		PublishNotReady: o.Spec.PublishNotReadyAddresses,
		Proxy:           o.Labels[proxyNameLabel],
		Target:          o.Spec.ExternalName,
		Distribution:    intern(deref(o.Spec.TrafficDistribution, "")),
		UID:             string(o.UID),
		Created:         o.CreationTimestamp.Time,
	}}
	r.kind()
	r.clusterIPs()
	r.ports()
	r.policies()
	r.row.ExternalIPs = r.addresses("spec.externalIPs", o.Spec.ExternalIPs)
	if r.row.Type == state.LoadBalancer {
		r.loadBalancer()
	}
	r.annotations()
	switch {
	case len(r.fatal) > 0:
		return r.row, errors.Join(append(r.fatal, r.parts...)...)
	case len(r.parts) > 0:
		return r.row, &Partial{errors.Join(r.parts...)}
	}
	return r.row, nil
}

func (r *serviceReader) refuse(format string, args ...any) {
	r.fatal = append(r.fatal, fmt.Errorf(format, args...))
}

func (r *serviceReader) leaveOut(format string, args ...any) {
	r.parts = append(r.parts, fmt.Errorf(format, args...))
}

func (r *serviceReader) kind() {
	kinds := []state.ServiceType{state.ClusterIP, state.NodePort, state.LoadBalancer, state.ExternalName}
	text := state.ServiceType(r.o.Spec.Type)
	if text == "" {
		text = state.ClusterIP
	}
	i := slices.Index(kinds, text)
	if i < 0 {
		r.refuse("spec.type: %q: unknown; accepted: %s", text, list(kinds))
		return
	}
	r.row.Type = kinds[i] // the constant: the object's own string would stay in memory
}

func (r *serviceReader) clusterIPs() {
	texts := r.o.Spec.ClusterIPs
	if len(texts) == 0 && r.o.Spec.ClusterIP != "" {
		texts = []string{r.o.Spec.ClusterIP}
	}
	for i, text := range texts {
		if text == corev1.ClusterIPNone || text == "" {
			continue
		}
		addr, err := parseAddr(text)
		if err != nil {
			r.refuse("spec.clusterIPs[%d]: %w", i, err)
			continue
		}
		r.row.ClusterIPs = append(r.row.ClusterIPs, addr)
	}
	for i, f := range r.o.Spec.IPFamilies {
		switch f {
		case corev1.IPv4Protocol, corev1.IPv6Protocol:
			r.row.Families = append(r.row.Families, f == corev1.IPv6Protocol)
		default:
			r.leaveOut("spec.ipFamilies[%d]: %q: unknown; accepted: IPv4, IPv6", i, f)
		}
	}
}

func (r *serviceReader) ports() {
	for i, p := range r.o.Spec.Ports {
		proto, err := parseProtocol(&p.Protocol)
		if err != nil {
			r.refuse("spec.ports[%d].protocol: %w", i, err)
			continue
		}
		if p.Port < 1 || p.Port > 65535 || p.NodePort < 0 || p.NodePort > 65535 {
			r.refuse("spec.ports[%d]: port %d, nodePort %d: want 1 to 65535", i, p.Port, p.NodePort)
			continue
		}
		r.row.Ports = append(r.row.Ports, state.ServicePort{Name: intern(p.Name), Port: uint16(p.Port), Protocol: proto, NodePort: uint16(p.NodePort)})
	}
	if p := r.o.Spec.HealthCheckNodePort; p < 0 || p > 65535 {
		r.leaveOut("spec.healthCheckNodePort: %d: want 1 to 65535; there is none", p)
	} else {
		r.row.HealthCheckNodePort = uint16(p)
	}
}

func (r *serviceReader) policies() {
	spec := r.o.Spec
	r.row.ExternalPolicy = r.policy("externalTrafficPolicy", string(spec.ExternalTrafficPolicy))
	r.row.InternalPolicy = r.policy("internalTrafficPolicy", string(deref(spec.InternalTrafficPolicy, "")))
	switch spec.SessionAffinity {
	case corev1.ServiceAffinityNone, "":
	case corev1.ServiceAffinityClientIP:
		r.row.Affinity = affinityDefault
		if c := spec.SessionAffinityConfig; c != nil && c.ClientIP != nil && c.ClientIP.TimeoutSeconds != nil {
			timeout := time.Duration(*c.ClientIP.TimeoutSeconds) * time.Second
			if timeout < time.Second || timeout > affinityMaximum {
				r.leaveOut("spec.sessionAffinityConfig.clientIP.timeoutSeconds: %d: want 1 to %.0f; %.0f is used",
					*c.ClientIP.TimeoutSeconds, affinityMaximum.Seconds(), affinityDefault.Seconds())
				return
			}
			r.row.Affinity = timeout
		}
	default:
		r.leaveOut("spec.sessionAffinity: %q: unknown; accepted: None, ClientIP; None is used", spec.SessionAffinity)
	}
}

func (r *serviceReader) policy(field, text string) state.TrafficPolicy {
	switch text {
	case "":
		return ""
	case string(state.PolicyCluster):
		return state.PolicyCluster
	case string(state.PolicyLocal):
		return state.PolicyLocal
	}
	r.leaveOut("spec.%s: %q: unknown; accepted: Cluster, Local; Cluster is used", field, text)
	return state.PolicyCluster
}

// loadBalancer reads what only that type has.
func (r *serviceReader) loadBalancer() {
	r.row.Class = deref(r.o.Spec.LoadBalancerClass, "")
	r.row.Labels = r.o.Labels
	r.row.Allocation = allocation(r.o)
	for i, ingress := range r.o.Status.LoadBalancer.Ingress {
		// With ipMode Proxy the balancer wants to see the connections of the cluster's own clients, too.
		if ingress.IP == "" || deref(ingress.IPMode, corev1.LoadBalancerIPModeVIP) != corev1.LoadBalancerIPModeVIP {
			continue
		}
		addr, err := parseAddr(ingress.IP)
		if err != nil {
			r.leaveOut("status.loadBalancer.ingress[%d].ip: %w; it is not served", i, err)
			continue
		}
		r.row.Ingress = append(r.row.Ingress, addr)
	}
	for i, text := range r.o.Spec.LoadBalancerSourceRanges {
		p, err := netip.ParsePrefix(strings.TrimSpace(text))
		if err != nil || p.Addr().Is4In6() {
			r.leaveOut("spec.loadBalancerSourceRanges[%d]: %q: want a CIDR such as 192.0.2.0/24; its clients are not served", i, text)
			continue
		}
		r.row.SourceRanges = append(r.row.SourceRanges, p.Masked())
	}
	if len(r.o.Spec.LoadBalancerSourceRanges) > 0 && len(r.row.SourceRanges) == 0 {
		r.row.Ingress = nil // without a range they would be everybody's
	}
	r.requested()
}

// addresses reads a list of addresses, each once.
func (r *serviceReader) addresses(field string, texts []string) []netip.Addr {
	var out []netip.Addr
	for i, text := range texts {
		addr, err := parseAddr(strings.TrimSpace(text))
		if err != nil {
			r.leaveOut("%s[%d]: %w; it is not served", field, i, err)
			continue
		}
		if !slices.Contains(out, addr) {
			out = append(out, addr)
		}
	}
	return out
}

// list prints accepted values.
func list[T ~string](values []T) string {
	texts := make([]string, len(values))
	for i, v := range values {
		texts[i] = string(v)
	}
	return strings.Join(texts, ", ")
}
