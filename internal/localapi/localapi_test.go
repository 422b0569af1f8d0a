package localapi_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/strait-net/strait/internal/localapi"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func serve(t *testing.T, p localapi.Provider) *localapi.Client {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "run", "agent.sock")
	l, err := localapi.Listen(socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- localapi.Serve(ctx, l, p, slog.New(slog.DiscardHandler)) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("serve ended with %v", err)
		}
	})
	return localapi.NewClient(socket)
}

func TestAnswersTravelUnchanged(t *testing.T) {
	want := localapi.Status{
		Version: "v1", Node: "n1", State: localapi.Degraded, Since: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
		Problems: []localapi.Problem{{Severity: localapi.SeverityError, Subject: "map x", Text: "full", Action: "make it larger"}},
		Health:   localapi.ClusterHealth{Nodes: 2, Reachable: 1, Peers: []localapi.Peer{{Node: "n2", RTT: time.Millisecond}}},
	}
	limitSeen, fixSeen := -1, false
	c := serve(t, localapi.Provider{
		Status: func(context.Context) (localapi.Status, error) { return want, nil },
		DumpMap: func(_ context.Context, name string, limit int, _ ...string) (localapi.MapDump, error) {
			limitSeen = limit
			if name != "strait_ct" {
				return localapi.MapDump{}, fmt.Errorf("map %q: %w", name, localapi.ErrNotFound)
			}
			return localapi.MapDump{Name: name, Columns: []string{"k"}, Rows: [][]string{{"v"}}}, nil
		},
		CheckIPAM: func(_ context.Context, fix bool) (localapi.IPAMCheck, error) {
			fixSeen = fix
			return localapi.IPAMCheck{Checked: 3}, nil
		},
	})
	ctx := context.Background()
	got, err := c.Status(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("status changed on the way (-want +got):\n%s", diff)
	}
	if dump, err := c.DumpMap(ctx, "strait_ct", 7); err != nil || dump.Rows[0][0] != "v" || limitSeen != 7 {
		t.Errorf("dump = %+v, %v, limit %d", dump, err, limitSeen)
	}
	for _, name := range []string{"strait_no", "", "..", "a/b", "a?b"} {
		if _, err := c.DumpMap(ctx, name, 0); !errors.Is(err, localapi.ErrNotFound) {
			t.Errorf("dump of %q: %v, want ErrNotFound", name, err)
		}
	}
	if check, err := c.CheckIPAM(ctx, true); err != nil || check.Checked != 3 || !fixSeen {
		t.Errorf("check = %+v, %v, fix %v", check, err, fixSeen)
	}
	if _, err := c.CheckIPAM(ctx, false); err != nil || fixSeen {
		t.Errorf("check without fix: %v, fix %v", err, fixSeen)
	}
	if _, err := c.Nodes(ctx); !errors.Is(err, localapi.ErrNotOffered) || !strings.Contains(err.Error(), "/v1/nodes") {
		t.Errorf("nodes of a provider without them: %v", err)
	}
}

func TestServiceByName(t *testing.T) {
	c := serve(t, localapi.Provider{Service: func(_ context.Context, namespace, name string) (localapi.ServiceDetail, error) {
		if namespace+"/"+name != "shop/web" {
			return localapi.ServiceDetail{}, fmt.Errorf("service %s/%s: %w", namespace, name, localapi.ErrNotFound)
		}
		return localapi.ServiceDetail{Namespace: namespace, Name: name, Frontends: []localapi.Service{{Frontend: netip.MustParseAddrPort("[fd00::7]:80")}, {Note: "DNS"}}}, nil
	}})
	d, err := c.Service(context.Background(), "shop", "web")
	if err != nil || d.Name != "web" || d.Frontends[0].Frontend.Port() != 80 || d.Frontends[1].Frontend.IsValid() {
		t.Errorf("service = %+v, %v", d, err)
	}
	for _, name := range []string{"nothing", "", "..", "a/b", "a?b"} {
		if _, err := c.Service(context.Background(), "shop", name); !errors.Is(err, localapi.ErrNotFound) {
			t.Errorf("service %q: %v, want ErrNotFound", name, err)
		}
	}
	if _, err := serve(t, localapi.Provider{}).Service(context.Background(), "shop", "web"); !errors.Is(err, localapi.ErrNotOffered) {
		t.Errorf("a provider without services: %v", err)
	}
}

func TestAgentErrorIsTold(t *testing.T) {
	c := serve(t, localapi.Provider{
		Status: func(context.Context) (localapi.Status, error) {
			return localapi.Status{}, errors.New("read map strait_ct: no")
		},
	})
	if _, err := c.Status(context.Background()); err == nil || err.Error() != "read map strait_ct: no" {
		t.Errorf("err = %v", err)
	}
}

func TestRequestsThatAreRefused(t *testing.T) {
	h := localapi.Handler(localapi.Provider{
		DumpMap: func(context.Context, string, int, ...string) (localapi.MapDump, error) {
			return localapi.MapDump{}, nil
		},
	})
	for _, tc := range []struct {
		method, path string
		code         int
		text         string
	}{
		{"GET", "/v1/nothing", 404, "no such path: GET /v1/nothing"},
		{"GET", "/v1/maps/x?limit=-1", 400, `limit \"-1\"`},
		{"GET", "/v1/maps/x?limit=1z", 400, `limit \"1z\"`},
		{"GET", "/v1/maps/x?limit=many", 400, `limit \"many\"`},
		{"GET", "/v1/ipam/check", 501, "not offered"},
	} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(tc.method, tc.path, http.NoBody))
		body, _ := io.ReadAll(w.Body)
		if w.Code != tc.code || !strings.Contains(string(body), tc.text) {
			t.Errorf("%s %s = %d %s, want %d with %q", tc.method, tc.path, w.Code, body, tc.code, tc.text)
		}
	}
}

func TestListen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "agent.sock")
	l, err := localapi.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("socket mode = %v, %v", fi.Mode(), err)
	}
	if _, err := localapi.Listen(path); err == nil {
		t.Error("a second agent took the socket of a living one")
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false) // as after kill -9
	l.Close()
	again, err := localapi.Listen(path)
	if err != nil {
		t.Fatalf("stale socket not replaced: %v", err)
	}
	again.Close()
}
