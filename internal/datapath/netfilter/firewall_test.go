package netfilter

import (
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/strait-net/strait/internal/datapath/nstest"
	"github.com/strait-net/strait/internal/datapath/trial"
)

func (r *rig) read() (set *Ruleset) {
	r.t.Helper()
	nstest.In(r.t, r.node, func() {
		var err error
		set, err = ReadRules()
		r.check(err)
	})
	return set
}

// Rules as people write them, asked about a packet: what nft has made of them is read back from the kernel.
func TestRulesAreEvaluated(t *testing.T) {
	r := newRig(t)
	frame := func(src, dst string, protocol uint8) []byte {
		f, err := trial.Packet{Source: netip.MustParseAddrPort(src), Target: netip.MustParseAddrPort(dst), Protocol: protocol}.Frame()
		r.check(err)
		return f
	}
	tcp4 := frame("10.1.0.2:4000", "10.2.0.2:80", unix.IPPROTO_TCP)
	udp4 := frame("10.1.0.2:4000", "10.2.0.2:53", unix.IPPROTO_UDP)
	tcp6 := frame("[fd00::1]:4000", "[fd00::2]:80", unix.IPPROTO_TCP)
	for _, c := range []struct {
		name, rules string
		packet      Passing
		want        string // "", "drop", "refuse", "may"; with what the rule's text holds
		text        string
	}{
		{"nothing", ``, Passing{Hook: Forward, Frame: tcp4}, "", ""},
		{"port", `tcp dport 80 drop`, Passing{Hook: Forward, Frame: tcp4}, "drop", "nftables inet t c, handle"},
		{"another port", `tcp dport 81 drop`, Passing{Hook: Forward, Frame: tcp4}, "", ""},
		{"another hook", `drop`, Passing{Hook: Input, Frame: tcp4}, "", ""},
		{"udp", `tcp dport 53 drop`, Passing{Hook: Forward, Frame: udp4}, "", ""},
		{"address", `ip saddr 10.1.0.0/16 reject`, Passing{Hook: Forward, Frame: tcp4}, "refuse", "ip saddr"},
		{"address of the other family", `ip saddr 10.1.0.0/16 drop`, Passing{Hook: Forward, Frame: tcp6}, "", ""},
		{"v6", `ip6 daddr fd00::/16 counter drop comment "mine"`, Passing{Hook: Forward, Frame: tcp6}, "drop", `comment "mine"`},
		{"device", `iifname "eth0" oifname "st*" drop`, Passing{Hook: Forward, Frame: tcp4, In: "eth0", Out: "st12"}, "drop", `iifname "eth0"`},
		{"another device", `iifname "eth1" drop`, Passing{Hook: Forward, Frame: tcp4, In: "eth0"}, "", ""},
		{"port set", `tcp dport { 22, 80, 443 } drop`, Passing{Hook: Forward, Frame: tcp4}, "drop", ""},
		{"port range", `tcp dport 70-90 drop`, Passing{Hook: Forward, Frame: tcp4}, "drop", ""},
		{"set of ranges", `tcp dport { 1-70, 79-81 } drop`, Passing{Hook: Forward, Frame: tcp4}, "drop", ""},
		{"not in set of ranges", `tcp dport { 1-70, 81-90 } drop`, Passing{Hook: Forward, Frame: tcp4}, "", ""},
		{"inverted set", `tcp dport != { 22, 443 } drop`, Passing{Hook: Forward, Frame: tcp4}, "drop", ""},
		{"concatenation", `ip saddr . tcp dport { 10.1.0.2 . 80 } drop`, Passing{Hook: Forward, Frame: tcp4}, "drop", ""},
		{"verdict map", `tcp dport vmap { 80 : drop, 81 : accept }`, Passing{Hook: Forward, Frame: tcp4}, "drop", ""},
		{"accepted before", "tcp dport 80 accept\n drop", Passing{Hook: Forward, Frame: tcp4}, "", ""},
		{"new connections", `ct state new drop`, Passing{Hook: Forward, Frame: tcp4}, "drop", ""},
		{"known connections pass", "ct state established,related accept\n drop", Passing{Hook: Forward, Frame: tcp4, Known: true}, "", ""},
		{"new ones do not", "ct state established,related accept\n drop", Passing{Hook: Forward, Frame: tcp4}, "drop", ""},
		{"jump", `jump other`, Passing{Hook: Forward, Frame: tcp4}, "drop", "t other"},
		{"jump that returns", "jump back\n drop", Passing{Hook: Forward, Frame: tcp4}, "drop", "t c"},
		{"limit", `limit rate 1/second drop`, Passing{Hook: Forward, Frame: tcp4}, "may", "limit"},
		{"perhaps accepted", "limit rate 1/second accept\n drop", Passing{Hook: Forward, Frame: tcp4}, "may", ""},
		{"mark", "meta mark set 7\n meta mark 7 drop", Passing{Hook: Forward, Frame: tcp4}, "drop", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			r.rules("flush ruleset\ntable inet t {\n chain other { tcp dport 80 drop\n }\n chain back { tcp dport 80 return\n drop\n }\n" +
				" chain c { type filter hook forward priority 0;\n" + c.rules + "\n }\n}\n")
			found := r.read().Pass(c.packet)
			got := ""
			switch {
			case found.Dropped:
				got = "drop"
			case found.Refused:
				got = "refuse"
			case len(found.May) > 0:
				got, found.Rule = "may", found.May[0]
			}
			if got != c.want || !strings.Contains(found.Rule, c.text) {
				t.Errorf("%q by %q (may %q), want %q by %q", got, found.Rule, found.May, c.want, c.text)
			}
		})
	}
	r.rules("flush ruleset\ntable ip t {\n chain c { type filter hook forward priority 0; policy drop;\n }\n}\n")
	set := r.read()
	if found := set.Pass(Passing{Hook: Forward, Frame: tcp4}); !found.Dropped || !strings.Contains(found.Rule, "policy drop") {
		t.Errorf("a chain's policy: %+v", found)
	}
	if found := set.Pass(Passing{Hook: Forward, Frame: tcp6}); found.Stopped() {
		t.Errorf("a chain of the other family: %+v", found)
	}
}

// iptables-nft writes matches and targets of its own.
func TestRulesOfIptables(t *testing.T) {
	if _, err := exec.LookPath("iptables-nft"); err != nil {
		t.Skip(err)
	}
	r := newRig(t)
	f, err := trial.Packet{Source: netip.MustParseAddrPort("10.1.0.2:4000"), Target: netip.MustParseAddrPort("10.2.0.2:80"), Protocol: unix.IPPROTO_TCP}.Frame()
	r.check(err)
	for _, c := range []struct{ rule, want string }{
		{"-p tcp --dport 80 -j DROP", "drop"},
		{"-p tcp --dport 81 -j DROP", ""},
		{"-p tcp --dport 80 -m comment --comment x -j REJECT", "refuse"},
		{"-m conntrack --ctstate NEW -j DROP", "drop"},
		{"-m conntrack --ctstate ESTABLISHED -j DROP", ""},
		{"-p tcp -m statistic --mode random --probability 0.5 -j DROP", "may"},
	} {
		r.rules("flush ruleset")
		nstest.In(t, r.node, func() {
			if out, err := exec.Command("iptables-nft", strings.Fields("-A FORWARD "+c.rule)...).CombinedOutput(); err != nil {
				t.Fatalf("iptables-nft %s: %v: %s", c.rule, err, out)
			}
		})
		found := r.read().Pass(Passing{Hook: Forward, Frame: f})
		got := ""
		switch {
		case found.Dropped:
			got = "drop"
		case found.Refused:
			got = "refuse"
		case len(found.May) > 0:
			got = "may"
		}
		if got != c.want {
			t.Errorf("%s: %q (%+v), want %q", c.rule, got, found, c.want)
		}
	}
}

// Chains that are not asked are named, unless nothing in them can stop a packet.
func TestChainsThatAreNotAsked(t *testing.T) {
	r := newRig(t)
	nstest.In(t, r.node, func() {
		for _, text := range []string{
			"add table netdev early; add chain netdev early in { type filter hook ingress device lo priority 0; }; add rule netdev early in udp dport 9 drop",
			"add table inet late; add chain inet late in { type filter hook ingress device lo priority 0; policy drop; }",
			"add table bridge ports; add chain bridge ports over { type filter hook forward priority 0; }; add rule bridge ports over drop",
			"add table netdev idle; add chain netdev idle in { type filter hook ingress device lo priority 0; }",
		} {
			if out, err := exec.Command("nft", text).CombinedOutput(); err != nil {
				t.Fatalf("nft %s: %v %s", text, err, out)
			}
		}
	})
	rules := r.read()
	for bridged, want := range map[bool]string{
		false: "nftables inet late in, nftables netdev early in", true: "nftables bridge ports over, nftables inet late in, nftables netdev early in",
	} {
		got := rules.Unread(bridged)
		slices.Sort(got)
		if text := strings.Join(got, ", "); text != want {
			t.Errorf("bridged %v: %s, want %s", bridged, text, want)
		}
	}
}
