package policy

import (
	"cmp"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Key returns the selector as people read it: "pods app=client in namespace a", "CIDR 10.0.0.0/8 except 10.1.0.0/16", "entity world".
// Selectors that say the same have equal keys, in whatever order they say it, and others have different ones: what is not a plain word is
// quoted, and so are the words of this small language when they are meant as names.
func (s Selector) Key() string {
	switch s.Kind {
	case SelectPods:
		return "pods" + s.phrases(PodLabel)
	case SelectNodes:
		return "nodes" + s.phrases(NodeLabel)
	case SelectCIDR:
		return s.cidrKey()
	case SelectEntity:
		return "entity " + word(string(s.Entity))
	case SelectService:
		return "service " + word(s.Service)
	}
	return "unknown selector " + decimal(uint64(s.Kind))
}

func (s Selector) cidrKey() string {
	var b strings.Builder
	b.WriteString("CIDR ")
	b.WriteString(s.CIDR.String())
	if !s.Everyone {
		b.WriteString(" outside the cluster")
	}
	if len(s.Except) > 0 {
		except := slices.Clone(s.Except)
		slices.SortFunc(except, comparePrefixes)
		for i, e := range slices.Compact(except) {
			if i == 0 {
				b.WriteString(" except ")
			} else {
				b.WriteString(", ")
			}
			b.WriteString(e.String())
		}
	}
	return b.String()
}

func comparePrefixes(a, b netip.Prefix) int {
	return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
}

// phrases joins the requirements: labels of the plain source as a list, every other source behind words that say what it is.
func (s Selector) phrases(plain Source) string {
	var b strings.Builder
	for _, source := range []Source{plain, PodLabel, ServiceAccount, NamespaceName, NamespaceLabel, NodeLabel, ClusterName} {
		if source == plain && b.Len() > 0 {
			continue
		}
		terms := s.terms(source)
		if len(terms) == 0 {
			continue
		}
		if source == plain {
			b.WriteString(" ")
		} else {
			b.WriteString(introductions[source])
		}
		b.WriteString(strings.Join(terms, ", "))
	}
	return b.String()
}

// introductions stand between what was said before and the requirements of a source.
var introductions = [...]string{
	PodLabel:       " with pods of ",
	NamespaceLabel: " in namespaces with ",
	NamespaceName:  " in ",
	ServiceAccount: " with service account ",
	NodeLabel:      " on nodes with ",
	ClusterName:    " of cluster ",
}

// terms returns the requirements of one source as text, sorted, each once.
func (s Selector) terms(source Source) []string {
	var out []string
	for i := range s.Requirements {
		if r := &s.Requirements[i]; r.Source == source {
			out = append(out, r.term())
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func (r *Requirement) term() string {
	var subject string
	switch r.Source {
	case NamespaceName:
		subject = "namespace"
	case ServiceAccount, ClusterName:
		subject = "name"
	default:
		subject = word(r.Key)
	}
	values := r.Values
	if !sortedUnique(values) {
		values = slices.Clone(values)
		slices.Sort(values)
		values = slices.Compact(values)
	}
	switch r.Op {
	case In:
		if len(values) == 1 {
			switch subject {
			case "namespace":
				return "namespace " + word(values[0])
			case "name":
				return word(values[0])
			}
			return subject + "=" + word(values[0])
		}
		return subject + " in " + words(values)
	case NotIn:
		if len(values) == 1 {
			return subject + "!=" + word(values[0])
		}
		return subject + " not in " + words(values)
	case Exists:
		return subject
	case DoesNotExist:
		return "!" + subject
	}
	return subject + " operator " + decimal(uint64(r.Op)) + " " + words(values)
}

func sortedUnique(values []string) bool {
	for i := 1; i < len(values); i++ {
		if values[i-1] >= values[i] {
			return false
		}
	}
	return true
}

func words(values []string) string {
	quoted := make([]string, len(values))
	for i, v := range values {
		quoted[i] = word(v)
	}
	return "(" + strings.Join(quoted, ", ") + ")"
}

// word returns s as it is if it cannot be mistaken for anything else, and quoted otherwise.
func word(s string) string {
	switch s {
	case "", "in", "not", "with", "on", "of", "namespace", "namespaces", "name", "pods", "nodes", "service", "account", "cluster", "operator":
		return strconv.Quote(s)
	}
	for i := range len(s) {
		c := s[i]
		plain := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '.' || c == '-' || c == '_' || c == '/'
		if !plain {
			return strconv.Quote(s)
		}
	}
	return s
}

func decimal(n uint64) string { return strconv.FormatUint(n, 10) }
