package kubeproxy

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

const (
	nftTable = "kube-proxy" // of the nftables mode, in ip and ip6
	// perBatch bounds the messages of one transaction: their acknowledgements have to fit into a socket's buffer.
	perBatch = 128
)

func families() []nftables.TableFamily {
	return []nftables.TableFamily{nftables.TableFamilyIPv4, nftables.TableFamilyIPv6}
}

func familyName(f nftables.TableFamily) string {
	if f == nftables.TableFamilyIPv6 {
		return "ip6"
	}
	return "ip"
}

// iptablesTable reports whether a table is one that iptables-nft makes.
func iptablesTable(name string) bool {
	return slices.Contains([]string{"nat", "filter", "mangle", "raw", "security"}, name)
}

func open() (*nftables.Conn, error) {
	c, err := nftables.New()
	if err != nil {
		return nil, fmt.Errorf("open nftables: %w", err)
	}
	return c, nil
}

// noNftables reports whether the kernel has no nftables.
func noNftables(err error) bool {
	return errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP)
}

func chainsOf(c *nftables.Conn, family nftables.TableFamily) ([]*nftables.Chain, error) {
	chains, err := c.ListChainsOfTableFamily(family)
	if noNftables(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list nftables chains of %s: %w", familyName(family), err)
	}
	return chains, nil
}

func ownTables(c *nftables.Conn) ([]*nftables.Table, error) {
	var own []*nftables.Table
	for _, family := range families() {
		tables, err := c.ListTablesOfFamily(family)
		if noNftables(err) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("list nftables tables of %s: %w", familyName(family), err)
		}
		for _, t := range tables {
			if t.Name == nftTable {
				own = append(own, t)
			}
		}
	}
	return own, nil
}

func nftTables() ([]Trace, error) {
	c, err := open()
	if err != nil {
		return nil, err
	}
	tables, err := ownTables(c)
	if err != nil {
		return nil, err
	}
	var found []Trace
	for _, t := range tables {
		chains, err := chainsOf(c, t.Family)
		if err != nil {
			return nil, err
		}
		chains = slices.DeleteFunc(chains, func(c *nftables.Chain) bool { return c.Table.Name != nftTable })
		maps, err := c.GetSets(t)
		if err != nil {
			return nil, fmt.Errorf("list sets of nftables table %s %s: %w", familyName(t.Family), nftTable, err)
		}
		found = append(found, Trace{Nftables, familyName(t.Family) + " " + t.Name, fmt.Sprintf("%d chains, %d sets and maps", len(chains), len(maps))})
	}
	return found, nil
}

func removeNftTables() error {
	c, err := open()
	if err != nil {
		return err
	}
	tables, err := ownTables(c)
	if err != nil {
		return err
	}
	var errs []error
	for _, t := range tables {
		c.DelTable(t)
		if err := c.Flush(); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, fmt.Errorf("delete nftables table %s %s: %w", familyName(t.Family), t.Name, err))
		}
	}
	return errors.Join(errs...)
}

// footprint is what kube-proxy has in one table of iptables-nft.
type footprint struct {
	table  *nftables.Table
	chains []*nftables.Chain
	jumps  []*nftables.Rule // in the chains of others
}

// footprints reads only the rules of chains that are not kube-proxy's: of its own there may be tens of thousands.
func footprints(c *nftables.Conn) ([]footprint, error) {
	var out []footprint
	for _, family := range families() {
		chains, err := chainsOf(c, family)
		if err != nil {
			return nil, err
		}
		kubelet := slices.ContainsFunc(chains, func(c *nftables.Chain) bool { return c.Name == kubeletMark })
		tables := map[string]*footprint{}
		for _, chain := range chains {
			if !iptablesTable(chain.Table.Name) {
				continue
			}
			f := tables[chain.Table.Name]
			if f == nil {
				f = &footprint{table: chain.Table}
				tables[chain.Table.Name] = f
			}
			if ownChain(chain.Name, kubelet) {
				f.chains = append(f.chains, chain)
				continue
			}
			rules, err := c.GetRules(chain.Table, chain)
			if err != nil {
				return nil, fmt.Errorf("read rules of %s %s %s: %w", familyName(family), chain.Table.Name, chain.Name, err)
			}
			f.jumps = append(f.jumps, slices.DeleteFunc(rules, func(r *nftables.Rule) bool { return !leadsToOwn(r, kubelet) })...)
		}
		for _, f := range tables {
			if len(f.chains)+len(f.jumps) > 0 {
				out = append(out, *f)
			}
		}
	}
	slices.SortFunc(out, func(a, b footprint) int { return strings.Compare(a.name(), b.name()) })
	return out, nil
}

func (f footprint) name() string { return familyName(f.table.Family) + " " + f.table.Name }

func leadsToOwn(r *nftables.Rule, kubelet bool) bool {
	return slices.ContainsFunc(r.Exprs, func(e expr.Any) bool {
		v, ok := e.(*expr.Verdict)
		return ok && (v.Kind == expr.VerdictJump || v.Kind == expr.VerdictGoto) && ownChain(v.Chain, kubelet)
	})
}

func iptablesRules() ([]Trace, error) {
	c, err := open()
	if err != nil {
		return nil, err
	}
	all, err := footprints(c)
	var found []Trace
	for _, f := range all {
		var chains, from []string
		for _, c := range f.chains {
			chains = append(chains, c.Name)
		}
		for _, r := range f.jumps {
			from = append(from, r.Chain.Name)
		}
		detail := fmt.Sprintf("%d chains: %s", len(chains), some(chains))
		if len(from) > 0 {
			detail += "; jumps from " + some(from)
		}
		found = append(found, Trace{Iptables, f.name(), detail})
	}
	return found, err
}

// removeIptables takes away the jumps first, in one transaction: from then on no packet meets what is left, which may be too much for
// one.
func removeIptables() error {
	c, err := open()
	if err != nil {
		return err
	}
	all, err := footprints(c)
	if err != nil {
		return err
	}
	var errs []error
	for _, f := range all {
		if err := f.remove(c); err != nil {
			errs = append(errs, fmt.Errorf("remove kube-proxy's rules from %s: %w", f.name(), err))
		}
	}
	return errors.Join(errs...)
}

func (f footprint) remove(c *nftables.Conn) error {
	for _, r := range f.jumps {
		if err := c.DelRule(r); err != nil {
			return err
		}
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("delete jumps: %w", err)
	}
	// Chains refer to each other: all have to be empty before one can go.
	for _, step := range []struct {
		what string
		do   func(*nftables.Chain)
	}{{"empty chains", c.FlushChain}, {"delete chains", c.DelChain}} {
		for part := range slices.Chunk(f.chains, perBatch) {
			for _, chain := range part {
				step.do(chain)
			}
			if err := c.Flush(); err != nil {
				return fmt.Errorf("%s: %w", step.what, err)
			}
		}
	}
	return nil
}
