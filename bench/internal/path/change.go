package path

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/strait-net/strait/bench/internal/kube"
	"github.com/strait-net/strait/bench/internal/node"
)

// minSync is kube-proxy's default minSyncPeriod and a little: a change on a cluster that is otherwise quiet is not delayed by it.
const minSync = 1100 * time.Millisecond

// Changed is what changes of an EndpointSlice took.
type Changed struct {
	// Took is from sending the write to the API server until a pod's connection through the service reached the new endpoint.
	Took []time.Duration
	// Written is how much of that passed until the API server had answered the write.
	Written []time.Duration
}

// changePorts are the endpoints that changes alternate between, told apart by their answers.
func changePorts() [2]int { return [2]int{8081, 8082} }

// Changes writes an EndpointSlice again and again, with the other endpoint each time, until count changes or the budget are used up.
func (m *Member) Changes(count int, budget time.Duration) (out Changed, err error) {
	c := m.cluster
	made, err := m.pods("change-client", "change-server")
	if err != nil {
		return out, err
	}
	ports := changePorts()
	if err := m.Answer(node.Answer{Pod: "change-server", Ports: ports[:]}); err != nil {
		return out, err
	}
	c.services++
	s := kube.Service{Name: "change-" + m.Name, Addresses: map[int]netip.Addr{4: netip.AddrFrom4([4]byte{10, 96, 1, byte(c.services)})},
		Ports: []kube.Port{{Number: 80, Target: ports[1], Protocol: "TCP"}}}
	endpoint := kube.Endpoint{Address: made[1].address[4], Node: m.Name}
	if err := c.server.Publish(c.site.ctx, s, map[int]netip.Addr{4: endpoint.Address}, m.Name); err != nil {
		return out, err
	}
	end := time.Now().Add(budget)
	for i := 0; i <= count && (i < 3 || time.Now().Before(end)) && c.site.ctx.Err() == nil; i++ {
		s.Ports[0].Target = ports[i%2]
		took, written, err := m.change(s, endpoint)
		if err != nil {
			return out, fmt.Errorf("change %d of endpoints on %s: %w", i, m.Name, err)
		}
		if i > 0 { // the first also waits for the service itself
			out.Took, out.Written = append(out.Took, took), append(out.Written, written)
		}
		if m.System.Proxy != "" {
			time.Sleep(minSync)
		} else {
			time.Sleep(time.Duration(10+i%17) * time.Millisecond) // in step with no timer
		}
	}
	for _, path := range []string{kube.SlicePath + "/" + s.SliceName(4), kube.ServicePath + "/" + s.Name} {
		if err := c.server.Delete(c.site.ctx, path); err != nil {
			return out, err
		}
	}
	return out, c.site.ctx.Err()
}

func (m *Member) change(s kube.Service, endpoint kube.Endpoint) (took, written time.Duration, err error) {
	c := m.cluster
	reached := m.watch(node.Watch{Pod: "change-client", Targets: []netip.AddrPort{netip.AddrPortFrom(s.Addresses[4], 80)},
		Want: byte(s.Ports[0].Target), Every: 500 * time.Microsecond, Patience: 50 * time.Millisecond, Timeout: 2 * time.Minute})
	time.Sleep(2 * time.Millisecond) // the client is under way and sees the old endpoint
	begin := node.Now()
	if err := c.server.Replace(c.site.ctx, kube.SlicePath+"/"+s.SliceName(4), s.Slice(4, endpoint)); err != nil {
		return 0, 0, err
	}
	written = node.Now().Sub(begin)
	a := <-reached
	return a.at.Sub(begin), written, a.err
}
