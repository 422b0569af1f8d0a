package netfilter

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Ruleset is the nftables rules of a network namespace, those of iptables-nft included, as they were read.
type Ruleset struct {
	bases []*chain // in the order in which a hook asks them
	// Legacy names the tables of the older iptables that exist. Their rules cannot be read here.
	Legacy []string
}

type chain struct {
	*nftables.Chain
	rules []*nftables.Rule
	table *ruleTable
}

type ruleTable struct {
	*nftables.Table
	chains map[string]*chain
	sets   map[string]*set
}

type set struct {
	*nftables.Set
	elements []nftables.SetElement
}

// ReadRules reads the rules of the namespace of the calling thread. A kernel without nftables has none.
func ReadRules() (*Ruleset, error) {
	r := &Ruleset{Legacy: legacy()}
	c, err := nftables.New(nftables.AsLasting())
	if err != nil {
		return nil, fmt.Errorf("open nftables: %w", err)
	}
	defer func() { _ = c.CloseLasting() }()
	chains, err := c.ListChains()
	if noRules(err) {
		return r, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list nftables chains: %w", err)
	}
	tables := map[string]*ruleTable{}
	for _, found := range chains {
		if found.Hooknum == nil { // only a table with a base chain is ever asked
			continue
		}
		tables[tableKey(found.Table)] = &ruleTable{Table: found.Table, chains: map[string]*chain{}, sets: map[string]*set{}}
	}
	for _, found := range chains {
		t := tables[tableKey(found.Table)]
		if t == nil {
			continue
		}
		one := &chain{Chain: found, table: t}
		if one.rules, err = c.GetRules(found.Table, found); err != nil {
			return nil, fmt.Errorf("list nftables rules of %s %s: %w", t.Name, found.Name, err)
		}
		t.chains[found.Name] = one
		if found.Hooknum != nil {
			r.bases = append(r.bases, one)
		}
	}
	for _, t := range tables {
		if err := t.readSets(c); err != nil {
			return nil, err
		}
	}
	slices.SortStableFunc(r.bases, func(a, b *chain) int { return cmp.Compare(priority(a), priority(b)) })
	return r, nil
}

func tableKey(t *nftables.Table) string { return fmt.Sprint(t.Family, " ", t.Name) }

func priority(c *chain) nftables.ChainPriority {
	if c.Priority == nil {
		return 0
	}
	return *c.Priority
}

// readSets reads the sets that rules look up, and no others.
func (t *ruleTable) readSets(c *nftables.Conn) error {
	wanted := false
	for _, one := range t.chains {
		for _, rule := range one.rules {
			for _, e := range rule.Exprs {
				_, lookup := e.(*expr.Lookup)
				wanted = wanted || lookup
			}
		}
	}
	if !wanted {
		return nil
	}
	sets, err := c.GetSets(t.Table)
	if err != nil {
		return fmt.Errorf("list nftables sets of %s: %w", t.Name, err)
	}
	for _, s := range sets {
		elements, err := c.GetSetElements(s)
		if err != nil {
			return fmt.Errorf("list nftables set %s of %s: %w", s.Name, t.Name, err)
		}
		t.sets[s.Name] = &set{s, elements}
	}
	return nil
}

func noRules(err error) bool {
	return errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EINVAL)
}

// legacy names the tables that the older iptables has made in this namespace.
func legacy() (names []string) {
	for _, file := range []string{"/proc/thread-self/net/ip_tables_names", "/proc/thread-self/net/ip6_tables_names"} {
		text, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		for _, name := range strings.Fields(string(text)) {
			if !slices.Contains(names, name) {
				names = append(names, name)
			}
		}
	}
	return names
}

// Hook is where on its way through the stack a packet is.
type Hook uint32

// The hooks.
const (
	Prerouting  Hook = unix.NF_INET_PRE_ROUTING
	Input       Hook = unix.NF_INET_LOCAL_IN
	Forward     Hook = unix.NF_INET_FORWARD
	Output      Hook = unix.NF_INET_LOCAL_OUT
	Postrouting Hook = unix.NF_INET_POST_ROUTING
)

// String returns the hook's name.
func (h Hook) String() string {
	return []string{"prerouting", "input", "forward", "output", "postrouting"}[min(h, Postrouting)]
}

// Passing is a packet at a hook.
type Passing struct {
	Hook    Hook
	Frame   []byte // from Ethernet on
	In, Out string // names of devices, empty: none
	InIndex int
	OutIdx  int
	// Known says what connection tracking takes the packet for: of a connection that has been answered, or a new one.
	Known bool
	// Untracked: connection tracking leaves it alone, as it does neighbour discovery.
	Untracked bool
}

// Finding is what rules do to a packet.
type Finding struct {
	// Rule stopped it, if Dropped or Refused is set.
	Rule             string
	Dropped, Refused bool
	// May are rules that stop or change it, or let it pass before the one that would stop it, depending on what is not known here.
	May []string
}

// Stopped reports whether the packet goes no further.
func (f Finding) Stopped() bool { return f.Dropped || f.Refused }

// Pass asks the chains of a hook.
func (r *Ruleset) Pass(p Passing) Finding {
	var out Finding
	if r == nil || len(p.Frame) < etherLen {
		return out
	}
	for _, base := range r.bases {
		if nftables.ChainHook(p.Hook) != *base.Hooknum || !concerns(base.table.Family, p.v6()) {
			continue
		}
		if base.Type == nftables.ChainTypeNAT && p.Known { // asked with a connection's first packet only
			continue
		}
		e := &evaluation{packet: p, found: &out}
		end := e.chain(base, true, 0)
		if end == goOn || end == returned {
			if base.Policy != nil && *base.Policy == nftables.ChainPolicyDrop {
				e.stop(dropped, base.title()+": policy drop", true)
			}
		}
		if out.Stopped() {
			return out
		}
	}
	return out
}

func concerns(f nftables.TableFamily, v6 bool) bool {
	switch f {
	case nftables.TableFamilyINet:
		return true
	case nftables.TableFamilyIPv4:
		return !v6
	case nftables.TableFamilyIPv6:
		return v6
	}
	return false
}

// Empty reports whether no rule of any kind can stop or change a packet.
func (r *Ruleset) Empty() bool { return r == nil || len(r.bases) == 0 && len(r.Legacy) == 0 }
