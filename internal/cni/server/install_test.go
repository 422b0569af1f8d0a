package server

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containernetworking/cni/libcni"
)

func newInstall(t *testing.T) Install {
	t.Helper()
	dir := t.TempDir()
	i := Install{
		Source: filepath.Join(dir, "strait-cni"), BinDir: filepath.Join(dir, "bin"), ConfDir: filepath.Join(dir, "net.d"),
		Socket: "/run/strait/cni.sock", StateDir: "/var/lib/strait", Exclusive: true,
	}
	write(t, i.Source, "binary 1")
	return i
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

func TestCNI2_Install(t *testing.T) {
	i := newInstall(t)
	write(t, filepath.Join(i.ConfDir, "00-other.conflist"), "{}")
	write(t, filepath.Join(i.ConfDir, "99-loopback.conf"), "{}")
	write(t, filepath.Join(i.ConfDir, "README"), "not a configuration")
	if preferred, err := i.Preferred(); err != nil || len(preferred) != 1 || !strings.HasSuffix(preferred[0], "00-other.conflist") {
		t.Errorf("preferred to ours: %v, %v", preferred, err)
	}
	changed, err := i.Apply()
	if err != nil || len(changed) != 4 {
		t.Fatalf("%v, %v", changed, err)
	}
	if !strings.HasPrefix(changed[0], "installed") || !strings.HasPrefix(changed[3], "wrote") {
		t.Errorf("order %v, want the plugin first and the conflist last", changed)
	}
	want := []string{"00-other.conflist.strait-saved", ConflistName, "99-loopback.conf.strait-saved", "README"}
	if got := names(t, i.ConfDir); !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	if st, err := os.Stat(filepath.Join(i.BinDir, "strait-cni")); err != nil || st.Mode().Perm() != 0o755 {
		t.Errorf("%v, %v; want an executable", st, err)
	}
	if changed, err := i.Apply(); err != nil || len(changed) != 0 {
		t.Errorf("a second time: %v, %v; want nothing changed", changed, err)
	}
	write(t, i.Source, "binary 2")
	if changed, err := i.Apply(); err != nil || len(changed) != 1 {
		t.Errorf("a new binary: %v, %v; want one change", changed, err)
	}

	// OPS-2: at 1.1.0 a runtime would call STATUS and take the node down with the agent.
	list, err := libcni.ConfListFromFile(filepath.Join(i.ConfDir, ConflistName))
	if err != nil || list.Name != "strait" || list.CNIVersion != "1.0.0" || list.Plugins[0].Network.Type != "strait-cni" {
		t.Errorf("libcni reads %+v, %v", list, err)
	}

	if _, err := i.Remove(); err != nil {
		t.Fatal(err)
	}
	if got, want := names(t, i.ConfDir), []string{"00-other.conflist", "99-loopback.conf", "README"}; !slices.Equal(got, want) {
		t.Errorf("after removal %v, want %v", got, want)
	}
	if got := names(t, i.BinDir); len(got) > 0 {
		t.Errorf("after removal %v in the plugin directory", got)
	}
	if changed, err := i.Remove(); err != nil || len(changed) > 0 {
		t.Errorf("removal a second time: %v, %v", changed, err)
	}
}

func TestInstallNotExclusive(t *testing.T) {
	i := newInstall(t)
	i.Exclusive = false
	write(t, filepath.Join(i.ConfDir, "10-other.conflist"), "{}")
	if changed, err := i.Apply(); err != nil || len(changed) != 2 {
		t.Errorf("%v, %v", changed, err)
	}
	if got, want := names(t, i.ConfDir), []string{ConflistName, "10-other.conflist"}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

func TestInstallFailuresLeaveNothingHalf(t *testing.T) {
	i := newInstall(t)
	i.Source = filepath.Join(t.TempDir(), "missing")
	if _, err := i.Apply(); err == nil || !strings.Contains(err.Error(), "missing") {
		t.Errorf("missing binary: %v", err)
	}
	if _, err := os.Stat(i.ConfDir); err == nil {
		t.Error("a configuration was written without a plugin")
	}
	i = newInstall(t)
	if err := os.MkdirAll(filepath.Join(i.BinDir, "strait-cni", "directory"), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := i.Apply(); err == nil {
		t.Error("a directory in the plugin's place is no error")
	}
	if got := names(t, i.BinDir); len(got) != 1 {
		t.Errorf("left behind: %v", got)
	}
	i = newInstall(t)
	if _, err := i.Apply(); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(i.ConfDir, "10-x.conf"+savedSuffix), "old")
	write(t, filepath.Join(i.ConfDir, "10-x.conf"), "new")
	if _, err := i.Remove(); err == nil || !strings.Contains(err.Error(), "10-x.conf") {
		t.Errorf("a name that is taken again: %v", err)
	}
}
