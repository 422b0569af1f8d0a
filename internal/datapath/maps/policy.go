package maps

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf"

	"github.com/strait-net/strait/internal/bpf"
)

// Identity is a row of strait_identity: who has a prefix, as far as policy in use can tell.
type Identity struct {
	Prefix netip.Prefix
	ID     uint64
}

// PolicyKey is the key of strait_policy.
type PolicyKey struct {
	Policy    uint64
	Direction bpf.PolicyDirection
	Identity  uint64
}

// PolicyVerdict is what becomes of a connection. Rule and AuditRule are slots of strait_rule.
type PolicyVerdict struct {
	Rule      uint32
	AuditRule uint32
	Flags     bpf.PolicyFlags
	L7        uint32
}

// PolicyEntry is the value of strait_policy: the verdict is for every protocol and port when Table is 0.
type PolicyEntry struct {
	Table   uint64
	Verdict PolicyVerdict
}

// Port is the key of strait_port: the ports of a protocol that share their leading bits with Port.
type Port struct {
	Table    uint64
	Protocol uint8 // 0, with Port and Bits 0: every protocol
	Port     uint16
	Bits     uint8 // 0: every port
}

// NodeState is the row of strait_node.
type NodeState struct {
	Revision uint32
	Policy   uint64 // of the node itself, 0: none
}

// RuleCount is a slot of strait_rule, summed over all CPUs.
type RuleCount struct {
	Rule    uint32
	Packets uint64
	Bytes   uint64
}

// portTableBits and portProtocolBits are how much of a port key's data comes before the protocol, and before the port.
const (
	portTableBits    = 96
	portProtocolBits = portTableBits + 16
)

func portKey(p Port) bpf.PortKey {
	k := bpf.PortKey{PrefixLen: portTableBits, Table: p.Table}
	if p.Protocol == 0 {
		return k
	}
	k.PrefixLen, k.Proto = portProtocolBits+uint32(p.Bits), p.Protocol
	k.Port = bpf.NetPort(p.Port &^ (1<<(16-p.Bits) - 1))
	return k
}

func port(k bpf.PortKey) Port {
	p := Port{Table: k.Table}
	if k.PrefixLen >= portProtocolBits {
		p.Protocol, p.Port, p.Bits = k.Proto, bpf.NetPort(k.Port), uint8(k.PrefixLen-portProtocolBits)
	}
	return p
}

func verdictRow(v PolicyVerdict) bpf.PolicyVerdict {
	return bpf.PolicyVerdict{Rule: v.Rule, AuditRule: v.AuditRule, Flags: v.Flags, L7: v.L7}
}

func policyVerdict(v bpf.PolicyVerdict) PolicyVerdict {
	return PolicyVerdict{Rule: v.Rule, AuditRule: v.AuditRule, Flags: v.Flags, L7: v.L7}
}

func policyKey(k PolicyKey) bpf.PolicyKey {
	return bpf.PolicyKey{Policy: k.Policy, Identity: k.Identity, Direction: k.Direction}
}

func policyEntry(v bpf.PolicyEntry) PolicyEntry {
	return PolicyEntry{v.Table, policyVerdict(v.Verdict)}
}

// putAll writes entries in as few system calls as the kernel allows. done are written, in order, when the rest cannot be.
func putAll[K, V any](m *Maps, name string, keys []K, values []V) (done int, err error) {
	k, err := m.get(name)
	if err != nil {
		return 0, err
	}
	for done < len(keys) {
		end := min(done+scanChunk, len(keys))
		n, err := k.BatchUpdate(keys[done:end], values[done:end], nil)
		if errors.Is(err, ebpf.ErrNotSupported) {
			n, err = 1, k.Put(&keys[done], &values[done])
		}
		if err != nil {
			return done + max(n, 0), refused(k, name, err)
		}
		done += n
	}
	return done, nil
}

// removeAll deletes entries; absent ones are no error. done are gone, in order, when the rest are not.
func removeAll[K any](m *Maps, name string, keys []K) (done int, err error) {
	k, err := m.get(name)
	if err != nil {
		return 0, err
	}
	for ; done < len(keys); done++ {
		if err := k.Delete(&keys[done]); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return done, fmt.Errorf("delete from %s: %w", name, err)
		}
	}
	return done, nil
}

// PutIdentities says who has prefixes. The first done of rows are written when the rest cannot be.
func (m *Maps) PutIdentities(rows []Identity) (done int, err error) {
	keys, values := make([]bpf.IpcacheKey, len(rows)), make([]uint64, len(rows))
	for i, r := range rows {
		keys[i], values[i] = bpf.IpcacheKeyFrom(r.Prefix), r.ID
	}
	return putAll(m, bpf.DatapathMapStraitIdentity, keys, values)
}

// DeleteIdentities makes prefixes nobody's in particular.
func (m *Maps) DeleteIdentities(prefixes []netip.Prefix) (done int, err error) {
	keys := make([]bpf.IpcacheKey, len(prefixes))
	for i, p := range prefixes {
		keys[i] = bpf.IpcacheKeyFrom(p)
	}
	return removeAll(m, bpf.DatapathMapStraitIdentity, keys)
}

// EachIdentity calls fn with every prefix that is distinguished.
func (m *Maps) EachIdentity(fn func(Identity)) error {
	return each(m, bpf.DatapathMapStraitIdentity, func(k bpf.IpcacheKey, id uint64) { fn(Identity{k.Prefix(), id}) })
}

// Identity returns whose a prefix is; of a whole address, by the longest row that covers it, as programs look it up.
func (m *Maps) Identity(p netip.Prefix) (id uint64, ok bool, err error) {
	return lookup[uint64](m, bpf.DatapathMapStraitIdentity, bpf.IpcacheKeyFrom(p))
}

// PutPolicies writes what policies say to identities. The first done are written when the rest cannot be.
func (m *Maps) PutPolicies(keys []PolicyKey, entries []PolicyEntry) (done int, err error) {
	ks, vs := make([]bpf.PolicyKey, len(keys)), make([]bpf.PolicyEntry, len(keys))
	for i := range keys {
		ks[i], vs[i] = policyKey(keys[i]), bpf.PolicyEntry{Table: entries[i].Table, Verdict: verdictRow(entries[i].Verdict)}
	}
	return putAll(m, bpf.DatapathMapStraitPolicy, ks, vs)
}

// DeletePolicies removes such rows.
func (m *Maps) DeletePolicies(keys []PolicyKey) (done int, err error) {
	ks := make([]bpf.PolicyKey, len(keys))
	for i := range keys {
		ks[i] = policyKey(keys[i])
	}
	return removeAll(m, bpf.DatapathMapStraitPolicy, ks)
}

// EachPolicy calls fn with every row of every policy.
func (m *Maps) EachPolicy(fn func(PolicyKey, PolicyEntry)) error {
	return each(m, bpf.DatapathMapStraitPolicy, func(k bpf.PolicyKey, v bpf.PolicyEntry) {
		fn(PolicyKey{k.Policy, k.Direction, k.Identity}, policyEntry(v))
	})
}

// Policy returns what a policy says to exactly this identity.
func (m *Maps) Policy(k PolicyKey) (e PolicyEntry, ok bool, err error) {
	v, ok, err := lookup[bpf.PolicyEntry](m, bpf.DatapathMapStraitPolicy, policyKey(k))
	return policyEntry(v), ok, err
}

// PutPorts writes rows of tables. The first done are written when the rest cannot be.
func (m *Maps) PutPorts(keys []Port, verdicts []PolicyVerdict) (done int, err error) {
	ks, vs := make([]bpf.PortKey, len(keys)), make([]bpf.PolicyVerdict, len(keys))
	for i := range keys {
		ks[i], vs[i] = portKey(keys[i]), verdictRow(verdicts[i])
	}
	return putAll(m, bpf.DatapathMapStraitPort, ks, vs)
}

// DeletePorts removes rows of tables.
func (m *Maps) DeletePorts(keys []Port) (done int, err error) {
	ks := make([]bpf.PortKey, len(keys))
	for i := range keys {
		ks[i] = portKey(keys[i])
	}
	return removeAll(m, bpf.DatapathMapStraitPort, ks)
}

// EachPort calls fn with every row of every table.
func (m *Maps) EachPort(fn func(Port, PolicyVerdict)) error {
	return each(m, bpf.DatapathMapStraitPort, func(k bpf.PortKey, v bpf.PolicyVerdict) { fn(port(k), policyVerdict(v)) })
}

// Port returns the verdict of the longest row that covers p, as programs look it up when p has 16 bits.
func (m *Maps) Port(p Port) (v PolicyVerdict, ok bool, err error) {
	row, ok, err := lookup[bpf.PolicyVerdict](m, bpf.DatapathMapStraitPort, portKey(p))
	return policyVerdict(row), ok, err
}

// PutNodeState makes programs judge established connections again when the revision differs from before.
func (m *Maps) PutNodeState(s NodeState) error {
	return put(m, bpf.DatapathMapStraitNode, uint32(0), bpf.NodeState{Revision: s.Revision, Policy: s.Policy})
}

// NodeState returns the row of strait_node; zero in a fresh one.
func (m *Maps) NodeState() (NodeState, error) {
	v, _, err := lookup[bpf.NodeState](m, bpf.DatapathMapStraitNode, uint32(0))
	return NodeState{v.Revision, v.Policy}, err
}

// ZeroRule makes a slot of strait_rule count from nothing.
func (m *Maps) ZeroRule(rule uint32) error {
	k, err := m.get(bpf.DatapathMapStraitRule)
	if err != nil {
		return err
	}
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return fmt.Errorf("count CPUs: %w", err)
	}
	if err := k.Put(&rule, make([]bpf.Counter, cpus)); err != nil {
		return refused(k, bpf.DatapathMapStraitRule, err)
	}
	return nil
}

// RuleCount returns one slot of strait_rule.
func (m *Maps) RuleCount(rule uint32) (RuleCount, error) {
	perCPU, ok, err := lookup[[]bpf.Counter](m, bpf.DatapathMapStraitRule, rule)
	if err == nil && !ok {
		err = fmt.Errorf("read %s: no slot %d", bpf.DatapathMapStraitRule, rule)
	}
	return ruleCount(rule, perCPU), err
}

// EachRule calls fn with every slot of strait_rule that has counted anything.
func (m *Maps) EachRule(fn func(RuleCount)) error {
	k, err := m.get(bpf.DatapathMapStraitRule)
	if err != nil {
		return err
	}
	if err := eachRule(k, func(rule uint32, perCPU []bpf.Counter) error { fn(ruleCount(rule, perCPU)); return nil }); err != nil {
		return fmt.Errorf("%s: %w", bpf.DatapathMapStraitRule, err)
	}
	return nil
}

func ruleCount(rule uint32, perCPU []bpf.Counter) RuleCount {
	c := RuleCount{Rule: rule}
	for _, one := range perCPU {
		c.Packets += one.Packets
		c.Bytes += one.Bytes
	}
	return c
}

// eachRule calls fn with the slots that have counted.
func eachRule(m *ebpf.Map, fn func(rule uint32, perCPU []bpf.Counter) error) error {
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return fmt.Errorf("count CPUs: %w", err)
	}
	var cursor ebpf.MapBatchCursor
	keys, values := make([]uint32, scanChunk), make([]bpf.Counter, scanChunk*cpus)
	for {
		n, err := m.BatchLookup(&cursor, keys, values, nil)
		last := errors.Is(err, ebpf.ErrKeyNotExist)
		if err != nil && !last {
			return fmt.Errorf("read map: %w", err)
		}
		for i := range n {
			perCPU := values[i*cpus : (i+1)*cpus]
			if ruleCount(0, perCPU) == (RuleCount{}) {
				continue
			}
			if err := fn(keys[i], perCPU); err != nil {
				return err
			}
		}
		if last {
			return nil
		}
	}
}

// fillRules copies the slots that have counted. What is counted between this and the swap of programs is lost.
func fillRules(from, to *ebpf.Map) error {
	return eachRule(from, func(rule uint32, perCPU []bpf.Counter) error {
		if rule >= to.MaxEntries() {
			return fmt.Errorf("%w: rule %d has counted", ErrFull, rule)
		}
		return to.Put(&rule, perCPU)
	})
}
