package config

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// UnmarshalJSON reads CIDR text with no host bits set; the empty string is the zero Prefix.
func (p *Prefix) UnmarshalJSON(b []byte) error {
	var text string
	if err := json.Unmarshal(b, &text); err != nil {
		return errors.New("want text such as \"10.244.0.0/16\" or \"fd00:10:244::/48\"")
	}
	if text == "" {
		p.Prefix = netip.Prefix{}
		return nil
	}
	parsed, err := netip.ParsePrefix(text)
	if err != nil {
		return errors.New("not a CIDR such as \"10.244.0.0/16\" or \"fd00:10:244::/48\"")
	}
	if parsed.Addr().Is4In6() {
		return errors.New("v4-mapped IPv6; write the IPv4 CIDR")
	}
	if parsed != parsed.Masked() {
		return fmt.Errorf("has bits set after its length; write %q", parsed.Masked())
	}
	p.Prefix = parsed
	return nil
}

// MarshalJSON writes CIDR text.
func (p Prefix) MarshalJSON() ([]byte, error) { return json.Marshal(p.String()) }

// String returns CIDR text, empty for the zero Prefix.
func (p Prefix) String() string {
	if !p.IsValid() {
		return ""
	}
	return p.Prefix.String()
}

// UnmarshalJSON reads Go duration text; a bare number is refused because its unit would be a guess.
func (d *Duration) UnmarshalJSON(b []byte) error {
	var text string
	if err := json.Unmarshal(b, &text); err != nil {
		return errors.New("want text with a unit such as \"30s\" or \"5m\"")
	}
	parsed, err := time.ParseDuration(text)
	if err != nil {
		return errors.New("not a duration such as \"30s\" or \"5m\"")
	}
	d.Duration = parsed
	return nil
}

// MarshalJSON writes Go duration text.
func (d Duration) MarshalJSON() ([]byte, error) { return json.Marshal(d.String()) }

// UnmarshalJSON reads text; YAML makes true and false of on and off that are not quoted.
func (m *ServiceMode) UnmarshalJSON(b []byte) error {
	return unmarshalSwitch(b, (*string)(m), string(ServicesOn), string(ServicesOff))
}

// UnmarshalJSON reads text; YAML makes false of off that is not quoted.
func (m *XDPMode) UnmarshalJSON(b []byte) error {
	return unmarshalSwitch(b, (*string)(m), "on", string(XDPOff))
}

func unmarshalSwitch(b []byte, into *string, on, off string) error {
	var is bool
	if err := json.Unmarshal(b, &is); err == nil {
		if *into = off; is {
			*into = on
		}
		return nil
	}
	if err := json.Unmarshal(b, into); err != nil {
		return errors.New("want text")
	}
	return nil
}

// MasqueradePortRange returns the inclusive range of MasqueradePorts.
func (c Config) MasqueradePortRange() (low, high uint16, err error) {
	l, h, err := portRange(c.MasqueradePorts, "10000-29999")
	switch {
	case err != nil:
		return 0, 0, err
	case l < 1024:
		return 0, 0, fmt.Errorf("begins at %d; ports below 1024 belong to the node's own servers", l)
	case h-l < minMasqueradePorts-1:
		return 0, 0, fmt.Errorf("has %d ports; at least %d are needed", h-l+1, minMasqueradePorts)
	}
	return l, h, nil
}

// NodePortRange returns the inclusive range of Services.NodePorts.
func (c Config) NodePortRange() (low, high uint16, err error) {
	return portRange(c.Services.NodePorts, "30000-32767")
}

// portRange reads "min-max".
func portRange(text, example string) (low, high uint16, err error) {
	from, to, ok := strings.Cut(text, "-")
	if !ok {
		return 0, 0, fmt.Errorf("want \"min-max\" such as %q", example)
	}
	l, errLow := strconv.ParseUint(strings.TrimSpace(from), 10, 16)
	h, errHigh := strconv.ParseUint(strings.TrimSpace(to), 10, 16)
	switch {
	case errLow != nil || errHigh != nil || l == 0 || h == 0:
		return 0, 0, fmt.Errorf("want two ports from 1 to 65535 such as %q", example)
	case h < l:
		return 0, 0, fmt.Errorf("ends before it begins; write \"%d-%d\"", h, l)
	}
	return uint16(l), uint16(h), nil
}

// PodCIDR returns the pool of a family if the family is enabled, else the zero Prefix.
func (c Config) PodCIDR(v6 bool) netip.Prefix {
	switch {
	case v6 && c.IPv6:
		return c.IPAM.PodCIDRv6.Prefix
	case !v6 && c.IPv4:
		return c.IPAM.PodCIDRv4.Prefix
	}
	return netip.Prefix{}
}
