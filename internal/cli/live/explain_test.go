package live

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/strait-net/strait/internal/testkit"
)

// CLI-4, typed on nodes: what a node knows of a path, and where it says to ask for the rest.
func TestExplain(t *testing.T) {
	s := newShop(t)
	s.settled(t)
	first, second := s.c.Nodes[0], s.c.Nodes[1]
	s.c.ApplyService("echo", 80, []netip.Addr{netip.MustParseAddr("10.96.0.50")}, sqlPort, s.other.IPv4)
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		out, _ := strait(t, second, "service", "list")
		if strings.Contains(out, "10.96.0.50:80") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the service does not appear:\n%s", out)
		}
	}
	other := s.other.String()
	whole := newOutside(t, s.c)
	for _, tc := range []struct {
		on   *testkit.Node // nil: outside
		args []string
		code int
		want []string
	}{
		{second, []string{"shop/batch-1", other + ":5432"}, 0, []string{"strait_from_pod on st", "a socket takes", "Back", "Delivered, and so is the answer"}},
		{second, []string{"shop/batch-1", other + ":sql", "--ipv6"}, 0, []string{s.other.IPv6.String(), "Delivered"}},
		{second, []string{"shop/batch-1", other}, 0, []string{"an echo request", "Delivered"}},
		{second, []string{"shop/batch-1", "svc/echo:80"}, 0, []string{"is given backend " + testkit.HostPort(s.other.IPv4, sqlPort), "Delivered"}},
		{second, []string{"host", other + ":5432"}, 0, []string{"strait_to_pod on st", "Delivered"}},
		{second, []string{"shop/batch-1", other + ":9"}, 1, []string{"REFUSED: nobody listens on TCP port 9", "strait enter " + other}},
		{second, []string{other, "shop/batch-1:5432"}, 1, []string{"ClusterNetworkPolicy tenants", "DROPPED", "strait policy verdict " + other + " shop/batch-1:5432", "Dropped here because"}},
		{second, []string{other, "shop/batch-1:5432", "--diagram"}, 1, []string{"┌", "pod " + other, "✗ DROPPED at strait_from_pod", "shop/batch-1  " + s.batch.IPv4.String() + ": not reached"}},
		{second, []string{"shop/web-1", "shop/db-0:5432"}, 2, []string{"strait_vxlan", "the rest is known only on node " + first.Name, "strait explain shop/web-1 shop/db-0:5432"}},
		{first, []string{"shop/web-1", "shop/db-0:5432"}, 2, []string{"its beginning is known only on node " + second.Name, "node " + first.Name + ", by the tunnel", "a socket takes",
			"policy: ingress of pod shop/db-0 allowed from pod shop/web-1 by NetworkPolicy shop/db spec.ingress[0]", "the rest is known only on node " + second.Name}},
		{first, []string{"shop/batch-1", "shop/db-0:5432"}, 1, []string{"NetworkPolicy shop/db", "Dropped here because"}},
		{first, []string{"shop/batch-1", other + ":5432"}, 2, []string{"the path begins on node " + second.Name}},
		{nil, []string{"shop/web-1", "shop/db-0:sql"}, 0, []string{"node " + second.Name + "\n", "node " + first.Name + ", by the tunnel", "ingress of pod shop/db-0 allowed from", "Delivered, and so is the answer"}},
		{nil, []string{"shop/web-1", "shop/db-0:sql", "--diagram"}, 0, []string{"║ tunnel", "▲", "pod shop/db-0"}},
		{nil, []string{"shop/web-1", testkit.OutsideAddr(false).String(), "--diagram"}, 0, []string{"outside", testkit.OutsideAddr(false).String()}},
		{nil, []string{"shop/batch-1", "shop/db-0:5432"}, 1, []string{"NetworkPolicy shop/db", "strait policy verdict shop/batch-1 shop/db-0:5432"}},
		{nil, []string{"shop/batch-1", "shop/db-0:5432", "--diagram"}, 1, []string{"✗ DROPPED at strait_from_vx", "not reached"}},
		{nil, []string{"shop/web-1", first.Name}, 0, []string{"Delivered"}},
	} {
		began, on, run := time.Now(), "the outside", whole.strait
		if tc.on != nil {
			on, run = tc.on.Name, func(args ...string) (string, int) { return strait(t, tc.on, args...) }
		}
		out, code := run(append([]string{"explain"}, tc.args...)...)
		t.Logf("strait explain %s on %s took %v:\n%s", strings.Join(tc.args, " "), on, time.Since(began).Round(time.Millisecond), out)
		if code != tc.code {
			t.Errorf("strait explain %v on %s = %d, want %d\n%s", tc.args, on, code, tc.code, out)
		}
		for _, want := range tc.want {
			if !strings.Contains(out, want) {
				t.Errorf("strait explain %v on %s does not say %q:\n%s", tc.args, on, want, out)
			}
		}
	}
}
