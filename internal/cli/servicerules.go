package cli

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/strait-net/strait/internal/localapi"
	"github.com/strait-net/strait/internal/servicerules"
)

// ruleForm is how services are written as rules.
type ruleForm struct {
	name   string
	origin string // what would print it
	write  func([]localapi.Service) []string
}

func ruleForms() []ruleForm {
	return []ruleForm{
		{"iptables", "iptables-save", servicerules.IPTables},
		{"ipvs", "ipvsadm -Ln", servicerules.IPVS},
	}
}

func (a *app) serviceRulesCmd() *cobra.Command {
	var namespace, as string
	forms := ruleForms()
	names := []string{forms[0].name, forms[1].name}
	cmd := &cobra.Command{
		Use:   "rules [[NAMESPACE/]NAME]",
		Short: "Write services as iptables chains or IPVS servers",
		Long: `Writes what the kernel's tables hold of services as rules, for people who read those: as kube-proxy would have it in iptables
(KUBE-SERVICES, KUBE-SVC-*, KUBE-SEP-*, ... with the names kube-proxy gives them), or as ipvsadm -Ln would print it. These rules do not
exist on the node and no packet passes them: strait bpf dump strait_service is what the kernel looks at.

What iptables or IPVS cannot express stands in comments. A backend set that is empty on this node because of a traffic policy is shown as
kube-proxy would have refused or dropped it. From outside, the rules are those of one node: name it with --node, else the first that answers.`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 1 {
				return fmt.Errorf("unexpected argument %q", args[1])
			}
			return nil
		},
		ValidArgsFunction: a.completeService,
		RunE: func(cmd *cobra.Command, args []string) error {
			filter := serviceFilter{namespace: namespace}
			if len(args) > 0 {
				var err error
				if filter.namespace, filter.name, err = serviceName(args[0], namespace); err != nil {
					return err
				}
			}
			for _, f := range forms {
				if f.name == as {
					return a.serviceRules(cmd.Context(), f, filter)
				}
			}
			return unknown("form", as, " of --as", names)
		},
	}
	f := cmd.Flags()
	f.StringVarP(&namespace, "namespace", "n", "", "only services of this namespace")
	f.StringVar(&as, "as", names[0], "form of the rules: "+strings.Join(names, ", "))
	a.complete(cmd, "as", fixed(names...))
	return cmd
}

// ruleText is what a program gets.
type ruleText struct {
	Node  string   `json:"node,omitempty"`
	As    string   `json:"as"`
	Lines []string `json:"lines"`
}

func (a *app) serviceRules(ctx context.Context, form ruleForm, filter serviceFilter) error {
	all, err := a.askServices(ctx, filter)
	if err != nil {
		return err
	}
	for _, n := range all.nodes {
		if n.Err != nil {
			continue
		}
		if filter.name != "" && len(n.Value) == 0 {
			return usage("service %s/%s: no frontend, and no service of that name; see strait service list", filter.namespace, filter.name)
		}
		out := ruleText{Node: n.Node, As: form.name, Lines: form.write(n.Value)}
		if !a.output.forPeople() {
			return a.print(out)
		}
		where := "here"
		if n.Node != "" {
			where = "on node " + n.Node
		}
		head := "# These rules do not exist: this is how " + form.origin + " would print what Strait does with services " + where + ".\n" +
			"# The truth is in the kernel's eBPF maps: strait service list, strait bpf dump strait_service.\n"
		return a.write(head + strings.Join(out.Lines, "\n") + "\n")
	}
	return nil // ask has told why nobody answered
}
