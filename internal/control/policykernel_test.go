package control

import (
	"bufio"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"

	"github.com/strait-net/strait/internal/bpf"
	"github.com/strait-net/strait/internal/datapath/maps"
	"github.com/strait-net/strait/internal/identity"
	"github.com/strait-net/strait/internal/policy"
	"github.com/strait-net/strait/internal/policy/eval/model"
)

var errInjected = errors.New("injected")

// memory is the kernel's tables in memory. Writes fail at random; looked is called after every single row that was written.
type memory struct {
	*model.Tables
	chance *rand.Rand // nil: nothing fails
	looked func(what string)
	rules  string // file of their numbers
	byNum  map[uint32]policy.RuleRef

	identities map[netip.Prefix]uint64
	policies   map[maps.PolicyKey]maps.PolicyEntry
	ports      map[maps.Port]maps.PolicyVerdict
	state      maps.NodeState
	addrs      map[string][]netip.Addr // of attachments
	writes     int
	failures   int
	blind      bool // nothing is written at all: what remains is the work of the loop and its writer
}

func newMemory(stateDir string) *memory {
	return &memory{
		Tables: model.NewTables(), looked: func(string) {}, rules: stateDir + "/rules", byNum: map[uint32]policy.RuleRef{},
		identities: map[netip.Prefix]uint64{}, policies: map[maps.PolicyKey]maps.PolicyEntry{}, ports: map[maps.Port]maps.PolicyVerdict{},
		addrs: map[string][]netip.Addr{},
	}
}

// each does n writes until one fails.
func (m *memory) each(n int, what string, write func(i int)) (done int, err error) {
	if m.blind {
		return n, nil
	}
	for i := range n {
		if m.chance != nil && m.chance.IntN(10) == 0 {
			m.failures++
			return i, errInjected
		}
		write(i)
		m.writes++
		m.looked(fmt.Sprintf("%s %d of %d", what, i+1, n))
	}
	return n, nil
}

// rule finds out which rule has a number, as another process would.
func (m *memory) rule(number uint32) policy.RuleRef {
	if ref, known := m.byNum[number]; known {
		return ref
	}
	f, err := os.Open(m.rules)
	if err != nil {
		return policy.RuleRef{}
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		var n uint32
		var since int64
		var way uint8
		var kind, namespace, name, path string
		if _, err := fmt.Sscanf(lines.Text(), "%d %d %d %q %q %q %q", &n, &since, &way, &kind, &namespace, &name, &path); err == nil {
			m.byNum[n] = policy.RuleRef{Ref: policy.Ref{Kind: policy.Kind(kind), Namespace: namespace, Name: name}, Way: policy.Way(way), Path: path}
		}
	}
	return m.byNum[number]
}

func (m *memory) verdict(v maps.PolicyVerdict) policy.Verdict {
	out := policy.Verdict{Allow: v.Flags&bpf.PolicyAllow != 0, Rule: m.rule(v.Rule)}
	if v.Flags&bpf.PolicyAudit != 0 {
		out.Audit, out.AuditAllow, out.AuditRule = true, v.Flags&bpf.PolicyAuditDeny == 0, m.rule(v.AuditRule)
	}
	return out
}

func (m *memory) PutIdentities(rows []maps.Identity) (int, error) {
	return m.each(len(rows), "identity", func(i int) {
		m.identities[rows[i].Prefix] = rows[i].ID
		m.Identities[model.PrefixOf(rows[i].Prefix)] = identity.ID(rows[i].ID)
	})
}

func (m *memory) DeleteIdentities(prefixes []netip.Prefix) (int, error) {
	return m.each(len(prefixes), fmt.Sprint("no identity ", prefixes), func(i int) {
		delete(m.identities, prefixes[i])
		delete(m.Identities, model.PrefixOf(prefixes[i]))
	})
}

func (m *memory) EachIdentity(fn func(maps.Identity)) error {
	for p, id := range m.identities {
		fn(maps.Identity{Prefix: p, ID: id})
	}
	return nil
}

func keyOfEntry(k maps.PolicyKey) model.EntryKey {
	return model.EntryKey{Program: policy.ID(k.Policy), Way: policy.Way(k.Direction), Identity: identity.ID(k.Identity)}
}

func keyOfPort(k maps.Port) model.PortKey {
	return model.PortKey{Table: policy.ID(k.Table), Protocol: policy.Protocol(k.Protocol), Port: k.Port, Bits: k.Bits}
}

func (m *memory) PutPolicies(keys []maps.PolicyKey, entries []maps.PolicyEntry) (int, error) {
	return m.each(len(keys), "policy", func(i int) {
		m.policies[keys[i]] = entries[i]
		e := model.Entry{Table: policy.ID(entries[i].Table)}
		if e.Table == 0 {
			e.Verdict = m.verdict(entries[i].Verdict)
		}
		m.Entries[keyOfEntry(keys[i])] = e
	})
}

func (m *memory) DeletePolicies(keys []maps.PolicyKey) (int, error) {
	return m.each(len(keys), "no policy", func(i int) {
		delete(m.policies, keys[i])
		delete(m.Entries, keyOfEntry(keys[i]))
	})
}

func (m *memory) EachPolicy(fn func(maps.PolicyKey, maps.PolicyEntry)) error {
	for k, e := range m.policies {
		fn(k, e)
	}
	return nil
}

func (m *memory) PutPorts(keys []maps.Port, verdicts []maps.PolicyVerdict) (int, error) {
	return m.each(len(keys), "port", func(i int) {
		m.ports[keys[i]] = verdicts[i]
		m.Ports[keyOfPort(keys[i])] = m.verdict(verdicts[i])
	})
}

func (m *memory) DeletePorts(keys []maps.Port) (int, error) {
	return m.each(len(keys), "no port", func(i int) {
		delete(m.ports, keys[i])
		delete(m.Ports, keyOfPort(keys[i]))
	})
}

func (m *memory) EachPort(fn func(maps.Port, maps.PolicyVerdict)) error {
	for k, v := range m.ports {
		fn(k, v)
	}
	return nil
}

func (m *memory) PutNodeState(s maps.NodeState) error {
	_, err := m.each(1, "node", func(int) { m.state, m.Node = s, policy.ID(s.Policy) })
	return err
}

func (m *memory) NodeState() (maps.NodeState, error) { return m.state, nil }

func (m *memory) ZeroRule(uint32) error {
	_, err := m.each(1, "rule", func(int) {})
	return err
}

func (m *memory) EachRule(func(maps.RuleCount)) error { return nil }

func (m *memory) SetPolicy(attachment string, program uint64) (bool, error) {
	var addrs []netip.Addr
	for _, a := range m.addrs[attachment] {
		if id, there := m.Endpoints[a]; !there || uint64(id) != program {
			addrs = append(addrs, a)
		}
	}
	done, err := m.each(len(addrs), "endpoint", func(i int) { m.Endpoints[addrs[i]] = policy.ID(program) })
	return done > 0, err
}

func (m *memory) Held() (map[uint64]bool, error) {
	held := map[uint64]bool{}
	for _, id := range m.Endpoints {
		held[uint64(id)] = true
	}
	return held, nil
}

func (m *memory) CheckPolicies(bool) (int, []string, error) { return 0, nil, nil }
