package localapi

import (
	"context"
	"net/http"
	"time"
)

// Takeover is the answer of /v1/takeover: who serves Services on this node, and what there is of kube-proxy.
type Takeover struct {
	Mode     string `json:"mode"`   // on, off (kube-proxy serves) or drain
	Config   string `json:"config"` // what the configuration says
	SocketLB bool   `json:"socketLB"`
	// Decided is when a person has decided for another mode than the configuration's.
	Decided *time.Time `json:"decided,omitempty"`
	// Running are signs that kube-proxy runs on the node, as far as the agent can see.
	Running []ProxyTrace `json:"running"`
	// Import are connections made by kube-proxy that Strait goes on with; Held those of the node's own sockets, which the node's stack
	// goes on translating; Lost those to backends that are gone.
	Import int `json:"import"`
	Held   int `json:"held"`
	Lost   int `json:"lost"`
	// Holding says that the stack is kept translating for the sake of Held.
	Holding bool `json:"holding"`
	// Served are connections to services that Strait's programs carry, packet by packet.
	Served  int          `json:"served"`
	Removed []ProxyTrace `json:"removed,omitempty"`
	Left    []ProxyTrace `json:"left"` // of kube-proxy in the kernel
	Checked []string     `json:"checked"`
}

// ProxyTrace is something of kube-proxy on the node.
type ProxyTrace struct {
	Kind   string `json:"kind"`
	Name   string `json:"name"`
	Detail string `json:"detail,omitempty"`
}

func handleTakeover(mux *http.ServeMux, p Provider) {
	get(mux, "/v1/takeover", p.Takeover)
	handle(mux, "POST /v1/takeover/start", p.TakeOver != nil, func(r *http.Request) (any, error) { return p.TakeOver(r.Context()) })
	for path, force := range map[string]bool{"/v1/takeover/undo": false, "/v1/takeover/undo/force": true} {
		handle(mux, "POST "+path, p.UndoTakeover != nil, func(r *http.Request) (any, error) { return p.UndoTakeover(r.Context(), force) })
	}
}

// Takeover returns who serves Services on the node, and what there is of kube-proxy.
func (c *Client) Takeover(ctx context.Context) (Takeover, error) {
	return fetch[Takeover](ctx, c, "/v1/takeover")
}

// TakeOver makes the node serve Services in place of kube-proxy.
func (c *Client) TakeOver(ctx context.Context) (Takeover, error) {
	return do[Takeover](ctx, c, http.MethodPost, "/v1/takeover/start")
}

// UndoTakeover leaves new connections to kube-proxy, with force even if it has no rules on the node.
func (c *Client) UndoTakeover(ctx context.Context, force bool) (Takeover, error) {
	path := "/v1/takeover/undo"
	if force {
		path += "/force"
	}
	return do[Takeover](ctx, c, http.MethodPost, path)
}
