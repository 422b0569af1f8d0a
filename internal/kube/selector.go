package kube

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/strait-net/strait/internal/policy"
)

// maxReasons bounds what is said about one object.
const maxReasons = 5

// policyReader collects why an object is refused, each reason with its path and value.
type policyReader struct{ reasons []string }

func (r *policyReader) refuse(path *field.Path, value any, accepted string, args ...any) {
	text := fmt.Sprintf("%q", fmt.Sprint(value))
	if _, isNumber := value.(int32); isNumber {
		text = fmt.Sprint(value)
	}
	r.reasons = append(r.reasons, fmt.Sprintf("%s: %s: %s", path, text, fmt.Sprintf(accepted, args...)))
}

func (r *policyReader) error() error {
	switch n := len(r.reasons); {
	case n == 0:
		return nil
	case n > maxReasons:
		return fmt.Errorf("%s; and %d more", strings.Join(r.reasons[:maxReasons], "; "), n-maxReasons)
	}
	return fmt.Errorf("%s", strings.Join(r.reasons, "; "))
}

// labels reads a label selector as conditions on one source of labels; nil and empty select everything. The result is sorted.
func (r *policyReader) labels(path *field.Path, source policy.Source, s *metav1.LabelSelector) []policy.Requirement {
	if s == nil {
		return nil
	}
	if errs := validation.ValidateLabelSelector(s, validation.LabelSelectorValidationOptions{}, path); len(errs) > 0 {
		for _, err := range errs {
			r.reasons = append(r.reasons, err.Error())
		}
		return nil
	}
	var out []policy.Requirement
	for k, v := range s.MatchLabels {
		out = append(out, policy.Requirement{Source: source, Key: intern(k), Op: policy.In, Values: []string{v}})
	}
	for _, e := range s.MatchExpressions {
		values := slices.Clone(e.Values)
		slices.Sort(values)
		out = append(out, policy.Requirement{Source: source, Key: intern(e.Key), Op: operators()[e.Operator], Values: slices.Compact(values)})
	}
	return sortRequirements(out)
}

// operators are those that ValidateLabelSelector lets pass.
func operators() map[metav1.LabelSelectorOperator]policy.Operator {
	return map[metav1.LabelSelectorOperator]policy.Operator{
		metav1.LabelSelectorOpIn: policy.In, metav1.LabelSelectorOpNotIn: policy.NotIn,
		metav1.LabelSelectorOpExists: policy.Exists, metav1.LabelSelectorOpDoesNotExist: policy.DoesNotExist,
	}
}

// sortRequirements makes selectors that say the same in another order equal.
func sortRequirements(all []policy.Requirement) []policy.Requirement {
	compare := func(a, b policy.Requirement) int {
		return cmp.Or(cmp.Compare(a.Source, b.Source), strings.Compare(a.Key, b.Key), cmp.Compare(a.Op, b.Op), slices.Compare(a.Values, b.Values))
	}
	slices.SortFunc(all, compare)
	return slices.CompactFunc(all, func(a, b policy.Requirement) bool { return compare(a, b) == 0 })
}

// podSelector selects pods by conditions on their namespaces and on themselves.
func podSelector(parts ...[]policy.Requirement) policy.Selector {
	return policy.Selector{Kind: policy.SelectPods, Requirements: sortRequirements(slices.Concat(parts...))}
}

// inNamespace is the condition of being in one namespace.
func inNamespace(name string) []policy.Requirement {
	return []policy.Requirement{{Source: policy.NamespaceName, Op: policy.In, Values: []string{intern(name)}}}
}

// cidr reads a CIDR; bits behind the mask are dropped, as API servers have always allowed them.
func (r *policyReader) cidr(path *field.Path, text string) netip.Prefix {
	p, err := netip.ParsePrefix(text)
	if err != nil || p.Addr().Is4In6() {
		r.refuse(path, text, "want a CIDR such as 192.0.2.0/24 or 2001:db8::/64")
		return netip.Prefix{}
	}
	return p.Masked()
}

// ports returns a range of ports that is not empty.
func (r *policyReader) ports(path *field.Path, protocol policy.Protocol, first, last int32) policy.Port {
	if first < 1 || first > 65535 {
		r.refuse(path, first, "want 1 to 65535")
	}
	return policy.Port{Protocol: protocol, First: uint16(first), Last: uint16(last)}
}
