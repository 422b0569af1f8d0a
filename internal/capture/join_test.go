package capture_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gopacket/gopacket/pcapgo"

	"github.com/strait-net/strait/internal/capture"
)

// scene is a capture with its parts, at times counted in milliseconds.
type scene struct {
	t      *testing.T
	joiner *capture.Joiner
	begun  time.Time
}

// The places of the first part: web's interface, what is for web, and db's interface and what is for db on the second.
const (
	atWeb = 0
	toWeb = 1
)

func newScene(t *testing.T, every bool, nodes ...string) *scene {
	t.Helper()
	s := &scene{t: t, begun: time.Unix(1_800_000_000, 0)}
	s.joiner = capture.NewJoiner(capture.Config{
		Nodes: nodes, Every: every, Hold: capture.Hold, Patience: capture.Patience, Limit: capture.Limit,
		Names: map[netip.Addr]string{netip.MustParseAddr(web4): "shop/web-1", netip.MustParseAddr(db4): "shop/db-0"},
	})
	for i, end := range []string{web4, db4} {
		if i < len(nodes) {
			pod := []string{"shop/web-1", "shop/db-0"}[i]
			s.say(i, capture.Message{Place: &capture.Place{Number: 0, Pod: pod, Device: "eth0", Kind: capture.AtPod, Link: capture.LinkEthernet, Own: addresses(end), Snap: 65536}})
			s.say(i, capture.Message{Place: &capture.Place{Number: 1, Pod: pod, Device: "strait_vxlan", Kind: capture.OnTheWay, Link: capture.LinkEthernet, Own: addresses(end), Snap: 65536}})
		}
	}
	return s
}

func (s *scene) at(ms float64) time.Time {
	return s.begun.Add(time.Duration(ms * float64(time.Millisecond)))
}

func (s *scene) say(part int, m capture.Message) { s.joiner.Hear(part, m, s.begun) }

func (s *scene) packet(part, place int, ms float64, out bool, w wire) {
	data := w.frame(s.t)
	s.say(part, capture.Message{Packet: &capture.Packet{Place: place, Time: s.at(ms), Out: out, Length: len(data), Data: data}})
}

func (s *scene) event(part int, ms float64, e capture.Event) {
	e.Time = s.at(ms)
	if e.Protocol == 0 {
		e.Protocol = capture.TCP
	}
	if e.Packets == 0 {
		e.Packets = 1
	}
	s.say(part, capture.Message{Event: &e})
}

// shown ends the capture and returns what is shown.
func (s *scene) shown(parts int) (out []capture.Seen) {
	for i := range parts {
		s.say(i, capture.Message{Mark: &capture.Mark{Until: s.at(1e6), Last: true, Flows: true, Stats: make([]capture.Stats, 1)}})
	}
	for {
		seen, ok := s.joiner.Next(s.begun)
		if !ok {
			return out
		}
		out = append(out, seen)
	}
}

var (
	request = wire{from: web4 + ":40000", to: db4 + ":5432", protocol: capture.TCP, flags: capture.SYN, id: 1}
	reply   = wire{from: db4 + ":5432", to: web4 + ":40000", protocol: capture.TCP, flags: capture.SYN | capture.ACK, id: 2}
)

func ends(from, to string) capture.Event {
	return capture.Event{Source: netip.MustParseAddrPort(from), Target: netip.MustParseAddrPort(to)}
}

func began(egress, ingress string) capture.Event {
	e := ends(request.from, request.to)
	e.What, e.Egress, e.Ingress = capture.Began, egress, ingress
	return e
}

func denied(why string) capture.Event {
	e := ends(request.from, request.to)
	e.What, e.Why = capture.Denied, why
	return e
}

const (
	webRule = "NetworkPolicy shop/web egress spec.egress[0]"
	dbRule  = "NetworkPolicy shop/db ingress spec.ingress[0]"
	missing = "no rule of NetworkPolicy shop/db allowed it"
)

func TestVerdicts(t *testing.T) {
	for name, tc := range map[string]struct {
		do    func(s *scene)
		nodes int
		want  []string // verdicts, in order; "| " before what is translated
	}{
		"allowed, and known from then on": {func(s *scene) {
			s.packet(0, atWeb, 0, true, request)
			s.event(0, 0.1, began("default allow", ""))
			s.event(0, 0.1, began("", dbRule)) // of the same packet
			s.packet(0, atWeb, 1, false, reply)
			s.packet(0, atWeb, 2, true, wire{from: request.from, to: request.to, protocol: capture.TCP, flags: capture.ACK})
		}, 1, []string{"allowed: " + dbRule, "known connection, allowed: " + dbRule, "known connection, allowed: " + dbRule}},
		"known from then on, as only the other end's node tells": {func(s *scene) {
			s.packet(0, atWeb, 0, true, request)
			s.packet(0, atWeb, 0.3, false, reply)
			s.event(1, 0.5, began("", dbRule))
		}, 2, []string{"allowed: " + dbRule, "known connection, allowed: " + dbRule}},
		"no policy": {func(s *scene) {
			s.packet(0, atWeb, 0, true, request)
			s.event(0, 0.1, began("default allow", "default allow"))
		}, 1, []string{"allowed: no policy isolates it"}},
		"told a bit earlier than seen": {func(s *scene) {
			s.packet(0, atWeb, 1, true, request)
			s.event(0, 0.5, began(webRule, ""))
		}, 1, []string{"allowed: " + webRule}},
		"audited": {func(s *scene) {
			e := began(webRule, "")
			e.Audited = "NetworkPolicy shop/strict egress (no rule matches)"
			s.packet(0, atWeb, 0, true, request)
			s.event(0, 0.1, e)
		}, 1, []string{"allowed: " + webRule + "; audited: NetworkPolicy shop/strict egress (no rule matches) would deny it"}},
		"denied, then allowed": {func(s *scene) {
			s.packet(0, atWeb, 0, true, request)
			s.event(0, 0.1, denied("denied by NetworkPolicy shop/web"))
			s.packet(0, atWeb, 100, true, request)
			s.event(0, 100.1, began(webRule, ""))
		}, 1, []string{"denied: denied by NetworkPolicy shop/web", "allowed: " + webRule}},
		"denied again, told once": {func(s *scene) {
			for i := range 3 {
				s.packet(0, atWeb, float64(i*400), true, request)
			}
			s.event(0, 0.1, denied(missing))
		}, 1, []string{"denied: " + missing, "denied: " + missing + " (repeated: told once a second)", "denied: " + missing + " (repeated: told once a second)"}},
		"denied from another port, told for both": {func(s *scene) {
			s.packet(0, atWeb, 0, true, request)
			s.event(0, 0.1, denied(missing))
			s.packet(0, atWeb, 10, true, wire{from: web4 + ":40001", to: request.to, protocol: capture.TCP, flags: capture.SYN})
		}, 1, []string{"denied: " + missing, "denied: " + missing + " (repeated: told once a second)"}},
		"told later for several": {func(s *scene) {
			e := denied(missing)
			e.Packets = 5
			s.packet(0, atWeb, 0, true, wire{from: web4 + ":40001", to: request.to, protocol: capture.TCP, flags: capture.SYN})
			s.event(0, 800, e)
		}, 1, []string{"denied: " + missing + " (repeated: told once a second)"}},
		"an allowed connection is not denied by another's denial": {func(s *scene) {
			s.event(0, 0, began(webRule, ""))
			other := denied(missing)
			other.Source = netip.MustParseAddrPort(web4 + ":40001")
			s.event(0, 10, other)
			s.packet(0, atWeb, 20, true, request)
		}, 1, []string{"known connection, allowed: " + webRule}},
		"a known connection is denied, and allowed again": {func(s *scene) {
			s.event(0, 0, began(webRule, ""))
			s.packet(0, atWeb, 10, true, request)
			s.packet(0, atWeb, 20, true, request)
			s.event(0, 20.1, denied(missing))
			s.packet(0, atWeb, 30, true, request)
			e := began(webRule, "")
			e.What = capture.Judged
			s.event(0, 30.1, e)
		}, 1, []string{"known connection, allowed: " + webRule, "denied: " + missing, "known connection, allowed: " + webRule}},
		"denied by the other end's node": {func(s *scene) {
			s.packet(0, atWeb, 0, true, request)
			s.event(0, 0.1, began(webRule, ""))
			s.packet(1, toWeb, 0.3, false, request) // on its way to db
			s.event(1, 0.4, denied(missing))
		}, 2, []string{"denied at n2: " + missing, "denied at n2: " + missing}},
		"allowed by both nodes": {func(s *scene) {
			s.packet(0, atWeb, 0, true, request)
			s.event(0, 0.1, began(webRule, ""))
			s.packet(1, toWeb, 0.3, false, request)
			s.event(1, 0.4, began("", dbRule))
			hop := request
			hop.ttl = 63
			s.packet(1, atWeb, 0.5, false, hop)
		}, 2, []string{"allowed: " + webRule + "; " + dbRule, "allowed: " + dbRule + "; " + webRule}},
		"what has come is not denied": {func(s *scene) {
			s.packet(0, toWeb, 0, false, reply)
			s.packet(0, atWeb, 0.1, false, reply)
			e := denied("it is about another packet")
			e.Source, e.Target = e.Target, e.Source
			s.event(0, 0.05, e)
		}, 1, []string{"no verdict: it arrived, and no flow tells by which rule"}},
		"on its way, and gone": {func(s *scene) {
			s.event(0, 0, began(webRule, ""))
			s.packet(0, toWeb, 10, false, reply)
		}, 1, []string{"no verdict: not seen at shop/web-1, nobody tells why; known connection, allowed: " + webRule}},
		"on its way, of nobody known": {func(s *scene) {
			s.packet(0, toWeb, 10, false, reply)
		}, 1, []string{"no verdict: not seen at shop/web-1, and no flow tells of it"}},
		"identical packets: the first is denied, the second comes": {func(s *scene) {
			s.packet(0, toWeb, 0, false, reply)
			e := ends(reply.from, reply.to)
			e.What, e.Why = capture.Denied, missing
			s.event(0, 0.1, e)
			s.packet(0, toWeb, 50, false, reply)
			s.packet(0, atWeb, 50.1, false, reply)
			e.What, e.Ingress = capture.Began, dbRule
			s.event(0, 50.05, e)
		}, 1, []string{"denied: " + missing, "allowed: " + dbRule}},
		"dropped": {func(s *scene) {
			e := ends(request.from, request.to)
			e.What, e.Why, e.Service, e.Front = capture.Dropped, "no backend", "shop/db", netip.MustParseAddrPort("10.96.0.10:5432")
			s.packet(0, atWeb, 0, true, wire{from: request.from, to: "10.96.0.10:5432", protocol: capture.TCP})
			s.event(0, 0.1, e)
		}, 1, []string{"dropped: no backend| service shop/db 10.96.0.10:5432 -> 10.244.2.3:5432"}},
		"service, by packets and by the socket": {func(s *scene) {
			e := began("default allow", "")
			e.Service, e.Front = "shop/db", netip.MustParseAddrPort("10.96.0.10:5432")
			s.packet(0, atWeb, 0, true, wire{from: request.from, to: "10.96.0.10:5432", protocol: capture.TCP})
			s.event(0, 0.1, e)
			s.packet(0, atWeb, 1, true, request)
		}, 1, []string{
			"allowed: no policy isolates it| service shop/db 10.96.0.10:5432 -> 10.244.2.3:5432",
			"known connection, allowed: no policy isolates it| service shop/db 10.96.0.10:5432 -> 10.244.2.3:5432",
		}},
		"masqueraded": {func(s *scene) {
			e := ends(request.from, "1.1.1.1:53")
			e.What, e.Egress, e.NAT = capture.Began, "default allow", netip.MustParseAddrPort("172.18.0.1:10000")
			s.packet(0, atWeb, 0, true, wire{from: request.from, to: "1.1.1.1:53", protocol: capture.TCP})
			s.event(0, 0.1, e)
		}, 1, []string{"allowed: no policy isolates it| 10.244.1.2:40000 is masqueraded as 172.18.0.1:10000"}},
		"of before": {func(s *scene) {
			e := ends(request.from, request.to)
			e.What, e.Age = capture.Known, time.Hour
			s.event(0, -1e6, e)
			s.packet(0, atWeb, 0, true, request)
		}, 1, []string{"known connection, allowed: begun 1h0m0s before the capture, by which rule is not remembered"}},
		"of before, and remembered": {func(s *scene) {
			s.event(0, -5000, began(webRule, ""))
			e := ends(request.from, request.to)
			e.What, e.Age = capture.Known, time.Hour
			s.event(0, -1e6, e)
			s.packet(0, atWeb, 0, true, request)
		}, 1, []string{"known connection, allowed: " + webRule}},
		"records were lost": {func(s *scene) {
			s.packet(0, atWeb, 0, true, request)
			s.event(0, 10, capture.Event{What: capture.Lost, Packets: 17})
		}, 1, []string{"no verdict: n1 has lost 17 records of that time"}},
		"a reset of nothing": {func(s *scene) {
			s.packet(0, atWeb, 0, true, wire{from: request.from, to: request.to, protocol: capture.TCP, flags: capture.RST})
		}, 1, []string{"no verdict: a reset that belongs to no known connection is not told of"}},
		"multicast": {func(s *scene) {
			s.packet(0, atWeb, 0, true, wire{from: web4 + ":5353", to: "224.0.0.251:5353", protocol: capture.UDP})
		}, 1, []string{"no verdict: multicast is not judged"}},
		"ping": {func(s *scene) {
			e := ends(web4+":0", db4+":0")
			e.What, e.Protocol, e.Egress = capture.Began, capture.ICMP, webRule
			s.packet(0, atWeb, 0, true, wire{from: web4 + ":0", to: db4 + ":0", protocol: capture.ICMP, icmp: 8 << 8})
			s.event(0, 0.1, e)
			s.packet(0, atWeb, 1, false, wire{from: db4 + ":0", to: web4 + ":0", protocol: capture.ICMP})
		}, 1, []string{"allowed: " + webRule, "known connection, allowed: " + webRule}},
		"an ICMP error": {func(s *scene) {
			quote := request
			quote.raw = true
			s.event(0, 0, began(webRule, ""))
			s.packet(0, atWeb, 10, false, wire{from: node4 + ":0", to: web4 + ":0", protocol: capture.ICMP, icmp: 3<<8 | 4, quote: quote.frame(s.t)})
		}, 1, []string{"ICMP error about 10.244.1.2:40000 -> 10.244.2.3:5432: known connection, allowed: " + webRule}},
		"fragments": {func(s *scene) {
			e := ends(web4+":4000", db4+":53")
			e.What, e.Protocol, e.Egress = capture.Began, capture.UDP, webRule
			s.packet(0, atWeb, 0, true, wire{from: web4 + ":4000", to: db4 + ":53", protocol: capture.UDP, id: 9, more: true, payload: strings.Repeat("x", 64)})
			s.event(0, 0.1, e)
			s.packet(0, atWeb, 0.2, true, wire{from: web4 + ":4000", to: db4 + ":53", protocol: capture.UDP, id: 9, offset: 9, payload: "rest"})
			s.packet(0, atWeb, 0.3, true, wire{from: web4 + ":4000", to: db4 + ":53", protocol: capture.UDP, id: 10, offset: 9, payload: "rest"})
		}, 1, []string{"allowed: " + webRule, "known connection, allowed: " + webRule, "no verdict: a later fragment, whose first one was not seen"}},
	} {
		t.Run(name, func(t *testing.T) {
			s := newScene(t, false, []string{"n1", "n2"}[:tc.nodes]...)
			tc.do(s)
			var got []string
			for _, seen := range s.shown(tc.nodes) {
				got = append(got, strings.Join(seen.Verdict.Comments(), "| "))
			}
			if !slices.Equal(got, tc.want) {
				t.Errorf("shown:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(tc.want, "\n"))
			}
		})
	}
}

// What is not IP is shown as that, and what a node does not tell of is not invented.
func TestNothingIsInvented(t *testing.T) {
	s := newScene(t, false, "n1")
	arp := append(make([]byte, 12), 0x08, 0x06, 0, 1)
	s.say(0, capture.Message{Packet: &capture.Packet{Place: atWeb, Time: s.at(0), Data: arp, Length: len(arp)}})
	s.packet(0, atWeb, 1, true, request)
	s.say(0, capture.Message{Packet: &capture.Packet{Place: 99, Time: s.at(2)}}) // of no place
	s.joiner.Gone(0, s.begun)
	for _, want := range []string{"no verdict: ARP is not judged", "no verdict: n1 tells of no flows"} {
		if seen, ok := s.joiner.Next(s.begun); !ok || seen.Verdict.Text != want || seen.Verdict.Outcome != capture.NotKnown {
			t.Errorf("%v, want %s", seen.Verdict, want)
		}
	}
	if seen, ok := s.joiner.Next(s.begun); ok {
		t.Errorf("and %v", seen)
	}
}

// Packets are shown in order of time over places and nodes, when their nodes have said enough, and not before.
func TestOrder(t *testing.T) {
	s := newScene(t, true, "n1", "n2")
	s.packet(1, atWeb, 3, false, request)
	s.packet(0, atWeb, 0, true, request)
	s.packet(1, toWeb, 2, false, request)
	mark := func(part int, ms float64) {
		s.say(part, capture.Message{Mark: &capture.Mark{Until: s.at(ms), Stats: make([]capture.Stats, 1)}})
	}
	mark(0, 1000)
	if _, ok := s.joiner.Next(s.begun); ok {
		t.Error("shown before the other node has said anything")
	}
	mark(1, 301.5) // enough for the first only
	seen, ok := s.joiner.Next(s.begun)
	if !ok || !seen.Time.Equal(s.at(0)) || seen.Place.Node != "n1" || seen.From != "shop/web-1:40000" || seen.To != "shop/db-0:5432" {
		t.Errorf("first %+v", seen)
	}
	if _, ok := s.joiner.Next(s.begun); ok {
		t.Error("shown before its node has had the time to tell of it")
	}
	// A node that says nothing is waited for only so long.
	late := s.begun.Add(capture.Hold + capture.Patience + time.Millisecond)
	for _, want := range []string{"strait_vxlan@n2", "eth0@shop/db-0"} {
		if seen, ok := s.joiner.Next(late); !ok || seen.Place.Name() != want {
			t.Errorf("%v, want it at %s", seen.Place, want)
		}
	}
}

// More than there is room for is shown with what is known by then, and nothing is left out.
func TestLimit(t *testing.T) {
	begun := time.Unix(1_800_000_000, 0)
	j := capture.NewJoiner(capture.Config{Nodes: []string{"n1"}, Hold: capture.Hold, Patience: capture.Patience, Limit: 100_000})
	j.Hear(0, capture.Message{Place: &capture.Place{Kind: capture.AtPod, Link: capture.LinkEthernet}}, begun)
	data := request.frame(t)
	shown := 0
	const all = 10_000
	for i := range all {
		j.Hear(0, capture.Message{Packet: &capture.Packet{Time: begun.Add(time.Duration(i)), Data: data, Out: true}}, begun)
		for {
			if _, ok := j.Next(begun); !ok {
				break
			}
			shown++
		}
	}
	if shown < all-1000 {
		t.Errorf("%d of %d shown when there is room for few", shown, all)
	}
	j.Gone(0, begun)
	for {
		if _, ok := j.Next(begun); !ok {
			break
		}
		shown++
	}
	if shown != all {
		t.Errorf("%d shown of %d", shown, all)
	}
}

// What is written is what others read.
func TestFile(t *testing.T) {
	s := newScene(t, false, "n1")
	s.packet(0, atWeb, 0.000123, true, request)
	s.event(0, 0.1, func() capture.Event {
		e := began(webRule, "")
		e.Service, e.Front = "shop/db", netip.MustParseAddrPort("10.96.0.10:5432")
		return e
	}())
	s.packet(0, toWeb, 5, false, reply)
	var file bytes.Buffer
	w := capture.NewWriter(&file, "test", s.begun)
	for _, seen := range s.shown(1) {
		if err := w.Write(&seen); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(s.at(1000), func(p *capture.Place) uint64 { return map[capture.Kind]uint64{capture.AtPod: 3}[p.Kind] }); err != nil {
		t.Fatal(err)
	}
	if int64(file.Len()) != w.Bytes() {
		t.Errorf("%d bytes, said to be %d", file.Len(), w.Bytes())
	}
	r, err := pcapgo.NewNgReader(&file, pcapgo.DefaultNgReaderOptions)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []struct {
		at       time.Time
		data     []byte
		comments []string
		place    string
		flag     pcapgo.NgEpbFlag
	}{
		{s.at(0.000123), request.frame(t), []string{"allowed: " + webRule, "service shop/db 10.96.0.10:5432 -> 10.244.2.3:5432", "shop/web-1:40000 -> shop/db-0:5432"},
			"eth0@shop/web-1 pod shop/web-1 on node n1", pcapgo.NgEpbFlagDirectionOutbound},
		{s.at(5), reply.frame(t), []string{"no verdict: not seen at shop/web-1, nobody tells why; known connection, allowed: " + webRule,
			"service shop/db 10.96.0.10:5432 -> 10.244.2.3:5432", "shop/db-0:5432 -> shop/web-1:40000"}, "strait_vxlan@n1 device strait_vxlan of node n1, on the way to pod shop/web-1",
			pcapgo.NgEpbFlagDirectionInbound},
	} {
		data, info, options, err := r.ReadPacketDataWithOptions()
		if err != nil {
			t.Fatal(err)
		}
		if !info.Timestamp.Equal(want.at) || !bytes.Equal(data, want.data) || !slices.Equal(options.Comments, want.comments) || options.Flags.Direction != want.flag {
			t.Errorf("read %v %x %q %v, want %+v", info, data, options.Comments, options.Flags, want)
		}
		intf, err := r.Interface(info.InterfaceIndex)
		if got := intf.Name + " " + intf.Description; err != nil || got != want.place {
			t.Errorf("at %s (%v), want %s", got, err, want.place)
		}
	}
	if _, _, err := r.ReadPacketData(); !errors.Is(err, io.EOF) {
		t.Errorf("then %v", err)
	}
	lost := uint64(0)
	for i := range r.NInterfaces() {
		intf, _ := r.Interface(i)
		lost += intf.Statistics.PacketsDropped
		if intf.Statistics.PacketsReceived != 1 {
			t.Errorf("%s has seen %d", intf.Name, intf.Statistics.PacketsReceived)
		}
	}
	if lost != 3 {
		t.Errorf("%d lost, want 3", lost)
	}
}

func BenchmarkJoin(b *testing.B) {
	begun := time.Unix(1_800_000_000, 0)
	j := capture.NewJoiner(capture.Config{Nodes: []string{"n1"}, Hold: capture.Hold, Patience: capture.Patience, Limit: capture.Limit})
	j.Hear(0, capture.Message{Place: &capture.Place{Kind: capture.AtPod, Link: capture.LinkEthernet, Snap: 65536}}, begun)
	data := wire{from: web4 + ":40000", to: db4 + ":5432", protocol: capture.UDP, payload: fmt.Sprint(b.N)}.frame(b)
	w := capture.NewWriter(io.Discard, "test", begun)
	at := begun
	b.ReportAllocs()
	for i := range b.N {
		at = at.Add(10 * time.Microsecond)
		j.Hear(0, capture.Message{Packet: &capture.Packet{Time: at, Data: bytes.Clone(data), Length: len(data), Out: true}}, at)
		if i%100 == 0 {
			j.Hear(0, capture.Message{Mark: &capture.Mark{Until: at, Flows: true, Stats: make([]capture.Stats, 1)}}, at)
		}
		for {
			seen, ok := j.Next(at)
			if !ok {
				break
			}
			if err := w.Write(&seen); err != nil {
				b.Fatal(err)
			}
		}
	}
}
