package policy

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

func TestKeysAreReadable(t *testing.T) {
	label := func(key string, op Operator, values ...string) Requirement {
		return Requirement{Source: PodLabel, Key: key, Op: op, Values: values}
	}
	for _, k := range []struct {
		want string
		s    Selector
	}{
		{"pods", Selector{}},
		{"pods app=client in namespace a", pods("a", "app", "client")},
		{"pods in namespace a", pods("a", "", "")},
		{"pods !old, app, app in (a, b), app not in (a, b), app!=x", Selector{Requirements: []Requirement{
			label("app", NotIn, "a", "b"), label("app", In, "b", "a"), label("app", NotIn, "x"), label("app", Exists), label("old", DoesNotExist), label("app", Exists)}}},
		{`pods ""="", app="a b"`, Selector{Requirements: []Requirement{label("app", In, "a b"), label("", In, "")}}},
		{"pods app.kubernetes.io/name=web in namespaces with kubernetes.io/metadata.name=a", Selector{Requirements: []Requirement{
			label("app.kubernetes.io/name", In, "web"), {Source: NamespaceLabel, Key: "kubernetes.io/metadata.name", Op: In, Values: []string{"a"}}}}},
		{"pods with service account runner in namespace in (a, b)", Selector{Requirements: []Requirement{
			{Source: NamespaceName, Op: In, Values: []string{"a", "b"}}, {Source: ServiceAccount, Op: In, Values: []string{"runner"}}}}},
		{"pods in namespace!=kube-system", Selector{Requirements: []Requirement{{Source: NamespaceName, Op: NotIn, Values: []string{"kube-system"}}}}},
		{"nodes zone=a", Selector{Kind: SelectNodes, Requirements: []Requirement{{Source: NodeLabel, Key: "zone", Op: In, Values: []string{"a"}}}}},
		{"CIDR 10.0.0.0/8 outside the cluster", Selector{Kind: SelectCIDR, CIDR: netip.MustParsePrefix("10.0.0.0/8")}},
		{"CIDR fd00::/8 except fd00:1::/32, fd00:2::/32", Selector{Kind: SelectCIDR, Everyone: true, CIDR: netip.MustParsePrefix("fd00::/8"),
			Except: []netip.Prefix{netip.MustParsePrefix("fd00:2::/32"), netip.MustParsePrefix("fd00:1::/32"), netip.MustParsePrefix("fd00:2::/32")}}},
		{"entity kube-apiserver", Selector{Kind: SelectEntity, Entity: EntityAPIServer}},
		{"service a/web", Selector{Kind: SelectService, Service: "a/web"}},
	} {
		if got := k.s.Key(); got != k.want {
			t.Errorf("got  %s\nwant %s", got, k.want)
		}
	}
}

// meaning spells a selector out in a form that cannot be ambiguous, with what says nothing left out.
func meaning(s Selector) string {
	switch s.Kind {
	case SelectPods, SelectNodes:
		var all []string
		for _, r := range s.Requirements {
			values := slices.Clone(r.Values)
			slices.Sort(values)
			if r.Op == Exists || r.Op == DoesNotExist {
				values = nil
			}
			if r.Source == NamespaceName || r.Source == ServiceAccount || r.Source == ClusterName {
				r.Key = ""
			}
			all = append(all, fmt.Sprintf("%d %q %d %q", r.Source, r.Key, r.Op, slices.Compact(values)))
		}
		slices.Sort(all)
		return fmt.Sprintf("%d %q", s.Kind, slices.Compact(all))
	case SelectCIDR:
		except := slices.Clone(s.Except)
		slices.SortFunc(except, comparePrefixes)
		return fmt.Sprintf("%d %s %t %s", s.Kind, s.CIDR, s.Everyone, slices.Compact(except))
	case SelectEntity:
		return fmt.Sprintf("%d %q", s.Kind, s.Entity)
	}
	return fmt.Sprintf("%d %q", s.Kind, s.Service)
}

// read makes a selector of text: lines are its requirements, their words what they are made of.
func read(text string) Selector {
	var s Selector
	for i, line := range strings.Split(text, "\n") {
		if i == 0 {
			s.Kind = SelectorKind(len(line) % 5)
			s.Entity, s.Service = Entity(line), line
			s.CIDR = netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(len(line))}), 16)
			continue
		}
		fields := strings.Split(line, "|")
		first := append([]byte(fields[0]), 0, 0)
		r := Requirement{Source: Source(first[0] % 6), Op: Operator(first[1] % 4), Values: fields[1:]}
		if len(fields) > 1 {
			r.Key, r.Values = fields[1], fields[2:]
		}
		s.Requirements = append(s.Requirements, r)
		s.Except = append(s.Except, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, first[0], first[1]}), 24))
	}
	return s
}

func FuzzKeysAreOfMeaning(f *testing.F) {
	for _, seed := range [][2]string{
		{"\nab|app|x", "\nab|app|x\nab|app|x"}, {"\nab|app|x, y", "\nab|app|x|y"}, {"\na|in| namespace a", "\nc||a"},
		{"\n \x00|app=x", "\n \x00|app|x"}, {"a\nb", "aaaaaa\nb"}, {"\nx|\"", "\nx|\\\""}, {"\n\x01\x01|a|b", "\n\x02\x01|a|b"},
	} {
		f.Add(seed[0], seed[1])
	}
	f.Fuzz(func(t *testing.T, a, b string) {
		x, y := read(a), read(b)
		if same := meaning(x) == meaning(y); same != (x.Key() == y.Key()) {
			t.Errorf("same meaning: %v\n%s\n%s\n%s\n%s", same, meaning(x), meaning(y), x.Key(), y.Key())
		}
	})
}

// Every pair of many small selectors, which differ in little.
func TestKeysAreOfMeaning(t *testing.T) {
	known := map[string]string{}
	words := []string{"a", "in", "not", "=", "", "a, b", "namespace", "name", "a=b", "!a", ")", "\"", "with", "\xff", "ÿ"}
	check := func(s Selector) {
		key, m := s.Key(), meaning(s)
		if other, found := known[key]; found && other != m {
			t.Errorf("%s\nis %s\nand %s", key, m, other)
		}
		known[key] = m
	}
	for kind := range SelectorKind(5) {
		for _, a := range words {
			check(Selector{Kind: kind, Entity: Entity(a), Service: a, CIDR: netip.MustParsePrefix("10.0.0.0/8")})
			for _, b := range words {
				for source := range Source(6) {
					for op := range Operator(4) {
						one := Requirement{Source: source, Key: a, Op: op, Values: []string{b}}
						check(Selector{Kind: kind, CIDR: netip.MustParsePrefix("10.0.0.0/8"), Requirements: []Requirement{one}})
						check(Selector{Kind: kind, CIDR: netip.MustParsePrefix("10.0.0.0/8"), Requirements: []Requirement{one, {Source: NamespaceName, Values: []string{a, b}}}})
						check(Selector{Kind: kind, CIDR: netip.MustParsePrefix("10.0.0.0/8"), Requirements: []Requirement{one, {Source: PodLabel, Key: b, Values: []string{a}}}})
					}
				}
			}
		}
	}
	if len(known) < 5000 {
		t.Errorf("only %d keys", len(known))
	}
}
