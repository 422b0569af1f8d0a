package localapi

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// Failure is why the last agent ended, kept for whoever asks while none is running.
type Failure struct {
	At    time.Time `json:"at"`
	Error string    `json:"error"`
}

func failurePath(runDir string) string { return filepath.Join(runDir, "agent.error") }

// WriteFailure keeps why the agent ends.
func WriteFailure(runDir string, why error) error {
	text, err := json.Marshal(Failure{At: time.Now(), Error: why.Error()})
	if err != nil {
		return fmt.Errorf("write why the agent ends: %w", err)
	}
	if err := os.MkdirAll(runDir, 0o755); err != nil {
		return fmt.Errorf("write why the agent ends: %w", err)
	}
	if err := os.WriteFile(failurePath(runDir), text, 0o644); err != nil {
		return fmt.Errorf("write why the agent ends: %w", err)
	}
	return nil
}

// ClearFailure forgets it: an agent runs.
func ClearFailure(runDir string) error {
	if err := os.Remove(failurePath(runDir)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("forget why the last agent ended: %w", err)
	}
	return nil
}

// LastFailure returns why the last agent ended. The error matches os.ErrNotExist when nothing is kept.
func LastFailure(runDir string) (f Failure, err error) {
	text, err := os.ReadFile(failurePath(runDir))
	if err == nil {
		err = json.Unmarshal(text, &f)
	}
	return f, err
}
