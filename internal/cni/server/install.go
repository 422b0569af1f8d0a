package server

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/strait-net/strait/internal/cni/wire"
)

// Names of what is installed. Runtimes use the configuration that sorts first.
const (
	ConflistName = "05-strait.conflist"
	savedSuffix  = ".strait-saved"
)

// Install is where the plugin and its configuration go. All fields but Exclusive are required.
type Install struct {
	Source    string // the strait-cni binary to copy
	BinDir    string
	ConfDir   string
	Socket    string // as the plugin sees it
	StateDir  string // as the plugin sees it
	Exclusive bool   // other configurations are renamed, so that the runtime cannot choose them
}

// Conflist returns the network configuration list. It stays at 1.0.0 although the plugin speaks 1.1.0: a runtime that sees 1.1.0 calls
// STATUS and makes the node NotReady while the agent is away, whereupon Kubernetes takes all of the node's pods out of their
// Services, although every one of them can be reached. New pods are kept away by a taint and by ADD, which disturbs nobody.
func (i Install) Conflist() ([]byte, error) {
	type plugin struct {
		Type         string          `json:"type"`
		Capabilities map[string]bool `json:"capabilities"`
		Socket       string          `json:"socket"`
		StateDir     string          `json:"stateDir"`
	}
	out, err := json.MarshalIndent(struct {
		CNIVersion string   `json:"cniVersion"`
		Name       string   `json:"name"`
		Plugins    []plugin `json:"plugins"`
	}{
		CNIVersion: "1.0.0",
		Name:       "strait",
		Plugins: []plugin{{
			Type: wire.PluginType, Capabilities: map[string]bool{"portMappings": true}, Socket: i.Socket, StateDir: i.StateDir,
		}},
	}, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encode conflist: %w", err)
	}
	return append(out, '\n'), nil
}

// Apply puts the plugin, then, with Exclusive, takes other configurations away, and writes ours last: a runtime that sees the
// configuration can use it. What is right already is not touched. It returns what it changed.
func (i Install) Apply() (changed []string, err error) {
	binary := filepath.Join(i.BinDir, wire.PluginType)
	if did, err := copyFile(i.Source, binary); err != nil {
		return nil, fmt.Errorf("install plugin %s: %w", binary, err)
	} else if did {
		changed = append(changed, "installed "+binary)
	}
	if i.Exclusive {
		others, err := i.Others()
		if err != nil {
			return changed, err
		}
		for _, other := range others {
			if err := os.Rename(other, other+savedSuffix); err != nil {
				return changed, fmt.Errorf("set CNI configuration aside: %w", err)
			}
			changed = append(changed, "renamed "+other+" to "+other+savedSuffix)
		}
	}
	list, err := i.Conflist()
	if err != nil {
		return changed, err
	}
	conflist := filepath.Join(i.ConfDir, ConflistName)
	if have, err := os.ReadFile(conflist); err == nil && bytes.Equal(have, list) {
		return changed, nil
	}
	if err := replaceFile(conflist, bytes.NewReader(list), 0o644); err != nil {
		return changed, fmt.Errorf("write %s: %w", conflist, err)
	}
	return append(changed, "wrote "+conflist), nil
}

// Remove undoes Apply: our configuration first, then those set aside come back, then the plugin goes. What is gone already is
// no error; a configuration whose name is taken again stays set aside. It returns what it changed.
func (i Install) Remove() (changed []string, err error) {
	gone := func(path string) {
		switch e := os.Remove(path); {
		case e == nil:
			changed = append(changed, "removed "+path)
		case !errors.Is(e, fs.ErrNotExist):
			err = errors.Join(err, e)
		}
	}
	gone(filepath.Join(i.ConfDir, ConflistName))
	saved, e := filepath.Glob(filepath.Join(i.ConfDir, "*"+savedSuffix))
	err = errors.Join(err, e)
	for _, path := range saved {
		back := strings.TrimSuffix(path, savedSuffix)
		if _, e := os.Lstat(back); e == nil {
			err = errors.Join(err, fmt.Errorf("restore %s: %w", back, fs.ErrExist))
			continue
		}
		if e := os.Rename(path, back); e != nil {
			err = errors.Join(err, e)
			continue
		}
		changed = append(changed, "restored "+back)
	}
	gone(filepath.Join(i.BinDir, wire.PluginType))
	if err != nil {
		return changed, fmt.Errorf("uninstall CNI plugin: %w", err)
	}
	return changed, nil
}

// Others returns the paths of the CNI configurations that are not ours and that a runtime would read, sorted.
func (i Install) Others() ([]string, error) {
	entries, err := os.ReadDir(i.ConfDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list CNI configurations: %w", err)
	}
	var out []string
	for _, e := range entries {
		switch filepath.Ext(e.Name()) {
		case ".conf", ".conflist", ".json":
			if e.Name() != ConflistName && !e.IsDir() {
				out = append(out, filepath.Join(i.ConfDir, e.Name()))
			}
		}
	}
	return out, nil
}

// Preferred returns the configurations of others that a runtime prefers to ours, sorted.
func (i Install) Preferred() ([]string, error) {
	others, err := i.Others()
	return slices.DeleteFunc(others, func(path string) bool { return filepath.Base(path) > ConflistName }), err
}

// copyFile makes to an executable copy of from, unless it is one already.
func copyFile(from, to string) (changed bool, err error) {
	want, err := os.ReadFile(from)
	if err != nil {
		return false, err
	}
	if have, err := os.ReadFile(to); err == nil && bytes.Equal(have, want) {
		if st, err := os.Stat(to); err == nil && st.Mode().Perm() == 0o755 {
			return false, nil
		}
	}
	return true, replaceFile(to, bytes.NewReader(want), 0o755)
}

// replaceFile writes the file aside and renames it into place once its content is on disk: a runtime never sees half of it,
// also not after a power failure.
func replaceFile(path string, content io.Reader, mode fs.FileMode) (err error) {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	// The leading dot and the missing extension keep runtimes from reading it.
	f, err := os.CreateTemp(dir, ".strait-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	_, err = io.Copy(f, content)
	if err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close()); err != nil {
		return err
	}
	if err = os.Rename(f.Name(), path); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
