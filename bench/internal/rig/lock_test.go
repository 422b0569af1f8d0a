package rig

import (
	"context"
	"errors"
	"path/filepath"
	"testing"
	"time"
)

func TestOnlyOneRunAtATime(t *testing.T) {
	said := 0
	c := Config{Say: func(string, ...any) { said++ }}
	file := filepath.Join(t.TempDir(), "lock")
	release, err := c.alone(t.Context(), file)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := c.alone(ctx, file); !errors.Is(err, context.DeadlineExceeded) || said != 1 {
		t.Errorf("second run: %v, said %d", err, said)
	}
	release()
	release, err = c.alone(t.Context(), file)
	if err != nil {
		t.Fatalf("after the first: %v", err)
	}
	release()
}
