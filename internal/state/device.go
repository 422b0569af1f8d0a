package state

import (
	"net/netip"

	"github.com/strait-net/strait/internal/table"
)

// Device is a device of this node that is no pod's, as observed; loopback only if it has addresses. Actual; owner: datapath/netdev.
type Device struct {
	Name      string
	Index     int
	MTU       int
	Up        bool
	Addresses []netip.Prefix // global scope, with the subnet's length
	Native    bool           // attached to: carries traffic of and for the outside
}

// NewDevices returns the table of devices, keyed by name.
func NewDevices() *table.Table[Device] {
	return table.New("devices", func(d Device) string { return d.Name })
}
