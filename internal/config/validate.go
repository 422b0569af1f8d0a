package config

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	minMasqueradePorts = 256
	maxCoolDown        = time.Hour
	maxPoolBits        = 32 // a pool holds at most 2^32 node CIDRs
	minMapEntries      = 256
	maxMapEntries      = 16 << 20
	minRing            = 64 << 10 // a page of any kernel, and some hundred records
	maxRing            = 1 << 30
	maxKeep            = 1 << 20
	minMaglevSize      = 251
	maxMaglevSize      = 131071
	minValidity        = 24 * time.Hour
	maxValidity        = 365 * 24 * time.Hour
)

// problems collects findings; each names the key, the value and what would be accepted.
type problems []error

func (p *problems) add(key string, value any, format string, args ...any) {
	*p = append(*p, fmt.Errorf("%s: %v: %s", key, quote(value), fmt.Sprintf(format, args...)))
}

func quote(v any) any {
	switch v := v.(type) {
	case string:
		return strconv.Quote(v)
	case fmt.Stringer:
		return strconv.Quote(v.String())
	}
	return v
}

func oneOf[T ~string](p *problems, key string, value T, accepted ...T) {
	if slices.Contains(accepted, value) {
		return
	}
	names := make([]string, len(accepted))
	for i, a := range accepted {
		names[i] = string(a)
	}
	p.add(key, string(value), "unknown; accepted: %s", strings.Join(names, ", "))
}

// Validate reports every problem of the configuration together.
func (c Config) Validate() error {
	var p problems
	if !dnsLabel().MatchString(c.ClusterName) {
		p.add("clusterName", c.ClusterName, "want 1 to 63 lower-case letters, digits and '-', a letter or digit at both ends")
	}
	oneOf(&p, "routingMode", c.RoutingMode, VXLANMode, NativeMode)
	oneOf(&p, "network", c.Network, Island, Flat, Isolated)
	oneOf(&p, "ipam.mode", c.IPAM.Mode, ClusterPool, KubernetesIPAM)
	oneOf(&p, "logLevel", c.LogLevel, "debug", "info", "warn", "error")
	if !c.IPv4 && !c.IPv6 {
		p.add("ipv4", false, "ipv6 is false as well; at least one must be true")
	}
	c.checkPool(&p, false)
	c.checkPool(&p, true)
	c.checkServiceCIDRs(&p)
	if d := c.IPAM.CoolDown; d.Duration < 0 || d.Duration > maxCoolDown {
		p.add("ipam.coolDown", d.Duration, "want 0s to %s", maxCoolDown)
	}
	c.checkDevices(&p)
	c.checkPorts(&p)
	c.checkServices(&p)
	c.checkMaps(&p)
	c.checkFlows(&p)
	c.checkRelay(&p)
	switch c.Policy.Enforcement {
	case PolicyDefault, PolicyAlways, PolicyNever:
	default:
		p.add("policy.enforcement", c.Policy.Enforcement, "want %s, %s or %s", PolicyDefault, PolicyAlways, PolicyNever)
	}
	c.checkPaths(&p)
	c.checkAPI(&p)
	return errors.Join(p...)
}

func (c Config) checkPool(p *problems, v6 bool) {
	key, family, enabled, pool, maskKey, mask, longest := "ipam.podCIDRv4", "IPv4", c.IPv4, c.IPAM.PodCIDRv4, "ipam.nodeMaskV4", c.IPAM.NodeMaskV4, 30
	if v6 {
		key, family, enabled, pool, maskKey, mask, longest = "ipam.podCIDRv6", "IPv6", c.IPv6, c.IPAM.PodCIDRv6, "ipam.nodeMaskV6", c.IPAM.NodeMaskV6, 124
	}
	if !enabled {
		return
	}
	if !pool.IsValid() {
		if c.IPAM.Mode == ClusterPool {
			p.add(key, "", "%s is enabled and ipam.mode is %s; want the pool's %s CIDR", family, ClusterPool, family)
		}
		return
	}
	if pool.Addr().Is6() != v6 {
		p.add(key, pool, "want an %s CIDR", family)
		return
	}
	if special(pool.Prefix) {
		p.add(key, pool, "is or contains loopback, link-local, multicast or unspecified addresses; want a range for pods only")
	}
	if c.IPAM.Mode != ClusterPool {
		return
	}
	if mask < pool.Bits() || mask > longest {
		p.add(maskKey, mask, "want a length from %d (that of %s) to %d", pool.Bits(), key, longest)
	} else if mask-pool.Bits() > maxPoolBits {
		p.add(maskKey, mask, "makes more than 2^%d node CIDRs of %s; want at most %d", maxPoolBits, pool, pool.Bits()+maxPoolBits)
	}
}

// special reports whether a range cannot hold unicast addresses of pods.
func special(p netip.Prefix) bool {
	for _, text := range []string{"0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "::/96", "::ffff:0:0/96", "fe80::/10", "ff00::/8"} {
		if p.Overlaps(netip.MustParsePrefix(text)) {
			return true
		}
	}
	return false
}

func (c Config) checkServiceCIDRs(p *problems) {
	var seen [2]netip.Prefix
	for i, s := range c.ServiceCIDRs {
		key := fmt.Sprintf("serviceCIDRs[%d]", i)
		if !s.IsValid() {
			p.add(key, s, "want a CIDR")
			continue
		}
		family, pool, poolKey := 0, c.PodCIDR(false), "ipam.podCIDRv4"
		if s.Addr().Is6() {
			family, pool, poolKey = 1, c.PodCIDR(true), "ipam.podCIDRv6"
		}
		if seen[family].IsValid() {
			p.add(key, s, "second range of its family beside %s; want at most one IPv4 and one IPv6", seen[family])
		}
		seen[family] = s.Prefix
		if pool.IsValid() && pool.Overlaps(s.Prefix) {
			p.add(key, s, "overlaps %s %s; want ranges that have no address in common", poolKey, pool)
		}
	}
}

func (c Config) checkDevices(p *problems) {
	seen := map[string]bool{}
	for i, d := range c.Devices {
		key := fmt.Sprintf("devices[%d]", i)
		switch {
		case d == "" || len(d) > 15 || strings.ContainsAny(d, "/: \t\n"):
			p.add(key, d, "want a device name of 1 to 15 characters without spaces, '/' and ':'")
		case d == "lo" || strings.HasPrefix(d, "strait_"):
			p.add(key, d, "carries no outside traffic; want a device such as eth0")
		case seen[d]:
			p.add(key, d, "listed twice")
		}
		seen[d] = true
	}
	if low := c.leastMTU(); c.MTU != 0 && (c.MTU < low || c.MTU > 65535) {
		p.add("mtu", c.MTU, "want 0 (detect) or %d to 65535", low)
	}
}

// leastMTU leaves room for the smallest packet IPv6 requires (RFC 8200, section 5) or IPv4 hosts must accept (RFC 791),
// and for the tunnel's header around it.
func (c Config) leastMTU() int {
	low := 576
	if c.IPv6 {
		low = 1280
	}
	if c.RoutingMode == VXLANMode {
		low += 70
	}
	return low
}

func (c Config) checkPorts(p *problems) {
	if c.VXLAN.Port == 0 {
		p.add("vxlan.port", c.VXLAN.Port, "want a UDP port from 1 to 65535")
	}
	low, high, err := c.MasqueradePortRange()
	if err != nil {
		p.add("masqueradePorts", c.MasqueradePorts, "%s", err)
	} else if c.RoutingMode == VXLANMode && low <= c.VXLAN.Port && c.VXLAN.Port <= high {
		p.add("masqueradePorts", c.MasqueradePorts, "contains vxlan.port %d; want ranges that do not meet", c.VXLAN.Port)
	}
	checkListen(p, "metricsAddress", c.MetricsAddress)
	checkListen(p, "operator.metricsAddress", c.Operator.MetricsAddress)
	if !dnsLabel().MatchString(c.Operator.Lease) {
		p.add("operator.lease", c.Operator.Lease, "want 1 to 63 lower-case letters, digits and '-', a letter or digit at both ends")
	}
}

func (c Config) checkServices(p *problems) {
	s := c.Services
	oneOf(p, "services.mode", s.Mode, ServicesOn, ServicesOff, ServicesDrain)
	oneOf(p, "services.algorithm", s.Algorithm, "random", "maglev", "rr", "lc", "dh", "sh", "sed", "nq", "p2c")
	oneOf(p, "services.forwarding", s.Forwarding, "snat", "dsr")
	oneOf(p, "services.xdp", s.XDP, XDPOff, XDPNative, XDPGeneric)
	if s.MaglevSize < minMaglevSize || s.MaglevSize > maxMaglevSize || !prime(s.MaglevSize) {
		p.add("services.maglevSize", s.MaglevSize, "want a prime from %d to %d such as 251, 1021, 4093, 16381, 65521 or 131071", minMaglevSize, maxMaglevSize)
	}
	low, high, err := c.NodePortRange()
	if err != nil {
		p.add("services.nodePorts", s.NodePorts, "%s", err)
		return
	}
	if l, h, err := c.MasqueradePortRange(); err == nil && low <= h && l <= high {
		p.add("services.nodePorts", s.NodePorts, "meets masqueradePorts %s; want ranges that have no port in common", c.MasqueradePorts)
	}
	if c.RoutingMode == VXLANMode && low <= c.VXLAN.Port && c.VXLAN.Port <= high {
		p.add("services.nodePorts", s.NodePorts, "contains vxlan.port %d; want ranges that do not meet", c.VXLAN.Port)
	}
}

func prime(n uint32) bool {
	for d := uint32(2); d*d <= n; d++ {
		if n%d == 0 {
			return false
		}
	}
	return n > 1
}

func checkListen(p *problems, key, address string) {
	if address == "" {
		return
	}
	host, port, ok := cutLast(address, ":")
	if !ok || !isPort(port) {
		p.add(key, address, "want \"\" (off), \":port\" or \"address:port\"")
		return
	}
	host = strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
	if host == "" || host == "localhost" {
		return
	}
	if _, err := netip.ParseAddr(host); err != nil {
		p.add(key, address, "%q is not an address; want \":port\" or \"address:port\"", host)
	}
}

func cutLast(s, sep string) (before, after string, found bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+len(sep):], true
}

func (c Config) checkMaps(p *problems) {
	for _, m := range []struct {
		key     string
		entries uint32
	}{
		{"maps.conntrack", c.Maps.Conntrack}, {"maps.nat", c.Maps.NAT}, {"maps.services", c.Maps.Services},
		{"maps.backends", c.Maps.Backends}, {"maps.ipcache", c.Maps.IPCache},
		{"maps.identities", c.Maps.Identities}, {"maps.policies", c.Maps.Policies}, {"maps.ports", c.Maps.Ports}, {"maps.rules", c.Maps.Rules},
	} {
		if m.entries < minMapEntries || m.entries > maxMapEntries {
			p.add(m.key, m.entries, "want %d to %d entries", minMapEntries, maxMapEntries)
		}
	}
}

func (c Config) checkFlows(p *problems) {
	f := c.Flows
	if f.Ring < minRing || f.Ring > maxRing || f.Ring&(f.Ring-1) != 0 {
		p.add("flows.ring", f.Ring, "want a power of two from %d to %d bytes", minRing, maxRing)
	}
	if f.Keep < 1 || f.Keep > maxKeep {
		p.add("flows.keep", f.Keep, "want 1 to %d flows, of 400 bytes each", maxKeep)
	}
	checkListen(p, "flows.listen", f.Listen)
	if f.Listen != "" && f.TLSDir == "" {
		p.add("flows.tlsDir", f.TLSDir, "flows.listen is %q; want the directory of ca.crt, tls.crt and tls.key", f.Listen)
	}
}

func (c Config) checkRelay(p *problems) {
	if v := c.Operator.Certificates.Validity; v.Duration < minValidity || v.Duration > maxValidity {
		p.add("operator.certificates.validity", v, "want %v to %v", minValidity, maxValidity)
	}
	r := c.Relay
	checkListen(p, "relay.listen", r.Listen)
	checkListen(p, "relay.metricsAddress", r.MetricsAddress)
	if r.Peer != "" {
		if host, port, ok := cutLast(r.Peer, ":"); !ok || host == "" || !isPort(port) {
			p.add("relay.peer", r.Peer, "want host:port of an agent's flows.listen, or of a Service of agents")
		}
	}
	if r.Local != "" {
		if at, err := netip.ParseAddrPort(r.Local); err != nil || !at.Addr().IsLoopback() || at.Port() == 0 {
			p.add("relay.local", r.Local, "it has no TLS; want a loopback address and a port, such as 127.0.0.1:4245, or \"\" (off)")
		}
	}
	if (r.Listen != "" || r.Peer != "") && r.TLSDir == "" {
		p.add("relay.tlsDir", r.TLSDir, "relay.listen and relay.peer speak TLS; want the directory of ca.crt, tls.crt and tls.key")
	}
}

func isPort(text string) bool {
	n, err := strconv.ParseUint(text, 10, 16)
	return err == nil && n > 0
}

func (c Config) checkPaths(p *problems) {
	for _, path := range []struct {
		key, value string
		optional   bool
	}{
		{"bpfRoot", c.BPFRoot, false}, {"runDir", c.RunDir, false}, {"stateDir", c.StateDir, false},
		{"cgroupRoot", c.CgroupRoot, true}, {"cni.binDir", c.CNI.BinDir, false}, {"cni.confDir", c.CNI.ConfDir, false},
		{"api.kubeconfig", c.API.Kubeconfig, true}, {"flows.tlsDir", c.Flows.TLSDir, true}, {"relay.tlsDir", c.Relay.TLSDir, true},
	} {
		if path.optional && path.value == "" {
			continue
		}
		if !filepath.IsAbs(path.value) || strings.ContainsRune(path.value, 0) {
			p.add(path.key, path.value, "want an absolute path")
		}
	}
}

func (c Config) checkAPI(p *problems) {
	if c.API.Server == "" {
		return
	}
	u, err := url.Parse(c.API.Server)
	if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Hostname() == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		p.add("api.server", c.API.Server, "want https://host:port")
		return
	}
	if port := u.Port(); port != "" {
		if number, err := strconv.ParseUint(port, 10, 16); err != nil || number == 0 {
			p.add("api.server", c.API.Server, "port %s; want 1 to 65535", port)
		}
	}
}

func dnsLabel() *regexp.Regexp { return regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`) }
