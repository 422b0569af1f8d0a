package flow

import (
	"net/netip"
	"time"

	"github.com/strait-net/strait/internal/identity"
	"github.com/strait-net/strait/internal/policy"
	"github.com/strait-net/strait/internal/state"
	"github.com/strait-net/strait/internal/table"
)

const (
	// remembered is how many addresses and service addresses are kept at least, and half of how many at most.
	remembered = 8192
	// lingers is how long an address that nobody has any more is still called by its last pod: connections end after pods do, and an address
	// is not given to another one so soon.
	lingers = time.Minute
)

// NamerConfig is where names come from.
type NamerConfig struct {
	Node  string // this one
	State *state.State
	Rule  func(number uint32) (policy.RuleRef, bool)
}

// Namer gives events names. One goroutine at a time.
type Namer struct {
	rule      func(uint32) (policy.RuleRef, bool)
	owners    *owners
	state     *state.State
	frontends table.Snapshot[state.Frontend]
	age       uint64 // grows when tables that owners look at have changed
	ends      recent[netip.Addr, *known]
	services  recent[front, service]
	rules     map[uint32]*policy.RuleRef
}

// known is who had an address.
type known struct {
	End
	age  uint64    // of the Namer when it was looked up
	last time.Time // of an event when it had it
	gone bool      // nobody has it since
}

type front struct {
	at       netip.AddrPort
	protocol policy.Protocol
}

type service struct{ name, port string }

// NewNamer looks at the tables. Close ends that.
func NewNamer(c NamerConfig) *Namer {
	return &Namer{
		rule: c.Rule, state: c.State, owners: newOwners(c.Node, c.State), frontends: c.State.Frontends.Snapshot(), rules: map[uint32]*policy.RuleRef{},
	}
}

// Close lets the tables forget what they keep for the Namer.
func (n *Namer) Close() { n.owners.close() }

// Name appends events with the names of now. Of events that nobody has read for a while pods are not known any more.
func (n *Namer) Name(now time.Time, events []Event, into []Flow) []Flow {
	if n.owners.refresh() {
		n.age++
	}
	if s := n.state.Frontends.Snapshot(); s.Revision() != n.frontends.Revision() {
		n.frontends, n.services = s, recent[front, service]{}
	}
	for i := range events {
		into = append(into, Flow{Event: events[i]})
		f := &into[len(into)-1]
		if n.name(f); now.Sub(f.Time) > lingers {
			f.From, f.To = f.From.anonymous(), f.To.anonymous()
		}
	}
	return into
}

func (n *Namer) name(f *Flow) {
	if f.Kind == Lost {
		return
	}
	f.From, f.To = n.end(f.Source.Addr(), f.Time), n.end(f.Target.Addr(), f.Time)
	switch {
	case f.Front.IsValid():
		f.Service, f.ServicePort = n.service(f.Front, f.Protocol)
	case f.To.Kind != policy.PodPeer: // a service without backends, or none for this client
		f.Service, f.ServicePort = n.service(f.Target, f.Protocol)
	}
	f.EgressRule, f.IngressRule, f.AuditedRule = n.ruleOf(f.Egress), n.ruleOf(f.Ingress), n.ruleOf(f.Audited)
}

// end returns who has an address.
func (n *Namer) end(a netip.Addr, at time.Time) End {
	if !a.IsValid() {
		return End{}
	}
	k, met := n.ends.get(a)
	switch {
	case met && k.age == n.age && !k.gone:
		k.last = at
		return k.End
	case met && k.age == n.age && at.Sub(k.last) < lingers:
		return k.End
	}
	now := n.owners.of(a)
	if met && k.Pod != nil && now.Kind == policy.UnknownPeer && at.Sub(k.last) < lingers {
		k.age, k.gone = n.age, true
		return k.End
	}
	n.ends.put(a, &known{End: now, age: n.age, last: at})
	return now
}

// anonymous is an end of which only the place is known.
func (e End) anonymous() End {
	if e.Kind == policy.PodPeer {
		e.Pod, e.Identity = nil, identity.Unknown
	}
	return e
}

// service returns the name of the service with a frontend, and of its port.
func (n *Namer) service(at netip.AddrPort, protocol policy.Protocol) (name, port string) {
	if !protocol.HasPorts() || !at.IsValid() {
		return "", ""
	}
	key := front{at, protocol}
	s, met := n.services.get(key)
	if !met {
		if row, ok := n.frontend(at, state.Protocol(protocol)); ok && row.Type != state.HostPort { // whose name is that of a pod
			s = service{row.Service.String(), row.PortName}
		}
		n.services.put(key, s)
	}
	return s.name, s.port
}

// frontend returns the row of an address and port: its own, or that of a port of all nodes.
func (n *Namer) frontend(at netip.AddrPort, protocol state.Protocol) (state.Frontend, bool) {
	row, _, ok := n.frontends.Get(state.Frontend{Address: at.Addr(), Port: at.Port(), Protocol: protocol}.Key())
	if ok {
		return row, true
	}
	all := netip.IPv4Unspecified()
	if at.Addr().Is6() {
		all = netip.IPv6Unspecified()
	}
	row, _, ok = n.frontends.Get(state.Frontend{Address: all, Port: at.Port(), Protocol: protocol}.Key())
	if !ok {
		return row, false
	}
	kind := n.owners.of(at.Addr()).Kind
	return row, kind == policy.HostPeer || kind == policy.NodePeer
}

// ruleOf returns the rule that has a number. The same rule is the same pointer as long as it has it.
func (n *Namer) ruleOf(number uint32) *policy.RuleRef {
	if number == 0 {
		return nil
	}
	ref, ok := n.rule(number)
	if !ok {
		return nil
	}
	if old := n.rules[number]; old != nil && *old == ref {
		return old
	}
	fresh := ref
	n.rules[number] = &fresh
	return &fresh
}

// recent keeps what was put or asked for lately: at least the last remembered keys, at most twice as many.
type recent[K comparable, V any] struct{ young, old map[K]V }

func (r *recent[K, V]) get(k K) (V, bool) {
	if v, ok := r.young[k]; ok {
		return v, true
	}
	v, ok := r.old[k]
	if ok {
		r.put(k, v)
	}
	return v, ok
}

func (r *recent[K, V]) put(k K, v V) {
	if r.young == nil || len(r.young) >= remembered {
		r.young, r.old = make(map[K]V), r.young
	}
	r.young[k] = v
}
