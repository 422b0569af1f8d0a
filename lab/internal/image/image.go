// Package image assembles container images from files of this machine, without a registry: one uncompressed layer in an OCI
// archive that containerd imports.
package image

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Names of the lab's images. "localhost" keeps every tool from taking the first part for a registry to be asked.
const (
	Pause   = "localhost/pause:1"
	Agnhost = "localhost/agnhost:2.63.0"
	// AgnhostOfPolicies and AgnhostOfCyclonus are what two suites of tests of policies call the same image; no node asks the registry for it.
	AgnhostOfPolicies = "registry.k8s.io/e2e-test-images/agnhost:2.45"
	AgnhostOfCyclonus = "localhost/e2e-test-images/agnhost:2.43"

	Busybox = "localhost/busybox:1.37.0-1"           // as the upstream tests call it; the program is Debian's
	Strays  = "localhost/regression-issue-74839:1.4" // a server that sends packets out of order, for an upstream test
	CoreDNS = "localhost/coredns:1.14.7"
	Strait  = "localhost/strait:dev"
)

// File is one entry of a root file system.
type File struct {
	Source string // path on this machine; empty with Content or Link
	Text   string // content, when Source and Link are empty
	Link   string // target of a symbolic link
	Mode   int64  // permission bits
}

// Spec describes an image.
type Spec struct {
	Name       string
	Aliases    []string        // more names of the same image
	Files      map[string]File // by absolute path in the image; parent directories are made
	Dirs       []string        // empty directories, mode 1777
	Entrypoint []string
	Cmd        []string
	Env        []string
	User       string // "uid:gid"; empty is root
}

type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int64             `json:"size"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

const (
	mediaIndex    = "application/vnd.oci.image.index.v1+json"
	mediaManifest = "application/vnd.oci.image.manifest.v1+json"
	mediaConfig   = "application/vnd.oci.image.config.v1+json"
	mediaLayer    = "application/vnd.oci.image.layer.v1.tar"
)

// Write writes the archive for an architecture, named as Go names it. Same input, same bytes.
func Write(w io.Writer, s Spec, architecture string) error {
	layer, err := os.CreateTemp("", "strait-lab-layer-*")
	if err != nil {
		return err
	}
	defer os.Remove(layer.Name())
	defer layer.Close()
	sum := sha256.New()
	if err := writeLayer(io.MultiWriter(layer, sum), s); err != nil {
		return fmt.Errorf("write layer of %s: %w", s.Name, err)
	}
	size, err := layer.Seek(0, io.SeekCurrent)
	if err != nil {
		return err
	}
	layerDigest := "sha256:" + hex.EncodeToString(sum.Sum(nil))

	config, configAt, err := blob(mediaConfig, map[string]any{
		"architecture": architecture,
		"os":           "linux",
		"config":       map[string]any{"Entrypoint": s.Entrypoint, "Cmd": s.Cmd, "Env": s.Env, "User": s.User, "WorkingDir": "/"},
		"rootfs":       map[string]any{"type": "layers", "diff_ids": []string{layerDigest}},
	})
	if err != nil {
		return err
	}
	manifest, manifestAt, err := blob(mediaManifest, map[string]any{
		"schemaVersion": 2, "mediaType": mediaManifest, "config": configAt,
		"layers": []descriptor{{MediaType: mediaLayer, Digest: layerDigest, Size: size}},
	})
	if err != nil {
		return err
	}
	index, err := json.Marshal(map[string]any{"schemaVersion": 2, "mediaType": mediaIndex, "manifests": s.named(manifestAt)})
	if err != nil {
		return err
	}
	if _, err := layer.Seek(0, io.SeekStart); err != nil {
		return err
	}
	out := tar.NewWriter(w)
	for _, part := range []struct {
		name string
		size int64
		body io.Reader
	}{
		{"oci-layout", int64(len(layout)), strings.NewReader(layout)},
		{blobPath(configAt.Digest), configAt.Size, bytes.NewReader(config)},
		{blobPath(manifestAt.Digest), manifestAt.Size, bytes.NewReader(manifest)},
		{blobPath(layerDigest), size, layer},
		{"index.json", int64(len(index)), bytes.NewReader(index)},
	} {
		if err := out.WriteHeader(&tar.Header{Name: part.name, Mode: 0o644, Size: part.size}); err != nil {
			return err
		}
		if _, err := io.Copy(out, part.body); err != nil {
			return err
		}
	}
	return out.Close()
}

// named returns the manifest under each of the image's names.
func (s Spec) named(manifest descriptor) []descriptor {
	var out []descriptor
	for _, name := range append([]string{s.Name}, s.Aliases...) {
		manifest.Annotations = map[string]string{
			"io.containerd.image.name":          name,
			"org.opencontainers.image.ref.name": name[strings.LastIndex(name, ":")+1:],
		}
		out = append(out, manifest)
	}
	return out
}

const layout = `{"imageLayoutVersion":"1.0.0"}`

func blob(media string, content any) ([]byte, descriptor, error) {
	encoded, err := json.Marshal(content)
	if err != nil {
		return nil, descriptor{}, err
	}
	sum := sha256.Sum256(encoded)
	return encoded, descriptor{MediaType: media, Digest: "sha256:" + hex.EncodeToString(sum[:]), Size: int64(len(encoded))}, nil
}

func blobPath(digest string) string { return "blobs/" + strings.Replace(digest, ":", "/", 1) }

func writeLayer(w io.Writer, s Spec) error {
	out := tar.NewWriter(w)
	made := map[string]bool{"/": true}
	var mkdir func(dir string, mode int64) error
	mkdir = func(dir string, mode int64) error {
		if made[dir] {
			return nil
		}
		if err := mkdir(path.Dir(dir), 0o755); err != nil {
			return err
		}
		made[dir] = true
		return out.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir[1:] + "/", Mode: mode})
	}
	names := make([]string, 0, len(s.Files))
	for name := range s.Files {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, dir := range s.Dirs {
		if err := mkdir(dir, 0o1777); err != nil {
			return err
		}
	}
	for _, name := range names {
		if err := mkdir(path.Dir(name), 0o755); err != nil {
			return err
		}
		if err := writeFile(out, name[1:], s.Files[name]); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return out.Close()
}

func writeFile(out *tar.Writer, name string, f File) error {
	if f.Link != "" {
		return out.WriteHeader(&tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: f.Link, Mode: 0o777})
	}
	if f.Source == "" {
		if err := out.WriteHeader(&tar.Header{Name: name, Mode: f.Mode, Size: int64(len(f.Text))}); err != nil {
			return err
		}
		_, err := io.WriteString(out, f.Text)
		return err
	}
	in, err := os.Open(f.Source)
	if err != nil {
		return err
	}
	defer in.Close()
	stat, err := in.Stat()
	if err != nil {
		return err
	}
	if err := out.WriteHeader(&tar.Header{Name: name, Mode: f.Mode, Size: stat.Size()}); err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return err
}

// Key changes whenever the image would: it covers the description and the content of every file.
func (s Spec) Key() (string, error) {
	sum := sha256.New()
	description, err := json.Marshal(s) // maps are marshalled in key order
	if err != nil {
		return "", err
	}
	sum.Write(description)
	names := make([]string, 0, len(s.Files))
	for name := range s.Files {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		source := s.Files[name].Source
		if source == "" {
			continue
		}
		stat, err := os.Stat(source)
		if err != nil {
			return "", err
		}
		// Size and time instead of content: reading 200 MB on each start would cost more than a needless rewrite.
		fmt.Fprintf(sum, "%s %d %d\n", source, stat.Size(), stat.ModTime().UnixNano())
	}
	return hex.EncodeToString(sum.Sum(nil))[:16], nil
}

// Prefix is how the names of an image's archives begin.
func Prefix(name string) string {
	return strings.NewReplacer("localhost/", "", ":", "-").Replace(name) + "-"
}

// Archive writes the image into dir unless it is there, and returns the file name below dir.
func Archive(dir string, s Spec, architecture string) (string, error) {
	key, err := s.Key()
	if err != nil {
		return "", fmt.Errorf("describe image %s: %w", s.Name, err)
	}
	file := Prefix(s.Name) + key + ".tar"
	target := filepath.Join(dir, file)
	now := time.Now()
	if err := os.Chtimes(target, now, now); err == nil { // it is there, and in use again
		return file, nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	out, err := os.CreateTemp(dir, ".writing-*")
	if err != nil {
		return "", err
	}
	defer os.Remove(out.Name())
	if err := errors.Join(Write(out, s, architecture), out.Close()); err != nil {
		return "", err
	}
	if err := os.Chmod(out.Name(), 0o644); err != nil {
		return "", err
	}
	if err := os.Rename(out.Name(), target); err != nil {
		return "", err
	}
	return file, prune(dir)
}

// prune drops archives that no lab has asked for in a week.
func prune(dir string) error {
	files, err := filepath.Glob(filepath.Join(dir, "*.tar"))
	if err != nil {
		return err
	}
	for _, file := range files {
		stat, err := os.Stat(file)
		if err == nil && time.Since(stat.ModTime()) > 7*24*time.Hour {
			err = os.Remove(file)
		}
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}
