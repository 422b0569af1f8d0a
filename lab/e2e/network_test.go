package e2e

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/strait-net/strait/lab/internal/topology"
)

// NET-1, NET-2, NET-5: every pod reaches every pod, itself included, and is seen at the address it sees at itself.
func TestNET2_PodToPodWithoutNAT(t *testing.T) {
	for _, from := range shared.nodes {
		for _, to := range shared.nodes {
			for _, address := range to.pods {
				t.Run(from.name+" to "+to.name+" "+address.String(), func(t *testing.T) {
					out, err := shared.inPod(t.Context(), shared.namespace, from.server, ask(address, serverPort))
					if got, want := seen(t, out, err), same(from.pods, address); got != want {
						t.Errorf("the server sees %s, want %s", got, want)
					}
				})
			}
		}
	}
}

func TestNET1_PodSeesItsOwnAddress(t *testing.T) {
	for _, n := range shared.nodes {
		out, err := shared.inPod(t.Context(), shared.namespace, n.server, "ip -o addr show dev eth0 scope global")
		if err != nil {
			t.Fatal(err)
		}
		for _, a := range n.pods {
			if !strings.Contains(out, " "+a.String()+"/") {
				t.Errorf("%s: eth0 has %q, the API says %s", n.server, out, a)
			}
		}
	}
}

// NET-2: programs on a node reach all pods from an address of that node.
func TestNET2_NodeToPod(t *testing.T) {
	for _, from := range shared.nodes {
		for _, to := range shared.nodes {
			for _, address := range to.pods {
				t.Run(from.name+" to "+to.name+" "+address.String(), func(t *testing.T) {
					out, err := shared.onMachine(t.Context(), from.name, ask(address, serverPort))
					if got, want := seen(t, out, err), same(from.addrs, address); got != want {
						t.Errorf("the pod sees %s, want %s", got, want)
					}
				})
			}
		}
	}
}

// NET-2: pods reach programs on all nodes, which see the pod's address.
func TestNET2_PodToNode(t *testing.T) {
	for _, from := range shared.nodes {
		for _, to := range shared.nodes {
			for _, address := range to.addrs {
				t.Run(from.name+" to "+to.name+" "+address.String(), func(t *testing.T) {
					out, err := shared.inPod(t.Context(), shared.namespace, from.server, ask(address, hostPort))
					if got, want := seen(t, out, err), same(from.pods, address); got != want {
						t.Errorf("the node sees %s, want %s", got, want)
					}
				})
			}
		}
	}
}

func TestNET2_HostNetworkPodToPods(t *testing.T) {
	from := shared.nodes[0]
	for _, to := range shared.nodes {
		for _, address := range to.pods {
			out, err := shared.inPod(t.Context(), shared.namespace, from.host, ask(address, serverPort))
			if got, want := seen(t, out, err), same(from.addrs, address); got != want {
				t.Errorf("%s: the pod sees %s, want %s", to.name, got, want)
			}
		}
	}
}

// NET-2: large packets and ICMP pass as well, and the path's MTU is honoured (NET-6).
func TestNET6_LargeBodiesAndPing(t *testing.T) {
	from, to := shared.nodes[0], shared.nodes[len(shared.nodes)-1]
	for _, address := range to.pods {
		out, err := shared.inPod(t.Context(), shared.namespace, from.server,
			"ping -c 2 -i 0.2 -W 2 "+address.String()+" >&2 && ping -c 1 -W 2 -s 8000 "+address.String()+" >&2 && echo fine")
		if err != nil || strings.TrimSpace(out) != "fine" {
			t.Errorf("ping %s: %q %v", address, out, err)
		}
		target := netip.AddrPortFrom(address, serverPort).String()
		// The server echoes what it is told to: about 1 MB each way would need a body; the answer is enough to exceed the MTU many times.
		out, err = shared.inPod(t.Context(), shared.namespace, from.server,
			"head -c 300000 /dev/zero > /tmp/big && curl -sS --max-time 10 -F file=@/tmp/big http://"+target+"/upload")
		if err != nil || !strings.Contains(out, "output") {
			t.Errorf("upload to %s: %q %v", target, out, err)
		}
	}
}

// NET-3: what the world outside sees of a pod is what the cluster's design says.
func TestNET3_PodToOutside(t *testing.T) {
	spec := shared.spec()
	for _, from := range shared.nodes {
		for _, address := range topology.Hosts(spec.OutsideAddrs()) {
			t.Run(from.name+" to "+address.String(), func(t *testing.T) {
				out, err := shared.inPod(t.Context(), shared.namespace, from.server, ask(address, 80))
				if spec.Network == "isolated" {
					if err == nil {
						t.Errorf("an isolated pod reached the world, which saw %s", out)
					}
					return
				}
				want := same(from.addrs, address)
				if spec.Network == "flat" {
					want = same(from.pods, address)
				}
				if got := seen(t, out, err); got != want {
					t.Errorf("the world sees %s, want %s", got, want)
				}
			})
		}
	}
}

// NET-3: only in a flat network does the world reach pods; a route alone must not suffice in an isolated one.
func TestNET3_OutsideToPod(t *testing.T) {
	if shared.spec().Network == "island" {
		t.Skip("the router of an island has no route to pods")
	}
	for _, to := range shared.nodes {
		for _, address := range to.pods {
			out, err := shared.onMachine(t.Context(), topology.Outside, ask(address, serverPort))
			if shared.spec().Network == "isolated" {
				if err == nil {
					t.Errorf("the world reached the isolated pod %s", address)
				}
				continue
			}
			if got, want := seen(t, out, err), same(topology.Hosts(shared.spec().OutsideAddrs()), address); got != want {
				t.Errorf("the pod sees %s, want %s", got, want)
			}
		}
	}
}

// A node is a host like any other: its own way out is not the cluster's business.
func TestNET3_NodeToOutside(t *testing.T) {
	for _, from := range shared.nodes {
		for _, address := range topology.Hosts(shared.spec().OutsideAddrs()) {
			out, err := shared.onMachine(t.Context(), from.name, ask(address, 80))
			if got, want := seen(t, out, err), same(from.addrs, address); got != want {
				t.Errorf("the world sees %s, want %s", got, want)
			}
		}
	}
}

// The world has names, too: a pod asks CoreDNS, which asks the name server outside.
func TestNET3_OutsideByName(t *testing.T) {
	if shared.spec().Network == "isolated" {
		t.Skip("an isolated cluster's name server reaches no other")
	}
	out, err := shared.inPod(t.Context(), shared.namespace, shared.nodes[0].server, "curl -sS --max-time 5 http://web.outside.test/hostname")
	if err != nil || out != "outside" {
		t.Errorf("got %q %v", out, err)
	}
}

// NET-4: what is on the wire between two nodes is what the routing mode says, and nothing else.
func TestNET4_OnTheWire(t *testing.T) {
	if len(shared.nodes) < 2 || shared.spec().CNI != "strait" {
		t.Skip("needs Strait and two nodes")
	}
	from, to := shared.nodes[0], shared.nodes[1]
	for _, address := range to.pods {
		// 20 pings of an odd size, and the frames of about that size that leave the node meanwhile.
		const capture = "timeout 4 tcpdump -nn -Q out -i eth0 'greater 1100 and less 1300' 2>/dev/null || true"
		node := make(chan string, 1)
		go func() {
			out, err := shared.onMachine(t.Context(), from.name, capture)
			if err != nil {
				out += err.Error()
			}
			node <- out
		}()
		time.Sleep(1500 * time.Millisecond)
		if _, err := shared.inPod(t.Context(), shared.namespace, from.server, "ping -c 20 -i 0.05 -s 1111 -W 2 "+address.String()); err != nil {
			t.Error(err)
		}
		wire := <-node
		source := same(from.pods, address).String()
		tunnelled, plain := 0, 0
		for line := range strings.Lines(wire) {
			switch {
			case strings.HasPrefix(line, "IP"): // what is inside the tunnelled frame of the line before
			case strings.Contains(line, ".8472"):
				tunnelled++
			case strings.Contains(line, " "+source+" > "+address.String()):
				plain++
			}
		}
		wantTunnelled, wantPlain := 20, 0
		if shared.spec().Mode == "native" {
			wantTunnelled, wantPlain = 0, 20
		}
		if tunnelled != wantTunnelled || plain != wantPlain {
			t.Errorf("%s: %d tunnelled and %d plain frames, want %d and %d:\n%s", address, tunnelled, plain, wantTunnelled, wantPlain, wire)
		}
	}
}
