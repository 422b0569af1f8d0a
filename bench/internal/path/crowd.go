package path

import (
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"time"

	"github.com/strait-net/strait/bench/internal/kube"
	"github.com/strait-net/strait/bench/internal/node"
)

// The crowd is a cluster of Deployments: pods of ten applications in each of a hundred namespaces, a hundred pods to a node that nobody runs,
// and policies that let one application talk to another. A measured node has a few pods of the same kind, so that some of the policies, and
// with them some of the pods, are its business.
const (
	crowdSpaces   = 100
	crowdApps     = 10
	crowdPerNode  = 100
	crowdResident = 20 // pods on a measured node
)

func crowdSpace(i int) string { return fmt.Sprintf("crowd-%02d", i%crowdSpaces) }

func crowdLabels(i, version int) map[string]string {
	return map[string]string{"app": fmt.Sprintf("app-%d", i/crowdSpaces%crowdApps), "pod-template-hash": "7d4b9c8f6d", "version": strconv.Itoa(version)}
}

func crowdNode(k int) kube.Node {
	return kube.Node{Name: fmt.Sprintf("crowd-%04d", k), Addresses: []netip.Addr{netip.AddrFrom4([4]byte{172, 30, byte(128 + k/250), byte(2 + k%250)})},
		PodCIDRs: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(208 + k>>8), byte(k), 0}), 24)}}
}

func crowdPod(i, version int) kube.Pod {
	cidr := crowdNode(i / crowdPerNode).PodCIDRs[0].Addr().As4()
	cidr[3] = byte(2 + i%crowdPerNode)
	return kube.Pod{Namespace: crowdSpace(i), Name: fmt.Sprintf("server-7d4b9c8f6d-%06d", i), Node: crowdNode(i / crowdPerNode).Name, Labels: crowdLabels(i, version),
		Addresses: []netip.Addr{netip.AddrFrom4(cidr)}}
}

// crowdPolicy selects an application of a namespace and lets one of its own and one of another namespace talk to it.
func crowdPolicy(i int) kube.Policy {
	nth := i / crowdSpaces
	app := func(k int) map[string]string { return map[string]string{"app": fmt.Sprintf("app-%d", k%crowdApps)} }
	return kube.Policy{Namespace: crowdSpace(i), Name: fmt.Sprintf("policy-%05d", i), Pods: app(nth), Rules: []kube.Rule{
		{Pods: app(nth + 1), Port: 8080, Protocol: "TCP"},
		{Pods: app(nth + 2), Namespaces: map[string]string{"kubernetes.io/metadata.name": crowdSpace(i + 1 + nth)}, Port: 9090, Protocol: "TCP"},
	}}
}

// Gather makes the crowd one of so many pods and policies. Pods are never taken away.
func (c *Cluster) Gather(pods, policies int) error {
	ctx := c.site.ctx
	if c.crowd == 0 && c.crowdPolicies == 0 {
		var spaces []kube.Namespace
		for i := range crowdSpaces {
			spaces = append(spaces, kube.Namespace{Name: crowdSpace(i)})
		}
		if err := c.server.StoreNamespaces(ctx, spaces); err != nil {
			return err
		}
	}
	var nodes []kube.Node
	for k := (c.crowd + crowdPerNode - 1) / crowdPerNode; k*crowdPerNode < pods; k++ {
		nodes = append(nodes, crowdNode(k))
	}
	if err := c.server.StoreNodes(ctx, nodes); err != nil {
		return err
	}
	var more []kube.Pod
	for i := c.crowd; i < pods; i++ {
		more = append(more, crowdPod(i, 0))
	}
	c.crowd = max(c.crowd, pods)
	if err := c.server.StorePods(ctx, more); err != nil {
		return err
	}
	if policies < c.crowdPolicies {
		if err := c.server.DropPolicies(ctx, crowdPolicy(c.crowdPolicies-1)); err != nil {
			return err
		}
		c.crowdPolicies = 0
	}
	var list []kube.Policy
	for i := c.crowdPolicies; i < policies; i++ {
		list = append(list, crowdPolicy(i))
	}
	c.crowdPolicies = policies
	return c.server.StorePolicies(ctx, list)
}

// Crowded is what an agent uses in the crowd.
type Crowded struct {
	Started
	Idle    float64       // thousandths of a core
	Changed int           // pods whose labels were changed, in a way that no policy asks about
	Busy    time.Duration // CPU time for that
}

// Watching starts the daemon, gives its node a few pods of the crowd, and reads what it uses after a rest, then what changes of pods cost it.
func (m *Member) Watching(rest time.Duration) (out Crowded, err error) {
	begin := node.Now()
	if err := m.start(); err != nil {
		return out, err
	}
	if m.confList, err = m.cluster.site.admitted(m.Node); err != nil {
		return out, err
	}
	for i := range crowdResident {
		name := fmt.Sprintf("%s-%d", m.Name, i)
		m.label(name, crowdLabels(i*crowdSpaces+i, 0))
		if _, err := m.podsOf(crowdSpace(i), name); err != nil {
			return out, err
		}
	}
	out.Took = node.Now().Sub(begin)
	if out.CPU, err = m.used(); err != nil {
		return out, err
	}
	before, err := m.quiet()
	if err != nil {
		return out, err
	}
	time.Sleep(rest)
	after, err := m.used()
	if err != nil {
		return out, err
	}
	out.Idle = float64(after-before) / float64(rest) * 1000
	if out.RSS, err = m.memory("VmRSS"); err != nil {
		return out, err
	}
	if out.Peak, err = m.memory("VmHWM"); err != nil {
		return out, err
	}
	if out.Changed = min(m.cluster.crowd, 2000); out.Changed == 0 {
		return out, nil
	}
	m.cluster.version++
	var changed []kube.Pod
	for i := range out.Changed {
		changed = append(changed, crowdPod(i, m.cluster.version))
	}
	if err := m.cluster.server.StorePods(m.cluster.site.ctx, changed); err != nil {
		return out, err
	}
	busy, err := m.quiet()
	out.Busy = busy - after
	return out, err
}

// quiet waits until the daemon has had next to nothing to do for some seconds, and returns the CPU time it has used.
func (m *Member) quiet() (time.Duration, error) {
	const calm, little = 3, 20 * time.Millisecond // seconds in a row, CPU time in each
	last, err := m.used()
	for seconds, in := 0, 0; err == nil && in < calm && seconds < 180; seconds++ {
		time.Sleep(time.Second)
		var now time.Duration
		if now, err = m.used(); now-last <= little {
			in++
		} else {
			in = 0
		}
		last = now
	}
	return last, err
}

// Log is the last of what the daemon said.
func (m *Member) Log() string {
	text, err := os.ReadFile(m.cluster.site.log(m.Name))
	if err != nil {
		return err.Error()
	}
	return string(text[max(0, len(text)-2000):])
}
