package live

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/gopacket/gopacket/pcapgo"

	"github.com/strait-net/strait/internal/capture"
	"github.com/strait-net/strait/internal/testkit"
)

// capturePolicies: only web may ask the database, the batch job may ask only the database.
const capturePolicies = `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db, namespace: shop}
spec:
  podSelector: {matchLabels: {app: db}}
  ingress:
  - from: [{podSelector: {matchLabels: {app: web}}}]
    ports: [{port: 5432}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: batch, namespace: shop}
spec:
  podSelector: {matchLabels: {app: batch}}
  policyTypes: [Egress]
  egress:
  - to: [{podSelector: {matchLabels: {app: db}}}]
`

const dbRule = "NetworkPolicy shop/db ingress spec.ingress[0]"

// stage is a database on the first node, and on the second a web server, a batch job and another client.
type stage struct {
	*testing.T
	c                     *testkit.Cluster
	db, web, batch, other *testkit.Pod
	outside               outside
}

func newStage(t *testing.T) *stage {
	t.Helper()
	testkit.RequireRoot(t)
	c := testkit.NewCluster(t, testkit.Options{NoAgents: true, Config: map[string]any{"network": "isolated"}})
	c.ApplyNamespace("shop", nil, nil)
	c.ApplyText("policies", capturePolicies)
	c.StartAgents()
	pod := func(n int, name, app string) *testkit.Pod {
		p := c.Nodes[n].AddPodAs(name, testkit.PodSpec{Namespace: "shop", Labels: map[string]string{"app": app}})
		p.Echo(sqlPort)
		return p
	}
	s := &stage{T: t, c: c, db: pod(0, "db-0", "db"), web: pod(1, "web-1", "web"), batch: pod(1, "batch-1", "batch"), other: pod(1, "other-1", "other")}
	s.c.ApplyService("echo", 80, []netip.Addr{netip.MustParseAddr("10.96.0.50"), netip.MustParseAddr("fd96::50")}, sqlPort, s.other.IPv4, s.other.IPv6)
	s.outside = newOutside(t, c)
	s.wait("the service", func() bool {
		out, _ := strait(t, c.Nodes[1], "service", "list")
		return strings.Contains(out, "10.96.0.50:80") && strings.Contains(out, "[fd96::50]:80")
	})
	for _, v6 := range []bool{false, true} {
		s.wait("policy", func() bool {
			return s.asks(s.web, s.db, v6) && !s.asks(s.batch, s.db, v6) && !s.asks(s.batch, s.web, v6)
		})
	}
	return s
}

func (s *stage) wait(what string, ok func() bool) {
	s.Helper()
	for deadline := time.Now().Add(30 * time.Second); !ok(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			s.Fatalf("%s is not there after 30 s", what)
		}
	}
}

// asks reports whether a pod is answered.
func (s *stage) asks(from, to *testkit.Pod, v6 bool) bool {
	return from.Probe(testkit.Probe{Network: "tcp", Address: testkit.HostPort(to.Address(v6), sqlPort), Timeout: 300 * time.Millisecond}).OK == 1
}

// tapped waits until so many captures look at the interfaces of pods.
func (s *stage) tapped(taps map[*testkit.Pod]int) {
	s.Helper()
	for pod, want := range taps {
		s.wait(fmt.Sprintf("capture %d of pod %s", want, pod), func() bool {
			var text []byte
			var err error
			pod.Do(func() { text, err = os.ReadFile("/proc/thread-self/net/packet") })
			if err != nil {
				s.Fatal(err)
			}
			bound := 0
			for line := range strings.Lines(string(text)) {
				const device = 4 // 0 as long as a socket is not bound
				if f := strings.Fields(line); len(f) > device && f[device] != "Iface" && f[device] != "0" {
					bound++
				}
			}
			return bound == want
		})
	}
}

// filed is a packet of a file.
type filed struct {
	capture.Header
	place    string
	comments []string
	out      bool
}

// read reads a file as others would.
func (s *stage) read(path string) (packets []filed, lost uint64) {
	s.Helper()
	f, err := os.Open(path)
	if err != nil {
		s.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	r, err := pcapgo.NewNgReader(f, pcapgo.DefaultNgReaderOptions)
	if err != nil {
		s.Fatal(err)
	}
	for {
		data, info, options, err := r.ReadPacketDataWithOptions()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			s.Fatalf("%s after %d packets: %v", path, len(packets), err)
		}
		intf, err := r.Interface(info.InterfaceIndex)
		if err != nil {
			s.Fatal(err)
		}
		packets = append(packets, filed{capture.Decode(capture.LinkEthernet, data), intf.Name, options.Comments, options.Flags.Direction == pcapgo.NgEpbFlagDirectionOutbound})
	}
	for i := range r.NInterfaces() {
		if intf, err := r.Interface(i); err == nil {
			lost += intf.Statistics.PacketsDropped
		}
	}
	return packets, lost
}

// between are the packets of two pods, in both directions.
func between(packets []filed, a, b *testkit.Pod, v6 bool) (out []filed) {
	for _, p := range packets {
		ends := []netip.Addr{p.Source.Addr(), p.Target.Addr()}
		if slices.Contains(ends, a.Address(v6)) && slices.Contains(ends, b.Address(v6)) {
			out = append(out, p)
		}
	}
	return out
}

// say checks that all packets have comments that begin so, or with the later ones from the second on.
func (s *stage) say(what string, packets []filed, first, later string) {
	s.Helper()
	if len(packets) == 0 {
		s.Errorf("%s: no packets", what)
	}
	for i, p := range packets {
		text := p.comments[0]
		if !strings.HasPrefix(text, first) && (i == 0 || later == "" || !strings.HasPrefix(text, later)) {
			s.Errorf("%s: packet %d at %s from %s to %s says %q, want %q", what, i, p.place, p.Source, p.Target, p.comments, first)
		}
	}
}

// OBS-5: each packet says what became of it, wherever that was decided, and is there once.
func TestCapture(t *testing.T) {
	s := newStage(t)
	node, dir := s.c.Nodes[1], t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name+".pcapng") }
	texts := map[string]*string{}
	var running sync.WaitGroup
	run := func(name string, inside bool, args ...string) {
		text := new(string)
		texts[name] = text
		args = append([]string{"capture", "--for", "9s", "-w", path(name)}, args...)
		running.Go(func() {
			code := 0
			if inside {
				*text, code = strait(t, node, args...)
			} else {
				*text, code = s.outside.strait(args...)
			}
			if code != 0 {
				t.Errorf("strait %v = %d\n%s", args, code, *text)
			}
		})
	}
	run("web", true, "shop/web-1")
	run("batch", false, "shop/batch-1", "shop/db-0:5432")
	run("db", false, "shop/db-0")
	run("other", true, "shop/other-1", "--peer", "shop/batch-1", "--protocol", "tcp")
	s.tapped(map[*testkit.Pod]int{s.web: 1, s.batch: 1, s.db: 2, s.other: 1})
	for _, v6 := range []bool{false, true} {
		if !s.asks(s.web, s.db, v6) || s.asks(s.batch, s.db, v6) || s.asks(s.batch, s.other, v6) {
			t.Errorf("policy does not hold (IPv6 %v)", v6)
		}
		service := netip.MustParseAddr("10.96.0.50")
		if v6 {
			service = netip.MustParseAddr("fd96::50")
		}
		if s.web.Probe(testkit.Probe{Network: "tcp", Address: testkit.HostPort(service, 80), Timeout: time.Second}).OK != 1 {
			t.Error("the service does not answer")
		}
		s.web.Probe(testkit.Probe{Network: "tcp", Address: testkit.HostPort(testkit.OutsideAddr(v6), sqlPort), Timeout: 300 * time.Millisecond})
	}
	running.Wait()
	for name, text := range texts {
		t.Logf("%s:\n%s", name, *text)
		if !strings.Contains(*text, "none lost by the capture") || !strings.Contains(*text, "capturing at pod") {
			t.Errorf("%s: summary:\n%s", name, *text)
		}
		if info, err := os.Stat(path(name)); err != nil || info.Mode().Perm() != 0o600 {
			t.Fatalf("%s: %v %v", name, info, err)
		}
	}
	for _, v6 := range []bool{false, true} {
		t.Run(fmt.Sprintf("IPv6 %v", v6), func(t *testing.T) { s.checkFiles(t, path, v6) })
	}
}

func (s *stage) checkFiles(t *testing.T, path func(string) string, v6 bool) {
	on := *s
	on.T = t
	web, _ := on.read(path("web"))
	allowed := between(web, s.web, s.db, v6)
	on.say("a pod's connection to another node", allowed, "allowed: no policy on "+s.c.Nodes[1].Name+" judges it", "known connection, allowed: no policy on ")
	if n := len(allowed); n < 6 || n > 40 {
		t.Errorf("%d packets of one exchange: doubles?", n)
	}
	service := between(web, s.web, s.other, v6)
	on.say("a connection to a service", service, "allowed: no policy", "known connection, allowed: no policy")
	if len(service) > 0 && (len(service[0].comments) < 3 || !strings.HasPrefix(service[0].comments[1], "service default/echo ") || !strings.Contains(service[0].comments[2], "shop/web-1:")) {
		t.Errorf("a service: %q", service[0].comments)
	}
	var dropped []filed
	for _, p := range web {
		if p.Target.Addr() == testkit.OutsideAddr(v6) {
			dropped = append(dropped, p)
		}
	}
	on.say("to the outside of an isolated network", dropped, "dropped: ", "")

	batch, _ := on.read(path("batch"))
	denied := between(batch, s.batch, s.db, v6)
	on.say("denied on the other node", denied, "denied at "+s.c.Nodes[0].Name+": no rule of NetworkPolicy shop/db allowed it", "")
	places := map[string]bool{}
	for _, p := range denied {
		places[p.place] = true
	}
	if !places["eth0@shop/batch-1"] || !places["strait_vxlan@"+s.c.Nodes[0].Name] || places["eth0@shop/db-0"] {
		t.Errorf("what was denied was seen at %v", places)
	}

	db, _ := on.read(path("db"))
	arrived := between(db, s.web, s.db, v6)
	on.say("at the other end", arrived, "allowed: "+dbRule, "known connection, allowed: "+dbRule)
	for _, p := range arrived {
		if p.place != "eth0@shop/db-0" {
			t.Errorf("what has come is shown at %s as well: %q", p.place, p.comments)
		}
	}
	on.say("what did not come", between(db, s.batch, s.db, v6), "denied at "+s.c.Nodes[0].Name+": no rule of NetworkPolicy shop/db", "")

	other, _ := on.read(path("other"))
	egress := between(other, s.batch, s.other, v6)
	on.say("denied on its way out, on the same node", egress, "denied: no rule of NetworkPolicy shop/batch allowed it", "")
	for _, p := range egress {
		if !strings.HasPrefix(p.place, "st") || p.out {
			t.Errorf("what another pod was not allowed to send was seen at %s", p.place)
		}
	}
}

// What a person sees on a terminal, and what the command refuses.
func TestCaptureLines(t *testing.T) {
	s := newStage(t)
	node := s.c.Nodes[1]
	var out string
	var code int
	var running sync.WaitGroup
	running.Go(func() {
		out, code = strait(t, node, "capture", "shop/web-1", "--port", "5432", "--count", "4", "--for", "10s")
	})
	s.tapped(map[*testkit.Pod]int{s.web: 1})
	begun := time.Now()
	s.asks(s.web, s.db, false)
	running.Wait()
	t.Logf("= %d\n%s", code, out)
	for _, want := range []string{"capturing at pod shop/web-1 on node " + node.Name, " out shop/web-1:", " -> shop/db-0:5432 TCP [S] length 0 allowed: no policy on " + node.Name + " judges it",
		" in  shop/db-0:5432 -> shop/web-1:", "TCP [S.] length 0 known connection, allowed", "4 packets in", "as many as wanted (--count 4): 4 allowed; none lost by the capture"} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is not in\n%s", want, out)
		}
	}
	if code != 0 || time.Since(begun) > 5*time.Second {
		t.Errorf("code %d after %v", code, time.Since(begun))
	}
	file := filepath.Join(t.TempDir(), "there")
	if err := os.WriteFile(file, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"shop/wep-1"}, 2, `did you mean "shop/web-1"`},
		{[]string{"shop/db-0"}, 2, "pod shop/db-0 on node node-1, and this is node node-2"},
		{[]string{"10.1.2.3", "10.4.5.6"}, 2, "nothing of this cluster to capture at"},
		{[]string{"svc/default/echo", "shop/web-1"}, 2, "sends nothing"},
		{[]string{"shop/web-1", "svc/default/echo:81"}, 2, "it has 80/TCP"},
		{[]string{"shop/web-1", "-w", file, "--for", "1s"}, 2, "--force overwrites it"},
		{[]string{"shop/web-1", "--max-size", "12 parsecs"}, 2, "want a number of bytes"},
		{[]string{"shop/web-1", "--snaplen", "1"}, 2, "want 128 to"},
		{[]string{"shop/web-1", "--protocol", "tpc"}, 2, `unknown protocol "tpc"; there are: tcp, udp`},
		{[]string{"shop/web-1", "shop/db-0", "--peer", "x"}, 2, "the other end is shop/db-0 already"},
		{nil, 2, "POD is missing"},
	} {
		out, code := strait(t, node, append([]string{"capture"}, tc.args...)...)
		if code != tc.code || !strings.Contains(out, tc.want) {
			t.Errorf("strait capture %v = %d, want %d and %q\n%s", tc.args, code, tc.code, tc.want, out)
		}
	}
	if text, err := os.ReadFile(file); err != nil || string(text) != "mine" {
		t.Errorf("the file is %q now, %v", text, err)
	}
}

// A capture on a node goes on while its agent is started anew, and has verdicts again when that answers.
func TestCaptureOverRestart(t *testing.T) {
	s := newStage(t)
	node := s.c.Nodes[1]
	var out string
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		out, _ = strait(t, node, "capture", "shop/web-1", "--port", "5432", "--count", "60", "--for", "60s")
	}()
	s.tapped(map[*testkit.Pod]int{s.web: 1})
	node.KillAgent()
	s.asks(s.web, s.db, false)
	node.StartAgent()
	node.WaitReady(time.Minute)
	for open := true; open; {
		s.asks(s.web, s.db, false)
		select {
		case <-ended:
			open = false
		case <-time.After(100 * time.Millisecond):
		}
	}
	without, with, again := strings.Cut(out, "verdicts again\n")
	if !again || !strings.Contains(without, "no verdicts from here on: ") || !strings.Contains(with, "[S] length 0 allowed: no policy") {
		t.Errorf("%s", out)
	}
}

// Everything that a flood sends is in the file or counted as lost, also when nobody reads for a while; Ctrl-C leaves a whole file.
func TestCaptureFlood(t *testing.T) {
	s := newStage(t)
	node := s.c.Nodes[1]
	for name, tc := range map[string]struct {
		packets int
		suspend bool
	}{"read": {100_000, false}, "not read for a while": {400_000, true}} {
		t.Run(name, func(t *testing.T) {
			on := *s
			on.T = t
			path := filepath.Join(t.TempDir(), "flood.pcapng")
			bin, err := filepath.Abs("../../../bin/strait")
			if err != nil {
				t.Fatal(err)
			}
			cmd := node.Command(bin, "capture", "shop/web-1", "--port", "9", "-w", path)
			var text bytes.Buffer
			cmd.Stdout, cmd.Stderr = &text, &text
			if err := node.Start(cmd); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = cmd.Process.Kill() })
			on.tapped(map[*testkit.Pod]int{s.web: 1})
			if tc.suspend {
				_ = cmd.Process.Signal(syscall.SIGSTOP)
			}
			begun := time.Now()
			flood(t, s.web, s.other.IPv4, tc.packets)
			took := time.Since(begun)
			_ = cmd.Process.Signal(syscall.SIGCONT)
			time.Sleep(500 * time.Millisecond)
			_ = cmd.Process.Signal(os.Interrupt)
			err = cmd.Wait()
			var exit *exec.ExitError
			if errors.As(err, &exit) {
				t.Errorf("ended with %d", exit.ExitCode())
			}
			packets, lost := on.read(path)
			written := 0
			for _, p := range packets {
				if p.Protocol == capture.UDP && p.out {
					written++
				}
			}
			t.Logf("%d sent in %v, %d written, %d lost\n%s", tc.packets, took, written, lost, text.String())
			// Answers (ICMP errors, of which the kernel sends few) may be among the lost.
			if missing := uint64(tc.packets - written); missing > lost || lost > missing+uint64(tc.packets/100) {
				t.Errorf("%d sent, %d written: %d are missing, %d are said to be lost", tc.packets, written, missing, lost)
			}
			if tc.suspend && (lost == 0 || !strings.Contains(text.String(), fmt.Sprintf("%d more were lost", lost))) {
				t.Errorf("%d lost, and said:\n%s", lost, text.String())
			}
		})
	}
}

// flood sends datagrams to port 9 as fast as it goes.
func flood(t *testing.T, from *testkit.Pod, to netip.Addr, n int) {
	t.Helper()
	var err error
	from.Do(func() {
		var socket net.PacketConn
		if socket, err = net.ListenPacket("udp4", "0.0.0.0:0"); err != nil {
			return
		}
		defer func() { _ = socket.Close() }()
		target := net.UDPAddrFromAddrPort(netip.AddrPortFrom(to, 9))
		for range n {
			if _, err = socket.WriteTo([]byte("x"), target); err != nil && !errors.Is(err, syscall.ECONNREFUSED) {
				return
			}
			err = nil
		}
	})
	if err != nil {
		t.Fatal(err)
	}
}
