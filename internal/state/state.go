// Package state declares every table of intent, desired and actual state, one file per subject.
package state

import "github.com/strait-net/strait/internal/table"

// State is all tables of one agent. Each table has one owner that writes it, named with its row type.
type State struct {
	Nodes          *table.Table[Node]
	Services       *table.Table[Service]
	EndpointSlices *table.Table[EndpointSlice]

	Remotes   *table.Table[Remote]
	Routes    *table.Table[Route]
	Frontends *table.Table[Frontend]

	Announcements *table.Table[Announcement]

	Endpoints *table.Table[Endpoint]
	Devices   *table.Table[Device]
	Problems  *table.Table[Problem]
}

// New returns empty tables.
func New() *State {
	return &State{
		Nodes:          NewNodes(),
		Services:       NewServices(),
		EndpointSlices: NewEndpointSlices(),
		Remotes:        NewRemotes(),
		Routes:         NewRoutes(),
		Frontends:      NewFrontends(),
		Announcements:  NewAnnouncements(),
		Endpoints:      NewEndpoints(),
		Devices:        NewDevices(),
		Problems:       NewProblems(),
	}
}
