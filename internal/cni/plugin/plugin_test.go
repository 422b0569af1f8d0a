package plugin

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"

	"github.com/strait-net/strait/internal/cni/wire"
)

func args(dir, more string) *skel.CmdArgs {
	conf := fmt.Sprintf(`{"cniVersion":"1.1.0","name":"strait","type":"strait-cni","socket":%q,"stateDir":%q%s}`,
		filepath.Join(dir, "none.sock"), filepath.Join(dir, "lib"), more)
	return &skel.CmdArgs{ContainerID: "c1", Netns: "/run/netns/x", IfName: "eth0", StdinData: []byte(conf)}
}

func wantCode(t *testing.T, err error, code uint, text string) {
	t.Helper()
	var e *types.Error
	if !errors.As(err, &e) || e.Code != code || !strings.Contains(e.Error(), text) {
		t.Errorf("error %v, want code %d and %q", err, code, text)
	}
}

func TestCNI1_NoAgent(t *testing.T) {
	dir := t.TempDir()
	f := Funcs()
	wantCode(t, f.Add(args(dir, "")), types.ErrTryAgainLater, "agent is not running: dial unix")
	wantCode(t, f.Check(args(dir, "")), types.ErrTryAgainLater, "agent is not running: dial unix")
	wantCode(t, f.GC(args(dir, `,"cni.dev/valid-attachments":[]`)), types.ErrTryAgainLater, "agent is not running: dial unix")
	wantCode(t, f.Status(args(dir, "")), types.ErrPluginNotAvailable, "agent is not running: dial unix")
	q := wire.NewQueue(filepath.Join(dir, "lib"))
	if names, err := q.Names(); err != nil || len(names) > 0 {
		t.Errorf("queued: %v, %v; want nothing but DEL queued", names, err)
	}
	for range 2 {
		if err := f.Del(args(dir, "")); err != nil {
			t.Error(err)
		}
	}
	names, err := q.Names()
	if err != nil || len(names) != 1 {
		t.Fatalf("queued: %v, %v; want one DEL", names, err)
	}
	req, err := q.Get(names[0])
	if err != nil || req.Command != wire.Del || req.ContainerID != "c1" || req.NetNS != "/run/netns/x" {
		t.Errorf("queued: %+v, %v", req, err)
	}
}

func TestDelThatCannotBeQueued(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "lib"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	err := Funcs().Del(args(dir, ""))
	wantCode(t, err, types.ErrIOFailure, "queue delete of c1/eth0")
	wantCode(t, err, types.ErrIOFailure, "agent is not running")
	bad := args(t.TempDir(), "")
	bad.IfName = "a/b"
	wantCode(t, Funcs().Del(bad), types.ErrInvalidEnvironmentVariables, "CNI_IFNAME")
	wantCode(t, Funcs().Del(args(t.TempDir(), `,"colour":1`)), types.ErrUnsupportedField, `"colour" with value 1`)
}

// TestCNI2_Thin keeps the plugin from growing: it is started for every pod. The figures are what it has, and a little room.
func TestCNI2_Thin(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", "../../../cmd/strait-cni").Output()
	if err != nil {
		t.Fatal(err)
	}
	deps := strings.Fields(string(out))
	if len(deps) > 105 {
		t.Errorf("strait-cni links %d packages, want at most 105", len(deps))
	}
	for _, d := range deps {
		for _, heavy := range []string{"net/http", "crypto/tls", "k8s.io/", "github.com/cilium/", "github.com/vishvananda/netlink"} {
			if strings.HasPrefix(d, heavy) {
				t.Errorf("strait-cni links %s", d)
			}
		}
	}
}
