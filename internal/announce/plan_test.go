package announce

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/strait-net/strait/internal/state"
)

func addr(text string) netip.Addr { return netip.MustParseAddr(text) }

// node reads "name ADDRESS... [excluded] [tainted]".
func node(text string) state.Node {
	words := strings.Fields(text)
	n := state.Node{Name: words[0]}
	for _, w := range words[1:] {
		switch w {
		case "excluded":
			n.NoLoadBalancer = true
		case "tainted":
			n.Tainted = true
		default:
			n.Addresses = append(n.Addresses, addr(w))
		}
	}
	return n
}

// service reads "name [lb=ADDRESS] [external=ADDRESS] [local] [class=C] [foreign] [proxied]".
func service(text string) state.Service {
	words := strings.Fields(text)
	s := state.Service{ServiceName: state.ServiceName{Namespace: "x", Name: words[0]}, Type: state.ClusterIP, Allocation: state.Allocation{Done: true, Reason: "Allocated"}}
	for _, w := range words[1:] {
		key, value, _ := strings.Cut(w, "=")
		switch key {
		case "lb":
			s.Type, s.Ingress = state.LoadBalancer, append(s.Ingress, addr(value))
		case "external":
			s.ExternalIPs = append(s.ExternalIPs, addr(value))
		case "local":
			s.ExternalPolicy = state.PolicyLocal
		case "class":
			s.Class = value
		case "foreign":
			s.Allocation = state.Allocation{}
		case "proxied":
			s.Proxy = "other"
		}
	}
	return s
}

func device(name string, prefixes ...string) state.Device {
	d := state.Device{Name: name, Up: true, Native: true}
	for _, p := range prefixes {
		d.Addresses = append(d.Addresses, netip.MustParsePrefix(p))
	}
	return d
}

func all(string) (alive, known bool) { return true, true }

// announced plans for one node and prints "ADDRESS@DEVICE ...".
func announced(v View) string {
	var out []string
	for _, a := range Plan(v).Announcements {
		out = append(out, a.Key())
	}
	return strings.Join(out, " ")
}

func TestWhatIsAnnounced(t *testing.T) {
	eth0 := device("eth0", "172.18.0.1/24", "fd18::1/64")
	down := device("down", "172.19.0.1/24")
	down.Up = false
	foreignDevice := device("docker0", "172.20.0.1/24")
	foreignDevice.Native = false
	for _, c := range []struct {
		name     string
		services []string
		devices  []state.Device
		want     string
	}{
		{"both families", []string{"a lb=172.18.0.200 lb=fd18::200"}, []state.Device{eth0}, "172.18.0.200@eth0 fd18::200@eth0"},
		{"an external IP", []string{"a external=172.18.0.200"}, []state.Device{eth0}, "172.18.0.200@eth0"},
		{"on no network of this node", []string{"a lb=192.0.2.1"}, []state.Device{eth0}, ""},
		{"a device that is down or not native", []string{"a lb=172.19.0.9 lb=172.20.0.9"}, []state.Device{eth0, down, foreignDevice}, ""},
		{"a node's own address", []string{"a external=172.18.0.1 external=172.18.0.2"}, []state.Device{eth0}, ""},
		{"another address of this node", []string{"a external=172.21.0.1"}, []state.Device{device("eth1", "172.21.0.1/24")}, ""},
		{"the most exact network", []string{"a lb=172.18.0.200"}, []state.Device{eth0, device("eth1", "172.18.0.129/25")}, "172.18.0.200@eth1"},
		{"one of two devices on a network", []string{"a lb=172.18.0.200"}, []state.Device{device("eth1", "172.18.0.1/24"), eth0}, "172.18.0.200@eth0"},
		{"an address that somebody else gave", []string{"a lb=172.18.0.200 foreign"}, []state.Device{eth0}, ""},
		{"our class, whoever gave it", []string{"a lb=172.18.0.200 foreign class=strait.dev/lb"}, []state.Device{eth0}, "172.18.0.200@eth0"},
		{"another's class", []string{"a lb=172.18.0.200 class=metallb"}, []state.Device{eth0}, ""},
		{"another proxy's", []string{"a lb=172.18.0.200 external=172.18.0.201 proxied"}, []state.Device{eth0}, ""},
		{"shared", []string{"a lb=172.18.0.200", "b lb=172.18.0.200"}, []state.Device{eth0}, "172.18.0.200@eth0"},
		{"local without an endpoint", []string{"a lb=172.18.0.200 local"}, []state.Device{eth0}, ""},
		{"local with one elsewhere", []string{"there lb=172.18.0.200 local"}, []state.Device{eth0}, ""},
		{"local with one here", []string{"here lb=172.18.0.200 local"}, []state.Device{eth0}, "172.18.0.200@eth0"},
		{"shared, both local, endpoints apart", []string{"here lb=172.18.0.200 local", "there lb=172.18.0.200 local"}, []state.Device{eth0}, "172.18.0.200@eth0"},
	} {
		t.Run(c.name, func(t *testing.T) {
			// Of two nodes, only n1 is alive: the hash decides nothing.
			v := View{
				Self: "n1", Nodes: []state.Node{node("n1 172.18.0.1 fd18::1"), node("n2 172.18.0.2 fd18::2")}, Devices: c.devices,
				Alive: func(n string) (bool, bool) { return n == "n1", true },
				Serving: func(name state.ServiceName, _ bool) map[string]bool {
					return map[string]map[string]bool{"here": {"n1": true}, "there": {"n2": true}}[name.Name]
				},
			}
			for _, s := range c.services {
				v.Services = append(v.Services, service(s))
			}
			if got := announced(v); got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

func TestWhoMayAnnounce(t *testing.T) {
	many := func(text string) []state.Service {
		var out []state.Service
		for i := range 40 {
			out = append(out, service(fmt.Sprintf("s%d lb=%s%d", i, text, 100+i)))
		}
		return out
	}
	for _, c := range []struct {
		name, other, network string
		shares               bool // n2 has a part
	}{
		{"a second node", "n2 172.18.0.2", "172.18.0.", true},
		{"one that is excluded", "n2 172.18.0.2 excluded", "172.18.0.", false},
		{"one that has never been ready", "n2 172.18.0.2 tainted", "172.18.0.", false},
		{"one on another network", "n2 172.19.0.2", "172.18.0.", false},
		{"a network that is not the nodes'", "n2 172.19.0.2", "10.1.0.", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			v := View{
				Self: "n1", Nodes: []state.Node{node("n1 172.18.0.1"), node(c.other)}, Alive: all, Services: many(c.network),
				Devices: []state.Device{device("eth0", "172.18.0.1/24"), device("eth1", "10.1.0.1/24")},
			}
			got := len(Plan(v).Announcements)
			if shares := got < 40; shares != c.shares || got == 0 {
				t.Errorf("n1 announces %d of 40", got)
			}
		})
	}
	v := View{Self: "n1", Nodes: []state.Node{node("n1 172.18.0.1 excluded"), node("n2 172.18.0.2")}, Alive: all, Services: many("172.18.0."),
		Devices: []state.Device{device("eth0", "172.18.0.1/24")}}
	if got := announced(v); got != "" {
		t.Errorf("an excluded node announces %s", got)
	}
}

// Whatever the cluster is: each address has exactly one announcer as long as a node may announce it, the shares are fair, and when a
// node dies only what it announced moves.
func TestExactlyOneAnnounces(t *testing.T) {
	for seed := range uint64(60) {
		r := rand.New(rand.NewPCG(seed, 9))
		var nodes []state.Node
		for i := range 1 + r.IntN(30) {
			n := node(fmt.Sprintf("node-%d 10.0.0.%d fd00::%x", i, i+1, i+1))
			n.NoLoadBalancer, n.Tainted = r.IntN(8) == 0, r.IntN(8) == 0
			nodes = append(nodes, n)
		}
		local := map[string]map[string]bool{}
		var services []state.Service
		for i := range 1 + r.IntN(80) {
			s := service(fmt.Sprintf("s%d lb=10.0.1.%d lb=fd00::1:%x", i, i, i))
			if r.IntN(4) == 0 {
				s.ExternalPolicy = state.PolicyLocal
				local[s.Name] = map[string]bool{}
				for range r.IntN(4) {
					local[s.Name][nodes[r.IntN(len(nodes))].Name] = true
				}
			}
			services = append(services, s)
		}
		dead := map[string]bool{}
		view := func(self string) View {
			return View{
				Self: self, Nodes: nodes, Services: services, Devices: []state.Device{device("eth0", "10.0.255.1/16", "fd00::ffff:1/64")},
				Alive:   func(n string) (bool, bool) { return !dead[n], true },
				Serving: func(name state.ServiceName, _ bool) map[string]bool { return local[name.Name] },
			}
		}
		who := func() map[string]string {
			out := map[string]string{}
			for _, n := range nodes {
				if dead[n.Name] {
					continue
				}
				for _, a := range Plan(view(n.Name)).Announcements {
					if other := out[a.Key()]; other != "" {
						t.Fatalf("seed %d: %s is announced by %s and %s", seed, a.Key(), other, n.Name)
					}
					out[a.Key()] = n.Name
				}
			}
			return out
		}
		check := func(found map[string]string) {
			for _, s := range services {
				may := slices.ContainsFunc(nodes, func(n state.Node) bool {
					return !n.NoLoadBalancer && !n.Tainted && !dead[n.Name] && (s.ExternalPolicy != state.PolicyLocal || local[s.Name][n.Name])
				})
				for _, a := range s.Ingress {
					if got := found[a.String()+"@eth0"]; (got != "") != may {
						t.Fatalf("seed %d: %s is announced by %q, somebody may: %t", seed, a, got, may)
					}
				}
			}
		}
		before := who()
		check(before)
		for range 3 {
			victim := nodes[r.IntN(len(nodes))].Name
			dead[victim] = true
			after := who()
			check(after)
			for key, was := range before {
				if now := after[key]; was != victim && now != was {
					t.Fatalf("seed %d: %s moved from %s to %s though %s died", seed, key, was, now, victim)
				}
			}
			before = after
		}
	}
}

// Those who would be next watch those before them, and only they: nobody waits for the slow round, and nobody asks everybody.
func TestSuccessorsWatch(t *testing.T) {
	const n, addresses = 200, 300
	var nodes []state.Node
	for i := range n {
		nodes = append(nodes, node(fmt.Sprintf("node-%d 10.0.%d.%d", i, i/250, i%250+1)))
	}
	var services []state.Service
	for i := range addresses {
		services = append(services, service(fmt.Sprintf("s%d lb=10.0.%d.%d", i, 100+i/250, i%250+1)))
	}
	view := func(self string) View {
		return View{Self: self, Nodes: nodes, Services: services, Devices: []state.Device{device("eth0", "10.0.99.1/16")}, Alive: all}
	}
	holder := map[string]string{}
	watchers := map[string]int{}
	questions, fewest, most := 0, addresses, 0
	for _, self := range nodes {
		d := Plan(view(self.Name))
		fewest, most = min(fewest, len(d.Announcements)), max(most, len(d.Announcements))
		for _, a := range d.Announcements {
			holder[a.Key()] = self.Name
		}
		for _, w := range d.Watch {
			watchers[w]++
		}
		questions += len(d.Watch)
	}
	for key, h := range holder {
		if watchers[h] < successors {
			t.Errorf("%s at %s: watched by %d", key, h, watchers[h])
		}
	}
	if perAddress := float64(questions) / addresses; perAddress > 3 {
		t.Errorf("%.1f questions a second for each address", perAddress)
	}
	if most > 8 {
		t.Errorf("shares from %d to %d of %d addresses on %d nodes", fewest, most, addresses, n)
	}
	// A dead holder stays watched by its successor: it may return.
	for key, h := range holder {
		v := view("")
		v.Alive = func(n string) (bool, bool) { return n != h, true }
		for _, self := range nodes {
			v.Self = self.Name
			d := Plan(v)
			if self.Name != h && slices.ContainsFunc(d.Announcements, func(a state.Announcement) bool { return a.Key() == key }) {
				if !slices.Contains(d.Watch, h) {
					t.Errorf("%s took %s from %s and does not watch it", self.Name, key, h)
				}
			}
		}
		break
	}
}

func BenchmarkPlan5000Nodes1000Addresses(b *testing.B) {
	v := View{Self: "node-7", Devices: []state.Device{device("eth0", "10.0.0.1/8")}, Alive: all}
	for i := range 5000 {
		v.Nodes = append(v.Nodes, node(fmt.Sprintf("node-%d 10.1.%d.%d", i, i>>8, i&255)))
	}
	for i := range 1000 {
		v.Services = append(v.Services, service(fmt.Sprintf("s%d lb=10.2.%d.%d", i, i>>8, i&255)))
	}
	for b.Loop() {
		Plan(v)
	}
}
