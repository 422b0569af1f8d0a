package cli_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/strait-net/strait/internal/config"
	"github.com/strait-net/strait/internal/flow"
	"github.com/strait-net/strait/internal/observer"
	"github.com/strait-net/strait/internal/observer/wire"
	"github.com/strait-net/strait/internal/relay"
	"github.com/strait-net/strait/internal/state"
	"github.com/strait-net/strait/internal/testkit/authority"
)

// TestObserveServer asks a relay of nodes n1 and n2, and of n3 that does not answer.
func TestObserveServer(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 3)
	running := 0
	t.Cleanup(func() {
		cancel()
		for range running {
			if err := <-done; !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		}
	})
	run := func(serve func() error) {
		running++
		go func() { done <- serve() }()
	}
	listen := func(address string) net.Listener {
		l, err := net.Listen("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	ca := authority.New(t)
	certificates := func(name string) string {
		dir := t.TempDir()
		ca.Write(t, dir, name, 1)
		return dir
	}
	st := state.New()
	port := uint16(0)
	for i := 1; i <= 3; i++ {
		address := fmt.Sprint("127.0.0.", i)
		st.Nodes.Insert(state.Node{Name: fmt.Sprint("n", i), Addresses: []netip.Addr{netip.MustParseAddr(address)}})
		if i == 3 {
			break
		}
		l := listen(fmt.Sprint(address, ":", port))
		port = l.Addr().(*net.TCPAddr).AddrPort().Port()
		store := flow.NewStore(64)
		store.Append(now, exampleFlows(i))
		server := observer.New(observer.Config{Node: fmt.Sprint("n", i), Cluster: "default", Version: "v0.1.0", Began: ago(time.Hour), Flows: store, State: st, Port: port})
		run(func() error {
			return server.Serve(ctx, l, wire.NewCertificates(certificates(wire.ObserverName)).Server())
		})
	}
	st.Nodes.Register("test")()
	local, tls := listen("127.0.0.1:0"), listen("127.0.0.1:0") // taken for their ports
	at := config.Relay{Peer: fmt.Sprint("127.0.0.1:", port), Local: local.Addr().String(), Listen: tls.Addr().String(), TLSDir: certificates(wire.RelayName)}
	local.Close()
	tls.Close()
	observe := func(args ...string) (string, string, int) {
		return terminal{}.run(append([]string{"observe"}, args...)...)
	}
	if _, errs, code := observe("--server", at.Local); code != 3 || !strings.HasPrefix(errs, "strait: the relay at "+at.Local+" does not answer: ") {
		t.Errorf("without a relay: %d %s", code, errs)
	}
	run(func() error {
		return relay.Run(ctx, relay.Config{Relay: at, Name: "relay", Version: "v0.1.0", Log: slog.New(slog.DiscardHandler)})
	})
	want := `Nov 21 11:59:02.100 [n1]: shop/web-1:999 -> [2001:db8::1]:53 (world) UDP DROPPED: no free masquerade port for this destination
Nov 21 11:59:02.200 [n2]: shop/web-2:999 -> [2001:db8::1]:53 (world) UDP DROPPED: no free masquerade port for this destination
`
	missing := fmt.Sprintf("node n3 does not answer: dial tcp 127.0.0.3:%d: connect: connection refused\n", port)
	dir := certificates("client")
	for _, way := range [][]string{{"--server", at.Local}, {"--server", at.Listen, "--tls-dir", dir}} {
		var out, errs string
		var code int
		for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) { // until both are connected
			out, errs, code = observe(append(way, "--protocol", "udp", "--verdict", "dropped", "--last", "2")...)
			if time.Now().After(deadline) || errs == missing {
				break
			}
		}
		if lines := strings.SplitAfterN(out, "\n", 3); strings.Join(lines[:min(2, len(lines))], "") != want || errs != missing || code != 1 {
			t.Errorf("%v: exit code %d, %s%s", way, code, out, errs)
		}
	}
	if out, errs, code := observe("--server", at.Local, "--last", "1", "-o", "jsonpb"); !strings.HasPrefix(out, `{"flow":`) || strings.Count(out, "\n") > 3 || code != 1 || errs != missing {
		t.Errorf("for programs: %d %s%s", code, out, errs)
	}
	for _, tc := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"--server", at.Local, "--ip", "10.0.0.0/33"}, 2, `strait: whitelist[0].source_ip: "10.0.0.0/33": want an address or a CIDR`},
		{[]string{"--server", "relay"}, 2, `strait: --server "relay": want HOST:PORT: `},
		{[]string{"--server", "relay.example:4245"}, 2, "strait: --server relay.example:4245: without --tls-dir it has to be an address of this machine"},
		{[]string{"--server", at.Local, "--node", "n1"}, 2, "strait: --node and --server: the relay asks all nodes; want --node-name n1"},
		{[]string{"--tls-dir", dir}, 2, "strait: --tls-dir is for --server"},
		{[]string{"--server", at.Listen, "--tls-dir", t.TempDir()}, 3, "strait: the relay at " + at.Listen + " does not answer: "},
	} {
		if _, errs, code := observe(tc.args...); code != tc.code || !strings.HasPrefix(errs, tc.want) {
			t.Errorf("%v: exit code %d, %s; want %d, %s", tc.args, code, errs, tc.code, tc.want)
		}
	}
}
