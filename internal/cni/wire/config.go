package wire

import (
	"bytes"
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/utils"
)

// PluginType is the type of the plugin in a network configuration: the name of the binary.
const PluginType = "strait-cni"

// Versions returns the versions of the CNI specification whose configurations are accepted, oldest first.
func Versions() []string { return []string{"0.3.1", "0.4.0", "1.0.0", "1.1.0"} }

// Config is the plugin's part of a network configuration list, as the runtime hands it to the plugin.
type Config struct {
	CNIVersion string
	Name       string
	Socket     string          // absolute; DefaultSocket when absent
	StateDir   string          // absolute; DefaultStateDir when absent
	PrevResult json.RawMessage // nil when absent or null
	// ValidAttachments is cni.dev/valid-attachments, present with GC. Nil when the key is absent, empty when it is null.
	ValidAttachments []types.GCAttachment

	portMappings json.RawMessage // of runtimeConfig, see PortMappings
}

// validAttachmentsKey holds the attachments to keep; libcni writes the second spelling as well, from an old specification.
const (
	validAttachmentsKey    = "cni.dev/valid-attachments"
	oldValidAttachmentsKey = "cni.dev/attachments"
)

// ParseConfig parses a network configuration strictly. Errors are *types.Error: 6 for no JSON object, 2 for a field that
// is not supported, 7 for a value that is wrong, 1 for a cniVersion; each names field and value.
func ParseConfig(data []byte) (Config, error) {
	c := Config{Socket: DefaultSocket, StateDir: DefaultStateDir}
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(data, &fields); err != nil {
		return c, types.NewError(types.ErrDecodingFailure, fmt.Sprintf("decode network config: %v", err), "")
	}
	if fields == nil {
		return c, types.NewError(types.ErrDecodingFailure, "decode network config: null is not an object", "")
	}
	keys := make([]string, 0, len(fields))
	for key := range fields {
		keys = append(keys, key)
	}
	slices.Sort(keys) // the same configuration always gets the same error
	for _, key := range keys {
		if err := c.set(key, fields[key]); err != nil {
			return c, err
		}
	}
	if !slices.Contains(Versions(), c.CNIVersion) {
		return c, types.NewError(types.ErrIncompatibleCNIVersion,
			fmt.Sprintf("field %q: %q is not supported", "cniVersion", c.CNIVersion), "supported are "+strings.Join(Versions(), ", "))
	}
	if err := utils.ValidateNetworkName(c.Name); err != nil {
		return c, badValue("name", fields["name"], "a network name of letters, digits, '_', '.' and '-'")
	}
	if _, ok := fields["type"]; !ok {
		return c, badValue("type", nil, "\""+PluginType+"\"")
	}
	return c, nil
}

func (c *Config) set(key string, value json.RawMessage) error {
	switch key {
	case "cniVersion":
		return text(key, value, &c.CNIVersion)
	case "name":
		return text(key, value, &c.Name)
	case "type":
		var s string
		if err := text(key, value, &s); err != nil {
			return err
		}
		if s != PluginType {
			return badValue(key, value, "\""+PluginType+"\"")
		}
		return nil
	case "socket":
		return path(key, value, &c.Socket)
	case "stateDir":
		return path(key, value, &c.StateDir)
	case "prevResult":
		if !isNull(value) {
			c.PrevResult = value
		}
		return nil
	case validAttachmentsKey, oldValidAttachmentsKey:
		return c.attachments(key, value)
	case "capabilities":
		return capabilities(key, value)
	case "runtimeConfig":
		return c.runtime(key, value)
	case "ipam", "dns":
		return mustBeEmpty(key, value)
	case "args": // metadata from the runtime that a plugin may ignore (CNI conventions)
		return nil
	}
	if strings.HasPrefix(key, "cni.dev/") { // reserved by the specification; the runtime decides what it sends
		return nil
	}
	return unsupported(key, value)
}

func (c *Config) attachments(key string, value json.RawMessage) error {
	var list []types.GCAttachment
	if err := json.Unmarshal(value, &list); err != nil {
		return badValue(key, value, "a list of {containerID, ifname}")
	}
	for _, a := range list {
		if utils.ValidateContainerID(a.ContainerID) != nil || utils.ValidateInterfaceName(a.IfName) != nil {
			return badValue(key, value, "a list of {containerID, ifname}, each valid and not empty")
		}
	}
	if key == validAttachmentsKey || c.ValidAttachments == nil {
		c.ValidAttachments = append([]types.GCAttachment{}, list...)
	}
	return nil
}

func text(key string, value json.RawMessage, to *string) error {
	if isNull(value) || json.Unmarshal(value, to) != nil {
		return badValue(key, value, "a string")
	}
	return nil
}

func path(key string, value json.RawMessage, to *string) error {
	var s string
	if err := text(key, value, &s); err != nil {
		return err
	}
	if !filepath.IsAbs(s) || strings.ContainsRune(s, 0) {
		return badValue(key, value, "an absolute path")
	}
	*to = filepath.Clean(s)
	return nil
}

// mustBeEmpty accepts null and {}: encoders of other programs write such fields without being asked to.
func mustBeEmpty(key string, value json.RawMessage) error {
	var m map[string]json.RawMessage
	if json.Unmarshal(value, &m) != nil || len(m) > 0 {
		return unsupported(key, value)
	}
	return nil
}

func isNull(value json.RawMessage) bool { return bytes.Equal(bytes.TrimSpace(value), []byte("null")) }

func unsupported(key string, value json.RawMessage) error {
	return types.NewError(types.ErrUnsupportedField,
		fmt.Sprintf("field %q with value %s is not supported in the network config", key, shorten(value)),
		"supported are cniVersion, name, type, socket, stateDir, capabilities.portMappings, runtimeConfig.portMappings")
}

func badValue(key string, value json.RawMessage, want string) error {
	if value == nil {
		return types.NewError(types.ErrInvalidNetworkConfig, fmt.Sprintf("field %q is missing", key), "expected "+want)
	}
	return types.NewError(types.ErrInvalidNetworkConfig, fmt.Sprintf("field %q: %s is not valid", key, shorten(value)), "expected "+want)
}

// shorten keeps a value readable in an error message.
func shorten(value json.RawMessage) string {
	const most = 200 // bytes
	if len(value) > most {
		return string(value[:most]) + "..."
	}
	return string(value)
}
