package kube

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"

	"github.com/strait-net/strait/internal/state"
)

const (
	duplicates = "static" // source of problems with objects that are in two files

	settle    = 10 * time.Millisecond // after an event, so that a writer's burst is one read
	pollEvery = 2 * time.Second       // where inotify has no instance left
)

// Directory fills intent tables from *.yaml files of Kubernetes objects. A file that cannot be read leaves what it said before in force.
type Directory struct {
	dir    string
	tables Tables
	log    *slog.Logger
	files  map[string]*file
	stores []directoryStore
	synced bool
}

// file is the last good content of one file.
type file struct {
	raw     []byte
	bad     bool // raw is not what objects came from
	good    bool // has been read well at least once
	objects []metav1.Object
}

type directoryStore struct {
	kind    string
	replace func(objects []any) error
}

// NewDirectory returns a source of the objects in dir.
func NewDirectory(dir string, tables Tables, log *slog.Logger) *Directory {
	d := &Directory{dir: dir, tables: tables, log: log, files: map[string]*file{}}
	if tables.Nodes != nil {
		addStore(d, nodes(tables))
	}
	if tables.Services != nil {
		addStore(d, services(tables))
	}
	if tables.EndpointSlices != nil {
		addStore(d, endpointSlices(tables))
	}
	if tables.Pods != nil {
		addStore(d, pods(tables))
	}
	if tables.Namespaces != nil {
		addStore(d, namespaces(tables))
	}
	if tables.Policies != nil {
		addPolicyStores(d)
	}
	return d
}

func addStore[O metav1.Object, R any](d *Directory, k kind[O, R]) {
	done := k.register()
	s := &store[O, R]{
		kind: k, problems: d.tables.Problems, now: time.Now,
		done: func() {
			if d.synced {
				done()
			}
		},
	}
	d.stores = append(d.stores, directoryStore{k.name, func(objects []any) error {
		var ours []any
		for _, o := range objects {
			if _, ok := o.(O); ok {
				ours = append(ours, o)
			}
		}
		return s.Replace(ours, "")
	}})
}

// Run follows the directory until ctx ends. A directory that does not exist yet is waited for.
func (d *Directory) Run(ctx context.Context) error {
	var changed <-chan fsnotify.Event
	var lost <-chan error
	watcher, err := fsnotify.NewBufferedWatcher(64)
	if err == nil {
		defer func() { _ = watcher.Close() }()
		changed, lost = watcher.Events, watcher.Errors
		err = watcher.Add(d.dir)
	}
	if err != nil {
		d.log.Warn("directory is polled", "dir", d.dir, "err", err)
	}
	for {
		d.read()
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		case err := <-lost: // events overflowed: read everything
			d.log.Debug("events of the directory lost", "dir", d.dir, "err", err)
		case <-time.After(pollEvery):
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(settle):
		}
		for len(changed) > 0 {
			<-changed
		}
	}
}

// read takes in every file that differs from what was last seen of it, and hands all objects to the tables.
func (d *Directory) read() {
	names, err := filepath.Glob(filepath.Join(d.dir, "*.yaml"))
	if _, statErr := os.Stat(d.dir); err != nil || statErr != nil {
		d.raise("directory "+d.dir, errors.Join(err, statErr))
		return
	}
	state.Clear(d.tables.Problems, owner, "directory "+d.dir)
	changed := !d.synced
	for path := range d.files {
		if !slices.Contains(names, path) {
			delete(d.files, path)
			state.Clear(d.tables.Problems, owner, "file "+path)
			changed = true
		}
	}
	for _, path := range names {
		changed = d.readFile(path) || changed
	}
	if !changed {
		return
	}
	d.synced = true
	for _, f := range d.files {
		// A file never read well may hold anything: nothing may be pruned because of its absence.
		d.synced = d.synced && f.good
	}
	objects := d.merge()
	for _, s := range d.stores {
		if err := s.replace(objects); err != nil {
			d.raise("directory "+d.dir, err)
		}
	}
}

// readFile reports whether the objects of the file have changed.
func (d *Directory) readFile(path string) bool {
	f := d.files[path]
	if f == nil {
		f = &file{}
		d.files[path] = f
	}
	raw, err := os.ReadFile(path)
	if err == nil && bytes.Equal(raw, f.raw) && (f.good || f.bad) {
		return false
	}
	var objects []metav1.Object
	if err == nil {
		objects, err = ParseObjects(raw)
	}
	f.raw, f.bad = raw, err != nil
	if err != nil {
		d.raise("file "+path, err)
		return false
	}
	state.Clear(d.tables.Problems, owner, "file "+path)
	f.objects, f.good = objects, true
	return true
}

// merge returns all objects; of two that claim one name the one in the file that sorts first is taken.
func (d *Directory) merge() []any {
	paths := make([]string, 0, len(d.files))
	for path := range d.files {
		paths = append(paths, path)
	}
	slices.Sort(paths)
	from := map[string]string{}
	var out []any
	var twice []state.Problem
	for _, path := range paths {
		for _, o := range d.files[path].objects {
			key := fmt.Sprintf("%T %s", o, objectName(o))
			if first, taken := from[key]; taken {
				twice = append(twice, state.Problem{Subject: strings.TrimPrefix(key, "*v1."), Text: "is in " + path + " and in " + first + "; the latter counts"})
				continue
			}
			from[key] = path
			out = append(out, o)
		}
	}
	state.Report(d.tables.Problems, duplicates, time.Now(), twice)
	return out
}

func (d *Directory) raise(subject string, err error) {
	p := state.Problem{Source: owner, Subject: subject, Text: err.Error()}
	if old, _, ok := d.tables.Problems.Snapshot().Get(p.Key()); !ok || old.Text != p.Text {
		d.log.Warn("static state not read, the previous stays", "subject", subject, "err", err)
		state.Raise(d.tables.Problems, p, time.Now())
	}
}

// staticKind is a kind of object that a directory may have.
type staticKind struct {
	apiVersion, kind string
	namespaced       bool
	object           metav1.Object
}

// staticKinds returns new objects of every kind.
func staticKinds() []staticKind {
	return append([]staticKind{
		{"v1", "Node", false, &corev1.Node{}},
		{"v1", "Service", true, &corev1.Service{}},
		{"discovery.k8s.io/v1", "EndpointSlice", true, &discoveryv1.EndpointSlice{}},
		{"v1", "Pod", true, &corev1.Pod{}},
		{"v1", "Namespace", false, &corev1.Namespace{}},
	}, policyStaticKinds()...)
}

func staticKindOf(head metav1.TypeMeta) (staticKind, error) {
	var accepted []string
	for _, k := range staticKinds() {
		if k.apiVersion == head.APIVersion && k.kind == head.Kind {
			return k, nil
		}
		accepted = append(accepted, k.apiVersion+" "+k.kind)
	}
	return staticKind{}, fmt.Errorf("apiVersion %q, kind %q: accepted: %s, v1 List", head.APIVersion, head.Kind, strings.Join(accepted, ", "))
}

// ParseObjects reads YAML documents of the kinds of staticKinds and v1 List of them. Unknown fields are errors.
func ParseObjects(raw []byte) ([]metav1.Object, error) {
	var out []metav1.Object
	documents := utilyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(raw)))
	for i := 1; ; i++ {
		document, err := documents.Read()
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil {
			return nil, fmt.Errorf("document %d: %w", i, err)
		}
		objects, err := parseDocument(document)
		if err != nil {
			return nil, fmt.Errorf("document %d: %w", i, err)
		}
		out = append(out, objects...)
	}
}

func parseDocument(document []byte) ([]metav1.Object, error) {
	var head struct {
		metav1.TypeMeta `json:",inline"`
		Items           []any `json:"items"`
	}
	if err := yaml.Unmarshal(document, &head); err != nil {
		return nil, err
	}
	switch head.APIVersion + " " + head.Kind {
	case " ":
		if strings.TrimSpace(stripComments(document)) == "" {
			return nil, nil
		}
		return nil, errors.New("has no apiVersion and kind")
	case "v1 List":
		var out []metav1.Object
		for i, item := range head.Items {
			b, err := yaml.Marshal(item)
			if err != nil {
				return nil, fmt.Errorf("items[%d]: %w", i, err)
			}
			objects, err := parseDocument(b)
			if err != nil {
				return nil, fmt.Errorf("items[%d]: %w", i, err)
			}
			out = append(out, objects...)
		}
		return out, nil
	}
	k, err := staticKindOf(head.TypeMeta)
	if err != nil {
		return nil, err
	}
	o := k.object
	if err := yaml.UnmarshalStrict(document, o); err != nil {
		return nil, fmt.Errorf("%s: %w", head.Kind, err)
	}
	if o.GetName() == "" {
		return nil, fmt.Errorf("%s: metadata.name is empty", head.Kind)
	}
	if k.namespaced && o.GetNamespace() == "" {
		o.SetNamespace(metav1.NamespaceDefault)
	}
	return []metav1.Object{o}, nil
}

func stripComments(document []byte) string {
	var out []string
	for _, line := range strings.Split(string(document), "\n") {
		if text := strings.TrimSpace(line); !strings.HasPrefix(text, "#") && text != "---" {
			out = append(out, line)
		}
	}
	return strings.Join(out, "\n")
}
