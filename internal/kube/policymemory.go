package kube

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"sync"

	"github.com/strait-net/strait/internal/policy"
	"github.com/strait-net/strait/internal/state"
)

// PolicyMemory keeps on disk what objects with policies said before their newest generation was refused, so that an agent that restarts goes on
// enforcing it. Such objects are few: the file is written whole. A nil one keeps nothing. Methods may be called from any goroutine.
type PolicyMemory struct {
	path string

	mu     sync.Mutex              // guards everything below, and the file
	rows   map[string]state.Policy // by Policy.Key; refused, with Specs
	failed bool                    // the file is not what rows are
}

// OpenPolicyMemory reads the file. With an error the memory is empty, and usable.
func OpenPolicyMemory(path string) (*PolicyMemory, error) {
	m := &PolicyMemory{path: path, rows: map[string]state.Policy{}}
	text, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return m, nil
	}
	var rows []state.Policy
	if err == nil {
		err = json.Unmarshal(text, &rows)
	}
	if err != nil {
		return m, fmt.Errorf("read what refused policies said before: %w", err)
	}
	for _, row := range rows {
		m.rows[row.Key()] = row
	}
	return m, nil
}

// recall returns a row of which nothing from before is known with what is kept of the same object.
func (m *PolicyMemory) recall(row state.Policy) state.Policy {
	if m == nil {
		return row
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if kept, found := m.rows[row.Key()]; found && kept.UID == row.UID {
		row.Specs, row.Enforced = kept.Specs, kept.Enforced
	}
	return row
}

// note keeps a row if that is one to be kept, and forgets what was kept of it if not.
func (m *PolicyMemory) note(row state.Policy) error {
	if m == nil {
		return nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	key := row.Key()
	kept, found := m.rows[key]
	keep := row.Refused != "" && len(row.Specs) > 0
	if keep {
		m.rows[key] = row
	} else {
		delete(m.rows, key)
	}
	return m.writeLocked(keep != found || keep && !reflect.DeepEqual(kept, row))
}

// forget drops the rows of a kind that are not there any more.
func (m *PolicyMemory) forget(kind policy.Kind, there func(key string) bool) error {
	if m == nil {
		return nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	before := len(m.rows)
	for key, row := range m.rows {
		if row.Kind == kind && !there(key) {
			delete(m.rows, key)
		}
	}
	return m.writeLocked(len(m.rows) != before)
}

// writeLocked replaces the file in one step, if it is to be another one or could not be written before.
func (m *PolicyMemory) writeLocked(changed bool) error {
	if !changed && !m.failed {
		return nil
	}
	text, err := json.Marshal(slices.Collect(maps.Values(m.rows)))
	if err == nil {
		err = os.MkdirAll(filepath.Dir(m.path), 0o755)
	}
	if err == nil {
		err = os.WriteFile(m.path+".new", text, 0o600)
	}
	if err == nil {
		err = os.Rename(m.path+".new", m.path)
	}
	if m.failed = err != nil; m.failed {
		return fmt.Errorf("keep what refused policies said before: %w", err)
	}
	return nil
}
