package policy

import (
	"slices"
	"testing"

	"github.com/strait-net/strait/internal/identity"
)

func TestNothingDistinguishedIsReserved(t *testing.T) {
	for kind, want := range map[PeerKind]identity.ID{
		UnknownPeer: identity.Unknown, HostPeer: identity.Host, NodePeer: identity.RemoteNode, PodPeer: identity.Pod,
		APIServerPeer: identity.APIServer, WorldPeer: identity.World,
	} {
		if got := Identify(kind, nil); got != want {
			t.Errorf("%s is %s, want %s", kind, got, want)
		}
		if got := NewIdentities().Of(kind, Matches{}); got.ID != want || got.Kind != kind {
			t.Errorf("%s is %+v", kind, got)
		}
		if got, ok := NewIdentities().Get(want); !ok || got.Kind != kind {
			t.Errorf("%s stands for %+v", want, got)
		}
	}
}

// The number is in the kernel's maps and must be the same after an upgrade: every row would have to be written anew otherwise.
func TestIdentitiesStayWhatTheyWere(t *testing.T) {
	got := Identify(PodPeer, Matches{{Selector: "pods app=client in namespace a"}, {Selector: "pods", Name: "http", Protocol: TCP, Port: 80}})
	if got.String() != "ca15646bad0ccf87" {
		t.Error(got)
	}
}

func TestIdentitiesAreOfContent(t *testing.T) {
	a := Matches{{Selector: "a"}}
	all := []identity.ID{
		Identify(PodPeer, a), Identify(NodePeer, a), Identify(PodPeer, Matches{{Selector: "b"}}),
		Identify(PodPeer, Matches{{Selector: "a"}, {Selector: "b"}}),
		Identify(PodPeer, Matches{{Selector: "a"}, {Selector: "a", Name: "http", Protocol: TCP, Port: 80}}),
		Identify(PodPeer, Matches{{Selector: "a"}, {Selector: "a", Name: "http", Protocol: TCP, Port: 81}}),
		Identify(PodPeer, Matches{{Selector: "a"}, {Selector: "a", Name: "http", Protocol: UDP, Port: 80}}),
	}
	for i, id := range all {
		if id < identity.FirstComputed || slices.Contains(all[:i], id) {
			t.Errorf("%d: %s", i, id)
		}
	}
}

func TestTwoContentsWithOneHashAreTwoIdentities(t *testing.T) {
	s := NewIdentities()
	s.hash = func(_ PeerKind, _ Matches, salt uint64) identity.ID {
		return identity.FirstComputed + identity.ID(salt)
	}
	mine := Matches{{Selector: "a"}}
	a := s.Of(PodPeer, mine)
	mine[0].Selector = "b" // the caller's own
	b, c := s.Of(PodPeer, mine), s.Of(NodePeer, mine)
	if a.ID != 256 || b.ID != 257 || c.ID != 258 || s.Len() != 3 {
		t.Errorf("%+v %+v %+v", a, b, c)
	}
	if again := s.Of(PodPeer, Matches{{Selector: "a"}}); again.ID != a.ID || &again.Matches[0] != &a.Matches[0] {
		t.Errorf("%+v, was %+v", again, a)
	}
	if got, ok := s.Get(b.ID); !ok || got.Kind != PodPeer || got.Matches[0].Selector != "b" {
		t.Errorf("%+v", got)
	}
	s.Forget(b.ID)
	if _, ok := s.Get(b.ID); ok {
		t.Error("not forgotten")
	}
}
