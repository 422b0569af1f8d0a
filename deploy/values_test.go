package deploy

import (
	"strings"
	"testing"

	"github.com/strait-net/strait/internal/config"
)

// OPS-1: Cilium's names, old and new, and what they are in config.yaml.
func TestFamiliarNames(t *testing.T) {
	for _, c := range []struct {
		sets string // separated by spaces
		key  string
		want string
		read func(config.Config) any
	}{
		{"routingMode=native", "routingMode", "native", routing},
		{"routingMode=tunnel", "routingMode", "vxlan", routing},
		{"routingMode=vxlan", "routingMode", "vxlan", routing},
		{"routingMode=tunnel tunnelProtocol=vxlan", "routingMode", "vxlan", routing},
		{"tunnel=disabled", "routingMode", "native", routing},
		{"tunnel=vxlan", "routingMode", "vxlan", routing},
		{"tunnel=disabled autoDirectNodeRoutes=true", "routingMode", "native", routing},
		{"routingMode=native autoDirectNodeRoutes=true tunnel=disabled", "routingMode", "native", routing},
		{"autoDirectNodeRoutes=false", "routingMode", "vxlan", routing},
		{"tunnelPort=4789", "vxlan.port", "4789", func(c config.Config) any { return c.VXLAN.Port }},

		{"network=flat", "network", "flat", network},
		{"network=isolated", "network", "isolated", network},
		{"network=isolated enableIPv4Masquerade=false", "network", "isolated", network},
		{"enableIPv4Masquerade=false", "network", "flat", network},
		{"enableIPv4Masquerade=true bpf.masquerade=true", "network", "island", network},
		{"enableIPv4Masquerade=false bpf.masquerade=false", "network", "flat", network},
		{"enableIPv4Masquerade=false enableIPv6Masquerade=true", "network", "flat", network}, // IPv6 is off
		{"ipv4.enabled=false ipv6.enabled=true enableIPv6Masquerade=false", "network", "flat", network},

		{"kubeProxyReplacement=true", "socketLB.enabled", "true", socketLB},
		{"kubeProxyReplacement=strict", "socketLB.enabled", "true", socketLB},
		{"kubeProxyReplacement=false", "socketLB.enabled", "false", socketLB},
		{"kubeProxyReplacement=disabled", "socketLB.enabled", "false", socketLB},
		{"kubeProxyReplacement=false", "services.mode", "off", mode},
		{"kubeProxyReplacement=true socketLB.enabled=false", "services.mode", "on", mode},
		{"loadBalancer.mode=dsr", "services.forwarding", "dsr", func(c config.Config) any { return c.Services.Forwarding }},
		{"loadBalancer.algorithm=maglev", "services.algorithm", "maglev", func(c config.Config) any { return c.Services.Algorithm }},
		{"loadBalancer.acceleration=native", "services.xdp", "native", func(c config.Config) any { return string(c.Services.XDP) }},
		{`nodePort.range=30000\,31000`, "services.nodePorts", "30000-31000", func(c config.Config) any { return c.Services.NodePorts }},
		{"maglev.tableSize=4093", "services.maglevSize", "4093", func(c config.Config) any { return c.Services.MaglevSize }},
		{"policyEnforcementMode=always", "policy.enforcement", "always", func(c config.Config) any { return string(c.Policy.Enforcement) }},
		{"hubble.enabled=false", "flows.enabled", "false", func(c config.Config) any { return c.Flows.Enabled }},
		{"hubble.eventBufferCapacity=4095", "flows.keep", "4095", func(c config.Config) any { return c.Flows.Keep }},
		{"hubble.eventRingSize=65536", "flows.ring", "65536", func(c config.Config) any { return c.Flows.Ring }},
		{"hubble.listenAddress=:4000", "flows.listen", "", listen}, // without a relay nobody asks
		{"hubble.relay.enabled=true", "flows.listen", ":4244", listen},
		{"hubble.relay.enabled=true", "flows.tlsDir", "/etc/strait-tls", func(c config.Config) any { return c.Flows.TLSDir }},
		{"hubble.relay.enabled=true hubble.listenAddress=:4000", "flows.listen", ":4000", listen},
		{"hubble.relay.enabled=true", "relay.peer", "hubble-peer.kube-system.svc:443", func(c config.Config) any { return c.Relay.Peer }},
		{"hubble.relay.enabled=true", "relay.listen", ":4246", func(c config.Config) any { return c.Relay.Listen }},
		{"hubble.relay.enabled=true", "relay.tlsDir", "/etc/strait-tls", func(c config.Config) any { return c.Relay.TLSDir }},
		{"hubble.relay.enabled=true hubble.relay.prometheus.port=9000", "relay.metricsAddress", ":9000", func(c config.Config) any { return c.Relay.MetricsAddress }},
		{"hubble.relay.enabled=true hubble.relay.prometheus.enabled=false", "relay.metricsAddress", "", func(c config.Config) any { return c.Relay.MetricsAddress }},
		{"hubble.relay.enabled=true", "operator.certificates.enabled", "true", certificates},
		{"hubble.relay.enabled=true hubble.tls.auto.enabled=false", "operator.certificates.enabled", "false", certificates},
		{"hubble.relay.enabled=true hubble.tls.auto.certValidityDuration=30", "operator.certificates.validity", "720h0m0s", func(c config.Config) any { return c.Operator.Certificates.Validity }},
		{"policyAuditMode=true", "policy.audit", "true", func(c config.Config) any { return c.Policy.Audit }},
		{"socketLB.enabled=false", "socketLB.enabled", "false", socketLB},
		{"hostServices.enabled=false", "socketLB.enabled", "false", socketLB},

		{"ipam.mode=kubernetes", "ipam.mode", "kubernetes", func(c config.Config) any { return string(c.IPAM.Mode) }},
		{"ipam.mode=kubernetes", "ipam.podCIDRv4", "", poolV4},
		{"ipam.mode=kubernetes ipv4NativeRoutingCIDR=10.1.0.0/16", "ipam.podCIDRv4", "10.1.0.0/16", poolV4},
		{"ipam.mode=kubernetes nativeRoutingCIDR=10.1.0.0/16", "ipam.podCIDRv4", "10.1.0.0/16", poolV4},
		{"ipam.operator.clusterPoolIPv4PodCIDRList={10.1.0.0/16}", "ipam.podCIDRv4", "10.1.0.0/16", poolV4},
		{"ipam.operator.clusterPoolIPv4PodCIDRList=10.1.0.0/16", "ipam.podCIDRv4", "10.1.0.0/16", poolV4},
		{"ipam.operator.clusterPoolIPv4PodCIDR=10.1.0.0/16", "ipam.podCIDRv4", "10.1.0.0/16", poolV4},
		{"ipv4NativeRoutingCIDR=10.244.0.0/16", "ipam.podCIDRv4", "10.244.0.0/16", poolV4},
		{"ipam.operator.clusterPoolIPv4MaskSize=26", "ipam.nodeMaskV4", "26", func(c config.Config) any { return c.IPAM.NodeMaskV4 }},
		{"ipv6.enabled=true ipam.operator.clusterPoolIPv6PodCIDRList={fd00:1::/48}", "ipam.podCIDRv6", "fd00:1::/48", poolV6},
		{"ipv6.enabled=true ipam.operator.clusterPoolIPv6MaskSize=80 ipam.operator.clusterPoolIPv6PodCIDR=fd00::/72", "ipam.nodeMaskV6", "80",
			func(c config.Config) any { return c.IPAM.NodeMaskV6 }},

		{"k8sServiceHost=10.0.0.1", "api.server", "https://10.0.0.1:6443", server},
		{"k8sServiceHost=api.example k8sServicePort=443", "api.server", "https://api.example:443", server},
		{"k8sServiceHost=fd00::1 k8sServicePort=6443", "api.server", "https://[fd00::1]:6443", server},
		{"cluster.name=east", "clusterName", "east", func(c config.Config) any { return c.ClusterName }},
		{"ipv6.enabled=true", "ipv6", "true", func(c config.Config) any { return c.IPv6 }},
		{"devices={eth0,eth1}", "devices", "eth0 eth1", devices},
		{"devices=eth0 MTU=9000", "devices", "eth0", devices},
		{`devices=eth0\,eth1`, "devices", "eth0 eth1", devices},
		{"MTU=9000", "mtu", "9000", func(c config.Config) any { return c.MTU }},
		{"debug.enabled=true", "logLevel", "debug", func(c config.Config) any { return c.LogLevel }},
		{"cni.exclusive=false", "cni.exclusive", "false", func(c config.Config) any { return c.CNI.Exclusive }},
		{"prometheus.enabled=false", "metricsAddress", "", func(c config.Config) any { return c.MetricsAddress }},
		{"operator.prometheus.port=9999", "operator.metricsAddress", ":9999", func(c config.Config) any { return c.Operator.MetricsAddress }},
		{"installNoConntrackIptablesRules=true", "routingMode", "vxlan", routing},
	} {
		t.Run(c.sets, func(t *testing.T) {
			got := c.read(parse(t, mustRender(t, strings.Fields(c.sets)...)))
			if text := plain(got); text != c.want {
				t.Errorf("%s = %q, want %q", c.key, text, c.want)
			}
		})
	}
}

// Each message names the field, its value and what would be accepted; several problems are told together.
func TestRefused(t *testing.T) {
	for _, c := range []struct {
		sets string
		want []string
	}{
		{"routingMode=ipip", []string{`routingMode: "ipip": unknown; accepted: native, tunnel, vxlan`}},
		{"tunnel=geneve", []string{`tunnel: "geneve": unknown; accepted: disabled, vxlan`}},
		{"tunnelProtocol=geneve", []string{`tunnelProtocol: "geneve": unknown; accepted: vxlan`}},
		{"routingMode=tunnel tunnel=disabled", []string{`tunnel: "disabled": means routing mode native, but routingMode: "tunnel" means routing mode vxlan; want them to agree`}},
		{"autoDirectNodeRoutes=true", []string{`autoDirectNodeRoutes: true: routingMode is vxlan`, "want routingMode native"}},
		{"routingMode=native autoDirectNodeRoutes=false", []string{`autoDirectNodeRoutes: false: routingMode is native`}},
		{"network=moat", []string{`network: "moat": unknown; accepted: island, flat, isolated`}},
		{"network=island enableIPv4Masquerade=false", []string{`enableIPv4Masquerade: false: means masquerading false, but network: "island"`}},
		{"network=flat enableIPv4Masquerade=true", []string{`enableIPv4Masquerade: true: means masquerading true, but network: "flat"`}},
		{"ipv6.enabled=true enableIPv4Masquerade=true enableIPv6Masquerade=false", []string{`enableIPv6Masquerade: false: means`, `but enableIPv4Masquerade: true`}},
		{"bpf.masquerade=false", []string{`bpf.masquerade: false: Strait masquerades in BPF and nowhere else`}},
		{"network=flat bpf.masquerade=true", []string{`bpf.masquerade: true: means masquerading true, but network: "flat"`}},
		{"kubeProxyReplacement=partial", []string{`kubeProxyReplacement: "partial": unknown; accepted: true, strict, false, disabled`}},
		{"kubeProxyReplacement=false socketLB.enabled=true", []string{`socketLB.enabled: true: means`, `but kubeProxyReplacement: false`}},
		{"nodePort.enabled=false", []string{`nodePort.enabled: false: Strait serves every kind of service`}},
		{"loadBalancer.mode=hybrid", []string{`loadBalancer.mode: "hybrid": unknown; accepted: dsr, snat`}},
		{"loadBalancer.acceleration=best-effort", []string{`loadBalancer.acceleration: "best-effort": unknown; accepted: disabled, generic, native`}},
		{"socketLB.enabled=true hostServices.enabled=false", []string{`hostServices.enabled: false`, `but socketLB.enabled: true`}},
		{"policyEnforcementMode=strict", []string{`policyEnforcementMode: "strict": unknown; accepted: always, default, never`}},
		{"ipam.mode=eni", []string{`ipam.mode: "eni": unknown; accepted: cluster-pool, kubernetes`}},
		{"ipam.operator.clusterPoolIPv4PodCIDRList={10.1.0.0/16,10.2.0.0/16}", []string{`ipam.operator.clusterPoolIPv4PodCIDRList: ["10.1.0.0/16","10.2.0.0/16"]: want one CIDR`}},
		{"ipam.operator.clusterPoolIPv4PodCIDRList={10.1.0.0/16} ipam.operator.clusterPoolIPv4PodCIDR=10.2.0.0/16", []string{`ipam.operator.clusterPoolIPv4PodCIDR: "10.2.0.0/16": means IPv4 pod CIDR 10.2.0.0/16, but`}},
		{"ipam.operator.clusterPoolIPv4PodCIDRList={fd00::/48}", []string{`ipam.operator.clusterPoolIPv4PodCIDRList: ["fd00::/48"]: want an IPv4 CIDR`}},
		{"ipv4NativeRoutingCIDR=10.0.0.0/8", []string{`ipv4NativeRoutingCIDR: "10.0.0.0/8": means IPv4 pod CIDR 10.0.0.0/8, but ipam.operator.clusterPoolIPv4PodCIDRList: [] means IPv4 pod CIDR 10.244.0.0/16`}},
		{"hubble.relay.enabled=true hubble.enabled=false", []string{`hubble.relay.enabled: true: hubble.enabled is false`}},
		{"hubble.relay.enabled=true hubble.listenAddress=", []string{`hubble.listenAddress: "": the relay asks agents there`, `want ":port"`}},
		{"hubble.relay.enabled=true hubble.listenAddress=127.0.0.1:4244", []string{`hubble.listenAddress: "127.0.0.1:4244": the relay asks agents there`}},
		{"hubble.relay.enabled=true hubble.relay.prometheus.port=4246", []string{`hubble.relay.prometheus.port: 4246: the relay serves its clients there`}},
		{"k8sServicePort=6443", []string{`k8sServicePort: 6443: k8sServiceHost is empty`}},
		{"k8sServiceHost=https://a", []string{`k8sServiceHost: "https://a": want a host name or an address`}},
		{"k8sServiceHost=auto", []string{`k8sServiceHost: "auto": want a host name`}},
		{"k8sServiceHost=a:6443", []string{`k8sServiceHost: "a:6443": want the port in k8sServicePort`}},
		{"ipv4.enabled=false", []string{`ipv4.enabled: false: ipv6.enabled is false as well`}},
		{"devices=eth+", []string{`devices: "eth+": patterns are not supported`}},
		{"logLevel=loud", []string{`logLevel: "loud": unknown; accepted: debug, error, info, warn`}},
		{"logLevel=warn debug.enabled=true", []string{`debug.enabled: true: means log level debug, but logLevel: "warn"`}},
		{"routingMode=ipip ipam.mode=eni network=moat", []string{"routingMode:", "ipam.mode:", "network:"}},

		// What the schema refuses.
		{"routingmode=native", []string{"routingmode"}},
		{"ipam.operator.clusterPoolIPv4Mask=24", []string{"clusterPoolIPv4Mask"}},
		{"bpf.masquerade=maybe", []string{"bpf", "masquerade", "boolean"}},
		{"image.pullPolicy=Sometimes", []string{"pullPolicy"}},
		{"maps.conntrack=1", []string{"conntrack"}},
		{"k8sServiceHost=a k8sServicePort=x", []string{"k8sServicePort"}},
		{"hubble.tls.auto.certValidityDuration=1000", []string{"certValidityDuration"}},
		{"hubble.ui.enabled=true", []string{"ui"}},
		{"bpf=null", []string{"bpf"}},
	} {
		t.Run(c.sets, func(t *testing.T) {
			_, err := render(t, strings.Fields(c.sets)...)
			if err == nil {
				t.Fatal("rendered")
			}
			for _, want := range c.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("message lacks %s:\n%v", want, err)
				}
			}
		})
	}
}

func routing(c config.Config) any  { return string(c.RoutingMode) }
func network(c config.Config) any  { return string(c.Network) }
func socketLB(c config.Config) any { return c.SocketLB.Enabled }
func mode(c config.Config) any     { return string(c.Services.Mode) }
func poolV4(c config.Config) any   { return c.IPAM.PodCIDRv4 }
func poolV6(c config.Config) any   { return c.IPAM.PodCIDRv6 }
func server(c config.Config) any   { return c.API.Server }
func listen(c config.Config) any   { return c.Flows.Listen }
func devices(c config.Config) any  { return strings.Join(c.Devices, " ") }

func certificates(c config.Config) any { return c.Operator.Certificates.Enabled }
