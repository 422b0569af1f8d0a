package maps

import (
	"net/netip"
	"testing"

	"github.com/strait-net/strait/internal/bpf"
	"github.com/strait-net/strait/internal/takeover"
)

func at(text string) netip.AddrPort { return netip.MustParseAddrPort(text) }

// ctEntry reads the entry of two ends.
func ctEntry(t *testing.T, m *Maps, from, to string) (e bpf.CtEntry, ok bool) {
	t.Helper()
	k, _ := ctKey(at(from), at(to), 6)
	e, ok, err := lookup[bpf.CtEntry](m, bpf.DatapathMapStraitCt, k)
	if err != nil {
		t.Fatal(err)
	}
	return e, ok
}

// A connection that kept the client's address: the client's entry knows the backend, the backend's knows the front.
func TestImportKeepingTheClient(t *testing.T) {
	m := open(t)
	c := takeover.Connection{
		Protocol: 6, Client: at("10.244.1.9:4000"), Front: at("10.96.0.20:80"), Backend: at("10.244.2.7:8080"), ID: 3, Generation: 7,
		Ends: true, Replied: true,
	}
	// What to_pod has entered while the stack translated: begun, as it seemed, by the service.
	k, high := ctKey(c.Front, c.Client, 6)
	begun := bpf.CtEntry{Began: 5, Packets: [2]uint64{11, 22}, Flags: bpf.CtStack}
	if high {
		begun.Flags |= bpf.CtHiBegan
	}
	if err := put(m, bpf.DatapathMapStraitCt, k, begun); err != nil {
		t.Fatal(err)
	}
	// The backend is outside the cluster: the programs have masqueraded.
	k, _ = ctKey(c.Client, c.Backend, 6)
	if err := put(m, bpf.DatapathMapStraitCt, k, bpf.CtEntry{Flags: bpf.CtStack | bpf.CtNat, NatPort: 9}); err != nil {
		t.Fatal(err)
	}
	for _, stack := range []bool{true, false} {
		if err := m.Import([]takeover.Connection{c}, stack); err != nil {
			t.Fatal(err)
		}
		e, ok := ctEntry(t, m, "10.244.1.9:4000", "10.96.0.20:80")
		want := bpf.CtService | bpf.CtReplied | bpf.CtHiBegan
		if stack {
			want |= bpf.CtStack
		}
		if !ok || e.Flags != want || e.Backend != 3 || e.BackendGen != 7 || e.Began != 5 || e.Packets != begun.Packets || e.LastSeen == 0 {
			t.Errorf("stack %v: client's entry: %v %+v", stack, ok, e)
		}
	}
	e, ok := ctEntry(t, m, "10.244.1.9:4000", "10.244.2.7:8080")
	if !ok || e.Flags != bpf.CtFront|bpf.CtReplied|bpf.CtNat || e.NatPort != 9 || e.FrontAddr.Netip() != c.Front.Addr() || bpf.NetPort(e.FrontPort) != 80 || e.Backend != 0 {
		t.Errorf("backend's entry: %v %+v", ok, e)
	}
	if n, err := m.Served(); err != nil || n != 1 {
		t.Errorf("served %d, %v", n, err)
	}
	// Nothing is the stack's any more; if it were, it would be forgotten.
	front := func(end netip.AddrPort, protocol uint8) bool { return end == c.Front && protocol == 6 }
	for _, stack := range []bool{false, true} {
		if err := m.Import([]takeover.Connection{c}, stack); err != nil {
			t.Fatal(err)
		}
		if err := m.LeaveStack(front); err != nil {
			t.Fatal(err)
		}
		if _, ok := ctEntry(t, m, "10.244.1.9:4000", "10.96.0.20:80"); ok == stack {
			t.Errorf("stack %v: entry is there: %v", stack, ok)
		}
	}
	if found, err := m.HasImports(10000, 29999); err != nil || found {
		t.Errorf("imports %v, %v", found, err)
	}
}

// A masqueraded one: the way back is a mapping, at whatever port the stack has chosen.
func TestImportMasqueraded(t *testing.T) {
	m := open(t)
	c := takeover.Connection{
		Protocol: 6, Client: at("172.19.0.2:5000"), Front: at("172.18.0.11:30080"), Backend: at("10.244.2.7:8080"), ID: 3, Generation: 7,
		Masquerade: at("172.18.0.11:61234"),
	}
	if err := m.Import([]takeover.Connection{c}, false); err != nil {
		t.Fatal(err)
	}
	e, ok := ctEntry(t, m, "172.19.0.2:5000", "172.18.0.11:30080")
	// The client has the higher address.
	if !ok || e.Flags != bpf.CtService|bpf.CtNat|bpf.CtHiBegan || e.NatAddr.Netip() != c.Masquerade.Addr() || bpf.NetPort(e.NatPort) != 61234 {
		t.Errorf("client's entry: %v %+v", ok, e)
	}
	if _, ok := ctEntry(t, m, "172.19.0.2:5000", "10.244.2.7:8080"); ok {
		t.Error("an entry of client and backend, who do not know each other")
	}
	n, ok, err := lookup[bpf.NatEntry](m, bpf.DatapathMapStraitNat, bpf.NatKey{
		Remote: bpf.AddrFrom(c.Backend.Addr()), RemotePort: bpf.NetPort(8080), Node: bpf.AddrFrom(c.Masquerade.Addr()), NodePort: bpf.NetPort(61234), Proto: 6,
	})
	if err != nil || !ok || n.Client.Netip() != c.Client.Addr() || bpf.NetPort(n.ClientPort) != 5000 ||
		n.FrontAddr.Netip() != c.Front.Addr() || bpf.NetPort(n.FrontPort) != 30080 {
		t.Errorf("way back: %v %+v %v", ok, n, err)
	}
	for _, r := range []struct {
		lo, hi uint16
		want   bool
	}{{10000, 29999, true}, {60000, 62000, false}} {
		if found, err := m.HasImports(r.lo, r.hi); err != nil || found != r.want {
			t.Errorf("imports outside %d-%d: %v, %v", r.lo, r.hi, found, err)
		}
	}
	// Neither a sweep takes it for a leftover, nor does it outlive its connection.
	if err := m.PutBackend(3, Backend{AddrPort: c.Backend, Protocol: 6, Generation: 7}); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if s, err := m.Sweep(); err != nil || s.Orphans != 0 || s.Expired != 0 {
			t.Fatalf("sweep: %+v, %v", s, err)
		}
	}
	k, _ := ctKey(c.Client, c.Front, 6)
	if err := remove(m, bpf.DatapathMapStraitCt, k); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, err := m.Sweep(); err != nil {
			t.Fatal(err)
		}
	}
	if found, err := m.HasImports(10000, 29999); err != nil || found {
		t.Errorf("after the connection has gone: imports %v, %v", found, err)
	}
}
