//go:build !linux

package tap

import (
	"errors"
	"time"
)

// Nodes run Linux: elsewhere there is nothing to see.

var errNoNode = errors.New("this machine is no node")

// Tap is one socket.
type Tap struct{}

// Open fails.
func Open(Config) (*Tap, error) { return nil, errNoNode }

// Read sees nothing.
func (*Tap) Read(func(Frame)) int { return 0 }

// Count counts nothing.
func (*Tap) Count() (seen, lost uint64, err error) { return 0, 0, nil }

// Close has nothing to end.
func (*Tap) Close() error { return nil }

// Wait fails.
func Wait([]*Tap, time.Duration) error { return errNoNode }
