package sync

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/strait-net/strait/internal/datapath/maps"
	"github.com/strait-net/strait/internal/state"
)

// herald writes down what it is told.
type herald struct {
	places map[string]uint32
	mac    byte
	deaf   bool
	told   []string
}

func (h *herald) Place(device string) (uint32, [6]byte, error) {
	index, ok := h.places[device]
	if !ok {
		return 0, [6]byte{}, fmt.Errorf("find device %s: gone", device)
	}
	return index, [6]byte{2, 0, 0, 0, 0, h.mac}, nil
}

func (h *herald) Listen(_ string, index uint32, a netip.Addr) error {
	if h.deaf {
		return errors.New("no more groups")
	}
	return nil
}

func (h *herald) Announce(index uint32, mac [6]byte, a netip.Addr) {
	h.told = append(h.told, fmt.Sprintf("announce %s on %d with %x", a, index, mac[5]))
}

func (h *herald) Withdraw(index uint32, a netip.Addr) {
	h.told = append(h.told, fmt.Sprintf("withdraw %s on %d", a, index))
}

func (h *herald) hear() []string {
	defer func() { h.told = nil }()
	return h.told
}

func announcements(t *testing.T, m *maps.Maps) []string {
	t.Helper()
	var out []string
	if err := m.EachAnnouncement(func(a maps.Announcement) {
		out = append(out, fmt.Sprintf("%s on %d with %x", a.Address, a.Index, a.MAC[5]))
	}); err != nil {
		t.Fatal(err)
	}
	slices.Sort(out)
	return out
}

func same(t *testing.T, what string, got, want []string) {
	t.Helper()
	if diff := gocmp.Diff(want, got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

func TestAnnouncements(t *testing.T) {
	m := open(t, small)
	ctx := context.Background()
	h := &herald{places: map[string]uint32{"eth0": 3}, mac: 1}
	a := NewAnnouncements(m, h)
	row := func(text string) state.Announcement {
		return state.Announcement{Address: netip.MustParseAddr(text), Device: "eth0"}
	}
	four, six := row("192.0.2.9"), row("2001:db8::9")
	for _, r := range []state.Announcement{four, six, four} {
		if err := a.Update(ctx, r); err != nil {
			t.Fatal(err)
		}
	}
	same(t, "kernel", announcements(t, m), []string{"192.0.2.9 on 3 with 1", "2001:db8::9 on 3 with 1"})
	same(t, "neighbours", h.hear(), []string{"announce 192.0.2.9 on 3 with 1", "announce 2001:db8::9 on 3 with 1"})

	// A restart: neighbours know.
	a = NewAnnouncements(m, h)
	if err := a.Update(ctx, four); err != nil {
		t.Fatal(err)
	}
	same(t, "neighbours after a restart", h.hear(), nil)

	// The device has another MAC; what is not wanted any more goes; what somebody else wrote, too.
	h.mac = 2
	if err := m.PutAnnouncement(maps.Announcement{Address: netip.MustParseAddr("192.0.2.77"), Index: 8}); err != nil {
		t.Fatal(err)
	}
	found, err := a.Prune(ctx, slices.Values([]state.Announcement{four}))
	if err != nil || len(found) != 3 {
		t.Errorf("prune: %v, %v", found, err)
	}
	same(t, "kernel after prune", announcements(t, m), []string{"192.0.2.9 on 3 with 2"})
	same(t, "neighbours after prune", h.hear(), []string{"announce 192.0.2.9 on 3 with 2", "withdraw 192.0.2.77 on 8", "withdraw 2001:db8::9 on 3"})
	if found, err = a.Prune(ctx, slices.Values([]state.Announcement{four})); err != nil || len(found) > 0 {
		t.Errorf("second prune: %v, %v", found, err)
	}

	// The device is replaced by one with another index: deleted where it is now, the rest by the next prune.
	h.places["eth0"] = 5
	if err := a.Update(ctx, four); err != nil {
		t.Fatal(err)
	}
	delete(h.places, "eth0")
	if err := a.Update(ctx, four); err == nil {
		t.Error("no error without the device")
	}
	if err := a.Delete(ctx, four); err != nil {
		t.Error(err)
	}
	if _, err := a.Prune(ctx, slices.Values([]state.Announcement(nil))); err != nil {
		t.Error(err)
	}
	same(t, "kernel in the end", announcements(t, m), nil)

	// An address whose questions are not delivered is an error of its row, and not announced.
	h.places["eth0"], h.deaf = 5, true
	h.hear()
	if err := a.Update(ctx, six); err == nil {
		t.Error("no error without the group")
	}
	same(t, "kernel", announcements(t, m), nil)
	same(t, "neighbours", h.hear(), nil)
}
