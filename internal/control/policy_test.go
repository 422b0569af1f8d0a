package control

import (
	"context"
	"math/rand/v2"
	"net/netip"
	"os"
	"reflect"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/strait-net/strait/internal/config"
	"github.com/strait-net/strait/internal/datapath/sync"
	"github.com/strait-net/strait/internal/identity"
	"github.com/strait-net/strait/internal/policy"
	"github.com/strait-net/strait/internal/policy/eval"
	"github.com/strait-net/strait/internal/policy/eval/model"
	"github.com/strait-net/strait/internal/policy/eval/sample"
	"github.com/strait-net/strait/internal/state"
	"github.com/strait-net/strait/internal/table"
)

const self = "n1"

// kernelRig is the loop and its writer on tables in memory, with a cluster as intent.
type kernelRig struct {
	t      testing.TB
	st     *state.State
	kernel *memory
	writer *sync.Policies
	loop   *Policies
	feeds  *policyFeeds
	now    time.Time
	dir    string
	last   *eval.Cluster
	sizes  config.Maps
}

var roomy = config.Maps{Identities: 1 << 18, Policies: 1 << 18, Ports: 1 << 17, Rules: 1 << 15}

func newKernelRig(t testing.TB, c *eval.Cluster, sizes config.Maps) *kernelRig {
	r := &kernelRig{t: t, st: state.New(), now: time.Unix(1000, 0), dir: t.TempDir(), sizes: sizes, last: &eval.Cluster{}}
	r.kernel = newMemory(r.dir)
	r.bring(c)
	r.start(c)
	return r
}

// start makes a new writer and loop, as a restart does.
func (r *kernelRig) start(c *eval.Cluster) {
	r.t.Helper()
	if r.writer != nil {
		r.writer.Close()
		r.feeds.close()
	}
	cfg := config.Default()
	cfg.Policy = config.Policy{Enforcement: config.PolicyMode(c.Mode.String()), Audit: c.Audit}
	cfg.IPAM.PodCIDRv4, cfg.IPAM.PodCIDRv6, cfg.Maps = config.Prefix{}, config.Prefix{}, r.sizes
	for _, p := range c.CIDRs {
		if p.Addr().Is4() {
			cfg.IPAM.PodCIDRv4.Prefix = p
		} else {
			cfg.IPAM.PodCIDRv6.Prefix = p
		}
	}
	var err error
	r.writer, err = sync.NewPolicies(sync.PolicyConfig{
		Kernel: r.kernel, Ends: r.kernel, Sizes: r.sizes, StateDir: r.dir, Now: func() time.Time { return r.now },
	})
	if err != nil {
		r.t.Fatal(err)
	}
	r.loop = NewPolicies(PoliciesConfig{Node: self, Config: cfg, State: r.st, Writer: r.writer, Log: quiet()})
	r.feeds = r.loop.follow()
}

// same writes rows that differ and deletes those that are gone.
func same[T any](t *table.Table[T], rows []T) {
	keep := map[string]bool{}
	t.Write(func(tx *table.Txn[T]) {
		for _, row := range rows {
			keep[t.Key(row)] = true
			if old, _, ok := tx.Get(t.Key(row)); !ok || !reflect.DeepEqual(old, row) {
				tx.Insert(row)
			}
		}
		tx.All(func(row T) bool {
			if !keep[t.Key(row)] {
				tx.Delete(t.Key(row))
			}
			return true
		})
	})
}

// bring makes a cluster the intent.
func (r *kernelRig) bring(c *eval.Cluster) {
	var pods []state.Pod
	var attached []state.Endpoint
	r.kernel.addrs = map[string][]netip.Addr{}
	for _, p := range c.Pods {
		pods = append(pods, state.Pod{
			Namespace: p.Namespace, Name: p.Name, Node: p.Node, Addresses: p.Addresses, HostNetwork: p.HostNetwork, ServiceAccount: p.ServiceAccount,
			Labels: p.Labels, Ports: p.Ports, Audit: p.Audit,
		})
		if p.Node == self && !p.HostNetwork {
			e := state.Endpoint{
				ContainerID: p.Namespace + "." + p.Name, IfName: "eth0", Namespace: p.Namespace, Pod: p.Name, NetNS: "/x", Addresses: p.Addresses,
				Phase: state.EndpointReady,
			}
			attached = append(attached, e)
			r.kernel.addrs[e.Key()] = p.Addresses
		}
	}
	for a := range r.kernel.Endpoints {
		if !slices.ContainsFunc(attached, func(e state.Endpoint) bool { return slices.Contains(e.Addresses, a) }) {
			delete(r.kernel.Endpoints, a)
		}
	}
	same(r.st.Pods, pods)
	same(r.st.Endpoints, attached)
	var namespaces []state.Namespace
	for _, n := range c.Namespaces {
		namespaces = append(namespaces, state.Namespace{Name: n.Name, Labels: n.Labels, Mode: n.Mode, Audit: n.Audit})
	}
	same(r.st.Namespaces, namespaces)
	byRef := map[policy.Ref]*state.Policy{}
	for _, p := range c.Policies {
		if byRef[p.Ref] == nil {
			byRef[p.Ref] = &state.Policy{Ref: p.Ref}
		}
		byRef[p.Ref].Specs = append(byRef[p.Ref].Specs, p)
	}
	var policies []state.Policy
	for _, p := range byRef {
		policies = append(policies, *p)
	}
	same(r.st.Policies, policies)
	r.bringNodes(c)
	r.last = c
}

func (r *kernelRig) bringNodes(c *eval.Cluster) {
	var nodes []state.Node
	var remotes []state.Remote
	for _, n := range c.Nodes {
		nodes = append(nodes, state.Node{Name: n.Name, Addresses: n.Addresses, Labels: n.Labels})
		kind := state.RemoteNode
		if n.Name == self {
			kind = state.RemoteHost
		}
		for _, a := range n.Addresses {
			remotes = append(remotes, state.Remote{Prefix: host(a), Kind: kind, Node: n.Name})
		}
	}
	same(r.st.Nodes, nodes)
	same(r.st.Remotes, remotes)
	slice := func(name string, addrs []netip.Addr) state.EndpointSlice {
		ns, short := "default", "kubernetes"
		if name != apiServerService {
			ns, short = name[:1], name[2:]
		}
		s := state.EndpointSlice{Namespace: ns, Name: short, Service: state.ServiceName{Namespace: ns, Name: short}}
		for _, a := range addrs {
			s.Endpoints = append(s.Endpoints, state.SliceEndpoint{Address: a, Ready: true})
		}
		return s
	}
	endpoints := []state.EndpointSlice{slice(apiServerService, c.APIServers)}
	for _, s := range c.Services {
		endpoints = append(endpoints, slice(s.Name, s.Endpoints))
	}
	same(r.st.EndpointSlices, endpoints)
}

// settle lets the loop work until everything is in force, and with old programs gone.
func (r *kernelRig) settle() {
	r.t.Helper()
	ctx := context.Background()
	for range 2000 {
		r.loop.step(ctx, r.feeds)
		r.loop.retryAt = time.Time{}
		if !r.loop.unsettled {
			return
		}
	}
	r.t.Fatal("never settles")
}

// tidy lets time pass until nothing is left of what is not used.
func (r *kernelRig) tidy() {
	r.t.Helper()
	for range 3 {
		r.loop.peers.tidyAt = time.Time{}
		r.settle()
		for range 2000 {
			r.now = r.now.Add(2 * time.Second)
			if next, err := r.writer.Retire(context.Background()); err == nil && next.IsZero() {
				break
			}
		}
	}
}

func seedOf(t testing.TB) uint64 {
	s := uint64(time.Now().UnixNano())
	if text := os.Getenv("STRAIT_SEED"); text != "" {
		s, _ = strconv.ParseUint(text, 10, 64)
	}
	t.Logf("STRAIT_SEED=%d", s)
	return s
}

func casesOf(otherwise int) int {
	if n, err := strconv.Atoi(os.Getenv("STRAIT_CASES")); err == nil {
		return n
	}
	return otherwise
}

// POL: policies, labels, ports, services, modes and pods change at random, and one write in ten fails. After every single row each verdict is
// that of before or that of after, by the words of the documents; and in the end what the tables hold is only what is needed.
func TestNoVerdictBetweenBeforeAndAfter(t *testing.T) {
	seed, want := seedOf(t), casesOf(400)
	o := sample.Options{HostPolicy: true, Policies: 5, Pods: 6}
	changes, writes, failures := 0, 0, 0
	for i := uint64(0); changes < want && !t.Failed(); i++ {
		r := rand.New(rand.NewPCG(seed, i))
		c := sample.Cluster(r, o)
		rig := newKernelRig(t, c, roomy)
		rig.settle()
		rig.kernel.chance = r
		for n := range 25 {
			next := sample.Relabel(r, o, c)
			if r.IntN(2) == 0 {
				next = sample.Repolicy(r, o, c)
			}
			conns := sample.Connections(r, next, 8)
			expected := model.Expect(c, next, self, conns)
			look := func(what string) {
				for _, e := range expected {
					if err := e.Check(rig.kernel.Tables); err != nil {
						t.Fatalf("STRAIT_SEED=%d, cluster %d, change %d: after %s: %v\nbefore:\n%s\nafter:\n%s", seed, i, n, what, err, sample.Describe(c), sample.Describe(next))
					}
				}
			}
			rig.kernel.looked = look
			if r.IntN(8) == 0 {
				rig.tidy()
				before := rig.kernel.writes
				rig.start(c)
				rig.settle()
				if more := rig.kernel.writes - before; more != 0 {
					t.Fatalf("STRAIT_SEED=%d, cluster %d, change %d: %d writes by an agent that was killed and finds nothing changed", seed, i, n, more)
				}
			}
			rig.bring(next)
			if r.IntN(8) == 0 {
				rig.start(next) // an agent that was killed finds the change when it is back
			}
			rig.settle()
			for j := range expected {
				expected[j] = expected[j].Settled()
			}
			look("everything")
			if r.IntN(2) == 0 {
				rig.tidy()
				rig.nothingMore()
			}
			c, changes = next, changes+1
		}
		writes, failures = writes+rig.kernel.writes, failures+rig.kernel.failures
	}
	t.Logf("%d changes, %d writes, %d failures", changes, writes, failures)
}

// An agent that was killed finds other policies when it is back: until a pod has its new program it is judged by the old one as before, whoever
// its peers are by now.
func TestPoliciesChangeWhileTheAgentIsAway(t *testing.T) {
	before := shop()
	after := shop()
	after.Policies = append(after.Policies, onlyFrom("near", "app", "postgres"))
	after.Policies[0] = onlyFrom("db", "postgres", "app", "other")
	after.Pods = append(after.Pods, eval.Pod{
		Namespace: "shop", Name: "other", Node: "n2", Addresses: []netip.Addr{netip.MustParseAddr("10.244.2.9")}, Labels: policy.NewLabels(map[string]string{"app": "other"}),
	})
	r := newKernelRig(t, before, roomy)
	r.settle()
	var conns []eval.Connection
	for _, from := range []string{"10.244.2.1", "10.244.1.2", "10.244.1.1", "10.244.9.9", "8.8.8.8"} {
		for _, to := range []string{"10.244.1.1", "10.244.1.2"} {
			conns = append(conns, eval.Connection{From: netip.MustParseAddr(from), To: netip.MustParseAddr(to), Protocol: policy.TCP, Port: 80})
		}
	}
	expected := model.Expect(before, after, self, conns)
	r.kernel.looked = func(what string) {
		for _, e := range expected {
			if err := e.Check(r.kernel.Tables); err != nil {
				t.Fatalf("after %s: %v", what, err)
			}
		}
	}
	r.bring(after)
	r.start(after)
	r.settle()
	for i := range expected {
		expected[i] = expected[i].Settled()
	}
	r.kernel.looked("everything")
	r.tidy()
	r.nothingMore()
}

// nothingMore fails when the tables have programs or identities that nothing uses.
func (r *kernelRig) nothingMore() {
	r.t.Helper()
	used := map[policy.ID]bool{}
	for _, id := range r.kernel.Programs() {
		used[id] = true
	}
	had := map[uint64]bool{uint64(identity.Other): true, uint64(identity.Unanswered): true}
	for _, id := range r.kernel.identities {
		had[id] = true
	}
	tables := map[uint64]bool{}
	for k, e := range r.kernel.policies {
		tables[e.Table] = true
		if !used[policy.ID(k.Policy)] || !had[k.Identity] {
			r.t.Fatalf("row %+v is left of something: programs %v", k, used)
		}
	}
	for k := range r.kernel.ports {
		if !tables[k.Table] {
			r.t.Fatalf("port %+v is left of a table", k)
		}
	}
	if n := len(r.loop.peers.idents); n != len(r.loop.peers.inUse()) {
		r.t.Fatalf("%d identities are remembered, %d used", n, len(r.loop.peers.inUse()))
	}
}

func (p *peers) inUse() map[*ident]bool {
	used := map[*ident]bool{}
	for _, a := range p.areas {
		used[a.ident] = true
	}
	for _, h := range p.holders {
		for _, at := range h.at {
			used[at.ident] = true
		}
	}
	for _, id := range p.rows {
		used[id] = true
	}
	return used
}
