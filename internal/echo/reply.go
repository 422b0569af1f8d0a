// Package echo is a small server that says who asked it and where it runs, and the client that asks.
package echo

import (
	"encoding/json"
	"fmt"
	"net/netip"
)

// Reply is what a server says about itself and about who asked.
type Reply struct {
	Pod      string         `json:"pod"`
	Node     string         `json:"node,omitempty"`
	Protocol string         `json:"protocol"`    // TCP or UDP
	At       netip.AddrPort `json:"at,omitzero"` // of the server, as the packets had it; a UDP server does not know
	From     netip.AddrPort `json:"from"`        // who asked, as the server sees it
}

// String returns "echo-b-1 on node2, which sees 10.244.0.7:41222".
func (r Reply) String() string {
	text := r.Pod
	if r.Node != "" {
		text += " on " + r.Node
	}
	return fmt.Sprintf("%s, which sees %s", text, r.From)
}

// parseReply returns nil for what is not the answer of an echo server.
func parseReply(body []byte) *Reply {
	var r Reply
	if json.Unmarshal(body, &r) != nil || r.Pod == "" || !r.From.IsValid() {
		return nil
	}
	return &r
}

func unmap(a netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()) }
