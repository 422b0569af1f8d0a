package sample

import (
	"fmt"
	"slices"
	"strings"

	"github.com/strait-net/strait/internal/policy"
	"github.com/strait-net/strait/internal/policy/eval"
)

// Describe writes a cluster for a person who has to find out what goes wrong in it.
func Describe(c *eval.Cluster) string {
	var b strings.Builder
	fmt.Fprintf(&b, "cluster: mode %s, audit %v, pods in %v, API servers %v\n", c.Mode, c.Audit, c.CIDRs, c.APIServers)
	for _, n := range c.Namespaces {
		mode := "the cluster's"
		if n.Mode != nil {
			mode = n.Mode.String()
		}
		fmt.Fprintf(&b, "namespace %s: %s; mode %s, audit %v\n", n.Name, words(n.Labels), mode, n.Audit)
	}
	for _, n := range c.Nodes {
		fmt.Fprintf(&b, "node %s: %v; %s\n", n.Name, n.Addresses, words(n.Labels))
	}
	for _, p := range c.Pods {
		fmt.Fprintf(&b, "pod %s/%s on %s: %v; %s; account %s, ports %v, host network %v, audit %v\n", p.Namespace, p.Name, p.Node, p.Addresses,
			words(p.Labels), p.ServiceAccount, p.Ports, p.HostNetwork, p.Audit)
	}
	for _, s := range c.Services {
		fmt.Fprintf(&b, "service %s: %v\n", s.Name, s.Endpoints)
	}
	for i := range c.Policies {
		p := &c.Policies[i]
		fmt.Fprintf(&b, "%s spec %d: tier %s priority %d audit %v, for %s\n", p.Ref, p.Spec, p.Tier, p.Priority, p.Audit, p.Subject.Key())
		describeDirection(&b, policy.Ingress, p.Ingress)
		describeDirection(&b, policy.Egress, p.Egress)
	}
	return b.String()
}

// DescribeChange writes a cluster with the lines that a change removes and adds marked by - and +.
func DescribeChange(before, after *eval.Cluster) string {
	was, is := strings.Split(Describe(before), "\n"), strings.Split(Describe(after), "\n")
	var b strings.Builder
	for _, line := range was {
		if slices.Contains(is, line) {
			fmt.Fprintf(&b, "  %s\n", line)
		} else {
			fmt.Fprintf(&b, "- %s\n", line)
		}
	}
	for _, line := range is {
		if !slices.Contains(was, line) {
			fmt.Fprintf(&b, "+ %s\n", line)
		}
	}
	return b.String()
}

func describeDirection(b *strings.Builder, way policy.Way, d policy.Direction) {
	if d.Isolates {
		fmt.Fprintf(b, "  isolates %s\n", way)
	}
	for _, r := range d.Rules {
		fmt.Fprintf(b, "  %s %s: %s, peers ", way, r.Path, r.Action)
		if r.Peers == nil {
			b.WriteString("everybody")
		}
		for i, s := range r.Peers {
			if i > 0 {
				b.WriteString(" | ")
			}
			b.WriteString(s.Key())
		}
		if r.Ports == nil {
			b.WriteString("; every port\n")
			continue
		}
		fmt.Fprintf(b, "; ports %v\n", r.Ports)
	}
}

func words(l policy.Labels) string {
	out := make([]string, len(l))
	for i := range l {
		out[i] = l[i].Key + "=" + l[i].Value
	}
	return strings.Join(out, ",")
}
