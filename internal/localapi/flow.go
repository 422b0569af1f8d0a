package localapi

// FlowStatus is what is told about connections on this node.
type FlowStatus struct {
	Enabled   bool    `json:"enabled"`
	PerSecond float64 `json:"perSecond"` // flows, over the last minute
	Kept      int     `json:"kept"`      // flows that can be asked for
	Max       int     `json:"max"`       // at most
	// Seen are flows since the agent's start, Lost the records of the kernel that became none: it had no room for them.
	Seen []FlowCount `json:"seen"`
	Lost []LostCount `json:"lost"`
	// Stopped is what was denied and dropped, as far as it was told.
	Stopped  []StoppedCount `json:"stopped"`
	RingUsed int            `json:"ringUsed"` // bytes of the kernel's buffer that are not read yet
	RingSize int            `json:"ringSize"`
}

// FlowCount counts flows.
type FlowCount struct {
	Kind  string `json:"kind"` // new, judged, ended, denied, dropped
	Flows uint64 `json:"flows"`
}

// LostCount counts records that there was no room for, and the packets they would have stood for.
type LostCount struct {
	Kind    string `json:"kind"`
	Records uint64 `json:"records"`
	Packets uint64 `json:"packets"`
	Bytes   uint64 `json:"bytes"`
}

// StoppedCount counts packets that were denied or dropped.
type StoppedCount struct {
	Reason    string `json:"reason"`
	Direction string `json:"direction"` // egress, ingress: as the node's pods see it
	Packets   uint64 `json:"packets"`
	Bytes     uint64 `json:"bytes"`
}
