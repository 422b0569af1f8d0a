// Package kubeproxy finds what kube-proxy has put on a node, and removes it without touching the rules of others.
package kubeproxy

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Trace is something of kube-proxy on the node.
type Trace struct {
	Kind   Kind
	Name   string // "ip nat", "kube-ipvs0", "pid 4711"
	Detail string // what exactly, for people
}

// Kind says what a trace is.
type Kind string

// The kinds of traces.
const (
	Process     Kind = "process"
	Port        Kind = "port"            // kube-proxy's health or metrics port answers
	Nftables    Kind = "nftables table"  // of the nftables mode
	Iptables    Kind = "iptables rules"  // chains and jumps to them in a table of iptables-nft
	Legacy      Kind = "iptables-legacy" // the same in a table of iptables-legacy, which no library reaches
	IPSet       Kind = "ipset"           // of the ipvs mode, as the next two
	Device      Kind = "device"
	VirtualHost Kind = "IPVS" // whose virtual servers are cannot be told: shown, not removed
)

// Kinds returns everything Find looks for.
func Kinds() []Kind { return []Kind{Nftables, Iptables, Legacy, IPSet, Device, VirtualHost} }

// ipvsDevice carries all service addresses in ipvs mode.
const ipvsDevice = "kube-ipvs0"

// Find returns what kube-proxy has in the kernel of this network namespace, running or not. With an error, what could not be looked
// at is missing.
func Find() ([]Trace, error) {
	var found []Trace
	var errs []error
	for _, look := range []func() ([]Trace, error){nftTables, iptablesRules, legacyTables, sets, devices, virtualServers} {
		traces, err := look()
		found = append(found, traces...)
		errs = append(errs, err)
	}
	return found, errors.Join(errs...)
}

// Remove takes away everything Find finds, but rules of iptables-legacy: see RemoveLegacy. It goes on after an error. Nobody may run
// who puts it back.
func Remove() error {
	var errs []error
	for _, remove := range []func() error{removeNftTables, removeIptables, removeSets, removeDevice} {
		errs = append(errs, remove())
	}
	return errors.Join(errs...)
}

// kubeletMark is a chain by which the kubelet sees that its own have been flushed.
const kubeletMark = "KUBE-KUBELET-CANARY"

// ownChain reports whether a chain of iptables is kube-proxy's. The kubelet (KUBE-MARK-DROP, KUBE-KUBELET-CANARY, KUBE-IPTABLES-HINT) and
// others (KUBE-ROUTER-, KUBE-NWPLCY-) have chains that begin alike. KUBE-FIREWALL is made by both: where the kubelet makes chains, it
// stays.
func ownChain(name string, kubelet bool) bool {
	switch name {
	case "KUBE-FIREWALL":
		return !kubelet
	case "KUBE-SERVICES", "KUBE-EXTERNAL-SERVICES", "KUBE-NODEPORTS", "KUBE-POSTROUTING", "KUBE-MARK-MASQ", "KUBE-FORWARD",
		"KUBE-PROXY-FIREWALL", "KUBE-PROXY-CANARY", "KUBE-LOAD-BALANCER", "KUBE-NODE-PORT", "KUBE-SOURCE-RANGES-FIREWALL",
		"KUBE-IPVS-FILTER", "KUBE-IPVS-OUT-FILTER":
		return true
	}
	return hasPrefix(name, "KUBE-SVC-", "KUBE-SVL-", "KUBE-SEP-", "KUBE-EXT-", "KUBE-FW-", "KUBE-XLB-")
}

func ownSet(name string) bool {
	name = strings.Replace(name, "KUBE-6-", "KUBE-", 1)
	return hasPrefix(name, "KUBE-CLUSTER-IP", "KUBE-LOOP-BACK", "KUBE-EXTERNAL-IP", "KUBE-LOAD-BALANCER", "KUBE-NODE-PORT-",
		"KUBE-HEALTH-CHECK-NODE-PORT", "KUBE-IPVS-IPS")
}

func hasPrefix(name string, prefixes ...string) bool {
	return slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(name, p) })
}

// some names a few of many.
func some(names []string) string {
	const few = 4
	slices.Sort(names)
	names = slices.Compact(names)
	if len(names) <= few+1 {
		return strings.Join(names, ", ")
	}
	return fmt.Sprintf("%s and %d others", strings.Join(names[:few], ", "), len(names)-few)
}

func ownSets() ([]string, error) {
	all, err := netlink.IpsetListAll()
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, os.ErrNotExist) {
		return nil, nil // no ipset in this kernel
	}
	if err != nil {
		return nil, fmt.Errorf("list ipsets: %w", err)
	}
	var names []string
	for _, s := range all {
		if ownSet(s.SetName) {
			names = append(names, s.SetName)
		}
	}
	return names, nil
}

func sets() ([]Trace, error) {
	names, err := ownSets()
	if err != nil || len(names) == 0 {
		return nil, err
	}
	return []Trace{{IPSet, fmt.Sprintf("%d sets", len(names)), some(names)}}, nil
}

func removeSets() error {
	names, err := ownSets()
	errs := []error{err}
	for _, n := range names {
		if err := netlink.IpsetDestroy(n); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, fmt.Errorf("destroy ipset %s: %w", n, err))
		}
	}
	return errors.Join(errs...)
}

func devices() ([]Trace, error) {
	_, err := netlink.LinkByName(ipvsDevice)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("look for device %s: %w", ipvsDevice, err)
	}
	return []Trace{{Device, ipvsDevice, "carries the addresses of services in ipvs mode"}}, nil
}

func removeDevice() error {
	link, err := netlink.LinkByName(ipvsDevice)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil
	}
	if err == nil {
		err = netlink.LinkDel(link)
	}
	if err != nil {
		return fmt.Errorf("remove device %s: %w", ipvsDevice, err)
	}
	return nil
}

func virtualServers() ([]Trace, error) {
	text, err := os.ReadFile("/proc/thread-self/net/ip_vs")
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read virtual servers of IPVS: %w", err)
	}
	n := 0
	for line := range strings.Lines(string(text)) {
		if hasPrefix(line, "TCP ", "UDP ", "SCTP ") {
			n++
		}
	}
	if n == 0 {
		return nil, nil
	}
	return []Trace{{VirtualHost, fmt.Sprintf("%d virtual servers", n), "ipvsadm -Ln shows them, ipvsadm --clear removes them all"}}, nil
}
