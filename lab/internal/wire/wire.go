// Package wire is what the lab command and the supervisor of a lab say to each other: JSON over HTTP on a unix socket.
package wire

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"time"

	"github.com/strait-net/strait/lab/internal/cgroup"
	"github.com/strait-net/strait/lab/internal/topology"
)

// Paths of the API.
const (
	PathState = "/v1/state" // GET
	PathNodes = "/v1/nodes" // POST adds one; POST /v1/nodes/NAME/kill and /v1/nodes/NAME/restart
)

// State is a lab as it runs.
type State struct {
	Spec    topology.Spec `json:"spec"`
	Started time.Time     `json:"started"`
	// Pid is the supervisor's number as the machine sees it.
	Pid      int       `json:"pid"`
	APIPort  int       `json:"apiPort"` // on 127.0.0.1 of the machine
	Bin      string    `json:"bin"`
	Machines []Machine `json:"machines"`
}

// Machine is one namespace of the lab.
type Machine struct {
	Name  string   `json:"name"`
	Addrs []string `json:"addrs"`
	// Net is a path by which the machine's root opens the network namespace.
	Net string `json:"net"`
	// Node is set for members of the cluster.
	Node *Node `json:"node,omitempty"`
}

// Node is what a cluster member has in addition.
type Node struct {
	Running bool        `json:"running"`
	Pid     int         `json:"pid"` // its init, as the machine sees it; 0 when not running
	Dir     string      `json:"dir"`
	CGroup  cgroup.Tree `json:"cgroup"`
}

// Machine finds a machine by name.
func (s State) Machine(name string) (Machine, error) {
	var names []string
	for _, m := range s.Machines {
		if m.Name == name {
			return m, nil
		}
		names = append(names, m.Name)
	}
	return Machine{}, fmt.Errorf("no machine %q in lab %s; there are %s", name, s.Spec.Name, strings.Join(names, ", "))
}

// Socket is where the supervisor of a lab listens.
func Socket(state string) string { return filepath.Join(state, "control.sock") }

// Boot says how a node starts.
type Boot struct {
	// Load names the image archives to import.
	Load []string `json:"load"`
}

// Client calls a supervisor.
type Client struct{ http *http.Client }

// NewClient calls the supervisor of the lab with that state directory.
func NewClient(state string) Client {
	return Client{&http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", Socket(state))
		},
	}}}
}

// State asks for the state; an error means that no supervisor runs.
func (c Client) State(ctx context.Context) (State, error) {
	var s State
	return s, c.call(ctx, http.MethodGet, PathState, nil, &s)
}

// AddNode adds a node and returns once its kubelet runs.
func (c Client) AddNode(ctx context.Context, b Boot) (Machine, error) {
	var m Machine
	return m, c.call(ctx, http.MethodPost, PathNodes, b, &m)
}

// KillNode takes the power from a node.
func (c Client) KillNode(ctx context.Context, name string) error {
	return c.call(ctx, http.MethodPost, PathNodes+"/"+name+"/kill", nil, nil)
}

// RestartNode boots a node with the disk it had, after taking its power if it is on.
func (c Client) RestartNode(ctx context.Context, name string, b Boot) error {
	return c.call(ctx, http.MethodPost, PathNodes+"/"+name+"/restart", b, nil)
}

func (c Client) call(ctx context.Context, method, path string, send, into any) error {
	content, err := json.Marshal(send)
	if err != nil {
		return err
	}
	request, err := http.NewRequestWithContext(ctx, method, "http://lab"+path, bytes.NewReader(content))
	if err != nil {
		return err
	}
	response, err := c.http.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return err
	}
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s", bytes.TrimSpace(body))
	}
	if into == nil {
		return nil
	}
	return json.Unmarshal(body, into)
}
