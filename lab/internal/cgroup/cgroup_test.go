package cgroup

import (
	"reflect"
	"slices"
	"strings"
	"testing"
)

func TestDiscover(t *testing.T) {
	for _, c := range []struct {
		name, proc, mounts string
		want               []Hierarchy
	}{
		{
			name:   "pure v2",
			proc:   "0::/user.slice/session-1.scope\n",
			mounts: "cgroup2 /sys/fs/cgroup cgroup2 rw,nosuid 0 0\n",
			// Not below the session: a cgroup with processes cannot hand controllers on.
			want: []Hierarchy{{Mount: "/sys/fs/cgroup", Base: "/sys/fs/cgroup"}},
		},
		{
			name: "hybrid",
			proc: "3:name=systemd:/\n2:memory:/jail/a\n1:cpu,cpuacct:/\n0::/\n",
			mounts: "tmpfs /sys/fs/cgroup tmpfs rw 0 0\n" +
				"cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,relatime,cpu,cpuacct 0 0\n" +
				"cgroup /sys/fs/cgroup/memory cgroup rw,memory 0 0\n" +
				"cgroup /sys/fs/cgroup/systemd cgroup rw,name=systemd 0 0\n" +
				"cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n",
			want: []Hierarchy{
				{Mount: "/sys/fs/cgroup/cpu,cpuacct", Options: "cpu,cpuacct", Base: "/sys/fs/cgroup/cpu,cpuacct"},
				{Mount: "/sys/fs/cgroup/memory", Options: "memory", Base: "/sys/fs/cgroup/memory/jail/a"},
				{Mount: "/sys/fs/cgroup/systemd", Options: "name=systemd", Base: "/sys/fs/cgroup/systemd"},
				{Mount: "/sys/fs/cgroup/unified", Base: "/sys/fs/cgroup/unified"},
			},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := Discover(c.proc, c.mounts)
			if err != nil {
				t.Fatal(err)
			}
			slices.SortFunc(got, func(a, b Hierarchy) int { return strings.Compare(a.Mount, b.Mount) })
			if !reflect.DeepEqual(got, c.want) {
				t.Errorf("got  %+v\nwant %+v", got, c.want)
			}
		})
	}
	if _, err := Discover("0::/\n", "proc /proc proc rw 0 0\n"); err == nil {
		t.Error("a machine without cgroup mounts is accepted")
	}
}
