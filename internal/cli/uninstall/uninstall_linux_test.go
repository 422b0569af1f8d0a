package uninstall_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"sigs.k8s.io/yaml"

	"github.com/strait-net/strait/internal/cli"
	"github.com/strait-net/strait/internal/cni/server"
	"github.com/strait-net/strait/internal/config"
	"github.com/strait-net/strait/internal/datapath/attach"
	"github.com/strait-net/strait/internal/datapath/load"
	"github.com/strait-net/strait/internal/datapath/maps"
	"github.com/strait-net/strait/internal/datapath/netdev"
	"github.com/strait-net/strait/internal/datapath/netfilter"
	"github.com/strait-net/strait/internal/datapath/nstest"
	"github.com/strait-net/strait/internal/datapath/pin"
	"github.com/strait-net/strait/internal/state"
)

func TestMain(m *testing.M) { nstest.Main(m) }

func run(args ...string) (stdout, stderr string, code int) {
	var out, errs strings.Builder
	env := cli.Env{Version: "v0", Out: &out, Err: &errs, Getenv: func(string) string { return "" }, Now: time.Now}
	code = cli.Run(context.Background(), env, args)
	return out.String(), errs.String(), code
}

// usedNode makes a node, in the namespaces of the test, look as an agent with a pod leaves it behind, and returns the
// configuration file.
func usedNode(t *testing.T) (file string, c config.Config) {
	t.Helper()
	dir := t.TempDir()
	c = config.Default()
	c.BPFRoot, c.RunDir, c.StateDir = nstest.BPFFS(t, 0), filepath.Join(dir, "run"), filepath.Join(dir, "lib")
	c.CNI.BinDir, c.CNI.ConfDir, c.CNI.Exclusive = filepath.Join(dir, "bin"), filepath.Join(dir, "net.d"), true
	text, err := yaml.Marshal(c)
	must(t, err)
	file = filepath.Join(dir, "config.yaml")
	for path, content := range map[string]string{
		file: string(text), filepath.Join(c.RunDir, "agent.lock"): "4711\n", filepath.Join(dir, "strait-cni"): "binary",
		filepath.Join(c.StateDir, "endpoints", "1-eth0.json"): "{}", filepath.Join(c.CNI.ConfDir, "10-other.conflist"): "{}",
	} {
		must(t, os.MkdirAll(filepath.Dir(path), 0o755))
		must(t, os.WriteFile(path, []byte(content), 0o644))
	}
	must(t, os.MkdirAll(c.CNI.BinDir, 0o755))
	_, err = server.Install{Source: filepath.Join(dir, "strait-cni"), BinDir: c.CNI.BinDir, ConfDir: c.CNI.ConfDir, Socket: "/s", StateDir: "/d", Exclusive: true}.Apply()
	must(t, err)

	net, err := netdev.Open()
	must(t, err)
	defer net.Close()
	tree, _, err := pin.Prepare(c.BPFRoot)
	must(t, err)
	spec, err := maps.Spec(config.Maps{Conntrack: 16, NAT: 16, Services: 16, Backends: 16, IPCache: 16})
	must(t, err)
	kernel, err := maps.Open(tree, spec)
	must(t, err)
	defer kernel.Close()
	index, _, err := net.EnsureVXLAN(netdev.VXLAN{Port: 8472, MTU: 1450})
	must(t, err)
	programs, err := load.Load(spec, kernel, load.Config{Network: config.Island, VXLANIndex: index, PodMTU: 1450,
		MasqueradeLo: 10000, MasqueradeHi: 29999, SocketLB: true, TCX: load.HaveTCX()})
	must(t, err)
	defer programs.Close()
	pod := netdev.Pod{NetNS: nstest.NetNS(t), IfName: "eth0", Device: netdev.PodDevice("1", "eth0"), MTU: 1450,
		PodMAC: netdev.MAC("pod"), HostMAC: netdev.MAC("host"), Addresses: []netip.Addr{netip.MustParseAddr("10.244.1.2"), netip.MustParseAddr("fd00:10:244:1::2")}}
	podIndex, err := net.AddPod(pod)
	must(t, err)
	a := attach.New(tree, net, programs, load.HaveTCX())
	must(t, a.AttachPod(pod.Device, podIndex))
	must(t, a.Tunnel(netdev.VXLANDevice))
	must(t, a.Cgroup(childCgroup(t)))
	must(t, netdev.NewRoutes(net).Update(context.Background(), state.Route{Prefix: netip.MustParsePrefix("10.244.9.0/24"), Kind: state.RouteUnreachable}))
	must(t, netfilter.Hold()) // as after a takeover
	return file, c
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// childCgroup is a cgroup without processes, so that the socket programs meet no socket.
func childCgroup(t *testing.T) string {
	root, err := attach.CgroupRoot("")
	must(t, err)
	dir := filepath.Join(root, fmt.Sprintf("strait-cli-test-%d", os.Getpid()))
	must(t, os.Mkdir(dir, 0o755))
	t.Cleanup(func() {
		if err := os.Remove(dir); err != nil {
			t.Errorf("remove test cgroup: %v", err)
		}
	})
	return dir
}

func TestUninstall(t *testing.T) {
	nstest.Root(t)
	file, c := usedNode(t)
	type traces struct{ Removed, Left []struct{ Kind, Name string } }
	kinds := func(text string) (removed, left []string) {
		var u traces
		if err := json.Unmarshal([]byte(text), &u); err != nil {
			t.Fatalf("%v in %s", err, text)
		}
		for _, x := range u.Removed {
			removed = append(removed, x.Kind)
		}
		for _, x := range u.Left {
			left = append(left, x.Kind)
		}
		return slices.Compact(removed), slices.Compact(left)
	}
	everything := []string{"CNI", "program", "route", "device", "nftables table", "pins", "files"}

	stdout, stderr, code := run("uninstall", "--dry-run", "-o", "json", "--config", file)
	if removed, left := kinds(stdout); code != 0 || removed != nil || !slices.Equal(left, everything) {
		t.Fatalf("dry run = %d %s\n%s", code, stdout, stderr)
	}

	lock, err := os.OpenFile(filepath.Join(c.RunDir, "agent.lock"), os.O_RDWR, 0)
	must(t, err)
	must(t, unix.Flock(int(lock.Fd()), unix.LOCK_EX))
	_, stderr, code = run("uninstall", "--config", file)
	if code != cli.ExitProblems || !strings.Contains(stderr, "an agent runs on this node (pid 4711 holds") {
		t.Errorf("with an agent = %d %s", code, stderr)
	}
	lock.Close()
	again, _, _ := run("uninstall", "--dry-run", "-o", "json", "--config", file)
	if again != stdout {
		t.Errorf("a refused uninstall removed something:\n%s\nbefore\n%s", again, stdout)
	}

	stdout, stderr, code = run("uninstall", "--verify", "-o", "json", "--config", file)
	if removed, left := kinds(stdout); code != 0 || !slices.Equal(removed, everything) || left != nil {
		t.Errorf("uninstall = %d %s\n%s", code, stdout, stderr)
	}
	if _, err := os.Stat(filepath.Join(c.CNI.ConfDir, "10-other.conflist")); err != nil {
		t.Errorf("the other CNI's configuration did not come back: %v", err)
	}
	stdout, _, code = run("uninstall", "--verify", "--config", file)
	if code != 0 || stdout != "nothing of Strait on this node\nclean: looked for CNI, program, route, device, nftables table, pins, files; nothing is left\n" {
		t.Errorf("uninstall of a clean node = %d %s", code, stdout)
	}
	must(t, os.WriteFile(file, []byte("routingMode: pigeon\n"), 0o644))
	if _, stderr, code := run("uninstall", "--config", file); code != cli.ExitUsage || !strings.Contains(stderr, "pigeon") {
		t.Errorf("uninstall with a wrong configuration = %d %s", code, stderr)
	}
}
