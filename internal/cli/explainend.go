package cli

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/strait-net/strait/internal/localapi"
)

// The kinds of ends.
const (
	endPod     = "pod"
	endService = "service"
	endNode    = "node"
	endOutside = "outside"
)

// explainEnd is one end of a path.
type explainEnd struct {
	Kind    string     `json:"kind"`           // pod, service, node, outside
	Name    string     `json:"name,omitempty"` // namespace/name, or the node's
	Node    string     `json:"node,omitempty"` // that it is on
	Address netip.Addr `json:"address"`
	Port    uint16     `json:"port,omitempty"`

	addresses   []netip.Addr // of both families; Address is the one that the path is about
	hostNetwork bool         // a pod with the addresses of its node
	ports       []string     // of a pod: "http 80/TCP"
	fronts      []localapi.Service
}

func (e explainEnd) String() string {
	if e.Name == "" {
		return e.Address.String()
	}
	return e.Kind + " " + e.Name
}

// world stands for somebody outside: addresses of documentation (RFC 5737, RFC 3849).
func world() []netip.Addr {
	return []netip.Addr{netip.AddrFrom4([4]byte{192, 0, 2, 1}), netip.MustParseAddr("2001:db8::1")}
}

// everybody is who an end can be, as one agent knows them.
type everybody struct {
	self      string   // the node that "host" stands for; empty: none
	entrances []string // nodes that can be asked
	whole     bool     // these are all there are, not only those that were asked for
	pods      []localapi.PodRow
	nodes     []localapi.Node
	services  []localapi.Service
	ended     func(pod string) string // says so of a pod that agents do not know any more; nil: nobody can tell
}

// errNobody is matched by the error of a name that nobody has, as far as somebody was asked.
var errNobody = errors.New("nobody has this name")

// endWords are the names and addresses of a question, without what says of which kind they are.
func endWords(q localapi.VerdictQuestion, self string) (words []string) {
	from, _ := splitPort(q.Source)
	for _, word := range []string{from, q.Destination} {
		_, name := kindIn(word)
		if name == hostWord {
			name = self
		}
		if name != "" && name != worldWord {
			words = append(words, name)
		}
	}
	return words
}

// kindIn takes "svc/shop/web" apart. The kind is empty where the word does not say one.
func kindIn(word string) (kind, name string) {
	if first, rest, ok := strings.Cut(word, "/"); ok {
		if k, known := map[string]string{"svc": endService, "service": endService, "pod": endPod, "node": endNode}[first]; known {
			return k, rest
		}
	}
	return "", word
}

// Words that stand for an end.
const (
	hostWord  = "host"
	worldWord = "world"
)

// find reads an end: an address, a word, or the name of a pod, service or node.
func (e everybody) find(which, text string) (explainEnd, error) {
	if addr, err := netip.ParseAddr(text); err == nil {
		return e.at(addr.Unmap()), nil
	}
	switch text {
	case worldWord:
		return explainEnd{Kind: endOutside, Name: worldWord, addresses: world()}, nil
	case hostWord:
		if e.self == "" {
			return explainEnd{}, usage("%s host: which node? Write its name, or --node, such as %s", which, strings.Join(e.entrances, ", "))
		}
		return e.node(e.self), nil
	}
	kind, name := kindIn(text)
	if strings.Count(name, "/") > 1 || strings.HasPrefix(name, "/") || strings.HasSuffix(name, "/") || name == "" {
		return explainEnd{}, usage("%s %q: want a pod as [NAMESPACE/]NAME, svc/[NAMESPACE/]NAME, a node, an address, host or world", which, text)
	}
	found := e.named(kind, name)
	switch len(found) {
	case 0:
		if !e.whole {
			return explainEnd{}, errNobody
		}
		if e.ended != nil && (kind == "" || kind == endPod) {
			if text := e.ended(qualified(name)); text != "" {
				return explainEnd{}, usage("%s: %s", which, text)
			}
		}
		return explainEnd{}, e.unknown(which, kind, name)
	case 1:
		return found[0], nil
	}
	var names []string
	for _, f := range found {
		names = append(names, f.typed())
	}
	return explainEnd{}, usage("%s %q is the name of several: write %s", which, text, strings.Join(names, " or "))
}

// typed is an end without doubt.
func (e explainEnd) typed() string {
	prefix := map[string]string{endService: "svc/", endPod: "pod/", endNode: "node/"}
	return prefix[e.Kind] + e.Name
}

// named returns all that have a name.
func (e everybody) named(kind, name string) (out []explainEnd) {
	full := qualified(name)
	if kind == "" || kind == endPod {
		for _, p := range e.pods {
			if p.Namespace+"/"+p.Name == full {
				out = append(out, e.pod(p))
			}
		}
	}
	if kind == "" || kind == endService {
		var fronts []localapi.Service
		for _, s := range e.services {
			if s.Namespace+"/"+s.Name == full && s.Type != "HostPort" { // which is a pod's
				fronts = append(fronts, s)
			}
		}
		if len(fronts) > 0 {
			out = append(out, explainEnd{Kind: endService, Name: full, fronts: fronts})
		}
	}
	if kind == "" || kind == endNode {
		if n := e.node(name); n.Name != "" {
			out = append(out, n)
		}
	}
	return out
}

func (e everybody) pod(p localapi.PodRow) explainEnd {
	return explainEnd{Kind: endPod, Name: p.Namespace + "/" + p.Name, Node: p.Node, addresses: p.Addresses, hostNetwork: p.HostNetwork, ports: p.Ports}
}

func (e everybody) node(name string) explainEnd {
	for _, n := range e.nodes {
		if n.Name == name {
			return explainEnd{Kind: endNode, Name: n.Name, Node: n.Name, addresses: n.Addresses}
		}
	}
	return explainEnd{}
}

// at is who has an address. A node goes before its pods of hostNetwork.
func (e everybody) at(a netip.Addr) explainEnd {
	end := explainEnd{Kind: endOutside}
	for _, p := range e.pods {
		if !p.HostNetwork && slices.Contains(p.Addresses, a) {
			end = e.pod(p)
		}
	}
	for _, n := range e.nodes {
		if slices.Contains(n.Addresses, a) {
			end = e.node(n.Name)
		}
	}
	for _, s := range e.services {
		if s.Frontend.Addr() == a && s.Of == nil && end.Kind == endOutside {
			end = explainEnd{Kind: endService, Name: s.Namespace + "/" + s.Name}
		}
	}
	end.Address, end.addresses = a, []netip.Addr{a}
	return end
}

func (e everybody) nodeNames() (out []string) {
	for _, n := range e.nodes {
		out = append(out, n.Name)
	}
	slices.Sort(out)
	return out
}

// mostNames is how many names an error lists.
const mostNames = 20

// unknown names the nearest of all names, and those of the same namespace.
func (e everybody) unknown(which, kind, name string) error {
	namespace, _, _ := strings.Cut(qualified(name), "/")
	var all, near []string
	add := func(k, ns, n string) {
		if kind == "" || kind == k {
			all = append(all, ns+"/"+n)
			if ns == namespace {
				near = append(near, ns+"/"+n)
			}
		}
	}
	for _, p := range e.pods {
		add(endPod, p.Namespace, p.Name)
	}
	for _, s := range e.services {
		add(endService, s.Namespace, s.Name)
	}
	if kind == endNode || kind == "" && !strings.Contains(name, "/") {
		all, near = append(all, e.nodeNames()...), append(near, e.nodeNames()...)
	}
	what, word := kind, qualified(name)
	if kind == "" {
		what = "pod, service or node"
	}
	if kind == endNode {
		word = name
	}
	text := fmt.Sprintf("%s: no %s is called %q", which, what, word)
	best := ""
	if !strings.Contains(name, "/") { // in another namespace?
		if i := slices.IndexFunc(all, func(n string) bool { return strings.HasSuffix(n, "/"+name) }); i >= 0 {
			best = all[i]
		}
	}
	best = cmp.Or(best, nearest(word, all))
	if best == "" && kind != endNode {
		best = nearest(name, all)
	}
	if best != "" {
		return usage("%s; did you mean %q?", text, best)
	}
	slices.Sort(near)
	near = slices.Compact(near)
	switch {
	case len(near) == 0:
		return usage("%s, and nothing else is in namespace %s", text, namespace)
	case len(near) > mostNames:
		near = append(near[:mostNames], fmt.Sprintf("and %d more", len(near)-mostNames))
	}
	return usage("%s; there are: %s", text, strings.Join(near, ", "))
}

// meet gives both ends addresses of one family, and the destination its port.
func meet(src, dst explainEnd, q localapi.VerdictQuestion, v6 bool) (explainEnd, explainEnd, error) {
	for _, e := range []explainEnd{src, dst} {
		switch {
		case e.Kind == endPod && e.Node == "":
			return src, dst, usage("%s is on no node yet", e)
		case e.Kind != endService && len(e.addresses) == 0:
			return src, dst, usage("%s has no address yet", e)
		}
	}
	if src.Kind == endService {
		return src, dst, usage("%s sends nothing: ask for one of the pods behind it, strait service show %s lists them", src, src.Name)
	}
	port := q.Port
	var err error
	switch {
	case dst.fronts != nil:
		if dst.addresses, port, err = dst.front(q); err != nil {
			return src, dst, err
		}
	case q.PortName != "":
		if port, err = dst.namedPort(q.PortName, askedProtocol(q)); err != nil {
			return src, dst, err
		}
	case askedProtocol(q) == "ICMP":
		port = 0
	}
	dst.Port = port
	for _, family := range []bool{v6, !v6} {
		a, b := familyAddress(src.addresses, family), familyAddress(dst.addresses, family)
		if a.IsValid() && b.IsValid() && (!v6 || family) {
			src.Address, dst.Address = a, b
			return src, dst, nil
		}
	}
	if v6 {
		return src, dst, usage("%s and %s have no IPv6 addresses to talk by", src, dst)
	}
	return src, dst, usage("%s (%s) and %s (%s) have no addresses of the same family", src, fmt.Sprint(src.addresses), dst, fmt.Sprint(dst.addresses))
}

func familyAddress(addresses []netip.Addr, v6 bool) netip.Addr {
	for _, a := range addresses {
		if a.Is6() == v6 {
			return a
		}
	}
	return netip.Addr{}
}

// askedProtocol is a protocol as the local API calls it.
func askedProtocol(q localapi.VerdictQuestion) string {
	for name, number := range protocols {
		if number == q.Protocol && number != protocolICMPv6 {
			return strings.ToUpper(name)
		}
	}
	return "ICMP"
}

// front is where a service answers: its cluster addresses, or whatever it has.
func (e explainEnd) front(q localapi.VerdictQuestion) (addresses []netip.Addr, port uint16, err error) {
	protocol := askedProtocol(q)
	var have []string
	for _, s := range e.fronts {
		if !s.Frontend.IsValid() {
			return nil, 0, e.noAddress(s)
		}
		if s.Of != nil || s.Frontend.Addr().IsUnspecified() {
			continue
		}
		text := fmt.Sprintf("%d/%s", s.Frontend.Port(), s.Protocol)
		if s.Port != "" {
			text += " (" + s.Port + ")"
		}
		have = append(have, text)
		named := q.PortName != "" && s.Port == q.PortName || q.PortName == "" && s.Frontend.Port() == q.Port
		if s.Protocol != protocol || !named || port != 0 && s.Frontend.Port() != port {
			continue
		}
		port = s.Frontend.Port()
		if s.Type == "ClusterIP" {
			addresses = append([]netip.Addr{s.Frontend.Addr()}, addresses...)
		} else {
			addresses = append(addresses, s.Frontend.Addr())
		}
	}
	if len(addresses) > 0 {
		return addresses, port, nil
	}
	slices.Sort(have)
	have = slices.Compact(have)
	asked := q.PortName
	if asked == "" {
		asked = strconv.Itoa(int(q.Port))
	}
	if protocol == "ICMP" {
		return nil, 0, usage("%s: a port is missing: write svc/%s:PORT; it has %s", e, e.Name, strings.Join(have, ", "))
	}
	return nil, 0, usage("%s has no port %s of protocol %s; it has %s", e, asked, protocol, strings.Join(have, ", "))
}

// noAddress says what to ask instead of a service without an address.
func (e explainEnd) noAddress(s localapi.Service) error {
	if s.Type == "Headless" {
		return usage("%s is headless: it has no address, DNS answers with its pods; ask for one of them, strait service show %s lists them", e, e.Name)
	}
	return usage("%s is of type %s: it has no address of its own; %s", e, s.Type, strings.TrimPrefix(s.Note, "nothing to do: "))
}

// namedPort is the port of a pod's container by its name.
func (e explainEnd) namedPort(name, protocol string) (uint16, error) {
	for _, p := range e.ports {
		called, rest, _ := strings.Cut(p, " ")
		number, of, _ := strings.Cut(rest, "/")
		if called == name && of == protocol {
			if n, err := strconv.ParseUint(number, 10, 16); err == nil {
				return uint16(n), nil
			}
		}
	}
	has := "no ports with names"
	if len(e.ports) > 0 {
		has = strings.Join(e.ports, ", ")
	}
	return 0, usage("port %q: %s has no such port of protocol %s; it has %s", name, e, protocol, has)
}
