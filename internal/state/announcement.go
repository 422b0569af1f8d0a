package state

import (
	"net/netip"

	"github.com/strait-net/strait/internal/reconcile"
	"github.com/strait-net/strait/internal/table"
)

// Announcement is a service address that this node answers ARP or neighbour discovery for on a device. Desired; owner: announce.
type Announcement struct {
	Address netip.Addr
	Device  string
	reconcile.Status
}

// Key returns address@device.
func (a Announcement) Key() string { return a.Address.String() + "@" + a.Device }

// SameIntent reports whether two rows want the same of the kernel, whatever became of them.
func (a Announcement) SameIntent(o Announcement) bool {
	return a.WithStatus(reconcile.Status{}) == o.WithStatus(reconcile.Status{})
}

// WithStatus returns the row with the reconciler's result.
func (a Announcement) WithStatus(s reconcile.Status) Announcement { a.Status = s; return a }

// NewAnnouncements returns the table of announcements, keyed by Announcement.Key.
func NewAnnouncements() *table.Table[Announcement] {
	return table.New("announcements", Announcement.Key)
}
