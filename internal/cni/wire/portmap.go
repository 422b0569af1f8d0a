package wire

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// PortMapping is an element of runtimeConfig.portMappings (CNI conventions): a port of the node that leads to one of the pod.
type PortMapping struct {
	HostIP        netip.Addr `json:"hostIP,omitzero"` // zero or unspecified: every address of the node
	HostPort      uint16     `json:"hostPort"`
	ContainerPort uint16     `json:"containerPort"`
	Protocol      string     `json:"protocol"` // tcp, udp, sctp
}

// String returns "10.0.0.1:80/tcp", or ":80/tcp" for every address of the node.
func (p PortMapping) String() string {
	if p.Everywhere() {
		return fmt.Sprintf(":%d/%s", p.HostPort, p.Protocol)
	}
	return netip.AddrPortFrom(p.HostIP, p.HostPort).String() + "/" + p.Protocol
}

// Everywhere reports whether the port is one of every address of the node.
func (p PortMapping) Everywhere() bool { return !p.HostIP.IsValid() || p.HostIP.IsUnspecified() }

// Conflicts reports whether a connection could mean both.
func (p PortMapping) Conflicts(o PortMapping) bool {
	return p.HostPort == o.HostPort && p.Protocol == o.Protocol && (p.Everywhere() || o.Everywhere() || p.HostIP == o.HostIP)
}

// Complete reports whether the mapping has all its parts.
func (p PortMapping) Complete() bool {
	return p.HostPort != 0 && p.ContainerPort != 0 && slices.Contains(protocols(), p.Protocol)
}

func protocols() []string { return []string{"tcp", "udp", "sctp"} }

const portMappingsKey = "portMappings"

// runtime takes what the runtime adds for the capabilities in the conflist.
func (c *Config) runtime(key string, value json.RawMessage) error {
	var fields map[string]json.RawMessage
	if json.Unmarshal(value, &fields) != nil {
		return badValue(key, value, "an object")
	}
	for _, k := range slices.Sorted(maps.Keys(fields)) {
		if k != portMappingsKey {
			return unsupported(key+"."+k, fields[k])
		}
		c.portMappings = fields[k]
	}
	return nil
}

// capabilities accepts the one that the conflist declares; libcni leaves the field in what it hands to the plugin.
func capabilities(key string, value json.RawMessage) error {
	var fields map[string]bool
	if json.Unmarshal(value, &fields) != nil {
		return badValue(key, value, "an object of booleans")
	}
	for _, k := range slices.Sorted(maps.Keys(fields)) {
		if fields[k] && k != portMappingsKey {
			return unsupported(key+"."+k, json.RawMessage("true"))
		}
	}
	return nil
}

// PortMappings returns runtimeConfig.portMappings, each once. It is checked here and not in ParseConfig: a DEL has to work whatever was
// wrong with the ADD. Errors are *types.Error with code 7.
func (c Config) PortMappings() ([]PortMapping, error) {
	const list = "runtimeConfig." + portMappingsKey
	if c.portMappings == nil {
		return nil, nil
	}
	var raw []map[string]json.RawMessage
	if json.Unmarshal(c.portMappings, &raw) != nil {
		return nil, badValue(list, c.portMappings, "a list of {hostPort, containerPort, protocol, hostIP}")
	}
	var out []PortMapping
	for i, fields := range raw {
		field := list + "[" + strconv.Itoa(i) + "]"
		p, err := portMapping(field, fields)
		if err != nil {
			return nil, err
		}
		same := func(o PortMapping) bool {
			return o.HostIP == p.HostIP && o.HostPort == p.HostPort && o.Protocol == p.Protocol
		}
		switch j := slices.IndexFunc(out, same); {
		case j < 0:
			out = append(out, p)
		case out[j] != p:
			return nil, badValue(field+".containerPort", fmt.Appendf(nil, "%d", p.ContainerPort),
				fmt.Sprintf("%d as for the same host port before", out[j].ContainerPort))
		}
	}
	return out, nil
}

// portMapping reads one mapping. containerd begins the names of the fields with a capital letter.
func portMapping(field string, fields map[string]json.RawMessage) (p PortMapping, err error) {
	lower := make(map[string]json.RawMessage, len(fields))
	for k, v := range fields {
		lower[strings.ToLower(k)] = v
	}
	for _, part := range []struct {
		name string
		read func(field string, value json.RawMessage) error
	}{
		{"hostPort", func(f string, v json.RawMessage) error { return port(f, v, &p.HostPort) }},
		{"containerPort", func(f string, v json.RawMessage) error { return port(f, v, &p.ContainerPort) }},
		{"protocol", p.setProtocol},
		{"hostIP", p.setHostIP},
	} {
		key := strings.ToLower(part.name)
		if err := part.read(field+"."+part.name, lower[key]); err != nil {
			return p, err
		}
		delete(lower, key)
	}
	for _, k := range slices.Sorted(maps.Keys(lower)) {
		return p, unsupported(field+"."+k, lower[k])
	}
	return p, nil
}

func port(field string, value json.RawMessage, to *uint16) error {
	var n int64
	if value == nil || json.Unmarshal(value, &n) != nil || n < 1 || n > 65535 {
		return badValue(field, value, "a port number, 1-65535")
	}
	*to = uint16(n)
	return nil
}

func (p *PortMapping) setProtocol(field string, value json.RawMessage) error {
	var s string
	if value == nil || json.Unmarshal(value, &s) != nil || !slices.Contains(protocols(), strings.ToLower(s)) {
		return badValue(field, value, "tcp, udp or sctp")
	}
	p.Protocol = strings.ToLower(s)
	return nil
}

func (p *PortMapping) setHostIP(field string, value json.RawMessage) error {
	var s string
	if value == nil || isNull(value) {
		return nil
	}
	err := json.Unmarshal(value, &s)
	if err == nil && s == "" {
		return nil
	}
	a, parse := netip.ParseAddr(s)
	if err != nil || parse != nil || a.Zone() != "" {
		return badValue(field, value, "an IPv4 or IPv6 address, or nothing for every address of the node")
	}
	p.HostIP = a.Unmap()
	return nil
}
