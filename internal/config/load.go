package config

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"reflect"
	"slices"
	"strings"
	"time"

	"sigs.k8s.io/yaml"
)

// maxSize bounds a configuration; a ConfigMap cannot be larger either.
const maxSize = 1 << 20

// Default returns the configuration of an empty file.
func Default() Config {
	return Config{
		ClusterName: "default",
		RoutingMode: VXLANMode,
		Network:     Island,
		IPv4:        true,
		IPAM: IPAM{
			Mode:       ClusterPool,
			PodCIDRv4:  Prefix{netip.MustParsePrefix("10.244.0.0/16")},
			PodCIDRv6:  Prefix{netip.MustParsePrefix("fd00:10:244::/48")},
			NodeMaskV4: 24,
			NodeMaskV6: 64,
			CoolDown:   Duration{30 * time.Second},
		},
		VXLAN:           VXLAN{Port: 8472},
		MasqueradePorts: "10000-29999",
		SocketLB:        SocketLB{Enabled: true},
		Services: Services{
			Mode: ServicesOn, Algorithm: "random", Forwarding: "snat", XDP: XDPOff, NodePorts: "30000-32767", MaglevSize: 16381, Announce: true,
		},
		Policy: Policy{Enforcement: PolicyDefault},
		Flows:  Flows{Enabled: true, Ring: 2 << 20, Keep: 8192},
		Maps: Maps{
			Conntrack:  512 << 10,
			NAT:        256 << 10,
			Services:   64 << 10,
			Backends:   256 << 10,
			IPCache:    256 << 10,
			Identities: 256 << 10,
			Policies:   256 << 10,
			Ports:      128 << 10,
			Rules:      32 << 10,
		},
		BPFRoot:        "/sys/fs/bpf",
		RunDir:         "/run/strait",
		StateDir:       "/var/lib/strait",
		CNI:            CNI{BinDir: "/opt/cni/bin", ConfDir: "/etc/cni/net.d", Install: true, Exclusive: true},
		MetricsAddress: ":9964",
		LogLevel:       "info",
		Operator:       Operator{MetricsAddress: ":9965", Lease: "strait-operator", Certificates: Certificates{Validity: Duration{90 * 24 * time.Hour}}},
		Relay:          Relay{Local: "127.0.0.1:4245", MetricsAddress: ":9966"},
	}
}

// Load reads and checks the file. The error names every problem found, not only the first.
func Load(path string) (Config, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return Config{}, fmt.Errorf("read configuration: %w", err)
	}
	c, err := Parse(b)
	if err != nil {
		return Config{}, fmt.Errorf("configuration %s:\n%w", path, err)
	}
	return c, nil
}

// Parse reads YAML over the defaults and checks the result.
func Parse(b []byte) (Config, error) {
	if len(b) > maxSize {
		return Config{}, fmt.Errorf("%d bytes long; at most %d are accepted", len(b), maxSize)
	}
	raw, err := yaml.YAMLToJSONStrict(b)
	if err != nil {
		return Config{}, fmt.Errorf("not YAML: %w", err)
	}
	c := Default()
	var errs []error
	if raw = bytes.TrimSpace(raw); len(raw) > 0 {
		errs = decode("", raw, reflect.ValueOf(&c).Elem())
	}
	// A value that could not be read left its default behind, so it is not reported twice.
	if err := errors.Join(append(errs, c.Validate())...); err != nil {
		return Config{}, err
	}
	return c, nil
}

// decode sets the fields of a struct from a JSON object and reports each key and value that does not fit, by its path.
// A null leaves the default.
func decode(path string, raw json.RawMessage, into reflect.Value) []error {
	if bytes.Equal(raw, []byte("null")) {
		return nil
	}
	_, custom := into.Addr().Interface().(json.Unmarshaler)
	if into.Kind() != reflect.Struct || custom {
		return decodeLeaf(path, raw, into)
	}
	var object map[string]json.RawMessage
	if err := json.Unmarshal(raw, &object); err != nil {
		where := path
		if where == "" {
			where = "configuration"
		}
		return []error{fmt.Errorf("%s: %s: want keys and values; accepted keys: %s", where, clip(raw), strings.Join(keys(into.Type()), ", "))}
	}
	var errs []error
	fields := map[string]reflect.Value{}
	for i := range into.NumField() {
		fields[into.Type().Field(i).Tag.Get("json")] = into.Field(i)
	}
	names := make([]string, 0, len(object))
	for name := range object {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		at := strings.TrimPrefix(path+"."+name, ".")
		field, ok := fields[name]
		if !ok {
			errs = append(errs, fmt.Errorf("%s: unknown key; accepted here: %s", at, strings.Join(keys(into.Type()), ", ")))
			continue
		}
		errs = append(errs, decode(at, object[name], field)...)
	}
	return errs
}

func decodeLeaf(path string, raw json.RawMessage, into reflect.Value) []error {
	if into.Kind() == reflect.Slice {
		var items []json.RawMessage
		if err := json.Unmarshal(raw, &items); err != nil {
			return []error{fmt.Errorf("%s: %s: want a list", path, clip(raw))}
		}
		list := reflect.MakeSlice(into.Type(), len(items), len(items))
		var errs []error
		for i, item := range items {
			errs = append(errs, decode(fmt.Sprintf("%s[%d]", path, i), item, list.Index(i))...)
		}
		if len(errs) == 0 {
			into.Set(list)
		}
		return errs
	}
	err := json.Unmarshal(raw, into.Addr().Interface())
	if err == nil {
		return nil
	}
	var mismatch *json.UnmarshalTypeError
	if errors.As(err, &mismatch) {
		err = errors.New("want " + wanted(into.Type()))
	}
	return []error{fmt.Errorf("%s: %s: %w", path, clip(raw), err)}
}

func wanted(t reflect.Type) string {
	switch t.Kind() {
	case reflect.Bool:
		return "true or false"
	case reflect.String:
		return "text"
	case reflect.Uint16:
		return "a number from 0 to 65535"
	case reflect.Uint32:
		return "a number from 0 to 4294967295"
	}
	return "a whole number"
}

func keys(t reflect.Type) []string {
	var out []string
	for i := range t.NumField() {
		out = append(out, t.Field(i).Tag.Get("json"))
	}
	return out
}

func clip(raw []byte) string {
	if len(raw) > 80 {
		return string(raw[:80]) + "..."
	}
	return string(raw)
}
