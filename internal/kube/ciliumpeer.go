package kube

import (
	"maps"
	"net/netip"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	ciliumv2 "github.com/strait-net/strait/api/cilium/v2"
	"github.com/strait-net/strait/internal/policy"
)

// ciliumPeers are the peers of one member of a rule.
type ciliumPeers struct {
	member string
	peers  []policy.Selector // nil: the rule has no such member
}

func (r *ciliumReader) ingressPeers(path *field.Path, p ciliumv2.IngressPeers) []policy.Selector {
	r.external(path, "fromRequires", len(p.FromRequires) > 0, "fromGroups", p.FromGroups != nil)
	return r.onePeers(path,
		ciliumPeers{"fromEndpoints", each(path.Child("fromEndpoints"), p.FromEndpoints, r.endpoint)},
		ciliumPeers{"fromEntities", each(path.Child("fromEntities"), p.FromEntities, r.entity)},
		ciliumPeers{"fromCIDR", each(path.Child("fromCIDR"), p.FromCIDR, r.address)},
		ciliumPeers{"fromCIDRSet", each(path.Child("fromCIDRSet"), p.FromCIDRSet, r.cidrRule)},
		ciliumPeers{"fromNodes", each(path.Child("fromNodes"), p.FromNodes, r.node)},
	)
}

func (r *ciliumReader) egressPeers(path *field.Path, p ciliumv2.EgressPeers) []policy.Selector {
	r.external(path, "toRequires", len(p.ToRequires) > 0, "toGroups", p.ToGroups != nil)
	return r.onePeers(path,
		ciliumPeers{"toEndpoints", each(path.Child("toEndpoints"), p.ToEndpoints, r.endpoint)},
		ciliumPeers{"toEntities", each(path.Child("toEntities"), p.ToEntities, r.entity)},
		ciliumPeers{"toCIDR", each(path.Child("toCIDR"), p.ToCIDR, r.address)},
		ciliumPeers{"toCIDRSet", each(path.Child("toCIDRSet"), p.ToCIDRSet, r.cidrRule)},
		ciliumPeers{"toNodes", each(path.Child("toNodes"), p.ToNodes, r.node)},
		ciliumPeers{"toServices", each(path.Child("toServices"), p.ToServices, r.service)},
	)
}

// external refuses what other rules, or other systems, would have to be asked for.
func (r *ciliumReader) external(path *field.Path, requires string, hasRequires bool, groups string, hasGroups bool) {
	r.unsupported(path.Child(requires), hasRequires, "Cilium has removed it; write its conditions into the selectors of each rule")
	r.unsupported(path.Child(groups), hasGroups, "providers of groups are not asked for addresses")
}

// onePeers returns the peers of the one member that a rule has: nil, everybody, if it has none, and nobody if one is there and empty.
func (r *ciliumReader) onePeers(path *field.Path, members ...ciliumPeers) []policy.Selector {
	var given ciliumPeers
	empty := false
	for _, m := range members {
		switch {
		case m.peers == nil:
		case len(m.peers) == 0:
			empty = true
		case given.peers != nil:
			r.reasons = append(r.reasons, path.Child(m.member).String()+": beside "+given.member+": want one kind of peers in a rule; write two rules")
		default:
			given = m
		}
	}
	if empty {
		return []policy.Selector{}
	}
	return given.peers
}

// entities are the names of sets of peers. Those that are none here have nobody: a manifest that lets them in opens nothing.
func entities() map[string]policy.Entity {
	return map[string]policy.Entity{
		"all":            policy.EntityAll,
		"world":          policy.EntityWorld,
		"world-ipv4":     policy.EntityWorldIPv4,
		"world-ipv6":     policy.EntityWorldIPv6,
		"cluster":        policy.EntityCluster,
		"host":           policy.EntityHost,
		"remote-node":    policy.EntityRemoteNode,
		"kube-apiserver": policy.EntityAPIServer,
		"unmanaged":      policy.EntityUnmanaged,
		"none":           policy.EntityNone,
		"health":         policy.EntityNone, // nodes are their own health endpoints
		"init":           policy.EntityNone, // a pod's labels are known before its first packet
		"ingress":        policy.EntityNone, // there is no Envoy
	}
}

func (r *ciliumReader) entity(path *field.Path, name string) policy.Selector {
	known := entities()
	e, ok := known[name]
	if !ok {
		names := slices.Sorted(maps.Keys(known))
		r.refuse(path, name, "unknown entity; accepted: %s", strings.Join(names, ", "))
	}
	return policy.Selector{Kind: policy.SelectEntity, Entity: e}
}

// address reads a member of fromCIDR: a prefix or an address. Pods and nodes are never meant by addresses.
func (r *ciliumReader) address(path *field.Path, text string) policy.Selector {
	if a, err := netip.ParseAddr(text); err == nil && a.Zone() == "" && !a.Is4In6() {
		return policy.Selector{Kind: policy.SelectCIDR, CIDR: netip.PrefixFrom(a, a.BitLen())}
	}
	return policy.Selector{Kind: policy.SelectCIDR, CIDR: r.cidr(path, text)}
}

func (r *ciliumReader) cidrRule(path *field.Path, c ciliumv2.CIDRRule) policy.Selector {
	grouped := c.CIDRGroupRef != "" || c.CIDRGroupSelector != nil
	r.unsupported(path.Child("cidrGroupRef"), c.CIDRGroupRef != "", "list the prefixes of the CiliumCIDRGroup instead")
	r.unsupported(path.Child("cidrGroupSelector"), c.CIDRGroupSelector != nil, "list the prefixes of the CiliumCIDRGroups instead")
	if grouped && c.CIDR == "" {
		return policy.Selector{Kind: policy.SelectCIDR}
	}
	s := policy.Selector{Kind: policy.SelectCIDR, CIDR: r.cidr(path.Child("cidr"), c.CIDR)}
	for i, text := range c.Except {
		path := path.Child("except").Index(i)
		except := r.cidr(path, text)
		if !except.IsValid() || !s.CIDR.IsValid() {
			continue
		}
		if !s.CIDR.Contains(except.Addr()) || except.Bits() < s.CIDR.Bits() {
			r.refuse(path, text, "want a CIDR within %s", s.CIDR)
		}
		if !slices.Contains(s.Except, except) {
			s.Except = append(s.Except, except)
		}
	}
	slices.SortFunc(s.Except, netip.Prefix.Compare)
	return s
}

// service reads a service by name: its endpoints are the peers.
func (r *ciliumReader) service(path *field.Path, s ciliumv2.Service) policy.Selector {
	out := policy.Selector{Kind: policy.SelectService}
	switch {
	case s.K8sServiceSelector != nil:
		r.unsupported(path.Child("k8sServiceSelector"), true, "name the services by k8sService, or their pods by toEndpoints")
	case s.K8sService == nil:
		r.reasons = append(r.reasons, path.Child("k8sService").String()+": is missing: want the name and the namespace of a service")
	default:
		path := path.Child("k8sService")
		if s.K8sService.Namespace == "" {
			r.unsupported(path.Child("namespace"), true, "services of a name in all namespaces; want a namespace")
		} else if errs := validation.IsDNS1123Label(s.K8sService.Namespace); len(errs) > 0 {
			r.refuse(path.Child("namespace"), s.K8sService.Namespace, "want the name of a namespace")
		}
		if errs := validation.IsDNS1035Label(s.K8sService.ServiceName); len(errs) > 0 && len(validation.IsDNS1123Label(s.K8sService.ServiceName)) > 0 {
			r.refuse(path.Child("serviceName"), s.K8sService.ServiceName, "want the name of a service")
		}
		out.Service = intern(s.K8sService.Namespace + "/" + s.K8sService.ServiceName)
	}
	return out
}
