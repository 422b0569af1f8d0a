// Package wire is what strait-cni and the agent say to each other: one JSON request and one JSON response per connection
// to the agent's unix socket, and the queue of DELs for when there is no agent.
//
// strait-cni links it and runs once per pod, so it imports next to nothing.
package wire

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"github.com/containernetworking/cni/pkg/types"
)

// Version is the version of the protocol. Both sides refuse any other.
const Version = 1

// MaxMessage bounds a request and a response, in bytes: a GC request that names 10,000 attachments is 1 MB long.
const MaxMessage = 4 << 20

// Timeout is how long strait-cni waits for the agent. The agent gives up earlier, so that its error arrives.
const Timeout = 60 * time.Second

// Paths used when the network configuration names none.
const (
	DefaultSocket   = "/run/strait/cni.sock"
	DefaultStateDir = "/var/lib/strait"
)

// Command is a CNI verb.
type Command string

// The verbs the agent answers; VERSION is answered by strait-cni itself.
const (
	Add    Command = "ADD"
	Del    Command = "DEL"
	Check  Command = "CHECK"
	GC     Command = "GC"
	Status Command = "STATUS"
)

// Request is one CNI call: the environment of the plugin and its standard input.
type Request struct {
	Version     int             `json:"version"`
	Command     Command         `json:"command"`
	ContainerID string          `json:"containerID,omitempty"` // CNI_CONTAINERID
	NetNS       string          `json:"netns,omitempty"`       // CNI_NETNS
	IfName      string          `json:"ifName,omitempty"`      // CNI_IFNAME
	Args        string          `json:"args,omitempty"`        // CNI_ARGS
	Config      json.RawMessage `json:"config"`                // standard input
}

// Response carries an error, or for ADD the result in the shape of the configuration's cniVersion.
type Response struct {
	Version int             `json:"version"`
	Result  json.RawMessage `json:"result,omitempty"`
	Error   *types.Error    `json:"error,omitempty"`
}

// Attachment is one interface of one sandbox, the unit that ADD makes and DEL removes.
type Attachment struct {
	Network     string // name of the network configuration
	ContainerID string
	IfName      string // in the sandbox
	NetNS       string // path
	Namespace   string // of the pod; empty when the runtime is not Kubernetes
	Pod         string
	PodUID      string
	HostPorts   []PortMapping // with ADD
}

// Key returns containerID/ifname, which identifies the attachment.
func (a Attachment) Key() string { return a.ContainerID + "/" + a.IfName }

// FileName returns the name of the attachment's record: containerID-ifname.json. A hyphen in the interface's name is
// escaped, so that no two attachments share a name.
func (a Attachment) FileName() string {
	return a.ContainerID + "-" + strings.ReplaceAll(a.IfName, "-", "%2D") + ".json"
}

// codeError is an error with the CNI error code it is answered with.
type codeError struct {
	code uint
	err  error
}

func (e *codeError) Error() string { return e.err.Error() }
func (e *codeError) Unwrap() error { return e.err }

// WithCode gives err the CNI error code the runtime is to see.
func WithCode(code uint, err error) error { return &codeError{code: code, err: err} }

// Code returns the CNI error code of err: that of WithCode or of a types.Error inside, else the one for internal errors.
func Code(err error) uint {
	if c := (*codeError)(nil); errors.As(err, &c) {
		return c.code
	}
	if e := (*types.Error)(nil); errors.As(err, &e) {
		return e.Code
	}
	return types.ErrInternal
}

// ErrUnavailable is returned by Call when no agent answered; whether it did the work is not known.
var ErrUnavailable = errors.New("agent is not running")

// Call sends the request to the agent and returns its result. A refusal by the agent is a *types.Error; anything that
// kept the answer from arriving is ErrUnavailable.
func Call(socket string, req Request, timeout time.Duration) (json.RawMessage, error) {
	req.Version = Version
	out, err := json.Marshal(req)
	if err != nil {
		return nil, types.NewError(types.ErrDecodingFailure, fmt.Sprintf("encode request: %v", err), "")
	}
	if len(out) > MaxMessage {
		return nil, types.NewError(types.ErrInvalidNetworkConfig,
			fmt.Sprintf("request of %d bytes is longer than the largest allowed, %d", len(out), MaxMessage), "")
	}
	in, err := exchange(socket, out, timeout)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	var resp Response
	if err := json.Unmarshal(in, &resp); err != nil {
		return nil, fmt.Errorf("%w: decode response: %w", ErrUnavailable, err)
	}
	if resp.Error != nil {
		return nil, resp.Error
	}
	if resp.Version != Version {
		return nil, types.NewError(types.ErrTryAgainLater,
			fmt.Sprintf("agent speaks version %d of the protocol, strait-cni version %d", resp.Version, Version), "")
	}
	return resp.Result, nil
}

func exchange(socket string, out []byte, timeout time.Duration) ([]byte, error) {
	conn, err := net.DialTimeout("unix", socket, timeout)
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	if err := conn.SetDeadline(time.Now().Add(timeout)); err != nil {
		return nil, err
	}
	if _, err := conn.Write(out); err != nil {
		return nil, err
	}
	if c, ok := conn.(*net.UnixConn); ok {
		if err := c.CloseWrite(); err != nil {
			return nil, err
		}
	}
	in, err := io.ReadAll(io.LimitReader(conn, MaxMessage+1))
	if err != nil {
		return nil, err
	}
	if len(in) > MaxMessage {
		return nil, fmt.Errorf("response is longer than %d bytes", MaxMessage)
	}
	if len(in) == 0 {
		return nil, errors.New("connection closed without a response")
	}
	return in, nil
}

// DecodeRequest parses a request strictly: an unknown field, a second value or another version is an error.
func DecodeRequest(data []byte) (Request, error) {
	var req Request
	var probe struct {
		Version int `json:"version"`
	}
	if err := json.Unmarshal(data, &probe); err != nil {
		return req, types.NewError(types.ErrDecodingFailure, fmt.Sprintf("decode request: %v", err), "")
	}
	if probe.Version != Version {
		return req, types.NewError(types.ErrDecodingFailure,
			fmt.Sprintf("request has version %d, the agent speaks version %d", probe.Version, Version), "")
	}
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(&req); err != nil {
		return Request{}, types.NewError(types.ErrDecodingFailure, fmt.Sprintf("decode request: %v", err), "")
	}
	return req, nil
}
