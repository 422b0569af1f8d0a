package bill

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestFindPrefersCpuacctWhereItExists(t *testing.T) {
	const v1 = `30 20 0:26 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:9 - cgroup cgroup rw,cpu,cpuacct
31 20 0:27 / /sys/fs/cgroup/unified rw,nosuid - cgroup2 cgroup2 rw`
	tree, err := Find(v1)
	if err != nil || tree.acct != "/sys/fs/cgroup/cpu,cpuacct" || tree.unified != "/sys/fs/cgroup/unified" || tree.String() != "v1 cpuacct" {
		t.Errorf("Find = %+v, %v", tree, err)
	}
	const v2 = `31 20 0:27 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate`
	tree, err = Find(v2)
	if err != nil || tree.acct != "" || tree.unified != "/sys/fs/cgroup" || tree.String() != "v2 cpu.stat" {
		t.Errorf("Find = %+v, %v", tree, err)
	}
	if _, err := Find("30 20 0:26 / /x rw - cgroup cgroup rw,cpuset"); err == nil {
		t.Error("a machine without cgroup2 must be refused")
	}
}

func TestParseStat(t *testing.T) {
	got, err := parseStat("usage_usec 1500\nuser_usec 1000\nsystem_usec 500\n")
	if err != nil || got != 1500*time.Microsecond {
		t.Errorf("parseStat = %v, %v", got, err)
	}
	if _, err := parseStat("user_usec 1\n"); err == nil {
		t.Error("cpu.stat without usage must be an error")
	}
}

func TestGroupIsRemovedWithItsChildren(t *testing.T) {
	tree := Tree{unified: t.TempDir()}
	if err := os.MkdirAll(filepath.Join(tree.unified, "run-999999999", "of", "the-dead"), 0o755); err != nil {
		t.Fatal(err)
	}
	g, err := tree.Root("run", os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := g.Child("a"); err != nil {
		t.Fatal(err)
	}
	if err := g.Remove(); err != nil {
		t.Errorf("remove: %v", err)
	}
	left, err := os.ReadDir(tree.unified)
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}
