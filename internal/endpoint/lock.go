package endpoint

import (
	"context"
	"fmt"
	"sync"
)

// keyLock is one lock per key, taken in the order of arrival as far as the scheduler keeps it. The zero value is ready.
type keyLock struct {
	mu    sync.Mutex // guards slots and their users
	slots map[string]*slot
}

type slot struct {
	token chan struct{} // holds one value while the key is locked
	users int           // holders and waiters
}

// lock waits for the key. The caller calls unlock when the error is nil.
func (l *keyLock) lock(ctx context.Context, key string) (unlock func(), err error) {
	l.mu.Lock()
	if l.slots == nil {
		l.slots = map[string]*slot{}
	}
	s := l.slots[key]
	if s == nil {
		s = &slot{token: make(chan struct{}, 1)}
		l.slots[key] = s
	}
	s.users++
	l.mu.Unlock()
	leave := func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if s.users--; s.users == 0 {
			delete(l.slots, key)
		}
	}
	select {
	case s.token <- struct{}{}:
		return func() { <-s.token; leave() }, nil
	case <-ctx.Done():
		leave()
		return nil, fmt.Errorf("wait for another operation on %s: %w", key, ctx.Err())
	}
}
