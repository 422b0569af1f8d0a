package image

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestArchiveIsAnImage(t *testing.T) {
	dir := t.TempDir()
	program := filepath.Join(dir, "program")
	if err := os.WriteFile(program, []byte("ELF"), 0o755); err != nil {
		t.Fatal(err)
	}
	s := Spec{
		Name: "localhost/test:1", Aliases: []string{"registry.test/other:2"}, Dirs: []string{"/tmp"}, Entrypoint: []string{"/usr/bin/program"},
		Files: map[string]File{
			"/usr/bin/program": {Source: program, Mode: 0o755},
			"/bin/p":           {Link: "../usr/bin/program"},
			"/etc/text":        {Text: "hello", Mode: 0o644},
		},
	}
	var first, second bytes.Buffer
	for _, out := range []*bytes.Buffer{&first, &second} {
		if err := Write(out, s, "amd64"); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(first.Bytes(), second.Bytes()) {
		t.Error("the same image written twice differs")
	}
	blobs := untar(t, &first)
	for name, content := range blobs {
		if digest, ok := strings.CutPrefix(name, "blobs/sha256/"); ok {
			if sum := sha256.Sum256(content); hex.EncodeToString(sum[:]) != digest {
				t.Errorf("%s holds something else", name)
			}
		}
	}
	var index struct{ Manifests []descriptor }
	decode(t, blobs["index.json"], &index)
	var manifest struct {
		Config descriptor
		Layers []descriptor
	}
	decode(t, blobs[blobPath(index.Manifests[0].Digest)], &manifest)
	files := untar(t, bytes.NewReader(blobs[blobPath(manifest.Layers[0].Digest)]))
	if string(files["usr/bin/program"]) != "ELF" || string(files["etc/text"]) != "hello" {
		t.Errorf("the layer holds %v", files)
	}
	for i, want := range []string{s.Name, s.Aliases[0]} {
		m := index.Manifests[i]
		if name := m.Annotations["io.containerd.image.name"]; name != want || m.Digest != index.Manifests[0].Digest {
			t.Errorf("the archive names the image %q, not %q", name, want)
		}
	}
}

func TestArchiveIsWrittenOnceForOneContent(t *testing.T) {
	dir := t.TempDir()
	source := filepath.Join(dir, "f")
	write := func(content string) string {
		if err := os.WriteFile(source, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		file, err := Archive(filepath.Join(dir, "cache"), Spec{Name: "localhost/x:1", Files: map[string]File{"/f": {Source: source}}}, "amd64")
		if err != nil {
			t.Fatal(err)
		}
		return file
	}
	if first, second := write("a"), write("longer"); first == second {
		t.Error("changed content got the same archive")
	}
}

func TestLibrariesOfAProgramComeWithIt(t *testing.T) {
	const shell = "/bin/bash"
	if _, err := os.Stat(shell); err != nil {
		t.Skip("no bash here:", err)
	}
	files := map[string]File{}
	if err := addLibraries(files, shell); err != nil {
		t.Fatal(err)
	}
	libc, loader := false, false
	for path := range files {
		libc = libc || strings.HasPrefix(filepath.Base(path), "libc.so")
		loader = loader || strings.HasPrefix(filepath.Base(path), "ld-linux")
	}
	if !libc || !loader {
		t.Errorf("bash came with %v", files)
	}
}

func untar(t *testing.T, r io.Reader) map[string][]byte {
	t.Helper()
	out := map[string][]byte{}
	in := tar.NewReader(r)
	for {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		if out[h.Name], err = io.ReadAll(in); err != nil {
			t.Fatal(err)
		}
	}
}

func decode(t *testing.T, content []byte, into any) {
	t.Helper()
	if err := json.Unmarshal(content, into); err != nil {
		t.Fatal(err)
	}
}
