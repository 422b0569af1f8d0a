package control

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/strait-net/strait/internal/config"
	"github.com/strait-net/strait/internal/reconcile"
	"github.com/strait-net/strait/internal/state"
	"github.com/strait-net/strait/internal/table"
)

type serviceRig struct {
	st    *state.State
	loop  *Services
	feeds *feeds
}

func newServiceRig() *serviceRig {
	st := state.New()
	loop := NewServices(st, "me", config.Services{Algorithm: "random", Forwarding: "snat"}, quiet())
	return &serviceRig{st: st, loop: loop, feeds: loop.follow()}
}

func (r *serviceRig) step() { r.loop.step(r.feeds) }

func (r *serviceRig) dump() string {
	var lines []string
	for f := range r.st.Frontends.Snapshot().All() {
		line := fmt.Sprintf("%s %s of %s -> %s", f.Type, f.Key(), f.Service, targets(f.Backends))
		if f.InnerLocal {
			line += " (local)"
		}
		if f.OuterLocal {
			line += "; outside ->" + targets(f.OuterBackends)
		}
		lines = append(lines, fmt.Sprintf("%s %s %s %v %v", line, f.Algorithm, f.Forwarding, f.Affinity, f.SourceRanges))
	}
	for p := range r.st.Problems.Snapshot().All() {
		lines = append(lines, p.Subject+": "+p.Text)
	}
	return strings.Join(lines, "\n")
}

func targets(list []state.Backend) string {
	var out []string
	for _, b := range list {
		text := netip.AddrPortFrom(b.Address, b.Port).String()
		if b.Weight != 1 {
			text += fmt.Sprintf("*%d", b.Weight)
		}
		if b.Terminating {
			text += "(terminating)"
		}
		out = append(out, text)
	}
	return "[" + strings.Join(out, " ") + "]"
}

func svc(name, address string, age int64) state.Service {
	return state.Service{
		ServiceName: state.ServiceName{Namespace: "shop", Name: name}, Type: state.ClusterIP, Created: time.Unix(age, 0),
		ClusterIPs: []netip.Addr{netip.MustParseAddr(address)}, Ports: []state.ServicePort{{Name: "http", Port: 80, Protocol: state.TCP}},
	}
}

func endpoints(service, name string, addresses ...string) state.EndpointSlice {
	s := state.EndpointSlice{
		Namespace: "shop", Name: name, Service: state.ServiceName{Namespace: "shop", Name: service},
		Ports: []state.EndpointPort{{Name: "http", Port: 8080, Protocol: state.TCP}},
	}
	for _, a := range addresses {
		s.Endpoints = append(s.Endpoints, state.SliceEndpoint{Address: netip.MustParseAddr(a), Ready: true})
	}
	return s
}

func TestServiceRowsAreTouchedAlone(t *testing.T) {
	r := newServiceRig()
	for i := range 20 {
		r.st.Services.Insert(svc(fmt.Sprintf("s%02d", i), fmt.Sprintf("10.96.0.%d", i+1), 1))
		r.st.EndpointSlices.Insert(endpoints(fmt.Sprintf("s%02d", i), fmt.Sprintf("s%02d-x", i), "10.0.0.1"))
	}
	r.step()
	before := map[string]table.Revision{}
	for f := range r.st.Frontends.Snapshot().All() {
		_, before[f.Key()], _ = r.st.Frontends.Snapshot().Get(f.Key())
	}
	if len(before) != 20 {
		t.Fatalf("%d frontends", len(before))
	}
	r.st.EndpointSlices.Insert(endpoints("s07", "s07-x", "10.0.0.1", "10.0.0.2"))
	r.st.EndpointSlices.Insert(endpoints("s08", "s08-x", "10.0.0.1")) // says the same
	r.step()
	for key, rev := range before {
		_, now, _ := r.st.Frontends.Snapshot().Get(key)
		if changed := key == "10.96.0.8:80/TCP"; changed != (now != rev) {
			t.Errorf("%s: revision %d, was %d", key, now, rev)
		}
	}
	r.st.Services.Delete("shop/s07")
	r.step()
	if _, _, ok := r.st.Frontends.Snapshot().Get("10.96.0.8:80/TCP"); ok {
		t.Error("frontend outlives its service")
	}
}

func TestOlderServiceHasTheAddress(t *testing.T) {
	r := newServiceRig()
	r.st.Services.Insert(svc("young", "10.96.0.1", 9))
	r.st.EndpointSlices.Insert(endpoints("young", "y", "10.0.0.9"), endpoints("old", "o", "10.0.0.1"))
	r.step()
	r.st.Services.Insert(svc("old", "10.96.0.1", 1))
	r.step()
	want := "ClusterIP 10.96.0.1:80/TCP of shop/old -> [10.0.0.1:8080] random snat 0s []\n" +
		"service shop/young: 10.96.0.1:80/TCP belongs to service shop/old, which is older; this service does not get it"
	if got := r.dump(); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	r.st.Services.Delete("shop/old")
	r.step()
	if got, want := r.dump(), "ClusterIP 10.96.0.1:80/TCP of shop/young -> [10.0.0.9:8080] random snat 0s []"; got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestServicesLoop(t *testing.T) {
	st := state.New()
	loop := NewServices(st, "me", config.Services{}, quiet())
	st.Nodes.Register("test")()
	servicesDone, slicesDone := st.Services.Register("test"), st.EndpointSlices.Register("test")
	start(t, loop.Run)
	st.Services.Insert(svc("web", "10.96.0.1", 1))
	servicesDone()
	time.Sleep(20 * time.Millisecond)
	if st.Frontends.Snapshot().Len() != 0 {
		t.Fatal("a frontend without its slices would refuse connections")
	}
	st.EndpointSlices.Insert(endpoints("web", "x", "10.0.0.1"))
	slicesDone()
	<-st.Frontends.Initialized()
	key := "10.96.0.1:80/TCP"
	row, rev, ok := st.Frontends.Snapshot().Get(key)
	if !ok || len(row.Backends) != 1 {
		t.Fatalf("%+v", row)
	}
	if _, ok := st.Frontends.CompareAndSwap(row.WithStatus(reconcile.Status{Kind: reconcile.Done}), rev); !ok {
		t.Fatal("row changed meanwhile")
	}
	st.EndpointSlices.Insert(endpoints("web", "x", "10.0.0.1", "10.0.0.2"))
	eventually(t, "the second backend, pending", func() bool {
		row, _, _ := st.Frontends.Snapshot().Get(key)
		return len(row.Backends) == 2 && row.Kind == reconcile.Pending
	})
}

func BenchmarkOneEndpointOf10000Services(b *testing.B) {
	r := newServiceRig()
	for i := range 10000 {
		a := netip.AddrFrom4([4]byte{10, 96, byte(i >> 8), byte(i)}).String()
		r.st.Services.Insert(svc(fmt.Sprintf("s%d", i), a, 1))
		r.st.EndpointSlices.Insert(endpoints(fmt.Sprintf("s%d", i), fmt.Sprintf("x%d", i), "10.0.0.1"))
	}
	r.step()
	n := 0
	for b.Loop() {
		n++
		r.st.EndpointSlices.Insert(endpoints("s777", "x777", "10.0.0.1", fmt.Sprintf("10.0.1.%d", n%200)))
		r.step()
	}
}

func BenchmarkColdStart10000Services(b *testing.B) {
	var list []state.Service
	var all []state.EndpointSlice
	for i := range 10000 {
		a := netip.AddrFrom4([4]byte{10, 96, byte(i >> 8), byte(i)}).String()
		list = append(list, svc(fmt.Sprintf("s%d", i), a, 1))
		all = append(all, endpoints(fmt.Sprintf("s%d", i), fmt.Sprintf("x%d", i), "10.0.0.1", "10.0.0.2"))
	}
	for b.Loop() {
		r := newServiceRig()
		r.st.Services.Insert(list...)
		r.st.EndpointSlices.Insert(all...)
		r.step()
		if r.st.Frontends.Snapshot().Len() != 10000 {
			b.Fatal("rows missing")
		}
	}
}
