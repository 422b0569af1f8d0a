package wire

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// Queue is the directory of DELs that no agent has done yet, one file per attachment with the request inside.
type Queue struct{ dir string }

// NewQueue returns the queue below the agent's state directory.
func NewQueue(stateDir string) Queue { return Queue{dir: filepath.Join(stateDir, "cni", "deletes")} }

// Put queues the request. It is on disk when Put returns: the runtime is told that the DEL is done.
func (q Queue) Put(a Attachment, req Request) error {
	req.Version = Version
	data, err := json.Marshal(req)
	if err != nil {
		return fmt.Errorf("queue delete of %s: %w", a.Key(), err)
	}
	if err := os.MkdirAll(q.dir, 0o700); err != nil {
		return fmt.Errorf("queue delete of %s: %w", a.Key(), err)
	}
	if err := writeFile(filepath.Join(q.dir, a.FileName()), data); err != nil {
		return fmt.Errorf("queue delete of %s: %w", a.Key(), err)
	}
	return nil
}

// writeFile replaces the file whole and durably: temporary file, fsync, rename, fsync of the directory.
func writeFile(path string, data []byte) (err error) {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, ".tmp-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	_, err = f.Write(data)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
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

// Names returns the file names of the queued requests; none when there is no queue.
func (q Queue) Names() ([]string, error) {
	entries, err := os.ReadDir(q.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read queued deletes: %w", err)
	}
	var names []string
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), ".json") && !strings.HasPrefix(e.Name(), ".") {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// Has reports whether a DEL of the attachment is queued.
func (q Queue) Has(a Attachment) bool {
	_, err := os.Lstat(filepath.Join(q.dir, a.FileName()))
	return err == nil
}

// Get returns the queued request of that file name. A missing file is fs.ErrNotExist.
func (q Queue) Get(name string) (Request, error) {
	data, err := os.ReadFile(filepath.Join(q.dir, name))
	if err != nil {
		return Request{}, fmt.Errorf("read queued delete: %w", err)
	}
	req, err := DecodeRequest(data)
	if err != nil {
		return Request{}, fmt.Errorf("read queued delete %s: %w", name, err)
	}
	return req, nil
}

// Remove forgets a queued request; a missing one is no error.
func (q Queue) Remove(name string) error {
	if err := os.Remove(filepath.Join(q.dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove queued delete: %w", err)
	}
	return nil
}

// SetAside renames a queued request that cannot be read, so that it is kept for a person and not tried again.
func (q Queue) SetAside(name string) (string, error) {
	to := filepath.Join(q.dir, name+".corrupt")
	if err := os.Rename(filepath.Join(q.dir, name), to); err != nil {
		return "", fmt.Errorf("set queued delete aside: %w", err)
	}
	return to, nil
}
