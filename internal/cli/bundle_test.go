package cli

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"io"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// unpack returns the files of an archive without its root folder.
func unpack(t *testing.T, from io.Reader) map[string][]byte {
	t.Helper()
	zip, err := gzip.NewReader(from)
	if err != nil {
		t.Fatal(err)
	}
	files := map[string][]byte{}
	for r := tar.NewReader(zip); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		_, name, _ := strings.Cut(h.Name, "/")
		if files[name], err = io.ReadAll(r); err != nil {
			t.Fatal(err)
		}
	}
}

// Of a node without an agent everything is missing, and the archive says why.
func TestBundleSaysWhatIsMissing(t *testing.T) {
	var out, errs bytes.Buffer
	env := Env{Version: "v1", Out: &out, Err: &errs, Getenv: func(string) string { return "" }, Now: time.Now}
	socket := filepath.Join(t.TempDir(), "agent.sock")
	if code := Run(context.Background(), env, []string{"support-bundle", "--file", "-", "--socket", socket}); code != ExitProblems {
		t.Errorf("exit code %d\n%s", code, &errs)
	}
	files := unpack(t, &out)
	var v versions
	if err := json.Unmarshal(files["version.json"], &v); err != nil || v.Version != "v1" {
		t.Errorf("version.json: %v\n%s", err, files["version.json"])
	}
	if !bytes.Contains(files["get-nodes.err"], []byte("no agent runs on this node")) {
		t.Errorf("get-nodes.err:\n%s", files["get-nodes.err"])
	}
	if _, there := files["get-nodes.json"]; there {
		t.Error("a file with no answer")
	}
}

// Every verb of the archive exists: a wrong one would be noticed only by whoever needs the archive.
func TestBundleVerbsExist(t *testing.T) {
	root := New(Env{Out: io.Discard, Err: io.Discard, Getenv: func(string) string { return "" }, Now: time.Now})
	for _, verb := range bundleVerbs {
		cmd, args, err := root.Find(strings.Fields(verb))
		if err != nil {
			t.Errorf("%s: %v", verb, err)
			continue
		}
		if err := cmd.ParseFlags(args); err != nil {
			t.Errorf("%s: %v", verb, err)
		}
		if err := cmd.ValidateArgs(cmd.Flags().Args()); err != nil {
			t.Errorf("%s: %v", verb, err)
		}
	}
}
