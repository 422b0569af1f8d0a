package healthcheck

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/strait-net/strait/internal/datapath/nstest"
	"github.com/strait-net/strait/internal/state"
)

func TestMain(m *testing.M) { nstest.Main(m) }

const self = "node-1"

func ready(node string, addresses ...string) (out []state.SliceEndpoint) {
	for _, a := range addresses {
		out = append(out, state.SliceEndpoint{Address: netip.MustParseAddr(a), Node: node, Ready: true, Serving: true})
	}
	return out
}

func TestLocalEndpoints(t *testing.T) {
	terminating := state.SliceEndpoint{Address: netip.MustParseAddr("10.0.0.9"), Node: self, Serving: true, Terminating: true}
	for _, c := range []struct {
		name   string
		slices []state.EndpointSlice
		want   int
	}{
		{"none", nil, 0},
		{"of another node", []state.EndpointSlice{{Endpoints: ready("node-2", "10.0.1.1")}}, 0},
		{"two here, one elsewhere", []state.EndpointSlice{{Endpoints: append(ready(self, "10.0.0.1", "10.0.0.2"), ready("node-2", "10.0.1.1")...)}}, 2},
		{"one pod in two slices, as with different named ports", []state.EndpointSlice{{Endpoints: ready(self, "10.0.0.1")}, {Endpoints: ready(self, "10.0.0.1")}}, 1},
		{"dual-stack", []state.EndpointSlice{{Endpoints: ready(self, "10.0.0.1", "10.0.0.2")}, {Endpoints: ready(self, "fd00::1", "fd00::2")}}, 2},
		{"terminating only", []state.EndpointSlice{{Endpoints: []state.SliceEndpoint{terminating}}}, 0},
		{"not ready", []state.EndpointSlice{{Endpoints: []state.SliceEndpoint{{Address: netip.MustParseAddr("10.0.0.1"), Node: self}}}}, 0},
	} {
		if got := local(self, c.slices); got != c.want {
			t.Errorf("%s: %d, want %d", c.name, got, c.want)
		}
	}
}

// rig runs the servers on tables that the test writes.
type rig struct {
	t       *testing.T
	state   *state.State
	healthy atomic.Bool
}

func newRig(t *testing.T) *rig {
	t.Helper()
	nstest.Root(t)
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, state: state.New()}
	r.healthy.Store(true)
	for _, done := range []func(){r.state.Services.Register("test"), r.state.EndpointSlices.Register("test")} {
		done()
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = New(Config{
			Node: self, State: r.state, Healthy: r.healthy.Load, Log: slog.New(slog.DiscardHandler), Retry: 50 * time.Millisecond,
		}).Run(ctx)
	}()
	t.Cleanup(func() { stop(); <-ended; http.DefaultClient.CloseIdleConnections() })
	return r
}

func (r *rig) service(name string, port uint16) {
	r.state.Services.Insert(state.Service{
		ServiceName: state.ServiceName{Namespace: "shop", Name: name}, Type: state.LoadBalancer, ExternalPolicy: state.PolicyLocal, HealthCheckNodePort: port,
	})
}

func (r *rig) slice(service string, endpoints ...state.SliceEndpoint) {
	r.state.EndpointSlices.Insert(state.EndpointSlice{
		Namespace: "shop", Name: "slice", Service: state.ServiceName{Namespace: "shop", Name: service}, Endpoints: endpoints,
	})
}

func (r *rig) get(host string, port uint16) (status int, header http.Header, body string, err error) {
	resp, err := http.Get("http://" + net.JoinHostPort(host, fmt.Sprint(port)) + "/healthz")
	if err != nil {
		return 0, nil, "", err
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	return resp.StatusCode, resp.Header, string(raw), err
}

func (r *rig) await(what string, ok func() bool) {
	r.t.Helper()
	for deadline := time.Now().Add(5 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			r.t.Fatalf("%s: does not happen", what)
		}
	}
}

func (r *rig) status(port uint16, want int) {
	r.t.Helper()
	r.await(fmt.Sprintf("status %d on port %d", want, port), func() bool {
		got, _, _, err := r.get("127.0.0.1", port)
		return err == nil && got == want
	})
}

func (r *rig) refused(port uint16) {
	r.t.Helper()
	r.await(fmt.Sprintf("port %d closed", port), func() bool {
		_, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		return err != nil && strings.Contains(err.Error(), "refused")
	})
}

// SVC-3: the words of kube-proxy 1.36, on addresses of both families.
func TestAnswer(t *testing.T) {
	r := newRig(t)
	r.service("web", 31000)
	r.slice("web", ready(self, "10.0.0.1", "10.0.0.2")...)
	r.status(31000, http.StatusOK)
	const want = "{\n\t\"service\": {\n\t\t\"namespace\": \"shop\",\n\t\t\"name\": \"web\"\n\t},\n\t\"localEndpoints\": 2,\n\t\"serviceProxyHealthy\": true\n}"
	for _, host := range []string{"127.0.0.1", "::1"} {
		status, header, body, err := r.get(host, 31000)
		if err != nil || status != http.StatusOK || body != want || header.Get("Content-Type") != "application/json" ||
			header.Get("X-Content-Type-Options") != "nosniff" || header.Get("X-Load-Balancing-Endpoint-Weight") != "2" {
			t.Errorf("%s: %d %v %s, %v", host, status, header, body, err)
		}
	}
	r.slice("web", ready("node-2", "10.0.1.1")...)
	r.status(31000, http.StatusServiceUnavailable)
	if _, header, body, _ := r.get("::1", 31000); header.Get("X-Load-Balancing-Endpoint-Weight") != "0" || !strings.Contains(body, `"localEndpoints": 0`) {
		t.Errorf("%v %s", header, body)
	}
	r.slice("web", ready(self, "10.0.0.1")...)
	r.status(31000, http.StatusOK)
	r.healthy.Store(false)
	r.status(31000, http.StatusServiceUnavailable)
	if _, _, body, _ := r.get("::1", 31000); !strings.Contains(body, `"serviceProxyHealthy": false`) {
		t.Errorf("%s", body)
	}
}

// Ports open and close with their services; endpoints are those of the service whose label the slice has.
func TestFollow(t *testing.T) {
	r := newRig(t)
	r.service("web", 31000)
	r.service("api", 31001)
	r.slice("web", ready(self, "10.0.0.1")...)
	r.status(31000, http.StatusOK)
	r.status(31001, http.StatusServiceUnavailable)
	r.slice("api", ready(self, "10.0.0.1")...)
	r.status(31000, http.StatusServiceUnavailable)
	r.status(31001, http.StatusOK)
	r.service("web", 31002)
	r.refused(31000)
	r.status(31002, http.StatusServiceUnavailable)
	r.state.Services.Delete("shop/web")
	r.refused(31002)
	r.service("new", 31002)
	r.status(31002, http.StatusServiceUnavailable)
	svc, _, _ := r.state.Services.Snapshot().Get("shop/api")
	svc.ExternalPolicy = state.PolicyCluster
	r.state.Services.Insert(svc)
	r.refused(31001)
	if n := r.state.Problems.Snapshot().Len(); n != 0 {
		t.Errorf("%d problems", n)
	}
}

func TestPortInUseIsAProblemAndRetried(t *testing.T) {
	r := newRig(t)
	taken, err := net.Listen("tcp", ":31000")
	if err != nil {
		t.Fatal(err)
	}
	r.service("web", 31000)
	r.slice("web", ready(self, "10.0.0.1")...)
	problem := func() (state.Problem, bool) {
		p, _, ok := r.state.Problems.Snapshot().Get("health checks/service shop/web")
		return p, ok
	}
	r.await("a problem", func() bool { _, ok := problem(); return ok })
	if p, _ := problem(); !strings.Contains(p.Text, "healthCheckNodePort 31000") || !strings.Contains(p.Text, "address already in use") {
		t.Errorf("%s", p.Text)
	}
	taken.Close()
	r.status(31000, http.StatusOK)
	r.await("no problem", func() bool { _, ok := problem(); return !ok })
}
