package control

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/strait-net/strait/internal/policy"
	"github.com/strait-net/strait/internal/state"
)

// claimRig is the shop with pod CIDRs: 10.244.1.0/24 of this node, 10.244.2.0/24 of n2, 10.244.3.0/24 of n3. Who has an address of another node
// can be told by its pod being taken for an application of the shop, which may talk to the database.
type claimRig struct{ *kernelRig }

func newClaimRig(t testing.TB) claimRig {
	r := claimRig{newKernelRig(t, shop(), roomy)}
	r.podCIDR("10.244.1.0/24", self)
	r.podCIDR("10.244.2.0/24", "n2")
	r.podCIDR("10.244.3.0/24", "n3")
	r.settle()
	return r
}

func (r claimRig) podCIDR(prefix, node string) {
	r.st.Remotes.Insert(state.Remote{Prefix: netip.MustParsePrefix(prefix), Kind: state.RemotePods, Node: node})
}

// podAt is a pod with addresses that a kubelet has reported.
func podAt(name, node string, addrs ...string) state.Pod {
	p := state.Pod{Namespace: "shop", Name: name, Node: node, Labels: policy.NewLabels(map[string]string{"app": "app"})}
	for _, a := range addrs {
		p.Addresses = append(p.Addresses, netip.MustParseAddr(a))
	}
	return p
}

// claiming is a pod with addresses of which only its annotation speaks.
func claiming(name, node string, addrs ...string) state.Pod {
	p := podAt(name, node, addrs...)
	p.Claimed = true
	return p
}

func (r claimRig) pods(pods ...state.Pod) {
	r.t.Helper()
	r.st.Pods.Insert(pods...)
	r.settle()
}

func (r claimRig) gone(keys ...string) {
	r.t.Helper()
	r.st.Pods.Delete(keys...)
	r.settle()
}

// has fails unless the pod is who has the address; empty: nobody has.
func (r claimRig) has(pod, addr string) {
	r.t.Helper()
	a := netip.MustParseAddr(addr)
	row, _, _ := r.st.Identities.Snapshot().Get(host(a).String())
	if row.Pod != pod {
		r.t.Errorf("%s is %q's, want %q", addr, row.Pod, pod)
	}
	if allowed := r.allows(addr, "10.244.1.1"); allowed != (pod != "") {
		r.t.Errorf("%s may talk to the database: %t", addr, allowed)
	}
	differ := map[Difference]func(){}
	r.loop.compareIdentities(checkLimit, differ)
	for d := range differ {
		r.t.Errorf("differs from what is computed at once: %v", d)
	}
}

// An agent says where a pod is before the kubelet does.
func TestClaimInPodCIDROfTheNode(t *testing.T) {
	r := newClaimRig(t)
	r.has("", "10.244.2.9")
	r.pods(claiming("new", "n2", "10.244.2.9"))
	r.has("shop/new", "10.244.2.9")
	r.pods(podAt("new", "n2", "10.244.2.9"))
	r.has("shop/new", "10.244.2.9")
	r.gone("shop/new")
	r.has("", "10.244.2.9")
}

// Whoever may create a pod can name a node and write any address into an annotation.
func TestClaimElsewhere(t *testing.T) {
	for _, c := range []struct {
		name, addr, owner string
		pod               state.Pod
	}{
		{"pod CIDR of another node", "10.244.3.9", "", claiming("x", "n2", "10.244.3.9")},
		{"pod CIDR of this node", "10.244.1.9", "", claiming("x", "n2", "10.244.1.9")},
		{"this node knows its pods", "10.244.1.9", "", claiming("x", self, "10.244.1.9")},
		{"pod CIDR of nobody", "10.244.9.9", "", claiming("x", "n2", "10.244.9.9")},
		{"the world", "8.8.8.8", "", claiming("x", "n2", "8.8.8.8")},
		{"the world, of no node", "8.8.8.8", "", claiming("x", "", "8.8.8.8")},
		{"a node nobody knows", "10.244.9.9", "", claiming("x", "n9", "10.244.9.9")},
		{"no node", "10.244.2.9", "", claiming("x", "", "10.244.2.9")},
		{"its node", "172.18.0.2", "", claiming("x", "n2", "172.18.0.2")},
		{"a pod of its node", "10.244.2.1", "shop/far", claiming("x", "n2", "10.244.2.1")},
		{"a pod of another node", "10.244.2.1", "shop/far", claiming("x", "n3", "10.244.2.1")},
		{"a pod of this node", "10.244.1.2", "shop/near", claiming("x", "n2", "10.244.1.2")},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newClaimRig(t)
			r.pods(c.pod)
			r.has(c.owner, c.addr)
			r.gone("shop/x")
			r.has(c.owner, c.addr)
		})
	}
	t.Run("hostNetwork", func(t *testing.T) {
		r := newClaimRig(t)
		p := claiming("x", "n2", "10.244.2.9")
		p.HostNetwork = true
		r.pods(p)
		r.has("", "10.244.2.9")
	})
	t.Run("the address of this node", func(t *testing.T) { // which may talk to its pods whatever policy says
		r := newClaimRig(t)
		r.pods(claiming("x", "n2", "172.18.0.1"))
		if row, _, _ := r.st.Identities.Snapshot().Get("172.18.0.1/32"); row.Kind != policy.HostPeer {
			t.Errorf("172.18.0.1 is %v", row)
		}
	})
}

// What a kubelet reports counts, whichever came first; also of a pod that no selector asks for, of which nothing is kept.
func TestReportBeatsClaim(t *testing.T) {
	silent := podAt("real", "n2", "10.244.2.9")
	silent.Labels = nil
	for _, c := range []struct {
		name  string
		real  state.Pod
		owner string
	}{{"told apart", podAt("real", "n2", "10.244.2.9"), "shop/real"}, {"not told apart", silent, ""}, {"strange", podAt("real", "n3", "10.244.2.9"), "shop/real"}} {
		t.Run(c.name, func(t *testing.T) {
			r := newClaimRig(t)
			r.pods(claiming("x", "n2", "10.244.2.9"))
			r.has("shop/x", "10.244.2.9")
			r.pods(c.real)
			r.has(c.owner, "10.244.2.9")
			r.pods(claiming("x", "n2", "10.244.2.9", "10.244.2.10")) // written once more
			r.has(c.owner, "10.244.2.9")
			r.has("shop/x", "10.244.2.10")
			if c.real.Node == "n2" {
				r.gone("shop/real")
				r.has("shop/x", "10.244.2.9")
				r.pods(c.real)
			}
			r.gone("shop/x")
			r.has(c.owner, "10.244.2.9")
		})
	}
}

// Of two reports the later counts, until it is gone: a pod that has ended is about to be.
func TestTwoReports(t *testing.T) {
	r := newClaimRig(t)
	r.pods(podAt("old", "n2", "10.244.2.9"))
	r.pods(podAt("young", "n2", "10.244.2.9"))
	r.has("shop/young", "10.244.2.9")
	r.gone("shop/old")
	r.has("shop/young", "10.244.2.9")
	r.pods(podAt("old", "n2", "10.244.2.9"))
	r.has("shop/old", "10.244.2.9")
	r.gone("shop/old")
	r.has("shop/young", "10.244.2.9")
}

func TestSeveralClaims(t *testing.T) {
	r := newClaimRig(t)
	r.pods(claiming("real", "n2", "10.244.2.9"))
	r.pods(claiming("x", "n2", "10.244.2.9"))
	r.has("", "10.244.2.9")
	r.pods(claiming("y", "n2", "10.244.2.9"))
	r.gone("shop/y")
	r.has("", "10.244.2.9")
	r.pods(claiming("y", "n3", "10.244.2.9")) // cannot be true, and does no harm
	r.pods(claiming("x", "n2", "10.244.2.10"))
	r.has("shop/real", "10.244.2.9")
	r.has("shop/x", "10.244.2.10")
	r.pods(claiming("x", "n2", "10.244.2.9"))
	r.has("", "10.244.2.9")
	r.has("", "10.244.2.10")
	r.pods(podAt("real", "n2", "10.244.2.9"))
	r.has("shop/real", "10.244.2.9")
	r.pods(podAt("real", "n2", "10.244.2.11")) // the kubelet corrects it
	r.has("shop/x", "10.244.2.9")
	r.has("shop/real", "10.244.2.11")
}

// What is believed follows nodes and their pod CIDRs.
func TestClaimWhenNodesChange(t *testing.T) {
	r := newClaimRig(t)
	r.pods(claiming("x", "n2", "10.244.2.9"))
	change := func(f func()) { t.Helper(); f(); r.settle() }
	change(func() { r.st.Remotes.Delete("10.244.2.0/24") })
	r.has("", "10.244.2.9")
	change(func() { r.podCIDR("10.244.2.0/24", "n2") })
	r.has("shop/x", "10.244.2.9")
	change(func() { r.podCIDR("10.244.2.0/24", "n3") })
	r.has("", "10.244.2.9")
	change(func() { r.podCIDR("10.244.2.0/24", "n2") })
	r.has("shop/x", "10.244.2.9")
	change(func() {
		r.st.Remotes.Insert(state.Remote{Prefix: netip.MustParsePrefix("10.244.2.9/32"), Kind: state.RemoteNode, Node: "n2"})
	})
	r.has("", "10.244.2.9")
	change(func() { r.st.Remotes.Delete("10.244.2.9/32") })
	r.has("shop/x", "10.244.2.9")
	server := state.EndpointSlice{Namespace: "default", Name: "kubernetes", Service: state.ServiceName{Namespace: "default", Name: "kubernetes"},
		Endpoints: []state.SliceEndpoint{{Address: netip.MustParseAddr("10.244.2.9"), Ready: true}}}
	change(func() { r.st.EndpointSlices.Insert(server) })
	r.has("", "10.244.2.9")
	server.Endpoints = nil
	change(func() { r.st.EndpointSlices.Insert(server) })
	r.has("shop/x", "10.244.2.9")
	// The whole cluster is the pod CIDR of one node.
	change(func() { r.st.Remotes.Delete("10.244.1.0/24", "10.244.2.0/24", "10.244.3.0/24") })
	r.has("", "10.244.2.9")
	change(func() { r.podCIDR("10.244.0.0/16", "n2") })
	r.has("shop/x", "10.244.2.9")
}

// What is attached here has its address, wherever that lies.
func TestAttachmentBeatsClaim(t *testing.T) {
	for _, first := range []string{"claim", "attachment"} {
		r := newClaimRig(t)
		claim := func() { r.pods(claiming("x", "n2", "10.244.2.9")) }
		if first == "claim" {
			claim()
			r.has("shop/x", "10.244.2.9")
		}
		r.st.Endpoints.Insert(state.Endpoint{
			ContainerID: "c", IfName: "eth0", Namespace: "shop", Pod: "here", NetNS: "/x", Addresses: []netip.Addr{netip.MustParseAddr("10.244.2.9")}, Phase: state.EndpointReady,
		})
		here := podAt("here", self)
		r.pods(here)
		if first != "claim" {
			claim()
		}
		r.has("shop/here", "10.244.2.9")
	}
}

// Whatever order pods and CIDRs come, change and go in, who has an address follows from what is there in the end.
func TestClaimsInAnyOrder(t *testing.T) {
	seed, want := seedOf(t), casesOf(100)
	for i := range uint64(want) {
		rnd := rand.New(rand.NewPCG(seed, i))
		r := newClaimRig(t)
		prefixes, nodes := []string{"10.244.2.0/24", "10.244.3.0/24"}, []string{self, "n2", "n3"}
		owners := map[string]string{prefixes[0]: "n2", prefixes[1]: "n3"}
		addrs := []string{"10.244.2.8", "10.244.2.9", "10.244.3.8", "10.244.3.9", "10.244.9.9"}
		pods := map[string]state.Pod{}
		for range 60 {
			for range 1 + rnd.IntN(3) {
				switch name := fmt.Sprint("p", rnd.IntN(6)); rnd.IntN(8) {
				case 0:
					prefix := prefixes[rnd.IntN(2)]
					owners[prefix] = nodes[rnd.IntN(3)]
					r.podCIDR(prefix, owners[prefix])
				case 1, 2:
					delete(pods, name)
					r.st.Pods.Delete("shop/" + name)
				default:
					p := claiming(name, nodes[rnd.IntN(3)], addrs[rnd.IntN(len(addrs))])
					p.Claimed = rnd.IntN(3) > 0
					pods[name] = p
					r.st.Pods.Insert(p)
				}
			}
			r.settle()
			for _, addr := range addrs {
				row, _, _ := r.st.Identities.Snapshot().Get(addr + "/32")
				if may := whoMayHave(addr, pods, owners); !slices.Contains(may, row.Pod) {
					t.Fatalf("STRAIT_SEED=%d, case %d: %s is %q's, want one of %q\npods %v\nCIDRs %v", seed, i, addr, row.Pod, may, pods, owners)
				}
			}
			differ := map[Difference]func(){}
			if r.loop.compareIdentities(checkLimit, differ); len(differ) > 0 {
				t.Fatalf("STRAIT_SEED=%d, case %d: differs from what is computed at once: %v", seed, i, differ)
			}
		}
	}
}

// whoMayHave says it slowly: any of those that are reported to have an address, or else the only one of the node of its CIDR that claims it.
func whoMayHave(addr string, pods map[string]state.Pod, owners map[string]string) (may []string) {
	a := netip.MustParseAddr(addr)
	var claims []string
	for name, p := range pods {
		if !slices.Contains(p.Addresses, a) {
			continue
		}
		if !p.Claimed {
			may = append(may, "shop/"+name)
		}
		for prefix, node := range owners {
			if p.Claimed && node == p.Node && node != self && netip.MustParsePrefix(prefix).Contains(a) {
				claims = append(claims, "shop/"+name)
			}
		}
	}
	switch {
	case len(may) > 0:
		return may
	case len(claims) == 1:
		return claims
	}
	return []string{""}
}
