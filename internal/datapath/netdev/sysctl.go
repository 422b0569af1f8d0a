package netdev

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// Only sysctls that belong to a network namespace are ever written: others would change the machine for everybody on it.
// /proc/sys/net shows the namespace of the calling thread.
const sysctlRoot = "/proc/sys/"

// EnableForwarding lets the node's stack forward packets and returns what it changed. Devices that take router advertisements
// go on doing so, which the kernel would otherwise end with IPv6 forwarding. It must be called on a thread of the node's
// namespace, as any thread of the agent is.
func EnableForwarding(v4, v6 bool) (changed []string, err error) {
	if v4 {
		if changed, err = ensureSysctl(changed, "net/ipv4/ip_forward", "1"); err != nil {
			return changed, err
		}
	}
	if !v6 {
		return changed, nil
	}
	const forwarding = "net/ipv6/conf/all/forwarding"
	have, err := readSysctl(forwarding)
	if err != nil {
		return changed, fmt.Errorf("IPv6 is configured but the kernel has none: %w", err)
	}
	if have == "1" {
		return changed, nil
	}
	if changed, err = keepRouterAdvertisements(changed); err != nil {
		return changed, err
	}
	return ensureSysctl(changed, forwarding, "1")
}

// keepRouterAdvertisements turns accept_ra 1 (unless forwarding) into 2 (always).
func keepRouterAdvertisements(changed []string) ([]string, error) {
	paths, err := filepath.Glob(sysctlRoot + "net/ipv6/conf/*/accept_ra")
	if err != nil {
		return changed, err
	}
	for _, p := range paths {
		name := strings.TrimPrefix(p, sysctlRoot)
		switch device := filepath.Base(filepath.Dir(p)); {
		case device == "all", device == "default", device == "lo", IsPodDevice(device), device == VXLANDevice:
			continue
		}
		have, err := readSysctl(name)
		if errors.Is(err, os.ErrNotExist) {
			continue // the device has just gone
		}
		if err != nil {
			return changed, err
		}
		if have != "1" {
			continue
		}
		if changed, err = ensureSysctl(changed, name, "2"); err != nil && !errors.Is(err, os.ErrNotExist) {
			return changed, err
		}
	}
	return changed, nil
}

func ensureSysctl(changed []string, name, want string) ([]string, error) {
	have, err := readSysctl(name)
	if err != nil {
		return changed, err
	}
	if have == want {
		return changed, nil
	}
	if err := writeSysctl(name, want); err != nil {
		return changed, err
	}
	return append(changed, fmt.Sprintf("%s %s, want %s", dotted(name), have, want)), nil
}

func readSysctl(name string) (string, error) {
	b, err := os.ReadFile(sysctlRoot + name)
	if err != nil {
		return "", fmt.Errorf("read sysctl %s: %w", dotted(name), err)
	}
	return strings.TrimSpace(string(b)), nil
}

func writeSysctl(name, value string) error {
	f, err := os.OpenFile(sysctlRoot+name, os.O_WRONLY, 0)
	if err == nil {
		_, err = f.WriteString(value)
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		return fmt.Errorf("set sysctl %s to %s: %w", dotted(name), value, err)
	}
	return nil
}

func dotted(name string) string { return strings.ReplaceAll(name, "/", ".") }

// LocalPortRange returns net.ipv4.ip_local_port_range, inclusive; it serves both families.
func LocalPortRange() (low, high uint16, err error) {
	text, err := readSysctl("net/ipv4/ip_local_port_range")
	if err != nil {
		return 0, 0, err
	}
	if _, err := fmt.Sscan(text, &low, &high); err != nil {
		return 0, 0, fmt.Errorf("sysctl net.ipv4.ip_local_port_range is %q: %w", text, err)
	}
	return low, high, nil
}

// ReservePorts keeps the kernel from choosing a port between low and high, inclusive, for a socket that asks for none in particular, and
// returns what it changed. Only a range that the kernel may choose from has to be reserved; what others have reserved stays.
func ReservePorts(low, high uint16) (changed []string, err error) {
	const reserved = "net/ipv4/ip_local_reserved_ports"
	localLow, localHigh, err := LocalPortRange()
	if err != nil || low == 0 || low > localHigh || high < localLow {
		return nil, err
	}
	have, err := readSysctl(reserved)
	if err != nil {
		return nil, err
	}
	low, high = max(low, localLow), min(high, localHigh)
	for part := range strings.SplitSeq(have, ",") {
		var from, to uint16
		if n, _ := fmt.Sscanf(part, "%d-%d", &from, &to); n == 2 && from <= low && to >= high {
			return nil, nil // the kernel joins what touches
		}
	}
	return ensureSysctl(nil, reserved, strings.TrimPrefix(fmt.Sprintf("%s,%d-%d", have, low, high), ","))
}
