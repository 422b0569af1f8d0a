package cli

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/strait-net/strait/internal/localapi"
)

// policyResources are the rows of strait get that are about policy.
func (a *app) policyResources() []resource {
	return []resource{
		{"pods", "pods as policy sees them: labels, addresses, named ports", func(ctx context.Context, a *app) error {
			return show(ctx, a, "pods", (*localapi.Client).Pods, a.podsGrid)
		}},
		{"namespaces", "namespaces with their labels and policy mode", func(ctx context.Context, a *app) error {
			return show(ctx, a, "namespaces", (*localapi.Client).Namespaces, a.namespacesGrid)
		}},
		{"policies", "policies of all kinds (as strait policy list)", func(ctx context.Context, a *app) error {
			return a.policyList(ctx, policyFilter{})
		}},
		{"identities", "who has which address, as far as policy in use can tell", func(ctx context.Context, a *app) error {
			return show(ctx, a, "identities", (*localapi.Client).Identities, a.identitiesGrid)
		}},
		{"programs", "sets of policies in use on a node, compiled", func(ctx context.Context, a *app) error {
			return show(ctx, a, "programs", (*localapi.Client).PolicyPrograms, a.programsGrid)
		}},
	}
}

// labelText prints labels as "app=web tier=front", sorted.
func labelText(labels map[string]string) string {
	var out []string
	for k, v := range labels {
		out = append(out, k+"="+v)
	}
	slices.Sort(out)
	return strings.Join(out, listGap)
}

func (a *app) podsGrid(rows []row[localapi.PodRow]) *grid {
	g := &grid{columns: columns("ON", "NAMESPACE", "NAME", "NODE", "ADDRESSES", "+SERVICE ACCOUNT", "PORTS", "AUDIT", "LABELS")}
	for _, r := range rows {
		p := r.value
		addresses := words(p.Addresses)
		if p.HostNetwork {
			addresses = "those of its node"
		}
		audit := ""
		if p.Audit {
			audit = "yes"
		}
		on := r.on
		if on == "all" {
			on = "" // every node knows all pods
		}
		g.add(on, p.Namespace, p.Name, p.Node, addresses, p.ServiceAccount, strings.Join(p.Ports, listGap), audit, labelText(p.Labels))
	}
	return g
}

func (a *app) namespacesGrid(rows []row[localapi.NamespaceRow]) *grid {
	g := &grid{columns: columns("ON", "NAME", "MODE", "AUDIT", "LABELS")}
	for _, r := range rows {
		on, audit := r.on, ""
		if on == "all" {
			on = ""
		}
		if r.value.Audit {
			audit = "yes"
		}
		g.add(on, r.value.Name, r.value.Mode, audit, labelText(r.value.Labels))
	}
	return g
}

func (a *app) identitiesGrid(rows []row[localapi.IdentityRow]) *grid {
	g := &grid{columns: columns("ON", "PREFIX", "IDENTITY", "KIND", "POD", "MATCHES")}
	for _, r := range rows {
		i := r.value
		g.add(r.on, i.Prefix.String(), i.Identity, i.Kind, i.Pod, strings.Join(i.Matches, "; "))
	}
	return g
}

func (a *app) programsGrid(rows []row[localapi.ProgramRow]) *grid {
	g := &grid{columns: columns("ON", "PROGRAM", "ROWS#", "PODS", "POLICIES", "ERROR")}
	for _, r := range rows {
		p := r.value
		var pods, policies []string
		for _, name := range p.Pods {
			if name == "" {
				name = "the node"
			}
			pods = append(pods, name)
		}
		if more := len(pods) - namedPods; more > 0 && a.output != formatWide {
			pods = append(pods[:namedPods], fmt.Sprintf("and %d more", more))
		}
		for _, n := range p.Policies {
			policies = append(policies, pathOf(n))
		}
		if len(policies) == 0 {
			policies = []string{"none: mode always"}
		}
		g.add(r.on, p.ID, strconv.Itoa(p.Entries), strings.Join(pods, listGap), strings.Join(policies, "\n"), cell{text: p.Error, style: red})
	}
	return g
}

// namedPods is how many pods of a program are named in a table.
const namedPods = 4
