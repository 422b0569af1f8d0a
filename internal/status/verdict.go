package status

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/strait-net/strait/internal/identity"
	"github.com/strait-net/strait/internal/localapi"
	"github.com/strait-net/strait/internal/policy"
	"github.com/strait-net/strait/internal/state"
)

// Connection is the first packet of a connection as one end sees it.
type Connection struct {
	Local    netip.Addr // of a pod of this node; zero: the node itself
	Way      policy.Way
	Peer     netip.Addr
	Protocol policy.Protocol
	Port     uint16 // of whom it goes to; ICMP: type << 8 | code
}

// Judgement is what the kernel's tables say to a connection.
type Judgement struct {
	Program  policy.ID   // of the local end; 0: nothing is enforced there
	Identity identity.ID // of the peer
	policy.Verdict
}

// The names of ends that are no pods.
const (
	endWorld = "world"
	endHost  = "host"
)

// end is one end of the connection asked about.
type end struct {
	localapi.VerdictEnd
	local bool // judged on this node, if anywhere
	host  bool // it is a node
}

// verdict judges a connection in both directions, as far as its ends are on this node.
func (s Sources) verdict(q localapi.VerdictQuestion) (localapi.PolicyVerdict, error) {
	out := localapi.PolicyVerdict{Node: s.Node, Port: q.Port, Sides: []localapi.VerdictSide{}}
	protocol := policy.Protocol(q.Protocol)
	out.Protocol = protocol.String()
	from, err := s.endOf(q.Source)
	if err != nil {
		return out, fmt.Errorf("source %w", err)
	}
	to, err := s.endOf(q.Destination)
	if err != nil {
		return out, fmt.Errorf("destination %w", err)
	}
	out.Source, out.Destination = from.VerdictEnd, to.VerdictEnd
	if q.PortName != "" {
		if out.Port, err = s.namedPort(to, q.PortName, protocol); err != nil {
			return out, err
		}
	}
	if err := s.notService(to, out.Port, protocol); err != nil {
		return out, err
	}
	pairs := families(from, to, protocol)
	if len(pairs) == 0 {
		return out, localapi.BadQuestion("%s and %s have no addresses of the same family", q.Source, q.Destination)
	}
	if from.Pod != "" && from.Pod == to.Pod {
		out.Note, out.Verdict = "a pod always reaches itself", out.Sum()
		return out, nil
	}
	for _, way := range []policy.Way{policy.Egress, policy.Ingress} {
		own := from
		if way == policy.Ingress {
			own = to
		}
		if !own.local {
			if own.judged(s) {
				out.Elsewhere = append(out.Elsewhere, localapi.VerdictElsewhere{Direction: way.String(), Subject: own.subject(), Node: own.Node})
			}
			continue
		}
		var sides []localapi.VerdictSide
		for _, p := range pairs {
			c := Connection{Local: p.from, Way: way, Peer: p.to, Protocol: p.protocol, Port: p.port(out.Port)}
			if way == policy.Ingress {
				c.Local, c.Peer = p.to, p.from
			}
			if own.host {
				c.Local = netip.Addr{}
			}
			sides = append(sides, s.side(own, c, p.family))
		}
		out.Sides = append(out.Sides, together(sides)...)
	}
	if len(out.Sides)+len(out.Elsewhere) == 0 {
		out.Note = "neither end is a pod, and no policy selects nodes here: nothing judges this"
	}
	out.Verdict = out.Sum()
	return out, nil
}

// endOf reads a pod, an address, world or host.
func (s Sources) endOf(text string) (end, error) {
	e := end{VerdictEnd: localapi.VerdictEnd{Text: text}}
	nodes := s.State.Nodes.Snapshot()
	switch text {
	case endWorld:
		e.Kind, e.Addresses = policy.WorldPeer.String(), s.outside()
		return e, nil
	case endHost:
		node, _, _ := nodes.Get(s.Node)
		return s.nodeEnd(e, node), nil
	}
	if a, err := netip.ParseAddr(text); err == nil {
		return s.endAt(e, a.Unmap().WithZone("")), nil
	}
	name := text
	if !strings.Contains(text, "/") {
		name = "default/" + text
	}
	pod, _, ok := s.State.Pods.Snapshot().Get(name)
	if !ok {
		if node, _, ok := nodes.Get(text); ok {
			return s.nodeEnd(e, node), nil
		}
		return e, fmt.Errorf("%q: %w: %s", text, localapi.ErrNotFound, s.podsLike(name))
	}
	if len(pod.Addresses) == 0 {
		return e, localapi.BadQuestion("%q: the pod has no address yet", text)
	}
	return s.podEnd(e, pod), nil
}

// podsLike says which pods there are, for somebody who asked for one that is not.
func (s Sources) podsLike(name string) string {
	const most = 8
	ns, _, _ := strings.Cut(name, "/")
	var names []string
	for p := range state.PodsOf(s.State.Pods.Snapshot(), ns) {
		names = append(names, p.Name)
	}
	if len(names) == 0 {
		return "no pod is known in namespace " + ns + " (want a pod as NAMESPACE/NAME, an address, world or host)"
	}
	slices.Sort(names)
	more := ""
	if len(names) > most {
		names, more = names[:most], fmt.Sprintf(" and %d more", len(names)-most)
	}
	return "pods of namespace " + ns + " are " + strings.Join(names, ", ") + more
}

func (s Sources) podEnd(e end, pod state.Pod) end {
	e.Pod, e.Node, e.Addresses, e.local = pod.Key(), pod.Node, pod.Addresses, pod.Node == s.Node
	e.Kind = policy.PodPeer.String()
	if e.host = pod.HostNetwork; e.host { // to policy it is its node
		e.Kind = s.nodeKind(pod.Node)
	}
	return e
}

func (s Sources) nodeEnd(e end, node state.Node) end {
	e.Node, e.Addresses, e.local, e.host, e.Kind = node.Name, node.Addresses, node.Name == s.Node, true, s.nodeKind(node.Name)
	return e
}

func (s Sources) nodeKind(name string) string {
	if name == s.Node {
		return policy.HostPeer.String()
	}
	return policy.NodePeer.String()
}

// endAt finds whose an address is.
func (s Sources) endAt(e end, a netip.Addr) end {
	for pod := range s.State.Pods.Snapshot().By(state.PodsByAddress, a.String()) {
		e = s.podEnd(e, pod)
	}
	if node, ok := s.nodeAt(a); ok && e.Pod == "" {
		e = s.nodeEnd(e, node)
	}
	if e.Kind == "" {
		e.Kind = policy.WorldPeer.String()
		if row, ok := s.identityAt(a); ok {
			e.Kind = row.Kind.String()
		}
	}
	e.Addresses = []netip.Addr{a}
	return e
}

// nodeAt returns the node that has an address: of this one every address counts, of others those that Kubernetes knows.
func (s Sources) nodeAt(a netip.Addr) (state.Node, bool) {
	nodes := s.State.Nodes.Snapshot()
	for node := range nodes.All() {
		if slices.Contains(node.Addresses, a) {
			return node, true
		}
	}
	if row, _, ok := s.State.Remotes.Snapshot().Get(netip.PrefixFrom(a, a.BitLen()).String()); !ok || row.Kind != state.RemoteHost {
		return state.Node{}, false
	}
	node, _, ok := nodes.Get(s.Node)
	return node, ok
}

// identityAt returns the row of the longest prefix that covers the address.
func (s Sources) identityAt(a netip.Addr) (best state.Identity, ok bool) {
	for i := range s.State.Identities.Snapshot().All() {
		if i.Prefix.Contains(a) && (!ok || i.Prefix.Bits() > best.Prefix.Bits()) {
			best, ok = i, true
		}
	}
	return best, ok
}

// outside returns an address of each family that no CIDR of a policy names, as far as there is one among those kept for documents.
func (s Sources) outside() (out []netip.Addr) {
	for _, family := range [][]string{{"192.0.2.1", "198.51.100.1", "203.0.113.1"}, {"2001:db8::1", "3fff::1"}} {
		best, least := netip.Addr{}, 0
		for _, text := range family {
			a := netip.MustParseAddr(text)
			row, known := s.identityAt(a)
			bits := 0
			if known {
				bits = 1 + row.Prefix.Bits()
			}
			if !best.IsValid() || bits < least {
				best, least = a, bits
			}
		}
		out = append(out, best)
	}
	return out
}

// judged reports whether the node that the end is on enforces anything there.
func (e end) judged(s Sources) bool {
	if e.Node == "" {
		return false
	}
	return !e.host || s.selectsNode(e.Node)
}

func (e end) subject() string {
	if e.host || e.Pod == "" {
		return "node " + e.Node
	}
	return e.Pod
}

// selectsNode reports whether a policy for nodes selects this one.
func (s Sources) selectsNode(name string) bool {
	node, _, _ := s.State.Nodes.Snapshot().Get(name)
	peer := policy.Peer{Kind: policy.NodePeer, NodeLabels: node.Labels}
	for p := range s.State.Policies.Snapshot().All() {
		for i := range p.Specs {
			if p.Specs[i].Node && p.Specs[i].Subject.Matches(&peer) {
				return true
			}
		}
	}
	return false
}

// namedPort returns the number of a named port at the destination.
func (s Sources) namedPort(to end, name string, protocol policy.Protocol) (uint16, error) {
	pod, _, ok := s.State.Pods.Snapshot().Get(to.Pod)
	var known []string
	for _, p := range pod.Ports {
		if p.Name == name && p.Protocol == protocol {
			return p.Port, nil
		}
		known = append(known, p.Name+"/"+p.Protocol.String())
	}
	if !ok {
		return 0, localapi.BadQuestion("port %q: %s is no pod, only pods have ports with names", name, to.Text)
	}
	return 0, localapi.BadQuestion("port %q: pod %s has no such port of protocol %s; it has %s", name, to.Pod, protocol,
		cmp.Or(strings.Join(known, ", "), "none with a name"))
}

// notService says where to ask instead when the destination is the address of a service: policy judges the connection to the backend.
func (s Sources) notService(to end, port uint16, protocol policy.Protocol) error {
	if to.Node != "" || to.Pod != "" {
		return nil
	}
	for f := range s.State.Frontends.Snapshot().All() {
		if !slices.Contains(to.Addresses, f.Address) || f.Port != port || uint8(f.Protocol) != uint8(protocol) {
			continue
		}
		var backends []string
		for _, b := range f.Backends {
			backends = append(backends, netip.AddrPortFrom(b.Address, b.Port).String())
		}
		return localapi.BadQuestion("destination %s is service %s; policy judges the connection to the backend, ask for one of: %s", f.Key(), f.Service,
			cmp.Or(strings.Join(backends, ", "), "(it has none)"))
	}
	return nil
}

// pair is the connection in one family.
type pair struct {
	family   string
	from, to netip.Addr
	protocol policy.Protocol
}

// families pairs addresses of both ends; ICMP becomes that of the family.
func families(from, to end, protocol policy.Protocol) (out []pair) {
	for _, family := range []string{"IPv4", "IPv6"} {
		of := func(a netip.Addr) bool { return a.Is4() == (family == "IPv4") }
		i, j := slices.IndexFunc(from.Addresses, of), slices.IndexFunc(to.Addresses, of)
		if i < 0 || j < 0 {
			continue
		}
		p := pair{family, from.Addresses[i], to.Addresses[j], protocol}
		if protocol == policy.ICMP && family == "IPv6" {
			p.protocol = policy.ICMPv6
		}
		if protocol == policy.ICMPv6 && family == "IPv4" {
			p.protocol = policy.ICMP
		}
		out = append(out, p)
	}
	return out
}

// The types of echo requests, where others put the port.
const (
	echo4 = 8 << 8
	echo6 = 128 << 8
)

// port is the port in this family: an echo request has another type in each.
func (p pair) port(asked uint16) uint16 {
	switch {
	case p.protocol == policy.ICMPv6 && asked == echo4:
		return echo6
	case p.protocol == policy.ICMP && asked == echo6:
		return echo4
	}
	return asked
}

// side asks the kernel about one direction.
func (s Sources) side(own end, c Connection, family string) localapi.VerdictSide {
	out := localapi.VerdictSide{Direction: c.Way.String(), Subject: own.subject(), Node: s.Node, Family: family, Verdict: localapi.VerdictAllowed}
	if s.Policy.Judge == nil {
		out.Error = "the agent cannot look into the kernel's tables"
		return out
	}
	j, err := s.Policy.Judge(c)
	switch {
	case err != nil:
		out.Error = err.Error()
		return out
	case j.Program == 0:
		out.Text = "nothing is enforced here"
		return out
	}
	out.Program, out.Identity, out.Matches = identity.ID(j.Program).String(), j.Identity.String(), s.matchesOfIdentity(j.Identity)
	out.Rule, out.Text = ruleName(j.Rule), s.decided(j.Rule)
	if !j.Allow {
		out.Verdict = localapi.VerdictDenied
		out.Misses = s.misses(own, c)
	}
	if j.Audit && j.AuditAllow != j.Allow {
		out.Would, out.WouldRule = localapi.VerdictDenied, ruleName(j.AuditRule)
		if j.AuditAllow {
			out.Would = localapi.VerdictAllowed
		}
	}
	return out
}

// misses says of a denial which rules almost allowed it, and what is missing.
func (s Sources) misses(own end, c Connection) (out []string) {
	name := own.Pod
	if own.host {
		name = ""
	}
	for _, m := range s.explanation(name, s.peerOfPod(name), s.peerAt(c.Peer), c).Misses {
		out = append(out, m.String())
	}
	return out
}

// peerAt is who has an address, as selectors see it.
func (s Sources) peerAt(a netip.Addr) policy.Peer {
	peer := s.ownerOf(a)
	peer.Prefix = netip.PrefixFrom(a, a.BitLen())
	for slice := range s.State.EndpointSlices.Snapshot().All() {
		name := slice.Service.String()
		if slices.Contains(peer.Services, name) || !slices.ContainsFunc(slice.Endpoints, func(e state.SliceEndpoint) bool { return e.Address == a }) {
			continue
		}
		peer.Services = append(peer.Services, name)
		peer.APIServer = peer.APIServer || name == state.APIServerService
	}
	return peer
}

// ownerOf is who has an address, without what else is there.
func (s Sources) ownerOf(a netip.Addr) policy.Peer {
	for pod := range s.State.Pods.Snapshot().By(state.PodsByAddress, a.String()) {
		return s.peerOfPod(pod.Key())
	}
	if node, ok := s.nodeAt(a); ok && node.Name == s.Node {
		return s.peerOfPod("")
	} else if ok {
		return policy.Peer{Kind: policy.NodePeer, NodeLabels: node.Labels}
	}
	if row, known := s.identityAt(a); known {
		return policy.Peer{Kind: row.Kind}
	}
	return policy.Peer{Kind: policy.WorldPeer}
}

// modeOf returns what happens by default to a local pod, or for "" to this node.
func (s Sources) modeOf(pod string) policy.Mode {
	ns, _, _ := strings.Cut(pod, "/")
	if n, _, ok := s.State.Namespaces.Snapshot().Get(ns); ok && n.Mode != nil {
		return *n.Mode
	}
	return s.Policy.Mode
}

func (s Sources) matchesOfIdentity(id identity.ID) []string {
	for i := range s.State.Identities.Snapshot().All() {
		if i.ID == id {
			return matchesOf(i.Matches)
		}
	}
	return nil
}

// decided says in words what made a verdict.
func (s Sources) decided(r policy.RuleRef) string {
	switch {
	case r.Kind != policy.Builtin && r.Path == "":
		return r.Ref.String() + " isolates it and no rule allows this"
	case r.Kind != policy.Builtin:
		if rule, ok := s.ruleAt(r); ok {
			return r.Ref.String() + " " + r.Path + ": " + sentence(rule)
		}
		return r.Ref.String() + " " + r.Path
	}
	switch r.Name {
	case policy.DefaultAllow:
		return "no policy isolates it"
	case policy.ModeAlwaysOn:
		return "no policy allows it, and the mode is always"
	case policy.ModeNeverOn:
		return "the mode is never: no policy is enforced here"
	case policy.NoRoomForWho:
		return "the kernel's tables have no room for who the peer is, and it denies some"
	case policy.OwnNode:
		return "a node always reaches its own pods"
	}
	return r.Name
}

// sentence is a rule in words: "allow pods app=web to 5432/TCP".
func sentence(r policy.Rule) string {
	none := func(words []string) string { return cmp.Or(strings.Join(words, ", "), "none") }
	return r.Action.String() + " " + none(peersOf(r)) + "; " + none(portsOf(r))
}

// ruleAt finds a rule in its object.
func (s Sources) ruleAt(ref policy.RuleRef) (policy.Rule, bool) {
	p, _, _ := s.State.Policies.Snapshot().Get(state.Policy{Ref: ref.Ref}.Key())
	for i := range p.Specs {
		rules := p.Specs[i].Of(ref.Way).Rules
		if j := slices.IndexFunc(rules, func(r policy.Rule) bool { return r.Path == ref.Path }); j >= 0 {
			return rules[j], true
		}
	}
	return policy.Rule{}, false
}

// together makes one side of two families that say the same. What is told of rules that nearly matched is that of the first.
func together(sides []localapi.VerdictSide) []localapi.VerdictSide {
	if len(sides) != 2 {
		return sides
	}
	a, b := sides[0], sides[1]
	if a.Verdict != b.Verdict || a.Text != b.Text || a.Would != b.Would || a.Error != b.Error {
		return sides
	}
	a.Family = ""
	return []localapi.VerdictSide{a}
}
