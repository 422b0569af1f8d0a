// Package events reads what the kernel tells about connections: records of the ring, repeats that it holds back, and counts of what it had no
// room for.
package events

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"

	"github.com/strait-net/strait/internal/flow"
)

const (
	// look is how long records wait: the kernel does not wake anybody for each of them, only when much has come together.
	look = 50 * time.Millisecond
	// collect is how often repeats are collected that no further packet has told of.
	collect = time.Second
	// batch is how many events are told at a time.
	batch = 1024
)

// Kernel is where events come from. *maps.Maps is one.
type Kernel interface {
	Events() (*ebpf.Map, error)
	Lost() ([flow.Kinds]flow.LostCount, error)
	Repeats(tell func(flow.Event)) error
}

// Config is what a Reader needs.
type Config struct {
	Kernel Kernel
	// Tell is given events nearly in the order of their times. The slice is used again.
	Tell func([]flow.Event)
	// Report is told of trouble, and by nil that it is over.
	Report func(error)
}

// Reader reads the ring of records: one at a time, or each record is seen by one of them only.
type Reader struct {
	Config
	mu     sync.RWMutex // held for writing while ring is closed: nobody may look at its memory then
	closed bool
	ring   *ringbuf.Reader
	clock  clock
	record ringbuf.Record
	events []flow.Event
	// unread are records that could not be decoded, unreadable says why of the last one; told with the next round.
	unread     uint64
	unreadable error
	lost       [flow.Kinds]flow.LostCount // told so far
	collected  time.Time
}

// New opens the ring. What was lost before is no news: nobody can say when that was.
func New(c Config) (*Reader, error) {
	events, err := c.Kernel.Events()
	if err != nil {
		return nil, err
	}
	r := &Reader{Config: c, events: make([]flow.Event, 0, batch)}
	if err := r.clock.adjust(); err != nil {
		return nil, err
	}
	if r.lost, err = c.Kernel.Lost(); err != nil {
		return nil, err
	}
	if r.ring, err = ringbuf.NewReader(events); err != nil {
		return nil, fmt.Errorf("open ring of records: %w", err)
	}
	return r, nil
}

// Close ends reading. What is in the ring stays there.
func (r *Reader) Close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
	_ = r.ring.Close()
}

// Fill returns how many bytes of the ring wait to be read, and how many it has; nothing when it is closed.
func (r *Reader) Fill() (used, size int) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if r.closed {
		return 0, 0
	}
	return r.ring.AvailableBytes(), r.ring.BufferSize()
}

// Run reads until ctx ends.
func (r *Reader) Run(ctx context.Context) error {
	failed := false
	for ctx.Err() == nil {
		err := r.round()
		if err != nil || failed {
			r.Report(err)
		}
		if failed = err != nil; failed {
			select {
			case <-ctx.Done():
			case <-time.After(collect): // not again and again at once
			}
		}
	}
	return ctx.Err()
}

// round waits for records and tells of them, and of what there is beside them.
func (r *Reader) round() error {
	err := r.clock.adjust()
	end := time.Now().Add(look)
	r.ring.SetDeadline(end)
	for {
		drained, readErr := r.read()
		r.tell()
		// Where more comes than can be read the ring is never empty.
		if err = errors.Join(err, readErr); drained || err != nil || time.Now().After(end) {
			break
		}
	}
	return errors.Join(err, r.beside())
}

// read reads records until there is a batch of them, or none is left.
func (r *Reader) read() (drained bool, err error) {
	for len(r.events) < batch {
		switch err := r.ring.ReadInto(&r.record); {
		case errors.Is(err, os.ErrDeadlineExceeded):
			return true, nil
		case err != nil:
			return true, fmt.Errorf("read ring of records: %w", err)
		}
		e, err := decode(r.record.RawSample, r.clock)
		if err != nil {
			r.unread, r.unreadable = r.unread+1, err
			continue
		}
		r.events = append(r.events, e)
	}
	return false, nil
}

func (r *Reader) tell() {
	if len(r.events) > 0 {
		r.Tell(r.events)
		r.events = r.events[:0]
	}
}

// beside tells of what is not in the ring.
func (r *Reader) beside() error {
	now := time.Now()
	lost, err := r.Kernel.Lost()
	if err == nil {
		r.gaps(lost, now)
	}
	if r.unread > 0 {
		r.events = append(r.events, flow.Event{Time: now, Kind: flow.Lost, LostRecords: r.unread})
		err = errors.Join(err, r.unreadable)
		r.unread, r.unreadable = 0, nil
	}
	if now.Sub(r.collected) >= collect {
		r.collected = now
		err = errors.Join(err, r.Kernel.Repeats(func(e flow.Event) {
			e.Time = now
			r.events = append(r.events, e)
		}))
	}
	r.tell()
	return err
}

// gaps tells of what was lost since the last time.
func (r *Reader) gaps(lost [flow.Kinds]flow.LostCount, now time.Time) {
	for kind, c := range lost {
		old := r.lost[kind]
		if c.Records <= old.Records {
			continue
		}
		r.events = append(r.events, flow.Event{
			Time: now, Kind: flow.Lost, LostKind: flow.Kind(kind), LostRecords: c.Records - old.Records,
			Sent: flow.Traffic{Packets: c.Packets - old.Packets, Bytes: c.Bytes - old.Bytes},
		})
	}
	r.lost = lost
}
