package endpoint

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/strait-net/strait/internal/cni/wire"
	"github.com/strait-net/strait/internal/datapath/netdev"
	"github.com/strait-net/strait/internal/state"
)

func mustAdd(t *testing.T, l *life, id string) state.Endpoint {
	t.Helper()
	ep, err := l.k.Add(t.Context(), attachment(id))
	if err != nil {
		t.Fatal(err)
	}
	return ep
}

func mustDel(t *testing.T, l *life, id string) {
	t.Helper()
	if err := l.k.Del(t.Context(), attachment(id)); err != nil {
		t.Fatal(err)
	}
}

func wantCode(t *testing.T, err error, code uint, text string) {
	t.Helper()
	if err == nil || wire.Code(err) != code || !strings.Contains(err.Error(), text) {
		t.Errorf("error %v with code %d, want code %d and %q", err, wire.Code(err), code, text)
	}
}

func TestAddCheckDel(t *testing.T) {
	b := newBench(t)
	l := b.start()
	ep := mustAdd(t, l, "a")
	if len(ep.Addresses) != 2 || ep.MTU != testMTU || ep.Pod != "pod-a" || ep.DeviceIndex == 0 || ep.PodMAC.String() == ep.HostMAC.String() {
		t.Errorf("endpoint %+v", ep)
	}
	b.consistent(l, "a")
	if err := l.k.Check(t.Context(), attachment("a"), ep.Addresses); err != nil {
		t.Error(err)
	}
	again := mustAdd(t, l, "a")
	if fmt.Sprint(again) != fmt.Sprint(ep) {
		t.Errorf("ADD again gives %+v, want %+v", again, ep)
	}
	mustDel(t, l, "a")
	mustDel(t, l, "a")
	b.consistent(l)
	other := mustAdd(t, l, "b")
	if other.Addresses[0] == ep.Addresses[0] {
		t.Errorf("%v is given out again before its cool-down is over", ep.Addresses[0])
	}
}

func TestAddRefuses(t *testing.T) {
	b := newBench(t)
	l := b.boot()
	_, err := l.k.Add(t.Context(), attachment("a"))
	wantCode(t, err, types.ErrTryAgainLater, "not restored yet")
	if err := l.k.Restore(t.Context()); err != nil {
		t.Fatal(err)
	}
	_, err = l.k.Add(t.Context(), attachment("a"))
	wantCode(t, err, types.ErrTryAgainLater, "MTU")
	if err := l.k.SetMTU(t.Context(), testMTU); err != nil {
		t.Fatal(err)
	}
	_, err = l.k.Add(t.Context(), attachment("a"))
	wantCode(t, err, types.ErrTryAgainLater, "no pod CIDR yet")
	if err := l.k.SetPools([]netip.Prefix{netip.MustParsePrefix("10.0.0.0/30")}); err != nil {
		t.Fatal(err)
	}

	own := attachment("own")
	own.NetNS = "/proc/thread-self/ns/net"
	_, err = l.k.Add(t.Context(), own)
	wantCode(t, err, types.ErrInvalidNetNS, "node's own")
	file := attachment("file")
	file.NetNS = filepath.Join(t.TempDir(), "netns")
	_, err = l.k.Add(t.Context(), file)
	wantCode(t, err, types.ErrInvalidNetNS, file.NetNS)
	if err := os.WriteFile(file.NetNS, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = l.k.Add(t.Context(), file)
	wantCode(t, err, types.ErrInvalidNetNS, "ordinary file")

	mustAdd(t, l, "a")
	mustAdd(t, l, "b")
	_, err = l.k.Add(t.Context(), attachment("c"))
	wantCode(t, err, types.ErrTryAgainLater, "pool 10.0.0.0/30 is exhausted: 2 in use")
	if err := l.k.Status(t.Context()); err == nil || !strings.Contains(err.Error(), "exhausted") {
		t.Errorf("Status: %v, want the pool exhausted", err)
	}
	moved := attachment("a")
	moved.NetNS = "/proc/self/ns/uts"
	_, err = l.k.Add(t.Context(), moved)
	wantCode(t, err, types.ErrInvalidEnvironmentVariables, "attached already")
	b.consistent(l, "a", "b")
}

func TestCheckListsDifferences(t *testing.T) {
	b := newBench(t)
	l := b.start()
	ep := mustAdd(t, l, "a")
	wantCode(t, l.k.Check(t.Context(), attachment("x"), nil), types.ErrUnknownContainer, "not attached")

	b.kernel.entries[ep.Addresses[0]] = entry(l.k.get("a/eth0"), 99, ep.Addresses[0])
	delete(b.kernel.entries, ep.Addresses[1])
	delete(b.kernel.programs, ep.Device)
	d := b.kernel.devices[ep.Device]
	d.pod.MTU = 1000
	b.kernel.devices[ep.Device] = d
	err := l.k.Check(t.Context(), attachment("a"), []netip.Addr{ep.Addresses[0], netip.MustParseAddr("10.9.9.9")})
	for _, want := range []string{
		"MTU is 1000, want 1450", "programs of " + ep.Device, "entry of " + ep.Addresses[0].String() + " in strait_endpoint is device 99",
		"entry of " + ep.Addresses[1].String() + " in strait_endpoint is missing", "address 10.9.9.9",
		"address " + ep.Addresses[1].String() + " is missing in the runtime's result",
	} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("CHECK says %v; it lacks %q", err, want)
		}
	}
	l.k.Verify(t.Context())
	b.consistent(l, "a")
	if err := l.k.Check(t.Context(), attachment("a"), ep.Addresses); err != nil {
		t.Errorf("after the repair: %v", err)
	}
}

func TestVerifyOfWhatIsRightChangesNothing(t *testing.T) {
	b := newBench(t)
	l := b.start()
	mustAdd(t, l, "a")
	before := b.state.Endpoints.Snapshot().Revision()
	l.disturb(0, none, false)
	l.k.Verify(t.Context())
	if after := b.state.Endpoints.Snapshot().Revision(); after != before {
		t.Errorf("revision %d, before %d", after, before)
	}
	if len(l.steps) > 0 {
		t.Errorf("the kernel was written to: %v", l.steps)
	}
}

func TestGC(t *testing.T) {
	b := newBench(t)
	l := b.start()
	for _, id := range []string{"a", "b", "c"} {
		mustAdd(t, l, id)
	}
	other := attachment("other")
	other.Network = "second"
	if _, err := l.k.Add(t.Context(), other); err != nil {
		t.Fatal(err)
	}
	if err := l.k.GC(t.Context(), "strait", map[string]bool{"b/eth0": true}); err != nil {
		t.Fatal(err)
	}
	b.consistent(l, "b", "other")
}

func TestMTUChange(t *testing.T) {
	b := newBench(t)
	l := b.start()
	ep := mustAdd(t, l, "a")
	if err := l.k.SetMTU(t.Context(), 1400); err != nil {
		t.Fatal(err)
	}
	if have := b.kernel.devices[ep.Device].pod.MTU; have != 1400 {
		t.Errorf("MTU of a live pod is %d, want 1400", have)
	}
	if row, _, _ := b.state.Endpoints.Snapshot().Get("a/eth0"); row.MTU != 1400 {
		t.Errorf("row has MTU %d, want 1400", row.MTU)
	}
	if ep := mustAdd(t, l, "b"); ep.MTU != 1400 {
		t.Errorf("new pod has MTU %d, want 1400", ep.MTU)
	}
	l = b.start() // sets testMTU again
	if have := b.kernel.devices[ep.Device].pod.MTU; have != testMTU {
		t.Errorf("after a restart with another MTU a pod has %d, want %d", have, testMTU)
	}
	b.consistent(l, "a", "b")
}

// TestIPAM2_KilledAtEveryStep kills the agent before and after each step of ADD and of DEL, starts it again and looks for what
// is left: nothing of a half-made attachment, and after the runtime's DEL nothing at all.
func TestIPAM2_KilledAtEveryStep(t *testing.T) {
	for _, verb := range []string{"add", "del"} {
		for _, f := range []fault{killBefore, killAfter} {
			for n := 1; ; n++ {
				if !killedAt(t, verb, f, n) {
					if n < 4 {
						t.Errorf("%s has only %d steps: the test is wrong", verb, n-1)
					}
					break
				}
			}
		}
	}
}

func killedAt(t *testing.T, verb string, f fault, n int) (hit bool) {
	t.Run(fmt.Sprintf("%s/%d/%d", verb, f, n), func(t *testing.T) {
		b := newBench(t)
		l := b.start()
		mustAdd(t, l, "bystander")
		if verb == "del" {
			mustAdd(t, l, "a")
		}
		l.disturb(n, f, false)
		err, killed := l.run(func() error {
			if verb == "del" {
				return l.k.Del(t.Context(), attachment("a"))
			}
			_, err := l.k.Add(t.Context(), attachment("a"))
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		hit = killed
		if !killed {
			return
		}
		l = b.start()
		if b.state.Endpoints.Snapshot().Len() == 2 { // a DEL not far enough: it is whole again until the runtime repeats it
			b.consistent(l, "a", "bystander")
			if verb == "add" {
				t.Error("a half-made attachment is still there after the restart")
			}
		} else {
			b.consistent(l, "bystander")
		}
		mustDel(t, l, "a")
		b.consistent(l, "bystander")
		mustDel(t, l, "bystander")
		b.consistent(l)
	})
	return hit
}

// TestFailedAtEveryStep lets each step of ADD fail, once and for good. Once: ADD leaves nothing. For good: DEL cleans up when the
// kernel works again.
func TestFailedAtEveryStep(t *testing.T) {
	for _, always := range []bool{false, true} {
		for _, f := range []fault{fail, failAfter} {
			for n := 1; ; n++ {
				if !failedAt(t, f, n, always) {
					if n < 4 {
						t.Errorf("ADD has only %d steps: the test is wrong", n-1)
					}
					break
				}
			}
		}
	}
}

func failedAt(t *testing.T, f fault, n int, always bool) (hit bool) {
	t.Run(fmt.Sprintf("%d/%d/always=%v", f, n, always), func(t *testing.T) {
		b := newBench(t)
		l := b.start()
		l.disturb(n, f, always)
		_, err := l.k.Add(t.Context(), attachment("a"))
		hit = err != nil
		if !hit {
			return
		}
		if !errors.Is(err, errInjected) {
			t.Fatalf("error %v does not say why", err)
		}
		l.disturb(0, none, false)
		if !always {
			b.consistent(l)
		} else if row, _, ok := b.state.Endpoints.Snapshot().Get("a/eth0"); !ok || row.Phase != state.EndpointDegraded || row.Error == "" {
			t.Errorf("what could not be undone is shown as %+v", row)
		}
		if _, err := l.k.Add(t.Context(), attachment("a")); err != nil {
			t.Fatalf("ADD again: %v", err)
		}
		b.consistent(l, "a")
		l.disturb(1, f, always)
		if err := l.k.Del(t.Context(), attachment("a")); err == nil {
			t.Error("DEL succeeds with a failing kernel")
		}
		l.disturb(0, none, false)
		mustDel(t, l, "a")
		b.consistent(l)
	})
	return hit
}

func TestParallel(t *testing.T) {
	b := newBench(t)
	l := b.start()
	var wg sync.WaitGroup
	for i := range 60 {
		wg.Go(func() {
			id := fmt.Sprintf("p%02d", i%30) // two goroutines per attachment
			if _, err := l.k.Add(t.Context(), attachment(id)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	var ids []string
	for i := range 30 {
		ids = append(ids, fmt.Sprintf("p%02d", i))
	}
	b.consistent(l, ids...)
	for _, id := range ids {
		wg.Go(func() { mustDel(t, l, id) })
	}
	wg.Wait()
	b.consistent(l)
}

func TestCoolDownSurvivesRestart(t *testing.T) {
	b := newBench(t)
	pools := []string{"10.0.0.0/30"}
	l := b.start(pools...)
	ep := mustAdd(t, l, "a")
	mustAdd(t, l, "b")
	mustDel(t, l, "a")
	b.now = b.now.Add(10 * time.Second)
	l = b.start(pools...)
	_, err := l.k.Add(t.Context(), attachment("c"))
	wantCode(t, err, types.ErrTryAgainLater, "1 in use, 1 cooling down until 2023-11-14T22:13:50Z")
	b.now = b.now.Add(20 * time.Second)
	if got := mustAdd(t, l, "c"); got.Addresses[0] != ep.Addresses[0] {
		t.Errorf("got %v, want %v", got.Addresses, ep.Addresses)
	}
	l.k.Verify(t.Context())
	if left, err := os.ReadDir(filepath.Join(b.dir, coolingDir)); err != nil || len(left) > 0 {
		t.Errorf("records of cooled addresses are kept: %v, %v", left, err)
	}
}

func TestRestoreCorruptRecord(t *testing.T) {
	for name, content := range map[string]string{
		"empty":   "",
		"garbage": "\x00\xff{",
		"field":   `{"version":1,"state":"ready","containerID":"a","ifName":"eth0","colour":"blue"}`,
		"version": `{"version":7}`,
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			l := b.start()
			ep := mustAdd(t, l, "a")
			file := filepath.Join(b.dir, "a-eth0.json")
			if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
			for range 2 { // it stays so over further restarts
				l = b.start()
				if o, _ := l.k.cfg.Pools.Owner(ep.Addresses[0]); o != orphanOwner(ep.Device) {
					t.Errorf("address of the lost pod belongs to %q, want it reserved", o)
				}
				row, _, _ := b.state.Endpoints.Snapshot().Get("a/eth0")
				if row.Phase != state.EndpointDegraded || !strings.Contains(row.Error, "cannot be read") {
					t.Errorf("row %+v", row)
				}
				if _, err := os.Stat(file + corruptSuffix); err != nil {
					t.Error(err)
				}
				if b.state.Problems.Snapshot().Len() == 0 {
					t.Error("no problem is reported")
				}
				if len(b.kernel.devices) != 1 || len(b.kernel.entries) != 2 {
					t.Error("a pod that may live was cut off")
				}
			}
			mustDel(t, l, "a")
			b.consistent(l)
			if n := b.state.Problems.Snapshot().Len(); n != 0 {
				t.Errorf("%d problems left after DEL", n)
			}
		})
	}
}

func TestRestoreHalfWrittenRecord(t *testing.T) {
	b := newBench(t)
	l := b.start()
	mustAdd(t, l, "a")
	if err := os.WriteFile(filepath.Join(b.dir, "b-eth0.adding"), []byte(`{"version":1,"contai`), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(b.dir, ".tmp-a-eth0.json"), []byte(`{`), 0o600); err != nil {
		t.Fatal(err)
	}
	b.consistent(b.start(), "a")
}

func TestRestoreSecondRecordOfAnAddress(t *testing.T) {
	b := newBench(t)
	l := b.start()
	ep := mustAdd(t, l, "a")
	second := *l.k.get("a/eth0")
	second.ContainerID = "b"
	second.Device = netdev.PodDevice("b", "eth0")
	for _, p := range []phase{adding, ready} {
		second.Phase = p
		data, err := json.Marshal(second)
		if err == nil {
			err = os.WriteFile(l.k.store.path(&second), data, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	l = b.start()
	if o, _ := l.k.cfg.Pools.Owner(ep.Addresses[0]); o != "a/eth0" || len(b.kernel.entries) != 2 {
		t.Errorf("owner %q, entries %v: want those of the first record untouched", o, b.kernel.entries)
	}
	if b.state.Problems.Snapshot().Len() == 0 {
		t.Error("no problem is reported")
	}
	mustDel(t, l, "b")
	b.consistent(l, "a")
}

func TestRestoreWithoutRecords(t *testing.T) {
	b := newBench(t)
	l := b.start()
	mustAdd(t, l, "a")
	mustAdd(t, l, "b")
	stale := netip.MustParseAddr("10.0.0.99")
	b.kernel.entries[stale] = entry(l.k.get("a/eth0"), 1000, stale)
	if err := os.RemoveAll(b.dir); err != nil {
		t.Fatal(err)
	}
	l = b.start()
	if len(b.kernel.devices) != 2 || len(b.kernel.entries) != 4 {
		t.Fatalf("devices %v, entries %v: want living pods kept and the stale entry gone", b.kernel.devices, b.kernel.entries)
	}
	if n := b.state.Problems.Snapshot().Len(); n != 2 {
		t.Errorf("%d problems, want one per device without a record", n)
	}
	if err := l.k.GC(t.Context(), "strait", map[string]bool{"a/eth0": true}); err != nil {
		t.Fatal(err)
	}
	if a := attachment("a"); len(b.kernel.devices) != 1 || b.kernel.devices[netdev.PodDevice(a.ContainerID, a.IfName)].index == 0 {
		t.Errorf("after GC the devices are %v, want that of a", b.kernel.devices)
	}
	mustAdd(t, l, "a") // a new sandbox of the same name replaces it
	b.consistent(l, "a")
}

func TestRestoreGoneSandbox(t *testing.T) {
	b := newBench(t)
	l := b.start()
	netns := filepath.Join(t.TempDir(), "netns")
	if err := os.Symlink("/proc/self/ns/uts", netns); err != nil {
		t.Fatal(err)
	}
	gone := attachment("gone")
	gone.NetNS = netns
	ep, err := l.k.Add(t.Context(), gone)
	if err != nil {
		t.Fatal(err)
	}
	mustAdd(t, l, "a")

	// The path hidden, the interface there: the sandbox lives.
	if err := os.Remove(netns); err != nil {
		t.Fatal(err)
	}
	b.start()
	if len(b.kernel.devices) != 2 {
		t.Error("a sandbox whose path cannot be seen was removed")
	}
	// The interface gone with the namespace.
	delete(b.kernel.devices, ep.Device)
	b.consistent(b.start(), "a")

	// The interface gone without the namespace: made anew with the same addresses.
	ep, _, _ = b.state.Endpoints.Snapshot().Get("a/eth0")
	delete(b.kernel.devices, ep.Device)
	delete(b.kernel.programs, ep.Device)
	b.consistent(b.start(), "a")
	after, _, _ := b.state.Endpoints.Snapshot().Get("a/eth0")
	if fmt.Sprint(after.Addresses, after.PodMAC) != fmt.Sprint(ep.Addresses, ep.PodMAC) || after.DeviceIndex == ep.DeviceIndex {
		t.Errorf("interface made anew: %+v, before %+v", after, ep)
	}
}

func TestSetPoolsReportsForeign(t *testing.T) {
	b := newBench(t)
	l := b.start()
	mustAdd(t, l, "a")
	l = b.start("10.5.0.0/24")
	rows := b.state.Problems.Snapshot()
	if rows.Len() == 0 {
		t.Error("addresses outside the pod CIDRs are not reported")
	}
	if row, _, ok := b.state.Endpoints.Snapshot().Get("a/eth0"); !ok || row.Phase != state.EndpointReady {
		t.Errorf("pod with foreign addresses: %+v, want it kept", row)
	}
	mustDel(t, l, "a")
	b.consistent(l)
}

func TestRecordNames(t *testing.T) {
	for _, a := range []wire.Attachment{{ContainerID: "a-b", IfName: "c"}, {ContainerID: "a", IfName: "b-c"}, {ContainerID: "a.json", IfName: "e-0-"}} {
		got, ok := attachmentOfFile(a.FileName())
		if !ok || got.Key() != a.Key() {
			t.Errorf("%s: file %s, back %v, %v", a.Key(), a.FileName(), got, ok)
		}
	}
	for _, bad := range []string{"", "x", "-.json", "a-.json", "-a.json", "a-b"} {
		if a, ok := attachmentOfFile(bad); ok {
			t.Errorf("%q is taken for the record of %s", bad, a.Key())
		}
	}
}
