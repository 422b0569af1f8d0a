package policy

import (
	"slices"

	"github.com/strait-net/strait/internal/identity"
)

// Identity is who a peer is as far as selectors in use can tell.
type Identity struct {
	ID      identity.ID
	Kind    PeerKind
	Matches Matches // shared between all who have the identity: nobody writes to it
}

// reserved is the identity of a kind of which nothing is distinguished.
func reserved(kind PeerKind) identity.ID {
	switch kind {
	case HostPeer:
		return identity.Host
	case NodePeer:
		return identity.RemoteNode
	case PodPeer:
		return identity.Pod
	case APIServerPeer:
		return identity.APIServer
	case WorldPeer:
		return identity.World
	}
	return identity.Unknown
}

// Identify names a kind of peer that matches ms: the reserved number of the kind if that is nothing, else a hash of both.
func Identify(kind PeerKind, ms Matches) identity.ID { return identify(kind, ms, 0) }

// identify is Identify with a salt for when two contents have one hash.
func identify(kind PeerKind, ms Matches, salt uint64) identity.ID {
	if len(ms) == 0 {
		return reserved(kind)
	}
	d := digest{data: make([]byte, 0, 512)}
	d.text("identity")
	d.number(salt)
	d.number(uint64(kind))
	d.number(uint64(len(ms)))
	for i := range ms {
		d.text(ms[i].Selector)
		d.text(ms[i].Name)
		d.number(uint64(ms[i].Protocol))
		d.number(uint64(ms[i].Port))
	}
	return identity.ID(d.sum(uint64(identity.FirstComputed)))
}

// Identities keeps what each identity in use stands for, so that a second content with the same hash is noticed. One goroutine at a time.
type Identities struct {
	known map[identity.ID]Identity
	hash  func(PeerKind, Matches, uint64) identity.ID
}

// NewIdentities returns an empty set.
func NewIdentities() *Identities {
	return &Identities{known: map[identity.ID]Identity{}, hash: identify}
}

// Of returns the identity of a kind of peer that matches ms. If its hash belongs to other content already, the one that came later gets the
// hash with a salt: 1, or the first number above that is free.
func (s *Identities) Of(kind PeerKind, ms Matches) Identity {
	if len(ms) == 0 {
		return Identity{ID: reserved(kind), Kind: kind}
	}
	for salt := uint64(0); ; salt++ {
		id := s.hash(kind, ms, salt)
		known, taken := s.known[id]
		if !taken {
			known = Identity{ID: id, Kind: kind, Matches: slices.Clone(ms)}
			s.known[id] = known
			return known
		}
		if known.Kind == kind && slices.Equal(known.Matches, ms) {
			return known
		}
	}
}

// Get returns what an identity in use stands for. Reserved ones stand for a kind and nothing else.
func (s *Identities) Get(id identity.ID) (Identity, bool) {
	for _, kind := range []PeerKind{UnknownPeer, HostPeer, NodePeer, PodPeer, APIServerPeer, WorldPeer} {
		if reserved(kind) == id {
			return Identity{ID: id, Kind: kind}, true
		}
	}
	known, found := s.known[id]
	return known, found
}

// Forget drops an identity that nothing in the kernel refers to any more.
func (s *Identities) Forget(id identity.ID) { delete(s.known, id) }

// Len returns how many identities other than reserved ones are known.
func (s *Identities) Len() int { return len(s.known) }
