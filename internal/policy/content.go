package policy

import (
	"cmp"
	"slices"
)

// ID returns what NewProgram(s).ID() would be, without compiling.
func (s Set) ID() ID {
	policies := sorted(s.Policies)
	return s.digest(policies, s.askedPorts(policies))
}

// askedPorts returns the pod's ports that rules of ingress ask for by name, sorted: the others decide nothing.
func (s Set) askedPorts(policies []*Policy) []NamedPort {
	if len(s.Ports) == 0 || s.Mode == ModeNever {
		return nil
	}
	var out []NamedPort
	for _, p := range policies {
		for i := range p.Ingress.Rules {
			for _, port := range p.Ingress.Rules[i].Ports {
				if port.Name != "" {
					out = append(out, namedPorts(s.Ports, port.Name, port.Protocol)...)
				}
			}
		}
	}
	slices.SortFunc(out, compareNamedPorts)
	return slices.Compact(out)
}

func compareNamedPorts(a, b NamedPort) int {
	return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.Port, b.Port))
}

// digest hashes everything that can change a verdict or the rule it names. The policies are sorted, and so are the ports.
func (s Set) digest(policies []*Policy, ports []NamedPort) ID {
	d := digest{data: make([]byte, 0, 4096)}
	d.text("program")
	d.number(uint64(s.Mode))
	if s.Mode == ModeNever {
		return ID(d.sum(1))
	}
	d.flag(s.Audit && s.Mode == ModeAlways)
	d.number(uint64(len(ports)))
	for _, p := range ports {
		d.text(p.Name)
		d.number(uint64(p.Protocol))
		d.number(uint64(p.Port))
	}
	d.number(uint64(len(policies)))
	for _, p := range policies {
		d.policy(p, s.Audit)
		d.relieve()
	}
	return ID(d.sum(1))
}

// policy adds a policy. Its priority is in the order of policies, and whom it selects made it one of the set.
func (d *digest) policy(p *Policy, audit bool) {
	d.text(string(p.Ref.Kind))
	d.text(p.Ref.Namespace)
	d.text(p.Ref.Name)
	d.number(uint64(p.Tier))
	d.flag(p.Audit || audit)
	for _, way := range []Way{Egress, Ingress} {
		direction := p.Of(way)
		d.flag(direction.Isolates)
		d.number(uint64(len(direction.Rules)))
		for i := range direction.Rules {
			d.rule(&direction.Rules[i])
		}
	}
}

func (d *digest) rule(r *Rule) {
	var space [128]byte
	d.text(r.Path)
	d.number(uint64(r.Action))
	d.flag(r.Peers == nil)
	d.number(uint64(len(r.Peers)))
	for i := range r.Peers {
		key := r.Peers[i].appendKey(space[:0])
		d.number(uint64(len(key)))
		d.data = append(d.data, key...)
	}
	d.flag(r.Ports == nil)
	d.number(uint64(len(r.Ports)))
	for _, p := range r.Ports {
		d.number(uint64(p.Protocol))
		d.number(uint64(p.First))
		d.number(uint64(p.Last))
		d.text(p.Name)
	}
}
