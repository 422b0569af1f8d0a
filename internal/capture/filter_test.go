package capture_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"

	"golang.org/x/net/bpf"

	"github.com/strait-net/strait/internal/capture"
)

// passes runs the socket's program, as the kernel would.
func passes(t testing.TB, f capture.Filter, frame []byte, base uint32) bool {
	t.Helper()
	code, err := f.Program(base, someSnap)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := bpf.Assemble(code); err != nil {
		t.Fatalf("the program of %v cannot be assembled: %v", f, err)
	}
	vm, err := bpf.NewVM(code)
	if err != nil {
		t.Fatal(err)
	}
	n, err := vm.Run(frame)
	if err != nil {
		t.Fatal(err)
	}
	if n != 0 && n != someSnap {
		t.Errorf("%d bytes are kept, want %d", n, someSnap)
	}
	return n != 0
}

func TestFilter(t *testing.T) {
	web := capture.Filter{Ends: addresses(web4, web6)}
	toDB := web
	toDB.Peers = []capture.Peer{{Address: netip.MustParseAddr(db4), Port: 5432}, {Address: netip.MustParseAddr(db6), Port: 5432}}
	atDB := capture.Filter{Ends: addresses(db4, db6), EndPort: 5432, Peers: []capture.Peer{{Address: netip.MustParseAddr(web4)}, {Address: netip.MustParseAddr(web6)}}}
	dns := web
	dns.Port, dns.Protocol = 53, capture.UDP
	ping := web
	ping.Protocol = capture.ICMP
	onWay := web
	onWay.ToEnds = true
	sent := wire{from: web4 + ":40000", to: db4 + ":5432", protocol: capture.TCP}
	sent6 := wire{from: "[" + web6 + "]:40000", to: "[" + db6 + "]:5432", protocol: capture.TCP}
	back := wire{from: db4 + ":5432", to: web4 + ":40000", protocol: capture.TCP}
	wrongPort := wire{from: web4 + ":5432", to: db4 + ":40000", protocol: capture.TCP}
	quote, foreign := sent, wire{from: web4 + ":40000", to: other4 + ":80", protocol: capture.TCP}
	quote.raw, foreign.raw = true, true
	for name, tc := range map[string]struct {
		filter capture.Filter
		wire   wire
		want   bool
	}{
		"anything without ends":          {capture.Filter{}, wire{from: other4 + ":1", to: db4 + ":2", protocol: capture.UDP}, true},
		"what a pod sends":               {web, sent, true},
		"by IPv6":                        {web, sent6, true},
		"what a pod gets":                {web, back, true},
		"what others send":               {web, wire{from: other4 + ":1", to: db4 + ":2", protocol: capture.UDP}, false},
		"others by IPv6":                 {web, wire{from: "[" + other6 + "]:1", to: "[" + db6 + "]:2", protocol: capture.UDP}, false},
		"to a peer":                      {toDB, sent, true},
		"from a peer":                    {toDB, back, true},
		"to a peer by IPv6":              {toDB, sent6, true},
		"to a peer's other port":         {toDB, wrongPort, false},
		"to somebody else":               {toDB, wire{from: web4 + ":40000", to: other4 + ":5432", protocol: capture.TCP}, false},
		"at the other end":               {atDB, sent, true},
		"at the other end, back":         {atDB, back, true},
		"at the other end, other port":   {atDB, wrongPort, false},
		"a port of a protocol":           {dns, wire{from: web4 + ":40000", to: db4 + ":53", protocol: capture.UDP}, true},
		"the port of another protocol":   {dns, wire{from: web4 + ":40000", to: db4 + ":53", protocol: capture.TCP}, false},
		"another port of the protocol":   {dns, wire{from: web4 + ":40000", to: db4 + ":54", protocol: capture.UDP}, false},
		"SCTP":                           {toDB, wire{from: web4 + ":40000", to: db4 + ":5432", protocol: capture.SCTP}, true},
		"ping":                           {ping, wire{from: web4 + ":0", to: db4 + ":0", protocol: capture.ICMP, icmp: 8 << 8}, true},
		"ping by IPv6":                   {ping, wire{from: "[" + web6 + "]:0", to: "[" + db6 + "]:0", protocol: capture.ICMPv6, icmp: 128 << 8}, true},
		"no ping":                        {ping, sent, false},
		"ping where a port is wanted":    {toDB, wire{from: web4 + ":0", to: db4 + ":0", protocol: capture.ICMP, icmp: 8 << 8}, false},
		"a later fragment":               {toDB, wire{from: web4 + ":40000", to: db4 + ":5432", protocol: capture.UDP, offset: 100, payload: "rest"}, true},
		"a later fragment by IPv6":       {toDB, wire{from: "[" + web6 + "]:40000", to: "[" + db6 + "]:5432", protocol: capture.UDP, offset: 100, payload: "rest"}, true},
		"a first fragment":               {toDB, wire{from: web4 + ":40000", to: db4 + ":5432", protocol: capture.UDP, more: true}, true},
		"a first fragment by IPv6":       {toDB, wire{from: "[" + web6 + "]:40000", to: "[" + db6 + "]:5432", protocol: capture.UDP, more: true}, true},
		"first fragment, other port":     {toDB, wire{from: "[" + web6 + "]:40000", to: "[" + db6 + "]:99", protocol: capture.UDP, more: true}, false},
		"behind options of IPv6":         {toDB, wire{from: "[" + web6 + "]:40000", to: "[" + db6 + "]:5432", protocol: capture.TCP, extension: true}, true},
		"other port behind options":      {toDB, wire{from: "[" + web6 + "]:40000", to: "[" + db6 + "]:99", protocol: capture.TCP, extension: true}, false},
		"an ICMP error about it":         {toDB, wire{from: node4 + ":0", to: web4 + ":0", protocol: capture.ICMP, icmp: 3<<8 | 4, quote: quote.frame(t)}, true},
		"an ICMP error about others":     {toDB, wire{from: node4 + ":0", to: web4 + ":0", protocol: capture.ICMP, icmp: 3<<8 | 4, quote: foreign.frame(t)}, false},
		"an ICMP error to somebody else": {toDB, wire{from: node4 + ":0", to: other4 + ":0", protocol: capture.ICMP, icmp: 3 << 8, quote: quote.frame(t)}, false},
		"on the way":                     {onWay, back, true},
		"the other way":                  {onWay, sent, false},
		"an ICMP error on the way":       {onWay, wire{from: node4 + ":0", to: web4 + ":0", protocol: capture.ICMP, icmp: 3 << 8, quote: quote.frame(t)}, true},
	} {
		for base, raw := range map[uint32]bool{ethernetLen: false, 0: true} {
			tc.wire.raw = raw
			link := capture.LinkEthernet
			if raw {
				link = capture.LinkRaw
			}
			frame := tc.wire.frame(t)
			h := capture.Decode(link, frame)
			if got := tc.filter.Match(&h, frame); got != tc.want {
				t.Errorf("%s: wanted %v, want %v", name, got, tc.want)
			}
			if tc.want && !passes(t, tc.filter, frame, base) {
				t.Errorf("%s: the socket's program leaves it out", name)
			}
		}
	}
}

// What is not IP belongs to a pod's capture, as long as nothing is chosen.
func TestFilterOfWhatIsNotIP(t *testing.T) {
	arp := append(make([]byte, 12), 0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1)
	arp = append(arp, make([]byte, 20)...)
	for f, want := range map[*capture.Filter]bool{{}: true, {Ends: addresses(web4)}: true, {Ends: addresses(web4), Port: 80}: false, {Ends: addresses(web4), ToEnds: true}: false} {
		h := capture.Decode(capture.LinkEthernet, arp)
		if got := f.Match(&h, arp); got != want {
			t.Errorf("%v: ARP is wanted: %v", f, got)
		}
		if got := passes(t, *f, arp, ethernetLen); got != want {
			t.Errorf("%v: the program lets ARP pass: %v", f, got)
		}
	}
}

// The program lets everything pass that is wanted, and of whole packets of TCP and UDP without peculiarities nothing else but for the side of a port.
func TestProgramPassesWhatIsWanted(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	pick := func(list ...string) string { return list[random.IntN(len(list))] }
	passed, wanted := 0, 0
	for range 5000 {
		six := random.IntN(2) == 0
		end := func() string {
			port := pick("53", "80", "5432", "40000")
			if six {
				return "[" + pick(web6, db6, other6) + "]:" + port
			}
			return pick(web4, db4, other4) + ":" + port
		}
		w := wire{from: end(), to: end(), protocol: []uint8{capture.TCP, capture.UDP, capture.SCTP, capture.ICMP}[random.IntN(4)]}
		if w.protocol == capture.ICMP && six {
			w.protocol = capture.ICMPv6
		}
		w.icmp = uint16(random.IntN(256)) << 8
		switch random.IntN(5) {
		case 0:
			w.offset = uint16(1 + random.IntN(100))
		case 1:
			w.more = true
		case 2:
			w.extension = true
		}
		if random.IntN(2) == 0 {
			inner := wire{from: end(), to: end(), protocol: capture.UDP, raw: true}
			w.quote = inner.frame(t)
		}
		f := capture.Filter{Ends: addresses(web4, web6), ToEnds: random.IntN(3) == 0}
		for range random.IntN(3) {
			p := capture.Peer{Address: netip.MustParseAddr(pick(db4, other4, db6, other6))}
			if random.IntN(2) == 0 {
				p.Port = []uint16{80, 5432}[random.IntN(2)]
			}
			f.Peers = append(f.Peers, p)
		}
		switch random.IntN(3) {
		case 0:
			f.Port = 80
		case 1:
			f.EndPort = 5432
		}
		f.Protocol = []uint8{0, 0, capture.TCP, capture.UDP, capture.ICMP}[random.IntN(5)]
		frame := w.frame(t)
		h := capture.Decode(capture.LinkEthernet, frame)
		want := f.Match(&h, frame)
		got := passes(t, f, frame, ethernetLen)
		if want && !got {
			t.Fatalf("%+v of %v: wanted, and the program leaves it out", w, f)
		}
		if w.protocol == capture.ICMP || w.protocol == capture.ICMPv6 || w.more || w.offset > 0 || w.extension {
			continue
		}
		if got {
			passed++
		}
		if want {
			wanted++
		}
	}
	if t.Logf("of plain packets %d wanted, %d passed", wanted, passed); wanted < 100 || passed > 2*wanted {
		t.Errorf("%d packets pass for %d that are wanted", passed, wanted)
	}
}

// A service with many backends still makes a program that a kernel takes.
func TestProgramOfManyPeers(t *testing.T) {
	for _, n := range []int{1, 64, 65, 5000} {
		f := capture.Filter{Ends: addresses(web4, web6)}
		for i := range n {
			f.Peers = append(f.Peers, capture.Peer{Address: netip.MustParseAddr(fmt.Sprintf("fd44::%x", i+1)), Port: uint16(i + 1)})
		}
		code, err := f.Program(capture.NetworkOffset, someSnap)
		if err != nil || len(code) > 4096 {
			t.Errorf("%d peers: %d instructions, %v", n, len(code), err)
		}
		if _, err := bpf.Assemble(code); err != nil {
			t.Errorf("%d peers: %v", n, err)
		}
		last := f.Peers[n-1]
		w := wire{from: "[" + web6 + "]:40000", to: netip.AddrPortFrom(last.Address, last.Port).String(), protocol: capture.TCP}
		if !passes(t, f, w.frame(t), ethernetLen) {
			t.Errorf("%d peers: the last one is left out", n)
		}
	}
}

func TestFilterText(t *testing.T) {
	f := capture.Filter{Ends: addresses(web4, web6), Peers: []capture.Peer{{Address: netip.MustParseAddr(db4), Port: 5432}}, Protocol: capture.TCP}
	if got, want := f.String(), "(host 10.244.1.2 or host fd44::1:2) and (host 10.244.2.3 and port 5432) and tcp"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

// FuzzDecode reads anything without going beyond it, and agrees with the program that looks at less.
func FuzzDecode(f *testing.F) {
	f.Add(true, wire{from: web4 + ":40000", to: db4 + ":5432", protocol: capture.TCP, flags: capture.SYN}.frame(f))
	f.Add(true, wire{from: "[" + web6 + "]:1", to: "[" + db6 + "]:2", protocol: capture.UDP, more: true, payload: "x"}.frame(f))
	f.Add(false, wire{from: node4 + ":0", to: web4 + ":0", protocol: capture.ICMP, icmp: 3 << 8, raw: true,
		quote: wire{from: web4 + ":40000", to: db4 + ":5432", protocol: capture.TCP, raw: true}.frame(f)}.frame(f))
	filter := capture.Filter{Ends: addresses(web4, web6), Peers: []capture.Peer{{Address: netip.MustParseAddr(db4), Port: 5432}, {Address: netip.MustParseAddr(db6)}}}
	f.Fuzz(func(t *testing.T, ethernet bool, data []byte) {
		link, base := capture.LinkRaw, uint32(0)
		if ethernet {
			link, base = capture.LinkEthernet, ethernetLen
		}
		h := capture.Decode(link, data)
		if h.Later && h.TCPFlags != 0 || h.Ports && !h.IP || h.Payload < 0 || h.Length < 0 {
			t.Errorf("%+v", h)
		}
		vlan := len(data) > 13 && (data[12] == 0x81 || data[12] == 0x88)
		if filter.Match(&h, data) && !vlan && !passes(t, filter, data, base) { // the kernel takes tags off before
			t.Errorf("%+v is wanted, and the program leaves it out", h)
		}
	})
}
