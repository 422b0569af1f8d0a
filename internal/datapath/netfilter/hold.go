package netfilter

import (
	"errors"
	"fmt"
	"os"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
)

// HoldTable is the name of the nftables table by which Hold keeps the kernel translating.
const HoldTable = "strait_takeover"

// Hold makes the kernel go on translating connections it has begun to translate, whoever takes away his rules: it does so only while
// somebody has registered for translation. The table changes nothing for new connections.
func Hold() error {
	held, err := Held()
	if held || err != nil {
		return err
	}
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	table := c.AddTable(&nftables.Table{Name: HoldTable, Family: nftables.TableFamilyINet})
	for _, h := range []struct {
		name     string
		hook     *nftables.ChainHook
		priority *nftables.ChainPriority
	}{
		{"prerouting", nftables.ChainHookPrerouting, nftables.ChainPriorityNATDest},
		{"input", nftables.ChainHookInput, nftables.ChainPriorityNATSource},
		{"output", nftables.ChainHookOutput, nftables.ChainPriorityNATDest},
		{"postrouting", nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource},
	} {
		chain := c.AddChain(&nftables.Chain{Name: h.name, Table: table, Type: nftables.ChainTypeNAT, Hooknum: h.hook, Priority: h.priority})
		// The hooks alone leave connection tracking to others: a rule that looks at its state keeps it, too. It never matches, as a
		// nat chain sees only the first packet of a connection.
		c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
			&expr.Ct{Key: expr.CtKeySTATE, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.NativeEndian.PutUint32(expr.CtStateBitINVALID)},
			&expr.Verdict{Kind: expr.VerdictAccept},
		}})
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("make nftables table inet %s: %w", HoldTable, err)
	}
	return nil
}

// liberal is of the network namespace of whoever opens it.
const liberal = "/proc/sys/net/netfilter/nf_conntrack_tcp_be_liberal"

// Liberal makes the kernel translate TCP packets whose predecessors it has not seen, while connections pass from the stack to the programs
// and one direction may be ahead of the other. It would not, and answer what is left untranslated with a reset. strict ends that.
func Liberal() (strict func() error, err error) {
	before, err := os.ReadFile(liberal)
	if errors.Is(err, os.ErrNotExist) {
		return func() error { return nil }, nil // no connection tracking, no connections
	}
	if err == nil {
		err = os.WriteFile(liberal, []byte("1"), 0)
	}
	if err != nil {
		return nil, fmt.Errorf("let connection tracking be liberal: %w", err)
	}
	return func() error {
		if err := os.WriteFile(liberal, before, 0); err != nil {
			return fmt.Errorf("let connection tracking be as it was: %w", err)
		}
		return nil
	}, nil
}

// Held reports whether Hold is in force.
func Held() (bool, error) {
	c, err := nftables.New()
	if err != nil {
		return false, fmt.Errorf("open nftables: %w", err)
	}
	tables, err := c.ListTablesOfFamily(nftables.TableFamilyINet)
	if absent(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("list nftables tables: %w", err)
	}
	for _, t := range tables {
		if t.Name == HoldTable {
			return true, nil
		}
	}
	return false, nil
}

// Release ends Hold.
func Release() error {
	held, err := Held()
	if !held || err != nil {
		return err
	}
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	c.DelTable(&nftables.Table{Name: HoldTable, Family: nftables.TableFamilyINet})
	if err := c.Flush(); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("delete nftables table inet %s: %w", HoldTable, err)
	}
	return nil
}
