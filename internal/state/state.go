// Package state declares every table of intent, desired and actual state, one file per subject.
package state

import "github.com/strait-net/strait/internal/table"

// State is all tables of one agent. Each table has one owner that writes it, named with its row type.
type State struct {
	Nodes          *table.Table[Node]
	Services       *table.Table[Service]
	EndpointSlices *table.Table[EndpointSlice]
	Pods           *table.Table[Pod]
	Namespaces     *table.Table[Namespace]
	Policies       *table.Table[Policy]

	Remotes   *table.Table[Remote]
	Routes    *table.Table[Route]
	Frontends *table.Table[Frontend]

	Identities *table.Table[Identity]
	Programs   *table.Table[Program]

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
		Pods:           NewPods(),
		Namespaces:     NewNamespaces(),
		Policies:       NewPolicies(),
		Remotes:        NewRemotes(),
		Routes:         NewRoutes(),
		Frontends:      NewFrontends(),
		Identities:     NewIdentities(),
		Programs:       NewPrograms(),
		Announcements:  NewAnnouncements(),
		Endpoints:      NewEndpoints(),
		Devices:        NewDevices(),
		Problems:       NewProblems(),
	}
}
