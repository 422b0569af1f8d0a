package policy

import (
	"cmp"
	"net/netip"
	"slices"
	"strconv"
)

// Key returns the selector as people read it: "pods app=client in namespace a", "CIDR 10.0.0.0/8 except 10.1.0.0/16", "entity world".
// Selectors that say the same have equal keys, in whatever order they say it, and others have different ones: what is not a plain word is
// quoted, and so are the words of this small language when they are meant as names.
func (s Selector) Key() string {
	var space [128]byte
	return string(s.appendKey(space[:0]))
}

func (s *Selector) appendKey(b []byte) []byte {
	switch s.Kind {
	case SelectPods:
		return s.appendPhrases(append(b, "pods"...), PodLabel)
	case SelectNodes:
		return s.appendPhrases(append(b, "nodes"...), NodeLabel)
	case SelectCIDR:
		return s.appendCIDR(append(b, "CIDR "...))
	case SelectEntity:
		return appendWord(append(b, "entity "...), string(s.Entity))
	case SelectService:
		return appendWord(append(b, "service "...), s.Service)
	}
	return strconv.AppendUint(append(b, "unknown selector "...), uint64(s.Kind), 10)
}

func (s *Selector) appendCIDR(b []byte) []byte {
	b = s.CIDR.AppendTo(b)
	if !s.Everyone {
		b = append(b, " outside the cluster"...)
	}
	if len(s.Except) == 0 {
		return b
	}
	except := slices.Clone(s.Except)
	slices.SortFunc(except, comparePrefixes)
	for i, e := range slices.Compact(except) {
		if i == 0 {
			b = append(b, " except "...)
		} else {
			b = append(b, ", "...)
		}
		b = e.AppendTo(b)
	}
	return b
}

func comparePrefixes(a, b netip.Prefix) int {
	return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
}

// sources is the order in which requirements are read out.
var sources = [...]Source{PodLabel, ServiceAccount, NamespaceName, NamespaceLabel, NodeLabel, ClusterName}

// introductions stand between what was said before and the requirements of a source.
var introductions = [...]string{
	PodLabel:       " with pods of ",
	NamespaceLabel: " in namespaces with ",
	NamespaceName:  " in ",
	ServiceAccount: " with service account ",
	NodeLabel:      " on nodes with ",
	ClusterName:    " of cluster ",
}

// appendPhrases reads out the requirements: those of the plain source as a list, every other one behind words that say what it is.
func (s *Selector) appendPhrases(b []byte, plain Source) []byte {
	b = s.appendTerms(b, plain, " ")
	for _, source := range sources {
		if source != plain {
			b = s.appendTerms(b, source, introductions[source])
		}
	}
	return b
}

// appendTerms reads out the requirements of one source, sorted, each once.
func (s *Selector) appendTerms(b []byte, source Source, introduction string) []byte {
	var first *Requirement
	count := 0
	for i := range s.Requirements {
		if r := &s.Requirements[i]; r.Source == source {
			if count == 0 {
				first = r
			}
			count++
		}
	}
	switch count {
	case 0:
		return b
	case 1:
		return first.appendTerm(append(b, introduction...))
	}
	terms := make([]string, 0, count)
	for i := range s.Requirements {
		if r := &s.Requirements[i]; r.Source == source {
			terms = append(terms, r.term())
		}
	}
	slices.Sort(terms)
	for i, term := range slices.Compact(terms) {
		if i == 0 {
			b = append(b, introduction...)
		} else {
			b = append(b, ", "...)
		}
		b = append(b, term...)
	}
	return b
}

// term returns one requirement as text.
func (r *Requirement) term() string { return string(r.appendTerm(nil)) }

func (r *Requirement) appendTerm(b []byte) []byte {
	values := r.Values
	if !sortedUnique(values) {
		values = slices.Clone(values)
		slices.Sort(values)
		values = slices.Compact(values)
	}
	switch {
	case r.Op == In && len(values) == 1:
		return appendWord(r.appendIs(b), values[0])
	case r.Op == In:
		return appendWords(append(r.appendSubject(b), " in "...), values)
	case r.Op == NotIn && len(values) == 1:
		return appendWord(append(r.appendSubject(b), "!="...), values[0])
	case r.Op == NotIn:
		return appendWords(append(r.appendSubject(b), " not in "...), values)
	case r.Op == DoesNotExist:
		return r.appendSubject(append(b, '!'))
	case r.Op == Exists:
		return r.appendSubject(b)
	}
	b = append(r.appendSubject(b), " operator "...)
	return appendWords(append(strconv.AppendUint(b, uint64(r.Op), 10), ' '), values)
}

// appendSubject adds what is compared. Names have no key.
func (r *Requirement) appendSubject(b []byte) []byte {
	switch r.Source {
	case NamespaceName:
		return append(b, "namespace"...)
	case ServiceAccount, ClusterName:
		return append(b, "name"...)
	}
	return appendWord(b, r.Key)
}

// appendIs adds what is compared with a single value, and that it is equal.
func (r *Requirement) appendIs(b []byte) []byte {
	switch r.Source {
	case NamespaceName:
		return append(b, "namespace "...)
	case ServiceAccount, ClusterName:
		return b
	}
	return append(appendWord(b, r.Key), '=')
}

func sortedUnique(values []string) bool {
	for i := 1; i < len(values); i++ {
		if values[i-1] >= values[i] {
			return false
		}
	}
	return true
}

func appendWords(b []byte, values []string) []byte {
	b = append(b, '(')
	for i, v := range values {
		if i > 0 {
			b = append(b, ", "...)
		}
		b = appendWord(b, v)
	}
	return append(b, ')')
}

// appendWord adds s as it is if it cannot be mistaken for anything else, and quoted otherwise.
func appendWord(b []byte, s string) []byte {
	switch s {
	case "", "in", "not", "with", "on", "of", "namespace", "namespaces", "name", "pods", "nodes", "service", "account", "cluster", "operator":
		return strconv.AppendQuote(b, s)
	}
	for i := range len(s) {
		c := s[i]
		plain := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '.' || c == '-' || c == '_' || c == '/'
		if !plain {
			return strconv.AppendQuote(b, s)
		}
	}
	return append(b, s...)
}

func word(s string) string { return string(appendWord(nil, s)) }

func decimal(n uint64) string { return strconv.FormatUint(n, 10) }
