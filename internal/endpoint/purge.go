package endpoint

import (
	"net/netip"
	"sync"
)

// purger removes addresses from the kernel's tables. A sweep of the connection table costs the same for one address as for
// many, so the addresses that arrive during a sweep share the next one.
type purger struct {
	sweep func([]netip.Addr) error

	mu      sync.Mutex // guards the fields below
	next    *batch     // nil: nobody waits
	running bool
}

type batch struct {
	addrs []netip.Addr
	done  chan struct{}
	err   error // set before done is closed
}

// purge returns when a sweep that began after the call has removed the addresses.
func (p *purger) purge(addrs []netip.Addr) error {
	if len(addrs) == 0 {
		return nil
	}
	p.mu.Lock()
	if p.next == nil {
		p.next = &batch{done: make(chan struct{})}
	}
	b := p.next
	b.addrs = append(b.addrs, addrs...)
	lead := !p.running
	p.running = true
	p.mu.Unlock()
	if lead {
		go p.run()
	}
	<-b.done
	return b.err
}

func (p *purger) run() {
	for {
		p.mu.Lock()
		b := p.next
		p.next = nil
		if b == nil {
			p.running = false
			p.mu.Unlock()
			return
		}
		p.mu.Unlock()
		p.do(b)
	}
}

func (p *purger) do(b *batch) {
	defer close(b.done)
	b.err = p.sweep(b.addrs)
}
