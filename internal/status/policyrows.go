package status

import (
	"iter"
	"slices"
	"strings"

	"github.com/strait-net/strait/internal/identity"
	"github.com/strait-net/strait/internal/localapi"
	"github.com/strait-net/strait/internal/policy"
	"github.com/strait-net/strait/internal/state"
)

// Pods returns the pods by namespace and name.
func Pods(pods iter.Seq[state.Pod]) []localapi.PodRow {
	rows := []localapi.PodRow{}
	for p := range pods {
		row := localapi.PodRow{
			Namespace: p.Namespace, Name: p.Name, Node: p.Node, Addresses: p.Addresses, HostNetwork: p.HostNetwork,
			ServiceAccount: p.ServiceAccount, Labels: p.Labels.Map(), Audit: p.Audit,
		}
		for _, n := range p.Ports {
			row.Ports = append(row.Ports, n.Name+" "+policy.Port{Protocol: n.Protocol, First: n.Port, Last: n.Port}.String())
		}
		rows = append(rows, row)
	}
	return rows
}

// Namespaces returns the namespaces by name.
func Namespaces(namespaces iter.Seq[state.Namespace]) []localapi.NamespaceRow {
	rows := []localapi.NamespaceRow{}
	for n := range namespaces {
		row := localapi.NamespaceRow{Name: n.Name, Audit: n.Audit, Labels: n.Labels.Map()}
		if n.Mode != nil {
			row.Mode = n.Mode.String()
		}
		rows = append(rows, row)
	}
	return rows
}

// Identities returns who has which prefix, in order of prefixes.
func Identities(identities iter.Seq[state.Identity]) []localapi.IdentityRow {
	rows := []localapi.IdentityRow{}
	for i := range identities {
		rows = append(rows, localapi.IdentityRow{
			Prefix: i.Prefix, Identity: i.ID.String(), Kind: i.Kind.String(), Pod: i.Pod, Matches: matchesOf(i.Matches),
		})
	}
	slices.SortFunc(rows, func(a, b localapi.IdentityRow) int { return a.Prefix.Compare(b.Prefix) })
	return rows
}

// matchesOf says in words which selectors in use are matched: "pods app=web", or for a named port of egress "pods app=web: http is 80/TCP".
func matchesOf(all policy.Matches) []string {
	out := []string{}
	for _, m := range all {
		text := m.Selector
		if m.Name != "" {
			text += ": " + m.Name + " is " + policy.Port{Protocol: m.Protocol, First: m.Port, Last: m.Port}.String()
		}
		out = append(out, text)
	}
	return out
}

// Programs returns the compiled sets of policies: those that are not in the kernel first, then by their pods.
func Programs(programs iter.Seq[state.Program]) []localapi.ProgramRow {
	rows := []localapi.ProgramRow{}
	for p := range programs {
		row := localapi.ProgramRow{
			ID: identity.ID(p.ID).String(), Policies: []localapi.PolicyName{}, Pods: p.Pods, Entries: p.Entries, Error: p.Error,
		}
		for _, ref := range p.Policies {
			row.Policies = append(row.Policies, nameOf(ref))
		}
		rows = append(rows, row)
	}
	slices.SortStableFunc(rows, func(a, b localapi.ProgramRow) int {
		if (a.Error != "") != (b.Error != "") {
			return strings.Compare(b.Error, a.Error)
		}
		return slices.Compare(a.Pods, b.Pods)
	})
	return rows
}
