package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	flowpb "github.com/cilium/cilium/api/v1/flow"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// flowFilters collects filters in the order of the command line: --not is about the flag after it. What any denied flag matches is not shown.
type flowFilters struct {
	allow  filterPair
	deny   []*filterPair
	names  []string // of the flags in deny
	negate bool
}

// filterPair becomes two filters of which one has to match: "--pod x" is from it or to it.
type filterPair struct {
	from, to            *flowpb.FlowFilter
	anyNS, fromNS, toNS []string
	touched             bool
	allowlist           []*flowpb.FlowFilter // as they were given
}

// filterFlag is a flag that narrows down what is shown.
type filterFlag struct {
	name, short, usage string
	values             []string // for completion; of a flag with noValue none
	noValue            bool
	set                func(p *filterPair, value string) error
}

// filterValue is the pflag.Value of a filterFlag.
type filterValue struct {
	all  *flowFilters
	flag filterFlag
}

func (v filterValue) String() string { return "" }

// Type implements pflag.Value.
func (v filterValue) Type() string {
	if v.flag.noValue {
		return ""
	}
	return "string"
}

// Set implements pflag.Value.
func (v filterValue) Set(text string) error {
	if v.flag.name == "not" {
		if v.all.negate {
			return errors.New("--not twice: it is about the one filter that follows it")
		}
		v.all.negate = true
		return nil
	}
	p := &v.all.allow
	if v.all.negate {
		p, v.all.negate = v.all.denied(v.flag.name), false
	}
	if p.from == nil {
		p.from, p.to = &flowpb.FlowFilter{}, &flowpb.FlowFilter{}
	}
	p.touched = true
	return v.flag.set(p, text)
}

// denied are the filters of a flag that has been turned around.
func (all *flowFilters) denied(name string) *filterPair {
	if i := slices.Index(all.names, name); i >= 0 {
		return all.deny[i]
	}
	all.names, all.deny = append(all.names, name), append(all.deny, &filterPair{})
	return all.deny[len(all.deny)-1]
}

// both sets a field of both filters, either one that is about the sender in the first and one about the receiver in the second.
func both(set func(*flowpb.FlowFilter, string) error) func(*filterPair, string) error {
	return func(p *filterPair, value string) error {
		if err := set(p.from, value); err != nil {
			return err
		}
		return set(p.to, value)
	}
}

func either(from, to func(*flowpb.FlowFilter, string) error) func(*filterPair, string) error {
	return func(p *filterPair, value string) error {
		if err := from(p.from, value); err != nil {
			return err
		}
		return to(p.to, value)
	}
}

// texts appends to a field of texts.
func texts(field func(*flowpb.FlowFilter) *[]string) func(*flowpb.FlowFilter, string) error {
	return func(f *flowpb.FlowFilter, value string) error {
		at := field(f)
		*at = append(*at, value)
		return nil
	}
}

// sided are the three flags of something that both ends have: --x, --from-x and --to-x.
func sided(name, short, what string, from, to func(*flowpb.FlowFilter, string) error) []filterFlag {
	return []filterFlag{
		{name: name, short: short, usage: "from or to " + what, set: either(from, to)},
		{name: "from-" + name, usage: "from " + what, set: both(from)},
		{name: "to-" + name, usage: "to " + what, set: both(to)},
	}
}

// filterFlags are those of Hubble's client that flows can be asked for here.
func filterFlags() []filterFlag {
	type F = flowpb.FlowFilter
	out := []filterFlag{{name: "not", noValue: true, usage: "turn the next filter around: --not --to-port 53"}}
	out = append(out, sided("pod", "", "pods whose names begin so ([NAMESPACE/]PREFIX, default namespace \"default\")",
		texts(func(f *F) *[]string { return &f.SourcePod }), texts(func(f *F) *[]string { return &f.DestinationPod }))...)
	out = append(out,
		filterFlag{name: "namespace", short: "n", usage: "from or to pods of a namespace", set: func(p *filterPair, v string) error { p.anyNS = append(p.anyNS, v); return nil }},
		filterFlag{name: "from-namespace", usage: "from pods of a namespace", set: func(p *filterPair, v string) error { p.fromNS = append(p.fromNS, v); return nil }},
		filterFlag{name: "to-namespace", usage: "to pods of a namespace", set: func(p *filterPair, v string) error { p.toNS = append(p.toNS, v); return nil }})
	out = append(out, sided("label", "l", "pods with labels (app=web,tier in (a,b)), or reserved:world, reserved:host, reserved:remote-node",
		texts(func(f *F) *[]string { return &f.SourceLabel }), texts(func(f *F) *[]string { return &f.DestinationLabel }))...)
	out = append(out, sided("ip", "", "an address or a CIDR; the service's as well as the backend's",
		texts(func(f *F) *[]string { return &f.SourceIp }), texts(func(f *F) *[]string { return &f.DestinationIp }))...)
	out = append(out, filterFlag{name: "snat-ip", usage: "masqueraded with an address or one in a CIDR", set: both(texts(func(f *F) *[]string { return &f.SourceIpXlated }))})
	out = append(out, sided("port", "", "a port; the service's as well as the backend's",
		texts(func(f *F) *[]string { return &f.SourcePort }), texts(func(f *F) *[]string { return &f.DestinationPort }))...)
	out = append(out, sided("service", "", "services whose names begin so ([NAMESPACE/]PREFIX)",
		texts(func(f *F) *[]string { return &f.SourceService }), texts(func(f *F) *[]string { return &f.DestinationService }))...)
	out = append(out, sided("workload", "", "pods of a workload ([KIND/]NAME: Deployment/web)", workload(func(f *F) *[]*flowpb.Workload { return &f.SourceWorkload }),
		workload(func(f *F) *[]*flowpb.Workload { return &f.DestinationWorkload }))...)
	out = append(out, sided("identity", "", "an identity: a number, or "+strings.Join(identityNames(), ", "), identity(func(f *F) *[]uint32 { return &f.SourceIdentity }),
		identity(func(f *F) *[]uint32 { return &f.DestinationIdentity }))...)
	return append(out, packetFlags()...)
}

// packetFlags are those that are not about one of the ends.
func packetFlags() []filterFlag {
	type F = flowpb.FlowFilter
	version := func(v flowpb.IPVersion) func(*filterPair, string) error {
		return both(func(f *F, _ string) error { f.IpVersion = append(f.IpVersion, v); return nil })
	}
	reply := func(is bool) func(*filterPair, string) error {
		return both(func(f *F, _ string) error { f.Reply = append(f.Reply, is); return nil })
	}
	verdicts := []string{"FORWARDED", "DROPPED", "AUDIT", "REDIRECTED", "ERROR", "TRACED", "TRANSLATED"}
	reasons := slices.Sorted(maps.Keys(flowpb.DropReason_value))
	return []filterFlag{
		{name: "protocol", usage: "a protocol: " + strings.Join(protocolNames(), ", "), values: protocolNames(), set: both(word("protocol", protocolNames(), func(f *F, v string) { f.Protocol = append(f.Protocol, v) }))},
		{name: "verdict", usage: "what became of it: " + strings.Join(verdicts, ", "), values: verdicts, set: both(word("verdict", verdicts, func(f *F, v string) {
			f.Verdict = append(f.Verdict, flowpb.Verdict(flowpb.Verdict_value[v]))
		}))},
		{name: "type", short: "t", usage: "type of event: " + strings.Join(typeNames(), ", ") + "; of traces also where: trace:to-endpoint", values: typeNames(), set: both(eventType)},
		{name: "drop-reason-desc", usage: "why it was dropped, in Hubble's words: POLICY_DENIED, ...", values: reasons, set: both(word("drop reason", reasons, func(f *F, v string) {
			f.DropReasonDesc = append(f.DropReasonDesc, flowpb.DropReason(flowpb.DropReason_value[v]))
		}))},
		{name: "traffic-direction", usage: "ingress or egress, as the pod that was asked sees it", values: []string{"ingress", "egress"}, set: both(word("direction", []string{"INGRESS", "EGRESS"}, func(f *F, v string) {
			f.TrafficDirection = append(f.TrafficDirection, flowpb.TrafficDirection(flowpb.TrafficDirection_value[v]))
		}))},
		{name: "tcp-flags", usage: "all of these TCP flags: syn,ack", set: both(tcpFlags)},
		{name: "ipv4", short: "4", noValue: true, usage: "only IPv4", set: version(flowpb.IPVersion_IPv4)},
		{name: "ipv6", short: "6", noValue: true, usage: "only IPv6", set: version(flowpb.IPVersion_IPv6)},
		{name: "reply", noValue: true, usage: "only packets of the end that did not begin", set: reply(true)},
		{name: "not-reply", noValue: true, usage: "all but packets of the end that did not begin", set: reply(false)},
		{name: "uuid", usage: "the flow with this UUID", set: both(texts(func(f *F) *[]string { return &f.Uuid }))},
		{name: "interface", usage: "seen on a device of the node", set: both(func(f *F, v string) error {
			f.Interface = append(f.Interface, &flowpb.NetworkInterface{Name: v})
			return nil
		})},
		{name: "node-name", usage: "seen on nodes with such names (worker-*, CLUSTER/NAME)", set: both(texts(func(f *F) *[]string { return &f.NodeName }))},
		{name: "node-label", usage: "seen on nodes with labels", set: both(texts(func(f *F) *[]string { return &f.NodeLabels }))},
		{name: "allowlist", usage: "a filter as JSON of Hubble's FlowFilter", set: func(p *filterPair, v string) error {
			f := &flowpb.FlowFilter{}
			if err := json.Unmarshal([]byte(v), f); err != nil {
				return fmt.Errorf("want a FlowFilter as JSON: %w", err)
			}
			p.allowlist = append(p.allowlist, f)
			return nil
		}},
	}
}

// word takes one of some words, in any letters.
func word(what string, words []string, add func(*flowpb.FlowFilter, string)) func(*flowpb.FlowFilter, string) error {
	return func(f *flowpb.FlowFilter, value string) error {
		i := slices.IndexFunc(words, func(w string) bool { return strings.EqualFold(w, value) })
		if i < 0 {
			return unknown(what, value, "", words)
		}
		add(f, words[i])
		return nil
	}
}

func protocolNames() []string {
	return []string{"tcp", "udp", "sctp", "icmp", "icmpv4", "icmpv6", "vrrp", "igmp", "dns", "http"}
}

// The types of events, in Hubble's words.
func typeNumbers() map[string]int32 {
	return map[string]int32{"drop": 1, "capture": 3, "trace": 4, "policy-verdict": 5, "trace-sock": 7, "l7": 129}
}

func typeNames() []string { return slices.Sorted(maps.Keys(typeNumbers())) }

// tracePoints are the sub types of traces, in the order of their numbers.
func tracePoints() []string {
	return []string{"to-endpoint", "to-proxy", "to-host", "to-stack", "to-overlay", "from-endpoint", "from-proxy", "from-host", "from-stack", "from-overlay", "from-network", "to-network"}
}

func eventType(f *flowpb.FlowFilter, value string) error {
	name, sub, found := strings.Cut(value, ":")
	kind, known := typeNumbers()[name]
	if !known {
		return unknown("type", name, "", typeNames())
	}
	t := &flowpb.EventTypeFilter{Type: kind}
	if found {
		t.MatchSubType = true
		i := slices.Index(tracePoints(), sub)
		if n, err := strconv.ParseInt(sub, 10, 32); err == nil {
			t.SubType = int32(n)
		} else if t.SubType = int32(i); i < 0 || name != "trace" {
			return unknown("sub type", sub, " of "+name, tracePoints())
		}
	}
	f.EventType = append(f.EventType, t)
	return nil
}

func tcpFlags(f *flowpb.FlowFilter, value string) error {
	t := &flowpb.TCPFlags{}
	fields := t.ProtoReflect().Descriptor().Fields()
	for name := range strings.SplitSeq(value, ",") {
		for i := range fields.Len() {
			if field := fields.Get(i); strings.EqualFold(string(field.Name()), name) {
				t.ProtoReflect().Set(field, protoreflect.ValueOfBool(true))
				name = ""
			}
		}
		if name != "" {
			return unknown("TCP flag", name, "", []string{"fin", "syn", "rst", "psh", "ack", "urg", "ece", "cwr", "ns"})
		}
	}
	f.TcpFlags = append(f.TcpFlags, t)
	return nil
}

func workload(field func(*flowpb.FlowFilter) *[]*flowpb.Workload) func(*flowpb.FlowFilter, string) error {
	return func(f *flowpb.FlowFilter, value string) error {
		w := &flowpb.Workload{Name: value}
		if kind, name, found := strings.Cut(value, "/"); found {
			w = &flowpb.Workload{Kind: kind, Name: name}
		}
		at := field(f)
		*at = append(*at, w)
		return nil
	}
}

// identityNumbers are the reserved identities that Hubble has numbers for.
func identityNumbers() map[string]uint32 {
	return map[string]uint32{"unknown": 0, "host": 1, "world": 2, "remote-node": 6, "kube-apiserver": 7}
}

func identityNames() []string { return slices.Sorted(maps.Keys(identityNumbers())) }

func identity(field func(*flowpb.FlowFilter) *[]uint32) func(*flowpb.FlowFilter, string) error {
	return func(f *flowpb.FlowFilter, value string) error {
		number, known := identityNumbers()[value]
		if n, err := strconv.ParseUint(value, 10, 32); err == nil {
			number, known = uint32(n), true
		}
		if !known {
			return unknown("identity", value, "", identityNames())
		}
		at := field(f)
		*at = append(*at, number)
		return nil
	}
}

// addTo defines the flags.
func (all *flowFilters) addTo(a *app, cmd *cobra.Command) {
	for _, f := range filterFlags() {
		flag := cmd.Flags().VarPF(filterValue{all, f}, f.name, f.short, f.usage)
		if f.noValue {
			flag.NoOptDefVal = "true"
		}
		if f.values != nil {
			a.complete(cmd, f.name, fixed(f.values...))
		}
	}
}

// lists are the filters that the flags have made.
func (all *flowFilters) lists() (allow, deny []*flowpb.FlowFilter, err error) {
	if all.negate {
		return nil, nil, usage("--not is the last filter: it is about the one that follows it")
	}
	if allow, err = all.allow.filters(); err != nil {
		return nil, nil, err
	}
	for _, p := range all.deny {
		more, err := p.filters()
		if err != nil {
			return nil, nil, err
		}
		deny = append(deny, more...)
	}
	return allow, deny, nil
}

func (p *filterPair) filters() ([]*flowpb.FlowFilter, error) {
	if !p.touched {
		return nil, nil
	}
	if len(p.anyNS) > 0 && len(p.fromNS)+len(p.toNS) > 0 {
		return nil, usage("--namespace and --from-namespace or --to-namespace: want one of them")
	}
	for _, side := range []struct {
		namespaces     []string
		pods, services *[]string
	}{
		{p.anyNS, &p.from.SourcePod, &p.from.SourceService},
		{p.anyNS, &p.to.DestinationPod, &p.to.DestinationService},
		{p.fromNS, &p.from.SourcePod, &p.from.SourceService},
		{p.fromNS, &p.to.SourcePod, &p.to.SourceService},
		{p.toNS, &p.from.DestinationPod, &p.from.DestinationService},
		{p.toNS, &p.to.DestinationPod, &p.to.DestinationService},
	} {
		if len(side.namespaces) == 0 {
			continue
		}
		if len(*side.pods)+len(*side.services) == 0 {
			*side.pods = []string{""}
		}
		*side.pods, *side.services = inNamespaces(*side.pods, side.namespaces), inNamespaces(*side.services, side.namespaces)
	}
	out := p.allowlist
	empty := &flowpb.FlowFilter{}
	switch {
	case proto.Equal(p.from, empty) && proto.Equal(p.to, empty):
	case proto.Equal(p.from, p.to):
		out = append(out, p.from)
	default:
		out = append(out, p.from, p.to)
	}
	return out, nil
}

// inNamespaces puts names that have no namespace into each of these.
func inNamespaces(names, namespaces []string) (out []string) {
	for _, name := range names {
		if strings.Contains(name, "/") {
			out = append(out, name)
			continue
		}
		for _, ns := range namespaces {
			out = append(out, ns+"/"+name)
		}
	}
	return out
}
