package sample

import (
	"slices"

	"github.com/strait-net/strait/internal/policy"
	"github.com/strait-net/strait/internal/policy/eval"
)

// Shrink returns the smallest cluster it can find that still fails, leaving out one thing after the other. It gives up on nothing: when it
// returns, whatever is left is needed.
func Shrink(c *eval.Cluster, fails func(*eval.Cluster) bool) *eval.Cluster {
	for again := true; again; {
		again = false
		for i := 0; ; i++ {
			next := Clone(c)
			if !leaveOut(next, i) {
				break
			}
			if fails(next) {
				c, again = next, true
				i-- // what was behind it has moved up
			}
		}
	}
	return c
}

// leaveOut leaves the i-th thing out of c; false: there are not that many.
func leaveOut(c *eval.Cluster, i int) bool {
	l := leaver{at: i}
	c.Policies = without(&l, c.Policies)
	c.Pods = without(&l, c.Pods)
	c.APIServers = without(&l, c.APIServers)
	c.Services = without(&l, c.Services)
	c.CIDRs = without(&l, c.CIDRs)
	for i := range c.Policies {
		p := &c.Policies[i]
		cleared(&l, &p.Audit)
		cleared(&l, &p.Priority)
		cleared(&l, &p.Spec)
		l.selector(&p.Subject)
		l.direction(&p.Ingress)
		l.direction(&p.Egress)
	}
	for i := range c.Pods {
		p := &c.Pods[i]
		cleared(&l, &p.Audit)
		cleared(&l, &p.HostNetwork)
		p.Labels = without(&l, p.Labels)
		p.Ports = without(&l, p.Ports)
		p.Addresses = without(&l, p.Addresses)
	}
	for i := range c.Namespaces {
		n := &c.Namespaces[i]
		cleared(&l, &n.Audit)
		cleared(&l, &n.Mode)
		n.Labels = without(&l, n.Labels)
	}
	for i := range c.Nodes {
		n := &c.Nodes[i]
		n.Labels = without(&l, n.Labels)
		n.Addresses = without(&l, n.Addresses)
	}
	for i := range c.Services {
		c.Services[i].Endpoints = without(&l, c.Services[i].Endpoints)
	}
	cleared(&l, &c.Mode)
	cleared(&l, &c.Audit)
	return l.done
}

// leaver counts things until it is at the one to leave out.
type leaver struct {
	at   int
	done bool
}

// here reports whether the next n things contain the one to leave out, and which of them it is.
func (l *leaver) here(n int) (int, bool) {
	if l.done || l.at >= n {
		if !l.done {
			l.at -= n
		}
		return 0, false
	}
	l.done = true
	return l.at, true
}

func without[S ~[]T, T any](l *leaver, s S) S {
	if i, ok := l.here(len(s)); ok {
		return slices.Delete(s, i, i+1)
	}
	return s
}

func cleared[T comparable](l *leaver, v *T) {
	var zero T
	if *v == zero {
		return
	}
	if _, ok := l.here(1); ok {
		*v = zero
	}
}

func (l *leaver) direction(d *policy.Direction) {
	cleared(l, &d.Isolates)
	d.Rules = without(l, d.Rules)
	for i := range d.Rules {
		r := &d.Rules[i]
		r.Peers = without(l, r.Peers)
		r.Ports = without(l, r.Ports)
		for j := range r.Peers {
			l.selector(&r.Peers[j])
		}
		for j := range r.Ports {
			p := &r.Ports[j]
			if p.First != p.Last {
				if i, ok := l.here(2); ok && i == 0 {
					p.First = p.Last
				} else if ok {
					p.Last = p.First
				}
			}
		}
	}
}

func (l *leaver) selector(s *policy.Selector) {
	s.Requirements = without(l, s.Requirements)
	s.Except = without(l, s.Except)
	for i := range s.Requirements {
		if r := &s.Requirements[i]; len(r.Values) > 1 {
			r.Values = without(l, r.Values)
		}
	}
}

// Clone copies a cluster so deeply that the copy can be changed anywhere. nil and empty lists stay what they are: rules tell them apart.
func Clone(c *eval.Cluster) *eval.Cluster {
	next := *c
	next.Namespaces = slices.Clone(c.Namespaces)
	for i := range next.Namespaces {
		next.Namespaces[i].Labels = slices.Clone(c.Namespaces[i].Labels)
	}
	next.Pods = slices.Clone(c.Pods)
	for i := range next.Pods {
		p := &next.Pods[i]
		p.Labels, p.Ports, p.Addresses = slices.Clone(p.Labels), slices.Clone(p.Ports), slices.Clone(p.Addresses)
	}
	next.Nodes = slices.Clone(c.Nodes)
	for i := range next.Nodes {
		n := &next.Nodes[i]
		n.Labels, n.Addresses = slices.Clone(n.Labels), slices.Clone(n.Addresses)
	}
	next.APIServers, next.CIDRs = slices.Clone(c.APIServers), slices.Clone(c.CIDRs)
	next.Services = slices.Clone(c.Services)
	for i := range next.Services {
		next.Services[i].Endpoints = slices.Clone(c.Services[i].Endpoints)
	}
	next.Policies = slices.Clone(c.Policies)
	for i := range next.Policies {
		p := &next.Policies[i]
		p.Subject = cloneSelector(p.Subject)
		p.Ingress, p.Egress = cloneDirection(p.Ingress), cloneDirection(p.Egress)
	}
	return &next
}

func cloneDirection(d policy.Direction) policy.Direction {
	d.Rules = slices.Clone(d.Rules)
	for i := range d.Rules {
		r := &d.Rules[i]
		r.Peers, r.Ports = slices.Clone(r.Peers), slices.Clone(r.Ports)
		for j := range r.Peers {
			r.Peers[j] = cloneSelector(r.Peers[j])
		}
	}
	return d
}

func cloneSelector(s policy.Selector) policy.Selector {
	s.Except, s.Requirements = slices.Clone(s.Except), slices.Clone(s.Requirements)
	for i := range s.Requirements {
		s.Requirements[i].Values = slices.Clone(s.Requirements[i].Values)
	}
	return s
}
