package localapi

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
)

// Client asks the agent of this node. Its methods wrap ErrNotFound, ErrNotOffered or the error of the socket.
type Client struct {
	http *http.Client
}

// NewClient returns a client of the agent listening on the unix socket. Nothing is dialled before the first call.
func NewClient(socket string) *Client {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", socket)
	}
	return &Client{http: &http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}}
}

// Status returns the agent's state.
func (c *Client) Status(ctx context.Context) (Status, error) {
	return fetch[Status](ctx, c, "/v1/status")
}

// Nodes returns the nodes the agent knows.
func (c *Client) Nodes(ctx context.Context) ([]Node, error) {
	return fetch[[]Node](ctx, c, "/v1/nodes")
}

// Endpoints returns the pods of this node.
func (c *Client) Endpoints(ctx context.Context) ([]Endpoint, error) {
	return fetch[[]Endpoint](ctx, c, "/v1/endpoints")
}

// Services returns the frontends, and the services that have none.
func (c *Client) Services(ctx context.Context) ([]Service, error) {
	return fetch[[]Service](ctx, c, "/v1/services")
}

// Service returns everything of one service.
func (c *Client) Service(ctx context.Context, namespace, name string) (ServiceDetail, error) {
	if !isPath(namespace) || !isPath(name) {
		return ServiceDetail{}, fmt.Errorf("service %q: %w", namespace+"/"+name, ErrNotFound)
	}
	return fetch[ServiceDetail](ctx, c, "/v1/services/"+namespace+"/"+name)
}

// Remotes returns the rows of the ipcache.
func (c *Client) Remotes(ctx context.Context) ([]Remote, error) {
	return fetch[[]Remote](ctx, c, "/v1/remotes")
}

// Routes returns the routes Strait keeps in the node's stack.
func (c *Client) Routes(ctx context.Context) ([]Route, error) {
	return fetch[[]Route](ctx, c, "/v1/routes")
}

// Devices returns the node's devices.
func (c *Client) Devices(ctx context.Context) ([]Device, error) {
	return fetch[[]Device](ctx, c, "/v1/devices")
}

// Maps returns the kernel's maps.
func (c *Client) Maps(ctx context.Context) ([]Map, error) { return fetch[[]Map](ctx, c, "/v1/maps") }

// DumpMap returns the content of a map as Provider.DumpMap says, at most limit rows unless limit is 0.
func (c *Client) DumpMap(ctx context.Context, name string, limit int, match ...string) (MapDump, error) {
	if !isPath(name) {
		return MapDump{}, fmt.Errorf("map %q: %w", name, ErrNotFound)
	}
	return fetch[MapDump](ctx, c, "/v1/maps/"+name+"?"+url.Values{"limit": {strconv.Itoa(limit)}, "match": match}.Encode())
}

// CheckIPAM compares address records with live sandboxes, and repairs when fix is set.
func (c *Client) CheckIPAM(ctx context.Context, fix bool) (IPAMCheck, error) {
	method := http.MethodGet
	if fix {
		method = http.MethodPost
	}
	return do[IPAMCheck](ctx, c, method, "/v1/ipam/check")
}

func fetch[T any](ctx context.Context, c *Client, path string) (T, error) {
	return do[T](ctx, c, http.MethodGet, path)
}

func do[T any](ctx context.Context, c *Client, method, path string) (T, error) {
	return send[T](ctx, c, method, path, nil)
}

func send[T any](ctx context.Context, c *Client, method, path string, body io.Reader) (T, error) {
	var v T
	req, err := http.NewRequestWithContext(ctx, method, "http://agent"+path, body)
	if err != nil {
		return v, fmt.Errorf("ask agent for %s: %w", path, err)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return v, fmt.Errorf("ask agent: %w", err)
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return v, refusal(resp)
	}
	if err := json.NewDecoder(resp.Body).Decode(&v); err != nil {
		return v, fmt.Errorf("read agent's answer to %s: %w", path, err)
	}
	return v, nil
}

func refusal(resp *http.Response) error {
	body, _ := io.ReadAll(io.LimitReader(resp.Body, 64<<10)) // a short body still gives the status below
	var f failure
	if json.Unmarshal(body, &f) != nil || f.Error == "" {
		f.Error = resp.Status
	}
	switch resp.StatusCode {
	case http.StatusNotFound:
		return &answerError{f.Error, ErrNotFound}
	case http.StatusBadRequest:
		return &answerError{f.Error, ErrBadQuestion}
	case http.StatusNotImplemented:
		return &answerError{f.Error, ErrNotOffered}
	}
	return &answerError{f.Error, nil}
}

// answerError is a message for people; kind is the sentinel it stands for, if any.
type answerError struct {
	text string
	kind error
}

func (e *answerError) Error() string { return e.text }
func (e *answerError) Unwrap() error { return e.kind }
