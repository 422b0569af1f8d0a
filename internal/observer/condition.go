package observer

import (
	"encoding/hex"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"

	flowpb "github.com/cilium/cilium/api/v1/flow"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/strait-net/strait/internal/flow"
	"github.com/strait-net/strait/internal/policy"
)

// endpoint is where an end is reached: its address, and the service address that the beginner knows it by.
type endpoint struct{ at, front netip.AddrPort }

// byAddress matches addresses and prefixes. What was sent to a service was sent to both, the backend and the address of the service.
func byAddress(texts []string, at func(*part) endpoint) (match, error) {
	prefixes := make([]netip.Prefix, 0, len(texts))
	for _, text := range texts {
		p, err := netip.ParsePrefix(text)
		if !strings.Contains(text, "/") {
			var a netip.Addr
			a, err = netip.ParseAddr(text)
			p = netip.PrefixFrom(a.Unmap(), a.Unmap().BitLen())
		}
		if err != nil {
			return nil, fmt.Errorf("%q: want an address or a CIDR: %w", text, err)
		}
		prefixes = append(prefixes, p)
	}
	return func(p *part) bool {
		e := at(p)
		return slices.ContainsFunc(prefixes, func(want netip.Prefix) bool { return want.Contains(e.at.Addr()) || want.Contains(e.front.Addr()) })
	}, nil
}

func byPort(texts []string, at func(*part) endpoint) (match, error) {
	ports := make([]uint16, 0, len(texts))
	for _, text := range texts {
		n, err := strconv.ParseUint(text, 10, 16)
		if err != nil {
			return nil, fmt.Errorf("%q: want a port from 0 to 65535", text)
		}
		ports = append(ports, uint16(n))
	}
	return func(p *part) bool {
		e := at(p)
		return p.Protocol.HasPorts() && (slices.Contains(ports, e.at.Port()) || e.front.IsValid() && slices.Contains(ports, e.front.Port()))
	}, nil
}

// names are wanted as "namespace/prefix", "namespace/", "/prefix", or "prefix" in namespace default.
type names []struct{ namespace, prefix string }

func readNames(texts []string) (all names, err error) {
	for _, text := range texts {
		namespace, prefix, found := strings.Cut(text, "/")
		if !found {
			namespace, prefix = "default", text
		}
		if text == "" || strings.Contains(prefix, "/") {
			return nil, fmt.Errorf("%q: want [NAMESPACE/]PREFIX", text)
		}
		all = append(all, struct{ namespace, prefix string }{namespace, prefix})
	}
	return all, nil
}

func (all names) match(namespace, name string) bool {
	if namespace == "" && name == "" {
		return false
	}
	for _, w := range all {
		if strings.HasPrefix(name, w.prefix) && (w.namespace == "" || w.namespace == namespace) {
			return true
		}
	}
	return false
}

func byPod(texts []string, end func(*part) *flow.End) (match, error) {
	wanted, err := readNames(texts)
	return func(p *part) bool {
		pod := end(p).Pod
		return pod != nil && wanted.match(pod.Namespace, pod.Name)
	}, err
}

func bySelector(texts []string, of func(*part) endLabels) (match, error) {
	var all []labels.Selector
	for _, text := range texts {
		s, err := parseSelector(text)
		if err != nil {
			return nil, err
		}
		all = append(all, s)
	}
	return func(p *part) bool {
		set := of(p)
		return slices.ContainsFunc(all, func(s labels.Selector) bool { return s.Matches(set) })
	}, nil
}

// byCluster matches the cluster of pods and nodes: it is always this one.
func (s *setting) byCluster(names []string, end func(*part) *flow.End) (match, error) {
	if slices.Contains(names, "") {
		return nil, fmt.Errorf("%q: want the name of a cluster", "")
	}
	return func(p *part) bool { return slices.Contains(names, clusterOf(end(p), s.cluster)) }, nil
}

func byWorkload(wanted []*flowpb.Workload, end func(*part) *flow.End) match {
	return func(p *part) bool {
		w := workloadOf(end(p))
		return w != nil && slices.ContainsFunc(wanted, func(f *flowpb.Workload) bool {
			return (f.GetName() == "" || f.GetName() == w.Name) && (f.GetKind() == "" || f.GetKind() == w.Kind)
		})
	}
}

func byUUID(texts []string, b boot) (match, error) {
	var all []uuid
	for _, text := range texts {
		raw, err := hex.DecodeString(strings.ReplaceAll(text, "-", ""))
		if err != nil || len(raw) != len(uuid{}) {
			return nil, fmt.Errorf("%q: want a UUID", text)
		}
		all = append(all, uuid(raw))
	}
	return func(p *part) bool { return slices.Contains(all, b.uuid(p)) }, nil
}

// byEnum matches values of an enumeration; those that Hubble has no name for are refused.
func byEnum[E ~int32](values []E, names map[int32]string, of func(*part) E) (match, error) {
	for _, v := range values {
		if _, known := names[int32(v)]; !known {
			return nil, fmt.Errorf("%d: %w: this version knows no such value", v, errUnsupported)
		}
	}
	return func(p *part) bool { return slices.Contains(values, of(p)) }, nil
}

// byType matches types of events. What policy denies is told once, as a verdict: who asks for drops gets it, too.
func byType(wanted []*flowpb.EventTypeFilter) match {
	return func(p *part) bool {
		return slices.ContainsFunc(wanted, func(w *flowpb.EventTypeFilter) bool {
			is := func(kind, sub int32) bool {
				return (w.GetType() == 0 || w.GetType() == kind) && (!w.GetMatchSubType() || w.GetSubType() == sub)
			}
			return is(p.kind, p.sub) || p.verdict == flowpb.Verdict_DROPPED && is(typeDrop, int32(dropReason(p.Reason)))
		})
	}
}

func byProtocol(texts []string) (match, error) {
	var all []policy.Protocol
	for _, text := range texts {
		switch strings.ToLower(text) {
		case "icmp":
			all = append(all, policy.ICMP, policy.ICMPv6)
		case "icmpv4":
			all = append(all, policy.ICMP)
		case "icmpv6":
			all = append(all, policy.ICMPv6)
		case "tcp":
			all = append(all, policy.TCP)
		case "udp":
			all = append(all, policy.UDP)
		case "sctp":
			all = append(all, policy.SCTP)
		case "vrrp":
			all = append(all, protocolVRRP)
		case "igmp":
			all = append(all, protocolIGMP)
		case "dns", "http": // of L7: no flow has one yet
		default:
			return nil, fmt.Errorf("%q: want tcp, udp, sctp, icmp, icmpv4, icmpv6, vrrp, igmp, dns or http", text)
		}
	}
	return func(p *part) bool { return slices.Contains(all, p.Protocol) }, nil
}

// byFlags matches when all flags of one of the wanted sets are there.
func byFlags(wanted []*flowpb.TCPFlags) match {
	var masks []uint8
	var impossible []bool
	for _, f := range wanted {
		masks = append(masks, flagBits(f))
		impossible = append(impossible, f.GetNS()) // it is not in the byte that is recorded
	}
	return func(p *part) bool {
		if p.Protocol != policy.TCP {
			return false
		}
		for i, m := range masks {
			if !impossible[i] && p.TCPFlags&m == m {
				return true
			}
		}
		return false
	}
}

// byNode matches patterns of node names: "worker-*", "cluster/worker-1", "cluster/".
func (s *setting) byNode(patterns []string) (match, error) {
	here := false
	for _, text := range patterns {
		cluster, node, found := strings.Cut(text, "/")
		if !found {
			cluster, node = "", text
		}
		if text == "" || text == "/" {
			return nil, fmt.Errorf("%q: want [CLUSTER/]NODE, with * for any letters", text)
		}
		ok := true
		for _, side := range [][2]string{{cluster, s.cluster}, {node, s.node}} {
			if side[0] == "" {
				continue
			}
			r, err := namePattern(side[0])
			if err != nil {
				return nil, fmt.Errorf("%q: %w", text, err)
			}
			ok = ok && r.MatchString(side[1])
		}
		here = here || ok
	}
	return func(*part) bool { return here }, nil
}

func (s *setting) byInterface(wanted []*flowpb.NetworkInterface) match {
	return func(p *part) bool {
		if p.Device == 0 {
			return false
		}
		return slices.ContainsFunc(wanted, func(w *flowpb.NetworkInterface) bool {
			return (w.GetIndex() == 0 || w.GetIndex() == p.Device) && (w.GetName() == "" || w.GetName() == s.device(p.Device))
		})
	}
}

// namePattern reads a pattern of a domain name, * for any letters of one.
func namePattern(text string) (*regexp.Regexp, error) {
	name := strings.ToLower(strings.TrimSuffix(strings.TrimSpace(text), "."))
	if name == "" || strings.HasSuffix(name, ".") || strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789-_.*") != "" {
		return nil, fmt.Errorf("%q: want letters, digits, - _ . and * for any of them", text)
	}
	for _, c := range name {
		if !strings.ContainsRune("abcdefghijklmnopqrstuvwxyz0123456789-_.*", c) {
			return nil, fmt.Errorf("%q: want letters, digits, - _ . and * for any of them", text)
		}
	}
	return regexp.Compile(`\A` + strings.ReplaceAll(regexp.QuoteMeta(name), `\*`, `[-_.0-9a-z]*`) + `\z`)
}

func checkNames(patterns []string) error {
	for _, p := range patterns {
		if _, err := namePattern(p); err != nil {
			return err
		}
	}
	return nil
}

func checkExpressions(texts []string) error {
	for _, text := range texts {
		if _, err := regexp.Compile(text); err != nil {
			return fmt.Errorf("%q: want a regular expression: %w", text, err)
		}
	}
	return nil
}

// checkStatusCodes reads "404", "40+", "5+".
func checkStatusCodes(texts []string) error {
	for _, text := range texts {
		digits, prefix := strings.CutSuffix(text, "+")
		n, err := strconv.Atoi(digits)
		if err != nil || digits[0] < '1' || digits[0] > '5' || n < 0 || !prefix && len(digits) != 3 || prefix && len(digits) > 2 {
			return fmt.Errorf("%q: want a status code, as 404 or 5+", text)
		}
	}
	return nil
}
