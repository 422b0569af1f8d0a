package cli

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
)

// serveDNS answers A questions from a table, and truncates over UDP when there are many answers.
func serveDNS(t *testing.T, answers map[string][]string) netip.AddrPort {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", conn.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	handler := func(tcp bool) dns.HandlerFunc {
		return func(w dns.ResponseWriter, q *dns.Msg) {
			m := new(dns.Msg).SetReply(q)
			addresses, known := answers[q.Question[0].Name]
			if !known {
				m.Rcode = dns.RcodeNameError
			}
			for _, a := range addresses {
				if q.Question[0].Qtype == dns.TypeA {
					m.Answer = append(m.Answer, &dns.A{Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 5}, A: net.ParseIP(a)})
				}
			}
			if !tcp && len(addresses) > 1 {
				m.Answer, m.Truncated = nil, true
			}
			_ = w.WriteMsg(m)
		}
	}
	for _, s := range []*dns.Server{{PacketConn: conn, Handler: handler(false)}, {Listener: listener, Handler: handler(true)}} {
		go func() { _ = s.ActivateAndServe() }()
		t.Cleanup(func() { _ = s.Shutdown() })
	}
	return netip.MustParseAddrPort(conn.LocalAddr().String())
}

func TestDNSAsksAsAPodWould(t *testing.T) {
	server := serveDNS(t, map[string][]string{
		"web.shop.svc.cluster.local.": {"10.96.0.7"}, "example.org.": {"192.0.2.1", "192.0.2.2"}, "a.b.c.d.e.f.": {"192.0.2.3"},
	})
	for _, c := range []struct {
		name    string
		asked   []string
		answers []string
	}{
		{"web.shop", []string{"web.shop.shop.svc.cluster.local.", "web.shop.svc.cluster.local."}, []string{"10.96.0.7"}},
		{"web", []string{"web.shop.svc.cluster.local."}, []string{"10.96.0.7"}},
		{"example.org", []string{"example.org.shop.svc.cluster.local.", "example.org.svc.cluster.local.", "example.org.cluster.local.", "example.org."}, []string{"192.0.2.1", "192.0.2.2"}},
		{"example.org.", []string{"example.org."}, []string{"192.0.2.1", "192.0.2.2"}},
		{"a.b.c.d.e.f", []string{"a.b.c.d.e.f."}, []string{"192.0.2.3"}},
		{"no", []string{"no.shop.svc.cluster.local.", "no.svc.cluster.local.", "no.cluster.local.", "no."}, nil},
	} {
		l := dnsLookup{Name: c.name, Server: server, Search: []string{"shop.svc.cluster.local.", "svc.cluster.local.", "cluster.local."}}
		l.run(context.Background(), []string{"A", "AAAA"})
		var asked []string
		for _, q := range l.Queries {
			asked = append(asked, q.Name)
		}
		if diff := cmp.Diff(c.asked, slices.Compact(asked)); diff != "" {
			t.Errorf("%s: queries: %s", c.name, diff)
		}
		if diff := cmp.Diff(c.answers, l.Addresses); diff != "" {
			t.Errorf("%s: answers: %s", c.name, diff)
		}
	}
}

func TestDNSNobodyAnswers(t *testing.T) {
	conn, err := net.ListenPacket("udp", "127.0.0.1:0") // takes everything and says nothing
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	l := dnsLookup{Name: "web.", Server: netip.MustParseAddrPort(conn.LocalAddr().String())}
	l.run(ctx, []string{"A"})
	if len(l.Queries) != 1 || l.Queries[0].Result != "no answer" {
		t.Errorf("queries %+v", l.Queries)
	}
	text := (&app{}).dnsText(answers[dnsLookup]{nodes: []answer[dnsLookup]{{Value: l}}, one: true})
	if !strings.Contains(text, "web.: not found") || !strings.Contains(text, "no answer") {
		t.Errorf("printed:\n%s", text)
	}
}
