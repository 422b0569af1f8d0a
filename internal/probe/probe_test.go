package probe_test

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/strait-net/strait/internal/probe"
	"github.com/strait-net/strait/internal/state"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestProber(t *testing.T) {
	sick := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(503) }))
	defer sick.Close()
	u, err := url.Parse(sick.URL)
	if err != nil {
		t.Fatal(err)
	}
	nodes := state.NewNodes()
	at := func(name string, addresses ...string) state.Node {
		n := state.Node{Name: name}
		for _, a := range addresses {
			n.Addresses = append(n.Addresses, netip.MustParseAddr(a))
		}
		return n
	}
	nodes.Insert(at("self"), at("answers", "127.0.0.1"), at("second", "127.0.0.9", "127.0.0.1"), at("down", "127.0.0.9"), at("bare"))
	p := probe.New(probe.Config{Nodes: nodes, Self: "self", Port: u.Port(), Every: time.Hour, Timeout: 10 * time.Second})
	if h := p.Health(); h.Nodes != 5 || h.Reachable != 1 || !h.Peers[0].Checked.IsZero() {
		t.Errorf("before the first round: %+v", h)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	defer func() { cancel(); <-done }()

	wait(t, func() bool { return p.Health().Reachable == 3 && !p.Health().Peers[2].Checked.IsZero() })
	want := map[string]string{"answers": "", "second": "", "down": "connect: connection refused", "bare": "the node has no address"}
	for _, peer := range p.Peers() {
		if peer.Error != want[peer.Node] || peer.Reachable != (want[peer.Node] == "") {
			t.Errorf("%s: %+v", peer.Node, peer)
		}
		if peer.Node == "second" && peer.Address != net.JoinHostPort("127.0.0.1", u.Port()) {
			t.Errorf("second answered at %s", peer.Address)
		}
	}

	nodes.Delete("down", "bare") // a change starts a round at once, not in an hour
	nodes.Insert(at("new", "127.0.0.1"))
	wait(t, func() bool { return p.Health().Reachable == 4 })
	if h := p.Health(); h.Nodes != 4 {
		t.Errorf("removed nodes are still counted: %+v", h)
	}
}

func wait(t *testing.T, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatal("did not happen in 30 s")
}
