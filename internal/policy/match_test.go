package policy

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
)

func TestEntities(t *testing.T) {
	v4, v6 := netip.MustParsePrefix("203.0.113.1/32"), netip.MustParsePrefix("2001:db8::1/128")
	peers := map[string]*Peer{
		"host":     {Kind: HostPeer, Prefix: v4},
		"control":  {Kind: NodePeer, Prefix: v4, APIServer: true},
		"node":     {Kind: NodePeer, Prefix: v6},
		"pod":      {Kind: PodPeer, Prefix: v4, Namespace: "a"},
		"podapi":   {Kind: PodPeer, Prefix: v4, Namespace: "a", APIServer: true},
		"unknown":  {Kind: UnknownPeer, Prefix: v4},
		"outapi":   {Kind: APIServerPeer, Prefix: v4, APIServer: true},
		"outside4": {Kind: WorldPeer, Prefix: v4},
		"outside6": {Kind: WorldPeer, Prefix: v6},
	}
	for entity, want := range map[Entity]string{
		EntityAll:        "control host node outapi outside4 outside6 pod podapi unknown",
		EntityWorld:      "outapi outside4 outside6",
		EntityWorldIPv4:  "outapi outside4",
		EntityWorldIPv6:  "outside6",
		EntityCluster:    "control host node pod podapi unknown",
		EntityHost:       "host",
		EntityRemoteNode: "control node",
		EntityAPIServer:  "control outapi podapi",
		EntityUnmanaged:  "unknown",
		EntityNone:       "",
		"":               "",
	} {
		var got []string
		for name, p := range peers {
			if (Selector{Kind: SelectEntity, Entity: entity}).Matches(p) {
				got = append(got, name)
			}
		}
		slices.Sort(got)
		if strings.Join(got, " ") != want {
			t.Errorf("%s is %v, want %s", entity, got, want)
		}
	}
}

func TestCIDRs(t *testing.T) {
	for _, k := range []struct {
		cidr, except string
		everyone     bool
		kind         PeerKind
		peer         string
		want         bool
	}{
		{"10.0.0.0/8", "", true, PodPeer, "10.1.2.3/32", true},
		{"10.0.0.0/8", "", true, UnknownPeer, "10.1.2.3/32", true},
		{"10.0.0.0/8", "", true, HostPeer, "10.1.2.3/32", true},
		{"10.0.0.0/8", "", false, PodPeer, "10.1.2.3/32", false},
		{"10.0.0.0/8", "", false, NodePeer, "10.1.2.3/32", false},
		{"10.0.0.0/8", "", false, UnknownPeer, "10.1.2.3/32", false},
		{"10.0.0.0/8", "", false, APIServerPeer, "10.1.2.3/32", true},
		{"10.0.0.0/8", "", false, WorldPeer, "10.1.2.3/32", true},
		{"10.0.0.0/8", "", true, WorldPeer, "10.0.0.0/8", true},
		{"10.0.0.0/8", "", true, WorldPeer, "10.0.0.0/7", false},
		{"10.0.0.0/8", "", true, WorldPeer, "11.0.0.1/32", false},
		{"10.0.0.0/8", "10.1.0.0/16", true, WorldPeer, "10.1.2.3/32", false},
		{"10.0.0.0/8", "10.1.0.0/16", true, WorldPeer, "10.1.0.0/16", false},
		{"10.0.0.0/8", "10.1.0.0/16", true, WorldPeer, "10.0.0.0/8", true}, // stands for what has no longer row
		{"10.0.0.0/8", "10.1.0.0/16", true, WorldPeer, "10.2.0.1/32", true},
		{"0.0.0.0/0", "", true, WorldPeer, "2001:db8::1/128", false},
		{"::/0", "", true, WorldPeer, "10.0.0.1/32", false},
		{"::/0", "", true, WorldPeer, "2001:db8::1/128", true},
	} {
		s := Selector{Kind: SelectCIDR, CIDR: netip.MustParsePrefix(k.cidr), Everyone: k.everyone}
		if k.except != "" {
			s.Except = []netip.Prefix{netip.MustParsePrefix(k.except)}
		}
		if got := s.Matches(&Peer{Kind: k.kind, Prefix: netip.MustParsePrefix(k.peer)}); got != k.want {
			t.Errorf("%s matches %s (%s): %v", s.Key(), k.peer, k.kind, got)
		}
	}
}

func TestRequirements(t *testing.T) {
	pod := &Peer{Kind: PodPeer, Namespace: "a", ServiceAccount: "runner", Labels: NewLabels(map[string]string{"app": "web", "empty": ""}),
		NamespaceLabels: NewLabels(map[string]string{"env": "prod"})}
	for _, k := range []struct {
		r    Requirement
		want bool
	}{
		{Requirement{PodLabel, "app", In, []string{"db", "web"}}, true},
		{Requirement{PodLabel, "app", In, []string{"db"}}, false},
		{Requirement{PodLabel, "app", In, nil}, false},
		{Requirement{PodLabel, "none", In, []string{""}}, false},
		{Requirement{PodLabel, "empty", In, []string{""}}, true},
		{Requirement{PodLabel, "app", NotIn, []string{"db"}}, true},
		{Requirement{PodLabel, "app", NotIn, []string{"web"}}, false},
		{Requirement{PodLabel, "none", NotIn, []string{"web"}}, true},
		{Requirement{PodLabel, "empty", Exists, nil}, true},
		{Requirement{PodLabel, "none", Exists, nil}, false},
		{Requirement{PodLabel, "none", DoesNotExist, nil}, true},
		{Requirement{PodLabel, "app", DoesNotExist, nil}, false},
		{Requirement{NamespaceLabel, "env", In, []string{"prod"}}, true},
		{Requirement{NamespaceLabel, "app", Exists, nil}, false},
		{Requirement{NamespaceName, "", In, []string{"a"}}, true},
		{Requirement{NamespaceName, "", NotIn, []string{"a", "b"}}, false},
		{Requirement{ServiceAccount, "", In, []string{"runner"}}, true},
		{Requirement{NodeLabel, "app", Exists, nil}, false},
	} {
		s := Selector{Kind: SelectPods, Requirements: []Requirement{k.r}}
		if got := s.Matches(pod); got != k.want {
			t.Errorf("%s: %v", s.Key(), got)
		}
	}
	everyone := Selector{Kind: SelectPods}
	for _, kind := range []PeerKind{UnknownPeer, HostPeer, NodePeer, APIServerPeer, WorldPeer} {
		if everyone.Matches(&Peer{Kind: kind, Labels: pod.Labels}) {
			t.Errorf("a selector of pods means %s", kind)
		}
	}
	nodes := Selector{Kind: SelectNodes, Requirements: []Requirement{{NodeLabel, "zone", In, []string{"a"}}}}
	for kind, want := range map[PeerKind]bool{HostPeer: true, NodePeer: true, PodPeer: false, UnknownPeer: false} {
		if got := nodes.Matches(&Peer{Kind: kind, NodeLabels: Labels{{"zone", "a"}}}); got != want {
			t.Errorf("nodes zone=a mean %s: %v", kind, got)
		}
	}
}

func TestLabelsAreSorted(t *testing.T) {
	l := NewLabels(map[string]string{"b": "2", "a": "1", "c": ""})
	if !slices.Equal(l, Labels{{"a", "1"}, {"b", "2"}, {"c", ""}}) {
		t.Error(l)
	}
	if v, ok := l.Get("b"); v != "2" || !ok {
		t.Error(v, ok)
	}
	if _, ok := l.Get("bb"); ok {
		t.Error("found what is not there")
	}
	if NewLabels(nil) != nil || len(l.Map()) != 3 {
		t.Error("maps")
	}
}
