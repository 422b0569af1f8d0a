package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"
	"github.com/spf13/cobra"

	"github.com/strait-net/strait/internal/localapi"
)

// dnsOptions are the flags of strait dns.
type dnsOptions struct {
	from, namespace, domain, server string
	types                           []string
}

// dnsLookup is what a pod's resolver would ask for a name, and what it is told.
type dnsLookup struct {
	Name      string         `json:"name"`
	From      string         `json:"from"` // pod, or the node
	Namespace string         `json:"namespace"`
	Server    netip.AddrPort `json:"server"`
	Search    []string       `json:"search"`
	Queries   []dnsQuery     `json:"queries"`
	Addresses []string       `json:"answers"`
}

// dnsQuery is a question to the server.
type dnsQuery struct {
	Name    string        `json:"name"`
	Type    string        `json:"type"`
	Result  string        `json:"result"` // NOERROR, NXDOMAIN, ..., or why there is none
	Answers []string      `json:"answers,omitempty"`
	Took    time.Duration `json:"tookNs"`
}

const (
	dnsDots    = 5 // ndots of pods with dnsPolicy ClusterFirst
	dnsService = "kube-system/kube-dns"
	dnsWait    = 2 * time.Second // for one answer
)

func (a *app) dnsCmd() *cobra.Command {
	var o dnsOptions
	cmd := &cobra.Command{
		Use:   "dns NAME",
		Short: "Ask the cluster's DNS for a name as a pod would, query by query",
		Long: `Asks the cluster's DNS service for NAME as the resolver of a pod with dnsPolicy ClusterFirst does: with the search path of its namespace for
names of fewer than 5 dots, one query after the other until there is an answer, and prints each of them. With --from the queries are sent
from that pod's network namespace, so that its policies apply.

Exit codes: 0 found, 1 there is no such name or no answer.`,
		Example: `  strait dns web.shop
  strait dns web --from shop/cart-0
  strait dns _http._tcp.web.shop.svc.cluster.local. --type SRV`,
		Args: exactArgs("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error { return a.dns(cmd.Context(), args[0], o) },
	}
	f := cmd.Flags()
	f.StringVar(&o.from, "from", "", "send from this pod: [NAMESPACE/]NAME")
	f.StringVarP(&o.namespace, "namespace", "n", "", "namespace whose search path is used (default that of --from, else default)")
	f.StringVar(&o.domain, "domain", "cluster.local", "domain of the cluster")
	f.StringVar(&o.server, "server", "", "address of the server or ADDRESS:PORT (default that of service "+dnsService+")")
	f.StringSliceVar(&o.types, "type", []string{"A", "AAAA"}, "types of records to ask for")
	return cmd
}

func (o dnsOptions) check(name string) error {
	if _, ok := dns.IsDomainName(name); !ok || name == "" {
		return usage("NAME %q: want a domain name", name)
	}
	for _, t := range o.types {
		if _, ok := dns.StringToType[strings.ToUpper(t)]; !ok {
			return usage("--type %q: want types of DNS records such as A, AAAA or SRV", t)
		}
	}
	if _, err := dnsServer(o.server); o.server != "" && err != nil {
		return usage("--server %q: want ADDRESS or ADDRESS:PORT", o.server)
	}
	if _, ok := dns.IsDomainName(o.domain); !ok {
		return usage("--domain %q: want a domain name", o.domain)
	}
	return nil
}

// dnsServer reads an address with or without a port.
func dnsServer(text string) (netip.AddrPort, error) {
	if a, err := netip.ParseAddr(text); err == nil {
		return netip.AddrPortFrom(a, 53), nil
	}
	return netip.ParseAddrPort(text)
}

func (o dnsOptions) args(name string) []string {
	args := []string{"dns", name, "--domain=" + o.domain, "--type=" + strings.Join(o.types, ",")}
	for flag, value := range map[string]string{"from": o.from, "namespace": o.namespace, "server": o.server} {
		if value != "" {
			args = append(args, "--"+flag+"="+value)
		}
	}
	return args
}

func (a *app) dns(ctx context.Context, name string, o dnsOptions) error {
	if err := o.check(name); err != nil {
		return err
	}
	if o.namespace == "" && o.from != "" {
		o.namespace, _, _ = strings.Cut(qualified(o.from), "/")
	}
	if o.from != "" && a.node == "" {
		client, err := a.local(ctx)
		if err == nil && client == nil { // only its own node can send from a pod
			a.node, err = a.nodeOfPod(ctx, o.from)
		}
		if err != nil {
			return err
		}
	}
	all, err := ask(ctx, a, question[dnsLookup]{
		args:  o.args(name),
		local: func(ctx context.Context, c *localapi.Client) (dnsLookup, error) { return lookUp(ctx, c, name, o) },
	})
	if err != nil {
		return err
	}
	if err := deliver(a, all, func() string { return a.dnsText(all) }); err != nil {
		return err
	}
	if slices.ContainsFunc(all.nodes, func(n answer[dnsLookup]) bool { return n.Err == nil && len(n.Value.Addresses) == 0 }) {
		return &exitError{code: ExitProblems}
	}
	return nil
}

func (a *app) dnsText(all answers[dnsLookup]) string {
	var b strings.Builder
	for _, n := range all.nodes {
		if n.Err != nil {
			continue
		}
		l := n.Value
		from := l.From
		if from == "" {
			from = strings.TrimSpace("node " + n.Node)
		}
		fmt.Fprintf(&b, "%s asks %s, search path %s\n\n", from, l.Server, strings.Join(l.Search, " "))
		g := &grid{columns: columns("QUERY", "TYPE", "RESULT", "ANSWERS", "TOOK#")}
		for _, q := range l.Queries {
			g.add(q.Name, q.Type, q.Result, strings.Join(q.Answers, listGap), q.Took.Round(10*time.Microsecond).String())
		}
		b.WriteString(a.render(g))
		if len(l.Addresses) == 0 {
			fmt.Fprintf(&b, "\n%s: not found\n", l.Name)
			continue
		}
		fmt.Fprintf(&b, "\n%s: %s, after %d queries\n", l.Name, strings.Join(l.Addresses, ", "), len(l.Queries))
	}
	return b.String()
}

// lookUp asks from this node.
func lookUp(ctx context.Context, c *localapi.Client, name string, o dnsOptions) (dnsLookup, error) {
	l := dnsLookup{Name: name, From: o.from, Namespace: cmp.Or(o.namespace, "default")}
	if o.server != "" {
		l.Server, _ = dnsServer(o.server) // checked with the command line
	} else {
		services, err := c.Services(ctx)
		if err != nil {
			return l, err
		}
		if l.Server = dnsFrontend(services); !l.Server.IsValid() {
			return l, fmt.Errorf("service %s has no frontend for port 53/UDP here: name the server with --server", dnsService)
		}
	}
	domain := dns.Fqdn(o.domain)
	l.Search = []string{l.Namespace + ".svc." + domain, "svc." + domain, domain}
	all := func() error { l.run(ctx, o.types); return nil }
	if o.from == "" {
		return l, all()
	}
	l.From = qualified(o.from)
	end, err := localEndpoint(ctx, c, o.from)
	if err != nil {
		return l, err
	}
	return l, inNamespace(end.NetNS, all)
}

// dnsFrontend is the address of the cluster's DNS service.
func dnsFrontend(services []localapi.Service) netip.AddrPort {
	for _, s := range services {
		if s.Namespace+"/"+s.Name == dnsService && s.Type == "ClusterIP" && s.Protocol == "UDP" && s.Frontend.Port() == 53 {
			return s.Frontend
		}
	}
	return netip.AddrPort{}
}

// run asks for one name after the other until there is an answer, as resolv.conf(5) says of search and ndots.
func (l *dnsLookup) run(ctx context.Context, types []string) {
	names := []string{dns.Fqdn(l.Name)}
	if !dns.IsFqdn(l.Name) {
		var found []string
		for _, s := range l.Search {
			found = append(found, l.Name+"."+s)
		}
		if strings.Count(l.Name, ".") < dnsDots {
			names = append(found, names...)
		} else {
			names = append(names, found...)
		}
	}
	for _, n := range names {
		for _, t := range types {
			q := exchange(ctx, l.Server, n, strings.ToUpper(t))
			l.Queries = append(l.Queries, q)
			l.Addresses = append(l.Addresses, q.Answers...)
		}
		if len(l.Addresses) > 0 {
			return
		}
	}
}

// exchange asks over UDP, and over TCP when the answer does not fit.
func exchange(ctx context.Context, server netip.AddrPort, name, kind string) dnsQuery {
	out := dnsQuery{Name: name, Type: kind}
	m := new(dns.Msg).SetQuestion(name, dns.StringToType[kind])
	m.SetEdns0(dns.DefaultMsgSize, false)
	begin := time.Now()
	reply, _, err := (&dns.Client{Timeout: dnsWait}).ExchangeContext(ctx, m, server.String())
	if err == nil && reply.Truncated {
		reply, _, err = (&dns.Client{Timeout: dnsWait, Net: "tcp"}).ExchangeContext(ctx, m, server.String())
	}
	out.Took = time.Since(begin)
	var late net.Error
	switch {
	case errors.As(err, &late) && late.Timeout():
		out.Result = "no answer"
		return out
	case err != nil:
		out.Result = err.Error()
		return out
	}
	out.Result = dns.RcodeToString[reply.Rcode]
	for _, rr := range reply.Answer {
		if rr.Header().Rrtype == dns.StringToType[kind] {
			out.Answers = append(out.Answers, strings.TrimPrefix(rr.String(), rr.Header().String()))
		}
	}
	return out
}

// qualified is namespace/name of what a person typed.
func qualified(pod string) string {
	if !strings.Contains(pod, "/") {
		return "default/" + pod
	}
	return pod
}

func endpointName(e localapi.Endpoint) string { return e.Namespace + "/" + e.Pod }

// nodeOfPod asks the nodes which of them has a pod.
func (a *app) nodeOfPod(ctx context.Context, pod string) (string, error) {
	all, err := ask(ctx, a, question[[]localapi.Endpoint]{args: []string{"get", "endpoints"}})
	if err != nil {
		return "", err
	}
	var names []string
	for _, n := range all.nodes {
		for _, e := range n.Value {
			if endpointName(e) == qualified(pod) {
				return n.Node, nil
			}
			names = append(names, endpointName(e))
		}
	}
	slices.Sort(names)
	return "", unknown("pod", qualified(pod), "", names)
}

// localEndpoint finds the interface of a pod of this node.
func localEndpoint(ctx context.Context, client *localapi.Client, pod string) (localapi.Endpoint, error) {
	ends, err := client.Endpoints(ctx)
	if err != nil {
		return localapi.Endpoint{}, err
	}
	name := qualified(pod)
	var names []string
	for _, e := range ends {
		if endpointName(e) == name && e.NetNS != "" {
			return e, nil
		}
		names = append(names, endpointName(e))
	}
	slices.Sort(names)
	return localapi.Endpoint{}, unknown("pod", name, " on this node", names)
}
